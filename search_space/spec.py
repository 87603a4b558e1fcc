"""`LossSpec`: a margin-softmax loss as a value, a point of the unified formulation.

The logits of a sample with target y are  ℓ_y = s·f(cos_y)  and  ℓ_j = s·n(cos_j) for j ≠ y.  A spec names each
part: the target map f with its margins, the negative map n, the scale s, the objective that turns logits into a
loss, and whether the gradient is the true one (`exact`) or passes the maps by (`detached`: characteristic gradient
detachment, SphereFace-R, Liu et al. 2022, Sec. 3).

Only specs cross process boundaries; `search_space.build` turns one into a module.
"""

import hashlib
import json
import math
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from search_space.frozen import FrozenModel, Real

MAX_SCALE = 1024.0
"""The largest scale a spec may hold; AdaCos growing beyond it counts as diverged."""


class IdentityTarget(FrozenModel):
    """f(c) = c."""

    kind: Literal["identity"] = "identity"


class CombinedTarget(FrozenModel):
    """f(c) = cos φ − m3 with φ = m1·θ + m2, the margins coming from the margin provider.

    For φ > π the plain cosine would rise again as θ grows. `guard` says what happens there:
    `monotone` uses (−1)^k cos φ − 2k − m3 with k = ⌊φ/π⌋ (continuous; SphereFace v0, Liu et al. 2017, Eq. 7);
    `linear` uses c − m2·sin m2 − m3 (ArcFace's released code; needs m1 = 1); `none` leaves it (detached only).
    """

    kind: Literal["combined"] = "combined"
    guard: Literal["monotone", "linear", "none"] = "monotone"


class ModulatingTarget(FrozenModel):
    """A constant modulating factor a ≤ 0: p_m = h(a, p)·p, h = 1/(a·p + 1 − a), held as u = log(1 − a) ≥ 0.

    Wang et al. 2020, Eqs. 5-8. The target logit becomes s·c − u (identity I1: a cosine margin m = u/s); u is kept
    because a itself overflows: CosFace m=.35, s=64 is a = −5.35e9.
    """

    kind: Literal["modulating"] = "modulating"
    u: Annotated[Real, Field(ge=0, le=512)]


class IdentityNegative(FrozenModel):
    """n(c_j) = c_j."""

    kind: Literal["identity"] = "identity"


class NoMargin(FrozenModel):
    """No margins: for target maps that take none."""

    kind: Literal["none"] = "none"


class ConstantMargin(FrozenModel):
    """The same margins for every sample: (m1·θ + m2) − m3, all three honoured together. m2 is in radians."""

    kind: Literal["constant"] = "constant"
    m1: Annotated[Real, Field(ge=1, le=4)] = 1.0
    m2_rad: Annotated[Real, Field(ge=0, le=math.pi / 2)] = 0.0
    m3: Annotated[Real, Field(ge=0, le=1)] = 0.0


class NoScale(FrozenModel):
    """No scale: for objectives on bare cosines."""

    kind: Literal["none"] = "none"


class ConstantScale(FrozenModel):
    """A fixed scale s."""

    kind: Literal["constant"] = "constant"
    value: Annotated[Real, Field(gt=0, le=MAX_SCALE)] = 64.0


class AdaCosScale(FrozenModel):
    """AdaCos (Zhang et al., CVPR 2019): `fixed` s = √2·log(C − 1); `dynamic` follows Eq. 14-16 batch by batch."""

    kind: Literal["adacos"] = "adacos"
    variant: Literal["fixed", "dynamic"] = "dynamic"


class CrossEntropy(FrozenModel):
    """L = −log softmax(ℓ)_y."""

    kind: Literal["cross_entropy"] = "cross_entropy"


class SquaredError(FrozenModel):
    """P2SGrad (Zhang et al., CVPR 2019): L = ½ Σ_j (c_j − 1[j = y])², whose gradient is the paper's update."""

    kind: Literal["p2sgrad"] = "p2sgrad"


TargetMap = Annotated[IdentityTarget | CombinedTarget | ModulatingTarget, Field(discriminator="kind")]
NegativeMap = Annotated[IdentityNegative, Field()]
Margin = Annotated[NoMargin | ConstantMargin, Field(discriminator="kind")]
Scale = Annotated[NoScale | ConstantScale | AdaCosScale, Field(discriminator="kind")]
Objective = Annotated[CrossEntropy | SquaredError, Field(discriminator="kind")]
GradientMode = Literal["exact", "detached"]


class LossSpec(FrozenModel):
    """A loss as a value: frozen, JSON-safe, refused when its parts do not fit together.

    `weight` multiplies the loss (and so every gradient): P2SGrad's gradient multiplier, SphereFace-R's lw/s.

    >>> spec = LossSpec(target=CombinedTarget(), margin=ConstantMargin(m3=0.35))
    >>> LossSpec.model_validate_json(spec.model_dump_json()) == spec
    True
    """

    target: TargetMap = IdentityTarget()
    negative: NegativeMap = IdentityNegative()
    margin: Margin = NoMargin()
    scale: Scale = ConstantScale()
    objective: Objective = CrossEntropy()
    gradient: GradientMode = "exact"
    weight: Annotated[Real, Field(gt=0, le=1000)] = 1.0

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        takes_margin = isinstance(self.target, CombinedTarget)
        has_margin = not isinstance(self.margin, NoMargin)
        if takes_margin != has_margin:
            needs = "needs a margin provider" if takes_margin else "takes no margin"
            raise ValueError(f"target map '{self.target.kind}' {needs}, but got margin '{self.margin.kind}'")
        if isinstance(self.target, CombinedTarget) and isinstance(self.margin, ConstantMargin):
            if self.target.guard == "linear" and self.margin.m1 != 1:
                raise ValueError(f"guard 'linear' needs m1 = 1, but got m1={self.margin.m1}; use 'monotone'")
            if self.target.guard == "none" and self.gradient == "exact":
                raise ValueError("guard 'none' needs gradient 'detached': past π the exact gradient changes sign")
        squares = isinstance(self.objective, SquaredError)
        if squares != isinstance(self.scale, NoScale):
            wanted = "ignores the scale, so it needs scale 'none'" if squares else "needs a scale"
            raise ValueError(f"objective '{self.objective.kind}' {wanted}, but got scale '{self.scale.kind}'")
        if squares and not isinstance(self.target, IdentityTarget):
            raise ValueError(f"objective 'p2sgrad' takes target map 'identity', but got '{self.target.kind}'")
        if squares and self.gradient == "detached":
            raise ValueError("objective 'p2sgrad' has no map to detach: gradient must be 'exact'")
        return self

    def digest(self) -> str:
        """Twelve hex digits that name this loss: equal specs, and only those, share it."""
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:12]
