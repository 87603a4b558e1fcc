"""The pre-flight filter: what every trial of a search passes before it is paid for.

It rejects losses that cannot be trained and recognises those that were asked before under another name. What a loss
shows is the matter of `search_space.preflight`; here it is held against the trials of one search.
"""

from collections.abc import Container, Hashable, Iterator, Mapping, Sequence
from dataclasses import fields, replace

from lfs.executor import failure
from lfs.journal import Examined
from lfs.trial import Trial
from search_space.preflight import Examination, examine
from search_space.spec import LossSpec
from trainers.outcome import Outcome
from trainers.task import Task

_CONDITIONS = tuple(
    each.name for each in fields(Trial) if each.name not in ("number", "schedule", "round", "role", "name")
)
"""What else than its losses decides how a trial is trained."""


def spoiled(outcome: Outcome) -> bool:
    """Whether the machine failed, not the training: such an outcome says nothing of a trial that never ran."""
    return outcome.error is not None and not outcome.diverged


class Verdicts:
    """What the filter said of a search's trials (the last verdict on each counts), and who of them waits for an outcome
    without being trained."""

    def __init__(self) -> None:
        self._by_trial: dict[int, Examined] = {}
        self._waiting: dict[int, Examined] = {}

    def add(self, verdict: Examined, told: Container[int]) -> None:
        """Take in a verdict; a trial that is not trained waits unless it is `told`."""
        self._by_trial[verdict.trial] = verdict
        if not verdict.trained and verdict.trial not in told:
            self._waiting[verdict.trial] = verdict

    def of(self, number: int) -> Examined | None:
        """The verdict on a trial."""
        return self._by_trial.get(number)

    def trains(self, number: int) -> bool:
        """Whether the trial is trained."""
        return number not in self._by_trial or self._by_trial[number].trained

    def holder(self, number: int) -> int:
        """The trial under whose number a trial's checkpoint is kept: its original's for one that was not trained."""
        original = self._by_trial[number].original if number in self._by_trial else None
        return number if original is None else original

    @property
    def rejected(self) -> list[Examined]:
        """Those by which trials were refused."""
        return [verdict for verdict in self._by_trial.values() if verdict.verdict == "rejected"]

    def settled(self, told: Mapping[int, Outcome]) -> Iterator[tuple[int, Outcome | Examined]]:
        """The waiting trials that need wait no longer: the rejected, and those whose original is told, each with its
        outcome. Where the machine failed the original it is a new verdict instead: the twin is trained after all."""
        for number, verdict in list(self._waiting.items()):
            original = verdict.original
            if original is not None and original not in told:
                continue
            del self._waiting[number]
            if original is None:
                yield number, failure(f"rejected before training: {verdict.reason}")
            elif spoiled(told[original]):
                reason = f"equivalent to trial {original}, which failed by no fault of its loss: trained after all"
                yield number, Examined(trial=number, verdict="noted", reason=reason, same_as=original)
            else:
                yield number, _taken_over(told[original])


def _taken_over(outcome: Outcome) -> Outcome:
    """An outcome as its twin's: it took no time and saw no images, but its network is no cheaper for that."""
    metrics = {"cost/seconds": outcome.seconds, "cost/images": float(outcome.images), **outcome.metrics}
    return replace(outcome, metrics=metrics, seconds=0.0, images=0)


