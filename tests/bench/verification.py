"""Is verification over all pairs fast? Against scikit-learn's weighted ROC curve on about ten million pairs.

    python -m tests.bench.verification [--rounds 5]

Both are given the same embeddings and must reach the same scores: ours makes the pairs, TAR at four FARs, EER, AUC and
rank-1; theirs only `roc_curve` over pairs that are made for it outside its time. They run in turn on one thread; the
row holds both medians, the median of the rounds' ratios, and the largest difference between their scores.
"""

import argparse
import json
import statistics
import time
import tracemalloc
from importlib.metadata import version

import numpy as np
import torch
from sklearn.metrics import auc, roc_curve

from tests.bench.rows import append_row
from trainers.recipe import FARS
from trainers.verification import metric_name, verification

IDENTITIES, IMAGES_EACH, DIM = 230, 20, 128


def embeddings() -> tuple[np.ndarray, np.ndarray]:
    """Noisy identities, as many as omniglot's validation split has."""
    rng = np.random.default_rng(0)
    label_N = np.repeat(np.arange(IDENTITIES), IMAGES_EACH)
    centres = rng.standard_normal((IDENTITIES, DIM))
    noise = rng.standard_normal((len(label_N), DIM))
    return (0.35 * centres[label_N] + noise).astype(np.float32), label_N


def scored_pairs(x_ND: np.ndarray, label_N: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Genuineness, score and weight of every pair."""
    unit_ND = torch.nn.functional.normalize(torch.from_numpy(x_ND))
    first, second = np.triu_indices(len(label_N), 1)
    score = (unit_ND @ unit_ND.T).numpy()[first, second]
    genuine = label_N[first] == label_N[second]
    return genuine, score, np.where(genuine, 2 / (IMAGES_EACH - 1), 1.0)


def scikit_scores(genuine: np.ndarray, score: np.ndarray, weight: np.ndarray) -> dict[str, float]:
    """TAR at each FAR, EER and AUC from scikit-learn's curve."""
    far, tar, _ = roc_curve(genuine, score, sample_weight=weight, drop_intermediate=False)
    tars = {metric_name(limit): float(tar[np.searchsorted(far, limit, side="right") - 1]) for limit in FARS}
    return tars | {"eer": float(np.interp(0, far + tar - 1, far)), "auc": float(auc(far, tar))}


def main() -> None:
    """Measure and append the row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    x_ND, label_N = embeddings()
    pairs = scored_pairs(x_ND, label_N)
    ours, theirs = [], []
    for _ in range(arguments.rounds):
        start = time.perf_counter()
        our_scores = verification(x_ND, label_N, FARS)
        ours.append(time.perf_counter() - start)
        start = time.perf_counter()
        their_scores = scikit_scores(*pairs)
        theirs.append(time.perf_counter() - start)
    tracemalloc.start()
    verification(x_ND, label_N, FARS)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    content = {
        "scikit_learn": version("scikit-learn"),
        "pairs": len(pairs[0]),
        "seconds": round(statistics.median(ours), 3),
        "scikit_learn_seconds": round(statistics.median(theirs), 3),
        "median_ratio": round(statistics.median(b / a for a, b in zip(ours, theirs, strict=True)), 2),
        "largest_difference": max(abs(our_scores[name] - score) for name, score in their_scores.items()),
        "peak_numpy_mib": round(peak_bytes / 2**20, 1),
    }
    print(json.dumps(append_row("verification", content), indent=2))


if __name__ == "__main__":
    main()
