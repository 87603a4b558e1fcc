"""InsightFace's verification sets (`lfw.bin`, `cfp_fp.bin`, ...): the images of pairs, and which pairs are genuine.

A file is a pickle of two lists: the bytes of an encoded image each, two a pair, and one boolean a pair
(InsightFace, `lfw2pack.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from trainers.formats.pickled_data import PlainArray, read_pickle
from trainers.image_source import DataError


@dataclass(frozen=True, slots=True, kw_only=True)
class PairSet:
    """P pairs of encoded images: those of pair p are `images[2p]` and `images[2p + 1]`; `genuine_P` is bool."""

    images: Sequence[bytes]
    genuine_P: npt.NDArray[np.bool_]

    def __post_init__(self) -> None:
        if len(self.images) != 2 * len(self.genuine_P):
            raise DataError(f"{len(self.genuine_P)} pairs need twice as many images, but there are {len(self.images)}")


def read_pairs(path: Path) -> PairSet:
    """The pairs in a `.bin` file. Nothing in it is run; whatever is not plain data is refused with a `DataError`."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); give a .bin verification set") from error
    value = read_pickle(content, str(path))
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise DataError(f"{path} is no verification set: it must hold a list of images and a list of booleans")
    images, genuine = value
    if not isinstance(images, list | tuple):
        raise DataError(f"{path} is no verification set: its first part is no list of images")
    return PairSet(images=[_image(item, path) for item in images], genuine_P=_booleans(genuine, path))


def _image(item: object, path: Path) -> bytes:
    if isinstance(item, PlainArray) and item.dtype == "u1":
        return item.raw
    if not isinstance(item, bytes):
        raise DataError(f"{path} is no verification set: among its images is a {type(item).__name__}, not bytes")
    return item


def _booleans(items: object, path: Path) -> npt.NDArray[np.bool_]:
    if isinstance(items, PlainArray) and items.dtype == "b1" and len(items.shape) == 1:
        return np.frombuffer(items.raw, dtype=np.bool_).copy()
    if not isinstance(items, list | tuple) or not all(isinstance(item, int) and item in (0, 1) for item in items):
        raise DataError(f"{path} is no verification set: its second part is no list of booleans")
    return np.array(items, dtype=np.bool_)


def write_pairs(pairs: PairSet, path: Path) -> None:
    """Write a `.bin` file that InsightFace reads too (pickle protocol 3). Raises `DataError` where it cannot."""
    try:
        with path.open("xb") as file:
            _write(pairs, file)
    except FileExistsError:
        raise DataError(f"{path} is there already; choose another name or remove it") from None
    except OSError as error:
        raise DataError(f"{path} cannot be written ({error.strerror}); choose another place") from error


def _write(pairs: PairSet, file: BinaryIO) -> None:
    file.write(b"\x80\x03](")  # the protocol, a list, and what goes into it
    for image in pairs.images:
        file.write(b"B" + len(image).to_bytes(4, "little") + image)
    file.write(b"e](" + b"".join(b"\x88" if genuine else b"\x89" for genuine in pairs.genuine_P) + b"e\x86.")
