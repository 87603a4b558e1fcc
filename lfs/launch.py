"""From a config to a running search: loads the data, checks everything, then writes, then trains."""

import contextlib
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import JsonValue, ValidationError

from lfs.budget import Budget, Clock
from lfs.checkpoints import CheckpointStore
from lfs.config import FixedListConfig, RunConfig
from lfs.config_file import ConfigError, overridden, sentence
from lfs.controller import Controller
from lfs.executor import Executor, SerialExecutor
from lfs.journal import (
    FILE_NAME,
    LOCK_NAME,
    SCHEMA,
    TRAINING,
    Event,
    Finished,
    Journal,
    JournalError,
    Resumed,
    Started,
    read_events,
)
from lfs.plan import lockstep_room, make_controller, most_at_once, planned_epochs
from lfs.preflight import Preflight
from lfs.runner import TrainingRunner, default_device
from lfs.search import replay, search
from lfs.sources import versions
from lfs.winner import best_at_horizon
from trainers.data import load_task
from trainers.foreign_networks import NetworkError
from trainers.image_cache import OnDecoded
from trainers.image_source import DataError
from trainers.lockstep import probe_lockstep
from trainers.networks import check_network
from trainers.numerics import probe
from trainers.presets import recipe_defaults
from trainers.recipe import Numerics, Recipe
from trainers.task import Task

OnEvent = Callable[[Event], None]

_LEFT_UNBEGUN = {FILE_NAME, LOCK_NAME, "cache", "checkpoints", "mlflow.db", "mlflow.db.lock", "mlflow.lock", "runs"}
"""What may lie in the folder of a run that was refused, or killed at once."""


def workspace_of(run_dir: Path) -> Path:
    """The folder that holds `mlflow.db`, `runs/` and the image cache; a run outside `runs/` is its own."""
    return run_dir.parent.parent if run_dir.parent.name == "runs" else run_dir


def runs_of(workspace: Path) -> list[Path]:
    """The runs of a workspace, latest first. Raises `ConfigError` when there are none."""
    runs = [journal.parent for journal in (workspace / "runs").glob(f"*/{FILE_NAME}")]
    if not runs:
        raise ConfigError(
            f"there are no runs in {workspace / 'runs'}; start one with 'lossearch search', or name a RUN"
        )
    return sorted(runs, key=lambda run: run.stat().st_mtime, reverse=True)


def resolved_recipe(config: RunConfig, task: Task) -> Recipe:
    """The preset of the data with the config's fields on top."""
    defaults = recipe_defaults(task.kind, embedded=config.data.path is None)
    return Recipe.model_validate(laid_over(defaults, config.recipe))


def laid_over(below: Mapping[str, object], above: Mapping[str, object]) -> dict[str, object]:
    """`above` where it says something, else `below`; tables inside are merged likewise."""
    merged = {**below, **above}
    for key, value in above.items():
        inner = below.get(key)
        if isinstance(inner, Mapping) and isinstance(value, Mapping):
            merged[key] = laid_over(inner, value)
    return merged


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is known of a search before its first trial. `started` is set for a search that is resumed, `finished` where
    nothing is left of it to do."""

    run_dir: Path
    config: RunConfig
    task: Task
    recipe: Recipe
    epochs: int
    """Planned, over all trials."""
    at_once: int
    """How many trials it can keep busy."""
    started: Started | None = None
    finished: bool = False


def plan_new(config: RunConfig, run_dir: Path, *, on_decoded: OnDecoded = lambda *_: None) -> Plan:
    """Load the data and check that the parts fit. Writes nothing but the image cache.

    Raises `ConfigError` or `trainers.image_source.DataError`.
    """
    if has_begun(run_dir):
        raise _holds_a_search(run_dir)
    refuse_foreign(run_dir, "--run")
    return _plan(config, run_dir, None, on_decoded)


def refuse_foreign(folder: Path, option: str) -> None:
    """Raises `ConfigError` where a run would write among files that no run has left."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        foreign = sorted(entry.name for entry in folder.iterdir() if entry.name not in _LEFT_UNBEGUN)
        if foreign:
            raise ConfigError(f"{folder} holds {foreign[0]}, which is no run's; choose another {option}")


def has_begun(folder: Path) -> bool:
    """Whether the journal of a folder holds an event: a process that is killed at once leaves an empty one."""
    path = folder / FILE_NAME
    return path.exists() and bool(read_events(path)[0])


def _holds_a_search(run_dir: Path) -> ConfigError:
    return ConfigError(
        f"the run folder {run_dir} already holds a search; continue it with 'lossearch resume {run_dir}' "
        "or choose another --run"
    )


