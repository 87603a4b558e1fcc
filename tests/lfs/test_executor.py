"""Which trials train in lockstep, and what becomes of them here in the process."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from lfs.checkpoints import Checkpoint
from lfs.executor import Attempts, Completed, Job, LockstepQueue, Lost, SerialExecutor, lockstep_key
from lfs.runner import TrainingRunner
from lfs.trial import Trial
from search_space import LossSchedule, catalog
from trainers import Numerics, Recipe, train
from trainers.checkpoint import pack
from trainers.data import DataConfig, load_task
from trainers.outcome import Outcome
from trainers.training import Result


def _trial(number: int, **changes: object) -> Trial:
    plain = Trial(number=number, schedule=LossSchedule.constant(catalog.softmax()), seed=0, epochs=2)
    return replace(plain, **changes)  # type: ignore[arg-type]


def _after(epoch: int) -> Checkpoint:
    return pack({}, {"epoch": epoch, "images": 0})


@pytest.mark.parametrize(
    ("trial", "start"),
    [
        (_trial(1, seed=1), None),
        (_trial(1, epochs=3), None),
        (_trial(1, recipe={"embedding_dim": 8}), None),
        (_trial(1, parent=0), _after(1)),
    ],
    ids=["seed", "epochs", "recipe", "epoch begun"],
)
def test_trials_that_see_other_batches_do_not_share_them(trial: Trial, start: Checkpoint | None) -> None:
    assert lockstep_key(trial, start) != lockstep_key(_trial(0), None)


def test_trials_that_differ_in_losses_parents_and_optimisers_may_share_batches() -> None:
    other = _trial(5, schedule=LossSchedule.constant(catalog.arcface()), parent=3, fresh_optimizer=True)
    assert lockstep_key(other, _after(1)) == lockstep_key(_trial(4, parent=2), _after(1))


def _queue(lockstep: int, seeds: Sequence[int]) -> LockstepQueue[int]:
    queue: LockstepQueue[int] = LockstepQueue(lockstep)
    for number, seed in enumerate(seeds):
        queue.put(number, _trial(number, seed=seed), None)
    return queue


def _portions(queue: LockstepQueue[int], workers: int = 1) -> list[list[int]]:
    portions = []
    while queue:
        portions.append(queue.take(workers=max(workers, 1)))
        workers -= 1
    return portions


def test_the_first_in_the_queue_takes_those_along_that_it_may_train_with() -> None:
    assert _portions(_queue(3, [0, 1, 0, 0, 1, 0])) == [[0, 2, 3], [1, 4], [5]]


def test_a_group_leaves_work_for_the_other_idle_workers() -> None:
    assert _portions(_queue(8, [0] * 8), workers=3) == [[0, 1, 2], [3, 4, 5], [6, 7]]


def test_without_lockstep_and_after_a_failure_a_trial_goes_alone() -> None:
    assert _portions(_queue(1, [0, 0])) == [[0], [1]]
    queue = _queue(4, [0, 0, 0])
    queue.put_back(queue.take(workers=3)[0])
    assert _portions(queue) == [[0], [1, 2]]


def test_attempts_in_company_do_not_count() -> None:
    attempts, trial = Attempts(), _trial(0)
    assert attempts.again(trial, "memory", alone=False) == 1
    assert attempts.again(trial, "memory") is None
    assert [attempts.again(_trial(1), "lost") for _ in range(3)] == [1, 2, None]


@dataclass
class Recorder:
    """A runner that notes which trials ran together; those of `bad` raise."""

    bad: frozenset[int] = frozenset()
    ran: list[list[int]] = field(default_factory=list)

    def __call__(self, trial: Trial, start: Checkpoint | None) -> Result:
        (result,) = self.together([Job(trial, start)])
        return result

    def together(self, jobs: Sequence[Job]) -> list[Result]:
        self.ran.append([job.trial.number for job in jobs])
        if self.bad & {job.trial.number for job in jobs}:
            raise ArithmeticError("no such number")
        return [(Outcome(reward=float(job.trial.number), seconds=0.0, images=1), None) for job in jobs]


def test_where_a_group_raises_its_trials_run_one_by_one_and_each_failure_is_its_own() -> None:
    runner = Recorder(bad=frozenset({1}))
    executor = SerialExecutor(runner, lockstep=3)
    for number in range(3):
        executor.submit(_trial(number), None)
    first = executor.wait()
    assert [type(item) for item in first] == [Completed, Lost, Completed]
    (last,) = executor.wait()
    assert isinstance(last, Completed)
    assert last.outcome.error == "ArithmeticError: no such number"
    assert runner.ran == [[0, 1, 2], [0], [1], [2], [1]]


def test_real_trials_give_in_lockstep_what_they_give_alone() -> None:
    task = load_task(DataConfig(), cache_dir=None)  # type: ignore[arg-type]
    recipe = Recipe(width=4, embedding_dim=16, horizon_epochs=2)
    runner = TrainingRunner(task, recipe, Numerics(lockstep=3))
    executor = SerialExecutor(runner, lockstep=3)
    assert executor.slots == 3
    trials = [
        _trial(number, epochs=1, schedule=LossSchedule.constant(catalog.get(name)))
        for number, name in enumerate(("softmax", "arcface", "adacos_dynamic"))
    ]
    for trial in trials:
        executor.submit(trial, None)
    for trial, item in zip(trials, executor.wait(), strict=True):
        assert isinstance(item, Completed)
        alone, checkpoint = train(trial.schedule, task, recipe=recipe, numerics=Numerics(), seed=0, epochs=1)
        assert item.trial is trial
        assert replace(item.outcome, seconds=0.0) == replace(alone, seconds=0.0)
        np.testing.assert_array_equal(item.checkpoint(), checkpoint)
