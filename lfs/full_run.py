"""A full training from its config to its files: loads and checks everything, then writes, then trains, then exports."""

import csv
import hashlib
import json
import secrets
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from lfs.checkpoints import CheckpointStore
from lfs.config_file import ConfigError, laid_under
from lfs.found_loss import find_loss, mapped
from lfs.journal import (
    TRAINING,
    Completed,
    Journal,
    JournalError,
    Resumed,
    Started,
    Trained,
)
from lfs.launch import OnEvent, has_begun, held_journal, laid_over, read_run, refuse_foreign, workspace_of
from lfs.runner import default_device
from lfs.sources import versions
from lfs.train_config import TrainConfig, validated_training
from search_space import LossSchedule, build
from trainers import exported_network as exported
from trainers.data import DataConfig, load_task
from trainers.evaluation import Diverged
from trainers.exported_network import ExportError, NetworkDescription
from trainers.foreign_networks import NetworkError
from trainers.full_recipe import FullRecipe
from trainers.full_training import FullTraining
from trainers.image_cache import OnDecoded
from trainers.image_source import DataError
from trainers.networks import check_network
from trainers.numerics import applied
from trainers.pair_images import PairImages, decoded_pairs, open_pairs
from trainers.presets import recipe_defaults
from trainers.recipe import NETWORKS, NetworkRecipe, Numerics
from trainers.task import Task

HISTORY, LOSS = "history.csv", "loss.json"
_FACE_SIZE = 112
"""Of the images that the networks of face recognition are made for, in pixels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingPlan:
    """What is known of a full training before its first step. `started` is set for one that is taken up again."""

    folder: Path
    config: TrainConfig
    task: Task
    recipe: FullRecipe
    schedule: LossSchedule
    horizon_epochs: int | None
    """Of the search that the schedule is from."""
    pairs: Mapping[str, PairImages]
    started: Started | None = None


def plan_training(config: TrainConfig, folder: Path, *, on_decoded: OnDecoded = lambda *_: None) -> TrainingPlan:
    """Check that the parts fit and load the data. Writes nothing but the image cache. Raises `UserError`."""
    if has_begun(folder):
        raise _taken(folder)
    refuse_foreign(folder, "--out")
    found = find_loss(config.loss)
    recipe = FullRecipe.model_validate(dict(config.recipe))
    schedule = mapped(found, config.loss, recipe.epochs)
    return _plan(config, folder, schedule, found.horizon_epochs, None, on_decoded)


def _taken(folder: Path) -> ConfigError:
    return ConfigError(
        f"{folder} already holds a training or a search; go on with 'lossearch train --resume {folder}' or choose "
        "another --out"
    )


def plan_resumed(
    folder: Path, overrides: Sequence[str] = (), *, on_decoded: OnDecoded = lambda *_: None
) -> TrainingPlan:
    """The plan of the training that `folder` holds, its loss as it was found then. Raises `UserError`."""
    started, _ = read_run(folder)
    training = started.config.get(TRAINING)
    if not isinstance(training, dict):
        raise JournalError(f"{folder} holds a search, not a training; go on with: lossearch resume {folder}")
    values = {key: value for key, value in started.config.items() if key != TRAINING}
    for override in overrides:
        if not override.startswith("tracking."):
            raise ConfigError(f"a resumed training takes --set for tracking only, but got '{override}'")
    config = validated_training(laid_under(values, overrides))
    horizon = training["horizon_epochs"]
    planned = _plan(
        config,
        folder,
        LossSchedule.model_validate(training["schedule"]),
        horizon if isinstance(horizon, int) else None,
        started,
        on_decoded,
    )
    if planned.task.digest != started.data["digest"] or _digests(planned) != training["pairs"]:
        raise JournalError("the data or the pairs have changed since the training began; put the old ones back")
    return planned


def _plan(
    config: TrainConfig,
    folder: Path,
    schedule: LossSchedule,
    horizon_epochs: int | None,
    started: Started | None,
    on_decoded: OnDecoded,
) -> TrainingPlan:
    if config.numerics.dtype == "float16" and default_device() != "cuda":
        raise ConfigError("numerics.dtype = 'float16' needs a GPU; use 'bfloat16' or 'float32'")
    names = [choice.path.stem for choice in config.pairs]
    if len(set(names)) < len(names):
        raise ConfigError(f"the files of pairs must have different names, but got {', '.join(names)}")
    network = FullRecipe.model_validate(dict(config.recipe)).network
    with _refusals("pairs"):
        opened = {
            choice.path.stem: open_pairs(choice.path, choice.images, trained_on=config.data.path)
            for choice in config.pairs
        }
    with _refusals("data"):
        task = load_task(_data(config.data, network), cache_dir=workspace_of(folder) / "cache", on_decoded=on_decoded)
    with _refusals("pairs"):
        pairs = {name: decoded_pairs(each, task.image_shape, on_decoded=on_decoded) for name, each in opened.items()}
    defaults = recipe_defaults(task.kind, embedded=config.data.path is None)
    kind = {"augmentation": defaults["augmentation"]}
    recipe = FullRecipe.model_validate(laid_over(kind, config.recipe))
    planned = TrainingPlan(
        folder=folder,
        config=config,
        task=task,
        recipe=recipe,
        schedule=schedule,
        horizon_epochs=horizon_epochs,
        pairs=pairs,
        started=started,
    )
    try:
        check_network(recipe, image_shape=task.image_shape)
        counts = task.train.class_counts()
        for spec in schedule.specs():
            build(spec, num_classes=len(counts), class_counts=counts)
        FullTraining.refuse_misfit(recipe, task)
    except NetworkError as error:
        raise ConfigError(f"recipe.network: {error}") from None
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return planned


@contextmanager
def _refusals(key: str) -> Iterator[None]:
    """What is wrong with the data, under the key of the config that names them."""
    try:
        yield
    except DataError as error:
        raise ConfigError(f"{key}: {error}") from None


def _data(data: DataConfig, network: str) -> DataConfig:
    """The field's own networks take images as large as they were made for, where the config does not say."""
    faces = network in NETWORKS and network not in ("conv4", "resnet")
    return data.model_copy(update={"image_size": _FACE_SIZE}) if faces and data.image_size is None else data


