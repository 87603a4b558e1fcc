"""Identities I1 to I4 of the unified margin-softmax formulation, in float64.

Shapes: N batch, C classes. Everything is computed here from cosines; the product is asked only for its loss.
I1: a constant modulating factor a is a cosine margin log(1 − a)/s. I2: −log p_m has the gradient of `exact` with a's
own gradient, that of `detached` without. I3: with changed negatives a also holds R. I4: the gradient at each cosine.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from search_space import Loss, LossSpec, build, catalog
from search_space.parts import (
    ArcNegNegative,
    CircleNegative,
    CircleTarget,
    CombinedTarget,
    ConstantMargin,
    ConstantScale,
    CurricularNegative,
    FreePiecewiseTarget,
    GradientMode,
    IdentityNegative,
    LiArcNegative,
    LiArcTarget,
    ModulatingBinsTarget,
    ModulatingTarget,
    MVNegative,
    NegativeMap,
    PiecewiseTarget,
    SphereFaceRNegative,
    X2Target,
)

N, C = 40, 5
ROWS_N = torch.arange(N)
SCALE = 8.0
T_EMA = 0.25


def random_cosines(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    cos_NC = torch.rand(N, C, dtype=torch.float64, generator=generator) * 1.9 - 0.95
    return cos_NC.requires_grad_(), torch.randint(C, (N,), generator=generator)


def folded(phi: Tensor) -> Tensor:
    """(−1)^k cos φ − 2k for φ up to 2π."""
    return torch.where(phi < math.pi, phi.cos(), -phi.cos() - 2)


@dataclass(frozen=True, slots=True)
class Target:
    """A target map, its function f and derivative df/dc, both by hand, and the unguarded margin that decides which
    negatives CurricularFace finds hard."""

    parts: Mapping[str, object]
    f: Callable[[Tensor], Tensor]
    derivative: Callable[[Tensor], Tensor]
    unguarded: Callable[[Tensor], Tensor] = lambda c: c


def turned(m1: float, m2: float) -> Callable[[Tensor], Tensor]:
    """d cos φ/dc = m1·sin φ/sin θ, φ = m1·θ + m2."""
    return lambda c: m1 * (m1 * c.acos() + m2).sin() / (1 - c * c).sqrt()


KNOTS = (-1.5, -0.4, -0.6, 0.2, 1.1)
KNOTS_SLOPES = (2.2, -0.4, 1.6, 1.8)
LINES = ((0.5, -0.2), (1.5, 0.1), (2.0, -0.3))


def interval(c: Tensor, count: int) -> Tensor:
    return ((c.detach() + 1) / 2 * count).floor().long()


def straight_lines(c: Tensor) -> Tensor:
    return torch.stack([slope * c + offset for slope, offset in LINES])[interval(c, 3), torch.arange(len(c))]


MAPS = {
    "cosine": Target(
        {"target": CombinedTarget(), "margin": ConstantMargin(m3=0.3)},
        lambda c: c - 0.3,
        torch.ones_like,
        lambda c: c - 0.3,
    ),
    "angular": Target(  # crosses φ = π
        {"target": CombinedTarget(), "margin": ConstantMargin(m2_rad=0.8)},
        lambda c: folded(c.acos() + 0.8),
        lambda c: turned(1, 0.8)(c).abs(),
        lambda c: (c.acos() + 0.8).cos(),
    ),
    "angular, linear past π": Target(
        {"target": CombinedTarget(guard="linear"), "margin": ConstantMargin(m2_rad=0.8)},
        lambda c: torch.where(c.acos() + 0.8 < math.pi, (c.acos() + 0.8).cos(), c - 0.8 * math.sin(0.8)),
        lambda c: torch.where(c.acos() + 0.8 < math.pi, turned(1, 0.8)(c), 1.0),
        lambda c: (c.acos() + 0.8).cos(),
    ),
    "angular, where c > 0": Target(
        {"target": CombinedTarget(only_positive=True), "margin": ConstantMargin(m2_rad=0.8)},
        lambda c: torch.where(c > 0, (c.acos() + 0.8).cos(), c),
        lambda c: torch.where(c > 0, turned(1, 0.8)(c), 1.0),
        lambda c: (c.acos() + 0.8).cos(),
    ),
    "double angle": Target(  # crosses φ = π
        {"target": CombinedTarget(), "margin": ConstantMargin(m1=2.0)},
        lambda c: torch.where(c > 0, 2 * c * c - 1, -(2 * c * c - 1) - 2),
        lambda c: 4 * c.abs(),
        lambda c: 2 * c * c - 1,
    ),
    "clipped angle": Target(
        {"target": CombinedTarget(guard="clip"), "margin": ConstantMargin(m1=1.4, m3=0.1)},
        lambda c: (1.4 * c.acos()).clamp(max=math.pi).cos() - 0.1,
        lambda c: torch.where(1.4 * c.acos() < math.pi, turned(1.4, 0)(c), 0.0),
        lambda c: (1.4 * c.acos()).cos() - 0.1,
    ),
    "linear in the angle": Target(
        {"target": LiArcTarget(), "margin": ConstantMargin(m2_rad=0.45)},
        lambda c: 1 - 2 * (c.acos() + 0.45) / math.pi,
        lambda c: 2 / math.pi / (1 - c * c).sqrt(),
        lambda c: (c.acos() + 0.45).cos(),
    ),
    "quadratic in the angle": Target(
        {"target": X2Target(a=-0.9, h_rad=0.2, k=0.65)},
        lambda c: -0.9 * (c.acos() - 0.2) ** 2 + 0.65,
        lambda c: 1.8 * (c.acos() - 0.2) / (1 - c * c).sqrt(),
    ),
    "modulating": Target({"target": ModulatingTarget(u=1.2)}, lambda c: c - 1.2 / SCALE, torch.ones_like),
    "modulating, ten equal bins": Target(
        {"target": ModulatingBinsTarget(u=(1.2,) * 10)}, lambda c: c - 1.2 / SCALE, torch.ones_like
    ),
    "piecewise": Target(
        {"target": PiecewiseTarget(knots=KNOTS)},
        lambda c: (
            c.new_tensor(KNOTS)[interval(c, 4)]
            + c.new_tensor(KNOTS_SLOPES)[interval(c, 4)] * (c - (interval(c, 4) / 2 - 1).to(c))
        ),
        lambda c: c.new_tensor(KNOTS_SLOPES)[interval(c, 4)],
    ),
    "piecewise, free": Target(
        {"target": FreePiecewiseTarget(slopes=[a for a, _ in LINES], offsets=[b for _, b in LINES])},
        straight_lines,
        lambda c: c.new_tensor([a for a, _ in LINES])[interval(c, 3)],
    ),
    "circle": Target(  # the factor in front is held
        {"target": CircleTarget(m=0.25)},
        lambda c: (1.25 - c.detach()).clamp(min=0) * (c - 0.75),
        lambda c: 1.25 - c,
    ),
}


def spec_of(target: Target, gradient: GradientMode, negative: NegativeMap | None = None) -> LossSpec:
    spec = LossSpec(scale=ConstantScale(value=SCALE), negative=negative or IdentityNegative())
    return spec.replace(**target.parts, gradient=gradient)


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
        torch.testing.assert_close(product_loss_N, loss_N, rtol=1e-8, atol=1e-11)  # 1 − a(1 − p) cancels
        torch.testing.assert_close(product_grad_NC, grad_NC, rtol=1e-8, atol=1e-8)


def test_i1_cosface_at_its_defaults_is_the_factor_that_overflows_half_precision() -> None:
    spec = catalog.cosface()
    assert isinstance(spec.margin, ConstantMargin)
    assert isinstance(spec.scale, ConstantScale)
    assert 1 - math.exp(spec.scale.value * spec.margin.m3) == pytest.approx(-5.35e9, rel=1e-3)


@pytest.mark.parametrize("name", MAPS)
def test_i2_without_the_factors_own_gradient_the_loss_is_the_detached_one(name: str) -> None:
    target = MAPS[name]
    cos_NC, label_N = random_cosines(1)
    cos_y_N = cos_NC[ROWS_N, label_N]
    a_N = (1 - (SCALE * (cos_y_N - target.f(cos_y_N))).exp()).detach()
    loss_N = published_loss(cos_NC, label_N, a_N, scale=SCALE)
    grad_NC = torch.autograd.grad(loss_N.sum(), cos_NC)[0]

    p_m_N = (-loss_N).exp().detach()
    torch.testing.assert_close(grad_NC[ROWS_N, label_N], -SCALE * (1 - p_m_N), rtol=1e-9, atol=1e-12)
    product_loss_N, product_grad_NC = product(spec_of(target, "detached"), cos_NC, label_N)
    torch.testing.assert_close(product_loss_N, loss_N, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(product_grad_NC, grad_NC, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", MAPS)
def test_i2_with_the_factors_own_gradient_the_loss_is_the_exact_one(name: str) -> None:
    target = MAPS[name]
    cos_NC, label_N = random_cosines(2)
    cos_y_N = cos_NC[ROWS_N, label_N]
    loss_N = published_loss(cos_NC, label_N, 1 - (SCALE * (cos_y_N - target.f(cos_y_N))).exp(), scale=SCALE)
    grad_NC = torch.autograd.grad(loss_N.sum(), cos_NC)[0]

    p_m_N = (-loss_N).exp().detach()
    expected_N = -SCALE * (1 - p_m_N) * target.derivative(cos_y_N.detach())
    torch.testing.assert_close(grad_NC[ROWS_N, label_N], expected_N, rtol=1e-8, atol=1e-9)
    product_loss_N, product_grad_NC = product(spec_of(target, "exact"), cos_NC, label_N)
    torch.testing.assert_close(product_loss_N, loss_N, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(product_grad_NC, grad_NC, rtol=1e-8, atol=1e-9)


class Point(NamedTuple):
    """What a negative map looks at: c_j (N×C), f(c_y) and the unguarded target (N×1)."""

    c: Tensor
    f: Tensor
    unguarded: Tensor


NegativeForm = Callable[[Point], Tensor]


def arcneg_t(at: Point) -> Tensor:
    return 1.2 * (-((at.c - at.f) ** 2) / 2).exp()


# A negative map: the part, n and dn/dc_j by hand.
NEGATIVE_MAPS: dict[str, tuple[NegativeMap, NegativeForm, NegativeForm]] = {
    "identity": (IdentityNegative(), lambda at: at.c, lambda at: torch.ones_like(at.c)),
    "mv adaptive": (
        MVNegative(t=0.2),
        lambda at: torch.where(at.c > at.f, 1.2 * at.c + 0.2, at.c),
        lambda at: 1 + 0.2 * (at.c > at.f).to(at.c),
    ),
    "mv fixed": (
        MVNegative(t=0.2, variant="fixed"),
        lambda at: torch.where(at.c > at.f, at.c + 0.2, at.c),
        lambda at: torch.ones_like(at.c),
    ),
    "curricular": (
        CurricularNegative(),
        lambda at: torch.where(at.c > at.unguarded, at.c * (T_EMA + at.c), at.c),
        lambda at: torch.where(at.c > at.unguarded, T_EMA + 2 * at.c, 1.0),
    ),
    "arcneg": (ArcNegNegative(), lambda at: arcneg_t(at) * at.c + arcneg_t(at) - 1, arcneg_t),
    "sphereface_r": (
        SphereFaceRNegative(m=1.4),
        lambda at: (at.c.acos() / 1.4).cos(),
        lambda at: (at.c.acos() / 1.4).sin() / 1.4 / (1 - at.c**2).sqrt(),
    ),
    "li_arc": (
        LiArcNegative(),
        lambda at: 1 - 2 * at.c.acos() / math.pi,
        lambda at: 2 / math.pi / (1 - at.c**2).sqrt(),
    ),
    "circle": (
        CircleNegative(m=0.25),
        lambda at: (at.c + 0.25).clamp(min=0) * (at.c - 0.25),
        lambda at: (at.c + 0.25).clamp(min=0),
    ),
}


@dataclass(frozen=True, slots=True)
class ByHand:
    """The logits of a composed loss and the derivatives of its two maps."""

    logit_NC: Tensor
    f_derivative_N: Tensor
    n_derivative_NC: Tensor


def by_hand(target: Target, negative: str, cos_NC: Tensor, label_N: Tensor) -> ByHand:
    cos_y_N = cos_NC[ROWS_N, label_N]
    at = Point(cos_NC, target.f(cos_y_N)[:, None], target.unguarded(cos_y_N)[:, None])
    _, n, n_derivative = NEGATIVE_MAPS[negative]
    logit_NC = SCALE * n(at)
    logit_NC[ROWS_N, label_N] = SCALE * at.f[:, 0]
    return ByHand(logit_NC, target.derivative(cos_y_N), n_derivative(at))


def composed(target: Target, negative: str, gradient: GradientMode) -> Loss:
    loss = build(spec_of(target, gradient, NEGATIVE_MAPS[negative][0]), num_classes=C).double().eval()
    loss.load_state_dict({name: torch.tensor(T_EMA) for name in loss.state_dict()})
    return loss


@pytest.mark.parametrize("negative", NEGATIVE_MAPS)
@pytest.mark.parametrize("name", MAPS)
def test_i3_with_changed_negatives_the_factor_holds_their_share(name: str, negative: str) -> None:
    """p_m = p/(a·p + 1 − a) with a = 1 − e^{s(c_y − f)}·R; R below 1 included (−a may be negative)."""
    cos_NC, label_N = random_cosines(5)
    target = MAPS[name]
    with torch.no_grad():
        hand = by_hand(target, negative, cos_NC, label_N)
        is_y_NC = F.one_hot(label_N, C).bool()
        r_N = hand.logit_NC.exp().masked_fill(is_y_NC, 0).sum(1)
        r_N /= (SCALE * cos_NC).exp().masked_fill(is_y_NC, 0).sum(1)
        cos_y_N = cos_NC[ROWS_N, label_N]
        a_N = 1 - (SCALE * (cos_y_N - target.f(cos_y_N))).exp() * r_N
        wanted_N = published_loss(cos_NC, label_N, a_N, SCALE)
    loss_N = composed(target, negative, "exact").from_cosines(cos_NC, label_N)
    torch.testing.assert_close(loss_N, wanted_N, rtol=1e-6, atol=1e-9)


def test_i3_the_share_of_changed_negatives_can_fall_below_one() -> None:
    """CurricularFace early: hard negatives weigh less, so a > 0 where the target has no margin."""
    cos_NC, label_N = torch.tensor([[0.1, 0.5, 0.6]]).double(), torch.tensor([0])
    loss = build(LossSpec(negative=CurricularNegative(), scale=ConstantScale(value=SCALE)), num_classes=3).eval()
    plain = build(catalog.softmax(SCALE), num_classes=3)
    assert loss.from_cosines(cos_NC, label_N) < plain.from_cosines(cos_NC, label_N)


@pytest.mark.parametrize("negative", NEGATIVE_MAPS)
@pytest.mark.parametrize("name", MAPS)
def test_i4_gradients_at_the_target_and_at_the_negatives(name: str, negative: str) -> None:
    """∂L/∂c_y = −s(1 − p_m)·f′ and ∂L/∂c_j = s·p_{m,j}·n′; detached, f′ and n′ are 1."""
    target = MAPS[name]
    cos_NC, label_N = random_cosines(3)
    with torch.no_grad():
        hand = by_hand(target, negative, cos_NC, label_N)
        share_NC = SCALE * hand.logit_NC.softmax(1)
        share_NC[ROWS_N, label_N] = 0
        exact_NC, detached_NC = share_NC * hand.n_derivative_NC, share_NC.clone()
        exact_NC[ROWS_N, label_N] = -share_NC.sum(1) * hand.f_derivative_N
        detached_NC[ROWS_N, label_N] = -share_NC.sum(1)
        wanted_N = F.cross_entropy(hand.logit_NC, label_N, reduction="none")
    modes: tuple[tuple[GradientMode, Tensor], ...] = (("exact", exact_NC), ("detached", detached_NC))
    for gradient, expected_NC in modes:
        loss_N = composed(target, negative, gradient).from_cosines(cos_NC, label_N)
        torch.testing.assert_close(loss_N, wanted_N, rtol=1e-9, atol=1e-12)
        (grad_NC,) = torch.autograd.grad(loss_N.sum(), cos_NC)
        torch.testing.assert_close(grad_NC, expected_NC, rtol=1e-8, atol=1e-10)


def test_npcfaces_negatives_and_margins_by_hand() -> None:
    """Hard: c_j > cos(θ_y + .5). n = 1.1·c_j + .2; the target's margin is .4 + .2·(mean hard c_j), where c > 0."""
    cos_NC, label_N = random_cosines(6)
    wanted_NC = SCALE * cos_NC.detach().clone()
    for row, label in enumerate(label_N.tolist()):
        cosines = cos_NC[row].tolist()
        theta = math.acos(cosines[label])
        hard = [j for j, c in enumerate(cosines) if j != label and c > math.cos(theta + 0.5)]
        for j in hard:
            wanted_NC[row, j] = SCALE * (1.1 * cosines[j] + 0.2)
        margin = 0.4 + 0.2 * (sum(cosines[j] for j in hard) / len(hard) if hard else 0)
        if cosines[label] > 0:
            wanted_NC[row, label] = SCALE * math.cos(theta + margin)
    loss_N, grad_NC = product(catalog.npcface(scale=SCALE), cos_NC, label_N)
    torch.testing.assert_close(loss_N, F.cross_entropy(wanted_NC, label_N, reduction="none"), rtol=1e-9, atol=1e-12)
    assert (grad_NC[ROWS_N, label_N] <= 0).all()


