"""`lossearch compare` from end to end: what it trains, when it opens the test, what it says, and how it goes on."""

import csv
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from analysis.comparison import Results
from lfs.compare import CHANCE
from lfs.comparison import ComparisonPlan, clusters_of, prepare
from lfs.config import WINNER
from lfs.entrants import ComparisonController, Entrant, Grid, controls, own_entrants, schedule_controls
from lfs.executor import Completed, Lost, SerialExecutor
from lfs.journal import (
    FILE_NAME,
    Asked,
    Event,
    Finished,
    Opened,
    Rebuilt,
    Resumed,
    Scored,
    Started,
    Told,
    read_events,
)
from lfs.trial import Trial
from search_space import LossSchedule, catalog
from tests.lfs.command import SPLIT, TINY_SEARCH, Result, contents, lossearch
from tests.lfs.runners import PATIENCE_SECONDS, wait_until
from tests.lfs.test_bad_input import refused
from trainers.outcome import Outcome
from trainers.recipe import FARS
from trainers.training import Candidate, train_together
from trainers.verification import verification

ROOT = Path(__file__).parents[2]
BASELINES = ("softmax", "adacos-dynamic", "cosface-tuned")
OPTIONS = (
    "--seeds=3",
    *(f"--baseline={name}" for name in BASELINES),
    "--scales=16",
    "--cosface-margins=0.1,0.3",
    "--resamples=200",
)
ENTRANTS = ("winner", "recommended", *BASELINES)


def copied(run_dir: Path, workspace: Path) -> Path:
    """A copy of a run without its comparisons."""
    target = workspace / "runs" / run_dir.name
    shutil.copytree(run_dir, target, ignore=shutil.ignore_patterns("compare*"))
    return target


def events_of(run_dir: Path, number: int = 1) -> list[Event]:
    return read_events(run_dir / "compare" / f"{number:02d}" / FILE_NAME)[0]


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def found_in(run_dir: Path, stem: str = "compare") -> list[list[dict[str, str]]]:
    """The means, differences and raw scores."""
    return [rows_of(run_dir / f"{stem}{part}.csv") for part in ("", "-differences", "-seeds")]


