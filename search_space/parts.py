"""The parts that a margin-softmax loss is composed of, as values.

The logits of a sample with target y are  ℓ_y = s·f(cos_y)  and  ℓ_j = s·n(cos_j, cos_y)  for j ≠ y. A target map is f,
a negative map is n; margins and the scale s come from providers; an objective turns logits (or bare cosines) into a
loss; a regularizer is added to it. c stands for a cosine, θ for its angle in radians, sg[·] for stop-gradient.
"""

import math
from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import Field, GetPydanticSchema, model_validator
from pydantic_core.core_schema import no_info_plain_validator_function

from search_space.expressions import NEGATIVE_VARIABLES, TARGET_VARIABLES, Expression, check
from search_space.frozen import FrozenModel, Real

MAX_SCALE = 1024.0
"""The largest scale a spec may hold; AdaCos growing beyond it counts as diverged."""

BINS = 10
"""How many equal bins of the probability the local modulating factor has."""

Angle = Annotated[Real, Field(ge=0, le=math.pi / 2)]
Modulation = Annotated[Real, Field(ge=0, le=512)]
Strength = Annotated[Real, Field(gt=0, le=10_000)]
Coefficient = Annotated[Real, Field(ge=-1000, le=1000)]
Pieces = Annotated[tuple[Coefficient, ...], Field(min_length=1, max_length=100)]


def _checked_for(variables: Sequence[str]) -> GetPydanticSchema:
    """The schema of an expression; pydantic by itself would unfold the recursive type without end."""
    return GetPydanticSchema(lambda _, __: no_info_plain_validator_function(lambda value: check(value, variables)))


class _FreeLines(FrozenModel):
    """slope_k·x + offset_k on M equal intervals, each on its own."""

    slopes: Pieces
    offsets: Pieces

    @model_validator(mode="after")
    def _lengths_agree(self) -> Self:
        if len(self.slopes) != len(self.offsets):
            raise ValueError(f"slopes and offsets must be as many, but got {len(self.slopes)} and {len(self.offsets)}")
        return self


# Target maps


class IdentityTarget(FrozenModel):
    """f(c) = c."""

    kind: Literal["identity"] = "identity"


class CombinedTarget(FrozenModel):
    """f(c) = cos φ − m3 with φ = m1·θ + m2, the margins coming from the margin provider.

    For φ > π the plain cosine would rise again as θ grows. `guard` says what happens there:
    `monotone` uses (−1)^k cos φ − 2k − m3 with k = ⌊φ/π⌋ (continuous; SphereFace v0, Liu et al. 2017, Eq. 7);
    `linear` uses c − m2·sin m2 − m3 (ArcFace's released code; needs m1 = 1); `clip` holds φ in
    [clip_rad, π − clip_rad] (SphereFace-R v1, AdaFace); `none` leaves it (detached only).
    `only_positive` leaves targets with c ≤ 0 without a margin (MagFace, NPCFace, released MV-Softmax).
    """

    kind: Literal["combined"] = "combined"
    guard: Literal["monotone", "linear", "clip", "none"] = "monotone"
    clip_rad: Annotated[Real, Field(ge=0, le=0.1)] = 0.0
    only_positive: bool = False


class LiArcTarget(FrozenModel):
    """f = 1 − 2(θ + m2)/π (Li-ArcFace, Li et al. 2019). Its published negatives are `li_arc` too."""

    kind: Literal["li_arc"] = "li_arc"


class X2Target(FrozenModel):
    """f = a·(θ − h)² + k, a ≤ 0, h in radians (X2-Softmax, Xu et al. 2024)."""

    kind: Literal["x2"] = "x2"
    a: Annotated[Real, Field(ge=-4, lt=0)] = -0.9
    h_rad: Annotated[Real, Field(ge=-math.pi, le=math.pi)] = 0.0
    k: Annotated[Real, Field(ge=-2, le=2)] = 0.65


class ModulatingTarget(FrozenModel):
    """A constant modulating factor a ≤ 0: p_m = h(a, p)·p, h = 1/(a·p + 1 − a), held as u = log(1 − a) ≥ 0.

    Wang et al. 2020, Eqs. 5-8. The target logit becomes s·c − u (identity I1: a cosine margin m = u/s); u is kept
    because a itself overflows: CosFace m=.35, s=64 is a = −5.35e9.
    """

    kind: Literal["modulating"] = "modulating"
    u: Modulation


