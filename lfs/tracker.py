"""MLflow pages of searches and comparisons: one parent run, one nested run a trial, written from the journal alone.

The only module that imports mlflow. Writing is idempotent: runs are found by their tags, metrics carry the journal's
times, and the tag that marks a run as written comes last, so that whatever a dead process left is completed and
nothing is written twice. `sync` writes once; `Tracker` does so from a thread for as long as a search runs.
"""

import hashlib
import json
import re
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from filelock import FileLock, Timeout

from lfs.journal import FILE_NAME, JournalError, read_events
from lfs.tracker_comparison import begin_record, comparisons_of, read_record, run_of
from lfs.tracker_records import STATUS, Point, SearchRecord, State, TrialRecord
from lfs.tracker_uri import TrackingError, artifact_root, database_path, printable, set_environment

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

POLL_SECONDS = 1.0
LONGEST_WAIT_SECONDS = 60.0
LOCK_SECONDS = 15.0
VIEW_TAG = "mlflow.sharedViewState."
"""Of an experiment: a view that its page opens by name (`viewStateShareKey`). Plain JSON; not documented by MLflow."""
METRICS_A_BATCH = 800
"""MLflow takes 1000 metrics, parameters and tags together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncResult:
    """What a sync did: all events and runs of the journal, and how many of them this call wrote."""

    events: int
    events_written: int
    runs: int
    runs_written: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Addresses:
    """Pages of one search, comparison or training (`role`): the table of its trials, and the search itself."""

    runs: str
    search: str
    role: str


@contextmanager
def _as_tracking_error(uri: str) -> Iterator[None]:
    """Turn whatever MLflow raises (its own, requests', SQLAlchemy's exceptions) into one sentence."""
    try:
        yield
    except (JournalError, TrackingError):
        raise
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        cause = re.search(r"\(Caused by \w+\(([\"'])(.*)\1\)\)", reason)  # urllib3's, which repeats the address
        reason = cause[2] if cause else reason.replace(uri, printable(uri))[:300]
        raise TrackingError(f"MLflow at {printable(uri)} could not be used: {reason}") from error


def _connect(uri: str) -> "MlflowClient":
    """A client; a database that is not there is created by one process alone."""
    set_environment()
    from mlflow import MlflowClient

    if not uri.startswith("sqlite:///"):
        return MlflowClient(tracking_uri=uri)
    database = database_path(uri)
    database.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{database}.lock"):
        return MlflowClient(tracking_uri=uri)


def _experiment_id(client: "MlflowClient", uri: str, name: str) -> str:
    from mlflow.exceptions import MlflowException

    name = name[:500]
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name, artifact_location=artifact_root(uri)))
        except MlflowException:
            found = client.get_experiment_by_name(name)  # another process was faster
            if found is None:
                raise
    if found.lifecycle_stage == "deleted":
        raise TrackingError(
            f"the MLflow experiment '{name}' is deleted; restore it with 'mlflow experiments restore -x "
            f"{found.experiment_id}' or delete it for good with 'mlflow gc'"
        )
    return str(found.experiment_id)


def _find_runs(client: "MlflowClient", experiment_id: str, condition: str) -> Iterator["Run"]:
    token: str | None = None
    while True:
        page = client.search_runs([experiment_id], condition, max_results=1000, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


class _Writer:
    """Brings MLflow to what a `SearchRecord` says. Opening one looks up what is already there.

    One whose write raised is `broken`: it cannot know what the server did, and a new one must look.
    """

    def __init__(self, uri: str, run_dir: Path, record: SearchRecord) -> None:
        self._client = _connect(uri)
        self._run_dir = run_dir
        self._record = record
        self._experiment = _experiment_id(self._client, uri, record.experiment_name)
        self._trials: dict[int, tuple[str, str]] = {}
        self._search_run = ""
        self._search_tags: dict[str, str] = {}
        self.broken = False
        self.runs_written = 0
        for run in _find_runs(self._client, self._experiment, record.condition):
            tags = run.data.tags
            if "lossearch.trial" in tags:
                self._trials[int(tags["lossearch.trial"])] = (run.info.run_id, tags["lossearch.state"])
            else:
                self._search_run, self._search_tags = run.info.run_id, dict(tags)
        self.events_found = int(self._search_tags.get("lossearch.events", 0))

    def holds(self, number: int, state: State) -> bool:
        """Whether MLflow shows this trial in this state."""
        return number in self._trials and self._trials[number][1] == state

    def write(self, *, alive: bool, closing: bool) -> None:
        """Write what is missing; with `closing` the artifacts of the search too."""
        self.broken = True
        if not self._search_run:
            self._search_tags = {**self._record.tags(), "lossearch.state": "running"}
            self._search_run = self._create(
                self._record.run_name(self._run_dir), self._record.started.time, self._search_tags
            )
            self._share_view()
        alive_trials = alive and not self._record.over
        for number, trial in self._record.trials.items():
            state = trial.state(search_alive=alive_trials)
            if not self.holds(number, state):
                self._write_trial(trial, state)
        self._write_search(self._record.state(alive=alive), closing=closing)
        self.broken = False

    def _create(self, name: str, seconds: float, tags: Mapping[str, str]) -> str:
        self.runs_written += 1
        run = self._client.create_run(
            self._experiment, start_time=_milliseconds(seconds), tags=dict(tags), run_name=name[:250]
        )
        return str(run.info.run_id)

    def _write_trial(self, record: TrialRecord, state: State) -> None:
        number = record.trial.number
        if number not in self._trials:
            tags = {
                **record.identity_tags(),
                "lossearch.search": self._record.started.search_id,
                "lossearch.state": "running",
                "mlflow.parentRunId": self._search_run,
            }
            self._trials[number] = (self._create(record.run_name, record.asked_at, tags), "running")
            if state == "running":
                self._log(self._trials[number][0], [], params=record.params(), tags={})
                return
        else:
            self.runs_written += 1
        run_id, _ = self._trials[number]
        if record.ended_at is not None:
            self._client.log_text(run_id, record.trial.schedule.model_dump_json(indent=2), "schedule.json")
        self._set_status(run_id, state, record.ended_at or self._record.last_at)
        tags = {**record.outcome_tags(), "lossearch.state": state}
        self._log(run_id, record.points(), params=record.params(), tags=tags)
        self._trials[number] = (run_id, state)

    def _write_search(self, state: State, *, closing: bool) -> None:
        record = self._record
        tags = {"lossearch.state": state, "lossearch.events": str(record.events), **record.progress_tags()}
        if closing:
            self._share_view()
            if note := record.note(self._run_dir):
                tags["mlflow.note.content"] = note
            if record.finished is not None and record.finished.winner is not None:
                tags["lossearch.winner"] = str(record.finished.winner)
            tags |= self._upload_files()
        if state != self._search_tags["lossearch.state"]:
            self._set_status(self._search_run, state, record.last_at)
        changed = {key: value for key, value in tags.items() if self._search_tags.get(key) != value}
        written = int(self._search_tags.get("lossearch.events", 0))
        first = bisect_right(record.points, written, key=lambda numbered: numbered[0])
        self._log(self._search_run, [point for _, point in record.points[first:]], tags=changed)
        self._search_tags |= changed

    def _share_view(self) -> None:
        """Give the table of runs its columns, filter and order: without them it shows neither rewards nor trials."""
        view = json.dumps(self._record.view())
        self._client.set_experiment_tag(self._experiment, VIEW_TAG + self._record.started.search_id, view)

    def _upload_files(self) -> dict[str, str]:
        """Upload journal and page where they have changed; returns tags that name what is there."""
        tags = {}
        for path in self._record.artifacts(self._run_dir):
            if path.is_file():
                key, digest = f"lossearch.{path.stem}", hashlib.sha256(path.read_bytes()).hexdigest()[:12]
                tags[key] = digest
                if self._search_tags.get(key) != digest:
                    self._client.log_artifact(self._search_run, str(path))
        return tags

    def _set_status(self, run_id: str, state: State, seconds: float) -> None:
        if state == "running":
            self._client.update_run(run_id, status="RUNNING")
        else:
            self._client.set_terminated(run_id, STATUS[state], end_time=_milliseconds(seconds))

    def _log(
        self, run_id: str, points: Sequence[Point], *, params: Mapping[str, str] | None = None, tags: Mapping[str, str]
    ) -> None:
        """Metrics in batches; the tags, which mark the run as written, with the last."""
        from mlflow.entities import Metric, Param, RunTag

        metrics = [Metric(point.key, point.value, _milliseconds(point.seconds), point.step) for point in points]
        last = max(len(metrics) - 1, 0) // METRICS_A_BATCH * METRICS_A_BATCH
        for first in range(0, last, METRICS_A_BATCH):
            self._client.log_batch(run_id, metrics=metrics[first : first + METRICS_A_BATCH])
        self._client.log_batch(
            run_id,
            metrics=metrics[last:],
            params=[Param(key, value) for key, value in (params or {}).items()][:100],
            tags=[RunTag(key, value) for key, value in tags.items()],
        )


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)


class _Follower:
    """A cursor over a journal that grows, and the writer that follows it."""

    def __init__(self, run_dir: Path, uri: str) -> None:
        self._run_dir = run_dir
        self._uri = uri
        self._offset = 0
        self._unwritten = True
        self.record: SearchRecord | None = None
        self.writer: _Writer | None = None

    def read(self) -> None:
        """Take in what the journal has got since the last call, if there is one. Raises `JournalError`."""
        path = self._run_dir / FILE_NAME
        if not path.exists():
            return
        events, offset = read_events(path, offset=self._offset)
        if self.record is None and events:
            self.record = begin_record(events, path)
        for event in events:
            assert self.record is not None
            self.record.add(event)
            self._unwritten = True
        self._offset = offset

    def write(self, *, alive: bool, closing: bool) -> None:
        """Write what MLflow misses. Raises `TrackingError`; the next call then looks anew at what MLflow has."""
        if self.record is None or not (self._unwritten or closing):
            return
        with _as_tracking_error(self._uri):
            if self.writer is None or self.writer.broken:
                self.writer = _Writer(self._uri, self._run_dir, self.record)
            self.writer.write(alive=alive, closing=closing)
        self._unwritten = False

    def missing(self) -> tuple[int, int]:
        """How many of how many trials of the journal MLflow does not show as they are."""
        record = read_record(self._run_dir)
        states = {number: trial.state(search_alive=False) for number, trial in record.trials.items()}
        held = sum(self.writer is not None and self.writer.holds(number, state) for number, state in states.items())
        return len(states) - held, len(states)


def _lock(run_dir: Path) -> FileLock:
    """One process at a time writes the pages of a run: two would both create what both find missing."""
    return FileLock(run_dir / "mlflow.lock")


def _search_is_alive(run_dir: Path) -> bool:
    """Whether a process holds the journal."""
    path = run_dir / "journal.lock"
    if not path.exists():
        return False
    try:
        with FileLock(path, timeout=0):
            return False
    except Timeout:
        return True


def sync(run_dir: Path, uri: str) -> SyncResult:
    """Write everything of a run's journal, and of its comparisons', that MLflow at `uri` misses; doing it twice is the
    same as once.

    Raises `JournalError` for a folder without a usable journal, `TrackingError` when MLflow cannot be written or
    another process is writing this run's pages.
    """
    results = [_sync(folder, uri) for folder in (run_dir, *comparisons_of(run_dir))]
    return SyncResult(
        events=sum(result.events for result in results),
        events_written=sum(result.events_written for result in results),
        runs=sum(result.runs for result in results),
        runs_written=sum(result.runs_written for result in results),
    )


def _sync(folder: Path, uri: str) -> SyncResult:
    follower = _Follower(folder, uri)
    follower.read()
    if follower.record is None:
        raise JournalError(f"no journal at {folder / FILE_NAME}; give the folder of a run")
    try:
        with _lock(folder).acquire(timeout=LOCK_SECONDS):
            alive = _search_is_alive(folder)
            follower.write(alive=alive, closing=not alive)
    except Timeout:
        raise TrackingError(
            f"another process, probably the search itself, is writing the MLflow pages of {folder}; "
            "sync when it has ended"
        ) from None
    except OSError as error:
        raise TrackingError(f"{folder} cannot be locked: {error.strerror}") from error
    assert follower.writer is not None
    return SyncResult(
        events=follower.record.events,
        events_written=follower.record.events - follower.writer.events_found,
        runs=1 + len(follower.record.trials),
        runs_written=follower.writer.runs_written,
    )


class Tracker:
    """Follows the journal of a run, or of a comparison, from a daemon thread and keeps its MLflow pages up to date.

    Nothing that goes wrong here reaches the search: MLflow away or slow means that pages are late. `stop` says what
    is still missing.
    """

    def __init__(self, run_dir: Path, uri: str) -> None:
        self._run_dir = run_dir
        self._uri = uri
        self._follower = _Follower(run_dir, uri)
        self._stopping = threading.Event()
        self._trouble: str | None = None
        self._on_trouble: Callable[[str], object] | None = None
        self._thread = threading.Thread(target=self._follow, name="lossearch-tracker", daemon=True)

    def start(self, on_trouble: Callable[[str], object] | None = None) -> None:
        """Begin; the journal may come later. `on_trouble` is told, once and from the thread, that pages are late."""
        self._on_trouble = on_trouble
        self._thread.start()

    def stop(self, timeout_seconds: float) -> str | None:
        """Write the rest, with journal and report as artifacts, within this time; a sentence when that fails."""
        self._stopping.set()
        self._thread.join(timeout_seconds)
        if not self._thread.is_alive() and self._trouble is None:
            return None
        try:
            missing, trials = self._follower.missing()
        except JournalError as error:
            return f"not in MLflow: {error}"
        whole = "search" if run_of(self._run_dir) == self._run_dir else "comparison"
        what = f"{missing} of {trials} trials" if missing else f"the page of the {whole} itself"
        why = self._trouble or f"MLflow at {printable(self._uri)} needs more than {timeout_seconds:g} s"
        return f"not in MLflow yet: {what} ({why}); 'lossearch sync {run_of(self._run_dir)}' writes what is missing"

    def _follow(self) -> None:
        lock = _lock(self._run_dir)
        wait_seconds = POLL_SECONDS
        try:
            while True:
                closing = self._stopping.is_set()  # asked before reading, so that the last pass sees the last event
                try:
                    if not lock.is_locked:
                        lock.acquire(timeout=0)
                    self._follower.read()
                    self._follower.write(alive=not closing, closing=closing)
                    self._trouble, wait_seconds = None, POLL_SECONDS
                except Exception as error:  # noqa: BLE001 - a search never fails because its pages do
                    self._trouble = str(error)
                    if self._on_trouble and isinstance(error, TrackingError) and not closing:
                        self._on_trouble(f"{error}; nothing is lost: the pages are written once it can be used")
                        self._on_trouble = None
                    wait_seconds = min(2 * wait_seconds, LONGEST_WAIT_SECONDS)
                if closing:
                    return
                self._stopping.wait(wait_seconds)
        finally:
            lock.release(force=True)


def addresses(run_dir: Path, uri: str, base: str) -> Addresses:
    """The pages of a run, or of a comparison, on the MLflow page at `base` that shows the store at `uri`.

    Raises `TrackingError` when MLflow does not have the run.
    """
    record = read_record(run_dir)
    search_id, role = record.started.search_id, record.tags()["lossearch.role"]
    with _as_tracking_error(uri):
        client = _connect(uri)
        found = client.get_experiment_by_name(record.experiment_name)
        condition = f"{record.condition} and tags.`lossearch.role` = '{role}'"
        search = found and next(_find_runs(client, found.experiment_id, condition), None)
    if not found or not search:
        raise TrackingError(
            f"MLflow at {printable(uri)} does not have {run_dir}; 'lossearch sync {run_of(run_dir)}' writes it"
        )
    runs = f"{base.rstrip('/')}/#/experiments/{found.experiment_id}/runs"
    kind = "workflowType=machine_learning"
    if VIEW_TAG + search_id in found.tags:
        table = f"viewStateShareKey={quote(search_id)}"
    else:  # the page would open elsewhere
        table = f"searchFilter={quote(f'tags.`lossearch.search` = {search_id!r}')}"
    return Addresses(runs=f"{runs}?{kind}&{table}", search=f"{runs}/{search.info.run_id}?{kind}", role=role)
