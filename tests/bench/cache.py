"""What does the cache of decoded images save? Time an epoch against decoding JPEGs, and memory when it is mapped.

    python -m tests.bench.cache [--rounds 5]

lfw112 in $LOSSEARCH_DATA, all of its images at 48 pixels in float batches of 128, once in a shuffled order. `speed`:
the batches of the cache, on one thread, against a `DataLoader` that decodes with 2 workers, as a training loop without
a cache does; the loader's workers stay between epochs. Epochs in turn; medians, and the median of the rounds' ratios.
`memory`: fresh processes that load the task and read all of it, held and mapped, in MiB: what a process has of its own
(RssAnon), what it maps (RssFile), and its proportional share of all (Pss) when it is alone and when there are two.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from tests.bench.rows import append_row
from trainers.evaluation import as_float, on_device
from trainers.formats.opening import open_images
from trainers.image_cache import decode, decode_image
from trainers.image_source import ImageSource

SIDE, BATCH, WORKERS = 48, 128, 2
MIB = 2**20

CHILD = """
import pathlib, sys
from trainers.data import DataConfig, load_task
share = float(sys.argv[3])
config = DataConfig(path=pathlib.Path(sys.argv[1]), image_size=112, memory_share=share)
task = load_task(config, cache_dir=pathlib.Path(sys.argv[2]))
parts = (task.train, task.reward, task.choice)
total = sum(int(part.images.sum()) for part in parts)
print(sum(part.images.nbytes for part in parts), flush=True)
for _ in sys.stdin:
    told = pathlib.Path('/proc/self/status').read_text() + pathlib.Path('/proc/self/smaps_rollup').read_text()
    wanted = [line.split()[1] for line in told.splitlines() if line.startswith(('RssAnon:', 'RssFile:', 'Pss:'))]
    print(*wanted, flush=True)
"""


class Decoding(Dataset[torch.Tensor]):
    """Images decoded anew each time."""

    def __init__(self, source: ImageSource) -> None:
        names = source.names(source.files)
        with source.reader() as read:
            self._contents = [(read(name), name) for name in names]

    def __len__(self) -> int:
        return len(self._contents)

    def __getitem__(self, number: int) -> torch.Tensor:
        content, name = self._contents[number]
        return torch.from_numpy(np.array(decode_image(content, name, image_size=SIDE, colour="rgb"))).permute(2, 0, 1)


def cached_epoch(images_NKHW: torch.Tensor) -> float:
    """Seconds of an epoch from the cache."""
    began, seen = time.perf_counter(), 0
    for index in torch.split(torch.randperm(len(images_NKHW)), BATCH):
        seen += len(as_float(images_NKHW.index_select(0, index)))
    assert seen == len(images_NKHW)
    return time.perf_counter() - began


def decoding_epoch(loader: DataLoader[torch.Tensor]) -> float:
    """Seconds of an epoch that decodes."""
    began, seen = time.perf_counter(), 0
    for batch in loader:
        seen += len(as_float(batch))
    assert seen == len(loader.dataset)  # type: ignore[arg-type]
    return time.perf_counter() - began


def speed(source: ImageSource, rounds: int) -> dict[str, object]:
    """The row's part about time."""
    names = source.names(source.files)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as cache:
        began = time.perf_counter()
        decoded = decode(source, names, image_size=SIDE, colour="rgb", cache_dir=Path(cache))
        build_seconds = time.perf_counter() - began
        began = time.perf_counter()
        decode(source, names, image_size=SIDE, colour="rgb", cache_dir=Path(cache))
        open_seconds = time.perf_counter() - began
        images_NKHW = on_device(decoded.file.images(), torch.device("cpu"))
        loader = DataLoader(
            Decoding(source), BATCH, shuffle=True, num_workers=WORKERS, persistent_workers=True, drop_last=False
        )
        taken_R2 = np.array([(decoding_epoch(loader), cached_epoch(images_NKHW)) for _ in range(rounds + 1)])[1:]
    decoding, cached = np.median(taken_R2, axis=0).round(4).tolist()
    return {
        "images": len(names),
        "decoding_seconds": decoding,
        "cached_seconds": cached,
        "times_as_fast": round(float(np.median(taken_R2[:, 0] / taken_R2[:, 1])), 1),
        "build_seconds": round(build_seconds, 2),
        "open_and_verify_seconds": round(open_seconds, 2),
    }


def memory(path: Path) -> dict[str, object]:
    """The row's part about memory, at 112 pixels."""
    row: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as cache:
        for name, share in (("held", "1"), ("mapped", "0")):
            first = _Child(path, cache, share)
            row["images_mib"] = round(first.image_bytes / MIB)
            alone = first.told()
            second = _Child(path, cache, share)
            row[name] = {**alone, "pss_of_two_mib": first.told()["pss_mib"] + second.told()["pss_mib"]}
            for child in (first, second):
                child.end()
    return row


class _Child:
    def __init__(self, path: Path, cache: str, share: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(path), cache, share],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.image_bytes = int(self._ask())

    def _ask(self, line: str = "") -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(line)
        self._process.stdin.flush()
        return self._process.stdout.readline()

    def told(self) -> dict[str, int]:
        names = ("rss_anon_mib", "rss_file_mib", "pss_mib")
        return {name: round(int(kib) / 1024) for name, kib in zip(names, self._ask("\n").split(), strict=True)}

    def end(self) -> None:
        self._process.communicate()


def main() -> None:
    """One row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    path = Path(os.environ["LOSSEARCH_DATA"]) / "lfw112"
    content: dict[str, Any] = {"data": "lfw112", "side": SIDE, "batch": BATCH, "workers": WORKERS, **vars(arguments)}
    row = append_row("cache", {**content, **speed(open_images(path), arguments.rounds), **memory(path)})
    print(json.dumps(row))


if __name__ == "__main__":
    main()
