"""Ray Tune's adapter: a search inside a `Tuner`, with Tune's schedulers, storage, loggers and recovery.

`TuneSearch` asks for the trials of a search, `trainable` trains them. Each is a Tune trial: its config holds all that
training needs but the data, and every epoch is a result. Where the product's own search has its journal, Tune has the
searcher's saved state: the same events, from which `Tuner.restore` replays the controller.
"""

import json
import math
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError
from ray import tune
from ray.tune.search import Searcher

from lfs.budget import Clock
from lfs.checkpoints import Checkpoint, CheckpointStore
from lfs.config import FixedListConfig, RunConfig, SamplerConfig, SearchConfig
from lfs.config_file import ConfigError, overridden
from lfs.executor import failure
from lfs.journal import Asked, Event, JournalError, Started, Told
from lfs.launch import resolved_recipe, started
from lfs.plan import make_controller
from lfs.preflight import Preflight, Verdicts
from lfs.runner import TrainingRunner
from lfs.search import replay
from lfs.trial import Trial
from search_space.frozen import FrozenModel
from trainers.checkpoint import unpack
from trainers.outcome import Outcome
from trainers.recipe import Numerics, Recipe
from trainers.task import Task

_TRIAL = TypeAdapter(Trial)
_METRICS = ("choice/", "cost/", "loss/", "reward/", "train/", "val/")
"""How the names of a result's numbers begin that are `Outcome.metrics`; `epoch` is one too."""


class _State(FrozenModel):
    """All that a `TuneSearch` is."""

    started: Started
    events: tuple[Event, ...] = ()
    """What was asked, found before training, and told."""
    running: Mapping[str, int] = {}
    """The numbers of the trials in flight, by Tune's names for them."""
    class_counts: tuple[int, ...]
    checkpoints: str | None


