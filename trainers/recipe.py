"""How a proxy model is trained and scored: everything but the loss, the data, the seed and the hardware."""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from search_space.frozen import FrozenModel, Real

FARS = (1e-1, 1e-2, 1e-3, 1e-4)
"""The false accept rates at which the true accept rate is always reported."""

RewardMetric = Literal[
    "tar_at_far_1e-1",
    "tar_at_far_1e-2",
    "tar_at_far_1e-3",
    "tar_at_far_1e-4",
    "one_minus_eer",
    "auc",
    "rank1",
    "mean_tar",
    "blend",
    "lfw_accuracy",
]
"""What a reward can be: scores of `trainers.verification`, all of them over all pairs but the last."""


Execution = Literal["eager", "compiled", "cuda_graph"]
"""How the network's training passes run: operation by operation, as one graph that torch compiles once a worker for all
candidates, or as one CUDA graph a candidate. Evaluation and losses are always eager."""


NETWORKS = ("conv4", "iresnet18", "iresnet34", "iresnet50", "iresnet100", "mobilefacenet", "resnet")
"""The networks that `trainers.networks` builds itself."""


def known_network(name: str) -> str:
    """`name`, if a network can be called so. Raises `ValueError`."""
    if name not in NETWORKS and not re.fullmatch(r"timm:[^\s:]+|[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*", name):
        raise ValueError(f"must be {', '.join(NETWORKS)}, 'timm:NAME' or 'module:factory', but got {name!r}")
    return name


class NetworkRecipe(FrozenModel):
    """Which network makes the embeddings.

    `network` is one of `NETWORKS`, `timm:NAME` for a model of the timm library, or `module:factory` for a callable of
    the user's (see `trainers.foreign_networks`).
    """

    network: Annotated[str, AfterValidator(known_network)] = "conv4"
    width: Annotated[int, Field(ge=4, le=512)] = 32
    """Of `conv4` and `resnet`: the channels after the first convolution."""
    embedding_dim: Annotated[int, Field(ge=2, le=4096)] = 128


class Augmentation(FrozenModel):
    """Random changes of each training image, drawn anew each epoch. Zero or False switches one off."""

    flip: bool = False
    rotate_degrees: Annotated[Real, Field(ge=0, le=180)] = 10.0
    scale: Annotated[Real, Field(ge=0, le=0.5)] = 0.1
    """Size factor drawn from [1 − scale, 1 + scale]."""
    shift: Annotated[Real, Field(ge=0, le=0.5)] = 0.08
    """Translation as a share of the image's side."""


class Recipe(NetworkRecipe):
    """How a proxy model is trained (SGD with momentum) and what its reward is.

    `horizon_epochs` fixes the learning-rate schedule for the whole search, so that stopping after some epochs and
    continuing later is the same as not stopping.
    """

    batch_size: Annotated[int, Field(ge=2, le=65536)] = 128
    learning_rate: Annotated[Real, Field(gt=0, le=100)] = 0.1
    """The highest of the schedule."""
    schedule: Literal["one_cycle", "constant"] = "one_cycle"
    """Of the learning rate, after a warm-up over a quarter of the horizon: down to 0, or held and then down to 0."""
    decay: Annotated[Real, Field(ge=0, le=0.75)] = 0.25
    """The last share of the horizon, over which the `constant` schedule goes down."""
    momentum: Annotated[Real, Field(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[Real, Field(ge=0, le=1)] = 5e-4
    horizon_epochs: Annotated[int, Field(ge=1, le=10000)] = 8
    augmentation: Augmentation = Augmentation()
    reward: RewardMetric = "tar_at_far_1e-3"


class Numerics(FrozenModel):
    """How the arithmetic is done: probed once a search, stored in the journal, used by every worker and by resume."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    channels_last: bool = False
    threads: Annotated[int, Field(ge=1, le=1024)] = 1
    lockstep: Annotated[int, Field(ge=1, le=64)] = 1
    """So many candidates at a time share a worker and its augmented batches."""
    execution: Execution = "eager"
