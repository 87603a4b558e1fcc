"""The accuracy that a training is scored with along the way is the one that `lossearch evaluate` gives afterwards."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from trainers.evaluation import in_batches
from trainers.formats.pair_sets import PairSet, write_pairs
from trainers.pair_accuracy import pair_accuracy
from trainers.pair_images import PairImages
from trainers.protocols.embedding_sets import read_embeddings
from trainers.protocols.listed_pairs import consecutive_pairs, cosines, evaluate_listed_pairs, read_listed_pairs

CPU = torch.device("cpu")


def embed(images_NKHW: Tensor) -> Tensor:
    """Four numbers an image, not the same for the mirrored one."""
    weight = torch.randn(64, 4, generator=torch.Generator().manual_seed(1))
    return images_NKHW.flatten(1) @ weight


def drawn(pairs: int) -> PairImages:
    """Noise; of a genuine pair one image is half the other."""
    rng = np.random.default_rng(pairs)
    images = rng.integers(0, 256, (2 * pairs, 1, 8, 8), dtype=np.uint8)
    genuine_P = rng.random(pairs) < 0.5
    images[1::2][genuine_P] = images[0::2][genuine_P] // 2 + images[1::2][genuine_P] // 2
    return PairImages(images=images, listed=consecutive_pairs(genuine_P))


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("pairs", [97, 60, 13])
def test_a_training_and_an_evaluation_agree_on_the_same_pairs(pairs: int, flip: bool, tmp_path: Path) -> None:
    images = drawn(pairs)
    found = pair_accuracy(embed, images, flip=flip, device=CPU)
    seen = images.images[..., ::-1].copy() if flip else images.images  # the mean of an image with itself is itself
    both = [in_batches(embed, torch.from_numpy(each)).numpy() for each in (images.images, seen)]
    np.savez(tmp_path / "embedded.npz", embeddings=both[0], flipped=both[1])
    write_pairs(PairSet(images=[b"x"] * 2 * pairs, genuine_P=images.listed.genuine_P), tmp_path / "set.bin")
    embedded = read_embeddings(tmp_path / "embedded.npz")
    listed = read_listed_pairs(tmp_path / "set.bin", embedded)
    evaluated = evaluate_listed_pairs(embedded, listed, fars=(), resamples=20, rng=np.random.default_rng(0))
    assert found["accuracy"] == evaluated.measures["accuracy"].value
    assert 0.5 < found["accuracy"] < 1
    error = found["accuracy_std"] / np.sqrt(9)  # over ten folds, with n − 1
    assert f"{found['accuracy']:.4f} ± {error:.4f}" in evaluated.notes[0]


def test_embeddings_without_a_direction_have_the_cosine_0() -> None:
    x_ND = np.array([[0, 0], [3, 4], [6, 8]], np.float32)
    assert cosines(x_ND, np.array([0, 1]), np.array([1, 2])).tolist() == [0, 1]
