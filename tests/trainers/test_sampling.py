"""Which images an epoch shows under each way of sampling: counts, batches, and nothing but the generator decides."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from search_space import LossSchedule, catalog
from trainers import Task
from trainers.recipe import Numerics, Recipe, Sampling
from trainers.sampling import batch_images, epoch_batches, epoch_steps
from trainers.training import train

COUNTS = [40, 3, 17, 9, 1, 30]
LABELS = torch.repeat_interleave(torch.arange(len(COUNTS)), torch.tensor(COUNTS))
WAYS: list[dict[str, Any]] = [
    {"kind": "shuffled"},
    {"kind": "shuffled", "max_images_per_class": 8},
    {"kind": "balanced"},
    {"kind": "balanced", "max_images_per_class": 2},
    {"kind": "classes", "images_per_class": 3},
    {"kind": "classes", "images_per_class": 3, "max_images_per_class": 10},
]


def recipe(batch_size: int = 10, **sampling: object) -> Recipe:
    return Recipe(batch_size=batch_size, sampling=Sampling.model_validate(sampling))


def epoch(of: Recipe, seed: int = 0) -> Tensor:
    return epoch_batches(LABELS, of, COUNTS, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("sampling", WAYS)
def test_the_generator_decides_everything_and_the_batches_are_full(sampling: dict[str, Any]) -> None:
    of = recipe(**sampling)
    one, again, other = epoch(of), epoch(of), epoch(of, seed=1)
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert one.shape == (epoch_steps(of, COUNTS), batch_images(of, COUNTS))


def test_the_default_is_a_permutation_of_the_images_as_it_ever_was() -> None:
    expected = torch.randperm(100, generator=torch.Generator().manual_seed(0)).view(10, 10)
    assert torch.equal(epoch(recipe()), expected)
    assert torch.equal(epoch(recipe(batch_size=512)), expected.view(1, 100))


def test_a_cap_shows_so_many_different_images_of_a_class_and_others_in_the_next_epoch() -> None:
    of = recipe(batch_size=4, max_images_per_class=8)
    seen = [epoch(of, seed).flatten() for seed in range(40)]
    for each in seen:
        assert len(set(each.tolist())) == len(each) == 36
        assert LABELS[each].bincount(minlength=6).tolist() == [8, 3, 8, 8, 1, 8]
    assert len(set(torch.cat(seen).tolist())) == 100


def test_balanced_shows_each_class_equally_often_and_its_images_in_turn() -> None:
    shown = epoch(recipe(kind="balanced")).flatten()
    assert set(LABELS[shown].bincount().tolist()) == {16, 17}
    image_counts = shown.bincount(minlength=100)
    for label, count in enumerate(COUNTS):
        of_class = image_counts[LABELS.eq(label)]
        assert of_class.max() - of_class.min() <= 1
        assert (of_class > 0).sum() == min(count, int(LABELS[shown].eq(label).sum()))


def test_balanced_with_a_cap_repeats_the_images_under_the_cap() -> None:
    shown = epoch(recipe(batch_size=11, kind="balanced", max_images_per_class=2)).flatten()
    assert LABELS[shown].bincount().sum() == 11
    assert max(len(set(shown[LABELS[shown] == label].tolist())) for label in range(6)) <= 2


@pytest.mark.parametrize("most", [None, 10])
def test_a_batch_of_classes_holds_p_classes_with_k_images_of_each(most: int | None) -> None:
    of = recipe(kind="classes", images_per_class=3, max_images_per_class=most)
    batches = epoch(of)
    assert batches.shape[1] == 9
    for batch in batches:
        counts = Counter(LABELS[batch].tolist())
        assert list(counts.values()) == [3, 3, 3]
        for label in counts:
            assert len(set(batch[LABELS[batch] == label].tolist())) == min(3, COUNTS[label])
    visits = LABELS[batches].flatten().bincount(minlength=6)
    assert visits.max() - visits.min() <= 3


def test_more_classes_than_there_are_fill_no_batch() -> None:
    of = recipe(batch_size=100, kind="classes", images_per_class=4)
    assert batch_images(of, COUNTS) == 24
    assert epoch(of).shape == (4, 24)


def test_a_batch_too_small_for_two_classes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"at least twice sampling\.images_per_class = 8, but got 10"):
        recipe(kind="classes", images_per_class=8)


@pytest.mark.parametrize("sampling", WAYS[1:])
def test_training_stops_and_continues_without_a_difference_under_each(sampling: dict[str, Any], toy_task: Task) -> None:
    of = Recipe(width=4, embedding_dim=8, batch_size=16, horizon_epochs=2, sampling=Sampling.model_validate(sampling))
    schedule = LossSchedule.constant(catalog.softmax())
    how: dict[str, Any] = {"recipe": of, "numerics": Numerics(), "seed": 3}
    whole, at_end = train(schedule, toy_task, epochs=2, **how)
    first, stopped = train(schedule, toy_task, epochs=1, **how)
    second, again = train(schedule, toy_task, epochs=2, start=stopped, **how)
    assert first.history + second.history == whole.history
    np.testing.assert_array_equal(at_end, again)
    assert whole.images == 2 * epoch_steps(of, [16] * 12) * batch_images(of, [16] * 12)