class ModulatingBinsTarget(FrozenModel):
    """A local modulating factor: u_k in bin k of ten equal bins of sg[p], p the plain softmax probability."""

    kind: Literal["modulating_bins"] = "modulating_bins"
    u: Annotated[tuple[Modulation, ...], Field(min_length=BINS, max_length=BINS)]


class PiecewiseTarget(FrozenModel):
    """Continuous piecewise-linear f through M + 1 knots at equally spaced c from −1 to 1 (after AM-LFS)."""

    kind: Literal["piecewise"] = "piecewise"
    knots: Annotated[tuple[Coefficient, ...], Field(min_length=2, max_length=101)]


class FreePiecewiseTarget(_FreeLines):
    """f(c) = slope_k·c + offset_k on M equal intervals of c in [−1, 1] (AM-LFS, Li et al., ICCV 2019): may jump."""

    kind: Literal["piecewise_free"] = "piecewise_free"


class CircleTarget(FrozenModel):
    """f = sg[1 + m − c]₊·(c − (1 − m)); the scale is γ (Circle Loss, Sun et al., CVPR 2020, Eq. 8)."""

    kind: Literal["circle"] = "circle"
    m: Annotated[Real, Field(ge=0, le=1)] = 0.25


class SymbolicTarget(FrozenModel):
    """f as an expression of c and θ (`search_space.expressions`), found by evolution."""

    kind: Literal["symbolic"] = "symbolic"
    f: Annotated[Expression, _checked_for(TARGET_VARIABLES)]


# Negative maps


class IdentityNegative(FrozenModel):
    """n(c_j) = c_j."""

    kind: Literal["identity"] = "identity"


class MVNegative(FrozenModel):
    """Negatives above the target's f become (1 + t)c_j + t (`adaptive`) or c_j + t (`fixed`).

    MV-Softmax, Wang et al., AAAI 2020, Eqs. 8-10.
    """

    kind: Literal["mv"] = "mv"
    t: Annotated[Real, Field(ge=0, le=4)] = 0.2
    variant: Literal["adaptive", "fixed"] = "adaptive"


class CurricularNegative(FrozenModel):
    """Negatives above the unguarded target cos(θ_y + m) become c_j(t + c_j); t ← rate·mean(c_y) + (1 − rate)·t.

    CurricularFace, Huang et al., CVPR 2020, Eqs. 9-12. t starts at 0 and moves, without gradient, before it is used.
    """

    kind: Literal["curricular"] = "curricular"
    rate: Annotated[Real, Field(gt=0, le=1)] = 0.01


class NPCNegative(FrozenModel):
    """Negatives above cos(θ_y + margin_rad) become t·c_j + a (NPCFace, Zeng et al. 2020)."""

    kind: Literal["npc"] = "npc"
    margin_rad: Angle = 0.5
    t: Annotated[Real, Field(ge=1, le=4)] = 1.1
    a: Annotated[Real, Field(ge=0, le=4)] = 0.2


class ArcNegNegative(FrozenModel):
    """n = t_j·c_j + t_j − 1 with t_j = sg[α·exp(−(c_j − f)²/σ)] (ArcNegFace, Liu et al. 2019)."""

    kind: Literal["arcneg"] = "arcneg"
    alpha: Annotated[Real, Field(gt=0, le=10)] = 1.2
    sigma: Annotated[Real, Field(gt=0, le=100)] = 2.0


class SphereFaceRNegative(FrozenModel):
    """n = cos(θ_j/m) (SphereFace-R v2, Liu et al. 2022)."""

    kind: Literal["sphereface_r"] = "sphereface_r"
    m: Annotated[Real, Field(ge=1, le=4)] = 1.4


class LiArcNegative(FrozenModel):
    """n = 1 − 2θ_j/π (Li-ArcFace, Li et al. 2019)."""

    kind: Literal["li_arc"] = "li_arc"


