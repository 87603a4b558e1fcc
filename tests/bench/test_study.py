"""The study's bookkeeping and its verdicts, on rows whose truth is known."""

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lfs.budget import Clock
from lfs.config_file import load_config
from lfs.plan import whole_search
from search_space import LossSchedule, catalog
from tests.bench.fidelity import thinned
from tests.bench.rows import RESULTS
from tests.bench.study import Unit, chosen_rate, units
from tests.bench.study_arms import CONSTANT, OWN_NETWORK, DataSet, contrast, together
from tests.bench.study_pictures import margin
from tests.bench.study_plan import ADACOS, CONSTANT_GRID, FIRST, LAST, PLANS, SEARCH_SOFTMAX, SELECTION, SHUFFLED
from tests.bench.study_report import data_sets, default_table, page, primary
from trainers.recipe import Recipe
from trainers.task import LabelledImages, Task

METRIC = FIRST.setups["omniglot"].metric
STAMP = {"date": "2026-01-01", "commit": "abc", "machine": "a machine", "versions": {"torch": "2"}}
CONTENDERS = [name for name, search in FIRST.searches.items() if not search.control]


def plan_row(data: str) -> dict[str, object]:
    return {"data": data, "clusters": 10, "recipe": {"horizon_epochs": 6}, **STAMP, **FIRST.as_row(data)}


def scored_row(data: str, unit: Unit, test: float, choice: float, rng: np.random.Generator) -> dict[str, object]:
    metric, reward = FIRST.setups[data].metric, FIRST.setups[data].reward
    return {
        "data": data,
        "kind": unit.kind,
        "name": unit.name,
        "seed": unit.seed,
        "rate": unit.rate,
        "state": "trained",
        "choice": {
            metric: choice,
            reward: choice + 0.01 * rng.standard_normal(),
            "blend": choice + 0.001 * rng.standard_normal(),
        },
        "reward": {reward: choice},
        "test": {metric: test},
        "moves_1e5": (1e5 * 0.002 * rng.standard_normal(FIRST.resamples)).astype(int).tolist(),
        "images": 1000,
        "seconds": 10.0,
        "schedule": LossSchedule.constant(catalog.cosface(scale=16)).model_dump(mode="json"),
        **STAMP,
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
            for unit in units(FIRST)
        ),
    ]


def test_every_row_is_made_once_and_every_search_is_retrained_twice() -> None:
    made = Counter(unit.key for unit in units(FIRST))
    assert set(made.values()) == {1}
    for name in FIRST.searches:
        seeds = [unit.seed for unit in units(FIRST) if unit.kind == "retrain" and unit.name == name]
        assert sorted(seeds) == list(FIRST.seeds)
        assert Counter(map(FIRST.search_of, seeds)) == dict.fromkeys(FIRST.search_seeds, FIRST.retrains)
    assert all(sum(u.kind == "baseline" and u.name == name for u in units(FIRST)) == 10 for name in FIRST.baselines)


def test_a_learning_rate_is_chosen_by_validation_once_all_are_tried() -> None:
    rng = np.random.default_rng(0)
    rates = [unit for unit in units(FIRST) if unit.kind == "rate" and unit.name == ADACOS]
    rows = [scored_row("omniglot", u, test=1 - u.rate, choice=u.rate, rng=rng) for u in rates if u.rate is not None]
    assert chosen_rate(FIRST, rows, ADACOS, METRIC) == max(FIRST.rates)
    assert chosen_rate(FIRST, rows[:-1], ADACOS, METRIC) is None
    rows[-1]["choice"] = None  # it diverged
    assert chosen_rate(FIRST, rows, ADACOS, METRIC) == FIRST.rates[-2]


def test_a_clear_gain_is_found_and_an_equal_rival_is_not_beaten() -> None:
    sets = {
        data: DataSet(rows_of(data, {"am-lfs": 0.05, CONSTANT_GRID: 0.05}, {"am-lfs": 0.6})) for data in FIRST.primary
    }
    found = {(data, rival): said for data, rival, each, _, said in primary(FIRST, sets) if each}
    for data in FIRST.primary:
        assert found[data, ADACOS] == "better"
        assert found[data, CONSTANT_GRID] == "no significant difference"


def test_the_best_search_is_chosen_by_validation_not_by_the_test() -> None:
    data = DataSet(rows_of("omniglot", {"am-lfs": 0.05}, {"random-softmax": 0.6}))
    best = data.best_search()
    assert best is not None
    assert best.name == "random-softmax"


