"""Decoded images in a file that every process maps: built block by block, checked by CRC-32, never half there.

A folder holds `images.npy` (uint8, N×C×H×W, in numpy's own format) and `manifest.json`: its shape, the rows and the
CRC-32 of each block, and which images were left out as damaged, with the reason. While it is built the folder ends in
`.partial` and holds a log in place of the manifest: one line a block, written after the block has reached the disk. A
process that takes up what a killed one has left goes on after the last such block.
"""

import io
import json
import math
import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
from numpy.lib.format import header_data_from_array_1_0, write_array_header_1_0

from search_space.frozen import FrozenModel
from trainers.image_source import DataError
from trainers.task import LabelledImages

ARRAY_NAME = "images.npy"
_MANIFEST_NAME = "manifest.json"
_LOG_NAME = "blocks.jsonl"
FILE_NAMES = (ARRAY_NAME, _MANIFEST_NAME)
"""What a finished folder holds."""
_PARTIAL = ".partial"

UInt8Array = npt.NDArray[np.uint8]
Shape = tuple[int, int, int, int]


class _Block(FrozenModel):
    """So many `rows` were appended, with this CRC-32; the images that are `damaged` were not, for these reasons."""

    rows: int
    crc: int
    channels: int
    damaged: Mapping[str, str]

    @property
    def asked(self) -> int:
        """Images that were decoded or tried."""
        return self.rows + len(self.damaged)


class _Manifest(FrozenModel):
    shape: Shape
    blocks: tuple[tuple[int, int], ...]
    """Rows and CRC-32 of each."""
    damaged: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class ImageFile:
    """The rows from `first` on, `count` of them, of the images in a folder; `key` names what the whole file holds."""

    folder: Path
    key: str
    first: int
    count: int

    @classmethod
    def of(cls, folder: Path) -> "ImageFile":
        """All images of a folder. Raises `DataError` where it holds none, or another number of bytes than it should."""
        content, manifest = _manifest(folder)
        size, array = _header_bytes(manifest.shape) + math.prod(manifest.shape), folder / ARRAY_NAME
        found = array.stat().st_size if array.exists() else 0
        if found != size:
            raise _damaged(folder, f"{ARRAY_NAME} has {found} bytes where there should be {size}")
        return cls(folder, sha256(content).hexdigest()[:32], 0, manifest.shape[0])

    def part(self, first: int, count: int) -> "ImageFile":
        """`count` of these rows, from the `first` of them on."""
        return replace(self, first=self.first + first, count=count)

    def images(self) -> UInt8Array:
        """The images, mapped read-only: what is looked at is read, once for all processes."""
        shape = _manifest(self.folder)[1].shape
        mapped = np.memmap(self.folder / ARRAY_NAME, np.uint8, "r", offset=_header_bytes(shape), shape=shape)
        return np.asarray(mapped)[self.first : self.first + self.count]

    def damaged(self) -> Mapping[str, str]:
        """The images that were left out of the file, and why."""
        return _manifest(self.folder)[1].damaged

    def is_here(self) -> bool:
        """Whether this process finds the same file in the same place."""
        try:
            return ImageFile.of(self.folder).key == self.key
        except (DataError, OSError):
            return False

    def verify(self) -> None:
        """Read the whole file. Raises `DataError` when a block is not what was written."""
        _, manifest = _manifest(self.folder)
        images, first = replace(self, first=0, count=manifest.shape[0]).images(), 0
        for number, (rows, crc) in enumerate(manifest.blocks):
            if zlib.crc32(images[first : first + rows].data) != crc:
                raise _damaged(self.folder, f"the checksum of block {number} does not fit")
            first += rows


@dataclass(frozen=True, slots=True, kw_only=True)
class MappedImages(LabelledImages):
    """Labelled images that are mapped from a file and not held."""

    file: ImageFile


def _manifest(folder: Path) -> tuple[bytes, _Manifest]:
    try:
        content = (folder / _MANIFEST_NAME).read_bytes()
        return content, _Manifest.model_validate(json.loads(content))
    except (OSError, ValueError) as error:
        raise _damaged(folder, f"{_MANIFEST_NAME}: {' '.join(str(error).split())[:200]}") from None


def _damaged(folder: Path, why: str) -> DataError:
    return DataError(f"the decoded images in {folder} are damaged ({why}); remove that folder")


