"""The error curve against scikit-learn's and against slow loops, ties included."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import auc, det_curve, roc_auc_score, roc_curve

from trainers.protocols.roc import Roc, merged

PAIRS = st.lists(st.tuples(st.integers(-4, 4), st.booleans(), st.integers(1, 3)), min_size=2, max_size=40)
FARS = (0.0, 1e-3, 0.1, 0.25, 0.5, 1.0)


def slow_tar(score: list[float], genuine: list[bool], weight: list[float], far: float) -> float:
    """The best TAR over every threshold whose share of accepted impostors is at most `far`."""
    rows = list(zip(score, genuine, weight, strict=True))
    found = []
    for threshold in [-np.inf, *score]:
        false, true = (
            sum(w for s, mate, w in rows if mate == kind and s > threshold)
            / sum(w for _, mate, w in rows if mate == kind)
            for kind in (False, True)
        )
        found += [true] if false <= far + 1e-12 else []
    return max(found)


@given(PAIRS)
@settings(max_examples=300, deadline=None)
def test_the_curve_is_scikit_learns_and_its_rates_those_of_a_slow_loop(rows: list[tuple[int, bool, int]]) -> None:
    score, genuine, weight = [s / 4 for s, _, _ in rows], [mate for _, mate, _ in rows], [float(w) for *_, w in rows]
    arrays = np.array(score, np.float32), np.array(genuine), np.array(weight)
    if len(set(genuine)) < 2:
        with pytest.raises(ValueError, match=r"pairs of both kinds, but there is no (genuine|impostor) pair"):
            Roc.of(*arrays)
        return
    roc = Roc.of(*arrays)
    far, tar, _ = roc_curve(genuine, score, sample_weight=weight, drop_intermediate=False)
    assert roc.far_CB[:, 0] == pytest.approx(far)
    assert roc.tar_CB[:, 0] == pytest.approx(tar)
    assert roc.area()[0] == pytest.approx(roc_auc_score(genuine, score, sample_weight=weight))
    assert roc.equal_error_rate()[0] == pytest.approx(np.interp(0, far + tar - 1, far))
    for limit in FARS:
        assert roc.tar_at(limit)[0] == pytest.approx(slow_tar(score, genuine, weight, limit))


def test_misses_and_false_accepts_are_those_of_scikit_learns_det_curve() -> None:
    rng = np.random.default_rng(0)
    score_P, genuine_P = rng.integers(0, 50, 400).astype(np.float32), rng.random(400) < 0.4
    false, missed, _ = det_curve(genuine_P, score_P)
    roc = Roc.of(score_P, genuine_P)
    ours = {(round(f, 12), round(1 - t, 12)) for f, t in zip(roc.far_CB[:, 0], roc.tar_CB[:, 0], strict=True)}
    assert {(round(f, 12), round(m, 12)) for f, m in zip(false, missed, strict=True)} <= ours


def test_columns_of_weights_are_curves_of_their_own() -> None:
    rng = np.random.default_rng(1)
    genuine_CB, impostor_CB = rng.integers(0, 4, (2, 30, 5)).astype(np.float64)
    together = Roc.of_cells(genuine_CB, impostor_CB)
    for column in range(5):
        alone = Roc.of_cells(genuine_CB[:, [column]], impostor_CB[:, [column]])
        for name, values in together.scores(FARS[1:5]).items():
            assert values[column] == pytest.approx(alone.scores(FARS[1:5])[name][0])


def test_scores_that_are_all_the_same_tell_nothing_apart() -> None:
    scores = Roc.of(np.zeros(9, np.float32), np.arange(9) < 3).scores((0.1,))
    assert {name: value[0] for name, value in scores.items()} == {"tar_at_far_1e-1": 0.0, "eer": 0.5, "auc": 0.5}


def test_a_merged_curve_keeps_the_rates_of_few_false_accepts_and_is_near_elsewhere() -> None:
    rng = np.random.default_rng(2)
    genuine_P = rng.random(60_000) < 0.1
    score_P = (rng.standard_normal(60_000) + 2 * genuine_P).astype(np.float32)
    _, cell_P = np.unique(-score_P, return_inverse=True)
    kinds = (genuine_P, ~genuine_P)
    counts = [np.bincount(cell_P[kind], minlength=cell_P.max() + 1).astype(np.float64) for kind in kinds]
    run_C = merged(counts[1], 1000)
    assert 500 < run_C.max() < 1100
    assert (np.diff(run_C) >= 0).all()
    starts = np.flatnonzero(np.diff(run_C, prepend=-1))
    rough = Roc.of_cells(*(np.add.reduceat(count, starts)[:, None] for count in counts))
    whole = Roc.of_cells(*(count[:, None] for count in counts))
    impostors = counts[1].sum()
    for accepted in (1, 2, 10, 50):
        assert rough.tar_at(accepted / impostors) == whole.tar_at(accepted / impostors)
    assert rough.tar_at(0.1)[0] == pytest.approx(whole.tar_at(0.1)[0], abs=2e-3)
    assert rough.equal_error_rate()[0] == pytest.approx(whole.equal_error_rate()[0], abs=2e-3)
    assert auc(rough.far_CB[:, 0], rough.tar_CB[:, 0]) == pytest.approx(whole.area()[0], abs=1e-3)
    assert merged(counts[1][:10], 1000).tolist() == list(range(10))
