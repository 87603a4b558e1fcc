"""The loop, and resume as replay of its journal."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from lfs.checkpoints import CheckpointStore
from lfs.config import HYPER_PARAMETER_FREE, RunConfig
from lfs.controller import Controller
from lfs.executor import Completed, Lost, SerialExecutor
from lfs.journal import (
    FILE_NAME,
    Asked,
    Event,
    Finished,
    Journal,
    JournalError,
    Rebuilt,
    Resumed,
    Retried,
    Told,
    comparable,
)
from lfs.plan import most_at_once
from lfs.search import SearchStoppedError, search
from lfs.trial import Trial
from lfs.winner import best_at_horizon
from tests.lfs.toy import CONTROLLERS, HORIZON_EPOCHS, RecordingRunner, started
from trainers.outcome import Outcome
from trainers.recipe import Recipe

RECIPE = Recipe(horizon_epochs=HORIZON_EPOCHS)
Runner = Callable[[Trial, object], object]


def run(folder: Path, controller: Controller, runner: object, *, budget_bytes: int = 2**30) -> list[Event]:
    """Search or resume in a folder; returns its events."""
    folder.mkdir(exist_ok=True)
    with Journal(folder) as journal:
        journal.append(Resumed(versions={}) if len(journal) else started())
        search(
            controller,
            SerialExecutor(runner),  # type: ignore[arg-type]
            journal,
            CheckpointStore(folder / "checkpoints", budget_bytes=budget_bytes),
            choose=best_at_horizon(RECIPE),
        )
        return list(journal)


def essence(events: list[Event]) -> list[object]:
    """What a cut and resumed search must have in common with one that ran through."""
    return [comparable(event) for event in events if not isinstance(event, Resumed | Rebuilt)]


@pytest.mark.parametrize("name", CONTROLLERS)
def test_resume_after_any_event_gives_the_same_journal(name: str, tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", CONTROLLERS[name](0), RecordingRunner())
    lines = (tmp_path / "whole" / FILE_NAME).read_bytes().splitlines(keepends=True)
    assert len(lines) == len(whole) > 6
    for cut in range(1, len(lines)):
        folder = tmp_path / f"cut{cut}"
        folder.mkdir()
        (folder / FILE_NAME).write_bytes(b"".join(lines[:cut]) + b'{"event": "told", "tri')
        resumed = run(folder, CONTROLLERS[name](0), RecordingRunner())
        assert essence(resumed) == essence(whole)
        assert all(event.same for event in resumed if isinstance(event, Rebuilt))
        shutil.rmtree(folder)


def test_a_search_stopped_by_alike_failures_stops_at_the_same_trial_after_any_cut(tmp_path: Path) -> None:
    def runner() -> RecordingRunner:
        return RecordingRunner(failing=dict.fromkeys(range(4, 100), "the disk is full"))

    with pytest.raises(SearchStoppedError):
        run(tmp_path / "whole", CONTROLLERS["with_baselines"](0), runner())
    lines = (tmp_path / "whole" / FILE_NAME).read_bytes().splitlines(keepends=True)
    for cut in range(1, len(lines)):
        folder = tmp_path / f"cut{cut}"
        folder.mkdir()
        (folder / FILE_NAME).write_bytes(b"".join(lines[:cut]))
        with pytest.raises(SearchStoppedError, match="failed alike"):
            run(folder, CONTROLLERS["with_baselines"](0), runner())
        with Journal(folder) as journal, Journal(tmp_path / "whole") as whole:
            assert essence(list(journal)) == essence(list(whole))


def test_a_told_trial_that_was_never_asked_for_is_damage(tmp_path: Path) -> None:
    run(tmp_path / "a", CONTROLLERS["reinforce"](0), RecordingRunner())
    path = tmp_path / "a" / FILE_NAME
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:1] + lines[2:]))
    with pytest.raises(JournalError, match="trial 0 was never asked for"):
        run(tmp_path / "a", CONTROLLERS["reinforce"](0), RecordingRunner())


def test_an_emptied_checkpoint_is_rebuilt(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", CONTROLLERS["reinforce"](0), RecordingRunner())
    lines = (tmp_path / "whole" / FILE_NAME).read_bytes().splitlines(keepends=True)
    folder = tmp_path / "cut"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / FILE_NAME).write_bytes(b"".join(lines[:14]))
    for number in range(20):
        (folder / "checkpoints" / f"{number:06d}.safetensors").touch()
    assert essence(run(folder, CONTROLLERS["reinforce"](0), RecordingRunner())) == essence(whole)


def test_resume_runs_again_only_what_is_untold_and_the_lineage_that_it_needs(tmp_path: Path) -> None:
    run(tmp_path / "whole", CONTROLLERS["reinforce"](0), RecordingRunner())
    lines = (tmp_path / "whole" / FILE_NAME).read_bytes().splitlines(keepends=True)
    events = run(tmp_path / "whole", CONTROLLERS["reinforce"](0), RecordingRunner())
    told = [index for index, event in enumerate(events) if isinstance(event, Told)]
    cut = told[9] + 1  # in the middle of the second round after the warm-up
    folder = tmp_path / "cut"
    folder.mkdir()
    (folder / FILE_NAME).write_bytes(b"".join(lines[:cut]))
    runner = RecordingRunner()
    resumed = run(folder, CONTROLLERS["reinforce"](0), runner)
    rebuilt = [event.trial for event in resumed if isinstance(event, Rebuilt)]
    finished_before = {event.trial for event in events[:cut] if isinstance(event, Told)}
    trials = {trial.number: trial for event in resumed if isinstance(event, Asked) for trial in event.trials}
    needed = set()
    for number in set(trials) - finished_before:
        parent = trials[number].parent
        while parent is not None:
            needed.add(parent)
            parent = trials[parent].parent
    assert set(rebuilt) == needed & finished_before
    assert set(runner.ran) & finished_before == set(rebuilt)
    assert 2 <= len(rebuilt) < len(finished_before)


def test_a_checkpoint_over_the_budget_is_rebuilt_when_needed(tmp_path: Path) -> None:
    roomy = run(tmp_path / "roomy", CONTROLLERS["reinforce"](0), RecordingRunner())
    tight = run(tmp_path / "tight", CONTROLLERS["reinforce"](0), RecordingRunner(), budget_bytes=16)
    assert essence(tight) == essence(roomy)
    assert any(isinstance(event, Rebuilt) for event in tight)


def test_a_round_goes_on_from_its_best_where_there_is_no_room_for_all(tmp_path: Path) -> None:
    """Four trials a round; a checkpoint has 32 bytes. Two are needed while a round is trained: its parent's, its
    best's."""
    for name in ("reinforce", "random"):
        events = run(tmp_path / name, CONTROLLERS[name](0), RecordingRunner(), budget_bytes=2 * 32)
        assert not any(isinstance(event, Rebuilt) for event in events)


