"""The embeddings of an image set by an exported network, as an `.npz`.

N images, D embedding.
"""

from pathlib import Path
from typing import Literal

import numpy as np

from lfs.errors import UserError
from lfs.runner import default_device
from trainers.exported_network import ExportError, embed_images, load_network
from trainers.foreign_networks import NetworkError
from trainers.formats.opening import open_images
from trainers.image_cache import Colour, decode_image
from trainers.image_source import DataError

_IMAGES_AT_A_TIME = 512


def embed_set(folder: Path, data: Path, output: Path, *, split: Literal["all", "train", "val", "test"]) -> int:
    """Write `embeddings` and `flipped` (of the mirrored images), float32 N×D, `labels` (class names) and `paths`
    (images' names), N each, and return N. Images are decoded, embedded and forgotten in turn.

    Raises `UserError`; then nothing is written.
    """
    if output.suffix != ".npz":
        raise UserError(f"embeddings are written to a file that ends in .npz, but got {output}")
    if output.exists():
        raise UserError(f"{output} is there already; choose another name or remove it")
    try:
        network, description = load_network(folder)
        source = open_images(data)
        classes = sorted(source.files) if split == "all" else source.classes(split)
        names = source.names(classes)
        if not names:
            raise UserError(f"{data} has no images in the split '{split}'")
        channels, size, _ = description.image_shape
        colour: Colour = "grey" if channels == 1 else "rgb"
        found, mirrored = [], []
        with source.reader() as read:
            for first in range(0, len(names), _IMAGES_AT_A_TIME):
                some = names[first : first + _IMAGES_AT_A_TIME]
                pixels = [decode_image(read(name), name, image_size=size, colour=colour) for name in some]
                images_NHWK = np.stack(pixels).reshape(len(some), size, size, channels)
                images_NKHW = np.ascontiguousarray(images_NHWK.transpose(0, 3, 1, 2))
                found.append(embed_images(network, images_NKHW, device=default_device()))
                mirrored.append(embed_images(network, images_NKHW, device=default_device(), flip=True))
    except (DataError, ExportError, NetworkError) as error:
        raise UserError(str(error)) from None
    partial = output.with_name(f"{output.name}.partial")
    with partial.open("wb") as file:
        np.savez(
            file,
            embeddings=np.concatenate(found),
            flipped=np.concatenate(mirrored),
            labels=np.array([name for name in classes for _ in source.files[name]]),
            paths=np.array(names),
        )
    partial.rename(output)
    return len(names)
