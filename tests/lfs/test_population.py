"""Population-based training: exploit weights, perturb losses."""

import random

import numpy as np
import pytest

from lfs.population import PopulationTraining, perturbed
from lfs.trial import Trial
from search_space import CombinedMargin, Unified
from search_space.domains import Domain
from search_space.parts import ConstantMargin
from tests.lfs.test_controllers import drive
from trainers.outcome import Outcome

SPACE = CombinedMargin(m2_rad=(0.0, 1.0))


def margin(trial: Trial) -> float:
    held = trial.schedule.final.margin
    assert isinstance(held, ConstantMargin)
    return held.m2_rad


def goodness(trial: Trial) -> float:
    return 1 - abs(margin(trial) - 0.6)


def rewarded(trial: Trial) -> Outcome:
    return Outcome(reward=goodness(trial), seconds=0.0, images=1)


def population(members: int = 8, *, horizon_epochs: int = 8, seed: int = 0) -> PopulationTraining:
    return PopulationTraining(
        SPACE, members=members, step_epochs=2, share=0.25, horizon_epochs=horizon_epochs, seed=seed
    )


def test_the_worst_start_over_from_the_best_under_a_perturbed_loss_and_the_others_go_on() -> None:
    controller = population()
    first = controller.ask(8)
    for trial in first:
        controller.tell(trial, rewarded(trial))
    ranked = sorted(first, key=lambda trial: -goodness(trial))
    best, worst = {t.number for t in ranked[:2]}, {t.number for t in ranked[-2:]}
    second = controller.ask(8)
    for old, new in zip(first, second, strict=True):
        parent = first[new.parent or 0]
        assert (new.epochs, new.seed) == (4, parent.seed)
        assert new.schedule.at(0) == parent.schedule.at(0)
        if old.number in worst:
            assert new.parent in best
            assert new.schedule.final != parent.schedule.final
        else:
            assert new.parent == old.number
            assert new.schedule == old.schedule


def test_members_begin_with_losses_and_seeds_of_their_own() -> None:
    first = population().ask(8)
    assert len({trial.seed for trial in first}) == len({trial.schedule for trial in first}) == 8


@pytest.mark.parametrize("seed", range(3))
def test_the_population_moves_towards_the_better_losses(seed: int) -> None:
    asked = drive(population(12, horizon_epochs=24, seed=seed), 3, random.Random(seed), rewarded)
    first, last = asked[:12], asked[-12:]
    assert np.mean([goodness(t) for t in last]) > np.mean([goodness(t) for t in first]) + 0.1


def test_failed_members_are_replaced_however_many() -> None:
    controller = population()
    first = controller.ask(8)
    failed = Outcome(reward=None, error="diverged: loss is nan", seconds=0.0, images=0)
    for trial in first:
        controller.tell(trial, rewarded(trial) if trial.number == 5 else failed)
    assert {trial.parent for trial in controller.ask(8)} == {5}


def test_the_last_step_is_cut_at_the_horizon() -> None:
    asked = drive(population(4, horizon_epochs=5), 2, random.Random(0), rewarded)
    assert [trial.epochs for trial in asked] == [2] * 4 + [4] * 4 + [5] * 4


def test_a_step_as_long_as_the_horizon_is_refused() -> None:
    with pytest.raises(ValueError, match=r"search.step_epochs must lie in \[1, recipe.horizon_epochs\), but got 2"):
        population(horizon_epochs=2)


def test_perturbed_values_are_valid_near_and_sometimes_new() -> None:
    space, rng = Unified(), np.random.default_rng(0)
    moved_far, moved_near = 0, 0
    for _ in range(200):
        values = space.walk(lambda _, parameter: parameter.draw(rng))
        moved = perturbed(values, space.parameters, rng)
        space.decode(moved)
        for name in values.keys() & moved.keys():
            parameter = space.parameters[name]
            if isinstance(parameter, Domain):
                distance = abs(parameter.to_unit(float(moved[name])) - parameter.to_unit(float(values[name])))
                moved_near += 0 < distance < 0.45
                moved_far += distance >= 0.45
    assert 0 < moved_far < 0.3 * moved_near
