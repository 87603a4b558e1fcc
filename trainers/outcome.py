"""`Outcome`: what training one candidate gave."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

EpochMetrics = Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What training one candidate gave. `reward` is None exactly when there is an `error`.

    `metrics` holds the scores after the last epoch, `history` one mapping an epoch trained (with `epoch`, 1-based and
    absolute). `images` counts the training images seen by this call, `seconds` its wall time. `collapse` names a
    state in which the scores are real but the network did not learn to tell classes apart.

    >>> Outcome(reward=None, metrics={}, history=(), seconds=1.0, images=0)
    Traceback (most recent call last):
    ...
    ValueError: an outcome has either a reward or an error, but got reward=None, error=None
    """

    reward: float | None
    metrics: Mapping[str, float] = field(default_factory=dict)
    history: tuple[EpochMetrics, ...] = ()
    seconds: float
    images: int
    error: str | None = None
    collapse: str | None = None

    def __post_init__(self) -> None:
        if (self.reward is None) != (self.error is not None):
            raise ValueError(
                f"an outcome has either a reward or an error, but got reward={self.reward}, error={self.error}"
            )
        numbers = [
            self.reward or 0.0,
            *self.metrics.values(),
            *(v for row in self.history for v in row.values()),
        ]
        if not all(math.isfinite(number) for number in numbers):
            raise ValueError(f"an outcome holds finite numbers only, but got {self}")

    def value(self, metric: str) -> float | None:
        """`reward`, what the scored network cost in `seconds` or `images`, whoever trained it, or one of `metrics`.

        None where there is none.
        """
        if metric == "reward":
            return self.reward
        if metric in ("seconds", "images"):
            return self.metrics.get(f"cost/{metric}", float(self.seconds if metric == "seconds" else self.images))
        return self.metrics.get(metric)

    @property
    def diverged(self) -> bool:
        """Whether the training failed by itself, not the machine."""
        return self.error is not None and self.error.startswith("diverged:")
