"""From rows of (class, file, split) to the names and splits of an image set, for formats that keep tables of images."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from trainers.image_source import DataError, FoundImages, ImageSource, Split, Store, by_class, wanted

SPLIT_WORDS: Mapping[str, Split] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}
"""What formats call the splits."""


Columns = Mapping[str, Sequence[str]]
"""What a table says beyond label, file and split: by column, the text of each row."""


@dataclass(frozen=True, slots=True)
class Row:
    """An image as a table has it: its class, its file (a name or a path), and its split, empty where none is said."""

    label: str
    file: str
    split: str = ""


def image_names(rows: Sequence[Row], path: Path) -> list[str]:
    """`images/<class>/<file>` of each row. Files of one name in one class are told apart by their folders.

    Raises `DataError` for a label that cannot be the name of a class, for a file that is passed over as the desktop's,
    and for two rows of one image.
    """
    for label in {row.label for row in rows}:
        if not wanted(label) or not label or "/" in label or "\\" in label or not label.isprintable():
            raise DataError(f"{path} has the class {label[:60]!r}; a class is a name without slashes or a dot in front")
    short = [f"images/{row.label}/{PurePosixPath(row.file).name}" for row in rows]
    uses = Counter(short)
    names = [
        name if uses[name] == 1 else f"images/{row.label}/{row.file.strip('/').replace('/', '_')}"
        for name, row in zip(short, rows, strict=True)
    ]
    hidden = next((name for name in names if not wanted(PurePosixPath(name).name)), None)
    if hidden is not None:
        raise DataError(f"{path} has {hidden[:160]}, whose name is that of a hidden file; rename it or remove its row")
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        raise DataError(f"{path} has {twice} twice; remove one of them")
    return names


def found_in_table(
    path: Path,
    kind: str,
    rows: Sequence[Row],
    names: Sequence[str],
    store: Store,
    columns: Columns | None = None,
) -> FoundImages:
    """The set of these rows, with the splits that they tell and what further `columns` say."""
    files = by_class(names, path)
    splits, conflict = _splits(rows)
    return FoundImages(
        path=path,
        format=kind,
        files=files,
        store=store,
        columns={column: dict(zip(names, texts, strict=True)) for column, texts in (columns or {}).items()},
        splits=splits,
        conflict=conflict,
    )


def further_columns(source: ImageSource, own: Collection[str]) -> list[str]:
    """The columns of a set that a table has place for beside its `own`."""
    return [column for column in source.columns if column not in own]


def _splits(rows: Sequence[Row]) -> tuple[dict[str, Split] | None, str]:
    """The split of each class, or why there are none."""
    splits: dict[str, Split] = {}
    if not any(row.split for row in rows):
        return None, ""
    for row in rows:
        split = SPLIT_WORDS.get(row.split.strip().lower())
        if split is None:
            return None, f"class '{row.label}' is in the split '{row.split[:60]}'; use train, val or test"
        if splits.setdefault(row.label, split) != split:
            return None, (
                f"class '{row.label}' is in both {splits[row.label]} and {split}, but no class may be in two splits; "
                "make a split.csv with 'lossearch data split'"
            )
    return splits, ""
