"""`build` turns a `LossSpec` into a module; `target_logit` draws one.

Every target-only margin loss is  softplus(lse_neg − T(cos_y)):  lse_neg = log Σ_{j≠y} exp(s·cos_j),  T = s·f(cos_y).
"""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from search_space import functional as fn
from search_space.spec import (
    MAX_SCALE,
    AdaCosScale,
    CombinedTarget,
    ConstantMargin,
    ConstantScale,
    LossSpec,
    ModulatingTarget,
    SquaredError,
)


class Loss(nn.Module, ABC):
    """A loss over raw embeddings and raw class weights; one float32 value a sample (float64 for float64 input).

    What it learns or tracks (AdaCos's scale) is in `state_dict`.
    """

    def __init__(self, spec: LossSpec, num_classes: int) -> None:
        super().__init__()
        self.spec = spec
        self.num_classes = num_classes

    def forward(self, x_ND: Tensor, w_CD: Tensor, label_N: Tensor) -> Tensor:
        """Loss of each sample. `x_ND` and `w_CD` are normalised here; `label_N` int64 in [0, C).

        Raises ValueError when `w_CD` has not one row a class.
        """
        if len(w_CD) != self.num_classes:
            raise ValueError(
                f"the loss was built for num_classes={self.num_classes}, but got {len(w_CD)} class weights"
            )
        return self.from_cosines(fn.cosines(x_ND, w_CD), label_N)

    @abstractmethod
    def from_cosines(self, cos_NC: Tensor, label_N: Tensor) -> Tensor:
        """Loss of each sample, given its cosines."""

    def diagnose(self) -> str | None:
        """A sentence when the loss's own state has diverged, else None."""
        return None


class SquaredErrorLoss(Loss):
    """P2SGrad as a sum of squares."""

    def from_cosines(self, cos_NC: Tensor, label_N: Tensor) -> Tensor:
        """½ Σ_j (cos_j − 1[j = y])²."""
        return self.spec.weight * fn.squared_error(cos_NC, label_N)


class MarginSoftmaxLoss(Loss):
    """softplus(lse_neg − T(cos_y)) under a fixed scale."""

    def __init__(self, spec: LossSpec, num_classes: int) -> None:
        super().__init__(spec, num_classes)
        self.fixed_scale = initial_scale(spec, num_classes)

    def from_cosines(self, cos_NC: Tensor, label_N: Tensor) -> Tensor:
        """−log softmax(ℓ)_y with ℓ_y = T(cos_y), ℓ_j = s·cos_j."""
        scale = self.scale_for(cos_NC, label_N)
        cos_y_N = cos_NC.gather(1, label_N[:, None]).squeeze(1)
        lse_neg_N = fn.log_sum_exp_negatives(scale * cos_NC, label_N)
        return self.spec.weight * fn.target_only_loss(lse_neg_N, scaled_target(self.spec, cos_y_N, scale))

    def scale_for(self, cos_NC: Tensor, label_N: Tensor) -> float | Tensor:  # noqa: ARG002 (dynamic scales use both)
        """The scale of this batch."""
        return self.fixed_scale


class DynamicAdaCosLoss(MarginSoftmaxLoss):
    """Any target map under AdaCos's dynamic scale (Zhang et al., CVPR 2019, Eqs. 14-16).

    In training, before the loss: s ← log B_avg / cos(min(π/4, θ_med)), B_avg the batch mean of Σ_{j≠y} exp(s·cos_j)
    at the old s, θ_med the lower median of the target angles. The scale is a buffer, frozen in eval.
    """

    scale: Tensor

    def __init__(self, spec: LossSpec, num_classes: int) -> None:
        super().__init__(spec, num_classes)
        self.register_buffer("scale", torch.tensor(self.fixed_scale, dtype=torch.float32))

    def scale_for(self, cos_NC: Tensor, label_N: Tensor) -> Tensor:
        """The scale of this batch, updated first when training."""
        if self.training:
            self._update(cos_NC.detach(), label_N)
        return self.scale.clone()

    @torch.no_grad()
    def _update(self, cos_NC: Tensor, label_N: Tensor) -> None:
        lse_neg_N = fn.log_sum_exp_negatives(self.scale * cos_NC, label_N)
        log_b_avg = lse_neg_N.logsumexp(0) - math.log(len(label_N))
        median_rad = fn.angle(cos_NC.gather(1, label_N[:, None])).median()
        self.scale.copy_(log_b_avg / median_rad.clamp_max(math.pi / 4).cos())

    def diagnose(self) -> str | None:
        """The recursion diverges when negative cosines vary too much while θ_med ≥ π/4 (FORMULAS §4)."""
        scale = float(self.scale)
        if math.isfinite(scale) and 0 < scale <= MAX_SCALE:
            return None
        return f"AdaCos's dynamic scale diverged: it is {scale:g}, and must lie in (0, {MAX_SCALE:g}]"


def initial_scale(spec: LossSpec, num_classes: int) -> float:
    """The constant scale, or AdaCos's s = √2·log(C − 1), with which the dynamic variant starts."""
    if isinstance(spec.scale, ConstantScale):
        return spec.scale.value
    if not isinstance(spec.scale, AdaCosScale):
        raise ValueError(f"objective '{spec.objective.kind}' has no scale and so no logits")
    if num_classes < 3:
        raise ValueError(f"AdaCos needs num_classes >= 3 (its scale is 0 below), but got num_classes={num_classes}")
    return math.sqrt(2.0) * math.log(num_classes - 1)


def scaled_target(spec: LossSpec, cos_N: Tensor, scale: float | Tensor) -> Tensor:
    """T(cos_y), the logit of the target."""
    if isinstance(spec.target, ModulatingTarget):
        return fn.straight_through(scale * cos_N, scale * cos_N - spec.target.u, spec.gradient)
    if isinstance(spec.target, CombinedTarget) and isinstance(spec.margin, ConstantMargin):
        return scale * fn.target_map(cos_N, spec.target, spec.margin, spec.gradient)
    return scale * cos_N


def target_logit(spec: LossSpec, cos_N: Tensor, *, num_classes: int) -> Tensor:
    """T(cos_y) of each target cosine, differentiable as the loss is; AdaCos at its initial scale.

    Raises ValueError for an objective without logits (P2SGrad).
    """
    return scaled_target(spec, cos_N, initial_scale(spec, num_classes))


def build(spec: LossSpec, *, num_classes: int) -> Loss:
    """The module that computes `spec` over `num_classes` classes.

    Raises ValueError for fewer than 2 classes, or fewer than 3 under AdaCos.
    """
    if num_classes < 2:
        raise ValueError(f"num_classes must be at least 2, but got num_classes={num_classes}")
    if isinstance(spec.objective, SquaredError):
        return SquaredErrorLoss(spec, num_classes)
    if isinstance(spec.scale, AdaCosScale) and spec.scale.variant == "dynamic":
        return DynamicAdaCosLoss(spec, num_classes)
    return MarginSoftmaxLoss(spec, num_classes)
