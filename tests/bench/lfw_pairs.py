"""How good are small networks under the field's own protocol? Three losses over seeds, on pairs of faces.

    LOSSEARCH_DATA=../shared/data python -m tests.bench.lfw_pairs [--loss softmax] [--seed 0] [--epochs 12]

Every network is trained on lfw112's training identities by the product's loader and recipe defaults, and judged by
`evaluate_listed_pairs` on `pairs_val.txt` and `pairs_test.txt` of lfw112 (other identities, 600 pairs each, dealt into
ten folds), and on 600 pairs of `orl`, a set that it never saw, drawn as `trainers.lfw_protocol` does. Nothing is chosen
by any of them. One row a training: accuracy, EER and TAR at 1e-2, each with its 95 % interval.
"""

import argparse
import json
import os
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from search_space import LossSchedule
from tests.bench.reference import LOSSES
from tests.bench.rows import append_row
from trainers.data import DataConfig, load_task
from trainers.evaluation import embeddings
from trainers.formats.opening import open_images
from trainers.image_cache import Colour, decode
from trainers.image_source import ImageSource
from trainers.lfw_protocol import FOLDS, PAIRS, draw_pairs
from trainers.numerics import probe
from trainers.pair_protocol import read_pair_list, rows_by_number
from trainers.presets import recipe_defaults
from trainers.protocols.embedding_sets import EmbeddingSet
from trainers.protocols.listed_pairs import ListedPairs, evaluate_listed_pairs, read_listed_pairs
from trainers.recipe import Numerics, Recipe
from trainers.task import Task
from trainers.training import train

LISTS = ("pairs_val.txt", "pairs_test.txt")
SEEDS = (0, 1, 2)
MEASURES = ("accuracy", "eer", "tar_at_far_1e-2")


def embedded(
    source: ImageSource, names: list[str], task: Task, checkpoint: np.ndarray, recipe: Recipe, numerics: Numerics
) -> EmbeddingSet:
    """Embeddings of these images, as large and as coloured as the network's own."""
    _, channels, image_size, _ = task.train.images.shape
    cache_dir = Path.home() / ".cache" / "lossearch-bench"
    colour: Colour = "grey" if channels == 1 else "rgb"
    decoded = decode(source, names, image_size=image_size, colour=colour, cache_dir=cache_dir)
    x_ND = embeddings(checkpoint, np.array(decoded.file.images()), recipe=recipe, numerics=numerics)
    return EmbeddingSet(name=str(source.path), embeddings_ND=x_ND, columns={"paths": np.array(names)})


def drawn_pairs(source: ImageSource) -> ListedPairs:
    """600 pairs of all images of a set, in ten folds."""
    label_N = np.repeat(np.arange(len(source.files)), [len(source.files[name]) for name in sorted(source.files)])
    first_P, second_P = draw_pairs(label_N)
    genuine_P = label_N[first_P] == label_N[second_P]
    return ListedPairs(first_P=first_P, second_P=second_P, genuine_P=genuine_P, fold_P=np.arange(PAIRS) % FOLDS)


def judged(images: EmbeddingSet, pairs: ListedPairs) -> dict[str, dict[str, float]]:
    found = evaluate_listed_pairs(images, pairs, fars=(1e-2,), resamples=1000, rng=np.random.default_rng(0))
    return {name: {key: round(value, 4) for key, value in asdict(found.measures[name]).items()} for name in MEASURES}


def main() -> None:
    """Train what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loss", choices=LOSSES, action="append", help="loss; all when left out")
    parser.add_argument("--seed", type=int, action="append", help="seed; 0, 1 and 2 when left out")
    parser.add_argument("--epochs", type=int, help="of the horizon; the recipe's default when left out")
    given = parser.parse_args()
    root = Path(os.environ.get("LOSSEARCH_DATA", Path(__file__).parents[2] / "../shared/data"))
    task = load_task(DataConfig(path=root / "lfw112"), cache_dir=Path.home() / ".cache" / "lossearch-bench")
    recipe = Recipe.model_validate(recipe_defaults(task.kind, embedded=False))
    if given.epochs is not None:
        recipe = recipe.model_copy(update={"horizon_epochs": given.epochs})
    numerics = probe(task, recipe, threads=1)
    lfw, orl = open_images(root / "lfw112"), open_images(root / "orl")
    every, listed = lfw.names(lfw.files), [read_pair_list(root / "lfw112" / name) for name in LISTS]
    named = [image for pairs in listed for image in (*pairs.first, *pairs.second)]
    wanted = sorted({every[row] for row in rows_by_number(named, every, "lfw112", "a list").values()})
    for seed in given.seed or SEEDS:
        for loss in given.loss or LOSSES:
            schedule = LossSchedule.constant(LOSSES[loss])
            outcome, checkpoint = train(
                schedule, task, recipe=recipe, numerics=numerics, seed=seed, epochs=recipe.horizon_epochs
            )
            if checkpoint is None:
                raise RuntimeError(outcome.error)
            content: dict[str, object] = {"loss": loss, "seed": seed, "epochs": recipe.horizon_epochs}
            content["recipe"] = recipe.model_dump(mode="json")
            images = embedded(lfw, wanted, task, checkpoint, recipe, numerics)
            for name in LISTS:
                content[f"lfw112 {name}"] = judged(images, read_listed_pairs(root / "lfw112" / name, images))
            unseen = embedded(orl, orl.names(sorted(orl.files)), task, checkpoint, recipe, numerics)
            content["orl"] = judged(unseen, drawn_pairs(orl))
            content["train_seconds"] = round(outcome.seconds, 1)
            print(json.dumps(append_row("lfw_pairs", content)), flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
