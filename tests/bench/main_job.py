"""The README's first command, timed and weighed: a default search with baselines and report, on each executor.

    python -m tests.bench.main_job [--executors serial ray] [--data PATH]

A fresh process and an empty workspace for each. `wall_seconds` is the whole command's; `peak_pss_bytes` the largest sum
over all its processes of the proportional set size (shared pages are counted once), sampled twice a second.
"""

import argparse
import json
import subprocess
import tempfile
import time
from pathlib import Path

import psutil

from tests.bench.rows import append_row
from tests.bench.runs import LOSSEARCH, FinishedSearch

SAMPLE_SECONDS = 0.5


def pss_bytes(parent: psutil.Process) -> int:
    """Proportional set size of a process and all below it."""
    total = 0
    for process in [parent, *parent.children(recursive=True)]:
        try:
            total += process.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return total


def weigh(command: list[str], folder: Path) -> tuple[float, int]:
    """Run a command to its end; returns its wall time in seconds and its peak memory in bytes."""
    began, peak = time.monotonic(), 0
    with (folder / "output.txt").open("wb") as output:
        process = subprocess.Popen(command, cwd=folder, stdout=output, stderr=subprocess.STDOUT)
        while process.poll() is None:
            peak = max(peak, pss_bytes(psutil.Process(process.pid)))
            time.sleep(SAMPLE_SECONDS)
    if process.returncode:
        raise RuntimeError((folder / "output.txt").read_text())
    return time.monotonic() - began, peak


def measure(executor: str, data: Path | None) -> dict[str, object]:
    """One run of the main job."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = [*LOSSEARCH, "search", "--run", "job", "--set", f"executor.kind={executor}"]
        wall_seconds, peak = weigh(command + (["--data", str(data.absolute())] if data else []), folder)
        search = FinishedSearch.read(folder / "lossearch" / "runs" / "job")
    started, finished, outcomes = search.started, search.finished, search.outcomes
    entrants = {trial.name: number for number, trial in search.trials.items() if trial.name}
    if finished.winner is not None:
        entrants["winner"] = finished.winner
    metric = str(started.config["recipe"]["reward"])  # type: ignore[index, call-overload]
    return {
        "executor": executor,
        "data": started.data["name"],
        "numerics": dict(started.numerics),
        "wall_seconds": round(wall_seconds, 1),
        "search_seconds": round(finished.time - started.time, 1),
        "training_seconds": round(sum(outcome.seconds for outcome in outcomes.values()), 1),
        "trials": len(outcomes),
        "images": sum(outcome.images for outcome in outcomes.values()),
        "peak_pss_bytes": peak,
        "metric": metric,
        "scores": {
            name: {half: round(outcomes[number].metrics[f"{half}/{metric}"], 4) for half in ("reward", "choice", "val")}
            for name, number in entrants.items()
            if outcomes[number].error is None
        },
    }


def main() -> None:
    """A row for each executor."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--executors", nargs="+", default=["serial", "ray"])
    parser.add_argument("--data", type=Path)
    arguments = parser.parse_args()
    for executor in arguments.executors:
        print(json.dumps(append_row("main_job", measure(executor, arguments.data))), flush=True)


if __name__ == "__main__":
    main()
