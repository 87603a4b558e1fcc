"""What workers are given in the tests of the Ray executor, and how a test follows them."""

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import ClassVar, NoReturn

import numpy as np
import numpy.typing as npt
import torch

from lfs.checkpoints import Checkpoint
from lfs.executor import Completed, Executor, Job, Lost
from lfs.trial import Trial
from search_space import LossSchedule, catalog
from trainers.outcome import Outcome
from trainers.task import LabelledImages
from trainers.training import Result

PATIENCE_SECONDS = 120.0
DOOMED = "this node will be killed"
"""A file of this name in a worker's working directory says that its node will be killed."""

CHECKPOINT_BYTES = 2_000_000
"""Too large for Ray to send it along with the outcome."""

_numbers = count()


def trial(does: str, *, together: int | None = None) -> Trial:
    """A trial in which a `Player` does this; `together` names the meeting that it goes to."""
    schedule = LossSchedule.constant(catalog.softmax())
    return Trial(number=next(_numbers), schedule=schedule, seed=0, epochs=1, name=does, round=together)


class RefusedError(Exception):
    """It is made from two values, so that it cannot be unpickled."""

    def __init__(self, subject: str, reason: str) -> None:
        super().__init__(f"{subject} was refused:\n  {reason}")


class Player:
    """A runner that holds data and does what the name of a trial says."""

    pickled: ClassVar[int] = 0

    def __init__(self, folder: Path, data: npt.NDArray[np.uint8]) -> None:
        self._folder = folder
        self._data = data

    def __getstate__(self) -> Mapping[str, object]:
        Player.pickled += 1
        return self.__dict__

    def __call__(self, trial: Trial, start: Checkpoint | None) -> tuple[Outcome, Checkpoint | None]:
        acts: Mapping[str, Callable[[Trial], None]] = {
            "report": lambda _: None,
            "meet": self._meet,
            "die": self._die,
            "die once": lambda trial: self._once(self._die, trial),
            "hang": self._hang,
            "hang here if doomed": lambda trial: self._hang(trial) if Path(DOOMED).exists() else None,
            "hang once": lambda trial: self._once(self._hang, trial),
            "refuse": self._refuse,
            "run out of memory": self._run_out_of_memory,
            "run out of GPU memory": self._run_out_of_gpu_memory,
        }
        acts[trial.name](trial)
        metrics = {
            "company": 1.0,
            "pid": float(os.getpid()),
            "folder": float(Path.cwd().stat().st_ino),
            "gpu": float(os.environ.get("CUDA_VISIBLE_DEVICES") or -1),
            "data/address": float(self._data.ctypes.data),
            "data/owned": float(self._data.flags.owndata),
            "data/writeable": float(self._data.flags.writeable),
            "start/sum": -1.0 if start is None else float(start.sum()),
            "start/writeable": -1.0 if start is None else float(start.flags.writeable),
        }
        checkpoint = np.full(CHECKPOINT_BYTES, trial.number % 256, dtype=np.uint8)
        return Outcome(reward=1.0, metrics=metrics, seconds=0.0, images=1), checkpoint

    def together(self, jobs: Sequence[Job]) -> list[Result]:
        """One after the other; each outcome tells how many there were."""
        results = []
        for job in jobs:
            outcome, checkpoint = self(job.trial, job.start)
            metrics = {**outcome.metrics, "company": float(len(jobs))}
            results.append((replace(outcome, metrics=metrics), checkpoint))
        return results

    def _meet(self, trial: Trial) -> None:
        """Go on once two trials of this meeting run at the same time."""
        meeting = self._folder / f"meeting {trial.round}"
        meeting.mkdir(exist_ok=True)
        (meeting / str(os.getpid())).touch()
        wait_until(lambda: len(list(meeting.iterdir())) == 2)

    def _once(self, act: Callable[[Trial], None], trial: Trial) -> None:
        """Act at the first attempt only."""
        mark = self._folder / f"attempt at {trial.number}"
        if not mark.exists():
            mark.touch()
            act(trial)

    def _die(self, trial: Trial) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def _hang(self, trial: Trial) -> None:
        (self._folder / f"{trial.number} hangs").write_text(str(os.getpid()), encoding="utf-8")
        time.sleep(10 * PATIENCE_SECONDS)

    def _refuse(self, trial: Trial) -> NoReturn:
        raise RefusedError("a loss", "it is none")

    def _run_out_of_memory(self, trial: Trial) -> NoReturn:
        raise MemoryError("no room for 1 TiB")

    def _run_out_of_gpu_memory(self, trial: Trial) -> NoReturn:
        raise torch.OutOfMemoryError("CUDA out of memory")

    def pid_of_hanging(self, trial: Trial) -> int:
        """The process in which this trial hangs, once it does."""
        said = self._folder / f"{trial.number} hangs"
        wait_until(lambda: said.exists() and said.read_text(encoding="utf-8") != "")
        return int(said.read_text(encoding="utf-8"))


class Onlooker:
    """A runner that holds images, does what a `Player` does and says in which file, if any, the images are mapped."""

    def __init__(self, folder: Path, part: LabelledImages) -> None:
        self._player = Player(folder, np.zeros(1, dtype=np.uint8))
        self._part = part

    def __call__(self, trial: Trial, start: Checkpoint | None) -> tuple[Outcome, Checkpoint | None]:
        outcome, checkpoint = self._player(trial, start)
        address = self._part.images.ctypes.data
        for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
            first, last = (int(end, 16) for end in line.split()[0].split("-"))
            if first <= address < last:
                place = Path(line.split()[-1])
        own = {
            "images/file": float(place.stat().st_ino if place.name == "images.npy" else -1),
            "images/sum": float(self._part.images.sum()),
            "labels/sum": float(self._part.labels.sum()),
        }
        return replace(outcome, metrics={**outcome.metrics, **own}), checkpoint


def wait_until(condition: Callable[[], bool]) -> None:
    """Look again until it holds; give up after `PATIENCE_SECONDS`."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"nothing happened for {PATIENCE_SECONDS} s")
        time.sleep(0.02)


@dataclass
class Play:
    """What became of some trials: how each was completed, and the attempts that were lost on the way."""

    completed: list[Completed]
    lost: list[Lost]

    def metrics(self, name: str) -> list[float]:
        """One of the metrics of each trial."""
        return [completed.outcome.metrics[name] for completed in self.completed]


def play(executor: Executor, trials: Sequence[Trial], start: Checkpoint | None = None) -> Play:
    """Run the trials to their ends, each of which must come exactly once."""
    for each in trials:
        executor.submit(each, start)
    return follow(executor, trials)


def follow(executor: Executor, trials: Sequence[Trial]) -> Play:
    """Wait for trials that are submitted."""
    completed: dict[int, Completed] = {}
    lost = []
    while len(completed) < len(trials):
        for item in executor.wait():
            if isinstance(item, Lost):
                lost.append(item)
            else:
                assert item.trial.number not in completed
                completed[item.trial.number] = item
    return Play([completed[each.number] for each in trials], lost)


@contextmanager
def closing(executor: Executor) -> Iterator[Executor]:
    """The executor, closed at the end."""
    try:
        yield executor
    finally:
        executor.close()
