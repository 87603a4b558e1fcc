"""Each method against uniform draws on reward surfaces with a known optimum, at equal epochs.

    python -m tests.bench.samplers [--seeds 20] [--epochs 720]

A surface gives the true score of a loss in [0, .04], the range of constant margins on the embedded data; a trial's
reward adds Gaussian noise of .004, the spread of copies of one epoch there; after e of E epochs it has the share
√(e/E) of the score. Scored is the simple regret: the true score missed by the trial that the search would
choose (best reward at the horizon), in thousandths. The interval is 95 % over seeds, of the paired difference to
`random`, which gets as many epochs.
"""

import argparse
import math
import random
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
from scipy import stats

from lfs.budget import Budget, Budgeted, Clock
from lfs.config_file import load_config
from lfs.controller import Controller
from lfs.plan import make_search
from lfs.trial import Trial
from search_space import LossSpec
from search_space.parts import AdaCosScale, ConstantMargin, ConstantScale, IdentityNegative
from tests.bench.rows import append_row
from tests.lfs.test_controllers import drive
from trainers.outcome import Outcome
from trainers.recipe import Recipe

HORIZON = 9
RANGE, NOISE = 0.04, 0.004
METHODS = ("tpe", "cmaes", "gp", "qmc", "nsga2", "asha", "hyperband", "bohb", "pbt", "random-softmax", "reinforce")
CHOICES = ("tpe", "qmc", "nsga2", "asha", "hyperband", "bohb", "pbt", "random-softmax")
"""Methods that take a conditional space."""


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


SURFACES: Mapping[str, tuple[str, Callable[[LossSpec], float]]] = {
    "bowl": ("combined_margin", bowl),
    "ridge": ("combined_margin", ridge),
    "families": ("unified", families),
}


def controller_of(method: str, space: str, seed: int, epochs: int) -> Controller:
    """The method over the space, with candidates beyond its budget."""
    named = None if method in ("random", "reinforce") else method
    overrides = [f"space.kind={space}", f"seed={seed}"]
    if space == "combined_margin":
        overrides += ["space.m1=[1.0, 1.5]", "space.scale=[8.0, 64.0]"]
    if method == "random":
        overrides += ["search.method=sampler", "search.sampler=random"]
    config = load_config(None, overrides, method=named)
    if config.search.method == "sampler":
        config = load_config(None, [*overrides, "search.candidates=10000"], method=named)
    if method == "pbt":
        config = load_config(None, [*overrides, f"search.members={epochs // HORIZON}"], method=named)
    rounds = config.search.method in ("reinforce", "random")
    recipe = Recipe(horizon_epochs=epochs // 8 if rounds else HORIZON)
    return Budgeted(make_search(config, recipe, [5] * 20), Budget(epochs=epochs), Clock())


def regret(method: str, surface: str, seed: int, epochs: int) -> float:
    """The true score missed by the chosen trial."""
    space, truth = SURFACES[surface]
    rng = np.random.default_rng([seed, 1])
    chosen: dict[int, tuple[int, float, float]] = {}

    def reward(trial: Trial) -> Outcome:
        score = truth(trial.schedule.final)
        grown = min(1.0, trial.epochs / HORIZON) ** 0.5
        noisy = float(score * grown + NOISE * rng.standard_normal())
        chosen[trial.number] = (min(trial.epochs, HORIZON), noisy, score)
        return Outcome(reward=noisy, seconds=1.0, images=1)

    drive(controller_of(method, space, seed, epochs), 4, random.Random(seed), reward)
    return RANGE - max(chosen.values())[2]


def compared(method: str, surface: str, seeds: int, epochs: int, base_S: npt.NDArray[np.float64]) -> dict[str, object]:
    """One row: mean regret, and the paired difference to random with its interval."""
    regret_S = np.array([regret(method, surface, seed, epochs) for seed in range(seeds)])
    gain_S = base_S - regret_S
    half = stats.t.ppf(0.975, seeds - 1) * gain_S.std(ddof=1) / seeds**0.5
    return {
        "surface": surface,
        "method": method,
        "seeds": seeds,
        "epochs": epochs,
        "regret_thousandths": round(1000 * float(regret_S.mean()), 3),
        "better_than_random_by": round(1000 * float(gain_S.mean()), 3),
        "interval": [round(1000 * float(gain_S.mean() + side * half), 3) for side in (-1, 1)],
    }


def main() -> None:
    """Print and append one row a surface and method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=720)
    arguments = parser.parse_args()
    for surface, (space, _) in SURFACES.items():
        base_S = np.array([regret("random", surface, seed, arguments.epochs) for seed in range(arguments.seeds)])
        for method in ("random", *METHODS):
            if space == "unified" and method not in ("random", *CHOICES):
                continue
            row = append_row("samplers", compared(method, surface, arguments.seeds, arguments.epochs, base_S))
            print(
                {
                    key: row[key]
                    for key in ("surface", "method", "regret_thousandths", "better_than_random_by", "interval")
                }
            )


if __name__ == "__main__":
    main()
