"""Controllers that train each candidate of a sampler on its own: to the end, or by successive halving.

`Independent` trains every candidate for the whole horizon. `Halving` is asynchronous successive halving (ASHA, Li et
al., MLSys 2020) and, with several brackets, Hyperband (Li et al., JMLR 2018): a promoted candidate continues its own
trial with the same weights, optimiser and order of the data, so that no epoch is trained twice.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count as count_from

from lfs.samplers import Sampler
from lfs.trial import Trial
from search_space.spec import LossSpec
from trainers.outcome import Outcome


class Independent:
    """`trials` candidates, each trained for the whole horizon from scratch under one seed."""

    def __init__(self, sampler: Sampler, *, trials: int, horizon_epochs: int, seed: int) -> None:
        self._sampler, self._trials = sampler, trials
        self._horizon_epochs, self._seed = horizon_epochs, seed
        self._asked = 0

    def ask(self, count: int) -> Sequence[Trial]:
        """The next candidates."""
        numbers = range(self._asked, min(self._asked + count, self._trials))
        self._asked = max(self._asked, numbers.stop)
        trials = []
        for number in numbers:
            schedule, recipe = self._sampler.propose(number)
            trials.append(
                Trial(number=number, schedule=schedule, seed=self._seed, epochs=self._horizon_epochs, recipe=recipe)
            )
        return trials

    def tell(self, trial: Trial, outcome: Outcome) -> None:
        """Hand the outcome to the sampler."""
        self._sampler.learn(trial.number, outcome, epochs=trial.epochs)

    def live(self) -> frozenset[int]:
        """No trial continues another."""
        return frozenset()

    def summary(self) -> Mapping[str, float]:
        """The sampler's state."""
        return self._sampler.summary()

    def constant(self) -> LossSpec | None:
        """The winner is the recommendation."""
        return None


