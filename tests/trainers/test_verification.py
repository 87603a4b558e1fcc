"""Verification against a slow loop in float64 and against scikit-learn, and its corner cases by hand."""

import math
from itertools import combinations, pairwise

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.metrics import roc_auc_score, roc_curve

from trainers.lfw_protocol import FOLDS, PAIRS, draw_pairs, fold_accuracy
from trainers.verification import MEAN_TAR_FARS, metric_name, verification

FARS = (1e-1, 1e-2, 1e-3, 1e-4)
Embeddings = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]


def _corners(seed: int, images: int, classes: int) -> tuple[Embeddings, Labels]:
    """Embeddings whose cosines are multiples of ½, so that exact in float32, with ties everywhere."""
    rng = np.random.default_rng(seed)
    label_N = rng.integers(0, classes, images)
    prototypes = rng.choice([-1.0, 1.0], size=(classes, 4))
    flips = np.where(rng.random((images, 4)) < 0.2, -1.0, 1.0)
    return (prototypes[label_N] * flips).astype(np.float32), label_N


def _clusters(seed: int, images: int, classes: int) -> tuple[Embeddings, Labels]:
    rng = np.random.default_rng(seed)
    label_N = rng.integers(0, classes, images)
    centres = rng.standard_normal((classes, 8))
    return (centres[label_N] + 0.8 * rng.standard_normal((images, 8))).astype(np.float32), label_N


def _pairs(x_ND: Embeddings, label_N: Labels) -> tuple[list[float], list[bool], list[float]]:
    """Score, genuineness and weight of every pair, one by one in float64."""
    unit_ND = x_ND.astype(np.float64) / np.linalg.norm(x_ND.astype(np.float64), axis=1, keepdims=True)
    images_of = {label: int((label_N == label).sum()) for label in label_N.tolist()}
    scores, genuine, weights = [], [], []
    for i, j in combinations(range(len(label_N)), 2):
        same = bool(label_N[i] == label_N[j])
        scores.append(float(unit_ND[i] @ unit_ND[j]))
        genuine.append(same)
        weights.append(sum(1 / (images_of[int(label_N[k])] - 1) for k in (i, j)) if same else 1.0)
    return scores, genuine, weights


def _slow_tar(x_ND: Embeddings, label_N: Labels, far: float) -> float:
    """The best TAR over every threshold whose false accept share is at most `far`."""
    scores, genuine, weights = _pairs(x_ND, label_N)
    impostors = [s for s, same in zip(scores, genuine, strict=True) if not same]
    mates = [(s, w) for s, same, w in zip(scores, genuine, weights, strict=True) if same]
    best = 0.0
    for threshold in [-2.0, *scores]:
        if sum(s > threshold for s in impostors) <= far * len(impostors):
            best = max(best, sum(w for s, w in mates if s > threshold) / sum(w for _, w in mates))
    return best


def _slow_rank1(x_ND: Embeddings, label_N: Labels) -> float:
    unit_ND = x_ND.astype(np.float64) / np.linalg.norm(x_ND.astype(np.float64), axis=1, keepdims=True)
    hits = []
    for i in range(len(label_N)):
        others = [j for j in range(len(label_N)) if j != i]
        mates = [float(unit_ND[i] @ unit_ND[j]) for j in others if label_N[j] == label_N[i]]
        strangers = [float(unit_ND[i] @ unit_ND[j]) for j in others if label_N[j] != label_N[i]]
        if mates:
            hits.append(max(mates) > max(strangers))
    return sum(hits) / len(hits)


def _slow_mean_tar(x_ND: Embeddings, label_N: Labels) -> float:
    """The mean of `_slow_tar` over intervals of log FAR within which no further impostor is accepted."""
    impostors = sum(not same for same in _pairs(x_ND, label_N)[1])
    low, high = MEAN_TAR_FARS
    edges = [low, *(far for k in range(1, impostors) if low < (far := k / impostors) < high), high]
    area = 0.0
    for left, right in pairwise(edges):
        area += _slow_tar(x_ND, label_N, (left * right) ** 0.5) * math.log(right / left)
    return area / math.log(high / low)


def _slow_fold_accuracy(score_P: list[float], genuine_P: list[bool], weight_P: list[float]) -> float:
    """Every threshold tried on nine folds, the lowest of the best on the tenth."""
    right = 0.0
    for fold in range(FOLDS):
        others = [p for p in range(PAIRS) if p % FOLDS != fold]
        scores = sorted({score_P[p] for p in others})
        between = [(a + b) / 2 for a, b in pairwise(scores)]
        correct = {
            threshold: sum(weight_P[p] for p in others if (score_P[p] > threshold) == genuine_P[p])
            for threshold in [-math.inf, *between, math.inf]
        }
        best = min(t for t, count in correct.items() if count == max(correct.values()))
        right += sum(weight_P[p] for p in range(fold, PAIRS, FOLDS) if (score_P[p] > best) == genuine_P[p])
    return right / sum(weight_P)


