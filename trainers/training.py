"""`train`: one candidate loss in, one `Outcome` out. `train_together`: several, in lockstep on one device.

On a CPU, equal arguments give bit-identical outcomes (but for the seconds) and checkpoints, alone or in lockstep, and
training 3 epochs, stopping and continuing 3 gives what training 6 gives: data order, augmentation and random margins
are functions of (seed, epoch), the learning rate of the step within the recipe's horizon, and the checkpoint holds the
rest.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from search_space import LossSchedule, LossSpec
from trainers.augment import augment
from trainers.checkpoint import pack, unpack
from trainers.evaluation import Diverged, Evaluator, as_float, collapse, on_device, reward_of
from trainers.learner import Learner, without_optimizer
from trainers.learning_rate import Rate, cooling_down, rate_of
from trainers.numerics import applied
from trainers.outcome import Outcome
from trainers.random_streams import BATCHES, MARGINS, WEIGHTS, random_stream
from trainers.recipe import Numerics, Recipe
from trainers.sampling import epoch_batches, epoch_steps
from trainers.task import LabelledImages, Task

_CHECK_EVERY = 8
"""Steps between two looks at whether the loss is finite; each look waits for the device."""

Result = tuple[Outcome, npt.NDArray[np.uint8] | None]
"""An outcome and a checkpoint, or None in its place when training diverged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """What the candidates of a lockstep may differ in: the losses, the checkpoint that is continued, and whether its
    weights alone are taken, not its optimiser's state."""

    schedule: LossSchedule
    start: npt.NDArray[np.uint8] | None = None
    fresh_optimizer: bool = False


def train(
    schedule: LossSchedule,
    task: Task,
    *,
    recipe: Recipe,
    numerics: Numerics,
    seed: int,
    epochs: int,
    start: npt.NDArray[np.uint8] | None = None,
    fresh_optimizer: bool = False,
    cooldown_epochs: int = 0,
    device: str = "cpu",
) -> Result:
    """Train up to absolute epoch `epochs`, from scratch or from the checkpoint `start`; score after each epoch.

    `fresh_optimizer` takes the weights of `start` alone, not its optimiser's state. With `cooldown_epochs`, reward and
    metrics are those of a branch that trains on for so many epochs while its learning rate falls to 0 and is thrown
    away then; the history and the checkpoint are those from before it, the images include it.

    Returns the outcome and a checkpoint, or None in its place when training diverged (then the outcome has an
    `error`). Each row of the outcome's history holds `epoch`, `train/loss`, `cost/images` (seen so far, those before
    `start` included), the scores of `Evaluator.scores` and `loss/*`, the numbers that the loss tracks.

    Raises `ValueError` when `epochs` and the branch go beyond the recipe's horizon, or when `start` is no checkpoint,
    has reached `epochs` already, or holds a network or class weights of other shapes.
    """
    candidate = Candidate(schedule=schedule, start=start, fresh_optimizer=fresh_optimizer)
    (result,) = train_together(
        [candidate],
        task,
        recipe=recipe,
        numerics=numerics,
        seed=seed,
        epochs=epochs,
        cooldown_epochs=cooldown_epochs,
        device=device,
    )
    return result


def train_together(
    candidates: Sequence[Candidate],
    task: Task,
    *,
    recipe: Recipe,
    numerics: Numerics,
    seed: int,
    epochs: int,
    cooldown_epochs: int = 0,
    device: str = "cpu",
) -> list[Result]:
    """What `[train(...) for each of candidates]` gives, from one stream of augmented batches.

    Each batch is drawn and augmented once, then every candidate takes its step on it; one that diverges drops out.
    `seconds` of an outcome are its share of the wall time, by the images that it saw.

    Raises `ValueError` as `train` does, and when the candidates do not start after the same epoch.
    """
    began = time.perf_counter()
    place = torch.device(device)
    with applied(numerics):
        batches = _Batches(task.train, recipe, seed, place)
        evaluator, rate = Evaluator(task, place), rate_of(recipe, batches.steps)
        new_learner = partial(_new_learner, task=task, recipe=recipe, numerics=numerics, seed=seed, device=place)
        lanes = [_Lane(candidate, new_learner) for candidate in candidates]
        first = _common_start(lanes)
        _refuse_epochs(first, epochs, cooldown_epochs, recipe.horizon_epochs)
        for epoch in range(first, epochs):
            for lane in _living(lanes):
                lane.take_up(epoch)
            _train_epoch(_living(lanes), batches, epoch, rate)
            for lane in _living(lanes):
                lane.score(evaluator)
        if cooldown_epochs:
            _cool_down(_living(lanes), batches, epochs, cooldown_epochs, rate)
            for lane in _living(lanes):
                lane.score_branch(evaluator)
        symptoms = [None if lane.error else lane.symptom(evaluator, new_learner) for lane in lanes]
    seconds_an_image = (time.perf_counter() - began) / max(1, sum(lane.images for lane in lanes))
    return [
        lane.result(recipe, epochs, seconds=seconds_an_image * lane.images, symptom=symptom)
        for lane, symptom in zip(lanes, symptoms, strict=True)
    ]


