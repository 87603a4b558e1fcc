"""Image sets in Arrow tables: parquet files, and folders of Hugging Face's `datasets` on disk; and CSV files of texts.

An image is a struct of `bytes` and `path`, as `datasets` has it, or plain bytes; or a table lists paths. A label is a
text or a number, which the features that `datasets` keeps beside or in the schema may name. Parquet is held in memory
while it is read, Arrow files are mapped.
"""

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import csv

from trainers.formats.image_lists import LABEL_WORDS, PATH_WORDS, column_of, found_in_list
from trainers.formats.labelled import SPLIT_WORDS, Columns, Row, found_in_table, further_columns, image_names
from trainers.image_folder import beside
from trainers.image_source import DataError, FoundImages, ImageSource, OnImage, Reader, Store
from trainers.splits import TABLE_NAME

_IMAGE_WORDS = ("image", "img", "bytes", "image_bytes", "content")
_WRITTEN_AT_ONCE = 1000
_IMAGE_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_IMAGE, _TEXT = {"_type": "Image"}, {"dtype": "string", "_type": "Value"}

TABLE_COLUMNS = ("image", "label", "split")
"""Of a table that is written; further ones follow."""


@dataclass(frozen=True, slots=True)
class ArrowStore(Store):
    """Images in columns of bytes; `rows` says in which column, and in which row of it, each is."""

    columns: Sequence[pa.ChunkedArray]
    rows: Mapping[str, tuple[int, int]]

    @contextmanager
    def reader(self) -> Iterator[Reader]:
        """What reads images while the context lasts."""

        def read(name: str) -> bytes:
            column, row = self.rows[name]
            content = self.columns[column][row].as_py()
            if not isinstance(content, bytes):
                raise DataError(f"{name} has no bytes; a table must hold the images themselves")
            return content

        yield read


def holds_tables(path: Path) -> bool:
    """Whether a folder holds parquet files or what `datasets.save_to_disk` writes."""
    saved = any((path / name).exists() for name in ("dataset_dict.json", "state.json"))
    return saved or any(path.glob("*.parquet")) or any(path.glob("data/*.parquet"))


def find_in_tables(path: Path) -> FoundImages:
    """The images of a parquet file, or of a folder that `holds_tables`. Raises `DataError`."""
    try:
        return _found(path, list(_tables(path)))
    except (OSError, pa.ArrowException, ValueError, KeyError, TypeError) as error:
        if isinstance(error, DataError):
            raise
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{path} cannot be read as a table ({reason}); restore it") from error


def _found(path: Path, parts: "Sequence[_Part]") -> FoundImages:
    rows: list[Row] = []
    columns: list[pa.ChunkedArray] = []
    at: list[tuple[int, int]] = []
    tables = [table for table, _, _ in parts]
    for number, table in enumerate(tables):
        images = next((word for word in _IMAGE_WORDS if _holds_bytes(table, word)), None)
        if images is None:
            listed = [row for each in parts for row in _listed(*each, path)]
            further = _columns(tables, path, listed=True)
            return found_in_list(path if path.is_file() else path / "list", listed, further)
        of_part, column = _rows(parts, number, images, path)
        rows += of_part
        columns.append(column)
        at += [(number, row) for row in range(len(of_part))]
    image_of = image_names(rows, path)
    store = ArrowStore(columns, dict(zip(image_of, at, strict=True)))
    kind = "parquet" if path.is_file() else "huggingface"
    folder = path.parent if path.is_file() else path
    further = _columns(tables, path, listed=False)
    found = found_in_table(path, kind, rows, image_of, store, further)
    return found.with_table(beside(folder / TABLE_NAME))


_Part = tuple[pa.Table, Sequence[str], str]
"""A table, the names of its label's numbers (none: they have none), and the split that its place tells."""


def _tables(path: Path) -> Iterator[_Part]:
    if path.is_file():
        yield _parquet(path, "")
    elif (path / "dataset_dict.json").exists():
        for split in json.loads((path / "dataset_dict.json").read_bytes())["splits"]:
            yield from _saved(path / PurePosixPath(str(split)).name, str(split))
    elif (path / "state.json").exists():
        yield from _saved(path, "")
    else:
        for file in sorted([*path.glob("*.parquet"), *path.glob("data/*.parquet")]):
            split = file.name.partition("-")[0].partition(".")[0]
            yield _parquet(file, split if split in SPLIT_WORDS else "")


