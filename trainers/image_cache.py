"""Decode an image set once into uint8 arrays, kept on disk by content and reused.

The cache holds one folder a decoded set, named by a digest of what went in (file names, sizes and CRCs, image size,
colour, the decoder's version) with `images.npy` inside. It is built beside its place under a file lock and then
renamed, so that no process sees half of one and two processes build it once.
"""

import hashlib
import io
import json
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from filelock import FileLock
from PIL import Image, ImageOps, UnidentifiedImageError

from trainers.image_source import DataError, ImageSource

Colour = Literal["auto", "grey", "rgb"]
"""`auto` is grey when every image is, else RGB."""

_DECODER_VERSION = 1
_ARRAY_NAME = "images.npy"

UInt8Array = npt.NDArray[np.uint8]


def decode(
    source: ImageSource, names: Sequence[str], *, image_size: int, colour: Colour, cache_dir: Path
) -> UInt8Array:
    """The named images, read-only N×C×H×W with C of 1 or 3 and H = W = `image_size`, from the cache if they are in it.

    Raises `DataError` for an image that cannot be read or decoded, and for a cache that cannot be used.
    """
    recipe = [_DECODER_VERSION, image_size, colour, source.fingerprints(names)]
    digest = hashlib.sha256(json.dumps(recipe).encode()).hexdigest()[:32]
    target = cache_dir / digest
    try:
        if not target.exists():
            cache_dir.mkdir(parents=True, exist_ok=True)
            with FileLock(cache_dir / f"{digest}.lock"):
                if not target.exists():
                    _save(_decode_all(source, names, image_size=image_size, colour=colour), target)
    except OSError as error:
        reason = error.strerror or error
        raise DataError(
            f"the cache folder {cache_dir} cannot be written ({reason}); choose another --run or make room"
        ) from error
    try:
        images: UInt8Array = np.load(target / _ARRAY_NAME, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"the decoded images in {target} are damaged ({error}); remove that folder") from error
    return images


def _save(images: UInt8Array, target: Path) -> None:
    """Write `images` so that `target` appears whole or not at all. The caller holds the lock."""
    partial_dir = target.with_suffix(".partial")
    shutil.rmtree(partial_dir, ignore_errors=True)
    partial_dir.mkdir()
    with (partial_dir / _ARRAY_NAME).open("wb") as file:
        np.save(file, images)
        file.flush()
        os.fsync(file.fileno())
    partial_dir.rename(target)


def _decode_all(source: ImageSource, names: Sequence[str], *, image_size: int, colour: Colour) -> UInt8Array:
    """The named images decoded in parallel: N×C×H×W."""
    with source.reader() as read, ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        decode_one = partial(decode_image, image_size=image_size, colour=colour)
        images = list(pool.map(lambda name: decode_one(read(name), name), names))
    channels = 3 if any(image.ndim == 3 for image in images) else 1
    batch_NCHW = np.empty((len(images), channels, image_size, image_size), np.uint8)
    for row_CHW, image in zip(batch_NCHW, images, strict=True):
        row_CHW[:] = image if image.ndim == 2 else image.transpose(2, 0, 1)
    return batch_NCHW


def decode_image(content: bytes, name: str, *, image_size: int | None, colour: Colour) -> UInt8Array:
    """One image, upright, on white where it is transparent: H×W when grey, else H×W×3. Size None keeps its own.

    Raises `DataError` naming the file when it is not an image or is damaged.
    """
    try:
        with Image.open(io.BytesIO(content)) as opened:
            upright = _eight_bit(ImageOps.exif_transpose(opened))
    except Exception as error:  # damaged bytes can make a decoder raise anything
        reason = "no known image format" if isinstance(error, UnidentifiedImageError) else error
        raise DataError(f"{name} is not an image or is damaged ({reason}); repair or remove it") from error
    if colour == "grey":
        upright = upright.convert("L")
    if image_size is not None:
        upright = upright.resize((image_size, image_size), Image.Resampling.BILINEAR)
    pixels = np.asarray(upright)
    if colour == "rgb" and pixels.ndim == 2:
        return np.repeat(pixels[..., None], 3, axis=-1)
    if colour == "auto" and pixels.ndim == 3 and (pixels == pixels[..., :1]).all():
        return np.ascontiguousarray(pixels[..., 0])
    return pixels


def _eight_bit(image: Image.Image) -> Image.Image:
    """The image in mode L or RGB."""
    if image.mode in {"I", "F"}:
        raise ValueError(f"its pixels have 32 bits (mode {image.mode}); save it with 8 or 16 bits")
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return image.convert("L" if image.mode in {"1", "L"} else "RGB")
