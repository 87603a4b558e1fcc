"""Tests that run on several processes of `torch.distributed`."""

import datetime as dt
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

Record = list[dict[str, Tensor]]
"""What one process saw at each step."""

Answers = dict[str, Record]


@contextmanager
def in_group(rank: int, world: int, folder: str, backend: str = "gloo") -> Iterator[Answers]:
    """Join the group of processes that meet in `folder`; what the body put into the answers is saved at the end."""
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    store = f"file://{folder}/store"
    dist.init_process_group(backend, store, rank=rank, world_size=world, timeout=dt.timedelta(seconds=60))
    answers: Answers = {}
    yield answers
    if backend == "gloo":
        dist.barrier()
    torch.save(answers, Path(folder, f"{rank}.pt"))
    while backend != "gloo" and len(list(Path(folder).glob("*.pt"))) < world:
        time.sleep(0.01)  # who leaves the group while another still joins it tears that one's connection
    dist.destroy_process_group()


def answers_of(worker: Callable[[int, int, str], None], world: int, folder: Path) -> list[Answers]:
    """Run `worker(rank, world, folder)` in so many processes; the answers of each."""
    mp.spawn(worker, args=(world, str(folder)), nprocs=world)  # type: ignore[attr-defined,no-untyped-call]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(world)]
