"""How much verification scores would vary with other identities: a bootstrap over whole clusters of images.

A cluster is an identity, or a group of identities that vary together (the characters of an alphabet). A resample draws
as many clusters as there are, with replacement; a cluster drawn w times is there w times. A pair within a cluster then
counts w times, a pair between clusters g and h w_g·w_h times; two copies of one cluster form no pairs, as those would
be pairs of an image with itself (the subsets bootstrap: Bolle, Ratha and Pankanti, "Error analysis of pattern
recognition systems: the subsets bootstrap", CVIU 93, 2004). The threshold is found anew in each resample.

N images, D embedding, G clusters, U units, B resamples, P impostor pairs, C thresholds, F false accept rates.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array

from trainers.lfw_protocol import fold_accuracy
from trainers.pair_scores import PairScores
from trainers.verification import MEAN_TAR_FARS, blend, metric_name

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_THRESHOLDS = 300
"""At most so many thresholds are looked at, their false accept rates rising geometrically; TAR is linear between."""

_FEWEST_KEPT = 20_000
_SAMPLE = 100_000
_REACH = 3.0
"""Impostor pairs are kept up to so many times the highest false accept rate, as resamples move the threshold."""


def draw_clusters(label_N: Ints, cluster_N: Ints, resamples: int, rng: np.random.Generator) -> Floats:
    """How often each cluster is drawn in each resample, G×B; one that has no genuine or no impostor pair is drawn
    again."""
    clusters = int(cluster_N.max()) + 1
    images_of_label = np.bincount(label_N)
    pairable_G = np.zeros(clusters, dtype=bool)
    pairable_G[cluster_N[images_of_label[label_N] > 1]] = True
    if clusters < 2 or not pairable_G.any():
        raise ValueError(f"a bootstrap needs two clusters, one of them with a genuine pair, but got {clusters}")

    def usable(weight_GB: Floats) -> npt.NDArray[np.bool_]:
        drawn_GB = weight_GB > 0
        usable_B: npt.NDArray[np.bool_] = (drawn_GB.sum(0) > 1) & drawn_GB[pairable_G].any(0)
        return usable_B

    return draw_units(usable, clusters, resamples, rng)


def draw_units(
    usable: Callable[[Floats], npt.NDArray[np.bool_]], units: int, resamples: int, rng: np.random.Generator
) -> Floats:
    """How often each unit is drawn in each resample, U×B; one that is not `usable` (from U×B weights to B) is drawn
    again. Some draw must be usable."""
    weight_UB = np.empty((units, resamples))
    todo = np.arange(resamples)
    while len(todo):
        weight_UB[:, todo] = rng.multinomial(units, np.full(units, 1 / units), size=len(todo)).T
        todo = todo[~usable(weight_UB[:, todo])]
    return weight_UB


@dataclass(frozen=True, slots=True, kw_only=True)
class Resampled:
    """How far scores move in each resample from what they are on all images.

    `scores`: those of `trainers.verification`, each B. `tar_FB`: the true accept rate along an error curve.
    """

    scores: Mapping[str, Floats]
    tar_FB: Floats


def resampled(
    pairs: PairScores, weight_GB: Floats, fars: Sequence[float], curve_fars: Sequence[float] = ()
) -> Resampled:
    """The scores at `fars`, and the error curve at `curve_fars`, when clusters are drawn `weight_GB` times.

    The definitions are those of `trainers.verification`. At most `_THRESHOLDS` thresholds are looked at, so with few
    impostor pairs the true accept rates are exact (`eer` and `auc` to a hundredth), and else they are interpolated
    between thresholds whose false accept rates differ by a few percent. Rank-1 keeps its gallery: only the images
    looked up are resampled. `lfw_accuracy` keeps its pairs, which count as often as their clusters are drawn. `fars`
    reach up to the highest of `MEAN_TAR_FARS`.
    """
    all_GB = np.concatenate([np.ones((len(weight_GB), 1)), weight_GB], axis=1)
    curve = _Curve.of(pairs, all_GB, [*fars, *curve_fars])
    scores = {metric_name(far): curve.tar_at(far) for far in fars} | {
        "eer": curve.equal_error_rate(),
        "auc": curve.area(),
        "rank1": (pairs.hits_G @ all_GB) / (pairs.mated_G @ all_GB),
        "mean_tar": curve.mean_tar(),
        "lfw_accuracy": _lfw_accuracy(pairs, all_GB),
    }
    scores["blend"] = blend(scores["rank1"], scores["eer"], scores["mean_tar"])
    tar_FB = np.array([curve.tar_at(far) for far in curve_fars]).reshape(-1, all_GB.shape[1])
    return Resampled(
        scores={name: values[1:] - values[0] for name, values in scores.items()}, tar_FB=tar_FB[:, 1:] - tar_FB[:, :1]
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Curve:
    """False and true accept rates at each threshold, from the highest one on, in each resample."""

    far_CB: Floats
    tar_CB: Floats
    whole_C: npt.NDArray[np.bool_]
    """Whether all impostors between a threshold and the next have one score, so that nothing lies between them."""

    @classmethod
    def of(cls, pairs: PairScores, weight_GB: Floats, fars: Sequence[float]) -> "_Curve":
        clusters, total = len(weight_GB), len(pairs.impostor_P)
        kept = min(total, max(_FEWEST_KEPT, int(_REACH * max(fars) * total), int(2 * _rough_eer(pairs) * total)))
        best = np.argpartition(-pairs.impostor_P, kept - 1)[:kept] if kept < total else np.arange(total)
        best = best[np.argsort(-pairs.impostor_P[best], kind="stable")]
        falling_K = -pairs.impostor_P[best]  # rising numbers, as searchsorted wants them
        ranks = np.arange(kept) if kept <= _THRESHOLDS else np.geomspace(1, kept, _THRESHOLDS) - 1
        rank_C = np.round(ranks).astype(np.int64)
        # a threshold is the score of the first impostor that it refuses, and so refuses those of equal score
        rank_C = np.unique(np.searchsorted(falling_K, falling_K[rank_C], side="left"))
        end_C = np.append(rank_C[1:], kept)
        accepted_CB = np.zeros((len(rank_C), weight_GB.shape[1]))
        for index, (first, last) in enumerate(pairwise(rank_C), start=1):
            accepted_CB[index] = _weighed(pairs.code_P[best[first:last]], weight_GB)
        threshold_C = falling_K[rank_C]
        step_Q = np.searchsorted(threshold_C, -pairs.genuine_Q, side="right")
        cell_Q = step_Q * clusters + pairs.genuine_cluster_Q
        size = (len(rank_C) + 1) * clusters
        genuine_CG = np.bincount(cell_Q, weights=pairs.genuine_weight_Q, minlength=size).reshape(-1, clusters)
        return cls(
            far_CB=np.cumsum(accepted_CB, axis=0) / pairs.impostors(weight_GB),
            tar_CB=np.cumsum(genuine_CG[:-1] @ weight_GB, axis=0) / (genuine_CG.sum(0) @ weight_GB),
            whole_C=falling_K[rank_C] == falling_K[end_C - 1],
        )

    def tar_at(self, far: float) -> Floats:
        """The true accept rate at a false accept rate of at most `far`."""
        below_B, above_B, column_B = self._around(self.far_CB > far * (1 + 1e-12))
        low_B, high_B = self.far_CB[below_B, column_B], self.far_CB[above_B, column_B]
        share_B = np.where(self.whole_C[below_B], 0.0, _share(far, low_B, high_B))
        low_tar_B, high_tar_B = self.tar_CB[below_B, column_B], self.tar_CB[above_B, column_B]
        tar_B: Floats = low_tar_B + share_B * (high_tar_B - low_tar_B)
        return tar_B

    def equal_error_rate(self) -> Floats:
        """Where the false accept rate meets the false reject rate.

        Impostors of one score move the curve to the right, the genuine pairs behind them then move it up.
        """
        excess_CB = self.far_CB + self.tar_CB - 1
        below_B, above_B, column_B = self._around(excess_CB >= 0)
        low_B, high_B = self.far_CB[below_B, column_B], self.far_CB[above_B, column_B]
        share_B = _share(0.0, excess_CB[below_B, column_B], excess_CB[above_B, column_B])
        cornered_B = np.minimum(high_B, 1 - self.tar_CB[below_B, column_B])
        return np.where(self.whole_C[below_B], cornered_B, low_B + share_B * (high_B - low_B))

    def area(self) -> Floats:
        """The area under the curve, which goes straight from the last threshold to (1, 1)."""
        ones_1B = np.ones((1, self.far_CB.shape[1]))
        area_B: Floats = np.trapezoid(np.append(self.tar_CB, ones_1B, 0), np.append(self.far_CB, ones_1B, 0), axis=0)
        return area_B

    def mean_tar(self) -> Floats:
        """The mean true accept rate over log FAR: steps where nothing lies between two thresholds, else straight."""
        low, high = np.log(MEAN_TAR_FARS)
        ends_CB = np.append(self.far_CB, np.full((1, self.far_CB.shape[1]), MEAN_TAR_FARS[1]), axis=0)
        width_CB = np.diff(np.log(np.clip(ends_CB, *MEAN_TAR_FARS)), axis=0) / (high - low)
        next_CB = np.append(self.tar_CB[1:], self.tar_CB[-1:], axis=0)
        height_CB = np.where(self.whole_C[:, None], self.tar_CB, (self.tar_CB + next_CB) / 2)
        mean_B: Floats = (width_CB * height_CB).sum(0)
        return mean_B

    def _around(self, beyond_CB: npt.NDArray[np.bool_]) -> tuple[Ints, Ints, Ints]:
        """For each resample the last threshold that is not beyond, the next one, and the resample's column."""
        below_B = np.maximum((~beyond_CB).sum(0) - 1, 0)
        return below_B, np.minimum(below_B + 1, len(beyond_CB) - 1), np.arange(beyond_CB.shape[1])


