"""A full training's journal folded into what its MLflow page should show: one run, with its scores by epoch. Knows no
MLflow."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from lfs.journal import FILE_NAME, TRAINING, Completed, Event, Started, Trained
from lfs.tracker_records import TAG_CHARACTERS, SearchRecord, State


class FullTrainingRecord(SearchRecord):
    """One full training as far as its journal tells it; it has no trials."""

    def __init__(self, started: Started) -> None:
        super().__init__(started)
        self._completed: Completed | None = None

    def add(self, event: Event) -> None:
        """Fold in the next event."""
        super().add(event)
        match event:
            case Trained():
                for key, value in event.metrics.items():
                    if key != "epoch":
                        self._point(key, value, event.epoch)
            case Completed():
                self._completed = event

    def state(self, *, alive: bool) -> State:
        """Without a last event it is running or, when its process is gone, interrupted."""
        if self._completed is not None:
            return "finished" if self._completed.error is None else "failed"
        return "running" if alive else "interrupted"

    @property
    def over(self) -> bool:
        """Whether nothing more is trained."""
        return self._completed is not None

    @property
    def experiment_name(self) -> str:
        """The data: trainings on the same images share a page."""
        return f"{self.started.data.get('name')} · full training"

    def tags(self) -> dict[str, str]:
        """What names the training, its network and its loss."""
        return super().tags() | {
            "lossearch.role": "full training",
            "lossearch.network_name": _text(self.started.config.get("recipe"), "network"),
            "lossearch.loss_source": _text(self.started.config.get(TRAINING), "source"),
        }

    def progress_tags(self) -> dict[str, str]:
        """What went wrong or is odd, once it is over."""
        if self._completed is None:
            return {}
        said = [*([self._completed.error] if self._completed.error else []), *self._completed.remarks]
        return {"lossearch.remarks": " ".join(said)[:TAG_CHARACTERS]} if said else {}

    def artifacts(self, folder: Path) -> Sequence[Path]:
        """Journal, history and what rebuilds loss and network, but for the weights."""
        return tuple(folder / name for name in (FILE_NAME, "history.csv", "loss.json", "network.json"))

    def _view_metrics(self) -> list[str]:
        return ["val/rank1", "val/eer", "train/loss", "cost/images"]


def _text(table: object, key: str) -> str:
    return str(table.get(key, "")) if isinstance(table, Mapping) else ""
