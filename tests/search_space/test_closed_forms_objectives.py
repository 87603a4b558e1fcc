"""What papers say of single losses beside their equation: coefficients, initial biases, where there is no gradient.

Shapes: N batch, C classes, D embedding.
"""

import math
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from search_space import LossSpec, build, catalog
from tests.search_space.batches import Batch, batch_at_angles, random_batch, state_of
from tests.search_space.closed_forms import geometry

MARGINS = {"c": "margin", "a": "margin_rad", "m": "m"}
SHAPES = [(2, 3, 5), (3, 2, 1), (7, 5, 9), (40, 16, 24)]


def values_and_gradients(spec: LossSpec, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    x_ND, w_CD, label_N = batch
    loss_N = build(spec, num_classes=len(w_CD))(x_ND, w_CD, label_N)
    return (loss_N.detach(), *torch.autograd.grad(loss_N.sum(), (x_ND, w_CD)))


# P2SGrad: the paper gives the gradient, Σ_j (cos_ij − 1[j = y]) ∂cos_ij/∂(x, w); the product, a loss.


@pytest.mark.parametrize("form", ["loss", "update"])
@pytest.mark.parametrize("weight", [1.0, 30.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_p2sgrad_has_the_papers_gradient_by_its_coefficients(
    shape: tuple[int, int, int], weight: float, form: str
) -> None:
    x_ND, w_CD, label_N = batch = random_batch(*shape)
    loss_N, grad_ND, grad_CD = values_and_gradients(catalog.get("p2sgrad", weight=weight, form=form), batch)
    with torch.no_grad():
        length_N1, length_C1 = x_ND.norm(dim=1, keepdim=True), w_CD.norm(dim=1, keepdim=True)
        unit_ND, unit_CD = x_ND / length_N1, w_CD / length_C1
        cos_NC = unit_ND @ unit_CD.T
        push_NC = weight * (cos_NC - F.one_hot(label_N, len(w_CD)))
        # ∂cos_ij/∂x_i = (ŵ_j − cos_ij x̂_i)/‖x_i‖, and the same with the roles exchanged
        wanted_ND = (push_NC @ unit_CD - (push_NC * cos_NC).sum(1, keepdim=True) * unit_ND) / length_N1
        wanted_CD = (push_NC.T @ unit_ND - (push_NC * cos_NC).sum(0)[:, None] * unit_CD) / length_C1
    torch.testing.assert_close(grad_ND, wanted_ND, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(grad_CD, wanted_CD, rtol=1e-10, atol=1e-12)
    wanted_N = weight / 2 * (cos_NC - F.one_hot(label_N, len(w_CD))).square().sum(1)
    torch.testing.assert_close(loss_N, wanted_N, rtol=1e-12, atol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_both_forms_of_p2sgrad_are_equal(shape: tuple[int, int, int]) -> None:
    batch = random_batch(*shape)
    both = [values_and_gradients(catalog.get("p2sgrad", form=form), batch) for form in ("loss", "update")]
    for one, other in zip(*both, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-13, atol=1e-15)


def test_p2sgrad_is_summed_over_classes_not_averaged() -> None:
    """At cosines all 0 the loss is ½ for any number of classes (MSELoss would give 1/C)."""
    for classes in (2, 50):
        axes = torch.eye(classes + 1)
        loss_N = build(catalog.get("p2sgrad"), num_classes=classes)(axes[-1:], axes[:-1], torch.tensor([1]))
        assert loss_N.item() == 0.5


# Learned biases


@pytest.mark.parametrize(("name", "published"), [("c", 5.58), ("a", 21.58), ("m", 21.58)])
def test_sphereface2_starts_from_the_published_bias(name: str, published: float) -> None:
    loss = build(catalog.get(f"sphereface2_{name}"), num_classes=10_575)
    assert float(state_of(loss)["bias"].detach()) == pytest.approx(published, abs=0.005)


@pytest.mark.parametrize("classes", [2, 3, 50, 85_742])
@pytest.mark.parametrize(
    ("kind", "margin", "alpha", "r"),
    [("c", 0.4, 0.7, 40), ("a", 0.5, 0.7, 40), ("m", 1.7, 0.7, 40), ("c", 0.5, 0.8, 64), ("a", 0.5, 0.8, 64)],
)
def test_sphereface2_starts_balanced(
    kind: Literal["c", "a", "m"], margin: float, alpha: float, r: float, classes: int
) -> None:
    """With every cosine 0 the target is pulled as hard as all the others together are pushed."""
    spec = catalog.get(f"sphereface2_{kind}", **{MARGINS[kind]: margin}, alpha=alpha, scale=float(r))
    bias = float(state_of(build(spec, num_classes=classes))["bias"].detach())

    def g(z: float) -> float:
        return 2 * ((z + 1) / 2) ** 3 - 1

    if kind == "c":
        z_y, z_j = r * (g(0) - margin) + bias, r * (g(0) + margin) + bias
    else:
        shifted = math.pi / 2 + margin if kind == "a" else margin * math.pi / 2
        z_y, z_j = r * g(math.cos(shifted)) + bias, r * g(0) + bias
    pull, push = alpha / (1 + math.exp(z_y)), (1 - alpha) * (classes - 1) / (1 + math.exp(-z_j))
    assert pull == pytest.approx(push, rel=1e-4)


def test_uniface_starts_from_the_log_of_ten_times_the_classes() -> None:
    loss = build(catalog.get("uniface"), num_classes=10_575)
    assert float(state_of(loss)["threshold"].detach()) == pytest.approx(math.log(105_750), rel=1e-6)


# Parts that vanish


def test_magface_has_no_gradient_along_the_norm_outside_its_range() -> None:
    """Below 10 and above 110 neither the margin nor the regulariser depends on ‖x‖; between them both do."""
    x_ND, w_CD, label_N = batch_at_angles([0.5, 0.6, 0.7, 0.8, 0.9])
    norm_N = geometry(x_ND, w_CD, label_N).norm_N.detach()
    loss_N, grad_ND, _ = values_and_gradients(catalog.get("magface"), (x_ND, w_CD, label_N))
    along_N = (grad_ND * x_ND.detach()).sum(1) / norm_N
    outside_N = (norm_N < 10) | (norm_N > 110)
    assert outside_N.tolist() == [True, False, False, False, True]
    torch.testing.assert_close(along_N[outside_N], torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-12)

    light_N, light_ND, _ = values_and_gradients(catalog.get("magface", strength=5.0), (x_ND, w_CD, label_N))
    a_N = norm_N.clamp(10, 110)
    torch.testing.assert_close(loss_N - light_N, 30 * (a_N / 110**2 + 1 / a_N), rtol=1e-10, atol=1e-12)
    wanted_N = 30 * torch.where(outside_N, 0.0, 1 / 110**2 - 1 / norm_N**2)
    torch.testing.assert_close(
        grad_ND - light_ND, wanted_N[:, None] * x_ND.detach() / norm_N[:, None], rtol=1e-9, atol=1e-12
    )


def test_npcface_without_hard_negatives_is_arcface_with_m0() -> None:
    w_CD = torch.eye(4, dtype=torch.float64)[:3].requires_grad_()
    x_ND = (torch.eye(4, dtype=torch.float64)[:3] + 0.1).requires_grad_()
    label_N = torch.arange(3)
    of = geometry(x_ND, w_CD, label_N)
    assert not ((of.cos_NC > (of.theta_N + 0.5).cos()[:, None]) & ~of.is_y_NC).any()
    ours = values_and_gradients(catalog.get("npcface"), (x_ND, w_CD, label_N))
    arcface = values_and_gradients(catalog.get("arcface", margin_rad=0.4), (x_ND, w_CD, label_N))
    for one, other in zip(ours, arcface, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-15)


def test_sphereface_plus_counts_each_pair_of_classes_once() -> None:
    """Repeated labels add no pair. Classes are at right angles, but for 3 and 4, which are π/3 apart."""
    w_CD = torch.eye(5, dtype=torch.float64)
    w_CD[4, 3:] = torch.tensor([0.5, math.sqrt(0.75)], dtype=torch.float64)
    right, close = (math.pi / 2) ** -2, (math.pi / 3) ** -2
    for labels, energy in (
        ([2, 2, 0, 0, 2], right),
        ([3, 4, 3], close),
        ([0, 3, 4, 4], (2 * right + close) / 3),
        ([1, 1, 1], 0.0),
        ([1], 0.0),
    ):
        x_ND, _, _ = random_batch(5, 5, len(labels))
        batch = (x_ND, w_CD.clone().requires_grad_(), torch.tensor(labels))
        plus_N, plain_N = (
            values_and_gradients(spec, batch)[0]
            for spec in (catalog.get("sphereface_plus", strength=3.0), catalog.get("sphereface"))
        )
        torch.testing.assert_close(plus_N - plain_N, torch.full_like(plain_N, 3 * energy), rtol=1e-9, atol=1e-12)


def test_sphereface_plus_with_one_class_in_the_batch_has_sphereface_gradient() -> None:
    x_ND, w_CD, _ = random_batch(5, 4, 3)
    batch = (x_ND, w_CD, torch.tensor([1, 1, 1]))
    plus, plain = (values_and_gradients(catalog.get(name), batch) for name in ("sphereface_plus", "sphereface"))
    for one, other in zip(plus, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_a_dead_tau_of_am_lfs_has_a_value_but_no_gradient() -> None:
    """As published: offsets that take τ below 1e-8 leave −log 1e-8, and nothing to learn from."""
    spec = catalog.get("am_lfs_free", tau_offsets=(-2.0,) * 10)
    loss_N, grad_ND, grad_CD = values_and_gradients(spec, random_batch(7, 5, 9))
    torch.testing.assert_close(loss_N, torch.full_like(loss_N, -math.log(1e-8)), rtol=1e-12, atol=0)
    assert grad_ND.abs().max() == grad_CD.abs().max() == 0


def test_each_bin_of_the_local_modulating_factor_has_its_own_margin() -> None:
    """An embedding in the middle of each bin that two cosines at s = 1 can reach."""
    margins = tuple(0.05 * (k + 1) for k in range(10))
    w_CD = torch.eye(2, dtype=torch.float64)
    p_N = torch.linspace(0.25, 0.75, 6, dtype=torch.float64)
    gap_N = (p_N / (1 - p_N)).log()
    theta_N = (gap_N / math.sqrt(2)).acos() - math.pi / 4  # cos θ − sin θ = √2 cos(θ + π/4) is the gap
    x_ND = torch.stack([theta_N.cos(), theta_N.sin()], dim=1)
    label_N = torch.zeros(len(p_N), dtype=torch.long)
    loss_N = build(catalog.get("modulating_bins", margins=margins, scale=1.0), num_classes=2)(x_ND, w_CD, label_N)
    margin_N = torch.tensor([margins[int(10 * p)] for p in p_N.tolist()], dtype=torch.float64)
    torch.testing.assert_close(loss_N, torch.log1p((margin_N - gap_N).exp()), rtol=1e-9, atol=0)
