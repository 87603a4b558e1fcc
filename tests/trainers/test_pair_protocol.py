from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trainers.test_image_folder import split_csv, write_folder
from trainers.formats.opening import open_images
from trainers.formats.pair_sets import read_pairs, write_pairs
from trainers.image_source import DataError
from trainers.pair_protocol import accuracy_by_fold, pair_set, read_pair_list

RealData = Callable[[str], Path]

LIST = "2\t1\nann\t1\t2\nann\t1\tbob\t3\nbob\t1\t3\nbob\t1\tann\t2\n"


def test_a_list_of_pairs_is_read_fold_by_fold(tmp_path: Path) -> None:
    (tmp_path / "pairs.txt").write_text(LIST)
    pairs = read_pair_list(tmp_path / "pairs.txt")
    assert pairs.first == [("ann", 1), ("ann", 1), ("bob", 1), ("bob", 1)]
    assert pairs.second == [("ann", 2), ("bob", 3), ("bob", 3), ("ann", 2)]
    assert pairs.genuine_P.tolist() == [True, False, True, False]
    assert pairs.fold_P.tolist() == [0, 0, 1, 1]
    (tmp_path / "pairs.txt").write_text(LIST.replace("2\t1\n", "1\n").replace("bob\t1\t3\nbob\t1\tann\t2\n", ""))
    assert read_pair_list(tmp_path / "pairs.txt").fold_P.tolist() == [0, 0]


BAD = {
    "nothing": ("", "must begin with the number of folds"),
    "no numbers": ("ann\t1\t2\n", "must begin with the number of folds"),
    "too few": (LIST[:-15], "promises 4 pairs, but has 3"),
    "kinds in another order": (
        LIST.replace("ann\t1\t2\nann\t1\tbob\t3", "ann\t1\tbob\t3\nann\t1\t2"),
        "pair 1 .* genuine",
    ),
    "a word for a number": (LIST.replace("ann\t1\tbob\t3", "ann\t1\tbob\tx"), "pair 2 of .* is no impostor pair"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_damaged_list_gets_one_sentence(case: str, tmp_path: Path) -> None:
    content, sentence = BAD[case]
    (tmp_path / "pairs.txt").write_text(content)
    with pytest.raises(DataError, match=sentence):
        read_pair_list(tmp_path / "pairs.txt")


def test_the_list_of_lfw_becomes_a_verification_set(real_data: RealData, tmp_path: Path) -> None:
    source = open_images(real_data("lfw112"))
    pairs = read_pair_list(real_data("lfw112") / "pairs_val.txt")
    assert (len(pairs.first), int(pairs.genuine_P.sum())) == (600, 300)
    write_pairs(pair_set(pairs, source), tmp_path / "lfw_val.bin")
    again = read_pairs(tmp_path / "lfw_val.bin")
    name, number = pairs.second[7]
    with source.reader() as read:
        assert again.images[15] == read(f"images/{name}/{name}_{number:04d}.jpg")
    official = read_pair_list(real_data("lfw112") / "pairs.txt")
    assert (len(official.first), official.fold_P.max()) == (6000, 9)
    with pytest.raises(DataError, match=r"has no image \d+ of \w+, which the list of pairs names"):
        pair_set(official, source)


def test_an_image_that_several_files_may_be_is_refused_where_a_pair_names_it(tmp_path: Path) -> None:
    names = ("ann/x_1", "ann/y_01", "ann/x_2", "bob/x_1", "bob/x_2", "bob/x_3", "bob/y_3")
    contents = {f"images/{name}.png": name.encode() for name in names}
    split = {"split.csv": split_csv({"ann": "train", "bob": "test"})}
    source = open_images(write_folder(tmp_path / "set", contents | split))
    (tmp_path / "pairs.txt").write_text("1\nbob\t1\t2\nbob\t1\tann\t2\n")
    assert pair_set(read_pair_list(tmp_path / "pairs.txt"), source).images == [
        b"bob/x_1",
        b"bob/x_2",
        b"bob/x_1",
        b"ann/x_2",
    ]
    (tmp_path / "pairs.txt").write_text("1\nbob\t1\t2\nbob\t1\tann\t1\n")
    either = r"has images/ann/x_1\.png and images/ann/y_01\.png, either of which may be the image 1 of ann that"
    with pytest.raises(DataError, match=f"{either} the list of pairs names; leave one out"):
        pair_set(read_pair_list(tmp_path / "pairs.txt"), source)


def slow_accuracy(scores: list[float], genuine: list[bool], folds: list[int]) -> list[float]:
    """Every threshold tried on all other folds, one by one."""
    result = []
    for fold in sorted(set(folds)):
        train = [(score, mate) for score, mate, of in zip(scores, genuine, folds, strict=True) if of != fold]
        levels = sorted({score for score, _ in train})
        tried = [-np.inf, *((one + two) / 2 for one, two in pairwise(levels)), np.inf]
        right = [sum((score > threshold) == mate for score, mate in train) for threshold in tried]
        best = tried[right.index(max(right))]
        held = [(score, mate) for score, mate, of in zip(scores, genuine, folds, strict=True) if of == fold]
        result.append(sum((score > best) == mate for score, mate in held) / len(held))
    return result


@given(st.lists(st.tuples(st.integers(-4, 4), st.booleans(), st.integers(0, 3)), min_size=2, max_size=40))
@settings(max_examples=300, deadline=None)
def test_the_accuracy_equals_a_slow_one_with_ties_and_all(rows: list[tuple[int, bool, int]]) -> None:
    scores, genuine, folds = [row[0] / 4 for row in rows], [row[1] for row in rows], [row[2] for row in rows]
    arrays = np.array(scores, np.float32), np.array(genuine), np.array(folds)
    if len(set(folds)) < 2:
        with pytest.raises(ValueError, match="two folds or more"):
            accuracy_by_fold(*arrays)
    else:
        assert accuracy_by_fold(*arrays).tolist() == slow_accuracy(scores, genuine, folds)


def test_a_threshold_between_neighbouring_scores_tells_them_apart() -> None:
    """In float32 nothing lies between the two."""
    score_P = np.array([1.0, np.nextafter(np.float32(1), np.float32(0))] * 20, np.float32)
    genuine_P, fold_P = np.arange(40) % 2 == 0, np.repeat(np.arange(10), 4)
    assert accuracy_by_fold(score_P, genuine_P, fold_P).tolist() == [1.0] * 10
