"""Losses stay finite at the edges in every dtype, and err no more than plain code does in float32.

Shapes: N batch, C classes, K centers, R = C·K rows of weights, D embedding.
"""

import math
from collections.abc import Callable, Mapping

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from search_space import Loss, LossSpec, build, catalog
from search_space.parts import NoRegularizer

DIM = 8
EPS = torch.finfo(torch.float32).eps

SCALE_OF = {"circle": "gamma"}
"""What the scale is called where it is not `scale`."""

SCALED = tuple(
    name for name in catalog.NAMES if catalog.ENTRIES[name].defaults().keys() & {"scale", SCALE_OF.get(name, "scale")}
)
ALL = {name: catalog.get(name) for name in catalog.NAMES}


def at_scale(name: str, scale: float) -> LossSpec:
    """The named loss at its defaults but for the scale."""
    return catalog.get(name, **{SCALE_OF.get(name, "scale"): scale})


def built(spec: LossSpec, classes: int) -> Loss:
    return build(spec, num_classes=classes, class_counts=[1 + 7 * j for j in range(classes)])


EDGE_SPECS = {f"{name} s={scale}": at_scale(name, scale) for name in SCALED for scale in (1, 64, 512)} | {
    "arcface detached s=512": catalog.arcface(scale=512, gradient="detached"),
    "sphereface exact m=4 s=512": catalog.sphereface(4, 512, "exact"),
    "x2_softmax exact s=512": catalog.x2_softmax(scale=512, gradient="exact"),
    "sphereface_r_v2 exact s=512": catalog.sphereface_r_v2(m=4, scale=512, gradient="exact"),
    "sphereface2_a exact s=512": catalog.sphereface2_a(scale=512, gradient="exact"),
    "combined at its largest": catalog.combined(4, math.pi / 2, 1, 512),
    # Without a scale of its own; those whose scale is ‖x‖ have their turn below
    **{name: spec for name, spec in ALL.items() if name not in SCALED and "norm" not in spec.scale.kind},
}


