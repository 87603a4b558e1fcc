"""How accurate are three losses on LFW's official pairs, and on faces of another collection?

    LOSSEARCH_DATA=../shared/data python -m tests.bench.protocol_accuracy [--seeds 3] [--epochs 12]

Each loss is trained on lfw112's training people (folds 1-6) at proxy size, under each seed. Scored are

- `lfw112`: the 600 pairs of `pairs_test.txt` (fold 8), accepted above the threshold that suits the 600 of
  `pairs_val.txt` (fold 7) best;
- `orl`: 600 pairs drawn from all 40 people of a collection that was never seen, in ten folds, each under the threshold
  that suits the nine others best (`trainers.lfw_protocol.draw_pairs`).

A pair's score is the cosine of its embeddings, each the sum of that of the image and of the mirrored image. Accuracy is
the mean over seeds; the interval is the middle 95 % of 1000 resamples of seeds and pairs, thresholds found anew. Pairs
share people, so it is rather too narrow. Appends one dated row a loss to `results/protocol_accuracy.jsonl`.
"""

import argparse
import json
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from search_space import LossSchedule, LossSpec, catalog
from tests.bench.rows import append_row
from trainers.data import DataConfig, load_task
from trainers.evaluation import embeddings
from trainers.formats.opening import open_images
from trainers.image_cache import decode
from trainers.lfw_protocol import FOLDS, PAIRS, draw_pairs
from trainers.pair_accuracy import decoded_pairs
from trainers.pair_protocol import accuracy_by_fold, pair_set, read_pair_list
from trainers.presets import recipe_defaults
from trainers.recipe import Numerics, Recipe
from trainers.task import Task
from trainers.training import train

LOSSES = {
    "softmax": catalog.softmax(scale=16.0),
    "adacos": catalog.adacos_dynamic(),
    "cosface": catalog.cosface(scale=16.0, margin=0.2),
}
RESAMPLES = 1000
CACHE = Path.home() / ".cache" / "lossearch-bench"

Floats = npt.NDArray[np.float32]


class Pairs:
    """Images, which two of them each pair is, which pairs are genuine, the folds, and those that count."""

    def __init__(
        self,
        images_NKHW: npt.NDArray[np.uint8],
        pair_P2: npt.NDArray[np.int64],
        genuine_P: npt.NDArray[np.bool_],
        fold_P: npt.NDArray[np.int64],
        counted: slice,
    ) -> None:
        self.images_NKHW, self.pair_P2 = images_NKHW, pair_P2
        self.genuine_P, self.fold_P, self._counted = genuine_P, fold_P, counted

    def scores(self, x_ND: Floats) -> Floats:
        """The cosine of each pair."""
        unit_ND = x_ND / np.linalg.norm(x_ND, axis=1, keepdims=True)
        cosine_P: Floats = (unit_ND[self.pair_P2[:, 0]] * unit_ND[self.pair_P2[:, 1]]).sum(1)
        return cosine_P

    def accuracy(self, score_P: Floats, chosen_P: npt.NDArray[np.int64] | None = None) -> float:
        """Over the folds that count, of all pairs or of those chosen."""
        chosen_P = np.arange(len(score_P)) if chosen_P is None else chosen_P
        folds = accuracy_by_fold(score_P[chosen_P], self.genuine_P[chosen_P], self.fold_P[chosen_P])
        return float(folds[self._counted].mean())

    def resampled(self, rng: np.random.Generator) -> npt.NDArray[np.int64]:
        """Pairs drawn with replacement within each kind of each fold."""
        stratum_P = 2 * self.fold_P + self.genuine_P
        members = [np.flatnonzero(stratum_P == each) for each in np.unique(stratum_P)]
        return np.concatenate([rng.choice(each, len(each)) for each in members])


