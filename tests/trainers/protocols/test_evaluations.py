"""Each protocol's numbers and intervals against slow loops, and its corner cases by hand."""

import csv
import io
import tempfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.model_selection import KFold

from tests.trainers.protocols.sets import clusters, corners, cosine_table, embedding_set
from trainers.image_source import DataError
from trainers.protocols.all_pairs import evaluate_all_pairs
from trainers.protocols.embedding_sets import EmbeddingSet, ImageTable
from trainers.protocols.groups import by_group, spread
from trainers.protocols.identification import evaluate_distractors, evaluate_identification
from trainers.protocols.listed_pairs import (
    ListedPairs,
    consecutive_folds,
    evaluate_listed_pairs,
    read_listed_pairs,
)
from trainers.protocols.measures import Evaluation, Measure
from trainers.protocols.roc import Roc
from trainers.verification import verification

FARS = (1e-1, 1e-2)


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def values(evaluation: Evaluation) -> dict[str, float]:
    return {name: measure.value for name, measure in evaluation.measures.items()}


def within(evaluation: Evaluation) -> bool:
    """Every number lies in its interval, and every interval in [0, 1]."""
    return all(0 <= each.low <= each.value <= each.high <= 1 for each in evaluation.measures.values())


# --- all pairs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("exact_pairs", [10**9, 0], ids=["exact", "histogram"])
def test_all_pairs_are_those_of_verification_with_intervals(exact_pairs: int) -> None:
    images = clusters(0, 300, 60)
    found = evaluate_all_pairs(images, fars=(*FARS, 1e-6), resamples=200, rng=rng(), exact_pairs=exact_pairs)
    exact = verification(images.embeddings_ND, images.labels(), FARS)
    assert values(found) == pytest.approx({name: exact[name] for name in found.measures}, abs=1e-3)
    assert "tar_at_far_1e-6" not in found.measures
    assert within(found)
    assert all(each.low < each.value < each.high for each in found.measures.values())
    assert found.counts["genuine pairs"] + found.counts["impostor pairs"] == 300 * 299 // 2
    assert found.curve is not None
    at = int(np.flatnonzero(np.isclose(found.curve.far, 0.01))[0])
    assert found.curve.tar[at] == pytest.approx(exact["tar_at_far_1e-2"], abs=1e-3)
    assert (found.curve.low <= found.curve.tar).all()
    assert (found.curve.tar <= found.curve.high).all()


def test_histogram_and_exact_intervals_agree_where_blocks_are_identities() -> None:
    images = clusters(0, 400, 32, 1.5)
    wide, narrow = (
        evaluate_all_pairs(images, fars=FARS, resamples=400, rng=rng(), exact_pairs=pairs) for pairs in (0, 10**9)
    )
    for name, measure in narrow.measures.items():
        assert wide.measures[name].low == pytest.approx(measure.low, abs=0.03), name
        assert wide.measures[name].high == pytest.approx(measure.high, abs=0.03), name