class CircleNegative(FrozenModel):
    """n = sg[c_j + m]₊·(c_j − m); the scale is γ (Circle Loss, Sun et al., CVPR 2020, Eq. 8)."""

    kind: Literal["circle"] = "circle"
    m: Annotated[Real, Field(ge=0, le=1)] = 0.25


class SymbolicNegative(FrozenModel):
    """n as an expression of c_j, θ_j and sg[c_y], in which `c` and `theta` are the negative's own.

    The target's cosine only says how hard a negative is, as in all published maps: it gets no gradient here.
    """

    kind: Literal["symbolic"] = "symbolic"
    n: Annotated[Expression, _checked_for(NEGATIVE_VARIABLES)]


# Margin providers


class NoMargin(FrozenModel):
    """No margins: for target maps that take none."""

    kind: Literal["none"] = "none"


class ConstantMargin(FrozenModel):
    """The same margins for every sample: (m1·θ + m2) − m3, all three honoured together. m2 is in radians."""

    kind: Literal["constant"] = "constant"
    m1: Annotated[Real, Field(ge=1, le=4)] = 1.0
    m2_rad: Angle = 0.0
    m3: Annotated[Real, Field(ge=0, le=1)] = 0.0


class RandomMargin(FrozenModel):
    """A margin drawn for each sample from N(mean, std), not clamped (ElasticFace, Boutros et al., CVPRW 2022).

    `on` names the margin that it is. `plus` hands the drawn margins out by rank: the sample with the highest target
    cosine gets the smallest. In eval every sample has the mean.
    """

    kind: Literal["random"] = "random"
    on: Literal["m2_rad", "m3"]
    mean: Annotated[Real, Field(ge=0, le=1.5)]
    std: Annotated[Real, Field(gt=0, le=0.5)]
    plus: bool = False


class MagFaceMargin(FrozenModel):
    """m2 rises linearly with the clamped norm, from `lower_rad` to `upper_rad`, with gradient (Meng et al. 2021)."""

    kind: Literal["magface"] = "magface"
    lower_norm: Annotated[Real, Field(gt=0, le=1000)] = 10.0
    upper_norm: Annotated[Real, Field(gt=0, le=1000)] = 110.0
    lower_rad: Angle = 0.45
    upper_rad: Angle = 0.8

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.lower_norm >= self.upper_norm or self.lower_rad > self.upper_rad:
            raise ValueError(
                f"lower_norm < upper_norm and lower_rad <= upper_rad must hold, but got norms "
                f"{self.lower_norm:g}, {self.upper_norm:g} and margins {self.lower_rad:g}, {self.upper_rad:g}"
            )
        return self


class AdaFaceMargin(FrozenModel):
    """m2 = −m·k, m3 = m + m·k, k = clip((‖x‖ − μ)/(σ + .001)·h, −1, 1) (AdaFace, Kim et al., CVPR 2022).

    Norms are clipped to [.001, 100] and give no gradient; μ (from 20) and the unbiased σ (from 100) are running
    averages at `rate`, updated before they are used; a batch of one leaves them.
    """

    kind: Literal["adaface"] = "adaface"
    m: Annotated[Real, Field(ge=0, le=1)] = 0.4
    h: Annotated[Real, Field(gt=0, le=10)] = 0.333
    rate: Annotated[Real, Field(gt=0, le=1)] = 0.01


class LearnedMargin(FrozenModel):
    """A learned m3 for each class, held in [0, 1] (AdaM-Softmax, Liu et al., CVPR 2019)."""

    kind: Literal["learned"] = "learned"
    initial: Annotated[Real, Field(ge=0, le=1)] = 0.0


class ClassSizeMargin(FrozenModel):
    """m2 = a·n_c^−power + b for a class of n_c training images: rare classes get the larger margin."""

    kind: Literal["class_size"] = "class_size"
    a: Annotated[Real, Field(ge=0, le=1)] = 0.5
    b: Annotated[Real, Field(ge=0, le=0.5)] = 0.05
    power: Annotated[Real, Field(gt=0, le=2)] = 0.25


class HardNegativeMargin(FrozenModel):
    """m2 = m0_rad + m1_rad·(mean cosine of the sample's hard negatives, 0 without any), no gradient (NPCFace).

    Which negatives are hard the negative map `npc` says.
    """

    kind: Literal["hard_negatives"] = "hard_negatives"
    m0_rad: Angle = 0.4
    m1_rad: Angle = 0.2