def _parquet(file: Path, split: str) -> _Part:
    table = pq.read_table(file, partitioning=None, page_checksum_verification=True)
    kept = json.loads((table.schema.metadata or {}).get(b"huggingface", b"{}"))
    return table, _label_names(kept.get("info", {}).get("features", {})), split


def _saved(folder: Path, split: str) -> Iterator[_Part]:
    """What `save_to_disk` wrote into a folder: files of Arrow streams, listed in `state.json`."""
    features = json.loads((folder / "dataset_info.json").read_bytes()).get("features") or {}
    for listed in json.loads((folder / "state.json").read_bytes())["_data_files"]:
        file = folder / PurePosixPath(str(listed["filename"])).name
        with pa.ipc.open_stream(pa.memory_map(str(file))) as stream:
            yield stream.read_all(), _label_names(features), split


def _label_names(features: Mapping[str, Any]) -> Sequence[str]:
    """The classes that a `ClassLabel` names."""
    label = next((features[word] for word in LABEL_WORDS if word in features), None)
    names = label.get("names") if isinstance(label, dict) else None
    return [str(name) for name in names] if isinstance(names, list) else []


def _holds_bytes(table: pa.Table, column: str) -> bool:
    if column not in table.column_names:
        return False
    kind = table.schema.field(column).type
    if pa.types.is_struct(kind):
        return any(kind.field(index).name == "bytes" for index in range(kind.num_fields))
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _rows(parts: Sequence[_Part], number: int, images: str, path: Path) -> tuple[list[Row], pa.ChunkedArray]:
    """The rows of one of the tables, which holds images, and its column of bytes."""
    table, names, split = parts[number]
    column = table[images]
    files: list[str | None] = [None] * len(table)
    if pa.types.is_struct(column.type):
        has_path = any(column.type.field(index).name == "path" for index in range(column.type.num_fields))
        files = pc.struct_field(column, "path").to_pylist() if has_path else files
        column = pc.struct_field(column, "bytes")
    labels, splits = _labels(table, names, path), _splits(table, split)
    rows = [
        Row(label, file or numbered, of_row)
        for label, file, numbered, of_row in zip(labels, files, _numbered(parts, number), splits, strict=True)
    ]
    return rows, column


def _numbered(parts: Sequence[_Part], number: int) -> list[str]:
    """What to call the images of one of the tables where it does not: by numbers that go on over those of its split."""
    split = parts[number][2]
    counts = [len(table) if of_part == split else 0 for table, _, of_part in parts]
    first, width = sum(counts[:number]), len(str(sum(counts)))
    return [f"{split}{row:0{width}d}.img" for row in range(first, first + counts[number])]


def _listed(table: pa.Table, names: Sequence[str], split: str, path: Path) -> list[Row]:
    """The rows of a table that lists paths."""
    files = table[column_of(PATH_WORDS, table.column_names, path)].to_pylist()
    columns = zip(_labels(table, names, path), files, _splits(table, split), strict=True)
    return [Row(label.strip(), str(file), of_row) for label, file, of_row in columns]


def _labels(table: pa.Table, names: Sequence[str], path: Path) -> list[str]:
    values = table[column_of(LABEL_WORDS, table.column_names, path)].to_pylist()
    if names and all(isinstance(value, int) and 0 <= value < len(names) for value in values):
        return [names[value] for value in values]
    return ["" if value is None else str(value) for value in values]


def _splits(table: pa.Table, split: str) -> list[str]:
    if "split" not in table.column_names:
        return [split] * len(table)
    return [str(value or "") for value in table["split"].to_pylist()]


def _columns(tables: Sequence[pa.Table], path: Path, *, listed: bool) -> Columns:
    """What the tables say beyond label, split and, where they list them, paths; empty where one lacks a column."""
    further = [_texts(table, path, listed=listed) for table in tables]
    return {
        name: [text for table, of in zip(tables, further, strict=True) for text in of.get(name, [""] * len(table))]
        for name in dict.fromkeys(name for of in further for name in of)
    }


def _texts(table: pa.Table, path: Path, *, listed: bool) -> Columns:
    """The further columns that hold texts, whole numbers or booleans."""
    used = {"split", column_of(LABEL_WORDS, table.column_names, path)}
    if listed:
        used.add(column_of(PATH_WORDS, table.column_names, path))
    return {
        field.name: ["" if value is None else str(value) for value in table[field.name].to_pylist()]
        for field in table.schema
        if field.name not in used and _says_something(field.type)
    }


def _says_something(kind: pa.DataType) -> bool:
    of = kind.value_type if pa.types.is_dictionary(kind) else kind
    checks = (pa.types.is_string, pa.types.is_large_string, pa.types.is_integer, pa.types.is_boolean)
    return any(check(of) for check in checks)


