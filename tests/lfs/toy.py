"""A trainer that takes no time: outcomes and checkpoints are functions of the start, the losses and the seed."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from lfs.checkpoints import Checkpoint
from lfs.controller import Controller, WithBaselines
from lfs.fixed_list import FixedList, NamedSchedule
from lfs.journal import Started
from lfs.rounds import Proposer, RandomRounds, Reinforce, RoundSearch
from lfs.trial import Trial
from search_space import CombinedMargin, LossSchedule, ModulatingFactor, Space, catalog
from trainers.outcome import Outcome

HORIZON_EPOCHS = 5
WARMUP_EPOCHS = 2
WIDE = CombinedMargin(m1=(1, 1.5), scale=(8, 64))
"""All four parameters are free."""


def toy_runner(trial: Trial, start: Checkpoint | None) -> tuple[Outcome, Checkpoint]:
    """The reward is a hash of everything that it may depend on, the checkpoint the hash itself."""
    assert (start is None) == (trial.parent is None)
    said = f"{trial.schedule.at(trial.epochs - 1).digest()} {trial.seed} {trial.epochs}"
    digest = hashlib.sha256((b"" if start is None else start.tobytes()) + said.encode()).digest()
    reward = digest[0] / 255
    metrics = {"choice/tar_at_far_1e-3": digest[1] / 255}
    outcome = Outcome(reward=reward, metrics=metrics, seconds=0.001, images=100)
    return outcome, np.frombuffer(digest, dtype=np.uint8)


@dataclass
class RecordingRunner:
    """The toy runner, keeping what it was asked to run; numbers in `failing` fail with that error."""

    failing: dict[int, str] = field(default_factory=dict)
    ran: list[int] = field(default_factory=list)

    def __call__(self, trial: Trial, start: Checkpoint | None) -> tuple[Outcome, Checkpoint | None]:
        self.ran.append(trial.number)
        if trial.number in self.failing:
            return Outcome(reward=None, seconds=0.001, images=0, error=self.failing[trial.number]), None
        return toy_runner(trial, start)


def started(**changes: object) -> Started:
    """A first event."""
    content: dict[str, object] = {
        "search_id": "0123456789ab",
        "config": {"seed": 0},
        "data": {"name": "toy", "digest": "d"},
        "versions": {"lossearch": "0"},
        "numerics": {},
    }
    return Started.model_validate(content | changes)


def rounds(proposer: Callable[[int], Proposer], space: Space, *, batch: int = 4, seed: int = 0) -> RoundSearch:
    """A short search in rounds."""
    return RoundSearch(
        space,
        proposer(len(space.domains)),
        batch=batch,
        warmup_epochs=WARMUP_EPOCHS,
        warmup_unit=1 / 3,
        horizon_epochs=HORIZON_EPOCHS,
        seed=seed,
    )


def reinforce_proposer(parameters: int) -> Reinforce:
    """Search-Softmax's proposer for the short search."""
    rounds_ = HORIZON_EPOCHS - WARMUP_EPOCHS
    return Reinforce(parameters=parameters, rounds=rounds_, start=1 / 3, sigma_start=0.2, sigma_end=0.08)


def make_reinforce(seed: int = 0) -> Controller:
    return rounds(reinforce_proposer, WIDE, seed=seed)


def make_modulating(seed: int = 0) -> Controller:
    return rounds(reinforce_proposer, ModulatingFactor(), batch=2, seed=seed)


def make_random(seed: int = 0) -> Controller:
    return rounds(lambda parameters: RandomRounds(parameters=parameters), WIDE, seed=seed)


def make_fixed_list(seed: int = 0) -> Controller:
    names = ("softmax", "cosface", "arcface")
    items = [
        NamedSchedule(name=name, schedule=LossSchedule.constant(catalog.get(name)), epochs=HORIZON_EPOCHS)
        for name in names
    ]
    return FixedList(items, seed=seed, role="baseline")


def make_with_baselines(seed: int = 0) -> Controller:
    return WithBaselines(make_reinforce(seed), make_fixed_list(seed))


CONTROLLERS: dict[str, Callable[[int], Controller]] = {
    "reinforce": make_reinforce,
    "modulating": make_modulating,
    "random": make_random,
    "fixed_list": make_fixed_list,
    "with_baselines": make_with_baselines,
}
