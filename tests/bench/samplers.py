"""Each method against uniform draws on reward surfaces with a known optimum, at equal epochs.

    python -m tests.bench.samplers [--seeds 100] [--first-seed 0] [--trainings 80] [--methods asha] [--surfaces bowl]
        [--set search.min_epochs=1 ...]

What was chosen under some seeds is to be judged under others: `--first-seed`.

Every search may train as many epochs as `--trainings` trainings to the horizon of 8 epochs take, with 4 workers that
finish in random order; what they train is asked for, budgeted and learnt from by the product's own controllers with
their defaults (but for `sized` and `--set`). Scored is the simple regret, in thousandths: what the true score of the
winner, the best of those at the horizon on the choice half, misses of the optimum. The interval is 95 % over seeds, of
the paired difference to `random` on as many epochs; on `formulas` that is the first generation of `evolution` alone,
random formulas that are filtered as its own.

A surface gives the true score of a loss. What a trial's reward makes of it follows real trainings of 12 losses of
`combined_margin` under 3 seeds (`tests/bench/results/reward_noise.jsonl`; thousandths of TAR@1e-3, epochs 1 to 8):
the final means range over 74; of the final differences there is the share −.23, .49, .74, .80, .80, .86, .96, 1 (after
one epoch losses that end badly lead); candidates that share a seed differ by a noise of 8, 17, 22, 20, 18, 14, 10, 10;
noise correlates with that of the epoch before by 0, .1, .34, .23, .08, .60, .87, so that luck at the end of a training
stays and early luck does not; and on the two halves of validation by .4 on the average. A trial that continues another
carries its noise on. Simpler than the truth: only the last loss of a schedule counts for its score, which favours
methods that change the loss during a training (`pbt`, `reinforce`, `random-softmax`).
"""

import argparse
import math
import random
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from scipy import stats

from lfs.budget import Clock
from lfs.config_file import load_config
from lfs.controller import Controller
from lfs.plan import whole_search
from lfs.trial import Trial
from lfs.winner import best_at_horizon
from search_space import LossSpec
from search_space.maps import symbolic
from search_space.parts import AdaCosScale, ConstantMargin, ConstantScale, IdentityNegative, SymbolicTarget
from tests.bench.rows import append_row
from trainers.outcome import Outcome
from trainers.recipe import Recipe

HORIZON, WORKERS = 8, 4
RECIPE = Recipe(horizon_epochs=HORIZON)
RANGE = 0.074
SHARE_E = (-0.23, 0.49, 0.74, 0.80, 0.80, 0.86, 0.96, 1.0)
NOISE_E = (0.008, 0.017, 0.022, 0.020, 0.018, 0.014, 0.010, 0.010)
KEPT_E = (0.0, 0.0, 0.10, 0.34, 0.23, 0.08, 0.60, 0.87)
"""Of the noise of the epoch before."""
HALVES = 0.4
FORMULAS = ("evolution",)
"""Methods that write formulas."""
METHODS = (
    "tpe",
    "cmaes",
    "gp",
    "qmc",
    "nsga2",
    "asha",
    "hyperband",
    "bohb",
    "pbt",
    "random-softmax",
    "reinforce",
    *FORMULAS,
)
INTERVALS_ONLY = ("cmaes", "gp", "reinforce")
"""Methods that do not take the conditional space of `families`."""


def bowl(spec: LossSpec) -> float:
    """Best at m1 = 1.1, m2 = .5 rad, m3 = .1, s = 20."""
    margin, scale = spec.margin, spec.scale
    assert isinstance(margin, ConstantMargin)
    assert isinstance(scale, ConstantScale)
    off = (margin.m1 - 1.1) / 0.5, (margin.m2_rad - 0.5) / 0.8, (margin.m3 - 0.1) / 0.4, math.log(scale.value / 20) / 2
    return RANGE * max(0.0, 1 - 2 * float(np.square(off).sum()))