def edge_batch(classes: int, centers: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings equal to their class weight, opposite to it, equal to another's, very short and very long."""
    generator = torch.Generator().manual_seed(classes)
    w_CD = torch.randn(classes, DIM, generator=generator)
    if classes == 2:
        w_CD[1] = -w_CD[0]
    label_N = torch.tensor([0, 1, 0, 1, 0])
    x_ND = torch.stack([w_CD[0], -w_CD[1], w_CD[1], 1e-6 * w_CD[1], 1e6 * w_CD[0]])
    return x_ND.requires_grad_(), w_CD.repeat_interleave(centers, 0).requires_grad_(), label_N


def assert_finite(*tensors: Tensor | None) -> None:
    for tensor in tensors:
        assert tensor is not None
        assert tensor.isfinite().all()


@pytest.mark.parametrize(
    ("name", "classes"),
    [(name, classes) for name in EDGE_SPECS for classes in (2, 3, 100) if classes > 2 or "adacos" not in name]
    + [(name, 10_000) for name in EDGE_SPECS if name in ALL],
)
def test_loss_and_gradients_are_finite_where_cosine_is_one_or_minus_one(name: str, classes: int) -> None:
    spec = EDGE_SPECS[name]
    loss = built(spec, classes)
    x_ND, w_RD, label_N = edge_batch(classes, spec.centers)
    loss_N = loss(x_ND, w_RD, label_N)
    loss_N.mean().backward()
    assert loss_N.dtype == torch.float32
    assert_finite(loss_N, x_ND.grad, w_RD.grad, *(p.grad for p in loss.parameters()))
    if spec.objective.kind not in ("sface", "piecewise_tau_free"):
        assert (loss_N >= 0).all()


# Half precision

HALF = (torch.bfloat16, torch.float16)


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("name", ALL)
def test_half_precision_inputs_give_finite_float32_losses_and_finite_gradients(name: str, dtype: torch.dtype) -> None:
    """Two classes and many, batches of one and of five, norms of 1e-2 and of the largest that float16 can hold."""
    for classes, count, longest in ((3, 5, 6e4), (100, 5, 6e4), (3, 1, 1.0), (2, 1, 6e4), (2, 5, 1.0)):
        if "adacos" in name and classes == 2:
            continue
        loss = built(ALL[name], classes)
        x_ND, w_RD, label_N = (t.detach()[:count] if t.ndim == 1 else t.detach() for t in edge_batch(classes))
        w_RD = w_RD.repeat_interleave(ALL[name].centers, 0).to(dtype).requires_grad_()
        norm_N1 = torch.tensor([1.0, 20, 100, 1e-2, longest])[:count, None]
        x_ND = (F.normalize(x_ND[:count]) * norm_N1).to(dtype).requires_grad_()
        loss_N = loss(x_ND, w_RD, label_N)
        assert loss_N.dtype == torch.float32
        loss_N.mean().backward()
        assert_finite(loss_N, x_ND.grad, w_RD.grad, *(p.grad for p in loss.parameters()))
        assert_finite(*loss.state_dict().values())


@pytest.mark.parametrize("name", ALL)
def test_half_precision_inputs_count_at_their_own_value(name: str) -> None:
    """The loss of rounded embeddings is the loss of those same numbers in float32: nothing is rounded twice."""
    generator = torch.Generator().manual_seed(0)
    spec = ALL[name]
    w_RD = torch.randn(6 * spec.centers, DIM, generator=generator)
    x_ND, label_N = (10 * torch.randn(4, DIM, generator=generator)).bfloat16(), torch.tensor([0, 3, 5, 3])
    loss = built(spec, 6).eval()
    assert torch.equal(loss(x_ND, w_RD.bfloat16(), label_N), loss(x_ND.float(), w_RD.bfloat16().float(), label_N))


@pytest.mark.parametrize("dtype", [torch.float32, *HALF], ids=str)
@pytest.mark.parametrize("name", ALL)
def test_an_embedding_of_zeros_gives_no_nan(name: str, dtype: torch.dtype) -> None:
    """Its direction is not defined: its own gradient may overflow half precision, nobody else's may."""
    loss = built(ALL[name], 4)
    generator = torch.Generator().manual_seed(0)
    x_ND = torch.randn(3, DIM, generator=generator)
    x_ND[1] = 0
    x_ND = x_ND.to(dtype).requires_grad_()
    w_RD = torch.randn(4 * ALL[name].centers, DIM, generator=generator).requires_grad_()
    loss_N = loss(x_ND, w_RD, torch.tensor([0, 1, 2]))
    loss_N.mean().backward()
    assert_finite(loss_N, w_RD.grad, *(p.grad for p in loss.parameters()))
    assert x_ND.grad is not None
    assert not x_ND.grad.isnan().any()
    assert_finite(x_ND.grad[[0, 2]])


@pytest.mark.parametrize("name", SCALED)
@pytest.mark.parametrize("target_cos", [1.0, -1.0])
def test_gradients_at_the_cosines_are_finite_at_the_edges(name: str, target_cos: float) -> None:
    """Before normalisation damps it: f′ of an angular map is bounded by the slope in the angle over √eps."""
    for dtype in (torch.float32, torch.float64):
        cos_NC = torch.tensor([[target_cos, -0.0, 0.3]], dtype=dtype, requires_grad=True)
        loss_N = built(at_scale(name, 512), 3).from_cosines(cos_NC, torch.tensor([0]))
        (grad_NC,) = torch.autograd.grad(loss_N.sum(), cos_NC)
        assert loss_N.isfinite().all()
        assert grad_NC.abs().max() <= 512 * 6 / torch.finfo(dtype).eps ** 0.5


@pytest.mark.parametrize("cosine", [1 + 1e-6, -1 - 1e-6])
@pytest.mark.parametrize("name", SCALED)
def test_cosines_rounded_past_one_count_as_one(name: str, cosine: float) -> None:
    past_N, at_N = (
        built(at_scale(name, 64), 3).eval().from_cosines(torch.tensor([[0.1, value, 0.2]]), torch.tensor([1]))
        for value in (cosine, round(cosine))
    )
    torch.testing.assert_close(past_N, at_N, rtol=1e-4, atol=1e-3)


def test_a_target_far_ahead_keeps_a_loss_above_zero() -> None:
    """softplus(lse_neg − T) still resolves e^−72, where 1 − p rounds to 0; so does τ near 1."""
    for spec in (catalog.softmax(scale=90), catalog.am_lfs(scale=90), catalog.poly1(epsilon=0, scale=90)):
        loss_N = build(spec, num_classes=2).from_cosines(torch.tensor([[1.0, 0.2]]), torch.tensor([0]))
        assert loss_N.item() == pytest.approx(math.exp(-72), rel=1e-4)


def test_p2sgrad_keeps_its_digits_near_its_optimum() -> None:
    """Summing squares and then subtracting 2·cos_y would leave only rounding here, of either sign."""
    cos_NC = torch.tensor([[1 - 2e-5, 1e-5, -1e-5]])
    loss_N = build(catalog.p2sgrad(), num_classes=3).from_cosines(cos_NC, torch.tensor([0]))
    truth = 0.5 * ((cos_NC[0, 0].item() - 1) ** 2 + 2 * 1e-10)
    assert loss_N.item() == pytest.approx(truth, rel=1e-5)


@pytest.mark.parametrize("classes", [2, 3, 10, 10_575])
@pytest.mark.parametrize("scale", [1, 64, 512, 1024])
@pytest.mark.parametrize("name", ["sphereface2_c", "sphereface2_a", "sphereface2_m"])
def test_sphereface2_starts_with_targets_and_negatives_weighing_alike(name: str, scale: float, classes: int) -> None:
    """α·σ(−z_y) = (1 − α)(C − 1)·σ(z_j) at 90°, for few classes and large scales too."""
    loss = build(catalog.get(name, scale=scale), num_classes=classes).double()
    cos_NC = torch.zeros(1, classes, dtype=torch.float64, requires_grad=True)
    loss_N = loss.from_cosines(cos_NC, torch.tensor([0])) / loss.spec.weight
    (bias_grad,) = torch.autograd.grad(loss_N.sum(), list(loss.parameters()))
    assert abs(bias_grad.item()) < 2e-4


# Judged by float64: the same float32 embeddings and weights, widened, through the same plain formula.

Maps = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(c_N, c_NC) → (f_N, n_NC), as released code writes them; eager, with no care for rounding."""


def arc(c: Tensor, m: float) -> Tensor:
    return torch.where(c.acos() > math.pi - m, c - m * math.sin(m), (c.acos() + m).cos())


def v0(c: Tensor, m: float) -> Tensor:
    k = (m * c.acos() / math.pi).floor()
    return (1 - 2 * (k % 2)) * (m * c.acos()).cos() - 2 * k


def only_target(f: Callable[[Tensor], Tensor]) -> Maps:
    return lambda c, cos: (f(c), cos)


def only_negatives(n: Callable[[Tensor], Tensor]) -> Maps:
    return lambda c, cos: (c, n(cos))


def mv(f: Callable[[Tensor], Tensor]) -> Maps:
    return lambda c, cos: (f(c), torch.where(cos > f(c)[:, None], 1.2 * cos + 0.2, cos))


def arcneg(c: Tensor, cos: Tensor) -> tuple[Tensor, Tensor]:
    f = arc(c, 0.5)
    t = (1.2 * (-((cos - f[:, None]) ** 2) / 2).exp()).detach()
    return f, t * cos + t - 1


def curricular(c: Tensor, cos: Tensor) -> tuple[Tensor, Tensor]:
    """With t = 0."""
    return arc(c, 0.5), torch.where(cos > (c.acos() + 0.5).cos()[:, None], cos * cos, cos)


def npc(c: Tensor, cos: Tensor) -> tuple[Tensor, Tensor]:
    """The target's own cosine is above its threshold where the angle with the margin has not passed π."""
    hard = (cos > (c.acos() + 0.5).cos()[:, None]) & (cos != c[:, None])
    m = 0.4 + 0.2 * ((cos * hard).sum(1) / hard.sum(1).clamp(min=1)).detach()
    return torch.where(c > 0, (c.acos() + m).cos(), c), torch.where(hard, 1.1 * cos + 0.2, cos)


def circle(c: Tensor, cos: Tensor) -> tuple[Tensor, Tensor]:
    return (1.25 - c.detach()).clamp(min=0) * (c - 0.75), (cos.detach() + 0.25).clamp(min=0) * (cos - 0.25)


def magface(c: Tensor, norm: Tensor) -> Tensor:
    m = 0.45 + 0.35 / 100 * (norm.clamp(10, 110) - 10)
    return torch.where(c > 0, (c.acos() + m).cos(), c)


def adaface(c: Tensor, norm: Tensor) -> Tensor:
    k = ((norm.detach().clamp(1e-3, 100) - 20) / (100 + 1e-3) * 0.333).clamp(-1, 1)
    return (c.acos() - 0.4 * k).clamp(1e-3, math.pi - 1e-3).cos() - 0.4 - 0.4 * k


CROSS_ENTROPIES: Mapping[str, Maps] = {
    "softmax": only_target(lambda c: c),
    "sphereface": only_target(lambda c: v0(c, 1.5)),
    "sphereface_plus": only_target(lambda c: v0(c, 1.5)),
    "sphereface_r_v1": only_target(lambda c: (1.4 * c.acos()).clamp(max=math.pi).cos()),
    "sphereface_r_v2": only_negatives(lambda cos: (cos.acos() / 1.4).cos()),
    "cosface": only_target(lambda c: c - 0.35),
    "arcface": only_target(lambda c: arc(c, 0.5)),
    "combined": only_target(
        lambda c: torch.where(c.acos() + 0.3 > math.pi, -(c.acos() + 0.3).cos() - 2.2, (c.acos() + 0.3).cos() - 0.2)
    ),
    "li_arcface": lambda c, cos: (1 - 2 * (c.acos() + 0.45) / math.pi, 1 - 2 * cos.acos() / math.pi),
    "x2_softmax": only_target(lambda c: -0.9 * c.acos() ** 2 + 0.65),
    "subcenter_arcface": only_target(lambda c: arc(c, 0.5)),
    "modulating": only_target(lambda c: c - 0.2),
    "modulating_bins": only_target(lambda c: c - 0.2),
    "mv_am": mv(lambda c: c - 0.35),
    "mv_arc": mv(lambda c: arc(c, 0.35)),
    "curricularface": curricular,
    "npcface": npc,
    "arcnegface": arcneg,
    "circle": circle,
    "elasticface_arc": only_target(lambda c: arc(c, 0.5)),
    "elasticface_arc_plus": only_target(lambda c: arc(c, 0.5)),
    "elasticface_cos": only_target(lambda c: c - 0.35),
    "elasticface_cos_plus": only_target(lambda c: c - 0.35),
    "adaptiveface": only_target(lambda c: c),
}
ON_CROSS_ENTROPY: Mapping[str, Callable[[Tensor], Tensor]] = {
    "am_lfs": lambda ce: ce,
    "am_lfs_free": lambda ce: -(-ce).exp().clamp(min=1e-8).log(),
    "poly1": lambda ce: ce + (1 - (-ce).exp()),
    "focal": lambda ce: (1 - (-ce).exp()) ** 2 * ce,
}


def g(c: Tensor) -> Tensor:
    return 2 * ((c + 1) / 2) ** 3 - 1


def sphereface2(name: str, c: Tensor, cos: Tensor) -> tuple[Tensor, Tensor]:
    if name == "sphereface2_c":
        return g(c) - 0.4, g(cos) + 0.4
    theta = c.acos()
    return g((theta + 0.5 if name == "sphereface2_a" else 1.7 * theta).clamp(max=math.pi).cos()), g(cos)


def sface(c: Tensor, cos: Tensor) -> tuple[Tensor, Tensor]:
    pull, push = (80 * (c.acos() - 0.8)).sigmoid().detach(), (-80 * (cos.acos() - 1.23)).sigmoid().detach()
    return pull * c, push * cos


def passed(psi: Tensor, c: Tensor) -> Tensor:
    return c + (psi - c).detach()


def plain(name: str, scale: float, x_ND: Tensor, w_RD: Tensor, label_N: Tensor, bias: float) -> Tensor:
    """The loss over an explicit N×C matrix, as most released code does it; in eval, where nothing moves."""
    spec = at_scale(name, scale)
    cos_NC = (F.normalize(x_ND) @ F.normalize(w_RD).T).view(len(x_ND), -1, spec.centers).amax(2)
    rows_N, norm_N = torch.arange(len(label_N)), x_ND.norm(dim=1)
    c_N = cos_NC[rows_N, label_N]
    if name == "magface":
        f_N, n_NC = magface(c_N, norm_N), cos_NC
    elif name == "adaface":
        f_N, n_NC = adaface(c_N, norm_N), cos_NC
    elif name == "class_size":
        m_N = 0.5 * (1 + 7 * label_N).to(c_N) ** -0.25 + 0.05
        f_N, n_NC = torch.where(c_N.acos() > math.pi - m_N, c_N - m_N * m_N.sin(), (c_N.acos() + m_N).cos()), cos_NC
    elif name.startswith("sphereface2"):
        f_N, n_NC = sphereface2(name, c_N, cos_NC)
    elif name == "sface":
        f_N, n_NC = sface(c_N, cos_NC)
    elif name == "uniface":
        f_N, n_NC = c_N - 0.4, cos_NC
    else:
        f_N, n_NC = CROSS_ENTROPIES.get(name, CROSS_ENTROPIES["softmax"])(c_N, cos_NC)
    if spec.gradient == "detached":
        f_N, n_NC = passed(f_N, c_N), passed(n_NC, cos_NC)
    logit_NC = scale * n_NC
    logit_NC[rows_N, label_N] = scale * f_N
    is_y_NC = F.one_hot(label_N, logit_NC.shape[1]).bool()
    if name == "sface":
        loss_N = torch.where(is_y_NC, -logit_NC, logit_NC).sum(1)
    elif name == "uniface":
        loss_N = F.softplus(torch.where(is_y_NC, bias - logit_NC, logit_NC - bias)).sum(1)
    elif name.startswith("sphereface2"):
        z_NC = logit_NC + bias
        loss_N = torch.where(is_y_NC, 0.7 * F.softplus(-z_NC), 0.3 * F.softplus(z_NC)).sum(1)
    else:
        ce_N = F.cross_entropy(logit_NC, label_N, reduction="none")
        loss_N = ON_CROSS_ENTROPY[name](ce_N) if name in ON_CROSS_ENTROPY else ce_N
    if name == "magface":
        a_N = norm_N.clamp(10, 110)
        loss_N = loss_N + 35 * (a_N / 110**2 + 1 / a_N) / spec.weight
    return spec.weight * loss_N


def with_gradients(loss_N: Tensor, x_ND: Tensor, w_RD: Tensor) -> list[Tensor]:
    return [loss_N.detach().double(), *(g.double() for g in torch.autograd.grad(loss_N.sum(), (x_ND, w_RD)))]


@pytest.mark.parametrize("name", SCALED)
@pytest.mark.parametrize("scale", [1, 16, 64, 256, 512])
@pytest.mark.parametrize("classes", [2, 300])
def test_float32_errs_at_most_twice_as_much_as_plain_code(name: str, scale: float, classes: int) -> None:
    """In value and in gradient at embeddings and weights, over target angles from near 0 to near π."""
    loss = built(
        at_scale(name, scale).replace(regularizer=ALL[name].regularizer if name == "magface" else NoRegularizer()),
        classes,
    ).eval()
    bias = next((parameter.item() for parameter in loss.parameters() if parameter.ndim == 0), 0.0)
    generator = torch.Generator().manual_seed(classes)
    w_RD = torch.randn(classes * loss.spec.centers, 32, generator=generator).requires_grad_()
    label_N = torch.randint(classes, (256,), generator=generator)
    closeness_N1 = torch.linspace(-2, 6, 256)[:, None]
    x_ND = torch.randn(256, 32, generator=generator) + closeness_N1 * w_RD.detach()[label_N * loss.spec.centers]
    x_ND.requires_grad_()
    wide = [t.detach().double().requires_grad_() for t in (x_ND, w_RD)]
    truth = with_gradients(plain(name, scale, wide[0], wide[1], label_N, bias), wide[0], wide[1])
    naive = with_gradients(plain(name, scale, x_ND, w_RD, label_N, bias), x_ND, w_RD)
    ours = with_gradients(loss(x_ND, w_RD, label_N), x_ND, w_RD)
    for mine, theirs, true in zip(ours, naive, truth, strict=True):
        assert (mine - true).abs().max() <= 2 * (theirs - true).abs().max() + EPS * true.abs().max()


UNSCALED = ("adacos_fixed", "adacos_dynamic", "p2sgrad", "sphereface_r_nfn", "sphereface_r_sfn")


def plain_without_scale(name: str, x_ND: Tensor, w_CD: Tensor, label_N: Tensor) -> Tensor:
    """Losses whose scale is AdaCos's, the embedding's norm, or none."""
    cos_NC = F.normalize(x_ND) @ F.normalize(w_CD).T
    if name == "p2sgrad":
        return 0.5 * ((cos_NC - F.one_hot(label_N, len(w_CD))) ** 2).sum(1)
    if name.startswith("adacos"):
        return F.cross_entropy(math.sqrt(2) * math.log(len(w_CD) - 1) * cos_NC, label_N, reduction="none")
    n_NC, rows_N = passed((cos_NC.acos() / 1.4).cos(), cos_NC), torch.arange(len(label_N))
    norm_N1 = x_ND.norm(dim=1, keepdim=True)
    logit_NC = norm_N1 * n_NC
    logit_NC[rows_N, label_N] = norm_N1[:, 0] * cos_NC[rows_N, label_N]
    ce_N = F.cross_entropy(logit_NC, label_N, reduction="none")
    return ce_N if name.endswith("nfn") else 50 / 60 * ce_N + 0.01 * (norm_N1[:, 0] - 60).abs()


@pytest.mark.parametrize("name", UNSCALED)
@pytest.mark.parametrize("norm", [1, 16, 64, 256, 512])
@pytest.mark.parametrize("classes", [3, 300])
def test_losses_without_a_scale_to_set_err_at_most_twice_as_much_too(name: str, norm: float, classes: int) -> None:
    """NFN and SFN have the norm for a scale; the others must not mind it."""
    generator = torch.Generator().manual_seed(classes)
    w_CD = torch.randn(classes, 32, generator=generator).requires_grad_()
    label_N = torch.randint(classes, (256,), generator=generator)
    x_ND = torch.randn(256, 32, generator=generator) + torch.linspace(-2, 6, 256)[:, None] * w_CD.detach()[label_N]
    x_ND = (norm * F.normalize(x_ND)).requires_grad_()
    wide = [t.detach().double().requires_grad_() for t in (x_ND, w_CD)]
    truth = with_gradients(plain_without_scale(name, wide[0], wide[1], label_N), wide[0], wide[1])
    naive = with_gradients(plain_without_scale(name, x_ND, w_CD, label_N), x_ND, w_CD)
    ours = with_gradients(built(ALL[name], classes).eval()(x_ND, w_CD, label_N), x_ND, w_CD)
    for mine, theirs, true in zip(ours, naive, truth, strict=True):
        assert (mine - true).abs().max() <= 2 * (theirs - true).abs().max() + EPS * true.abs().max()
