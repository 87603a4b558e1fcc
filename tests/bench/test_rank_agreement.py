"""The measures of a proxy against formulas written out another way, and against scores whose agreement is known."""

from itertools import combinations

import numpy as np
import pytest
from scipy.stats import spearmanr

from tests.bench.rank_agreement import (
    agreement,
    corrected,
    draw_losses,
    intraclass,
    judge,
    of_means,
    signal_to_noise,
    spearman,
    top_one_regret,
)


def noisy(seed: int, noise: float, losses: int = 24, seeds: int = 3) -> np.ndarray:
    """Scores of losses whose true ones are 0, 1, ..., in each seed with its own noise."""
    rng = np.random.default_rng(seed)
    return np.arange(losses)[:, None] + noise * rng.standard_normal((losses, seeds))


def test_spearman_agrees_with_scipy_ties_included() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.integers(0, 6, 30).astype(float), rng.integers(0, 6, 30).astype(float)
    assert spearman(one, other) == pytest.approx(spearmanr(one, other).statistic)
    assert spearman(one, np.zeros(30)) == 0.0
    many = rng.standard_normal((2, 5, 9, 3))
    each = [[[spearmanr(*many[:, r, :, s]).statistic for s in range(3)] for r in range(5)]]
    assert spearman(many[0], many[1], axis=-2) == pytest.approx(np.array(each[0]))


def test_resamples_are_measured_as_one_by_one() -> None:
    final, proxy = np.stack([noisy(seed, 9.0) for seed in range(4)]), np.stack([noisy(9 + s, 9.0) for s in range(4)])
    pairs = list(zip(proxy, final, strict=True))
    assert agreement(proxy, final) == pytest.approx(np.array([agreement(*pair) for pair in pairs]))
    assert intraclass(final) == pytest.approx(np.array([intraclass(each) for each in final]))
    assert top_one_regret(proxy, final) == pytest.approx(np.array([top_one_regret(*pair) for pair in pairs]))


def test_the_reliability_is_the_mean_rank_correlation_between_two_seeds() -> None:
    scores = noisy(1, 6.0, seeds=4)
    pairs = [spearmanr(scores[:, a], scores[:, b]).statistic for a, b in combinations(range(4), 2)]
    assert intraclass(scores) == pytest.approx(np.mean(pairs))
    assert intraclass(noisy(0, 0.0)) == pytest.approx(1.0)


def test_a_shift_of_a_whole_seed_is_no_unreliability() -> None:
    scores = noisy(2, 4.0)
    assert intraclass(scores + np.array([0.0, 100.0, -50.0])) == pytest.approx(intraclass(scores))


def test_means_over_seeds_are_more_reliable_by_spearman_and_brown() -> None:
    assert of_means(np.array(0.5), 2) == pytest.approx(2 / 3)
    assert of_means(np.array(0.7), 1) == 0.7


def test_a_seeds_proxy_is_held_against_the_other_seeds() -> None:
    """Proxies that know their own seed's noise and nothing else agree with nothing."""
    rng = np.random.default_rng(3)
    final = rng.standard_normal((400, 3))
    assert agreement(final, final) == pytest.approx(0, abs=0.1)
    wanted = [spearmanr(final[:, s], np.delete(final, s, 1).mean(1)).statistic for s in range(3)]
    assert agreement(final, final) == pytest.approx(np.mean(wanted))


def test_the_correction_undoes_the_noise_of_the_final_scores() -> None:
    """Normal scores: a proxy of true correlation .8 keeps it, however noisy the final scores are."""
    rng = np.random.default_rng(4)
    true = rng.standard_normal((20_000, 1))
    proxy = 0.8 * true + 0.6 * rng.standard_normal((20_000, 3))
    for noise in (0.1, 1.0, 2.0):
        final = true + noise * rng.standard_normal((20_000, 3))
        measured = agreement(proxy, final)
        assert corrected(measured, final) == pytest.approx(0.787, abs=0.03)  # (6/π)·asin(.8/2)
    assert measured < 0.6


def test_the_regret_is_what_the_chosen_loss_lacks_under_the_other_seeds() -> None:
    final = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 0.0]])
    proxy = np.array([[9.0, 0.0], [1.0, 9.0], [1.0, 1.0]])
    # seed 0 chooses loss 0, seed 1 loss 1: 4 − 2 by seed 1's scores and 5 − 3 by seed 0's
    assert top_one_regret(proxy, final) == pytest.approx(2.0)


def test_the_range_is_measured_in_standard_deviations_over_seeds() -> None:
    scores = np.array([[0.0, 2.0], [10.0, 12.0]])
    assert signal_to_noise(scores) == pytest.approx(10 / 2**0.5)
    assert signal_to_noise(np.array([[1.0, 1.0], [2.0, 2.0]])) == float("inf")


def test_a_judgement_has_intervals_around_its_values_and_no_gain_over_itself() -> None:
    final, good, bad = noisy(5, 2.0), noisy(6, 2.0), noisy(7, 30.0)
    draws = draw_losses(24, 300, np.random.default_rng(0))
    judged = judge(bad, good, final, draws)
    assert judged.agreement.value == agreement(bad, final)
    assert judged.agreement.low < judged.agreement.value < judged.agreement.high
    assert judged.gain.high < 0
    assert judged.gain.value == pytest.approx(judged.corrected.value - corrected(agreement(good, final), final))
    itself = judge(good, good, final, draws).gain
    assert (itself.value, itself.low, itself.high) == (0.0, 0.0, 0.0)


def test_a_resample_has_three_losses_at_least() -> None:
    draws = draw_losses(4, 500, np.random.default_rng(0))
    assert draws.shape == (500, 4)
    assert min(len(set(row)) for row in draws.tolist()) == 3