class _Lane:
    """One candidate of a lockstep. `error` says how it diverged; `images` counts those seen by this call."""

    def __init__(self, candidate: Candidate, new_learner: Callable[[LossSpec], Learner]) -> None:
        tensors, progress = unpack(candidate.start) if candidate.start is not None else ({}, {"epoch": 0, "images": 0})
        self.first: int = progress["epoch"]
        self.images = 0
        self.error: str | None = None
        self._images_before: int = progress["images"]
        self._schedule = candidate.schedule
        self._history: list[dict[str, float]] = []
        self._metrics: dict[str, float] = {}
        self._checkpoint: npt.NDArray[np.uint8] | None = None
        trained_under = self._schedule.at(max(self.first - 1, 0))
        self._learner = new_learner(trained_under)
        if tensors:
            self._learner.load(without_optimizer(tensors) if candidate.fresh_optimizer else tensors)

    def take_up(self, epoch: int) -> None:
        """Go on under the loss of a 0-based epoch."""
        self._learner.use(self._schedule.at(epoch))
        self._where = f"in epoch {epoch + 1}"

    def branch(self, epochs: int) -> None:
        """Keep the checkpoint as it is; what is trained from here on is thrown away."""
        self._checkpoint = self._pack(epochs)
        self._where = f"while cooling down {self._where}"

    def begin(self, generator: torch.Generator, device: torch.device) -> None:
        """Begin an epoch whose random margins come from `generator`."""
        self._learner.draw_margins_from(generator)
        self._total, self._steps = torch.zeros((), device=device), 0

    def step(self, images_NKHW: Tensor, label_N: Tensor, *, learning_rate: float, look: bool) -> None:
        """One step; with `look`, see whether the loss or its state has left its bounds."""
        self._total += self._learner.step(images_NKHW, label_N, learning_rate=learning_rate)
        self._steps += 1
        self.images += len(label_N)
        if look:
            with self._noting_divergence():
                if not self._total.isfinite():
                    raise Diverged("the loss is not finite")
                if complaint := self._learner.diagnose():
                    raise Diverged(complaint)

    def score(self, evaluator: Evaluator) -> None:
        """Add the epoch to the history."""
        with self._noting_divergence():
            self._metrics = {
                "epoch": self.first + len(self._history) + 1,
                "cost/images": self._images_before + self.images,
                "train/loss": float(self._total) / self._steps,
                **evaluator.scores(self._learner),
            }
            self._history.append(self._metrics)

    def score_branch(self, evaluator: Evaluator) -> None:
        """Take the scores of the branch for those of the last epoch, which stay in the history."""
        with self._noting_divergence():
            self._metrics = self._metrics | evaluator.scores(self._learner)

    @contextmanager
    def _noting_divergence(self) -> Iterator[None]:
        try:
            yield
        except Diverged as reason:
            self.error = f"diverged: {reason} {self._where}"

    def symptom(self, evaluator: Evaluator, new_learner: Callable[[LossSpec], Learner]) -> str | None:
        """Of a collapse."""
        return collapse(self._metrics, lambda: evaluator.scores(new_learner(self._schedule.final))["val/rank1"])

    def result(self, recipe: Recipe, epochs: int, *, seconds: float, symptom: str | None) -> Result:
        """The outcome and the checkpoint."""
        outcome = Outcome(
            reward=None if self.error else reward_of(self._metrics, recipe.reward),
            metrics=self._metrics,
            history=tuple(self._history),
            seconds=seconds,
            images=self.images,
            error=self.error,
            collapse=symptom,
        )
        if self.error:
            return outcome, None
        return outcome, self._pack(epochs) if self._checkpoint is None else self._checkpoint

    def _pack(self, epochs: int) -> npt.NDArray[np.uint8]:
        return pack(self._learner.tensors(), {"epoch": epochs, "images": self._images_before + self.images})


