"""An image set written in another format, whole or not at all."""

import contextlib
import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from trainers.formats.record_sets import write_records
from trainers.image_source import DataError, ImageSource, OnImage
from trainers.splits import TABLE_NAME, split_table

_LONG_AGO = (1980, 1, 1, 0, 0, 0)  # the first date a zip can hold: the same images give the same bytes


def write_images(
    source: ImageSource, target: Path, *, kind: str | None = None, on_image: OnImage = lambda _: None
) -> None:
    """Write the images of `source` and its splits to `target`, in the format `kind`, by default `format_of(target)`.

    It is written beside its place and then renamed. Raises `DataError` when `target` exists or cannot be written, and
    for an image that cannot be read; nothing is left then.
    """
    kind = kind or format_of(target)
    if kind not in WRITERS:
        raise DataError(f"unknown format '{kind}'; known are {', '.join(WRITERS)}")
    if target.exists():
        raise DataError(f"{target} is there already; choose another name or remove it")
    with _in_place(target) as partial:
        WRITERS[kind](source, partial, on_image)


def format_of(target: Path) -> str:
    """The format that the ending of a name stands for, `folder` where it stands for none."""
    return _ENDINGS.get(target.suffix.lower(), "folder")


@contextmanager
def _in_place(target: Path) -> Iterator[Path]:
    """A path to write to, which is renamed to `target` at the end and removed after an error."""
    partial = target.with_name(f"{target.name}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove(partial)
        yield partial
        partial.rename(target)
    except OSError as error:
        raise DataError(f"{target} cannot be written ({error.strerror or error}); choose another place") from error
    finally:
        with contextlib.suppress(OSError):
            _remove(partial)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _write_folder(source: ImageSource, target: Path, on_image: OnImage) -> None:
    target.mkdir()
    for name, content in contents(source):
        place = target / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
        on_image(name)
    (target / TABLE_NAME).write_bytes(split_table(source.splits))


def _write_zip(source: ImageSource, target: Path, on_image: OnImage) -> None:
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(zipfile.ZipInfo(TABLE_NAME, _LONG_AGO), split_table(source.splits))
        for name, content in contents(source):
            archive.writestr(zipfile.ZipInfo(name, _LONG_AGO), content)
            on_image(name)


def contents(source: ImageSource) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of each image, class by class."""
    with source.reader() as read:
        for name in source.names(source.files):
            yield name, read(name)


WRITERS: Mapping[str, Callable[[ImageSource, Path, OnImage], None]] = {
    "folder": _write_folder,
    "recordio": write_records,
    "zip": _write_zip,
}
_ENDINGS = {".zip": "zip"}
