"""Images whose labels look wrong: among their nearest neighbours most carry another one.

N images, D embedding, Q images looked up at a time, K neighbours.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from trainers.image_source import DataError
from trainers.protocols.embedding_sets import read_embeddings

_COSINES = 2**24
"""Cosines that are looked at together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedded:
    """Embeddings N×D, not normalised, with the label and the name of each image."""

    embeddings_ND: npt.NDArray[np.float32]
    labels: Sequence[str]
    names: Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Doubt:
    """An image, its label, the other label that `votes` of its nearest neighbours carry, and their mean cosine to it.

    `own_similarity` is the highest cosine to an image of its own label, NaN where there is none.
    """

    name: str
    label: str
    other: str
    votes: int
    similarity: float
    own_similarity: float


def label_doubts(embedded: Embedded, *, neighbours: int = 5) -> list[Doubt]:
    """The images of which more than half of the nearest `neighbours`, by cosine, carry one other label.

    Those with the most votes come first, of equal ones those whose neighbours are nearest. What a network was trained
    on it may have learnt with its wrong labels: images that it has not seen say more.
    """
    words, label_of = np.unique(np.asarray(embedded.labels, dtype=str), return_inverse=True)
    label_N = torch.from_numpy(label_of.astype(np.int64))
    unit_ND = F.normalize(torch.from_numpy(np.ascontiguousarray(embedded.embeddings_ND, dtype=np.float32)))
    found, rows = [], max(1, _COSINES // max(1, len(unit_ND)))
    for first in range(0, len(unit_ND), rows):
        cos_QN = unit_ND[first : first + rows] @ unit_ND.T
        own_Q = torch.arange(first, first + len(cos_QN))
        cos_QN[torch.arange(len(cos_QN)), own_Q] = -2.0
        cos_QK, near_QK = cos_QN.topk(min(neighbours, len(unit_ND) - 1))
        other_Q, _ = label_N[near_QK].mode()
        voted_QK = label_N[near_QK] == other_Q[:, None]
        votes_Q = voted_QK.sum(1)
        doubtful_Q = (other_Q != label_N[own_Q]) & (2 * votes_Q > neighbours)
        for row in doubtful_Q.nonzero()[:, 0].tolist():
            number = first + row
            mates = cos_QN[row][label_N == label_N[number]]
            found.append(
                Doubt(
                    name=embedded.names[number],
                    label=str(words[label_N[number]]),
                    other=str(words[other_Q[row]]),
                    votes=int(votes_Q[row]),
                    similarity=float(cos_QK[row][voted_QK[row]].mean()),
                    own_similarity=float(mates.max()) if len(mates) > 1 else float("nan"),
                )
            )
    return sorted(found, key=lambda doubt: (-doubt.votes, -doubt.similarity, doubt.name))


def read_embedded(path: Path) -> Embedded:
    """What an `.npz` of embeddings holds, which has `labels` and `paths` too. Raises `DataError`."""
    found = read_embeddings(path)
    labels = found.column("labels", "says what each image is taken for")
    names = found.column("paths", "says which image is meant")
    if len(found) < 2:
        raise DataError(f"{path} has one image; a label is doubted by its neighbours: give two images or more")
    return Embedded(embeddings_ND=found.embeddings_ND, labels=labels.tolist(), names=names.tolist())