@pytest.mark.parametrize("negative", ["li_arc", "sphereface_r", "curricular", "mv adaptive"])
def test_detaching_the_factor_is_not_detaching_the_maps_where_negatives_change(negative: str) -> None:
    """sg[a] shares the push among the negatives as softmax(s·c_j), characteristic detachment as softmax(s·n_j)."""
    cos_NC, label_N = random_cosines(7)
    target = MAPS["cosine"]
    loss_N = composed(target, negative, "detached").from_cosines(cos_NC, label_N)
    (grad_NC,) = torch.autograd.grad(loss_N.sum(), cos_NC)
    p_N = (SCALE * cos_NC.detach()).softmax(1)[ROWS_N, label_N]
    a_N = (1 - p_N / (-loss_N).exp()) / (1 - p_N)  # from p_m·(a·p + 1 − a) = p
    held_N = published_loss(cos_NC, label_N, a_N.detach(), SCALE)
    (held_NC,) = torch.autograd.grad(held_N.sum(), cos_NC)
    torch.testing.assert_close(held_N, loss_N, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(held_NC[ROWS_N, label_N], grad_NC[ROWS_N, label_N], rtol=1e-6, atol=1e-9)
    assert (held_NC - grad_NC).abs().max() > 0.05 * grad_NC.abs().max()
