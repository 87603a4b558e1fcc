"""The learning rate of each step, as a share of a training that was fixed beforehand."""

import math
from collections.abc import Callable

from trainers.full_recipe import FullRecipe
from trainers.recipe import Recipe

Rate = Callable[[int], float]
"""The rate of a 0-based step, counted from the beginning of training."""

_WARM_UP = 0.25
_START_DIVISOR = 25.0


def rate_of(recipe: Recipe, steps: int) -> Rate:
    """The recipe's rate where an epoch has so many steps."""
    total_steps, peak = recipe.horizon_epochs * steps, recipe.learning_rate
    if recipe.schedule == "one_cycle":
        return lambda step: one_cycle(step, total_steps, peak=peak)
    return lambda step: constant(step, total_steps, peak=peak, decay=recipe.decay)


def full_rate_of(recipe: FullRecipe, steps: int) -> Rate:
    """The rate of a full training where an epoch has so many steps: a rising line, then the recipe's schedule."""
    warm_up, total = recipe.warmup_epochs * steps, recipe.epochs * steps

    def rate(step: int) -> float:
        if step < warm_up:
            return recipe.learning_rate * (step + 1) / (warm_up + 1)
        if recipe.schedule == "step":
            return recipe.learning_rate * recipe.gamma ** sum(step >= epoch * steps for epoch in recipe.milestones)
        done = (step - warm_up) / (total - warm_up)
        return recipe.learning_rate * (_fall(done, 1) if recipe.schedule == "cosine" else (1 - done) ** recipe.power)

    return rate


def one_cycle(step: int, total_steps: int, *, peak: float) -> float:
    """From peak/25 up to `peak` over the first quarter of the steps, then down to 0.

    Both parts are half cosines (Smith & Topin 2019, "Super-convergence").
    """
    warm_up = _WARM_UP * total_steps
    return _rise(step, warm_up, peak) if step < warm_up else peak * _fall(step - warm_up, total_steps - warm_up)


def constant(step: int, total_steps: int, *, peak: float, decay: float) -> float:
    """Up as in `one_cycle`, at `peak`, and over the last `decay` of the steps (a share) down to 0, a half cosine.

    At most three quarters are left to decay over.
    """
    warm_up, decaying = _WARM_UP * total_steps, decay * total_steps
    if step < warm_up:
        return _rise(step, warm_up, peak)
    left = total_steps - step
    return peak if left >= decaying else peak * _fall(decaying - left, decaying)


def cooling_down(rate: Rate, start: int, steps: int) -> Rate:
    """From what `rate` is at step `start` down to 0 over so many steps, a half cosine."""
    return lambda step: rate(start) * _fall(step - start, steps)


def _rise(step: float, steps: float, peak: float) -> float:
    low = peak / _START_DIVISOR
    return peak - (peak - low) * (1 + math.cos(math.pi * step / steps)) / 2


def _fall(step: float, steps: float) -> float:
    """From 1 to 0."""
    return (1 + math.cos(math.pi * step / steps)) / 2
