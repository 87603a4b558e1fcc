"""Searches whose processes are interrupted or killed, through the real command line."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import pytest

from lfs.journal import FILE_NAME, Asked, Event, Finished, Resumed, Retried, Told, comparable, read_events
from lfs.trial import Trial
from tests.lfs.command import TINY_SEARCH
from tests.lfs.runners import PATIENCE_SECONDS, wait_until
from trainers.outcome import Outcome

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
LONGER = ("--set=recipe.horizon_epochs=6",)
"""Eighteen trials that take seconds together: long enough to be stopped in their midst."""

LINGERING = "Agent"
"""How the names end of two small processes of Ray that take a minute to see that their node was killed."""

RAY = ("--set=executor.kind=ray", "--set=executor.workers=2")


@dataclass
class Session:
    """A running `lossearch`, at the head of its own process group as in a terminal."""

    process: subprocess.Popen[str]
    run_dir: Path

    def wait_for_told(self, more: int) -> None:
        """Return as soon as the journal has so many more outcomes, while the search goes on."""
        enough = told_lines(self.run_dir) + more
        self.wait_until(lambda: told_lines(self.run_dir) >= enough)

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Return as soon as it holds, while the search goes on."""
        wait_until(lambda: self.process.poll() is not None or condition())
        assert self.process.poll() is None, self.process.communicate()

    def children(self) -> list[psutil.Process]:
        return list(psutil.Process(self.process.pid).children(recursive=True))

    def kill_a_busy_worker(self) -> None:
        busy: list[psutil.Process] = []

        def find() -> bool:
            busy.extend(child for child in self.children() if child.name() == "ray::_Worker.run")
            return bool(busy)

        self.wait_until(find)
        busy[0].kill()

    def stop(self, how: signal.Signals) -> tuple[int, str]:
        """Exit code and output, once all that it started has ended too. SIGINT reaches every process, like Ctrl-C."""
        children = self.children()
        if how == signal.SIGKILL:
            children = [child for child in children if not child.name().endswith(LINGERING)]
        if how == signal.SIGINT:
            os.killpg(self.process.pid, how)
        else:
            self.process.send_signal(how)
        out, err = self.process.communicate(timeout=PATIENCE_SECONDS)
        wait_until(lambda: not any(map(lives, children)))
        assert how == signal.SIGKILL or not err
        return self.process.returncode, out


