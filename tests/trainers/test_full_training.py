import importlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from search_space import LossSchedule, LossSpec, catalog
from trainers import Task
from trainers.evaluation import Diverged
from trainers.full_learner import FullLearner
from trainers.full_recipe import FullNumerics, FullRecipe, Milestones
from trainers.full_training import FullTraining, Row
from trainers.learning_rate import full_rate_of
from trainers.pair_images import PairImages
from trainers.protocols.listed_pairs import consecutive_pairs

RECIPE = FullRecipe(network="conv4", width=4, embedding_dim=16, batch_size=32, epochs=3, learning_rate=0.1)
COSFACE = catalog.cosface(margin=0.1, scale=16)
SWITCHING = LossSchedule.constant(COSFACE).then(1, catalog.adacos_dynamic()).then(2, catalog.get("adaptiveface"))
LABELS = np.repeat(np.arange(12), 16)
STEPS = 6
"""Of an epoch: the toy task has 192 training images."""


def plain(image_shape: tuple[int, int, int], embedding_dim: int) -> nn.Module:
    """Without normalisation: what a batch gives is the mean of what its parts give."""
    return nn.Sequential(nn.Flatten(), nn.Linear(256, embedding_dim))


def dropping(image_shape: tuple[int, int, int], embedding_dim: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(256, embedding_dim))


def exploding(image_shape: tuple[int, int, int], embedding_dim: int) -> nn.Module:
    linear = nn.Linear(256, embedding_dim)
    nn.init.constant_(linear.weight, 3e38)
    return nn.Sequential(nn.Flatten(), linear)


def training(task: Task, schedule: LossSchedule | LossSpec = COSFACE, **changes: Any) -> FullTraining:
    arguments: dict[str, Any] = {
        "recipe": RECIPE,
        "numerics": FullNumerics(),
        "seed": 3,
        "milestones": Milestones(save_every_steps=2),
        "pairs": {},
    } | changes
    schedule = schedule if isinstance(schedule, LossSchedule) else LossSchedule.constant(schedule)
    return FullTraining(schedule, task, **arguments)


Saved = dict[int, npt.NDArray[np.uint8]]


def finish(started: FullTraining) -> tuple[list[Row], Saved]:
    """The rows, and the checkpoints by step."""
    rows: list[Row] = []
    saved: Saved = {}

    def save(step: int) -> None:
        saved[step] = started.checkpoint()

    assert started.run(on_epoch=rows.append, on_checkpoint=save) is None
    return rows, saved


def test_training_lowers_the_loss_and_beats_an_untrained_network(toy_task: Task) -> None:
    rows, saved = finish(training(toy_task))
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert rows[-1]["train/loss"] < 0.5 * rows[0]["train/loss"]
    assert rows[-1]["val/rank1"] > 0.9
    assert [row["cost/images"] for row in rows] == [192, 384, 576]
    assert list(saved) == [2, 4, 6, 8, 10, 12, 14, 16, 18]
    untrained = FullRecipe.model_validate(RECIPE.model_dump() | {"learning_rate": 1e-9})
    still: list[Row] = []
    symptom = training(toy_task, recipe=untrained).run(on_epoch=still.append, on_checkpoint=lambda _: None)
    assert symptom is not None
    assert symptom.startswith("stalled")
    assert rows[-1]["val/rank1"] > still[-1]["val/rank1"] + 0.05
    assert rows[-1]["val/eer"] < still[-1]["val/eer"]


CASES: Mapping[str, tuple[LossSchedule | LossSpec, dict[str, Any], dict[str, Any]]] = {
    "a schedule": (SWITCHING, {}, {}),
    "random margins": (catalog.get("elasticface_arc_plus"), {}, {}),
    "several centers": (catalog.get("subcenter_arcface"), {}, {}),
    "AdamW, clipped": (SWITCHING, {"optimizer": "adamw", "learning_rate": 0.01, "clip_norm": 0.1}, {}),
    "sampled classes, parts": (COSFACE, {"sample_rate": 0.8, "accumulation": 4}, {}),
    "balanced": (SWITCHING, {"sampling": {"kind": "balanced"}}, {}),
    "capped": (COSFACE, {"batch_size": 16, "sampling": {"max_images_per_class": 8}}, {}),
    "P×K": (COSFACE, {"accumulation": 2, "sampling": {"kind": "classes", "images_per_class": 4}}, {}),
    "dropout": (COSFACE, {"network": f"{__name__}:dropping"}, {}),
    "bfloat16": (COSFACE, {}, {"dtype": "bfloat16", "channels_last": True, "workers": 3}),
}