def test_nothing_is_decided_while_a_retrain_is_lacking() -> None:
    rows = rows_of("omniglot", {}, {})
    lacking = [row for row in rows if (row["kind"], row.get("name"), row.get("seed")) != ("retrain", "am-lfs", 1010)]
    found = primary(FIRST, {"omniglot": DataSet(lacking)})
    assert [said for *_, said in found] == ["not decided"] * 4
    assert "rows are lacking" in page({"omniglot": DataSet(lacking)})


@pytest.mark.parametrize("rival", [ADACOS, CONSTANT_GRID])
def test_a_contrast_is_not_looked_at_before_all_its_rows_are_there(rival: str) -> None:
    rows = rows_of("omniglot", {}, {})
    kind = "baseline" if rival == ADACOS else "retrain"
    lacking = [row for row in rows if (row["kind"], row.get("name"), row.get("seed")) != (kind, rival, 1010)]
    found = {(data, who): each for data, who, each, *_ in primary(FIRST, {"omniglot": DataSet(lacking)})}
    assert found["omniglot", rival] is None


def test_what_parts_of_a_schedule_and_selection_are_worth_is_judged_over_searches_too() -> None:
    arms = DataSet(rows_of("omniglot", {}, {})).by_name
    units = {name: len(arms[name].score_U) for name in (SHUFFLED, LAST, SELECTION + CONSTANT, SELECTION + OWN_NETWORK)}
    assert set(units.values()) == {len(FIRST.search_seeds)}
    assert SELECTION not in arms


def test_images_in_all_are_those_that_it_took_to_find_or_to_tune() -> None:
    """Every row has 1000."""
    arms = DataSet(rows_of("omniglot", {}, {})).by_name
    names = (SEARCH_SOFTMAX, SHUFFLED, SELECTION + CONSTANT, ADACOS, f"{ADACOS}, 8 times as long")
    rates = 1000 * len(FIRST.rates) * len(FIRST.rate_seeds)
    assert [arms[name].images for name in names] == [2000, 2000, 1000, rates + 1000, rates + 1000]


def test_methods_are_held_against_the_default_on_validation_search_by_search() -> None:
    table = default_table(DataSet(rows_of("omniglot", {"am-lfs": 0.9}, {"random-softmax": 0.6})))
    cells = {line[""]: {key: str(cell) for key, cell in line.items()} for line in table.to_dict("records")}
    assert FIRST.default not in cells
    gain, error = map(float, cells["random-softmax"][f"− {FIRST.default}"].split(" ± "))
    assert gain == pytest.approx(0.1, abs=5 * error)
    assert float(cells["random-softmax"]["Holm"]) < 0.001
    assert float(cells["am-lfs"]["Holm"]) > 0.05  # better on the test alone
    assert cells[SELECTION + CONSTANT]["Holm"] == "–"  # a control


def test_a_search_that_lacks_a_retrain_is_left_out_of_the_comparison_of_methods() -> None:
    rows = rows_of("omniglot", {}, {})
    lacking = [row for row in rows if (row["kind"], row.get("name"), row.get("seed")) != ("retrain", "am-lfs", 1010)]
    counts = default_table(DataSet(lacking)).set_index("")["searches"]
    assert counts["am-lfs"] == len(FIRST.search_seeds) - 1
    assert counts["random-softmax"] == len(FIRST.search_seeds)


def test_the_page_has_the_plan_the_pictures_and_what_the_reward_was_worth(tmp_path: Path) -> None:
    text = page({"omniglot": DataSet(rows_of("omniglot", {}, {}))}, tmp_path)
    assert "Written 2026-01-01, commit `abc`" in text
    pictures = re.findall(r"!\[[^]]+\]\((\S+)\)", text)
    assert len(pictures) == 3
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in pictures)
    (promise,) = re.findall(r"\| search-softmax \| ([\d. |+−-]+) \|\n", text.split("could the reward tell?")[1])
    assert promise.split(" | ")[:3] == ["0.5000", "0.5000", "+0.0000"]
    assert "| search-softmax, reward from the test |" not in text.split("could the reward tell?")[1]


@pytest.fixture(scope="module")
def committed() -> str:
    return (RESULTS / "STUDY.md").read_text(encoding="utf-8")


def test_the_committed_page_is_what_the_committed_rows_say(committed: str) -> None:
    assert page(data_sets()) == re.sub(r"!\[[^]]+\]\(\S+\)\n\n", "", committed)


def test_the_differences_that_the_readme_names_are_those_of_the_page(committed: str) -> None:
    readme = (RESULTS.parents[2] / "README.md").read_text(encoding="utf-8")
    told = readme.partition("## Does searching pay?")[2].partition("\n## ")[0]
    differences, known = set(estimates(told)), list(estimates(committed))
    assert len(differences) >= 5
    for each in differences:
        assert any(each == pytest.approx(other, abs=0.00051) for other in known), each