def test_a_finished_search_stays_as_it_is(tmp_path: Path) -> None:
    run(tmp_path / "a", CONTROLLERS["random"](0), RecordingRunner())
    runner = RecordingRunner()
    events = run(tmp_path / "a", CONTROLLERS["random"](0), runner)
    assert runner.ran == []
    assert sum(isinstance(event, Finished) for event in events) == 1


def test_resume_under_another_search_says_so(tmp_path: Path) -> None:
    run(tmp_path / "a", CONTROLLERS["reinforce"](0), RecordingRunner())
    path = tmp_path / "a" / FILE_NAME
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:6]))
    with pytest.raises(JournalError, match=r"cannot be resumed: .* under lossearch 0, and .* asks for other"):
        run(tmp_path / "a", CONTROLLERS["reinforce"](1), RecordingRunner())


def test_five_identical_failures_in_a_row_stop_the_search_unfinished(tmp_path: Path) -> None:
    runner = RecordingRunner(failing=dict.fromkeys(range(2, 100), "the disk is full"))
    with pytest.raises(SearchStoppedError, match="5 trials in a row failed alike: the disk is full"):
        run(tmp_path / "a", CONTROLLERS["with_baselines"](0), runner)
    with Journal(tmp_path / "a") as journal:
        events = list(journal)
    assert not any(isinstance(event, Finished) for event in events)
    assert sum(isinstance(event, Told) for event in events) == 7


def test_failures_that_differ_in_numbers_alone_are_alike(tmp_path: Path) -> None:
    said = "OutOfMemoryError: GPU 0 has {} MiB free. Process {} has 3.{} GiB in use"
    runner = RecordingRunner(failing={n: said.format(17 * n, 4000 + n, n) for n in range(2, 9)})
    with pytest.raises(SearchStoppedError, match="5 trials in a row failed alike: OutOfMemoryError: GPU 0 has 102 MiB"):
        run(tmp_path / "a", CONTROLLERS["with_baselines"](0), runner)


def test_losses_that_diverge_alike_do_not_stop_the_search(tmp_path: Path) -> None:
    runner = RecordingRunner(failing=dict.fromkeys(range(2, 100), "diverged: the loss is not finite in epoch 4"))
    events = run(tmp_path / "a", CONTROLLERS["with_baselines"](0), runner)
    assert isinstance(events[-1], Finished)


