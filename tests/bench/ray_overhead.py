"""What Ray costs: the wall time of a search on w workers against (the sum of its trials' training seconds) / w.

    python -m tests.bench.ray_overhead [--workers 2] [--trials 12] [--epochs 4]

The controller is asynchronous (`fixed_list`): no worker ever waits for another. Trials are real trainings on the
embedded data; choose the epochs so that one takes about five seconds. `ray_start_seconds` (Ray, and workers that have
imported torch) is a row of its own. The same trials on `serial` say how much the workers slow one another down, which
is the machine's doing, not Ray's.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

from lfs import ray_executor
from lfs.checkpoints import CheckpointStore
from lfs.executor import Executor, SerialExecutor
from lfs.fixed_list import FixedList, NamedSchedule
from lfs.journal import Journal, Told
from lfs.runner import TrainingRunner
from lfs.search import search
from search_space import LossSchedule, catalog
from tests.bench.rows import append_row
from trainers.data import DataConfig, load_task
from trainers.numerics import probe
from trainers.presets import recipe_defaults
from trainers.recipe import Recipe


def run(executor: Executor, trials: int, epochs: int) -> tuple[float, list[float]]:
    """Wall seconds of a search over `trials` constant margins, and the training seconds of each trial."""
    losses = [LossSchedule.constant(catalog.cosface(margin=0.4 * i / trials, scale=16.0)) for i in range(trials)]
    items = [NamedSchedule(name=f"margin {i}", schedule=loss, epochs=epochs) for i, loss in enumerate(losses)]
    with tempfile.TemporaryDirectory() as folder, Journal(Path(folder)) as journal:
        began = time.monotonic()
        search(
            FixedList(items, seed=0, role="search"),
            executor,
            journal,
            CheckpointStore(Path(folder) / "checkpoints"),
            choose=lambda *_: None,
        )
        wall = time.monotonic() - began
        return wall, [event.outcome.seconds for event in journal if isinstance(event, Told)]


def main() -> None:
    """One row for Ray's start, one for its overhead."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--epochs", type=int, default=4)
    arguments = parser.parse_args()
    workers, trials, epochs = arguments.workers, arguments.trials, arguments.epochs

    task = load_task(DataConfig(), cache_dir=Path())
    recipe = Recipe.model_validate(recipe_defaults(task.kind, embedded=True))
    runner = TrainingRunner(task, recipe, probe(task, recipe))
    began = time.monotonic()
    with ray_executor.connected(None, cpus=workers):
        executor = ray_executor.RayExecutor(runner, workers=workers)
        run(executor, workers, 1)  # every worker has come up and trained
        start_seconds = time.monotonic() - began
        wall, seconds = run(executor, trials, epochs)
        executor.close()
    _, alone = run(SerialExecutor(runner), 2, epochs)
    row = append_row(
        "ray_overhead",
        {
            "workers": workers,
            "trials": trials,
            "seconds_a_trial": round(sum(seconds) / trials, 2),
            "seconds_a_trial_alone": round(sum(alone) / len(alone), 2),
            "ray_start_seconds": round(start_seconds, 1),
            "wall_seconds": round(wall, 2),
            "ideal_seconds": round(sum(seconds) / workers, 2),
            "overhead": round(wall / (sum(seconds) / workers) - 1, 4),
        },
    )
    print(json.dumps(row))


if __name__ == "__main__":
    main()