def estimates(text: str) -> Iterator[tuple[float, ...]]:
    """The means with their intervals: `+.004 [−.016, +.024]`."""
    number = r"([+−-]?0?\.\d+)"
    for found in re.finditer(rf"{number}\s\[{number},\s{number}\]", text):
        yield tuple(float(each.replace("−", "-")) for each in found.groups())


def test_a_data_set_of_which_nothing_but_the_plan_is_there_is_said_to_be_that() -> None:
    assert "Nothing is there but the plan." in page({"lfw112": DataSet([plan_row("lfw112")])})


def test_a_margin_is_what_a_loss_takes_off_the_cosine() -> None:
    taken = margin(catalog.cosface(margin=0.35, scale=20), [0.0, 60.0])
    assert taken is not None
    assert taken.tolist() == pytest.approx([0.35, 0.35])
    turned = margin(catalog.arcface(margin_rad=math.radians(30), scale=20), [60.0])
    assert turned is not None
    assert turned.tolist() == pytest.approx([0.5])
    assert margin(catalog.adacos_dynamic(), [0.0]) is None
    assert margin(catalog.p2sgrad(), [0.0]) is None


def test_a_contrast_is_over_searches_not_over_their_retrains() -> None:
    arms = DataSet(rows_of("omniglot", {}, {})).by_name
    assert len(arms["am-lfs"].score_U) == len(FIRST.search_seeds)
    assert len(arms[ADACOS].score_U) == len(FIRST.seeds)
    one, other = arms["am-lfs"], arms[ADACOS]
    difference = contrast(one, other, clusters=10).difference
    assert difference.mean == pytest.approx(one.score_U.mean() - other.score_U.mean())
    assert difference.low < difference.mean < difference.high


def test_a_contrast_over_one_set_is_the_contrast_and_over_more_it_is_narrower() -> None:
    sets = [DataSet(rows_of(data, {"am-lfs": 0.002}, {})).by_name for data in FIRST.setups]
    pairs = [(arms["am-lfs"], arms[ADACOS], 10) for arms in sets]
    alone = [contrast(*pair) for pair in pairs]
    assert together(pairs[:1]).p == pytest.approx(alone[0].p)
    assert together(pairs[:1]).difference == replace(alone[0].difference, n=1)
    found = together(pairs).difference
    assert found.mean == pytest.approx(np.mean([each.difference.mean for each in alone]))
    widths = [each.difference.high - each.difference.low for each in alone]
    assert found.high - found.low == pytest.approx(math.hypot(*widths) / 2, rel=0.15)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    covered = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        wanted = [u for u in units(FIRST) if u.name in ("am-lfs", ADACOS) and u.kind in ("retrain", "baseline")]
        scored = [scored_row("omniglot", u, 0.3 + 0.01 * rng.standard_normal(), 0.5, rng) for u in wanted]
        rows = [plan_row("omniglot"), *scored]
        arms = DataSet(rows).by_name
        found = contrast(arms["am-lfs"], arms[ADACOS], clusters=10).difference
        covered += found.low < 0 < found.high
    assert 53 <= covered <= 60


def test_classes_that_are_left_out_may_validate_and_are_no_others() -> None:
    def part(*labels: int) -> LabelledImages:
        label_N = np.array(labels, dtype=np.int64)
        return LabelledImages(images=label_N.astype(np.uint8)[:, None, None, None], labels=label_N)

    train = part(*(label for label in range(9) for _ in range(2)))
    task = Task(name="", kind="drawing", digest="", train=train, reward=part(0, 1), choice=part(0, 0, 1))
    few, more = thinned(task, 3), thinned(task, 3, spare_validate=6)
    assert sorted({*few.train.images.ravel()}) == [0, 4, 8]
    assert np.array_equal(few.train.images, more.train.images)
    assert few.reward is task.reward
    assert more.reward.labels.tolist() == [0, 1, 2, 2, 3, 3, 4, 4]
    assert more.reward.images.ravel().tolist() == [0, 1, 1, 1, 3, 3, 6, 6]
    assert more.choice.labels.tolist() == [0, 0, 1, 2, 2, 3, 3, 4, 4]
    assert more.choice.images.ravel().tolist() == [0, 0, 1, 2, 2, 5, 5, 7, 7]


def test_both_studies_name_searches_that_the_product_takes() -> None:
    for plan in PLANS:
        for search in plan.searches.values():
            config = load_config(None, [*search.settings, "budget.epochs=100"], method=search.method or None)
            assert whole_search(config, Recipe(horizon_epochs=6), Clock(), class_counts=[5] * 9).ask(1)
