"""An image set written in another format, whole or not at all."""

import contextlib
import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from trainers.image_source import DataError, ImageSource
from trainers.splits import TABLE_NAME, split_table

OnImage = Callable[[str], None]
"""Called with the name of each image that has been written."""

_LONG_AGO = (1980, 1, 1, 0, 0, 0)  # the first date a zip can hold: the same images give the same bytes


def write_images(source: ImageSource, target: Path, *, on_image: OnImage = lambda _: None) -> None:
    """Write the images of `source` and its splits to `target`: a zip if it ends so, else a folder.

    It is written beside its place and then renamed. Raises `DataError` when `target` exists or cannot be written, and
    for an image that cannot be read; nothing is left then.
    """
    write = writer_for(target)
    with _in_place(target) as partial:
        write(source, partial, on_image)


def writer_for(target: Path) -> Callable[[ImageSource, Path, OnImage], None]:
    """What writes the format that the ending of `target` names. Raises `DataError` where that cannot be."""
    if target.exists():
        raise DataError(f"{target} is there already; choose another name or remove it")
    return WRITERS.get(target.suffix.lower(), _write_folder)


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


WRITERS: Mapping[str, Callable[[ImageSource, Path, OnImage], None]] = {".zip": _write_zip}
