"""Candidates in lockstep train as they would alone; the way to train them is chosen by what it costs."""

import logging
import shutil
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from search_space import LossSchedule, catalog
from trainers import Candidate, Numerics, Outcome, Recipe, Task, lockstep, probe_lockstep, train, train_together
from trainers import numerics as nm
from trainers.lockstep import Cost, choose
from trainers.training import Result

RECIPE = Recipe(width=4, embedding_dim=16, batch_size=32, horizon_epochs=4, reward="rank1")
PLAIN = Numerics()
LOSSES = ("cosface", "adacos_dynamic", "elasticface_arc", "subcenter_arcface", "p2sgrad")


def _together(candidates: list[Candidate], task: Task, **changes: Any) -> list[Result]:
    arguments: dict[str, Any] = {"recipe": RECIPE, "numerics": PLAIN, "seed": 3, "epochs": 2} | changes
    return train_together(candidates, task, **arguments)


def _alone(candidate: Candidate, task: Task, **changes: Any) -> Result:
    (result,) = _together([candidate], task, **changes)
    return result


def _timeless(outcome: Outcome) -> Outcome:
    return replace(outcome, seconds=0.0)


def _candidates(*names: str, **changes: Any) -> list[Candidate]:
    return [Candidate(schedule=LossSchedule.constant(catalog.get(name)), **changes) for name in names]


def test_candidates_in_lockstep_train_bit_for_bit_as_they_would_alone(toy_task: Task) -> None:
    candidates = _candidates(*LOSSES)
    for candidate, (outcome, checkpoint) in zip(candidates, _together(candidates, toy_task), strict=True):
        alone, checkpoint_alone = _alone(candidate, toy_task)
        assert _timeless(outcome) == _timeless(alone)
        np.testing.assert_array_equal(checkpoint, checkpoint_alone)


def test_each_candidate_continues_its_own_checkpoint(toy_task: Task) -> None:
    starts = [checkpoint for _, checkpoint in _together(_candidates("softmax", "arcface"), toy_task)]
    candidates = [
        Candidate(schedule=LossSchedule.constant(catalog.get("cosface")), start=start, fresh_optimizer=fresh)
        for start, fresh in zip(starts, (False, True), strict=True)
    ]
    for candidate, (outcome, checkpoint) in zip(candidates, _together(candidates, toy_task, epochs=4), strict=True):
        alone, checkpoint_alone = _alone(candidate, toy_task, epochs=4)
        assert _timeless(outcome) == _timeless(alone)
        assert [row["epoch"] for row in outcome.history] == [3, 4]
        np.testing.assert_array_equal(checkpoint, checkpoint_alone)


@pytest.mark.parametrize("name", ["softmax", "am_lfs", "modulating_bins"])
def test_one_that_diverges_drops_out_and_leaves_the_others_alone(name: str, toy_task: Task) -> None:
    wild = catalog.get(name).model_copy(update={"weight": 1e30})
    candidates = [*_candidates("cosface"), Candidate(schedule=LossSchedule.constant(wild)), *_candidates("softmax")]
    recipe = RECIPE.model_copy(update={"learning_rate": 1.0})
    together = _together(candidates, toy_task, recipe=recipe)
    alone = [_alone(candidate, toy_task, recipe=recipe) for candidate in candidates]
    assert [_timeless(outcome) for outcome, _ in together] == [_timeless(outcome) for outcome, _ in alone]
    assert [checkpoint is None for _, checkpoint in together] == [False, True, False]
    assert str(together[1][0].error).startswith("diverged:")
    assert together[1][0].images < together[0][0].images