def plan_resume(run_dir: Path, overrides: Sequence[str] = (), *, on_decoded: OnDecoded = lambda *_: None) -> Plan:
    """The plan of the search that `run_dir` holds. Only `executor` and `tracking` may be overridden.

    Raises `JournalError` for a damaged or foreign journal or changed data, `ConfigError` for an override.
    """
    started, events = read_search(run_dir)
    for override in overrides:
        if not override.startswith(("executor.", "tracking.")):
            raise ConfigError(f"a resumed search takes --set for executor and tracking only, but got '{override}'")
        refuse_threads(override)
    planned = _plan(overridden(started.config, overrides), run_dir, started, on_decoded)
    if planned.task.digest != started.data["digest"]:
        raise JournalError(
            f"the data has changed since the search began: its digest was {started.data['digest']} and is "
            f"{planned.task.digest}; put the old data back or start a new search"
        )
    clock = Clock()
    past = replay(controller_of(planned.config, planned.task, planned.recipe, clock), events, clock)
    return replace(planned, finished=past.finished is not None)


def refuse_threads(override: str) -> None:
    """Raises `ConfigError` for an override that a search's numerics have decided."""
    if override.startswith("executor.threads"):
        raise ConfigError(
            f"executor.threads belongs to the arithmetic with which the search began, but got '{override}'; leave it "
            "out, or start a new search"
        )


def read_search(run_dir: Path) -> tuple[Started, list[Event]]:
    """The first event of a search, and all its events. Raises `JournalError` as `read_run` does, and for a training."""
    started, events = read_run(run_dir)
    if TRAINING in started.config:
        raise JournalError(
            f"{run_dir} holds a training, not a search: 'lossearch train --resume {run_dir}' goes on with it, "
            f"'lossearch embed {run_dir} DATA OUT.npz' applies its network, and {run_dir / 'loss.json'} has its loss"
        )
    return started, events


def read_run(run_dir: Path) -> tuple[Started, list[Event]]:
    """The first event of a search or a training, and all its events.

    Raises `JournalError` when there is none or it is of another schema.
    """
    path = run_dir / FILE_NAME
    events, _ = read_events(path)
    if not events or not isinstance(events[0], Started):
        raise JournalError(f"{path} does not begin with a 'started' event: it is no journal of a search")
    if events[0].schema_version != SCHEMA:
        raise JournalError(
            f"{path} has schema {events[0].schema_version}, and this version reads schema {SCHEMA}; "
            f"use lossearch {events[0].versions.get('lossearch', 'of that time')}"
        )
    return events[0], events


def _plan(config: RunConfig, run_dir: Path, started: Started | None, on_decoded: OnDecoded) -> Plan:
    if config.executor.kind == "serial":
        _refuse_graph_without_gpu(config.numerics.execution, gpu=default_device() == "cuda")
    try:
        task = load_task(config.data, cache_dir=workspace_of(run_dir) / "cache", on_decoded=on_decoded)
    except DataError as error:
        raise ConfigError(f"data: {error}") from None
    recipe = resolved_recipe(config, task)
    _refuse_recipes(config, recipe, task)
    controller_of(config, task, recipe, Clock())
    epochs = planned_epochs(config, recipe)
    return Plan(
        run_dir=run_dir,
        config=config,
        task=task,
        recipe=recipe,
        epochs=epochs,
        at_once=most_at_once(config),
        started=started,
    )


def _refuse_recipes(config: RunConfig, recipe: Recipe, task: Task) -> None:
    """Raises `ConfigError` for a network that does not fit the images, and for a named loss's fields that do not fit
    the recipe."""
    lists = {"baselines": config.baselines}
    if isinstance(config.search, FixedListConfig):
        lists["search.losses"] = config.search.losses
    recipes = {"recipe": recipe}
    for key, losses in lists.items():
        for index, loss in enumerate(losses):
            where = f"{key}.{index}.recipe"
            try:
                recipes[where] = recipe.changed(loss.recipe)
            except ValidationError as error:
                raise ConfigError(f"{where}: with the run's recipe, {sentence(error, loss.recipe)}") from None
    for where, each in recipes.items():
        try:
            check_network(each, image_shape=task.image_shape)
        except NetworkError as error:
            raise ConfigError(f"{where}.network: {error}") from None


def controller_of(config: RunConfig, task: Task, recipe: Recipe, clock: Clock) -> Controller:
    """The controller of a search on this task. Raises `ConfigError` when method and recipe do not fit."""
    return make_controller(config, recipe, clock, class_counts=task.train.class_counts())


def run(planned: Plan, *, on_event: OnEvent) -> Finished:
    """Run a planned search to its end; `on_event` sees every event, those of earlier sessions first.

    Raises `JournalError` when another search holds the folder, `ClusterError` when Ray cannot be had,
    `SearchStoppedError` when the search cannot go on.
    """
    with held_journal(planned.run_dir) as journal, contextlib.chdir(planned.run_dir):
        if next(iter(journal), None) != planned.started:
            raise _holds_a_search(planned.run_dir)  # it was begun while the data were read
        for event in journal:
            on_event(event)
            if isinstance(event, Finished):
                return event
        with executor_of(planned) as (executor, numerics):
            opening = _opening(planned, numerics)
            journal.append(opening)
            on_event(opening)
            clock = Clock()
            return search(
                controller_of(planned.config, planned.task, planned.recipe, clock),
                executor,
                journal,
                CheckpointStore(planned.run_dir / "checkpoints"),
                choose=best_at_horizon(planned.recipe, or_deepest=planned.config.budget != Budget()),
                clock=clock,
                preflight=Preflight.of(planned.task),
                on_event=on_event,
            )


