"""A journal folded into what its MLflow pages should show: tags, parameters, metrics, states. Knows no MLflow."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lfs.journal import (
    FILE_NAME,
    Asked,
    Event,
    Examined,
    Finished,
    JournalError,
    Retried,
    Started,
    Told,
)
from lfs.trial import Trial
from search_space import LossSpec
from trainers.outcome import Outcome

State = Literal["running", "told", "scored", "failed", "rejected", "interrupted", "finished"]
"""Of a trial: running, told, failed, rejected, interrupted; scored, of a comparison's. Of a search: running, finished,
failed, interrupted."""

STATUS: Mapping[State, str] = {
    "running": "RUNNING",
    "told": "FINISHED",
    "scored": "FINISHED",
    "finished": "FINISHED",
    "failed": "FAILED",
    "rejected": "FAILED",
    "interrupted": "KILLED",
}
"""MLflow's run status of each state."""

TAG_CHARACTERS = 6000
"""Longer tags are cut: MLflow refuses more than 8000 bytes."""

MOST_COLUMNS = 8
"""Of parameters, in the table of runs."""

_ORDINARY = {"cross_entropy", "identity", "constant", "none"}


@dataclass(frozen=True, slots=True)
class Point:
    """One metric value; `seconds` since the epoch, from the journal, so that logging it twice adds nothing."""

    key: str
    value: float
    step: int
    seconds: float


@dataclass(slots=True)
class TrialRecord:
    """One trial as far as the journal tells it."""

    trial: Trial
    asked_at: float
    ended_at: float | None = None
    outcome: Outcome | None = None
    verdict: Examined | None = None
    retries: int = 0

    def state(self, *, search_alive: bool) -> State:
        """What became of the trial; one without an outcome is interrupted once its search is no longer alive."""
        if self.verdict is not None and self.verdict.verdict == "rejected":
            return "rejected"
        if self.outcome is not None:
            return "failed" if self.outcome.reward is None else "told"
        return "running" if search_alive else "interrupted"

    @property
    def run_name(self) -> str:
        """A baseline's own name, else the trial's number."""
        return self.trial.name or f"trial {self.trial.number}"

    def identity_tags(self) -> dict[str, str]:
        """What is known when the trial is asked."""
        trial = self.trial
        tags = {
            "lossearch.role": "trial" if trial.role == "search" else trial.role,
            "lossearch.trial": str(trial.number),
            "lossearch.digest": trial.schedule.final.digest(),
            "lossearch.family": family(trial.schedule.final),
            "lossearch.seed": str(trial.seed),
        }
        if trial.parent is not None:
            tags["lossearch.parent"] = str(trial.parent)
        if trial.repeats is not None:
            tags["lossearch.repeats"] = str(trial.repeats)
        if trial.round is not None:
            tags["lossearch.round"] = str(trial.round)
        return tags

    def outcome_tags(self) -> dict[str, str]:
        """What is known when the trial has ended."""
        outcome = self.outcome
        told = {
            "lossearch.error": None if outcome is None else outcome.error,
            "lossearch.preflight": self.verdict and f"{self.verdict.verdict}: {self.verdict.reason}",
            "lossearch.collapse": None if outcome is None else outcome.collapse,
            "lossearch.retries": str(self.retries) if self.retries else None,
        }
        return {key: value[:TAG_CHARACTERS] for key, value in told.items() if value}

    def params(self) -> dict[str, str]:
        """The numbers of the loss that holds at the end, the seed, the epochs, and where the recipe differs."""
        loss = {f"loss.{key}": f"{value:.6g}" for key, value in _numbers(self.trial.schedule.final.model_dump())}
        recipe = {f"recipe.{key}": str(value) for key, value in self.trial.recipe.items()}
        return {**loss, **recipe, "seed": str(self.trial.seed), "epochs": str(self.trial.epochs)}

    def points(self) -> list[Point]:
        """The epochs' history by epoch; scores, reward and cost once, at the last epoch."""
        outcome, seconds = self.outcome, self.ended_at
        if outcome is None or seconds is None:
            return []
        values = {(key, int(row["epoch"])): value for row in outcome.history for key, value in row.items()}
        final = {**outcome.metrics, "cost/images": float(outcome.images), "cost/seconds": outcome.seconds}
        if outcome.reward is not None:
            final["reward"] = outcome.reward
        values |= {(key, self.trial.epochs): value for key, value in final.items()}
        return [Point(key, value, step, seconds) for (key, step), value in values.items() if key != "epoch"]


