"""Images that are in a set more than once: byte for byte, pixel for pixel, or nearly so.

A picture is reduced to a grey thumbnail. Thumbnails whose signs of horizontal differences (a difference hash of 64
bits) differ in at most `_MOST_BITS` places are candidates, found by equal bands of the hash: of 4 bands one at least is
equal then. Images whose hashes are all alike (blank ones, say) are passed over and counted; no other is missed. A
candidate counts if its thumbnails correlate by at least `ALIKE`.

N images, S side of a thumbnail.
"""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from trainers.image_cache import decode_image
from trainers.image_source import DataError, ImageSource, OnImage, Reader, Split
from trainers.machine import usable_cpus

ALIKE = 0.98
"""Thumbnails that correlate so much show the same picture, saved or cut a little differently."""

_SIDE = 32
_HASH_SIDE = 8
_BANDS = 4
_MOST_BITS = _BANDS - 1
_MOST_ALIKE = 100
"""An image whose hash so many others are near to, within one band, is not told from them by it."""
_ROWS = 256
"""Hashes that are held against all others of a band at once."""

Kind = Literal["bytes", "pixels", "nearly"]


@dataclass(frozen=True, slots=True)
class Repeat:
    """Two images that are the same, and in which way."""

    first: str
    second: str
    kind: Kind


@dataclass(frozen=True, slots=True)
class _Look:
    content: bytes
    pixels: bytes
    thumbnail: npt.NDArray[np.uint8]


class Repeats(NamedTuple):
    """The images that repeat others, those that cannot be decoded, and how many look like too many others."""

    found: list[Repeat]
    damaged: list[str]
    passed_over: int


def repeats(source: ImageSource, *, on_image: OnImage = lambda _: None) -> Repeats:
    """The images that are there more than once. Nothing is changed."""
    names = source.names(source.files)
    with source.reader() as read, ThreadPoolExecutor(max_workers=usable_cpus()) as pool:

        def look(name: str) -> _Look | None:
            seen = _look(read, name)
            on_image(name)
            return seen

        looks = dict(zip(names, pool.map(look, names), strict=True))
    seen = {name: each for name, each in looks.items() if each is not None}
    found, passed_over = _pairs(list(seen), list(seen.values()))
    return Repeats(found, [name for name, each in looks.items() if each is None], passed_over)


def between_splits(found: Sequence[Repeat], source: ImageSource) -> dict[tuple[Split, Split], list[Repeat]]:
    """The repeats by the two splits that they are in."""
    by_splits: dict[tuple[Split, Split], list[Repeat]] = defaultdict(list)
    for repeat in found:
        first, second = (source.splits[name.split("/")[1]] for name in (repeat.first, repeat.second))
        by_splits[first, second].append(repeat)
    return by_splits


def _look(read: Reader, name: str) -> _Look | None:
    try:
        content = read(name)
        pixels = decode_image(content, name, image_size=None, colour="auto")
    except DataError:
        return None
    shape = str(pixels.shape).encode()
    grey = Image.fromarray(pixels).convert("L").resize((_SIDE, _SIDE), Image.Resampling.BOX)
    hashes = (hashlib.sha256(content).digest(), hashlib.sha256(shape + pixels.tobytes()).digest())
    return _Look(*hashes, np.asarray(grey))


def _pairs(names: Sequence[str], looks: Sequence[_Look]) -> tuple[list[Repeat], int]:
    """Each image with the first one that it is equal to, and each pair of distinct ones that are nearly so; and how
    many were passed over."""
    found: list[Repeat] = []
    distinct: dict[bytes, int] = {}
    for number, each in enumerate(looks):
        first = distinct.setdefault(each.pixels, number)
        if first != number:
            kind: Kind = "bytes" if looks[first].content == each.content else "pixels"
            found.append(Repeat(names[first], names[number], kind))
    if not distinct:
        return found, 0
    numbers = list(distinct.values())
    thumbnail_NP = np.stack([looks[number].thumbnail for number in numbers]).reshape(len(numbers), -1)
    unit_NP = thumbnail_NP - thumbnail_NP.mean(axis=1, keepdims=True, dtype=np.float32)
    unit_NP /= np.maximum(np.linalg.norm(unit_NP, axis=1, keepdims=True), 1e-6)
    candidates, passed_over = _candidates(_hashes(thumbnail_NP.reshape(-1, _SIDE, _SIDE)))
    for one, two in sorted(candidates):
        if float(unit_NP[one] @ unit_NP[two]) >= ALIKE:
            found.append(Repeat(names[numbers[one]], names[numbers[two]], "nearly"))
    return found, len(passed_over)


def _hashes(thumbnail_NSS: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """The difference hash of each thumbnail: N×64."""
    step = _SIDE // _HASH_SIDE
    rows_NHS = thumbnail_NSS.reshape(-1, _HASH_SIDE, step, _SIDE).mean(axis=2)
    columns = np.linspace(0, _SIDE, _HASH_SIDE + 2).round().astype(int)
    cells = [rows_NHS[:, :, begin:end].mean(axis=2) for begin, end in pairwise(columns)]
    cell_NHC = np.stack(cells, axis=2)
    hashed: npt.NDArray[np.bool_] = (cell_NHC[:, :, 1:] > cell_NHC[:, :, :-1]).reshape(len(thumbnail_NSS), -1)
    return hashed


def _candidates(hash_NB: npt.NDArray[np.bool_]) -> tuple[set[tuple[int, int]], set[int]]:
    """The pairs (i < j) whose hashes differ in at most `_MOST_BITS` bits, and the images that have too many of them."""
    packed_NW = np.packbits(hash_NB, axis=1).view(np.uint16)
    whole_N = np.packbits(hash_NB, axis=1).view(np.uint64)[:, 0]
    found: set[tuple[int, int]] = set()
    passed_over: set[int] = set()
    for band in range(_BANDS):
        order = np.argsort(packed_NW[:, band], kind="stable")  # so that the numbers of a run rise
        starts = np.flatnonzero(np.diff(packed_NW[order, band].astype(np.int64), prepend=-1))
        for run in np.split(order, starts[1:]):
            for first in range(0, len(run) if len(run) > 1 else 0, _ROWS):
                here = run[first : first + _ROWS]
                near_RN = np.bitwise_count(whole_N[here, None] ^ whole_N[run]) <= _MOST_BITS
                many_R = near_RN.sum(axis=1) > _MOST_ALIKE + 1  # each is near to itself
                passed_over |= set(here[many_R].tolist())
                near_RN[many_R] = False
                row, column = np.nonzero(near_RN)
                later = run[column] > here[row]
                found |= set(zip(here[row[later]].tolist(), run[column[later]].tolist(), strict=True))
    return found, passed_over
