"""An image set on disk: a folder or a zip laid out `images/<class>/<file>`, and which class is in which split.

This module finds the files and refuses, with one sentence, what cannot be used. It decodes nothing
(`trainers.image_cache` does).
"""

import csv
import hashlib
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal, get_args

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
LAYOUT = "images/<class>/<file>"

_VAL_SHARE = _TEST_SHARE = 0.15
_FEWEST_VAL_CLASSES = 4  # two in each half: the fewest that give an impostor pair
_FEWEST_TEST_CLASSES = 2
_FEWEST_CLASSES = 2 + _FEWEST_VAL_CLASSES + _FEWEST_TEST_CLASSES
_IGNORED_NAMES = {"Thumbs.db", "desktop.ini"}


class DataError(ValueError):
    """The data cannot be used as it is; the message is one sentence that says what is wrong and what is right."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFolder:
    """The files and splits of an image set. `path` is the folder that holds `images/`, or the zip.

    `files` maps a class to its file names (`images/<class>/<file>`, sorted), `splits` each class to its split.
    """

    path: Path
    files: Mapping[str, tuple[str, ...]]
    splits: Mapping[str, Split]

    def classes(self, split: Split) -> list[str]:
        """The classes of a split, sorted."""
        return sorted(name for name in self.files if self.splits[name] == split)

    @contextmanager
    def reader(self) -> Iterator[Callable[[str], bytes]]:
        """A function from a file's name to its bytes, safe to call from several threads.

        The function raises `DataError` for a file that cannot be read.
        """
        if self.path.is_dir():
            yield lambda name: _read((self.path / name).read_bytes, name, self.path)
        else:
            with _open_zip(self.path) as archive:
                yield lambda name: _read(lambda: archive.read(name), name, self.path)

    def fingerprints(self, names: Sequence[str]) -> list[tuple[str, int, int]]:
        """Name, size in bytes and CRC-32 of each file; the same for a folder and for a zip of it."""
        if self.path.is_dir():
            with self.reader() as read:
                contents = ((name, read(name)) for name in names)
                return [(name, len(content), zlib.crc32(content)) for name, content in contents]
        with _open_zip(self.path) as archive:
            infos = [archive.getinfo(name) for name in names]
            return [(info.filename, info.file_size, info.CRC) for info in infos]


def open_image_folder(path: Path) -> ImageFolder:
    """The image set at `path`: a folder with `images/`, a zip of one, or a folder that holds exactly one such zip.

    A `split.csv` in it or beside the zip (columns `class` and `split`; train, val or test) says which class is in
    which split. Without one, the hash of the class name does: 70 % train, 15 % val, 15 % test.

    Raises `DataError` for everything that cannot be used.
    """
    source = _locate(path)
    names = _folder_names(source) if source.is_dir() else _zip_names(source)
    files = _by_class(names, path)
    if not files:
        raise DataError(f"{path} holds no images; it must hold {LAYOUT}")
    if len(files) == 1:
        raise DataError(f"{path} holds one class only ('{next(iter(files))}'); a loss needs classes to tell apart")
    if all(len(of_class) == 1 for of_class in files.values()):
        raise DataError(f"every class in {path} has one image; verification needs classes with two or more")
    table = _split_table(source)
    splits = _splits_by_hash(files, path) if table is None else _splits_from_table(table, files)
    return ImageFolder(path=source, files=files, splits=splits)


def _locate(path: Path) -> Path:
    """The folder that holds `images/`, or the zip."""
    if not path.exists():
        raise DataError(f"there is no file or folder {path}; give an image folder or a zip ({LAYOUT})")
    if path.is_file() or (path / "images").is_dir():
        return path
    zips = sorted(path.glob("*.zip"))
    if len(zips) > 1:
        raise DataError(f"{path} holds {len(zips)} zips and no images folder; give one of them, such as {zips[0]}")
    if not zips:
        raise DataError(f"{path} is not an image folder; it must hold {LAYOUT} or exactly one zip of that")
    return zips[0]


def _open_zip(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} cannot be read as a zip ({error}); give an image folder or a zip") from error


def _read(read: Callable[[], bytes], name: str, source: Path) -> bytes:
    try:
        return read()
    except (OSError, RuntimeError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise DataError(f"{name} in {source} cannot be read ({error}); restore or remove it") from error


def _folder_names(root: Path) -> list[str]:
    try:
        entries = [entry for entry in (root / "images").iterdir() if _wanted(entry.name)]
        below = [child for entry in entries if entry.is_dir() for child in entry.iterdir()]
        loose = [entry for entry in entries if not entry.is_dir()]
        deep = [child for child in below if _wanted(child.name) and child.is_dir()]
    except OSError as error:
        raise DataError(f"{root} cannot be listed ({error}); make it readable") from error
    if loose or deep:
        stray = (loose + deep)[0].relative_to(root).as_posix()
        raise DataError(f"{stray} in {root} does not fit the layout {LAYOUT}; move or remove it")
    return [child.relative_to(root).as_posix() for child in below]


def _zip_names(path: Path) -> list[str]:
    with _open_zip(path) as archive:
        infos = archive.infolist()
    for info in infos:
        parts = PurePosixPath(info.filename).parts
        if (
            ".." in parts
            or info.filename.startswith("/")
            or "\\" in info.filename
            or ":" in info.filename.split("/")[0]
        ):
            raise DataError(f"{path} holds the unsafe name '{info.filename}'; names must be {LAYOUT}")
        if stat.S_ISLNK(info.external_attr >> 16):
            raise DataError(f"{path} holds the symbolic link '{info.filename}'; put the file itself there")
    return [info.filename for info in infos if not info.is_dir() and info.filename.startswith("images/")]


def _wanted(name: str) -> bool:
    """Whether a file or folder is the user's, not the desktop's."""
    return not name.startswith(".") and name not in _IGNORED_NAMES


def _by_class(names: Sequence[str], path: Path) -> dict[str, tuple[str, ...]]:
    files: dict[str, list[str]] = {}
    for name in sorted(set(names)):
        parts = PurePosixPath(name).parts
        if not all(_wanted(part) for part in parts):
            continue
        if len(parts) != 3:
            raise DataError(f"{name} in {path} does not fit the layout {LAYOUT}; move or remove it")
        files.setdefault(parts[1], []).append(name)
    return {class_name: tuple(of_class) for class_name, of_class in files.items()}


def _split_table(source: Path) -> list[dict[str, str | None]] | None:
    """The rows of `split.csv`, from inside the zip or the folder, else from beside the zip."""
    beside = (source if source.is_dir() else source.parent) / "split.csv"
    content = None
    if source.is_file():
        with _open_zip(source) as archive:
            if "split.csv" in archive.namelist():
                content = _read(lambda: archive.read("split.csv"), "split.csv", source)
    if content is None and beside.exists():
        content = _read(beside.read_bytes, "split.csv", beside.parent)
    if content is None:
        return None
    try:
        reader = csv.DictReader(content.decode("utf-8-sig").splitlines(), strict=True)
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
        class_name, word = ((row[column] or "").strip() for column in ("class", "split"))
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
