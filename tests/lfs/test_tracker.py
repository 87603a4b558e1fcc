import itertools
import pkgutil
import queue
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from mlflow import MlflowClient

from lfs import tracker as tracker_module
from lfs.journal import FILE_NAME, Asked, Event, Examined, Finished, Journal, JournalError, Resumed, Retried, Told
from lfs.tracker import VIEW_TAG, SyncResult, Tracker, addresses, sync
from lfs.tracker_uri import TrackingError, default_uri, resolve_uri
from lfs.trial import Trial
from search_space import LossSchedule, catalog
from tests.analysis.journals import failed, modulating, outcome, started, write_journal

pytestmark = pytest.mark.filterwarnings(
    "ignore:The ``noload`` loader strategy is deprecated:sqlalchemy.exc.SADeprecationWarning"
)

TIME = started().time
SOFTMAX = LossSchedule.constant(catalog.softmax())


def search_trial(number: int, u: float, *, parent: int | None = None) -> Trial:
    first = LossSchedule.constant(modulating(u))
    schedule = first if parent is None else first.then(1, modulating(u + 1))
    return Trial(
        number=number, schedule=schedule, seed=3, epochs=1 if parent is None else 2, parent=parent, round=parent and 1
    )


def small_journal() -> list[Event]:
    """A baseline, then two rounds: trial 2 fails, 3 is retried and continues 1, 4 is rejected."""
    rng = np.random.default_rng(0)
    softmax = Trial(number=0, schedule=SOFTMAX, seed=0, epochs=2, role="baseline", name="softmax|plain")
    told_3 = outcome(0.6, 2, 2, rng, collapse="all cosines stayed near 0")
    summary = {"mu/u": 4.5, "round": 1.0}
    return [
        started(),
        Asked(
            time=TIME + 1,
            count=3,
            trials=(softmax, search_trial(1, 4.0), search_trial(2, 5.0)),
            summary={"mu/u": 4.0, "sigma/u": 2.0, "round": 0.0},
        ),
        Told(time=TIME + 2, trial=0, outcome=outcome(0.5, 1, 2, rng)),
        Told(time=TIME + 3, trial=1, outcome=outcome(0.4, 1, 1, rng)),
        Told(time=TIME + 4, trial=2, outcome=failed("RuntimeError: " + "no " * 4000)),
        Asked(time=TIME + 5, count=2, trials=(search_trial(3, 4.5, parent=1), search_trial(4, 9.0)), summary=summary),
        Retried(time=TIME + 6, trial=3, attempt=1, reason="its worker was lost"),
        Examined(time=TIME + 6, trial=4, verdict="rejected", reason="its value is not finite"),
        Told(time=TIME + 7, trial=3, outcome=told_3),
        Told(time=TIME + 7.5, trial=3, outcome=outcome(0.9, 2, 2, rng)),
        Finished(time=TIME + 8, winner=3),
    ]


def cut(run_dir: Path, events: list[Event]) -> None:
    """Write a journal anew, as a longer or shorter version of itself."""
    (run_dir / FILE_NAME).unlink(missing_ok=True)
    write_journal(run_dir, events)


def rows(workspace: Path, query: str) -> list[tuple[Any, ...]]:
    connection = sqlite3.connect(workspace / "mlflow.db")
    found = connection.execute(query).fetchall()
    connection.close()
    return found


def stored(workspace: Path) -> dict[str, Any]:
    """Everything that MLflow holds, runs by name, without what it makes up itself (ids) and our progress marks."""
    runs = {
        run_id: {"name": name, "status": status, "start": start, "end": end}
        for run_id, name, status, start, end in rows(
            workspace, "select run_uuid, name, status, start_time, end_time from runs"
        )
    }
    names = {run_id: str(run["name"]) for run_id, run in runs.items()}
    for run_id, run in runs.items():
        where = f"where run_uuid = '{run_id}'"
        tags = dict(rows(workspace, f"select key, value from tags {where}"))
        if parent := tags.get("mlflow.parentRunId"):
            tags["mlflow.parentRunId"] = names[parent]
        run["tags"] = tags
        run["params"] = dict(rows(workspace, f"select key, value from params {where}"))
        run["metrics"] = sorted(rows(workspace, f"select key, step, value, timestamp from metrics {where}"))
        folder = workspace / "mlartifacts" / run_id / "artifacts"
        run["artifacts"] = {path.name: path.read_bytes() for path in folder.glob("*")}
    assert len(set(names.values())) == len(names), f"a run was written twice: {names}"
    return {names[run_id]: run for run_id, run in runs.items()}


