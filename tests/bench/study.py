"""Does searching pay? Searches, what they found retrained, and losses that need no search, on sealed test identities.

    LOSSEARCH_DATA=../shared/data python -m tests.bench.study              # goes on where the rows end
    ... tests.bench.study omniglot lfw112                                   # these data sets alone
    python -m tests.bench.study_report                                      # tables, pictures and page from the rows

What it does, in which order, and how it is judged is decided in `tests/bench/study_plan.py` and written as the first
row of a data set; another plan in the file is refused. A row is one training, one search, or one pool of trainings.
Started several times at once it uses as many cores. What is chosen (learning rates, a search's winner, the best of a
pool) is chosen by the choice half of validation; test scores are written and never read here.

Searches run through the product's own loop, controllers, pre-flight filter and serial executor, without the baselines
that a search has beside it, as the study trains those under more seeds. Half-done ones are resumed from their journals
in `--workspace`.
"""

import argparse
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from filelock import FileLock, Timeout

from lfs.budget import Clock
from lfs.checkpoints import Checkpoint, CheckpointStore
from lfs.compare import CHANCE
from lfs.comparison import clusters_of
from lfs.config import RunConfig
from lfs.config_file import load_config
from lfs.entrants import LAST as WINNERS_LAST
from lfs.entrants import SHUFFLED as WINNERS_SHUFFLED
from lfs.entrants import schedule_controls
from lfs.executor import SerialExecutor
from lfs.journal import Journal
from lfs.launch import resolved_recipe, started
from lfs.plan import whole_search
from lfs.preflight import Preflight
from lfs.runner import TrainingRunner
from lfs.search import search
from lfs.trial import Trial
from lfs.winner import best_at_horizon
from search_space import LossSchedule
from tests.bench.fidelity import thinned
from tests.bench.rows import append_row, read_rows
from tests.bench.runs import FinishedSearch
from tests.bench.study_plan import CONSTANT_GRID, LAST, PLANS, SEARCH_SOFTMAX, SHUFFLED, SOFTMAX, Plan, plan_of
from trainers.data import load_sealed_test, load_task
from trainers.evaluation import embeddings, reward_of
from trainers.outcome import Outcome
from trainers.pair_scores import PairScores
from trainers.recipe import FARS, Numerics, Recipe, RewardMetric
from trainers.resampling import draw_clusters, resampled
from trainers.task import Task
from trainers.training import train
from trainers.verification import verification

NAME = "study"
NUMERICS = Numerics(dtype="float32", channels_last=True, threads=1)
METRICS: tuple[RewardMetric, ...] = get_args(RewardMetric)
PARTS = {SHUFFLED: WINNERS_SHUFFLED, LAST: WINNERS_LAST}
Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """One row to make: `seed` of the search or of the training."""

    kind: str
    """`rate`, `search`, `retrain`, `part`, `pool` or `baseline`."""
    name: str
    seed: int
    rate: float | None = None

    @property
    def key(self) -> tuple[object, ...]:
        """What tells it from the others of its data set."""
        return self.kind, self.name, self.seed, self.rate


def units(plan: Plan) -> Iterator[Unit]:
    """All rows of a data set, the most important first: what the primary contrasts need, search seed by search seed."""
    own = [name for name, each in plan.baselines.items() if each.times == 1]
    first = [name for name in (*plan.rivals, SOFTMAX) if name in own]
    rest = [name for name in own if name not in first]
    contenders = [name for name, each in plan.searches.items() if not each.control]
    controls = [name for name, each in plan.searches.items() if each.control]
    yield from _rates(plan, first)
    for number in plan.search_seeds:
        yield from (Unit(kind="search", name=name, seed=number) for name in contenders)
        yield from _over(plan.seeds_of(number), "retrain", contenders)
        yield from _over(plan.seeds_of(number), "baseline", first)
    yield from _rates(plan, rest)
    yield from _over(plan.seeds, "baseline", rest)
    for number in plan.search_seeds:
        yield from (Unit(kind="search", name=name, seed=number) for name in controls)
        yield from _over(plan.seeds_of(number), "retrain", controls)
        if SEARCH_SOFTMAX in plan.searches:
            yield from _over(plan.seeds_of(number), "part", [SHUFFLED, LAST])
    if plan.pool:
        yield from (Unit(kind="pool", name=plan.pooled, seed=seed) for seed in plan.seeds[:: plan.retrains])
    yield from _over(plan.seeds, "baseline", [name for name in plan.baselines if name not in own])


