from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page as BrowserPage

from lfs.tracker import Addresses, addresses, sync
from lfs.tracker_page import Page, serve
from lfs.tracker_uri import TrackingError, default_uri
from tests.analysis.journals import search_journal, write_journal

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings(
        "ignore:The ``noload`` loader strategy is deprecated:sqlalchemy.exc.SADeprecationWarning"
    ),
]
DRAWN_MILLISECONDS = 60_000


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = write_journal(tmp_path_factory.mktemp("workspace") / "runs" / "first-run", search_journal())
    (run_dir / "report.html").write_text("<h1>The report of the search</h1>")
    sync(run_dir, default_uri(run_dir.parent.parent))
    return run_dir


@pytest.fixture(scope="module")
def mlflow_page(run_dir: Path) -> Iterator[Page]:
    with serve(default_uri(run_dir.parent.parent)) as page:
        yield page


@pytest.fixture(scope="module")
def found(run_dir: Path, mlflow_page: Page) -> Addresses:
    return addresses(run_dir, default_uri(run_dir.parent.parent), mlflow_page.base)


def test_the_table_shows_trials_and_baselines_best_first(
    browser_page: BrowserPage, found: Addresses, tmp_path: Path
) -> None:
    browser_page.set_viewport_size({"width": 1800, "height": 900})
    browser_page.goto(found.runs)
    browser_page.get_by_text("44 matching runs").wait_for(timeout=DRAWN_MILLISECONDS)
    for name in ("trial 41", "trial 38", "arcface"):
        browser_page.get_by_role("link", name=name, exact=True).wait_for(timeout=DRAWN_MILLISECONDS)
    headers = browser_page.get_by_role("columnheader").all_inner_texts()
    assert {"reward", "choice/tar_at_far_1e-3", "val/eer", "cost/images", "loss.target.u"} <= set(headers)
    cells = browser_page.locator("[role=gridcell][col-id='metrics.`reward`']")
    cells.first.wait_for(timeout=DRAWN_MILLISECONDS)
    rewards = [-1.0 if cell == "-" else float(cell) for cell in cells.all_inner_texts()]  # trial 20 has failed
    assert len(rewards) > 10
    assert rewards == sorted(rewards, reverse=True)
    browser_page.screenshot(path=tmp_path / "runs.png")


def test_the_search_shows_its_note_its_trials_and_its_report(
    browser_page: BrowserPage, found: Addresses, tmp_path: Path
) -> None:
    browser_page.goto(found.search)
    browser_page.get_by_text("winner of the search").wait_for(timeout=DRAWN_MILLISECONDS)
    assert browser_page.get_by_text("Finished", exact=True).is_visible()
    browser_page.get_by_text("trial 42").first.wait_for(timeout=DRAWN_MILLISECONDS)
    browser_page.screenshot(path=tmp_path / "search.png")
    browser_page.get_by_role("tab", name="Artifacts").click()
    browser_page.get_by_text("report.html").click(timeout=DRAWN_MILLISECONDS)
    report = browser_page.frame_locator("iframe").get_by_text("The report of the search")
    report.wait_for(timeout=DRAWN_MILLISECONDS)
    browser_page.screenshot(path=tmp_path / "report.png")


def test_a_sync_to_the_server_writes_what_a_sync_to_its_database_does(run_dir: Path, mlflow_page: Page) -> None:
    assert serve(mlflow_page.base).base == mlflow_page.base, "a server is its own page"
    assert sync(run_dir, mlflow_page.base).runs_written == 0
    events = search_journal(rounds=1)
    events[0] = events[0].model_copy(update={"search_id": "0ther"})
    other = write_journal(run_dir.parent / "over-http", events)
    assert sync(other, mlflow_page.base).runs_written == 14
    assert sync(other, mlflow_page.base).runs_written == 0
    assert sync(other, default_uri(run_dir.parent.parent)).runs_written == 0


def test_a_taken_port_is_named(run_dir: Path, mlflow_page: Page) -> None:
    port = int(mlflow_page.base.rpartition(":")[2])
    with pytest.raises(TrackingError, match=rf"port {port} of 127\.0\.0\.1 cannot be used .*; choose another"):
        serve(default_uri(run_dir.parent.parent), port=port)


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match="the MLflow page for nonsense://x stopped at once: "):
        serve("nonsense://x")
