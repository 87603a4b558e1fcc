"""An image set as files: a folder laid out `images/<class>/<file>` or plainly `<class>/<file>`, or a zip of the former.

This module finds the files and refuses, with one sentence, what cannot be used. It decodes nothing
(`trainers.image_cache` does).
"""

import stat
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from trainers.image_source import (
    LAYOUT,
    DataError,
    Fingerprint,
    FoundImages,
    ImageSource,
    OnImage,
    Reader,
    Store,
    by_class,
    wanted,
)
from trainers.splits import TABLE_NAME, split_table

_LONG_AGO = (1980, 1, 1, 0, 0, 0)  # the first date a zip can hold: the same images give the same bytes


@dataclass(frozen=True, slots=True)
class FolderStore(Store):
    """The image files of the set at `path`; `root`, it or its `images`, holds one folder a class."""

    path: Path
    root: Path

    @contextmanager
    def reader(self) -> Iterator[Reader]:
        """What reads images while the context lasts."""
        yield lambda name: reading((self.root / name.removeprefix("images/")).read_bytes, name, self.path)


@dataclass(frozen=True, slots=True)
class ZipStore(Store):
    """Image files in a zip."""

    path: Path

    @contextmanager
    def reader(self) -> Iterator[Reader]:
        """What reads images while the context lasts."""
        with _open_zip(self.path) as archive:
            yield lambda name: reading(lambda: archive.read(name), name, self.path)

    def fingerprints(self, names: Sequence[str]) -> list[Fingerprint]:
        """Name, size and CRC-32 of each image, from the zip's directory."""
        with _open_zip(self.path) as archive:
            infos = [archive.getinfo(name) for name in names]
            return [(info.filename, info.file_size, info.CRC) for info in infos]


def find_in_folder(path: Path) -> FoundImages:
    """The images of a folder that holds `images/`, or the folders of the classes themselves."""
    root = path / "images" if (path / "images").is_dir() else path
    files = by_class(_folder_names(path, root), path)
    table = beside(path / TABLE_NAME)
    return FoundImages(path=path, format="folder", files=files, store=FolderStore(path, root), table=table)


def find_in_zip(path: Path) -> FoundImages:
    """The images of a zip that holds `images/`; `split.csv` may lie beside it, which goes before, or in it."""
    files = by_class(_zip_names(path), path)
    table = beside(path.parent / TABLE_NAME)
    with _open_zip(path) as archive:
        if table is None and TABLE_NAME in archive.namelist():
            table = reading(lambda: archive.read(TABLE_NAME), TABLE_NAME, path)
    return FoundImages(path=path, format="zip", files=files, store=ZipStore(path), table=table)


def holds_class_folders(path: Path) -> bool:
    """Whether a folder looks like `<class>/<file>`."""
    folders = (entry for entry in path.iterdir() if wanted(entry.name) and entry.is_dir())
    return any(wanted(child.name) and not child.is_dir() for folder in folders for child in folder.iterdir())


def beside(table: Path) -> bytes | None:
    """The content of a `split.csv`, None where there is none."""
    return reading(table.read_bytes, TABLE_NAME, table.parent) if table.exists() else None


def reading(read: Callable[[], bytes], name: str, source: Path) -> bytes:
    """What `read` gives. Raises `DataError` for what files and archives raise."""
    try:
        return read()
    except (OSError, RuntimeError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise DataError(f"{name} in {source} cannot be read ({error}); restore or remove it") from error


def _open_zip(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} cannot be read as a zip ({error}); give an image folder or a zip") from error


def _folder_names(path: Path, root: Path) -> list[str]:
    try:
        entries = [entry for entry in root.iterdir() if wanted(entry.name)]
        below = [child for entry in entries if entry.is_dir() for child in entry.iterdir()]
        loose = [entry for entry in entries if not entry.is_dir() and root != path]
        deep = [child for child in below if wanted(child.name) and child.is_dir()]
    except OSError as error:
        raise DataError(f"{path} cannot be listed ({error}); make it readable") from error
    if loose or deep:
        stray = (loose + deep)[0].relative_to(path).as_posix()
        raise DataError(f"{stray} in {path} does not fit the layout {LAYOUT}; move or remove it")
    return [f"images/{child.relative_to(root).as_posix()}" for child in below]


def _zip_names(path: Path) -> list[str]:
    with _open_zip(path) as archive:
        infos = archive.infolist()
    for info in infos:
        refuse_unsafe(info.filename, path)
        if stat.S_ISLNK(info.external_attr >> 16):
            raise DataError(f"{path} holds the symbolic link '{info.filename}'; put the file itself there")
    return [info.filename for info in infos if not info.is_dir() and info.filename.startswith("images/")]


def refuse_unsafe(name: str, archive: Path) -> None:
    """Raises `DataError` for a name that would lie outside of where the archive is unpacked."""
    above = ".." in PurePosixPath(name).parts
    if above or name.startswith("/") or "\\" in name or ":" in name.split("/")[0]:
        raise DataError(f"{archive} holds the unsafe name '{name}'; names must be {LAYOUT}")


def write_folder(source: ImageSource, target: Path, on_image: OnImage) -> None:
    """A folder of `images/<class>/<file>` and `split.csv`."""
    target.mkdir()
    with source.reader() as read:
        for name in source.names(source.files):
            place = target / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(read(name))
            on_image(name)
    (target / TABLE_NAME).write_bytes(split_table(source.splits))


def write_zip(source: ImageSource, target: Path, on_image: OnImage) -> None:
    """A zip of `images/<class>/<file>` and `split.csv`, not compressed, for images are."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive, source.reader() as read:
        archive.writestr(zipfile.ZipInfo(TABLE_NAME, _LONG_AGO), split_table(source.splits))
        for name in source.names(source.files):
            archive.writestr(zipfile.ZipInfo(name, _LONG_AGO), read(name))
            on_image(name)
