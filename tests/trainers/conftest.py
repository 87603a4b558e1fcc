"""A task small enough to train on within a second."""

import numpy as np
import pytest

from trainers import LabelledImages, Task


def _part(rng: np.random.Generator, classes: int, images_per_class: int) -> LabelledImages:
    """Coarse random patterns, one a class, each image under its own noise."""
    label_N = np.repeat(np.arange(classes, dtype=np.int64), images_per_class)
    coarse = rng.uniform(40, 215, size=(classes, 1, 4, 4)).repeat(4, axis=2).repeat(4, axis=3)
    noisy = coarse[label_N] + rng.normal(0, 25, size=(len(label_N), 1, 16, 16))
    return LabelledImages(images=noisy.clip(0, 255).astype(np.uint8), labels=label_N)


@pytest.fixture(scope="session")
def toy_task() -> Task:
    rng = np.random.default_rng(0)
    return Task(
        name="toy",
        kind="drawing",
        digest="0" * 12,
        train=_part(rng, 12, 16),
        reward=_part(rng, 8, 5),
        choice=_part(rng, 9, 5),
    )
