"""How well embeddings tell identities apart: verification over ALL pairs of images, and rank-1 identification.

Each genuine pair weighs 1/(n_i − 1) for each of its two images, n_i being the number of images of the identity, so
that every IMAGE with a mate counts once and no identity with many images rules the score. Impostor pairs are
unweighted; identities with a single image take part as impostors only.

N images, D embedding, G genuine pairs.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from trainers.lfw_protocol import PAIRS, draw_pairs, fold_accuracy

MEAN_TAR_FARS = (1e-4, 1e-1)
"""The false accept rates over whose logarithm `mean_tar` averages."""

_CHUNK_PAIRS = 2**21
"""Pairs scored and sorted at a time: 8 MiB of scores, whatever the number of images."""

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float32]


def metric_name(far: float) -> str:
    """The name of the true accept rate at a false accept rate.

    >>> metric_name(1e-3)
    'tar_at_far_1e-3'
    """
    return rate_name("tar_at_far", far)


def rate_name(score: str, rate: float) -> str:
    """The name of a score at a rate.

    >>> rate_name("tpir_at_fpir", 0.025)
    'tpir_at_fpir_2.5e-2'
    """
    mantissa, _, exponent = f"{rate:e}".partition("e")
    return f"{score}_{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def verification(
    embeddings_ND: npt.NDArray[np.float32], label_N: npt.NDArray[np.int64], fars: Sequence[float]
) -> dict[str, float]:
    """Scores of embeddings under cosine similarity: `tar_at_far_*` for each of `fars`, `eer`, `auc`, `rank1`,
    `mean_tar`, `blend` and `lfw_accuracy`.

    A pair is accepted when its score lies strictly above a threshold. The true accept rate (TAR) at a false accept
    rate (FAR) takes the lowest threshold whose share of accepted impostor pairs is at most `far`; with fewer than
    1/far impostor pairs that is the highest impostor score, so that none is accepted. The equal error rate (EER) is
    where the piecewise linear ROC curve meets FAR = 1 − TAR. The area under that curve (AUC) counts a tie as half.
    Rank-1 is the share of images with a mate whose nearest other image is a mate; a tie with a stranger is a miss.
    `mean_tar` is the TAR averaged over log FAR between `MEAN_TAR_FARS`, `blend` the mean of rank-1, 1 − EER and
    `mean_tar`, `lfw_accuracy` that of `trainers.lfw_protocol` (the only score that depends on the order of images).

    Memory grows with the number of genuine pairs, not of all pairs. Raises `ValueError` when an embedding is not
    finite or when there is no genuine or no impostor pair.
    """
    if not np.isfinite(embeddings_ND).all():
        raise ValueError("embeddings must be finite")
    order_N = np.argsort(label_N, kind="stable")
    pairs = _GenuinePairs.of(label_N[order_N])
    impostors = len(label_N) * (len(label_N) - 1) // 2 - len(pairs.first)
    if len(pairs.first) == 0 or impostors == 0:
        lacking = "two images of one identity" if len(pairs.first) == 0 else "images of two identities"
        raise ValueError(f"verification needs {lacking}, but none are among the {len(label_N)} images")
    unit_ND = F.normalize(torch.from_numpy(embeddings_ND[order_N]), dim=1)
    score_G, stranger_N = _scores(unit_ND, pairs)
    above_G, reaching_G = _count_impostors(unit_ND, pairs, score_G)
    share_G = pairs.weight / pairs.weight.sum()
    tar = {metric_name(far): share_G[reaching_G <= allowed_accepts(far, impostors)].sum() for far in fars}
    eer = _equal_error_rate(above_G / impostors, reaching_G / impostors, share_G)
    # a sum, not a dot product: BLAS would round differently with its number of threads
    auc = 1 - (share_G * (above_G + reaching_G)).sum() / (2 * impostors)
    rank1, mean_tar = _rank1(pairs, score_G, stranger_N), _mean_tar(reaching_G / impostors, share_G)
    scores = tar | {"eer": eer, "auc": auc, "rank1": rank1, "mean_tar": mean_tar}
    scores |= {"blend": blend(rank1, eer, mean_tar), "lfw_accuracy": _lfw_accuracy(unit_ND, label_N[order_N])}
    return {name: float(score) for name, score in scores.items()}


Score = TypeVar("Score", float, Floats)


def blend(rank1: Score, eer: Score, mean_tar: Score) -> Score:
    """The mean of rank-1, 1 − EER and `mean_tar`: of the nearest neighbours, the middle of the ROC curve and its tail,
    so that no one of them is bought with another, and their noise averages out."""
    return (rank1 + (1 - eer) + mean_tar) / 3


@dataclass(frozen=True, slots=True, kw_only=True)
class _GenuinePairs:
    """The pairs first < second of images of one identity, the images being sorted by label.

    Each array has length G; they are ordered by `first`.
    """

    first: Ints
    second: Ints
    weight: Floats

    @classmethod
    def of(cls, label_N: Ints) -> "_GenuinePairs":
        """The genuine pairs of sorted labels."""
        _, start_K, size_K = np.unique(label_N, return_index=True, return_counts=True)
        end_N = np.repeat(start_K + size_K, size_K)
        mates_behind_N = end_N - np.arange(len(label_N)) - 1
        first_G = np.repeat(np.arange(len(label_N)), mates_behind_N)
        run_start_G = np.repeat(np.cumsum(mates_behind_N) - mates_behind_N, mates_behind_N)
        second_G = first_G + 1 + np.arange(len(first_G)) - run_start_G
        weight_G = 2 / (np.repeat(size_K, size_K)[first_G] - 1)
        return cls(first=first_G, second=second_G, weight=weight_G)


def _chunks(unit_ND: Tensor, pairs: _GenuinePairs) -> Iterator[tuple[int, slice, tuple[Ints, Ints], Scores]]:
    """For each run of rows from `start` on: its genuine pairs (as a slice, and as row and column) and all its scores
    with the images from `start` on, where −inf stands for a pair of an image with itself or one met before."""
    images = len(unit_ND)
    rows = max(1, _CHUNK_PAIRS // images)
    for start in range(0, images, rows):
        stop = min(start + rows, images)
        score_RN = (unit_ND[start:stop] @ unit_ND[start:].T).numpy()
        score_RN[:, : stop - start][np.tri(stop - start, dtype=bool)] = -np.inf
        genuine = slice(*np.searchsorted(pairs.first, (start, stop)))
        yield start, genuine, (pairs.first[genuine] - start, pairs.second[genuine] - start), score_RN


def _scores(unit_ND: Tensor, pairs: _GenuinePairs) -> tuple[Scores, Scores]:
    """The score of each genuine pair, and of each image's nearest image of another identity."""
    score_G = np.empty(len(pairs.first), dtype=np.float32)
    stranger_N = np.full(len(unit_ND), -np.inf, dtype=np.float32)
    for start, genuine, cells, score_RN in _chunks(unit_ND, pairs):
        score_G[genuine] = score_RN[cells]
        score_RN[cells] = -np.inf
        own_N, later_N = stranger_N[start : start + len(score_RN)], stranger_N[start:]
        np.maximum(own_N, score_RN.max(axis=1), out=own_N)
        np.maximum(later_N, score_RN.max(axis=0), out=later_N)
    return score_G, stranger_N