def test_different_failures_do_not_stop_the_search(tmp_path: Path) -> None:
    runner = RecordingRunner(failing={number: f"failure {'of another kind ' * number}" for number in range(2, 100)})
    events = run(tmp_path / "a", CONTROLLERS["with_baselines"](0), runner)
    assert isinstance(events[-1], Finished)
    assert events[-1].winner is None


def test_an_exception_is_tried_once_more_and_then_an_outcome(tmp_path: Path) -> None:
    attempts: list[int] = []

    def flaky(trial: Trial, start: object) -> object:
        attempts.append(trial.number)
        if trial.number == 1 or (trial.number == 0 and attempts.count(0) == 1):
            raise RuntimeError("a cosmic ray")
        return RecordingRunner()(trial, start)  # type: ignore[arg-type]

    events = run(tmp_path / "a", CONTROLLERS["fixed_list"](0), flaky)
    outcomes = {event.trial: event.outcome for event in events if isinstance(event, Told)}
    assert outcomes[0].reward is not None
    assert outcomes[1].error == "RuntimeError: a cosmic ray"
    assert [event.trial for event in events if isinstance(event, Retried)] == [0, 1]


def test_out_of_memory_is_not_tried_again(tmp_path: Path) -> None:
    def hungry(trial: Trial, start: object) -> object:
        raise MemoryError(f"trial {trial.number}")

    events = run(tmp_path / "a", CONTROLLERS["fixed_list"](0), hungry)
    assert not any(isinstance(event, Retried) for event in events)
    assert [e.outcome.error for e in events if isinstance(e, Told)] == [f"MemoryError: trial {n}" for n in range(3)]


def test_the_winner_is_the_best_choice_score_at_the_horizon() -> None:
    def told(choice: float) -> Outcome:
        return Outcome(
            reward=0.9, metrics={"choice/tar_at_far_1e-3": choice, "choice/eer": choice}, seconds=0, images=0
        )

    schedule = CONTROLLERS["reinforce"](0).ask(1)[0].schedule
    epochs = (HORIZON_EPOCHS, HORIZON_EPOCHS, HORIZON_EPOCHS, HORIZON_EPOCHS - 1)
    at_horizon = {n: Trial(number=n, schedule=schedule, seed=0, epochs=each) for n, each in enumerate(epochs)}
    outcomes = {0: told(0.4), 1: told(0.6), 2: told(0.5), 3: told(0.9)}
    assert best_at_horizon(RECIPE)(at_horizon, outcomes) == 1
    by_eer = Recipe(horizon_epochs=HORIZON_EPOCHS, reward="one_minus_eer")
    assert best_at_horizon(by_eer)(at_horizon, outcomes) == 0
    assert best_at_horizon(RECIPE)(at_horizon, {}) is None


def test_asks_record_the_count_and_the_controllers_state(tmp_path: Path) -> None:
    events = run(tmp_path / "a", CONTROLLERS["reinforce"](0), RecordingRunner())
    asks = [event for event in events if isinstance(event, Asked)]
    assert {event.count for event in asks} == {1}
    assert {"round", "mu/m2_rad", "sigma/scale"} <= set(asks[-1].summary)
    assert isinstance(events[-1], Finished)
    assert events[-1].constant is not None


class RepeatingExecutor(SerialExecutor):
    """Reports each outcome twice, the second time with another reward."""

    def wait(self) -> list[Completed | Lost]:
        (done,) = super().wait()
        assert isinstance(done, Completed)
        return [done, replace(done, outcome=replace(done.outcome, reward=0.123))]


def test_the_first_outcome_of_a_trial_counts(tmp_path: Path) -> None:
    once = run(tmp_path / "once", CONTROLLERS["reinforce"](0), RecordingRunner())
    (tmp_path / "twice").mkdir()
    with Journal(tmp_path / "twice") as journal:
        journal.append(started())
        store = CheckpointStore(tmp_path / "twice" / "checkpoints")
        executor = RepeatingExecutor(RecordingRunner())
        search(CONTROLLERS["reinforce"](0), executor, journal, store, choose=best_at_horizon(RECIPE))
        assert essence(list(journal)) == essence(once)


def test_workers_beyond_what_a_search_can_keep_busy_are_not_started() -> None:
    config = RunConfig.model_validate({"search": {"method": "reinforce", "batch": 6}, "baselines": []})
    assert most_at_once(config) == 6 + len(HYPER_PARAMETER_FREE)
    listed = {"method": "fixed_list", "losses": [{"loss": "softmax"}, {"loss": "arcface"}]}
    assert most_at_once(RunConfig.model_validate({"search": listed})) == 2 + len(config.all_baselines()) + 2
