"""Are the embedded glyphs hard enough to rank losses? Sweeps constant cosine margins with the default recipe.

    python -m tests.bench.glyph_hardness [--seeds 5]

Each margin is trained to the recipe's horizon under each seed (one thread, some seconds each), and one dated row is
appended. For each metric on the validation identities (`val`: both halves; `reward`, `choice`: each half) the row holds
the mean over seeds by margin and `spread_se`: the range of those means divided by the pooled standard error of one
mean, √(mean over margins of the seeds' variance / seeds). Were all margins alike, five margins and five seeds would
give a spread above 4.2 in one sweep of twenty (Tukey's studentised range), so 3 shows a trend and 4.2 a difference.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from search_space import LossSchedule, catalog
from tests.bench.rows import append_row
from trainers import presets
from trainers.data import DataConfig, load_task
from trainers.outcome import Outcome
from trainers.recipe import Numerics, Recipe
from trainers.task import Task
from trainers.training import train

MARGINS = (0.0, 0.1, 0.2, 0.3, 0.4)
SCALE = 16.0
METRICS = tuple(
    f"{part}/{name}" for part in ("val", "reward", "choice") for name in ("tar_at_far_1e-3", "tar_at_far_1e-2", "rank1")
)


def sweep(task: Task, recipe: Recipe, numerics: Numerics, seeds: int) -> dict[float, list[Outcome]]:
    """The outcomes of `seeds` trainings for each margin. Raises `RuntimeError` when one diverges."""
    outcomes: dict[float, list[Outcome]] = {margin: [] for margin in MARGINS}
    for seed in range(seeds):
        for margin in MARGINS:
            schedule = LossSchedule.constant(catalog.cosface(margin=margin, scale=SCALE))
            outcome, _ = train(
                schedule, task, recipe=recipe, numerics=numerics, seed=seed, epochs=recipe.horizon_epochs
            )
            if outcome.error:
                raise RuntimeError(f"margin {margin}, seed {seed}: {outcome.error}")
            outcomes[margin].append(outcome)
            tar = outcome.metrics["val/tar_at_far_1e-3"]
            print(f"seed {seed} margin {margin}: val TAR@1e-3 {tar:.3f}, {outcome.seconds:.1f} s", flush=True)
    return outcomes


def summary(outcomes: dict[float, list[Outcome]], metric: str) -> dict[str, object]:
    """Means by margin, the pooled standard error of a mean, and the spread in units of it."""
    scores_MS = np.array([[outcome.metrics[metric] for outcome in of_margin] for of_margin in outcomes.values()])
    mean_M = scores_MS.mean(axis=1)
    standard_error = np.sqrt(scores_MS.var(axis=1, ddof=1).mean() / scores_MS.shape[1])
    return {
        "mean_by_margin": {str(margin): round(mean, 4) for margin, mean in zip(outcomes, mean_M.tolist(), strict=True)},
        "standard_error": round(float(standard_error), 4),
        "spread_se": round(float(np.ptp(mean_M) / standard_error), 2),
    }


def main() -> None:
    """Run the sweep and append its row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()

    task = load_task(DataConfig(), cache_dir=Path())
    recipe = Recipe.model_validate(presets.recipe_defaults(task.kind, embedded=True))
    numerics = Numerics(dtype="bfloat16", channels_last=True, threads=1)
    outcomes = sweep(task, recipe, numerics, arguments.seeds)
    row = append_row(
        "glyph_hardness",
        {
            "data": task.describe(),
            "recipe": recipe.model_dump(mode="json"),
            "numerics": numerics.model_dump(mode="json"),
            "scale": SCALE,
            "seeds": arguments.seeds,
            "median_seconds": round(float(np.median([o.seconds for of in outcomes.values() for o in of])), 2),
            "scores": {metric: summary(outcomes, metric) for metric in METRICS},
        },
    )
    print(json.dumps(row["scores"], indent=2))


if __name__ == "__main__":
    main()
