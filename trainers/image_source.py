"""An image set, however it is kept: its classes, the bytes of each image, and which class is in which split.

Every format names an image `images/<class>/<file>`, so that one set in two formats is the same set: the same names,
sizes and CRCs, hence the same decoded cache and the same task.
"""

import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Literal, Protocol, get_args

from trainers.machine import usable_cpus

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
LAYOUT = "images/<class>/<file>"

Reader = Callable[[str], bytes]
"""From an image's name to its bytes; safe to call from several threads. Raises `DataError` where that cannot be."""

OnImage = Callable[[str], None]
"""Called with the name of each image that is done."""

Fingerprint = tuple[str, int, int]
"""Name, size in bytes and CRC-32 of an image; the size of one that cannot be read is −1."""

_READERS = 16
"""Threads that read at once at least: over a network they wait more than they work."""
_AHEAD = 4096
"""Reads that are queued at once."""

_IGNORED_NAMES = {"Thumbs.db", "desktop.ini"}


class DataError(ValueError):
    """The data cannot be used as it is; the message is one sentence that says what is wrong and what is right."""


class Store(Protocol):
    """Where the bytes of a set's images are."""

    def reader(self) -> AbstractContextManager[Reader]:
        """What reads images while the context lasts."""
        ...

    def fingerprints(self, names: Sequence[str]) -> list[Fingerprint]:
        """Name, size and CRC-32 of each of these images, by reading them, several at once as it is the disk or the
        network that takes its time; a format that keeps checksums need not."""
        blocks = [names[first : first + _AHEAD] for first in range(0, len(names), _AHEAD)]
        with self.reader() as read, ThreadPoolExecutor(max_workers=max(_READERS, usable_cpus())) as pool:
            return [found for block in blocks for found in pool.map(partial(_fingerprint, read), block)]


def _fingerprint(read: Reader, name: str) -> Fingerprint:
    try:
        content = read(name)
    except DataError:
        return name, -1, 0
    return name, len(content), zlib.crc32(content)


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundImages:
    """What a reader found at `path`, before it is known which class is in which split.

    `files` maps a class to its images' names, sorted. `columns` are what a table says of the images beyond that: by
    column, the text of each image's name. `splits` is what the format itself says of the splits, `table`
    the content of a `split.csv`, which goes before it; both None where there is none. `conflict` is why what the format
    says of the splits cannot be used.
    """

    path: Path
    format: str
    files: Mapping[str, tuple[str, ...]]
    store: Store
    columns: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    splits: Mapping[str, Split] | None = None
    table: bytes | None = None
    conflict: str = ""

    def with_table(self, table: bytes | None) -> "FoundImages":
        """The same images with a `split.csv`."""
        return replace(self, table=table)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSource:
    """The images and splits of a set: `files` maps a class to its images' names, `splits` each class to its split (what
    says so is `split_by`), `columns` further columns of a table to the text of each image's name."""

    path: Path
    format: str
    files: Mapping[str, tuple[str, ...]]
    splits: Mapping[str, Split]
    store: Store
    columns: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    split_by: str = ""

    def classes(self, split: Split) -> list[str]:
        """The classes of a split, sorted."""
        return sorted(name for name in self.files if self.splits[name] == split)

    def names(self, classes: Iterable[str]) -> list[str]:
        """The images of these classes, class by class."""
        return [name for class_name in classes for name in self.files[class_name]]

    def reader(self) -> AbstractContextManager[Reader]:
        """What reads images while the context lasts."""
        return self.store.reader()

    def fingerprints(self, names: Sequence[str]) -> list[Fingerprint]:
        """Name, size in bytes and CRC-32 of each image; the same for a set in whichever format."""
        return self.store.fingerprints(names)

    def only(self, files: Mapping[str, Sequence[str]]) -> "ImageSource":
        """The same set with these images alone, in the order of the classes' names."""
        kept = {name: tuple(sorted(files[name])) for name in sorted(files)}
        return replace(self, files=kept, splits={name: self.splits[name] for name in kept})


def by_class(names: Iterable[str], path: Path) -> dict[str, tuple[str, ...]]:
    """Names of the layout sorted into their classes, without the desktop's files. Raises `DataError` for another
    layout, and for a class whose name is no text."""
    files: dict[str, list[str]] = {}
    for name in sorted(set(names)):
        parts = PurePosixPath(name).parts
        if not all(wanted(part) for part in parts):
            continue
        if len(parts) != 3:
            raise DataError(f"{name} in {path} does not fit the layout {LAYOUT}; move or remove it")
        files.setdefault(parts[1], []).append(name)
    undecoded = next((class_name for class_name in files if not is_text(class_name)), None)
    if undecoded is not None:
        raise DataError(f"{path} has the class {undecoded!r}, whose name is not in UTF-8; rename it")
    return {class_name: tuple(of_class) for class_name, of_class in files.items()}


def is_text(name: str) -> bool:
    """Whether a name is Unicode, and not bytes of another encoding that the system hands on as surrogates."""
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


def wanted(name: str) -> bool:
    """Whether a file or folder is the user's, not the desktop's."""
    return not name.startswith(".") and name not in _IGNORED_NAMES
