"""`ShardedMarginHead`: a classification head whose classes are split over the processes of `torch.distributed`.

Each process holds its share of the class weights and sees the global batch (Partial FC, An et al. 2021). A full softmax
is exact: the processes exchange each row's peak and sums, and the gradient of the embeddings.

Shapes: N global batch, n batch of a process, C classes, M centers of a class, R rows of this process's class weights, D
embedding, S classes that a process samples.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from search_space import functional as fn
from search_space import parts
from search_space.chunked import GradientDtype, Memory, refuse_unknown
from search_space.distributed import Shard, gathered_parts, rank, whole_batch, world_size
from search_space.head_sgd import Steppable
from search_space.loss import NOT_CHUNKED, build, negatives_of
from search_space.margin_loss import chosen_implementation, refuse_batch, say_once
from search_space.spec import LossSpec

WEIGHT = "weight"

ShardedImplementation = Literal["auto", "chunked", "triton"]


def first_class(of_rank: int, ranks: int, num_classes: int) -> int:
    """Where the classes of a process begin; those of a process beyond the last begin at the end."""
    return of_rank * num_classes // ranks


class ShardedMarginHead(Steppable):
    """`MarginHead` over classes that are split evenly over all processes: `(embeddings_nD, labels_n)` → mean loss.

    Make it on every process, with equal arguments, after `torch.distributed` is initialised (without it there is one
    process). All processes get the mean loss of the global batch. The embeddings' gradient is that mean's times the
    number of processes, since `DistributedDataParallel`, which belongs around the network and not around this head,
    averages the processes' gradients; the class weights' is the mean's own.

    `sample_rate` below 1 takes the batch's classes and random others, so many of each process's share; AdaCos scales
    its sum up to all classes. `generator` makes the weights that `MarginHead` makes of it, all of them, and keeps this
    process's; without it processes of equal seeds make different ones. `impl`, `memory` and `gradient_dtype` are
    `margin_loss`'s; what was chosen is logged. Every process has its own `state_dict`; `joined_state` makes those of
    all processes that of a `MarginHead`, which `load_joined` takes on any number of processes.

    Raises ValueError for losses that `chunked` cannot run and for the regularizer 'hyperspherical_energy', and where
    there are fewer classes than processes.
    """

    def __init__(
        self,
        spec: LossSpec,
        num_classes: int,
        dim: int,
        *,
        class_counts: Sequence[int] | None = None,
        sample_rate: float = 1.0,
        generator: torch.Generator | None = None,
        impl: ShardedImplementation = "auto",
        memory: Memory = "store",
        gradient_dtype: GradientDtype = "float32",
    ) -> None:
        super().__init__()
        _refuse(spec, num_classes, sample_rate)
        refuse_unknown("impl", impl, ShardedImplementation)
        refuse_unknown("memory", memory, Memory)
        refuse_unknown("gradient_dtype", gradient_dtype, GradientDtype)
        self._spec, self._num_classes, self._sample_rate = spec, num_classes, sample_rate
        self.impl, self.memory, self.gradient_dtype = impl, memory, gradient_dtype
        self._first, stop = (first_class(rank() + i, world_size(), num_classes) for i in (0, 1))
        self.loss = build(spec, num_classes=num_classes, class_counts=class_counts)
        if generator is None:
            own = torch.Generator().manual_seed(int(torch.randint(2**31, (1,))) + rank())
            weight_RD = torch.randn((stop - self._first) * spec.centers, dim, generator=own)
        else:
            rows = slice(self._first * spec.centers, stop * spec.centers)
            weight_RD = torch.randn(num_classes * spec.centers, dim, generator=generator)[rows].clone()
        self.weight = nn.Parameter(weight_RD / dim**0.5)

    def forward(self, embeddings_nD: Tensor, labels_n: Tensor) -> Tensor:
        """Mean loss of the global batch, a scalar; the processes' batches may differ in length.

        Raises ValueError where `MarginHead` does, for an empty batch only if it is so on all processes, and for a label
        that is no class.
        """
        refuse_batch(embeddings_nD, labels_n, self.weight.shape[1])
        self._share_randomness(embeddings_nD.device)
        with torch.autocast(device_type=embeddings_nD.device.type, enabled=False), whole_batch():
            x_ND, label_N = self._global(embeddings_nD, labels_n)
            w_RD, column_N, shard = self._taking_part(label_N)
            unit_ND = F.normalize(x_ND.to(fn.wide(x_ND, w_RD))).contiguous()
            negatives = negatives_of(self._spec, kernels=self._runs_kernels(x_ND, w_RD))(
                unit_ND,
                w_RD,
                column_N,
                centers=self._spec.centers,
                memory=self.memory,
                gradient_dtype=self.gradient_dtype,
                fused_step=self.fused_step,
                shard=shard,
            )
            cos_y_N = negatives.targets(unit_ND, w_RD)
            return self.loss.from_negatives(negatives, cos_y_N, label_N, fn.norms(x_ND)).mean()

    def _share_randomness(self, device: torch.device) -> None:
        """What a loss draws is the same on all processes; their backend may know no device but that of the batch."""
        if world_size() > 1 and self.loss.generator is None:
            seed = torch.randint(2**31, (1,)).to(device)
            self.loss.generator = torch.Generator().manual_seed(int(gathered_parts(seed)[0]))

    def _runs_kernels(self, x_ND: Tensor, w_RD: Tensor) -> bool:
        chosen, why = chosen_implementation(self._spec, self.impl, x_ND, w_RD)
        if chosen == "plain":
            chosen, why = "chunked", "classes that are split have no plain form"
        say_once(f"{len(w_RD)} class weights of a process, {w_RD.device.type}: '{chosen}', {why}")
        return chosen == "triton"

    def _global(self, x_nD: Tensor, label_n: Tensor) -> tuple[Tensor, Tensor]:
        x_ND, label_N = x_nD, label_n
        if world_size() > 1:
            x_ND = _Gathered.apply(x_nD)  # type: ignore[no-untyped-call]
            label_N = torch.cat(gathered_parts(label_n))
        if not len(label_N):
            raise ValueError("a batch must have one embedding at least, but is empty on all processes")
        low, high = (int(each) for each in label_N.aminmax())
        if low < 0 or high >= self._num_classes:
            raise ValueError(f"labels must lie in [0, {self._num_classes}), but lie in [{low}, {high}]")
        return x_ND, label_N

    def _taking_part(self, label_N: Tensor) -> tuple[Tensor, Tensor, Shard]:
        """Class weights, and the labels as columns of all that take part, which are numbered process by process."""
        centers = self._spec.centers
        own = len(self.weight) // centers
        if self._sample_rate == 1:
            return self.weight, label_N, Shard(first_class=self._first, classes=self._num_classes, split=True)
        here_N = label_N - self._first
        is_own_N = (here_N >= 0) & (here_N < own)
        priority = torch.rand(own, device=label_N.device)
        priority[here_N[is_own_N]] = 2.0
        least = min(own, 2) if world_size() == 1 else 1  # a class needs another one beside it
        count = max(int((priority == 2.0).sum()), round(self._sample_rate * own), least)
        class_S = priority.topk(count).indices.sort().values
        counts = [count] if world_size() == 1 else [int(each) for each in gathered_parts(class_S.new_tensor([count]))]
        before = sum(counts[: rank()])
        column_N = torch.full_like(label_N, -1)
        column_N[is_own_N] = before + torch.searchsorted(class_S, here_N[is_own_N])
        weight_SMD = self.weight.view(own, centers, -1)[class_S]
        return weight_SMD.flatten(0, 1), column_N, Shard(first_class=before, classes=sum(counts), split=True)

    def load_joined(self, state: Mapping[str, Tensor]) -> None:
        """Take this process's share of a whole head's state. Raises ValueError for one of other classes."""
        rows_in_all = self._num_classes * self._spec.centers
        if len(state[WEIGHT]) != rows_in_all:
            raise ValueError(f"the head has {rows_in_all} class weights in all, but the state has {len(state[WEIGHT])}")
        rows = slice(self._first * self._spec.centers, self._first * self._spec.centers + len(self.weight))
        self.load_state_dict({**state, WEIGHT: state[WEIGHT][rows]})


def joined_state(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The `state_dict` of a `MarginHead` from those of all processes, in rank order."""
    return {**states[0], WEIGHT: torch.cat([state[WEIGHT] for state in states])}