def last_values(run: dict[str, Any]) -> dict[str, float]:
    return {key: value for key, _, value, _ in run["metrics"]}


def test_a_search_becomes_a_parent_run_and_one_nested_run_a_trial(workspace: Path, uri: str, run_dir: Path) -> None:
    write_journal(run_dir, small_journal())
    (run_dir / "report.html").write_text("<p>report</p>")
    assert sync(run_dir, uri) == SyncResult(events=11, events_written=11, runs=6, runs_written=6)
    runs = stored(workspace)
    assert set(runs) == {"first run", "softmax|plain", "trial 1", "trial 2", "trial 3", "trial 4"}
    parent = runs.pop("first run")
    assert {run["tags"]["mlflow.parentRunId"] for run in runs.values()} == {"first run"}
    assert {run["tags"]["lossearch.search"] for run in [parent, *runs.values()]} == {"c0ffee12"}
    assert rows(workspace, "select name from experiments where experiment_id = 1") == [("glyphs · tar_at_far_1e-3",)]
    assert parent["status"] == "FINISHED"
    assert (parent["start"], parent["end"]) == (round(TIME * 1000), round((TIME + 8) * 1000))
    assert parent["tags"]["lossearch.state"] == "finished"
    assert parent["tags"]["lossearch.winner"] == "3"
    assert set(parent["artifacts"]) == {"journal.jsonl", "report.html"}
    assert {name: run["status"] for name, run in runs.items()} == {
        "softmax|plain": "FINISHED",
        "trial 1": "FINISHED",
        "trial 2": "FAILED",
        "trial 3": "FINISHED",
        "trial 4": "FAILED",
    }
    states = {name: run["tags"]["lossearch.state"] for name, run in runs.items()}
    assert states == {
        "softmax|plain": "told",
        "trial 1": "told",
        "trial 2": "failed",
        "trial 3": "told",
        "trial 4": "rejected",
    }


def test_a_trial_shows_its_loss_its_scores_by_epoch_and_its_cost(workspace: Path, uri: str, run_dir: Path) -> None:
    events = small_journal()
    write_journal(run_dir, events)
    sync(run_dir, uri)
    runs = stored(workspace)
    trial, told = runs["trial 3"], events[8]
    assert isinstance(told, Told)
    assert (
        trial["tags"]
        | {
            "lossearch.role": "trial",
            "lossearch.trial": "3",
            "lossearch.digest": modulating(5.5).digest(),
            "lossearch.family": "modulating",
            "lossearch.seed": "3",
            "lossearch.parent": "1",
            "lossearch.round": "1",
            "lossearch.retries": "1",
            "lossearch.collapse": "all cosines stayed near 0",
        }
        == trial["tags"]
    )
    assert trial["params"] == {
        "loss.target.u": "5.5",
        "loss.scale.value": "16",
        "loss.centers": "1",
        "loss.weight": "1",
        "seed": "3",
        "epochs": "2",
    }
    assert (
        LossSchedule.model_validate_json(trial["artifacts"]["schedule.json"]) == search_trial(3, 4.5, parent=1).schedule
    )
    values = last_values(trial)
    assert values["reward"] == told.outcome.reward
    assert values["cost/images"] == told.outcome.images
    assert values["cost/seconds"] == told.outcome.seconds
    assert "epoch" not in values
    baseline = runs["softmax|plain"]
    assert [step for key, step, *_ in baseline["metrics"] if key == "val/eer"] == [1, 2]
    assert baseline["tags"]["lossearch.role"] == "baseline"
    assert baseline["tags"]["lossearch.family"] == "softmax"
    first_told = events[2]
    assert isinstance(first_told, Told)
    losses = [value for key, _, value, _ in baseline["metrics"] if key == "train/loss"]
    assert losses == [row["train/loss"] for row in first_told.outcome.history]


