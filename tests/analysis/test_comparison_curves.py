"""Error curves and cosines of a comparison: against its own scores, with trainings that diverged, and without any."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from analysis.comparison import SCORES, WINNER, Results
from analysis.comparison_curves import cosines_of, drawable, errors_of, thresholds_of
from analysis.comparison_page import comparison_html
from analysis.comparison_plots import forest_figure, seeds_figure, side_by_side
from analysis.tables import score_title
from tests.analysis.comparisons import ENTRANTS, write_compared
from trainers.recipe import RewardMetric


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return Results.read(write_compared(tmp_path_factory.mktemp("compared")))


@pytest.mark.parametrize("far", [1e-1, 1e-2, 1e-3])
def test_the_error_curve_holds_the_scores_and_their_intervals(compared: Results, far: float) -> None:
    table = errors_of(compared)
    for name in ENTRANTS:
        (row,) = table[(table["entrant"] == name) & np.isclose(table["far"], far)].to_dict("records")
        wanted = compared.estimate(name, f"tar_at_far_{far:.0e}".replace("e-0", "e-"))
        assert wanted is not None
        assert (row["frr"], row["low"], row["high"]) == pytest.approx(
            (1 - wanted.mean, 1 - wanted.high, 1 - wanted.low), abs=1e-6
        )
        assert row["n"] == 3


def test_rates_without_thirty_false_accepts_are_marked(compared: Results) -> None:
    table = errors_of(compared)
    impostors = 160 * 159 // 2 - 20 * 8 * 7 // 2
    assert table["far"].min() >= 1 / impostors
    assert (table["resolved"] == (np.floor(table["far"] * impostors) >= 30)).all()
    assert set(table["resolved"]) == {True, False}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, ""),
        ({"clusters": 19}, "The intervals resample 19 identities: over fewer than 20 they are rough"),
        ({"unused_images": 1000}, "Of the test split 160 of 1,160 images were scored, of whole classes: data.max_test"),
    ],
)
def test_weak_tests_are_remarked_upon(compared: Results, changed: dict[str, int], said: str) -> None:
    weaker = replace(compared, opened=compared.opened.model_copy(update=changed))
    plain = compared.remarks()
    assert [remark[: len(said)] for remark in weaker.remarks() if remark not in plain] == ([said] if said else [])


def test_a_tested_score_of_few_false_accepts_is_remarked_upon(tmp_path: Path) -> None:
    weak = Results.read(write_compared(tmp_path, metric="tar_at_far_1e-4"))
    assert any("rests on fewer than 30 false accepts" in remark for remark in weak.remarks())


def test_equal_costs_are_drawn_beside_one_another_and_near_their_own() -> None:
    places = np.array(side_by_side([12_000] * 28 + [400_000]))
    assert (np.diff(places[:28]) > 0).all()
    assert np.abs(np.log10(places / ([12_000] * 28 + [400_000]))).max() < 0.04 * np.log10(400 / 12) + 1e-9
    assert places[28] == pytest.approx(400_000)


def test_histograms_sum_to_one_and_thresholds_leave_their_share_of_impostors_above(compared: Results) -> None:
    cosines, thresholds = cosines_of(compared), thresholds_of(compared)
    sums = cosines.groupby("entrant")[["genuine", "impostor"]].sum()
    assert sums.to_numpy() == pytest.approx(np.ones((len(ENTRANTS), 2)))
    assert list(thresholds["far"].unique()) == [0.1, 0.01]
    for row in thresholds[thresholds["far"] == 0.1].to_dict("records"):
        shares = cosines[(cosines["entrant"] == row["entrant"]) & (cosines["cosine"] > row["threshold"])]
        assert shares["impostor"].sum() == pytest.approx(0.1, abs=0.03)
        assert row["lowest"] <= row["threshold"] <= row["highest"]


def test_a_diverged_training_counts_as_chance_in_the_curve_and_has_no_cosines(tmp_path: Path) -> None:
    results = Results.read(write_compared(tmp_path, diverged="softmax"))
    table = errors_of(results)
    rows = table[table["entrant"] == "softmax"]
    assert (rows["n"] == 3).all()
    assert (rows["frr"] >= (1 - rows["far"]) / 3).all()
    assert cosines_of(results).groupby("entrant")["n"].first().to_dict() == {
        name: 2 if name == "softmax" else 3 for name in ENTRANTS
    }


def test_a_comparison_from_before_curves_were_kept_is_still_shown(tmp_path: Path) -> None:
    folder = write_compared(tmp_path, curves=False)
    journal = folder / "journal.jsonl"
    journal.write_text(journal.read_text().replace(',"curves":""', ""))
    results = Results.read(folder)
    assert drawable(results) == []
    assert errors_of(results).empty
    assert cosines_of(results).empty
    page = comparison_html(results)
    assert "made before error curves were kept" in page
    assert 'id="forest-figure"' in page
    assert 'id="errors-figure"' not in page


@pytest.mark.parametrize("metric", ["rank1", "one_minus_eer", "tar_at_far_1e-3"])
def test_every_true_accept_rate_has_its_mark_beside_whatever_was_tested(
    metric: RewardMetric, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("analysis.comparison.FEWEST_FALSE_ACCEPTS", 0)  # as with a thousand test images
    figure = forest_figure(Results.read(write_compared(tmp_path, metric=metric)))
    symbols = [trace["marker"]["symbol"] for trace in json.loads(figure.plot)["data"]]
    assert len(symbols) == len(set(symbols)) == len({metric, *SCORES[:4]})


@pytest.mark.parametrize("metric", ["blend", "auc", "one_minus_eer"])
def test_the_tested_score_of_every_training_is_in_the_table(metric: RewardMetric, tmp_path: Path) -> None:
    results = Results.read(write_compared(tmp_path, curves=False, metric=metric))
    raw = results.raw()
    estimate = results.estimate(WINNER, metric)
    assert estimate is not None
    assert raw.loc[raw["entrant"] == WINNER, metric].mean() == pytest.approx(estimate.mean)
    head = comparison_html(results).partition("Every training</h2>")[2].partition("</thead>")[0]
    assert f">{score_title(metric)}</th>" in head
    assert seeds_figure(results).table.columns.to_list() == ["entrant", "seed", "state", metric]


def test_trainings_that_the_machine_lost_are_not_said_to_be_marked(tmp_path: Path) -> None:
    folder = write_compared(tmp_path, curves=False, diverged="softmax")
    assert "; 1 marked ✕." in seeds_figure(Results.read(folder)).label
    journal = folder / "journal.jsonl"
    journal.write_text(journal.read_text().replace('"state":"diverged"', '"state":"failed"'))
    assert "; 0 marked ✕, 1 lost by the machine and not drawn." in seeds_figure(Results.read(folder)).label