def _rates(plan: Plan, names: Iterable[str]) -> Iterator[Unit]:
    for name in names:
        for rate in plan.rates:
            yield from (Unit(kind="rate", name=name, seed=seed, rate=rate) for seed in plan.rate_seeds)


def _over(seeds: Sequence[int], kind: str, names: Iterable[str]) -> Iterator[Unit]:
    yield from (Unit(kind=kind, name=name, seed=seed) for seed in seeds for name in names)


def chosen_rate(plan: Plan, rows: Iterable[Row], name: str, reward: str) -> float | None:
    """The best learning rate of a baseline on the choice half, None while rows are lacking."""
    scores: dict[float, list[float]] = {}
    for row in rows:
        if row["kind"] == "rate" and row["name"] == name:
            scores.setdefault(row["rate"], []).append(row["choice"][reward] if row["choice"] else 0.0)
    if any(len(scores.get(rate, [])) < len(plan.rate_seeds) for rate in plan.rates):
        return None
    return max(sorted(scores), key=lambda rate: float(np.mean(scores[rate])))


class _KeepAll(CheckpointStore):
    def keep_only(self, numbers: Iterable[int]) -> None:
        """The winner is not known yet, and its own network is to be scored."""


class Study:
    """Makes the rows of a data set that are lacking."""

    def __init__(self, data: str, workspace: Path) -> None:
        plan = plan_of(data)
        self._data, self._plan, self._workspace = data, plan, workspace / data
        setup = self._setup = plan.setups[data]
        (self._workspace / "locks").mkdir(parents=True, exist_ok=True)
        root = Path(os.environ.get("LOSSEARCH_DATA", Path(__file__).parents[2] / "../shared/data"))
        self._settings = [
            "executor.kind=serial",
            f"data.image_size={setup.image_size}",
            f"recipe.width={setup.width}",
            f"recipe.learning_rate={setup.learning_rate}",
            f"recipe.reward={setup.reward}",
        ]
        self._path = None if setup.data == "glyphs" else root / setup.data
        self._config = load_config(None, self._settings, data_path=self._path)
        cache_dir = workspace / "cache"
        task = load_task(self._config.data, cache_dir=cache_dir)
        if setup.classes is not None:
            task = thinned(task, setup.classes, spare_validate=setup.spare_validate)
        self._task = task
        self._recipe = resolved_recipe(self._config, task)
        test = load_sealed_test(self._config.data, cache_dir=cache_dir)
        self._sealed = test.part
        self._cluster_N = clusters_of(test.names)[self._sealed.labels]
        rng = np.random.default_rng(0)
        self._weight_GB = draw_clusters(self._sealed.labels, self._cluster_N, plan.resamples, rng)
        self._digest = task.digest

    @property
    def horizon_epochs(self) -> int:
        """How long a training is."""
        return self._recipe.horizon_epochs

    def run(self) -> None:
        """Make every row that no other process makes, until nothing is left that could be made."""
        self._register()
        while self._make_next():
            pass

    def _make_next(self) -> bool:
        done = {_key(row) for row in self._rows() if row["kind"] != "plan"}
        return any(self._make(unit) for unit in units(self._plan) if unit.key not in done)

    def _register(self) -> None:
        """Write the plan, or hold it against the one in the file."""
        with FileLock(self._workspace / "locks" / "plan"):
            wanted = json.loads(json.dumps(self._plan.as_row(self._data)))
            known = next((row for row in self._rows() if row["kind"] == "plan"), None)
            if known is None:
                facts = {"clusters": int(self._cluster_N.max()) + 1, "data_digest": self._digest}
                recipe = self._recipe.model_dump(mode="json")
                append_row(NAME, {"data": self._data, **wanted, **facts, "recipe": recipe})
            elif {key: known[key] for key in wanted} != wanted:
                raise ValueError(f"the rows of {self._data} were begun under another plan")

    def _rows(self) -> list[Row]:
        return [row for row in read_rows(NAME) if row["data"] == self._data]

    def _make(self, unit: Unit) -> bool:
        """Whether the row was made here and now."""
        name = "-".join(str(part) for part in unit.key).replace(" ", "_").replace("'", "")
        try:
            with FileLock(self._workspace / "locks" / name, timeout=0):
                rows = self._rows()
                if any(_key(row) == unit.key for row in rows if row["kind"] != "plan"):
                    return False
                content = getattr(self, f"_{unit.kind}")(unit, rows)
                if content is None:
                    return False
                about = {"data": self._data, "kind": unit.kind, "name": unit.name, "seed": unit.seed}
                row = append_row(NAME, {**about, "rate": unit.rate, **content})
        except Timeout:
            return False
        shown = {key: row[key] for key in ("kind", "name", "seed", "rate", "state", "images", "seconds")}
        print(json.dumps(shown), flush=True)
        return True

    def _rate(self, unit: Unit, rows: Sequence[Row]) -> Mapping[str, object]:
        baseline = self._plan.baselines[unit.name]
        changes = {**baseline.recipe, "learning_rate": unit.rate}
        return self.training(LossSchedule.constant(baseline.spec), unit.seed, changes, test=False)

    def _baseline(self, unit: Unit, rows: Sequence[Row]) -> Mapping[str, object] | None:
        baseline = self._plan.baselines[unit.name]
        rate = chosen_rate(self._plan, rows, baseline.rates_of or unit.name, self._setup.reward)
        if rate is None:
            return None
        changes = {
            **baseline.recipe,
            "learning_rate": rate,
            "horizon_epochs": baseline.times * self._recipe.horizon_epochs,
        }
        return self.training(LossSchedule.constant(baseline.spec), unit.seed, changes)

    def _retrain(self, unit: Unit, rows: Sequence[Row]) -> Mapping[str, object] | None:
        found = self._found(unit.name, unit.seed, rows)
        return None if found is None else self.training(found[0], unit.seed, found[1])

    def _part(self, unit: Unit, rows: Sequence[Row]) -> Mapping[str, object] | None:
        """A part of what Search-Softmax found, as `lossearch compare --schedule-controls` takes it."""
        found = self._found(SEARCH_SOFTMAX, unit.seed, rows)
        if found is None:
            return None
        winner = Trial(number=0, schedule=found[0], seed=unit.seed, epochs=self._recipe.horizon_epochs)
        parts = {each.name: each.candidates[0] for each in schedule_controls(winner, unit.seed)}
        part = parts.get(PARTS[unit.name], winner.schedule)
        return self.training(part, unit.seed, {})

    def _found(self, name: str, seed: int, rows: Sequence[Row]) -> tuple[LossSchedule, Mapping[str, Any]] | None:
        """Its schedule, and in what its recipe differs."""
        key = ("search", name, self._plan.search_of(seed), None)
        row = next((row for row in rows if row["kind"] != "plan" and _key(row) == key), None)
        return None if row is None else (LossSchedule.model_validate(row["schedule"]), row["changes"])

    def _pool(self, unit: Unit, rows: Sequence[Row]) -> Mapping[str, object] | None:
        """The grid's find under many seeds, the best by the choice half."""
        found = self._found(CONSTANT_GRID, unit.seed, rows)
        if found is None:
            return None
        seeds = (unit.seed, *range(unit.seed + 100, unit.seed + 99 + self._plan.pool))
        contents = [self.training(found[0], seed, found[1]) for seed in seeds]
        best = max(contents, key=lambda each: each["choice"][self._setup.reward] if each["choice"] else -1.0)
        return {**best, **{key: sum(each[key] for each in contents) for key in ("images", "seconds")}}

    def training(
        self, schedule: LossSchedule, seed: int, changes: Mapping[str, object], *, test: bool = True
    ) -> dict[str, Any]:
        """What a row says of a training that differs in these fields of the recipe; `test` also opens the test."""
        recipe = Recipe.model_validate({**self._recipe.model_dump(), **changes})
        outcome, checkpoint = train(
            schedule, self._task, recipe=recipe, numerics=NUMERICS, seed=seed, epochs=recipe.horizon_epochs
        )
        content = {
            **_scored(outcome),
            "changes": dict(changes),
            "schedule": _written(schedule),
            "images": outcome.images,
            "seconds": round(outcome.seconds, 1),
        }
        return {**content, **self._test(checkpoint, recipe)} if test else content

    def _test(self, checkpoint: Checkpoint | None, recipe: Recipe) -> Mapping[str, object]:
        """Scores of a network on the sealed identities; how the tested one moves when these are resampled, in 1e-5."""
        if checkpoint is None:
            return {"test": CHANCE, "moves_1e5": [0] * self._plan.resamples}
        embedded_ND = embeddings(checkpoint, self._sealed.images, recipe=recipe, numerics=NUMERICS)
        scores = verification(embedded_ND, self._sealed.labels, FARS)
        pairs = PairScores.of(embedded_ND, self._sealed.labels, self._cluster_N)
        moves = resampled(pairs, self._weight_GB, FARS).scores[self._setup.metric]
        rounded = {name: round(score, 6) for name, score in scores.items()}
        return {"test": rounded, "moves_1e5": np.round(1e5 * moves).astype(int).tolist()}

    def _search(self, unit: Unit, rows: Sequence[Row]) -> Mapping[str, object]:
        kind, folder = self._plan.searches[unit.name], self._workspace / "searches" / f"{unit.name}-{unit.seed}"
        epochs = self._plan.budget_horizons * self._recipe.horizon_epochs
        config = load_config(
            None,
            [*self._settings, f"seed={unit.seed}", f"budget.epochs={epochs}", *kind.settings],
            data_path=self._path,
            method=kind.method or None,
        )
        recipe = resolved_recipe(config, self._task)
        task = replace(self._task, reward=self._sealed) if kind.test_reward else self._task
        store = self._run_search(config, task, recipe, folder)
        done = FinishedSearch.read(folder)
        if done.finished.winner is None:
            raise RuntimeError(f"the search in {folder} has no winner")
        outcome, trial = done.outcomes[done.finished.winner], done.trials[done.finished.winner]
        content = {
            **_scored(outcome),
            "changes": {**self._own_rate(recipe), **trial.recipe},
            "schedule": _written(trial.schedule),
            "images": sum(each.images for each in done.outcomes.values()),
            "seconds": round(sum(each.seconds for each in done.outcomes.values()), 1),
            "trials": len(done.trials),
            "failed": sum(each.error is not None for each in done.outcomes.values()),
            **self._test(store.load(done.finished.winner), recipe),
        }
        shutil.rmtree(folder / "checkpoints")
        return content

    def _own_rate(self, recipe: Recipe) -> Mapping[str, float]:
        """The learning rate of a kind of search that has another one than the study: its retrains have it too."""
        rate = recipe.learning_rate
        return {} if rate == self._recipe.learning_rate else {"learning_rate": rate}

    def _run_search(self, config: RunConfig, task: Task, recipe: Recipe, folder: Path) -> CheckpointStore:
        folder.mkdir(parents=True, exist_ok=True)
        store, clock = _KeepAll(folder / "checkpoints"), Clock()
        controller = whole_search(config, recipe, clock, class_counts=task.train.class_counts())
        with Journal(folder) as journal:
            if not len(journal):
                journal.append(started(config, task, recipe, NUMERICS))
            search(
                controller,
                SerialExecutor(TrainingRunner(task, recipe, NUMERICS)),
                journal,
                store,
                choose=best_at_horizon(recipe, or_deepest=True),
                preflight=Preflight.of(task),
                clock=clock,
            )
        return store


