"""Executors run trials: `SerialExecutor` here in the process, `lfs.ray_executor` on Ray actors."""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

from lfs.checkpoints import Checkpoint
from lfs.trial import Trial
from trainers.outcome import Outcome

Runner = Callable[[Trial, Checkpoint | None], tuple[Outcome, Checkpoint | None]]
"""Trains one trial from a checkpoint; what executors call, wherever they are."""


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

    def again(self, trial: Trial, cause: str) -> int | None:
        """The number of the failed attempt if another one is due, else None."""
        attempt = self._failed.get(trial.number, 0) + 1
        self._failed[trial.number] = attempt
        return attempt if attempt <= self.ALLOWED[cause] else None


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


class SerialExecutor:
    """One trial after the other, in this process."""

    slots = 1

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._queue: deque[tuple[Trial, Checkpoint | None]] = deque()
        self._attempts = Attempts()

    def submit(self, trial: Trial, start: Checkpoint | None) -> None:
        """Queue a trial."""
        self._queue.append((trial, start))

    def wait(self) -> Sequence[Completed | Lost]:
        """Run the next trial of the queue."""
        trial, start = self._queue.popleft()
        try:
            outcome, checkpoint = self._runner(trial, start)
        except Exception as error:  # noqa: BLE001 (a candidate may fail in any way; it must not end the search)
            reason = describe_exception(error)
            attempt = self._attempts.again(trial, cause_of(error))
            if attempt is not None:
                self._queue.appendleft((trial, start))
                return [Lost(trial, attempt, reason)]
            return [Completed(trial, failure(reason), lambda: None)]
        return [Completed(trial, outcome, lambda: checkpoint)]

    def close(self) -> None:
        """Forget what waits."""
        self._queue.clear()
