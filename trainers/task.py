"""`Task`: the data of a search, decoded. The sealed test identities are not in it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Kind = Literal["photo", "drawing"]
"""What the images look like: it chooses image size, flips, horizon and the FAR of the reward (see `presets`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledImages:
    """Images and their classes. `images`: uint8, N×C×H×W. `labels`: int64, N, 0-based and dense."""

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]

    @property
    def classes(self) -> int:
        """How many classes there are."""
        return int(self.labels.max()) + 1 if len(self.labels) else 0

    def class_counts(self) -> list[int]:
        """The images of each class."""
        counts: list[int] = np.bincount(self.labels, minlength=self.classes).tolist()
        return counts


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """Training images and validation images of disjoint identities.

    Validation identities come in two halves: `reward` feeds the reward, `choice` the final choice between trials, so
    that the shrinkage from one to the other shows how far a search has fitted its reward. `digest` names the decoded
    content: equal digests mean equal arrays. `damaged` names the images that were left out, as they cannot be decoded;
    `unscored` counts the validation images that are left out, as they are too many.
    """

    name: str
    kind: Kind
    digest: str
    train: LabelledImages
    reward: LabelledImages
    choice: LabelledImages
    damaged: tuple[str, ...] = ()
    unscored: int = 0

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of all images."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width

    def describe(self) -> Mapping[str, str | int]:
        """What the journal and the report say of the data."""
        parts = {"train": self.train, "reward": self.reward, "choice": self.choice}
        sizes = {f"{name}_images": len(part.labels) for name, part in parts.items()}
        classes = {f"{name}_classes": part.classes for name, part in parts.items()}
        left_out = {"damaged_images": len(self.damaged), "unscored_images": self.unscored}
        channels, height, width = self.image_shape
        return {
            "name": self.name,
            "kind": self.kind,
            "digest": self.digest,
            "channels": channels,
            "height": height,
            "width": width,
            **classes,
            **sizes,
            **{name: count for name, count in left_out.items() if count},
        }
