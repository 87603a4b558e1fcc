"""Target and negative maps: what a loss makes of a cosine before it is scaled.

Shapes: N batch, C classes. Every map is in units of cosine: the logit is s times it.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from search_space import functional as fn
from search_space import parts
from search_space.distributed import gathered
from search_space.expressions import Expression, evaluate, uses


class Negatives(Protocol):
    """What the parts of a loss may ask about all negatives of a batch; every answer is without gradient."""

    def classes(self) -> int:
        """How many classes there are, the target's among them."""

    def log_sum_exp(self, scale: float | Tensor) -> Tensor:
        """lse_neg = log Σ_{j≠y} exp(s·cos_j), N."""

    def above(self, threshold_N: Tensor) -> tuple[Tensor, Tensor]:
        """Sum and number of the cosines above the threshold, each N."""


class DenseNegatives(NamedTuple):
    """`Negatives` of a matrix of cosines."""

    cos_NC: Tensor
    label_N: Tensor

    def classes(self) -> int:
        """The number of columns."""
        return self.cos_NC.shape[1]

    def log_sum_exp(self, scale: float | Tensor) -> Tensor:
        """In one pass over the matrix."""
        return fn.log_sum_exp_negatives(column(scale) * self.cos_NC.detach(), self.label_N).detach()

    def above(self, threshold_N: Tensor) -> tuple[Tensor, Tensor]:
        """In one pass over the matrix."""
        cos_NC = self.cos_NC.detach()
        above_NC = (cos_NC > threshold_N[:, None]).scatter(1, self.label_N[:, None], value=False)
        return torch.where(above_NC, cos_NC, 0.0).sum(1), above_NC.sum(1)


class Batch(NamedTuple):
    """What the parts of a loss may look at: the targets, and what `negatives` tells of the others.

    `class_N` names the targets' classes. `norm_N` holds ‖x‖.
    """

    negatives: Negatives
    cos_y_N: Tensor
    class_N: Tensor
    norm_N: Tensor
    training: bool
    generator: torch.Generator | None


class Margins(NamedTuple):
    """cos(m1·θ + m2) − m3, each for all samples or for each of them."""

    m1: float = 1.0
    m2_rad: float | Tensor = 0.0
    m3: float | Tensor = 0.0


def unguarded(cos_N: Tensor, margins: Margins) -> Tensor:
    """cos(m1·θ + m2) − m3, past π too."""
    if margins.m1 == 1 and not isinstance(margins.m2_rad, Tensor) and margins.m2_rad == 0:
        return cos_N - margins.m3
    return (margins.m1 * fn.angle(cos_N) + margins.m2_rad).cos() - margins.m3


def combined(part: parts.CombinedTarget, cos_N: Tensor, margins: Margins) -> Tensor:
    """cos φ − m3, φ = m1·θ + m2, past φ = π as the guard says."""
    mapped_N = _guarded(part, cos_N, margins)
    return torch.where(cos_N > 0, mapped_N, cos_N) if part.only_positive else mapped_N


def _guarded(part: parts.CombinedTarget, cos_N: Tensor, margins: Margins) -> Tensor:
    m1, m2_rad, m3 = margins
    without_angle = m1 == 1 and not isinstance(m2_rad, Tensor) and m2_rad == 0
    if part.guard == "none" or (without_angle and not part.clip_rad):
        return unguarded(cos_N, margins)
    phi_N = m1 * fn.angle(cos_N) + m2_rad
    if part.guard == "clip":
        return phi_N.clamp(part.clip_rad, math.pi - part.clip_rad).cos() - m3
    if part.guard == "linear":
        drop = m2_rad * (m2_rad.sin() if isinstance(m2_rad, Tensor) else math.sin(m2_rad))
        return torch.where(phi_N > torch.pi, cos_N - drop, phi_N.cos()) - m3
    turns_N = (phi_N.detach() / torch.pi).floor()
    return (1.0 - 2.0 * (turns_N % 2)) * phi_N.cos() - 2.0 * turns_N - m3


def li_arc(cos: Tensor, m2_rad: float | Tensor = 0.0) -> Tensor:
    """1 − 2(θ + m)/π."""
    return 1.0 - (fn.angle(cos) + m2_rad) * (2.0 / math.pi)