class TuneSearch(Searcher):
    """The search of `config` on `task`, baselines included, as a searcher of Ray Tune.

    Give it to `TuneConfig(search_alg=..., num_samples=-1)`: the search knows when it is over. Only `seed`, `recipe`,
    `space`, `search`, `budget`, `baselines`, `numerics` (float32 where it says nothing) and `executor.threads` of the
    config matter here. A trial that Tune stops early is told with the reward of its last epoch; where trials are
    continued it is told as a failure, as it is not what was asked for.

    The pre-flight filter looks at each candidate, as in a search without Tune: one that is rejected is told as a
    failure, one that equals another takes over its outcome, and neither becomes a trial of Tune's.

    After a crash use `Tuner.restore` as it is by default: an unfinished trial that it leaves out would be waited for
    without end, and the search does not learn from a failed one that it restarts, whose failure has been told.

    Searches that continue trials need `checkpoints`, a folder that every node sees; they keep the checkpoint of each
    trial there, under the search's own name, and delete none.

    Raises `ConfigError` when it is missing, or when method and recipe do not fit.
    """

    CKPT_FILE_TMPL = "searcher-state-{}.json"
    _refusal: JournalError | None = None
    """Why this search cannot be restored."""

    def __init__(self, config: RunConfig, task: Task, *, checkpoints: Path | None = None) -> None:
        super().__init__(metric="reward", mode="max")
        continuing = _continuing(config.search)
        if continuing and checkpoints is None:
            raise ConfigError(
                f"{continuing} continues trials from the checkpoints of others, which Ray Tune does not hand on: give "
                "TuneSearch checkpoints=, a folder that every node sees, or use search.method = 'sampler' with "
                "search.fidelity = 'full'"
            )
        numerics = Numerics(threads=config.executor.threads, **config.numerics.model_dump(exclude_none=True))
        recipe = resolved_recipe(config, task)
        self._become(
            _State(
                started=started(config, task, recipe, numerics),
                class_counts=tuple(task.train.class_counts()),
                checkpoints=str(checkpoints.absolute()) if continuing and checkpoints is not None else None,
            )
        )

    def _become(self, state: _State) -> None:
        """Take a state over: its events are replayed into a fresh controller."""
        self._started, self._class_counts, self._checkpoints = state.started, state.class_counts, state.checkpoints
        self._events, self._running = list(state.events), dict(state.running)
        self._clock = Clock()
        config = overridden(state.started.config, ())
        recipe = Recipe.model_validate(config.recipe)
        self._controller = make_controller(config, recipe, self._clock, class_counts=state.class_counts)
        past = replay(self._controller, [state.started, *state.events], self._clock)
        self._asked, self._told = past.asked, past.told
        self._preflight, self._verdicts = Preflight(state.class_counts), Verdicts()
        for verdict in past.verdicts.values():
            self._verdicts.add(verdict, self._told)
        for trial in self._asked.values():
            self._preflight.remember(trial, self._verdicts.of(trial.number))

    def _state(self) -> _State:
        return _State(
            started=self._started,
            events=tuple(self._events),
            running=self._running,
            class_counts=self._class_counts,
            checkpoints=self._checkpoints,
        )

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """The next trial as a config; None while outcomes are awaited, `FINISHED` when the search is over."""
        if self._refusal is not None:
            raise self._refusal
        trial = self._due()
        while trial is None:
            if not self._ask():
                return None if self._running else Searcher.FINISHED  # type: ignore[return-value]
            trial = self._due()
        self._running[trial_id] = trial.number
        using = {
            "recipe": self._started.config["recipe"],
            "numerics": dict(self._started.numerics),
            "data": self._started.data["digest"],
            "checkpoints": self._checkpoints and str(Path(self._checkpoints, self._started.search_id)),
            "holders": {} if trial.parent is None else {str(trial.parent): self._verdicts.holder(trial.parent)},
        }
        return {"trial": _TRIAL.dump_python(trial, mode="json"), "using": using}

    def _due(self) -> Trial | None:
        """The first trial that is to be trained and is neither told nor in flight."""
        out = {*self._told, *self._running.values()}
        due = (trial for number, trial in self._asked.items() if number not in out and self._verdicts.trains(number))
        return next(due, None)

    def _ask(self) -> bool:
        """Ask for a new trial and examine it; whether there was any."""
        self._clock.now = time.time()
        trials = tuple(self._controller.ask(1))
        if trials:
            self._events.append(Asked(time=self._clock.now, count=1, trials=trials))
        for trial in trials:
            self._asked[trial.number] = trial
            verdict = self._preflight.examine(trial, self._told)
            if verdict is not None:
                self._events.append(verdict)
                self._verdicts.add(verdict, self._told)
        self._settle()
        return bool(trials)

    def _settle(self) -> None:
        """Tell the trials that need no training; those whose original the machine failed are trained after all."""
        for number, settled in self._verdicts.settled(self._told):
            if isinstance(settled, Outcome):
                self._tell(number, settled)
                continue
            self._events.append(settled)
            self._verdicts.add(settled, self._told)
            self._preflight.remember(self._asked[number], settled)

    def _tell(self, number: int, outcome: Outcome) -> None:
        self._events.append(Told(trial=number, outcome=outcome))
        self._told[number] = outcome
        self._controller.tell(self._asked[number], outcome)

    def on_trial_complete(self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False) -> None:
        """Tell the controller what came of a trial; of a trial that is not in flight nothing is told."""
        number = self._running.pop(trial_id, None)
        if number is None:
            return
        trial = self._asked[number]
        if error or result is None:
            outcome = failure("Ray Tune gave the trial up" if error else "Ray Tune stopped the trial unseen")
        else:
            outcome = _outcome_of(result)
            epochs = int(outcome.metrics.get("epoch", 0))
            if self._checkpoints and outcome.error is None and epochs < trial.epochs:
                reason = f"Ray Tune stopped the trial after epoch {epochs} of {trial.epochs}"
                outcome = replace(outcome, reward=None, error=reason)
        self._tell(number, outcome)
        self._settle()

    def save(self, checkpoint_path: str) -> None:
        """Write what was asked, found and told as JSON."""
        Path(checkpoint_path).write_text(self._state().model_dump_json(), encoding="utf-8")

    def restore(self, checkpoint_path: str) -> None:
        """Replay what `save` wrote; Tune goes on with the trials in flight under their names.

        Raises `JournalError` for what is no state of this search, or one that cannot be replayed here. Tune merely
        logs that and would begin anew in the same folder: `suggest` raises it again.
        """
        try:
            self._become(self._read(checkpoint_path))
        except JournalError as refusal:
            self._refusal = refusal
            raise

    def _read(self, checkpoint_path: str) -> _State:
        try:
            state = _State.model_validate_json(Path(checkpoint_path).read_bytes())
        except ValidationError:
            raise JournalError(f"{checkpoint_path} is damaged: it is no state of a search; begin a new one") from None
        then, now = state.started, self._started
        if (then.config, then.data) != (now.config, now.data):
            raise JournalError(
                f"{checkpoint_path} holds the state of a search with another configuration or on other data; restore "
                "it with the same ones"
            )
        return state

    def __getstate__(self) -> dict[str, str]:
        """Tune pickles a searcher along with its tuner: as JSON."""
        return {"state": self._state().model_dump_json()}

    def __setstate__(self, state: Mapping[str, str]) -> None:
        super().__init__(metric="reward", mode="max")
        self._become(_State.model_validate_json(state["state"]))


