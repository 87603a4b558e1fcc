"""What an epoch is worth: scores on the validation images, and whether the network learned to tell classes apart.

N images, C classes, D embedding, K colour channels, H×W image.
"""

import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from trainers.checkpoint import NETWORK, unpack
from trainers.networks import build_network
from trainers.numerics import applied, placed, run
from trainers.recipe import FARS, Numerics, Recipe, RewardMetric
from trainers.task import Task
from trainers.verification import verification

_BATCH = {"cpu": 64, "cuda": 512}
"""Images that are embedded at a time: on a CPU so few that a layer's values stay in its cache."""
_TRAIN_SAMPLE = 1024
_COSINES = 2**22
"""Cosines to class weights that are looked at together."""
_ONE_POINT_COSINE = 0.95
_LOW_COSINE = 0.1
_LOW_SEPARATION = 1.5
_CLEARLY_ABOVE = 1.25


class Diverged(Exception):  # noqa: N818 (it names a state, and never leaves this package)
    """Training left the finite numbers; the message says where."""


class Scorable(Protocol):
    """What is scored: a learner of whichever kind."""

    def embed(self, images_NKHW: Tensor) -> Tensor:
        """Embeddings N×D, float32, of float images, in evaluation mode."""
        ...

    def cosines(self, embeddings_ND: Tensor) -> Tensor:
        """Cosines N×C between embeddings and class weights."""
        ...

    def loss_state(self) -> dict[str, float]:
        """The single numbers that the loss tracks or learns."""
        ...