@pytest.mark.parametrize("case", CASES)
def test_going_on_from_any_checkpoint_is_the_same_as_not_stopping(case: str, toy_task: Task) -> None:
    schedule, changes, arithmetic = CASES[case]
    arguments: dict[str, Any] = {
        "recipe": FullRecipe.model_validate(RECIPE.model_dump() | changes),
        "numerics": FullNumerics(**arithmetic),
    }
    rows, saved = finish(training(toy_task, schedule, **arguments))
    for step in (2, 6, 8, 12, 16):
        torch.rand(3)
        resumed = training(toy_task, schedule, **arguments)
        resumed.load(saved[step])
        more, later = finish(resumed)
        assert more == rows[step // STEPS :]
        for number, checkpoint in later.items():
            np.testing.assert_array_equal(checkpoint, saved[number])


def test_class_weights_updated_in_the_heads_backward_are_the_same(
    toy_task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, and from a checkpoint on; under one loss the head is chunked, under the next it is plain."""
    monkeypatch.setattr(importlib.import_module("search_space.margin_loss"), "CHUNKED_ROWS", 1)
    schedule = LossSchedule.constant(COSFACE).then(2, catalog.get("sface"))
    numerics = FullNumerics(fused_head_step=True)
    rows, saved = finish(training(toy_task, schedule))
    fused_rows, fused_saved = finish(training(toy_task, schedule, numerics=numerics))
    assert rows == fused_rows
    np.testing.assert_equal(saved, fused_saved)
    resumed = training(toy_task, schedule, numerics=numerics)
    resumed.load(saved[8])
    assert finish(resumed)[0] == rows[1:]


def shown(task: Task, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> npt.NDArray[np.int64]:
    """The labels of each batch of the first epoch."""
    labels: list[npt.NDArray[np.int64]] = []
    stepped = FullLearner.step

    def step(self: FullLearner, parts: Any, **rest: Any) -> torch.Tensor:
        labels.append(torch.cat([label_N for _, label_N in parts]).numpy())
        return stepped(self, parts, **rest)

    monkeypatch.setattr(FullLearner, "step", step)
    recipe = FullRecipe.model_validate(RECIPE.model_dump() | {"epochs": 1} | changes)
    training(task, recipe=recipe).run(on_epoch=lambda _: None, on_checkpoint=lambda _: None)
    return np.stack(labels)


def test_an_epoch_shows_what_the_sampling_says(toy_task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    uneven = replace(toy_task, train=replace(toy_task.train, images=toy_task.train.images[:-14], labels=LABELS[:-14]))
    balanced = shown(uneven, monkeypatch, sampling={"kind": "balanced"})
    assert set(np.bincount(balanced.ravel()).tolist()) <= {13, 14}
    assert np.bincount(shown(uneven, monkeypatch).ravel())[-1] <= 2
    capped = shown(uneven, monkeypatch, sampling={"max_images_per_class": 6}, batch_size=17)
    assert np.bincount(capped.ravel()).tolist() == [6] * 11 + [2]
    by_class = shown(uneven, monkeypatch, sampling={"kind": "classes", "images_per_class": 8})
    assert {tuple(np.unique(batch, return_counts=True)[1]) for batch in by_class} == {(8, 8, 8, 8)}


def test_threads_that_fetch_change_nothing(toy_task: Task) -> None:
    here, _ = finish(training(toy_task, numerics=FullNumerics(workers=0)))
    ahead, _ = finish(training(toy_task, numerics=FullNumerics(workers=2)))
    assert here == ahead


def test_another_seed_gives_another_training(toy_task: Task) -> None:
    assert finish(training(toy_task))[0][0]["train/loss"] != finish(training(toy_task, seed=4))[0][0]["train/loss"]


def test_what_is_between_the_milestones_is_not_scored(toy_task: Task) -> None:
    milestones = Milestones(score_every_epochs=2, save_every_epochs=2)
    rows, saved = finish(training(toy_task, milestones=milestones))
    assert ["val/rank1" in row for row in rows] == [False, True, True]
    assert list(saved) == [12, 18]


@pytest.mark.parametrize(("every", "steps"), [(2, [2, 4, 6, 8, 10, 12, 14, 16, 18]), (6, [6, 12, 18])])
def test_steps_after_which_it_is_saved_may_end_an_epoch(toy_task: Task, every: int, steps: list[int]) -> None:
    _, saved = finish(training(toy_task, milestones=Milestones(save_every_epochs=9, save_every_steps=every)))
    assert list(saved) == steps


class _Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self, embedding_dim: int) -> None:
        super().__init__()
        self.first = nn.Linear(256, 256, bias=False)
        self.second = nn.Linear(256, 256, bias=False)
        self.second.weight = self.first.weight
        self.last = nn.Linear(256, embedding_dim)

    def forward(self, images_NKHW: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.last(self.second(self.first(images_NKHW.flatten(1)).relu()))
        return out


def tied(image_shape: tuple[int, int, int], embedding_dim: int) -> nn.Module:
    return _Tied(embedding_dim)


def test_a_network_with_tied_weights_is_saved_and_goes_on(toy_task: Task) -> None:
    recipe = FullRecipe.model_validate({**RECIPE.model_dump(), "network": f"{__name__}:tied", "embedding_dim": 8})
    rows, saved = finish(training(toy_task, recipe=recipe))
    again = training(toy_task, recipe=recipe)
    again.load(saved[8])
    assert finish(again)[0] == rows[1:]


def test_what_a_network_did_not_learn_is_said_also_by_a_session_that_has_nothing_left_to_train(toy_task: Task) -> None:
    still = FullRecipe.model_validate({**RECIPE.model_dump(), "learning_rate": 1e-12})
    saved: Saved = {}
    first = training(toy_task, recipe=still)
    said = first.run(on_epoch=lambda _: None, on_checkpoint=lambda step: saved.update({step: first.checkpoint()}))
    assert said is not None
    again = training(toy_task, recipe=still)
    again.load(saved[18])
    assert again.run(on_epoch=lambda _: None, on_checkpoint=lambda _: None) == said


def _learner(**changes: Any) -> FullLearner:
    recipe = {**RECIPE.model_dump(), "network": f"{__name__}:plain", "embedding_dim": 8, **changes}
    return FullLearner(
        COSFACE,
        image_shape=(1, 16, 16),
        class_counts=[4] * 5,
        recipe=FullRecipe.model_validate(recipe),
        numerics=FullNumerics(),
        generator=torch.Generator().manual_seed(0),
        device=torch.device("cpu"),
    )


def _stepped(learner: FullLearner, parts: int, *, learning_rate: float = 0.1) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    images, labels = torch.randn(16, 1, 16, 16, generator=generator), torch.arange(16) % 5
    pieces = list(zip(images.chunk(parts), labels.chunk(parts), strict=True))
    learner.step(pieces, learning_rate=learning_rate, generator=generator)
    return {name: tensor.clone() for name, tensor in learner.tensors().items()}


def test_a_batch_in_parts_is_the_same_step() -> None:
    whole, parts = _stepped(_learner(clip_norm=0.01), 1), _stepped(_learner(clip_norm=0.01), 4)
    assert whole.keys() == parts.keys()
    for name, tensor in whole.items():
        torch.testing.assert_close(parts[name], tensor, rtol=1e-5, atol=1e-6)

        torch.testing.assert_close(parts[name], tensor, rtol=1e-4, atol=1e-6)


def test_clipping_shortens_the_network_s_gradient_alone() -> None:
    free, clipped = _stepped(_learner(clip_norm=None), 1), _stepped(_learner(clip_norm=0.01), 1)

    def length(state: Mapping[str, torch.Tensor], part: str) -> float:
        velocity = [tensor for name, tensor in state.items() if name.startswith(f"optimizer.momentum_buffer.{part}")]
        return float(torch.cat([tensor.flatten() for tensor in velocity]).norm())

    assert length(free, "network") > 0.05
    assert length(clipped, "network") == pytest.approx(0.01, rel=0.1)  # with weight decay
    assert length(clipped, "head") == length(free, "head")


def test_a_loss_that_is_not_finite_ends_the_training(toy_task: Task) -> None:
    wild = FullRecipe.model_validate(RECIPE.model_dump() | {"network": f"{__name__}:exploding"})
    broken = training(toy_task, recipe=wild)
    with pytest.raises(Diverged, match=r"diverged: .* in epoch 1"):
        broken.run(on_epoch=lambda _: None, on_checkpoint=lambda _: None)


def test_pairs_are_scored_by_image_and_mirrored_image(toy_task: Task) -> None:
    images = toy_task.reward.images[:40]
    labels = toy_task.reward.labels[:40]
    pairs = PairImages(images=images, listed=consecutive_pairs(labels[0::2] == labels[1::2]))
    scored = {
        flip: finish(training(toy_task, pairs={"toy": pairs}, milestones=Milestones(flip=flip)))[0][-1]
        for flip in (False, True)
    }
    assert 0.5 <= scored[False]["pairs/toy/accuracy"] <= 1
    assert scored[False]["pairs/toy/accuracy_std"] >= 0
    assert {k: v for k, v in scored[False].items() if "pairs" not in k} == {
        k: v for k, v in scored[True].items() if "pairs" not in k
    }


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"accumulation": 3}, "accumulation must cut batch_size=32 into equal parts"),
        ({"accumulation": 32}, "accumulation must cut batch_size=32 into equal parts of 2 or more"),
        ({"warmup_epochs": 3}, "warmup_epochs must be below epochs=3, but got 3"),
        ({"schedule": "step"}, "milestones go with schedule 'step'"),
        ({"milestones": [1]}, r"milestones go with schedule 'step', but got \(1,\) with 'polynomial'"),
        ({"schedule": "step", "milestones": [2, 1]}, "milestones must rise"),
        ({"schedule": "step", "milestones": [1, 3], "epochs": 3}, r"milestones must lie below epochs=3, but got"),
        (
            {"sampling": {"kind": "classes", "images_per_class": 20}},
            r"batch_size must be at least twice sampling\.images_per_class = 20, but got 32",
        ),
        ({"sampling": {"max_images_per_class": 0}}, r"sampling\.max_images_per_class"),
        ({"augmentation": "portrait"}, "must be a table or one of none, drawing"),
    ],
)
def test_recipes_whose_parts_do_not_fit_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        FullRecipe.model_validate(RECIPE.model_dump() | changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"batch_size": 194}, "batch_size must be at most the 192 training images, but got 194"),
        (
            {"batch_size": 32, "sampling": {"max_images_per_class": 2}},
            r"at most the 24 training images that sampling\.max_images_per_class leaves, but got 32",
        ),
        (
            {"batch_size": 60, "accumulation": 30, "sampling": {"kind": "classes", "images_per_class": 3}},
            "accumulation must cut the 36 images of a batch, 3 of each class, .* accumulation=30",
        ),
        ({"sample_rate": 0.5}, "sample_rate=0.5 leaves 6 classes, fewer than the 32 images"),
    ],
)
def test_recipes_that_do_not_fit_the_data_are_refused(changes: dict[str, Any], words: str, toy_task: Task) -> None:
    with pytest.raises(ValueError, match=words):
        training(toy_task, recipe=FullRecipe.model_validate(RECIPE.model_dump() | changes))


def test_learning_rates_rise_and_then_follow_the_schedule() -> None:
    common = {"epochs": 10, "learning_rate": 0.4, "warmup_epochs": 1}
    polynomial = full_rate_of(FullRecipe.model_validate(common), 10)
    assert [polynomial(step) for step in (0, 9)] == pytest.approx([0.4 / 11, 0.4 * 10 / 11])
    assert [polynomial(step) for step in (10, 55, 100)] == pytest.approx([0.4, 0.1, 0])
    cosine = full_rate_of(FullRecipe.model_validate(common | {"schedule": "cosine"}), 10)
    assert [cosine(step) for step in (10, 55, 100)] == pytest.approx([0.4, 0.2, 0])
    step = full_rate_of(FullRecipe.model_validate(common | {"schedule": "step", "milestones": [5, 8]}), 10)
    assert [step(number) for number in (49, 50, 79, 80)] == pytest.approx([0.4, 0.04, 0.04, 0.004])
