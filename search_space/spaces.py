"""Search spaces: which losses may be asked for.

A space names its free parameters with their domains, in natural units, and turns values into specs and back:
`space.encode(space.decode(values)) == values`.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from search_space import catalog
from search_space.frozen import FrozenModel, Real
from search_space.parts import MAX_SCALE, CombinedTarget, ConstantMargin, ConstantScale, GradientMode, ModulatingTarget
from search_space.spec import LossSpec

Values = Mapping[str, float]


class Domain(FrozenModel):
    """An interval of one parameter. `log`: equal steps of the unit interval multiply the value by equal factors."""

    low: Real
    high: Real
    log: bool = False

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low >= self.high or (self.log and self.low <= 0):
            raise ValueError(
                f"low < high must hold, and 0 < low on a log scale, but got low={self.low}, high={self.high}"
            )
        return self

    def from_unit(self, unit: float) -> float:
        """The value at a place in [0, 1], never outside the interval."""
        if self.log:
            value = float(self.low * (self.high / self.low) ** unit)
        else:
            value = float(self.low + (self.high - self.low) * unit)
        return min(max(value, self.low), self.high)

    def to_unit(self, value: float) -> float:
        """The place of a value in [0, 1]."""
        if self.log:
            return float(np.log(value / self.low) / np.log(self.high / self.low))
        return (value - self.low) / (self.high - self.low)


class Space(FrozenModel, ABC):
    """What every space can do. `domains`, `decode` and `encode` are each space's own."""

    @property
    @abstractmethod
    def domains(self) -> Mapping[str, Domain]:
        """The free parameters, in a fixed order."""

    @abstractmethod
    def decode(self, values: Values) -> LossSpec:
        """The loss at these values. Raises ValueError for a missing, unknown or out-of-bounds value."""

    @abstractmethod
    def encode(self, spec: LossSpec) -> Values:
        """The values of a loss of this space. Raises ValueError for a loss outside it."""

    def sample(self, rng: np.random.Generator) -> LossSpec:
        """A loss drawn uniformly (log-uniformly on log domains)."""
        return self.decode({name: domain.from_unit(rng.random()) for name, domain in self.domains.items()})

    def _check(self, values: Values) -> None:
        if set(values) != set(self.domains):
            raise ValueError(f"values needed for {', '.join(self.domains)}, but got {', '.join(values) or 'none'}")
        for name, domain in self.domains.items():
            if not domain.low <= values[name] <= domain.high:
                raise ValueError(f"{name} must lie in [{domain.low}, {domain.high}], but got {name}={values[name]}")


class ModulatingFactor(Space):
    """A constant modulating factor (Wang et al. 2020): one parameter u = log(1 − a) = s·m ∈ [0, margin_high·s].

    >>> space = ModulatingFactor(scale=16)
    >>> space.encode(space.decode({"u": 3.2}))
    {'u': 3.2}
    """

    kind: Literal["modulating_factor"] = "modulating_factor"
    scale: Annotated[Real, Field(gt=0, le=MAX_SCALE)] = 32.0
    margin_high: Annotated[Real, Field(gt=0, le=1)] = 0.6

    @model_validator(mode="after")
    def _u_in_bounds(self) -> Self:
        if self.scale * self.margin_high > 512:
            raise ValueError(f"scale·margin_high must be at most 512, but got {self.scale * self.margin_high:g}")
        return self

    @property
    def domains(self) -> Mapping[str, Domain]:
        """u, in logits."""
        return {"u": Domain(low=0.0, high=self.margin_high * self.scale)}

    def decode(self, values: Values) -> LossSpec:
        """softplus(lse_neg − s·cos_y + u)."""
        self._check(values)
        return LossSpec(target=ModulatingTarget(u=values["u"]), scale=ConstantScale(value=self.scale))

    def encode(self, spec: LossSpec) -> Values:
        """u of a modulating factor of this scale."""
        outside = f"the loss is not in the space 'modulating_factor' at scale {self.scale}: {spec}"
        if not isinstance(spec.target, ModulatingTarget):
            raise ValueError(outside)
        values = {"u": spec.target.u}
        if self.decode(values) != spec:
            raise ValueError(outside)
        return values


Bounds = tuple[Real, Real]


class CombinedMargin(Space):
    """The combined margin cos(m1·θ + m2) − m3 with its scale. A parameter whose bounds are equal is fixed.

    By default m2 and m3 are free. A reward after one epoch favours what learns fast at once, so a free scale drifts to
    its lower end: free it only under controllers that train candidates for longer.

    >>> list(CombinedMargin().domains)
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

    def _spec(self, values: Values) -> LossSpec:
        return catalog.combined(values["m1"], values["m2_rad"], values["m3"], values["scale"], gradient=self.gradient)

    @property
    def domains(self) -> Mapping[str, Domain]:
        """m1, m2_rad (radians), m3 and scale (log), those that are free."""
        return {
            name: Domain(low=low, high=high, log=name == "scale")
            for name, (low, high) in self._bounds().items()
            if low < high
        }

    def decode(self, values: Values) -> LossSpec:
        """The combined margin at these values."""
        self._check(values)
        fixed = {name: low for name, (low, high) in self._bounds().items() if low == high}
        return self._spec({**fixed, **values})

    def encode(self, spec: LossSpec) -> Values:
        """The free parameters of a combined margin of this space."""
        margin, scale = spec.margin, spec.scale
        if not isinstance(margin, ConstantMargin) or not isinstance(scale, ConstantScale):
            raise ValueError(f"the loss is not in the space 'combined_margin': {spec}")
        known = {"m1": margin.m1, "m2_rad": margin.m2_rad, "m3": margin.m3, "scale": scale.value}
        values = {name: known[name] for name in self.domains}
        self._check(values)
        if spec.target != CombinedTarget() or self.decode(values) != spec:
            raise ValueError(f"the loss is not in the space 'combined_margin': {spec}")
        return values


SPACES: Mapping[str, type[Space]] = {"modulating_factor": ModulatingFactor, "combined_margin": CombinedMargin}
"""The spaces by the name that a config gives them."""

AnySpace = Annotated[ModulatingFactor | CombinedMargin, Field(discriminator="kind")]