@pytest.mark.parametrize("exact_pairs", [10**9, 0], ids=["exact", "histogram"])
def test_embeddings_that_are_all_the_same_tell_nothing_apart(exact_pairs: int) -> None:
    images = embedding_set(np.ones((40, 4), np.float32), np.arange(40) // 4)
    found = values(evaluate_all_pairs(images, fars=FARS, resamples=20, rng=rng(), exact_pairs=exact_pairs))
    nothing = {"tar_at_far_1e-1": 0.0, "tar_at_far_1e-2": 0.0, "eer": 0.5, "auc": 0.5, "rank1": 0.0}
    assert found == pytest.approx(nothing)


def test_one_genuine_pair_has_an_interval_of_no_width() -> None:
    x_ND = np.array([[1, 0, 0], [1, 0.1, 0], [0, 1, 0], [0, 0, 1]], dtype=np.float32)
    images = embedding_set(x_ND, np.array([0, 0, 1, 2]))
    found = evaluate_all_pairs(images, fars=(0.5,), resamples=50, rng=rng())
    assert found.measures["tar_at_far_5e-1"] == Measure(value=1.0, low=1.0, high=1.0)
    assert "3 identities: intervals over so few are too narrow" in found.notes


@pytest.mark.parametrize("label_N", [[0, 1, 2], [0, 0, 0]])
def test_lack_of_pairs_is_refused_with_what_there_is(label_N: list[int]) -> None:
    images = embedding_set(np.eye(3, dtype=np.float32), np.array(label_N))
    with pytest.raises(DataError, match=r"mine\.npz has \d pairs of one identity and \d of two among 3 images"):
        evaluate_all_pairs(images, fars=FARS, resamples=5, rng=rng())


# --- listed pairs -----------------------------------------------------------------------------------------------------


def listed(seed: int, pairs: int) -> tuple[EmbeddingSet, ListedPairs]:
    images, generator = corners(seed, 60, 8), np.random.default_rng(seed)
    first_P, second_P = generator.integers(0, 60, (2, pairs))
    genuine_P = images.labels()[first_P] == images.labels()[second_P]
    return images, ListedPairs(first_P=first_P, second_P=second_P, genuine_P=genuine_P, fold_P=consecutive_folds(pairs))


def slow_accuracy(score_P: list[float], genuine_P: list[bool], fold_P: list[int]) -> float:
    """The mean over folds; every threshold tried on the others, the lowest of the best taken."""
    right = []
    rows = list(zip(score_P, genuine_P, fold_P, strict=True))
    for fold in sorted(set(fold_P)):
        others = [(score, mate) for score, mate, of in rows if of != fold]
        levels = sorted({score for score, _ in others})
        tried = [-np.inf, *((a + b) / 2 for a, b in pairwise(levels)), np.inf]
        counts = [sum((score > threshold) == mate for score, mate in others) for threshold in tried]
        best = tried[counts.index(max(counts))]
        held = [(score > best) == mate for score, mate, of in rows if of == fold]
        right.append(sum(held) / len(held))
    return sum(right) / len(right)


def test_listed_pairs_are_scored_as_by_slow_loops() -> None:
    images, pairs = listed(0, 300)
    found = evaluate_listed_pairs(images, pairs, fars=FARS, resamples=100, rng=rng())
    table = cosine_table(images.embeddings_ND, images.embeddings_ND)
    score_P = table[pairs.first_P, pairs.second_P]
    lists = score_P.tolist(), pairs.genuine_P.tolist(), pairs.fold_P.tolist()
    assert found.measures["accuracy"].value == pytest.approx(slow_accuracy(*lists))
    curve = {name: value[0] for name, value in Roc.of(score_P.astype(np.float32), pairs.genuine_P).scores(FARS).items()}
    assert {name: value for name, value in values(found).items() if name != "accuracy"} == pytest.approx(curve)
    assert within(found)
    assert found.notes[1] == "intervals resample folds"


def test_the_accuracys_interval_is_students_over_folds() -> None:
    x_ND = np.array([[1, 0], [1, 0.1], [0, 1]], dtype=np.float32)
    pairs = ListedPairs(
        first_P=np.array([0, 0, 0, 0, 0, 0]),
        second_P=np.array([1, 2, 1, 2, 2, 1]),
        genuine_P=np.array([True, False, True, False, True, False]),
        fold_P=np.array([0, 0, 1, 1, 2, 2]),
    )
    found = evaluate_listed_pairs(EmbeddingSet(name="x", embeddings_ND=x_ND), pairs, fars=(), resamples=9, rng=rng())
    measure = found.measures["accuracy"]
    assert measure.value == pytest.approx((0.5 + 0.5 + 0) / 3)
    assert (measure.low, measure.high) == (0.0, 1.0)  # ± 4.30 · .167
    assert found.notes[0].startswith("accuracy: 0.3333 ± 0.1667 (standard error over 3 folds)")
    assert found.notes[1] == "intervals resample pairs"


@pytest.mark.parametrize("folds", [10, 2], ids=["folds", "pairs"])
def test_resamples_of_listed_pairs_move_as_the_units_drawn_say(folds: int) -> None:
    """The spread of the AUC over resamples is that of a bootstrap written out, made wider for few folds."""
    images, pairs = listed(1, 400)
    units = ListedPairs(
        first_P=pairs.first_P, second_P=pairs.second_P, genuine_P=pairs.genuine_P, fold_P=pairs.fold_P % folds
    )
    found = evaluate_listed_pairs(images, units, fars=FARS, resamples=2000, rng=rng()).measures["auc"]
    table, generator, drawn = cosine_table(images.embeddings_ND, images.embeddings_ND), np.random.default_rng(1), []
    score_P = table[pairs.first_P, pairs.second_P].astype(np.float32)
    kinds = [np.flatnonzero(pairs.genuine_P), np.flatnonzero(~pairs.genuine_P)]
    for _ in range(600):
        if folds == 10:
            rows = np.concatenate([np.flatnonzero(units.fold_P == f) for f in generator.integers(0, 10, 10)])
        else:
            rows = np.concatenate([generator.choice(kind, len(kind)) for kind in kinds])
        drawn.append(Roc.of(score_P[rows], pairs.genuine_P[rows]).area()[0])
    widening = np.sqrt(10 / 9) * stats.t.ppf(0.975, 9) / stats.norm.ppf(0.975) if folds == 10 else 1.0
    around = found.value + widening * (np.quantile(drawn, [0.025, 0.975]) - found.value)
    assert [found.low, found.high] == pytest.approx(around, abs=0.012)


@pytest.mark.parametrize("pairs", [9, 10, 25, 6000])
def test_consecutive_folds_are_those_of_scikit_learn_that_insightface_uses(pairs: int) -> None:
    fold_P = consecutive_folds(pairs)
    if pairs >= 10:
        for fold, (_, held) in enumerate(KFold(n_splits=10).split(np.zeros(pairs))):
            assert np.flatnonzero(fold_P == fold).tolist() == held.tolist()
    assert len(fold_P) == pairs


@pytest.mark.parametrize("kind", [True, False])
def test_listed_pairs_of_one_kind_are_refused(kind: bool) -> None:
    images, pairs = listed(0, 50)
    with pytest.raises(DataError, match="pairs of both kinds, but got"):
        evaluate_listed_pairs(images, pairs.only(pairs.genuine_P == kind), fars=FARS, resamples=5, rng=rng())


TEXT = "2\t1\nann\t1\t2\nann\t1\tbob\t3\nbob\t1\t3\nbob\t1\tann\t2\n"
PATHS = ["x/ann/ann_0001.jpg", "x/ann/ann_0002.jpg", "x/bob/bob_0001.jpg", "x/bob/bob_0003.jpg"]


def test_the_three_kinds_of_lists_name_the_same_pairs(tmp_path: Path) -> None:
    from trainers.formats.pair_sets import PairSet, write_pairs

    images = embedding_set(np.eye(4, dtype=np.float32), np.array([0, 0, 1, 1]), paths=PATHS)
    (tmp_path / "pairs.txt").write_text(TEXT)
    rows = [(0, 1, 1), (0, 3, 0), (2, 3, 1), (2, 1, 0)]
    lines = "".join(f"{PATHS[a]},{PATHS[b]},{mate},{'ab'[n // 2]}\n" for n, (a, b, mate) in enumerate(rows))
    (tmp_path / "pairs.csv").write_text("first,second,genuine,fold\n" + lines)
    for name in ("pairs.txt", "pairs.csv"):
        pairs = read_listed_pairs(tmp_path / name, images)
        assert np.stack([pairs.first_P, pairs.second_P, pairs.genuine_P]).T.tolist() == [list(row) for row in rows]
        assert pairs.fold_P.tolist() == [0, 0, 1, 1]
    write_pairs(PairSet(images=[b"x"] * 4, genuine_P=np.array([True, False])), tmp_path / "lfw.bin")
    pairs = read_listed_pairs(tmp_path / "lfw.bin", images)
    assert (pairs.first_P.tolist(), pairs.second_P.tolist()) == ([0, 2], [1, 3])
    (tmp_path / "rows.csv").write_text("first,second,genuine\n0,1,true\n2,3,false\n1,2,0\n")
    unnamed = EmbeddingSet(name="mine.npz", embeddings_ND=images.embeddings_ND)
    assert read_listed_pairs(tmp_path / "rows.csv", unnamed).fold_P.tolist() == [0, 0, 1]


BAD_LISTS = {
    "a.png": ("", r"is a pairs\.txt, a \.bin or a \.csv, but got .*a\.png"),
    "a.txt": (TEXT.replace("bob\t3", "bob\t9"), r"mine\.npz has no image 9 of bob, which .*a\.txt names"),
    "twice.txt": (
        "1\nann\t1\t2\nann\t1\teve\t1\n",
        r"mine\.npz has x/eve/a_1\.jpg and x/eve/b_1\.jpg, either of which may be the image 1 of eve that .*twice\.txt",
    ),
    "head.csv": ("one,two\n", "must begin with first,second,genuine"),
    "word.csv": ("first,second,genuine\n\nx,y,1\nx,y,maybe\n", "line 4 of .* 1 or 0 for genuine, but is 'x,y,maybe'"),
    "short.csv": (
        "first,second,genuine,fold\nx,y,1,0\n\nx,y,1\n",
        "line 4 of .* must be first,second,genuine,fold, but is 'x,y,1'",
    ),
    "quote.csv": ('first,second,genuine\n"x,y,1\nx,y,0\n', "line 2 of .* must be first,second,genuine, but is"),
    "bytes.csv": (
        "first,second,genuine\n" + "x,y,1\n" * 9000 + "\udcff,y,1\n",
        r"bytes\.csv cannot be read as a CSV .*UTF8",
    ),
    "empty.csv": ("\n", r"must begin with first,second,genuine .* but got \[\]"),
    "name.csv": ("first,second,genuine\nx,y,1\n", r"names 'x', but mine\.npz has 0 entries of 'paths'"),
}


@pytest.mark.parametrize("name", BAD_LISTS)
def test_a_wrong_list_gets_one_sentence(name: str, tmp_path: Path) -> None:
    content, sentence = BAD_LISTS[name]
    (tmp_path / name).write_bytes(content.encode(errors="surrogateescape"))
    paths = [*PATHS, "x/eve/a_1.jpg", "x/eve/b_1.jpg"]
    images = embedding_set(np.eye(6, dtype=np.float32), np.array([0, 0, 1, 1, 2, 2]), paths=paths)
    with pytest.raises(DataError, match=sentence):
        read_listed_pairs(tmp_path / name, images)


NAME = st.text(st.sampled_from("abc,\"' éß"), min_size=1, max_size=4)
ROW = st.tuples(NAME, NAME, st.sampled_from(["1", "0", "true", "False", " TRUE "]), st.sampled_from(["x", "y", ""]))


@given(st.lists(ROW, min_size=1, max_size=20), st.data())
@settings(max_examples=300, deadline=None)
def test_a_csv_of_pairs_is_what_pythons_reader_makes_of_it(rows: list[tuple[str, ...]], data: st.DataObject) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([("first", "second", "genuine", "fold"), *rows])
    lines = [line for each in text.getvalue().splitlines() for line in (*[""] * data.draw(st.integers(0, 1)), each)]
    ends = data.draw(st.sampled_from(["\n", "\r\n"]))
    content = data.draw(st.sampled_from(["", "\ufeff"])) + ends.join(lines) + data.draw(st.sampled_from(["", ends]))
    names = sorted({name for row in rows for name in row[:2]})
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "pairs.csv").write_bytes(content.encode())
        table = ImageTable(name="mine", columns={"paths": np.array(names)})
        pairs = read_listed_pairs(Path(folder) / "pairs.csv", table)
    assert [(names[one], names[two]) for one, two in zip(pairs.first_P, pairs.second_P, strict=True)] == [
        (row[0], row[1]) for row in rows
    ]
    assert pairs.genuine_P.tolist() == [row[2].strip().lower() in ("1", "true") for row in rows]
    folds = sorted({row[3] for row in rows})
    assert pairs.fold_P.tolist() == [folds.index(row[3]) for row in rows]


