"""From a configuration to its controller: which method searches, beside which baselines, and how much it will train."""

from collections.abc import Sequence

from lfs.budget import Budgeted, Clock
from lfs.candidates import Halving, Independent, hyperband, rungs_from
from lfs.config import (
    FixedListConfig,
    NamedLoss,
    PopulationConfig,
    RandomConfig,
    ReinforceConfig,
    ReleasedConfig,
    RunConfig,
    SamplerConfig,
    SelectionConfig,
)
from lfs.config_file import ConfigError
from lfs.controller import Controller, WithBaselines
from lfs.finals import Finals
from lfs.fixed_list import FixedList, NamedSchedule
from lfs.optuna_sampler import OptunaSampler
from lfs.population import PopulationTraining
from lfs.proposers import Proposer, RandomRounds, Reinforce, Released, start_of
from lfs.rounds import RoundSearch
from lfs.samplers import Candidates, Sampler, UniformSampler
from lfs.trial import Role
from search_space.schedule import LossSchedule
from search_space.trajectories import Trajectories
from trainers.evaluation import reward_of
from trainers.recipe import Recipe

RoundsConfig = ReinforceConfig | ReleasedConfig | RandomConfig | SelectionConfig


def make_controller(config: RunConfig, recipe: Recipe, clock: Clock, *, class_counts: Sequence[int]) -> Controller:
    """The searching controller, under its budget, with the baselines beside it.

    `class_counts` gives the training images of each class, for methods that look at candidates before they ask.
    Raises `ConfigError` when method and recipe do not fit.
    """
    baselines = _fixed_list(config.all_baselines(), recipe, config.seed, "baseline")
    try:
        return WithBaselines(whole_search(config, recipe, clock, class_counts=class_counts), baselines)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def whole_search(config: RunConfig, recipe: Recipe, clock: Clock, *, class_counts: Sequence[int]) -> Controller:
    """The searching controller under its budget, and its finals. Raises ValueError when things do not fit."""
    search = make_search(config, recipe, class_counts)
    if config.finals is None:
        return Budgeted(search, config.budget, clock)
    budgeted = Budgeted(
        search, config.budget, clock, finals=config.finals.trainings, final_epochs=recipe.horizon_epochs
    )
    return Finals(
        budgeted,
        candidates=config.finals.candidates,
        seeds=config.finals.seeds,
        seed=config.seed,
        horizon_epochs=recipe.horizon_epochs,
        score=lambda outcome: reward_of(outcome.metrics, recipe.reward, "choice"),
    )


def _fixed_list(losses: Sequence[NamedLoss], recipe: Recipe, seed: int, role: Role) -> FixedList:
    items = [
        NamedSchedule(
            name=loss.title,
            schedule=LossSchedule.constant(loss.spec()),
            epochs=recipe.changed(loss.recipe).horizon_epochs,
            recipe=loss.recipe,
        )
        for loss in losses
    ]
    return FixedList(items, seed=seed, role=role)


def make_search(config: RunConfig, recipe: Recipe, class_counts: Sequence[int]) -> Controller:
    """The searching controller alone: no budget, finals or baselines. Raises ValueError when things do not fit."""
    search, horizon_epochs, seed = config.search, recipe.horizon_epochs, config.seed
    if isinstance(search, FixedListConfig):
        return _fixed_list(search.losses, recipe, seed, "search")
    if isinstance(search, PopulationConfig):
        return PopulationTraining(
            config.space,
            members=search.members,
            step_epochs=search.step_epochs,
            share=search.share,
            horizon_epochs=horizon_epochs,
            seed=seed,
        )
    if isinstance(search, SamplerConfig):
        return _make_candidates(config, search, recipe, class_counts)
    return RoundSearch(
        config.space,
        _proposer(config, search, recipe),
        batch=search.batch,
        warmup_epochs=search.warmup_epochs,
        horizon_epochs=horizon_epochs,
        seed=seed,
        broadcast_momentum=search.broadcast_momentum,
        cooldown_epochs=search.cooldown_epochs,
        constant=search.loss.spec() if isinstance(search, SelectionConfig) else None,
    )


def _proposer(config: RunConfig, search: RoundsConfig, recipe: Recipe) -> Proposer:
    if isinstance(search, RandomConfig | SelectionConfig):
        return RandomRounds()
    if isinstance(search, ReleasedConfig):
        return Released()
    return Reinforce(
        start_of(config.space),
        rounds=max(1, recipe.horizon_epochs - search.warmup_epochs),
        sigma_start=search.sigma_start,
        sigma_end=search.sigma_end,
        sigma=search.sigma,
        optimizer=search.optimizer,
        baseline=search.baseline,
        rate=search.rate,
    )


