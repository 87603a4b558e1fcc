import re
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from search_space import LossSchedule, LossSpec, catalog
from trainers import FARS, LabelledImages, Numerics, Outcome, Recipe, Task, train, training
from trainers.checkpoint import pack, unpack
from trainers.evaluation import embeddings
from trainers.learner import Learner
from trainers.recipe import AUGMENTATIONS
from trainers.verification import verification

RECIPE = Recipe(width=4, embedding_dim=16, batch_size=32, horizon_epochs=6, reward="rank1")
FROZEN = RECIPE.model_copy(update={"learning_rate": 1e-9})
COSFACE = catalog.cosface(margin=0.1, scale=16)
Checkpoint = npt.NDArray[np.uint8]


def _train(loss: LossSpec | LossSchedule, task: Task, **changes: Any) -> tuple[Outcome, Checkpoint | None]:
    schedule = loss if isinstance(loss, LossSchedule) else LossSchedule.constant(loss)
    arguments: dict[str, Any] = {"recipe": RECIPE, "numerics": Numerics(), "seed": 3, "epochs": 6} | changes
    return train(schedule, task, **arguments)


def _checkpoint(loss: LossSpec | LossSchedule, task: Task, **changes: Any) -> Checkpoint:
    checkpoint = _train(loss, task, **changes)[1]
    assert checkpoint is not None
    return checkpoint


def _edited(checkpoint: Checkpoint, **values: float) -> Checkpoint:
    """The checkpoint with some tensors filled with one value; `__` in a name stands for a dot."""
    tensors, meta = unpack(checkpoint)
    for name, value in values.items():
        tensors[name.replace("__", ".")].fill_(value)
    return pack(tensors, meta)


@pytest.fixture(scope="module")
def after_three(toy_task: Task) -> Checkpoint:
    """Three epochs of CosFace."""
    return _checkpoint(COSFACE, toy_task, epochs=3)


@pytest.mark.parametrize("loss", [catalog.softmax(16), COSFACE, catalog.adacos_dynamic()], ids=lambda s: s.digest())
def test_training_learns_to_tell_unseen_identities_apart(loss: LossSpec, toy_task: Task) -> None:
    outcome, _ = _train(loss, toy_task)
    assert outcome.error is None
    assert outcome.collapse is None
    assert outcome.reward == outcome.metrics["reward/rank1"] > 0.9
    losses = [row["train/loss"] for row in outcome.history]
    assert losses[-1] < 0.5 * losses[0]