def test_the_wall_time_is_shared_by_the_images_seen(toy_task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([10.0, 16.0])
    monkeypatch.setattr("trainers.training.time.perf_counter", lambda: next(ticks))
    outcomes = [outcome for outcome, _ in _together(_candidates("softmax", "cosface", "arcface"), toy_task)]
    assert [outcome.seconds for outcome in outcomes] == [pytest.approx(2.0)] * 3


def test_candidates_that_start_after_different_epochs_are_refused(toy_task: Task) -> None:
    _, start = train(
        LossSchedule.constant(catalog.softmax(16)), toy_task, recipe=RECIPE, numerics=PLAIN, seed=3, epochs=1
    )
    candidates = [*_candidates("softmax"), *_candidates("softmax", start=start)]
    with pytest.raises(ValueError, match=r"must start after the same epoch, but start after epochs \[0, 1\]"):
        _together(candidates, toy_task)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")  # torch's own import
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
def test_one_compiled_graph_serves_all_candidates_and_gives_what_eager_steps_give(toy_task: Task) -> None:
    compiled = Numerics(execution="compiled")
    recipe = RECIPE.model_copy(update={"learning_rate": 1e-3})
    graphs_before = _graphs()
    candidates = _candidates("cosface", "adacos_dynamic", "p2sgrad")
    results = _together(candidates, toy_task, recipe=recipe, numerics=compiled)
    assert _graphs() == graphs_before + 1
    for (outcome, _), (eager, _) in zip(results, _together(candidates, toy_task, recipe=recipe), strict=True):
        assert outcome.metrics["train/loss"] == pytest.approx(eager.metrics["train/loss"], rel=1e-4)
        assert outcome.metrics["val/auc"] == pytest.approx(eager.metrics["val/auc"], abs=1e-3)


def _graphs() -> int:
    counted: int = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    return counted


LOCKSTEP, COMPILED = Numerics(lockstep=4), Numerics(execution="compiled")


@pytest.mark.parametrize(
    ("costs", "epochs", "best"),
    [
        ({PLAIN: Cost(step_seconds=1.0), LOCKSTEP: Cost(step_seconds=0.95)}, 10, PLAIN),
        ({PLAIN: Cost(step_seconds=1.0), LOCKSTEP: Cost(step_seconds=0.8)}, 10, LOCKSTEP),
        ({PLAIN: Cost(step_seconds=1.0), LOCKSTEP: Cost(step_seconds=0.8, start_seconds=30.0)}, 10, PLAIN),
        ({PLAIN: Cost(step_seconds=1.0), COMPILED: Cost(step_seconds=0.5, once_seconds=600.0)}, 10, PLAIN),
        ({PLAIN: Cost(step_seconds=1.0), COMPILED: Cost(step_seconds=0.5, once_seconds=600.0)}, 100, COMPILED),
    ],
    ids=["hardly faster", "clearly faster", "slow to start", "compiles for too few epochs", "compiles for many"],
)
def test_the_cheapest_way_is_chosen_if_it_is_clearly_cheaper(
    costs: Mapping[Numerics, Cost], epochs: int, best: Numerics
) -> None:
    assert choose(costs, PLAIN, steps=100, epochs=epochs) == best


def _probed(task: Task, monkeypatch: pytest.MonkeyPatch, *, room: int, epochs: int) -> tuple[Numerics, list[Numerics]]:
    """What the probe chose, lockstep being made cheap, and the ways that it looked at."""
    seen: list[Numerics] = []

    def measured(ways: list[Numerics], *_: object) -> dict[Numerics, Cost]:
        seen.extend(ways)
        return {way: Cost(step_seconds=0.1 / way.lockstep) for way in ways}

    monkeypatch.setattr(lockstep, "_measured", measured)
    return probe_lockstep(task, RECIPE, Numerics(channels_last=True), room=room, epochs=epochs), seen


def test_more_candidates_than_there_is_room_for_are_not_tried(toy_task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen, seen = _probed(toy_task, monkeypatch, room=5, epochs=1000)
    assert [way.lockstep for way in seen] == [1, 4]
    assert chosen == Numerics(channels_last=True, lockstep=4)


def test_a_short_search_is_not_held_up_by_a_measurement(toy_task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen, seen = _probed(toy_task, monkeypatch, room=8, epochs=10)
    assert seen == [Numerics(channels_last=True)]
    assert chosen == Numerics(channels_last=True)


def test_compiling_is_tried_where_the_search_is_long(toy_task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = _probed(toy_task, monkeypatch, room=1, epochs=100_000)[1]
    assert [way.execution for way in seen] == ["eager", "compiled"]


def test_a_way_that_cannot_be_had_or_computes_something_else_is_left_out_and_logged(
    toy_task: Task, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(lockstep, "_COMPILE_SECONDS", 0.0)

    def uncompiled() -> object:
        raise RuntimeError("no C++ compiler\nwas found")

    monkeypatch.setattr(nm, "_compiled_forward", uncompiled)
    with caplog.at_level(logging.WARNING):
        assert probe_lockstep(toy_task, RECIPE, PLAIN, room=1, epochs=10) == PLAIN
    assert "training 1 at a time, compiled is left out: no C++ compiler was found" in caplog.text

    monkeypatch.setattr(nm, "_compiled_forward", lambda: lambda network, images, _: 0 * network(images))
    with caplog.at_level(logging.WARNING):
        assert probe_lockstep(toy_task, RECIPE, PLAIN, room=1, epochs=10) == PLAIN
    assert "its first losses are" in caplog.text


def test_the_probe_times_real_steps(toy_task: Task) -> None:
    costs = lockstep._measured([PLAIN, LOCKSTEP], toy_task, RECIPE, "cpu")
    assert costs.keys() == {PLAIN, LOCKSTEP}
    assert all(cost.step_seconds > 0 and cost.start_seconds > 0 for cost in costs.values())
