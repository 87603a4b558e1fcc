"""Executors run trials: `SerialExecutor` here in the process, `lfs.ray_executor` on Ray actors."""

import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Generic, Protocol, TypeVar, cast

from lfs.checkpoints import Checkpoint
from lfs.trial import Trial
from trainers.checkpoint import unpack_meta
from trainers.outcome import Outcome
from trainers.training import Result

_log = logging.getLogger(__name__)

Runner = Callable[[Trial, Checkpoint | None], Result]
"""Trains one trial from a checkpoint; what executors call, wherever they are."""


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """A trial and the checkpoint that it starts from."""

    trial: Trial
    start: Checkpoint | None


class LockstepRunner(Protocol):
    """A runner that trains several trials at once, too."""

    def __call__(self, trial: Trial, start: Checkpoint | None) -> Result:
        """Train one trial."""

    def together(self, jobs: Sequence[Job]) -> Sequence[Result]:
        """Train trials of one `lockstep_key`."""


LockstepKey = tuple[object, ...]


def lockstep_key(trial: Trial, start: Checkpoint | None) -> LockstepKey:
    """Trials for which this is equal see the same batches under the same learning rate."""
    begun = 0 if start is None else unpack_meta(start)["epoch"]
    return trial.seed, begun, trial.epochs, trial.cooldown_epochs, tuple(sorted(trial.recipe.items()))


@dataclass(frozen=True, slots=True)
class Completed:
    """A trial is over. `checkpoint()` brings its checkpoint here, None where it failed."""

    trial: Trial
    outcome: Outcome
    checkpoint: Callable[[], Checkpoint | None]


@dataclass(frozen=True, slots=True)
class Lost:
    """An attempt at a trial was lost and is being made again. `attempt` counts from 1."""

    trial: Trial
    attempt: int
    reason: str


J = TypeVar("J")


class LockstepQueue(Generic[J]):
    """Jobs that wait, in order, handed out in groups of up to `lockstep` that may train side by side."""

    def __init__(self, lockstep: int) -> None:
        self._lockstep = lockstep
        self._waiting: deque[tuple[LockstepKey | None, J]] = deque()

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def put(self, job: J, trial: Trial, start: Checkpoint | None) -> None:
        """Add a job, of this trial and start, at the end."""
        self._waiting.append((lockstep_key(trial, start) if self._lockstep > 1 else None, job))

    def put_back(self, job: J) -> None:
        """Add a job at the front whose attempt failed; it goes alone, as the fault may be its own."""
        self._waiting.appendleft((None, job))

    def take(self, *, workers: int) -> list[J]:
        """The first job and those that may go with it, as far as idle `workers` would not be left without."""
        key, _ = self._waiting[0]
        alike = [entry for entry in self._waiting if entry[0] == key]
        size = 1 if key is None else min(self._lockstep, -(-len(alike) // workers))
        for entry in alike[:size]:
            self._waiting.remove(entry)
        return [job for _, job in alike[:size]]

    def clear(self) -> None:
        """Forget all jobs."""
        self._waiting.clear()


class Executor(Protocol):
    """Runs trials on `slots` workers; trials beyond them wait their turn."""

    @property
    def slots(self) -> int:
        """How many trials run at once."""

    def submit(self, trial: Trial, start: Checkpoint | None) -> None:
        """Take a trial on."""

    def wait(self) -> Sequence[Completed | Lost]:
        """Block until something happens to a trial in flight."""

    def close(self) -> None:
        """Stop all work and free what was taken."""


class Attempts:
    """Which failed attempts are made again: a lost worker or a timeout twice, an exception once, memory never."""

    ALLOWED: ClassVar[Mapping[str, int]] = {"lost": 2, "exception": 1, "memory": 0}

    def __init__(self) -> None:
        self._failed: dict[int, int] = {}
        self._in_company: dict[int, int] = {}

    def again(self, trial: Trial, cause: str, *, alone: bool = True) -> int | None:
        """The number of the failed attempt if another one is due, else None.

        Where the trial was not `alone`, whose fault it was is unknown: that attempt does not count.
        """
        attempt = self._failed.get(trial.number, 0) + 1
        self._failed[trial.number] = attempt
        if not alone:
            self._in_company[trial.number] = self._in_company.get(trial.number, 0) + 1
        free = self._in_company.get(trial.number, 0)
        return attempt if attempt <= self.ALLOWED[cause] + free else None


def failure(reason: str) -> Outcome:
    """The outcome of a trial that gave none."""
    return Outcome(reward=None, seconds=0.0, images=0, error=reason)


def describe_exception(error: BaseException) -> str:
    """An exception as one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]


def cause_of(error: BaseException) -> str:
    """`memory` for out-of-memory of host or device, else `exception`."""
    out_of_memory = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return "memory" if out_of_memory else "exception"


@dataclass(frozen=True, slots=True)
class Failure:
    """An exception of a runner as text: not every exception survives the way between two processes."""

    cause: str
    reason: str


def run_jobs(runner: Runner, jobs: Sequence[Job]) -> list[Result | Failure]:
    """Train jobs, several in lockstep; where that raises, one by one, so that a failure is that of its own trial."""
    if len(jobs) > 1:
        try:
            return list(cast(LockstepRunner, runner).together(jobs))
        except Exception as error:  # noqa: BLE001 (whose fault it is will show)
            numbers = [job.trial.number for job in jobs]
            _log.warning("trials %s failed in lockstep, and go on one by one: %s", numbers, describe_exception(error))
    return [_run(runner, job) for job in jobs]


def _run(runner: Runner, job: Job) -> Result | Failure:
    try:
        return runner(job.trial, job.start)
    except Exception as error:  # noqa: BLE001 (a candidate may fail in any way; it must not end the search)
        return Failure(cause_of(error), describe_exception(error))


class SerialExecutor:
    """One trial after the other, in this process, or up to `lockstep` of them side by side."""

    def __init__(self, runner: Runner, *, lockstep: int = 1) -> None:
        self.slots = lockstep
        self._runner = runner
        self._queue: LockstepQueue[Job] = LockstepQueue(lockstep)
        self._attempts = Attempts()

    def submit(self, trial: Trial, start: Checkpoint | None) -> None:
        """Queue a trial."""
        self._queue.put(Job(trial, start), trial, start)

    def wait(self) -> Sequence[Completed | Lost]:
        """Run what is first in the queue."""
        jobs = self._queue.take(workers=1)
        return [self._report(job, result) for job, result in zip(jobs, run_jobs(self._runner, jobs), strict=True)]

    def _report(self, job: Job, result: Result | Failure) -> Completed | Lost:
        if not isinstance(result, Failure):
            outcome, checkpoint = result
            return Completed(job.trial, outcome, lambda: checkpoint)
        attempt = self._attempts.again(job.trial, result.cause)
        if attempt is None:
            return Completed(job.trial, failure(result.reason), lambda: None)
        self._queue.put_back(job)
        return Lost(job.trial, attempt, result.reason)

    def close(self) -> None:
        """Forget what waits."""
        self._queue.clear()
