"""K candidates on one worker: one by one, in lockstep, and each with one compiled graph (on a GPU: CUDA graphs too).

    python -m tests.bench.lockstep [--rounds 5] [--sizes 1 4 8] [--no-compile]

Each is one epoch of the embedded default recipe, scores included, as a worker would run it. The ways are run in turn
(A B C A B C ...); a row holds their median seconds a candidate and the ratio to one by one. Compiling, which a worker
does once, is timed apart. `probed` is what the product's probe chooses for a search of the default's length.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from lfs.runner import default_device
from search_space import LossSchedule, catalog
from tests.bench.rows import append_row
from trainers import Candidate, DataConfig, Numerics, Recipe, Task, load_task, probe, probe_lockstep, recipe_defaults
from trainers.recipe import Execution
from trainers.training import train_together

EPOCHS_OF_A_WORKER = 52
"""Of the default search on two workers."""


def candidates(count: int) -> list[Candidate]:
    """Cosine margins between 0 and .4."""
    margins = [0.4 * index / max(1, count - 1) for index in range(count)]
    return [Candidate(schedule=LossSchedule.constant(catalog.cosface(margin=m, scale=16.0))) for m in margins]


def epoch(size: int, numerics: Numerics, task: Task, recipe: Recipe, *, together: bool) -> float:
    """Seconds a candidate."""
    every = candidates(size)
    groups = [every] if together else [[each] for each in every]
    began = time.perf_counter()
    for group in groups:
        train_together(group, task, recipe=recipe, numerics=numerics, seed=0, epochs=1, device=default_device())
    return (time.perf_counter() - began) / size


def compared(ways: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, object]:
    """Median seconds of each way, and how many times as fast as the first it is."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, run in ways.items():
            seconds[name].append(run())
    medians = {name: statistics.median(each) for name, each in seconds.items()}
    plain = next(iter(medians.values()))
    return {
        "seconds_a_candidate": {name: round(each, 3) for name, each in medians.items()},
        "times_as_fast": {name: round(plain / each, 3) for name, each in medians.items()},
        "all_seconds": {name: [round(each, 3) for each in values] for name, values in seconds.items()},
    }


def main() -> None:
    """Print and append one row a number of candidates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--no-compile", action="store_true")
    arguments = parser.parse_args()
    with TemporaryDirectory() as cache:
        task = load_task(DataConfig(), cache_dir=Path(cache))
    recipe = Recipe.model_validate(recipe_defaults(task.kind, embedded=True))
    device = default_device()
    numerics = probe(task, recipe, device=device)
    probed = probe_lockstep(task, recipe, numerics, room=8, epochs=EPOCHS_OF_A_WORKER, device=device)
    graphs: list[Execution] = ["cuda_graph"] if device == "cuda" else []
    once_seconds = None
    if not arguments.no_compile:
        graphs.append("compiled")
        began = time.perf_counter()
        epoch(1, numerics.model_copy(update={"execution": "compiled"}), task, recipe, together=True)
        once_seconds = round(time.perf_counter() - began, 1)
    for size in arguments.sizes:
        ways: dict[str, Callable[[], float]] = {}
        for execution in ("eager", *graphs):
            how = numerics.model_copy(update={"execution": execution})
            for together in (False, True) if size > 1 else (False,):
                name = f"{'lockstep' if together else 'one by one'}, {execution}"
                ways[name] = partial(epoch, size, how, task, recipe, together=together)
        row = append_row(
            "lockstep",
            {
                "device": device,
                "candidates": size,
                "numerics": numerics.model_dump(include={"dtype", "channels_last", "threads"}),
                "first_epoch_compiled_seconds": once_seconds,
                "probed": probed.model_dump(include={"lockstep", "execution"}),
                **compared(ways, arguments.rounds),
            },
        )
        print(size, row["seconds_a_candidate"], row["times_as_fast"])


if __name__ == "__main__":
    main()
