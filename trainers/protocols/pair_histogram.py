"""Verification over all pairs of very many images: genuine pairs exactly, impostor pairs in a histogram of cosines.

What it computes is `trainers.verification`, in one pass and in memory that the number of impostor pairs has no part in.
Identities are dealt into blocks at random, and impostor pairs counted for each pair of blocks, so that a bootstrap over
blocks needs no second pass.

N images, D embedding, K blocks, J pairs of blocks, H bins from the highest cosine on, C cells, B resamples, Q genuine
pairs.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from trainers.protocols.roc import Roc, merged
from trainers.resampling import draw_units

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

BINS = 2**16
"""Of equal width over cosines from −1 to 1: 3.1e-5 each."""
BLOCKS = 32
"""Of whole identities, as far as there are so many; with BINS they take 138 MB of counts."""

_BYTES_A_PAIR = 24
"""What scoring and binning a pair takes at most: its cosine, its bin and their temporaries."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairHistogram:
    """All pairs of images by bins of their cosine, the highest bin first.

    `genuine_HK` weighs genuine pairs as `trainers.verification` does, by the block that both images are in;
    `impostor_JH` counts impostor pairs by pair of blocks, of which `blocks_2J` are both ends. `hits_K` and `mated_K`
    count images with a mate whose nearest other image is a mate, and all images with a mate.
    """

    genuine_HK: Floats
    impostor_JH: npt.NDArray[np.unsignedinteger[Any]]
    blocks_2J: Ints
    hits_K: Floats
    mated_K: Floats
    genuine_pairs: int

    @classmethod
    def of(
        cls,
        embeddings_ND: npt.NDArray[np.float32],
        label_N: Ints,
        *,
        rng: np.random.Generator,
        memory_bytes: int = 2**28,
        device: str = "cpu",
    ) -> "PairHistogram":
        """The pairs among images, scored in float32 in tiles on `device`.

        Beyond the embeddings and a normalised copy of them, `memory_bytes` bound what is held at a time, without the
        counts (138 MB for less than two million images) and the genuine pairs (24 bytes each). Labels are dense. Raises
        `ValueError` when there is no genuine or no impostor pair.
        """
        images_of_label = np.bincount(label_N)
        genuine_pairs = int((images_of_label * (images_of_label - 1) // 2).sum())
        if not genuine_pairs or len(images_of_label) < 2:
            lacking = "images of two identities" if genuine_pairs else "two images of one identity"
            raise ValueError(f"verification needs {lacking}, but none are among the {len(label_N)} images")
        blocks = min(BLOCKS, len(images_of_label))
        block_of_label = rng.permutation(len(images_of_label)) * blocks // len(images_of_label)
        order_N = np.lexsort((label_N, block_of_label[label_N]))
        label_N = label_N[order_N]
        tiles = _Tiles(torch.from_numpy(embeddings_ND[order_N]), label_N, device)
        ends = np.searchsorted(block_of_label[label_N], np.arange(blocks + 1))
        blocks_2J = np.stack(np.triu_indices(blocks))
        largest = int(np.diff(ends).max()) ** 2
        impostor_JH = np.zeros((blocks_2J.shape[1], BINS), dtype=np.uint32 if largest < 2**32 else np.uint64)
        rows = max(1, int((memory_bytes / _BYTES_A_PAIR) ** 0.5))
        for j, (one, two) in enumerate(blocks_2J.T):
            for first in _runs(ends[one], ends[one + 1], rows):
                for second in _runs(max(ends[two], first.start), ends[two + 1], rows):
                    counted_H = tiles.count(first, second, within=bool(one == two))
                    np.add(impostor_JH[j], counted_H, out=impostor_JH[j], casting="unsafe")
        row_Q, bin_Q = tiles.genuine()
        weight_Q = 2 / (images_of_label[label_N[row_Q]] - 1)
        block_N, mated_N = block_of_label[label_N], images_of_label[label_N] > 1
        genuine_HK = np.zeros((BINS, blocks))
        np.add.at(genuine_HK, (bin_Q, block_N[row_Q]), weight_Q)
        return cls(
            genuine_HK=genuine_HK,
            impostor_JH=impostor_JH,
            blocks_2J=blocks_2J,
            hits_K=np.bincount(block_N[tiles.hits() & mated_N], minlength=blocks).astype(np.float64),
            mated_K=np.bincount(block_N[mated_N], minlength=blocks).astype(np.float64),
            genuine_pairs=genuine_pairs,
        )

    @property
    def impostor_pairs(self) -> int:
        """How many there are."""
        return int(self.impostor_JH.sum(dtype=np.int64))

    def roc(self) -> Roc:
        """The curve over bins, all pairs, one column.

        TAR at a FAR is too low by at most the weight of the genuine pairs in the one bin that holds the exact
        threshold (`error_at`); EER and AUC are off by less than the largest such share.
        """
        impostor_H = self.impostor_JH.sum(0, dtype=np.int64)
        return Roc.of_cells(self.genuine_HK.sum(1)[:, None], impostor_H[:, None].astype(np.float64))

    def error_at(self, far: float) -> float:
        """By how much `roc().tar_at(far)` may be too low: the share of the genuine pairs in the next bin."""
        roc = self.roc()
        reached = int(roc.reached(far)[0])
        return float(roc.tar_CB[min(reached + 1, BINS), 0] - roc.tar_CB[reached, 0])

    def rank1(self, weight_KB: Floats) -> Floats:
        """The share of images with a mate whose nearest other image is one, when blocks count so often, B."""
        rank1_B: Floats = (self.hits_K @ weight_KB) / (self.mated_K @ weight_KB)
        return rank1_B

    def draw(self, resamples: int, rng: np.random.Generator) -> Floats:
        """How often each block is drawn in each resample, K×B, both kinds of pairs being there."""
        genuine_K = self.genuine_HK.sum(0)
        within_J = self.blocks_2J[0] == self.blocks_2J[1]
        impostor_J = self.impostor_JH.sum(1, dtype=np.int64)

        def usable(weight_KB: Floats) -> npt.NDArray[np.bool_]:
            one_JB, two_JB = weight_KB[self.blocks_2J]
            impostors_B = impostor_J @ np.where(within_J[:, None], one_JB, one_JB * two_JB)
            both: npt.NDArray[np.bool_] = (genuine_K @ weight_KB > 0) & (impostors_B > 0)
            return both

        return draw_units(usable, len(genuine_K), resamples, rng)

    def resampled(self, weight_KB: Floats) -> Roc:
        """The curve when blocks count so often, in at most about `roc.MOST_CELLS` runs of bins.

        As in `trainers.resampling`, a pair within a block counts w times, one between blocks w_g·w_h times.
        """
        run_H = merged(self.impostor_JH.sum(0, dtype=np.int64).astype(np.float64))
        starts = np.flatnonzero(np.diff(run_H, prepend=-1))
        genuine_CK = np.add.reduceat(self.genuine_HK, starts, axis=0)
        impostor_JC = np.add.reduceat(self.impostor_JH, starts, axis=1, dtype=np.int64)
        one_JB, two_JB = weight_KB[self.blocks_2J]
        within_J1 = (self.blocks_2J[0] == self.blocks_2J[1])[:, None]
        weight_JB = np.where(within_J1, one_JB, one_JB * two_JB)
        return Roc.of_cells(genuine_CK @ weight_KB, impostor_JC.T @ weight_JB)


def _runs(start: int, stop: int, rows: int) -> Iterator[slice]:
    return (slice(each, min(each + rows, stop)) for each in range(int(start), int(stop), rows))


class _Tiles:
    """Scores tile after tile, and keeps what is to be known of each image and of each genuine pair."""

    def __init__(self, embeddings_ND: Tensor, label_N: Ints, device: str) -> None:
        self._unit_ND = F.normalize(embeddings_ND, dim=1, out=embeddings_ND)
        self._label_N = label_N
        self._device = device
        self._mate_N = torch.full((len(label_N),), -torch.inf, device=device)
        self._stranger_N = self._mate_N.clone()
        self._genuine: list[tuple[Ints, Ints]] = []

    def count(self, first: slice, second: slice, *, within: bool) -> npt.NDArray[np.unsignedinteger[Any]]:
        """The impostor pairs of rows with later rows in each bin, H; `within` a block labels are sorted."""
        cos_RS = self._unit_ND[first].to(self._device) @ self._unit_ND[second].to(self._device).T
        bin_RS = ((1 - cos_RS) * (BINS / 2)).int().clamp_(0, BINS - 1)
        left_out = 0
        if within and self._label_N[first.stop - 1] >= self._label_N[second.start]:
            left_out = self._set_apart(cos_RS, bin_RS, first, second)
        torch.maximum(self._stranger_N[first], cos_RS.amax(1), out=self._stranger_N[first])
        torch.maximum(self._stranger_N[second], cos_RS.amax(0), out=self._stranger_N[second])
        count_H = torch.bincount(bin_RS.flatten(), minlength=BINS)
        count_H[BINS - 1] -= left_out
        return count_H.cpu().numpy().astype(np.uint64)

    def _set_apart(self, cos_RS: Tensor, bin_RS: Tensor, first: slice, second: slice) -> int:
        """Take genuine pairs, and pairs that are met elsewhere or are of an image with itself, out of a tile."""
        row_N = np.arange(len(self._label_N))
        same_RS = torch.from_numpy(self._label_N[first, None] == self._label_N[None, second]).to(self._device)
        later_RS = torch.from_numpy(row_N[second] > row_N[first, None]).to(self._device)
        row, column = torch.nonzero(same_RS & later_RS, as_tuple=True)
        self._genuine.append(((row + first.start).cpu().numpy(), bin_RS[row, column].long().cpu().numpy()))
        for index, start in ((row, first.start), (column, second.start)):
            self._mate_N.scatter_reduce_(0, index + start, cos_RS[row, column], "amax")
        out_RS = same_RS | ~later_RS
        cos_RS[out_RS] = -torch.inf
        bin_RS[out_RS] = BINS - 1
        return int(out_RS.sum())

    def genuine(self) -> tuple[Ints, Ints]:
        """The row of the first image, and the bin, of each genuine pair met, Q."""
        rows, bins = zip(*self._genuine, strict=True)
        return np.concatenate(rows), np.concatenate(bins)

    def hits(self) -> npt.NDArray[np.bool_]:
        """Whether an image's nearest other image is a mate, N; a tie with a stranger is a miss."""
        return (self._mate_N > self._stranger_N).cpu().numpy()
