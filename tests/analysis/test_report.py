import json
import re
import tomllib
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis import finals_table, search_totals, write_report
from analysis.figures import MAX_MARKS, plotly_js
from analysis.ledger import Ledger
from analysis.page import text
from analysis.report import report_html
from analysis.reproduce import as_toml
from analysis.search_plots import compute_figure
from analysis.tables import trials_of
from analysis.verdict import headline_numbers
from lfs.journal import FILE_NAME, Asked, Event, Examined, Finished, JournalError, Told
from lfs.trial import Role, Trial
from search_space import LossSchedule, catalog
from tests.analysis.journals import BASELINES, failed, outcome, sampled_journal, search_journal, started, write_journal

SECTIONS = (
    *("verdict", "health", "history", "controller", "leaderboard"),
    *("curves", "loss", "compute", "trials", "reproduce"),
)
WHOLE = search_journal()


def page_of(events: list[Event]) -> str:
    """The report without plotly's own source."""
    return report_html(events, journal_digest="f" * 64).replace(plotly_js(), "")


def plot_of(page: str, key: str) -> dict[str, Any]:
    found = re.search(rf'<script type="application/json" id="{key}-data">(.*?)</script>', page, re.S)
    assert found, f"no figure {key}"
    plot: dict[str, Any] = json.loads(found[1])
    return plot


def words_of(page: str) -> str:
    visible = re.sub(r"<(script|style)\b.*?</\1>", "", page, flags=re.S)
    return unescape(re.sub(r"<[^>]+>", " ", visible))


@pytest.mark.parametrize("cut", [0, 1, 2, 3, 9, 10, 17, 31, len(WHOLE) - 1, len(WHOLE)])
def test_a_journal_cut_anywhere_has_every_section(cut: int) -> None:
    page = page_of(WHOLE[:cut])
    assert tuple(re.findall(r'<section id="(\w+)"', page)) == SECTIONS
    assert ("not finished" in page) == (0 < cut < len(WHOLE))


def test_a_search_in_which_every_trial_failed_says_so() -> None:
    words = words_of(page_of(search_journal(all_fail=True)))
    assert "so there is no winner" in words
    assert "the loss is not finite at batch #" in words


def test_the_verdict_states_what_it_does_not_show() -> None:
    words = words_of(page_of(WHOLE))
    assert "above the best baseline, arcface" in words
    assert "the test is sealed" in words
    assert "nothing here shows that one loss is significantly better than another" in words
    assert "Shrinkage: from the reward half to the choice half" in words
    assert "Compute is not equal: the search saw 424,000 training images" in words
    assert "Collapsed, so its scores say little: p2sgrad" in words
    assert "best of 35: optimistic" in words
    assert "its score there is optimistic. So is its reward, by which the search chose what goes on." in words


def test_only_a_search_that_goes_on_by_reward_has_an_optimistic_reward() -> None:
    candidates = [LossSchedule.constant(catalog.cosface(margin=0.1 * k)) for k in range(5)]
    words = words_of(page_of(sampled_journal(candidates)))
    assert "its score there is optimistic." in words
    assert "So is its reward" not in words


@pytest.mark.parametrize(("level", "said"), [(0.9, "as when a search fits its reward"), (0.2, "does not tell whether")])
def test_a_choice_score_that_keeps_up_is_no_sign_as_it_was_picked(level: float, said: str) -> None:
    """The winner's reward alone is raised or lowered."""
    winner = next(event.winner for event in WHOLE if isinstance(event, Finished))
    events: list[Event] = [
        event.model_copy(update={"outcome": replace(event.outcome, reward=level)})
        if isinstance(event, Told) and event.trial == winner
        else event
        for event in WHOLE
    ]
    assert said in words_of(page_of(events))


def test_a_search_that_goes_on_has_neither_ended_early_nor_without_a_winner() -> None:
    early = words_of(page_of(WHOLE[:20]))
    assert "The leader so far is trial" in early
    assert "ended before its horizon" not in early
    assert "No trial of the search has reached the horizon with a reward yet" in words_of(page_of(WHOLE[:10]))


@pytest.mark.parametrize(
    ("images", "written"),
    [(999, "999"), (1000, "1 k"), (999_499, "999 k"), (999_600, "1 M"), (999_700_000, "1 G"), (424_000, "424 k")],
)
def test_tiles_give_counts_three_digits_and_a_unit(images: int, written: str) -> None:
    totals = pd.DataFrame({"role": ["search", "baseline", "total"], "trials": 1, "failed": 0, "images": images})
    assert headline_numbers(totals, seconds=1.0)["images, search"] == written


def test_a_search_that_ended_before_its_horizon_says_that_baselines_were_trained_for_longer() -> None:
    said = "the winner was trained for 3 epochs, the baselines for 6"
    assert said not in words_of(page_of(WHOLE))
    early = next(trial for event in WHOLE if isinstance(event, Asked) for trial in event.trials if trial.epochs == 3)
    ended = [
        event.model_copy(update={"winner": early.number}) if isinstance(event, Finished) else event for event in WHOLE
    ]
    assert said in words_of(page_of(ended))