def _make_candidates(
    config: RunConfig, search: SamplerConfig, recipe: Recipe, class_counts: Sequence[int]
) -> Controller:
    sampler, horizon_epochs = _sampler(config, search, recipe, class_counts), recipe.horizon_epochs
    if search.fidelity == "full":
        return Independent(sampler, trials=search.candidates, horizon_epochs=horizon_epochs, seed=config.seed)
    first = search.first_rung(horizon_epochs)
    if not first < horizon_epochs:
        raise ValueError(f"search.min_epochs must be below recipe.horizon_epochs = {horizon_epochs}, but got {first}")
    brackets = _brackets(search, recipe)
    return Halving(sampler, brackets=brackets, eta=search.eta, horizon_epochs=horizon_epochs, seed=config.seed)


def _brackets(search: SamplerConfig, recipe: Recipe) -> list[tuple[int, int]]:
    """(First rung's epochs, candidates) of each bracket."""
    horizon_epochs = recipe.horizon_epochs
    first = search.first_rung(horizon_epochs)
    if search.fidelity == "halving":
        return [(first, search.candidates)]
    return hyperband(search.candidates, horizon_epochs=horizon_epochs, min_epochs=first, eta=search.eta)


def _sampler(config: RunConfig, search: SamplerConfig, recipe: Recipe, class_counts: Sequence[int]) -> Sampler:
    if search.sampler == "evolution":
        from lfs.evolution import Evolution  # PyTorch takes a second to import

        return Evolution(
            class_counts=class_counts,
            seed=config.seed,
            population=search.population or 20,
            tournament=search.tournament,
            crossover=search.crossover,
            seeds=search.seeds,
        )
    losses = Trajectories(config.space, knots=search.knots, epochs=recipe.horizon_epochs)
    candidates = Candidates(losses, learning_rate=search.learning_rate)
    if search.sampler == "random":
        return UniformSampler(candidates, seed=config.seed)
    at_once = (config.executor.workers or 1) * (config.numerics.lockstep or 1)
    if search.sampler == "cmaes" and at_once > search.cmaes_population:
        raise ValueError(
            f"search.population of CMA-ES must be at least the number of workers times numerics.lockstep, {at_once}, "
            f"or those beyond it would draw at random, but got {search.cmaes_population}"
        )
    return OptunaSampler(
        candidates,
        kind=search.sampler,
        seed=config.seed,
        startup=search.startup,
        population=search.cmaes_population if search.sampler == "cmaes" else search.population,
        objectives=search.objectives,
    )


def planned_epochs(config: RunConfig, recipe: Recipe) -> int:
    """How many epochs a search trains over all its trials, for the time left; a lower bound under halving."""
    search, horizon_epochs = config.search, recipe.horizon_epochs
    beside = len(config.all_baselines()) * horizon_epochs
    if config.finals is not None:
        beside += config.finals.trainings * horizon_epochs
    if isinstance(search, FixedListConfig):
        return beside + len(search.losses) * horizon_epochs
    if isinstance(search, PopulationConfig):
        return beside + search.members * horizon_epochs
    if isinstance(search, SamplerConfig):
        if search.fidelity == "full":
            return beside + search.candidates * horizon_epochs
        return beside + sum(
            _bracket_epochs(first, size, search.eta, horizon_epochs) for first, size in _brackets(search, recipe)
        )
    alone = search.warmup_epochs - 1
    cooling = sum(min(search.cooldown_epochs, left) for left in range(horizon_epochs - alone))
    return beside + alone + search.batch * (horizon_epochs - alone + cooling)


def _bracket_epochs(first: int, size: int, eta: int, horizon_epochs: int) -> int:
    """The epochs of a bracket in which one in η is promoted at each rung."""
    total, before = 0, 0
    for epochs in rungs_from(first, horizon_epochs, eta):
        total += size * (epochs - before)
        size, before = size // eta, epochs
    return total


LEARNING_STEPS = 8
"""A sampler that learns from outcomes should see them in so many portions at least."""


def lockstep_room(config: RunConfig, workers: int) -> int:
    """How many candidates a worker could train in lockstep without idling others, or a sampler guessing blindly."""
    search = config.search
    if isinstance(search, PopulationConfig):
        return 1  # members differ in their seeds, so that they share no batches
    if isinstance(search, SamplerConfig) and search.learning_rate is not None:
        return 1  # candidates of one lockstep share their learning rate
    at_once = _searching_at_once(config)
    if isinstance(search, SamplerConfig) and search.sampler not in ("random", "qmc", "cmaes"):
        at_once //= LEARNING_STEPS
    return max(1, at_once // workers)


def most_at_once(config: RunConfig) -> int:
    """How many trials a search can keep busy: a round, a population or the whole list, and all baselines beside it.

    Of CMA-ES a generation: what more workers would ask for is drawn at random.
    """
    searching, search = _searching_at_once(config), config.search
    if isinstance(search, SamplerConfig) and search.sampler == "cmaes":
        return searching
    return searching + len(config.all_baselines())


def _searching_at_once(config: RunConfig) -> int:
    search = config.search
    if isinstance(search, FixedListConfig):
        return len(search.losses)
    if isinstance(search, PopulationConfig):
        return search.members
    if isinstance(search, SamplerConfig):
        return search.cmaes_population if search.sampler == "cmaes" else search.candidates
    return search.batch
