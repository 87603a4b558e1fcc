"""Checkpoints: named tensors and one JSON value, as a uint8 array. No pickle; equal content gives equal bytes."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.torch
import torch

_KEY = "lossearch"
NETWORK = "network."
"""How the names of the embedding network's tensors begin."""


def pack(tensors: Mapping[str, torch.Tensor], meta: Mapping[str, Any]) -> npt.NDArray[np.uint8]:
    """The tensors (on any device, in any memory format) and the JSON value `meta` in the safetensors format.

    Tensors that share their memory, as tied weights do, are written once each. `meta` is one metadata entry: the order
    of several is not fixed by the format's writer.
    """
    held: dict[str, torch.Tensor] = {}
    places: set[int] = set()
    for name, tensor in tensors.items():
        whole = tensor.detach().cpu().contiguous()
        held[name] = whole.clone() if whole.untyped_storage().data_ptr() in places else whole
        places.add(whole.untyped_storage().data_ptr())
    text = json.dumps(meta, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return np.frombuffer(safetensors.torch.save(held, {_KEY: text}), dtype=np.uint8)


def unpack(payload: npt.NDArray[np.uint8]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """What `pack` was given. `payload` may be read-only; the tensors are copies, on the CPU.

    Raises `ValueError` for an array that is not such a checkpoint.
    """
    data = payload.tobytes()
    try:
        return safetensors.torch.load(data), unpack_meta(payload)
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"not a checkpoint of this program ({len(data)} bytes): {error!r}") from None


def unpack_meta(payload: npt.NDArray[np.uint8]) -> dict[str, Any]:
    """The JSON value alone; no tensor is read. Raises `ValueError` or `KeyError` for what is no such checkpoint."""
    size = int.from_bytes(payload[:8].tobytes(), "little")
    header = json.loads(payload[8 : 8 + size].tobytes())
    meta: dict[str, Any] = json.loads(header["__metadata__"][_KEY])
    return meta


def network_only(payload: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """A checkpoint without class weights, loss and optimiser: enough for embeddings, not for going on.

    Raises `ValueError` for an array that is no checkpoint.
    """
    tensors, meta = unpack(payload)
    return pack({name: tensor for name, tensor in tensors.items() if name.startswith(NETWORK)}, meta)
