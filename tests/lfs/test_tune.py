"""Searches inside Ray Tune: in real tuners on one Ray with two logical CPUs, where one driver is killed."""

import copy
import json
import logging
import math
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
from pydantic import TypeAdapter
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search import Searcher

from lfs.budget import Clock
from lfs.checkpoints import CheckpointStore
from lfs.config import RunConfig
from lfs.config_file import ConfigError
from lfs.executor import SerialExecutor
from lfs.journal import Asked, Journal, JournalError, Told
from lfs.launch import controller_of, resolved_recipe
from lfs.methods import METHODS
from lfs.runner import TrainingRunner
from lfs.search import search
from lfs.trial import Trial
from lfs.tune import LossTraining, TuneSearch, trainable
from search_space import LossSchedule, catalog
from tests.lfs.runners import PATIENCE_SECONDS, wait_until
from tests.lfs.test_controllers import drive
from tests.lfs.test_preflight import ARCFACE, COSFACE, INFINITE, MODULATING, SOFTMAX, Scripted, as_its_twins, two_rounds
from tests.lfs.test_preflight import trial as trial_under
from trainers.data import DataConfig, load_task
from trainers.outcome import Outcome
from trainers.recipe import Numerics
from trainers.task import Task

ROOT = Path(__file__).parents[2]
EPOCHS = 3
BASELINES = 4
"""So many are always there."""
UNIFORM = {"method": "sampler", "sampler": "random", "candidates": 4}
LONG_EPOCHS = 30
"""A trial takes a second or two: long enough to be killed in."""
STATE_EVERY_SECONDS = 1
ROUNDS = {"method": "random", "batch": 2, "warmup_epochs": 1, "cooldown_epochs": 1}

trial_of = TypeAdapter(Trial).validate_python
outcome_of = TypeAdapter(Outcome).validate_python


def configured(search: Mapping[str, Any], *, space: Mapping[str, Any] | None = None, epochs: int = EPOCHS) -> RunConfig:
    """A small search, beside the baselines that are always there."""
    recipe = {"width": 4, "embedding_dim": 8, "batch_size": 16, "horizon_epochs": epochs, "reward": "rank1"}
    config = {"search": search, "recipe": recipe, "baselines": ()}
    return RunConfig.model_validate(config if space is None else config | {"space": space})


def of_method(name: str, **settings: object) -> RunConfig:
    """A small search by a method that has a name."""
    return configured({**METHODS[name]["search"], **settings}, space=METHODS[name].get("space"))


