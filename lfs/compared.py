"""The searches that a comparison is about: one, or several of one kind under different seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lfs.config_file import ConfigError
from lfs.journal import Asked, Event, Finished, JournalError, Started, Told
from lfs.launch import read_search
from lfs.trial import Trial
from search_space.spec import LossSpec
from trainers.recipe import Recipe

_SAME = ("recipe", "space", "search", "budget", "finals")
"""The tables of the config that searches of one kind share."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedSearch:
    """A finished search with a winner."""

    run_dir: Path
    started: Started
    events: Sequence[Event]
    winner: Trial
    """Trained for the whole horizon, as baselines are: where a budget ended the search early, its last loss goes on."""
    searched_epochs: int
    """After so many of its epochs the search ended."""
    constant: LossSpec | None
    """What its controller recommends."""
    images: int
    """Training images that it saw, baselines left out."""
    winner_images: int
    """Training images of one training of its winner."""

    @classmethod
    def read(cls, run_dir: Path) -> "ComparedSearch":
        """The search of a run. Raises `JournalError` for one that is not finished or has no winner."""
        return cls.of(run_dir, *read_search(run_dir))

    @classmethod
    def of(cls, run_dir: Path, started: Started, events: Sequence[Event]) -> "ComparedSearch":
        """The search of a run whose journal is read already. Raises as `read` does."""
        trials = {trial.number: trial for event in events if isinstance(event, Asked) for trial in event.trials}
        outcomes = {event.trial: event.outcome for event in reversed(events) if isinstance(event, Told)}
        finished = next((event for event in events if isinstance(event, Finished)), None)
        if finished is None:
            raise JournalError(f"the search in {run_dir} is not finished: resume it first, then compare")
        if finished.winner is None:
            raise JournalError(f"the search in {run_dir} has no winner to compare: no trial reached the horizon")
        winner, recipe = trials[finished.winner], Recipe.model_validate(started.config["recipe"])
        horizon = int(winner.recipe.get("horizon_epochs", recipe.horizon_epochs))
        images = int(outcomes[finished.winner].metrics["cost/images"])
        return cls(
            run_dir=run_dir,
            started=started,
            events=events,
            winner=replace(winner, epochs=horizon),
            searched_epochs=winner.epochs,
            constant=finished.constant,
            images=sum(told.images for trial, told in outcomes.items() if trials[trial].role != "baseline"),
            winner_images=max(1, images * horizon // winner.epochs),
        )


def refuse_different(searches: Sequence[ComparedSearch]) -> None:
    """Raises `ConfigError` unless the searches differ in nothing but their seeds."""
    first, *others = searches
    for other in others:
        if other.started.data["digest"] != first.started.data["digest"]:
            raise ConfigError(f"the searches in {first.run_dir} and {other.run_dir} saw different data")
        for table in _SAME:
            one, another = (each.started.config.get(table) for each in (first, other))
            if (path := _difference(one, another, table)) is not None:
                raise ConfigError(
                    f"the searches in {first.run_dir} and {other.run_dir} differ in {path}; only searches of one kind, "
                    "under different seeds, can be compared together"
                )
    seeds: dict[object, Path] = {}
    for each in searches:
        seed = each.started.config["seed"]
        if seed in seeds:
            raise ConfigError(
                f"the searches in {seeds[seed]} and {each.run_dir} both have seed = {seed}; repeat a search with "
                "another --set seed=..."
            )
        seeds[seed] = each.run_dir


def _difference(one: object, other: object, path: str) -> str | None:
    """Where two values of a config differ first: its key and both values; None where they are equal."""
    if one == other:
        return None
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        for key in (*one, *other):
            if (found := _difference(one.get(key), other.get(key), f"{path}.{key}")) is not None:
                return found
    return f"{path}: {one} and {other}"
