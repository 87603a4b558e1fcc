"""Decode an image set once into uint8 images, kept on disk by content and reused.

The cache holds one folder a decoded set, named by a digest of what went in (file names, sizes and CRCs, image size,
colour, the decoder's version); `trainers.image_file` says what is in it. It is built under a file lock, so that two
processes build it once, and a process that was killed is gone on from.
"""

import hashlib
import io
import itertools
import json
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from filelock import FileLock
from PIL import Image, ImageOps, UnidentifiedImageError

from trainers.image_file import ImageFile, ImageFileWriter, UInt8Array
from trainers.image_source import DataError, ImageSource, Reader
from trainers.machine import usable_cpus

Colour = Literal["auto", "grey", "rgb"]
"""`auto` is grey when every image is, else RGB."""

OnDecoded = Callable[[int, int], None]
"""Called while images are decoded: how many are done, and how many there are."""

_DECODER_VERSION = 2
_BLOCK_IMAGES = 256
_SHOWN = 5
_REPAIR = "; repair or remove it"


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodedImages:
    """What `decode` gives: where the images lie, and why which ones are not among them."""

    file: ImageFile
    damaged: Mapping[str, str]


def decode(
    source: ImageSource,
    names: Sequence[str],
    *,
    image_size: int,
    colour: Colour,
    cache_dir: Path,
    corrupt_share: float = 0.0,
    on_decoded: OnDecoded = lambda *_: None,
) -> DecodedImages:
    """The named images, N×C×H×W with C of 1 or 3 and H = W = `image_size`, from the cache if they are in it.

    Images that cannot be read or decoded are left out, as long as they are no more than `corrupt_share` of all. The
    cache is checked against its checksums.

    Raises `DataError` for more damaged images than that, naming the first, and for a cache that cannot be used.
    """
    fingerprints = source.fingerprints(names)
    unreadable = {name for name, size, _ in fingerprints if size < 0}
    recipe = [_DECODER_VERSION, image_size, colour, fingerprints]
    digest = hashlib.sha256(json.dumps(recipe).encode()).hexdigest()[:32]
    target = cache_dir / digest
    try:
        if not target.exists():
            cache_dir.mkdir(parents=True, exist_ok=True)
            with FileLock(cache_dir / f"{digest}.lock"):
                if not target.exists():
                    decode_one = partial(_decoded_or_error, unreadable, image_size, colour)
                    _build(source, names, target, image_size, decode_one, on_decoded)
    except OSError as error:
        reason = error.strerror or error
        raise DataError(
            f"the cache folder {cache_dir} cannot be written ({reason}); make room or choose another place"
        ) from error
    file = ImageFile.of(target)
    damaged = file.damaged()
    refuse_damaged(damaged, len(names), corrupt_share, source.path)
    file.verify()
    return DecodedImages(file=file, damaged=damaged)


def refuse_damaged(damaged: Mapping[str, str], images: int, share: float, path: Path) -> None:
    """Raises `DataError` where more than this share of the images is damaged, naming the first."""
    if len(damaged) <= share * images:
        return
    reasons = [reason.removesuffix(_REPAIR) for reason in itertools.islice(damaged.values(), _SHOWN)]
    more = f" and {len(damaged) - _SHOWN:,} more" if len(damaged) > _SHOWN else ""
    raise DataError(
        f"{len(damaged):,} of {images:,} images of {path} are damaged, more than data.corrupt_share = {share:g} lets "
        f"be left out: {', '.join(reasons)}{more}{_REPAIR.replace('it', 'them')}"
    )


def _build(
    source: ImageSource,
    names: Sequence[str],
    target: Path,
    image_size: int,
    decode_one: Callable[[Reader, str], UInt8Array | DataError],
    on_decoded: OnDecoded,
) -> None:
    """Decode the named images into the folder `target`, or go on with what is there of it.

    Where a coloured image is the first one after blocks of grey ones, all are decoded anew.
    """
    with ImageFileWriter(target, image_size) as writer, source.reader() as read:
        channels = writer.channels or 1
        while writer.asked < len(names):
            for block in _in_blocks(partial(decode_one, read), names[writer.asked :]):
                images = [image for image in block.values() if not isinstance(image, DataError)]
                channels = 3 if any(image.ndim == 3 for image in images) else channels
                if writer.channels not in (None, channels):
                    writer.start_over()
                    break
                damaged = {name: str(error) for name, error in block.items() if isinstance(error, DataError)}
                writer.append(images, channels=channels, damaged=damaged)
                on_decoded(writer.asked, len(names))
        writer.finish()


def _decoded_or_error(
    unreadable: Container[str], image_size: int, colour: Colour, read: Reader, name: str
) -> UInt8Array | DataError:
    """Raises `DataError` where the disk or the network fails for an image that could be read a moment ago: the cache
    would keep it as damaged for ever."""
    try:
        content = read(name)
    except DataError as error:
        if name not in unreadable and isinstance(error.__cause__, OSError) and error.__cause__.errno:
            raise DataError(f"{error}, or try again: it could be read a moment ago") from error
        return error
    try:
        return decode_image(content, name, image_size=image_size, colour=colour)
    except DataError as error:
        return error


def _in_blocks(
    decode_one: Callable[[str], UInt8Array | DataError], names: Sequence[str]
) -> Iterator[dict[str, UInt8Array | DataError]]:
    """What each name gives, in parallel: a block is decoded while the one before it is dealt with."""
    blocks = [names[first : first + _BLOCK_IMAGES] for first in range(0, len(names), _BLOCK_IMAGES)]
    with ThreadPoolExecutor(max_workers=usable_cpus()) as pool:
        ahead = pool.map(decode_one, blocks[0])
        for block, following in itertools.zip_longest(blocks, blocks[1:], fillvalue=()):
            now, ahead = ahead, pool.map(decode_one, following)
            yield dict(zip(block, now, strict=True))


def decode_image(content: bytes, name: str, *, image_size: int | None, colour: Colour) -> UInt8Array:
    """One image, upright, on white where it is transparent: H×W when grey, else H×W×3. Size None keeps its own.

    Raises `DataError` naming the file when it is not an image or is damaged.
    """
    try:
        with Image.open(io.BytesIO(content)) as opened:
            upright = _eight_bit(ImageOps.exif_transpose(opened), opened.format)
    except MemoryError:
        raise
    except Exception as error:  # damaged bytes can make a decoder raise anything
        reason = "no known image format" if isinstance(error, UnidentifiedImageError) else error
        raise DataError(f"{name} is not an image or is damaged ({reason}){_REPAIR}") from error
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


def _eight_bit(image: Image.Image, file_format: str | None) -> Image.Image:
    """The image in mode L or RGB. The 16 bits of a PGM come from Pillow as 32."""
    sixteen = image.mode.startswith("I;16") or (image.mode == "I" and file_format == "PPM")
    if image.mode in {"I", "F"} and not sixteen:
        raise ValueError(f"its pixels have 32 bits (mode {image.mode}); save it with 8 or 16 bits")
    if sixteen:
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return image.convert("L" if image.mode in {"1", "L"} else "RGB")