class SearchRecord:
    """One search as far as the journal tells it, event by event (`started` itself among them)."""

    def __init__(self, started: Started) -> None:
        self.started = started
        self.trials: dict[int, TrialRecord] = {}
        self.finished: Finished | None = None
        self.events = 0
        self.last_at = started.time
        self.points: list[tuple[int, Point]] = []
        """The search's own metrics, each with the count of events up to and with the one it comes from."""
        self._told = 0
        self._images = 0
        self._best: float | None = None
        self._shown: dict[str, tuple[int, float]] = {}

    @property
    def experiment_name(self) -> str:
        """Task and reward: searches that may be held against each other share a page."""
        return " · ".join(str(part) for part in (self.started.data.get("name"), self._reward_name) if part)

    @property
    def _reward_name(self) -> str:
        recipe = self.started.config.get("recipe")
        return str(recipe.get("reward", "reward")) if isinstance(recipe, Mapping) else "reward"

    @property
    def _choice_key(self) -> str:
        return f"choice/{self._reward_name}".replace("one_minus_eer", "eer")

    def add(self, event: Event) -> None:
        """Fold in the next event."""
        self.events += 1
        self.last_at = event.time
        self.finished = None
        match event:
            case Asked():
                for trial in event.trials:
                    self.trials[trial.number] = self._record_of(trial, event.time)
                step = int(event.summary.get("round", event.trials[0].number))
                for key, value in event.summary.items():
                    if key != "round" and self._shown.get(key) != (step, value):
                        self._shown[key] = (step, value)
                        self._point(f"controller/{key}", value, step)
            case Retried():
                self._trial(event.trial).retries += 1
            case Examined():
                record = self._trial(event.trial)
                record.verdict = event
                if event.verdict == "rejected":
                    record.ended_at = event.time
            case Told():
                self._tell(event)
            case Finished():
                self.finished = event

    def _record_of(self, trial: Trial, seconds: float) -> TrialRecord:
        return TrialRecord(trial, asked_at=seconds)

    def _trial(self, number: int) -> TrialRecord:
        if number not in self.trials:
            raise JournalError(f"event {self.events} of the journal speaks of trial {number}, which was never asked")
        return self.trials[number]

    def _tell(self, event: Told) -> None:
        record, outcome = self._trial(event.trial), event.outcome
        if record.outcome is not None:
            return
        record.outcome, record.ended_at = outcome, event.time
        if record.trial.role == "search":
            self._count(event)

    def _count(self, event: Told) -> None:
        outcome = event.outcome
        self._told += 1
        self._images += outcome.images
        self._point("search/images_total", self._images, self._told)
        if outcome.reward is not None:
            self._best = outcome.reward if self._best is None else max(self._best, outcome.reward)
            self._point("search/reward", outcome.reward, event.trial)
            self._point("search/best_reward", self._best, self._told)

    def _point(self, key: str, value: float, step: int) -> None:
        self.points.append((self.events, Point(key, float(value), step, self.last_at)))

    def state(self, *, alive: bool) -> State:
        """What became of the search; without a last event it is running or, when its process is gone, interrupted."""
        if self.finished is not None:
            return "failed" if self.finished.winner is None else "finished"
        return "running" if alive else "interrupted"

    @property
    def over(self) -> bool:
        """Whether no trial can be running any more."""
        return self.finished is not None

    def tags(self) -> dict[str, str]:
        """What names the search."""
        return {
            "lossearch.role": "search",
            "lossearch.search": self.started.search_id,
            "lossearch.data_digest": str(self.started.data.get("digest", "")),
        }

    def progress_tags(self) -> dict[str, str]:
        """What changes with the events; a search leaves the test sealed."""
        return {}

    def run_name(self, folder: Path) -> str:
        """What its page is called."""
        return folder.name

    def artifacts(self, folder: Path) -> Sequence[Path]:
        """The files to show with it, where they are there."""
        return folder / FILE_NAME, folder / "report.html"

    def note(self, folder: Path) -> str:  # noqa: ARG002 (a comparison's lies there)
        """The winner beside the baselines, as a markdown table; empty before the end."""
        if self.finished is None:
            return ""
        searched = sum(record.trial.role == "search" for record in self.trials.values())
        rows = [f"| loss | trial | reward | {self._choice_key} | images seen |", "|---|---|---|---|---|"]
        if self.finished.winner is not None:
            rows.append(self._row("**winner of the search**", self.trials[self.finished.winner]))
        baselines = {
            record.trial.name: record for record in self.trials.values() if record.trial.role == "baseline"
        }  # of a lineage of one name, the last trial stays
        rows += [self._row(name, record) for name, record in baselines.items()]
        finals = sum(record.trial.role == "final" for record in self.trials.values())
        chosen = f"by {finals} finals under other seeds" if finals else f"among {searched} trials: it looks too good"
        caution = f"Validation scores, one seed each. The winner was chosen {chosen}."
        return "\n".join([*rows, "", caution])[:TAG_CHARACTERS]

    def view(self) -> dict[str, object]:
        """How MLflow's table of runs shows this search: best reward first, with scores and what its trials vary."""
        params = [record.params() for record in self.trials.values() if record.trial.role == "search"]
        keys = {key: None for row in params for key in row}  # a set that keeps its order
        varying = [key for key in keys if len({row.get(key) for row in params}) > 1]
        metrics = self._view_metrics()
        tags = ["lossearch.role", "lossearch.family", "lossearch.state"]
        return {
            "searchFilter": self.condition,
            "orderByKey": f"metrics.`{metrics[0]}`",
            "orderByAsc": False,
            "selectedColumns": [
                *(f"metrics.`{key}`" for key in metrics),
                *(f"params.`{key}`" for key in varying[:MOST_COLUMNS]),
                *(f"tags.`{key}`" for key in tags),
            ],
        }

    def _view_metrics(self) -> list[str]:
        """The columns of scores and cost; the first gives the order."""
        return ["reward", self._choice_key, "val/eer", "cost/images"]

    @property
    def condition(self) -> str:
        """What picks this search's runs, in MLflow's filter language."""
        return f"tags.`lossearch.search` = '{self.started.search_id}'"

    def _row(self, name: str, record: TrialRecord) -> str:
        outcome = record.outcome
        reward, choice = (outcome.reward, outcome.metrics.get(self._choice_key)) if outcome else (None, None)
        scores = " | ".join("–" if score is None else f"{score:.4f}" for score in (reward, choice))
        return f"| {name.replace('|', '/')} | {record.trial.number} | {scores} | {self._lineage_images(record):,} |"

    def _lineage_images(self, record: TrialRecord) -> int:
        images = 0
        while True:
            original = None if record.verdict is None else record.verdict.original
            if original is not None:
                record = self.trials[original]
            images += record.outcome.images if record.outcome else 0
            if record.trial.parent is None:
                return images
            record = self.trials[record.trial.parent]


def family(spec: LossSpec) -> str:
    """The parts in which a loss differs from plain softmax cross-entropy, 'softmax' when in none."""
    kinds = [part.kind for part in (spec.objective, spec.target, spec.negative, spec.margin, spec.scale)]
    return "+".join(kind for kind in kinds if kind not in _ORDINARY) or "softmax"


def _numbers(fields: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of nested mappings, their keys joined by dots."""
    for key, value in fields.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{key}.")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield f"{prefix}{key}", value