def test_compute_is_told_apart_by_what_became_of_it_and_none_went_into_the_rejected() -> None:
    schedule = LossSchedule.constant(catalog.softmax())
    roles: list[Role] = ["baseline", "search", "search", "search", "final"]
    trials = tuple(
        Trial(number=n, schedule=schedule, seed=0, epochs=1, role=role, name="softmax" if role == "baseline" else "")
        for n, role in enumerate(roles)
    )
    rng = np.random.default_rng(0)
    told = {
        0: outcome(0.3, 1, 1, rng),
        1: outcome(0.3, 1, 1, rng),
        2: failed("diverged: nan"),
        4: outcome(0.2, 1, 1, rng),
    }
    rejected = Examined(trial=3, verdict="rejected", reason="no slope")
    events: list[Event] = [started(), Asked(count=5, trials=trials), rejected]
    events += [Told(trial=n, outcome=each) for n, each in told.items()]
    events += [Told(trial=3, outcome=failed("rejected before training: no slope", images=0))]
    table = compute_figure(trials_of(Ledger.of(events))).table
    assert dict(zip(table["spender"], table["trials"], strict=True)) == {
        "search, scored": 1,
        "search, failed": 1,
        "finals, scored": 1,
        "softmax": 1,
    }


def test_numbers_too_small_for_four_decimals_are_not_shown_as_nothing() -> None:
    assert [text(value) for value in (0.0, 2.5e-7, -4.9e-5, 5e-5, 0.25)] == [
        "0.0000",
        "2.5e−07",
        "−4.9e−05",
        "0.0001",
        "0.2500",
    ]


