"""Searches in rounds with broadcast of the best (Wang et al., ICML 2020, Algorithm 1).

Which losses a round tries, a proposer says (`lfs.proposers`). A round trains B copies of the same weights for one
epoch under B losses; the best copy's weights and optimiser state start every copy of the next round. A warm-up comes
first, under one loss: a single trial up to its last epoch, then B copies of that epoch in different orders of the
data, the best of which starts round 1. The spread of the copies' rewards is the noise of a round's rewards.
"""

from collections.abc import Mapping, Sequence
from itertools import count as count_from

import numpy as np

from lfs.controller import finite_rewards
from lfs.proposers import Proposer
from lfs.trial import Trial
from search_space.domains import Space
from search_space.schedule import LossSchedule
from search_space.spec import LossSpec
from trainers.outcome import Outcome

NOISE_FLOOR = 1e-3
"""The least spread of rewards that is taken for signal, whatever the warm-up showed."""

FAILED_ROUNDS = 3
"""So many rounds in a row without a single outcome end the search."""


class RoundSearch:
    """Rounds of `batch` one-epoch trials up to `horizon_epochs`, each from the best of the last round.

    The warm-up trains under the space's `start`. Without `broadcast_momentum` the copies of a round take over weights
    alone, and their optimisers start afresh. With `cooldown_epochs` a copy is rewarded for what a branch of so many
    further epochs makes of it while the learning rate falls to 0 (fewer near the horizon): at a high rate a reward
    measures the rate as much as the loss.

    With `constant` there is nothing to draw: all train under it, and the copies of a round differ, as those of the
    warm-up do, in the order of the data. What is gained then is gained by selection.
    """

    def __init__(
        self,
        space: Space,
        proposer: Proposer,
        *,
        batch: int,
        warmup_epochs: int,
        horizon_epochs: int,
        seed: int,
        broadcast_momentum: bool = True,
        cooldown_epochs: int = 0,
        constant: LossSpec | None = None,
    ) -> None:
        if not 1 <= warmup_epochs < horizon_epochs:
            raise ValueError(
                f"search.warmup_epochs must lie in [1, recipe.horizon_epochs), but got {warmup_epochs} "
                f"with horizon_epochs={horizon_epochs}"
            )
        self._space = space
        self._proposer = proposer
        self._batch = batch
        self._warmup_epochs = warmup_epochs
        self._horizon_epochs = horizon_epochs
        self._seed = seed
        self._broadcast_momentum = broadcast_momentum
        self._cooldown_epochs = cooldown_epochs
        self._constant = constant
        self._numbers = count_from()
        self._round = 0
        self._noise = NOISE_FLOOR
        self._worst: float | None = None
        self._parent: Trial | None = None
        self._failed_rounds = 0
        self._waiting = self._first_trials(space.decode(space.start) if constant is None else constant)
        self._asked: list[Trial] = []
        self._outcomes: dict[int, Outcome] = {}

    def _first_trials(self, spec: LossSpec) -> list[Trial]:
        schedule = LossSchedule.constant(spec)
        if self._warmup_epochs == 1:
            return self._copies(schedule, None)
        epochs = self._warmup_epochs - 1
        return [Trial(number=next(self._numbers), schedule=schedule, seed=self._seed, epochs=epochs, round=0)]

    def _copies(self, schedule: LossSchedule, parent: Trial | None) -> list[Trial]:
        """The last epoch of the warm-up, in as many orders of the data as a round has copies."""
        return [
            Trial(
                number=next(self._numbers),
                schedule=schedule,
                seed=seed,
                epochs=self._warmup_epochs,
                parent=None if parent is None else parent.number,
                round=0,
                cooldown_epochs=self._cooldown_after(self._warmup_epochs),
            )
            for seed in self._orders(self._seed)
        ]

    def _orders(self, first: int) -> list[int]:
        """The seeds of copies that differ in the order of the data."""
        keys = [
            [self._seed, copy] if self._round == 0 else [self._seed, copy, self._round] for copy in range(self._batch)
        ]
        return [first, *(int(np.random.SeedSequence(key).generate_state(1)[0]) for key in keys[1:])]

    def _cooldown_after(self, epochs: int) -> int:
        return min(self._cooldown_epochs, self._horizon_epochs - epochs)

    def _next_round(self, parent: Trial) -> list[Trial]:
        if self._constant is None:
            rng = np.random.default_rng([self._seed, self._round])
            specs = self._proposer.propose(self._space, rng, self._batch)
            seeds = [parent.seed] * self._batch
        else:
            specs, seeds = [self._constant] * self._batch, self._orders(parent.seed)
        return [
            Trial(
                number=next(self._numbers),
                schedule=parent.schedule.then(parent.epochs, spec),
                seed=seed,
                epochs=parent.epochs + 1,
                parent=parent.number,
                round=self._round,
                fresh_optimizer=not self._broadcast_momentum,
                cooldown_epochs=self._cooldown_after(parent.epochs + 1),
            )
            for spec, seed in zip(specs, seeds, strict=True)
        ]

    def ask(self, count: int) -> Sequence[Trial]:
        """The rest of the round, up to `count`; nothing while the round is out."""
        asked, self._waiting = self._waiting[:count], self._waiting[count:]
        self._asked += asked
        return asked

    def tell(self, trial: Trial, outcome: Outcome) -> None:
        """Note the outcome; with the last one of a round, learn and make the next round."""
        self._outcomes[trial.number] = outcome
        if self._waiting or len(self._outcomes) < len(self._asked):
            return
        self._finish_round()

    def _finish_round(self) -> None:
        trials = sorted(self._asked, key=lambda trial: trial.number)
        outcomes = [self._outcomes[trial.number] for trial in trials]
        rewards_B = np.array(finite_rewards(outcomes, worst=self._worst))
        self._worst = float(rewards_B.min()) if self._worst is None else min(self._worst, float(rewards_B.min()))
        alive = [index for index, outcome in enumerate(outcomes) if outcome.error is None]
        self._asked, self._outcomes = [], {}
        if alive:
            self._parent = trials[max(alive, key=lambda index: float(rewards_B[index]))]
        self._failed_rounds = 0 if alive else self._failed_rounds + 1
        if trials[0].epochs < self._warmup_epochs:  # the lone part of the warm-up; without it the copies start afresh
            self._waiting = self._copies(trials[0].schedule, self._parent)
            return
        if self._parent is None or self._failed_rounds == FAILED_ROUNDS:
            return
        if self._round == 0:
            self._noise = max(NOISE_FLOOR, float(rewards_B[alive].std(ddof=1)) if len(alive) > 1 else 0.0)
        else:
            self._proposer.learn(rewards_B, noise=self._noise)
        self._round += 1
        if self._parent.epochs < self._horizon_epochs:
            self._waiting = self._next_round(self._parent)

    def live(self) -> frozenset[int]:
        """The round in flight and what it started from."""
        if not self._waiting and not self._asked:
            return frozenset()
        parents = set() if self._parent is None else {self._parent.number}
        return frozenset(parents | {trial.number for trial in self._asked})

    def summary(self) -> Mapping[str, float]:
        """Round, noise of the reward, and the proposer's state."""
        return {"round": float(self._round), "noise": self._noise, **self._proposer.summary(self._space)}

    def constant(self) -> LossSpec | None:
        """The proposer's recommendation, or the one loss."""
        return self._constant or self._proposer.constant(self._space)