def x2(part: parts.X2Target, cos_N: Tensor) -> Tensor:
    """a(θ − h)² + k."""
    return part.a * (fn.angle(cos_N) - part.h_rad).square() + part.k


def piece_of(x_N: Tensor, pieces: int) -> Tensor:
    """Which of `pieces` equal intervals of [0, 1] each value lies in: an inner edge in the upper, NaN in the first."""
    return (x_N.detach() * pieces).floor().clamp(0, pieces - 1).nan_to_num(0.0).long()


def free_lines(x_N: Tensor, index_N: Tensor, slopes: tuple[float, ...], offsets: tuple[float, ...]) -> Tensor:
    """slope_k·x + offset_k."""
    slopes_M, offsets_M = x_N.new_tensor(slopes), x_N.new_tensor(offsets)
    return slopes_M[index_N] * x_N + offsets_M[index_N]


def piecewise(knots: tuple[float, ...], cos_N: Tensor) -> Tensor:
    """Straight lines through equally spaced knots over [−1, 1]."""
    knots_M, pieces = cos_N.new_tensor(knots), len(knots) - 1
    index_N = piece_of((cos_N + 1) / 2, pieces)
    low_N, high_N = knots_M[index_N], knots_M[index_N + 1]
    return low_N + (high_N - low_N) * ((cos_N + 1) * (pieces / 2) - index_N)


def modulating_bins(part: parts.ModulatingBinsTarget, batch: Batch, scale: float | Tensor) -> Tensor:
    """c − u_k/s, k the bin of sg[p], p the plain softmax probability."""
    cos_N = batch.cos_y_N
    p_N = (scale * cos_N.detach() - batch.negatives.log_sum_exp(scale)).sigmoid()
    return cos_N - cos_N.new_tensor(part.u)[piece_of(p_N, parts.BINS)] / nonzero(scale)


def circle_target(part: parts.CircleTarget, cos_N: Tensor) -> Tensor:
    """sg[1 + m − c]₊·(c − (1 − m))."""
    return (1 + part.m - cos_N.detach()).clamp_min(0) * (cos_N - (1 - part.m))


def symbolic(expression: Expression, cos: Tensor, **given: Tensor) -> Tensor:
    """The expression at c = cos, θ its angle, and what else is given."""
    angle = {"theta": fn.angle(cos)} if uses(expression, "theta") else {}
    return evaluate(expression, {"c": cos, **angle, **given})


def target_map(target: parts.TargetMap, batch: Batch, margins: Margins, scale: float | Tensor) -> Tensor:
    """f(cos_y); the scale matters to modulating factors."""
    cos_N = batch.cos_y_N
    if isinstance(target, parts.CombinedTarget):
        return combined(target, cos_N, margins)
    if isinstance(target, parts.ModulatingTarget):
        return cos_N - target.u / nonzero(scale)
    if isinstance(target, parts.ModulatingBinsTarget):
        return modulating_bins(target, batch, scale)
    if isinstance(target, parts.LiArcTarget):
        return li_arc(cos_N, margins.m2_rad)
    if isinstance(target, parts.X2Target):
        return x2(target, cos_N)
    if isinstance(target, parts.PiecewiseTarget):
        return piecewise(target.knots, cos_N)
    if isinstance(target, parts.FreePiecewiseTarget):
        index_N = piece_of((cos_N + 1) / 2, len(target.slopes))
        return free_lines(cos_N, index_N, target.slopes, target.offsets)
    if isinstance(target, parts.CircleTarget):
        return circle_target(target, cos_N)
    if isinstance(target, parts.SymbolicTarget):
        return symbolic(target.f, cos_N)
    return cos_N


def nonzero(scale: float | Tensor) -> float | Tensor:
    """A scale to divide by: that of an embedding of zeros, which has no direction either, counts as tiny."""
    return scale.clamp_min(1e-6) if isinstance(scale, Tensor) else scale


def column(scale: float | Tensor) -> float | Tensor:
    """A scale that multiplies N×C: a scale for each sample becomes a column."""
    return scale[:, None] if isinstance(scale, Tensor) and scale.ndim == 1 else scale


NegativeMap = Callable[[Tensor], Tensor]
"""n: any columns of an N×C matrix of cosines to as many, element by element; a target's has no meaning there.

It holds nothing that has a gradient: the target only says how hard a negative is, as in all published maps.
"""


