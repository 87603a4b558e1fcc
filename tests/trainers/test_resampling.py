"""Resampled verification against the same thing done pair by pair, and against verification itself."""

import math
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest

from trainers.lfw_protocol import draw_pairs, fold_accuracy
from trainers.pair_scores import PairScores
from trainers.resampling import draw_clusters, resampled
from trainers.verification import MEAN_TAR_FARS, metric_name, verification

FARS = (1e-1, 1e-2)
Labels = npt.NDArray[np.int64]
Pair = tuple[float, bool, float]


def clustered(seed: int, sizes: list[int], noise: float = 0.9) -> tuple[npt.NDArray[np.float32], Labels]:
    rng = np.random.default_rng(seed)
    label_N = np.repeat(np.arange(len(sizes)), sizes)
    centres = rng.standard_normal((len(sizes), 6))
    return (centres[label_N] + noise * rng.standard_normal((len(label_N), 6))).astype(np.float32), label_N


def naive(
    x_ND: npt.NDArray[np.float32], label_N: Labels, cluster_N: Labels, weight_G: npt.NDArray[np.float64]
) -> dict[str, float]:
    """The scores of one resample: every image copied as often as its cluster was drawn, every pair looked at. Images
    of one cluster form pairs within a copy only."""
    unit_ND = x_ND / np.linalg.norm(x_ND, axis=1, keepdims=True)
    copies = [(image, copy) for image in range(len(label_N)) for copy in range(int(weight_G[cluster_N[image]]))]
    genuine, impostors = [], []
    for at, (i, i_copy) in enumerate(copies):
        for j, j_copy in copies[at + 1 :]:
            if cluster_N[i] == cluster_N[j] and i_copy != j_copy:
                continue
            score = float(unit_ND[i] @ unit_ND[j])
            if label_N[i] == label_N[j]:
                genuine.append((score, 2 / ((label_N == label_N[i]).sum() - 1)))
            else:
                impostors.append(score)
    total = sum(weight for _, weight in genuine)
    curve = [
        (sum(s > t for s in impostors) / len(impostors), sum(w for s, w in genuine if s > t) / total)
        for t in sorted({*impostors, -2.0}, reverse=True)
    ]
    found = {metric_name(far): max(tar for false, tar in curve if false <= far + 1e-12) for far in FARS}
    above = next(index for index, (false, tar) in enumerate(curve) if false + tar >= 1)
    found["eer"] = min(curve[above][0], 1 - curve[above - 1][1])  # to the right first, then up
    low, high = MEAN_TAR_FARS
    ends = [min(max(false, low), high) for false, _ in curve] + [high]
    steps = zip(curve, pairwise(ends), strict=True)
    found["mean_tar"] = sum(tar * math.log(b / a) for (_, tar), (a, b) in steps) / math.log(high / low)
    return found


@pytest.mark.parametrize("groups", [1, 3], ids=["identities", "groups of three"])
def test_resamples_are_those_of_looking_at_every_pair(groups: int) -> None:
    x_ND, label_N = clustered(0, [3, 2, 4, 1, 2, 3, 1, 2, 2])
    cluster_N = label_N // groups
    weight_GB = draw_clusters(label_N, cluster_N, 12, np.random.default_rng(1))
    moves = resampled(PairScores.of(x_ND, label_N, cluster_N), weight_GB, FARS).scores
    still = naive(x_ND, label_N, cluster_N, np.ones(len(weight_GB)))
    for column in range(12):
        wanted = naive(x_ND, label_N, cluster_N, weight_GB[:, column])
        found = {name: moves[name][column] + still[name] for name in wanted}
        assert found == pytest.approx(wanted, abs=1e-6)


def test_what_was_drawn_once_each_moves_nothing() -> None:
    x_ND, label_N = clustered(1, [5] * 12)
    moves = resampled(PairScores.of(x_ND, label_N, label_N), np.ones((12, 2)), FARS).scores
    assert set(moves) == verification(x_ND, label_N, FARS).keys()
    assert all((move == 0).all() for move in moves.values())


def test_a_cluster_left_out_is_as_if_it_had_never_been() -> None:
    x_ND, label_N = clustered(2, [4] * 8, noise=1.2)
    weight_GB = np.ones((8, 1))
    weight_GB[7] = 0
    moves = resampled(PairScores.of(x_ND, label_N, label_N), weight_GB, FARS).scores
    kept = label_N < 7
    all_of_them, without = verification(x_ND, label_N, FARS), verification(x_ND[kept], label_N[kept], FARS)
    for name in ("tar_at_far_1e-1", "tar_at_far_1e-2"):
        assert moves[name][0] == pytest.approx(without[name] - all_of_them[name], abs=1e-9)
    assert moves["auc"][0] == pytest.approx(without["auc"] - all_of_them["auc"], abs=2e-3)
    assert moves["eer"][0] == pytest.approx(without["eer"] - all_of_them["eer"], abs=2e-3)