def test_images_that_would_fill_a_device_are_sent_to_it_batch_by_batch(
    toy_task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device here holds nothing, so that what is sent there must say so."""
    device = torch.device("meta")
    images = toy_task.train.images.nbytes
    for room, home in ((images - 1, "cpu"), (images, "meta")):
        monkeypatch.setattr(training, "_room", lambda _, room=room: room)
        batches = training._Batches(toy_task.train, RECIPE, 0, device)
        assert batches._images.device.type == home
    monkeypatch.setattr(training, "_room", lambda _: 0)
    sent = next(
        training._Batches(
            toy_task.train, RECIPE.model_copy(update={"augmentation": AUGMENTATIONS["none"]}), 0, device
        ).of(0)
    )
    assert [each.device.type for each in sent] == ["meta", "meta"]


@pytest.mark.parametrize("network", ["conv4", "resnet"])
@pytest.mark.parametrize("numerics", [Numerics(), Numerics(dtype="bfloat16", channels_last=True)])
def test_equal_arguments_give_equal_outcomes_and_checkpoints(network: str, numerics: Numerics, toy_task: Task) -> None:
    recipe = RECIPE.model_copy(update={"network": network})
    one, again = (_train(COSFACE, toy_task, recipe=recipe, numerics=numerics, epochs=2) for _ in range(2))
    assert replace(one[0], seconds=0.0) == replace(again[0], seconds=0.0)
    np.testing.assert_array_equal(one[1], again[1])


def test_another_seed_gives_other_weights(after_three: Checkpoint, toy_task: Task) -> None:
    other = unpack(_checkpoint(COSFACE, toy_task, epochs=3, seed=4))[0]
    same = [name for name, tensor in unpack(after_three)[0].items() if torch.equal(tensor, other[name])]
    assert all("num_batches_tracked" in name for name in same)


SWITCHING = LossSchedule.constant(catalog.softmax(16)).then(2, COSFACE).then(4, catalog.adacos_dynamic())
ADACOS_WEIGHTED = catalog.adacos_dynamic().model_copy(update={"weight": 2.0})


# Losses that draw, track or learn something, and one with several class weights a class.
LIVING = ["elasticface_arc_plus", "adaface", "curricularface", "adaptiveface", "uniface", "subcenter_arcface"]


@pytest.mark.parametrize("stop", [1, 3, 4])
@pytest.mark.parametrize(
    "schedule",
    [
        LossSchedule.constant(COSFACE),
        LossSchedule.constant(catalog.adacos_dynamic()),
        LossSchedule.constant(catalog.adacos_dynamic()).then(3, ADACOS_WEIGHTED),
        SWITCHING,
        *(LossSchedule.constant(catalog.get(name)) for name in LIVING),
    ],
    ids=["constant", "stateful", "reweighted", "switching", *LIVING],
)
def test_stopping_and_continuing_is_bit_for_bit_the_same_as_not_stopping(
    schedule: LossSchedule, stop: int, toy_task: Task
) -> None:
    whole, at_end = _train(schedule, toy_task)
    first, at_stop = _train(schedule, toy_task, epochs=stop)
    assert at_stop is not None
    at_stop.flags.writeable = False
    second, at_end_again = _train(schedule, toy_task, start=at_stop)
    np.testing.assert_array_equal(at_end, at_end_again)
    assert first.history + second.history == whole.history
    assert (second.reward, second.metrics) == (whole.reward, whole.metrics)
    assert first.images + second.images == whole.images


COOLED = RECIPE.model_copy(update={"schedule": "constant"})


@pytest.mark.parametrize("loss", [COSFACE, *(catalog.get(name) for name in LIVING[:3])], ids=["cosface", *LIVING[:3]])
def test_a_cool_down_changes_neither_history_nor_checkpoint(loss: LossSpec, toy_task: Task) -> None:
    plain, kept = _train(loss, toy_task, recipe=COOLED, epochs=3)
    cooled, also_kept = _train(loss, toy_task, recipe=COOLED, epochs=3, cooldown_epochs=2)
    np.testing.assert_array_equal(kept, also_kept)
    assert cooled.history == plain.history
    assert cooled.images == 5 * 192 == plain.images + 2 * 192
    assert cooled.metrics.keys() == plain.metrics.keys()
    own = ("epoch", "cost/images", "train/loss")
    assert {name: cooled.metrics[name] for name in own} == {name: plain.metrics[name] for name in own}
    assert cooled.reward == cooled.metrics["reward/rank1"]
    assert cooled.metrics["val/mean_cosine"] != plain.metrics["val/mean_cosine"]


def test_a_cool_down_trains_at_a_rate_that_falls_to_zero(toy_task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []
    step = Learner.step

    def recorded(learner: Learner, *batch: Any, learning_rate: float) -> Any:
        rates.append(learning_rate)
        return step(learner, *batch, learning_rate=learning_rate)

    monkeypatch.setattr(Learner, "step", recorded)
    _train(COSFACE, toy_task, recipe=COOLED, epochs=3, cooldown_epochs=1)
    held, branch = rates[:18], rates[18:]
    assert held[-1] == branch[0] == COOLED.learning_rate
    assert branch == sorted(branch, reverse=True)
    assert branch[-1] < 0.1 * COOLED.learning_rate


def test_a_cool_down_from_the_peak_on_is_the_constant_schedules_own_end(toy_task: Task) -> None:
    """At decay 1/6 of 6 epochs the last epoch is what a branch of one epoch after 5 is."""
    recipe = COOLED.model_copy(update={"decay": 1 / 6})
    branch, _ = _train(COSFACE, toy_task, recipe=recipe, epochs=5, cooldown_epochs=1)
    whole, _ = _train(COSFACE, toy_task, recipe=recipe)
    assert branch.metrics["val/mean_cosine"] == pytest.approx(whole.metrics["val/mean_cosine"], abs=1e-6)
    assert branch.reward == pytest.approx(whole.reward)


def test_what_diverges_while_cooling_down_has_no_reward(toy_task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainers.training.cooling_down", lambda *_: lambda _: float("nan"))
    outcome, checkpoint = _train(COSFACE, toy_task, recipe=COOLED, epochs=2, cooldown_epochs=1)
    assert outcome.error == "diverged: the loss is not finite while cooling down in epoch 2"
    assert checkpoint is None
    assert len(outcome.history) == 2


def test_a_cool_down_beyond_the_horizon_is_refused(toy_task: Task) -> None:
    with pytest.raises(ValueError, match="horizon_epochs=6, but got 5 and cooldown_epochs=2"):
        _train(COSFACE, toy_task, epochs=5, cooldown_epochs=2)


@pytest.mark.parametrize("name", catalog.NAMES)
def test_every_named_loss_lowers_its_own_loss(name: str, toy_task: Task) -> None:
    recipe = RECIPE.model_copy(update={"learning_rate": 0.02})
    outcome, _ = _train(catalog.get(name), toy_task, recipe=recipe, epochs=3)
    assert outcome.error is None
    assert outcome.reward is not None
    losses = [row["train/loss"] for row in outcome.history]
    assert losses[-1] < losses[0]


def test_random_margins_depend_on_the_seed_and_the_epoch_alone(toy_task: Task) -> None:
    """Under a rate of almost 0 the weights stay: a change of the loss comes from the margins and the batches."""
    elastic, constant = (
        _train(loss, toy_task, recipe=FROZEN)[0].history
        for loss in (catalog.elasticface_cos(std=0.2, scale=16), catalog.cosface(scale=16))
    )
    gaps = [one["train/loss"] - other["train/loss"] for one, other in zip(elastic, constant, strict=True)]
    assert len({round(gap, 6) for gap in gaps}) == len(gaps)


def test_each_history_row_has_the_absolute_epoch_all_scores_and_the_images_seen(toy_task: Task) -> None:
    start = _checkpoint(catalog.adacos_dynamic(), toy_task, epochs=2)
    outcome, _ = _train(catalog.adacos_dynamic(), toy_task, epochs=4, start=start)
    assert outcome.images == 2 * 192
    assert [(row["epoch"], row["cost/images"]) for row in outcome.history] == [(3, 3 * 192), (4, 4 * 192)]
    tars = [f"tar_at_far_1e-{digit}" for digit in (1, 2, 3, 4)]
    others = ["eer", "auc", "rank1", "mean_tar", "blend", "lfw_accuracy"]
    scores = {f"{part}/{score}" for part in ("reward", "choice", "val") for score in [*tars, *others]}
    trained = {"val/mean_cosine", "train/loss", "train/target_cosine", "train/separation", "loss/scale"}
    assert outcome.metrics == outcome.history[-1]
    assert outcome.metrics.keys() == scores | trained | {"epoch", "cost/images"}


def test_one_minus_eer_can_be_the_reward(toy_task: Task) -> None:
    recipe = RECIPE.model_copy(update={"reward": "one_minus_eer"})
    outcome, _ = _train(COSFACE, toy_task, recipe=recipe, epochs=1)
    assert outcome.reward == 1 - outcome.metrics["reward/eer"]


@pytest.mark.parametrize("metric", ["mean_tar", "blend", "lfw_accuracy"])
def test_other_scores_can_be_the_reward(toy_task: Task, metric: str) -> None:
    recipe = Recipe.model_validate({**RECIPE.model_dump(), "reward": metric})
    outcome, _ = _train(COSFACE, toy_task, recipe=recipe, epochs=1)
    assert outcome.reward == outcome.metrics[f"reward/{metric}"]


def test_images_that_do_not_fill_a_batch_are_left_out_and_counted_so(toy_task: Task) -> None:
    outcome, _ = _train(COSFACE, toy_task, recipe=RECIPE.model_copy(update={"batch_size": 100}), epochs=1)
    assert outcome.images == 100
    outcome, _ = _train(COSFACE, toy_task, recipe=RECIPE.model_copy(update={"batch_size": 500}), epochs=1)
    assert outcome.images == 192


def test_both_halves_of_validation_keep_their_identities_apart(toy_task: Task) -> None:
    """The same images as both halves: were the labels mixed up, every image would have its twin as a mate."""
    twins = replace(toy_task, choice=toy_task.reward)
    metrics = _train(COSFACE, twins, epochs=3)[0].metrics
    assert metrics["reward/rank1"] == metrics["choice/rank1"] > 0.5
    assert metrics["val/rank1"] == 0.0


@pytest.mark.parametrize("numerics", [Numerics(), Numerics(dtype="bfloat16", channels_last=True)])
def test_a_checkpoint_s_network_gives_the_embeddings_that_were_scored(numerics: Numerics, toy_task: Task) -> None:
    outcome, checkpoint = _train(COSFACE, toy_task, numerics=numerics, epochs=2)
    assert checkpoint is not None
    x_ND = embeddings(checkpoint, toy_task.choice.images, recipe=RECIPE, numerics=numerics)
    assert x_ND.shape == (45, 16)
    for name, score in verification(x_ND, toy_task.choice.labels, FARS).items():
        assert score == outcome.metrics[f"choice/{name}"]


def test_training_leaves_global_state_alone(toy_task: Task) -> None:
    before = torch.get_rng_state(), torch.get_num_threads(), str(np.random.get_state())  # noqa: NPY002
    _train(COSFACE, toy_task, epochs=1, numerics=Numerics(threads=1))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert torch.get_num_threads() == before[1]
    assert str(np.random.get_state()) == before[2]  # noqa: NPY002


@pytest.mark.parametrize(
    ("loss", "edit", "reason"),
    [
        (COSFACE, {"class_weights_RD": np.nan}, "the loss is not finite"),
        (COSFACE, {"network__normalise__running_mean": np.inf}, "the embeddings are not finite"),
        (catalog.adacos_dynamic(), {"loss__scale__value": 1e8}, "AdaCos's dynamic scale diverged: it is .*"),
    ],
)
def test_divergence_is_an_error_that_names_the_epoch(
    loss: LossSpec, edit: dict[str, float], reason: str, toy_task: Task
) -> None:
    start = _edited(_checkpoint(loss, toy_task, epochs=1), **edit)
    outcome, checkpoint = _train(loss, toy_task, start=start)
    assert outcome.error is not None
    assert re.fullmatch(f"diverged: {reason} in epoch 2", outcome.error)
    assert outcome.reward is None
    assert outcome.history == ()
    assert outcome.images > 0
    assert checkpoint is None


def test_embeddings_in_one_point_are_named(after_three: Checkpoint, toy_task: Task) -> None:
    start = _edited(after_three, network__normalise__weight=0, network__normalise__bias=1)
    outcome, checkpoint = _train(COSFACE, toy_task, recipe=FROZEN, epochs=4, start=start)
    assert outcome.collapse is not None
    assert outcome.collapse.startswith("one point: the mean cosine between validation images is 1.000")
    assert outcome.reward == 0.0
    assert outcome.metrics["val/auc"] == pytest.approx(0.5, abs=1e-3)
    assert checkpoint is not None


def test_a_network_that_tells_no_classes_apart_is_named_stalled(
    toy_task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The toy's patterns are so plain that an untrained network has a fair rank-1, here better, there worse."""
    monkeypatch.setattr("trainers.evaluation._CLEARLY_ABOVE", 3.0)
    outcome, _ = _train(COSFACE, toy_task, recipe=FROZEN, epochs=6)
    assert outcome.collapse is not None
    assert outcome.collapse.startswith("stalled: the target cosines average")
    assert outcome.reward is not None


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"epochs": 7}, "epochs must be at most the recipe's horizon_epochs=6, but got 7"),
        ({"epochs": 3}, "epochs must be more than the 3 that are trained already, but got 3"),
        ({"recipe": RECIPE.model_copy(update={"embedding_dim": 8})}, "class_weights_RD must have shape .12, 8."),
        ({"recipe": RECIPE.model_copy(update={"width": 8})}, "does not fit this recipe and data: network.body"),
        (
            {"recipe": RECIPE.model_copy(update={"network": "resnet"})},
            "network.body.* must have shape None, but has",
        ),
        ({"start": np.zeros(9, dtype=np.uint8)}, "not a checkpoint"),
    ],
    ids=["horizon", "reached", "embedding", "width", "network", "bytes"],
)
def test_a_checkpoint_that_cannot_be_continued_is_refused(
    changes: dict[str, Any], sentence: str, after_three: Checkpoint, toy_task: Task
) -> None:
    with pytest.raises(ValueError, match=sentence):
        _train(COSFACE, toy_task, **{"start": after_three, **changes})


def test_a_checkpoint_of_other_classes_is_refused(after_three: Checkpoint, toy_task: Task) -> None:
    kept = toy_task.train.labels < 11
    train_part = LabelledImages(images=toy_task.train.images[kept], labels=toy_task.train.labels[kept])
    with pytest.raises(ValueError, match=r"class_weights_RD must have shape \[11, 16\], but has \[12, 16\]"):
        _train(COSFACE, replace(toy_task, train=train_part), start=after_three)


def test_read_only_data_is_used_without_a_warning_and_without_a_change(toy_task: Task) -> None:
    images = toy_task.train.images.copy()
    images.flags.writeable = False
    task = replace(toy_task, train=LabelledImages(images=images, labels=toy_task.train.labels))
    outcome, _ = _train(COSFACE, task, epochs=1)
    assert outcome.metrics == _train(COSFACE, toy_task, epochs=1)[0].metrics
