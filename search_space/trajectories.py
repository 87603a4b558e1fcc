"""`Trajectories`: losses whose parameters move over training, as a thing to search.

A search in rounds ends with a schedule of losses, not with one loss; here it is a candidate like any other.
"""

from collections.abc import Mapping

import numpy as np

from search_space.domains import Parameter, Space, Values
from search_space.schedule import LossSchedule


class Trajectories:
    """Schedules over `epochs` epochs whose parameters run through `knots` values of `space`, in straight lines.

    The knots lie evenly from the first epoch to the last; on a log domain a line is straight in the logarithm. One knot
    is a constant loss, of any space; more need a space of intervals alone. Parameter `m3` has the knots `m3@0`, `m3@1`,
    ... Raises ValueError for fewer than 1 knot, more knots than epochs, or several in a conditional space.

    >>> from search_space.spaces import CombinedMargin
    >>> list(Trajectories(CombinedMargin(), knots=2, epochs=6).parameters)
    ['m2_rad@0', 'm3@0', 'm2_rad@1', 'm3@1']
    """

    def __init__(self, space: Space, *, knots: int, epochs: int) -> None:
        if not 1 <= knots <= epochs:
            raise ValueError(f"knots must lie in [1, {epochs}], the number of epochs, but got knots={knots}")
        if knots > 1 and space.conditional:
            raise ValueError(
                "a loss that moves over training needs a space of intervals alone, but this one has choices"
            )
        self.space, self.knots, self.epochs = space, knots, epochs

    @property
    def parameters(self) -> Mapping[str, Parameter]:
        """The space's own for one knot, else a copy for each knot."""
        if self.knots == 1:
            return self.space.parameters
        return {f"{name}@{knot}": domain for knot in range(self.knots) for name, domain in self.space.domains.items()}

    @property
    def conditional(self) -> bool:
        """Whether not every candidate has the same parameters."""
        return self.space.conditional

    def decode(self, values: Values) -> LossSchedule:
        """The schedule at these values. Raises ValueError for values outside."""
        if self.knots == 1:
            return LossSchedule.constant(self.space.decode(values))
        if set(values) != set(self.parameters):
            raise ValueError(f"values needed for {', '.join(self.parameters)}, but got {', '.join(values) or 'none'}")
        schedule = LossSchedule.constant(self.space.decode(self._at(0.0, values)))
        for epoch in range(1, self.epochs):
            schedule = schedule.then(epoch, self.space.decode(self._at(epoch / (self.epochs - 1), values)))
        return schedule

    def _at(self, progress: float, values: Values) -> Values:
        """The parameters at a share of the training."""
        places = np.arange(self.knots) / (self.knots - 1)
        inside: dict[str, float | str] = {}
        for name, domain in self.space.domains.items():
            units = [domain.to_unit(domain.check(name, values[f"{name}@{knot}"])) for knot in range(self.knots)]
            inside[name] = domain.from_unit(float(np.interp(progress, places, units)))
        return inside
