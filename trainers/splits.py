"""Which class is in which split: by a `split.csv`, by what the format says, or by the hash of the class's name."""

import csv
import hashlib
import io
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path

from trainers.image_source import SPLITS, DataError, FoundImages, ImageSource, Split

TABLE_NAME = "split.csv"

_VAL_SHARE = _TEST_SHARE = 0.15
_FEWEST_VAL_CLASSES = 4  # two in each half: the fewest that give an impostor pair
_FEWEST_TEST_CLASSES = 2
_FEWEST_TRAIN_CLASSES = 2
_FEWEST_CLASSES = _FEWEST_TRAIN_CLASSES + _FEWEST_VAL_CLASSES + _FEWEST_TEST_CLASSES


def with_splits(found: FoundImages) -> ImageSource:
    """The set with each class in its split. Raises `DataError` where there are no such splits."""
    if found.table is not None:
        by, splits = TABLE_NAME, _splits_from_table(_rows(found.table, found.path), found.files)
    elif found.conflict:
        raise DataError(f"in {found.path} {found.conflict}")
    elif found.splits is not None:
        by, splits = f"the {found.format} itself", dict(found.splits)
    else:
        by, splits = "a hash of the class names", _splits_by_hash(found.files, found.path)
    return ImageSource(
        path=found.path,
        format=found.format,
        files=found.files,
        splits=splits,
        split_by=by,
        store=found.store,
        columns=found.columns,
    )


def _rows(content: bytes, source: Path) -> list[dict[str, str | None]]:
    """The rows of a `split.csv`."""
    try:
        reader = csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True)
        columns = reader.fieldnames or []
        rows = list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"split.csv of {source} is not a CSV file in UTF-8 ({error}); save it as one") from error
    missing = [column for column in ("class", "split") if column not in columns]
    if missing:
        raise DataError(
            f"split.csv of {source} lacks the column '{missing[0]}'; it needs class and split, "
            f"but has {', '.join(columns) or 'none'}"
        )
    return rows


def _splits_from_table(
    rows: Sequence[Mapping[str, str | None]], files: Mapping[str, Sequence[str]]
) -> dict[str, Split]:
    splits: dict[str, Split] = {}
    words: dict[str, Split] = {split: split for split in SPLITS}
    for line, row in enumerate(rows, start=2):
        written, word = row["class"] or "", (row["split"] or "").strip()
        class_name = written if written in files else written.strip()
        if word not in words:
            raise DataError(f"split.csv line {line} puts class '{class_name}' in '{word}'; use train, val or test")
        if splits.setdefault(class_name, words[word]) != word:
            raise DataError(f"split.csv puts class '{class_name}' in both {splits[class_name]} and {word}; choose one")
    for class_name in splits:
        if class_name not in files:
            raise DataError(
                f"split.csv names class '{class_name}', but images/{class_name} has no files; "
                "remove the row or add the images"
            )
    for class_name in files:
        if class_name not in splits:
            raise DataError(f"split.csv does not name class '{class_name}'; add a row for it or remove its images")
    return splits


def _splits_by_hash(files: Mapping[str, Sequence[str]], path: Path) -> dict[str, Split]:
    """Classes in the order of their names' hashes: the first 15 % are val, the next 15 % test, the rest train.

    One-image classes are split apart from the others, so that every split of a small set keeps genuine pairs.
    """
    splits: dict[str, Split] = {}
    pairable = [name for name in files if len(files[name]) > 1]
    single = [name for name in files if len(files[name]) == 1]
    if len(pairable) < _FEWEST_CLASSES:
        raise DataError(
            f"{path} has no split.csv, and to split classes by hash takes {_FEWEST_CLASSES} with two or more images, "
            f"but it has {len(pairable)}; add classes or a split.csv"
        )
    for names, fewest_val, fewest_test in ((pairable, _FEWEST_VAL_CLASSES, _FEWEST_TEST_CLASSES), (single, 0, 0)):
        ordered = sorted(names, key=name_hash)
        val_count = max(fewest_val, round(_VAL_SHARE * len(ordered)))
        test_count = max(fewest_test, round(_TEST_SHARE * len(ordered)))
        for rank, class_name in enumerate(ordered):
            in_val, in_test = rank < val_count, rank < val_count + test_count
            splits[class_name] = "val" if in_val else "test" if in_test else "train"
    return splits


def name_hash(name: str, *, salt: str = "") -> str:
    """A hash of a class name, the same on every machine, to order classes by."""
    return hashlib.sha256(f"{salt}\0{name}".encode()).hexdigest()


def split_table(splits: Mapping[str, Split]) -> bytes:
    """The `split.csv` of these splits."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(("class", "split"))
    rows.writerows(sorted(splits.items()))
    return text.getvalue().encode()


def drawn_splits(
    files: Mapping[str, Sequence[str]], path: Path, *, val_share: float, test_share: float, seed: int
) -> dict[str, Split]:
    """A split of the classes drawn evenly along the list of them sorted by their number of images, so that each split
    has small and large ones in the same proportion.

    Raises `DataError` when the shares leave a split, or training, without the fewest classes that it needs.
    """
    ordered = sorted(files, key=lambda name: (len(files[name]) > 1, len(files[name]), name_hash(name, salt=f"{seed}")))
    to_train = len(ordered) - round(val_share * len(ordered)) - round(test_share * len(ordered))
    if to_train < _FEWEST_TRAIN_CLASSES:
        raise DataError(
            f"a val share of {val_share:g} and a test share of {test_share:g} leave {max(to_train, 0)} of the "
            f"{len(ordered)} classes of {path} to train on, but training needs {_FEWEST_TRAIN_CLASSES}; choose smaller "
            "shares"
        )
    start = Fraction(int(name_hash("start", salt=f"{seed}")[:8], 16), 2**32)
    splits: dict[str, Split] = dict.fromkeys(ordered, "train")
    left = ordered
    plan: tuple[tuple[Split, float, int], ...] = (
        ("test", test_share, _FEWEST_TEST_CLASSES),
        ("val", val_share, _FEWEST_VAL_CLASSES),
    )
    for split, share, fewest in plan:
        count = round(share * len(ordered))
        chosen = {left[int((index + start) * Fraction(len(left), count))] for index in range(count)}
        pairable = sum(len(files[name]) > 1 for name in chosen)
        if count and (len(chosen) < fewest or pairable < 2):
            raise DataError(
                f"a {split} share of {share:g} takes {len(chosen)} of the {len(ordered)} classes of {path}, {pairable} "
                f"of them with two images, but {split} needs {fewest}, two with two images; choose a larger share"
            )
        splits |= dict.fromkeys(chosen, split)
        left = [name for name in left if name not in chosen]
    return splits
