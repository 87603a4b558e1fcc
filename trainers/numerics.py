"""How the arithmetic is done: chosen by a short measurement, then applied by every worker."""

import functools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from trainers.networks import build_network
from trainers.recipe import Numerics, Recipe
from trainers.task import Task

_SECONDS = 2.0
_ROUNDS = 7
_BFLOAT16_GAIN = 1.1
"""bfloat16 loses accuracy: it must be this many times as fast to be chosen."""
_EMULATED = 3.0
"""So many times the seconds of float32 are not won back by a larger batch."""


@contextmanager
def applied(numerics: Numerics) -> Iterator[None]:
    """Let torch use `numerics.threads` threads, and as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(numerics.threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def placed(network: nn.Module, numerics: Numerics, device: torch.device) -> nn.Module:
    """The network, moved to the device and laid out for it."""
    # torch's type stubs lack this overload of Module.to
    moved: nn.Module = network.to(device, memory_format=_layout(numerics))  # type: ignore[call-overload]
    return moved


def run(network: nn.Module, images_NKHW: Tensor, numerics: Numerics) -> Tensor:
    """Embeddings N×D of float images, float32 even where the network computes in bfloat16."""
    forward = _compiled_forward() if numerics.execution == "compiled" and network.training else _forward
    return forward(network, images_NKHW.contiguous(memory_format=_layout(numerics)), numerics)


def _forward(network: nn.Module, images_NKHW: Tensor, numerics: Numerics) -> Tensor:
    with _autocast(images_NKHW.device, numerics):
        embeddings_ND: Tensor = network(images_NKHW)
    return embeddings_ND


@functools.cache
def _compiled_forward() -> Callable[[nn.Module, Tensor, Numerics], Tensor]:
    """One graph for all networks of a shape: their weights are inputs of it."""
    return torch.compile(_forward, fullgraph=True, dynamic=False)


def _autocast(device: torch.device, numerics: Numerics) -> torch.autocast:
    """A CUDA graph must not find weights in autocast's cache that its next replay would not see change."""
    return torch.autocast(
        device.type,
        dtype=torch.bfloat16,
        enabled=numerics.dtype == "bfloat16",
        cache_enabled=numerics.execution != "cuda_graph",
    )


def capture(network: nn.Module, images_shape: Sequence[int], numerics: Numerics, device: torch.device) -> None:
    """Have the training passes of `network`, in training mode, replay CUDA graphs for batches of `images_shape`.

    Its weights and averages stay as they are. Weights may change later in place, not be replaced. Raises ValueError
    where `device` is no GPU.
    """
    if device.type != "cuda":
        raise ValueError(f"execution 'cuda_graph' needs a CUDA device, but this worker trains on '{device.type}'")
    held = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    images_NKHW = torch.zeros(*images_shape, device=device).contiguous(memory_format=_layout(numerics))
    with _autocast(device, numerics):
        torch.cuda.make_graphed_callables(network, (images_NKHW,))  # trains a few steps to warm up
    network.load_state_dict(held)


def _layout(numerics: Numerics) -> torch.memory_format:
    return torch.channels_last if numerics.channels_last else torch.contiguous_format


def probe(task: Task, recipe: Recipe, *, device: str = "cpu", threads: int = 1) -> Numerics:
    """The fastest arithmetic for training the recipe's network on images of the task's shape, in about two seconds
    where a training step takes less than a quarter of one.

    Training steps in float32 and bfloat16, contiguous and channels-last, are timed in turn; the fastest of each counts,
    since other work on the machine only ever slows one. bfloat16 is chosen only when it is clearly faster, and not
    looked at where two images show that the machine only emulates it.
    """
    float32, bfloat16 = (Numerics(dtype=dtype, threads=threads) for dtype in ("float32", "bfloat16"))
    with applied(float32):
        few = [_Step(task, recipe, numerics, device, images=2) for numerics in (float32, bfloat16)]
        float32_seconds, bfloat16_seconds = fastest_in_turn([step.seconds for step in few], rounds=2)
        kinds = [float32] if bfloat16_seconds > _EMULATED * float32_seconds else [float32, bfloat16]
        candidates = [kind.model_copy(update={"channels_last": last}) for kind in kinds for last in (False, True)]
        steps = [_Step(task, recipe, numerics, device, images=recipe.batch_size) for numerics in candidates]
        seconds = [step.seconds() for step in steps]
        left = _SECONDS - sum(seconds)
        if left > 0:  # else the steps are so long that the first ones, which are slow, are good enough
            seconds = fastest_in_turn([step.seconds for step in steps], rounds=_ROUNDS, limit_seconds=left)
    return choose(dict(zip(candidates, seconds, strict=True)))


def choose(step_seconds: Mapping[Numerics, float]) -> Numerics:
    """The numerics with the fastest step, one in bfloat16 only if it is clearly the fastest."""
    handicap = {"float32": 1.0, "bfloat16": _BFLOAT16_GAIN}
    return min(step_seconds, key=lambda numerics: step_seconds[numerics] * handicap[numerics.dtype])


class _Step:
    """A training step of the network alone, on so many images of noise."""

    def __init__(self, task: Task, recipe: Recipe, numerics: Numerics, device: str, *, images: int) -> None:
        self._numerics = numerics
        self._device = torch.device(device)
        generator = torch.Generator().manual_seed(0)
        network = build_network(recipe, image_shape=task.image_shape, generator=generator)
        self._network = placed(network, numerics, self._device)
        noise_NKHW = torch.rand(images, *task.image_shape, generator=generator)
        self._images = noise_NKHW.to(self._device, memory_format=_layout(numerics))

    def seconds(self) -> float:
        """Wall time of one forward and backward pass."""
        start = time.perf_counter()
        self._network.zero_grad()
        run(self._network, self._images, self._numerics).square().sum().backward()  # type: ignore[no-untyped-call]
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter() - start


def fastest_in_turn(
    timed: Sequence[Callable[[], float]], *, rounds: int, limit_seconds: float = math.inf
) -> list[float]:
    """The least seconds that each call of `timed` returns, called in turn until there are enough rounds or time is up.

    The fastest counts, since other work on the machine only ever slows one.
    """
    start = time.perf_counter()
    table: list[list[float]] = []
    while len(table) < rounds and (not table or time.perf_counter() - start < limit_seconds):
        table.append([seconds() for seconds in timed])
    return [min(column) for column in zip(*table, strict=True)]
