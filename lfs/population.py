"""Population-based training of losses (Jaderberg et al. 2017): exploit a better member's weights, perturb its loss."""

from collections.abc import Mapping, Sequence
from itertools import count as count_from

import numpy as np

from lfs.controller import finite_rewards
from lfs.trial import Trial
from search_space.domains import Domain, Parameter, Space, Values, walk
from search_space.schedule import LossSchedule
from search_space.spec import LossSpec
from trainers.outcome import Outcome

RESAMPLE = 0.2
"""How often a perturbed parameter is drawn afresh."""

STEP = 0.15
"""Standard deviation of a perturbation, in units of the parameter's range."""


class PopulationTraining:
    """`members` candidates that train side by side, `step_epochs` at a time, up to `horizon_epochs`.

    After each step the worst `share` of them start over from the best: weights, optimiser and order of the data of a
    member drawn from the best `share`, under a perturbed copy of its loss; all others go on under their own. Steps are
    in lockstep, so that members are compared at equal epochs. `members` also initialise the population with draws of
    the space, each under a seed of its own. Raises ValueError when `step_epochs` is not below the horizon.
    """

    def __init__(
        self, space: Space, *, members: int, step_epochs: int, share: float, horizon_epochs: int, seed: int
    ) -> None:
        if not 1 <= step_epochs < horizon_epochs:
            raise ValueError(
                f"search.step_epochs must lie in [1, recipe.horizon_epochs), but got {step_epochs} with "
                f"horizon_epochs={horizon_epochs}"
            )
        self._space, self._seed = space, seed
        self._step_epochs, self._horizon_epochs = step_epochs, horizon_epochs
        self._replaced = max(1, int(share * members))
        self._numbers = count_from()
        self._generation = 0
        self._worst: float | None = None
        self._values: dict[int, Values] = {}
        """The parameters that each trial trains under."""
        self._asked: list[Trial] = []
        self._outcomes: dict[int, Outcome] = {}
        self._waiting = [self._born(member) for member in range(members)]

    def _born(self, member: int) -> Trial:
        rng = np.random.default_rng([self._seed, 0, member])
        values = self._space.walk(lambda _, parameter: parameter.draw(rng))
        seed = int(np.random.SeedSequence([self._seed, member]).generate_state(1)[0]) if member else self._seed
        return self._trial(values, LossSchedule.constant(self._space.decode(values)), seed, None)

    def _trial(self, values: Values, schedule: LossSchedule, seed: int, parent: Trial | None) -> Trial:
        before = 0 if parent is None else parent.epochs
        trial = Trial(
            number=next(self._numbers),
            schedule=schedule,
            seed=seed,
            epochs=min(before + self._step_epochs, self._horizon_epochs),
            parent=None if parent is None else parent.number,
            round=self._generation,
        )
        self._values[trial.number] = values
        return trial

    def ask(self, count: int) -> Sequence[Trial]:
        """The rest of the generation, up to `count`; nothing while it is out."""
        asked, self._waiting = self._waiting[:count], self._waiting[count:]
        self._asked += asked
        return asked

    def tell(self, trial: Trial, outcome: Outcome) -> None:
        """Note the outcome; with the last one of a generation, make the next."""
        self._outcomes[trial.number] = outcome
        if self._waiting or len(self._outcomes) < len(self._asked):
            return
        trials = sorted(self._asked, key=lambda trial: trial.number)
        outcomes = [self._outcomes[trial.number] for trial in trials]
        rewards = finite_rewards(outcomes, worst=self._worst)
        self._worst = min([*rewards, *([] if self._worst is None else [self._worst])])
        self._asked, self._outcomes = [], {}
        ranked = sorted(range(len(trials)), key=lambda index: (-rewards[index], index))
        alive = [index for index in ranked if outcomes[index].error is None]
        if not alive or trials[0].epochs == self._horizon_epochs:
            return
        self._generation += 1
        self._waiting = self._next_generation(trials, ranked, alive)

    def _next_generation(self, trials: Sequence[Trial], ranked: Sequence[int], alive: Sequence[int]) -> list[Trial]:
        best, losers = alive[: self._replaced], set(ranked[-self._replaced :]) | (set(ranked) - set(alive))
        children = []
        for index, trial in enumerate(trials):
            rng = np.random.default_rng([self._seed, self._generation, index])
            if index not in losers or index in best:
                children.append(self._trial(self._values[trial.number], trial.schedule, trial.seed, trial))
                continue
            parent = trials[best[int(rng.integers(len(best)))]]
            values = perturbed(self._values[parent.number], self._space.parameters, rng)
            schedule = parent.schedule.then(parent.epochs, self._space.decode(values))
            children.append(self._trial(values, schedule, parent.seed, parent))
        return children

    def live(self) -> frozenset[int]:
        """The generation in flight and the parents of it."""
        members = [*self._waiting, *self._asked]
        parents = {trial.parent for trial in members if trial.parent is not None}
        return frozenset(parents | {trial.number for trial in self._asked})

    def summary(self) -> Mapping[str, float]:
        """Which generation it is."""
        return {"generation": float(self._generation)}

    def constant(self) -> LossSpec | None:
        """The winner is the recommendation."""
        return None


def perturbed(values: Values, parameters: Mapping[str, Parameter], rng: np.random.Generator) -> Values:
    """Values near these: intervals move by a Gaussian step, choices mostly stay; new branches are drawn."""

    def move(name: str, parameter: Parameter) -> float | str:
        held = values.get(name)
        if held is None or rng.random() < RESAMPLE:
            return parameter.draw(rng)
        if isinstance(parameter, Domain) and not isinstance(held, str):
            unit = parameter.to_unit(held) + STEP * rng.standard_normal()
            return parameter.from_unit(min(max(unit, 0.0), 1.0))
        return held

    return walk(parameters, move)
