"""The nearest entries of a gallery to each probe, in a memory that the gallery's size has no part in.

P probes, R of them at a time, D embedding, G gallery entries, S of them at a time, M mates (pairs of a probe and an
entry of its identity), T strangers that are kept.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

Ints = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float32]

_BYTES_A_SCORE = 8
"""What a score takes at most: itself, and its share of what is kept of the chunk."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Matches:
    """Of each probe the cosine of its best mate, P, and those of its T nearest strangers from the nearest on, P×T; −inf
    where there is none."""

    mate_P: Scores
    stranger_PT: Scores

    def rank_within(self, rank: int) -> npt.NDArray[np.bool_]:
        """Whether fewer than `rank` strangers score at least as high as the best mate, P. A tie is against the mate."""
        return self.mate_P > self.stranger_PT[:, rank - 1]


def nearest(
    probe_PD: Scores,
    gallery_GD: Scores,
    mates_2M: Ints,
    *,
    keep: int,
    memory_bytes: int = 2**28,
    device: str = "cpu",
) -> Matches:
    """Every probe against every entry under cosine similarity, in float32 on `device`.

    Equals `F.normalize(probe) @ F.normalize(gallery).T`, its best mate by row and the `keep` highest others.
    `mates_2M`: the probe and the entry of each mate. Beyond the embeddings, the mates and the result, at most
    `memory_bytes` are held at a time; the gallery is normalised chunk by chunk, not copied.
    """
    by_entry = mates_2M[:, np.argsort(mates_2M[1], kind="stable")]
    probes, dim = probe_PD.shape
    mate_P = torch.full((probes,), -torch.inf, device=device)
    top_PT = torch.full((probes, keep), -torch.inf, device=device)
    side = _side(memory_bytes, dim)
    for start in range(0, len(gallery_GD), side):
        entry_SD = _unit(gallery_GD[start : start + side], device)
        here = slice(*np.searchsorted(by_entry[1], (start, start + side)))
        probe_M, entry_M = by_entry[:, here]
        for first in range(0, probes, side):
            rows = slice(first, first + side)
            cos_RS = _unit(probe_PD[rows], device) @ entry_SD.T
            within_M = (probe_M >= first) & (probe_M < first + side)
            if within_M.any():
                row = torch.from_numpy(probe_M[within_M] - first).to(device)
                column = torch.from_numpy(entry_M[within_M] - start).to(device)
                mate_P[rows].scatter_reduce_(0, row, cos_RS[row, column], "amax")
                cos_RS[row, column] = -torch.inf
            highest_RT = cos_RS.topk(min(keep, cos_RS.shape[1]), dim=1).values
            top_PT[rows] = torch.cat([top_PT[rows], highest_RT], dim=1).topk(keep, dim=1).values
    return Matches(mate_P=mate_P.cpu().numpy(), stranger_PT=top_PT.cpu().numpy())


def _side(memory_bytes: int, dim: int) -> int:
    """How many rows and columns of scores, with both chunks of embeddings, fit: 8·s² + 12·s·D bytes."""
    half = 12 * dim / (2 * _BYTES_A_SCORE)
    return max(1, int((half**2 + memory_bytes / _BYTES_A_SCORE) ** 0.5 - half))


def _unit(embeddings_SD: Scores, device: str) -> Tensor:
    return F.normalize(torch.from_numpy(np.ascontiguousarray(embeddings_SD)).to(device), dim=1)


def mates(probe_P: npt.NDArray[np.str_], gallery_G: npt.NDArray[np.str_]) -> Ints:
    """The probe and the entry of every pair of one label, 2×M."""
    order_G = np.argsort(gallery_G, kind="stable")
    rising_G = gallery_G[order_G]
    first_P, last_P = (np.searchsorted(rising_G, probe_P, side=side) for side in ("left", "right"))
    probe_M = np.repeat(np.arange(len(probe_P)), last_P - first_P)
    run_start_M = np.repeat(np.cumsum(last_P - first_P) - (last_P - first_P), last_P - first_P)
    place_M = np.arange(len(probe_M)) - run_start_M + first_P[probe_M]
    return np.stack([probe_M, order_G[place_M]])
