"""The accuracy of embeddings on a verification set (`.bin`), as face recognition reports it.

P pairs, D embedding, K colour channels, H×W image.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trainers.evaluation import Diverged, in_batches, on_device
from trainers.formats.pair_sets import PairSet
from trainers.image_cache import decode_image
from trainers.image_source import DataError
from trainers.pair_protocol import accuracy_by_fold
from trainers.protocols.listed_pairs import FOLDS, consecutive_folds, cosines


@dataclass(frozen=True, slots=True, kw_only=True)
class PairImages:
    """Decoded pairs: the images of pair p are `images[2p]` and `images[2p + 1]`, uint8, 2P×K×H×W."""

    images: npt.NDArray[np.uint8]
    genuine_P: npt.NDArray[np.bool_]


def decoded_pairs(pairs: PairSet, name: str, image_shape: tuple[int, int, int]) -> PairImages:
    """The pairs as large and as coloured as `image_shape`. Raises `DataError`; `name` says where they are from."""
    channels, size, _ = image_shape
    if len(pairs.genuine_P) < FOLDS or pairs.genuine_P.all() or not pairs.genuine_P.any():
        raise DataError(f"{name} must hold {FOLDS} pairs or more, genuine ones and others")
    images_NKHW = np.empty((len(pairs.images), channels, size, size), np.uint8)
    for number, content in enumerate(pairs.images):
        pixels = decode_image(
            content, f"image {number} of {name}", image_size=size, colour="grey" if channels == 1 else "rgb"
        )
        images_NKHW[number] = pixels if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    return PairImages(images=images_NKHW, genuine_P=pairs.genuine_P)


def pair_accuracy(
    embed: Callable[[Tensor], Tensor], pairs: PairImages, *, flip: bool, device: torch.device
) -> Mapping[str, float]:
    """`accuracy`, the mean over `consecutive_folds`, and `accuracy_std` over them, as `evaluate_listed_pairs` has them.

    A pair's score is the cosine of its embeddings; with `flip` an embedding is the mean of those of the image and of
    the mirrored one (Deng et al. 2019, `verification.py`). Thresholds are those of `accuracy_by_fold`. Raises
    `Diverged`.
    """
    score_P = pair_scores(embed, pairs, flip=flip, device=device)
    accuracy_F = accuracy_by_fold(score_P, pairs.genuine_P, consecutive_folds(len(score_P)))
    return {"accuracy": float(accuracy_F.mean()), "accuracy_std": float(accuracy_F.std())}


def pair_scores(
    embed: Callable[[Tensor], Tensor], pairs: PairImages, *, flip: bool, device: torch.device
) -> npt.NDArray[np.float32]:
    """The cosine of each pair, P."""
    images_NKHW = on_device(pairs.images, device)
    x_ND = in_batches(embed, images_NKHW)
    if flip:
        x_ND = 0.5 * (x_ND + in_batches(lambda images: embed(images.flip(-1)), images_NKHW))
    if not x_ND.isfinite().all():
        raise Diverged("the embeddings are not finite")
    first_P = np.arange(0, len(x_ND), 2)
    return cosines(x_ND.numpy(), first_P, first_P + 1)
