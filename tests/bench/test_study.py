"""The study's bookkeeping and its verdicts, on rows whose truth is known."""

from collections import Counter
from collections.abc import Mapping

import numpy as np
import pytest

from tests.bench import study_plan as plan
from tests.bench.study import Unit, chosen_rate, search_of, units
from tests.bench.study_report import DataSet, contrast, page, primary

METRIC = plan.SETUPS["omniglot"].metric
CONTENDERS = [name for name, search in plan.SEARCHES.items() if not search.control]


def plan_row(data: str) -> dict[str, object]:
    return {"data": data, "clusters": 10, **plan.as_row(plan.SETUPS[data])}


def scored_row(data: str, unit: Unit, test: float, choice: float, rng: np.random.Generator) -> dict[str, object]:
    metric = plan.SETUPS[data].metric
    return {
        "data": data,
        "kind": unit.kind,
        "name": unit.name,
        "seed": unit.seed,
        "rate": unit.rate,
        "state": "trained",
        "choice": {metric: choice},
        "test": {metric: test},
        "moves_1e5": (1e5 * 0.002 * rng.standard_normal(plan.RESAMPLES)).astype(int).tolist(),
        "images": 1000,
    }


def rows_of(data: str, gains: Mapping[str, float], choices: Mapping[str, float]) -> list[dict[str, object]]:
    """All rows of a data set; the entrants' test scores lie around .3 plus their gain."""
    rng = np.random.default_rng(len(data))
    return [
        plan_row(data),
        *(
            scored_row(
                data,
                unit,
                0.3 + gains.get(unit.name, 0.0) + 0.005 * rng.standard_normal(),
                choices.get(unit.name, 0.5),
                rng,
            )
            for unit in units()
        ),
    ]


def test_every_row_is_made_once_and_every_search_is_retrained_twice() -> None:
    made = Counter(unit.key for unit in units())
    assert set(made.values()) == {1}
    for name in plan.SEARCHES:
        seeds = [unit.seed for unit in units() if unit.kind == "retrain" and unit.name == name]
        assert sorted(seeds) == list(plan.SEEDS)
        assert Counter(map(search_of, seeds)) == dict.fromkeys(plan.SEARCH_SEEDS, plan.RETRAINS)
    assert all(sum(u.kind == "baseline" and u.name == name for u in units()) == 10 for name in plan.BASELINES)


def test_a_learning_rate_is_chosen_by_validation_once_all_are_tried() -> None:
    rng = np.random.default_rng(0)
    rates = [unit for unit in units() if unit.kind == "rate" and unit.name == plan.ADACOS]
    rows = [scored_row("omniglot", u, test=1 - u.rate, choice=u.rate, rng=rng) for u in rates if u.rate is not None]
    assert chosen_rate(rows, plan.ADACOS, METRIC) == max(plan.RATES)
    assert chosen_rate(rows[:-1], plan.ADACOS, METRIC) is None
    rows[-1]["choice"] = None  # it diverged
    assert chosen_rate(rows, plan.ADACOS, METRIC) == plan.RATES[-2]


def test_a_clear_gain_is_found_and_an_equal_rival_is_not_beaten() -> None:
    sets = {
        data: DataSet(rows_of(data, {"am-lfs": 0.05, plan.CONSTANT_GRID: 0.05}, {"am-lfs": 0.6}))
        for data in plan.PRIMARY_DATA
    }
    found = {(data, each.rival): said for data, each, _, said in primary(sets) if each}
    for data in plan.PRIMARY_DATA:
        assert found[data, plan.ADACOS] == "better"
        assert found[data, plan.CONSTANT_GRID] == "no significant difference"


def test_the_best_search_is_chosen_by_validation_not_by_the_test() -> None:
    data = DataSet(rows_of("omniglot", {"am-lfs": 0.05}, {"random-softmax": 0.6}))
    best = data.best_search(data.arms())
    assert best is not None
    assert best.name == "random-softmax"


def test_nothing_is_decided_while_a_retrain_is_lacking() -> None:
    rows = rows_of("omniglot", {}, {})
    lacking = [row for row in rows if (row["kind"], row.get("name"), row.get("seed")) != ("retrain", "am-lfs", 1010)]
    found = primary({"omniglot": DataSet(lacking)})
    assert [said for *_, said in found] == ["not decided"] * 4
    assert "rows are lacking" in page({"omniglot": DataSet(lacking)})


def test_a_contrast_is_over_searches_not_over_their_retrains() -> None:
    arms = {arm.name: arm for arm in DataSet(rows_of("omniglot", {}, {})).arms()}
    assert len(arms["am-lfs"].score_U) == len(plan.SEARCH_SEEDS)
    assert len(arms[plan.ADACOS].score_U) == len(plan.SEEDS)
    one, other = arms["am-lfs"], arms[plan.ADACOS]
    difference = contrast(one, other, clusters=10).difference
    assert difference.mean == pytest.approx(one.score_U.mean() - other.score_U.mean())
    assert difference.low < difference.mean < difference.high


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    covered = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        wanted = [u for u in units() if u.name in ("am-lfs", plan.ADACOS) and u.kind in ("retrain", "baseline")]
        scored = [scored_row("omniglot", u, 0.3 + 0.01 * rng.standard_normal(), 0.5, rng) for u in wanted]
        rows = [plan_row("omniglot"), *scored]
        arms = {arm.name: arm for arm in DataSet(rows).arms()}
        found = contrast(arms["am-lfs"], arms[plan.ADACOS], clusters=10).difference
        covered += found.low < 0 < found.high
    assert 53 <= covered <= 60
