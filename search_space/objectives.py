"""Objectives: from logits, or from bare cosines, to one loss a sample.

Shapes: N batch, C classes. T is the target's logit; the target's column of the negatives has no meaning.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from search_space import functional as fn
from search_space import parts
from search_space.maps import Batch, DenseNegatives, free_lines, piece_of
from search_space.spec import LossSpec

TAU_FLOOR = 1e-8
"""Below this τ of `FreePiecewiseTau` is held, where it gives no gradient."""


class Logits(NamedTuple):
    """ℓ_y = T and ℓ_j."""

    target_N: Tensor
    negative_NC: Tensor
    label_N: Tensor

    def gap(self) -> Tensor:
        """T − lse_neg, the log odds of p_m.

        Both are taken from the largest negative: at s = 512 the rounding of lse_neg itself is a gradient off by 3e-5.
        """
        peak_N = self.negative_NC.detach().scatter(1, self.label_N[:, None], -torch.inf).amax(1)
        lse_neg_N = fn.log_sum_exp_negatives(self.negative_NC - peak_N[:, None], self.label_N)
        return (self.target_N - peak_N) - lse_neg_N


LogitsOf = Callable[[DenseNegatives, Batch, float | Tensor], Logits]
"""Makes the logits of a matrix of cosines, its batch and a scale."""


def log_tau(slopes: tuple[float, ...], gap_N: Tensor) -> Tensor:
    """log τ(p), τ continuous with τ(0) = 0.

    In the first interval log slope + log p, exact for any small p; near p = 1 by 1 − p, exact for any small one.
    """
    pieces, at_one = len(slopes), sum(slopes) / len(slopes)
    p_N = gap_N.sigmoid()
    slope_M = p_N.new_tensor(slopes)
    start_M = (slope_M.cumsum(0) - slope_M) / pieces
    index_N = piece_of(p_N, pieces)
    tau_N = start_M[index_N] + slope_M[index_N] * (p_N * pieces - index_N) / pieces
    first_N = math.log(slopes[0]) - fn.softplus(-gap_N)
    missing_N = slopes[-1] / at_one * (-gap_N).sigmoid()
    last_N = math.log(at_one) + (-missing_N.clamp_max(0.5)).log1p()
    near_one_N = (index_N == pieces - 1) & (missing_N < 0.5)
    between_N = torch.where(near_one_N, last_N, tau_N.clamp_min(torch.finfo(tau_N.dtype).tiny).log())
    return torch.where(index_N == 0, first_N, between_N)


def softmax_objective(objective: parts.Objective, gap_N: Tensor) -> Tensor:
    """−log τ(p_m) for every τ, p_m = σ(gap); 1 − p_m = σ(−gap), never by subtraction."""
    if isinstance(objective, parts.PiecewiseTau):
        return -log_tau(objective.slopes, gap_N)
    if isinstance(objective, parts.FreePiecewiseTau):
        p_N = gap_N.sigmoid()
        tau_N = free_lines(p_N, piece_of(p_N, len(objective.slopes)), objective.slopes, objective.offsets)
        return -tau_N.clamp_min(TAU_FLOOR).log()
    nll_N = fn.softplus(-gap_N)
    if isinstance(objective, parts.Poly1):
        return nll_N + objective.epsilon * (-gap_N).sigmoid()
    if isinstance(objective, parts.Focal):
        return (-objective.gamma * fn.softplus(gap_N)).exp() * nll_N
    return nll_N


def squared_error(part: parts.SquaredError, of: DenseNegatives) -> Tensor:
    """½ Σ_j (c_j − 1[j = y])²; `update` differentiates Σ_j sg[c_j − 1[j = y]]·c_j in its place."""
    if part.form == "loss":
        return fn.squared_error(of.cos_NC, of.label_N)
    held_NC, label_N1 = of.cos_NC.detach(), of.label_N[:, None]
    push_NC = held_NC.scatter(1, label_N1, held_NC.gather(1, label_N1) - 1.0)
    return fn.with_gradient(0.5 * push_NC.square().sum(1), (push_NC * of.cos_NC).sum(1))


def sface(part: parts.SFace, of: DenseNegatives, cos_y_N: Tensor, scale: float | Tensor) -> Tensor:
    """−sg[r_y]·s·c_y + Σ_{j≠y} sg[r_j]·s·c_j."""
    cos_NC = of.cos_NC
    pull_N = (part.k * (fn.angle(cos_y_N.detach()) - part.a_rad)).sigmoid()
    push_NC = (-part.k * (fn.angle(cos_NC.detach()) - part.b_rad)).sigmoid()
    return scale * (fn.sum_negatives(push_NC * cos_NC, of.label_N) - pull_N * cos_y_N)


class SphereFace2(nn.Module):
    """SphereFace2 with its learned bias, started so that positives and negatives weigh alike at 90°."""

    def __init__(self, part: parts.SphereFace2, gradient: parts.GradientMode, scale: float, num_classes: int) -> None:
        super().__init__()
        self.part, self.gradient = part, gradient
        self.bias = nn.Parameter(torch.tensor(self._initial_bias(scale, num_classes)))

    def _initial_bias(self, r: float, num_classes: int) -> float:
        part = self.part
        balance = part.alpha / ((1 - part.alpha) * (num_classes - 1))
        right_angle_a = r * (2 * 0.5**part.t - 1)
        if part.variant == "C":
            a_y, a_i = right_angle_a - r * part.m, right_angle_a + r * part.m
        else:
            phi = math.pi / 2 + part.m if part.variant == "A" else part.m * math.pi / 2
            a_y, a_i = r * float(self._g(torch.tensor(min(phi, math.pi)).double().cos())), right_angle_a
        # ½(log z − a_y − a_i) − asinh(skew·e^half), which neither cancels for few classes nor overflows at large scales
        skew, half = (1 - balance) / (2 * math.sqrt(balance)), (a_i - a_y) / 2
        size = half + math.log(abs(skew) + math.hypot(skew, math.exp(-half))) if skew else 0.0
        bias: float = (math.log(balance) - a_y - a_i) / 2 - math.copysign(size, skew)
        return bias

    def _g(self, cos: Tensor) -> Tensor:
        return 2 * ((cos + 1) / 2).clamp_min(0) ** self.part.t - 1

    def forward(self, of: DenseNegatives, batch: Batch, scale: float | Tensor, logits_of: LogitsOf) -> Tensor:  # noqa: ARG002
        """α·softplus(−z_y) + (1 − α)·Σ_{j≠y} softplus(z_j)."""
        part, cos_NC, cos_y_N = self.part, of.cos_NC, batch.cos_y_N
        if part.variant == "C":
            target_N, negative_NC = self._g(cos_y_N) - part.m, self._g(cos_NC) + part.m
        else:
            theta_N = fn.angle(cos_y_N)
            phi_N = theta_N + part.m if part.variant == "A" else part.m * theta_N
            target_N, negative_NC = self._g(phi_N.clamp_max(math.pi).cos()), self._g(cos_NC)
        z_y_N = scale * fn.straight_through(cos_y_N, target_N, self.gradient) + self.bias
        z_NC = scale * fn.straight_through(cos_NC, negative_NC, self.gradient) + self.bias
        push_N = fn.sum_negatives(fn.softplus(z_NC), of.label_N)
        return part.alpha * fn.softplus(-z_y_N) + (1 - part.alpha) * push_N


class UniFace(nn.Module):
    """UniFace's per-class binary cross-entropy with one learned threshold b for all classes."""

    def __init__(self, classes_seen: int) -> None:
        super().__init__()
        self.threshold = nn.Parameter(torch.tensor(math.log(10.0 * classes_seen)))

    def forward(self, of: DenseNegatives, batch: Batch, scale: float | Tensor, logits_of: LogitsOf) -> Tensor:
        """softplus(−(ℓ_y − b)) + Σ_{j≠y} softplus(ℓ_j − b)."""
        logits = logits_of(of, batch, scale)
        push_N = fn.sum_negatives(fn.softplus(logits.negative_NC - self.threshold), logits.label_N)
        return fn.softplus(self.threshold - logits.target_N) + push_N


def objective(
    part: parts.Objective, of: DenseNegatives, batch: Batch, scale: float | Tensor, logits_of: LogitsOf
) -> Tensor:
    """The loss of an objective without state."""
    if isinstance(part, parts.SquaredError):
        return squared_error(part, of)
    if isinstance(part, parts.SFace):
        return sface(part, of, batch.cos_y_N, scale)
    return softmax_objective(part, logits_of(of, batch, scale).gap())


def make_objective(
    spec: LossSpec, *, num_classes: int, classes_seen: int
) -> Callable[[DenseNegatives, Batch, float | Tensor, LogitsOf], Tensor]:
    """The function (cosines, batch, scale, how to make logits) → loss; a module where it learns a bias."""
    part = spec.objective
    if isinstance(part, parts.SphereFace2) and isinstance(spec.scale, parts.ConstantScale):
        return SphereFace2(part, spec.gradient, spec.scale.value, num_classes)
    return UniFace(classes_seen) if isinstance(part, parts.UniFace) else partial(objective, part)