def _count_impostors(unit_ND: Tensor, pairs: _GenuinePairs, score_G: Scores) -> tuple[Ints, Ints]:
    """How many impostor pairs score above each genuine pair, and how many at least as high."""
    distinct, distinct_G = np.unique(score_G, return_inverse=True)
    at_most, below = np.zeros((2, len(distinct)), dtype=np.int64)
    cells_total = 0
    for _, _, cells, score_RN in _chunks(unit_ND, pairs):
        score_RN[cells] = -np.inf
        ascending = np.sort(score_RN, axis=None)
        at_most += np.searchsorted(ascending, distinct, side="right")
        below += np.searchsorted(ascending, distinct, side="left")
        cells_total += ascending.size
    return (cells_total - at_most)[distinct_G], (cells_total - below)[distinct_G]


def allowed_accepts(far: float, impostors: int) -> int:
    """The largest number of false accepts whose share is at most `far`, as an exact ratio: .1 of 10 is 1."""
    return int(Fraction(str(far)) * impostors)


def _equal_error_rate(above_G: Floats, reaching_G: Floats, share_G: Floats) -> float:
    """Where the ROC polyline meets FAR = 1 − TAR.

    Accepting the pairs at one genuine score takes the curve from (FAR of those above, TAR before) to (FAR of those
    reaching it, TAR after); between genuine scores only the FAR grows.
    """
    _, first_K, step_G = np.unique(above_G + reaching_G, return_index=True, return_inverse=True)
    tar_K = np.cumsum(np.bincount(step_G, weights=share_G))
    far = np.concatenate([[0.0], np.stack([above_G[first_K], reaching_G[first_K]], axis=1).ravel(), [1.0]])
    tar = np.concatenate([[0.0, 0.0], np.repeat(tar_K, 2)])
    excess = far + tar - 1
    after = int(np.argmax(excess >= 0))
    part = excess[after - 1] / (excess[after - 1] - excess[after])
    return float(far[after - 1] + part * (far[after] - far[after - 1]))


def _mean_tar(far_G: Floats, share_G: Floats) -> float:
    """The mean of the step function TAR over log FAR: a genuine pair is accepted from the FAR on at which it is
    reached."""
    low, high = np.log(MEAN_TAR_FARS)
    accepted_G = (high - np.log(np.clip(far_G, *MEAN_TAR_FARS))) / (high - low)
    return float((share_G * accepted_G).sum())


def _lfw_accuracy(unit_ND: Tensor, label_N: Ints) -> float:
    first_P, second_P = draw_pairs(label_N)
    score_P = (unit_ND[first_P] * unit_ND[second_P]).sum(1).numpy()
    return float(fold_accuracy(score_P, np.ones((PAIRS, 1)))[0])


def _rank1(pairs: _GenuinePairs, score_G: Scores, stranger_N: Scores) -> float:
    mate_N = np.full(len(stranger_N), -np.inf, dtype=np.float32)
    np.maximum.at(mate_N, pairs.first, score_G)
    np.maximum.at(mate_N, pairs.second, score_G)
    has_mate_N = mate_N > -np.inf
    return float((mate_N > stranger_N)[has_mate_N].mean())
