"""Losses stay finite at the edges in float32, and err no more than torch's plain cross-entropy does.

Shapes: N batch, C classes, D embedding.
"""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from search_space import LossSpec, build, catalog

DIM = 8
EPS = torch.finfo(torch.float32).eps


def at_scale(name: str, scale: float) -> LossSpec:
    """The named loss at its defaults but for the scale; the modulating factor with its largest u at that scale."""
    return catalog.get(name, margin=0.2, scale=scale) if name == "modulating" else catalog.get(name, scale=scale)


SCALED = ("softmax", "sphereface", "cosface", "arcface", "combined", "modulating")
EDGE_SPECS = {f"{name} s={scale}": at_scale(name, scale) for name in SCALED for scale in (1, 64, 256, 512)} | {
    "arcface detached s=512": catalog.arcface(scale=512, gradient="detached"),
    "sphereface exact m=4 s=512": catalog.sphereface(4, 512, "exact"),
    "combined at its largest": catalog.combined(4, math.pi / 2, 1, 512),
    "adacos_fixed": catalog.adacos_fixed(),
    "adacos_dynamic": catalog.adacos_dynamic(),
    "p2sgrad": catalog.p2sgrad(),
}


def edge_batch(classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings equal to their class weight, opposite to it, equal to another's, very short and very long."""
    generator = torch.Generator().manual_seed(classes)
    w_CD = torch.randn(classes, DIM, generator=generator)
    if classes == 2:
        w_CD[1] = -w_CD[0]
    label_N = torch.tensor([0, 1, 0, 1, 0])
    x_ND = torch.stack([w_CD[0], -w_CD[1], w_CD[1], 1e-6 * w_CD[1], 1e6 * w_CD[0]])
    return x_ND.requires_grad_(), w_CD.requires_grad_(), label_N


@pytest.mark.parametrize(
    ("name", "classes"),
    [(name, classes) for name in EDGE_SPECS for classes in (2, 3, 100) if classes > 2 or "adacos" not in name]
    + [(name, 10_000) for name in EDGE_SPECS if not name.endswith(("s=1", "s=64", "s=512"))],
)
def test_loss_and_gradients_are_finite_where_cosine_is_one_or_minus_one(name: str, classes: int) -> None:
    spec = EDGE_SPECS[name]
    x_ND, w_CD, label_N = edge_batch(classes)
    loss_N = build(spec, num_classes=classes)(x_ND, w_CD, label_N)
    loss_N.mean().backward()
    assert loss_N.dtype == torch.float32
    assert loss_N.isfinite().all()
    assert (loss_N >= 0).all()
    assert x_ND.grad is not None
    assert w_CD.grad is not None
    assert x_ND.grad.isfinite().all()
    assert w_CD.grad.isfinite().all()


@pytest.mark.parametrize("name", SCALED)
@pytest.mark.parametrize("target_cos", [1.0, -1.0])
def test_gradients_at_the_cosines_are_finite_at_the_edges(name: str, target_cos: float) -> None:
    """Before normalisation damps it: f′ of an angular margin is bounded by 1/√eps of the dtype."""
    for dtype in (torch.float32, torch.float64):
        cos_NC = torch.tensor([[target_cos, 0.0]], dtype=dtype, requires_grad=True)
        loss_N = build(at_scale(name, 512), num_classes=2).from_cosines(cos_NC, torch.tensor([0]))
        (grad_NC,) = torch.autograd.grad(loss_N.sum(), cos_NC)
        assert loss_N.isfinite().all()
        assert grad_NC.abs().max() <= 512 * 1.5 / torch.finfo(dtype).eps ** 0.5


@pytest.mark.parametrize("cosine", [1 + 1e-6, -1 - 1e-6])
@pytest.mark.parametrize("name", SCALED)
def test_cosines_rounded_past_one_count_as_one(name: str, cosine: float) -> None:
    loss = build(at_scale(name, 64), num_classes=3)
    past_N, at_N = (
        loss.from_cosines(torch.tensor([[0.1, value, 0.2]]), torch.tensor([1])) for value in (cosine, round(cosine))
    )
    torch.testing.assert_close(past_N, at_N, rtol=1e-4, atol=1e-4)


def test_a_target_far_ahead_keeps_a_loss_above_zero() -> None:
    """softplus(lse_neg − T) still resolves e^−90, where 1 − p rounds to 0."""
    loss_N = build(catalog.softmax(scale=90), num_classes=2).from_cosines(torch.tensor([[1.0, 0.2]]), torch.tensor([0]))
    assert loss_N.item() == pytest.approx(math.exp(-72), rel=1e-4)


def test_p2sgrad_keeps_its_digits_near_its_optimum() -> None:
    """Summing squares and then subtracting 2·cos_y would leave only rounding here, of either sign."""
    cos_NC = torch.tensor([[1 - 2e-5, 1e-5, -1e-5]])
    loss_N = build(catalog.p2sgrad(), num_classes=3).from_cosines(cos_NC, torch.tensor([0]))
    truth = 0.5 * ((cos_NC[0, 0].item() - 1) ** 2 + 2 * 1e-10)
    assert loss_N.item() == pytest.approx(truth, rel=1e-5)


# Judged by float64: the same float32 embeddings and weights, widened, through the same plain formula.

TARGETS: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda c: c,
    "sphereface": lambda c: torch.where(1.5 * c.acos() > math.pi, -(1.5 * c.acos()).cos() - 2, (1.5 * c.acos()).cos()),
    "cosface": lambda c: c - 0.35,
    "arcface": lambda c: torch.where(c.acos() > math.pi - 0.5, c - 0.5 * math.sin(0.5), (c.acos() + 0.5).cos()),
    "combined": lambda c: torch.where(
        c.acos() + 0.3 > math.pi, -(c.acos() + 0.3).cos() - 2.2, (c.acos() + 0.3).cos() - 0.2
    ),
    "modulating": lambda c: c - 0.2,
}


def plain_cross_entropy(name: str, scale: float, x_ND: Tensor, w_CD: Tensor, label_N: Tensor) -> Tensor:
    """F.cross_entropy over an N×C matrix of modified logits, as most released code does it."""
    logit_NC = F.normalize(x_ND) @ F.normalize(w_CD).T
    rows_N = torch.arange(len(label_N))
    logit_NC[rows_N, label_N] = TARGETS[name](logit_NC[rows_N, label_N])
    return F.cross_entropy(scale * logit_NC, label_N, reduction="none")


@pytest.mark.parametrize("name", SCALED)
@pytest.mark.parametrize("scale", [16, 64, 256])
@pytest.mark.parametrize("classes", [2, 1000])
def test_float32_errs_at_most_twice_as_much_as_plain_cross_entropy(name: str, scale: float, classes: int) -> None:
    generator = torch.Generator().manual_seed(classes)
    w_CD = torch.randn(classes, 32, generator=generator)
    label_N = torch.randint(classes, (256,), generator=generator)
    closeness_N1 = torch.linspace(-2, 6, 256)[:, None]
    x_ND = torch.randn(256, 32, generator=generator) + closeness_N1 * w_CD[label_N]
    truth_N = plain_cross_entropy(name, scale, x_ND.double(), w_CD.double(), label_N)
    plain_N = plain_cross_entropy(name, scale, x_ND, w_CD, label_N)
    loss_N = build(at_scale(name, scale), num_classes=classes)(x_ND, w_CD, label_N)
    assert (loss_N - truth_N).abs().max() <= 2 * (plain_N - truth_N).abs().max() + EPS * truth_N.max()
