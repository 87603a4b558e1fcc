"""What tests of the kernels run in a process of their own, where Triton interprets them, or on a GPU.

Shapes: N batch, C classes, D embedding.
"""

from unittest.mock import patch

import torch
from torch import Tensor

from search_space import HeadSGD, MarginHead, ShardedMarginHead, catalog, triton_head
from search_space.chunked import GradientDtype, Memory
from tests.search_space.head_cases import SPECS, Error, at_scale, built, errors, with_gradients

TARGET_ONLY = tuple(name for name in SPECS if triton_head.unsupported(SPECS[name], 32) is None)
SHAPES = ((70, 150, 40), (65, 64, 8), (5, 3, 16), (1, 65, 100), (3, 20, 300))
"""N, C, D: no multiples of a tile, one row more than it, fewer classes than it, D above and below that of a step."""


def scaled_errors(name: str, scale: float, memory: Memory, device: str) -> list[Error]:
    """Of 40 samples of 150 classes, labels repeating; the last tile of classes is not full."""
    return errors(at_scale(name, scale), 150, 40, scale, memory=memory, device=device, kernels=True)


def steep_errors(name: str, scale: float, device: str) -> list[Error]:
    """At scales where one sample makes most of a batch's error: over many batches."""
    return errors(at_scale(name, scale), 150, 40, scale, batches=24, device=device, kernels=True)


def half_errors(name: str, dtype: torch.dtype, device: str) -> list[Error]:
    """Of inputs in half precision."""
    return errors(SPECS[name], 150, 40, 20, dtype=dtype, device=device, kernels=True)


def bfloat16_errors(name: str, memory: Memory, device: str) -> list[Error]:
    """With gradient products in bfloat16."""
    spec = SPECS[name]
    return errors(spec, 150, 40, 20, device=device, memory=memory, gradient_dtype="bfloat16", kernels=True)


