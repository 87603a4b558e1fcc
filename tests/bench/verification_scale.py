"""Do the protocols stay fast and small as sets grow? All pairs of 10 000 and 100 000 images, and 10 000 probes in a
gallery of a million.

    python -m tests.bench.verification_scale pairs 10000 sort exact histogram [--rounds 3]
    python -m tests.bench.verification_scale pairs 100000 histogram exact
    python -m tests.bench.verification_scale identification 10000 1000000

Ways over all pairs: `sort` holds every score and sorts it (what fits on a page); `exact` is `trainers.verification`;
`histogram` is `PairHistogram` with `Roc`. Each makes TAR at four FARs, EER and AUC, `exact` and `histogram` also count
rank-1 hits; none makes intervals. Every run is a process of its own on one thread, ways in turn. A row holds medians,
the largest difference from the exact way, and by how much resident memory, looked at every 5 ms, rose above that of the
embeddings. `sort` is refused where its table and indices are more than the machine's memory; the row has both.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import numpy as np
import numpy.typing as npt
import psutil
import torch

from tests.bench.rows import append_row
from trainers.protocols.matching import mates, nearest
from trainers.protocols.pair_histogram import PairHistogram
from trainers.protocols.roc import Roc
from trainers.recipe import FARS
from trainers.verification import verification

IMAGES_EACH = 20
PAIRS_DIM, GALLERY_DIM = 128, 512
MEMORY_BYTES = 2**28
WAYS = ("sort", "exact", "histogram")

Scores = dict[str, float]
Ints = npt.NDArray[np.int64]
Floats32 = npt.NDArray[np.float32]


def embeddings(images: int, dim: int, label_N: Ints, seed: int) -> Floats32:
    """Noisy identities, made in float32 so that making them takes little more than they do."""
    centres = np.random.default_rng(0).standard_normal((int(label_N.max()) + 1, dim), dtype=np.float32)
    x_ND = np.random.default_rng(seed).standard_normal((images, dim), dtype=np.float32)
    for start in range(0, images, 4096):
        x_ND[start : start + 4096] += 0.35 * centres[label_N[start : start + 4096]]
    return x_ND


def by_sort(x_ND: Floats32, label_N: Ints) -> Scores:
    """Every score at once."""
    unit_ND = torch.nn.functional.normalize(torch.from_numpy(x_ND))
    first, second = np.triu_indices(len(x_ND), 1)
    score_P = (unit_ND @ unit_ND.T).numpy()[first, second]
    genuine_P = label_N[first] == label_N[second]
    weight_P = np.where(genuine_P, 2 / (IMAGES_EACH - 1), 1.0)
    return {name: float(value[0]) for name, value in Roc.of(score_P, genuine_P, weight_P).scores(FARS).items()}


def by_histogram(x_ND: Floats32, label_N: Ints) -> Scores:
    found = PairHistogram.of(x_ND, label_N, rng=np.random.default_rng(0), memory_bytes=MEMORY_BYTES)
    scores = {name: float(value[0]) for name, value in found.roc().scores(FARS).items()}
    return scores | {"stated_error": max(found.error_at(far) for far in FARS)}


@contextmanager
def watched() -> Iterator[list[float]]:
    """Seconds, and MiB of resident memory beyond those at the start, once the context is left."""
    process, found, done = psutil.Process(), [0.0, 0.0], threading.Event()
    before, start = process.memory_info().rss, time.perf_counter()

    def look() -> None:
        while not done.wait(0.005):
            found[1] = max(found[1], (process.memory_info().rss - before) / 2**20)

    watcher = threading.Thread(target=look)
    watcher.start()
    yield found
    found[0] = time.perf_counter() - start
    done.set()
    watcher.join()


def score_pairs(images: int, way: str) -> tuple[float, float, Scores]:
    """Seconds, memory in MiB beyond the embeddings, and scores of one way, in a process of its own."""
    torch.set_num_threads(1)
    label_N = np.arange(images) // IMAGES_EACH
    x_ND = embeddings(images, PAIRS_DIM, label_N, seed=1)
    exact: Callable[[Floats32, Ints], Scores] = partial(verification, fars=FARS)
    with watched() as taken:
        scores = {"sort": by_sort, "exact": exact, "histogram": by_histogram}[way](x_ND, label_N)
    return taken[0], taken[1], scores


def identify(probes: int, entries: int) -> tuple[float, float, Scores]:
    """The same of rank-1 and rank-5 of probes that have one entry each."""
    torch.set_num_threads(1)
    probe_ND = embeddings(probes, GALLERY_DIM, np.arange(probes), seed=1)
    gallery_ND = embeddings(entries, GALLERY_DIM, np.arange(entries), seed=2)
    pairs = mates(np.arange(probes).astype(str), np.arange(entries).astype(str))
    with watched() as taken:
        found = nearest(probe_ND, gallery_ND, pairs, keep=5, memory_bytes=MEMORY_BYTES)
    return taken[0], taken[1], {f"rank{rank}": float(found.rank_within(rank).mean()) for rank in (1, 5)}


def pairs_row(images: int, ways: list[str], rounds: int) -> dict[str, object]:
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    sort_bytes = 4 * images**2 + 2 * 8 * images * (images - 1) // 2  # the table and both indices of each pair
    content: dict[str, object] = {"task": "all pairs", "images": images, "dim": PAIRS_DIM, "rounds": rounds}
    content |= {"sort_gib_at_least": round(sort_bytes / 2**30, 1), "machine_gib": round(memory_bytes / 2**30, 1)}
    if "sort" in ways and sort_bytes > memory_bytes:
        raise SystemExit(f"sort needs {sort_bytes / 2**30:.0f} GiB at least; leave it out")
    runs: dict[str, list[tuple[float, float, Scores]]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way in ways:
            runs[way].append(in_own_process(partial(score_pairs, images, way)))
    reference = next((runs[way][0][2] for way in ("exact", "sort") if way in runs), None)
    for way, measured in runs.items():
        scores = measured[0][2]
        content[f"{way}_seconds"] = round(statistics.median(seconds for seconds, _, _ in measured), 2)
        content[f"{way}_mib"] = round(statistics.median(mib for _, mib, _ in measured), 1)
        if "stated_error" in scores:
            content[f"{way}_stated_error"] = scores["stated_error"]
        if reference is not None:
            shared = [name for name in scores if name in reference]
            content[f"{way}_largest_difference"] = max(abs(scores[name] - reference[name]) for name in shared)
    return content


def identification_row(probes: int, entries: int) -> dict[str, object]:
    seconds, mib, scores = in_own_process(partial(identify, probes, entries))
    return {
        "task": "identification",
        "probes": probes,
        "entries": entries,
        "dim": GALLERY_DIM,
        "seconds": round(seconds, 1),
        "gflop_per_second": round(2 * probes * entries * GALLERY_DIM / seconds / 1e9, 1),
        "gallery_mib": round(entries * GALLERY_DIM * 4 / 2**20, 1),
        "stated_mib": MEMORY_BYTES / 2**20,
        "mib": round(mib, 1),
        **scores,
    }


def in_own_process(measure: "partial[tuple[float, float, Scores]]") -> tuple[float, float, Scores]:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure)


def main() -> None:
    """Measure and append the row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tasks = parser.add_subparsers(dest="task", required=True)
    pairs = tasks.add_parser("pairs")
    pairs.add_argument("images", type=int)
    pairs.add_argument("ways", nargs="+", choices=WAYS)
    pairs.add_argument("--rounds", type=int, default=1)
    identification = tasks.add_parser("identification")
    identification.add_argument("probes", type=int)
    identification.add_argument("entries", type=int)
    given = parser.parse_args()
    if given.task == "pairs":
        content = pairs_row(given.images, given.ways, given.rounds)
    else:
        content = identification_row(given.probes, given.entries)
    print(json.dumps(append_row("verification_scale", content), indent=2))


if __name__ == "__main__":
    main()
