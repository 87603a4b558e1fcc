"""A benchmark's result is a dated row of a committed file, with machine, versions, commit and load."""

import datetime as dt
import json
import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
LIBRARIES = ("numpy", "ray", "torch")


def append_row(name: str, content: dict[str, object]) -> dict[str, object]:
    """Append `content` to `results/<name>.jsonl` under the facts of this machine and moment; returns the row."""
    row = {
        "date": dt.datetime.now(tz=dt.UTC).date().isoformat(),
        "commit": _commit(),
        "machine": f"{_cpu_name()}, {os.cpu_count()} cores",
        "load_1min": round(os.getloadavg()[0], 1),
        "versions": {"python": platform.python_version()} | {each: version(each) for each in LIBRARIES},
        **content,
    }
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / f"{name}.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    return row


def read_rows(name: str) -> list[dict[str, Any]]:
    """The rows of `results/<name>.jsonl`, none where there is no such file."""
    path = RESULTS / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _commit() -> str:
    """The short hash of HEAD, with a `+` where the tree differs from it."""
    here = Path(__file__).parent
    try:
        head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=here, capture_output=True, check=True)
        changed = subprocess.run(["git", "status", "--porcelain", "-uno"], cwd=here, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.stdout.decode().strip() + ("+" if changed.stdout.strip() else "")


def _cpu_name() -> str:
    """The processor's own name where the system tells it."""
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return names[0].partition(":")[2].strip() if names else platform.processor() or platform.machine()
