"""Accuracy on 600 pairs in ten folds, after the protocol of Labeled Faces in the Wild (Huang et al. 2007, View 2).

It saturates, and so few pairs are a noisy sample: it is here to be compared with, not as a good reward.

N images, P = 600 pairs, B columns of weights (resamples).
"""

import numpy as np
import numpy.typing as npt

PAIRS = 600
FOLDS = 10

_SEED = 0

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def draw_pairs(label_N: Ints) -> tuple[Ints, Ints]:
    """The images of each pair, the genuine half first; of equal labels the same pairs are drawn.

    `label_N` is sorted. A genuine pair is an identity with two images or more, drawn uniformly, and two of its images;
    an impostor pair two identities and an image of each. Unlike in the published protocol a pair may be drawn twice,
    and identities are not kept apart between folds.
    """
    rng = np.random.default_rng(_SEED)
    _, start_K, size_K = np.unique(label_N, return_index=True, return_counts=True)
    half = PAIRS // 2
    mated = rng.choice(np.flatnonzero(size_K > 1), half)
    one = rng.integers(size_K[mated])
    other = (one + rng.integers(1, size_K[mated])) % size_K[mated]
    left = rng.integers(len(size_K), size=half)
    right = (left + rng.integers(1, len(size_K), size=half)) % len(size_K)
    first_P = np.concatenate([start_K[mated] + one, start_K[left] + rng.integers(size_K[left])])
    second_P = np.concatenate([start_K[mated] + other, start_K[right] + rng.integers(size_K[right])])
    return first_P, second_P


def fold_accuracy(score_P: npt.NDArray[np.float32], weight_PB: Floats) -> Floats:
    """The accuracy over all folds, B: each is judged by the threshold that suits the nine others best.

    `score_P` are the scores of `draw_pairs`' pairs, which are dealt out to the folds in turn. Thresholds lie halfway
    between scores that follow each other; of equally good ones the lowest is taken. A pair counts `weight_PB` times.
    """
    genuine_P = np.arange(PAIRS) < PAIRS // 2
    fold_P = np.arange(PAIRS) % FOLDS
    right_B = np.zeros(weight_PB.shape[1])
    for fold in range(FOLDS):
        here = fold_P == fold
        threshold_B = _best_threshold(score_P[~here], genuine_P[~here], weight_PB[~here])
        correct = (score_P[here, None] > threshold_B) == genuine_P[here, None]
        right_B += (correct * weight_PB[here]).sum(0)
    accuracy_B: Floats = right_B / weight_PB.sum(0)
    return accuracy_B


def _best_threshold(score_P: npt.NDArray[np.float32], genuine_P: npt.NDArray[np.bool_], weight_PB: Floats) -> Floats:
    order = np.argsort(score_P, kind="stable")
    rising_P = score_P[order].astype(np.float64)
    gain_PB = np.where(genuine_P[order, None], -1.0, 1.0) * weight_PB[order]  # of refusing one pair more
    refused_PB = np.concatenate([np.zeros((1, weight_PB.shape[1])), np.cumsum(gain_PB, axis=0)])
    threshold_P = np.concatenate([[-np.inf], (rising_P[1:] + rising_P[:-1]) / 2, [np.inf]])
    refused_PB[1:-1][rising_P[1:] == rising_P[:-1]] = -np.inf  # nothing lies between equal scores
    best_B: Floats = threshold_P[refused_PB.argmax(0)]
    return best_B
