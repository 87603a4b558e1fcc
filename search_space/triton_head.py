"""The negatives of a batch on a GPU: `ChunkedNegatives` whose passes over the classes are Triton kernels.

One kernel normalises a tile of class weights, takes its cosines, lays the targets aside, exponentiates from the tile's
own peaks and adds up, so that no cosine is ever in memory; peaks and sums of the tiles are joined afterwards, in a
fixed order. E is stored, or computed again for a part of the classes at a time. Two kernels make the gradients, with
the targets' share; that of the class weights is projected before it is stored.

Shapes: N batch, C classes, D embedding, K rows of class weights at a time, T tiles of them, S splits.
"""

import importlib.util
import os
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from search_space import parts
from search_space.chunked import ChunkedNegatives, Handed, NegativeMap, Sums
from search_space.head_sgd import Step
from search_space.spec import LossSpec

WIDEST = 1024
"""A program of the weights' gradient holds some class weights with all their dimensions: no more than these."""

RECOMPUTED_ROWS = 65_536
"""Classes whose E is computed again at a time, where it is not stored."""

_SAMPLES, _CLASSES, _DIMS = 64, 64, 32
_LAUNCH = {"num_warps": 8, "num_stages": 2}
"""Compiled for sm_80, sm_86 and sm_90 the gradients' kernels then spill little and need less than 99 KiB."""

_PROGRAMS = 256
"""So many programs at least make the embeddings' gradient, by splits of the classes: twice a large GPU's processors."""


def unsupported(spec: LossSpec, dim: int) -> str | None:
    """Why the kernels cannot run a loss that chunks can, None where they can."""
    if isinstance(spec.objective, parts.SquaredError):
        return "the kernels compute exponentials, not squares"
    if not isinstance(spec.negative, parts.IdentityNegative):
        return f"the kernels change no negatives, as '{spec.negative.kind}' does"
    if spec.centers > 1:
        return f"the kernels take one class weight a class, not {spec.centers}"
    if dim > WIDEST:
        return f"the kernels hold {WIDEST} dimensions, not {dim}"
    return None