@pytest.fixture(scope="module")
def task(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Task:
    return load_task(DataConfig(path=shapes, image_size=16), cache_dir=tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def local_ray() -> Iterator[str]:
    """Its address."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_USAGE_STATS_ENABLED", "0")
        environment.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        yield ray.get_runtime_context().gcs_address
        ray.shutdown()


def training_of(task: Task) -> Any:
    return tune.with_resources(trainable(task), {"cpu": 1})


def tuner(searcher: TuneSearch, task: Task, folder: Path, *, checkpoint_every: int = 0, **options: Any) -> tune.Tuner:
    """A tuner as a user makes it, with its files in `folder`."""
    return tune.Tuner(
        training_of(task),
        tune_config=tune.TuneConfig(search_alg=searcher, num_samples=-1, metric="reward", mode="max", **options),
        run_config=tune.RunConfig(
            name=folder.name,
            storage_path=str(folder.parent),
            verbose=0,
            checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=checkpoint_every),
        ),
    )


def state_in(folder: Path) -> dict[str, Any]:
    """What Tune keeps of a searcher."""
    state: dict[str, Any] = json.loads(max(folder.glob("searcher-state-*.json")).read_text(encoding="utf-8"))
    return state


def told_in(state: Mapping[str, Any]) -> dict[int, Outcome]:
    return {each["trial"]: outcome_of(each["outcome"]) for each in state["events"] if each["event"] == "told"}


def state_of(searcher: TuneSearch, folder: Path) -> dict[str, Any]:
    searcher.save(str(folder / "searcher-state-now.json"))
    return state_in(folder)


def trials_in(grid: tune.ResultGrid) -> dict[int, tuple[Trial, Mapping[str, Any]]]:
    """Each trial by its number, with its last result; there is no number twice."""
    assert not grid.errors
    trials: dict[int, tuple[Trial, Mapping[str, Any]]] = {}
    for index in range(len(grid)):
        result = grid[index]
        assert result.config is not None
        assert result.metrics is not None
        trial = trial_of(result.config["trial"])
        assert trial.number not in trials
        trials[trial.number] = trial, result.metrics
    return trials


def assert_trained_as_alone(trials: Iterable[tuple[Trial, Mapping[str, Any]]], config: RunConfig, task: Task) -> None:
    """Every result is what training that trial here in one go gives."""
    train = TrainingRunner(task, resolved_recipe(config, task), Numerics())
    for trial, result in trials:
        outcome, _ = train(trial, None)
        expected = {**outcome.metrics, "reward": outcome.reward, "images": outcome.images}
        assert {name: result[name] for name in expected} == expected
        assert result["collapse"] == (outcome.collapse or "")


@pytest.fixture(scope="module")
def finished(local_ray: str, task: Task, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tune.ResultGrid]:
    """The folder and the results of a search on reused actors; not to be changed."""
    folder = tmp_path_factory.mktemp("tune") / "run"
    return folder, tuner(TuneSearch(configured(UNIFORM), task), task, folder, reuse_actors=True).fit()


@pytest.mark.slow
def test_a_search_trains_all_it_asks_for_on_reused_actors(finished: tuple[Path, tune.ResultGrid], task: Task) -> None:
    folder, grid = finished
    trials = trials_in(grid)
    assert set(trials) == set(range(4 + BASELINES))
    assert [trials[number][0].role for number in sorted(trials)] == ["search"] * 4 + ["baseline"] * BASELINES
    assert len({result["pid"] for _, result in trials.values()}) < len(trials)
    assert_trained_as_alone(trials.values(), configured(UNIFORM), task)
    told = told_in(state_in(folder))
    assert {number: told[number].metrics["choice/rank1"] for number in trials} == {
        number: result["choice/rank1"] for number, (_, result) in trials.items()
    }
    best = grid.get_best_result("choice/rank1", "max")
    assert best.config is not None
    assert LossSchedule.model_validate(best.config["trial"]["schedule"]).entries


@pytest.mark.slow
def test_what_asha_stops_or_what_diverges_is_told(local_ray: str, task: Task, tmp_path: Path) -> None:
    wild = {"batch_size": 2, "learning_rate": 100.0, "weight_decay": 1.0}
    losses = [{"loss": "softmax"}, {"loss": "softmax", "recipe": wild}, {"loss": "arcface"}, {"loss": "cosface"}]
    config = configured({"method": "fixed_list", "losses": losses})
    asha = ASHAScheduler(time_attr="epoch", grace_period=1, reduction_factor=2, max_t=EPOCHS)
    searcher, folder = TuneSearch(config, task), tmp_path / "run"
    grid = tuner(searcher, task, folder, scheduler=asha, max_concurrent_trials=1, reuse_actors=True).fit()
    trials, told = trials_in(grid), told_in(state_in(folder))
    assert set(trials) == set(told) == set(range(4 + BASELINES))
    assert math.isnan(trials[1][1]["reward"])
    assert told[1].diverged
    assert told[1].error == trials[1][1]["error"]
    epochs = {number: outcome.metrics["epoch"] for number, outcome in told.items() if number != 1}
    assert set(epochs.values()) > {EPOCHS}
    rewards = {number: trials[number][1]["reward"] for number in epochs}
    assert {number: told[number].reward for number in epochs} == rewards
    best = grid.get_best_result().metrics
    assert best is not None
    assert best["reward"] == max(rewards.values())


@pytest.mark.slow
def test_a_search_that_continues_trials_is_what_it_is_without_tune(local_ray: str, task: Task, tmp_path: Path) -> None:
    config = configured(ROUNDS)
    searcher = TuneSearch(config, task, checkpoints=tmp_path / "shared")
    trials = trials_in(tuner(searcher, task, tmp_path / "run", max_concurrent_trials=1, reuse_actors=True).fit())
    recipe = resolved_recipe(config, task)
    (tmp_path / "alone").mkdir()
    with Journal(tmp_path / "alone") as journal:
        search(
            controller_of(config, task, recipe, Clock()),
            SerialExecutor(TrainingRunner(task, recipe, Numerics())),
            journal,
            CheckpointStore(tmp_path / "alone"),
            choose=lambda trials, _: max(trials),
        )
        asked = {trial.number: trial for event in journal if isinstance(event, Asked) for trial in event.trials}
        rewards = {event.trial: event.outcome.reward for event in journal if isinstance(event, Told)}
    assert {number: trial for number, (trial, _) in trials.items()} == asked
    assert {number: result["reward"] for number, (_, result) in trials.items()} == rewards
    continuing = [trial for trial in asked.values() if trial.parent is not None]
    assert len(continuing) == 4
    kept = {int(path.stem) for path in (tmp_path / "shared").glob("*/*.safetensors")}
    assert kept == {number for number, trial in asked.items() if trial.role == "search"}


def be_killed(address: str, shapes: str, folder: str) -> None:
    """What the driver does that is killed."""
    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    task = load_task(DataConfig(path=Path(shapes), image_size=16), cache_dir=Path(folder, "cache"))
    searcher = TuneSearch(configured(UNIFORM, epochs=LONG_EPOCHS), task)
    tuner(searcher, task, Path(folder, "run"), checkpoint_every=1, reuse_actors=True).fit()


@pytest.mark.slow
def test_a_tuner_restored_after_kill_9_trains_the_rest(
    local_ray: str, shapes: Path, task: Task, tmp_path: Path
) -> None:
    program = f"import sys; from {__name__} import be_killed; be_killed(*sys.argv[1:])"
    driver = subprocess.Popen(
        [sys.executable, "-c", program, local_ray, str(shapes), str(tmp_path)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "TUNE_GLOBAL_CHECKPOINT_S": str(STATE_EVERY_SECONDS)},
    )
    try:
        wait_until(lambda: driver.poll() is not None or is_under_way(tmp_path / "run"))
        time.sleep(STATE_EVERY_SECONDS / 4)  # Tune copies its files one by one
        assert driver.poll() is None
    finally:
        driver.kill()
        driver.wait(PATIENCE_SECONDS)
    before = state_in(tmp_path / "run")
    assert before["running"]
    trials = trials_in(tune.Tuner.restore(str(tmp_path / "run"), training_of(task)).fit())
    assert set(trials) == set(range(4 + BASELINES))
    after = state_in(tmp_path / "run")
    assert after["events"][: len(before["events"])] == before["events"]
    assert set(told_in(after)) == set(trials)
    resumed = [trials[number] for number in before["running"].values()]
    assert any(result["iterations_since_restore"] < LONG_EPOCHS for _, result in resumed)
    assert_trained_as_alone(resumed, configured(UNIFORM, epochs=LONG_EPOCHS), task)


def is_under_way(folder: Path) -> bool:
    """Whether Tune's state knows of an outcome and of a checkpoint of a trial that was not over."""
    try:
        state = state_in(folder)
    except ValueError:  # there is none yet, or it is being copied
        return False
    since = max(path.stat().st_mtime for path in folder.glob("experiment_state-*.json"))
    checkpoints = [path for name in state["running"] for path in folder.glob(f"*_{name}_*/checkpoint_*")]
    return bool(told_in(state)) and any(path.stat().st_mtime < since - 0.5 for path in checkpoints)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_searches_that_continue_trials_are_refused_without_a_folder(name: str, task: Task) -> None:
    config = of_method(name)
    trials_continue = {
        "search-softmax": "search.method = 'reinforce'",
        "search-softmax-released": "search.method = 'released'",
        "random-softmax": "search.method = 'random'",
        "am-lfs": "search.method = 'reinforce'",
        "asha": "search.fidelity = 'halving'",
        "hyperband": "search.fidelity = 'hyperband'",
        "bohb": "search.fidelity = 'hyperband'",
        "pbt": "search.method = 'population'",
    }
    if name not in trials_continue:
        assert TuneSearch(config, task).suggest("any") is not None
        return
    with pytest.raises(ConfigError) as refusal:
        TuneSearch(config, task)
    assert str(refusal.value) == (
        f"{trials_continue[name]} continues trials from the checkpoints of others, which Ray Tune does not hand on: "
        "give TuneSearch checkpoints=, a folder that every node sees, or use search.method = 'sampler' with "
        "search.fidelity = 'full'"
    )


class Adapted:
    """A searcher as the controller that is in it; `renewed` gives the one to go on with after each event."""

    def __init__(self, searcher: TuneSearch, renewed: Callable[[TuneSearch], TuneSearch]) -> None:
        self._searcher, self._renewed = searcher, renewed
        self._asked: list[Trial] = []
        self._out: set[int] = set()

    def ask(self, count: int) -> Sequence[Trial]:
        trials: list[Trial] = []
        while len(trials) < count:
            suggested: Any = self._searcher.suggest(f"tune-{len(self._asked)}")
            self._searcher = self._renewed(self._searcher)
            if not isinstance(suggested, dict):
                assert suggested == (None if self._out else Searcher.FINISHED)
                break
            trials.append(trial_of(suggested["trial"]))
            self._asked.append(trials[-1])
            self._out.add(trials[-1].number)
        return trials

    def tell(self, trial: Trial, outcome: Outcome) -> None:
        self._out.remove(trial.number)
        self._searcher.on_trial_complete(f"tune-{trial.number}", result_of(outcome, trial.epochs))
        self._searcher = self._renewed(self._searcher)

    def live(self) -> frozenset[int]:
        return frozenset(trial.number for trial in self._asked)

    def summary(self) -> Mapping[str, float]:
        return {}

    def constant(self) -> None:
        return None


def result_of(outcome: Outcome, epochs: int) -> dict[str, Any]:
    """A last result, with what Tune adds to it."""
    return {
        **outcome.metrics,
        "epoch": epochs,
        "reward": outcome.reward,
        "images": outcome.images,
        "seconds": outcome.seconds,
        "error": outcome.error or "",
        "collapse": outcome.collapse or "",
        "done": True,
        "config/trial/number": 0,
        "training_iteration": epochs,
    }


SMALL: Mapping[str, Mapping[str, object]] = {
    "tpe": {"candidates": 8, "startup": 2},
    "nsga2": {"candidates": 8, "population": 4},
    "evolution": {"candidates": 5, "population": 3, "tournament": 2},
    "hyperband": {"candidates": 9},
    "search-softmax": {"batch": 4},
    "pbt": {"members": 4},
}


@pytest.mark.parametrize("name", SMALL)
def test_saving_and_restoring_at_any_time_changes_nothing(name: str, task: Task, tmp_path: Path) -> None:
    config = of_method(name, **SMALL[name])
    controller = controller_of(config, task, resolved_recipe(config, task), Clock())
    expected = drive(controller, 3, random.Random(0))

    def restored(searcher: TuneSearch) -> TuneSearch:
        searcher.save(str(tmp_path / "state.json"))
        fresh = TuneSearch(config, task, checkpoints=tmp_path)
        fresh.restore(str(tmp_path / "state.json"))
        return fresh

    for renewed in (restored, copy.deepcopy):
        adapted = Adapted(TuneSearch(config, task, checkpoints=tmp_path), renewed)
        assert drive(adapted, 3, random.Random(0)) == expected


@pytest.fixture
def filtered(monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    """A search for five losses: 1 is not finite, 2 has the gradients of 0."""

    def controller(*_: object, **__: object) -> Scripted:
        losses = (COSFACE, INFINITE, MODULATING, ARCFACE, SOFTMAX)
        return Scripted([[trial_under(number, loss, epochs=EPOCHS) for number, loss in enumerate(losses)]])

    monkeypatch.setattr("lfs.tune.make_controller", controller)
    return configured(UNIFORM)


def number_in(suggested: Any) -> int:
    return trial_of(suggested["trial"]).number


def said_in(state: Mapping[str, Any]) -> list[tuple[int, str]]:
    return [(each["trial"], each["verdict"]) for each in state["events"] if each["event"] == "examined"]


@pytest.mark.parametrize("machine_fails", [False, True], ids=["scored", "lost"])
@pytest.mark.parametrize("restoring", [False, True], ids=["at once", "restored after each event"])
def test_what_is_rejected_or_equals_another_is_told_and_no_trial_of_tunes(
    machine_fails: bool, restoring: bool, filtered: RunConfig, task: Task, tmp_path: Path
) -> None:
    def renewed(searcher: TuneSearch) -> TuneSearch:
        if not restoring:
            return searcher
        searcher.save(str(tmp_path / "state.json"))
        fresh = TuneSearch(filtered, task)
        fresh.restore(str(tmp_path / "state.json"))
        return fresh

    searcher = TuneSearch(filtered, task)
    numbers = []
    for name in ("first", "second"):
        numbers.append(number_in(searcher.suggest(name)))
        searcher = renewed(searcher)
    assert numbers == [0, 3], "1 was rejected, and 2 waits for 0"
    told = told_in(state_of(searcher, tmp_path))
    assert set(told) == {1}
    assert told[1].error is not None
    assert told[1].error.startswith("rejected before training: ")
    done = Outcome(reward=0.25, metrics={"val/rank1": 0.5}, seconds=1.0, images=48)
    if machine_fails:
        searcher.on_trial_complete("first", error=True)
    else:
        searcher.on_trial_complete("first", result_of(done, EPOCHS))
    searcher = renewed(searcher)
    state = state_of(searcher, tmp_path)
    told = told_in(state)
    if machine_fails:
        assert set(told) == {0, 1}
        assert said_in(state) == [(1, "rejected"), (2, "reused"), (2, "noted")]
        assert number_in(searcher.suggest("third")) == 2, "it is trained after all, before anything new is asked for"
    else:
        assert set(told) == {0, 1, 2}
        assert said_in(state) == [(1, "rejected"), (2, "reused")]
        assert told[2] == as_its_twins(told[0])
        assert number_in(searcher.suggest("third")) == 4
    searcher = renewed(searcher)
    searcher.suggest("fourth")
    for name in ("second", "third", "fourth"):
        searcher.on_trial_complete(name, result_of(done, EPOCHS))
    assert set(told_in(state_of(searcher, tmp_path))) == set(range(5))
    over: Any = renewed(searcher).suggest("fifth")
    assert over == Searcher.FINISHED


def test_a_child_of_a_trial_that_was_not_trained_starts_from_its_originals_checkpoint(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lfs.tune.make_controller", lambda *_, **__: two_rounds())
    searcher = TuneSearch(configured(ROUNDS), task, checkpoints=tmp_path)
    first: Any = searcher.suggest("first")
    assert number_in(searcher.suggest("second")) == 3
    assert searcher.suggest("early") is None, "the round is not over"
    trained = training(first, task)
    result = trained.step()
    for name in ("first", "second"):
        searcher.on_trial_complete(name, result)
    child: Any = searcher.suggest("child")
    assert trial_of(child["trial"]).parent == 2
    assert child["using"]["holders"] == {"2": 0}
    assert training(child, task).step()["epoch"] == 2


@pytest.mark.slow
def test_a_tuner_trains_only_what_passes_the_filter(
    local_ray: str, filtered: RunConfig, task: Task, tmp_path: Path
) -> None:
    trials = trials_in(tuner(TuneSearch(filtered, task), task, tmp_path / "run", reuse_actors=True).fit())
    assert set(trials) == {0, 3, 4}
    state = state_in(tmp_path / "run")
    assert said_in(state) == [(1, "rejected"), (2, "reused")]
    told = told_in(state)
    assert set(told) == set(range(5))
    assert told[2] == as_its_twins(told[0])


def test_the_state_of_another_search_is_refused(task: Task, tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    TuneSearch(configured(UNIFORM), task).save(str(path))
    for other in (
        TuneSearch(configured(UNIFORM, epochs=4), task),
        TuneSearch(configured(UNIFORM), replace(task, digest="other")),
    ):
        with pytest.raises(JournalError, match=rf"^{re.escape(str(path))} holds the state of a search with another"):
            other.restore(str(path))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (lambda text: text.replace('"seed":0', '"seed":1'), "holds the state of a search with another configuration"),
        (lambda text: text[:1000], "is damaged: it is no state of a search"),
        (lambda text: text.replace('"m3":0.1', '"m3":0.2'), "the search cannot be resumed: it asked for trials"),
    ],
)
def test_what_cannot_be_restored_is_not_begun_anew(
    finished: tuple[Path, tune.ResultGrid], task: Task, tmp_path: Path, edit: Callable[[str], str], reason: str
) -> None:
    """Tune itself logs that the state cannot be restored, and begins anew in the same folder."""
    folder = shutil.copytree(finished[0], tmp_path / tmp_path.name)  # by name Ray finds its own copies
    (state,) = folder.glob("searcher-state-*.json")
    whole = state.read_text(encoding="utf-8")
    state.write_text(edit(whole), encoding="utf-8")
    with pytest.raises(JournalError, match=reason):
        tune.Tuner.restore(str(folder), training_of(task)).fit()
    state.write_text(whole, encoding="utf-8")
    again = tune.Tuner.restore(str(folder), training_of(task)).fit()
    assert set(trials_in(again)) == set(range(4 + BASELINES))


def test_what_is_stopped_early_counts_unless_trials_are_continued(task: Task, tmp_path: Path) -> None:
    stopped = Outcome(reward=0.25, metrics={"val/rank1": 0.5}, seconds=1.0, images=48)
    told: list[Outcome] = []
    for config in (configured(UNIFORM), of_method("asha", min_epochs=2)):
        searcher = TuneSearch(config, task, checkpoints=tmp_path)
        for name in ("stopped", "failed", "unseen", "running"):
            assert searcher.suggest(name) is not None
        searcher.on_trial_complete("stopped", result_of(stopped, 1))
        searcher.on_trial_complete("failed", error=True)
        searcher.on_trial_complete("unseen")
        searcher.on_trial_complete("stopped", result_of(stopped, 1))
        searcher.on_trial_complete("restarted under this name", result_of(stopped, 1))
        outcomes = told_in(state_of(searcher, tmp_path))
        assert [outcomes[number].error for number in (1, 2)] == [
            "Ray Tune gave the trial up",
            "Ray Tune stopped the trial unseen",
        ]
        assert set(outcomes) == {0, 1, 2}
        told.append(outcomes[0])
    counted = replace(stopped, metrics={"val/rank1": 0.5, "epoch": 1})
    assert told == [counted, replace(counted, reward=None, error="Ray Tune stopped the trial after epoch 1 of 2")]


def training(config: Mapping[str, Any], task: Task) -> LossTraining:
    """A trainable as it is in an actor, without one."""
    made = LossTraining.__new__(LossTraining)
    made.setup(dict(config), task)
    return made


def test_a_trial_resumed_at_its_end_is_over(task: Task, tmp_path: Path) -> None:
    config = TuneSearch(configured(UNIFORM), task).suggest("any")
    assert config is not None
    first = training(config, task)
    results = [first.step() for _ in range(EPOCHS)]
    assert [result["epoch"] for result in results] == [1, 2, 3]
    assert [result["done"] for result in results] == [False, False, True]
    first.save_checkpoint(str(tmp_path))
    second = training(config, task)
    second.load_checkpoint(str(tmp_path))
    assert second.step() == results[-1]


def test_a_trainable_with_other_data_or_without_the_folder_is_refused(task: Task, tmp_path: Path) -> None:
    searcher = TuneSearch(configured(ROUNDS), task, checkpoints=tmp_path)
    config = searcher.suggest("any")
    assert config is not None
    with pytest.raises(ValueError, match=rf"^the search began on data with the digest {task.digest}, but"):
        training(config, replace(task, digest="other"))
    schedule = LossSchedule.constant(catalog.softmax()).model_dump(mode="json")
    child = {"number": 7, "schedule": schedule, "seed": 0, "epochs": 3, "parent": 5}
    with pytest.raises(FileNotFoundError, match=r"^the checkpoint of trial 5, which trial 7 continues, is not in "):
        training({**config, "trial": child}, task).step()
