"""Whether one loss is better than another, judged over seeds and over test identities.

S seeds, B resamples of the identities, E entrants, M contrasts. Entrants are paired: a seed, and a resample of the
identities, is the same for all of them. Where several searches are compared, a search's seeds count as one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.special import stdtr, stdtrit

Floats = npt.NDArray[np.float64]
Verdict = Literal["better", "worse", "no significant difference", "not decided"]

MAX_SEEDS = 20


def sign_flip_p(difference_S: Sequence[float]) -> float:
    """The exact two-sided p-value of 'the differences are as likely with the other sign'.

    All 2^S ways to set the signs are counted; the p-value is the share of those whose sum is as far from 0 as the sum
    seen, and so never below 2^(1−S). Raises ValueError for no differences or more than `MAX_SEEDS`.

    >>> sign_flip_p([1.0, 2.0, 3.0])
    0.25
    """
    if not 1 <= len(difference_S) <= MAX_SEEDS:
        raise ValueError(f"a sign-flip test takes 1 to {MAX_SEEDS} differences, but got {len(difference_S)}")
    sums = np.zeros(1)
    for difference in difference_S:
        sums = np.concatenate([sums + difference, sums - difference])
    seen = abs(sums[0])
    rounding = 1e-12 * float(np.abs(difference_S).sum())
    return float((np.abs(sums) >= seen - rounding).mean())


def paired_t_p(difference_S: Sequence[float]) -> float:
    """The two-sided p-value of 'the differences have mean 0', were they normal: Student's paired t-test.

    For few differences, of which a sign-flip test could never make a verdict. 1 where all of them are 0. Raises
    ValueError for fewer than two.

    >>> round(paired_t_p([1.0, 2.0, 3.0]), 4)
    0.0742
    """
    difference = np.asarray(difference_S, dtype=np.float64)
    if len(difference) < 2:
        raise ValueError(f"a t-test takes two differences or more, but got {len(difference)}")
    error, mean = difference.std(ddof=1) / np.sqrt(len(difference)), difference.mean()
    if error == 0:
        return 1.0 if mean == 0 else 0.0
    return float(2 * stdtr(len(difference) - 1, -abs(mean / error)))


def holm(p_M: Sequence[float]) -> list[float]:
    """Holm's step-down correction: rejecting what is below α keeps the chance of any false rejection below α.

    Holm, "A simple sequentially rejective multiple test procedure", 1979.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    p = np.asarray(p_M, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate((len(p) - np.arange(len(p))) * p[order])
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(stepped, 1.0)
    return [float(value) for value in corrected]


def expansion(units: int, level: float) -> float:
    """By how much a bootstrap over few units is too narrow: √(n/(n−1)) for the variance, t/z for not knowing it.

    Hesterberg, "What teachers should know about the bootstrap", The American Statistician 69, 2015, section 4.4.
    """
    z = NormalDist().inv_cdf(1 - level / 2)
    return float(np.sqrt(units / (units - 1)) * stdtrit(units - 1, 1 - level / 2) / z)


@dataclass(frozen=True, slots=True, kw_only=True)
class TwoWay:
    """Draws of seeds, to be joined with resamples of the identities.

    `seed_share_SB`: the weight of each seed in each resample, summing to 1; `identity_expansion` widens what the
    resamples of `clusters` units show.
    """

    seed_share_SB: Floats
    identity_expansion: float
    level: float

    @classmethod
    def draw(cls, *, seeds: int, resamples: int, clusters: int, level: float, rng: np.random.Generator) -> "TwoWay":
        """Draw `seeds` seeds with replacement for each resample. Raises ValueError for fewer than two of either."""
        if seeds < 2 or clusters < 2:
            raise ValueError(f"a bootstrap needs two seeds and two clusters, but got {seeds} and {clusters}")
        drawn_SB = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples).T
        share_SB = (1 + expansion(seeds, level) * (drawn_SB - 1)) / seeds
        return cls(seed_share_SB=share_SB, identity_expansion=expansion(clusters, level), level=level)

    def means(self, score_S: Floats, move_SB: Floats) -> Floats:
        """The mean over seeds in each resample of seeds and identities, B.

        `score_S`: the scores on all identities; `move_SB`: by how much each moves in a resample of the identities.
        """
        moved_SB = score_S[:, None] + self.identity_expansion * move_SB
        mean_B: Floats = (self.seed_share_SB * moved_SB).sum(0)
        return mean_B

    def interval(self, value_B: Floats) -> tuple[float, float]:
        """The percentile interval."""
        low, high = np.quantile(value_B, [self.level / 2, 1 - self.level / 2])
        return float(low), float(high)


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A mean over seeds (or of paired differences) with its interval; `n` counts the seeds."""

    mean: float
    low: float
    high: float
    n: int


def estimate(score_S: Floats, move_SB: Floats, two_way: TwoWay, *, least: float = -1.0) -> Estimate:
    """The mean of the scores, which cannot be below `least`, or of paired differences, with its interval over seeds and
    identities. It cannot leave what scores of [0, 1] allow, however few the seeds."""
    low, high = two_way.interval(two_way.means(score_S, move_SB))
    return Estimate(mean=float(score_S.mean()), low=max(low, least), high=min(high, 1.0), n=len(score_S))


def p_better(difference_S: Floats, move_SB: Floats, two_way: TwoWay) -> float:
    """The share of resamples in which the mean difference is above 0; 0 itself counts half."""
    mean_B = two_way.means(difference_S, move_SB)
    return float((mean_B > 0).mean() + (mean_B == 0).mean() / 2)


def verdict(difference: Estimate, corrected_p: float, level: float) -> Verdict:
    """`better` or `worse` only where the corrected p-value and the interval both say so."""
    if corrected_p < level and difference.low > 0:
        return "better"
    if corrected_p < level and difference.high < 0:
        return "worse"
    return "no significant difference"