class Preflight:
    """The filter of one search. `class_counts` holds the training images of each class.

    Every trial is shown to it once, in the order asked: new ones by `examine`; those whose verdict the journal holds
    by `remember`, which computes nothing.
    """

    def __init__(self, class_counts: Sequence[int]) -> None:
        self._class_counts = class_counts
        self._trials: dict[int, Trial] = {}
        self._losses: dict[LossSpec, int] = {}
        """Each loss that was not rejected, with the first trial that trains under it."""
        self._found: dict[LossSpec, Examination] = {}
        self._trained: dict[Hashable, list[Trial]] = {}
        """The search's trials that are trained, by everything but their losses."""

    @classmethod
    def of(cls, task: Task) -> "Preflight":
        """The filter of a search on a task."""
        return cls(task.train.class_counts())

    def remember(self, trial: Trial, verdict: Examined | None) -> None:
        """Take in a trial with the verdict that it got."""
        self._trials[trial.number] = trial
        if verdict is not None and verdict.verdict == "rejected":
            return
        for _, spec in self._remaining(trial):
            self._losses.setdefault(spec, trial.number)
        if trial.role == "search" and (verdict is None or verdict.trained):
            self._trained.setdefault(self._conditions(trial), []).append(trial)

    def examine(self, trial: Trial, told: Mapping[int, Outcome]) -> Examined | None:
        """Judge a new trial, and remember it; None when there is nothing to say. `told` holds the outcomes so far.

        Baselines and finals are never rejected and never given another's outcome: they are there to be trained.
        """
        verdict = self._judge(trial, told)
        self.remember(trial, verdict)
        return verdict

    def _judge(self, trial: Trial, told: Mapping[int, Outcome]) -> Examined | None:
        specs = [spec for _, spec in self._remaining(trial)]
        if trial.role == "search":
            rejections = [found.reason for spec in specs if (found := self._examine(spec)).verdict == "reject"]
            if rejections:
                return Examined(trial=trial.number, verdict="rejected", reason=rejections[0])
            twin = self._twin(trial, told)
            if twin is not None:
                reason = f"the same gradients, parent, epochs, seed and recipe as trial {twin}, whose outcome it takes"
                return Examined(trial=trial.number, verdict="reused", reason=reason, same_as=twin)
        new = [spec for spec in specs if spec not in self._losses]
        warnings = [found.reason for spec in new if (found := self._examine(spec)).verdict != "pass"]
        equals = [equal for spec in new if (equal := self._equal(spec, trial)) is not None]
        if not warnings and not equals:
            return None
        return Examined(
            trial=trial.number,
            verdict="warned" if warnings else "noted",
            reason="; ".join([*warnings, *(reason for _, reason in equals)]),
            same_as=equals[0][0] if equals else None,
        )

    def _examine(self, spec: LossSpec) -> Examination:
        """Each loss is examined once a session, those of earlier sessions when they are first compared."""
        if spec not in self._found:
            counts = self._class_counts
            self._found[spec] = examine(spec, num_classes=len(counts), class_counts=counts)
        return self._found[spec]

    def _remaining(self, trial: Trial) -> list[tuple[int, LossSpec]]:
        """The part of the schedule that the trial itself trains: (from_epoch, loss)."""
        start = 0 if trial.parent is None else self._trials[trial.parent].epochs
        later = [(entry.from_epoch, entry.spec) for entry in trial.schedule.entries]
        return [(start, trial.schedule.at(start)), *((e, spec) for e, spec in later if start < e < trial.epochs)]

    def _conditions(self, trial: Trial) -> Hashable:
        """Everything but the losses that the outcome of a trial depends on."""
        epochs = tuple(from_epoch for from_epoch, _ in self._remaining(trial))
        return epochs, tuple(_hashable(getattr(trial, name)) for name in _CONDITIONS)

    def _twin(self, trial: Trial, told: Mapping[int, Outcome]) -> int | None:
        """The earliest trial whose outcome must be this one's."""
        mine = [spec for _, spec in self._remaining(trial)]
        fresh = [trial.parent is None, *(False for _ in mine[1:])]
        for other in self._trained.get(self._conditions(trial), ()):
            if other.number in told and spoiled(told[other.number]):
                continue
            theirs = [spec for _, spec in self._remaining(other)]
            if all(map(self._same, mine, theirs, fresh)):
                return other.number
        return None

    def _same(self, spec: LossSpec, other: LossSpec, fresh: bool) -> bool:
        if spec == other:
            return True
        mine, theirs = self._examine(spec).gradients, self._examine(other).gradients
        return mine is not None and theirs is not None and mine.trains_as(theirs, fresh=fresh)

    def _equal(self, spec: LossSpec, trial: Trial) -> tuple[int, str] | None:
        """The trial whose loss a new loss is equivalent to, and how: the earliest, the same before the parallel."""
        mine = self._examine(spec).gradients
        if mine is None:
            return None
        parallel: tuple[int, str] | None = None
        for other, number in self._losses.items():
            theirs = self._examine(other).gradients
            if theirs is None or not mine.parallel_to(theirs):
                continue
            if mine.same_as(theirs):
                differing = self._differences(trial, self._trials[number])
                differs = f"; it differs in {differing}" if differing else " on all probes"
                return number, f"equivalent to trial {number}: the same gradients{differs}"
            ratio = mine.length / theirs.length
            parallel = parallel or (number, f"equivalent to trial {number}: its gradients times {ratio:.4g}")
        return parallel

    @staticmethod
    def _differences(trial: Trial, other: Trial) -> str:
        """In what two trials of equivalent losses are trained differently."""
        names = [name for name in ("role", *_CONDITIONS) if getattr(trial, name) != getattr(other, name)]
        return ", ".join(names)


def _hashable(value: object) -> Hashable:
    return tuple(sorted(value.items())) if isinstance(value, Mapping) else value