@contextmanager
def lossearch(command: str, run_dir: Path, *arguments: str) -> Iterator[Session]:
    """`lossearch` in a process of its own, gone at the end."""
    run = [str(run_dir)] if command == "resume" else [f"--run={run_dir}"]
    settings = {key: value for key, value in os.environ.items() if key not in {"MLFLOW_TRACKING_URI", "RAY_ADDRESS"}}
    process = subprocess.Popen(
        [sys.executable, "-c", "from lfs.cli import main; main()", command, *run, *arguments],
        cwd=run_dir.parent,
        env=settings | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield Session(process, run_dir)
    finally:
        process.kill()
        process.communicate()


def finish(run_dir: Path, *arguments: str) -> None:
    """Resume a search to its end."""
    with lossearch("resume", run_dir, *arguments) as session:
        out, err = session.process.communicate(timeout=PATIENCE_SECONDS)
        assert session.process.returncode == 0, err
        assert f"report: {run_dir / 'report.html'}" in out


def lives(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def told_lines(run_dir: Path) -> int:
    journal = run_dir / FILE_NAME
    return journal.read_bytes().count(b'"event":"told"') if journal.exists() else 0


def events_of(run_dir: Path) -> list[Event]:
    return read_events(run_dir / FILE_NAME)[0]


def begun_like(other: Path, run_dir: Path) -> Path:
    """A run of which there is but the first line of another's journal."""
    run_dir.mkdir()
    with (other / FILE_NAME).open("rb") as journal:
        (run_dir / FILE_NAME).write_bytes(journal.readline())
    return run_dir


@pytest.fixture(scope="module")
def killed(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a search whose process was killed in the midst of a round; not to be changed."""
    run_dir = tmp_path_factory.mktemp("killed") / "run"
    with lossearch("search", run_dir, f"--data={shapes}", *TINY_SEARCH, *LONGER) as session:
        session.wait_for_told(5)
        assert session.stop(signal.SIGKILL)[0] == -signal.SIGKILL
    assert not any(isinstance(event, Finished) for event in events_of(run_dir))
    return run_dir


@pytest.fixture(scope="module")
def undisturbed(killed: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Event]:
    """The same search from its first line to its end, in the arithmetic that was probed for it, one trial at a time."""
    run_dir = begun_like(killed, tmp_path_factory.mktemp("undisturbed") / "run")
    finish(run_dir)
    return events_of(run_dir)


def test_a_search_killed_in_mid_round_loses_no_finished_trial(
    killed: Path, undisturbed: list[Event], tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(killed, run_dir)
    before = events_of(run_dir)
    finish(run_dir)
    assert events_of(run_dir)[: len(before)] == before
    assert but_for_resuming(events_of(run_dir)) == but_for_resuming(undisturbed)


def test_a_serial_search_stopped_by_signals_ends_like_one_that_was_not(
    killed: Path, undisturbed: list[Event], tmp_path: Path
) -> None:
    run_dir = begun_like(killed, tmp_path / "run")
    for how in (signal.SIGINT, signal.SIGTERM):
        with lossearch("resume", run_dir) as session:
            session.wait_for_told(3)
            check_interrupted(session, how)
    finish(run_dir)
    assert but_for_resuming(events_of(run_dir)) == but_for_resuming(undisturbed)


def test_a_search_on_ray_stopped_in_every_way_ends_like_one_that_was_not(
    killed: Path, undisturbed: list[Event], tmp_path: Path
) -> None:
    """Twice by a signal, once by a kill, and then a worker is killed: the order of trials may differ, what each gave
    may not."""
    run_dir = begun_like(killed, tmp_path / "run")
    for how in (signal.SIGTERM, signal.SIGINT):
        with lossearch("resume", run_dir, *RAY) as session:
            session.wait_for_told(2)
            check_interrupted(session, how)
    with lossearch("resume", run_dir, *RAY) as session:
        session.wait_for_told(2)
        assert session.stop(signal.SIGKILL)[0] == -signal.SIGKILL
    before = events_of(run_dir)
    with lossearch("resume", run_dir, *RAY) as session:
        session.wait_for_told(2)
        session.kill_a_busy_worker()
        _, err = session.process.communicate(timeout=PATIENCE_SECONDS)
        assert session.process.returncode == 0, err
    events = events_of(run_dir)
    assert events[: len(before)] == before
    (retried,) = (event for event in events if isinstance(event, Retried))
    assert retried.reason == "worker lost: The actor is dead because its worker process has died"
    assert outcomes(events) == outcomes(undisturbed)


def check_interrupted(session: Session, how: signal.Signals) -> None:
    """It says how to go on, and no line of its journal is lost or torn."""
    before = (session.run_dir / FILE_NAME).read_bytes()
    code, out = session.stop(how)
    assert code == 130
    assert out.endswith(f"interrupted; go on with: lossearch resume {session.run_dir}\n")
    after = (session.run_dir / FILE_NAME).read_bytes()
    assert after.startswith(before[: before.rfind(b"\n") + 1])
    assert after.endswith(b"\n")


def but_for_resuming(events: Sequence[Event]) -> list[dict[str, object]]:
    """What two runs of one search have in common event by event, however often they were interrupted."""
    return [comparable(event) for event in events if not isinstance(event, Resumed)]


def outcomes(events: Sequence[Event]) -> tuple[Mapping[object, Outcome], object]:
    """What each trial gave, but for the seconds, and which one won; trials known by what they are, not by number."""
    trials = {trial.number: trial for event in events if isinstance(event, Asked) for trial in event.trials}
    told = {event.trial: replace(event.outcome, seconds=0.0) for event in reversed(events) if isinstance(event, Told)}
    (finished,) = (event for event in events if isinstance(event, Finished))
    assert told.keys() == trials.keys()
    assert finished.winner is not None
    return {_identity(trials[number]): outcome for number, outcome in told.items()}, _identity(trials[finished.winner])


def _identity(trial: Trial) -> object:
    return trial.role, trial.name, trial.round, trial.seed, trial.epochs, trial.schedule
