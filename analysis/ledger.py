"""`Ledger`: a journal's events sorted by what they say, so that tables and figures can look things up."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from pydantic import JsonValue

from lfs.journal import Asked, Event, Examined, Finished, Rebuilt, Resumed, Retried, Started, Told
from lfs.trial import Trial


@dataclass(kw_only=True)
class Ledger:
    """What a journal says, by kind of event and by trial number. Any journal will do: empty, cut short or finished."""

    started: Started | None = None
    asks: list[Asked] = field(default_factory=list)
    trials: dict[int, Trial] = field(default_factory=dict)
    told: dict[int, Told] = field(default_factory=dict)
    """The first outcome of each trial, in the order told."""
    retried: list[Retried] = field(default_factory=list)
    examined: dict[int, Examined] = field(default_factory=dict)
    """What the pre-flight filter said of a trial, where it said anything."""
    rebuilt: list[Rebuilt] = field(default_factory=list)
    resumed: list[Resumed] = field(default_factory=list)
    finished: Finished | None = None
    last_time: float = 0.0

    @classmethod
    def of(cls, events: Iterable[Event]) -> "Ledger":
        """Sort the events of one search."""
        ledger = cls()
        for event in events:
            ledger._add(event)
        return ledger

    def _add(self, event: Event) -> None:
        self.last_time = max(self.last_time, event.time)
        match event:
            case Started():
                self.started = event
            case Asked():
                self.asks.append(event)
                self.trials.update({trial.number: trial for trial in event.trials})
            case Told():
                self.told.setdefault(event.trial, event)
            case Retried():
                self.retried.append(event)
            case Examined():
                self.examined[event.trial] = event
            case Rebuilt():
                self.rebuilt.append(event)
            case Resumed():
                self.resumed.append(event)
            case Finished():
                self.finished = event

    def setting(self, *path: str) -> JsonValue:
        """The value at `path` in the run's config, None where it has none."""
        value: JsonValue = dict(self.started.config) if self.started else None
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        return value

    @property
    def retries(self) -> Counter[int]:
        """How often each trial was retried."""
        return Counter(event.trial for event in self.retried)

    def rejected(self, number: int) -> bool:
        """Whether a trial was refused before training."""
        return number in self.examined and self.examined[number].verdict == "rejected"

    @property
    def data(self) -> Mapping[str, JsonValue]:
        """What the journal says of the data."""
        return self.started.data if self.started else {}

    @property
    def horizon_epochs(self) -> int:
        """The epochs of a full training run: the config's, else the most that any trial was asked for."""
        horizon = self.setting("recipe", "horizon_epochs")
        if isinstance(horizon, int):
            return horizon
        return max((trial.epochs for trial in self.trials.values()), default=0)

    @property
    def reward_metric(self) -> str | None:
        """The score that the reward is, such as `tar_at_far_1e-3`."""
        metric = self.setting("recipe", "reward")
        return metric if isinstance(metric, str) else None

    def lineage(self, number: int) -> tuple[int, ...]:
        """The trial and those whose training it continues, oldest first."""
        numbers: list[int] = []
        current: int | None = number
        while current is not None:
            numbers.append(current)
            trial = self.trials.get(current)
            current = trial.parent if trial else None
        return tuple(reversed(numbers))

    @property
    def seconds(self) -> float:
        """Wall seconds between the first and the last event."""
        return self.last_time - self.started.time if self.started else 0.0

    def images_of(self, number: int) -> int:
        """Training images seen by the trial's lineage."""
        return sum(self.told[n].outcome.images for n in self._trained_lineage(number))

    def seconds_of(self, number: int) -> float:
        """Training seconds of the trial's lineage."""
        return sum(self.told[n].outcome.seconds for n in self._trained_lineage(number))

    def _trained_lineage(self, number: int) -> Iterator[int]:
        """The lineage as it was trained: in the place of a trial that took another's outcome, that other one."""
        for member in self.lineage(number):
            original = self.examined[member].original if member in self.examined else None
            trained = member if original is None else original
            if trained in self.told:
                yield trained