@dataclass(slots=True)
class _Rung:
    """The candidates that have trained to `epochs`."""

    epochs: int
    rewards: dict[int, float] = field(default_factory=dict)
    """Reward by candidate, in the order of the tells; failed ones are left out."""
    asked: int = 0
    told: int = 0
    lost: int = 0
    """Promoted candidates that failed on the way to the next rung: others take their places."""
    promoted: set[int] = field(default_factory=set)

    def ranked(self) -> list[int]:
        """Candidates from the best down; ties go to the earlier candidate."""
        return sorted(self.rewards, key=lambda candidate: (-self.rewards[candidate], candidate))

    def promotable(self, eta: int) -> int | None:
        """The best candidate in the top 1/η that has not been promoted."""
        top = self.ranked()[: self.told // eta + self.lost]
        return next((candidate for candidate in top if candidate not in self.promoted), None)


class _Bracket:
    """One ladder of rungs for `size` candidates."""

    def __init__(self, rungs: Sequence[int], size: int, eta: int) -> None:
        self.rungs = [_Rung(epochs) for epochs in rungs]
        self.size, self.eta = size, eta
        self.candidates: list[int] = []

    def promotion(self) -> tuple[int, int] | None:
        """(candidate, rung it goes to), the highest rung first."""
        for level in range(len(self.rungs) - 2, -1, -1):
            candidate = self.rungs[level].promotable(self.eta)
            if candidate is not None:
                self.rungs[level].promoted.add(candidate)
                return candidate, level + 1
        return None

    def may_promote(self) -> Iterator[tuple[int, int]]:
        """(candidate, rung where it stands) of all that a promotion may still reach."""
        to_come = self.size - len(self.candidates)
        for level, rung in enumerate(self.rungs[:-1]):
            top = rung.ranked()[: (rung.asked + to_come) // self.eta + rung.lost]
            waiting = [candidate for candidate in top if candidate not in rung.promoted]
            yield from ((candidate, level) for candidate in waiting)
            to_come = min(to_come + len(waiting) + rung.asked - rung.told, self.size)


class Halving:
    """Successive halving over `brackets` of (first rung's epochs, candidates), up to `horizon_epochs`.

    The rungs of a bracket are first, first·η, ... and the horizon. Of the candidates told at a rung the best 1/η are
    promoted, each as soon as it belongs to them. The sampler learns at each rung, and is told at how many epochs:
    rewards of different rungs do not compare. Raises ValueError for a bracket from which nothing would reach the
    horizon.
    """

    def __init__(
        self,
        sampler: Sampler,
        *,
        brackets: Sequence[tuple[int, int]],
        eta: int,
        horizon_epochs: int,
        seed: int,
    ) -> None:
        self._sampler, self._seed = sampler, seed
        self._brackets = [_Bracket(rungs_from(first, horizon_epochs, eta), size, eta) for first, size in brackets]
        for bracket in self._brackets:
            needed = eta ** (len(bracket.rungs) - 1)
            if bracket.size < needed:
                raise ValueError(
                    f"a bracket from {bracket.rungs[0].epochs} to {horizon_epochs} epochs with eta={eta} needs "
                    f"{needed} candidates for one to reach the end, but has {bracket.size}"
                )
        self._numbers, self._new = count_from(), count_from()
        self._place: dict[int, tuple[_Bracket, int, int]] = {}
        """Bracket, candidate and rung of a trial."""
        self._trial: dict[tuple[int, int], Trial] = {}
        """The trial of a candidate at a rung."""
        self._continued: dict[int, int] = {}
        """The parents of the promoted trials that are out."""

    def ask(self, count: int) -> Sequence[Trial]:
        """Promotions first, the highest rung before all; then new candidates, to the emptiest bracket."""
        trials: list[Trial] = []
        while len(trials) < count and (trial := self._next()) is not None:
            trials.append(trial)
        return trials

    def _next(self) -> Trial | None:
        for bracket in self._brackets:
            promotion = bracket.promotion()
            if promotion is not None:
                return self._promoted(bracket, *promotion)
        bracket = min(self._brackets, key=lambda bracket: len(bracket.candidates) / bracket.size)
        if len(bracket.candidates) == bracket.size:
            return None
        candidate = next(self._new)
        bracket.candidates.append(candidate)
        schedule, recipe = self._sampler.propose(candidate)
        trial = Trial(
            number=next(self._numbers),
            schedule=schedule,
            seed=self._seed,
            epochs=bracket.rungs[0].epochs,
            round=0,
            recipe=recipe,
        )
        return self._placed(trial, bracket, candidate, 0)

    def _promoted(self, bracket: _Bracket, candidate: int, level: int) -> Trial:
        below = self._trial[candidate, level - 1]
        trial = Trial(
            number=next(self._numbers),
            schedule=below.schedule,
            seed=below.seed,
            epochs=bracket.rungs[level].epochs,
            parent=below.number,
            round=level,
            recipe=below.recipe,
        )
        self._continued[trial.number] = below.number
        return self._placed(trial, bracket, candidate, level)

    def _placed(self, trial: Trial, bracket: _Bracket, candidate: int, level: int) -> Trial:
        bracket.rungs[level].asked += 1
        self._place[trial.number] = bracket, candidate, level
        self._trial[candidate, level] = trial
        return trial

    def tell(self, trial: Trial, outcome: Outcome) -> None:
        """Note the reward at its rung, and hand the outcome to the sampler."""
        self._continued.pop(trial.number, None)
        bracket, candidate, level = self._place[trial.number]
        rung = bracket.rungs[level]
        rung.told += 1
        if outcome.reward is not None:
            rung.rewards[candidate] = outcome.reward
        elif level > 0:
            bracket.rungs[level - 1].lost += 1
        self._sampler.learn(candidate, outcome, epochs=trial.epochs)

    def live(self) -> frozenset[int]:
        """The trials that are being continued, or that a promotion may still continue."""
        may_be = {self._trial[place].number for bracket in self._brackets for place in bracket.may_promote()}
        return frozenset(may_be | set(self._continued.values()))

    def summary(self) -> Mapping[str, float]:
        """How many candidates each rung of each bracket has seen, and the sampler's state."""
        rungs = {
            f"bracket_{index}/told_at_{rung.epochs}_epochs": float(rung.told)
            for index, bracket in enumerate(self._brackets)
            for rung in bracket.rungs
        }
        return {**rungs, **self._sampler.summary()}

    def constant(self) -> LossSpec | None:
        """The winner is the recommendation."""
        return None


def rungs_from(first: int, horizon_epochs: int, eta: int) -> list[int]:
    """first, first·η, ... below the horizon, and the horizon."""
    rungs = []
    while first < horizon_epochs:
        rungs.append(first)
        first *= eta
    return [*rungs, horizon_epochs]


def hyperband(candidates: int, *, horizon_epochs: int, min_epochs: int, eta: int) -> list[tuple[int, int]]:
    """Hyperband's brackets: each begins one rung higher than the last, with as many candidates as cost about the same.

    `candidates` is the size of the first, the most aggressive one; bracket k has candidates·K/(K − k)·η^−k of K.
    """
    ladder = rungs_from(min_epochs, horizon_epochs, eta)
    brackets = len(ladder)
    sizes = [
        max(eta ** (brackets - 1 - k), math.ceil(candidates * brackets / (brackets - k) / eta**k))
        for k in range(brackets)
    ]
    return list(zip(ladder, sizes, strict=True))
