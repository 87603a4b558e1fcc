"""How a network is trained at full scale with a loss that was found or named: everything but loss, data and seed."""

from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from search_space.frozen import FrozenModel, Real
from trainers.recipe import MAX_LEARNING_RATE, TrainingRecipe, known_network


class FullRecipe(TrainingRecipe):
    """Network, images, optimiser and learning rate of a full training. The defaults are InsightFace's for CASIA-WebFace
    (`arcface_torch/configs/base.py`, 7fadd42)."""

    network: Annotated[str, AfterValidator(known_network)] = "iresnet50"
    embedding_dim: Annotated[int, Field(ge=2, le=4096)] = 512
    epochs: Annotated[int, Field(ge=1, le=100_000)] = 20
    batch_size: Annotated[int, Field(ge=2, le=1_000_000)] = 128
    """Images of a step of the optimiser."""
    accumulation: Annotated[int, Field(ge=1, le=4096)] = 1
    """Parts that a batch is cut into, whose gradients are added up: less memory, the same step, but for what looks at
    the whole batch (batch normalisation, losses that follow the batch's statistics, `sample_rate`)."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: Annotated[Real, Field(gt=0, le=MAX_LEARNING_RATE)] = 0.1
    """The highest of the schedule."""
    schedule: Literal["polynomial", "step", "cosine"] = "polynomial"
    """Of the learning rate behind the warm-up."""
    warmup_epochs: Annotated[Real, Field(ge=0)] = 0.0
    """In which the learning rate rises from 0, step by step alike."""
    power: Annotated[Real, Field(gt=0, le=10)] = 2.0
    """Of `polynomial`: the rate is the share of steps that are left, to this power."""
    milestones: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """Of `step`: after each of these epochs the rate is multiplied by `gamma`."""
    gamma: Annotated[Real, Field(gt=0, lt=1)] = 0.1
    momentum: Annotated[Real, Field(ge=0, lt=1)] = 0.9
    """Of `sgd`."""
    weight_decay: Annotated[Real, Field(ge=0, le=1)] = 5e-4
    """Biases, normalisations and other lists of numbers do not decay."""
    clip_norm: Annotated[Real, Field(gt=0)] | None = 5.0
    """The longest gradient of the network's weights, all together; None: any. Class weights are not clipped."""
    sample_rate: Annotated[Real, Field(gt=0, le=1)] = 1.0
    """The share of classes that a step compares with (Partial FC)."""

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.batch_size % self.accumulation or self.batch_size // self.accumulation < 2:
            raise ValueError(
                f"accumulation must cut batch_size={self.batch_size} into equal parts of 2 or more, "
                f"but got accumulation={self.accumulation}"
            )
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs must be below epochs={self.epochs}, but got {self.warmup_epochs}")
        if (self.schedule == "step") != bool(self.milestones):
            raise ValueError(f"milestones go with schedule 'step', but got {self.milestones} with '{self.schedule}'")
        if any(later <= earlier for earlier, later in pairwise(self.milestones)):
            raise ValueError(f"milestones must rise, but got {self.milestones}")
        if self.milestones and self.milestones[-1] >= self.epochs:
            raise ValueError(f"milestones must lie below epochs={self.epochs}, but got {self.milestones}")
        return self


class FullNumerics(FrozenModel):
    """How the arithmetic of a full training is done."""

    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the network, by autocast; the loss is computed in float32. float16 scales its gradients and needs a GPU."""
    fused_head_step: bool = False
    """Whether class weights are updated in the backward of the head, where it walks them in chunks or by kernels
    (`HeadSGD`): the same numbers without a gradient of the size of the class weights."""
    channels_last: bool = False
    threads: Annotated[int, Field(ge=1, le=1024)] = 1
    workers: Annotated[int, Field(ge=0, le=256)] = 1
    """Threads that fetch images ahead of the step that needs them."""


def refuse_fused_head_step(recipe: FullRecipe, numerics: FullNumerics) -> None:
    """Raises `ValueError` where a head cannot update its class weights in its backward."""
    if numerics.fused_head_step and (recipe.optimizer, recipe.accumulation) != ("sgd", 1):
        raise ValueError(
            "numerics.fused_head_step needs optimizer 'sgd' and accumulation=1, "
            f"but got '{recipe.optimizer}' and accumulation={recipe.accumulation}"
        )
    if numerics.fused_head_step and numerics.dtype == "float16":
        raise ValueError("numerics.fused_head_step needs gradients that are not scaled, but got dtype 'float16'")


class Milestones(FrozenModel):
    """When a full training is scored and saved. The last epoch always is."""

    score_every_epochs: Annotated[int, Field(ge=1)] = 1
    save_every_epochs: Annotated[int, Field(ge=1)] = 1
    save_every_steps: Annotated[int, Field(ge=1)] | None = None
    """Also in the midst of epochs, after each so many steps counted from the beginning."""
    flip: bool | None = None
    """Whether pairs are compared by image and mirrored image together; None: where the augmentation mirrors too."""