@dataclass(frozen=True, slots=True, kw_only=True)
class Texts:
    """A column of P texts, of which U are different: `text_U[code_P]`."""

    text_U: npt.NDArray[np.str_]
    code_P: npt.NDArray[np.int64]


def read_csv_texts(path: Path, columns: Sequence[str]) -> dict[str, Texts]:
    """The columns of a CSV with this header, empty lines left out. Raises `DataError`, naming the line where it can."""
    wrong: list[csv.InvalidRow] = []

    def skip(row: csv.InvalidRow) -> str:
        wrong.append(row)
        return "skip"

    kind = pa.dictionary(pa.int32(), pa.string())
    try:
        table = csv.read_csv(
            path,
            read_options=csv.ReadOptions(use_threads=False),
            parse_options=csv.ParseOptions(invalid_row_handler=skip),
            convert_options=csv.ConvertOptions(column_types=dict.fromkeys(columns, kind)),
        )
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} cannot be read as a CSV ({' '.join(str(error).split())[:200]}); restore it") from None
    if wrong:
        line, text = csv_line(path, wrong[0].number - 1)
        raise DataError(f"line {line} of {path} must be {','.join(columns)}, but is {text[:100]!r}")
    return {name: _coded(table[name]) for name in columns}


def _coded(column: pa.ChunkedArray) -> Texts:
    whole = column.unify_dictionaries().combine_chunks()
    texts = np.array(whole.dictionary.to_pylist(), dtype=np.str_)
    return Texts(text_U=texts, code_P=whole.indices.to_numpy().astype(np.int64))


def csv_line(path: Path, row: int) -> tuple[int, str]:
    """The number, from 1 on, and the text of a row, which counts lines that are not empty from the header, 0, on."""
    with path.open(encoding="utf-8-sig", errors="replace", newline=None) as file:
        lines = ((number, line.rstrip("\n")) for number, line in enumerate(file, start=1))
        return next(itertools.islice((line for line in lines if line[1]), row, None))


def write_parquet(source: ImageSource, target: Path, on_image: OnImage) -> None:
    """One parquet file: `image` (a struct of `bytes` and `path`), `label` (the class), `split`, and further columns."""
    schema = _schema(source, {"image": _IMAGE, "label": _TEXT, "split": _TEXT}, pa.string())
    _write(source, list(source.files), target, schema, on_image)


def write_hugging_face(source: ImageSource, target: Path, on_image: OnImage) -> None:
    """A folder that `datasets.load_dataset` reads: `data/<split>-00000-of-00001.parquet`, labels as `ClassLabel`."""
    names = list(source.files)
    schema = _schema(source, {"image": _IMAGE, "label": {"names": names, "_type": "ClassLabel"}}, pa.int64())
    (target / "data").mkdir(parents=True)
    for split, word in (("train", "train"), ("val", "validation"), ("test", "test")):
        classes = [name for name in names if source.splits[name] == split]
        if classes:
            _write(source, classes, target / "data" / f"{word}-00000-of-00001.parquet", schema, on_image)


def _schema(source: ImageSource, own: Mapping[str, Mapping[str, object]], label: pa.DataType) -> pa.Schema:
    """These features and a text for each further column, as `datasets` describes them in the schema."""
    features = {**own, **dict.fromkeys(further_columns(source, TABLE_COLUMNS), _TEXT)}
    kinds = {"image": _IMAGE_TYPE, "label": label}
    return pa.schema(
        [(name, kinds.get(name, pa.string())) for name in features],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )


def _write(source: ImageSource, classes: Sequence[str], file: Path, schema: pa.Schema, on_image: OnImage) -> None:
    numbers = {name: number for number, name in enumerate(source.files)}
    names, further = source.names(classes), further_columns(source, TABLE_COLUMNS)
    with pq.ParquetWriter(file, schema, write_page_checksum=True) as writer, source.reader() as read:
        for first in range(0, len(names), _WRITTEN_AT_ONCE):
            columns: dict[str, list[Any]] = {name: [] for name in schema.names}
            for name in names[first : first + _WRITTEN_AT_ONCE]:
                label = PurePosixPath(name).parts[1]
                columns["image"].append({"bytes": read(name), "path": name})
                columns["label"].append(label if "split" in columns else numbers[label])
                if "split" in columns:
                    columns["split"].append(source.splits[label])
                for column in further:
                    columns[column].append(source.columns[column][name])
                on_image(name)
            writer.write_table(pa.table(columns, schema=schema))