def test_a_failed_trial_has_its_error_and_no_reward(workspace: Path, uri: str, run_dir: Path) -> None:
    write_journal(run_dir, small_journal())
    sync(run_dir, uri)
    runs = stored(workspace)
    assert last_values(runs["trial 2"]) == {"cost/images": 4000, "cost/seconds": 2.5}
    assert runs["trial 2"]["tags"]["lossearch.error"].startswith("RuntimeError: no no")
    assert len(runs["trial 2"]["tags"]["lossearch.error"]) == 6000
    assert runs["trial 4"]["tags"]["lossearch.preflight"] == "rejected: its value is not finite"
    assert rows(workspace, "select count(*) from metrics where is_nan") == [(0,)]


def test_the_search_has_its_curves_and_a_note_with_the_baselines(workspace: Path, uri: str, run_dir: Path) -> None:
    events = small_journal()
    write_journal(run_dir, events)
    sync(run_dir, uri)
    parent = stored(workspace)["first run"]
    rewards = {event.trial: event.outcome.reward for event in events[:9] if isinstance(event, Told)}
    curves: dict[str, list[tuple[int, float]]] = {}
    for key, step, value, _ in parent["metrics"]:
        curves.setdefault(key, []).append((step, value))
    assert curves == {
        "search/reward": [(1, rewards[1]), (3, rewards[3])],
        "search/best_reward": [(1, rewards[1]), (3, rewards[3])],
        "search/images_total": [(1, 12_000), (2, 16_000), (3, 28_000)],
        "controller/mu/u": [(0, 4.0), (1, 4.5)],
        "controller/sigma/u": [(0, 2.0)],
    }
    note = parent["tags"]["mlflow.note.content"].splitlines()
    assert note[2].startswith(f"| **winner of the search** | 3 | {rewards[3]:.4f} |")
    assert note[2].endswith("| 24,000 |"), "a winner's images are those of its lineage"
    assert note[3].startswith(f"| softmax/plain | 0 | {rewards[0]:.4f} |")


def test_syncing_twice_is_the_same_as_once(workspace: Path, uri: str, run_dir: Path) -> None:
    write_journal(run_dir, small_journal())
    sync(run_dir, uri)
    once = stored(workspace)
    assert sync(run_dir, uri) == SyncResult(events=11, events_written=0, runs=6, runs_written=0)
    assert stored(workspace) == once


@pytest.mark.parametrize("length", [1, 2, 5, 6, 10])
def test_a_cut_at_any_event_and_then_the_rest_ends_the_same(
    workspace: Path, uri: str, run_dir: Path, length: int, complete: dict[str, Any]
) -> None:
    events = small_journal()
    cut(run_dir, events[:length])
    sync(run_dir, uri)
    unfinished = stored(workspace)
    assert unfinished["first run"]["status"] == "KILLED"
    asked = sum(len(event.trials) for event in events[:length] if isinstance(event, Asked))
    assert len(unfinished) == 1 + asked
    cut(run_dir, events)
    sync(run_dir, uri)
    assert stored(workspace) == complete


