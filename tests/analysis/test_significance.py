"""The statistics of a comparison against known answers, brute force, SciPy and simulation."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from analysis.significance import Estimate, TwoWay, estimate, expansion, holm, p_better, sign_flip_p, verdict

DIFFERENCES = st.lists(st.integers(-8, 8).map(lambda n: n / 8), min_size=1, max_size=8)


@pytest.mark.parametrize(
    ("differences", "p"),
    [
        ([1.0], 1.0),
        ([1.0, 1.0], 0.5),
        ([0.3] * 5, 2 / 32),
        ([0.1] * 10, 2 / 1024),
        ([-0.1] * 10, 2 / 1024),
        ([1.0, 2.0, -3.0], 1.0),
        ([0.0] * 10, 1.0),
        ([3.0, 1.0, 1.0], 0.25),
    ],
)
def test_the_sign_flip_p_of_small_cases(differences: list[float], p: float) -> None:
    assert sign_flip_p(differences) == p


@given(DIFFERENCES)
def test_the_sign_flip_p_counts_every_choice_of_signs(differences: list[float]) -> None:
    sums = [
        abs(sum(s * d for s, d in zip(signs, differences, strict=True)))
        for signs in product((1, -1), repeat=len(differences))
    ]
    assert sign_flip_p(differences) == sum(each >= abs(sum(differences)) for each in sums) / len(sums)


def test_the_sign_flip_p_is_scipys() -> None:
    differences = np.random.default_rng(0).normal(0.4, 1, 10)
    told = stats.permutation_test((differences,), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert sign_flip_p(list(differences)) == pytest.approx(told.pvalue)


def test_too_many_differences_are_refused() -> None:
    with pytest.raises(ValueError, match="1 to 20 differences, but got 21"):
        sign_flip_p([1.0] * 21)


def test_holm_by_hand() -> None:
    assert holm([0.04, 0.001, 0.02, 0.5]) == pytest.approx([0.08, 0.004, 0.06, 0.5])
    assert holm([0.01, 0.011, 0.012]) == pytest.approx([0.03, 0.03, 0.03])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_the_expansion_is_students() -> None:
    assert expansion(10, 0.05) == pytest.approx(np.sqrt(10 / 9) * stats.t.ppf(0.975, 9) / stats.norm.ppf(0.975))


def draw_two_way(rng: np.random.Generator, *, seeds: int, clusters: int, resamples: int = 400) -> TwoWay:
    return TwoWay.draw(seeds=seeds, resamples=resamples, clusters=clusters, level=0.05, rng=rng)


@pytest.mark.parametrize(
    ("seeds", "clusters", "spread"),
    [
        (10, 80, (1.0, 0.0, 0.0)),
        (10, 80, (0.0, 1.0, 0.0)),
        (10, 80, (1.0, 9.0, 9.0)),
        (10, 10, (1.0, 3.0, 3.0)),
        (3, 80, (1.0, 0.0, 0.0)),
        (3, 80, (1.0, 3.0, 3.0)),
    ],
    ids=["seeds", "identities", "both and their interplay", "ten groups", "three seeds", "three seeds, both"],
)
def test_the_interval_covers_the_truth_as_often_as_it_says(
    seeds: int, clusters: int, spread: tuple[float, float, float]
) -> None:
    rng = np.random.default_rng(7)
    covered, runs = 0, 400
    for _ in range(runs):
        of_seed, of_cluster, of_both = spread
        value_SG = of_seed * rng.standard_normal((seeds, 1)) + of_cluster * rng.standard_normal(clusters)
        value_SG = value_SG + of_both * rng.standard_normal((seeds, clusters))
        drawn_GB = rng.multinomial(clusters, np.full(clusters, 1 / clusters), size=400).T / clusters
        score_S = value_SG.mean(1)
        found = estimate(
            score_S, value_SG @ drawn_GB - score_S[:, None], draw_two_way(rng, seeds=seeds, clusters=clusters)
        )
        covered += found.low <= 0 <= found.high
    assert covered / runs > 0.95 - 3 * np.sqrt(0.05 * 0.95 / runs)


def test_intervals_do_not_leave_what_scores_can_be() -> None:
    two_way = draw_two_way(np.random.default_rng(0), seeds=2, clusters=4)
    score_S, move_SB = np.array([0.1, 0.9]), np.zeros((2, 400))
    apart = estimate(score_S - score_S[::-1], move_SB, two_way)
    assert (apart.low, apart.high) == (-1, 1)
    alone = estimate(score_S, move_SB, two_way, least=0.0)
    assert (alone.low, alone.high) == (0, 1)


def test_equal_losses_are_never_significantly_different() -> None:
    rng = np.random.default_rng(0)
    two_way = draw_two_way(rng, seeds=10, clusters=50)
    nothing = estimate(np.zeros(10), np.zeros((10, 400)), two_way)
    assert (nothing.mean, nothing.low, nothing.high, nothing.n) == (0, 0, 0, 10)
    assert p_better(np.zeros(10), np.zeros((10, 400)), two_way) == 0.5
    assert verdict(nothing, sign_flip_p([0.0] * 10), 0.05) == "no significant difference"


@pytest.mark.parametrize(
    ("low", "high", "p", "said"),
    [
        (0.01, 0.03, 0.02, "better"),
        (-0.03, -0.01, 0.02, "worse"),
        (0.01, 0.03, 0.05, "no significant difference"),
        (-0.01, 0.03, 0.001, "no significant difference"),
        (0.0, 0.03, 0.001, "no significant difference"),
    ],
)
def test_a_verdict_needs_both_p_and_interval(low: float, high: float, p: float, said: str) -> None:
    assert verdict(Estimate(mean=(low + high) / 2, low=low, high=high, n=10), p, 0.05) == said


def test_one_seed_or_one_cluster_gives_no_interval() -> None:
    with pytest.raises(ValueError, match="two seeds and two clusters, but got 1 and 5"):
        draw_two_way(np.random.default_rng(0), seeds=1, clusters=5)
