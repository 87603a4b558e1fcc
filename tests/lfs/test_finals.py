"""After a search its best candidates are trained again under other seeds, and the best mean wins."""

import random
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest

from lfs.budget import Budget, Budgeted, Clock
from lfs.candidates import Independent
from lfs.checkpoints import CheckpointStore
from lfs.config_file import ConfigError, load_config
from lfs.controller import Controller
from lfs.executor import SerialExecutor
from lfs.finals import Finals
from lfs.fixed_list import FixedList, NamedSchedule
from lfs.journal import Asked, Journal, Told
from lfs.plan import make_controller, planned_epochs, whole_search
from lfs.samplers import UniformSampler
from lfs.search import search
from lfs.trial import Scalar, Trial, finals_of
from lfs.winner import best_at_horizon
from search_space import LossSchedule, catalog
from tests.lfs.test_controllers import drive
from tests.lfs.toy import (
    CONTROLLERS,
    HORIZON_EPOCHS,
    RecordingRunner,
    choice_of,
    make_halving,
    make_population,
    started,
    trajectories,
)
from trainers.outcome import Outcome
from trainers.recipe import Recipe

RECIPE = Recipe(horizon_epochs=HORIZON_EPOCHS)
CHOICE = f"choice/{RECIPE.reward}"


def independent(trials: int = 6) -> Independent:
    return Independent(UniformSampler(trajectories(), seed=0), trials=trials, horizon_epochs=HORIZON_EPOCHS, seed=0)


def with_finals(inner: Controller, *, candidates: int, seeds: int) -> Finals:
    return Finals(inner, candidates=candidates, seeds=seeds, seed=0, horizon_epochs=HORIZON_EPOCHS, score=choice_of)


def scored(choice: float, images: int = 100) -> Outcome:
    return Outcome(reward=0.5, metrics={CHOICE: choice}, seconds=0.0, images=images)


def after(controller: Finals, choices: Mapping[int, Outcome]) -> list[Trial]:
    """What is asked once the search's trials have these outcomes."""
    for trial in controller.ask(100):
        controller.tell(trial, choices[trial.number])
    return list(controller.ask(100))


def test_the_best_are_trained_again_from_scratch_under_seeds_that_they_share() -> None:
    controller = with_finals(independent(), candidates=2, seeds=3)
    finals = after(controller, {n: scored(choice) for n, choice in enumerate([0.1, 0.6, 0.2, 0.5, 0.3, 0.4])})
    assert [(trial.number, trial.repeats, trial.role) for trial in finals] == [
        (6, 1, "final"),
        (7, 3, "final"),
        (8, 1, "final"),
        (9, 3, "final"),
        (10, 1, "final"),
        (11, 3, "final"),
    ]
    schedules = {trial.number: trial.schedule for trial in independent().ask(6)}
    for trial in finals:
        assert trial.repeats is not None
        assert trial.schedule == schedules[trial.repeats]
        assert (trial.parent, trial.epochs) == (None, HORIZON_EPOCHS)
    seeds = [trial.seed for trial in finals]
    assert seeds[::2] == seeds[1::2]
    assert len({0, *seeds}) == 4


@pytest.mark.parametrize("seeds", [1, 3, 8])
def test_no_final_has_the_seed_of_a_copy_or_a_member(seeds: int) -> None:
    """It would be the training that it is to be held against."""
    for searching in (make_population(), CONTROLLERS["reinforce"](0)):
        controller = with_finals(searching, candidates=1, seeds=seeds)
        trials = drive(controller, 4, random.Random(0))
        finals = {trial.seed for trial in trials if trial.role == "final"}
        searched = {int(np.random.SeedSequence([0, member]).generate_state(1)[0]) for member in range(100)}
        assert len(finals) == seeds
        assert finals.isdisjoint({0, *searched, *(trial.seed for trial in trials if trial.role == "search")})


