"""Embeddings for the tests of the protocols, and the cosines of all of them."""

import numpy as np
import numpy.typing as npt

from trainers.protocols.embedding_sets import EmbeddingSet

Embeddings = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]


def corners(seed: int, images: int, classes: int, flips: float = 0.2) -> EmbeddingSet:
    """Embeddings whose cosines are multiples of ½, so exact in float32, with ties everywhere."""
    rng = np.random.default_rng(seed)
    label_N = rng.integers(0, classes, images)
    prototypes = rng.choice([-1.0, 1.0], size=(classes, 4))
    signs = np.where(rng.random((images, 4)) < flips, -1.0, 1.0)
    return embedding_set((prototypes[label_N] * signs).astype(np.float32), label_N)


def clusters(seed: int, images: int, classes: int, noise: float = 0.8) -> EmbeddingSet:
    """Noisy identities."""
    rng = np.random.default_rng(seed)
    label_N = rng.integers(0, classes, images)
    centres = rng.standard_normal((classes, 8))
    return embedding_set((centres[label_N] + noise * rng.standard_normal((images, 8))).astype(np.float32), label_N)


def embedding_set(embeddings_ND: Embeddings, label_N: Labels, **columns: list[str]) -> EmbeddingSet:
    known = {"labels": label_N.astype(np.str_)} | {name: np.array(values) for name, values in columns.items()}
    return EmbeddingSet(name="mine.npz", embeddings_ND=embeddings_ND, columns=known)


def cosine_table(one_PD: Embeddings, two_GD: Embeddings) -> npt.NDArray[np.float64]:
    """The cosine of each with each, in float64, rounded so that ties are ties."""
    units = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (one_PD.astype(float), two_GD.astype(float))]
    cosines_PG: npt.NDArray[np.float64] = np.round(units[0] @ units[1].T, 6)
    return cosines_PG
