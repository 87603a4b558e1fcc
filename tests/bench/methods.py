"""Every method by its name, end to end: search, baselines and report, on each executor, at a reduced size.

    python -m tests.bench.methods [--data PATH] [--executors serial ray] [--methods NAME ...] [--epochs 24]

A fresh process and an empty workspace for each, networks of width 4, a horizon of 3 epochs; a search ends after
`--epochs` epochs of its own. Runs whose row is there already are left out, so that it goes on where it was stopped. A
run that fails, or leaves no winner or no report, raises. At this size the scores say that all parts work together, not
which method is better.
"""

import argparse
import json
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from lfs.methods import METHODS
from tests.bench.rows import append_row, read_rows
from tests.bench.runs import LOSSEARCH, FinishedSearch

HORIZON_EPOCHS = 3
SMALL = (
    "recipe.width=4",
    f"recipe.horizon_epochs={HORIZON_EPOCHS}",
    "numerics.dtype=float32",
    "tracking.enabled=false",
)


def overrides(method: str, executor: str, epochs: int) -> list[str]:
    """What makes the search small, and gives each method enough candidates to go through all its stages."""
    search = METHODS[method]["search"]
    settings = [*SMALL, f"executor.kind={executor}"]
    if search["method"] in ("reinforce", "released", "random"):
        settings += ["search.warmup_epochs=1", "search.batch=4"]
    elif search["method"] == "population":
        settings += ["search.members=4"]
    else:
        settings += ["search.candidates=9"]
        settings += ["search.population=4", "search.tournament=2"] if search["sampler"] == "evolution" else []
    return [*settings, f"budget.epochs={epochs}"]


def measure(method: str, executor: str, data: Path | None, epochs: int) -> Mapping[str, object]:
    """One run."""
    with tempfile.TemporaryDirectory() as name:
        folder, began = Path(name), time.monotonic()
        command = [*LOSSEARCH, "search", "--run", "job", "--method", method]
        command += [f"--set={each}" for each in overrides(method, executor, epochs)]
        command += ["--data", str(data.absolute())] if data else []
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{method} on {executor}: {done.stdout}{done.stderr}")
        wall_seconds = time.monotonic() - began
        run = folder / "lossearch" / "runs" / "job"
        search = FinishedSearch.read(run)
        report_bytes = (run / "report.html").stat().st_size
    outcomes, winner = search.outcomes, search.finished.winner
    if winner is None:
        raise RuntimeError(f"{method} on {executor} has no winner")
    searched = [outcomes[number] for number, trial in search.trials.items() if trial.role == "search"]
    return {
        "method": method,
        "executor": executor,
        "data": search.started.data["name"],
        "epochs": epochs,
        "wall_seconds": round(wall_seconds, 1),
        "trials": len(searched),
        "failed": sum(outcome.error is not None for outcome in searched),
        "images": sum(outcome.images for outcome in searched),
        "images_with_baselines": sum(outcome.images for outcome in outcomes.values()),
        "winner_reward": round(outcomes[winner].reward or 0.0, 4),
        "report_bytes": report_bytes,
    }


def known() -> set[tuple[object, ...]]:
    """Which runs have a row."""
    return {(row["method"], row["executor"], row["data"]) for row in read_rows("methods")}


def main() -> None:
    """A row for each method and executor."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--executors", nargs="+", default=["serial", "ray"])
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--epochs", type=int, default=24)
    arguments = parser.parse_args()
    data = arguments.data.name.removesuffix(".zip") if arguments.data else "glyphs"
    for executor in arguments.executors:
        for method in arguments.methods:
            if (method, executor, data) not in known():
                row = append_row("methods", dict(measure(method, executor, arguments.data, arguments.epochs)))
                print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
