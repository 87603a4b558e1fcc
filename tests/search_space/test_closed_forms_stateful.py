"""Losses that track, learn or draw something follow their papers' recursions batch by batch, in plain Python.

Shapes: N batch, C classes, D embedding.
"""

import math
import statistics
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from search_space import Loss, build, catalog
from tests.search_space import closed_forms as paper
from tests.search_space.batches import Batch, Form, assert_equal, batch_at_angles, random_batch, state_of
from tests.search_space.closed_forms import geometry

PI = math.pi
C, D = 7, 5


def with_held(form: Callable[..., Tensor], *held: float | Tensor, **parameters: float) -> Form:
    """An equation with the margins, the scale or the averages that the test worked out."""
    return lambda of, _: form(of, *held, **parameters)


def tracked(loss: Loss) -> dict[str, float]:
    return {name: float(value.detach()) for name, value in state_of(loss).items()}


def batches(*counts: int, classes: int = C) -> list[Batch]:
    return [random_batch(classes, D, count, seed=seed) for seed, count in enumerate(counts)]


# AdaCos


def adacos_after(scale: float, cos_rows: list[list[float]], labels: list[int]) -> float:
    """The scale after this batch: log B_avg / cos(min(π/4, θ_med))."""
    b_avg, thetas = 0.0, []
    for row, label in zip(cos_rows, labels, strict=True):
        b_avg += sum(math.exp(scale * cos) for j, cos in enumerate(row) if j != label) / len(labels)
        thetas.append(math.acos(min(1.0, max(-1.0, row[label]))))
    return math.log(b_avg) / math.cos(min(PI / 4, statistics.median_low(thetas)))


@pytest.mark.parametrize("closeness", [0.0, 3.0], ids=["median past π/4", "median below π/4"])
@pytest.mark.parametrize(("classes", "count"), [(3, 1), (3, 6), (20, 7), (60, 32)])
def test_adacos_dynamic_follows_the_papers_recursion(closeness: float, classes: int, count: int) -> None:
    loss = build(catalog.get("adacos_dynamic"), num_classes=classes).double()
    scale = math.sqrt(2) * math.log(classes - 1)
    assert tracked(loss)["value"] == pytest.approx(scale, rel=1e-6)
    scale = tracked(loss)["value"]
    for seed in range(5):
        batch = random_batch(classes, 48, count, closeness=closeness, seed=seed)
        of = geometry(*batch)
        median_is_small = of.theta_N.median() < PI / 4
        assert median_is_small == (closeness > 0)
        scale = adacos_after(scale, of.cos_NC.tolist(), batch[2].tolist())
        assert_equal(loss, with_held(paper.softmax, scale), batch)
        assert tracked(loss)["value"] == pytest.approx(scale, rel=1e-12)


def test_adacos_dynamic_takes_the_lower_median() -> None:
    """Of two target angles the smaller counts: here it is 0, whose cosine is 1."""
    loss = build(catalog.get("adacos_dynamic"), num_classes=3)
    w_CD = torch.eye(4)[:3]
    loss(torch.eye(4)[[0, 3]], w_CD, torch.tensor([0, 1]))
    assert tracked(loss)["value"] == pytest.approx(math.log((2 + 2) / 2), rel=1e-6)


def test_adacos_backward_uses_the_scale_of_its_own_batch() -> None:
    """A second batch in between changes the buffer, not the first batch's gradient."""
    x_ND, w_CD, label_N = random_batch(6, 8, 4)
    twice, once = (build(catalog.get("adacos_dynamic"), num_classes=6) for _ in range(2))
    first_N = twice(x_ND, w_CD, label_N)
    twice(*random_batch(6, 8, 4, seed=1))
    wanted = torch.autograd.grad(once(x_ND, w_CD, label_N).sum(), x_ND)[0]
    torch.testing.assert_close(torch.autograd.grad(first_N.sum(), x_ND)[0], wanted, rtol=0, atol=0)


# CurricularFace


def test_curricularface_follows_the_papers_recursion() -> None:
    """t ← .01·mean(c_y) + .99·t, from 0, before use."""
    loss, t = build(catalog.get("curricularface"), num_classes=C).double(), 0.0
    assert tracked(loss) == {"t": 0.0}
    for batch in batches(9, 1, 4, 30):
        of = geometry(*batch)
        t = 0.01 * sum(of.c_N.tolist()) / len(of.c_N) + 0.99 * t
        assert_equal(loss, with_held(paper.curricularface, t), batch)
        assert tracked(loss)["t"] == pytest.approx(t, rel=1e-12)


