"""Margin and scale providers: where the margins of a sample and the scale of a batch come from.

Shapes: N batch, C classes. What a provider learns or tracks is a parameter or buffer, and moves in training only,
before it is used; running averages are those of the global batch under data parallelism.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from search_space import functional as fn
from search_space import parts
from search_space.distributed import gathered
from search_space.maps import Batch, Margins, npc_threshold


def random_margins(part: parts.RandomMargin, batch: Batch) -> Tensor:
    """One margin a sample from N(mean, std); for `plus` the highest target cosine gets the smallest."""
    cos_N, generator = batch.cos_y_N.detach(), batch.generator
    if not batch.training:
        return torch.full_like(cos_N, part.mean)
    device = cos_N.device if generator is None else generator.device
    noise_N = torch.randn(len(cos_N), generator=generator, device=device).to(cos_N)
    margin_N = part.mean + part.std * noise_N
    if not part.plus:
        return margin_N
    by_cosine_N = cos_N.argsort(descending=True)
    return torch.empty_like(margin_N).scatter(0, by_cosine_N, margin_N.sort().values)


def magface_margins(part: parts.MagFaceMargin, norm_N: Tensor) -> Tensor:
    """m linear in the clamped norm, with gradient."""
    slope = (part.upper_rad - part.lower_rad) / (part.upper_norm - part.lower_norm)
    return part.lower_rad + slope * (norm_N.clamp(part.lower_norm, part.upper_norm) - part.lower_norm)


def hard_negative_margins(part: parts.HardNegativeMargin, negative: parts.NPCNegative, batch: Batch) -> Tensor:
    """m0 + m1·(mean cosine of the hard negatives)."""
    total_N, count_N = batch.negatives.above(npc_threshold(negative, batch))
    return part.m0_rad + part.m1_rad * total_N / count_N.clamp_min(1)


class AdaFaceMargins(nn.Module):
    """AdaFace: running mean and deviation of the norms are buffers."""

    norm_mean: Tensor
    norm_std: Tensor

    def __init__(self, part: parts.AdaFaceMargin) -> None:
        super().__init__()
        self.part = part
        self.register_buffer("norm_mean", torch.tensor(20.0))
        self.register_buffer("norm_std", torch.tensor(100.0))

    def forward(self, batch: Batch) -> Margins:
        """m2 = −m·k, m3 = m + m·k."""
        m, h, norm_N = self.part.m, self.part.h, batch.norm_N.detach().clamp(1e-3, 100)
        if batch.training:
            self._update(gathered(norm_N))
        k_N = ((norm_N - self.norm_mean) / (self.norm_std + 1e-3) * h).clamp(-1, 1)
        return Margins(m2_rad=-m * k_N, m3=m + m * k_N)

    def _update(self, norm_N: Tensor) -> None:
        if len(norm_N) > 1:
            rate = self.part.rate
            fn.move(self.norm_mean, rate * norm_N.mean() + (1 - rate) * self.norm_mean)
            fn.move(self.norm_std, rate * norm_N.std() + (1 - rate) * self.norm_std)


class LearnedMargins(nn.Module):
    """AdaM: one learned margin a class, brought back to [0, 1] before each use; in training for good."""

    def __init__(self, part: parts.LearnedMargin, num_classes: int) -> None:
        super().__init__()
        self.margin_C = nn.Parameter(torch.full((num_classes,), part.initial))

    def forward(self, batch: Batch) -> Margins:
        """m3 of each sample's class."""
        if batch.training:
            with torch.no_grad():
                self.margin_C.clamp_(0, 1)
        return Margins(m3=self.projected_C()[batch.class_N])

    def projected_C(self) -> Tensor:
        """The margins, in [0, 1]."""
        return self.margin_C.clone().clamp(0, 1)  # the clone: a later forward may bring the margins back in place


class ClassSizeMargins(nn.Module):
    """Margins a·n_c^−power + b, made from the class sizes, not kept in `state_dict`."""

    margin_C: Tensor

    def __init__(self, part: parts.ClassSizeMargin, counts: Sequence[int]) -> None:
        super().__init__()
        counts_C = torch.as_tensor(counts, dtype=torch.float32)
        self.register_buffer("margin_C", part.a * counts_C**-part.power + part.b, persistent=False)

    def forward(self, batch: Batch) -> Margins:
        """m2 of each sample's class."""
        return Margins(m2_rad=self.margin_C[batch.class_N])