def _continuing(search: SearchConfig) -> str | None:
    """The setting by which a search continues trials from others, None where it does not."""
    if isinstance(search, SamplerConfig):
        return None if search.fidelity == "full" else f"search.fidelity = '{search.fidelity}'"
    return None if isinstance(search, FixedListConfig) else f"search.method = '{search.method}'"


def _outcome_of(result: Mapping[str, Any]) -> Outcome:
    """The outcome of a trial whose last result this is."""
    error = result["error"] or None
    return Outcome(
        reward=None if error else result["reward"],
        metrics={name: result[name] for name in result if name == "epoch" or name.startswith(_METRICS)},
        seconds=result["seconds"],
        images=result["images"],
        error=error,
        collapse=result["collapse"] or None,
    )


def trainable(task: Task) -> type[tune.Trainable]:
    """What trains the trials of a `TuneSearch` on this task, which is put into Ray's object store once.

    Like any trainable it takes one CPU, unless `tune.with_resources` says otherwise.
    """
    with_task: type[tune.Trainable] = tune.with_parameters(LossTraining, task=task)
    return with_task


class LossTraining(tune.Trainable):
    """Trains a trial, one epoch a step, and goes on from its checkpoints; an actor may train one trial after another.

    A result holds `reward`, `images` and `seconds` so far, `error` and `collapse` (empty where there is none), and the
    scores of the epoch. A training that diverges is not an error to Tune, which would only repeat it: it is done, its
    reward NaN, and `error` says why.
    """

    def setup(self, config: dict[str, Any], task: Task) -> None:  # type: ignore[override]
        """Called by Tune for an actor's first trial."""
        self._task = task
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Called by Tune for each other trial. Raises `ValueError` when the task is not the search's."""
        using = new_config["using"]
        if using["data"] != self._task.digest:
            raise ValueError(
                f"the search began on data with the digest {using['data']}, but the trainable has "
                f"{self._task.digest}; give it the task that the search was given"
            )
        self._trial = _TRIAL.validate_python(new_config["trial"])
        recipe, numerics = Recipe.model_validate(using["recipe"]), Numerics.model_validate(using["numerics"])
        self._train = TrainingRunner(self._task, recipe, numerics)
        self._folder = using["checkpoints"]
        self._holders: Mapping[str, int] = using["holders"]
        self._checkpoint: Checkpoint | None = None
        self._result: dict[str, Any] = {}
        return True

    def step(self) -> dict[str, Any]:
        """Train an epoch."""
        if self._result.get("done"):  # resumed from the checkpoint of its last epoch
            return self._result
        trial, first = self._trial, not self._result
        start = self._parents_checkpoint() if first else self._checkpoint
        epochs = 1 if start is None else unpack(start)[1]["epoch"] + 1
        last = epochs == trial.epochs
        part = replace(
            trial,
            epochs=epochs,
            fresh_optimizer=trial.fresh_optimizer and first,
            cooldown_epochs=trial.cooldown_epochs if last else 0,
        )
        outcome, self._checkpoint = self._train(part, start)
        done = outcome.error is not None or last
        if done and trial.role == "search" and self._folder is not None and self._checkpoint is not None:
            CheckpointStore(Path(self._folder)).save(trial.number, self._checkpoint)
        self._result = {
            **self._result,
            **outcome.metrics,
            "reward": math.nan if outcome.reward is None else outcome.reward,
            "images": self._result.get("images", 0) + outcome.images,
            "seconds": self._result.get("seconds", 0.0) + outcome.seconds,
            "error": outcome.error or "",
            "collapse": outcome.collapse or "",
            "done": done,
        }
        return self._result

    def _parents_checkpoint(self) -> Checkpoint | None:
        parent = self._trial.parent
        if parent is None:
            return None
        checkpoint = CheckpointStore(Path(self._folder)).load(self._holders.get(str(parent), parent))
        if checkpoint is None:
            raise FileNotFoundError(
                f"the checkpoint of trial {parent}, which trial {self._trial.number} continues, is not in "
                f"{self._folder}; give TuneSearch a folder that every node sees"
            )
        return checkpoint

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Write the state after the last epoch: `result.json`, and `checkpoint.safetensors` unless it diverged."""
        Path(checkpoint_dir, "result.json").write_text(json.dumps(self._result), encoding="utf-8")
        if self._checkpoint is not None:
            self._checkpoint.tofile(Path(checkpoint_dir, "checkpoint.safetensors"))

    def load_checkpoint(self, checkpoint: str) -> None:  # type: ignore[override]
        """Go on from what `save_checkpoint` wrote."""
        self._result = json.loads(Path(checkpoint, "result.json").read_text(encoding="utf-8"))
        weights = Path(checkpoint, "checkpoint.safetensors")
        self._checkpoint = np.fromfile(weights, dtype=np.uint8) if weights.exists() else None
