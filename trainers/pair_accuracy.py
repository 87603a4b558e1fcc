"""The accuracy of embeddings on pairs, as face recognition reports it.

P pairs of N images, D embedding.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from trainers.evaluation import Diverged, in_batches, on_device
from trainers.pair_images import PairImages
from trainers.pair_protocol import accuracy_by_fold
from trainers.protocols.listed_pairs import cosines


def pair_accuracy(
    embed: Callable[[Tensor], Tensor], pairs: PairImages, *, flip: bool, device: torch.device
) -> Mapping[str, float]:
    """`accuracy`, the mean over the folds of the pairs, and `accuracy_std` over them; the former is that of
    `evaluate_listed_pairs`.

    A pair's score is the cosine of its embeddings; with `flip` an embedding is the mean of those of the image and of
    the mirrored one (Deng et al. 2019, `verification.py`). Thresholds are those of `accuracy_by_fold`. Raises
    `Diverged`.
    """
    images_NKHW, listed = on_device(pairs.images, device), pairs.listed
    x_ND = in_batches(embed, images_NKHW)
    if flip:
        x_ND = 0.5 * (x_ND + in_batches(lambda images: embed(images.flip(-1)), images_NKHW))
    if not x_ND.isfinite().all():
        raise Diverged("the embeddings are not finite")
    score_P = cosines(x_ND.numpy(), listed.first_P, listed.second_P)
    accuracy_F = accuracy_by_fold(score_P, listed.genuine_P, listed.fold_P)
    return {"accuracy": float(accuracy_F.mean()), "accuracy_std": float(accuracy_F.std())}