def batch(count: int, classes: int, dim: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Targets near and far, few labels, class weights of unequal norms."""
    generator = torch.Generator().manual_seed(count)
    norm_C1 = torch.linspace(0.1, 3, classes)[:, None]
    w_CD = torch.randn(classes, dim, generator=generator) * norm_C1
    label_N = torch.randint(1 + classes // 3, (count,), generator=generator)
    x_ND = torch.randn(count, dim, generator=generator) + torch.linspace(-1, 3, count)[:, None] * w_CD[label_N]
    return x_ND.to(device).requires_grad_(), w_CD.to(device).requires_grad_(), label_N.to(device)


def pairs(shape: tuple[int, int, int], memory: Memory, device: str) -> list[tuple[Tensor, Tensor]]:
    """Loss and gradients by the kernels, and the truth; in `recompute` 64 classes at a time."""
    x_ND, w_CD, label_N = batch(*shape, device)
    spec = catalog.arcface(scale=16)
    with patch.object(triton_head, "RECOMPUTED_ROWS", 64):
        ours_N = built(spec, shape[1]).chunked(x_ND, w_CD, label_N, memory=memory, kernels=True)
        ours = with_gradients(ours_N, x_ND, w_CD)
    wide = [each.detach().double().requires_grad_() for each in (x_ND, w_CD)]
    truth = with_gradients(built(spec, shape[1])(*wide, label_N), *wide)
    return [(mine.cpu(), true.cpu()) for mine, true in zip(ours, truth, strict=True)]


def repeats(device: str) -> bool:
    """Whether two runs agree in every bit."""
    x_ND, w_CD, label_N = batch(70, 150, 40, device)
    loss = built(catalog.cosface(), 150)
    one, other = (with_gradients(loss.chunked(x_ND, w_CD, label_N, kernels=True), x_ND, w_CD) for _ in range(2))
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def partial_gradients(device: str) -> list[Tensor]:
    """The gradient at x where only it is wanted, at w likewise, and both at once."""
    x_ND, w_CD, label_N = batch(9, 70, 16, device)
    loss = built(catalog.cosface(), 70)
    (of_x,) = torch.autograd.grad(loss.chunked(x_ND, w_CD.detach(), label_N, kernels=True).sum(), x_ND)
    (of_w,) = torch.autograd.grad(loss.chunked(x_ND.detach(), w_CD, label_N, kernels=True).sum(), w_CD)
    both = torch.autograd.grad(loss.chunked(x_ND, w_CD, label_N, kernels=True).sum(), (x_ND, w_CD))
    return [each.cpu() for each in (of_x, of_w, *both)]


def sharded_losses(device: str) -> list[Tensor]:
    """Of a sharded head, for embeddings that lie row by row and for the same column by column."""
    x_ND, _, label_N = batch(9, 70, 16, device)
    head = ShardedMarginHead(catalog.arcface(), 70, 16, impl="triton").to(device)
    return [head(each.detach(), label_N).detach().cpu() for each in (x_ND, x_ND.T.contiguous().T)]


def weights_after_steps(gradient_dtype: GradientDtype, device: str) -> list[Tensor]:
    """Of a head on the kernels, without and with persistent buffers, after three steps, one of a smaller batch."""
    heads = [
        MarginHead(
            catalog.arcface(),
            70,
            16,
            generator=torch.Generator().manual_seed(0),
            impl="triton",
            gradient_dtype=gradient_dtype,
            persistent_buffers=persistent,
        ).to(device)
        for persistent in (False, True)
    ]
    for count in (9, 5, 9):
        x_ND, _, label_N = batch(count, 70, 16, device)
        for head in heads:
            head.zero_grad(set_to_none=True)
            head(x_ND.detach(), label_N).backward()
            with torch.no_grad():
                head.weight.sub_(head.get_parameter("weight").grad)  # type: ignore[arg-type]
    return [head.weight.detach().cpu() for head in heads]


def fused_and_separate(momentum: float, memory: Memory, device: str) -> list[tuple[Tensor, Tensor]]:
    """Class weights and momentum after three steps in the backward of the kernels, and by torch's SGD behind it."""
    found = []
    for optimizer_of in (HeadSGD, lambda head, **settings: torch.optim.SGD([head.weight], **settings)):
        generator = torch.Generator().manual_seed(0)
        head = MarginHead(
            catalog.arcface(scale=16),
            150,
            16,
            generator=generator,
            impl="triton",
            memory=memory,
            persistent_buffers=optimizer_of is HeadSGD,
        )
        optimizer = optimizer_of(head.to(device), lr=0.5, momentum=momentum, weight_decay=0.01)
        for count in (9, 5, 70):
            x_ND, _, label_N = batch(count, 150, 16, device)
            with patch.object(triton_head, "RECOMPUTED_ROWS", 64):
                loss = head(x_ND.detach(), label_N)  # held until the next one is there
                loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        kept = optimizer.state[head.weight].get("momentum_buffer")
        found.append([head.weight.detach().cpu()] + ([] if kept is None else [kept.cpu()]))
    return list(zip(*found, strict=True))


def shared_bytes(capability: int) -> dict[str, int]:
    """Shared memory that each kernel needs, as compiled for a GPU that need not be there, at the widest D."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from search_space import triton_kernels

    rows, dims = triton_head.rows_and_dims(triton_head.WIDEST)
    tiles = {"SAMPLES": 64, "CLASSES": 64, "DIMS": 64, "PRECISION": "tf32x3"}
    kernels = {
        "exponentials": tiles | {"DIMS": 32, "AGAIN": False, "STORES": True, "MAPS": True},
        "embedding_gradients": tiles,
        "weight_gradients": tiles | {"SAMPLES": 16, "ROWS": rows, "DIMS": dims, "STEP": "momentum"},
    }
    found = {}
    for name, constants in kernels.items():
        kernel = getattr(triton_kernels, name)
        given = {each: value for each, value in constants.items() if each in kernel.arg_names}
        types = {each: "constexpr" if each in given else _type(each) for each in kernel.arg_names}
        source = ASTSource(kernel, types, given)
        compiled = triton.compile(source, GPUTarget("cuda", capability, 32), {"num_warps": 8, "num_stages": 2})
        found[name] = compiled.metadata.shared
    return found


def _type(argument: str) -> str:
    if argument == "label_N":
        return "*i64"
    if argument in ("learning_rate", "momentum", "weight_decay"):
        return "fp32"
    return "*fp32" if "_" in argument and argument[-1].isupper() else "i32"
