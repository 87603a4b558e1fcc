"""Budgets: when a search asks for no more trials of its own. Baselines, trials in flight and finals still run to their
end."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from lfs.controller import Controller
from lfs.trial import Trial
from search_space.frozen import FrozenModel, Real
from search_space.spec import LossSpec
from trainers.outcome import Outcome


class Budget(FrozenModel):
    """Limits of a search; None: no limit. The first one that is reached ends it."""

    trials: Annotated[int, Field(ge=1)] | None = None
    epochs: Annotated[int, Field(ge=1)] | None = None
    """Trained epochs over all trials, those in flight included."""
    images: Annotated[int, Field(ge=1)] | None = None
    """Training images seen over all finished trials."""
    seconds: Annotated[Real, Field(gt=0)] | None = None
    """Wall time since the search began, pauses included."""
    reward: Annotated[Real, Field()] | None = None
    """A trial with at least this reward is good enough."""


@dataclass(slots=True)
class Clock:
    """The time, as the journal has it: a replay sets it to that of each event, so that it decides as the search did."""

    began: float = 0.0
    now: float = 0.0


class Budgeted:
    """A controller that asks for nothing more once its budget is spent.

    Of the limits on trials, epochs and images so much is kept back as `finals` trainings of `final_epochs` take. Raises
    ValueError where nothing is left then.
    """

    def __init__(
        self, inner: Controller, budget: Budget, clock: Clock, *, finals: int = 0, final_epochs: int = 0
    ) -> None:
        kept = finals * final_epochs
        for name, limit, needed in (("trials", budget.trials, finals), ("epochs", budget.epochs, kept)):
            if limit is not None and limit <= needed:
                raise ValueError(f"budget.{name} must be above what the finals take, {needed}, but got {limit}")
        self._inner, self._budget, self._clock = inner, budget, clock
        self._finals, self._kept_epochs, self._told_epochs = finals, kept, 0
        self._trials = self._epochs = self._images = 0
        self._best: float | None = None
        self._asked: dict[int, Trial] = {}

    def ask(self, count: int) -> Sequence[Trial]:
        """The controller's trials while there is budget; as many as it has trials left."""
        if self._budget.trials is not None:
            count = min(count, self._budget.trials - self._finals - self._trials)
        trials: list[Trial] = []
        at_once = count if self._budget.epochs is None else 1  # what a trial takes is not known before
        while len(trials) < count and not self._spent():
            asked = self._inner.ask(at_once)
            for trial in asked:
                self._asked[trial.number] = trial
                self._trials += 1
                self._epochs += trial.epochs_of_its_own(self._asked)
            trials += asked
            if len(asked) < at_once:
                break
        return trials

    def _spent(self) -> bool:
        kept_images = self._kept_epochs * self._images / self._told_epochs if self._told_epochs else 0
        used = (
            (self._trials + self._finals, self._budget.trials),
            (self._epochs + self._kept_epochs, self._budget.epochs),
            (self._images + kept_images, self._budget.images),
            (self._clock.now - self._clock.began, self._budget.seconds),
            (self._best, self._budget.reward),
        )
        return any(limit is not None and amount is not None and amount >= limit for amount, limit in used)

    def tell(self, trial: Trial, outcome: Outcome) -> None:
        """Count what the trial cost, and hand the outcome on."""
        self._images += outcome.images
        epochs = trial.epochs_of_its_own(self._asked)
        if outcome.images:
            self._told_epochs += epochs
        else:
            self._epochs -= epochs  # it was not trained: rejected, or given another's outcome
        if outcome.reward is not None:
            self._best = outcome.reward if self._best is None else max(self._best, outcome.reward)
        self._inner.tell(trial, outcome)

    def live(self) -> frozenset[int]:
        """The controller's live trials."""
        return self._inner.live()

    def summary(self) -> Mapping[str, float]:
        """The controller's state, and the images seen so far."""
        return {**self._inner.summary(), "images": float(self._images)}

    def constant(self) -> LossSpec | None:
        """The controller's recommendation."""
        return self._inner.constant()
