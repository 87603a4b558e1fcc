"""The embeddings of an image set by an exported network, as an `.npz`.

N images, D embedding.
"""

import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from torch import nn

from lfs.errors import UserError
from lfs.runner import default_device
from trainers.data import DataConfig
from trainers.exported_network import ExportError, NetworkDescription, embed_images, load_network
from trainers.foreign_networks import NetworkError
from trainers.formats.opening import open_images
from trainers.image_cache import Colour, decode_image, refuse_damaged
from trainers.image_source import DataError, ImageSource

_IMAGES_AT_A_TIME = 512
_OWN = ("embeddings", "flipped", "labels", "paths")


def embed_set(
    folder: Path, data: Path, output: Path, *, split: Literal["all", "train", "val", "test"]
) -> tuple[int, list[str]]:
    """Write `embeddings`, float32 N×D, `labels` (class names) and `paths` (images' names), N each; N, and the names of
    the damaged images, which are left out as long as they are no more than a search lets be left out by default.

    Where the network was trained on mirrored images, `flipped` are the embeddings of those. Further columns of a table
    of images go along, as what `evaluate --by` groups by. Images are decoded, embedded and forgotten in turn. Raises
    `UserError`; then nothing is written.
    """
    if output.suffix != ".npz":
        raise UserError(f"embeddings are written to a file that ends in .npz, but got {output}")
    if output.exists():
        raise UserError(f"{output} is there already; choose another name or remove it")
    if not os.access(output.parent, os.W_OK):
        raise UserError(f"{output} cannot be written; choose a file in a folder that is there and yours to write")
    try:
        network, description = load_network(folder)
        source = open_images(data)
        classes = sorted(source.files) if split == "all" else source.classes(split)
        names = source.names(classes)
        if not names:
            raise UserError(f"{data} has no images in the split '{split}'")
        if taken := [column for column in source.columns if column in _OWN]:
            raise UserError(f"{data} has a column '{taken[0]}', which embeddings have their own of; rename it")
        found, damaged = _embedded(network, description, source, names)
    except (DataError, ExportError, NetworkError) as error:
        raise UserError(str(error)) from None
    kept = [name for name in names if name not in damaged]
    columns = {column: np.array([text_of[name] for name in kept]) for column, text_of in source.columns.items()}
    labels = np.array([name.split("/")[1] for name in kept])
    _write(output, {**found, **columns, "labels": labels, "paths": np.array(kept)})
    return len(kept), list(damaged)


def _embedded(
    network: nn.Module, description: NetworkDescription, source: ImageSource, names: Sequence[str]
) -> tuple[Mapping[str, npt.NDArray[np.float32]], Mapping[str, str]]:
    """The embeddings, and why which images have none. Raises `DataError` for too many of these, as soon as they are."""
    damaged: dict[str, str] = {}
    channels, size, _ = description.image_shape
    colour: Colour = "grey" if channels == 1 else "rgb"
    ways = {"embeddings": False, "flipped": True} if description.flip else {"embeddings": False}
    parts: dict[str, list[npt.NDArray[np.float32]]] = {key: [] for key in ways}
    with source.reader() as read:
        for first in range(0, len(names), _IMAGES_AT_A_TIME):
            some = names[first : first + _IMAGES_AT_A_TIME]
            pixels = []
            for name in some:
                try:
                    pixels.append(decode_image(read(name), name, image_size=size, colour=colour))
                except DataError as error:
                    damaged[name] = str(error)
            refuse_damaged(damaged, len(names), DataConfig().corrupt_share, source.path)
            if not pixels:
                continue
            images_NHWK = np.stack(pixels).reshape(len(pixels), size, size, channels)
            images_NKHW = np.ascontiguousarray(images_NHWK.transpose(0, 3, 1, 2))
            for key, flip in ways.items():
                parts[key].append(embed_images(network, images_NKHW, device=default_device(), flip=flip))
    return {key: np.concatenate(of_key) for key, of_key in parts.items()}, damaged


def _write(output: Path, arrays: Mapping[str, npt.NDArray[np.generic]]) -> None:
    """An `.npz` of arrays of any names, whole or not at all."""
    partial = output.with_name(f"{output.name}.partial")
    with zipfile.ZipFile(partial, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)
    partial.rename(output)
