"""The search loop: ask, run, tell, and write it all down. Resume is replay of the same loop's journal."""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from lfs.checkpoints import Checkpoint, CheckpointStore
from lfs.controller import Controller
from lfs.executor import Completed, Executor, Lost
from lfs.journal import Asked, Event, Finished, Journal, JournalError, Rebuilt, Retried, Started, Told
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
    on_event: Callable[[Event], None] = lambda _: None,
) -> Finished:
    """Run a search to its end, from wherever its journal stands.

    Raises `JournalError` when the journal cannot be replayed, `SearchStoppedError` when trials keep failing alike.
    """
    loop = _Loop(controller, executor, journal, checkpoints, on_event)
    finished = loop.replay()
    if finished is not None:
        return finished
    loop.run()
    winner = choose(loop.asked, loop.told)
    finished = Finished(winner=winner, summary=controller.summary(), constant=controller.constant())
    loop.record(finished)
    return finished


@dataclass(slots=True)
class Past:
    """What a journal says has happened. `told` is in the order of the events; the first outcome of a trial counts."""

    asked: dict[int, Trial] = field(default_factory=dict)
    told: dict[int, Outcome] = field(default_factory=dict)
    finished: Finished | None = None


def replay(controller: Controller, events: Sequence[Event]) -> Past:
    """Bring a fresh controller to where the events end.

    Raises `JournalError` when it asks for other trials than the journal says, or when an event of a trial stands before
    the trial was asked for.
    """
    past = Past()
    for event in events:
        if isinstance(event, Asked):
            _replay_ask(controller, event, events)
            past.asked |= {trial.number: trial for trial in event.trials}
        elif isinstance(event, Told | Retried | Rebuilt) and event.trial not in past.asked:
            raise JournalError(f"the journal is damaged: trial {event.trial} was never asked for; restore its lines")
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


class _Loop:
    def __init__(
        self,
        controller: Controller,
        executor: Executor,
        journal: Journal,
        checkpoints: CheckpointStore,
        on_event: Callable[[Event], None],
    ) -> None:
        self._controller = controller
        self._executor = executor
        self._journal = journal
        self._checkpoints = checkpoints
        self._on_event = on_event
        self.asked: dict[int, Trial] = {}
        self.told: dict[int, Outcome] = {}
        self._pending: deque[Trial] = deque()
        self._in_flight: set[int] = set()
        self._recent_errors: deque[str | None] = deque(maxlen=IDENTICAL_FAILURES)

    def record(self, event: Event) -> None:
        self._journal.append(event)
        self._on_event(event)

    def replay(self) -> Finished | None:
        """Bring the controller to where the journal stands; untold trials are pending again."""
        past = replay(self._controller, list(self._journal))
        self.asked, self.told = past.asked, past.told
        self._recent_errors.extend(outcome.error for outcome in past.told.values())
        self._pending.extend(trial for number, trial in self.asked.items() if number not in self.told)
        return past.finished

    def run(self) -> None:
        while True:
            self._fill()
            if not self._in_flight:
                return
            self._wait()

    def _fill(self) -> None:
        """Give every free worker a trial, as far as there are any."""
        while (free := self._executor.slots - len(self._in_flight)) > 0:
            if not self._pending:
                trials = tuple(self._controller.ask(free))
                if not trials:
                    return
                self.record(Asked(count=free, trials=trials, summary=self._controller.summary()))
                self.asked |= {trial.number: trial for trial in trials}
                self._pending.extend(trials)
            self._submit(self._pending.popleft())

    def _submit(self, trial: Trial) -> None:
        start = None if trial.parent is None else self._checkpoint_of(trial.parent)
        self._executor.submit(trial, start)
        self._in_flight.add(trial.number)

    def _checkpoint_of(self, number: int) -> Checkpoint:
        """A trial's checkpoint, rebuilt by running its lineage again where it is missing."""
        stored = self._checkpoints.load(number)
        if stored is not None:
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
                self._tell(item)
        return completions

    def _tell(self, done: Completed) -> None:
        number = done.trial.number
        if number in self.told:
            return
        if done.trial.role == "search" and done.outcome.error is None:
            checkpoint = done.checkpoint()
            if checkpoint is not None:
                self._checkpoints.save(number, checkpoint)
        self.record(Told(trial=number, outcome=done.outcome))
        self.told[number] = done.outcome
        self._controller.tell(done.trial, done.outcome)
        self._checkpoints.keep_only([*sorted(self._controller.live()), number, *self._best(3)])
        self._stop_if_all_fail_alike(done.outcome.error)

    def _best(self, count: int) -> list[int]:
        rewards = {n: o.reward for n, o in self.told.items() if o.reward is not None}
        return sorted(rewards, key=lambda number: -rewards[number])[:count]

    def _stop_if_all_fail_alike(self, error: str | None) -> None:
        self._recent_errors.append(error)
        if len(self._recent_errors) == IDENTICAL_FAILURES and error and set(self._recent_errors) == {error}:
            raise SearchStoppedError(f"{IDENTICAL_FAILURES} trials in a row failed alike: {error}")


def _listed(names: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in names.items()) or "unknown versions"
