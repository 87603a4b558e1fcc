"""Controllers that train each candidate on its own: independent, successive halving, Hyperband."""

import random
from collections import Counter

import numpy as np
import pytest

from lfs.candidates import Halving, Independent, hyperband, rungs_from
from lfs.samplers import UniformSampler
from lfs.trial import Trial
from search_space.parts import ConstantMargin
from tests.lfs.test_controllers import drive
from tests.lfs.toy import trajectories
from trainers.outcome import Outcome

HORIZON = 9


def goodness(trial: Trial) -> float:
    """Best at m2 = .5 rad, at every budget."""
    margin = trial.schedule.final.margin
    assert isinstance(margin, ConstantMargin)
    return -abs(margin.m2_rad - 0.5)


def rewarded(trial: Trial) -> Outcome:
    return Outcome(reward=goodness(trial), seconds=0.0, images=100)


def halving(candidates: int = 27, *, eta: int = 3, seed: int = 0) -> Halving:
    sampler = UniformSampler(trajectories(), seed=seed)
    return Halving(sampler, brackets=[(1, candidates)], eta=eta, horizon_epochs=HORIZON, seed=seed)


def test_independent_trains_each_candidate_once_for_the_whole_horizon_under_one_seed() -> None:
    controller = Independent(UniformSampler(trajectories(), seed=3), trials=5, horizon_epochs=HORIZON, seed=3)
    asked = drive(controller, 2, random.Random(0))
    assert len(asked) == len({trial.schedule for trial in asked}) == 5
    assert {(trial.epochs, trial.seed, trial.parent) for trial in asked} == {(HORIZON, 3, None)}


@pytest.mark.parametrize(
    ("first", "horizon", "eta", "rungs"),
    [(1, 9, 3, [1, 3, 9]), (1, 8, 3, [1, 3, 8]), (2, 9, 2, [2, 4, 8, 9]), (9, 9, 3, [9])],
)
def test_rungs_multiply_up_to_the_horizon(first: int, horizon: int, eta: int, rungs: list[int]) -> None:
    assert rungs_from(first, horizon, eta) == rungs


def test_alone_it_promotes_a_third_at_each_rung_and_the_best_ends_at_the_horizon() -> None:
    asked = drive(halving(), 1, random.Random(0), rewarded)
    by_rung = Counter(trial.epochs for trial in asked)
    assert by_rung[1] == 27
    assert 9 <= by_rung[3] <= 14  # some are promoted before better ones come
    assert 3 <= by_rung[9] <= 8
    best = max((trial for trial in asked if trial.epochs == 1), key=goodness)
    assert best.schedule in {trial.schedule for trial in asked if trial.epochs == HORIZON}


def test_a_promotion_continues_its_own_trial() -> None:
    asked = drive(halving(), 4, random.Random(1), rewarded)
    for trial in asked:
        if trial.parent is not None:
            below = asked[trial.parent]
            assert (trial.schedule, trial.seed) == (below.schedule, below.seed)
            assert (below.epochs, trial.epochs) in {(1, 3), (3, 9)}
    promoted = [trial.parent for trial in asked if trial.parent is not None]
    assert len(promoted) == len(set(promoted))


def test_at_a_rung_only_the_top_share_is_promoted() -> None:
    controller = halving(9)
    first = controller.ask(9)
    for trial in first[:6]:
        controller.tell(trial, rewarded(trial))
    promoted = controller.ask(9)
    assert {trial.parent for trial in promoted} == {
        trial.number for trial in sorted(first[:6], key=goodness, reverse=True)[:2]
    }


def test_another_takes_the_place_of_a_promoted_candidate_that_fails() -> None:
    controller = halving(9)
    first = controller.ask(9)
    for trial in first:
        controller.tell(trial, rewarded(trial))
    promoted = controller.ask(9)
    controller.tell(promoted[0], Outcome(reward=None, error="diverged: loss is nan", seconds=0.0, images=0))
    (instead,) = controller.ask(9)
    ranked = sorted(first, key=goodness, reverse=True)
    assert instead.parent == ranked[3].number


def test_it_trains_less_than_independent_for_as_good_an_end() -> None:
    asked = drive(halving(), 2, random.Random(0), rewarded)
    epochs = sum(t.epochs - (asked[t.parent].epochs if t.parent is not None else 0) for t in asked)
    assert epochs < 0.6 * 27 * HORIZON
    ends = [goodness(trial) for trial in asked if trial.epochs == HORIZON]
    assert max(ends) == max(goodness(trial) for trial in asked)


def test_hyperbands_brackets_begin_ever_higher_with_ever_fewer() -> None:
    assert hyperband(27, horizon_epochs=9, min_epochs=1, eta=3) == [(1, 27), (3, 14), (9, 9)]
    controller = Halving(
        UniformSampler(trajectories(), seed=0),
        brackets=hyperband(27, horizon_epochs=9, min_epochs=1, eta=3),
        eta=3,
        horizon_epochs=HORIZON,
        seed=0,
    )
    asked = drive(controller, 3, random.Random(0), rewarded)
    starts = Counter(trial.epochs for trial in asked if trial.parent is None)
    assert starts == {1: 27, 3: 14, 9: 9}


def test_a_bracket_too_small_to_reach_the_end_is_refused() -> None:
    sentence = "a bracket from 1 to 9 epochs with eta=3 needs 9 candidates for one to reach the end, but has 8"
    with pytest.raises(ValueError, match=sentence):
        halving(8)


@pytest.mark.parametrize("seed", range(5))
def test_live_holds_every_trial_that_is_ever_continued(seed: int) -> None:
    """`drive` drops what is not live, and fails when a parent is gone; few stay at the end."""
    rng = np.random.default_rng(seed)

    def noisy(_: Trial) -> Outcome:
        return Outcome(reward=float(rng.random()), seconds=0.0, images=1)

    controller = halving(30, eta=2, seed=seed)
    drive(controller, 5, random.Random(seed), noisy)
    assert len(controller.live()) == 0