def ridge(spec: LossSpec) -> float:
    """Parameters that make up for each other: a narrow valley, best at m1 = 1, m2 = .6 rad, m3 = .05, s = 20."""
    margin, scale = spec.margin, spec.scale
    assert isinstance(margin, ConstantMargin)
    assert isinstance(scale, ConstantScale)
    across = margin.m2_rad + 2 * margin.m3 + 2 * (margin.m1 - 1) - 0.7
    return RANGE * max(0.0, 1 - 3 * across**2 - (margin.m2_rad - 0.6) ** 2 - 0.5 * math.log(scale.value / 20) ** 2)


def families(spec: LossSpec) -> float:
    """Over the whole composition: some parts are worth more than others, and margins have a best value."""
    worth = {"combined": 0.5, "piecewise": 0.3, "identity": 0.2, "li_arc": 0.35}.get(spec.target.kind, 0.1)
    if isinstance(spec.margin, ConstantMargin):
        worth += 0.3 - ((spec.margin.m2_rad - 0.4) ** 2 + (spec.margin.m3 - 0.1) ** 2 + (spec.margin.m1 - 1) ** 2)
    worth += 0.1 * isinstance(spec.negative, IdentityNegative) + 0.1 * (not isinstance(spec.scale, AdaCosScale))
    return RANGE * min(1.0, max(0.0, worth))


def formulas(spec: LossSpec) -> float:
    """Best where the target's map is ArcFace's at .4 rad, up to a constant, and s = 20."""
    cos_K = torch.linspace(-0.2, 0.9, 23, dtype=torch.float64)
    f_K = symbolic(spec.target.f, cos_K) if isinstance(spec.target, SymbolicTarget) else cos_K
    off_K = f_K - torch.cos(torch.acos(cos_K) + 0.4)
    assert isinstance(spec.scale, ConstantScale)
    return RANGE * max(0.0, 1 - 4 * float(off_K.std()) - 0.2 * abs(math.log(spec.scale.value / 20)))


SURFACES: Mapping[str, tuple[str, Callable[[LossSpec], float]]] = {
    "bowl": ("combined_margin", bowl),
    "ridge": ("combined_margin", ridge),
    "families": ("unified", families),
    "formulas": ("combined_margin", formulas),
}


def sized(method: str, trainings: int) -> list[str]:
    """Settings that let a method use its budget up: more candidates than it can train, members or copies of a round.

    The warm-up of a search in rounds begins with an epoch of one trial alone.
    """
    if method == "evolution":
        return ["search.candidates=10000", "search.seeds=scratch"]
    if method == "random-formulas":
        return ["search.seeds=scratch", f"search.candidates={trainings}", f"search.population={trainings}"]
    if method == "random":
        return ["search.method=sampler", "search.sampler=random", f"search.candidates={trainings}"]
    if method == "pbt":
        return [f"search.members={trainings}"]
    if method in ("random-softmax", "reinforce"):
        return [f"search.batch={(trainings * HORIZON - 1) // (HORIZON - 1) // 2 * 2}"]
    return ["search.candidates=10000"]


def controller_of(method: str, space: str, seed: int, trainings: int, settings: Sequence[str]) -> Controller:
    """The method over the space, on the budget."""
    overrides = [f"space.kind={space}", f"seed={seed}"]
    if space == "combined_margin":
        overrides += ["space.m1=[1.0, 1.5]", "space.scale=[8.0, 64.0]"]
    overrides += [*sized(method, trainings), *settings]
    overrides.append(f"budget.epochs={trainings * HORIZON}")
    named = {"random": None, "reinforce": None, "random-formulas": "evolution"}.get(method, method)
    config = load_config(None, overrides, method=named)
    return whole_search(config, RECIPE, Clock(), class_counts=[5] * 20)


