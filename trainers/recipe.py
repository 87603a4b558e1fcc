"""How a proxy model is trained and scored: everything but the loss, the data, the seed and the hardware."""

import re
from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from search_space.frozen import FrozenModel, Real

MAX_LEARNING_RATE = 100.0
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
    downscale: Annotated[Real, Field(ge=0, le=0.9)] = 0.0
    """The image is made smaller by up to this share of its side, and as large as before again."""
    blur_pixels: Annotated[Real, Field(ge=0, le=16)] = 0.0
    """The largest standard deviation of a Gaussian blur."""
    colour: Annotated[Real, Field(ge=0, le=1)] = 0.0
    """Saturation factor drawn from [1 − colour, 1 + colour]; grey images have none."""
    contrast: Annotated[Real, Field(ge=0, le=1)] = 0.0
    """Factor of the differences to the image's mean, drawn from [1 − contrast, 1 + contrast]."""
    brightness: Annotated[Real, Field(ge=0, le=1)] = 0.0
    """What is added to all pixels, up to this share of the range from black to white, either way."""
    cutout: Annotated[Real, Field(ge=0, le=1)] = 0.0
    """Side of a square, up to this share of the image's, that is covered with the image's mean colour."""


AUGMENTATIONS: Mapping[str, Augmentation] = {
    "none": Augmentation(rotate_degrees=0, scale=0, shift=0),
    "drawing": Augmentation(),
    "drawing-strong": Augmentation(rotate_degrees=15, scale=0.2, shift=0.1, blur_pixels=0.8, cutout=0.3),
    "photo": Augmentation(flip=True, rotate_degrees=5, scale=0.05, shift=0.04),
    "photo-strong": Augmentation(
        flip=True, rotate_degrees=10, scale=0.1, shift=0.08, colour=0.3, contrast=0.3, brightness=0.15, cutout=0.4
    ),
    "photo-low-quality": Augmentation(
        flip=True,
        rotate_degrees=5,
        scale=0.05,
        shift=0.04,
        downscale=0.7,
        blur_pixels=1.5,
        contrast=0.3,
        brightness=0.1,
    ),
    "spectrogram": Augmentation(rotate_degrees=0, scale=0, shift=0.05, contrast=0.2, brightness=0.1, cutout=0.3),
}
"""What may be named in place of a table. `drawing` and `photo` are the defaults of their kinds; the others were not
tuned on any data."""


class Sampling(FrozenModel):
    """Which training images an epoch shows. An epoch has as many images as the classes hold, after the cap."""

    kind: Literal["shuffled", "balanced", "classes"] = "shuffled"
    """`shuffled`: each image once. `balanced`: each class equally often (±1), the images of small ones repeatedly.
    `classes`: each batch holds as many classes as fit, with `images_per_class` images of each (P×K)."""
    images_per_class: Annotated[int, Field(ge=2, le=1024)] = 4
    max_images_per_class: Annotated[int, Field(ge=1)] | None = None
    """A cap: so many different images of a class an epoch, drawn anew each epoch."""


class TrainingRecipe(NetworkRecipe):
    """What a proxy's and a full training have in common: the network, and which images it is shown, and how."""

    batch_size: Annotated[int, Field(ge=2, le=65536)] = 128
    sampling: Sampling = Sampling()
    augmentation: Augmentation = Augmentation()

    @field_validator("augmentation", mode="before")
    @classmethod
    def _named(cls, augmentation: object) -> object:
        if not isinstance(augmentation, str):
            return augmentation
        if augmentation not in AUGMENTATIONS:
            raise ValueError(f"must be a table or one of {', '.join(AUGMENTATIONS)}, but got '{augmentation}'")
        return AUGMENTATIONS[augmentation]

    @model_validator(mode="after")
    def _two_classes_a_batch(self) -> Self:
        if self.sampling.kind == "classes" and self.batch_size < 2 * self.sampling.images_per_class:
            raise ValueError(
                f"batch_size must be at least twice sampling.images_per_class = {self.sampling.images_per_class}, "
                f"but got {self.batch_size}"
            )
        return self


class Recipe(TrainingRecipe):
    """How a proxy model is trained (SGD with momentum) and what its reward is.

    `horizon_epochs` fixes the learning-rate schedule for the whole search, so that stopping after some epochs and
    continuing later is the same as not stopping.
    """

    learning_rate: Annotated[Real, Field(gt=0, le=MAX_LEARNING_RATE)] = 0.1
    """The highest of the schedule."""
    schedule: Literal["one_cycle", "constant"] = "one_cycle"
    """Of the learning rate, after a warm-up over a quarter of the horizon: down to 0, or held and then down to 0."""
    decay: Annotated[Real, Field(ge=0, le=0.75)] = 0.25
    """The last share of the horizon, over which the `constant` schedule goes down."""
    momentum: Annotated[Real, Field(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[Real, Field(ge=0, le=1)] = 5e-4
    horizon_epochs: Annotated[int, Field(ge=1, le=10000)] = 8
    reward: RewardMetric = "tar_at_far_1e-3"

    def changed(self, fields: Mapping[str, object]) -> Self:
        """This recipe but for some fields. Raises `ValidationError`."""
        return self.model_validate({**self.model_dump(), **fields})


class Numerics(FrozenModel):
    """How the arithmetic is done: probed once a search, stored in the journal, used by every worker and by resume."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    channels_last: bool = False
    threads: Annotated[int, Field(ge=1, le=1024)] = 1
    lockstep: Annotated[int, Field(ge=1, le=64)] = 1
    """So many candidates at a time share a worker and its augmented batches."""
    execution: Execution = "eager"