CASES = [_corners(0, 40, 9), _corners(1, 25, 3), _clusters(2, 40, 12), _clusters(3, 60, 5), _clusters(4, 30, 25)]


@pytest.mark.parametrize(("x_ND", "label_N"), CASES)
def test_tar_and_rank1_agree_with_a_slow_loop_in_float64(x_ND: Embeddings, label_N: Labels) -> None:
    scores = verification(x_ND, label_N, FARS)
    for far in FARS:
        assert scores[metric_name(far)] == pytest.approx(_slow_tar(x_ND, label_N, far), abs=1e-12)
    assert scores["rank1"] == pytest.approx(_slow_rank1(x_ND, label_N), abs=1e-12)


@pytest.mark.parametrize(("x_ND", "label_N"), CASES)
def test_auc_and_eer_agree_with_scikit_learn_under_sample_weights(x_ND: Embeddings, label_N: Labels) -> None:
    values, genuine, weights = _pairs(x_ND, label_N)
    values = list(np.round(values, 6))
    far, tar, _ = roc_curve(genuine, values, sample_weight=weights, drop_intermediate=False)
    scores = verification(x_ND, label_N, FARS)
    assert scores["auc"] == pytest.approx(roc_auc_score(genuine, values, sample_weight=weights), abs=1e-12)
    assert scores["eer"] == pytest.approx(np.interp(0, far + tar - 1, far), abs=1e-9)


@pytest.mark.parametrize(("x_ND", "label_N"), [*CASES[:3], CASES[4]])  # the slow sum is cubic in the images
def test_the_mean_tar_is_the_area_under_the_steps_over_log_far(x_ND: Embeddings, label_N: Labels) -> None:
    assert verification(x_ND, label_N, FARS)["mean_tar"] == pytest.approx(_slow_mean_tar(x_ND, label_N), abs=1e-9)


def test_the_blend_is_the_mean_of_rank1_and_both_parts_of_the_curve() -> None:
    scores = verification(*CASES[2], FARS)
    parts = scores["rank1"], 1 - scores["eer"], scores["mean_tar"]
    assert len({round(part, 3) for part in parts}) == 3
    assert scores["blend"] == pytest.approx(sum(parts) / 3)


@pytest.mark.parametrize(("x_ND", "label_N"), CASES)
def test_lfw_accuracy_agrees_with_a_slow_search_for_thresholds(x_ND: Embeddings, label_N: Labels) -> None:
    order_N = np.argsort(label_N, kind="stable")
    x_ND, label_N = x_ND[order_N], label_N[order_N]
    first_P, second_P = draw_pairs(label_N)
    unit_ND = x_ND.astype(np.float64) / np.linalg.norm(x_ND.astype(np.float64), axis=1, keepdims=True)
    score_P = (unit_ND[first_P] * unit_ND[second_P]).sum(1).round(6)
    genuine_P = label_N[first_P] == label_N[second_P]
    assert genuine_P.tolist() == [True] * 300 + [False] * 300
    slow = _slow_fold_accuracy(score_P.tolist(), genuine_P.tolist(), [1.0] * PAIRS)
    assert verification(x_ND, label_N, FARS)["lfw_accuracy"] == pytest.approx(slow, abs=1e-12)
    weight_PB = np.random.default_rng(0).integers(0, 4, (PAIRS, 3)).astype(np.float64)
    weighed = [_slow_fold_accuracy(score_P.tolist(), genuine_P.tolist(), w.tolist()) for w in weight_PB.T]
    assert fold_accuracy(score_P, weight_PB) == pytest.approx(weighed, abs=1e-12)


def test_lfw_pairs_are_of_two_different_images_and_the_same_ones_each_time() -> None:
    label_N = np.repeat(np.arange(30), [1, 2, 3] * 10)
    first_P, second_P = draw_pairs(label_N)
    assert (first_P != second_P).all()
    assert np.array_equal(np.stack(draw_pairs(label_N)), np.stack((first_P, second_P)))
    genuine = label_N[first_P[:300]]
    assert set(genuine) == {label for label in range(30) if label % 3}
    impostors = np.concatenate([label_N[first_P[300:]], label_N[second_P[300:]]])
    assert set(impostors) == set(range(30))