def _header_bytes(shape: Shape) -> int:
    """Where the pixels begin in the file: numpy leaves room in the header for any number of rows."""
    buffer = io.BytesIO()
    _write_header(buffer, shape)
    return buffer.tell()


def _write_header(file: IO[bytes], shape: Shape) -> None:
    row = np.empty((1, *shape[1:]), np.uint8)
    write_array_header_1_0(file, {**header_data_from_array_1_0(row), "shape": shape})


class ImageFileWriter:
    """Builds the images of the folder `target`, of which the caller holds a lock. A context manager.

    `asked` counts the images that are done with, those of a killed process included; `channels` is theirs, None before
    the first.
    """

    def __init__(self, target: Path, image_size: int) -> None:
        self._target, self._partial, self._size = target, target.with_suffix(_PARTIAL), image_size

    def __enter__(self) -> "ImageFileWriter":
        self._partial.mkdir(parents=True, exist_ok=True)
        self._array, self._log = (_for_update(self._partial / name) for name in (ARRAY_NAME, _LOG_NAME))
        self._blocks = self._take_up()
        return self

    def __exit__(self, *_: object) -> None:
        self._array.close()
        self._log.close()

    @property
    def asked(self) -> int:
        """How many images are done with."""
        return sum(block.asked for block in self._blocks)

    @property
    def channels(self) -> int | None:
        """Of the images so far, None where there are none."""
        return self._blocks[0].channels if self._blocks else None

    def append(self, images: Sequence[UInt8Array], *, channels: int, damaged: Mapping[str, str]) -> None:
        """Add a block: its images, H×W or H×W×3, and those that are damaged."""
        batch_NCHW = np.empty((len(images), channels, self._size, self._size), np.uint8)
        for row_CHW, image in zip(batch_NCHW, images, strict=True):
            row_CHW[:] = image if image.ndim == 2 else image.transpose(2, 0, 1)
        self._blocks.append(
            _Block(rows=len(images), crc=zlib.crc32(batch_NCHW.data), channels=channels, damaged=damaged)
        )
        if len(self._blocks) == 1:
            _write_header(self._array, self._shape())
        self._array.write(batch_NCHW.data)
        _to_disk(self._array)
        self._log.write(_as_json(self._blocks[-1]) + b"\n")
        _to_disk(self._log)

    def start_over(self) -> None:
        """Forget all blocks."""
        self._blocks = []
        for file in (self._log, self._array):
            file.seek(0)
            file.truncate()

    def finish(self) -> None:
        """Put the folder in its place. There must be a block."""
        manifest = _Manifest(
            shape=self._shape(),
            blocks=tuple((block.rows, block.crc) for block in self._blocks),
            damaged={name: why for block in self._blocks for name, why in block.damaged.items()},
        )
        self._array.seek(0)
        _write_header(self._array, manifest.shape)
        _to_disk(self._array)
        with (self._partial / _MANIFEST_NAME).open("wb") as file:
            file.write(_as_json(manifest))
            _to_disk(file)
        (self._partial / _LOG_NAME).unlink()
        self._partial.rename(self._target)

    def _shape(self) -> Shape:
        rows = sum(block.rows for block in self._blocks)
        return rows, self._blocks[0].channels, self._size, self._size

    def _take_up(self) -> list[_Block]:
        """The blocks that the log tells and the file holds; both are cut off behind them."""
        blocks: list[_Block] = []
        log_end = array_end = 0
        size = self._array.seek(0, os.SEEK_END)
        for line in self._log:
            block = _block(line)
            if block is None:
                break
            header = 0 if blocks else _header_bytes((0, block.channels, self._size, self._size))
            end = array_end + header + block.rows * block.channels * self._size**2
            if end > size:
                break
            blocks.append(block)
            log_end, array_end = log_end + len(line), end
        for file, end in ((self._log, log_end), (self._array, array_end)):
            file.seek(end)
            file.truncate()
        return blocks


def _block(line: bytes) -> _Block | None:
    """The block of a line of the log, None for a torn one."""
    try:
        return _Block.model_validate(json.loads(line)) if line.endswith(b"\n") else None
    except ValueError:
        return None


def _as_json(model: FrozenModel) -> bytes:
    """In ASCII: a file's name may not be in UTF-8, which pydantic's own JSON refuses."""
    return json.dumps(model.model_dump()).encode("ascii")


def _for_update(path: Path) -> IO[bytes]:
    path.touch()
    return path.open("r+b")


def _to_disk(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())
