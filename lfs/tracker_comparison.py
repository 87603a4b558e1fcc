"""A comparison's journal folded into what its MLflow pages should show: one run an entrant's training, and one for it
all with the test scores by seed. Knows no MLflow."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from lfs.comparison import FOLDER, KEY, ComparisonPlan, plan_of
from lfs.journal import FILE_NAME, TRAINING, Event, JournalError, Opened, Scored, Started, Told, read_events
from lfs.tracker_records import TAG_CHARACTERS, Point, SearchRecord, State, TrialRecord
from lfs.tracker_training import FullTrainingRecord
from lfs.trial import Trial


@dataclass
class TrainingRecord(TrialRecord):
    """One training of a comparison. `scored` is its look at the test, the first if a control shares it."""

    scored: Scored | None = None

    def state(self, *, search_alive: bool) -> State:
        """As of a trial, and `scored` once the test scores of a sound one are there."""
        before = super().state(search_alive=search_alive)
        return "scored" if self.scored is not None and before == "told" else before

    @property
    def run_name(self) -> str:
        """Whose training it is, and under which seed."""
        return f"{self.trial.name}, seed {self.trial.seed}"

    def identity_tags(self) -> dict[str, str]:
        """As of a trial, with the entrant's name."""
        return super().identity_tags() | {"lossearch.role": "training", "lossearch.entrant": self.trial.name}

    def points(self) -> list[Point]:
        """As of a trial, with the test scores at the last epoch. A training without a model has none."""
        if self.scored is None or not self.scored.resamples:
            return super().points()
        scores, seconds = self.scored.metrics, self.scored.time
        return super().points() + [
            Point(f"test/{score}", value, self.trial.epochs, seconds) for score, value in scores.items()
        ]


class ComparisonRecord(SearchRecord):
    """One comparison as far as its journal tells it."""

    def __init__(self, started: Started, plan: ComparisonPlan) -> None:
        super().__init__(started)
        self._plan = plan
        self._opened: Opened | None = None
        self._scored: dict[tuple[str, int], float | None] = {}
        """The tested score by entrant and seed, None where the machine failed."""

    def add(self, event: Event) -> None:
        """Fold in the next event."""
        super().add(event)
        match event:
            case Opened():
                self._opened = event
            case Scored():
                self._score(event)

    def _record_of(self, trial: Trial, seconds: float) -> TrialRecord:
        return TrainingRecord(trial, asked_at=seconds)

    def _count(self, event: Told) -> None:
        """How far the training is. Validation scores are those of the trainings, not of a search."""
        self._told += 1
        self._images += event.outcome.images
        self._point("compare/trainings", self._told, self._told)
        self._point("compare/images_total", self._images, self._told)

    def _score(self, event: Scored) -> None:
        """The tested score of each entrant by seed, and its mean once all are there; none where the machine failed."""
        record = self._trial(event.trial)
        if isinstance(record, TrainingRecord) and record.scored is None:
            record.scored = event
        score = event.score(self._plan.metric)
        self._scored[event.entrant, event.seed] = score
        key = re.sub(r"[^\w\-. :/]", "_", event.entrant, flags=re.ASCII)  # what MLflow allows in a name
        if score is not None:
            self._point(f"test_by_seed/{key}", score, self._plan.seeds.index(event.seed))
        found = [self._scored.get((event.entrant, seed)) for seed in self._plan.seeds]
        known = [score for score in found if score is not None]
        if len(known) == len(found):
            self._point(f"test_mean/{key}", fmean(known), 0)

    def state(self, *, alive: bool) -> State:
        """Finished once every entrant is scored under every seed."""
        if len(self._scored) == len(self._plan.entrants) * len(self._plan.seeds):
            return "finished"
        return "running" if alive else "interrupted"

    @property
    def over(self) -> bool:
        """Whether all training is done."""
        return self._opened is not None or self.finished is not None

    def tags(self) -> dict[str, str]:
        """What names the comparison, and the search that it belongs to."""
        return super().tags() | {"lossearch.role": "compare", "lossearch.compares": self._plan.search_id}

    def progress_tags(self) -> dict[str, str]:
        """Whether the sealed test has been opened, and how often it had been before."""
        if self._opened is None:
            return {"lossearch.test_opened": "false"}
        before = str(self._opened.opened_before)
        return {"lossearch.test_opened": "true", "lossearch.test_opened_before": before}

    def run_name(self, folder: Path) -> str:
        """The search's name, and which comparison of it this is."""
        return f"{run_of(folder).name} {FOLDER} {self._plan.number}"

    def note(self, folder: Path) -> str:
        """The verdict table that `lossearch compare` has written; empty before the end."""
        path = run_of(folder) / f"{self._stem}.md"
        return path.read_text(encoding="utf-8")[:TAG_CHARACTERS] if path.is_file() else ""

    def artifacts(self, folder: Path) -> Sequence[Path]:
        """The journal and the page."""
        return folder / FILE_NAME, run_of(folder) / f"{self._stem}.html"

    @property
    def _stem(self) -> str:
        """How the files in the run's folder are called."""
        return "compare" if self._plan.number == 1 else f"compare-{self._plan.number}"

    def _view_metrics(self) -> list[str]:
        score = "eer" if self._plan.metric == "one_minus_eer" else self._plan.metric
        return [f"test/{score}", "test/eer", "test/rank1", self._choice_key, "cost/images"]


def run_of(folder: Path) -> Path:
    """The run's folder: `folder` itself, or the one that it is a comparison of."""
    return folder.parent.parent if folder.parent.name == FOLDER else folder


def comparisons_of(run_dir: Path) -> list[Path]:
    """The folders of a run's comparisons, in their order."""
    return [path.parent for path in sorted((run_dir / FOLDER).glob(f"*/{FILE_NAME}"))]


def begin_record(events: Sequence[Event], path: Path) -> SearchRecord:
    """An empty record of the search or comparison that the first of these events starts. Raises `JournalError`."""
    if not events or not isinstance(events[0], Started):
        raise JournalError(f"{path} does not begin with a 'started' event; give the folder of a run")
    if TRAINING in events[0].config:
        return FullTrainingRecord(events[0])
    if KEY in events[0].config:
        return ComparisonRecord(events[0], plan_of(events, path.parent))
    return SearchRecord(events[0])


def read_record(folder: Path) -> SearchRecord:
    """The whole journal of a folder, folded. Raises `JournalError`."""
    path = folder / FILE_NAME
    events, _ = read_events(path)
    record = begin_record(events, path)
    for event in events:
        record.add(event)
    return record
