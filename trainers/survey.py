"""What is in an image set: every image opened once and described. Nothing is changed."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from trainers.image_cache import decode_image
from trainers.image_source import DataError, FoundImages
from trainers.machine import usable_cpus

SMALLEST_SIDE = 16
"""An image with a shorter side, in pixels, is named as suspicious."""
LONGEST_ASPECT = 3.0
"""So is one whose longer side is more than so many times its shorter side."""

_READ_AHEAD = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """A set in numbers. Sides are in pixels.

    `images_per_identity` counts the identities by their number of images in ranges of powers of two ('1', '2-3', '4-7'
    and so on); `sizes` counts the images by (width, height); `coloured` counts those that are not grey; `duplicates`
    are lists of images with the same bytes; `suspicious` maps an image to what is odd about it.
    """

    identities: int
    images: int
    images_per_identity: Mapping[str, int]
    sizes: Mapping[tuple[int, int], int]
    coloured: int
    duplicates: Sequence[Sequence[str]]
    suspicious: Mapping[str, str]


def survey(found: FoundImages, *, on_image: Callable[[str], None] = lambda _: None) -> Survey:
    """Open and decode every image of a set. Damaged images are counted, not raised."""
    names = [name for of_class in found.files.values() for name in of_class]
    with found.store.reader() as read, ThreadPoolExecutor(max_workers=usable_cpus()) as pool:

        def look(name: str) -> _Look:
            seen = _look(read, name)
            on_image(name)
            return seen

        looks = [
            seen
            for first in range(0, len(names), _READ_AHEAD)
            for seen in pool.map(look, names[first : first + _READ_AHEAD])
        ]
    alike: dict[bytes, list[str]] = defaultdict(list)
    for name, seen in zip(names, looks, strict=True):
        alike[seen.content].append(name)
    return Survey(
        identities=len(found.files),
        images=len(names),
        images_per_identity=histogram([len(of_class) for of_class in found.files.values()]),
        sizes=Counter(seen.size for seen in looks if seen.size is not None),
        coloured=sum(seen.coloured for seen in looks),
        duplicates=[same for content, same in alike.items() if content and len(same) > 1],
        suspicious={name: seen.oddity for name, seen in zip(names, looks, strict=True) if seen.oddity},
    )


def histogram(counts: Sequence[int]) -> dict[str, int]:
    """How many of these positive numbers lie in each range of powers of two, empty ranges in between included.

    >>> histogram([1, 1, 9])
    {'1': 2, '2-3': 0, '4-7': 0, '8-15': 1}
    """
    sizes = Counter(count.bit_length() - 1 for count in counts)
    ranges = {power: (2**power, 2 ** (power + 1) - 1) for power in range(max(sizes, default=-1) + 1)}
    return {f"{low}-{high}" if power else "1": sizes[power] for power, (low, high) in ranges.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Look:
    content: bytes = b""
    """SHA-256: two drawings of omniglot have one length and one CRC-32."""
    size: tuple[int, int] | None = None
    coloured: bool = False
    oddity: str = ""


def _look(read: Callable[[str], bytes], name: str) -> _Look:
    try:
        content = read(name)
    except DataError as error:
        return _Look(oddity=str(error))
    digest = hashlib.sha256(content).digest()
    try:
        pixels = decode_image(content, name, image_size=None, colour="auto")
    except DataError as error:
        return _Look(content=digest, oddity=str(error))
    height, width = pixels.shape[:2]
    oddity = ""
    if min(width, height) < SMALLEST_SIDE:
        oddity = f"is {width}×{height} pixels small"
    elif max(width, height) > LONGEST_ASPECT * min(width, height):
        oddity = f"is {width}×{height} pixels, more than {LONGEST_ASPECT:g} times as long as wide"
    elif np.ptp(pixels) == 0:
        oddity = "is of one colour all over"
    return _Look(content=digest, size=(width, height), coloured=pixels.ndim == 3, oddity=oddity)
