"""How noisy is a reward, how large are the differences that a search looks for, and what do early epochs say of them?

    python -m tests.bench.reward_noise [--losses 12] [--seeds 3] [--width 8] [--trained trained.jsonl]

Trains losses drawn from `combined_margin` (all four parameters free) on the embedded data with its default recipe but
for the width, under several seeds; then copies of one epoch of seed 0 in several orders of the data, as in the warm-up
of a search in rounds. A training takes some seconds; each is kept in `--trained` at once, and a second call goes on.
One dated row is appended, from which `tests/bench/samplers.py` has its surfaces' noise.

L losses, S seeds, E epochs. By epoch, of TAR@1e-3; ranges and deviations in thousandths:

- `range`: of the means over seeds, between the best and the worst loss; `upper_range`: the best and the median one;
- `seed_std`: over the seeds of a loss (weights, order and augmentation differ), pooled;
- `rivals_std`: what is left of it when the seed's mean over the losses is taken away: the noise between candidates
  that share a seed, as those of a sampler do. `copies_std`: over copies that differ in the order of the data alone;
- `to_final`: the correlation over losses of the mean at an epoch with the mean at the last epoch; `share`: the slope
  of the former over the latter, which says how much of the final differences there is already;
  `noise_to_final`: the correlation of what `rivals_std` measures, over (loss, seed), with that at the last epoch: does
  a lucky candidate stay lucky? `noise_to_next`: with that at the next epoch;
- `halves`: the correlation of that noise between the reward and the choice half of the validation identities.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from search_space import CombinedMargin, LossSchedule
from tests.bench.rows import append_row
from trainers import presets
from trainers.data import DataConfig, load_task
from trainers.evaluation import reward_of
from trainers.outcome import Outcome
from trainers.recipe import Numerics, Recipe
from trainers.task import Task
from trainers.training import train

SPACE = CombinedMargin(m1=(1.0, 1.5), scale=(8.0, 64.0))
COPIED_LOSSES, COPIES = 3, 3
Key = tuple[str, int, int]
"""`seed` or `copy`, the loss, and which seed or copy."""
Rewards = npt.NDArray[np.float64]


def schedule_of(loss: int) -> LossSchedule:
    """The loss of this number."""
    return LossSchedule.constant(SPACE.sample(np.random.default_rng([7, loss])))


def trainings(task: Task, recipe: Recipe, losses: int, seeds: int, kept: set[Key]) -> Iterator[tuple[Key, Outcome]]:
    """The outcomes of what is not kept yet. Raises `RuntimeError` when a training diverges."""
    numerics = Numerics(dtype="float32", channels_last=True, threads=1)
    keys: list[Key] = [("seed", loss, seed) for seed in range(seeds) for loss in range(losses)]
    keys += [("copy", loss, copy) for loss in range(min(losses, COPIED_LOSSES)) for copy in range(COPIES)]
    for kind, loss, which in keys:
        if (kind, loss, which) in kept:
            continue
        start, schedule = None, schedule_of(loss)
        if kind == "copy":
            _, start = train(schedule, task, recipe=recipe, numerics=numerics, seed=0, epochs=1)
        seed = 100 + which if kind == "copy" else which
        outcome, _ = train(
            schedule, task, recipe=recipe, numerics=numerics, seed=seed, epochs=recipe.horizon_epochs, start=start
        )
        if outcome.error:
            raise RuntimeError(f"{kind} {which} of loss {loss}: {outcome.error}")
        print(f"{kind} {which} of loss {loss}: {outcome.reward:.3f}, {outcome.seconds:.1f} s", flush=True)
        yield (kind, loss, which), outcome


def summary(reward_LSE: Rewards, choice_LSE: Rewards, copy_LSE: Rewards) -> dict[str, object]:
    """What the docstring of this module lists."""
    mean_LE = reward_LSE.mean(1)
    noise_LSE, other_LSE = (each - each.mean(1, keepdims=True) - _by_seed(each) for each in (reward_LSE, choice_LSE))
    losses, seeds, epochs = reward_LSE.shape
    free = losses * seeds / ((losses - 1) * (seeds - 1))
    return {
        "range": _thousandths(np.ptp(mean_LE, axis=0)),
        "upper_range": _thousandths(mean_LE.max(0) - np.median(mean_LE, axis=0)),
        "seed_std": _thousandths(np.sqrt(reward_LSE.var(1, ddof=1).mean(0))),
        "rivals_std": _thousandths(np.sqrt(free * (noise_LSE**2).mean((0, 1)))),
        "copies_std": _thousandths(np.sqrt(copy_LSE.var(1, ddof=1).mean(0))),
        "to_final": [_correlation(mean_LE[:, e], mean_LE[:, -1]) for e in range(epochs)],
        "share": [round(float(np.polyfit(mean_LE[:, -1], mean_LE[:, e], 1)[0]), 2) for e in range(epochs)],
        "noise_to_final": [_correlation(noise_LSE[..., e], noise_LSE[..., -1]) for e in range(epochs)],
        "noise_to_next": [_correlation(noise_LSE[..., e], noise_LSE[..., e + 1]) for e in range(epochs - 1)],
        "halves": [_correlation(noise_LSE[..., e], other_LSE[..., e]) for e in range(epochs)],
    }


def _by_seed(reward_LSE: Rewards) -> Rewards:
    """How far a seed lies from the mean of all seeds, over all losses."""
    distance_1SE: Rewards = reward_LSE.mean(0, keepdims=True) - reward_LSE.mean((0, 1), keepdims=True)
    return distance_1SE


def _correlation(one: Rewards, other: Rewards) -> float:
    return round(float(np.corrcoef(one.ravel(), other.ravel())[0, 1]), 2)


def _thousandths(values_E: Rewards) -> list[float]:
    return [round(1000 * value, 1) for value in values_E.tolist()]


def main() -> None:
    """Train what is missing and append the row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--losses", type=int, default=12)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--trained", type=Path, default=Path("trained.jsonl"))
    arguments = parser.parse_args()

    task = load_task(DataConfig(), cache_dir=Path())
    defaults = presets.recipe_defaults(task.kind, embedded=True)
    recipe = Recipe.model_validate(defaults | {"width": arguments.width, "reward": "tar_at_far_1e-3"})
    arguments.trained.touch()
    lines = [json.loads(line) for line in arguments.trained.read_text().splitlines()]
    known: dict[Key, list[list[float]]] = {(kind, loss, which): curves for (kind, loss, which), curves in lines}
    for key, outcome in trainings(task, recipe, arguments.losses, arguments.seeds, set(known)):
        halves = ("reward", "choice")
        known[key] = [[reward_of(row, recipe.reward, half) for row in outcome.history] for half in halves]  # type: ignore[arg-type]
        with arguments.trained.open("a") as file:
            file.write(json.dumps([key, known[key]]) + "\n")

    by_seed = [[known["seed", loss, s] for s in range(arguments.seeds)] for loss in range(arguments.losses)]
    copied = [[known["copy", n, c] for c in range(COPIES)] for n in range(min(arguments.losses, COPIED_LOSSES))]
    reward_LSE, choice_LSE = np.moveaxis(np.array(by_seed), 2, 0)
    row = {
        "data": task.describe(),
        "recipe": recipe.model_dump(mode="json"),
        "losses": arguments.losses,
        "seeds": arguments.seeds,
        "final_mean_by_loss": _thousandths(reward_LSE.mean(1)[:, -1]),
        **summary(reward_LSE, choice_LSE, np.array(copied)[:, :, 0]),
    }
    print(json.dumps(append_row("reward_noise", row), indent=2))


if __name__ == "__main__":
    main()
