"""RecordIO, the container of MXNet and InsightFace: one record behind the other.

A record is a magic word, a word whose upper three bits say which part of a record this is and whose others are the
length in bytes, the content, and zeros up to a multiple of four (dmlc-core, `recordio.h`). Content that holds the magic
word at a multiple of four is cut there into parts, the word itself left out.
"""

import contextlib
import mmap
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from trainers.image_source import DataError

MAGIC = 0xCED7230A

_MAGIC_BYTES = struct.pack("<I", MAGIC)
_FRAME = struct.Struct("<II")
_LENGTH_BITS = 29
_WHOLE, _FIRST, _MIDDLE, _LAST = range(4)


@contextmanager
def mapped(path: Path) -> Iterator[mmap.mmap]:
    """The bytes of a file, read when they are looked at. Raises `DataError` when there are none."""
    with contextlib.ExitStack() as opened:
        try:
            file = opened.enter_context(path.open("rb"))
            data = opened.enter_context(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        except (OSError, ValueError) as error:
            raise DataError(f"{path} cannot be read ({error}); restore it") from error
        yield data


@dataclass(frozen=True, slots=True)
class Record:
    """Where a record is in its file: its parts (begin, end), and where the next record begins, all in bytes."""

    parts: tuple[tuple[int, int], ...]
    after: int

    @property
    def length(self) -> int:
        """Of the content, in bytes."""
        return sum(end - begin for begin, end in self.parts) + len(_MAGIC_BYTES) * (len(self.parts) - 1)

    def content(self, data: mmap.mmap, begin: int = 0, end: int | None = None) -> bytes:
        """The content, or some of it."""
        if len(self.parts) > 1:
            return _MAGIC_BYTES.join(data[first:last] for first, last in self.parts)[begin:end]
        ((first, last),) = self.parts
        return data[first + begin : last if end is None else min(last, first + end)]


def record_at(data: mmap.mmap, offset: int, path: Path) -> Record:
    """The record that begins at a byte. Raises `DataError` where none does or it is not whole."""
    parts: list[tuple[int, int]] = []
    at = offset
    while True:
        if at + _FRAME.size > len(data):
            raise damaged(path, offset, "the file ends within it")
        magic, word = _FRAME.unpack_from(data, at)
        part, begin = word >> _LENGTH_BITS, at + _FRAME.size
        if magic != MAGIC or part not in ((_MIDDLE, _LAST) if parts else (_WHOLE, _FIRST)):
            raise damaged(path, offset, "no record, or no part of it, begins where one should")
        end = begin + (word & (2**_LENGTH_BITS - 1))
        at = end + -end % 4
        if at > len(data) or any(data[end:at]):
            raise damaged(path, offset, "its length is wrong")
        parts.append((begin, end))
        if part in (_WHOLE, _LAST):
            return Record(tuple(parts), at)


def records(data: mmap.mmap, path: Path) -> Iterator[tuple[int, Record]]:
    """Each record of a file, and where it begins. Raises `DataError` where the file is damaged."""
    offset = 0
    while offset < len(data):
        record = record_at(data, offset, path)
        yield offset, record
        offset = record.after


def damaged(path: Path, offset: int, reason: str) -> DataError:
    """What is wrong with the record that begins at a byte."""
    return DataError(f"{path} is damaged in the record at byte {offset} ({reason}); restore it")


def append_record(file: BinaryIO, content: bytes) -> int:
    """Write a record at the end of a file; where it begins."""
    offset = file.tell()
    parts = list(_parts(content))
    for number, part in enumerate(parts):
        last = number == len(parts) - 1
        flag = (_WHOLE if last else _FIRST) if number == 0 else (_LAST if last else _MIDDLE)
        if len(part) >> _LENGTH_BITS:
            raise DataError(f"a record holds less than 512 MiB, but an image has {len(content)} bytes")
        file.write(_FRAME.pack(MAGIC, flag << _LENGTH_BITS | len(part)) + part + bytes(-len(part) % 4))
    return offset


def _parts(content: bytes) -> Iterator[bytes]:
    """Content cut wherever the magic word stands at a multiple of four."""
    begin, at = 0, content.find(_MAGIC_BYTES)
    while at >= 0:
        if at % 4 == 0:
            yield content[begin:at]
            begin = at + 4
        at = content.find(_MAGIC_BYTES, at + (1 if at % 4 else 4))
    yield content[begin:]