def test_failures_copies_and_short_trainings_are_no_finalists() -> None:
    controller = with_finals(make_halving(), candidates=100, seeds=1)
    asked = drive(controller, 3, random.Random(0))
    finals = [trial for trial in asked if trial.role == "final"]
    deepest = [trial for trial in asked if trial.role == "search" and trial.epochs == HORIZON_EPOCHS]
    assert {trial.repeats for trial in finals} == {trial.number for trial in deepest}

    controller = with_finals(independent(4), candidates=4, seeds=1)
    broken = Outcome(reward=None, seconds=0.0, images=50, error="diverged: loss is nan")
    finals = after(controller, {0: scored(0.4), 1: broken, 2: scored(0.4, images=0), 3: scored(0.1)})
    assert [trial.repeats for trial in finals] == [0, 3]


def test_members_of_a_population_with_one_loss_are_one_finalist() -> None:
    controller = with_finals(make_population(), candidates=6, seeds=1)
    finals = [trial for trial in drive(controller, 2, random.Random(0)) if trial.role == "final"]
    schedules = [trial.schedule for trial in finals]
    assert len(schedules) == len(set(schedules)) >= 2


def test_a_candidates_own_horizon_and_recipe_count() -> None:
    """One is asked for in three recipes, in one of which it trains for twice as long."""
    schedule = LossSchedule.constant(catalog.softmax())
    recipes: list[Mapping[str, Scalar]] = [{}, {"learning_rate": 0.5}, {"horizon_epochs": 2 * HORIZON_EPOCHS}]
    items = [
        NamedSchedule(name="", schedule=schedule, epochs=RECIPE.changed(recipe).horizon_epochs, recipe=recipe)
        for recipe in recipes
    ]
    inner = FixedList(items, seed=0, role="search")
    controller = with_finals(inner, candidates=3, seeds=1)
    finals = after(controller, {0: scored(0.2), 1: scored(0.3), 2: scored(0.1)})
    assert [(trial.repeats, trial.epochs, trial.recipe) for trial in finals] == [
        (number, items[number].epochs, recipes[number]) for number in (1, 0, 2)
    ]
    trials = {trial.number: trial for trial in FixedList(items, seed=0, role="search").ask(3)}
    for choose in (best_at_horizon(RECIPE), best_at_horizon(RECIPE, or_deepest=True)):
        assert choose(trials, {0: scored(0.2), 1: scored(0.1), 2: scored(0.3)}) == 2
        assert choose(trials, {0: scored(0.2), 1: scored(0.3), 2: scored(0.1)}) == 1


def test_there_are_no_finals_without_a_candidate() -> None:
    controller = with_finals(independent(2), candidates=2, seeds=2)
    broken = Outcome(reward=None, seconds=0.0, images=0, error="diverged: loss is nan")
    assert after(controller, {0: broken, 1: broken}) == []


def test_the_best_mean_wins_and_a_failure_counts_as_nothing() -> None:
    schedule = LossSchedule.constant(catalog.softmax())
    trials = {n: Trial(number=n, schedule=schedule, seed=0, epochs=HORIZON_EPOCHS) for n in range(3)}
    for n in range(3, 9):
        trials[n] = Trial(number=n, schedule=schedule, seed=n, epochs=HORIZON_EPOCHS, role="final", repeats=n % 3)
    outcomes = dict(enumerate(map(scored, [0.5, 0.6, 0.4, 0.55, 0.3, 0.5, 0.54, 0.4])))
    choose = best_at_horizon(RECIPE)
    assert choose(trials, dict(list(outcomes.items())[:3])) == 1
    assert choose(trials, outcomes) == 0
    outcomes[8] = Outcome(reward=None, seconds=0.0, images=0, error="diverged: loss is nan")
    assert finals_of(trials, outcomes, choice_of) == {0: [0.5, 0.55, 0.54], 1: [0.6, 0.3, 0.4], 2: [0.4, 0.5, 0.0]}
    assert choose(trials, outcomes) == 0