@pytest.fixture(scope="module")
def compared(finished_search: tuple[Path, Result], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """A run that was compared, and what that printed; not to be changed."""
    run_dir = copied(finished_search[0], tmp_path_factory.mktemp("compared"))
    return run_dir, lossearch("compare", run_dir, *OPTIONS)


def test_a_comparison_prints_its_table_and_writes_page_and_csv(compared: tuple[Path, Result]) -> None:
    run_dir, done = compared
    assert done.code == 0, done.err
    assert [name for name in ENTRANTS if not re.search(rf"│ {name} +│ [01]\.\d{{4}} \[", done.out)] == []
    assert "not significantly different from softmax, adacos-dynamic, cosface-tuned" in done.out
    assert "note: with 3 seeds and 3 contrasts no corrected p-value can be below 0.75" in done.out
    assert "The test identities were opened" in done.out
    assert "It was the first time in this workspace" in done.out
    page = (run_dir / "compare.html").read_text(encoding="utf-8")
    assert "Content-Security-Policy" in page
    assert page.count("no significant difference") >= 3
    assert [word for word in ("NaN", "nan,", "undefined") if word in page[: page.index("<footer>")]] == []


def test_the_test_is_opened_once_when_all_training_is_done(compared: tuple[Path, Result]) -> None:
    events = events_of(compared[0])
    kinds = [event.event for event in events]
    assert kinds.count("opened") == 1
    at = kinds.index("opened")
    assert kinds[at - 1] == "finished"
    assert set(kinds[at + 1 :]) == {"scored"}
    assert "scored" not in kinds[:at]
    (opened,) = (event for event in events if isinstance(event, Opened))
    test_classes = sum(split == "test" for split in SPLIT.values())
    assert (opened.classes, opened.clusters, opened.opened_before) == (test_classes, test_classes, 0)


def test_every_entrant_is_trained_with_every_seed_and_none_of_the_searchs(
    compared: tuple[Path, Result], finished_search: tuple[Path, Result]
) -> None:
    events = events_of(compared[0])
    scored = [event for event in events if isinstance(event, Scored)]
    plan = plan_of(events)
    assert [(event.entrant, event.seed) for event in scored] == [(e, s) for s in plan.seeds for e in ENTRANTS]
    search_seeds = {trial.seed for trial in trials_of(read_events(finished_search[0] / FILE_NAME)[0])}
    assert len({*plan.seeds, plan.grid_seed}) == 4
    assert not search_seeds & {*plan.seeds, plan.grid_seed}
    trained = [(trial.name, trial.seed) for trial in trials_of(events) if trial.seed != plan.grid_seed]
    assert sorted(trained) == sorted((event.entrant, event.seed) for event in scored)


def test_every_mean_has_an_interval_and_n_and_every_difference_a_verdict(compared: tuple[Path, Result]) -> None:
    means, differences, raw = found_in(compared[0])
    assert len(means) == len(ENTRANTS) * 6
    assert all(float(row["low"]) <= float(row["mean"]) <= float(row["high"]) and row["n"] == "3" for row in means)
    tested = [row for row in differences if row["score"] == "rank1"]
    assert [row["baseline"] for row in tested] == list(BASELINES)
    assert {row["verdict"] for row in tested} == {"no significant difference"}
    assert all(0.25 <= float(row["p"]) <= float(row["p_holm"]) <= 1 for row in tested)
    assert all(row["p"] == "" for row in differences if row["score"] != "rank1")
    assert len(raw) == 3 * len(ENTRANTS)


def test_the_tuned_loss_is_the_best_of_its_grid_on_the_choice_half(compared: tuple[Path, Result]) -> None:
    events = events_of(compared[0])
    trials = {trial.number: trial for trial in trials_of(events)}
    outcomes = {event.trial: event.outcome for event in events if isinstance(event, Told)}
    grid = [number for number, trial in trials.items() if trial.name == "grid of cosface-tuned"]
    best = max(grid, key=lambda number: outcomes[number].metrics["choice/rank1"])
    assert len(grid) == 2
    tuned = [trial for trial in trials.values() if trial.name == "cosface-tuned"]
    assert {trial.schedule for trial in tuned} == {trials[best].schedule}
    costs = Results.read(compared[0] / "compare" / "01").costs()
    images = dict(zip(costs["entrant"], costs["images in all"], strict=True))
    assert images["cosface-tuned"] == 3 * images["softmax"]
    assert images["winner"] > images["softmax"]


def test_no_network_is_left_behind(compared: tuple[Path, Result]) -> None:
    folder = compared[0] / "compare" / "01"
    assert list((folder / "checkpoints").iterdir()) == []
    files = [name for e in events_of(compared[0]) if isinstance(e, Scored) for name in (e.resamples, e.curves)]
    assert sorted(files) == sorted(str(path.relative_to(folder)) for path in (folder / "test").iterdir())
    assert len(files) == 2 * 3 * len(ENTRANTS)


def test_a_finished_comparison_is_shown_again_and_not_repeated(compared: tuple[Path, Result]) -> None:
    run_dir, first = compared
    before = contents(run_dir)
    done = lossearch("compare", run_dir)
    assert done.code == 0, done.err
    assert done.out[done.out.index("┏") :] == first.out[first.out.index("┏") :]
    assert contents(run_dir) == before


def test_another_comparison_takes_other_seeds_and_score_and_says_that_the_test_was_opened_before(
    compared: tuple[Path, Result], tmp_path: Path
) -> None:
    run_dir = tmp_path / "runs" / "tiny"
    shutil.copytree(compared[0], run_dir)
    options = ["--again", "--seeds=2", "--baseline=softmax", "--resamples=100", "--metric=auc"]
    done = lossearch("compare", run_dir, *options)
    assert done.code == 0, done.err
    assert "had opened them 1× before" in done.out
    page = (run_dir / "compare-2.html").read_text(encoding="utf-8")
    assert "1× by comparisons of this workspace" in page
    assert "AUC, as asked for, here on the test identities" in page
    assert "reward, here on the test identities" in (run_dir / "compare.html").read_text("utf-8")
    first, second = plan_of(events_of(run_dir)), plan_of(events_of(run_dir, 2))
    assert second.metric == "auc"
    assert not {*first.seeds, first.grid_seed} & {*second.seeds, second.grid_seed}
    assert (run_dir / "compare.html").read_bytes() == (compared[0] / "compare.html").read_bytes()


@pytest.mark.slow
def test_a_comparison_killed_in_training_goes_on_to_the_same_table(
    compared: tuple[Path, Result], finished_search: tuple[Path, Result], tmp_path: Path
) -> None:
    run_dir = copied(finished_search[0], tmp_path)
    journal = run_dir / "compare" / "01" / FILE_NAME
    process = subprocess.Popen(
        [sys.executable, "-c", "from lfs.cli import main; main()", "compare", run_dir, *OPTIONS],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: process.poll() is not None or told_lines(journal) >= 4)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(PATIENCE_SECONDS)
    assert b'"event":"finished"' not in journal.read_bytes(), "it was too fast to be killed"
    done = lossearch("compare", run_dir)
    assert done.code == 0, done.err
    events = events_of(run_dir)
    assert sum(isinstance(event, Resumed) for event in events) == 1
    assert sum(isinstance(event, Opened) for event in events) == 1
    assert raw_scores(run_dir) == raw_scores(compared[0])


def told_lines(journal: Path) -> int:
    return journal.read_bytes().count(b'"event":"told"') if journal.exists() else 0


def scored_in(run_dir: Path) -> list[Scored]:
    return [event for event in events_of(run_dir) if isinstance(event, Scored)]


def raw_scores(run_dir: Path) -> list[dict[str, str]]:
    return found_in(run_dir)[2]


def test_a_comparison_killed_while_the_test_is_open_goes_on_without_opening_it_again(
    compared: tuple[Path, Result], finished_search: tuple[Path, Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = copied(finished_search[0], tmp_path)
    calls = []

    def dying(*arguments: object) -> None:
        calls.append(arguments)
        if len(calls) == 5:
            raise SystemExit(1)
        return resampled(*arguments)  # type: ignore[arg-type,return-value]

    from trainers.resampling import resampled

    with monkeypatch.context() as patched:
        patched.setattr("lfs.compare.resampled", dying)
        assert lossearch("compare", run_dir, *OPTIONS).code == 1
    assert sum(isinstance(event, Scored) for event in events_of(run_dir)) == 4
    assert not (run_dir / "compare.html").exists()
    done = lossearch("compare", run_dir)
    assert done.code == 0, done.err
    assert sum(isinstance(event, Opened) for event in events_of(run_dir)) == 1
    assert sum(isinstance(event, Finished) for event in events_of(run_dir)) == 1
    assert found_in(run_dir) == found_in(compared[0])


def test_networks_that_were_lost_with_their_node_are_trained_again(
    compared: tuple[Path, Result], finished_search: tuple[Path, Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = copied(finished_search[0], tmp_path)
    lost: set[int] = set()
    wait = SerialExecutor.wait

    def losing(executor: SerialExecutor) -> list[Completed | Lost]:
        """Loses the network of every other trial after its first training."""
        return [
            replace(item, checkpoint=lambda: None) if isinstance(item, Completed) and is_lost(item.trial) else item
            for item in wait(executor)
        ]

    def is_lost(trial: Trial) -> bool:
        first = trial.number % 2 == 1 and trial.number not in lost
        lost.update([trial.number] * first)
        return first

    monkeypatch.setattr(SerialExecutor, "wait", losing)
    done = lossearch("compare", run_dir, *OPTIONS)
    assert done.code == 0, done.err
    rebuilt = [event for event in events_of(run_dir) if isinstance(event, Rebuilt)]
    assert {event.trial for event in rebuilt} == {s.trial for s in scored_in(run_dir) if s.trial in lost} != set()
    assert all(event.same for event in rebuilt)
    assert found_in(run_dir) == found_in(compared[0])


def test_a_winner_that_is_the_baseline_is_not_significantly_different_from_it(shapes: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "runs" / "null"
    settings = [each for each in TINY_SEARCH if not each.startswith("--set=search.")]
    losses = ("--set=search.method=fixed_list", '--set=search.losses=[{loss = "softmax"}]', "--set=baselines=[]")
    assert lossearch("search", "--data", shapes, "--run", run_dir, *settings, *losses).code == 0
    done = lossearch("compare", run_dir, "--seeds=10", "--baseline=softmax", "--resamples=100")
    assert done.code == 0, done.err
    (contrast,) = Results.read(run_dir / "compare" / "01").contrasts
    assert contrast.verdict == "no significant difference"
    assert contrast.p == contrast.corrected_p == 1
    assert contrast.difference is not None
    assert (contrast.difference.mean, contrast.difference.low, contrast.difference.high) == (0, 0, 0)
    assert contrast.p_better == 0.5
    assert "no significant difference" in (run_dir / "compare.html").read_text(encoding="utf-8")


def test_what_diverged_counts_as_chance_and_what_the_machine_lost_decides_nothing(
    finished_search: tuple[Path, Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = copied(finished_search[0], tmp_path)
    adacos, softmax = (LossSchedule.constant(catalog.get(name)) for name in ("adacos_dynamic", "softmax"))

    def failing(candidates: Sequence[Candidate], *arguments: object, seed: int, **more: object) -> object:
        errors = {adacos: "diverged: the loss is not finite in epoch 2", softmax: "OSError: the disk is gone"}
        (candidate,) = candidates
        if seed == 2 and candidate.schedule in errors:
            return [(Outcome(reward=None, seconds=0.1, images=48, error=errors[candidate.schedule]), None)]
        return train_together(candidates, *arguments, seed=seed, **more)  # type: ignore[arg-type]

    monkeypatch.setattr("lfs.runner.train_together", failing)
    done = lossearch("compare", run_dir, "--seeds=2", "--baseline=softmax", "--baseline=adacos-dynamic", "--no-tune")
    assert done.code == 0, done.err
    results = Results.read(run_dir / "compare" / "01")
    verdicts = {contrast.baseline: contrast.verdict for contrast in results.contrasts}
    assert verdicts == {"softmax": "not decided", "adacos-dynamic": "no significant difference"}
    rows = {(row["entrant"], row["seed"]): row for row in raw_scores(run_dir)}
    diverged = rows["adacos-dynamic", "2"]
    assert (diverged["state"], diverged["tar_at_far_1e-2"], diverged["eer"]) == ("diverged", "0.01", "0.5")
    assert rows["softmax", "2"]["state"] == "failed"
    assert "the machine failed, not the loss, so nothing is decided. OSError: the disk is gone" in done.out
    assert "they count with the scores of chance" in done.out


# --- bad input ------------------------------------------------------------------------------------------------------

BAD = {
    "one seed": (["--seeds=1"], ["seeds", "at least 2", "1"]),
    "too many seeds": (["--seeds=21"], ["seeds", "at most 20", "21"]),
    "unknown baseline": (["--baseline=arcfce"], ["unknown baseline 'arcfce'", "known are", "arcface-tuned"]),
    "tuned baseline that is off": (
        ["--no-tune", "--baseline=arcface-tuned"],
        ["'arcface-tuned'", "tuned ones are off"],
    ),
    "words for a margin": (["--cosface-margins=small"], ["grid.cosface_margins", "must be numbers", "'small'"]),
    "a scale below 0": (["--scales=16,-1"], ["grid.scales: must be above 0, but got -1"]),
    "margin out of range": (["--arcface-margins=4"], ["grid: m2_rad must be at most 1.5708", "4.0"]),
    "unknown kind of equal compute": (["--equal-compute=more"], ["equal_compute", "'seeds' or 'longer'", "'more'"]),
    "no such score": (["--metric=f1"], ["metric", "tar_at_far_1e-3", "f1"]),
    "too few resamples": (["--resamples=3"], ["resamples", "at least 100", "3"]),
    "a recipe": (["--set=recipe.width=8"], ["takes --set for executor only", "recipe.width=8"]),
    "threads": (["--set=executor.threads=2"], ["executor.threads belongs to the arithmetic", "executor.threads=2"]),
    "a learning rate of 0": (["--learning-rates=0.1,0"], ["grid.learning_rates: must be above 0, but got 0"]),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_compared_is_refused_before_anything_is_written(
    case: str, finished_search: tuple[Path, Result]
) -> None:
    arguments, words = BAD[case]
    before = contents(finished_search[0])
    refused(lossearch("compare", finished_search[0], *arguments), *words)
    assert contents(finished_search[0]) == before


def test_test_images_that_cannot_be_decoded_are_noticed_before_the_training(
    finished_search: tuple[Path, Result], shapes: Path, tmp_path: Path
) -> None:
    run_dir, data = copied(finished_search[0], tmp_path), tmp_path / "shapes"
    shutil.copytree(shapes, data)
    (data / "images" / "shape15" / "3.png").write_bytes(b"no image")
    journal = (run_dir / FILE_NAME).read_text(encoding="utf-8")
    (run_dir / FILE_NAME).write_text(journal.replace(str(shapes), str(data)), encoding="utf-8")
    before = contents(run_dir)
    refused(lossearch("compare", run_dir, *OPTIONS), "data: 1 of 24 images", "images/shape15/3.png is not an image")
    assert contents(run_dir) == before


def test_a_run_that_is_none_or_not_finished_is_refused(finished_search: tuple[Path, Result], tmp_path: Path) -> None:
    refused(lossearch("compare", tmp_path), "no journal at", "give the folder of a run")
    lines = (finished_search[0] / FILE_NAME).read_bytes().splitlines(keepends=True)
    (tmp_path / FILE_NAME).write_bytes(b"".join(lines[:-1]))
    refused(lossearch("compare", tmp_path), "is not finished: resume it first, then compare")
    assert set(contents(tmp_path)) == {FILE_NAME}


def test_other_options_than_those_of_the_comparison_are_refused(compared: tuple[Path, Result]) -> None:
    refused(lossearch("compare", compared[0], "--seeds=5"), "was finished with seeds = 3", "--again")


# --- parts ----------------------------------------------------------------------------------------------------------


def plan_of(events: Sequence[Event]) -> ComparisonPlan:
    first = events[0]
    assert isinstance(first, Started)
    return ComparisonPlan.model_validate(first.config["comparison"])


def trials_of(events: Sequence[Event]) -> list[Trial]:
    return [trial for event in events if isinstance(event, Asked) for trial in event.trials]


def outcome(choice: float) -> Outcome:
    return Outcome(reward=0.5, metrics={"choice/rank1": choice}, seconds=1.0, images=10)


def entrant(name: str, *losses: LossSchedule) -> Entrant:
    return Entrant(name=name, kind="baseline", how="", candidates=losses, epochs=2, grid=f"grid of {name}")


SOFTMAX, COSFACE = (LossSchedule.constant(catalog.get(name)) for name in ("softmax", "cosface"))


def controller(*entrants: Entrant, spare: int = 0) -> ComparisonController:
    pools = [[100 + 10 * replicate + member for member in range(spare)] for replicate in range(2)]
    return ComparisonController(entrants, seeds=(1, 2), spare_seeds=pools, grid_seed=9, metric="rank1")


def test_a_tuned_entrant_waits_for_its_grid_and_the_others_do_not() -> None:
    asking = controller(entrant("tuned", SOFTMAX, COSFACE), entrant("plain", SOFTMAX))
    first = asking.ask(100)
    assert [(t.name, t.seed) for t in first] == [("grid of tuned", 9)] * 2 + [("plain", 1), ("plain", 2)]
    asking.tell(first[0], outcome(0.2))
    assert asking.ask(100) == []
    asking.tell(first[1], outcome(0.4))
    assert [(t.name, t.seed, t.schedule) for t in asking.ask(100)] == [("tuned", 1, COSFACE), ("tuned", 2, COSFACE)]


def test_baselines_choose_their_learning_rates_too() -> None:
    both = entrant("tuned", SOFTMAX, COSFACE).with_rates([0.1, 0.4])
    plain = entrant("plain", SOFTMAX).model_copy(update={"grid": ""}).with_rates([0.1, 0.4])
    asking = controller(both, plain)
    grid = asking.ask(100)
    assert [(t.name, t.schedule, t.recipe["learning_rate"]) for t in grid] == [
        ("grid of tuned", SOFTMAX, 0.1),
        ("grid of tuned", SOFTMAX, 0.4),
        ("grid of tuned", COSFACE, 0.1),
        ("grid of tuned", COSFACE, 0.4),
        ("grid of plain", SOFTMAX, 0.1),
        ("grid of plain", SOFTMAX, 0.4),
    ]
    for trial, score in zip(grid, [0.2, 0.3, 0.5, 0.4, 0.1, 0.6], strict=True):
        asking.tell(trial, outcome(score))
    chosen = {(t.name, t.schedule, t.recipe["learning_rate"]) for t in asking.ask(100)}
    assert chosen == {("tuned", COSFACE, 0.1), ("plain", SOFTMAX, 0.4)}


def test_with_learning_rates_every_baseline_has_a_grid(finished_search: tuple[Path, Result]) -> None:
    given = {"grid": {"learning_rates": "0.1,0.3"}, "tune": False, "equal_compute": ["longer"]}
    plan = prepare(finished_search[0], given, again=True).plan
    baselines = [each for each in plan.entrants if each.kind == "baseline"]
    assert {each.name for each in baselines} >= {"adacos-dynamic", "softmax", "cosface"}
    assert all(each.grid == f"grid of {each.name}" and len(each.candidates) == 2 for each in baselines)
    assert "learning rate the best of 0.1, 0.3 on the choice half of validation" in baselines[0].how
    longer = next(each for each in plan.entrants if each.kind == "control")
    assert longer.recipe_of(1) == {**longer.recipe, "learning_rate": 0.3}
    assert not any(each.tuned for each in plan.entrants if each.kind in ("winner", "recommended"))


def test_what_a_search_found_before_its_budget_ended_it_is_trained_for_the_whole_horizon(
    shapes: Path, tmp_path: Path
) -> None:
    budget = ("--set", "budget.trials=3")
    run = lossearch("search", "--data", shapes, *TINY_SEARCH, "--run", tmp_path / "runs" / "short", *budget)
    assert run.code == 0, run.err
    plan = prepare(tmp_path / "runs" / "short", {}).plan
    found = next(each for each in plan.entrants if each.name == WINNER)
    assert found.how.endswith("of the search, its schedule, whose last loss goes on after epoch 2")
    assert {each.epochs for each in plan.entrants} == {3}


def test_searches_retrain_each_find_at_its_own_learning_rate() -> None:
    winners = [
        Trial(number=0, schedule=schedule, seed=1, epochs=2, recipe={"learning_rate": rate})
        for schedule, rate in ((SOFTMAX, 0.1), (COSFACE, 0.3))
    ]
    asking = controller(*own_entrants(winners, [None, None], searched_epochs=2))
    assert [(t.schedule, t.recipe["learning_rate"]) for t in asking.ask(100)] == [(SOFTMAX, 0.1), (COSFACE, 0.3)]


def test_the_best_of_a_pool_stands_for_a_control_and_alone_is_kept() -> None:
    base = entrant("plain", SOFTMAX)
    (best,) = controls([base], ["seeds"], 3)
    asking = controller(base, best, spare=2)
    trials = asking.ask(100)
    assert [(t.name, t.seed) for t in trials[:3]] == [("plain", 1), (best.name, 100), (best.name, 101)]
    for trial, choice in zip(trials, [0.3, 0.1, 0.2, 0.1, 0.2, 0.9], strict=True):
        asking.tell(trial, outcome(choice))
    assert [asking.champion(best, replicate) for replicate in (0, 1)] == [0, 5]
    assert [asking.champion(base, replicate) for replicate in (0, 1)] == [0, 3]
    assert asking.live() == {0, 3, 5}


def test_a_failed_training_is_the_last_of_its_pool() -> None:
    base = entrant("plain", SOFTMAX)
    (best,) = controls([base], ["seeds"], 2)
    asking = controller(base, best, spare=1)
    trials = asking.ask(4)
    failed = replace(outcome(0.9), reward=None, metrics={}, error="diverged: the loss is not finite in epoch 1")
    for trial, told in zip(trials, [failed, outcome(0.1), failed, failed], strict=True):
        asking.tell(trial, told)
    assert [asking.champion(best, replicate) for replicate in (0, 1)] == [1, 2]


def test_a_pool_of_which_the_machine_lost_one_has_no_best() -> None:
    base = entrant("plain", SOFTMAX)
    (best,) = controls([base], ["seeds"], 3)
    asking = controller(base, best, spare=2)
    lost = replace(outcome(0.9), reward=None, metrics={}, error="OSError: the disk is gone")
    for trial, told in zip(asking.ask(3), [outcome(0.3), lost, outcome(0.4)], strict=True):
        asking.tell(trial, told)
    assert asking.champion(best, 0) == 1
    assert asking.champion(base, 0) == 0


def test_chance_has_every_score_and_is_what_drawing_lots_gives() -> None:
    rng = np.random.default_rng(0)
    scores = verification(rng.standard_normal((1500, 64)).astype(np.float32), np.arange(1500) // 5, FARS)
    assert scores == pytest.approx(CHANCE, abs=0.05)
    assert scores["mean_tar"] == pytest.approx(CHANCE["mean_tar"], abs=0.005)


def test_longer_training_stretches_the_recipe_too() -> None:
    (longer,) = controls([entrant("plain", SOFTMAX)], ["longer"], 7)
    assert (longer.epochs, longer.recipe["horizon_epochs"], longer.best_of) == (14, 14, 1)


def test_the_controls_of_a_schedule_are_its_last_loss_and_its_losses_in_another_order() -> None:
    losses = [catalog.cosface(margin=margin, scale=16) for margin in (0.1, 0.2, 0.3, 0.4)]
    schedule = LossSchedule.constant(losses[0])
    for epoch, loss in enumerate(losses[1:], 2):
        schedule = schedule.then(epoch, loss)
    winner = Trial(number=3, schedule=schedule, seed=1, epochs=6)
    last, shuffled = schedule_controls(winner, 5)
    assert (last.kind, last.of, last.epochs) == ("control", WINNER, 6)
    assert last.candidates == (LossSchedule.constant(losses[3]),)
    (mixed,) = shuffled.candidates
    before, after = ([each.at(epoch) for epoch in range(6)] for each in (schedule, mixed))
    assert after[:2] == before[:2]
    assert after != before
    assert sorted(spec.digest() for spec in after) == sorted(spec.digest() for spec in before)
    assert schedule_controls(winner, 5) == (last, shuffled)


def test_a_constant_winner_has_no_controls_and_a_schedule_of_two_losses_no_other_order() -> None:
    winner = Trial(number=0, schedule=SOFTMAX, seed=1, epochs=3)
    assert schedule_controls(winner, 0) == ()
    twofold = SOFTMAX.then(1, catalog.get("cosface"))
    assert [each.name for each in schedule_controls(replace(winner, schedule=twofold), 0)] == ["winner's last loss"]


def test_controls_of_the_schedule_are_tested_like_baselines(finished_search: tuple[Path, Result]) -> None:
    given = {"schedule_controls": True, "baselines": ["softmax"], "equal_compute": ["longer"]}
    plan = prepare(finished_search[0], given, again=True).plan
    names = [entrant.name for entrant in plan.entrants]
    assert names[:5] == ["winner", "recommended", "winner's last loss", "winner's schedule shuffled", "softmax"]
    assert plan.contrasts == 4
    seen = 2 * 3 * 48  # two copies of three epochs
    assert plan.search_images == seen
    assert names[5] == f"softmax ({1 + seen // (3 * 48)}× as long)"


def test_the_grids_are_margins_times_scales() -> None:
    grid = Grid(scales=(8, 16), cosface_margins=(0.1,), arcface_margins_rad=(0.2, 0.3))
    assert [len(grid.losses(f"{name}-tuned")) for name in ("softmax", "cosface", "arcface")] == [2, 2, 4]


@pytest.mark.parametrize(
    ("names", "clusters"),
    [
        (["a__1", "a__2", "b__1", "c__1", "d__1", "e__1"], [0, 0, 1, 2, 3, 4]),
        (["a__1", "a__2", "b__1", "c__1", "d__1"], [0, 1, 2, 3, 4]),
        (["a__1", "a__2"], [0, 1]),
        (["a__1", "plain", "b__1"], [0, 1, 2]),
        (["Ann_Lee", "Bo_Ek"], [0, 1]),
    ],
)
def test_classes_of_one_group_are_one_cluster(names: list[str], clusters: list[int]) -> None:
    assert clusters_of(names).tolist() == clusters