@pytest.mark.parametrize(("x_ND", "label_N"), CASES)
def test_scores_do_not_depend_on_the_chunks_or_the_order_of_images(
    x_ND: Embeddings, label_N: Labels, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = verification(x_ND, label_N, FARS)
    shuffle = np.random.default_rng(0).permutation(len(label_N))
    monkeypatch.setattr("trainers.verification._CHUNK_PAIRS", 7 * len(label_N))
    assert verification(x_ND, label_N, FARS) == pytest.approx(whole, abs=1e-12)
    shuffled = verification(x_ND[shuffle], 100 - label_N[shuffle], FARS)
    del shuffled["lfw_accuracy"], whole["lfw_accuracy"]  # its pairs are drawn by order
    assert shuffled == pytest.approx(whole, abs=1e-12)


def test_every_image_with_a_mate_counts_once_however_many_images_its_identity_has() -> None:
    """Identity 0: ten images along one axis (45 pairs, all accepted). Identity 1: two opposite images (rejected)."""
    x_ND = np.zeros((12, 2), dtype=np.float32)
    x_ND[:10, 0], x_ND[10:, 1] = 1, (1, -1)
    label_N = np.repeat([0, 1], [10, 2])
    assert verification(x_ND, label_N, [1e-3])["tar_at_far_1e-3"] == pytest.approx(10 / 12)


def test_images_without_a_mate_are_impostors_only() -> None:
    x_ND = np.array([[1, 0], [1, 0.1], [1, 0.05], [0, 1]], dtype=np.float32)
    alone = verification(x_ND, np.array([0, 0, 1, 2]), [1e-1])
    assert alone["tar_at_far_1e-1"] == 0.0
    assert alone["rank1"] == 0.0
    assert verification(x_ND[[0, 1, 3]], np.array([0, 0, 2]), [1e-1])["rank1"] == 1.0


def test_a_pair_at_the_threshold_is_rejected() -> None:
    """The genuine pair scores ½, the two impostor pairs ½ and 0."""
    x_ND = np.array([[1, 1, 1, 1], [1, 1, 1, -1], [1, 1, -1, 1]], dtype=np.float32)
    scores = verification(x_ND, np.array([0, 0, 1]), [0.5, 0.4])
    assert scores["tar_at_far_5e-1"] == 1.0
    assert scores["tar_at_far_4e-1"] == 0.0
    assert scores["auc"] == 0.75


def test_with_fewer_impostor_pairs_than_one_over_far_none_is_accepted() -> None:
    x_ND = np.array([[1, 0], [1, 0.2], [1, 1], [0, 1]], dtype=np.float32)
    scores = verification(x_ND, np.array([0, 0, 1, 2]), [1e-4])
    assert scores["tar_at_far_1e-4"] == 1.0
    assert scores["rank1"] == 1.0


def test_embeddings_that_are_all_the_same_tell_nothing_apart() -> None:
    x_ND = np.tile(np.random.default_rng(0).standard_normal(37).astype(np.float32), (50, 1))
    scores = verification(x_ND, np.arange(50) // 5, FARS)
    nothing = {metric_name(far): 0.0 for far in FARS}
    nothing |= {"eer": 0.5, "auc": 0.5, "rank1": 0.0, "mean_tar": 0.0, "blend": 1 / 6}
    assert scores.pop("lfw_accuracy") <= 0.5
    assert scores == pytest.approx(nothing)


def test_perfect_and_inverted_scores_give_the_ends_of_the_scale() -> None:
    apart = np.array([[1, 0], [1, 0.1], [0, 1], [0.1, 1]], dtype=np.float32)
    perfect = verification(apart, np.array([0, 0, 1, 1]), FARS)
    assert perfect == pytest.approx(dict.fromkeys(perfect, 1.0) | {"eer": 0.0})
    inverted = verification(apart, np.array([0, 1, 0, 1]), FARS)
    assert inverted["tar_at_far_1e-1"] == 0.0
    assert inverted["rank1"] == 0.0
    assert inverted["auc"] == 0.25


@pytest.mark.parametrize(
    ("label_N", "sentence"),
    [
        ([0, 1, 2], "verification needs two images of one identity, but none are among the 3 images"),
        ([4, 4, 4], "verification needs images of two identities, but none are among the 3 images"),
    ],
)
def test_lack_of_pairs_is_refused(label_N: list[int], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        verification(np.eye(3, dtype=np.float32), np.array(label_N), FARS)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_embeddings_that_are_not_finite_are_refused(value: float) -> None:
    x_ND = np.eye(4, dtype=np.float32)
    x_ND[2, 1] = value
    with pytest.raises(ValueError, match="embeddings must be finite"):
        verification(x_ND, np.array([0, 0, 1, 1]), FARS)
