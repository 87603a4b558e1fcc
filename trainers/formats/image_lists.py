"""Lists of image files with their classes: a CSV with the columns `path`, `label`, perhaps `split`, and any others."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from trainers.formats.labelled import Columns, Row, found_in_table, further_columns, image_names
from trainers.image_folder import beside, reading, write_folder
from trainers.image_source import DataError, FoundImages, ImageSource, OnImage, Reader, Store
from trainers.splits import TABLE_NAME

PATH_WORDS = ("path", "file", "filename", "image_path", "image")
LABEL_WORDS = ("label", "class", "identity", "id", "target")
"""What the columns may be called; the first that is there counts."""
LIST_COLUMNS = ("path", "label", "split")
"""Of a list that is written; further ones follow."""


@dataclass(frozen=True, slots=True)
class ListStore(Store):
    """Image files anywhere, by name."""

    files: Mapping[str, Path]

    @contextmanager
    def reader(self) -> Iterator[Reader]:
        """What reads images while the context lasts."""
        yield lambda name: reading(self.files[name].read_bytes, str(self.files[name]), self.files[name].parent)


def find_in_csv(path: Path) -> FoundImages:
    """The images that a CSV lists; paths are relative to its folder. Raises `DataError`."""
    try:
        content = path.read_bytes().decode("utf-8-sig")
        table = csv.DictReader(content.splitlines(), strict=True)
        columns = table.fieldnames or []
        place, label = (column_of(words, columns, path) for words in (PATH_WORDS, LABEL_WORDS))
        lines = list(table)
        rows = [Row((each[label] or "").strip(), each[place] or "", each.get("split") or "") for each in lines]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is not a CSV file in UTF-8 ({error}); save it as one") from error
    others = [column for column in columns if column not in ("", place, label, "split")]
    return found_in_list(path, rows, {column: [each[column] or "" for each in lines] for column in others})


def found_in_list(path: Path, rows: Sequence[Row], columns: Columns) -> FoundImages:
    """The set of these rows, whose files are paths from the folder of `path`."""
    names = image_names(rows, path)
    files = {name: path.parent / row.file for name, row in zip(names, rows, strict=True)}
    found = found_in_table(path, "list", rows, names, ListStore(files), columns)
    return found.with_table(beside(path.parent / TABLE_NAME))


def column_of(words: Sequence[str], columns: Sequence[str], path: Path) -> str:
    """The first of these words that is a column. Raises `DataError` when none is."""
    for word in words:
        if word in columns:
            return word
    raise DataError(
        f"{path} lacks a column '{words[0]}' (or {', '.join(words[1:])}); it has {', '.join(columns)[:200] or 'none'}"
    )


def write_list(source: ImageSource, target: Path, on_image: OnImage) -> None:
    """A folder of images and `list.csv`, which says the class and split of each, and what further columns say."""
    write_folder(source, target, on_image)
    further = further_columns(source, LIST_COLUMNS)
    with (target / "list.csv").open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow((*LIST_COLUMNS, *further))
        rows.writerows(
            (name, label, source.splits[label], *(source.columns[column][name] for column in further))
            for label in source.files
            for name in source.files[label]
        )
