"""Search spaces: which losses may be asked for.

A space names its free parameters with their domains, in natural units, and turns values into specs and back:
`space.encode(space.decode(values)) == values`.
"""

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from search_space import catalog
from search_space.domains import Domain, Space, Values
from search_space.frozen import Real
from search_space.parts import (
    BINS,
    MAX_SCALE,
    CombinedTarget,
    ConstantMargin,
    ConstantScale,
    FreePiecewiseTarget,
    FreePiecewiseTau,
    GradientMode,
    ModulatingBinsTarget,
    ModulatingTarget,
    PiecewiseTarget,
    PiecewiseTau,
)
from search_space.spec import LossSpec
from search_space.unified_space import Unified

ScaleValue = Annotated[Real, Field(gt=0, le=MAX_SCALE)]
Bounds = tuple[Real, Real]

EASY = 1 / 3
"""Where in the range of a margin a search starts: easy enough for fresh weights."""


def _numbers(space: Space, values: Values) -> dict[str, float]:
    """The checked values of a space of intervals alone."""
    return {name: float(value) for name, value in space.checked(values).items()}


def _at(domains: Mapping[str, Domain], unit: float) -> Values:
    return {name: domain.from_unit(unit) for name, domain in domains.items()}


class _Modulating(Space):
    """Modulating factors, each held as u = log(1 − a) = s·m ∈ [0, margin_high·s]."""

    scale: ScaleValue = 32.0
    margin_high: Annotated[Real, Field(gt=0, le=1)] = 0.6

    @model_validator(mode="after")
    def _u_in_bounds(self) -> Self:
        if self.scale * self.margin_high > 512:
            raise ValueError(f"scale·margin_high must be at most 512, but got {self.scale * self.margin_high:g}")
        return self

    @property
    def _domain(self) -> Domain:
        return Domain(low=0.0, high=self.margin_high * self.scale)

    @property
    def start(self) -> Values:
        """A third of the largest margin."""
        return _at(self.domains, EASY)


class ModulatingFactor(_Modulating):
    """A constant modulating factor (Wang et al. 2020): one parameter u = log(1 − a) = s·m ∈ [0, margin_high·s].

    >>> space = ModulatingFactor(scale=16)
    >>> space.encode(space.decode({"u": 3.2}))
    {'u': 3.2}
    """

    kind: Literal["modulating_factor"] = "modulating_factor"

    @property
    def parameters(self) -> Mapping[str, Domain]:
        """u, in logits."""
        return {"u": self._domain}

    def decode(self, values: Values) -> LossSpec:
        """softplus(lse_neg − s·cos_y + u)."""
        u = _numbers(self, values)["u"]
        return LossSpec(target=ModulatingTarget(u=u), scale=ConstantScale(value=self.scale))

    def encode(self, spec: LossSpec) -> Values:
        """u of a modulating factor of this scale."""
        outside = f"the loss is not in the space 'modulating_factor' at scale {self.scale}: {spec}"
        if not isinstance(spec.target, ModulatingTarget):
            raise ValueError(outside)
        values = {"u": spec.target.u}
        if self.decode(values) != spec:
            raise ValueError(outside)
        return values


class ModulatingBins(_Modulating):
    """A local modulating factor (Wang et al. 2020): u_0..u_9, one in each of ten equal bins of the probability p.

    p is the plain softmax probability of the target, without gradient; each u_k ∈ [0, margin_high·s].

    >>> list(ModulatingBins().parameters)[:2]
    ['u_0', 'u_1']
    """

    kind: Literal["modulating_bins"] = "modulating_bins"

    @property
    def parameters(self) -> Mapping[str, Domain]:
        """u_0 (0 ≤ p < 0.1) to u_9 (0.9 ≤ p), in logits."""
        return {f"u_{k}": self._domain for k in range(BINS)}

    def decode(self, values: Values) -> LossSpec:
        """softplus(lse_neg − s·cos_y + u_k) in bin k."""
        target = ModulatingBinsTarget(u=tuple(_numbers(self, values).values()))
        return LossSpec(target=target, scale=ConstantScale(value=self.scale))

    def encode(self, spec: LossSpec) -> Values:
        """u_0..u_9 of a local modulating factor of this scale."""
        outside = f"the loss is not in the space 'modulating_bins' at scale {self.scale}: {spec}"
        if not isinstance(spec.target, ModulatingBinsTarget):
            raise ValueError(outside)
        values = dict(zip(self.parameters, spec.target.u, strict=True))
        if self.decode(values) != spec:
            raise ValueError(outside)
        return values


