"""The search loop: ask, run, tell, and write it all down. Resume is replay of the same loop's journal."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from lfs.budget import Clock
from lfs.checkpoints import Checkpoint, CheckpointStore
from lfs.controller import Controller
from lfs.executor import Completed, Executor, Lost
from lfs.journal import (
    Asked,
    Event,
    Examined,
    Finished,
    Journal,
    JournalError,
    Rebuilt,
    Resumed,
    Retried,
    Started,
    Told,
    without_numbers,
)
from lfs.preflight import Preflight, Verdicts, spoiled
from lfs.sources import versions
from lfs.trial import Trial
from trainers.outcome import Outcome

IDENTICAL_FAILURES = 5
"""So many failures with one and the same error in a row stop the search: one broken node must not complete it."""

Choose = Callable[[Mapping[int, Trial], Mapping[int, Outcome]], int | None]
"""Picks the winner's number among the trials and their outcomes."""


class SearchStoppedError(Exception):
    """The search cannot go on; the message says why. The journal holds everything so far."""


def search(
    controller: Controller,
    executor: Executor,
    journal: Journal,
    checkpoints: CheckpointStore,
    *,
    choose: Choose,
    preflight: Preflight | None = None,
    clock: Clock | None = None,
    keep_live: bool = False,
    on_event: Callable[[Event], None] = lambda _: None,
) -> Finished:
    """Run a search to its end, from wherever its journal stands; without a `preflight` every trial is trained.

    `clock` is the one that the controller looks at, if it looks at one. With `keep_live` the checkpoints of the trials
    that are live at the end are there then, those rebuilt that were lost with a node.

    Raises `JournalError` when the journal cannot be replayed, `SearchStoppedError` when trials keep failing alike, or
    at the end when there is no winner because candidates were rejected before training.
    """
    loop = _Loop(controller, executor, journal, checkpoints, choose, preflight, clock or Clock(), on_event)
    finished = loop.replay()
    if finished is not None:
        return finished
    loop.run()
    if keep_live:
        loop.rebuild_live()
    winner = choose(loop.asked, loop.told)
    finished = Finished(winner=winner, summary=controller.summary(), constant=controller.constant())
    loop.record(finished)
    if winner is None:
        loop.stop_if_rejected()
    return finished


@dataclass(slots=True)
class Past:
    """What a journal says has happened. `told` is in the order of the events.

    The first outcome of a trial counts, and the last verdict on it.
    """

    asked: dict[int, Trial] = field(default_factory=dict)
    told: dict[int, Outcome] = field(default_factory=dict)
    verdicts: dict[int, Examined] = field(default_factory=dict)
    finished: Finished | None = None


def replay(controller: Controller, events: Sequence[Event], clock: Clock | None = None) -> Past:
    """Bring a fresh controller, and its clock, to where the events end.

    Raises `JournalError` when it asks for other trials than the journal says, or when an event of a trial stands before
    the trial was asked for.
    """
    past, clock = Past(), clock or Clock()
    for event in events:
        if isinstance(event, Started):
            clock.began = event.time
        elif isinstance(event, Asked):
            clock.now = event.time
            _replay_ask(controller, event, events)
            past.asked |= {trial.number: trial for trial in event.trials}
        elif isinstance(event, Told | Retried | Rebuilt | Examined) and event.trial not in past.asked:
            raise JournalError(f"the journal is damaged: trial {event.trial} was never asked for; restore its lines")
        elif isinstance(event, Examined):
            past.verdicts[event.trial] = event
        elif isinstance(event, Told) and event.trial not in past.told:
            past.told[event.trial] = event.outcome
            controller.tell(past.asked[event.trial], event.outcome)
        elif isinstance(event, Finished):
            past.finished = event
    return past


def _replay_ask(controller: Controller, event: Asked, events: Sequence[Event]) -> None:
    if tuple(controller.ask(event.count)) != event.trials:
        then = next((each.versions for each in events if isinstance(each, Started)), {})
        raise JournalError(
            f"the search cannot be resumed: it asked for trials {[trial.number for trial in event.trials]} under "
            f"{_listed(then)}, and {_listed(versions())} asks for other ones; resume it where it was started"
        )


