"""Error curves and histograms of pairs against verification and against counting pair by pair."""

import numpy as np
import pytest

from tests.trainers.test_resampling import clustered
from trainers.pair_scores import BINS, CURVE_FARS, PairScores
from trainers.verification import metric_name, verification

FARS = (1e-3, 1e-2, 1e-1)


def test_the_rates_of_a_curve_hold_those_of_the_scores() -> None:
    assert len(CURVE_FARS) == 51
    assert list(CURVE_FARS) == sorted(CURVE_FARS)
    assert {1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1} <= set(CURVE_FARS)


def test_a_curve_goes_through_the_true_accept_rates_of_verification() -> None:
    x_ND, label_N = clustered(0, [4] * 30, noise=1.2)
    pairs = PairScores.of(x_ND, label_N, label_N)
    wanted = verification(x_ND, label_N, FARS)
    curve = pairs.curve(FARS)
    assert curve["far"].tolist() == list(FARS)
    assert curve["tar"] == pytest.approx([wanted[metric_name(far)] for far in FARS], abs=1e-6)
    for far, threshold, accepts in zip(FARS, curve["threshold"], curve["false_accepts"], strict=True):
        assert accepts == (pairs.impostor_P > threshold).sum()
        assert accepts / len(pairs.impostor_P) <= far
        assert (pairs.impostor_P >= threshold).sum() / len(pairs.impostor_P) > far, "a lower threshold accepts too many"


def test_equal_impostors_are_accepted_together_or_not_at_all() -> None:
    """Of 15 pairs 13 are impostors, 11 of them with a cosine of 0 and 2 with one of 1."""
    x_ND = np.eye(4, dtype=np.float32)[[0, 0, 0, 1, 2, 2]]
    pairs = PairScores.of(x_ND, np.array([0, 0, 1, 2, 3, 3]), np.array([0, 0, 1, 2, 3, 3]))
    curve = pairs.curve((0.1, 0.2, 0.5))
    assert curve["threshold"].tolist() == [1, 0, 0]
    assert curve["false_accepts"].tolist() == [0, 2, 2]
    assert curve["tar"].tolist() == [0, 1, 1]


def test_rates_of_no_impostor_pair_are_left_out() -> None:
    x_ND, label_N = clustered(1, [2] * 3)
    pairs = PairScores.of(x_ND, label_N, label_N)  # 12 impostor pairs
    assert pairs.curve((0.05, 0.1))["far"].tolist() == [0.1]
    assert {name: len(values) for name, values in pairs.curve((1e-3,)).items()} == dict.fromkeys(
        ("far", "threshold", "false_accepts", "tar"), 0
    )


def test_histograms_count_each_image_once_and_each_impostor_pair_once() -> None:
    x_ND = np.array([[1, 0], [1, 0.01], [0.6, 0.8], [-1, 0], [-1, 1e-4]], dtype=np.float32)
    label_N = np.array([0, 0, 0, 1, 1])
    shares = PairScores.of(x_ND, label_N, label_N).histograms()
    assert all(len(share_H) == BINS and share_H.sum() == pytest.approx(1) for share_H in shares.values())
    # the pair of identity 1 stands for two images, each of the three of identity 0 for one
    assert shares["genuine"][-1] == pytest.approx((2 + 1) / 5)
    assert shares["genuine"][80] == pytest.approx(2 / 5)
    assert shares["impostor"][:3].sum() == pytest.approx(4 / 6)
