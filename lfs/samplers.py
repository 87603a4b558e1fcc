"""Samplers: where candidates come from, for controllers that train each candidate on its own.

A sampler proposes a schedule for a candidate's number and later learns how it did. It is a deterministic function of
its seed and of the order of calls, so that replaying a journal gives the same proposals.
"""

import re
from collections.abc import Mapping
from typing import Literal, NamedTuple, Protocol

import numpy as np
from pydantic import field_validator

from lfs.trial import RATE, Scalar
from search_space.domains import Domain, Parameter, Values, walk
from search_space.frozen import FrozenModel
from search_space.schedule import LossSchedule
from search_space.trajectories import Trajectories
from trainers.outcome import Outcome

INTERVALS_ONLY: Mapping[str, str] = {
    "cmaes": "adapts a covariance over intervals",
    "gp": "fits a Gaussian process over intervals",
}
"""Samplers that refuse choices, and why."""

_METRIC = re.compile(
    r"reward|seconds|images|(reward|choice|val)/(tar_at_far_1e-[1-4]|eer|auc|rank1|mean_tar|blend|lfw_accuracy)"
)


class Objective(FrozenModel):
    """One thing to optimise: `reward`, `seconds`, `images`, or a score among `Outcome.metrics`, as `val/eer`."""

    metric: str = "reward"
    direction: Literal["maximize", "minimize"] = "maximize"

    @field_validator("metric")
    @classmethod
    def _known(cls, metric: str) -> str:
        if not _METRIC.fullmatch(metric):
            raise ValueError("must be reward, seconds, images, or a score such as val/eer or reward/tar_at_far_1e-3")
        return metric

    def of(self, outcome: Outcome) -> float:
        """The value in an outcome without an error. Raises KeyError for a score that it does not hold."""
        value = outcome.value(self.metric)
        if value is None:
            raise KeyError(self.metric)
        return value


REWARD = Objective()


class Candidate(NamedTuple):
    """What a sampler proposes: a loss, and the recipe fields in which its training differs from the run's recipe."""

    schedule: LossSchedule
    recipe: Mapping[str, Scalar] = {}


class Candidates:
    """What samplers draw from: the parameters of a loss and, with `learning_rate`, the bounds of a rate of its own.

    A loss's scale multiplies its gradient, and each loss has its own best rate: under one rate for all, those win whom
    it suits.
    """

    def __init__(self, losses: Trajectories, *, learning_rate: tuple[float, float] | None = None) -> None:
        self._losses = losses
        self._own: dict[str, Parameter] = {}
        if learning_rate is not None:
            self._own[RATE] = Domain(low=learning_rate[0], high=learning_rate[1], log=True)
        self.parameters: Mapping[str, Parameter] = {**losses.parameters, **self._own}

    @property
    def conditional(self) -> bool:
        """Whether not every candidate has the same parameters."""
        return self._losses.conditional

    def decode(self, values: Values) -> Candidate:
        """The candidate at these values. Raises ValueError for values outside."""
        recipe = {name: value for name, value in values.items() if name in self._own}
        losses = {name: value for name, value in values.items() if name not in recipe}
        return Candidate(self._losses.decode(losses), recipe)


class Sampler(Protocol):
    """Proposes candidates and learns from their outcomes."""

    def propose(self, number: int) -> Candidate:
        """The candidate of this number; each number is asked for once."""

    def learn(self, number: int, outcome: Outcome, *, epochs: int) -> None:
        """How that candidate did after so many epochs in all; under halving again at each rung, failed ones too."""

    def summary(self) -> Mapping[str, float]:
        """Its state, as far as it can be plotted."""


class UniformSampler:
    """Independent uniform draws: the control that every other sampler has to beat."""

    def __init__(self, candidates: Candidates, *, seed: int) -> None:
        self._candidates, self._seed = candidates, seed

    def propose(self, number: int) -> Candidate:
        """A draw that depends on the seed and the number alone."""
        rng = np.random.default_rng([self._seed, number])
        return self._candidates.decode(walk(self._candidates.parameters, lambda _, parameter: parameter.draw(rng)))

    def learn(self, number: int, outcome: Outcome, *, epochs: int) -> None:
        """Nothing."""

    def summary(self) -> Mapping[str, float]:
        """No state."""
        return {}