def _digests(planned: TrainingPlan) -> dict[str, str]:
    """Of the decoded pairs."""
    return {name: _digest(pairs) for name, pairs in planned.pairs.items()}


def _digest(pairs: PairImages) -> str:
    listed = pairs.listed
    digest = hashlib.sha256(pairs.images.tobytes())
    for values in (listed.first_P, listed.second_P, listed.genuine_P, listed.fold_P):
        digest.update(values.tobytes())
    return digest.hexdigest()[:16]


def run_training(planned: TrainingPlan, *, on_event: OnEvent) -> Completed:
    """Train to the end and write the network; `on_event` sees every event, those of earlier sessions first.

    Raises `UserError` when another process holds the folder or its checkpoint does not fit.
    """
    with held_journal(planned.folder) as journal:
        if next(iter(journal), None) != planned.started:
            raise _taken(planned.folder)  # it was begun while the data were read
        for event in journal:
            on_event(event)
            if isinstance(event, Completed):
                return event
        session = _Session(planned, journal, on_event)
        session.append(_opening(planned))
        with applied(Numerics(threads=planned.config.numerics.threads)):
            completed = session.train()
        session.append(completed)
        return completed


def _opening(planned: TrainingPlan) -> Started | Resumed:
    if planned.started is not None:
        return Resumed(versions=versions())
    config = planned.config
    training = {
        "source": config.loss.source,
        "horizon_epochs": planned.horizon_epochs,
        "schedule": planned.schedule.model_dump(mode="json"),
        "pairs": _digests(planned),
    }
    recipe = planned.recipe.model_dump(mode="json")
    return Started(
        search_id=secrets.token_hex(6),
        config={**config.model_dump(mode="json"), "recipe": recipe, TRAINING: training},
        data=dict(planned.task.describe()),
        versions=versions(),
        numerics=config.numerics.model_dump(),
    )


class _Session:
    """One process's share of a training: what it writes, and when."""

    def __init__(self, planned: TrainingPlan, journal: Journal, on_event: OnEvent) -> None:
        self._planned, self._journal, self._on_event = planned, journal, on_event
        self._store = CheckpointStore(planned.folder / "checkpoints", budget_bytes=sys.maxsize)
        config = planned.config
        self._training = FullTraining(
            planned.schedule,
            planned.task,
            recipe=planned.recipe,
            numerics=config.numerics,
            seed=config.seed,
            milestones=config.milestones,
            pairs=planned.pairs,
            device=default_device(),
        )
        latest = self._store.latest()
        if latest is not None and (checkpoint := self._store.load(latest)) is not None:
            try:
                self._training.load(checkpoint)
            except (ValueError, KeyError) as error:
                raise JournalError(f"checkpoint {latest} in {planned.folder} is damaged: {error}; remove it") from None

    def append(self, event: Started | Resumed | Trained | Completed) -> None:
        """Write an event, and show it."""
        self._journal.append(event)
        self._on_event(event)

    def train(self) -> Completed:
        """From where the last checkpoint is to the files."""
        try:
            symptom = self._training.run(on_epoch=self._note, on_checkpoint=self._save)
        except Diverged as error:
            return Completed(error=str(error))
        files, remarks = write_files(self._planned, self._training.network)
        return Completed(files=tuple(files), remarks=(*([symptom] if symptom else []), *remarks))

    def _note(self, row: Mapping[str, float]) -> None:
        """An epoch that an earlier session had noted, but not saved, is noted already."""
        past = [event for event in self._journal if isinstance(event, Trained)]
        if row["epoch"] > len(past):
            past.append(Trained(epoch=int(row["epoch"]), metrics=row))
            self.append(past[-1])
        _write_history(self._planned.folder / HISTORY, [event.metrics for event in past])

    def _save(self, step: int) -> None:
        self._store.save(step, self._training.checkpoint())
        self._store.keep_only([step])


def _write_history(path: Path, rows: Sequence[Mapping[str, float]]) -> None:
    """One line an epoch; what was not measured is empty."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    partial = path.with_suffix(".partial")
    with partial.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, columns)
        table.writeheader()
        table.writerows(rows)
    partial.rename(path)


def write_files(planned: TrainingPlan, network: torch.nn.Module) -> tuple[list[str], list[str]]:
    """Write network and loss into the folder; returns the files' names, and why there is no ONNX."""
    folder = planned.folder
    description = NetworkDescription(
        recipe=NetworkRecipe(**{key: getattr(planned.recipe, key) for key in NetworkRecipe.model_fields}),
        image_shape=planned.task.image_shape,
        flip=planned.recipe.augmentation.flip,
    )
    schedule = {"epochs": planned.recipe.epochs, "schedule": planned.schedule.model_dump(mode="json")}
    (folder / LOSS).write_text(json.dumps(schedule, indent=2) + "\n", encoding="utf-8")
    exported.save_network(network, description, folder)
    files = [exported.WEIGHTS, exported.DESCRIPTION, LOSS]
    try:
        exported.write_onnx(network, description, folder / exported.ONNX)
    except ExportError as error:
        return files, [f"no {exported.ONNX}: {error}"]
    return [*files, exported.ONNX], []
