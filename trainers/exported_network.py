"""A trained network as files: `network.safetensors`, `network.json`, which rebuilds it, and `network.onnx`.

N batch, D embedding, K colour channels, H×W image.
"""

import contextlib
import json
import logging
import os
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import ValidationError
from torch import nn

from search_space.frozen import FrozenModel
from trainers.checkpoint import pack, unpack
from trainers.evaluation import in_batches, on_device
from trainers.networks import build_network
from trainers.recipe import NetworkRecipe

DESCRIPTION, WEIGHTS, ONNX = "network.json", "network.safetensors", "network.onnx"


class ExportError(ValueError):
    """A network cannot be written or read; the message is one sentence."""


class NetworkDescription(FrozenModel):
    """What rebuilds a network: its recipe, and `image_shape` (channels, height, width) of the images that it takes.

    Pixels go in as value / 127.5 − 1 (`scaling`). `flip` says whether a mirrored image shows the same class.
    """

    recipe: NetworkRecipe
    image_shape: tuple[int, int, int]
    scaling: Literal["x / 127.5 - 1"] = "x / 127.5 - 1"
    flip: bool


def save_network(network: nn.Module, description: NetworkDescription, folder: Path) -> None:
    """Write `network.safetensors` and, last, `network.json` into `folder`, each whole or not at all."""
    pack(network.state_dict(), {"network": description.recipe.network}).tofile(folder / f"{WEIGHTS}.partial")
    _put(folder / WEIGHTS)
    text = json.dumps(description.model_dump(mode="json"), indent=2) + "\n"
    (folder / f"{DESCRIPTION}.partial").write_text(text, encoding="utf-8")
    _put(folder / DESCRIPTION)


def _put(path: Path) -> None:
    """Move what lies at `path` with `.partial` behind it into place."""
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.rename(path)


def load_network(folder: Path | str) -> tuple[nn.Module, NetworkDescription]:
    """The network that `save_network` wrote, in evaluation mode on the CPU, and its description.

    A `module:factory` is imported. Raises `ExportError`, and `NetworkError` where a network of timm's or the user's
    cannot be had.
    """
    folder = Path(folder)
    try:
        description = NetworkDescription.model_validate_json((folder / DESCRIPTION).read_bytes())
        tensors, _ = unpack(np.fromfile(folder / WEIGHTS, dtype=np.uint8))
    except FileNotFoundError as error:
        name = Path(error.filename).name
        raise ExportError(f"there is no {name} in {folder}; give the folder of a finished training") from None
    except (OSError, ValidationError) as error:
        raise ExportError(f"{folder / DESCRIPTION} is damaged: {str(error).splitlines()[0]}") from None
    except ValueError as error:
        raise ExportError(f"{folder / WEIGHTS} is damaged: {error}") from None
    network = build_network(
        description.recipe, image_shape=description.image_shape, generator=torch.Generator().manual_seed(0)
    )
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        raise ExportError(f"{folder / WEIGHTS} does not fit {DESCRIPTION}: {str(error).splitlines()[-1]}") from None
    return network.eval(), description


@torch.no_grad()
def embed_images(
    network: nn.Module, images_NKHW: npt.NDArray[np.uint8], *, device: str = "cpu", flip: bool = False
) -> npt.NDArray[np.float32]:
    """Embeddings N×D of uint8 images, or with `flip` of the mirrored images, by a network in evaluation mode."""
    place = torch.device(device)
    network = network.eval().to(place)
    embed = (lambda images: network(images.flip(-1))) if flip else network
    embeddings_ND: npt.NDArray[np.float32] = in_batches(embed, on_device(images_NKHW, place)).numpy()
    return embeddings_ND


def can_write_onnx() -> bool:
    """Whether what `write_onnx` needs is installed (`lossearch[onnx]`)."""
    return all(find_spec(name) is not None for name in ("onnx", "onnxscript"))


def write_onnx(network: nn.Module, description: NetworkDescription, path: Path) -> None:
    """Write the network for ONNX runtimes: `images` N×K×H×W float32, scaled, in; `embeddings` N×D float32 out; N is
    free. Raises `ExportError` where torch cannot export this network or the extra is missing."""
    if not can_write_onnx():
        raise ExportError("ONNX needs onnx and onnxscript; install them with: pip install 'lossearch[onnx]'")
    example_NKHW = torch.zeros(2, *description.image_shape)
    partial = path.with_name(f"{path.name}.partial")
    try:
        with _quiet():
            torch.onnx.export(
                network.eval().cpu(),
                (example_NKHW,),
                str(partial),
                input_names=["images"],
                output_names=["embeddings"],
                dynamic_shapes=({0: torch.export.Dim("N")},),
                dynamo=True,
                external_data=False,
                verbose=False,
            )
    except Exception as error:  # of torch's own, of onnxscript's, of the user's network
        partial.unlink(missing_ok=True)
        raise ExportError(f"torch cannot export this network to ONNX ({type(error).__name__})") from error
    _put(path)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's remarks on what else could be installed."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(None):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