def missing(x_ND: Tensor, w_CD: Tensor) -> str | None:
    """What the kernels lack here, None where they can run."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if w_CD.device.type != "cuda" and not _interpreted():
        return f"Triton needs a CUDA device, not '{w_CD.device.type}'"
    if w_CD.device.type == "cuda" and torch.cuda.get_device_capability(w_CD.device) < (8, 0):
        return "the kernels need a GPU of compute capability 8.0"
    if torch.float64 in (x_ND.dtype, w_CD.dtype):
        return "the kernels compute in float32, not float64"
    return None


class _Stored(NamedTuple):
    """E of the classes `start` to `stop`, and what each row is to be multiplied with, T×N or one row for all tiles."""

    start: int
    stop: int
    exp_NK: Tensor
    factor_TN: Tensor


class TritonNegatives(ChunkedNegatives):
    """`ChunkedNegatives` by kernels, for unchanged negatives and one center, in float32."""

    @torch.no_grad()
    def log_sum_exp(self, scale: float | Tensor) -> Tensor:
        """lse_neg of the plain cosines, N, without gradient: a pass of its own, which keeps nothing."""
        sums = self._pass(self._of_samples(scale), stores=False, wants_map=False)
        return (sums.peak_N + sums.total_N.log()).to(self._unit_ND.dtype)

    def sums(self, scale_N: Tensor, negative: NegativeMap | None, *, wants_map: bool) -> Sums:
        """All that the negatives of the batch add up to, but for S, which backward computes."""
        if negative is not None:
            raise ValueError("the kernels change no negatives")
        return self._pass(scale_N, stores=self._stores and (self._pulls or self._pushes), wants_map=wants_map)

    def _pass(self, scale_N: Tensor, *, stores: bool, wants_map: bool) -> Sums:
        count, classes = len(self._unit_ND), len(self._w_RD)
        new_TN = self._unit_ND.new_empty
        top_TN, total_TN = (new_TN(_tiles(classes), count) for _ in range(2))
        mapped_TN = torch.empty_like(total_TN) if wants_map else None
        self._inverse_R = self._unit_ND.new_empty(classes)
        exp_NK = self._room() if stores else None
        self._exponentials(0, classes, scale_N, None, exp_NK, (top_TN, total_TN, mapped_TN))
        own_N = top_TN.amax(0)
        decay_TN = (top_TN.double() - own_N).exp()
        peak_N, total_N, decay_N = self._shard.joined(own_N, (total_TN * decay_TN).sum(0))
        mapped_N = None if mapped_TN is None else self._shard.total((mapped_TN * decay_TN).sum(0) * decay_N)
        stored = ([], []) if exp_NK is None else ([top_TN], [exp_NK])
        return Sums(peak_N, total_N, mapped_N, None, *stored)

    def _room(self) -> Tensor:
        count, classes = len(self._unit_ND), len(self._w_RD)
        dtype = self._gradient_dtype
        if self._buffers is None or not self._pushes:
            return torch.empty(count, classes, dtype=dtype, device=self._unit_ND.device)
        like_NK = torch.empty(1, dtype=dtype, device=self._unit_ND.device).expand(count, classes)
        return self._buffers.pushes(like_NK, 0, classes)

    def _exponentials(
        self,
        start: int,
        stop: int,
        scale_N: Tensor,
        peak_N: Tensor | None,
        exp_NK: Tensor | None,
        sums: tuple[Tensor | None, Tensor | None, Tensor | None],
    ) -> None:
        """E of some classes, from their tiles' own peaks or from those given; what is None is not wanted."""
        from search_space import triton_kernels

        count, unused = len(self._unit_ND), self._unit_ND
        top_TN, total_TN, mapped_TN = (unused if each is None else each for each in sums)
        with torch.cuda.device(self._unit_ND.get_device()):  # Triton launches on the current one; −1, a CPU, is left
            triton_kernels.exponentials[(_tiles(stop - start) * _cdiv(count, _SAMPLES),)](
                self._unit_ND,
                self._w_RD[start:stop],
                self._label_N - start,
                scale_N.contiguous(),
                unused if peak_N is None else peak_N,
                unused if exp_NK is None else exp_NK,
                top_TN,
                total_TN,
                mapped_TN,
                self._inverse_R[start:stop],
                count,
                stop - start,
                self._unit_ND.shape[1],
                SAMPLES=_SAMPLES,
                CLASSES=_CLASSES,
                DIMS=_DIMS,
                AGAIN=peak_N is not None,
                STORES=exp_NK is not None,
                MAPS=sums[2] is not None,
                PRECISION=_precision(),
            )

    def gradients(self, unit_ND: Tensor, w_RD: Tensor, beta_N: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """∂L/∂x̂ and ∂L/∂w, where they are wanted, from β and what was handed over."""
        if self._buffers is not None:
            self._buffers.release()
        handed, self.handed = self.handed, None
        if handed is None:
            return super().gradients(unit_ND, w_RD, beta_N)
        grad_ND = torch.zeros_like(unit_ND) if self._pulls else None
        step = self._fused_step.now() if self._fused_step is not None and self._pushes else None
        grad_RD = self._gradient_room(w_RD) if self._pushes and step is None else None
        for stored in self._stored(handed):
            if grad_ND is not None:
                grad_ND += self._embedding_gradients(stored, beta_N)
            if self._pushes:
                self._weight_gradients(stored, beta_N, grad_RD, step)
        if step is not None:
            torch.autograd.graph.increment_version(w_RD)
        return grad_ND if grad_ND is None else self._shard.total(grad_ND), grad_RD

    def _stored(self, handed: Handed) -> Iterator[_Stored]:
        sums, classes = handed.sums, len(self._w_RD)
        coefficient_N = handed.alpha_N * handed.scale_N / sums.total_N
        if sums.pushes:
            decay_TN = (sums.peaks[0].double() - sums.peak_N).exp()
            yield _Stored(0, classes, sums.pushes[0], (coefficient_N * decay_TN).to(self._unit_ND.dtype))
            return
        factor_1N = coefficient_N.to(self._unit_ND.dtype)[None]
        for start in range(0, classes, RECOMPUTED_ROWS):
            stop = min(start + RECOMPUTED_ROWS, classes)
            exp_NK = torch.empty(
                len(self._unit_ND), stop - start, dtype=self._gradient_dtype, device=self._unit_ND.device
            )
            self._exponentials(start, stop, handed.scale_N, sums.peak_N, exp_NK, (None, None, None))
            yield _Stored(start, stop, exp_NK, factor_1N)

    def _embedding_gradients(self, stored: _Stored, beta_N: Tensor) -> Tensor:
        from search_space import triton_kernels

        (count, dim), tiles = self._unit_ND.shape, _tiles(stored.stop - stored.start)
        programs = _cdiv(count, _SAMPLES) * _cdiv(dim, _CLASSES)
        tiles_a_split = _cdiv(tiles, min(tiles, _cdiv(_PROGRAMS, programs)))
        splits = _cdiv(tiles, tiles_a_split)
        grad_SND = self._unit_ND.new_empty(splits, count, dim)
        triton_kernels.embedding_gradients[(programs * splits,)](
            *self._of_push(stored, beta_N),
            self._w_RD[stored.start : stored.stop],
            self._inverse_R[stored.start : stored.stop],
            grad_SND,
            count,
            stored.stop - stored.start,
            dim,
            tiles_a_split,
            SAMPLES=_SAMPLES,
            CLASSES=_CLASSES,
            DIMS=_CLASSES,
            PRECISION=self._gradient_precision(),
            **_LAUNCH,
        )
        return grad_SND.sum(0)

    def _weight_gradients(self, stored: _Stored, beta_N: Tensor, grad_RD: Tensor | None, step: Step | None) -> None:
        """Into `grad_RD`, or into the class weights themselves by `step`."""
        from search_space import triton_kernels

        count, dim = self._unit_ND.shape
        rows, dims = rows_and_dims(dim)
        kept_RD = grad_RD if step is None else step.buffer_RD
        part = slice(stored.start, stored.stop)
        triton_kernels.weight_gradients[(_cdiv(stored.stop - stored.start, rows),)](
            *self._of_push(stored, beta_N),
            self._unit_ND,
            self._w_RD[part],
            self._inverse_R[part],
            self._unit_ND if kept_RD is None else kept_RD[part],
            count,
            stored.stop - stored.start,
            dim,
            *((0.0, 0.0, 0.0) if step is None else (step.learning_rate, step.momentum, step.weight_decay)),
            SAMPLES=16,
            CLASSES=_CLASSES,
            ROWS=rows,
            DIMS=dims,
            PRECISION=self._gradient_precision(),
            STEP="none" if step is None else "plain" if kept_RD is None else "momentum",
            **_LAUNCH,
        )

    def _of_push(self, stored: _Stored, beta_N: Tensor) -> tuple[Tensor | int, ...]:
        stride = 0 if len(stored.factor_TN) == 1 else len(self._unit_ND)
        return stored.exp_NK, stored.factor_TN, stride, beta_N.contiguous(), self._label_N - stored.start

    def _gradient_precision(self) -> str:
        if self._gradient_dtype != torch.bfloat16:
            return _precision()
        return "rounded" if _interpreted() else "bfloat16"


def rows_and_dims(dim: int) -> tuple[int, int]:
    """How many class weights a program of their gradient holds, and of how many dimensions, a power of two."""
    dims = max(16, 1 << (dim - 1).bit_length())
    return min(_CLASSES, 16_384 // dims), dims


def _precision() -> str:
    """Products of float32 by three of TF32, nearly exact, unless torch is told that one is enough."""
    return "tf32x3" if torch.get_float32_matmul_precision() == "highest" else "tf32"


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


def _cdiv(a: int, b: int) -> int:
    return -(-a // b)


def _tiles(classes: int) -> int:
    return _cdiv(classes, _CLASSES)
