"""How well a cheap score ranks losses: its rank correlation with a final score, and what a choice by it costs.

L losses, S seeds, R resamples of the losses. A proxy score of a loss under a seed is held against the mean of its final
scores under the OTHER seeds, so that what a seed does to both is no agreement; what is found is averaged over seeds.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

LEAST_RELIABILITY = 0.05
"""A reliability below this is taken for this: dividing by its root would say nothing."""


def spearman(one_L: Floats, other_L: Floats) -> float:
    """The rank correlation, ties sharing their mean rank; 0 where one of the two is constant."""
    ranks = np.stack([rankdata(one_L), rankdata(other_L)])
    centred = ranks - ranks.mean(1, keepdims=True)
    size = float(np.sqrt((centred**2).sum(1).prod()))
    return float(centred[0] @ centred[1]) / size if size > 0 else 0.0


def intraclass(score_LS: Floats) -> float:
    """The reliability of one seed's ranking: the intraclass correlation ICC(C,1) of the ranks within each seed.

    Shrout & Fleiss 1979, ICC(3,1): (MS_losses − MS_error) / (MS_losses + (S − 1)·MS_error). Without ties it is the mean
    rank correlation between two seeds.
    """
    rank_LS = np.apply_along_axis(rankdata, 0, score_LS)
    losses, seeds = rank_LS.shape
    of_loss_L, of_seed_S, mean = rank_LS.mean(1), rank_LS.mean(0), rank_LS.mean()
    between = seeds * ((of_loss_L - mean) ** 2).sum() / (losses - 1)
    rest_LS = rank_LS - of_loss_L[:, None] - of_seed_S + mean
    error = (rest_LS**2).sum() / ((losses - 1) * (seeds - 1))
    total = between + (seeds - 1) * error
    return float((between - error) / total) if total > 0 else 0.0


def of_means(reliability: float, seeds: int) -> float:
    """The reliability of a mean over seeds, from that of one (Spearman 1910; Brown 1910)."""
    return seeds * reliability / (1 + (seeds - 1) * reliability)


def agreement(proxy_LS: Floats, final_LS: Floats) -> float:
    """The rank correlation of a seed's proxy scores with the other seeds' final ones, averaged over seeds."""
    others_LS = others_mean(final_LS)
    return float(np.mean([spearman(proxy_LS[:, s], others_LS[:, s]) for s in range(final_LS.shape[1])]))


def others_mean(score_LS: Floats) -> Floats:
    """The mean over all seeds but its own."""
    mean_LS: Floats = (score_LS.sum(1, keepdims=True) - score_LS) / (score_LS.shape[1] - 1)
    return mean_LS


def corrected(correlation: float, final_LS: Floats) -> float:
    """The correlation with final scores that had no noise of seeds (Spearman 1904): divided by the root of their
    reliability. The noise of the proxy stays in: a search has to live with it. Can exceed 1 by chance."""
    reliability = of_means(intraclass(final_LS), final_LS.shape[1] - 1)
    return correlation / math.sqrt(max(reliability, LEAST_RELIABILITY))


def top_one_regret(proxy_LS: Floats, final_LS: Floats) -> float:
    """The final score that is missed by taking the loss with the best proxy score, averaged over seeds."""
    others_LS = others_mean(final_LS)
    chosen_S = np.take_along_axis(others_LS, proxy_LS.argmax(0)[None], axis=0)[0]
    return float((others_LS.max(0) - chosen_S).mean())


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
    rows = [_measured(proxy_LS[d], reference_LS[d], final_LS[d]) for d in (everything, *draws_RL)]
    measured = np.array(rows)
    found = [Interval.of(column[0], column[1:]) for column in measured.T]
    return Judgement(
        agreement=found[0],
        corrected=found[1],
        gain=found[2],
        regret=found[3],
        signal_to_noise=signal_to_noise(proxy_LS),
    )


def _measured(proxy_LS: Floats, reference_LS: Floats, final_LS: Floats) -> tuple[float, float, float, float]:
    own = agreement(proxy_LS, final_LS)
    freed = corrected(own, final_LS)
    gain = freed - corrected(agreement(reference_LS, final_LS), final_LS)
    return own, freed, gain, top_one_regret(proxy_LS, final_LS)


def draw_losses(losses: int, resamples: int, rng: np.random.Generator) -> Ints:
    """Resamples of the losses, R×L; one with fewer than three different losses is drawn again."""
    drawn_RL = rng.integers(losses, size=(resamples, losses))
    while (few_R := np.array([len(np.unique(row)) < 3 for row in drawn_RL])).any():
        drawn_RL[few_R] = rng.integers(losses, size=(int(few_R.sum()), losses))
    return drawn_RL
