"""Optuna's samplers behind `Sampler`: TPE, CMA-ES, GP, quasi-random, NSGA-II. The only module that imports Optuna.

The study lives in memory: a resume replays asks and tells from the journal, which Optuna's samplers, seeded, repeat
exactly, so no second database has to agree with the journal.

Rewards after different numbers of epochs do not compare, so each number of epochs has a study of its own, and a
candidate is proposed by the deepest one that knows enough: with TPE under Hyperband this is BOHB (Falkner et al., ICML
2018, §4), but for its share of uniform draws.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np

from lfs.samplers import INTERVALS_ONLY, REWARD, Candidate, Candidates, Objective
from search_space.domains import Domain, Parameter, Values, walk
from trainers.outcome import Outcome

Kind = Literal["tpe", "cmaes", "gp", "qmc", "nsga2"]

_MUTATION = 0.25
"""Of NSGA-II's parameters in a space with choices. Optuna's one in so many as there are would hardly reach those that
are active, of which a candidate of `unified` has 9 of 98."""


class OptunaSampler:
    """One of Optuna's samplers over `candidates`, for each number of epochs at which it is told results.

    A study proposes once `startup` results are in it; before, the first one does.

    NSGA-II inherits only what all trials have, so under it inactive parameters get a value too, which nothing reads.

    `population` is that of CMA-ES (None: Optuna's own) and NSGA-II (None: 20). Raises ValueError for a conditional
    space where the sampler needs intervals, and for several objectives under a sampler other than TPE and NSGA-II.
    """

    def __init__(
        self,
        candidates: Candidates,
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
        self._candidates, self._objectives, self._startup = candidates, tuple(objectives), startup
        self._suggests_all = kind == "nsga2"
        self._failed, self._create_trial = optuna.trial.TrialState.FAIL, optuna.trial.create_trial
        self._trials: dict[int, Any] = {}
        self._told: set[int] = set()
        optuna.logging.set_verbosity(optuna.logging.ERROR)

        def new_study(epochs: int | None) -> Any:
            own = seed if epochs is None else int(np.random.SeedSequence([seed, epochs]).generate_state(1)[0])
            return optuna.create_study(
                directions=[each.direction for each in self._objectives],
                sampler=_sampler(kind, candidates, seed=own, startup=startup, population=population),
            )

        self._new_study = new_study
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._first = _Depth(new_study(None))
        self._depths: dict[int, _Depth] = {}
        """By epochs; the first to be made is that of the first result."""

    def propose(self, number: int) -> Candidate:
        """What the sampler suggests for the active parameters, asked in their order."""
        parameters = self._candidates.parameters
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trial = self._proposing().study.ask()
            if self._suggests_all:
                for name, parameter in parameters.items():
                    _suggested(trial, name, parameter)
            values = walk(parameters, partial(_suggested, trial))
        self._trials[number] = trial
        return self._candidates.decode(_inside(values, self._candidates))

    def _proposing(self) -> "_Depth":
        ready = [epochs for epochs, depth in self._depths.items() if depth.results >= self._startup]
        return self._depths[max(ready)] if ready else self._first

    def learn(self, number: int, outcome: Outcome, *, epochs: int) -> None:
        """Tell the study of these epochs; a failed candidate is told as failed.

        Where another study proposed the candidate, it is closed there: results of other epochs are none of its own.
        """
        trial, first_time = self._trials[number], number not in self._told
        self._told.add(number)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            depth = self._depth(epochs)
            values = None if outcome.error else [each.of(outcome) for each in self._objectives]
            if values and first_time and trial.study is depth.study:
                depth.study.tell(trial, values)
            elif values:
                known = self._create_trial(params=trial.params, distributions=trial.distributions, values=values)
                depth.study.add_trial(known)
            if first_time and (values is None or trial.study is not depth.study):
                trial.study.tell(trial, state=self._failed)
        depth.results += values is not None

    def _depth(self, epochs: int) -> "_Depth":
        if epochs not in self._depths:
            self._depths[epochs] = _Depth(self._new_study(epochs)) if self._depths else self._first
        return self._depths[epochs]

    def summary(self) -> Mapping[str, float]:
        """How many candidates the sampler has learnt from."""
        return {"learnt_from": float(len(self._told))}


@dataclass(slots=True)
class _Depth:
    """What is known after some number of epochs."""

    study: Any
    results: int = 0
    """Those of failed candidates left out."""


def _suggested(trial: Any, name: str, parameter: Parameter) -> float | str:
    value: float | str
    if isinstance(parameter, Domain):
        value = trial.suggest_float(name, parameter.low, parameter.high, log=parameter.log)
    else:
        value = trial.suggest_categorical(name, parameter.options)
    return value


def _inside(values: Values, candidates: Candidates) -> Values:
    """The values, brought back over the bounds that a log domain's rounding may pass."""
    return {
        name: min(max(float(value), domain.low), domain.high)
        if isinstance(domain := candidates.parameters[name], Domain)
        else value
        for name, value in values.items()
    }


def _sampler(kind: Kind, candidates: Candidates, *, seed: int, startup: int, population: int | None) -> Any:
    from optuna import samplers

    if kind == "tpe":
        return samplers.TPESampler(seed=seed, n_startup_trials=startup, multivariate=True, group=True)
    if kind == "cmaes":
        return samplers.CmaEsSampler(seed=seed, n_startup_trials=1, popsize=population)
    if kind == "gp":
        return samplers.GPSampler(seed=seed, n_startup_trials=startup)
    if kind == "qmc":
        return samplers.QMCSampler(seed=seed, scramble=True)
    mutation = _MUTATION if candidates.conditional else None
    return samplers.NSGAIISampler(seed=seed, population_size=population or 20, mutation_prob=mutation)