def _key(row: Row) -> tuple[object, ...]:
    return row["kind"], row["name"], row["seed"], row["rate"]


def _written(schedule: LossSchedule) -> object:
    return schedule.model_dump(mode="json")


def _scored(outcome: Outcome) -> dict[str, Any]:
    """Its state and validation scores."""
    if outcome.error is not None:
        if not outcome.diverged:
            raise RuntimeError(outcome.error)
        return {"state": "diverged", "choice": None, "reward": None}
    halves = {
        half: {name: round(reward_of(outcome.metrics, name, half), 6) for name in METRICS}
        for half in ("choice", "reward")
    }
    return {"state": "collapsed" if outcome.collapse else "trained", **halves}


def main() -> None:
    """Make the rows of some data sets, or of all."""
    known = [data for plan in PLANS for data in plan.setups]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="*", help=f"of {', '.join(known)}; all if none is named")
    parser.add_argument("--workspace", type=Path, default=Path(tempfile.gettempdir()) / "lossearch-study")
    arguments = parser.parse_args()
    if unknown := set(arguments.data) - set(known):
        parser.error(f"data must be of {', '.join(known)}, but got {', '.join(sorted(unknown))}")
    torch.set_num_threads(1)
    for data in arguments.data or known:
        Study(data, arguments.workspace).run()


if __name__ == "__main__":
    main()
