"""`train`: one candidate loss in, one `Outcome` out.

On a CPU, equal arguments give bit-identical outcomes (but for the seconds) and checkpoints, and training 3 epochs,
stopping and continuing 3 gives what training 6 gives: data order, augmentation and random margins are functions of
(seed, epoch), the learning rate of the step within the recipe's horizon, and the checkpoint holds the rest.
"""

import time
from collections.abc import Iterator
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
from trainers.recipe import Numerics, Recipe
from trainers.task import LabelledImages, Task

_CHECK_EVERY = 8
"""Steps between two looks at whether the loss is finite; each look waits for the device."""

_WEIGHTS, _BATCHES, _MARGINS = 0, 1, 2
"""What a stream of random numbers is for."""


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
) -> tuple[Outcome, npt.NDArray[np.uint8] | None]:
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
    began = time.perf_counter()
    place = torch.device(device)
    tensors, progress = unpack(start) if start is not None else ({}, {"epoch": 0, "images": 0})
    first = progress["epoch"]
    _refuse_epochs(first, epochs, cooldown_epochs, recipe.horizon_epochs)
    history: list[dict[str, float]] = []
    error = symptom = checkpoint = None
    metrics: dict[str, float] = {}
    with applied(numerics):
        batches = _Batches(task.train, recipe, seed, place)
        evaluator, rate = Evaluator(task, place), rate_of(recipe, batches.steps)
        new_learner = partial(_new_learner, task=task, recipe=recipe, numerics=numerics, seed=seed, device=place)
        learner = new_learner(schedule.at(max(first - 1, 0)))  # the loss that `start` was trained under
        if tensors:
            learner.load(without_optimizer(tensors) if fresh_optimizer else tensors)
        try:
            for epoch in range(first, epochs):
                learner.use(schedule.at(epoch))
                loss = _train_epoch(learner, batches, epoch, rate)
                scores = evaluator.scores(learner)
                seen = progress["images"] + batches.served
                metrics = {"epoch": epoch + 1, "cost/images": seen, "train/loss": loss, **scores}
                history.append(metrics)
            checkpoint = pack(learner.tensors(), {"epoch": epochs, "images": seen})
            if cooldown_epochs:
                _cool_down(learner, batches, epochs, cooldown_epochs, rate)
                metrics = metrics | evaluator.scores(learner)
        except Diverged as reason:
            error, checkpoint = f"diverged: {reason} in epoch {epoch + 1}", None
        else:
            symptom = collapse(metrics, lambda: evaluator.scores(new_learner(schedule.final))["val/rank1"])
    outcome = Outcome(
        reward=None if error else reward_of(metrics, recipe.reward),
        metrics=metrics,
        history=tuple(history),
        seconds=time.perf_counter() - began,
        images=batches.served,
        error=error,
        collapse=symptom,
    )
    return outcome, checkpoint


def _refuse_epochs(first: int, epochs: int, cooldown_epochs: int, horizon_epochs: int) -> None:
    if epochs + cooldown_epochs > horizon_epochs:
        more = f" and cooldown_epochs={cooldown_epochs}" if cooldown_epochs else ""
        raise ValueError(f"epochs must be at most the recipe's horizon_epochs={horizon_epochs}, but got {epochs}{more}")
    if epochs <= first:
        raise ValueError(f"epochs must be more than the {first} that are trained already, but got {epochs}")


def _new_learner(
    spec: LossSpec, *, task: Task, recipe: Recipe, numerics: Numerics, seed: int, device: torch.device
) -> Learner:
    channels, height, width = task.train.images.shape[1:]
    return Learner(
        spec,
        image_shape=(channels, height, width),
        class_counts=task.train.class_counts(),
        recipe=recipe,
        numerics=numerics,
        generator=_generator(seed, _WEIGHTS),
        device=device,
    )


def _cool_down(learner: Learner, batches: "_Batches", first: int, epochs: int, rate: Rate) -> None:
    """Train on from epoch `first` while the rate falls to 0."""
    falling = cooling_down(rate, first * batches.steps, epochs * batches.steps)
    try:
        for epoch in range(first, first + epochs):
            _train_epoch(learner, batches, epoch, falling)
    except Diverged as reason:
        raise Diverged(f"{reason} while cooling down") from None


def _train_epoch(learner: Learner, batches: "_Batches", epoch: int, rate: Rate) -> float:
    """Train one 0-based epoch; the mean loss. Raises `Diverged` when the loss or its state leaves its bounds."""
    learner.draw_margins_from(_generator(batches.seed, _MARGINS, epoch))
    total = torch.zeros((), device=batches.device)
    for step, (images_NKHW, label_N) in enumerate(batches.of(epoch)):
        total += learner.step(images_NKHW, label_N, learning_rate=rate(epoch * batches.steps + step))
        if (step + 1) % _CHECK_EVERY == 0 or step + 1 == batches.steps:
            if not total.isfinite():
                raise Diverged("the loss is not finite")
            if complaint := learner.diagnose():
                raise Diverged(complaint)
    return float(total) / batches.steps


class _Batches:
    """The training images, on the device, in the order and with the changes that (seed, epoch) give."""

    def __init__(self, data: LabelledImages, recipe: Recipe, seed: int, device: torch.device) -> None:
        self._images, self._labels = on_device(data.images, device), on_device(data.labels, device)
        self._size = min(recipe.batch_size, len(data.labels))
        self._augmentation, self.seed, self.device = recipe.augmentation, seed, device
        self.steps = len(data.labels) // self._size
        self.served = 0

    def of(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Float images and labels of each batch; what does not fill a batch is left out."""
        generator = _generator(self.seed, _BATCHES, epoch)
        order = torch.randperm(len(self._labels), generator=generator)[: self.steps * self._size]
        for index in order.to(self.device).view(self.steps, self._size):
            self.served += self._size
            yield augment(as_float(self._images[index]), self._augmentation, generator), self._labels[index]


def _generator(*key: int) -> torch.Generator:
    """Random numbers that depend on every part of `key`, and streams of different keys on nothing shared."""
    seed = np.random.SeedSequence(key).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(seed))
