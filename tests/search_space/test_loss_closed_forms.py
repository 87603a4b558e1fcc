"""Every loss of the catalog equals its paper's equation, written out here, in value and gradient (float64).

Shapes: N batch, C classes, D embedding. Nothing in the closed forms calls the product: cosines, angles, logits and
cross-entropy are built by hand.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from search_space import Loss, LossSpec, build, catalog
from search_space.spec import CombinedTarget, ConstantMargin, ConstantScale

PI = math.pi


@dataclass(frozen=True, slots=True)
class Case:
    """A spec beside its target map f(θ), its scale (None: AdaCos's), and whether f's own gradient is passed by."""

    spec: LossSpec
    target: Callable[[Tensor], Tensor]
    scale: float | None
    detached: bool = False

    def scale_over(self, classes: int) -> float:
        return math.sqrt(2) * math.log(classes - 1) if self.scale is None else self.scale


def folded(phi: Tensor) -> Tensor:
    """(−1)^k cos φ − 2k on each interval [kπ, (k + 1)π], interval by interval."""
    value = phi.cos()
    for k, sign in ((1, -1), (2, 1), (3, -1), (4, 1)):
        value = torch.where(phi > k * PI, sign * phi.cos() - 2 * k, value)
    return value


CASES = {
    "softmax": Case(catalog.softmax(), torch.cos, 30),
    "sphereface": Case(catalog.sphereface(), lambda t: folded(1.5 * t), 30, detached=True),
    "sphereface, exact": Case(catalog.sphereface(gradient="exact"), lambda t: folded(1.5 * t), 30),
    "sphereface, m=4": Case(catalog.sphereface(4, 64, "exact"), lambda t: folded(4 * t), 64),
    "cosface": Case(catalog.cosface(), lambda t: t.cos() - 0.35, 64),
    "arcface": Case(
        catalog.arcface(),
        lambda t: torch.where(t > PI - 0.5, t.cos() - 0.5 * math.sin(0.5), (t + 0.5).cos()),
        64,
    ),
    "arcface, released": Case(
        LossSpec(
            target=CombinedTarget(guard="none"),
            margin=ConstantMargin(m2_rad=0.5),
            scale=ConstantScale(value=64),
            gradient="detached",
        ),
        lambda t: (t + 0.5).cos(),
        64,
        detached=True,
    ),
    "combined": Case(catalog.combined(), lambda t: folded(t + 0.3) - 0.2, 64),
    "combined, all three": Case(catalog.combined(1.4, 0.7, 0.25, 16), lambda t: folded(1.4 * t + 0.7) - 0.25, 16),
    "combined, past 4π": Case(
        catalog.combined(4, PI / 2, 1, 8, "detached"), lambda t: folded(4 * t + PI / 2) - 1, 8, detached=True
    ),
    "modulating": Case(catalog.modulating(), lambda t: t.cos() - 0.2, 32),
    "adacos_fixed": Case(catalog.adacos_fixed(), torch.cos, None),
}

BATCHES = {
    "C=2": (2, 3, 5),
    "C=3, batch of 1": (3, 2, 1),
    "C=3, D=2": (3, 2, 4),
    "C=7": (7, 5, 9),
    "C=40, labels twice": (40, 16, 24),
}


def random_batch(classes: int, dim: int, count: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x_ND = 3 * torch.randn(count, dim, dtype=torch.float64, generator=generator)
    w_CD = 0.1 * torch.randn(classes, dim, dtype=torch.float64, generator=generator)
    label_N = torch.randint(max(2, classes // 2), (count,), generator=generator)
    return x_ND.requires_grad_(), w_CD.requires_grad_(), label_N


def batch_at_angles(thetas: Sequence[float], classes: int = 5, dim: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings at the given angles (radians) to their class weights."""
    generator = torch.Generator().manual_seed(len(thetas))
    w_CD = torch.randn(classes, dim, dtype=torch.float64, generator=generator)
    label_N = torch.arange(len(thetas)) % classes
    axis_ND = w_CD[label_N] / w_CD[label_N].norm(dim=1, keepdim=True)
    side_ND = torch.randn(len(thetas), dim, dtype=torch.float64, generator=generator)
    side_ND -= (side_ND * axis_ND).sum(1, keepdim=True) * axis_ND
    side_ND /= side_ND.norm(dim=1, keepdim=True)
    theta_N1 = torch.tensor(thetas, dtype=torch.float64)[:, None]
    return (theta_N1.cos() * axis_ND + theta_N1.sin() * side_ND).requires_grad_(), w_CD.requires_grad_(), label_N


def hand_made_cosines(x_ND: Tensor, w_CD: Tensor) -> Tensor:
    unit_ND, unit_CD = (raw / raw.square().sum(1, keepdim=True).sqrt() for raw in (x_ND, w_CD))
    return unit_ND @ unit_CD.T


def closed_form(case: Case, x_ND: Tensor, w_CD: Tensor, label_N: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """loss_N by torch's cross-entropy on logits built by hand, and its gradients at x and w.

    A detached loss has its gradient from the definition: s(p_m − 1[j = y]) at each plain cosine.
    """
    rows_N, scale = torch.arange(len(label_N)), case.scale_over(len(w_CD))
    cos_NC = hand_made_cosines(x_ND, w_CD)
    logit_NC = scale * cos_NC
    logit_NC[rows_N, label_N] = scale * case.target(cos_NC[rows_N, label_N].acos())
    loss_N = F.cross_entropy(logit_NC, label_N, reduction="none")
    if not case.detached:
        return loss_N, torch.autograd.grad(loss_N.sum(), (x_ND, w_CD))
    push_NC = logit_NC.detach().softmax(1)
    push_NC[rows_N, label_N] -= 1
    return loss_N, torch.autograd.grad((scale * push_NC * cos_NC).sum(), (x_ND, w_CD))


def assert_equal_to_closed_form(case: Case, batch: tuple[Tensor, Tensor, Tensor]) -> None:
    x_ND, w_CD, label_N = batch
    loss_N = build(case.spec, num_classes=len(w_CD))(x_ND, w_CD, label_N)
    wanted_N, wanted_grads = closed_form(case, x_ND, w_CD, label_N)
    assert loss_N.dtype == torch.float64
    torch.testing.assert_close(loss_N, wanted_N, rtol=1e-10, atol=1e-12)
    for grad, wanted in zip(torch.autograd.grad(loss_N.sum(), (x_ND, w_CD)), wanted_grads, strict=True):
        torch.testing.assert_close(grad, wanted, rtol=1e-8, atol=1e-10)


def test_the_cases_cover_the_catalog() -> None:
    in_tests_of_their_own = {"adacos_dynamic", "p2sgrad"}
    assert set(catalog.NAMES) == in_tests_of_their_own | (set(CASES) & set(catalog.NAMES))


@pytest.mark.parametrize(
    ("name", "shape"),
    [(name, shape) for name in CASES for shape in BATCHES if name != "adacos_fixed" or BATCHES[shape][0] >= 3],
)
def test_losses_equal_their_equations_on_random_batches(name: str, shape: str) -> None:
    assert_equal_to_closed_form(CASES[name], random_batch(*BATCHES[shape]))


@pytest.mark.parametrize("name", CASES)
def test_losses_equal_their_equations_at_every_angle(name: str) -> None:
    """θ + m > π for ArcFace and mθ > π for SphereFace are among the angles; so is each side of ArcFace's edge."""
    edge = PI - 0.5
    thetas = [1e-3, 0.1, 0.7, PI / 4, 1.3, PI / 2, 2.0, PI / 1.5 + 0.01, edge - 1e-6, edge + 1e-6, 2.9, 3.1, PI - 1e-3]
    assert_equal_to_closed_form(CASES[name], batch_at_angles(thetas))


@pytest.mark.parametrize("name", CASES)
def test_losses_equal_their_equations_where_cosine_is_one_or_minus_one(name: str) -> None:
    """There dcos_y/dx = 0: whatever the margin, only the negatives move the embedding.

    Rounded cosines miss ±1 by a unit in the last place, which is 2e-8 radians: hence the tolerance.
    """
    case, label_N = CASES[name], torch.tensor([0, 1, 2, 0])
    w_CD = torch.eye(4, dtype=torch.float64)[:3] + torch.tensor([0.0, 0, 0, 0.5], dtype=torch.float64)
    cos_y_N = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
    x_ND = (2 * cos_y_N[:, None] * w_CD[label_N]).requires_grad_()
    loss_N = build(case.spec, num_classes=3)(x_ND, w_CD, label_N)
    (grad_ND,) = torch.autograd.grad(loss_N.sum(), x_ND)

    scale, rows_N = case.scale_over(3), torch.arange(4)
    theta_N = torch.where(cos_y_N > 0, 0.0, PI).to(torch.float64)
    cos_NC = hand_made_cosines(x_ND, w_CD)
    logit_NC = scale * cos_NC.detach()
    logit_NC[rows_N, label_N] = scale * case.target(theta_N)
    torch.testing.assert_close(loss_N, F.cross_entropy(logit_NC, label_N, reduction="none"), rtol=1e-6, atol=1e-6)
    push_NC = logit_NC.softmax(1)
    push_NC[rows_N, label_N] = 0
    (wanted_ND,) = torch.autograd.grad((scale * push_NC * cos_NC).sum(), x_ND)
    torch.testing.assert_close(grad_ND, wanted_ND, rtol=1e-6, atol=1e-6)


def test_the_weight_multiplies_loss_and_gradient() -> None:
    x_ND, w_CD, label_N = random_batch(5, 4, 6)
    plain, heavy = catalog.cosface(), LossSpec.model_validate({**catalog.cosface().model_dump(), "weight": 2.5})
    plain_N, heavy_N = (build(spec, num_classes=5)(x_ND, w_CD, label_N) for spec in (plain, heavy))
    torch.testing.assert_close(heavy_N, 2.5 * plain_N, rtol=1e-14, atol=0)
    grads = [torch.autograd.grad(loss_N.sum(), x_ND)[0] for loss_N in (plain_N, heavy_N)]
    torch.testing.assert_close(grads[1], 2.5 * grads[0], rtol=1e-12, atol=0)


# P2SGrad: the paper gives the gradient, Σ_j (cos_ij − 1[j = y]) ∂cos_ij/∂(x, w); the product, a loss.


@pytest.mark.parametrize("shape", BATCHES)
@pytest.mark.parametrize("weight", [1.0, 30.0])
def test_p2sgrad_has_the_papers_gradient_by_its_coefficients(shape: str, weight: float) -> None:
    x_ND, w_CD, label_N = random_batch(*BATCHES[shape])
    loss_N = build(catalog.p2sgrad(weight), num_classes=len(w_CD))(x_ND, w_CD, label_N)
    grad_ND, grad_CD = torch.autograd.grad(loss_N.sum(), (x_ND, w_CD))
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


def test_p2sgrad_is_summed_over_classes_not_averaged() -> None:
    """At cosines all 0 the loss is ½ for any number of classes (MSELoss would give 1/C)."""
    for classes in (2, 50):
        loss_N = build(catalog.p2sgrad(), num_classes=classes).from_cosines(torch.zeros(1, classes), torch.tensor([1]))
        assert loss_N.item() == 0.5


# AdaCos dynamic: the recursion, batch by batch, in numpy.


def scale_of(loss: Loss) -> float:
    return float(loss.state_dict()["scale"])


def numpy_adacos(scale: float, cos_NC: NDArray[np.float64], label_N: NDArray[np.int64]) -> float:
    """The scale after this batch: log B_avg / cos(min(π/4, θ_med)), kept in float32 as the product keeps it."""
    b_avg = 0.0
    thetas = []
    for cos_C, label in zip(cos_NC, label_N, strict=True):
        b_avg += sum(math.exp(scale * cos) for j, cos in enumerate(cos_C) if j != label) / len(label_N)
        thetas.append(math.acos(min(1.0, max(-1.0, cos_C[label]))))
    lower_median = sorted(thetas)[(len(thetas) - 1) // 2]
    return float(np.float32(math.log(b_avg) / math.cos(min(PI / 4, lower_median))))


@pytest.mark.parametrize("closeness", [0.0, 3.0], ids=["median past π/4", "median below π/4"])
@pytest.mark.parametrize(("classes", "count"), [(3, 1), (3, 6), (20, 7), (60, 32)])
def test_adacos_dynamic_follows_the_papers_recursion(closeness: float, classes: int, count: int) -> None:
    generator = torch.Generator().manual_seed(classes)
    loss = build(catalog.adacos_dynamic(), num_classes=classes)
    scale = float(np.float32(math.sqrt(2) * math.log(classes - 1)))
    assert scale_of(loss) == scale
    for _ in range(5):
        w_CD = torch.randn(classes, 48, dtype=torch.float64, generator=generator, requires_grad=True)
        label_N = torch.randint(classes, (count,), generator=generator)
        noise_ND = torch.randn(count, 48, dtype=torch.float64, generator=generator)
        x_ND = (noise_ND + closeness * w_CD[label_N].detach()).requires_grad_()
        loss_N = loss(x_ND, w_CD, label_N)

        cos_NC = hand_made_cosines(x_ND, w_CD)
        median_is_small = cos_NC[torch.arange(count), label_N].median() > math.cos(PI / 4)
        assert median_is_small == (closeness > 0)
        scale = numpy_adacos(scale, cos_NC.detach().numpy(), label_N.numpy())
        assert scale_of(loss) == pytest.approx(scale, rel=1e-6)
        wanted_N = F.cross_entropy(scale_of(loss) * cos_NC, label_N, reduction="none")
        torch.testing.assert_close(loss_N, wanted_N, rtol=1e-10, atol=1e-12)
        wanted_grads = torch.autograd.grad(wanted_N.sum(), (x_ND, w_CD))
        for grad, wanted in zip(torch.autograd.grad(loss_N.sum(), (x_ND, w_CD)), wanted_grads, strict=True):
            torch.testing.assert_close(grad, wanted, rtol=1e-8, atol=1e-10)


def test_adacos_dynamic_takes_the_lower_median() -> None:
    """Of two target angles the smaller counts: here it is 0, whose cosine is 1."""
    loss = build(catalog.adacos_dynamic(), num_classes=3)
    cos_NC = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    loss.from_cosines(cos_NC, torch.tensor([0, 1]))
    assert scale_of(loss) == pytest.approx(math.log((2 + 1 + 1) / 2 * 1), rel=1e-6)


def test_adacos_backward_uses_the_scale_of_its_own_batch() -> None:
    """A second batch in between changes the buffer, not the first batch's gradient."""
    x_ND, w_CD, label_N = random_batch(6, 8, 4)
    twice, once = (build(catalog.adacos_dynamic(), num_classes=6) for _ in range(2))
    first_N = twice(x_ND, w_CD, label_N)
    twice(*random_batch(6, 8, 4, seed=1))
    wanted = torch.autograd.grad(once(x_ND, w_CD, label_N).sum(), x_ND)[0]
    torch.testing.assert_close(torch.autograd.grad(first_N.sum(), x_ND)[0], wanted, rtol=0, atol=0)
