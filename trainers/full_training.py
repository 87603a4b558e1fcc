"""`FullTraining`: one network trained at full scale with a loss that was found or named.

On a CPU, equal arguments give bit-identical rows and checkpoints, and going on from a checkpoint, one from the midst
of an epoch too, gives what not stopping gives: data order is a function of (seed, epoch); augmentation, random margins,
sampled classes and dropout are functions of (seed, epoch, step); the checkpoint holds the rest. One process and one
device; `DistributedDataParallel` is not supported.

N batch, K colour channels, H×W image.
"""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from search_space import LossSchedule
from trainers.augment import augment
from trainers.checkpoint import pack, unpack
from trainers.evaluation import Diverged, Evaluator, as_float, collapse, on_device
from trainers.full_learner import FullLearner
from trainers.full_recipe import FullNumerics, FullRecipe, Milestones
from trainers.learning_rate import full_rate_of
from trainers.pair_accuracy import pair_accuracy
from trainers.pair_images import PairImages
from trainers.random_streams import BATCHES, MARGINS, WEIGHTS, random_stream
from trainers.sampling import batch_images, epoch_batches, epoch_images, epoch_steps
from trainers.task import LabelledImages, Task

_CHECK_EVERY = 8
"""Steps between two looks at whether the loss is finite; each look waits for the device."""

Row = Mapping[str, float]
"""What an epoch gave: `epoch` (1-based), `train/loss`, `train/learning_rate` (the last), `cost/images` (seen so far),
and where it was scored `Evaluator.scores` and `pairs/<set>/accuracy` with `accuracy_std` over the folds."""