def test_curricularface_backward_uses_the_t_of_its_own_batch() -> None:
    x_ND, w_CD, label_N = random_batch(C, D, 9)
    twice, once = (build(catalog.get("curricularface"), num_classes=C) for _ in range(2))
    first_N = twice(x_ND, w_CD, label_N)
    twice(*random_batch(C, D, 9, seed=1))
    wanted = torch.autograd.grad(once(x_ND, w_CD, label_N).sum(), x_ND)[0]
    torch.testing.assert_close(torch.autograd.grad(first_N.sum(), x_ND)[0], wanted, rtol=0, atol=0)


# AdaFace


def test_adaface_follows_the_released_recursion() -> None:
    """μ and the unbiased σ of the clipped norms move at .01, from 20 and 100, before use; a batch of one moves none."""
    loss, mu, sigma = build(catalog.get("adaface"), num_classes=C).double(), 20.0, 100.0
    assert tracked(loss) == {"norm_mean": 20, "norm_std": 100}
    for batch in batches(9, 1, 4, 2, 30):
        norms = [min(100.0, max(1e-3, math.hypot(*row))) for row in batch[0].tolist()]
        if len(norms) > 1:
            mu = 0.01 * statistics.fmean(norms) + 0.99 * mu
            sigma = 0.01 * statistics.stdev(norms) + 0.99 * sigma
        assert_equal(loss, with_held(paper.adaface, mu, sigma), batch)
        assert tracked(loss) == pytest.approx({"norm_mean": mu, "norm_std": sigma}, rel=1e-12)


@pytest.mark.parametrize("mean", [0.0, 100.0], ids=["all above the mean", "all below it"])
def test_adaface_clips_the_norms_and_the_angles(mean: float) -> None:
    """With k at ±1 the shifted angles leave [0, π] at both ends, where the target has no gradient."""
    loss = build(catalog.get("adaface", h=1.0), num_classes=5).double().eval()
    loss.load_state_dict({name: torch.tensor(mean if "mean" in name else 0.1) for name in loss.state_dict()})
    batch = batch_at_angles([0.1, 0.3, 0.39, 0.41, 1.5, 2.0, PI - 0.41, PI - 0.39, PI - 0.1])
    state = state_of(loss)
    assert_equal(loss, with_held(paper.adaface, state["norm_mean"], state["norm_std"], h=1), batch)
    of = geometry(*batch)
    k_N = ((of.norm_N.clamp(max=100) - mean) / 0.101).clamp(-1, 1)
    shifted_N = of.theta_N - 0.4 * k_N
    assert (shifted_N < 0).any() if mean == 0 else (shifted_N > PI).any()


# ElasticFace

DRAWN = {
    "elasticface_arc": (paper.arcface, 0.5, 0.05),
    "elasticface_arc_plus": (paper.arcface, 0.5, 0.0175),
    "elasticface_cos": (paper.cosface, 0.35, 0.05),
    "elasticface_cos_plus": (paper.cosface, 0.35, 0.02),
}


@pytest.mark.parametrize("name", DRAWN)
def test_elasticface_draws_anew_for_every_batch(name: str) -> None:
    form, mean, std = DRAWN[name]
    loss = build(catalog.get(name), num_classes=C)
    loss.generator, generator = (torch.Generator().manual_seed(3) for _ in range(2))
    for batch in batches(9, 1, 30):
        noise_N = torch.randn(len(batch[2]), generator=generator)
        margin_N = paper.elastic_margins(geometry(*batch), noise_N, mean, std, name.endswith("plus"))
        assert_equal(loss, with_held(form, margin_N), batch)


@pytest.mark.parametrize("name", DRAWN)
def test_elasticface_has_the_mean_margin_in_eval(name: str) -> None:
    form, mean, _ = DRAWN[name]
    loss = build(catalog.get(name), num_classes=C).eval()
    assert_equal(loss, with_held(form, mean), random_batch(C, D, 9))


