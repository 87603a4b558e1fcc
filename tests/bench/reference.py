"""Does training land near results known from elsewhere? Trains three losses on two real image sets.

    LOSSEARCH_DATA=../shared/data python -m tests.bench.reference [--data omniglot] [--loss softmax]

Each run uses the product's own loader, recipe defaults and probed numerics, one thread and seed 0, and appends one
dated row. `val` are all validation identities and `test` the sealed ones, opened here because this is a benchmark of
the trainer: nothing is chosen by it. `val_4plus` and `test_4plus` leave out people with fewer than four photographs,
as the plain prototype did whose numbers `REFERENCE` holds (one seed each).
"""

import argparse
import json
import os
from pathlib import Path

import numpy as np
import torch

from search_space import LossSchedule, LossSpec, catalog
from tests.bench.rows import append_row
from trainers.data import DataConfig, load_sealed_test, load_task
from trainers.evaluation import embeddings
from trainers.numerics import probe
from trainers.presets import recipe_defaults
from trainers.recipe import FARS, Numerics, Recipe
from trainers.task import LabelledImages, Task
from trainers.training import train
from trainers.verification import verification

LOSSES = {
    "softmax": catalog.softmax(scale=16.0),
    "cosface": catalog.cosface(scale=16.0, margin=0.2),
    "adacos": catalog.adacos_dynamic(),
}
REFERENCE = {
    "omniglot": {
        "softmax": {"tar_at_far_1e-3": 0.520, "eer": 0.033, "rank1": 0.887, "test_tar_at_far_1e-3": 0.393},
        "cosface": {"tar_at_far_1e-3": 0.568, "eer": 0.033, "rank1": 0.901, "test_tar_at_far_1e-3": 0.430},
        "adacos": {"tar_at_far_1e-3": 0.519, "eer": 0.033, "rank1": 0.889, "test_tar_at_far_1e-3": 0.407},
    },
    "lfw112": {
        "softmax": {"tar_at_far_1e-2": 0.422, "eer": 0.148, "rank1": 0.767, "test_tar_at_far_1e-2": 0.419},
        "cosface": {"tar_at_far_1e-2": 0.442, "eer": 0.141, "rank1": 0.793, "test_tar_at_far_1e-2": 0.445},
        "adacos": {"tar_at_far_1e-2": 0.448, "eer": 0.134, "rank1": 0.786, "test_tar_at_far_1e-2": 0.441},
    },
}
MIN_IMAGES = 4


def joined(task: Task) -> LabelledImages:
    """Both halves of validation, their identities kept apart."""
    labels = np.concatenate([task.reward.labels, task.choice.labels + task.reward.classes])
    return LabelledImages(images=np.concatenate([task.reward.images, task.choice.images]), labels=labels)


def scores(
    checkpoint: np.ndarray, part: LabelledImages, recipe: Recipe, numerics: Numerics
) -> tuple[dict[str, float], dict[str, float]]:
    """Verification scores over all identities, and over those with `MIN_IMAGES` images or more."""
    x_ND = embeddings(checkpoint, part.images, recipe=recipe, numerics=numerics)
    many = np.bincount(part.labels)[part.labels] >= MIN_IMAGES
    return verification(x_ND, part.labels, FARS), verification(x_ND[many], part.labels[many], FARS)


def row(task: Task, test: LabelledImages, recipe: Recipe, numerics: Numerics, loss: LossSpec) -> dict[str, object]:
    """Train one loss to the recipe's horizon and score it. Raises `RuntimeError` when it diverges."""
    schedule = LossSchedule.constant(loss)
    outcome, checkpoint = train(schedule, task, recipe=recipe, numerics=numerics, seed=0, epochs=recipe.horizon_epochs)
    if checkpoint is None:
        raise RuntimeError(outcome.error)
    val, val_4plus = scores(checkpoint, joined(task), recipe, numerics)
    test_all, test_4plus = scores(checkpoint, test, recipe, numerics)
    parts = {"val": val, "val_4plus": val_4plus, "test": test_all, "test_4plus": test_4plus}
    rounded = {name: {metric: round(score, 4) for metric, score in part.items()} for name, part in parts.items()}
    return {**rounded, "train_seconds": round(outcome.seconds, 1), "collapse": outcome.collapse}


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=REFERENCE, action="append", help="image set; both when left out")
    parser.add_argument("--loss", choices=LOSSES, action="append", help="loss; all when left out")
    arguments = parser.parse_args()
    root = Path(os.environ.get("LOSSEARCH_DATA", Path(__file__).parents[2] / "../shared/data"))
    cache_dir = Path.home() / ".cache" / "lossearch-bench"
    for data in arguments.data or REFERENCE:
        config = DataConfig(path=root / data)
        task = load_task(config, cache_dir=cache_dir)
        test = load_sealed_test(config, cache_dir=cache_dir).part
        recipe = Recipe.model_validate(recipe_defaults(task.kind, embedded=False))
        numerics = probe(task, recipe, threads=1)
        for loss in arguments.loss or LOSSES:
            content = {
                "data": data,
                "data_digest": task.digest,
                "loss": loss,
                "recipe": recipe.model_dump(mode="json"),
                "numerics": numerics.model_dump(mode="json"),
                **row(task, test, recipe, numerics, LOSSES[loss]),
                "reference": REFERENCE[data][loss],
            }
            print(json.dumps(append_row("reference", content)), flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