# Scale providers


class NoScale(FrozenModel):
    """No scale: for objectives on bare cosines."""

    kind: Literal["none"] = "none"


class ConstantScale(FrozenModel):
    """A fixed scale s."""

    kind: Literal["constant"] = "constant"
    value: Annotated[Real, Field(gt=0, le=MAX_SCALE)] = 64.0


class FeatureNormScale(FrozenModel):
    """s = ‖x‖, with gradient: no feature normalisation, NFN (SphereFace-R, Liu et al. 2022)."""

    kind: Literal["feature_norm"] = "feature_norm"


class SoftNormScale(FrozenModel):
    """s = ‖x‖, with gradient, and strength·|‖x‖ − norm| added to the loss: SFN (SphereFace-R, Liu et al. 2022)."""

    kind: Literal["soft_norm"] = "soft_norm"
    norm: Annotated[Real, Field(gt=0, le=MAX_SCALE)] = 60.0
    strength: Strength = 0.01


class AdaCosScale(FrozenModel):
    """AdaCos (Zhang et al., CVPR 2019): `fixed` s = √2·log(C − 1); `dynamic` follows Eq. 14-16 batch by batch."""

    kind: Literal["adacos"] = "adacos"
    variant: Literal["fixed", "dynamic"] = "dynamic"


# Objectives


class CrossEntropy(FrozenModel):
    """L = −log p_m, p_m = softmax(ℓ)_y."""

    kind: Literal["cross_entropy"] = "cross_entropy"


class PiecewiseTau(FrozenModel):
    """L = −log τ(p_m), τ continuous and piecewise-linear on M equal intervals, τ(0) = 0, slopes > 0 (after AM-LFS)."""

    kind: Literal["piecewise_tau"] = "piecewise_tau"
    slopes: Annotated[tuple[Annotated[Real, Field(gt=0, le=1000)], ...], Field(min_length=1, max_length=100)]


class FreePiecewiseTau(_FreeLines):
    """L = −log max(τ(p_m), 1e-8), τ(p) = slope_k·p + offset_k on M equal intervals (AM-LFS, Li et al., ICCV 2019)."""

    kind: Literal["piecewise_tau_free"] = "piecewise_tau_free"


class Poly1(FrozenModel):
    """L = −log p_m + ε(1 − p_m) (PolyLoss, Leng et al., ICLR 2022)."""

    kind: Literal["poly1"] = "poly1"
    epsilon: Annotated[Real, Field(ge=-1, le=100)] = 1.0


class Focal(FrozenModel):
    """L = −(1 − p_m)^γ·log p_m (focal loss, Lin et al., ICCV 2017)."""

    kind: Literal["focal"] = "focal"
    gamma: Annotated[Real, Field(ge=0, le=10)] = 2.0


class SphereFace2(FrozenModel):
    """Per-class binary logistic: α·softplus(−z_y) + (1 − α)·Σ_{j≠y} softplus(z_j) (Wen et al., ICLR 2022).

    g(z) = 2((z + 1)/2)^t − 1, r the scale, b learnable. `C`: z_y = r(g(c) − m) + b, z_j = r(g(c_j) + m) + b.
    `A`: z_y = r·g(cos(min(θ + m, π))) + b; `M`: z_y = r·g(cos(min(m·θ, π))) + b; both z_j = r·g(c_j) + b.
    The published loss is the mean over N·C times lw·C/r: this one with weight lw/r.
    """

    kind: Literal["sphereface2"] = "sphereface2"
    variant: Literal["C", "A", "M"] = "C"
    m: Annotated[Real, Field(ge=0, le=4)] = 0.4
    t: Annotated[Real, Field(ge=1, le=20)] = 3.0
    alpha: Annotated[Real, Field(gt=0, lt=1)] = 0.7

    @model_validator(mode="after")
    def _margin_fits_the_variant(self) -> Self:
        low, high = {"C": (0.0, 1.0), "A": (0.0, math.pi / 2), "M": (1.0, 4.0)}[self.variant]
        if not low <= self.m <= high:
            raise ValueError(f"m of variant '{self.variant}' must lie in [{low:g}, {high:.3g}], but got m={self.m:g}")
        return self


