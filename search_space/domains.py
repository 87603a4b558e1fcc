"""What a search space is: free parameters with their domains, and the losses that they stand for.

A parameter is a `Domain` (an interval) or a `Choice` (one of a few options), and may depend on earlier choices. Its
value is a float or, for a choice, a string.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Annotated, Self

import numpy as np
from pydantic import Field, model_validator

from search_space.frozen import FrozenModel, Real
from search_space.spec import LossSpec

Values = Mapping[str, float | str]
"""The active parameters of a loss, by name."""

Condition = Mapping[str, tuple[str, ...]]
"""Earlier choices, each with the options under which it holds; all of them must."""


class _Parameter(FrozenModel):
    """`when` lists the conditions of which one must hold for the parameter to be active; empty: it always is."""

    when: tuple[Condition, ...] = ()

    def active(self, values: Values) -> bool:
        """Whether it has a value, given those of the active parameters before it."""
        holds = [all(values.get(name) in options for name, options in each.items()) for each in self.when]
        return any(holds) or not holds


class Domain(_Parameter):
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

    def draw(self, rng: np.random.Generator) -> float:
        """A value drawn uniformly, log-uniformly where `log`."""
        return self.from_unit(rng.random())

    def check(self, name: str, value: float | str) -> float:
        """The value. Raises ValueError when it is no number of the interval."""
        if isinstance(value, str) or not self.low <= value <= self.high:
            raise ValueError(f"{name} must lie in [{self.low}, {self.high}], but got {name}={value}")
        return value


class Choice(_Parameter):
    """One of a few options."""

    options: Annotated[tuple[str, ...], Field(min_length=2)]

    def draw(self, rng: np.random.Generator) -> str:
        """An option, all alike."""
        return self.options[int(rng.integers(len(self.options)))]

    def check(self, name: str, value: float | str) -> str:
        """The value. Raises ValueError when it is none of the options."""
        if not isinstance(value, str) or value not in self.options:
            raise ValueError(f"{name} must be one of {', '.join(self.options)}, but got {name}={value}")
        return value


Parameter = Domain | Choice


def walk(parameters: Mapping[str, Parameter], ask: Callable[[str, Parameter], float | str]) -> Values:
    """The values that `ask` gives for the active ones of the parameters, asked in order."""
    values: dict[str, float | str] = {}
    for name, parameter in parameters.items():
        if parameter.active(values):
            values[name] = ask(name, parameter)
    return values


class Space(FrozenModel, ABC):
    """What every space can do. `parameters`, `start`, `decode` and `encode` are each space's own."""

    @property
    @abstractmethod
    def parameters(self) -> Mapping[str, Parameter]:
        """The free parameters in a fixed order, each after the choices that it depends on."""

    @property
    @abstractmethod
    def start(self) -> Values:
        """Where a search begins: the loss of a warm-up, and the first mean of a search that has one."""

    @abstractmethod
    def decode(self, values: Values) -> LossSpec:
        """The loss at these values. Raises ValueError for a missing, inactive, unknown or out-of-bounds value."""

    @abstractmethod
    def encode(self, spec: LossSpec) -> Values:
        """The values of a loss of this space. Raises ValueError for a loss outside it."""

    @property
    def conditional(self) -> bool:
        """Whether there are choices, so that not every loss has the same parameters."""
        return any(isinstance(parameter, Choice) for parameter in self.parameters.values())

    @property
    def domains(self) -> Mapping[str, Domain]:
        """The parameters of a space of intervals alone. Raises ValueError for a conditional space."""
        domains = {name: domain for name, domain in self.parameters.items() if isinstance(domain, Domain)}
        if self.conditional:
            raise ValueError(f"a space of intervals alone is needed, but {type(self).__name__} has choices")
        return domains

    def walk(self, ask: Callable[[str, Parameter], float | str]) -> Values:
        """The values that `ask` gives for the active parameters, asked in order: define-by-run sampling."""
        return walk(self.parameters, ask)

    def sample(self, rng: np.random.Generator) -> LossSpec:
        """A loss whose active parameters are drawn uniformly (log-uniformly on log domains)."""
        return self.decode(self.walk(lambda _, parameter: parameter.draw(rng)))

    def checked(self, values: Values) -> Values:
        """The values. Raises ValueError unless they are those of all active parameters and within their bounds."""

        def take(name: str, parameter: Parameter) -> float | str:
            if name not in values:
                raise ValueError(f"a value for {name} is needed, but got {', '.join(values) or 'none'}")
            return parameter.check(name, values[name])

        taken = self.walk(take)
        for name in values:
            if name not in self.parameters:
                raise ValueError(f"unknown parameter {name}={values[name]}; those needed are {', '.join(taken)}")
            if name not in taken:
                raise ValueError(f"{name}={values[name]} has no place here: {_need(self.parameters[name])}")
        return taken


def _need(parameter: Parameter) -> str:
    alternatives = [
        " and ".join(f"{name} is {' or '.join(options)}" for name, options in each.items()) for each in parameter.when
    ]
    return f"it needs that {', or that '.join(alternatives)}"