class Trainings:
    """Stands for real trainings: rewards of trials, as the docstring of this module says."""

    def __init__(self, truth: Callable[[LossSpec], float], seed: int) -> None:
        self._truth, self._rng = truth, np.random.default_rng([seed, 1])
        self._asked: dict[int, Trial] = {}
        self._told: dict[int, Outcome] = {}
        self._noise_3: dict[int, npt.NDArray[np.float64]] = {}
        """What both halves share, that of the reward's, that of the choice's."""
        self._score: dict[int, float] = {}

    def train(self, trial: Trial) -> Outcome:
        """The outcome; the trial's parent must have been trained."""
        before, noise_3 = 0, np.zeros(3)
        if trial.parent is not None:
            before, noise_3 = self._asked[trial.parent].epochs, self._noise_3[trial.parent]
        for kept in KEPT_E[before : trial.epochs]:
            noise_3 = kept * noise_3 + math.sqrt(1 - kept**2) * self._rng.standard_normal(3)
        common, *halves = noise_3
        score = self._truth(trial.schedule.final)
        signal, noise = score * SHARE_E[trial.epochs - 1], NOISE_E[trial.epochs - 1]
        reward, choice = (signal + noise * (math.sqrt(HALVES) * common + math.sqrt(1 - HALVES) * own) for own in halves)
        self._noise_3[trial.number], self._score[trial.number] = noise_3, score
        metrics = {f"choice/{RECIPE.reward}": float(choice)}
        outcome = Outcome(reward=float(reward), metrics=metrics, seconds=1.0, images=1)
        self._asked[trial.number], self._told[trial.number] = trial, outcome
        return outcome

    def regret(self) -> float:
        """What the winner misses."""
        winner = best_at_horizon(RECIPE, or_deepest=True)(self._asked, self._told)
        assert winner is not None
        return RANGE - self._score[winner]


def methods_on(surface: str) -> list[str]:
    """Those that can look for its losses."""
    if surface == "formulas":
        return list(FORMULAS)
    refused = (*FORMULAS, *(INTERVALS_ONLY if SURFACES[surface][0] == "unified" else ()))
    return [method for method in METHODS if method not in refused]


def regret(method: str, surface: str, seed: int, trainings: int, settings: Sequence[str] = ()) -> float:
    """That of one search."""
    space, truth = SURFACES[surface]
    controller, trained, order = (
        controller_of(method, space, seed, trainings, settings),
        Trainings(truth, seed),
        random.Random(seed),
    )
    in_flight: list[Trial] = []
    while True:
        if len(in_flight) < WORKERS:
            in_flight += controller.ask(WORKERS - len(in_flight))
        if not in_flight:
            return trained.regret()
        trial = in_flight.pop(order.randrange(len(in_flight)))
        controller.tell(trial, trained.train(trial))


def compared(
    method: str, surface: str, trainings: int, regret_S: npt.NDArray[np.float64], base_S: npt.NDArray[np.float64]
) -> dict[str, object]:
    """One row: mean regret, that of random, and the paired difference with its interval."""
    gain_S, seeds = base_S - regret_S, len(regret_S)
    half = stats.t.ppf(0.975, seeds - 1) * gain_S.std(ddof=1) / seeds**0.5
    return {
        "surface": surface,
        "method": method,
        "seeds": seeds,
        "trainings": trainings,
        "epochs": trainings * HORIZON,
        "regret_thousandths": _thousandths(regret_S.mean()),
        "regret_of_random": _thousandths(base_S.mean()),
        "better_than_random_by": _thousandths(gain_S.mean()),
        "interval": [_thousandths(gain_S.mean() + side * half) for side in (-1, 1)],
    }


def _thousandths(value: float) -> float:
    return round(1000 * float(value), 2)


def main() -> None:
    """Print and append one row a surface and method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--trainings", type=int, default=80)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--surfaces", default=",".join(SURFACES))
    parser.add_argument("--set", action="append", default=[], help="a setting of the methods, not of random")
    arguments = parser.parse_args()
    for surface in arguments.surfaces.split(","):

        def over_seeds(method: str, settings: Sequence[str] = (), surface: str = surface) -> npt.NDArray[np.float64]:
            first, trainings = arguments.first_seed, arguments.trainings
            seeds = range(first, first + arguments.seeds)
            return np.array([regret(method, surface, seed, trainings, settings) for seed in seeds])

        base_S = over_seeds("random-formulas" if surface == "formulas" else "random")
        for method in methods_on(surface):
            if method not in arguments.methods.split(","):
                continue
            content = compared(method, surface, arguments.trainings, over_seeds(method, arguments.set), base_S)
            append_row("samplers", content | {"first_seed": arguments.first_seed, "settings": arguments.set})
            print(content, flush=True)


if __name__ == "__main__":
    main()