def _living(lanes: Sequence[_Lane]) -> list[_Lane]:
    return [lane for lane in lanes if lane.error is None]


def _common_start(lanes: Sequence[_Lane]) -> int:
    firsts = sorted({lane.first for lane in lanes})
    if len(firsts) > 1:
        raise ValueError(f"candidates in lockstep must start after the same epoch, but start after epochs {firsts}")
    return firsts[0]


def _refuse_epochs(first: int, epochs: int, cooldown_epochs: int, horizon_epochs: int) -> None:
    if epochs + cooldown_epochs > horizon_epochs:
        more = f" and cooldown_epochs={cooldown_epochs}" if cooldown_epochs else ""
        raise ValueError(f"epochs must be at most the recipe's horizon_epochs={horizon_epochs}, but got {epochs}{more}")
    if epochs <= first:
        raise ValueError(f"epochs must be more than the {first} that are trained already, but got {epochs}")


def _new_learner(
    spec: LossSpec, *, task: Task, recipe: Recipe, numerics: Numerics, seed: int, device: torch.device
) -> Learner:
    return Learner(
        spec,
        image_shape=task.image_shape,
        class_counts=task.train.class_counts(),
        recipe=recipe,
        numerics=numerics,
        generator=random_stream(seed, WEIGHTS),
        device=device,
    )


def _cool_down(lanes: Sequence[_Lane], batches: "_Batches", first: int, epochs: int, rate: Rate) -> None:
    """Train on from epoch `first` while the rate falls to 0."""
    for lane in lanes:
        lane.branch(first)
    falling = cooling_down(rate, first * batches.steps, epochs * batches.steps)
    for epoch in range(first, first + epochs):
        _train_epoch(_living(lanes), batches, epoch, falling)


def _train_epoch(lanes: Sequence[_Lane], batches: "_Batches", epoch: int, rate: Rate) -> None:
    """Train one 0-based epoch; a lane that diverges goes no further."""
    for lane in lanes:
        lane.begin(random_stream(batches.seed, MARGINS, epoch), batches.device)
    for step, (images_NKHW, label_N) in enumerate(batches.of(epoch) if lanes else ()):
        learning_rate = rate(epoch * batches.steps + step)
        look = (step + 1) % _CHECK_EVERY == 0 or step + 1 == batches.steps
        for lane in (living := _living(lanes)):
            lane.step(images_NKHW, label_N, learning_rate=learning_rate, look=look)
        if not living:
            return


def _room(device: torch.device) -> float:
    """The bytes of a device that images may take: of a GPU half of what is free, as networks need some too."""
    return torch.cuda.mem_get_info(device)[0] / 2 if device.type == "cuda" else math.inf


class _Batches:
    """The training images in the order and with the changes that (seed, epoch) give, held on the device; those that
    would fill it are held on the CPU and sent there batch by batch."""

    def __init__(self, data: LabelledImages, recipe: Recipe, seed: int, device: torch.device) -> None:
        home = torch.device("cpu") if data.images.nbytes > _room(device) else device
        self._images, self._labels = on_device(data.images, home), on_device(data.labels, home)
        self._label_N, self._class_counts = on_device(data.labels, torch.device("cpu")), data.class_counts()
        self._recipe, self.seed, self.device = recipe, seed, device
        self.steps = epoch_steps(recipe, self._class_counts)

    def of(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Float images and labels of each batch; what does not fill a batch is left out."""
        generator = random_stream(self.seed, BATCHES, epoch)
        batches = epoch_batches(self._label_N, self._recipe, self._class_counts, generator)
        for index in batches.to(self._images.device):
            images_NKHW = as_float(self._images.index_select(0, index).to(self.device))
            yield augment(images_NKHW, self._recipe.augmentation, generator), self._labels[index].to(self.device)