# --- identification ---------------------------------------------------------------------------------------------------


def slow_identification(probes: EmbeddingSet, gallery: EmbeddingSet, fpir: float) -> dict[str, float]:
    table = cosine_table(probes.embeddings_ND, gallery.embeddings_ND)
    same = probes.columns["labels"][:, None] == gallery.columns["labels"]
    mated = [row for row in range(len(probes)) if same[row].any()]
    others = [table[row].max() for row in range(len(probes)) if not same[row].any()]
    best = {row: table[row][same[row]].max() for row in mated}
    beaten = {row: sum(table[row][~same[row]] >= best[row]) for row in mated}
    found = {f"rank{k}": sum(beaten[row] < k for row in mated) / len(mated) for k in (1, 5)}
    rates = [
        sum(beaten[row] == 0 and best[row] > t for row in mated) / len(mated)
        for t in [-2.0, *others]
        if sum(score > t for score in others) <= fpir * len(others)
    ]
    return found | {"tpir_at_fpir_1e-1": max(rates)}


@pytest.mark.parametrize("seed", range(4))
def test_identification_is_that_of_slow_loops(seed: int) -> None:
    images = corners(seed, 120, 20) if seed % 2 else clusters(seed, 120, 20)
    gallery, probes = images.only(np.arange(40)), images.only(np.arange(40, 120))
    kept = gallery.only(gallery.labels() % 3 > 0)  # so that some probes are not mated
    found = evaluate_identification(probes, kept, fpirs=(0.1,), resamples=100, rng=rng())
    assert values(found) == pytest.approx(slow_identification(probes, kept, 0.1))
    assert within(found)
    assert found.curve is not None
    at = int(np.flatnonzero(np.isclose(found.curve.far, 0.1))[0])
    assert found.curve.tar[at] == found.measures["tpir_at_fpir_1e-1"].value
    whole = found.counts["mated probes"] + found.counts["other probes"]
    assert whole == 80