def _opening(planned: Plan, numerics: Numerics) -> Started | Resumed:
    if planned.started is not None:
        return Resumed(versions=versions())
    return started(planned.config, planned.task, planned.recipe, numerics)


def started(
    config: RunConfig, task: Task, recipe: Recipe, numerics: Numerics, also: Mapping[str, JsonValue] | None = None
) -> Started:
    """The first event of a search; `also` goes into its config."""
    return Started(
        search_id=secrets.token_hex(6),
        config={**config.model_dump(mode="json"), "recipe": recipe.model_dump(mode="json"), **(also or {})},
        data=dict(task.describe()),
        versions=versions(),
        numerics=numerics.model_dump(),
    )


@contextmanager
def held_journal(run_dir: Path) -> Iterator[Journal]:
    """The journal of a folder, which is left as it was when nothing was written."""
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        journal = Journal(run_dir)
    except OSError as error:
        raise ConfigError(f"the run folder {run_dir} cannot be written: {error.strerror}") from None
    try:
        with journal:
            yield journal
    finally:
        if not journal.path.exists():
            (run_dir / LOCK_NAME).unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # it holds something of the user's
                run_dir.rmdir()


@contextmanager
def executor_of(planned: Plan) -> Iterator[tuple[Executor, Numerics]]:
    """The configured executor, and the numerics of the journal or of a fresh probe."""
    known = _known_numerics(planned)
    if planned.config.executor.kind == "ray":
        with _ray_executor(planned, known) as on_ray:
            yield on_ray
        return
    _refuse_graph_without_gpu((known or planned.config.numerics).execution, gpu=default_device() == "cuda")
    numerics = known or _probe_here(planned, workers=1)
    runner = TrainingRunner(planned.task, planned.recipe, numerics)
    yield SerialExecutor(runner, lockstep=numerics.lockstep), numerics


def _known_numerics(planned: Plan) -> Numerics | None:
    """Those of the journal or of a config that leaves nothing to probe."""
    if planned.started is not None:
        return Numerics.model_validate(planned.started.numerics)
    told = planned.config.numerics.model_dump()
    if None in told.values():
        return None
    return Numerics(threads=planned.config.executor.threads, **told)


@contextmanager
def _ray_executor(planned: Plan, known: Numerics | None) -> Iterator[tuple[Executor, Numerics]]:
    from lfs import ray_executor  # Ray takes seconds to import

    config, task, recipe = planned.config.executor, planned.task, planned.recipe
    with ray_executor.connected(config.address, cpus=(config.workers or 1) * config.threads) as have:
        gpus_each = config.gpus_per_worker if config.gpus_per_worker is not None else float(have.gpus >= 1)
        _refuse_graph_without_gpu((known or planned.config.numerics).execution, gpu=gpus_each > 0)
        device = None if gpus_each > 0 else "cpu"
        room = ray_executor.room(cpus=config.threads, gpus=gpus_each)
        workers = config.workers or max(1, min(planned.at_once, room))
        numerics = known or ray_executor.call_on_worker(
            _probe_here, planned, workers, device, cpus=config.threads, gpus=gpus_each
        )
        executor = ray_executor.RayExecutor(
            TrainingRunner(task, recipe, numerics, device),
            workers=workers,
            lockstep=numerics.lockstep,
            cpus_per_worker=config.threads,
            gpus_per_worker=gpus_each,
            trial_timeout_seconds=config.trial_timeout_seconds,
        )
        try:
            yield executor, numerics
        finally:
            executor.close()


def _refuse_graph_without_gpu(execution: str | None, *, gpu: bool) -> None:
    if execution == "cuda_graph" and not gpu:
        raise ConfigError(
            "numerics.execution = 'cuda_graph' needs a GPU, but the workers have none; for a new search use 'eager' or "
            "'compiled', or leave it out, and go on with one that began with it where there is a GPU"
        )


def _probe_here(planned: Plan, workers: int, device: str | None = None) -> Numerics:
    """The fastest arithmetic and the fastest way to train several candidates on this machine, but for what the config
    says."""
    config, device = planned.config, device or default_device()
    told = config.numerics.model_dump(exclude_none=True)
    numerics = Numerics(threads=config.executor.threads, **told)
    if config.numerics.dtype is None or config.numerics.channels_last is None:
        numerics = probe(planned.task, planned.recipe, device=device, threads=numerics.threads).model_copy(update=told)
    if config.numerics.lockstep is None or config.numerics.execution is None:
        numerics = probe_lockstep(
            planned.task,
            planned.recipe,
            numerics,
            room=lockstep_room(config, workers),
            epochs=max(1, planned.epochs // workers),
            device=device,
        ).model_copy(update=told)
    return numerics
