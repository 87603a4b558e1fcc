"""A trainer that takes no time: outcomes and checkpoints are functions of the start, the losses and the seed."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from lfs.budget import Budget, Budgeted, Clock
from lfs.candidates import Halving, Independent, hyperband
from lfs.checkpoints import Checkpoint
from lfs.controller import Controller, WithBaselines
from lfs.evolution import Evolution
from lfs.finals import Finals
from lfs.fixed_list import FixedList, NamedSchedule
from lfs.journal import Started
from lfs.optuna_sampler import Kind, OptunaSampler
from lfs.population import PopulationTraining
from lfs.proposers import Proposer, RandomRounds, Reinforce, Released, start_of
from lfs.rounds import RoundSearch
from lfs.samplers import Candidates, UniformSampler
from lfs.trial import Trial
from search_space import CombinedMargin, LossSchedule, ModulatingFactor, Space, Unified, catalog
from search_space.trajectories import Trajectories
from trainers.outcome import Outcome

HORIZON_EPOCHS = 5
WARMUP_EPOCHS = 2
RATES = 0.05, 0.8
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


def rounds(proposer: Callable[[Space], Proposer], space: Space, *, batch: int = 4, seed: int = 0) -> RoundSearch:
    """A short search in rounds."""
    return RoundSearch(
        space,
        proposer(space),
        batch=batch,
        warmup_epochs=WARMUP_EPOCHS,
        horizon_epochs=HORIZON_EPOCHS,
        seed=seed,
    )


def reinforce_proposer(space: Space) -> Reinforce:
    """Search-Softmax's proposer for the short search."""
    return Reinforce(start_of(space), rounds=HORIZON_EPOCHS - WARMUP_EPOCHS, sigma_start=0.2, sigma_end=0.08)


def make_reinforce(seed: int = 0) -> Controller:
    return rounds(reinforce_proposer, WIDE, seed=seed)


def make_modulating(seed: int = 0) -> Controller:
    return rounds(reinforce_proposer, ModulatingFactor(), batch=2, seed=seed)


def make_random(seed: int = 0) -> Controller:
    return rounds(lambda _: RandomRounds(), WIDE, seed=seed)


def make_selection(seed: int = 0) -> Controller:
    return RoundSearch(
        WIDE,
        RandomRounds(),
        batch=4,
        warmup_epochs=WARMUP_EPOCHS,
        horizon_epochs=HORIZON_EPOCHS,
        seed=seed,
        constant=catalog.cosface(),
    )


def make_unified(seed: int = 0) -> Controller:
    return rounds(lambda _: RandomRounds(), Unified(), seed=seed)


def make_fixed_list(seed: int = 0) -> Controller:
    names = ("softmax", "cosface", "arcface")
    items = [
        NamedSchedule(name=name, schedule=LossSchedule.constant(catalog.get(name)), epochs=HORIZON_EPOCHS)
        for name in names
    ]
    return FixedList(items, seed=seed, role="baseline")


def make_with_baselines(seed: int = 0) -> Controller:
    return WithBaselines(make_reinforce(seed), make_fixed_list(seed))


def make_released(seed: int = 0) -> Controller:
    return rounds(lambda _: Released(), ModulatingFactor(), seed=seed)


def make_learned_sigma(seed: int = 0) -> Controller:
    def proposer(space: Space) -> Reinforce:
        return Reinforce(
            start_of(space),
            rounds=HORIZON_EPOCHS - WARMUP_EPOCHS,
            sigma_start=0.2,
            sigma_end=0.08,
            sigma="learned",
            optimizer="adam",
            baseline="moving",
        )

    return rounds(proposer, WIDE, seed=seed)


def trajectories(space: Space = WIDE, knots: int = 1, rates: tuple[float, float] | None = None) -> Candidates:
    return Candidates(Trajectories(space, knots=knots, epochs=HORIZON_EPOCHS), learning_rate=rates)


def make_uniform(seed: int = 0) -> Controller:
    sampler = UniformSampler(trajectories(Unified()), seed=seed)
    return Independent(sampler, trials=8, horizon_epochs=HORIZON_EPOCHS, seed=seed)


def make_tpe_trajectories(seed: int = 0) -> Controller:
    sampler = OptunaSampler(trajectories(knots=2), kind="tpe", seed=seed, startup=3)
    return Independent(sampler, trials=8, horizon_epochs=HORIZON_EPOCHS, seed=seed)


def make_optuna(kind: Kind, space: Space, trials: int = 12) -> Callable[[int], Controller]:
    def make(seed: int = 0) -> Controller:
        sampler = OptunaSampler(trajectories(space, rates=RATES), kind=kind, seed=seed, startup=3, population=4)
        return Independent(sampler, trials=trials, horizon_epochs=HORIZON_EPOCHS, seed=seed)

    return make


def make_halving(seed: int = 0) -> Controller:
    sampler = UniformSampler(trajectories(rates=RATES), seed=seed)
    return Halving(sampler, brackets=[(1, 16)], eta=2, horizon_epochs=HORIZON_EPOCHS, seed=seed)


def make_hyperband(seed: int = 0) -> Controller:
    sampler = OptunaSampler(trajectories(), kind="tpe", seed=seed, startup=3)
    brackets = hyperband(8, horizon_epochs=HORIZON_EPOCHS, min_epochs=1, eta=2)
    return Halving(sampler, brackets=brackets, eta=2, horizon_epochs=HORIZON_EPOCHS, seed=seed)


def make_evolution(seed: int = 0) -> Controller:
    sampler = Evolution(class_counts=[5, 7, 9], seed=seed, population=4, tournament=2)
    return Independent(sampler, trials=8, horizon_epochs=HORIZON_EPOCHS, seed=seed)


def make_population(seed: int = 0) -> Controller:
    return PopulationTraining(Unified(), members=6, step_epochs=2, share=0.34, horizon_epochs=HORIZON_EPOCHS, seed=seed)


def make_budgeted(seed: int = 0) -> Controller:
    budget = Budget(trials=1000, epochs=1000, images=10**9, seconds=1.0, reward=2.0)
    return Budgeted(make_population(seed), budget, Clock())


def choice_of(outcome: Outcome) -> float:
    """The toy's score on the choice half."""
    return outcome.metrics["choice/tar_at_far_1e-3"]


def make_finals(seed: int = 0) -> Controller:
    finals = Finals(
        make_uniform(seed), candidates=3, seeds=2, seed=seed, horizon_epochs=HORIZON_EPOCHS, score=choice_of
    )
    return WithBaselines(finals, make_fixed_list(seed))


CONTROLLERS: dict[str, Callable[[int], Controller]] = {
    "reinforce": make_reinforce,
    "modulating": make_modulating,
    "random": make_random,
    "selection": make_selection,
    "unified": make_unified,
    "fixed_list": make_fixed_list,
    "with_baselines": make_with_baselines,
    "released": make_released,
    "learned_sigma": make_learned_sigma,
    "uniform": make_uniform,
    "tpe": make_optuna("tpe", Unified()),
    "tpe_trajectories": make_tpe_trajectories,
    "cmaes": make_optuna("cmaes", WIDE),
    "gp": make_optuna("gp", WIDE, trials=7),
    "qmc": make_optuna("qmc", WIDE),
    "nsga2": make_optuna("nsga2", Unified()),
    "evolution": make_evolution,
    "halving": make_halving,
    "hyperband": make_hyperband,
    "population": make_population,
    "budgeted": make_budgeted,
    "finals": make_finals,
}
