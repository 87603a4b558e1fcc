"""`Controller`: what asks for candidate losses and learns from their outcomes."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from lfs.trial import Trial
from search_space.spec import LossSpec
from trainers.outcome import Outcome


class Controller(Protocol):
    """A deterministic function of its seed and the order of its asks and tells: that is what makes resume a replay.

    `ask(count)` returns up to `count` trials. It may return fewer, and none while it waits for outcomes; an empty ask
    changes no state. Nothing asked and nothing in flight means finished.
    """

    def ask(self, count: int) -> Sequence[Trial]:
        """Up to `count` new trials, numbered upwards without gaps."""

    def tell(self, trial: Trial, outcome: Outcome) -> None:
        """Learn the outcome of a trial that was asked."""

    def live(self) -> frozenset[int]:
        """The trials whose checkpoints may still be continued, those in flight included."""

    def summary(self) -> Mapping[str, float]:
        """The numbers that show its state: `mu/<parameter>`, `sigma/<parameter>` in natural units, `round`, ..."""

    def constant(self) -> LossSpec | None:
        """The one constant loss that it would recommend now, if it learns one."""


def finite_rewards(outcomes: Sequence[Outcome], *, worst: float | None) -> list[float]:
    """Rewards for a controller that needs numbers: a failure counts as the worst finite reward so far, 0 if none."""
    known = [outcome.reward for outcome in outcomes if outcome.reward is not None]
    candidates = known if worst is None else [*known, worst]
    substitute = min(candidates, default=0.0)
    return [substitute if outcome.reward is None else outcome.reward for outcome in outcomes]


class WithBaselines:
    """A searching controller and a list of baselines as one controller.

    Baselines fill the slots that the search leaves free, so a worker that would wait for the end of a round trains
    one instead. Trials are renumbered; outcomes of baselines never reach the search.
    """

    def __init__(self, main: Controller, baselines: Controller) -> None:
        self._main = main
        self._baselines = baselines
        self._origin: dict[int, tuple[Controller, Trial]] = {}
        self._number: dict[int, int] = {}
        """The main controller's numbers, as ours."""

    def ask(self, count: int) -> Sequence[Trial]:
        """The search's trials first, baselines in what room is left."""
        asked = [self._adopt(self._main, trial) for trial in self._main.ask(count)]
        if len(asked) < count:
            asked += [self._adopt(self._baselines, trial) for trial in self._baselines.ask(count - len(asked))]
        return asked

    def _adopt(self, owner: Controller, trial: Trial) -> Trial:
        number = len(self._origin)
        self._origin[number] = owner, trial
        if owner is self._main:
            self._number[trial.number] = number
        parent, repeats = (None if each is None else self._number[each] for each in (trial.parent, trial.repeats))
        return replace(trial, number=number, parent=parent, repeats=repeats)

    def tell(self, trial: Trial, outcome: Outcome) -> None:
        """Hand the outcome to the controller that asked."""
        owner, original = self._origin[trial.number]
        owner.tell(original, outcome)

    def live(self) -> frozenset[int]:
        """The search's live trials."""
        return frozenset(self._number[number] for number in self._main.live())

    def summary(self) -> Mapping[str, float]:
        """The search's state."""
        return self._main.summary()

    def constant(self) -> LossSpec | None:
        """The search's recommendation."""
        return self._main.constant()
