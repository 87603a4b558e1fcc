"""Every method by name: its config is valid, its search ends with a winner, and a replay gives the same search."""

import random
from pathlib import Path

import pytest

from lfs.budget import Clock
from lfs.checkpoints import CheckpointStore
from lfs.config import RunConfig, SamplerConfig
from lfs.config_file import ConfigError, load_config
from lfs.controller import Controller
from lfs.executor import SerialExecutor
from lfs.journal import Finished, Journal
from lfs.methods import METHODS
from lfs.plan import lockstep_room, make_controller, make_search, most_at_once, planned_epochs
from lfs.preflight import Preflight
from lfs.search import replay, search
from lfs.winner import best_at_horizon
from tests.lfs.test_controllers import drive
from tests.lfs.toy import started, toy_runner
from trainers.recipe import Recipe

RECIPE = Recipe(horizon_epochs=9)
COUNTS = [5, 7, 9, 4]
every_method = pytest.mark.parametrize("method", METHODS)


def config_of(method: str) -> RunConfig:
    small = {"evolution": ["search.candidates=8", "search.population=4", "search.tournament=2"]}
    return load_config(None, small.get(method, []), method=method)


def controller_of(config: RunConfig) -> Controller:
    return make_controller(config, RECIPE, Clock(), class_counts=COUNTS)


def run(config: RunConfig, folder: Path) -> Finished:
    folder.mkdir()
    with Journal(folder) as journal:
        journal.append(started())
        return search(
            controller_of(config),
            SerialExecutor(toy_runner),
            journal,
            CheckpointStore(folder / "checkpoints"),
            choose=best_at_horizon(RECIPE),
            preflight=Preflight(COUNTS),
        )


@every_method
def test_a_search_ends_with_a_winner_and_replays(method: str, tmp_path: Path) -> None:
    config = config_of(method)
    finished = run(config, tmp_path / "run")
    assert finished.winner is not None
    with Journal(tmp_path / "run") as journal:
        past = replay(controller_of(config), list(journal))
    assert past.finished == finished
    assert past.asked[finished.winner].epochs == RECIPE.horizon_epochs
    assert {trial.role for trial in past.asked.values()} == {"search", "baseline"}


def trained_epochs(config: RunConfig, folder: Path) -> int:
    run(config, folder)
    with Journal(folder) as journal:
        asked = replay(controller_of(config), list(journal)).asked
    start = {number: 0 if t.parent is None else asked[t.parent].epochs for number, t in asked.items()}
    return sum(t.epochs - start[number] + t.cooldown_epochs for number, t in asked.items())


@every_method
def test_the_plan_counts_its_epochs(method: str, tmp_path: Path) -> None:
    """Exactly but for successive halving, which promotes some candidates before better ones come."""
    config = config_of(method)
    epochs, planned = trained_epochs(config, tmp_path / "run"), planned_epochs(config, RECIPE)
    assert epochs == planned or (method in ("asha", "hyperband", "bohb") and planned < epochs < 1.5 * planned)
    assert most_at_once(config) > len(config.all_baselines())


@pytest.mark.parametrize("warmup_epochs", [1, 3])
def test_the_plan_counts_the_epochs_of_cool_downs(warmup_epochs: int, tmp_path: Path) -> None:
    settings = [f"search.warmup_epochs={warmup_epochs}", "search.cooldown_epochs=2", "search.batch=2"]
    config = load_config(None, settings, method="random-softmax")
    plain = load_config(None, [settings[0], settings[2]], method="random-softmax")
    assert trained_epochs(config, tmp_path / "run") == planned_epochs(config, RECIPE) > planned_epochs(plain, RECIPE)


def test_a_config_goes_on_top_of_a_method(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text("[search]\nbatch = 4\n[space]\nscale = 16\n")
    config = load_config(tmp_path / "run.toml", ["search.sigma_end=0.1"], method="search-softmax")
    assert config.search.model_dump(include={"method", "batch", "sigma_end"}) == {
        "method": "reinforce",
        "batch": 4,
        "sigma_end": 0.1,
    }
    assert config.space.model_dump(include={"kind", "scale"}) == {"kind": "modulating_factor", "scale": 16.0}


@pytest.mark.parametrize(
    ("name", "hint"), [("search-softmx", "did you mean 'search-softmax'?"), ("annealing", "known are search-softmax,")]
)
def test_an_unknown_method_is_named_with_those_that_are_known(name: str, hint: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load_config(None, method=name)
    assert f"unknown method '{name}'; {hint}" in str(raised.value)


@pytest.mark.parametrize("method", ["tpe", "cmaes", "gp", "qmc", "nsga2", "bohb"])
def test_a_candidate_may_have_a_learning_rate_of_its_own(method: str) -> None:
    settings = ["search.learning_rate=[0.05, 0.8]", "search.candidates=9"]
    search = make_search(load_config(None, settings, method=method), Recipe(horizon_epochs=8), COUNTS)
    asked = drive(search, 2, random.Random(0))
    rates = [float(trial.recipe["learning_rate"]) for trial in asked]
    assert all(0.05 <= rate <= 0.8 for rate in rates)
    assert len(set(rates)) == sum(trial.parent is None for trial in asked) >= 9
    for trial in asked:
        if trial.parent is not None:
            assert trial.recipe == asked[trial.parent].recipe


def test_rates_that_make_no_interval_or_have_no_space_beside_them_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"^search.learning_rate: must be \[low, high\] with 0 < low < high <= 100"):
        load_config(None, ["search.learning_rate=[0.8, 0.1]"], method="tpe")
    with pytest.raises(ConfigError, match="sampler 'evolution' has none; leave it out"):
        load_config(None, ["search.learning_rate=[0.1, 0.8]"], method="evolution")


def test_a_wrong_value_is_named_though_a_method_and_a_key_have_the_same_name() -> None:
    with pytest.raises(ConfigError, match=r"^search.candidates: must be at least 1, but got 0$"):
        load_config(None, ["search.candidates=0"], method="tpe")


def test_candidates_with_rates_of_their_own_share_no_batches() -> None:
    assert lockstep_room(load_config(None, method="qmc"), workers=1) > 1
    assert lockstep_room(load_config(None, ["search.learning_rate=[0.1, 0.8]"], method="qmc"), workers=1) == 1


@pytest.mark.parametrize(
    ("method", "horizon", "rungs"),
    [
        ("asha", 3, {2, 3}),
        ("asha", 8, {2, 6, 8}),
        ("asha", 12, {3, 9, 12}),
        ("hyperband", 9, {3, 9}),
        ("bohb", 30, {8, 24, 30}),
    ],
)
def test_by_default_candidates_are_first_compared_after_a_quarter_of_the_horizon_and_not_after_one_epoch(
    method: str, horizon: int, rungs: set[int]
) -> None:
    config = config_of(method)
    assert isinstance(config.search, SamplerConfig)
    assert config.search.first_rung(horizon) == min(rungs)
    search = make_search(config, Recipe(horizon_epochs=horizon), COUNTS)
    asked = drive(search, 2, random.Random(0))
    assert {trial.epochs for trial in asked} == rungs