class CombinedMargin(Space):
    """The combined margin cos(m1·θ + m2) − m3 with its scale. A parameter whose bounds are equal is fixed.

    By default m2 and m3 are free. A reward after one epoch favours what learns fast at once, so a free scale drifts to
    its lower end: free it only under controllers that train candidates for longer.

    >>> list(CombinedMargin().parameters)
    ['m2_rad', 'm3']
    """

    kind: Literal["combined_margin"] = "combined_margin"
    m1: Bounds = (1.0, 1.0)
    m2_rad: Bounds = (0.0, 0.8)
    m3: Bounds = (0.0, 0.4)
    scale: Bounds = (16.0, 16.0)
    gradient: GradientMode = "detached"

    @model_validator(mode="after")
    def _bounds_are_legal(self) -> Self:
        bounds = self._bounds()
        for name, (low, high) in bounds.items():
            if low > high:
                raise ValueError(f"{name} must be [low, high] with low <= high, but got [{low}, {high}]")
        if all(low == high for low, high in bounds.values()):
            raise ValueError("every parameter is fixed: nothing is left to search; widen the bounds of one")
        for end in (0, 1):
            self._spec({name: pair[end] for name, pair in bounds.items()})
        return self

    def _bounds(self) -> dict[str, Bounds]:
        return {"m1": self.m1, "m2_rad": self.m2_rad, "m3": self.m3, "scale": self.scale}

    def _spec(self, known: Mapping[str, float]) -> LossSpec:
        return catalog.combined(known["m1"], known["m2_rad"], known["m3"], known["scale"], gradient=self.gradient)

    @property
    def parameters(self) -> Mapping[str, Domain]:
        """m1, m2_rad (radians), m3 and scale (log), those that are free."""
        return {
            name: Domain(low=low, high=high, log=name == "scale")
            for name, (low, high) in self._bounds().items()
            if low < high
        }

    @property
    def start(self) -> Values:
        """A third of each range."""
        return _at(self.domains, EASY)

    def decode(self, values: Values) -> LossSpec:
        """The combined margin at these values."""
        fixed = {name: low for name, (low, high) in self._bounds().items() if low == high}
        return self._spec({**fixed, **_numbers(self, values)})

    def encode(self, spec: LossSpec) -> Values:
        """The free parameters of a combined margin of this space."""
        margin, scale = spec.margin, spec.scale
        if not isinstance(margin, ConstantMargin) or not isinstance(scale, ConstantScale):
            raise ValueError(f"the loss is not in the space 'combined_margin': {spec}")
        known = {"m1": margin.m1, "m2_rad": margin.m2_rad, "m3": margin.m3, "scale": scale.value}
        values = self.checked({name: known[name] for name in self.parameters})
        if spec.target != CombinedTarget() or self.decode(values) != spec:
            raise ValueError(f"the loss is not in the space 'combined_margin': {spec}")
        return values