class FullTraining:
    """A training that is somewhere between its first and its last step, `step` of `total_steps`.

    `pairs` are verification sets by name. Raises `ValueError` where the images of an epoch do not fill a batch, its
    parts would not be equal, or `sample_rate` leaves fewer classes than a batch may have.
    """

    def __init__(
        self,
        schedule: LossSchedule,
        task: Task,
        *,
        recipe: FullRecipe,
        numerics: FullNumerics,
        seed: int,
        milestones: Milestones,
        pairs: Mapping[str, PairImages],
        device: str = "cpu",
    ) -> None:
        self._schedule, self._task, self._recipe, self._numerics = schedule, task, recipe, numerics
        self._seed, self._milestones, self._pairs = seed, milestones, pairs
        self._device = torch.device(device)
        self._flip = recipe.augmentation.flip if milestones.flip is None else milestones.flip
        self.refuse_misfit(recipe, task)
        self._class_counts = task.train.class_counts()
        self._batch_images = batch_images(recipe, self._class_counts)
        self._steps = epoch_steps(recipe, self._class_counts)
        self.step, self.total_steps = 0, recipe.epochs * self._steps
        self._total = torch.zeros((), dtype=torch.float64, device=self._device)
        self._rate, self._evaluator = full_rate_of(recipe, self._steps), Evaluator(task, self._device)
        self._learner = self._new_learner(0)

    @staticmethod
    def refuse_misfit(recipe: FullRecipe, task: Task) -> None:
        """Raises `ValueError` where the recipe cannot train on the task."""
        counts = task.train.class_counts()
        images, batch = epoch_images(recipe, counts), batch_images(recipe, counts)
        if images < recipe.batch_size:
            left = "" if recipe.sampling.max_images_per_class is None else " that sampling.max_images_per_class leaves"
            raise ValueError(
                f"recipe.batch_size must be at most the {images} training images{left}, but got {recipe.batch_size}"
            )
        part = batch // recipe.accumulation
        if batch % recipe.accumulation or part < 2:
            raise ValueError(
                f"recipe.accumulation must cut the {batch} images of a batch, {recipe.sampling.images_per_class} of "
                f"each class, into equal parts of 2 or more, but got accumulation={recipe.accumulation}"
            )
        seen = max(2, round(recipe.sample_rate * task.train.classes))
        if recipe.sample_rate < 1 and seen < part:
            raise ValueError(
                f"sample_rate={recipe.sample_rate} leaves {seen} classes, fewer than the {part} images that the loss "
                "sees at once; raise it, or accumulation"
            )

    def _new_learner(self, epoch: int) -> FullLearner:
        return FullLearner(
            self._schedule.at(epoch),
            image_shape=self._task.image_shape,
            class_counts=self._class_counts,
            recipe=self._recipe,
            numerics=self._numerics,
            generator=random_stream(self._seed, WEIGHTS),
            device=self._device,
        )

    @property
    def network(self) -> nn.Module:
        """The network as it is."""
        return self._learner.network

    def checkpoint(self) -> npt.NDArray[np.uint8]:
        """All that going on needs."""
        return pack(self._learner.tensors() | {"progress.loss": self._total}, {"step": self.step})

    def load(self, checkpoint: npt.NDArray[np.uint8]) -> None:
        """Go on from what `checkpoint` gave in a training of the same arguments. Raises `ValueError` for another."""
        tensors, progress = unpack(checkpoint)
        self.step = progress["step"]
        self._learner = self._new_learner(max(self.step - 1, 0) // self._steps)
        self._learner.load(tensors)
        self._total.copy_(tensors["progress.loss"])

    def run(self, *, on_epoch: Callable[[Row], None], on_checkpoint: Callable[[int], None]) -> str | None:
        """Train to the end; returns a sentence where the network did not learn to tell classes apart.

        `on_epoch` gets each epoch's row as soon as it is there; then, where it is time to save, `on_checkpoint` is
        called with the number of steps done and may call `checkpoint`. Raises `Diverged`.
        """
        row: Row = {}
        while self.step < self.total_steps:
            epoch = self.step // self._steps
            try:
                self._train(epoch, on_checkpoint)
                row = self._row(epoch)
            except Diverged as reason:
                raise Diverged(f"diverged: {reason} in epoch {epoch + 1}") from None
            on_epoch(row)
            by_epochs = (epoch + 1) % self._milestones.save_every_epochs == 0
            if by_epochs or self.step == self.total_steps or self._saves_here():
                on_checkpoint(self.step)
        row = row or self._evaluator.scores(self._learner)
        return collapse(row, lambda: self._evaluator.scores(self._new_learner(self._recipe.epochs - 1))["val/rank1"])

    def _train(self, epoch: int, on_checkpoint: Callable[[int], None]) -> None:
        """Train a 0-based epoch from the step where it stands."""
        self._learner.use(self._schedule.at(epoch))
        first = self.step % self._steps
        if not first:
            self._total.zero_()
        for step, parts in enumerate(self._batches(epoch, first), start=first):
            self._total += self._learner.step(
                parts,
                learning_rate=self._rate(self.step),
                generator=random_stream(self._seed, MARGINS, epoch, step),
            )
            self.step += 1
            if (step + 1) % _CHECK_EVERY == 0 or step + 1 == self._steps:
                self._look()
            if step + 1 < self._steps and self._saves_here():
                self._look()
                on_checkpoint(self.step)

    def _saves_here(self) -> bool:
        """Whether a checkpoint is due by the number of steps."""
        every = self._milestones.save_every_steps
        return every is not None and self.step % every == 0

    def _look(self) -> None:
        """Raises `Diverged` where the loss or its state has left its bounds."""
        if not self._total.isfinite():
            raise Diverged("the loss is not finite")
        if complaint := self._learner.diagnose():
            raise Diverged(complaint)

    def _batches(self, epoch: int, first: int) -> Iterator[list[tuple[Tensor, Tensor]]]:
        """The batches of an epoch from step `first` on, in parts; what does not fill a batch is left out."""
        data, draws = self._task.train, random_stream(self._seed, BATCHES, epoch)
        batches = epoch_batches(on_device(data.labels, torch.device("cpu")), self._recipe, self._class_counts, draws)
        indices = [batch_N.numpy() for batch_N in batches[first:]]
        for step, (images_NKHW, label_N) in enumerate(_fetched(data, indices, self._numerics.workers), start=first):
            images = as_float(on_device(images_NKHW, self._device))
            changed = augment(images, self._recipe.augmentation, random_stream(self._seed, BATCHES, epoch, step))
            labels = on_device(label_N, self._device)
            parts = self._recipe.accumulation
            yield list(zip(changed.chunk(parts), labels.chunk(parts), strict=True))

    def _row(self, epoch: int) -> Row:
        row = {
            "epoch": float(epoch + 1),
            "train/loss": float(self._total) / self._steps,
            "train/learning_rate": self._rate(self.step - 1),
            "cost/images": float(self.step * self._batch_images),
        }
        if (epoch + 1) % self._milestones.score_every_epochs and epoch + 1 < self._recipe.epochs:
            return row
        row |= self._evaluator.scores(self._learner)
        for name, pairs in self._pairs.items():
            scores = pair_accuracy(self._learner.embed, pairs, flip=self._flip, device=self._device)
            row |= {f"pairs/{name}/{metric}": score for metric, score in scores.items()}
        return row


def _fetched(
    data: LabelledImages, indices: list[npt.NDArray[np.int64]], workers: int
) -> Iterator[tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]]:
    """Images and labels of each batch, read by `workers` threads ahead of the batch that is waited for."""

    def fetch(index_N: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
        return data.images[index_N], data.labels[index_N]

    if not workers:
        yield from map(fetch, indices)
        return
    with ThreadPoolExecutor(workers) as pool:
        coming = iter(indices)
        waiting = [pool.submit(fetch, index_N) for index_N in islice(coming, 2 * workers)]
        while waiting:
            ready = waiting.pop(0)
            waiting += [pool.submit(fetch, index_N) for index_N in islice(coming, 1)]
            yield ready.result()