def margins_of(margin: parts.Margin, negative: parts.NegativeMap, batch: Batch) -> Margins:
    """The margins of a provider without state."""
    if isinstance(margin, parts.ConstantMargin):
        return Margins(margin.m1, margin.m2_rad, margin.m3)
    if isinstance(margin, parts.RandomMargin):
        drawn_N = random_margins(margin, batch)
        return Margins(m2_rad=drawn_N) if margin.on == "m2_rad" else Margins(m3=drawn_N)
    if isinstance(margin, parts.MagFaceMargin):
        return Margins(m2_rad=magface_margins(margin, batch.norm_N))
    if isinstance(margin, parts.HardNegativeMargin) and isinstance(negative, parts.NPCNegative):
        return Margins(m2_rad=hard_negative_margins(margin, negative, batch))
    return Margins()


def margin_provider(
    margin: parts.Margin, negative: parts.NegativeMap, *, num_classes: int, class_counts: Sequence[int] | None
) -> Callable[[Batch], Margins]:
    """The function batch → margins; a module where it learns, tracks or holds one value a class.

    Raises ValueError when class sizes are needed and `class_counts` has not one positive number a class.
    """
    if isinstance(margin, parts.AdaFaceMargin):
        return AdaFaceMargins(margin)
    if isinstance(margin, parts.LearnedMargin):
        return LearnedMargins(margin, num_classes)
    if isinstance(margin, parts.ClassSizeMargin):
        if class_counts is None or len(class_counts) != num_classes or min(class_counts) < 1:
            got = "none" if class_counts is None else f"{len(class_counts)}, the least {min(class_counts, default=0)}"
            raise ValueError(
                f"margin 'class_size' needs class_counts, a positive number of images for each of the {num_classes} "
                f"classes, but got {got}"
            )
        return ClassSizeMargins(margin, class_counts)

    return partial(margins_of, margin, negative)


def adacos_fixed_scale(num_classes: int) -> float:
    """AdaCos's s = √2·log(C − 1). Raises ValueError for fewer than 3 classes, where it is 0."""
    if num_classes < 3:
        raise ValueError(f"AdaCos needs num_classes >= 3 (its scale is 0 below), but got num_classes={num_classes}")
    return math.sqrt(2.0) * math.log(num_classes - 1)


class DynamicAdaCos(nn.Module):
    """AdaCos's dynamic scale (Zhang et al., CVPR 2019, Eqs. 14-16), a buffer.

    In training, before the loss: s ← log B_avg / cos(min(π/4, θ_med)), B_avg the batch mean of Σ_{j≠y} exp(s·cos_j)
    at the old s, θ_med the lower median of the target angles. Where the class weights are a sample of all classes, the
    sum over negatives is scaled up to all of them.
    """

    value: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.register_buffer("value", torch.tensor(adacos_fixed_scale(num_classes)))

    def forward(self, batch: Batch) -> Tensor:
        """The scale of this batch."""
        if batch.training:
            self._update(batch)
        return self.value.clone()

    @torch.no_grad()
    def _update(self, batch: Batch) -> None:
        lse_neg_N = gathered(batch.negatives.log_sum_exp(self.value))
        if not len(lse_neg_N):
            return
        median_rad = fn.angle(gathered(batch.cos_y_N)).median()
        sampled = batch.negatives.classes() - 1
        log_b_avg = lse_neg_N.logsumexp(0) - math.log(len(lse_neg_N)) + math.log((self.num_classes - 1) / sampled)
        fn.move(self.value, log_b_avg / median_rad.clamp_max(math.pi / 4).cos())

    def diagnose(self) -> str | None:
        """The recursion diverges when negative cosines vary too much while θ_med ≥ π/4 (FORMULAS §4)."""
        scale = float(self.value)
        if math.isfinite(scale) and 0 < scale <= parts.MAX_SCALE:
            return None
        return f"AdaCos's dynamic scale diverged: it is {scale:g}, and must lie in (0, {parts.MAX_SCALE:g}]"


def fixed_scale(value: float, batch: Batch) -> float:  # noqa: ARG001 (as every scale provider)
    """One number for all batches."""
    return value


def feature_norm(batch: Batch) -> Tensor:
    """‖x‖ of each sample."""
    return batch.norm_N


def scale_provider(scale: parts.Scale, *, num_classes: int) -> Callable[[Batch], float | Tensor]:
    """The function batch → scale: one number, or one a sample; 1 where there is none."""
    if isinstance(scale, parts.AdaCosScale) and scale.variant == "dynamic":
        return DynamicAdaCos(num_classes)
    if isinstance(scale, parts.AdaCosScale):
        return partial(fixed_scale, adacos_fixed_scale(num_classes))
    if isinstance(scale, parts.ConstantScale):
        return partial(fixed_scale, scale.value)
    return partial(fixed_scale, 1.0) if isinstance(scale, parts.NoScale) else feature_norm