def _share(wanted: float, low_B: Floats, high_B: Floats) -> Floats:
    """Which part of the way from `low_B` to `high_B` is `wanted`."""
    return np.clip((wanted - low_B) / np.where(high_B > low_B, high_B - low_B, 1.0), 0.0, 1.0)


def _weighed(code_P: npt.NDArray[np.unsignedinteger[Any]], weight_GB: Floats) -> Floats:
    """How often pairs between clusters count in each resample, B."""
    clusters = len(weight_GB)
    first_P, second_P = np.divmod(code_P, clusters)
    within_P = first_P == second_P
    within_G = np.bincount(first_P[within_P], minlength=clusters).astype(float)
    between = (np.ones((~within_P).sum()), (first_P[~within_P], second_P[~within_P]))
    between_GG = coo_array(between, shape=(clusters, clusters)).tocsr()
    counted_B: Floats = within_G @ weight_GB + ((between_GG @ weight_GB) * weight_GB).sum(0)
    return counted_B


def _lfw_accuracy(pairs: PairScores, weight_GB: Floats) -> Floats:
    """The drawn pairs stay; they count as often as their clusters are drawn."""
    left_LB, right_LB = weight_GB[pairs.lfw_cluster_2L]
    within_L = pairs.lfw_cluster_2L[0] == pairs.lfw_cluster_2L[1]
    return fold_accuracy(pairs.lfw_cosine_L, np.where(within_L[:, None], left_LB, left_LB * right_LB))


def _rough_eer(pairs: PairScores) -> float:
    """The equal error rate over a sample of the pairs, each counting once."""
    genuine_Q, impostor_P = (s[:: 1 + len(s) // _SAMPLE] for s in (pairs.genuine_Q, pairs.impostor_P))
    missed_T = np.linspace(0, 1, 101)
    false_T = 1 - np.searchsorted(np.sort(impostor_P), np.quantile(genuine_Q, missed_T), side="right") / len(impostor_P)
    return float(false_T[np.argmin(np.abs(false_T - missed_T))])