@pytest.fixture(scope="session")
def complete(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> dict[str, Any]:
    """What one sync of the whole small journal leaves."""
    workspace = tmp_path_factory.mktemp("complete")
    shutil.copy(empty_database, workspace / "mlflow.db")
    sync(write_journal(workspace / "runs" / "first run", small_journal()), default_uri(workspace))
    return stored(workspace)


@pytest.mark.parametrize("done", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(
    ("owner", "method", "nth"),
    [
        ("mlflow:MlflowClient", "create_run", 0),
        ("mlflow:MlflowClient", "create_run", 2),
        ("mlflow:MlflowClient", "log_text", 0),
        ("mlflow:MlflowClient", "set_terminated", 1),
        ("mlflow:MlflowClient", "log_batch", 1),
        ("mlflow:MlflowClient", "log_batch", 5),
        ("mlflow.store.tracking.sqlalchemy_store:SqlAlchemyStore", "_log_params", 2),
        ("mlflow.store.tracking.sqlalchemy_store:SqlAlchemyStore", "_set_tags", 2),
    ],
)
def test_a_process_that_dies_in_a_call_is_completed_by_the_next(
    workspace: Path, uri: str, run_dir: Path, owner: str, method: str, nth: int, done: bool, complete: dict[str, Any]
) -> None:
    write_journal(run_dir, small_journal())
    original = getattr(pkgutil.resolve_name(owner), method)
    calls = itertools.count()

    def dying(*args: Any, **kwargs: Any) -> Any:
        dies = next(calls) == nth
        result = original(*args, **kwargs) if done or not dies else None
        if dies:
            raise ConnectionError("died")
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pkgutil.resolve_name(owner), method, dying)
        with pytest.raises(TrackingError, match=r"could not be used: .*died"):
            sync(run_dir, uri)
    sync(run_dir, uri)
    assert stored(workspace) == complete


def test_more_metrics_than_a_batch_holds_are_all_written(workspace: Path, uri: str, run_dir: Path) -> None:
    rng = np.random.default_rng(0)
    trial = Trial(number=0, schedule=SOFTMAX, seed=0, epochs=50)
    asks = [
        Asked(time=TIME + step, count=1, trials=(trial,), summary={"mu/u": step, "sigma/u": step, "round": step})
        for step in range(1300)
    ]
    told = Told(time=TIME + 2000, trial=0, outcome=outcome(0.5, 1, 50, rng))
    write_journal(run_dir, [started(), *asks, told])
    sync(run_dir, uri)
    runs = stored(workspace)
    controller = [key for key, *_ in runs["first run"]["metrics"] if key.startswith("controller/")]
    assert len(controller) == 2600
    assert len(runs["trial 0"]["metrics"]) == 50 * len(told.outcome.history[0].keys() - {"epoch"}) + 3
    assert runs["trial 0"]["tags"]["lossearch.state"] == "told"


def test_a_search_is_interrupted_then_running_then_finished(workspace: Path, uri: str, run_dir: Path) -> None:
    events = small_journal()
    write_journal(run_dir, events[:6])
    sync(run_dir, uri)
    runs = stored(workspace)
    assert {runs[name]["status"] for name in ("first run", "trial 3", "trial 4")} == {"KILLED"}
    assert runs["trial 3"]["tags"]["lossearch.state"] == "interrupted"
    with Journal(run_dir) as journal:
        journal.append(Resumed(time=TIME + 6, versions={}))
        sync(run_dir, uri)
        runs = stored(workspace)
        assert {runs[name]["status"] for name in ("first run", "trial 3", "trial 4")} == {"RUNNING"}
        assert runs["trial 3"]["params"]["loss.target.u"] == "5.5"
        assert runs["first run"]["artifacts"] == {"journal.jsonl": runs["first run"]["artifacts"]["journal.jsonl"]}
        for event in events[6:]:
            journal.append(event)
    sync(run_dir, uri)
    runs = stored(workspace)
    assert runs["first run"]["status"] == runs["trial 3"]["status"] == "FINISHED"
    assert runs["trial 3"]["end"] == round((TIME + 7) * 1000)


def test_a_search_without_a_winner_has_failed(workspace: Path, uri: str, run_dir: Path) -> None:
    write_journal(run_dir, [*small_journal()[:5], Finished(time=TIME + 5, winner=None)])
    sync(run_dir, uri)
    parent = stored(workspace)["first run"]
    assert parent["status"] == "FAILED"
    assert "winner" not in parent["tags"]["mlflow.note.content"].splitlines()[2]


def test_the_tracker_follows_a_search_and_closes_with_its_report(
    workspace: Path, uri: str, run_dir: Path, complete: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracker_module, "POLL_SECONDS", 0.01)
    run_dir.mkdir(parents=True)
    tracker = Tracker(run_dir, uri)
    tracker.start()
    events = small_journal()
    with Journal(run_dir) as journal:
        for event in events[:6]:
            journal.append(event)
        deadline = time.monotonic() + 60
        while len(rows(workspace, "select * from tags where value = 'running'")) < 3:
            assert time.monotonic() < deadline, "a running search was not written"
            time.sleep(0.05)
        for event in events[6:]:
            journal.append(event)
    (run_dir / "report.html").write_text("<p>report</p>")
    assert tracker.stop(60) is None
    runs = stored(workspace)
    assert runs["first run"]["artifacts"]["report.html"] == b"<p>report</p>"
    assert {name: run for name, run in runs.items() if name != "first run"} == {
        name: run for name, run in complete.items() if name != "first run"
    }
    assert runs["first run"]["metrics"] == complete["first run"]["metrics"]
    assert sync(run_dir, uri).runs_written == 0


def test_a_search_that_never_wrote_a_journal_leaves_nothing_to_say(workspace: Path, uri: str, run_dir: Path) -> None:
    run_dir.mkdir(parents=True)
    tracker = Tracker(run_dir, uri)
    tracker.start()
    assert tracker.stop(10) is None
    assert rows(workspace, "select * from runs") == []


def test_a_refused_port_costs_a_sentence_and_a_later_sync_writes_all(
    workspace: Path, uri: str, run_dir: Path, complete: dict[str, Any]
) -> None:
    write_journal(run_dir, small_journal())
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{taken.getsockname()[1]}"
    tracker = Tracker(run_dir, address)
    said: queue.Queue[str] = queue.Queue()
    tracker.start(said.put)
    assert said.get(timeout=60).startswith(f"MLflow at {address} could not be used: ")
    sentence = tracker.stop(60)
    assert said.empty()  # once
    assert sentence is not None
    assert sentence.startswith(f"not in MLflow yet: 5 of 5 trials (MLflow at {address} could not be used: ")
    assert "Connection refused); 'lossearch sync" in sentence
    assert sentence.endswith(f"; 'lossearch sync {run_dir}' writes what is missing")
    with pytest.raises(TrackingError, match="refused"):
        sync(run_dir, address)
    sync(run_dir, uri)
    assert stored(workspace) == complete


def test_a_server_that_never_answers_does_not_hold_up_the_end(
    workspace: Path, uri: str, run_dir: Path, complete: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    write_journal(run_dir, small_journal())
    with socket.create_server(("127.0.0.1", 0)) as black_hole:
        address = f"http://127.0.0.1:{black_hole.getsockname()[1]}"
        tracker = Tracker(run_dir, address)
        tracker.start()
        sentence = tracker.stop(0.2)
        assert sentence is not None
        assert f"5 of 5 trials (MLflow at {address} needs more than 0.2 s)" in sentence
        sync(run_dir, uri)
    assert stored(workspace) == complete


def test_a_second_writer_is_told_to_wait(
    workspace: Path, uri: str, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracker_module, "LOCK_SECONDS", 0.01)
    write_journal(run_dir, small_journal()[:3])
    tracker = Tracker(run_dir, uri)
    tracker.start()
    deadline = time.monotonic() + 60
    while not rows(workspace, "select * from runs"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    with pytest.raises(TrackingError, match="another process, probably the search itself, is writing"):
        sync(run_dir, uri)
    assert tracker.stop(60) is None


def test_a_damaged_journal_reaches_the_search_as_a_sentence(workspace: Path, uri: str, run_dir: Path) -> None:
    write_journal(run_dir, small_journal())
    path = run_dir / FILE_NAME
    path.write_bytes(path.read_bytes().replace(b'"told"', b'"t0ld"', 1))
    tracker = Tracker(run_dir, uri)
    tracker.start()
    sentence = tracker.stop(60)
    assert sentence is not None
    assert sentence.startswith(f"not in MLflow: {path} line 3 is damaged")


def test_unusable_journals_and_stores_are_named(workspace: Path, run_dir: Path) -> None:
    with pytest.raises(JournalError, match="no journal at"):
        sync(workspace / "nowhere", default_uri(workspace))
    assert not (workspace / "nowhere").exists()
    write_journal(run_dir, small_journal()[1:])
    with pytest.raises(JournalError, match="does not begin with a 'started' event"):
        sync(run_dir, default_uri(workspace))
    cut(run_dir, [started(), *small_journal()[2:]])
    with pytest.raises(JournalError, match="event 2 of the journal speaks of trial 0, which was never asked"):
        sync(run_dir, default_uri(workspace))
    cut(run_dir, small_journal())
    (run_dir / "mlflow.lock").mkdir()
    with pytest.raises(TrackingError, match=r"first run cannot be locked: Is a directory"):
        sync(run_dir, default_uri(workspace))
    (run_dir / "mlflow.lock").rmdir()
    (workspace / "file").write_text("a file")
    with pytest.raises(TrackingError, match=r"could not be used: .*File exists"):
        sync(run_dir, default_uri(workspace / "file"))


def test_a_deleted_experiment_is_named(uri: str, run_dir: Path) -> None:
    write_journal(run_dir, small_journal()[:3])
    sync(run_dir, uri)
    MlflowClient(uri).delete_experiment("1")
    with pytest.raises(TrackingError, match=r"'glyphs · tar_at_far_1e-3' is deleted; .* restore -x 1'"):
        sync(run_dir, uri)


def test_two_searches_share_an_experiment_and_keep_apart(workspace: Path, uri: str, run_dir: Path) -> None:
    write_journal(run_dir, small_journal())
    other = small_journal()[:2]
    other[0] = started().model_copy(update={"search_id": "0ther"})
    write_journal(workspace / "runs" / "second", other)
    sync(run_dir, uri)
    sync(workspace / "runs" / "second", uri)
    assert rows(workspace, "select count(*), count(distinct experiment_id) from runs") == [(6 + 4, 1)]
    first = addresses(run_dir, uri, "http://127.0.0.1:5000/")
    second = addresses(workspace / "runs" / "second", uri, "http://127.0.0.1:5000/")
    base = "http://127.0.0.1:5000/#/experiments/1/runs"
    assert first.runs == f"{base}?workflowType=machine_learning&viewStateShareKey=c0ffee12"
    assert second.runs == f"{base}?workflowType=machine_learning&viewStateShareKey=0ther"
    [(run_id,)] = rows(workspace, "select run_uuid from runs where name = 'first run'")
    assert first.search == f"{base}/{run_id}?workflowType=machine_learning"


def test_without_its_shared_view_the_address_of_the_table_is_a_filter(uri: str, run_dir: Path) -> None:
    write_journal(run_dir, small_journal())
    sync(run_dir, uri)
    MlflowClient(tracking_uri=uri).delete_experiment_tag("1", VIEW_TAG + "c0ffee12")
    filtered = addresses(run_dir, uri, "http://127.0.0.1:5000").runs
    assert "viewStateShareKey" not in filtered
    assert "searchFilter=tags.%60lossearch.search%60%20%3D%20%27c0ffee12%27" in filtered


def test_addresses_of_an_unwritten_run_say_how_to_write_it(uri: str, run_dir: Path) -> None:
    write_journal(run_dir, small_journal())
    with pytest.raises(TrackingError, match=r"does not have .*first run; 'lossearch sync .*first run' writes it"):
        addresses(run_dir, uri, "http://127.0.0.1:5000")


def test_mlflows_global_state_is_left_alone(uri: str, run_dir: Path) -> None:
    before = mlflow.get_tracking_uri()
    write_journal(run_dir, small_journal())
    sync(run_dir, uri)
    assert mlflow.active_run() is None
    assert mlflow.get_tracking_uri() == before


def test_importing_the_tracker_does_not_import_mlflow() -> None:
    code = "import sys, lfs.tracker, lfs.tracker_page; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_where_to_track(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert resolve_uri(None, Path("work space")) == f"sqlite:///{tmp_path}/work space/mlflow.db"
    assert resolve_uri("sqlite:///a/../b.db", Path()) == f"sqlite:///{tmp_path}/b.db"
    assert resolve_uri("sqlite:////b.db", Path()) == "sqlite:////b.db"
    assert resolve_uri("sqlite:///c%23.db?timeout=9", Path()) == f"sqlite:///{tmp_path}/c%23.db?timeout=9"
    assert resolve_uri("databricks", Path()) == "databricks"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://mlflow.example")
    assert resolve_uri(None, Path()) == "https://mlflow.example"
    assert resolve_uri("sqlite:////b.db", Path()) == "sqlite:////b.db"


@pytest.mark.parametrize("uri", ["mlruns", "./mlruns", "file:///tmp/mlruns"])
def test_a_plain_folder_is_refused(uri: str, tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match="must be sqlite:///PATH or http"):
        resolve_uri(uri, tmp_path)


def test_a_password_in_the_uri_is_not_shown(workspace: Path, run_dir: Path) -> None:
    write_journal(run_dir, small_journal())
    with pytest.raises(TrackingError) as caught:
        sync(run_dir, "http://someone:secret@127.0.0.1:1")
    assert "MLflow at http://127.0.0.1:1 could not be used" in str(caught.value)
    assert "secret" not in str(caught.value)
