"""What a comparison is going to do: which entrants, which seeds, which score. All of it is decided before it begins."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count, filterfalse, islice
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, ValidationError, field_validator, model_validator

from lfs.compared import ComparedSearch, refuse_different
from lfs.config import DEFAULT_BASELINES, RunConfig
from lfs.config_file import ConfigError, overridden, sentence
from lfs.entrants import (
    TUNED,
    ComparisonController,
    Entrant,
    EqualCompute,
    Grid,
    controls,
    known_baselines,
    own_entrants,
    schedule_controls,
)
from lfs.journal import FILE_NAME, Asked, Event, JournalError, Scored, Started, read_events
from lfs.launch import Plan, read_search, refuse_threads, workspace_of
from search_space.frozen import FrozenModel
from trainers.data import decode_sealed_test, load_task, sealed_class_sizes
from trainers.image_source import DataError
from trainers.recipe import Recipe, RewardMetric

FOLDER = "compare"
KEY = "comparison"
"""Under which the plan stands in the config of the first event."""

LEVEL = 0.05
GROUP_MARK = "__"
"""Between a group and a class in a class's name."""
FEWEST_GROUPS = 5
"""That are resampled."""


class CompareOptions(FrozenModel):
    """What a comparison is told. `baselines` empty: all."""

    seeds: Annotated[int, Field(ge=2, le=20)] = 10
    baselines: tuple[str, ...] = ()
    tune: bool = True
    grid: Grid = Grid()
    equal_compute: tuple[EqualCompute, ...] = ()
    schedule_controls: bool = False
    metric: RewardMetric | None = None
    """The score whose differences are tested; None: the search's reward."""
    also: tuple[str, ...] = ()
    """The folders of further searches of the same kind, under other seeds: then the searches are what is repeated."""
    resamples: Annotated[int, Field(ge=100, le=100_000)] = 1000

    @model_validator(mode="after")
    def _seeds_are_shared_evenly(self) -> Self:
        searches = 1 + len(self.also)
        if self.seeds % searches:
            raise ValueError(f"seeds must be a multiple of the {searches} searches, but got {self.seeds}")
        if self.also and self.schedule_controls:
            raise ValueError("schedule_controls take the schedule of one search, but there are several")
        return self

    @field_validator("grid")
    @classmethod
    def _losses_exist(cls, grid: Grid) -> Grid:
        for name in TUNED:
            grid.losses(name)
        return grid


class ComparisonPlan(FrozenModel):
    """All that is decided before the first training."""

    number: int
    """1 for the run's first comparison."""
    search_id: str
    options: CompareOptions
    metric: RewardMetric
    """The one score whose differences are tested, on the test identities."""
    level: float = LEVEL
    entrants: tuple[Entrant, ...]
    seeds: tuple[int, ...]
    spare_seeds: tuple[tuple[int, ...], ...]
    grid_seed: int
    search_images: int
    """Training images that the search saw, baselines left out; the mean of several searches."""
    searches: tuple[str, ...] = ()
    """The ids of all searches where there are several; they share the seeds evenly, the first of them first."""
    grouped: bool
    """Whether the bootstrap resamples groups of identities, not identities."""

    @property
    def contrasts(self) -> int:
        """How many differences are tested: the winner's to each baseline and control."""
        return sum(entrant.kind in ("baseline", "control") for entrant in self.entrants)

    def caveat(self) -> str | None:
        """A sentence where so few seeds for so many contrasts can find no difference significant."""
        if self.searches:
            return None
        least_p = min(1.0, self.contrasts * 2.0 ** (1 - len(self.seeds)))
        if least_p < self.level:
            return None
        return (
            f"note: with {len(self.seeds)} seeds and {self.contrasts} contrasts no corrected p-value can be below "
            f"{least_p:.2g}, so no difference can be found significant; take more --seeds or fewer --baseline"
        )

    @property
    def epochs(self) -> int:
        """Planned, over all trainings."""
        grids = sum(len(e.candidates) * e.epochs for e in self.entrants if e.tuned and not e.of)
        each = sum(e.epochs * (e.best_of - 1 if e.best_of > 1 else 1) for e in self.entrants)
        return grids + len(self.seeds) * each

    def controller(self) -> ComparisonController:
        """What asks for the trainings."""
        return ComparisonController(
            self.entrants,
            seeds=self.seeds,
            spare_seeds=self.spare_seeds,
            grid_seed=self.grid_seed,
            metric=self.metric,
        )


