"""A comparison's MLflow pages: what they show, and that writing them twice or in parts is the same as once."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from analysis.comparison import Results
from analysis.comparison_page import write_comparison
from lfs.journal import FILE_NAME, Asked, JournalError, Opened, Scored, Told, read_events
from lfs.tracker import VIEW_TAG, Tracker, addresses, sync
from lfs.tracker_uri import default_uri
from tests.analysis.comparisons import ENTRANTS, write_compared
from tests.analysis.journals import search_journal, write_journal
from tests.lfs.command import TINY_SEARCH, lossearch
from tests.lfs.test_tracker import cut, rows, stored

pytestmark = pytest.mark.filterwarnings(
    "ignore:The ``noload`` loader strategy is deprecated:sqlalchemy.exc.SADeprecationWarning"
)
PARENT = "first run compare 1"
TRAININGS = {f"{name}, seed {seed}" for name in ENTRANTS for seed in (1, 2)}


def compared(run_dir: Path) -> Path:
    """A run with a comparison, and the files that `lossearch compare` writes; the comparison's folder."""
    write_journal(run_dir, search_journal(rounds=1))
    folder = write_compared(run_dir, seeds=2, diverged="p2sgrad")
    write_comparison(Results.read(folder), run_dir)
    return folder


@pytest.fixture(scope="session")
def complete(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> tuple[Path, dict[str, Any]]:
    """A workspace with a compared run, and what one sync leaves."""
    workspace = tmp_path_factory.mktemp("complete")
    shutil.copy(empty_database, workspace / "mlflow.db")
    folder = compared(workspace / "runs" / "first run")
    sync(workspace / "runs" / "first run", default_uri(workspace))
    assert folder.is_dir()
    return workspace, stored(workspace)


def test_a_comparison_is_a_run_with_its_verdict_its_page_and_a_curve_an_entrant(
    complete: tuple[Path, dict[str, Any]],
) -> None:
    workspace, runs = complete
    parent = runs[PARENT]
    assert parent["status"] == "FINISHED"
    wanted = {
        "lossearch.role": "compare",
        "lossearch.search": "c0mpare",
        "lossearch.compares": "c0ffee12",
        "lossearch.state": "finished",
        "lossearch.test_opened": "true",
        "lossearch.test_opened_before": "0",
    }
    assert wanted.items() <= parent["tags"].items()
    assert set(parent["artifacts"]) == {"journal.jsonl", "compare.html"}
    note = parent["tags"]["mlflow.note.content"]
    assert note == (workspace / "runs" / "first run" / "compare.md").read_text(encoding="utf-8")
    assert note.count("| no significant difference |") == 3
    scored = [
        event
        for event in read_events(workspace / "runs" / "first run" / "compare" / "01" / FILE_NAME)[0]
        if isinstance(event, Scored)
    ]
    curves = {(key, step): value for key, step, value, _ in parent["metrics"] if key.startswith("test_")}
    values = {(e.entrant, e.seed): e.metrics["tar_at_far_1e-2"] for e in scored}
    means = {(f"test_mean/{name}", 0): (values[name, 1] + values[name, 2]) / 2 for name in ENTRANTS}
    assert curves == {(f"test_by_seed/{name}", seed - 1): value for (name, seed), value in values.items()} | means
    assert runs["first run"]["tags"]["lossearch.role"] == "search"
    assert "lossearch.test_opened" not in runs["first run"]["tags"]


def test_every_training_has_its_test_scores_unless_it_left_no_model(complete: tuple[Path, dict[str, Any]]) -> None:
    _, runs = complete
    children = {name: run for name, run in runs.items() if run["tags"].get("mlflow.parentRunId") == PARENT}
    assert set(children) == TRAININGS
    assert {run["tags"]["lossearch.role"] for run in children.values()} == {"training"}
    with_scores = {name for name, run in children.items() if any(key == "test/eer" for key, *_ in run["metrics"])}
    assert with_scores == TRAININGS - {"p2sgrad, seed 1"}
    assert children["winner, seed 2"]["tags"]["lossearch.state"] == "scored"
    assert children["winner, seed 2"]["tags"]["lossearch.entrant"] == "winner"


def test_the_table_of_a_comparison_shows_test_scores_and_stays_apart_from_the_searchs(
    complete: tuple[Path, dict[str, Any]],
) -> None:
    workspace, _ = complete
    tags = dict(rows(workspace, "select key, value from experiment_tags"))
    view = json.loads(tags[VIEW_TAG + "c0mpare"])
    assert view["orderByKey"] == "metrics.`test/tar_at_far_1e-2`"
    assert "c0mpare" in view["searchFilter"]
    assert "reward" in json.loads(tags[VIEW_TAG + "c0ffee12"])["orderByKey"]
    found = addresses(workspace / "runs" / "first run", default_uri(workspace), "http://here")
    assert "c0ffee12" in found.runs
    of_it = addresses(workspace / "runs" / "first run" / "compare" / "01", default_uri(workspace), "http://here")
    assert "c0mpare" in of_it.runs
    assert of_it.search != found.search


def test_syncing_twice_is_the_same_as_once(complete: tuple[Path, dict[str, Any]]) -> None:
    workspace, runs = complete
    again = sync(workspace / "runs" / "first run", default_uri(workspace))
    assert (again.events_written, again.runs_written, again.runs) == (0, 0, len(runs))
    assert stored(workspace) == runs


@pytest.mark.parametrize("after", [Asked, Told, Opened, Scored])
def test_a_comparison_cut_anywhere_and_then_the_rest_ends_the_same(
    workspace: Path, uri: str, run_dir: Path, after: type, complete: tuple[Path, dict[str, Any]]
) -> None:
    shutil.copytree(complete[0] / "runs" / "first run", run_dir, ignore=shutil.ignore_patterns("*.lock"))
    folder = run_dir / "compare" / "01"
    events = read_events(folder / FILE_NAME)[0]
    cut(folder, events[: 1 + next(index for index, event in enumerate(events) if isinstance(event, after))])
    (run_dir / "compare.md").rename(run_dir / "later")
    sync(run_dir, uri)
    unfinished = stored(workspace)
    assert unfinished[PARENT]["status"] == "KILLED"
    assert unfinished[PARENT]["tags"]["lossearch.test_opened"] == ("true" if after in (Opened, Scored) else "false")
    assert "mlflow.note.content" not in unfinished[PARENT]["tags"]
    (run_dir / "later").rename(run_dir / "compare.md")
    cut(folder, events)
    sync(run_dir, uri)
    assert stored(workspace) == complete[1]


def test_the_tracker_names_the_run_to_sync_when_mlflow_is_away(run_dir: Path) -> None:
    folder = compared(run_dir)
    tracker = Tracker(folder, "http://127.0.0.1:9")
    tracker.start()
    said = tracker.stop(30)
    assert said is not None
    assert "8 of 8 trials (MLflow at http://127.0.0.1:9" in said
    assert said.endswith(f"'lossearch sync {run_dir}' writes what is missing")


def test_a_plan_of_another_version_is_named(uri: str, run_dir: Path) -> None:
    journal = compared(run_dir) / FILE_NAME
    journal.write_text(journal.read_text().replace('"grid_seed"', '"grid"'))
    with pytest.raises(JournalError, match="no journal of a comparison that this version can read"):
        sync(run_dir, uri)


@pytest.mark.slow
def test_compare_writes_its_pages_while_it_runs(shapes: Path, workspace: Path, run_dir: Path) -> None:
    settings = [each for each in TINY_SEARCH if "tracking" not in each]
    assert lossearch("search", "--data", shapes, "--run", run_dir, *settings).code == 0
    done = lossearch("compare", run_dir, "--seeds=2", "--baseline=softmax", "--resamples=100")
    assert done.code == 0, done.err
    runs = stored(workspace)
    assert runs[PARENT]["tags"]["lossearch.state"] == "finished"
    assert "no significant difference" in runs[PARENT]["tags"]["mlflow.note.content"]
    assert set(runs[PARENT]["artifacts"]) == {"journal.jsonl", "compare.html"}
    assert sync(run_dir, default_uri(workspace)).runs_written == 0