def on_device(array: npt.NDArray[np.uint8] | npt.NDArray[np.int64], device: torch.device) -> Tensor:
    """The array as a tensor, without a copy on the CPU. The array may be read-only: nothing here writes to it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array).to(device)


def as_float(images_NKHW: Tensor) -> Tensor:
    """uint8 images, scaled to [−1, 1]."""
    return (images_NKHW / 127.5).sub_(1)


def reward_of(scores: Mapping[str, float], metric: RewardMetric, half: Literal["reward", "choice"] = "reward") -> float:
    """The number that a search maximises, on one half of the validation identities."""
    return 1 - scores[f"{half}/eer"] if metric == "one_minus_eer" else scores[f"{half}/{metric}"]


class Evaluator:
    """Scores a learner on a task. Holds the images on the device."""

    def __init__(self, task: Task, device: torch.device) -> None:
        self._reward, self._choice = task.reward, task.choice
        self._images = [on_device(part.images, device) for part in (task.reward, task.choice)]
        every = -(-len(task.train.labels) // _TRAIN_SAMPLE)
        self._train_images = on_device(task.train.images[::every], device)
        self._train_labels = on_device(task.train.labels[::every], device)
        self._rows = max(1, _COSINES // task.train.classes)

    def scores(self, learner: Scorable) -> dict[str, float]:
        """Metrics of the learner as it is.

        `reward/*` and `choice/*` are the scores of `verification` on the two halves of the validation identities,
        `val/*` on both together, `val/mean_cosine` the mean over all pairs of images; `train/target_cosine` and
        `train/separation` are those of `_separation`, `loss/*` the numbers that the loss tracks (AdaCos's scale).

        Raises `Diverged` when an embedding or a class weight is not finite.
        """
        halves = [in_batches(learner.embed, images) for images in self._images]
        if not all(half.isfinite().all() for half in halves):
            raise Diverged("the embeddings are not finite")
        target_cosine, separation = self._separation(learner)
        both_ND = torch.cat(halves)
        both_N = np.concatenate([self._reward.labels, self._choice.labels + self._reward.classes])
        scores = {"train/target_cosine": target_cosine, "train/separation": separation}
        scores |= {f"loss/{name}": value for name, value in learner.loss_state().items()}
        for name, embeddings_ND, label_N in (
            ("reward", halves[0], self._reward.labels),
            ("choice", halves[1], self._choice.labels),
            ("val", both_ND, both_N),
        ):
            part = verification(embeddings_ND.numpy(), label_N, FARS)
            scores |= {f"{name}/{metric}": score for metric, score in part.items()}
        return scores | {"val/mean_cosine": _mean_cosine(both_ND)}

    def _separation(self, learner: Scorable) -> tuple[float, float]:
        """Mean cosine of a sample of training images to their class weight; and how many standard deviations of the
        cosines to the other class weights it lies above their mean."""
        x_ND = in_batches(learner.embed, self._train_images).to(self._train_labels.device)
        count, own, total, squares = 0, 0.0, 0.0, 0.0
        for x_QD, label_Q in zip(
            torch.split(x_ND, self._rows), torch.split(self._train_labels, self._rows), strict=True
        ):
            cos_QC = learner.cosines(x_QD).double()
            if not cos_QC.isfinite().all():
                raise Diverged("the class weights are not finite")
            own += float(cos_QC.gather(1, label_Q[:, None]).sum())
            others_QC = cos_QC.scatter_(1, label_Q[:, None], 0.0)
            total, squares = total + float(others_QC.sum()), squares + float(others_QC.square().sum())
            count += cos_QC.numel() - len(label_Q)
        target, mean = own / len(x_ND), total / count
        deviation = (max(squares - count * mean**2, 0.0) / max(count - 1, 1)) ** 0.5
        return target, (target - mean) / max(deviation, 1e-6)


def embeddings(
    checkpoint: npt.NDArray[np.uint8],
    images_NKHW: npt.NDArray[np.uint8],
    *,
    recipe: Recipe,
    numerics: Numerics,
    device: str = "cpu",
) -> npt.NDArray[np.float32]:
    """Embeddings N×D of images, by the network of a checkpoint that `train` gave under the same recipe."""
    place = torch.device(device)
    _, channels, height, width = images_NKHW.shape
    network = build_network(recipe, image_shape=(channels, height, width), generator=torch.Generator())
    tensors = {name: tensor for name, tensor in unpack(checkpoint)[0].items() if name.startswith(NETWORK)}
    network.load_state_dict({name.removeprefix(NETWORK): tensor for name, tensor in tensors.items()})
    embed = partial(run, placed(network.eval(), numerics, place), numerics=numerics)
    with applied(numerics), torch.no_grad():
        embeddings_ND: npt.NDArray[np.float32] = in_batches(
            embed, on_device(images_NKHW, torch.device("cpu")), place
        ).numpy()
    return embeddings_ND


def in_batches(embed: Callable[[Tensor], Tensor], images_NKHW: Tensor, device: torch.device | None = None) -> Tensor:
    """Embeddings of uint8 images, N×D on the CPU; made on `device`, by default where the images are."""
    place = device or images_NKHW.device
    batches = torch.split(images_NKHW, _BATCH[place.type])
    return torch.cat([embed(as_float(batch.to(place))) for batch in batches]).cpu()


def _mean_cosine(embeddings_ND: Tensor) -> float:
    """The mean cosine over all pairs, each image with itself included."""
    return float(F.normalize(embeddings_ND).mean(0).square().sum())


def collapse(scores: Mapping[str, float], untrained_rank1: Callable[[], float]) -> str | None:
    """A sentence when training made no use of the classes, though all of its `scores` are finite; else None.

    `one point`: all validation embeddings share one direction. `stalled`: the target cosines are near 0 or lost in the
    spread of the others, and rank-1 is not clearly above that of the untrained network (asked for only then).
    Cosines near 0 alone are no sign: P2SGrad's optimum over many classes has them.
    """
    mean_cosine, rank1 = scores["val/mean_cosine"], scores["val/rank1"]
    target_cosine, separation = scores["train/target_cosine"], scores["train/separation"]
    if mean_cosine > _ONE_POINT_COSINE:
        return f"one point: the mean cosine between validation images is {mean_cosine:.3f}"
    doubtful = target_cosine < _LOW_COSINE or separation < _LOW_SEPARATION
    if doubtful and rank1 < _CLEARLY_ABOVE * (untrained := untrained_rank1()):
        return (
            f"stalled: the target cosines average {target_cosine:.3f}, {separation:.2f} standard deviations above the "
            f"others, and rank-1 is {rank1:.3f} (untrained: {untrained:.3f})"
        )
    return None
