"""Which training images an epoch shows, in which order and which batches: a function of a generator alone.

N images, C classes, S steps of an epoch, B images of a batch.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from trainers.recipe import TrainingRecipe


def epoch_images(recipe: TrainingRecipe, class_counts: Sequence[int]) -> int:
    """The images of an epoch: as many as there are, after the cap of each class."""
    return sum(_offered(recipe, class_counts))


def batch_images(recipe: TrainingRecipe, class_counts: Sequence[int]) -> int:
    """B: the recipe's batch size, as far as the images reach; a multiple of `images_per_class` under `classes`."""
    sampling = recipe.sampling
    size = min(recipe.batch_size, epoch_images(recipe, class_counts))
    if sampling.kind != "classes":
        return size
    classes = min(recipe.batch_size // sampling.images_per_class, len(class_counts))
    return classes * sampling.images_per_class


def epoch_steps(recipe: TrainingRecipe, class_counts: Sequence[int]) -> int:
    """S: the full batches that the images of an epoch, after the cap of each class, make; at least one."""
    return max(1, epoch_images(recipe, class_counts) // batch_images(recipe, class_counts))


def epoch_batches(
    label_N: Tensor, recipe: TrainingRecipe, class_counts: Sequence[int], generator: torch.Generator
) -> Tensor:
    """The images of each batch of an epoch, S×B, as `recipe.sampling` wants them; labels on the CPU."""
    steps, size = epoch_steps(recipe, class_counts), batch_images(recipe, class_counts)
    order_N = torch.randperm(len(label_N), generator=generator)
    if recipe.sampling.kind == "shuffled":
        most = recipe.sampling.max_images_per_class
        kept = order_N if most is None else order_N[_rank_in_class(label_N[order_N]) < most]
        return kept[: steps * size].view(steps, size)
    if recipe.sampling.kind == "balanced":
        class_M, each = _turns(len(class_counts), len(class_counts), steps * size, generator), 1
    else:
        each = recipe.sampling.images_per_class
        class_M = _turns(len(class_counts), size // each, steps * size // each, generator)
    visit_M = _rank_in_class(class_M)
    offered_C = torch.tensor(_offered(recipe, class_counts))
    place_ME = (visit_M[:, None] * each + torch.arange(each)) % offered_C[class_M, None]
    by_class_N = order_N[label_N[order_N].argsort(stable=True)]
    first_C = torch.tensor([0, *class_counts[:-1]]).cumsum(0)
    return by_class_N[first_C[class_M, None] + place_ME].view(steps, size)


def _offered(recipe: TrainingRecipe, class_counts: Sequence[int]) -> list[int]:
    """How many different images of each class an epoch may show."""
    most = recipe.sampling.max_images_per_class
    return [count if most is None else min(count, most) for count in class_counts]


def _rank_in_class(class_M: Tensor) -> Tensor:
    """How many entries before it are of the same class, for each."""
    order_M = class_M.argsort(stable=True)
    count_C = class_M.bincount()
    rank_M = torch.empty_like(class_M)
    rank_M[order_M] = torch.arange(len(class_M)) - (count_C.cumsum(0) - count_C).repeat_interleave(count_C)
    return rank_M


def _turns(classes: int, group: int, entries: int, generator: torch.Generator) -> Tensor:
    """Classes in random turns, `group` distinct ones at a time; what does not fill a group sits a turn out."""
    a_turn = classes // group * group
    turns = [torch.randperm(classes, generator=generator)[:a_turn] for _ in range(-(-entries // a_turn))]
    return torch.cat(turns)[:entries]