class UniFace(FrozenModel):
    """softplus(−(ℓ_y − b)) + Σ_{j≠y} softplus(ℓ_j − b), b learnable from log(10·C) (Zhou et al., ICCV 2023)."""

    kind: Literal["uniface"] = "uniface"


class SFace(FrozenModel):
    """L = −sg[r_y]·s·c_y + Σ_{j≠y} sg[r_j]·s·c_j (SFace, Zhong et al., TIP 2021): the gradient is what it defines.

    r_y = 1/(1 + e^{−k(θ_y − a)}), r_j = 1/(1 + e^{k(θ_j − b)}); a and b in radians.
    """

    kind: Literal["sface"] = "sface"
    k: Annotated[Real, Field(gt=0, le=1000)] = 80.0
    a_rad: Annotated[Real, Field(ge=0, le=math.pi)] = 0.8
    b_rad: Annotated[Real, Field(ge=0, le=math.pi)] = 1.23


class SquaredError(FrozenModel):
    """P2SGrad (Zhang et al., CVPR 2019): L = ½ Σ_j (c_j − 1[j = y])², whose gradient is the paper's update.

    `update` imposes the paper's coefficients c_j − 1[j = y] on the same value in place of differentiating it.
    """

    kind: Literal["p2sgrad"] = "p2sgrad"
    form: Literal["loss", "update"] = "loss"


# Regularizers


class NoRegularizer(FrozenModel):
    """Nothing is added."""

    kind: Literal["none"] = "none"


class NormRegularizer(FrozenModel):
    """+ strength·(a/upper_norm² + 1/a), a = clamp(‖x‖), which gives no gradient outside (MagFace, Meng et al. 2021)."""

    kind: Literal["magface"] = "magface"
    strength: Strength = 35.0
    lower_norm: Annotated[Real, Field(gt=0, le=1000)] = 10.0
    upper_norm: Annotated[Real, Field(gt=0, le=1000)] = 110.0

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.lower_norm >= self.upper_norm:
            raise ValueError(
                f"lower_norm < upper_norm must hold, but got norms {self.lower_norm:g}, {self.upper_norm:g}"
            )
        return self


class MarginRegularizer(FrozenModel):
    """+ strength·(1 − mean over classes of the learned margin) (AdaM-Softmax, Liu et al., CVPR 2019)."""

    kind: Literal["adam"] = "adam"
    strength: Strength = 70.0


class EnergyRegularizer(FrozenModel):
    """+ strength·(mean over pairs of classes in the batch of θ_ij^−2), angles between class weights (SphereFace+)."""

    kind: Literal["hyperspherical_energy"] = "hyperspherical_energy"
    strength: Strength = 0.1


TargetMap = Annotated[
    IdentityTarget
    | CombinedTarget
    | LiArcTarget
    | X2Target
    | ModulatingTarget
    | ModulatingBinsTarget
    | PiecewiseTarget
    | FreePiecewiseTarget
    | CircleTarget
    | SymbolicTarget,
    Field(discriminator="kind"),
]
NegativeMap = Annotated[
    IdentityNegative
    | MVNegative
    | CurricularNegative
    | NPCNegative
    | ArcNegNegative
    | SphereFaceRNegative
    | LiArcNegative
    | CircleNegative
    | SymbolicNegative,
    Field(discriminator="kind"),
]
Margin = Annotated[
    NoMargin
    | ConstantMargin
    | RandomMargin
    | MagFaceMargin
    | AdaFaceMargin
    | LearnedMargin
    | ClassSizeMargin
    | HardNegativeMargin,
    Field(discriminator="kind"),
]
Scale = Annotated[NoScale | ConstantScale | FeatureNormScale | SoftNormScale | AdaCosScale, Field(discriminator="kind")]
Objective = Annotated[
    CrossEntropy | PiecewiseTau | FreePiecewiseTau | Poly1 | Focal | SphereFace2 | UniFace | SFace | SquaredError,
    Field(discriminator="kind"),
]
Regularizer = Annotated[
    NoRegularizer | NormRegularizer | MarginRegularizer | EnergyRegularizer, Field(discriminator="kind")
]
GradientMode = Literal["exact", "detached"]