def lfw_pairs(root: Path, size: int) -> Pairs:
    """Those of fold 7, which give the threshold, and those of fold 8, which count."""
    source = open_images(root / "lfw112")
    parts = [
        decoded_pairs(pair_set(read_pair_list(root / "lfw112" / f"pairs_{part}.txt"), source), part, (1, size, size))
        for part in ("val", "test")
    ]
    genuine_P = np.concatenate([part.genuine_P for part in parts])
    fold_P = np.repeat([0, 1], [len(part.genuine_P) for part in parts])
    images_NKHW = np.concatenate([part.images for part in parts])
    return Pairs(images_NKHW, np.arange(len(images_NKHW)).reshape(-1, 2), genuine_P, fold_P, slice(1, None))


def orl_pairs(root: Path, size: int) -> Pairs:
    """Pairs drawn from all people of orl."""
    source = open_images(root / "orl")
    classes = sorted(source.files)
    names = source.names(classes)
    images_NKHW = np.array(decode(source, names, image_size=size, colour="grey", cache_dir=CACHE))
    label_N = np.repeat(np.arange(len(classes)), [len(source.files[name]) for name in classes])
    pair_P2 = np.stack(draw_pairs(label_N), axis=1)
    number_P = np.arange(PAIRS)
    return Pairs(images_NKHW, pair_P2, number_P < PAIRS // 2, number_P % FOLDS, slice(None))


def interval(pairs: Pairs, scores: list[Floats]) -> list[float]:
    """Of the mean over seeds, 95 %."""
    rng = np.random.default_rng(0)
    means = []
    for _ in range(RESAMPLES):
        seeds, chosen_P = rng.integers(len(scores), size=len(scores)), pairs.resampled(rng)
        means.append(np.mean([pairs.accuracy(scores[seed], chosen_P) for seed in seeds]))
    return [round(float(bound), 4) for bound in np.quantile(means, [0.025, 0.975])]


def measured(task: Task, protocols: dict[str, Pairs], recipe: Recipe, loss: LossSpec, seeds: int) -> dict[str, object]:
    """Accuracies of one loss. Raises `RuntimeError` when a training diverges."""
    scores: dict[str, list[Floats]] = {name: [] for name in protocols}
    seconds = []
    for seed in range(seeds):
        outcome, checkpoint = train(
            LossSchedule.constant(loss),
            task,
            recipe=recipe,
            numerics=Numerics(),
            seed=seed,
            epochs=recipe.horizon_epochs,
        )
        if checkpoint is None:
            raise RuntimeError(outcome.error)
        seconds.append(round(outcome.seconds, 1))
        for name, pairs in protocols.items():
            mirrored = np.ascontiguousarray(pairs.images_NKHW[..., ::-1])
            x_ND = sum(
                embeddings(checkpoint, images, recipe=recipe, numerics=Numerics())
                for images in (pairs.images_NKHW, mirrored)
            )
            scores[name].append(pairs.scores(np.asarray(x_ND)))
    found: dict[str, object] = {"train_seconds": seconds}
    for name, pairs in protocols.items():
        by_seed = [pairs.accuracy(each) for each in scores[name]]
        found[name] = {
            "accuracy": round(float(np.mean(by_seed)), 4),
            "interval": interval(pairs, scores[name]),
            "by_seed": [round(each, 4) for each in by_seed],
        }
    return found


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, help="default: the recipe's for photographs, 12")
    parser.add_argument("--loss", choices=LOSSES, action="append", help="all when left out")
    arguments = parser.parse_args()
    root = Path(os.environ.get("LOSSEARCH_DATA", Path(__file__).parents[2] / "../shared/data"))
    task = load_task(DataConfig(path=root / "lfw112"), cache_dir=CACHE)
    changes = {} if arguments.epochs is None else {"horizon_epochs": arguments.epochs}
    recipe = Recipe.model_validate(recipe_defaults(task.kind, embedded=False) | changes)
    size = task.train.images.shape[-1]
    protocols = {"lfw112": lfw_pairs(root, size), "orl": orl_pairs(root, size)}
    for loss in arguments.loss or LOSSES:
        content = {
            "loss": loss,
            "seeds": arguments.seeds,
            "data_digest": task.digest,
            "recipe": recipe.model_dump(mode="json"),
            **measured(task, protocols, recipe, LOSSES[loss], arguments.seeds),
        }
        print(json.dumps(append_row("protocol_accuracy", content)), flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
