"""The negatives of a batch, walked chunk by chunk: no N×C autograd graph, no temporary of the class weights' size.

Every target-only margin loss is  softplus(lse_neg − T(cos_y)),  so all that has to cross the classes is cos_y, lse_neg
and, backwards, α = ∂L/∂lse_neg and β = ∂L/∂cos_y of each sample. A walk takes the cosines of a chunk by a product with
the raw class weights (their norms are applied to the product), lays the target aside, exponentiates under a running row
maximum, and adds up the row sums r and S = Σ_j E_j ŵ_j while the chunk's weights are in cache. E is stored, or computed
again. Backwards the embeddings, never E, are scaled by α·s/r, and a second product gives the class weights' gradient,
whose part along the weights is taken out while it is in cache.

What changes the negatives is applied to each chunk by the very map that the plain form uses, with its own derivative.

Shapes: N batch, C classes, M centers of a class, R = C·M rows of class weights, D embedding, K rows of a chunk, J its
classes.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from search_space import functional as fn
from search_space import huge_pages
from search_space.distributed import Shard
from search_space.head_sgd import HeadSGD
from search_space.step_buffers import Buffers

CHUNK_ROWS = 4096
"""Rows of class weights in a chunk: 8 MiB at D = 512, which a shared cache holds from one product to the next."""

CHUNK_COSINES = 2**20
"""A chunk of so many cosines is large enough: large batches take smaller chunks, as quickly and in less memory."""

Memory = Literal["store", "recompute"]
GradientDtype = Literal["float32", "bfloat16"]
NegativeMap = Callable[[Tensor], Tensor]

_EPILOGUE_ROWS = 512
"""Rows of a gradient that are projected at a time, so that nothing but the gradient itself is of its size."""

_SHORTEST = 1e-12
"""Norms below count as this and have no gradient, as in `torch.nn.functional.normalize`."""


def refuse_unknown(name: str, value: str, known: object) -> None:
    """Raises ValueError unless a value is of a `Literal`."""
    if value not in get_args(known):
        raise ValueError(f"{name} must be one of {', '.join(get_args(known))}, but got {name}={value!r}")


class Chunk(NamedTuple):
    """Rows `start` to `stop` of the class weights; the samples whose target is among them, and its column there."""

    start: int
    stop: int
    sample_n: Tensor
    column_n: Tensor


class _Logits(NamedTuple):
    """ℓ = s·n of a chunk, n where it is wanted, and from ∂L/∂n to ∂L/∂cos."""

    logit_NJ: Tensor
    mapped_NJ: Tensor | None
    backward: Callable[[Tensor], Tensor]


class Sums(NamedTuple):
    """What a walk leaves, relative to the peak of each row: r, Σ_j E_j n_j and S, the last two where they are wanted.

    `pushes` are the chunks' ∂r/∂cos over the norms of the class weights, where stored, each relative to its own peaks.
    """

    peak_N: Tensor
    total_N: Tensor
    mapped_N: Tensor | None
    pull_ND: Tensor | None
    peaks: Sequence[Tensor]
    pushes: Sequence[Tensor]


class Handed(NamedTuple):
    """What the node of lse_neg hands to that of the targets, which makes the only gradient of the class weights."""

    alpha_N: Tensor
    scale_N: Tensor
    sums: Sums
    negative: NegativeMap | None

    def factor_N(self) -> Tensor:
        """α·s/r, N: what E of a row, from the last peak, is to be multiplied with."""
        return (self.alpha_N * self.scale_N / self.sums.total_N).to(self.alpha_N.dtype)


class ChunkedNegatives:
    """`Negatives` of unit embeddings and raw class weights, and their log-sum-exp with its gradients.

    First `targets`, then what the parts of the loss ask, last and once `gap`.
    """

    def __init__(
        self,
        unit_ND: Tensor,
        w_RD: Tensor,
        label_N: Tensor,
        *,
        centers: int = 1,
        memory: Memory = "store",
        gradient_dtype: GradientDtype = "float32",
        chunk_rows: int | None = None,
        buffers: Buffers | None = None,
        fused_step: HeadSGD | None = None,
        shard: Shard | None = None,
    ) -> None:
        for name, value, known in (("memory", memory, Memory), ("gradient_dtype", gradient_dtype, GradientDtype)):
            refuse_unknown(name, value, known)
        training = torch.is_grad_enabled()
        self._shard = Shard(first_class=0, classes=len(w_RD) // centers) if shard is None else shard
        self._unit_ND, self._w_RD = unit_ND.detach(), w_RD.detach()
        self._label_N = label_N - self._shard.first_class
        self._centers, self._stores = centers, memory == "store"
        self._gradient_dtype = torch.bfloat16 if gradient_dtype == "bfloat16" else unit_ND.dtype
        self._pulls, self._pushes = training and unit_ND.requires_grad, training and w_RD.requires_grad
        self._fused_step = fused_step if fused_step is not None and fused_step.takes(w_RD) else None
        self._buffers = buffers
        if buffers is not None and self._pushes:
            buffers.lend(self)
        self._inverse_R = unit_ND.new_empty(0)
        self._cosines: list[Tensor] = []
        rows = chunk_rows or min(CHUNK_ROWS, max(CHUNK_ROWS // 4, CHUNK_COSINES // max(1, len(unit_ND))))
        self._chunks = list(self._cut(max(1, rows // centers)))
        self.handed: Handed | None = None

    def _cut(self, classes_a_chunk: int) -> Iterator[Chunk]:
        by_label_N = self._label_N.argsort()
        classes = len(self._w_RD) // self._centers
        starts = [*range(0, classes, classes_a_chunk), classes]
        edges = torch.tensor(starts, device=self._label_N.device)
        bounds = torch.searchsorted(self._label_N[by_label_N], edges).tolist()
        for index, (start, stop) in enumerate(itertools.pairwise(starts)):
            sample_n = by_label_N[bounds[index] : bounds[index + 1]]
            yield Chunk(start * self._centers, stop * self._centers, sample_n, self._label_N[sample_n] - start)

    def targets(self, unit_ND: Tensor, w_RD: Tensor) -> Tensor:
        """cos_y, N, with gradient."""
        cos_y_N: Tensor = _Targets.apply(unit_ND, w_RD, self)  # type: ignore[no-untyped-call]
        return cos_y_N

    def classes(self) -> int:
        """The number of classes, those of other shards too."""
        return self._shard.classes

    @torch.no_grad()
    def log_sum_exp(self, scale: float | Tensor) -> Tensor:
        """lse_neg of the plain cosines, N, without gradient."""
        scale_N = self._of_samples(scale)
        peak_N, total_N = self._nothing_yet()
        for chunk, _, cos_NK in self._walk(keep=self._stores):
            logit_NJ = scale_N[:, None] * fn.nearest_center(cos_NK, self._centers)
            peak_N, total_N, _ = self._add_up(chunk, logit_NJ, peak_N, total_N)
        peak_N, total_N, _ = self._shard.joined(peak_N, total_N)
        return (peak_N + total_N.log()).to(self._unit_ND.dtype)

    @torch.no_grad()
    def above(self, threshold_N: Tensor) -> tuple[Tensor, Tensor]:
        """Sum and number of the plain cosines above the threshold, each N."""
        total_N, count_N = torch.zeros_like(threshold_N), torch.zeros_like(self._label_N)
        for chunk, _, cos_NK in self._walk(keep=self._stores):
            cos_NJ = fn.nearest_center(cos_NK, self._centers)
            above_NJ = cos_NJ > threshold_N[:, None]
            above_NJ[chunk.sample_n, chunk.column_n] = False
            total_N += torch.where(above_NJ, cos_NJ, 0.0).sum(1)
            count_N += above_NJ.sum(1)
        return self._shard.total(total_N), self._shard.total(count_N)

    def gap(self, cos_y_N: Tensor, target_N: Tensor, scale: float | Tensor, negative: NegativeMap | None) -> Tensor:
        """T − lse_neg, with gradient; `negative` is n, None where it changes nothing.

        Both are taken from the largest negative, as in `Logits.gap`.
        """
        scale_N = self._of_samples(scale)
        peak_N, lse_N = _LogSumExp.apply(cos_y_N, scale_N, self, negative)  # type: ignore[no-untyped-call]
        gap_N: Tensor = (target_N - peak_N) - lse_N
        return gap_N

    def _of_samples(self, scale: float | Tensor) -> Tensor:
        one = scale if isinstance(scale, Tensor) else self._unit_ND.new_tensor(scale)
        return one.to(self._unit_ND).expand(len(self._unit_ND))

    def _nothing_yet(self) -> tuple[Tensor, Tensor]:
        """Peak and sum of no logits; the peak is finite, so that a chunk of nothing but a target gives 0, not NaN."""
        lowest = torch.finfo(self._unit_ND.dtype).min
        unit_ND = self._unit_ND
        return unit_ND.new_full((len(unit_ND),), lowest), unit_ND.new_zeros(len(unit_ND), dtype=torch.float64)

    def _add_up(self, chunk: Chunk, logit_NJ: Tensor, peak_N: Tensor, total_N: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """New peak, new sum, and what older sums are to be multiplied with; the logits become E, 0 for the targets."""
        logit_NJ[chunk.sample_n, chunk.column_n] = -torch.inf
        top_N = torch.maximum(peak_N, logit_NJ.amax(1))
        decay_N = (peak_N - top_N).exp()
        logit_NJ.sub_(top_N[:, None]).exp_()
        return top_N, total_N * decay_N + logit_NJ.sum(1), decay_N

    def _push_of(self, chunk: Chunk, logit_NJ: Tensor, peak_N: Tensor) -> Tensor:
        """The logits become E from a known peak."""
        logit_NJ[chunk.sample_n, chunk.column_n] = -torch.inf
        return logit_NJ.sub_(peak_N[:, None]).exp_()

    def _walk(self, *, keep: bool) -> Iterator[tuple[Chunk, Tensor, Tensor]]:
        """Each chunk with its raw class weights K×D and its cosines N×K, which are kept for the next walk or not."""
        known, self._cosines = self._cosines, []
        for index, chunk in enumerate(self._chunks):
            w_KD = self._w_RD[chunk.start : chunk.stop].to(self._unit_ND.dtype)
            cos_NK = known[index] if known else self._product(chunk, w_KD)
            if known:
                known[index] = cos_NK[:0]
            if keep:
                self._cosines.append(cos_NK)
            yield chunk, w_KD, cos_NK

    def _product(self, chunk: Chunk, w_KD: Tensor) -> Tensor:
        if not len(self._inverse_R):
            self._inverse_R = self._unit_ND.new_empty(len(self._w_RD))
        norm_K = torch.linalg.vector_norm(w_KD, dim=1).clamp_min_(_SHORTEST)
        torch.reciprocal(norm_K, out=self._inverse_R[chunk.start : chunk.stop])
        cos_NK = self._unit_ND.new_empty(len(self._unit_ND), len(w_KD))
        if self._buffers is not None and self._pushes and self._stores and cos_NK.dtype == self._gradient_dtype:
            cos_NK = self._buffers.pushes(cos_NK, chunk.start, len(self._w_RD))
        return torch.mm(self._unit_ND, w_KD.T, out=cos_NK).div_(norm_K)

    def _rounded(self, push_NK: Tensor, chunk: Chunk) -> Tensor:
        """As it is stored and multiplied."""
        if push_NK.dtype == self._gradient_dtype:
            return push_NK
        rounded_NK = push_NK.to(self._gradient_dtype)
        if self._buffers is None or not self._pushes or not self._stores:
            return rounded_NK
        return self._buffers.pushes(rounded_NK, chunk.start, len(self._w_RD)).copy_(rounded_NK)

    def _logits(self, cos_NK: Tensor, scale_N: Tensor, negative: NegativeMap | None, *, wants_map: bool) -> _Logits:
        """Uses the cosines up where no map needs them again."""
        if negative is None and self._centers == 1:
            if wants_map:
                return _Logits(cos_NK * scale_N[:, None], cos_NK, _unchanged)
            return _Logits(cos_NK.mul_(scale_N[:, None]), None, _unchanged)
        with torch.enable_grad():
            leaf_NK = cos_NK.detach().requires_grad_()
            mapped_NJ = fn.nearest_center(leaf_NK, self._centers)
            mapped_NJ = mapped_NJ if negative is None else negative(mapped_NJ)
        held_NJ = mapped_NJ.detach()
        return _Logits(held_NJ * scale_N[:, None], held_NJ, partial(_derivative, mapped_NJ, leaf_NK))

    def sums(self, scale_N: Tensor, negative: NegativeMap | None, *, wants_map: bool) -> Sums:
        """All that the negatives of the batch add up to."""
        peak_N, total_N = self._nothing_yet()
        pull_ND = torch.zeros_like(self._unit_ND) if self._pulls else None
        mapped_N = torch.zeros_like(total_N) if wants_map else None
        peaks: list[Tensor] = []
        pushes: list[Tensor] = []
        for chunk, w_KD, cos_NK in self._walk(keep=False):
            of = self._logits(cos_NK, scale_N, negative, wants_map=wants_map)
            peak_N, total_N, decay_N = self._add_up(chunk, of.logit_NJ, peak_N, total_N)
            if mapped_N is not None and of.mapped_NJ is not None:
                mapped_N = mapped_N * decay_N + (of.logit_NJ * of.mapped_NJ).sum(1)
            if pull_ND is None and not self._pushes:
                continue
            push_NK = of.backward(of.logit_NJ).mul_(self._inverse_R[chunk.start : chunk.stop])
            push_NK = self._rounded(push_NK, chunk)
            if pull_ND is not None:
                pull_ND.mul_(decay_N[:, None])
                if push_NK.dtype == w_KD.dtype:
                    pull_ND.addmm_(push_NK, w_KD)
                else:
                    pull_ND += push_NK @ w_KD.to(push_NK.dtype)
            if self._stores and self._pushes:
                peaks.append(peak_N)
                pushes.append(push_NK)
        peak_N, total_N, decay_N = self._shard.joined(peak_N, total_N)
        if pull_ND is not None:
            pull_ND *= decay_N[:, None]
        if mapped_N is not None:
            mapped_N = self._shard.total(mapped_N * decay_N)
        return Sums(peak_N, total_N, mapped_N, pull_ND, peaks, pushes)

    def gradients(self, unit_ND: Tensor, w_RD: Tensor, beta_N: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """∂L/∂x̂ and ∂L/∂w, where they are wanted, from β and what was handed over; no ∂L/∂w where it was used up."""
        if self._buffers is not None:
            self._buffers.release()
        own_n, row_nM = self._own()
        with torch.enable_grad():
            x_nD = unit_ND.detach()[own_n].requires_grad_()
            w_nMD = w_RD.detach().index_select(0, row_nM.flatten()).view(*row_nM.shape, w_RD.shape[1]).requires_grad_()
            target_nD, target_nMD = torch.autograd.grad(_nearest(x_nD, w_nMD), (x_nD, w_nMD), beta_N[own_n])
        handed, self.handed = self.handed, None
        grad_ND = grad_RD = None
        if self._pulls:
            grad_ND = torch.zeros_like(unit_ND)
            if handed is not None and handed.sums.pull_ND is not None:
                torch.mul(handed.factor_N()[:, None], handed.sums.pull_ND, out=grad_ND)
            grad_ND = self._shard.total(grad_ND.index_add_(0, own_n, target_nD))
        if self._pushes:
            grad_RD = self._weight_gradient(w_RD, handed, row_nM.flatten(), target_nMD.flatten(0, 1))
        return grad_ND, grad_RD

    def _weight_gradient(self, w_RD: Tensor, handed: Handed | None, row_m: Tensor, target_mD: Tensor) -> Tensor | None:
        """∂L/∂w, to which `target_mD` is added in the rows `row_m`; None where the fused step has used it up."""
        if handed is None:
            return self._gradient_room(w_RD).zero_().index_add_(0, row_m, target_mD)
        step = None if self._fused_step is None else self._fused_step.now()
        longest = max(chunk.stop - chunk.start for chunk in self._chunks)
        room_RD = self._gradient_room(w_RD) if step is None else w_RD.new_empty(longest, w_RD.shape[1])
        for chunk, w_KD, push_NK, factor_N in self._again(handed):
            rows = slice(chunk.start, chunk.stop)
            grad_KD = room_RD[rows] if step is None else room_RD[: len(w_KD)]
            scaled_ND = (self._unit_ND * factor_N[:, None]).to(push_NK.dtype)
            if grad_KD.dtype == w_KD.dtype == scaled_ND.dtype:
                _project(torch.mm(push_NK.T, scaled_ND, out=grad_KD), w_KD, self._inverse_R[rows])
            else:
                wide_KD = torch.mm(push_NK.T, scaled_ND).to(w_KD.dtype)
                grad_KD.copy_(_project(wide_KD, w_KD, self._inverse_R[rows]))
            is_here_m = (row_m >= chunk.start) & (row_m < chunk.stop)
            grad_KD.index_add_(0, row_m[is_here_m] - chunk.start, target_mD[is_here_m])
            if step is not None:
                step.take(w_RD.detach()[rows], grad_KD, chunk.start)
        return room_RD if step is None else None

    def _gradient_room(self, w_RD: Tensor) -> Tensor:
        return huge_pages.fresh(torch.empty_like(w_RD)) if self._buffers is None else self._buffers.gradient(w_RD)

    def _again(self, handed: Handed) -> Iterator[tuple[Chunk, Tensor, Tensor, Tensor]]:
        """Each chunk's weights and pushes, as they were stored or computed again, and the pushes' factor of each row.

        The factor turns Eᵀx̂ into ∂L/∂w; pushes computed again are from the last peak, stored ones each from its own.
        """
        factor_N, sums = handed.factor_N(), handed.sums
        if sums.pushes:
            for chunk, push_NK, peak_N in zip(self._chunks, sums.pushes, sums.peaks, strict=True):
                w_KD = self._w_RD[chunk.start : chunk.stop].to(self._unit_ND.dtype)
                yield chunk, w_KD, push_NK, factor_N * (peak_N - sums.peak_N).exp()
            return
        for chunk, w_KD, cos_NK in self._walk(keep=False):
            of = self._logits(cos_NK, handed.scale_N, handed.negative, wants_map=False)
            pushed_NJ = self._push_of(chunk, of.logit_NJ, sums.peak_N)
            push_NK = of.backward(pushed_NJ).mul_(self._inverse_R[chunk.start : chunk.stop])
            yield chunk, w_KD, push_NK.to(self._gradient_dtype), factor_N

    def _own(self) -> tuple[Tensor, Tensor]:
        """The samples whose target is in this shard, and the rows of its class weights."""
        label_N, classes = self._label_N, len(self._w_RD) // self._centers
        if classes == self._shard.classes:
            own_n = torch.arange(len(label_N), device=label_N.device)
        else:
            own_n = ((label_N >= 0) & (label_N < classes)).nonzero()[:, 0]
        center_M = torch.arange(self._centers, device=label_N.device)
        return own_n, label_N[own_n, None] * self._centers + center_M

    def target_cosines(self, unit_ND: Tensor, w_RD: Tensor) -> Tensor:
        """cos_y, N, by a dot product for each sample."""
        own_n, row_nM = self._own()
        cos_n = _nearest(unit_ND[own_n], w_RD.index_select(0, row_nM.flatten()).view(*row_nM.shape, w_RD.shape[1]))
        return self._shard.total(unit_ND.new_zeros(len(unit_ND)).index_copy_(0, own_n, cos_n))


def _unchanged(grad: Tensor) -> Tensor:
    return grad


def _derivative(mapped_NJ: Tensor, cos_NK: Tensor, grad_NJ: Tensor) -> Tensor:
    (grad_NK,) = torch.autograd.grad(mapped_NJ, cos_NK, grad_NJ)
    return grad_NK


def _nearest(unit_ND: Tensor, w_NMD: Tensor) -> Tensor:
    """Cosine of each embedding to the nearest of its own M weights, in float64: at s = 512 its rounding matters."""
    unit_NMD = F.normalize(w_NMD.double(), dim=2)
    return (unit_ND.double()[:, None] * unit_NMD).sum(2).amax(1).to(unit_ND.dtype)


def _project(grad_KD: Tensor, w_KD: Tensor, inverse_K: Tensor) -> Tensor:
    """From g/‖w‖ to (g − (g·ŵ)ŵ)/‖w‖, in place: the gradient of normalising by rows."""
    along_K = torch.where(inverse_K < 1 / _SHORTEST, inverse_K.square(), 0.0)
    for start in range(0, len(grad_KD), _EPILOGUE_ROWS):
        rows = slice(start, start + _EPILOGUE_ROWS)
        dot_k = (grad_KD[rows] * w_KD[rows]).sum(1)
        grad_KD[rows].addcmul_(w_KD[rows], (dot_k * along_K[rows])[:, None], value=-1)
    return grad_KD


class _Targets(torch.autograd.Function):
    """cos_y; backwards the gradients of embeddings and class weights, those by way of lse_neg included.

    lse_neg's node runs before, since it takes cos_y for an input: one gradient of the class weights is made, not two.
    """

    @staticmethod
    def forward(ctx: Any, unit_ND: Tensor, w_RD: Tensor, negatives: ChunkedNegatives) -> Tensor:
        """N."""
        ctx.save_for_backward(unit_ND, w_RD)
        ctx.negatives = negatives
        return negatives.target_cosines(unit_ND, w_RD)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, beta_N: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        """From β, after `_LogSumExp` has handed α over."""
        unit_ND, w_RD = ctx.saved_tensors
        with torch.autocast(device_type=unit_ND.device.type, enabled=False):
            return *ctx.negatives.gradients(unit_ND, w_RD, beta_N), None


class _LogSumExp(torch.autograd.Function):
    """The largest logit of the negatives, without gradient, and lse_neg from there."""

    @staticmethod
    def forward(
        ctx: Any, cos_y_N: Tensor, scale_N: Tensor, negatives: ChunkedNegatives, negative: NegativeMap | None
    ) -> tuple[Tensor, Tensor]:
        """Each N."""
        sums = negatives.sums(scale_N, negative, wants_map=ctx.needs_input_grad[1])
        ctx.save_for_backward(
            scale_N, sums.peak_N, sums.total_N, sums.mapped_N, sums.pull_ND, *sums.peaks, *sums.pushes
        )
        ctx.negatives, ctx.negative = negatives, negative
        ctx.mark_non_differentiable(sums.peak_N)
        return sums.peak_N, sums.total_N.log().to(cos_y_N.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, _: Tensor, alpha_N: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        """The scale's gradient; all else is handed over."""
        scale_N, peak_N, total_N, mapped_N, pull_ND, *rest = ctx.saved_tensors
        sums = Sums(peak_N, total_N, mapped_N, pull_ND, rest[: len(rest) // 2], rest[len(rest) // 2 :])
        ctx.negatives.handed = Handed(alpha_N, scale_N, sums, ctx.negative)
        scale_grad_N = None if mapped_N is None else (alpha_N * mapped_N / total_N).to(alpha_N.dtype)
        return torch.zeros_like(alpha_N), scale_grad_N, None, None