def _unexamined(events: Iterable[Event]) -> tuple[Trial, ...]:
    """Trials of the last ask that a killed process may have left without a look at them.

    Verdicts follow their ask at once and in its order, so any event of another kind says that all were looked at.
    """
    left: tuple[Trial, ...] = ()
    for event in events:
        if isinstance(event, Asked):
            left = event.trials
        elif isinstance(event, Examined):
            left = tuple(trial for trial in left if trial.number > event.trial)
        elif not isinstance(event, Resumed):
            left = ()
    return left


class _Loop:
    def __init__(
        self,
        controller: Controller,
        executor: Executor,
        journal: Journal,
        checkpoints: CheckpointStore,
        choose: Choose,
        preflight: Preflight | None,
        clock: Clock,
        on_event: Callable[[Event], None],
    ) -> None:
        self._controller = controller
        self._executor = executor
        self._journal = journal
        self._checkpoints = checkpoints
        self._choose = choose
        self._preflight = preflight
        self._clock = clock
        self._on_event = on_event
        self.asked: dict[int, Trial] = {}
        self.told: dict[int, Outcome] = {}
        self._verdicts = Verdicts()
        self._pending: deque[Trial] = deque()
        self._in_flight: set[int] = set()
        self._new: tuple[Trial, ...] = ()
        self._recent_errors: deque[str | None] = deque(maxlen=IDENTICAL_FAILURES)
        self._last_checkpoint: tuple[int, Checkpoint] | None = None

    def record(self, event: Event) -> None:
        self._journal.append(event)
        self._on_event(event)

    def replay(self) -> Finished | None:
        """Bring the controller to where the journal stands; untold trials are pending again."""
        events = list(self._journal)
        past = replay(self._controller, events, self._clock)
        self.asked, self.told = past.asked, past.told
        for verdict in past.verdicts.values():
            self._verdicts.add(verdict, self.told)
        trained = self._verdicts.trains
        self._recent_errors.extend(_failure(outcome) for number, outcome in past.told.items() if trained(number))
        self._new = _unexamined(events)
        if self._preflight is not None:
            for trial in self.asked.values():
                if trial not in self._new:
                    self._preflight.remember(trial, self._verdicts.of(trial.number))
        return past.finished

    def run(self) -> None:
        self._examine(self._new)
        self._pending = deque(trial for trial in self.asked.values() if self._is_due(trial))
        while True:
            self._fill()
            if not self._in_flight:
                return
            self._wait()

    def rebuild_live(self) -> None:
        """Make the checkpoints of live trials again where they are missing."""
        for number in sorted(self._controller.live()):
            if self.told[number].error is None:
                self._checkpoint_of(number)

    def stop_if_rejected(self) -> None:
        """Raises `SearchStoppedError` if candidates were rejected before training."""
        rejected = self._verdicts.rejected
        if rejected:
            searched = sum(trial.role == "search" for trial in self.asked.values())
            raise SearchStoppedError(
                f"no trial of the search reached the horizon: {len(rejected)} of its {searched} candidates were "
                f"rejected before training, the last one as {rejected[-1].reason}; search another space"
            )

    def _fill(self) -> None:
        """Give every free worker a trial, as far as there are any."""
        while (free := self._executor.slots - len(self._in_flight)) > 0:
            if self._pending:
                self._submit(self._pending.popleft())
            elif not self._ask(free):
                return

    def _ask(self, count: int) -> bool:
        """Ask for new trials and examine them; whether there were any."""
        self._clock.now = time.time()
        trials = tuple(self._controller.ask(count))
        if trials:
            summary = self._controller.summary()
            self.record(Asked(time=self._clock.now, count=count, trials=trials, summary=summary))
            self.asked |= {trial.number: trial for trial in trials}
            self._examine(trials)
            self._pending.extend(trial for trial in trials if self._is_due(trial))
        return bool(trials)

    def _examine(self, trials: Iterable[Trial]) -> None:
        if self._preflight is not None:
            for trial in trials:
                verdict = self._preflight.examine(trial, self.told)
                if verdict is not None:
                    self.record(verdict)
                    self._verdicts.add(verdict, self.told)
        self._settle()

    def _is_due(self, trial: Trial) -> bool:
        return trial.number not in self.told and self._verdicts.trains(trial.number)

    def _settle(self) -> None:
        """Tell the trials that need no training; those whose original the machine failed are trained after all."""
        for number, settled in self._verdicts.settled(self.told):
            trial = self.asked[number]
            if isinstance(settled, Outcome):
                self._tell(trial, settled)
                continue
            self.record(settled)
            self._verdicts.add(settled, self.told)
            if self._preflight is not None:
                self._preflight.remember(trial, settled)
            self._pending.append(trial)

    def _submit(self, trial: Trial) -> None:
        start = None if trial.parent is None else self._checkpoint_of(trial.parent)
        self._executor.submit(trial, start)
        self._in_flight.add(trial.number)

    def _checkpoint_of(self, number: int) -> Checkpoint:
        """A trial's checkpoint, rebuilt by running its lineage again where it is missing."""
        number = self._verdicts.holder(number)
        if self._last_checkpoint is not None and self._last_checkpoint[0] == number:
            return self._last_checkpoint[1]  # a round continues one trial many times
        stored = self._checkpoints.load(number)
        if stored is not None:
            self._last_checkpoint = number, stored
            return stored
        self._submit(self.asked[number])
        while True:
            done = next((done for done in self._wait(rebuilding=number) if done.trial.number == number), None)
            if done is None:
                continue
            checkpoint = done.checkpoint()
            if checkpoint is None:
                raise SearchStoppedError(
                    f"trial {number} gave a checkpoint before, and running it again failed: {done.outcome.error}"
                )
            self._checkpoints.save(number, checkpoint)
            self._last_checkpoint = number, checkpoint
            self.record(Rebuilt(trial=number, same=done.outcome.reward == self.told[number].reward))
            return checkpoint

    def _wait(self, rebuilding: int | None = None) -> list[Completed]:
        """Take in what the executor reports; the completions among it are returned."""
        completions = []
        for item in self._executor.wait():
            if isinstance(item, Lost):
                self.record(Retried(trial=item.trial.number, attempt=item.attempt, reason=item.reason))
                continue
            self._in_flight.discard(item.trial.number)
            completions.append(item)
            if item.trial.number != rebuilding:
                self._complete(item)
        return completions

    def _complete(self, done: Completed) -> None:
        number = done.trial.number
        if number in self.told:
            return
        if done.trial.role == "search" and done.outcome.error is None:
            checkpoint = done.checkpoint()
            if checkpoint is not None:
                self._checkpoints.save(number, checkpoint)
        self._tell(done.trial, done.outcome)
        self._settle()
        self._stop_if_all_fail_alike(_failure(done.outcome))

    def _tell(self, trial: Trial, outcome: Outcome) -> None:
        self.record(Told(trial=trial.number, outcome=outcome))
        self.told[trial.number] = outcome
        self._controller.tell(trial, outcome)
        winner = self._choose(self.asked, self.told)  # so far: one that is beaten never wins again
        winners = [] if winner is None else [winner]
        wanted = [*self._parents_of_untold(), *self._best_first(self._controller.live()), trial.number, *winners]
        self._checkpoints.keep_only(map(self._verdicts.holder, [*wanted, *self._best_first(self.told)[:3]]))

    def _parents_of_untold(self) -> list[int]:
        """Whose checkpoints are sure to be needed."""
        untold = (trial for number, trial in self.asked.items() if number not in self.told)
        return sorted({trial.parent for trial in untold if trial.parent is not None})

    def _best_first(self, numbers: Iterable[int]) -> list[int]:
        """Those with a reward; the best are the likeliest to be gone on with."""
        scored = [(o.reward, n) for n in numbers if (o := self.told.get(n)) is not None and o.reward is not None]
        return [number for _, number in sorted(scored, key=lambda pair: (-pair[0], pair[1]))]

    def _stop_if_all_fail_alike(self, error: str | None) -> None:
        self._recent_errors.append(error)
        alike = {error and without_numbers(error) for error in self._recent_errors}
        if len(self._recent_errors) == IDENTICAL_FAILURES and error and len(alike) == 1:
            raise SearchStoppedError(f"{IDENTICAL_FAILURES} trials in a row failed alike: {error}")


def _failure(outcome: Outcome) -> str | None:
    """Why a trial failed, None where it did not or its own loss diverged: five such losses are no broken machine."""
    return outcome.error if spoiled(outcome) else None


def _listed(names: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in names.items()) or "unknown versions"