class AMLFS(Space):
    """The piecewise-linear maps t (of the cosine) and τ (of the probability) of AM-LFS (Li et al., ICCV 2019).

    Both have `pieces` equal intervals M, and the centre of every domain is the identity.
    `continuous`: t goes through M + 1 knots, each within 1/M of its own cosine, so that t never falls; τ(0) = 0 and M
    slopes from 1/4 to 4, log.
    `free`, as published: slopes from .5 to 1.5 and offsets from −.5 to .5, independent in each interval of t and τ, 4M
    numbers, in ranges as wide as 1, so that a search's σ is the published one. At the small p of a training's start
    half of its losses hold τ at 1e-8, where there is no gradient.

    >>> len(AMLFS().parameters), len(AMLFS(mode="free").parameters)
    (21, 40)
    """

    kind: Literal["am_lfs"] = "am_lfs"
    mode: Literal["continuous", "free"] = "continuous"
    pieces: Annotated[int, Field(ge=2, le=100)] = 10
    scale: ScaleValue = 30.0
    gradient: GradientMode = "exact"

    @property
    def parameters(self) -> Mapping[str, Domain]:
        """`continuous`: t_0..t_M, tau_slope_0..; `free`: t_slope_0.., t_offset_0.., tau_slope_0.., tau_offset_0.."""
        if self.mode == "continuous":
            cosines = [-1 + 2 * k / self.pieces for k in range(self.pieces + 1)]
            knots = {f"t_{k}": Domain(low=c - 1 / self.pieces, high=c + 1 / self.pieces) for k, c in enumerate(cosines)}
            return knots | {f"tau_slope_{k}": Domain(low=0.25, high=4.0, log=True) for k in range(self.pieces)}
        slope, offset = Domain(low=0.5, high=1.5), Domain(low=-0.5, high=0.5)
        domains = {"t_slope": slope, "t_offset": offset, "tau_slope": slope, "tau_offset": offset}
        return {f"{name}_{k}": domain for name, domain in domains.items() for k in range(self.pieces)}

    @property
    def start(self) -> Values:
        """The identity."""
        return _at(self.domains, 0.5)

    def decode(self, values: Values) -> LossSpec:
        """−log τ(p) with the target logit s·t(cos θ)."""
        numbers, pieces = tuple(_numbers(self, values).values()), self.pieces
        if self.mode == "continuous":
            knots, slopes = numbers[: pieces + 1], numbers[pieces + 1 :]
            return catalog.am_lfs(knots, slopes, self.scale, self.gradient)
        t, tau = numbers[: 2 * pieces], numbers[2 * pieces :]
        return catalog.am_lfs_free(
            t[:pieces], t[pieces:], tau[:pieces], tau[pieces:], scale=self.scale, gradient=self.gradient
        )

    def encode(self, spec: LossSpec) -> Values:
        """The knots, slopes and offsets of a loss of this mode, with as many pieces and this scale."""
        outside = f"the loss is not in the space 'am_lfs' ({self.mode}, {self.pieces} pieces, scale {self.scale})"
        t, tau = spec.target, spec.objective
        if isinstance(t, PiecewiseTarget) and isinstance(tau, PiecewiseTau):
            numbers = t.knots + tau.slopes
        elif isinstance(t, FreePiecewiseTarget) and isinstance(tau, FreePiecewiseTau):
            numbers = t.slopes + t.offsets + tau.slopes + tau.offsets
        else:
            raise ValueError(f"{outside}: {spec}")
        if len(numbers) != len(self.parameters):
            raise ValueError(f"{outside}: {spec}")
        values = dict(zip(self.parameters, numbers, strict=True))
        if self.decode(values) != spec:
            raise ValueError(f"{outside}: {spec}")
        return values


SPACES: Mapping[str, type[Space]] = {
    "modulating_factor": ModulatingFactor,
    "modulating_bins": ModulatingBins,
    "am_lfs": AMLFS,
    "combined_margin": CombinedMargin,
    "unified": Unified,
}
"""The spaces by the name that a config gives them."""

AnySpace = Annotated[ModulatingFactor | ModulatingBins | AMLFS | CombinedMargin | Unified, Field(discriminator="kind")]
"""Any of them; its `kind` says which."""
