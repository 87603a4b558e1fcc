"""Image sets as arrays of pixels: numpy's `.npz`, and the Olivetti faces as scikit-learn caches them.

An image is handed on as a PGM or PPM file: its pixels behind a header of a few bytes.
"""

import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt

from trainers.formats.labelled import Row, found_in_table, image_names
from trainers.image_cache import decode_image
from trainers.image_folder import beside
from trainers.image_source import DataError, FoundImages, ImageSource, OnImage, Reader, Store
from trainers.splits import TABLE_NAME

UInt8Array = npt.NDArray[np.uint8]

_KEYS = (("images", "labels"), ("data", "target"), ("x", "y"))
_OLIVETTI_SHAPE = (400, 64, 64)
_OLIVETTI_IMAGES_EACH = 10
_MOST_HEAD_BYTES = 4096


@dataclass(frozen=True, slots=True)
class ArrayStore(Store):
    """Images that `load` gives as one array, N×H×W or N×H×W×3; `rows` says which is whose."""

    load: Callable[[], UInt8Array]
    rows: Mapping[str, int]

    @contextmanager
    def reader(self) -> Iterator[Reader]:
        """What reads images while the context lasts; the array is in memory so long."""
        images = self.load()
        yield lambda name: _as_file(images[self.rows[name]])


def _as_file(pixels: UInt8Array) -> bytes:
    height, width = pixels.shape[:2]
    return f"P{5 if pixels.ndim == 2 else 6} {width} {height} 255\n".encode() + pixels.tobytes()


def find_in_npz(path: Path) -> FoundImages:
    """The images of an `.npz`: `images` (uint8, N×H×W, N×H×W×1 or N×H×W×3) and `labels` (N numbers or texts).

    `names` and `splits` (N texts each) may be there too; `data` and `target`, or `x` and `y`, are other names for the
    first two. Raises `DataError`.
    """
    arrays = _arrays(path)
    labels = arrays["labels"]
    count, width = len(labels), len(str(len(labels)))
    for optional in ("names", "splits"):
        if optional in arrays and arrays[optional].shape != (count,):
            raise DataError(f"{path} has {count} labels, but {optional} of shape {arrays[optional].shape}")
    files = arrays.get("names", np.array([f"{number:0{width}d}.pgm" for number in range(count)]))
    splits = arrays.get("splits", np.full(count, ""))
    rows = [Row(str(label), str(file), str(split)) for label, file, split in zip(labels, files, splits, strict=True)]
    names = image_names(rows, path)
    store = ArrayStore(
        lambda: _arrays(path)["images"].astype(np.uint8, copy=False), {name: row for row, name in enumerate(names)}
    )
    found = found_in_table(path, "npz", rows, names, store)
    return found.with_table(beside(path.parent / TABLE_NAME))


def _arrays(path: Path) -> dict[str, npt.NDArray[np.generic]]:
    """The arrays of an `.npz`, checked against each other."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as opened:
            pair = next(((one, two) for one, two in _KEYS if one in opened.files and two in opened.files), None)
            if pair is None:
                raise DataError(f"{path} lacks the arrays images and labels; it has {', '.join(opened.files)[:200]}")
            arrays = {"images": opened[pair[0]], "labels": opened[pair[1]].squeeze()}
            arrays |= {name: opened[name] for name in ("names", "splits") if name in opened.files}
    except (OSError, ValueError, EOFError, KeyError, RuntimeError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} cannot be read as an .npz of plain arrays ({error}); save it as one") from error
    images, labels = arrays["images"], arrays["labels"]
    if images.ndim == 4 and images.shape[3] == 1:
        images = arrays["images"] = images[..., 0]
    if images.dtype != np.uint8 or not (images.ndim == 3 or (images.ndim == 4 and images.shape[3] == 3)):
        raise DataError(f"images of {path} must be uint8, N×H×W or N×H×W×3, but are {images.dtype}, {images.shape}")
    if labels.shape != (len(images),) or labels.dtype.kind not in "iuU":
        raise DataError(
            f"labels of {path} must be {len(images)} whole numbers or texts, but are {labels.dtype}, {labels.shape}"
        )
    return arrays


def write_npz(source: ImageSource, target: Path, on_image: OnImage) -> None:
    """The decoded pixels with labels, names and splits. Raises `DataError` where images differ in size."""
    names = source.names(source.files)
    labels = [PurePosixPath(name).parts[1] for name in names]
    pixels = []
    with source.reader() as read:
        for name in names:
            pixels.append(decode_image(read(name), name, image_size=None, colour="auto"))
            if pixels[-1].shape[:2] != pixels[0].shape[:2]:
                raise DataError(f"{name} is of another size than the images before it; an array has one size")
            on_image(name)
    coloured = any(image.ndim == 3 for image in pixels)
    images = np.stack([_rgb(image) if coloured else image for image in pixels])
    with target.open("wb") as file:
        np.savez_compressed(
            file,
            images=images,
            labels=np.array(labels),
            names=np.array([PurePosixPath(name).name for name in names]),
            splits=np.array([source.splits[label] for label in labels]),
        )


def _rgb(pixels: UInt8Array) -> UInt8Array:
    return pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=-1)


def find_olivetti(path: Path) -> FoundImages:
    """The 400 Olivetti faces in `olivetti_py3.pkz` as `fetch_olivetti_faces` leaves it; identities are numbers.

    The file is a compressed pickle by joblib of one array of known shape, whose bytes are its end: they are taken from
    there, and the pickle is not opened.
    """
    count = _OLIVETTI_SHAPE[0]
    rows = [Row(f"{number // _OLIVETTI_IMAGES_EACH:02d}", f"{number:03d}.pgm") for number in range(count)]
    names = image_names(rows, path)
    store = ArrayStore(lambda: _olivetti(path), {name: row for row, name in enumerate(names)})
    found = found_in_table(path, "scikit-learn", rows, names, store)
    return found.with_table(beside(path.parent / TABLE_NAME))


def _olivetti(path: Path) -> UInt8Array:
    """N×H×W, scaled to the full range as scikit-learn does."""
    try:
        content = zlib.decompress(path.read_bytes())
    except (OSError, zlib.error) as error:
        raise DataError(f"{path} cannot be read ({error}); fetch the faces again") from error
    count = int(np.prod(_OLIVETTI_SHAPE))
    for dtype in (np.float64, np.float32, np.uint8):
        head = len(content) - 1 - count * np.dtype(dtype).itemsize
        if 0 < head < _MOST_HEAD_BYTES and b"NumpyArrayWrapper" in content[:head]:
            faces = np.frombuffer(content[head:-1], dtype).reshape(_OLIVETTI_SHAPE).transpose(0, 2, 1)
            faces = faces.astype(np.float64)
            faces = (faces - faces.min()) / max(float(np.ptp(faces)), 1e-12)
            return np.ascontiguousarray((255 * faces).round().astype(np.uint8))
    raise DataError(f"{path} does not hold the Olivetti faces as scikit-learn caches them; fetch them again")
