"""What a protocol finds: numbers with intervals, what they rest on, and an error curve.

F false accept rates, B resamples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from trainers.protocols.roc import Roc
from trainers.verification import allowed_accepts

Floats = npt.NDArray[np.float64]

LEVEL = 0.05
"""An interval leaves out so much of the resamples, half of it on each side."""

FEWEST_ACCEPTS = 30
"""A rate that rests on fewer false accepts is remarked upon."""

CURVE_FARS = tuple(float(f"{10 ** (-tenth / 10):.3g}") for tenth in range(80, 0, -1))
"""The false accept rates of an error curve: ten a decade from 1e-8 to .794."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """A number with its 95 % interval."""

    value: float
    low: float
    high: float

    @classmethod
    def moved(cls, value: float, move_B: Floats) -> "Measure":
        """The percentile interval of a number that moves by `move_B` in resamples; shares stay within [0, 1]."""
        low, high = np.clip(value + np.quantile(move_B, [LEVEL / 2, 1 - LEVEL / 2]), 0.0, 1.0)
        return cls(value=value, low=min(float(low), value), high=max(float(high), value))

    @classmethod
    def sampled(cls, value: float, sampled_B: Floats, *, widening: float = 1.0) -> "Measure":
        """The same of a number's approximations: the first one of everything, the others of the resamples."""
        return cls.moved(value, widening * (sampled_B[1:] - sampled_B[0]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """An error curve with its intervals, each F: TAR by FAR (of identification: TPIR by FPIR)."""

    far: Floats
    tar: Floats
    low: Floats
    high: Floats

    @classmethod
    def moved(cls, far_F: Floats, tar_F: Floats, move_FB: Floats) -> "Curve":
        """The curve with the percentile interval at each rate."""
        low_F, high_F = np.clip(tar_F + np.quantile(move_FB, [LEVEL / 2, 1 - LEVEL / 2], axis=1), 0.0, 1.0)
        return cls(far=far_F, tar=tar_F, low=np.minimum(low_F, tar_F), high=np.maximum(high_F, tar_F))

    @classmethod
    def sampled(cls, exact: Roc, drawn: Roc, impostors: int, *, widening: float = 1.0) -> "Curve":
        """The exact curve at the rates that so many impostors resolve; the first column of `drawn` is of everything."""
        fars = resolved(CURVE_FARS, impostors)
        tar_F = np.array([exact.tar_at(far)[0] for far in fars])
        drawn_FB = np.array([drawn.tar_at(far) for far in fars]).reshape(len(fars), -1)
        return cls.moved(np.array(fars), tar_F, widening * (drawn_FB[:, 1:] - drawn_FB[:, :1]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """One protocol's result: `counts` says what was compared, `notes` how to read the numbers, a sentence each."""

    protocol: str
    counts: Mapping[str, int]
    measures: Mapping[str, Measure]
    notes: Sequence[str]
    curve: Curve | None = None


def resolved(rates: Sequence[float], impostors: int) -> tuple[float, ...]:
    """The rates at which one impostor of so many may be accepted."""
    return tuple(rate for rate in rates if allowed_accepts(rate, impostors) > 0)


def few_accepts(name: str, rates: Sequence[float], impostors: int) -> list[str]:
    """Remarks on the rates that rest on few false accepts, and on those that allow none and are not measured."""
    allowed = {f"{rate:g}".replace("e-0", "e-"): allowed_accepts(rate, impostors) for rate in rates}
    few = ", ".join(rate for rate, accepts in allowed.items() if 0 < accepts < FEWEST_ACCEPTS)
    none = ", ".join(rate for rate, accepts in allowed.items() if not accepts)
    said = [f"{name} {few}: fewer than {FEWEST_ACCEPTS} false accepts, so read with care"] if few else []
    return [*said, f"{name} {none}: not measured, as {impostors:,} impostors allow no false accept"] if none else said