def test_distractors_are_strangers_to_all_whatever_their_labels() -> None:
    images = clusters(5, 90, 12)
    parts = [images.only(np.arange(start, start + 30)) for start in (0, 30, 60)]
    found = evaluate_identification(parts[0], parts[1], distractors=parts[2], fpirs=(0.1,), resamples=50, rng=rng())
    strangers = EmbeddingSet(
        name="both",
        embeddings_ND=np.concatenate([parts[1].embeddings_ND, parts[2].embeddings_ND]),
        columns={"labels": np.concatenate([parts[1].columns["labels"], np.full(30, "nobody")])},
    )
    assert values(found) == pytest.approx(
        values(evaluate_identification(parts[0], strangers, fpirs=(0.1,), resamples=50, rng=rng()))
    )


def test_a_resample_of_identification_is_one_of_identities() -> None:
    """Two identities, one always found, one never: every resample has share 0, ½ or 1."""
    gallery = embedding_set(np.eye(3, dtype=np.float32), np.array([0, 1, 2]))
    probes = embedding_set(np.eye(3, dtype=np.float32)[[0, 0, 2, 2]], np.array([0, 0, 1, 1]))
    found = evaluate_identification(probes, gallery, fpirs=(), resamples=200, rng=rng())
    assert found.measures["rank1"] == Measure(value=0.5, low=0.0, high=1.0)
    assert "every probe is mated, so there is no open set" in found.notes


