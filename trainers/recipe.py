"""How a proxy model is trained and scored: everything but the loss, the data, the seed and the hardware."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

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


class Augmentation(FrozenModel):
    """Random changes of each training image, drawn anew each epoch. Zero or False switches one off."""

    flip: bool = False
    rotate_degrees: Annotated[Real, Field(ge=0, le=180)] = 10.0
    scale: Annotated[Real, Field(ge=0, le=0.5)] = 0.1
    """Size factor drawn from [1 − scale, 1 + scale]."""
    shift: Annotated[Real, Field(ge=0, le=0.5)] = 0.08
    """Translation as a share of the image's side."""


class Sampling(FrozenModel):
    """Which training images an epoch shows. An epoch has as many images as the classes hold, after the cap."""

    kind: Literal["shuffled", "balanced", "classes"] = "shuffled"
    """`shuffled`: each image once. `balanced`: each class equally often (±1), the images of small ones repeatedly.
    `classes`: each batch holds as many classes as fit, with `images_per_class` images of each (P×K)."""
    images_per_class: Annotated[int, Field(ge=2, le=1024)] = 4
    max_images_per_class: Annotated[int, Field(ge=1)] | None = None
    """A cap: so many different images of a class an epoch, drawn anew each epoch."""


class Recipe(FrozenModel):
    """How a proxy model is trained (SGD with momentum) and what its reward is.

    `horizon_epochs` fixes the learning-rate schedule for the whole search, so that stopping after some epochs and
    continuing later is the same as not stopping.
    """

    network: Literal["conv4", "resnet"] = "conv4"
    width: Annotated[int, Field(ge=4, le=512)] = 32
    embedding_dim: Annotated[int, Field(ge=2, le=4096)] = 128
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
    sampling: Sampling = Sampling()
    augmentation: Augmentation = Augmentation()
    reward: RewardMetric = "tar_at_far_1e-3"

    @model_validator(mode="after")
    def _two_classes_a_batch(self) -> Self:
        if self.sampling.kind == "classes" and self.batch_size < 2 * self.sampling.images_per_class:
            raise ValueError(
                f"batch_size must be at least twice sampling.images_per_class = {self.sampling.images_per_class}, "
                f"but got {self.batch_size}"
            )
        return self


class Numerics(FrozenModel):
    """How the arithmetic is done: probed once a search, stored in the journal, used by every worker and by resume."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    channels_last: bool = False
    threads: Annotated[int, Field(ge=1, le=1024)] = 1
    lockstep: Annotated[int, Field(ge=1, le=64)] = 1
    """So many candidates at a time share a worker and its augmented batches."""
    execution: Execution = "eager"
