"""Budgets end a search, and a replay decides as the search did."""

import random
from typing import Any

import pytest

from lfs.budget import Budget, Budgeted, Clock
from lfs.candidates import Independent
from lfs.proposers import RandomRounds
from lfs.rounds import RoundSearch
from lfs.samplers import UniformSampler
from lfs.trial import Trial
from search_space import ModulatingFactor
from tests.lfs.test_controllers import drive
from tests.lfs.toy import HORIZON_EPOCHS, make_halving, trajectories
from trainers.outcome import Outcome


def independent(budget: Budget, clock: Clock | None = None) -> Budgeted:
    sampler = UniformSampler(trajectories(), seed=0)
    inner = Independent(sampler, trials=20, horizon_epochs=HORIZON_EPOCHS, seed=0)
    return Budgeted(inner, budget, clock or Clock())


@pytest.mark.parametrize(
    ("limits", "trials"),
    [
        ({}, 20),
        ({"trials": 7}, 7),
        ({"trials": 100}, 20),
        ({"epochs": 3 * HORIZON_EPOCHS}, 3),
        ({"epochs": 3 * HORIZON_EPOCHS + 1}, 4),
        ({"images": 500}, 5),
        ({"images": 501}, 6),
        ({"trials": 7, "images": 500}, 5),
    ],
)
def test_a_search_stops_at_the_first_limit_it_reaches(limits: dict[str, Any], trials: int) -> None:
    """A toy trial sees 100 images."""
    assert len(drive(independent(Budget(**limits)), 1, random.Random(0))) == trials


def test_what_is_in_flight_when_the_budget_is_spent_is_finished() -> None:
    controller = independent(Budget(images=300))
    asked = drive(controller, 4, random.Random(0))
    assert 3 <= len(asked) <= 6
    assert controller.summary()["images"] == 100 * len(asked)


@pytest.mark.parametrize("slots", [1, 4, 16, 64])
def test_the_budget_of_epochs_is_passed_by_one_training_at_most(slots: int) -> None:
    controller = independent(Budget(epochs=3 * HORIZON_EPOCHS + 1))
    assert sum(trial.epochs for trial in controller.ask(slots)) == min(slots, 4) * HORIZON_EPOCHS
    assert len(controller.ask(slots)) == max(0, min(slots, 4 - slots))


def test_a_reward_that_is_good_enough_ends_the_search() -> None:
    def rewarded(trial: Trial) -> Outcome:
        return Outcome(reward=0.1 * trial.number, seconds=0.0, images=1)

    assert len(drive(independent(Budget(reward=0.4)), 1, random.Random(0), rewarded)) == 5


def test_continued_trials_cost_their_own_epochs_alone() -> None:
    budget = Budget(epochs=20)
    asked = drive(Budgeted(make_halving(0), budget, Clock()), 1, random.Random(0))
    epochs = [t.epochs - (asked[t.parent].epochs if t.parent is not None else 0) for t in asked]
    assert sum(epochs[:-1]) < 20 <= sum(epochs)


def test_a_cool_down_costs_its_epochs_too() -> None:
    space = ModulatingFactor()
    rounds = RoundSearch(space, RandomRounds(), batch=2, warmup_epochs=1, horizon_epochs=4, seed=0, cooldown_epochs=1)
    asked = drive(Budgeted(rounds, Budget(epochs=8), Clock()), 1, random.Random(0))
    assert [(trial.epochs, trial.cooldown_epochs) for trial in asked] == [(1, 1), (1, 1), (2, 1), (2, 1)]


def test_epochs_that_were_not_trained_cost_nothing() -> None:
    """Every other trial takes over the outcome of another."""

    def told(trial: Trial) -> Outcome:
        return Outcome(reward=0.5, seconds=0.0, images=100 * (trial.number % 2))

    asked = drive(independent(Budget(epochs=3 * HORIZON_EPOCHS)), 1, random.Random(0), told)
    assert len(asked) == 6


def test_wall_time_is_that_of_the_journal() -> None:
    clock = Clock(began=1000.0, now=1000.0)
    controller = independent(Budget(seconds=60), clock)
    assert len(controller.ask(2)) == 2
    clock.now = 1059.9
    assert len(controller.ask(2)) == 2
    clock.now = 1060.0
    assert list(controller.ask(2)) == []
