"""Identities I1, I2 and I4 of the unified margin-softmax formulation, in float64.

Shapes: N batch, C classes. Everything is computed here from cosines; the product is asked only for its loss.
I1: a constant modulating factor a is a cosine margin log(1 − a)/s. I2: −log p_m has the gradient of `exact` with a's
own gradient, that of `detached` without. I4: the gradient at each cosine.
"""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from search_space import LossSpec, build, catalog
from search_space.parts import CombinedTarget, ConstantMargin, ConstantScale, GradientMode

N, C = 6, 5
ROWS_N = torch.arange(N)


def random_cosines(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    cos_NC = torch.rand(N, C, dtype=torch.float64, generator=generator) * 1.9 - 0.95
    return cos_NC.requires_grad_(), torch.randint(C, (N,), generator=generator)


def angular(c: Tensor) -> Tensor:
    phi = c.acos() + 0.8
    return torch.where(phi < math.pi, phi.cos(), -phi.cos() - 2)


# A margin, its target map f and the derivative df/dc, both by hand; the last two cross φ = π.
MAPS: dict[str, tuple[ConstantMargin, Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "cosine": (ConstantMargin(m3=0.3), lambda c: c - 0.3, torch.ones_like),
    "angular": (
        ConstantMargin(m2_rad=0.8),
        angular,
        lambda c: (c.acos() + 0.8).sin().abs() / (1 - c * c).sqrt(),
    ),
    "double angle": (
        ConstantMargin(m1=2.0),
        lambda c: torch.where(c > 0, 2 * c * c - 1, -(2 * c * c - 1) - 2),
        lambda c: 4 * c.abs(),
    ),
}


def spec_of(margin: ConstantMargin, scale: float, gradient: GradientMode) -> LossSpec:
    return LossSpec(target=CombinedTarget(), margin=margin, scale=ConstantScale(value=scale), gradient=gradient)


def product(spec: LossSpec, cos_NC: Tensor, label_N: Tensor) -> tuple[Tensor, Tensor]:
    """The product's loss_N and its gradient N×C at the cosines."""
    loss_N = build(spec, num_classes=C).from_cosines(cos_NC, label_N)
    return loss_N.detach(), torch.autograd.grad(loss_N.sum(), cos_NC)[0]


def published_loss(cos_NC: Tensor, label_N: Tensor, a_N: Tensor | float, scale: float) -> Tensor:
    """−log(h(a, p)·p) with h(a, p) = 1/(a·p + 1 − a): Wang et al. 2020, Eqs. 5-8."""
    p_N = (scale * cos_NC).softmax(1)[ROWS_N, label_N]
    h_N = 1 / (a_N * p_N + 1 - a_N)
    return -(h_N * p_N).log()


@pytest.mark.parametrize(
    ("a", "margin"), [(-1.0, 0.0217), (-10.0, 0.0749), (-1e2, 0.1442), (-1e3, 0.2159), (-1e4, 0.2878)]
)
def test_i1_a_constant_factor_is_a_cosine_margin_at_scale_32(a: float, margin: float) -> None:
    exact_margin = math.log(1 - a) / 32
    assert exact_margin == pytest.approx(margin, abs=5e-5)
    cos_NC, label_N = random_cosines(0)
    loss_N = published_loss(cos_NC, label_N, a, scale=32)
    grad_NC = torch.autograd.grad(loss_N.sum(), cos_NC)[0]
    for spec in (catalog.modulating(margin=exact_margin, scale=32), catalog.cosface(margin=exact_margin, scale=32)):
        product_loss_N, product_grad_NC = product(spec, cos_NC, label_N)
        torch.testing.assert_close(product_loss_N, loss_N, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(product_grad_NC, grad_NC, rtol=1e-9, atol=1e-9)


def test_i1_cosface_at_its_defaults_is_the_factor_that_overflows_half_precision() -> None:
    spec = catalog.cosface()
    assert isinstance(spec.margin, ConstantMargin)
    assert isinstance(spec.scale, ConstantScale)
    assert 1 - math.exp(spec.scale.value * spec.margin.m3) == pytest.approx(-5.35e9, rel=1e-3)


@pytest.mark.parametrize("name", MAPS)
def test_i2_without_the_factors_own_gradient_the_loss_is_the_detached_one(name: str) -> None:
    margin, f, _ = MAPS[name]
    cos_NC, label_N = random_cosines(1)
    cos_y_N = cos_NC[ROWS_N, label_N]
    a_N = (1 - (8 * (cos_y_N - f(cos_y_N))).exp()).detach()
    loss_N = published_loss(cos_NC, label_N, a_N, scale=8)
    grad_NC = torch.autograd.grad(loss_N.sum(), cos_NC)[0]

    p_m_N = (-loss_N).exp().detach()
    torch.testing.assert_close(grad_NC[ROWS_N, label_N], -8 * (1 - p_m_N), rtol=1e-9, atol=1e-12)
    product_loss_N, product_grad_NC = product(spec_of(margin, 8, "detached"), cos_NC, label_N)
    torch.testing.assert_close(product_loss_N, loss_N, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(product_grad_NC, grad_NC, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", MAPS)
def test_i2_with_the_factors_own_gradient_the_loss_is_the_exact_one(name: str) -> None:
    margin, f, derivative = MAPS[name]
    cos_NC, label_N = random_cosines(2)
    cos_y_N = cos_NC[ROWS_N, label_N]
    loss_N = published_loss(cos_NC, label_N, 1 - (8 * (cos_y_N - f(cos_y_N))).exp(), scale=8)
    grad_NC = torch.autograd.grad(loss_N.sum(), cos_NC)[0]

    p_m_N = (-loss_N).exp().detach()
    expected_N = -8 * (1 - p_m_N) * derivative(cos_y_N.detach())
    torch.testing.assert_close(grad_NC[ROWS_N, label_N], expected_N, rtol=1e-8, atol=1e-10)
    product_loss_N, product_grad_NC = product(spec_of(margin, 8, "exact"), cos_NC, label_N)
    torch.testing.assert_close(product_loss_N, loss_N, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(product_grad_NC, grad_NC, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("scale", [1.0, 16.0, 64.0])
def test_i4_gradients_at_the_target_and_at_the_negatives(name: str, scale: float) -> None:
    margin, f, derivative = MAPS[name]
    cos_NC, label_N = random_cosines(3)
    with torch.no_grad():
        cos_y_N = cos_NC[ROWS_N, label_N]
        logit_NC = scale * cos_NC.clone()
        logit_NC[ROWS_N, label_N] = scale * f(cos_y_N)
        p_m_NC = logit_NC.softmax(1)
        not_target_NC = torch.ones(N, C, dtype=torch.bool)
        not_target_NC[ROWS_N, label_N] = False
        one_minus_p_m_N = (p_m_NC * not_target_NC).sum(1)
        exact_NC, detached_NC = scale * p_m_NC, scale * p_m_NC
        exact_NC[ROWS_N, label_N] = -scale * one_minus_p_m_N * derivative(cos_y_N)
        detached_NC[ROWS_N, label_N] = -scale * one_minus_p_m_N
    for gradient, expected_NC in (("exact", exact_NC), ("detached", detached_NC)):
        _, grad_NC = product(spec_of(margin, scale, gradient), cos_NC, label_N)  # type: ignore[arg-type]
        torch.testing.assert_close(grad_NC, expected_NC, rtol=1e-9, atol=1e-12)
