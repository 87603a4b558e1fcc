from collections import Counter
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest

from trainers.image_source import SPLITS, DataError, FoundImages, Split
from trainers.splits import drawn_splits, split_table, with_splits

SIZES = np.random.default_rng(0).geometric(0.1, 1000)
FILES = {f"c{index:04d}": ("x",) * int(size) for index, size in enumerate(SIZES)}


def test_each_split_has_its_share_of_small_and_of_large_classes() -> None:
    splits = drawn_splits(FILES, Path("set"), val_share=0.15, test_share=0.2, seed=0)
    assert Counter(splits.values()) == {"train": 650, "val": 150, "test": 200}
    medians = {split: np.median([len(FILES[name]) for name in FILES if splits[name] == split]) for split in SPLITS}
    assert max(medians.values()) - min(medians.values()) <= 1
    singles = {split: sum(len(FILES[name]) == 1 and splits[name] == split for name in FILES) for split in SPLITS}
    total = sum(singles.values())
    assert singles == pytest.approx({"train": 0.65 * total, "val": 0.15 * total, "test": 0.2 * total}, abs=2)


def test_the_seed_decides_and_no_share_is_no_split() -> None:
    first, again, other = (
        drawn_splits(FILES, Path("set"), val_share=0.1, test_share=0, seed=seed) for seed in (0, 0, 1)
    )
    assert first == again != other
    assert set(first.values()) == {"train", "val"}


@pytest.mark.parametrize(("val", "test"), [(0.5, 0.5), (0.3, 0.8), (0.5, 1.0), (0.5, 0.45)])
def test_shares_that_leave_no_classes_to_train_on_are_refused(val: float, test: float) -> None:
    few = dict(list(FILES.items())[:20])
    with pytest.raises(DataError, match=r"leave [01] of the 20 classes of set to train on, but training needs 2"):
        drawn_splits(few, Path("set"), val_share=val, test_share=test, seed=0)


def test_a_share_that_leaves_too_few_is_refused() -> None:
    few = dict(list(FILES.items())[:20])
    with pytest.raises(DataError, match=r"a val share of 0\.1 takes 2 of the 20 classes .* but val needs 4"):
        drawn_splits(few, Path("set"), val_share=0.1, test_share=0.2, seed=0)


def test_class_names_survive_their_own_table() -> None:
    names = ("plain", " a blank before", "a, comma", 'a "quote"', "two\nlines", "Müller")
    splits: dict[str, Split] = dict(zip(names, ("train", "val", "test") * 2, strict=True))
    table = split_table(splits)
    found = FoundImages(
        path=Path("set"), format="folder", files=dict.fromkeys(names, ("x",)), store=NoStore(), table=table
    )
    assert with_splits(found).splits == splits


class NoStore:
    """Nothing is read."""

    def reader(self) -> NoReturn:
        raise AssertionError

    def fingerprints(self, names: object) -> NoReturn:
        raise AssertionError
