"""P2SGrad's squared error (Zhang et al., CVPR 2019), walked chunk by chunk as `search_space.chunked` walks a softmax.

½ Σ_j (c_j − 1[j = y])²: in place of exponentials the cosines themselves are pushed, and their squares added up. The
form over WᵀW (no N×C numbers, less arithmetic where N > 2D/3) is not taken: it has the negatives' sum as a difference
of two that include the target, which near the optimum leaves nothing but rounding.

Shapes: N batch, J classes of a chunk.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from search_space.chunked import Chunk, ChunkedNegatives, Handed, Sums


class ChunkedSquares(ChunkedNegatives):
    """Negatives whose squares are added up: first `targets`, then, once, `squared_error`."""

    def squared_error(self, cos_y_N: Tensor) -> Tensor:
        """½ Σ_j (c_j − 1[j = y])², N, with gradient."""
        half_N: Tensor = _HalfSquares.apply(cos_y_N, self)  # type: ignore[no-untyped-call]
        return half_N + 0.5 * (cos_y_N - 1.0).square()

    def _nothing_yet(self) -> tuple[Tensor, Tensor]:
        zero_N = self._unit_ND.new_zeros(len(self._unit_ND))
        return zero_N, zero_N.double()

    def _add_up(self, chunk: Chunk, logit_NJ: Tensor, peak_N: Tensor, total_N: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        self._push_of(chunk, logit_NJ, peak_N)
        return peak_N, total_N + logit_NJ.square().sum(1), torch.ones_like(peak_N)

    def _push_of(self, chunk: Chunk, logit_NJ: Tensor, peak_N: Tensor) -> Tensor:  # noqa: ARG002 (as exponentials)
        logit_NJ[chunk.sample_n, chunk.column_n] = 0.0
        return logit_NJ


class _HalfSquares(torch.autograd.Function):
    """½ Σ_{j≠y} c_j²; backwards all is handed over to the targets' node."""

    @staticmethod
    def forward(ctx: Any, cos_y_N: Tensor, negatives: ChunkedSquares) -> Tensor:
        """N."""
        one_N = torch.ones_like(cos_y_N)
        sums = negatives.sums(one_N, None, wants_map=False)
        ctx.save_for_backward(sums.peak_N, one_N, sums.pull_ND, *sums.peaks, *sums.pushes)
        ctx.negatives = negatives
        return (0.5 * sums.total_N).to(cos_y_N.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, alpha_N: Tensor) -> tuple[Tensor, None]:
        """Nothing at cos_y: it is an input so that this runs first."""
        peak_N, one_N, pull_ND, *rest = ctx.saved_tensors
        sums = Sums(peak_N, one_N, None, pull_ND, rest[: len(rest) // 2], rest[len(rest) // 2 :])
        ctx.negatives.handed = Handed(alpha_N, one_N, sums, None)
        return torch.zeros_like(alpha_N), None
