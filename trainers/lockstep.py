"""How many candidates share a worker, and how their training passes run: chosen by a short measurement.

Candidates in lockstep share their batches, each decoded and augmented once. On a GPU, graphs save what a small network
spends on launching its kernels.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from search_space import catalog
from trainers.augment import augment
from trainers.evaluation import as_float, on_device
from trainers.learner import Learner
from trainers.numerics import applied, fastest_in_turn
from trainers.recipe import Execution, Numerics, Recipe
from trainers.sampling import batch_images, epoch_steps
from trainers.task import Task

SIZES = (8, 4)
"""The numbers of candidates that are tried, beside one."""

_ROUNDS = 3
_SHARE = 0.02
"""A measurement may take this share of what a worker has to do: a gain on a short search is not worth a long look."""

_COMPILE_SECONDS = 60.0
"""What compiling is expected to take, before it is known."""

_GAIN = 1.1
"""So many times as fast as one by one must another way be to be chosen."""

_TOLERANCE = 1e-2
"""By how much the losses of the first two steps may differ from those of eager ones, as a share."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What one way of training takes: `step_seconds` a candidate and step, `start_seconds` a candidate before its
    first step, `once_seconds` a worker."""

    step_seconds: float
    start_seconds: float = 0.0
    once_seconds: float = 0.0

    def seconds(self, *, steps: int, epochs: int) -> float:
        """Of one epoch of `steps`, when a worker trains `epochs` in all and candidates for one at a time."""
        return self.start_seconds + steps * self.step_seconds + self.once_seconds / epochs


def choose(costs: Mapping[Numerics, Cost], plain: Numerics, *, steps: int, epochs: int) -> Numerics:
    """The cheapest way, `plain` unless another is clearly cheaper."""
    seconds = {way: cost.seconds(steps=steps, epochs=epochs) for way, cost in costs.items()}
    best = min(costs, key=lambda way: seconds[way])
    return best if seconds[best] * _GAIN < seconds[plain] else plain


def probe_lockstep(
    task: Task, recipe: Recipe, numerics: Numerics, *, room: int, epochs: int, device: str = "cpu"
) -> Numerics:
    """`numerics` with the cheapest way to train up to `room` candidates on a worker that has `epochs` before it.

    On a CPU one by one, in lockstep, and both with one compiled graph; on a GPU with CUDA graphs too. What takes longer
    to find out than it can gain is not tried. What cannot be had here (no compiler, no memory) or computes something
    else is left out, and the log says so.
    """
    plain = numerics.model_copy(update={"lockstep": 1, "execution": "eager"})
    steps = epoch_steps(recipe, task.train.class_counts())
    sizes = [size for size in SIZES if size <= room and _ROUNDS * (size + 1) <= _SHARE * steps * epochs][:1]
    eager = [plain.model_copy(update={"lockstep": size}) for size in (1, *sizes)]
    with applied(plain):
        costs = _measured(eager, task, recipe, device)
        executions: list[Execution] = ["cuda_graph"] if device == "cuda" else []
        if _SHARE * steps * epochs * costs[plain].step_seconds > _COMPILE_SECONDS:
            executions.append("compiled")
        for execution in executions:
            ways = [way.model_copy(update={"execution": execution}) for way in eager]
            costs |= _measured(ways, task, recipe, device)
    return choose(costs, plain, steps=steps, epochs=epochs)


def _measured(ways: Sequence[Numerics], task: Task, recipe: Recipe, device: str) -> dict[Numerics, Cost]:
    """What each way costs."""
    running = {}
    for way in ways:
        try:
            running[way] = _Lanes(way, task, recipe, device)
        except RuntimeError as error:
            _log.warning("training %s is left out: %s", _named(way), " ".join(str(error).split())[:300])
    fastest = fastest_in_turn([lanes.seconds for lanes in running.values()], rounds=_ROUNDS)
    return {
        way: Cost(
            step_seconds=seconds / way.lockstep,
            start_seconds=lanes.start_seconds / way.lockstep,
            once_seconds=lanes.first_seconds if way.execution == "compiled" else 0.0,
        )
        for (way, lanes), seconds in zip(running.items(), fastest, strict=True)
    }


def _named(way: Numerics) -> str:
    return f"{way.lockstep} at a time, {way.execution}"


class _Lanes:
    """Learners of a plain loss, as many as the way says, that share augmented batches.

    Raises `RuntimeError` where the way cannot be had, or takes another first step than an eager one.
    """

    def __init__(self, way: Numerics, task: Task, recipe: Recipe, device: str) -> None:
        self._recipe, self._device = recipe, torch.device(device)
        size = batch_images(recipe, task.train.class_counts())
        self._images = on_device(task.train.images[:size], self._device)
        self._labels = on_device(task.train.labels[:size], self._device)
        began = time.perf_counter()
        self._learners = [self._learner(way, task) for _ in range(way.lockstep)]
        self.start_seconds = time.perf_counter() - began
        began = time.perf_counter()
        losses = self._losses(self._learners[0])
        self.first_seconds = time.perf_counter() - began
        if way.execution != "eager":
            eager = self._losses(self._learner(way.model_copy(update={"execution": "eager"}), task))
            if not np.allclose(losses, eager, rtol=_TOLERANCE):
                raise RuntimeError(f"its first losses are {losses}, and those of eager steps {eager}")

    def _learner(self, way: Numerics, task: Task) -> Learner:
        return Learner(
            catalog.softmax(),
            image_shape=task.image_shape,
            class_counts=task.train.class_counts(),
            recipe=self._recipe,
            numerics=way,
            generator=torch.Generator().manual_seed(0),
            device=self._device,
        )

    def _losses(self, learner: Learner) -> list[float]:
        """Of the first two steps, which show the gradient too."""
        images_NKHW = as_float(self._images)
        return [float(learner.step(images_NKHW, self._labels, learning_rate=0.01)) for _ in range(2)]

    def seconds(self) -> float:
        """Wall time of one step of all."""
        began = time.perf_counter()
        images_NKHW = augment(as_float(self._images), self._recipe.augmentation, torch.Generator().manual_seed(0))
        for learner in self._learners:
            learner.step(images_NKHW, self._labels, learning_rate=0.01)
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter() - began