def test_means_find_the_better_of_two_where_one_training_cannot() -> None:
    """Candidate 0 is better by one standard deviation of a training."""
    rng = random.Random(0)
    schedule = LossSchedule.constant(catalog.softmax())
    right = {0: 0, 8: 0}
    for seeds in right:
        for _ in range(200):
            trials = {n: Trial(number=n, schedule=schedule, seed=0, epochs=HORIZON_EPOCHS) for n in range(2)}
            for n in range(2, 2 + 2 * seeds):
                trials[n] = Trial(
                    number=n, schedule=schedule, seed=n, epochs=HORIZON_EPOCHS, role="final", repeats=n % 2
                )
            outcomes = {n: scored(rng.gauss(0.01 * (n % 2 == 0), 0.01)) for n in trials}
            right[seeds] += best_at_horizon(RECIPE)(trials, outcomes) == 0
    assert right[8] > 185 > right[0] + 15


def test_the_winners_own_network_is_kept(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "checkpoints")
    runner = RecordingRunner()
    controller = with_finals(independent(12), candidates=4, seeds=2)
    with Journal(tmp_path) as journal:
        journal.append(started())
        finished = search(controller, SerialExecutor(runner), journal, store, choose=best_at_horizon(RECIPE))
        events = list(journal)
    trials = {trial.number: trial for event in events if isinstance(event, Asked) for trial in event.trials}
    outcomes = {event.trial: event.outcome for event in events if isinstance(event, Told)}
    means = {n: fmean(scores) for n, scores in finals_of(trials, outcomes, choice_of).items()}
    assert len(means) == 4
    assert finished.winner == max(means, key=lambda number: means[number])
    first = max(range(12), key=lambda number: choice_of(outcomes[number]))
    assert finished.winner != first, "the case shows nothing where the finals change nothing"
    assert store.load(finished.winner) is not None
    assert sorted(runner.ran) == list(range(20))


@pytest.mark.parametrize(("limits", "searched"), [({"trials": 20}, 14), ({"epochs": 100}, 14), ({"images": 2000}, 14)])
def test_the_budget_holds_for_search_and_finals_together(limits: Mapping[str, int], searched: int) -> None:
    """A toy trial sees 100 images in 5 epochs."""
    inner = Budgeted(independent(100), Budget.model_validate(limits), Clock(), finals=6, final_epochs=HORIZON_EPOCHS)
    asked = drive(with_finals(inner, candidates=3, seeds=2), 1, random.Random(0))
    assert sum(trial.role == "search" for trial in asked) == searched
    assert len(asked) == 20


def test_a_config_turns_them_on_for_any_method() -> None:
    config = load_config(None, ["finals.seeds=2", "search.candidates=6"], method="tpe")
    assert config.finals is not None
    assert config.finals.trainings == 8
    asked = drive(whole_search(config, RECIPE, Clock(), class_counts=[5] * 9), 2, random.Random(0))
    assert [trial.role for trial in asked] == ["search"] * 6 + ["final"] * 8
    without = load_config(None, ["search.candidates=6"], method="tpe")
    more = planned_epochs(config, RECIPE) - planned_epochs(without, RECIPE)
    assert more == 8 * HORIZON_EPOCHS


def test_a_budget_that_the_finals_use_up_is_refused() -> None:
    config = load_config(None, ["finals.candidates=4", "budget.epochs=60"], method="tpe")
    with pytest.raises(ConfigError, match=r"^budget.epochs must be above what the finals take, 60, but got 60$"):
        make_controller(config, RECIPE, Clock(), class_counts=[5] * 9)


def test_finals_are_numbered_beside_baselines() -> None:
    asked = drive(CONTROLLERS["finals"](0), 2, random.Random(0))
    finals = [trial for trial in asked if trial.role == "final"]
    assert len(finals) == 6
    for trial in finals:
        assert trial.repeats is not None
        assert asked[trial.repeats].role == "search"
        assert asked[trial.repeats].schedule == trial.schedule