def _refuse(spec: LossSpec, num_classes: int, sample_rate: float) -> None:
    if isinstance(spec.objective, NOT_CHUNKED):
        raise ValueError(f"objective '{spec.objective.kind}' is no softmax of the logits and cannot be sharded")
    if isinstance(spec.regularizer, parts.EnergyRegularizer):
        raise ValueError(
            "regularizer 'hyperspherical_energy' needs all class weights in one place, and cannot be sharded"
        )
    if num_classes < world_size():
        raise ValueError(f"each process needs a class, but got num_classes={num_classes} for {world_size()} processes")
    if not 0 < sample_rate <= 1:
        raise ValueError(f"sample_rate must lie in (0, 1], but got sample_rate={sample_rate}")


class _Gathered(torch.autograd.Function):
    """The rows of all processes; backwards this process's part of a gradient that all have, times their number."""

    @staticmethod
    def forward(ctx: Any, x_nD: Tensor) -> Tensor:
        """N×D."""
        parts_nD = gathered_parts(x_nD)
        ctx.start = sum(len(each) for each in parts_nD[: rank()])
        ctx.count = len(x_nD)
        return torch.cat(parts_nD)

    @staticmethod
    def backward(ctx: Any, grad_ND: Tensor) -> Tensor:
        """n×D."""
        return grad_ND[ctx.start : ctx.start + ctx.count] * world_size()
