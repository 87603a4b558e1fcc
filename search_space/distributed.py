"""Statistics of the global batch under data parallelism, and of all classes where they are split over processes."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

_has_whole_batch: ContextVar[bool] = ContextVar("has_whole_batch", default=False)


@contextmanager
def whole_batch() -> Iterator[None]:
    """In here every process holds the global batch, and `gathered` has nothing to fetch."""
    token = _has_whole_batch.set(True)
    try:
        yield
    finally:
        _has_whole_batch.reset(token)


def in_group() -> bool:
    """Whether a group of processes, be it of one, has been set up."""
    return dist.is_available() and dist.is_initialized()


def world_size() -> int:
    """The number of processes."""
    return dist.get_world_size() if in_group() else 1


def rank() -> int:
    """The number of this process."""
    return dist.get_rank() if world_size() > 1 else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """The classes of this process, from `first_class` on; `classes` counts those of all processes.

    What is added up over classes is so over processes too where `split`.
    """

    first_class: int
    classes: int
    split: bool = False

    def total(self, value: Tensor) -> Tensor:
        """The sum over the processes, in place."""
        if self.split and world_size() > 1:
            dist.all_reduce(value)
        return value

    def joined(self, peak_N: Tensor, total_N: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Σ exp over all processes from that of each, with the peaks: the highest, the sum from there, the decay."""
        top_N = peak_N.clone()
        if self.split and world_size() > 1:
            dist.all_reduce(top_N, op=dist.ReduceOp.MAX)
        decay_N = (peak_N - top_N).exp()
        return top_N, self.total(total_N * decay_N), decay_N


def gathered(value_N: Tensor) -> Tensor:
    """The values of all processes, in rank order and without gradient; `value_N` itself where there is one process.

    Batches may differ in length.
    """
    return value_N if world_size() == 1 or _has_whole_batch.get() else torch.cat(gathered_parts(value_N))


def gathered_parts(value: Tensor) -> list[Tensor]:
    """The values of each process, in rank order and without gradient. They may differ in length."""
    count = torch.tensor([len(value)], device=value.device)
    counts = [torch.empty_like(count) for _ in range(world_size())]
    dist.all_gather(counts, count)
    lengths = [int(each) for each in counts]
    padded = value.new_zeros(max(lengths), *value.shape[1:])
    padded[: len(value)] = value.detach()
    parts = [torch.empty_like(padded) for _ in lengths]
    dist.all_gather(parts, padded)
    return [part[:length] for part, length in zip(parts, lengths, strict=True)]
