"""Finals: the best candidates of a search are trained again under other seeds, and the best mean wins.

One training's score is half luck, and the best of many is above all the luckiest. Means over seeds undo that for the
few that matter.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from lfs.controller import Controller
from lfs.trial import Scalar, Trial, furthest
from search_space.schedule import LossSchedule
from search_space.spec import LossSpec
from trainers.outcome import Outcome

_FINALS = 1


class Finals:
    """A search, and then `seeds` further trainings, from scratch, of each of its best `candidates`.

    The best are those with the highest `score` among the trials that reached their horizon, or, where none did, that
    trained the longest; each schedule counts once in each recipe. All finalists share the further seeds.
    """

    def __init__(
        self,
        inner: Controller,
        *,
        candidates: int,
        seeds: int,
        seed: int,
        horizon_epochs: int,
        score: Callable[[Outcome], float],
    ) -> None:
        self._inner, self._candidates, self._score = inner, candidates, score
        self._horizon_epochs = horizon_epochs
        # the last key keeps them apart from those of members and copies, [seed, member]
        self._seeds = np.random.SeedSequence([seed, seeds, 0, _FINALS]).generate_state(seeds)
        self._asked: dict[int, Trial] = {}
        self._outcomes: dict[int, Outcome] = {}
        self._waiting: list[Trial] | None = None
        """The finals that were not asked for yet; None while the search goes on."""

    def ask(self, count: int) -> Sequence[Trial]:
        """The search's trials; once it is over and all told, the finals."""
        if count < 1:
            return []
        if self._waiting is None:
            trials = self._inner.ask(count)
            self._asked |= {trial.number: trial for trial in trials}
            if trials or len(self._outcomes) < len(self._asked):
                return trials
            self._waiting = self._drawn_up()
        asked, self._waiting = self._waiting[:count], self._waiting[count:]
        self._asked |= {trial.number: trial for trial in asked}
        return asked

    def _drawn_up(self) -> list[Trial]:
        """Seed by seed, so that all finalists have had equally many whenever the search is stopped."""
        first = max(self._asked, default=-1) + 1
        finalists = [self._asked[number] for number in self._finalists()]
        pairs = [(int(seed), trial) for seed in self._seeds for trial in finalists]
        return [
            Trial(
                number=first + index,
                schedule=trial.schedule,
                seed=seed,
                epochs=trial.epochs,
                role="final",
                recipe=trial.recipe,
                repeats=trial.number,
            )
            for index, (seed, trial) in enumerate(pairs)
        ]

    def _finalists(self) -> list[int]:
        """The best first."""
        done = [
            self._asked[number]
            for number, outcome in self._outcomes.items()
            if self._asked[number].role == "search" and outcome.error is None and outcome.images
        ]
        deep = furthest(done, self._horizon_epochs)
        scores = {trial.number: self._score(self._outcomes[trial.number]) for trial in deep}
        best: dict[tuple[LossSchedule, frozenset[tuple[str, Scalar]]], int] = {}
        for number in sorted(scores, key=lambda number: (-scores[number], number)):
            trial = self._asked[number]
            best.setdefault((trial.schedule, frozenset(trial.recipe.items())), number)
            if len(best) == self._candidates:
                break
        return list(best.values())

    def tell(self, trial: Trial, outcome: Outcome) -> None:
        """Note the outcome; those of the search are handed on."""
        self._outcomes[trial.number] = outcome
        if trial.role == "search":
            self._inner.tell(trial, outcome)

    def live(self) -> frozenset[int]:
        """The search's live trials, and those that are finalists as it stands."""
        over = self._waiting == [] and len(self._outcomes) == len(self._asked)
        return self._inner.live() | (frozenset() if over else frozenset(self._finalists()))

    def summary(self) -> Mapping[str, float]:
        """The search's state."""
        return self._inner.summary()

    def constant(self) -> LossSpec | None:
        """The search's recommendation."""
        return self._inner.constant()
