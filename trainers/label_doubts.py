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

_AT_ONCE = 1024


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
    found = []
    for first in range(0, len(unit_ND), _AT_ONCE):
        cos_QN = unit_ND[first : first + _AT_ONCE] @ unit_ND.T
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


def read_embeddings(path: Path) -> Embedded:
    """What an `.npz` holds: `embeddings` (N×D), `labels` and `paths` (N texts or numbers). Raises `DataError`."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as opened:
            embeddings_ND, labels, names = (opened[key] for key in ("embeddings", "labels", "paths"))
    except (OSError, ValueError, EOFError, KeyError) as error:
        raise DataError(f"{path} is no .npz with embeddings, labels and paths ({error}); save it as one") from error
    shapes = [embeddings_ND.shape, labels.shape, names.shape]
    if embeddings_ND.ndim != 2 or labels.shape != names.shape or labels.shape != embeddings_ND.shape[:1]:
        raise DataError(f"embeddings, labels and paths of {path} must be N×D, N and N, but have the shapes {shapes}")
    if embeddings_ND.dtype.kind != "f" or not np.isfinite(embeddings_ND).all() or len(embeddings_ND) < 2:
        raise DataError(f"embeddings of {path} must be finite numbers of two images or more")
    texts = [array.astype(str).tolist() for array in (labels, names)]
    return Embedded(embeddings_ND=embeddings_ND.astype(np.float32), labels=texts[0], names=texts[1])