@pytest.mark.parametrize("name", ["elasticface_arc_plus", "elasticface_cos_plus"])
def test_elasticface_plus_gives_the_easiest_sample_the_smallest_margin(name: str) -> None:
    """Rank by rank; indexing the sorted margins by argsort in place of its inverse would differ on this batch."""
    form, mean, std = DRAWN[name]
    thetas = [1.2, 0.3, 0.9, 0.6]
    batch = batch_at_angles(thetas)
    drawn = sorted(mean + std * noise for noise in torch.randn(4, generator=torch.Generator().manual_seed(8)).tolist())
    by_rank = [drawn[3], drawn[0], drawn[2], drawn[1]]  # the angles' own order, smallest first: .3, .6, .9, 1.2
    loss = build(catalog.get(name), num_classes=5)
    loss.generator = torch.Generator().manual_seed(8)
    assert_equal(loss, with_held(form, torch.tensor(by_rank, dtype=torch.float64)), batch)


# AdaM-Softmax and class sizes


def test_learned_margins_are_projected_and_taught() -> None:
    """Margins that a step took out of [0, 1] come back before use, and have the gradient of both their terms."""
    loss = build(catalog.get("adaptiveface", strength=7.0, scale=4.0), num_classes=C).double()
    assert state_of(loss)["margin_C"].tolist() == [0.0] * C
    (parameter,) = loss.parameters()
    with torch.no_grad():
        parameter.copy_(torch.tensor([-0.2, 0.3, 1.4, 1.0, 0.0, 0.7, 0.1]))
    batch = random_batch(C, D, 9)
    assert_equal(loss, lambda of, state: paper.adaptiveface(of, state["margin_C"], strength=7, s=4), batch)
    torch.testing.assert_close(
        parameter.detach(), torch.tensor([0, 0.3, 1, 1, 0, 0.7, 0.1]).double(), rtol=1e-6, atol=0
    )

    (grad_C,) = torch.autograd.grad(loss(*batch).mean(), parameter)
    of = geometry(*batch)
    margin_N = parameter.detach()[of.y_N]
    push_N = 4 * paper.one_minus_p(of, paper.logits(of, 4, "exact", of.c_N - margin_N)).detach()
    wanted_C = torch.zeros(C, dtype=torch.float64).index_add(0, of.y_N, push_N / len(push_N)) - 7 / C
    torch.testing.assert_close(grad_C, wanted_C, rtol=1e-10, atol=1e-12)


def test_class_size_margins_are_those_of_the_counts() -> None:
    """m = .5·n^−¼ + .05: a class of one image gets .55, one of ten thousand .1."""
    counts = [1, 16, 10_000, 2, 81]
    published, other = paper.class_size_margins(counts), paper.class_size_margins(counts, 0.9, 0.1, 0.5)
    assert published[:3].tolist() == pytest.approx([0.55, 0.3, 0.1])
    for spec, margin_C in (
        (catalog.get("class_size"), published),
        (catalog.get("class_size", a=0.9, b=0.1, power=0.5), other),
    ):
        loss = build(spec, num_classes=5, class_counts=counts)
        torch.testing.assert_close(state_of(loss)["margin_C"].detach(), margin_C, rtol=1e-6, atol=0)
        batch = random_batch(5, D, 9)
        assert_equal(loss, with_held(paper.arcface, margin_C[batch[2]]), batch, rtol=1e-5, atol=1e-5)


def test_what_a_loss_tracks_travels_in_its_state_dict() -> None:
    for name in ("adacos_dynamic", "curricularface", "adaface", "adaptiveface", "sphereface2_c", "uniface"):
        first, second = (build(catalog.get(name), num_classes=C).double() for _ in range(2))
        for batch in batches(9, 4):
            first(*batch)
        second.load_state_dict(first.state_dict())
        x_ND, w_CD, label_N = random_batch(C, D, 6, seed=9)
        torch.testing.assert_close(first(x_ND, w_CD, label_N), second(x_ND, w_CD, label_N), rtol=0, atol=0)


@pytest.mark.parametrize("bad", [math.inf, math.nan])
@pytest.mark.parametrize("name", ["adacos_dynamic", "adaface", "curricularface"])
def test_a_batch_that_overflowed_leaves_no_trace(name: str, bad: float) -> None:
    loss, untouched = (build(catalog.get(name), num_classes=C) for _ in range(2))
    x_ND, w_CD, label_N = (each.clone() for each in random_batch(C, D, 6, seed=0))
    x_ND[2, 1] = bad
    assert not loss(x_ND, w_CD, label_N).isfinite().all()
    for batch in batches(5, 6):
        loss(*batch)
        untouched(*batch)
    if name != "adaface" or math.isnan(bad):  # an infinite norm counts as the largest one
        assert tracked(loss) == tracked(untouched)
    assert all(map(math.isfinite, tracked(loss).values()))
