"""Statistics of the global batch under data parallelism."""

import torch
import torch.distributed as dist
from torch import Tensor


def gathered(value_N: Tensor) -> Tensor:
    """The values of all processes, in rank order and without gradient; `value_N` itself where there is one process.

    Batches may differ in length.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return value_N
    count = torch.tensor([len(value_N)], device=value_N.device)
    counts = [torch.empty_like(count) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, count)
    lengths = [int(each) for each in counts]
    padded = value_N.new_zeros(max(lengths))
    padded[: len(value_N)] = value_N
    parts = [torch.empty_like(padded) for _ in lengths]
    dist.all_gather(parts, padded)
    return torch.cat([part[:length] for part, length in zip(parts, lengths, strict=True)])
