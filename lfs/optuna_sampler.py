"""Optuna's samplers behind `Sampler`: TPE, CMA-ES, GP, quasi-random, NSGA-II. The only module that imports Optuna.

The study lives in memory: a resume replays asks and tells from the journal, which Optuna's samplers, seeded, repeat
exactly, so no second database has to agree with the journal.
"""

import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

from lfs.samplers import INTERVALS_ONLY, REWARD, Objective
from search_space.domains import Domain, Parameter, Values, walk
from search_space.schedule import LossSchedule
from search_space.trajectories import Trajectories
from trainers.outcome import Outcome

Kind = Literal["tpe", "cmaes", "gp", "qmc", "nsga2"]


class OptunaSampler:
    """One of Optuna's samplers over `candidates`.

    `population` is that of CMA-ES (None: Optuna's own) and NSGA-II (None: 20). Raises ValueError for a conditional
    space where the sampler needs intervals, and for several objectives under a sampler other than TPE and NSGA-II.
    """

    def __init__(
        self,
        candidates: Trajectories,
        *,
        kind: Kind,
        seed: int,
        startup: int = 10,
        population: int | None = None,
        objectives: Sequence[Objective] = (REWARD,),
    ) -> None:
        import optuna

        if candidates.conditional and kind in INTERVALS_ONLY:
            raise ValueError(
                f"sampler '{kind}' {INTERVALS_ONLY[kind]}, but the space has choices; use 'tpe' or another space"
            )
        if len(objectives) > 1 and kind not in ("tpe", "nsga2"):
            raise ValueError(f"sampler '{kind}' takes one objective, but got {len(objectives)}; use 'nsga2' or 'tpe'")
        self._candidates, self._objectives = candidates, tuple(objectives)
        self._failed = optuna.trial.TrialState.FAIL
        self._trials: dict[int, Any] = {}
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._study = optuna.create_study(
                directions=[each.direction for each in self._objectives],
                sampler=_sampler(kind, seed=seed, startup=startup, population=population),
            )

    def propose(self, number: int) -> LossSchedule:
        """What the sampler suggests for the active parameters, asked in their order."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trial = self._study.ask()
            values = walk(self._candidates.parameters, partial(_suggested, trial))
        self._trials[number] = trial
        return self._candidates.decode(_inside(values, self._candidates))

    def learn(self, number: int, outcome: Outcome) -> None:
        """Tell the study; a failed candidate is told as failed."""
        trial = self._trials.pop(number)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if outcome.error is None:
                self._study.tell(trial, [each.of(outcome) for each in self._objectives])
            else:
                self._study.tell(trial, state=self._failed)

    def summary(self) -> Mapping[str, float]:
        """How many candidates the sampler has learnt from."""
        return {"learnt_from": float(len(self._study.trials) - len(self._trials))}


def _suggested(trial: Any, name: str, parameter: Parameter) -> float | str:
    value: float | str
    if isinstance(parameter, Domain):
        value = trial.suggest_float(name, parameter.low, parameter.high, log=parameter.log)
    else:
        value = trial.suggest_categorical(name, parameter.options)
    return value


def _inside(values: Values, candidates: Trajectories) -> Values:
    """The values, brought back over the bounds that a log domain's rounding may pass."""
    return {
        name: min(max(float(value), domain.low), domain.high)
        if isinstance(domain := candidates.parameters[name], Domain)
        else value
        for name, value in values.items()
    }


def _sampler(kind: Kind, *, seed: int, startup: int, population: int | None) -> Any:
    from optuna import samplers

    if kind == "tpe":
        return samplers.TPESampler(seed=seed, n_startup_trials=startup, multivariate=True, group=True)
    if kind == "cmaes":
        return samplers.CmaEsSampler(seed=seed, n_startup_trials=1, popsize=population)
    if kind == "gp":
        return samplers.GPSampler(seed=seed, n_startup_trials=startup)
    if kind == "qmc":
        return samplers.QMCSampler(seed=seed, scramble=True)
    return samplers.NSGAIISampler(seed=seed, population_size=population or 20)