def mv(part: parts.MVNegative, f_N: Tensor, cos_NC: Tensor) -> Tensor:
    """c_j > f: (1 + t)c_j + t, or c_j + t."""
    harder_NC = (1 + part.t) * cos_NC + part.t if part.variant == "adaptive" else cos_NC + part.t
    return torch.where(cos_NC.detach() > f_N[:, None], harder_NC, cos_NC)


def npc_threshold(part: parts.NPCNegative, batch: Batch) -> Tensor:
    """cos(θ_y + margin), above which a negative is hard."""
    return unguarded(batch.cos_y_N.detach(), Margins(m2_rad=part.margin_rad))


def npc(part: parts.NPCNegative, threshold_N: Tensor, cos_NC: Tensor) -> Tensor:
    """c_j above the threshold: t·c_j + a."""
    return torch.where(cos_NC.detach() > threshold_N[:, None], part.t * cos_NC + part.a, cos_NC)


def arcneg(part: parts.ArcNegNegative, f_N: Tensor, cos_NC: Tensor) -> Tensor:
    """t_j·c_j + t_j − 1, t_j = sg[α·exp(−(c_j − f)²/σ)]."""
    t_NC = part.alpha * (-(cos_NC.detach() - f_N[:, None]).square() / part.sigma).exp()
    return t_NC * cos_NC + t_NC - 1


def sphereface_r(part: parts.SphereFaceRNegative, cos_NC: Tensor) -> Tensor:
    """cos(θ_j/m)."""
    return (fn.angle(cos_NC) / part.m).cos()


def circle_negative(part: parts.CircleNegative, cos_NC: Tensor) -> Tensor:
    """sg[c_j + m]₊·(c_j − m)."""
    return (cos_NC.detach() + part.m).clamp_min(0) * (cos_NC - part.m)


def curricular(threshold_N: Tensor, t: Tensor, cos_NC: Tensor) -> Tensor:
    """c_j above the threshold: c_j(t + c_j)."""
    return torch.where(cos_NC.detach() > threshold_N[:, None], cos_NC * (t + cos_NC), cos_NC)


def unchanged(cos_NC: Tensor) -> Tensor:
    """c_j."""
    return cos_NC


class Curricular(nn.Module):
    """c_j > cos(θ_y + m): c_j(t + c_j), the running t a buffer."""

    t: Tensor

    def __init__(self, part: parts.CurricularNegative) -> None:
        super().__init__()
        self.rate = part.rate
        self.register_buffer("t", torch.zeros(()))

    def forward(self, batch: Batch, f_N: Tensor, margins: Margins) -> NegativeMap:  # noqa: ARG002 (as every negative map)
        """The map of this batch, after t has moved if it trains."""
        if batch.training:
            mean = gathered(batch.cos_y_N.detach()).mean()
            fn.move(self.t, self.rate * mean + (1 - self.rate) * self.t)
        return partial(curricular, unguarded(batch.cos_y_N.detach(), margins).detach(), self.t.clone())


def negative_map(negative: parts.NegativeMap, batch: Batch, f_N: Tensor, margins: Margins) -> NegativeMap:  # noqa: ARG001
    """n of a negative map without state. `f_N` is f(cos_y)."""
    if isinstance(negative, parts.MVNegative):
        return partial(mv, negative, f_N.detach())
    if isinstance(negative, parts.NPCNegative):
        return partial(npc, negative, npc_threshold(negative, batch))
    if isinstance(negative, parts.ArcNegNegative):
        return partial(arcneg, negative, f_N.detach())
    if isinstance(negative, parts.SphereFaceRNegative):
        return partial(sphereface_r, negative)
    if isinstance(negative, parts.LiArcNegative):
        return li_arc
    if isinstance(negative, parts.CircleNegative):
        return partial(circle_negative, negative)
    if isinstance(negative, parts.SymbolicNegative):
        return partial(symbolic, negative.n, c_y=batch.cos_y_N.detach()[:, None])
    return unchanged


def make_negative_map(negative: parts.NegativeMap) -> Callable[[Batch, Tensor, Margins], NegativeMap]:
    """The function (batch, f(cos_y), margins) → n; a module where it tracks something."""
    return Curricular(negative) if isinstance(negative, parts.CurricularNegative) else partial(negative_map, negative)
