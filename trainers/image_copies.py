"""A file of decoded images brought to a machine that does not have it, in pieces, once for all its processes."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from filelock import FileLock

from trainers.image_file import FILE_NAMES, ImageFile
from trainers.image_source import DataError

CACHE_VARIABLE = "LOSSEARCH_CACHE"
"""The environment variable with the folder for copies; by default one of the user's among the temporary files."""

PIECE_BYTES = 64 * 2**20

ReadPiece = Callable[[str, int], bytes]
"""From the name of a file in the folder and an offset to the next `PIECE_BYTES` bytes, fewer at its end."""


def piece(folder: Path, name: str, offset: int) -> bytes:
    """What a `ReadPiece` gives, on the machine that has the folder."""
    with (folder / name).open("rb") as file:
        file.seek(offset)
        return file.read(PIECE_BYTES)


def copy_of(file: ImageFile, read: ReadPiece) -> ImageFile:
    """The same images in a folder of this machine, where a copy of another process is taken if it is there.

    Raises `DataError` when what arrives does not fit its checksums.
    """
    cache = Path(os.environ.get(CACHE_VARIABLE) or Path(tempfile.gettempdir()) / f"lossearch-{os.getuid()}")
    copy = replace(file, folder=cache / file.key)
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    with FileLock(cache / f"{file.key}.lock"):
        if copy.is_here():
            with contextlib.suppress(DataError):  # it was torn by a power cut
                copy.verify()
                return copy
        partial = copy.folder.with_suffix(".partial")
        for leftover in (partial, copy.folder):
            shutil.rmtree(leftover, ignore_errors=True)
        partial.mkdir()
        for name in FILE_NAMES:
            _copy(partial / name, name, read)
        replace(copy, folder=partial).verify()
        partial.rename(copy.folder)
    return copy


def _copy(target: Path, name: str, read: ReadPiece) -> None:
    with target.open("wb") as file:
        while content := read(name, file.tell()):
            file.write(content)
        file.flush()
        os.fsync(file.fileno())