def clusters_of(classes: Sequence[str]) -> npt.NDArray[np.int64]:
    """The cluster of each class: its group where every name is `<group>__<class>`, else itself.

    So it is too where there are few groups, such as women and men: what scores do with other groups than these cannot
    be told from them.

    >>> clusters_of([f"{alphabet}__{letter}" for alphabet in "abcde" for letter in "12"]).tolist()
    [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    >>> clusters_of(["women__ada", "women__grace", "men__alan"]).tolist()
    [0, 1, 2]
    """
    groups = [name.split(GROUP_MARK)[0] if GROUP_MARK in name else "" for name in classes]
    if "" in groups or len(set(groups)) < FEWEST_GROUPS:
        return np.arange(len(classes))
    return np.unique(groups, return_inverse=True)[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A comparison that can begin, go on, or be looked at. `launch` is None where nothing is left to do."""

    folder: Path
    plan: ComparisonPlan
    begun: bool
    launch: Plan | None


def prepare(
    run_dir: Path, given: Mapping[str, Any], *, overrides: Sequence[str] = (), again: bool = False
) -> Comparison:
    """The comparison of a run: its unfinished one, its finished one, or a new one. Writes nothing but the image cache.

    `given` holds the options that the user named. Raises `JournalError` for a run that is not finished or has no
    winner, or whose data has changed, `ConfigError` for options that cannot be, or that an earlier comparison
    contradicts.
    """
    started, events = read_search(run_dir)
    options = _options(given)
    config = _config(started, overrides)
    earlier = _earlier(run_dir)
    if earlier and not again:
        folder, past = earlier[-1]
        plan = plan_of(past, folder)
        _refuse_other_options(given, options, plan, folder, finished=_is_scored(plan, past))
        launch = None if _is_scored(plan, past) else _launch(run_dir, folder, config, started, plan)
        return Comparison(folder=folder, plan=plan, begun=True, launch=launch)
    folder = run_dir / FOLDER / f"{len(earlier) + 1:02d}"
    others = [ComparedSearch.read(Path(folder)) for folder in options.also]
    searches = [ComparedSearch.of(run_dir, started, events), *others]
    refuse_different(searches)
    plan = _new_plan(searches, config, options, number=len(earlier) + 1, used=_seeds(searches, earlier))
    return Comparison(folder=folder, plan=plan, begun=False, launch=_launch(run_dir, folder, config, started, plan))


def _options(given: Mapping[str, Any]) -> CompareOptions:
    try:
        return CompareOptions.model_validate(given)
    except ValidationError as error:
        raise ConfigError(sentence(error, given)) from None


def _config(started: Started, overrides: Sequence[str]) -> RunConfig:
    for override in overrides:
        if not override.startswith("executor."):
            raise ConfigError(f"a comparison takes --set for executor only, but got '{override}'")
        refuse_threads(override)
    return overridden(started.config, overrides)


def _earlier(run_dir: Path) -> list[tuple[Path, list[Event]]]:
    """The comparisons of a run that have begun, in their order."""
    journals = sorted((run_dir / FOLDER).glob(f"*/{FILE_NAME}"))
    found = [(path.parent, read_events(path)[0]) for path in journals]
    return [(folder, events) for folder, events in found if events]


def plan_of(events: Sequence[Event], folder: Path) -> ComparisonPlan:
    """What the comparison in a folder decided before it began, from its first event. Raises `JournalError`."""
    first = events[0]
    try:
        if isinstance(first, Started):
            return ComparisonPlan.model_validate(first.config[KEY])
    except (KeyError, ValidationError):
        pass
    raise JournalError(f"{folder / FILE_NAME} is no journal of a comparison that this version can read; use --again")


def _is_scored(plan: ComparisonPlan, events: Sequence[Event]) -> bool:
    scored = {(event.entrant, event.seed) for event in events if isinstance(event, Scored)}
    return len(scored) == len(plan.entrants) * len(plan.seeds)


def _refuse_other_options(
    given: Mapping[str, Any], options: CompareOptions, plan: ComparisonPlan, folder: Path, *, finished: bool
) -> None:
    for name in given:
        had = getattr(plan.options, name)
        if getattr(options, name) != had:
            state = "was finished" if finished else "was begun"
            raise ConfigError(
                f"the comparison {folder} {state} with {name} = {_shown(had)}; leave that option out to "
                f"{'see' if finished else 'finish'} it, or start another comparison with --again"
            )


def _shown(value: object) -> object:
    return dict(value) if isinstance(value, FrozenModel) else value


def _seeds(searches: Sequence[ComparedSearch], earlier: Sequence[tuple[Path, Sequence[Event]]]) -> set[int]:
    """Every seed that the searches or an earlier comparison trained with or planned to."""
    journals = [*(each.events for each in searches), *(past for _, past in earlier)]
    used = {trial.seed for past in journals for event in past if isinstance(event, Asked) for trial in event.trials}
    for folder, past in earlier:
        plan = plan_of(past, folder)
        used |= {*plan.seeds, plan.grid_seed, *(seed for pool in plan.spare_seeds for seed in pool)}
    return used


def _new_plan(
    searches: Sequence[ComparedSearch], config: RunConfig, options: CompareOptions, *, number: int, used: set[int]
) -> ComparisonPlan:
    first = searches[0]
    recipe = Recipe.model_validate(first.started.config["recipe"])
    search_images = sum(each.images for each in searches) // len(searches)
    baselines = _chosen(known_baselines(config.baselines, DEFAULT_BASELINES, recipe, options.grid), options)
    times = -(-(search_images + first.winner_images) // first.winner_images)
    spare = times - 1 if "seeds" in options.equal_compute else 0
    fresh = filterfalse(used.__contains__, count(1))
    seeds = tuple(islice(fresh, options.seeds))
    grid_seed = next(fresh)
    parts = schedule_controls(first.winner, grid_seed) if options.schedule_controls else ()
    rivals = (*baselines, *controls(baselines, options.equal_compute, times))
    return ComparisonPlan(
        number=number,
        search_id=first.started.search_id,
        options=options,
        metric=options.metric or recipe.reward,
        entrants=(
            *own_entrants(
                [each.winner for each in searches],
                [each.constant for each in searches],
                searched_epochs=first.searched_epochs,
            ),
            *parts,
            *rivals,
        ),
        seeds=seeds,
        spare_seeds=tuple(tuple(islice(fresh, spare)) for _ in seeds),
        grid_seed=grid_seed,
        search_images=search_images,
        searches=tuple(each.started.search_id for each in searches) if options.also else (),
        grouped=_are_grouped(config),
    )


def _are_grouped(config: RunConfig) -> bool:
    """Whether the test classes say to which groups they belong. Raises `ConfigError` where there is nothing to test."""
    try:
        classes = list(sealed_class_sizes(config.data))
    except DataError as error:
        raise ConfigError(f"data: {error}") from None
    return int(clusters_of(classes).max()) + 1 < len(classes)


def _chosen(known: Sequence[Entrant], options: CompareOptions) -> list[Entrant]:
    by_name = {entrant.name: entrant for entrant in known if options.tune or entrant.name not in TUNED}
    for name in options.baselines:
        if name not in by_name:
            off = " (tuned ones are off)" if not options.tune else ""
            raise ConfigError(f"unknown baseline '{name}'; known are {', '.join(by_name)}{off}")
    return [by_name[name] for name in dict.fromkeys(options.baselines or by_name)]


def _launch(run_dir: Path, folder: Path, config: RunConfig, started: Started, plan: ComparisonPlan) -> Plan:
    """What the executors need; the data is loaded and must be that of the search."""
    cache_dir = workspace_of(run_dir) / "cache"
    try:
        task = load_task(config.data, cache_dir=cache_dir)
        decode_sealed_test(config.data, cache_dir=cache_dir)
    except DataError as error:
        raise ConfigError(f"data: {error}") from None
    if task.digest != started.data["digest"]:
        raise JournalError(
            f"the data has changed since the search: its digest was {started.data['digest']} and is {task.digest}; "
            "put the old data back"
        )
    recipe = Recipe.model_validate(started.config["recipe"])
    return Plan(
        run_dir=folder,
        config=config,
        task=task,
        recipe=recipe,
        epochs=plan.epochs,
        at_once=len(plan.entrants) * len(plan.seeds),
        started=started,
    )
