"""`lossearch compare --also`: several searches of one kind, where the searches are what is repeated."""

import csv
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import ttest_rel

from analysis.comparison import Results
from analysis.comparison_curves import errors_of
from lfs.config import WINNER
from lfs.journal import FILE_NAME, Asked, read_events
from lfs.winner import take_home
from search_space import LossSchedule
from tests.lfs.command import TINY_SEARCH, Result, contents, lossearch
from tests.lfs.test_bad_input import refused
from tests.lfs.test_compare import copied

SEEDS = 4


@pytest.fixture(scope="module")
def searches(
    shapes: Path, finished_search: tuple[Path, Result], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """Two searches that differ in their seed."""
    workspace = tmp_path_factory.mktemp("searches")
    other = workspace / "runs" / "other"
    assert lossearch("search", "--data", shapes, "--run", other, *TINY_SEARCH, "--set=seed=7").code == 0
    return copied(finished_search[0], workspace), other


@pytest.fixture(scope="module")
def compared(searches: tuple[Path, Path]) -> Results:
    """Both searches compared with one baseline."""
    run, other = searches
    done = lossearch(
        "compare", run, "--also", other, f"--seeds={SEEDS}", "--baseline=softmax", "--no-tune", "--resamples=100"
    )
    assert done.code == 0, done.err
    assert "2 searches retrained 2× each" in " ".join(done.out.split())
    return Results.read(run / "compare" / "01")


def found_by(run: Path) -> LossSchedule:
    return LossSchedule.model_validate(take_home(read_events(run / FILE_NAME)[0])["schedule"])


def test_each_search_trains_its_own_find_under_its_share_of_the_seeds(
    compared: Results, searches: tuple[Path, Path]
) -> None:
    events, _ = read_events(searches[0] / "compare" / "01" / FILE_NAME)
    trained = {
        trial.seed: trial.schedule
        for event in events
        if isinstance(event, Asked)
        for trial in event.trials
        if trial.name == WINNER
    }
    first, second = map(found_by, searches)
    assert first != second
    assert [trained[seed] for seed in compared.seeds] == [first, first, second, second]
    searched = [
        trial.seed
        for run in searches
        for event in read_events(run / FILE_NAME)[0]
        if isinstance(event, Asked)
        for trial in event.trials
    ]
    assert not set(searched) & set(compared.seeds)


def test_the_searches_are_the_sample_and_their_trainings_are_averaged(
    compared: Results, searches: tuple[Path, Path]
) -> None:
    (contrast,) = compared.contrasts
    with (searches[0] / "compare-seeds.csv").open(encoding="utf-8", newline="") as file:
        rows = {(row["entrant"], int(row["seed"])): float(row["rank1"]) for row in csv.DictReader(file)}
    ours, theirs = (
        np.array([rows[name, seed] for seed in compared.seeds]).reshape(2, 2).mean(1) for name in (WINNER, "softmax")
    )
    assert contrast.difference is not None
    assert contrast.difference.n == 2
    assert contrast.difference.mean == pytest.approx((ours - theirs).mean())
    assert contrast.p == pytest.approx(ttest_rel(ours, theirs).pvalue)
    page = (searches[0] / "compare.html").read_text(encoding="utf-8")
    assert "t-test p" in page
    assert "paired by search;" in page
    assert set(errors_of(compared)["n"]) == {2}
    assert "sign-flip" not in page


def test_the_winners_of_all_searches_are_listed(compared: Results) -> None:
    table = compared.losses()
    assert (table["entrant"] == WINNER).sum() == 2
    assert (table["entrant"] == "softmax").sum() == 1


def test_searches_that_are_no_repeats_of_one_another_are_refused_before_anything_is_written(
    searches: tuple[Path, Path], shapes: Path, tmp_path: Path
) -> None:
    run, other = searches
    wider = tmp_path / "runs" / "wider"
    settings = [each for each in TINY_SEARCH if not each.startswith("--set=search.batch")]
    done = lossearch("search", "--data", shapes, "--run", wider, *settings, "--set=search.batch=4", "--set=seed=8")
    assert done.code == 0, done.err
    before = contents(other)
    refused(lossearch("compare", other, "--also", wider), "differ in search.batch: 2 and 4")
    refused(lossearch("compare", other, "--also", other), "both have seed = 7")
    refused(lossearch("compare", other, "--also", run, "--seeds=3"), "a multiple of the 2 searches", "3")
    refused(lossearch("compare", other, "--also", run, "--schedule-controls"), "schedule of one search")
    refused(lossearch("compare", other, "--also", tmp_path / "none"), "no journal at")
    assert contents(other) == before