def test_finals_are_shown_with_means_and_the_winners_own_rate_is_a_caveat() -> None:
    rng = np.random.default_rng(0)
    rate = {"learning_rate": 0.37088920596}
    losses = [LossSchedule.constant(catalog.cosface(margin=margin, scale=16)) for margin in (0.1, 0.2)]
    trials = [Trial(number=n, schedule=losses[n], seed=0, epochs=6, recipe=rate) for n in range(2)]
    trials += [
        Trial(number=n, schedule=losses[n % 2], seed=n // 2, epochs=6, recipe=rate, role="final", repeats=n % 2)
        for n in range(2, 6)
    ]
    levels = (0.6, 0.55, 0.4, 0.56, 0.41, 0.57)
    events: list[Event] = [started(), Asked(time=1_795_000_001.0, count=6, trials=tuple(trials))]
    outcomes = [outcome(level, 1, 6, rng) for level in levels]
    events += [Told(time=1_795_000_002.0 + n, trial=n, outcome=each) for n, each in enumerate(outcomes)]
    table = finals_table(events)
    assert table["finalist"].tolist() == [1, 0]
    assert table["trainings"].tolist() == [3, 3]
    assert table["failed"].tolist() == [0, 0]
    assert table["mean"].tolist() == pytest.approx([0.552, 0.462], abs=0.01)
    words = words_of(page_of([*events, Finished(time=1_795_000_010.0, winner=1, summary={}, constant=None)]))
    assert "The winner is trial 1: CosFace m=0.2 s=16, with learning_rate=0.3709" in words
    assert f"over 3 trainings its mean on the choice half is {table['mean'][0]:.4f}, that of the next" in words
    assert "The winner has a recipe of its own (learning_rate=0.3709)" in words
    assert "final of trial 0" in words
    tiles = headline_numbers(search_totals(events), seconds=1.0)
    assert tiles["images, search"] == f"{sum(each.images for each in outcomes) / 1e3:.3g} k"
    assert words_of(page_of(events)).count("The leader so far is trial 1") == 1


@pytest.mark.parametrize(
    ("recipe", "advice"),
    [
        ({"learning_rate": 0.4}, "'lossearch compare' with --learning-rates gives it to them"),
        ({"learning_rate": 0.4, "embedding_dim": 512}, "name a loss with it in [[baselines]]"),
    ],
)
def test_advice_on_a_winners_own_recipe_fits_its_fields(recipe: dict[str, float], advice: str) -> None:
    rng = np.random.default_rng(0)
    schedule = LossSchedule.constant(catalog.cosface(margin=0.1, scale=16))
    trial = Trial(number=0, schedule=schedule, seed=0, epochs=6, recipe=recipe)
    events: list[Event] = [started(), Asked(time=1_795_000_001.0, count=1, trials=(trial,))]
    words = words_of(page_of([*events, Told(time=1_795_000_002.0, trial=0, outcome=outcome(0.5, 1, 6, rng))]))
    assert advice in words


@pytest.mark.parametrize(("reward", "said"), [("blend", True), ("tar_at_far_1e-3", False)])
def test_a_score_whose_name_does_not_say_what_it_is_is_explained(reward: str, said: bool) -> None:
    _, *others = search_journal()
    words = words_of(page_of([started(recipe={"horizon_epochs": 6, "reward": reward}), *others]))
    assert ("The blend is the mean of rank-1, 1 − EER and the mean TAR over log FAR." in words) == said


def test_a_winner_below_a_baseline_is_said_to_be_below() -> None:
    words = words_of(page_of(search_journal(level=0.4)))
    assert "below the best baseline" in words
    assert "above the best baseline" not in words


def test_names_from_the_journal_stay_text() -> None:
    attack = '</script><script>alert("x")</script><img src=x onerror=alert(1)>'
    page = page_of(search_journal(error=attack))
    assert "alert" in page
    assert "<script>alert" not in page
    assert "<img" not in page
    assert "&lt;img" in json.dumps(plot_of(page, "history"))


def test_the_page_forbids_requests_and_uses_no_webgl() -> None:
    page = page_of(WHOLE)
    assert "default-src 'none'" in page
    assert "unsafe-eval" not in page
    assert "showSendToCloud: false" in page
    traces = [trace for key in re.findall(r'id="([\w-]+)-data"', page) for trace in plot_of(page, key)["data"]]
    assert {trace["type"] for trace in traces} == {"bar", "scatter"}


def test_every_figure_has_a_label_with_numbers_a_table_and_axis_titles() -> None:
    page = page_of(WHOLE)
    labels = re.findall(r'role="img" aria-label="([^"]*)"', page)
    keys = re.findall(r'id="([\w-]+)-data"', page)
    assert len(labels) == len(keys) == page.count("<summary>Data of this figure</summary>") == 8
    assert all(re.search(r"\d", label) for label in labels)
    for key in keys:
        layout = plot_of(page, key)["layout"]
        titles = [axis["title"]["text"] for name, axis in layout.items() if name.startswith("xaxis")]
        assert titles
        assert all(titles)


def test_thousands_of_trials_stay_light_and_the_counts_are_stated() -> None:
    events = search_journal(rounds=25, copies=100)
    page = page_of(events)
    history = plot_of(page, "history")["data"]
    drawn = sum(len(trace["x"]) for trace in history if trace["mode"] == "markers")
    assert drawn <= MAX_MARKS + 2
    assert "Drawn: 200 of 2,499 scored and 1 of 1 failed search trials" in words_of(page)
    assert "2,507 trials" in words_of(page)
    assert len(page) < 1_500_000
    names = " ".join(trace["name"] for trace in history)
    assert all(name in names for name in ("winner: trial", "best so far", "failed", *BASELINES.keys() - {"p2sgrad"}))


def test_the_controller_is_drawn_by_round() -> None:
    band, tried, mu = plot_of(page_of(WHOLE), "controller")["data"]
    assert mu["x"] == [0, 1, 2, 3, 4, 5, 6]
    assert mu["y"] == [4.0, 4.25, 4.5, 4.75, 5.0, 5.25, 5.5]
    assert band["y"][0] == 6.0
    assert len(tried["x"]) == 36


def test_the_loss_is_drawn_beside_the_recommended_constant_and_the_known_ones() -> None:
    names = [trace["name"] for trace in plot_of(page_of(WHOLE), "loss")["data"]]
    beginnings = (
        "winner: modulating",
        "Recommended constant: modulating u=5.5",
        "softmax",
        "CosFace",
        "ArcFace",
        "AdaCos",
    )
    for beginning in beginnings:
        assert sum(name.startswith(beginning) for name in names) == 3, f"{beginning}: logit, pull, effective margin"
    assert "Recommended constant" in words_of(page_of(WHOLE))


def test_the_page_repeats_config_digest_and_versions() -> None:
    page = page_of(WHOLE)
    assert "f" * 64 in page
    assert "horizon_epochs = 6" in page
    assert "2.13.0" in page


def test_the_config_survives_the_way_to_toml_and_back() -> None:
    config = {
        "seed": 3,
        "name": 'quo"te\n',
        "rate": 1e-5,
        "flags": [True, False],
        "bounds": {"m1": [1.0, 1.5], "inner": {"k e y": "ü"}},
        "nothing": {},
        "list": [{"a": 1, "deep": {"c": []}}, {"b": "x"}],
    }
    assert tomllib.loads(as_toml({**config, "absent": None})) == config


def test_the_report_lies_in_the_run_folder_and_replaces_the_last_one(tmp_path: Path) -> None:
    run_dir = write_journal(tmp_path / "run", WHOLE[:20])
    path = write_report(run_dir)
    assert path == run_dir / "report.html"
    unfinished = path.read_text(encoding="utf-8")
    for line in sorted(set(run_dir.iterdir())):
        if line.name != path.name:
            line.unlink()
    write_report(write_journal(run_dir, WHOLE))
    assert "not finished" in unfinished
    assert "not finished" not in path.read_text(encoding="utf-8")
    assert not list(run_dir.glob(".report*"))


def test_a_damaged_journal_leaves_the_last_report_alone(tmp_path: Path) -> None:
    run_dir = write_journal(tmp_path / "run", [started()])
    before = write_report(run_dir).read_bytes()
    (run_dir / FILE_NAME).write_text("{}\n")
    with pytest.raises(JournalError, match="line 1 is damaged"):
        write_report(run_dir)
    assert (run_dir / "report.html").read_bytes() == before


def test_a_folder_without_a_journal_is_refused_with_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match="give the folder of a run"):
        write_report(tmp_path)