def test_many_pairs_are_interpolated_closely() -> None:
    x_ND, label_N = clustered(3, [10] * 80, noise=1.2)
    weight_GB = np.ones((80, 1))
    weight_GB[60:] = 0
    moves = resampled(PairScores.of(x_ND, label_N, label_N), weight_GB, (1e-1, 1e-2, 1e-3)).scores
    kept = label_N < 60
    before = verification(x_ND, label_N, (1e-1, 1e-2, 1e-3))
    after = verification(x_ND[kept], label_N[kept], (1e-1, 1e-2, 1e-3))
    for name in ("tar_at_far_1e-1", "tar_at_far_1e-2", "tar_at_far_1e-3", "eer", "mean_tar"):
        assert moves[name][0] == pytest.approx(after[name] - before[name], abs=2e-3)


def test_the_curve_moves_as_the_scores_at_its_rates_do() -> None:
    x_ND, label_N = clustered(4, [5] * 12)
    weight_GB = draw_clusters(label_N, label_N, 20, np.random.default_rng(2))
    moves = resampled(PairScores.of(x_ND, label_N, label_N), weight_GB, FARS, (3e-2, *FARS))
    assert moves.tar_FB.shape == (3, 20)
    assert (moves.tar_FB[1:] == [moves.scores[metric_name(far)] for far in FARS]).all()
    assert (moves.tar_FB[0] != moves.tar_FB[1]).any()


def test_the_blend_moves_with_its_parts() -> None:
    x_ND, label_N = clustered(4, [4] * 8, noise=1.2)
    weight_GB = draw_clusters(label_N, label_N, 5, np.random.default_rng(1))
    moves = resampled(PairScores.of(x_ND, label_N, label_N), weight_GB, FARS).scores
    assert moves["blend"] == pytest.approx((moves["rank1"] - moves["eer"] + moves["mean_tar"]) / 3)
    assert np.abs(moves["blend"]).max() > 1e-3


def test_lfw_pairs_count_as_often_as_their_clusters_are_drawn() -> None:
    x_ND, label_N = clustered(5, [4, 3, 5, 2, 1, 6], noise=1.2)
    cluster_N = label_N // 2
    weight_GB = np.array([[2.0, 0.0], [0.0, 1.0], [1.0, 2.0]])
    shuffle = np.random.default_rng(0).permutation(len(label_N))
    pairs = PairScores.of(x_ND[shuffle], label_N[shuffle], cluster_N[shuffle])
    moves = resampled(pairs, weight_GB, FARS).scores
    order_N = shuffle[np.argsort(label_N[shuffle], kind="stable")]
    first_P, second_P = (order_N[image_P] for image_P in draw_pairs(label_N[order_N]))
    unit_ND = x_ND / np.linalg.norm(x_ND, axis=1, keepdims=True)
    score_P = (unit_ND[first_P] * unit_ND[second_P]).sum(1)
    still = verification(x_ND[shuffle], label_N[shuffle], FARS)["lfw_accuracy"]
    for column, weight_G in enumerate(weight_GB.T):
        count = [
            w[a] if a == b else w[a] * w[b]
            for w, a, b in ((weight_G, cluster_N[i], cluster_N[j]) for i, j in zip(first_P, second_P, strict=True))
        ]
        wanted = fold_accuracy(score_P, np.array(count)[:, None])[0]
        assert moves["lfw_accuracy"][column] + still == pytest.approx(wanted, abs=1e-9)


def test_every_resample_has_genuine_and_impostor_pairs() -> None:
    label_N = np.array([0, 0, 1, 2])
    weight_GB = draw_clusters(label_N, label_N, 500, np.random.default_rng(0))
    assert (weight_GB.sum(0) == 3).all()
    assert (weight_GB[0] >= 1).all()
    assert ((weight_GB > 0).sum(0) >= 2).all()


@pytest.mark.parametrize("cluster_N", [[0, 0, 0, 0], [0, 1, 2, 3]], ids=["one cluster", "no mates"])
def test_what_cannot_be_resampled_is_refused(cluster_N: list[int]) -> None:
    label_N = np.arange(4) if max(cluster_N) else np.array([0, 0, 1, 1])
    with pytest.raises(ValueError, match="two clusters, one of them with a genuine pair"):
        draw_clusters(label_N, np.array(cluster_N), 10, np.random.default_rng(0))