def test_without_a_mated_probe_there_is_no_identification() -> None:
    images = embedding_set(np.eye(3, dtype=np.float32), np.arange(3))
    others = embedding_set(np.eye(3, dtype=np.float32), np.arange(3, 6))
    with pytest.raises(DataError, match=r"none of the 3 probes of mine\.npz has its identity in mine\.npz"):
        evaluate_identification(images, others, fpirs=FARS, resamples=5, rng=rng())


def test_megaface_pairs_every_probe_with_every_mate_among_the_distractors() -> None:
    images, others = clusters(6, 40, 8), clusters(7, 60, 9)
    found = evaluate_distractors(images, others, resamples=50, rng=rng())
    own = cosine_table(images.embeddings_ND, images.embeddings_ND)
    strange = cosine_table(images.embeddings_ND, others.embeddings_ND)
    label_N = images.labels()
    beaten = [sum(strange[i] >= own[i, j]) for i in range(40) for j in range(40) if i != j and label_N[i] == label_N[j]]
    assert values(found) == pytest.approx({f"rank{k}": np.mean([b < k for b in beaten]) for k in (1, 5)})
    assert found.counts["probes with a mate"] == len(beaten)
    assert within(found)
    with pytest.raises(DataError, match=r"no identity among the 3 images of mine\.npz has two"):
        evaluate_distractors(embedding_set(np.eye(3, dtype=np.float32), np.arange(3)), others, resamples=5, rng=rng())


