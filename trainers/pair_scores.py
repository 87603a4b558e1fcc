"""The cosines of all pairs of images, and what they look like over all thresholds: an error curve and two histograms.

Weights and thresholds are those of `trainers.verification`: a genuine pair counts so that each image counts once,
impostor pairs count once each, and a pair is accepted when its cosine lies strictly above the threshold.

N images, D embedding, G clusters, P impostor pairs, Q genuine pairs, L pairs of the LFW protocol,
F false accept rates, H bins.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from trainers.lfw_protocol import draw_pairs

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

CURVE_FARS = tuple(float(f"{10 ** (-tenth / 10):.3g}") for tenth in range(60, 9, -1))
"""The false accept rates of an error curve: ten a decade from 1e-6 to 1e-1."""

BINS = 100
"""Of a histogram of cosines, equal ones from −1 to 1."""

_CHUNK_PAIRS = 2**21


@dataclass(frozen=True, slots=True, kw_only=True)
class PairScores:
    """All pairs of images. The impostors' `code_P` is g·G + h for a pair between the clusters g and h."""

    impostor_P: npt.NDArray[np.float32]
    code_P: npt.NDArray[np.unsignedinteger[Any]]
    genuine_Q: npt.NDArray[np.float32]
    genuine_cluster_Q: Ints
    genuine_weight_Q: Floats
    images_G: Floats
    within_G: Floats
    """Impostor pairs within a cluster."""
    hits_G: Floats
    """Images whose nearest other image is a mate."""
    mated_G: Floats
    """Images that have a mate."""
    lfw_cosine_L: npt.NDArray[np.float32]
    """Of the pairs of `trainers.lfw_protocol`."""
    lfw_cluster_2L: Ints
    """The clusters of their images."""

    @classmethod
    def of(cls, embeddings_ND: npt.NDArray[np.float32], label_N: Ints, cluster_N: Ints) -> "PairScores":
        """The pairs among images; memory grows with their number. Labels are dense, a label lies in one cluster."""
        unit_ND = F.normalize(torch.from_numpy(embeddings_ND), dim=1)
        images, clusters = len(label_N), int(cluster_N.max()) + 1
        impostors, codes, genuine, genuine_rows = [], [], [], []
        hit_N = np.zeros(images, dtype=bool)
        code_N = cluster_N.astype(np.min_scalar_type(clusters**2))  # as small as it can be: there are many pairs
        rows = max(1, _CHUNK_PAIRS // images)
        for start in range(0, images, rows):
            here = np.arange(start, min(start + rows, images))
            score_RN = (unit_ND[here] @ unit_ND.T).numpy()
            mate_RN = label_N[here, None] == label_N
            later_RN = np.arange(images) > here[:, None]
            cells = mate_RN & later_RN
            genuine.append(score_RN[cells])
            genuine_rows.append(here[np.nonzero(cells)[0]])
            row_P, column_P = np.nonzero(~mate_RN & later_RN)
            impostors.append(score_RN[row_P, column_P])
            codes.append(code_N[here[row_P]] * clusters + code_N[column_P])
            nearest_stranger_R = np.where(mate_RN, -np.inf, score_RN).max(1)
            mate_RN[np.arange(len(here)), here] = False
            hit_N[here] = np.where(mate_RN, score_RN, -np.inf).max(1) > nearest_stranger_R
        order_N = np.argsort(label_N, kind="stable")
        lfw_2L = order_N[np.stack(draw_pairs(label_N[order_N]))]
        row_Q = np.concatenate(genuine_rows)
        images_of_label = np.bincount(label_N)
        mated_N = images_of_label[label_N] > 1
        images_G = np.bincount(cluster_N).astype(float)
        mates_G = np.bincount(cluster_N, weights=images_of_label[label_N].astype(float))
        return cls(
            impostor_P=np.concatenate(impostors),
            code_P=np.concatenate(codes),
            genuine_Q=np.concatenate(genuine),
            genuine_cluster_Q=cluster_N[row_Q],
            genuine_weight_Q=2 / (images_of_label[label_N[row_Q]] - 1),
            images_G=images_G,
            within_G=(images_G**2 - mates_G) / 2,
            hits_G=np.bincount(cluster_N[hit_N & mated_N], minlength=clusters).astype(float),
            mated_G=np.bincount(cluster_N[mated_N], minlength=clusters).astype(float),
            lfw_cosine_L=(unit_ND[lfw_2L[0]] * unit_ND[lfw_2L[1]]).sum(1).numpy(),
            lfw_cluster_2L=cluster_N[lfw_2L],
        )

    def impostors(self, weight_GB: Floats) -> Floats:
        """How many impostor pairs there are in each resample, B."""
        images_GB = self.images_G[:, None] * weight_GB
        counted_B: Floats = (images_GB.sum(0) ** 2 - (images_GB**2).sum(0)) / 2 + self.within_G @ weight_GB
        return counted_B

    def curve(self, fars: Sequence[float] = CURVE_FARS) -> Mapping[str, Floats]:
        """The error curve as `far`, `threshold`, `false_accepts` and `tar`, each F, rates of no impostor pair left out.

        `threshold` is the lowest one whose share of accepted impostors is at most the rate, which is the cosine of the
        first impostor that it refuses.
        """
        total = len(self.impostor_P)
        allowed = {far: int(Fraction(str(far)) * total) for far in fars}
        rank_F = np.array([count for count in allowed.values() if count], dtype=np.int64)
        if not len(rank_F):
            return dict.fromkeys(("far", "threshold", "false_accepts", "tar"), np.empty(0))
        last = int(rank_F.max())
        highest_P = self.impostor_P if last + 1 >= total else -np.partition(-self.impostor_P, last)[: last + 1]
        falling_P = -np.sort(-highest_P)
        threshold_F = falling_P[rank_F]
        order_Q = np.argsort(-self.genuine_Q, kind="stable")
        reached_Q = np.append(0.0, np.cumsum(self.genuine_weight_Q[order_Q])) / self.genuine_weight_Q.sum()
        return {
            "far": np.array([far for far, count in allowed.items() if count]),
            "threshold": threshold_F.astype(np.float64),
            "false_accepts": np.searchsorted(-falling_P, -threshold_F, side="left").astype(np.float64),
            "tar": reached_Q[np.searchsorted(-self.genuine_Q[order_Q], -threshold_F, side="left")],
        }

    def histograms(self) -> Mapping[str, Floats]:
        """Which share of the `genuine` (weighted) and of the `impostor` pairs has its cosine in each bin, each H."""
        edges = np.linspace(-1, 1, BINS + 1)
        counted = {
            "genuine": np.histogram(_within(self.genuine_Q), edges, weights=self.genuine_weight_Q)[0],
            "impostor": np.histogram(_within(self.impostor_P), edges)[0],
        }
        return {name: count_H / count_H.sum() for name, count_H in counted.items()}


def _within(cosine_P: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Cosines that rounding has put beyond ±1, put back."""
    return np.clip(cosine_P, -1, 1)
