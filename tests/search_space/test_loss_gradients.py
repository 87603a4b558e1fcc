"""Exact losses have the true gradient, detached ones exactly the other one that they state, in float64.

Shapes: N batch, C classes, D embedding. Embeddings and class weights are raw, so normalisation is differentiated too.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from search_space import LossSpec, build, catalog, target_logit
from search_space.parts import CombinedTarget, ConstantMargin, ConstantScale

N, C, D = 5, 4, 3
SCALE = 16.0

# Losses whose own equation stops a gradient; `closed_forms.py` writes them out, stops included.
STOPPED = {name: catalog.get(name) for name in ("adaface", "arcnegface", "circle", "npcface", "sface")}

EXACT = {
    name: catalog.get(name, **({"gradient": "exact"} if "gradient" in catalog.ENTRIES[name].defaults() else {}))
    for name in catalog.NAMES
    if name not in STOPPED
} | {
    "sphereface m=4": catalog.sphereface(m=4, gradient="exact"),
    "arcface, monotone": catalog.combined(m2_rad=0.5, m3=0),
    "combined, past 3π": catalog.combined(m1=3, m2_rad=math.pi / 2, m3=1, scale=8),
    "modulating, unequal bins": catalog.modulating_bins([k / 20 for k in range(10)]),
    "mv_am, fixed": catalog.mv_am(variant="fixed"),
    "mv_arc, fixed": catalog.mv_arc(variant="fixed"),
    "p2sgrad, as the paper's update": catalog.p2sgrad(form="update"),
    "p2sgrad × 30": catalog.p2sgrad(weight=30),
}

DETACHED = {
    "sphereface": catalog.sphereface(scale=SCALE),
    "sphereface_r_v1": catalog.sphereface_r_v1(scale=SCALE, weight=1),
    "arcface": catalog.arcface(scale=SCALE, gradient="detached"),
    "adaface": catalog.adaface(scale=SCALE, gradient="detached"),
    "combined": catalog.combined(scale=SCALE, gradient="detached"),
    "x2_softmax": catalog.x2_softmax(scale=SCALE),
    "no guard": LossSpec(
        target=CombinedTarget(guard="none"),
        margin=ConstantMargin(m1=1.5, m2_rad=0.5, m3=0.1),
        scale=ConstantScale(value=SCALE),
        gradient="detached",
    ),
}


def raw_batch(seed: int, centers: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings, class weights and labels; target angles spread over [.2, 2.9] radians, away from the edges."""
    generator = torch.Generator().manual_seed(seed)
    w_RD = torch.randn(C * centers, D, dtype=torch.float64, generator=generator)
    label_N = torch.randint(C, (N,), generator=generator)
    axis_ND = F.normalize(w_RD[label_N * centers])
    side_ND = torch.randn(N, D, dtype=torch.float64, generator=generator)
    side_ND = F.normalize(side_ND - (side_ND * axis_ND).sum(1, keepdim=True) * axis_ND)
    theta_N1 = torch.linspace(0.2, 2.9, N, dtype=torch.float64)[:, None]
    length_N1 = torch.rand(N, 1, dtype=torch.float64, generator=generator) * 3 + 0.5
    x_ND = length_N1 * (theta_N1.cos() * axis_ND + theta_N1.sin() * side_ND)
    return x_ND.requires_grad_(), w_RD.requires_grad_(), label_N


def gradcheck(spec: LossSpec, seed: int) -> bool:
    """Whether autograd's gradient is that of finite differences, in eval: what a loss tracks or draws is held."""
    loss = build(spec, num_classes=C, class_counts=(1, 5, 20, 300)).double().eval()
    with torch.no_grad():
        for parameter in loss.parameters():
            parameter.clamp_(min=0.3)  # learned margins start at 0, the edge of their range
    x_ND, w_RD, label_N = raw_batch(seed, spec.centers)
    return torch.autograd.gradcheck(
        lambda x_ND, w_RD, *_: loss(x_ND, w_RD, label_N),
        (x_ND, w_RD, *loss.parameters()),
        eps=1e-7,
        atol=1e-5 * loss(x_ND, w_RD, label_N).abs().max().item(),
        rtol=1e-5,
        raise_exception=False,
    )


def test_the_exact_points_cover_the_catalog() -> None:
    assert set(catalog.NAMES) <= set(EXACT) | set(STOPPED)
    assert all(spec.gradient == "exact" for spec in EXACT.values())


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("seed", [0, 1])
def test_gradcheck_of_exact_losses_through_normalisation(name: str, seed: int) -> None:
    assert gradcheck(EXACT[name], seed)


@pytest.mark.parametrize("name", STOPPED)
def test_what_a_paper_stops_is_not_the_true_gradient(name: str) -> None:
    assert not gradcheck(STOPPED[name], seed=0)


@pytest.mark.parametrize("name", DETACHED)
def test_detached_losses_push_each_cosine_by_its_modified_probability(name: str) -> None:
    x_ND, w_CD, label_N = raw_batch(2)
    loss_N = build(DETACHED[name], num_classes=C)(x_ND, w_CD, label_N)
    grads = torch.autograd.grad(loss_N.sum(), (x_ND, w_CD))

    cos_NC = F.normalize(x_ND) @ F.normalize(w_CD).T
    one_hot_NC = F.one_hot(label_N, C)
    p_m_N1 = (-loss_N.detach()).exp()[:, None]
    shares_NC = (SCALE * cos_NC.detach()).masked_fill(one_hot_NC.bool(), -torch.inf).softmax(1)
    push_NC = SCALE * (1 - p_m_N1) * (shares_NC - one_hot_NC)
    expected = torch.autograd.grad((push_NC * cos_NC).sum(), (x_ND, w_CD))
    for grad, wanted in zip(grads, expected, strict=True):
        torch.testing.assert_close(grad, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", DETACHED)
def test_detached_gradients_are_not_the_true_ones(name: str) -> None:
    assert not gradcheck(DETACHED[name], seed=2)


@pytest.mark.parametrize("name", ["arcface", "combined", "sphereface", "sphereface_r_v1", "x2_softmax", "li_arcface"])
def test_the_drawn_target_logit_has_the_gradient_of_its_mode(name: str) -> None:
    cos_N = torch.linspace(-0.95, 0.95, 20, dtype=torch.float64, requires_grad=True)
    exact, detached = (catalog.get(name, scale=SCALE, gradient=mode) for mode in ("exact", "detached"))
    assert torch.autograd.gradcheck(lambda cos_N: target_logit(exact, cos_N, num_classes=C), (cos_N,))
    drawn_N = target_logit(detached, cos_N, num_classes=C)
    torch.testing.assert_close(drawn_N, target_logit(exact, cos_N, num_classes=C), rtol=1e-12, atol=1e-12)
    (grad_N,) = torch.autograd.grad(drawn_N.sum(), cos_N)
    torch.testing.assert_close(grad_N, torch.full_like(grad_N, SCALE), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["p2sgrad", "sface", "sphereface2_c", "sphereface2_a", "sphereface2_m"])
def test_losses_on_bare_cosines_have_no_target_logit_to_draw(name: str) -> None:
    kind = catalog.get(name).objective.kind
    with pytest.raises(ValueError, match=f"^objective '{kind}' works on bare cosines and has no logits$"):
        target_logit(catalog.get(name), torch.zeros(1), num_classes=C)


@pytest.mark.parametrize("name", ["adaptiveface", "arcface", "class_size"])
def test_the_target_logit_is_on_the_device_of_the_cosines(name: str) -> None:
    assert target_logit(catalog.get(name), torch.zeros(3, device="meta"), num_classes=4).device.type == "meta"
