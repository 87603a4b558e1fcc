"""How well a cheap score ranks losses: its rank correlation with a final score, and what a choice by it costs.

L losses, S seeds, R resamples of the losses; a function of R×L×S takes L×S too. A proxy score of a loss under a seed is
held against the mean of its final scores under the OTHER seeds, so that what a seed does to both is no agreement; what
is found is averaged over seeds.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

LEAST_RELIABILITY = 0.05
"""A reliability below this is taken for this: dividing by its root would say nothing."""


def spearman(one: Floats, other: Floats, axis: int = -1) -> Floats:
    """The rank correlation along an axis, ties sharing their mean rank; 0 where one of the two is constant."""
    ranks = [rankdata(each, axis=axis) for each in (one, other)]
    left, right = (each - each.mean(axis, keepdims=True) for each in ranks)
    size = np.sqrt((left**2).sum(axis) * (right**2).sum(axis))
    correlation: Floats = (left * right).sum(axis) / np.where(size > 0, size, 1.0)
    return correlation


def intraclass(score_RLS: Floats) -> Floats:
    """The reliability of one seed's ranking, R: the intraclass correlation ICC(C,1) of the ranks within each seed.

    Shrout & Fleiss 1979, ICC(3,1): (MS_losses − MS_error) / (MS_losses + (S − 1)·MS_error). Without ties it is the mean
    rank correlation between two seeds.
    """
    rank_RLS = rankdata(score_RLS, axis=-2)
    losses, seeds = score_RLS.shape[-2:]
    of_loss_RL = rank_RLS.mean(-1, keepdims=True) - (losses + 1) / 2
    between_R = seeds * (of_loss_RL**2).sum((-2, -1)) / (losses - 1)
    rest_RLS = rank_RLS - (losses + 1) / 2 - of_loss_RL
    error_R = (rest_RLS**2).sum((-2, -1)) / ((losses - 1) * (seeds - 1))
    total_R = between_R + (seeds - 1) * error_R
    reliability_R: Floats = (between_R - error_R) / np.where(total_R > 0, total_R, 1.0)
    return reliability_R


def of_means(reliability_R: Floats, seeds: int) -> Floats:
    """The reliability of a mean over seeds, from that of one (Spearman 1910; Brown 1910)."""
    return seeds * reliability_R / (1 + (seeds - 1) * reliability_R)


def agreement(proxy_RLS: Floats, final_RLS: Floats) -> Floats:
    """The rank correlation of a seed's proxy scores with the other seeds' final ones, averaged over seeds, R."""
    mean_R: Floats = spearman(proxy_RLS, others_mean(final_RLS), axis=-2).mean(-1)
    return mean_R


def others_mean(score_RLS: Floats) -> Floats:
    """The mean over all seeds but its own."""
    mean_RLS: Floats = (score_RLS.sum(-1, keepdims=True) - score_RLS) / (score_RLS.shape[-1] - 1)
    return mean_RLS


def corrected(correlation_R: Floats, final_RLS: Floats) -> Floats:
    """The correlation with final scores that had no noise of seeds (Spearman 1904), R: divided by the root of their
    reliability. The noise of the proxy stays in: a search has to live with it. Can exceed 1 by chance."""
    one_R = np.maximum(intraclass(final_RLS), LEAST_RELIABILITY)
    freed_R: Floats = correlation_R / np.sqrt(of_means(one_R, final_RLS.shape[-1] - 1))
    return freed_R


def top_one_regret(proxy_RLS: Floats, final_RLS: Floats) -> Floats:
    """The final score that is missed by taking the loss with the best proxy score, averaged over seeds, R."""
    others_RLS = others_mean(final_RLS)
    best = proxy_RLS.argmax(-2)[..., None, :]
    regret_R: Floats = (others_RLS.max(-2) - np.take_along_axis(others_RLS, best, axis=-2)[..., 0, :]).mean(-1)
    return regret_R


def signal_to_noise(proxy_LS: Floats) -> float:
    """The range of the losses' means, divided by the standard deviation over seeds."""
    noise = float(np.sqrt(proxy_LS.var(axis=1, ddof=1).mean()))
    return float(np.ptp(proxy_LS.mean(1))) / noise if noise > 0 else float("inf")


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A number with its percentile interval over resamples of the losses."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, value: float, resampled_R: Floats, *, level: float = 0.05) -> "Interval":
        """The 95 % interval, where `level` does not say otherwise."""
        low, high = np.quantile(resampled_R, [level / 2, 1 - level / 2])
        return cls(value=value, low=float(low), high=float(high))


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What a proxy is worth. `gain` is its `corrected` agreement less that of the reference."""

    agreement: Interval
    corrected: Interval
    gain: Interval
    regret: Interval
    signal_to_noise: float


def judge(proxy_LS: Floats, reference_LS: Floats, final_LS: Floats, draws_RL: Ints) -> Judgement:
    """The proxy against a reference proxy, both resampled by `draws_RL`, indices of losses with replacement."""
    everything = np.arange(len(final_LS))
    rows_RL = np.concatenate([everything[None], draws_RL])
    measured = _measured(proxy_LS[rows_RL], reference_LS[rows_RL], final_LS[rows_RL])
    found = [Interval.of(float(each_R[0]), each_R[1:]) for each_R in measured]
    return Judgement(
        agreement=found[0],
        corrected=found[1],
        gain=found[2],
        regret=found[3],
        signal_to_noise=signal_to_noise(proxy_LS),
    )


def _measured(proxy_RLS: Floats, reference_RLS: Floats, final_RLS: Floats) -> tuple[Floats, ...]:
    own_R = agreement(proxy_RLS, final_RLS)
    freed_R = corrected(own_R, final_RLS)
    gain_R = freed_R - corrected(agreement(reference_RLS, final_RLS), final_RLS)
    return own_R, freed_R, gain_R, top_one_regret(proxy_RLS, final_RLS)


def draw_losses(losses: int, resamples: int, rng: np.random.Generator) -> Ints:
    """Resamples of the losses, R×L; one with fewer than three different losses is drawn again."""
    drawn_RL = rng.integers(losses, size=(resamples, losses))
    while (few_R := np.array([len(np.unique(row)) < 3 for row in drawn_RL])).any():
        drawn_RL[few_R] = rng.integers(losses, size=(int(few_R.sum()), losses))
    return drawn_RL