# --- groups -----------------------------------------------------------------------------------------------------------


def test_the_spread_is_that_of_the_published_tables() -> None:
    """ArcFace-34 on RFW in Wang and Deng 2020: STD 1.53, SER 2.33."""
    published = {"Caucasian": 0.9737, "Indian": 0.9568, "Asian": 0.9455, "African": 0.9387}
    found = spread("accuracy", published)
    assert round(100 * found.mean, 2) == 95.37
    assert round(100 * found.deviation, 2) == 1.53
    assert found.skewed_error_ratio is not None
    assert round(found.skewed_error_ratio, 2) == 2.33
    assert (found.lowest, found.highest) == (0.9387, 0.9737)


def test_the_error_of_an_error_rate_is_itself_and_no_error_gives_no_ratio() -> None:
    assert spread("eer", {"a": 0.1, "b": 0.3}).skewed_error_ratio == pytest.approx(3)
    assert spread("auc", {"a": 1.0, "b": 0.9}).skewed_error_ratio is None
    with pytest.raises(ValueError, match="two groups or more, but got 1"):
        spread("auc", {"a": 1.0})


def test_each_group_is_evaluated_by_itself() -> None:
    images = clusters(8, 120, 20)
    group_N = np.where(images.labels() < 8, "low", "high")

    def evaluate(rows: npt.NDArray[np.bool_]) -> Evaluation:
        return evaluate_all_pairs(images.only(rows), fars=FARS, resamples=20, rng=rng())

    found = by_group(group_N, evaluate)
    alone = verification(images.embeddings_ND[group_N == "low"], images.labels()[group_N == "low"], FARS)
    assert found.scored["low"].measures["auc"].value == pytest.approx(alone["auc"])
    assert found.spreads()["auc"].lowest == min(each.measures["auc"].value for each in found.scored.values())
    of_low, of_high = (found.scored[group].notes for group in ("low", "high"))
    shared = [note for note in of_high if note in of_low]
    assert f"in high, low: {shared[0]}" in found.notes()
    assert found.notes(shared) == [
        f"in {group}: {note}"
        for group, notes in (("high", of_high), ("low", of_low))
        for note in notes
        if note not in shared
    ]
    with pytest.raises(DataError, match="two groups, but got one"):
        by_group(np.full(120, "one"), evaluate)
    with pytest.raises(DataError, match=r"none of 120 groups can be scored; '0': mine\.npz has 0 pairs of one"):
        by_group(np.arange(120).astype(str), evaluate)


def test_a_group_that_cannot_be_scored_leaves_the_others_and_their_spread_alone() -> None:
    images = clusters(8, 120, 20)

    def evaluate(rows: npt.NDArray[np.bool_]) -> Evaluation:
        return evaluate_all_pairs(images.only(rows), fars=FARS, resamples=20, rng=rng())

    two = by_group(np.where(np.arange(118) < 60, "a", "b"), lambda rows: evaluate(np.append(rows, [False, False])))
    three = by_group(np.repeat(["a", "b", "c"], [60, 58, 2]), evaluate)
    assert (three.names, [*three.scored]) == (["a", "b", "c"], ["a", "b"])
    assert three.spreads() == two.spreads() != {}
    assert three.notes()[-1].startswith("group 'c' is not scored: mine.npz has ")
    one = by_group(np.repeat(["a", "b"], [118, 2]), evaluate)
    assert one.spreads() == {}
    assert one.notes()[-1] == "no spread over groups: it needs two that are scored"


def test_a_rate_that_allows_no_false_accept_says_so() -> None:
    found = evaluate_all_pairs(clusters(8, 40, 10), fars=(0.1, 1e-5), resamples=20, rng=rng())
    assert "tar_at_far_1e-5" not in found.measures
    impostors = found.counts["impostor pairs"]
    assert f"FAR 1e-5: not measured, as {impostors:,} impostors allow no false accept" in found.notes
