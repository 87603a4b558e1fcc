"""Properties of every loss that can be composed, not only of the named ones (float64).

Shapes: N batch, C classes, K centers, R = C·K rows of weights, D embedding.
"""

import json
import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from search_space import Loss, LossSpec, build, parts
from tests.search_space.batches import random_batch
from tests.search_space.strategies import (
    NEGATIVES,
    SCALE_PROVIDERS,
    SOFTMAX_OBJECTIVES,
    TARGETS,
    softmax_specs,
    specs,
)

UNHURRIED = settings(deadline=None, derandomize=True, max_examples=300)

C, D, N = 7, 5, 9
COUNTS = (1, 3, 20, 700, 45, 6, 90)
PLAIN_NEGATIVES = st.just(parts.IdentityNegative())


def loss_of(spec: LossSpec, *, classes: int = C, training: bool = True, seed: int = 0) -> Loss:
    """The loss in float64, drawing from a fixed seed."""
    loss = build(spec, num_classes=classes, class_counts=COUNTS[:classes]).double().train(training)
    loss.generator = torch.Generator().manual_seed(seed)
    return loss


def batch_of(spec: LossSpec, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    return random_batch(C, D, N, centers=spec.centers, seed=seed)


def cosines(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    cos_NC = torch.rand(N, C, dtype=torch.float64, generator=generator) * 1.9 - 0.95
    return cos_NC.requires_grad_(), torch.randint(C, (N,), generator=generator)


def target_of(value_NC: Tensor, label_N: Tensor) -> Tensor:
    return value_NC.gather(1, label_N[:, None]).squeeze(1)


@given(specs())
@UNHURRIED
def test_any_spec_survives_json_and_keeps_its_digest(spec: LossSpec) -> None:
    again = LossSpec.model_validate_json(spec.model_dump_json())
    assert again == spec
    assert again.digest() == spec.digest()
    assert again.model_dump_json() == spec.model_dump_json()
    assert LossSpec.model_validate(json.loads(json.dumps(spec.model_dump(mode="json")))) == spec
    assert spec.replace() == spec
    assert spec.replace(weight=spec.weight / 2).digest() != spec.digest()


@given(specs(), st.permutations(range(C)), st.booleans())
@UNHURRIED
def test_the_order_of_the_classes_does_not_matter(spec: LossSpec, order: list[int], training: bool) -> None:
    """Row `order[j]` of the weights becomes row j; so do learned margins and image counts."""
    x_ND, w_RD, label_N = batch_of(spec)
    loss = loss_of(spec, training=training)
    reordered = build(spec, num_classes=C, class_counts=[COUNTS[j] for j in order]).double().train(training)
    reordered.generator = torch.Generator().manual_seed(0)
    order_C = torch.tensor(order)
    for name, parameter in loss.named_parameters():
        with torch.no_grad():
            if parameter.ndim == 1:
                parameter.copy_(torch.linspace(0, 1, C))
                reordered.get_parameter(name).copy_(parameter[order_C])
    w_CKD = w_RD.view(C, spec.centers, D)
    loss_N = loss(x_ND, w_RD, label_N)
    reordered_N = reordered(x_ND, w_CKD[order_C].flatten(0, 1), order_C.argsort()[label_N])
    torch.testing.assert_close(reordered_N, loss_N, rtol=1e-7, atol=1e-9)
    for name, buffer in loss.named_buffers():
        if buffer.ndim == 0:
            torch.testing.assert_close(reordered.get_buffer(name), buffer, rtol=1e-9, atol=1e-12)


@given(specs(), st.permutations(range(N)))
@UNHURRIED
def test_the_order_of_the_samples_does_not_matter(spec: LossSpec, order: list[int]) -> None:
    """But for margins drawn sample by sample, which eval does not draw."""
    x_ND, w_RD, label_N = batch_of(spec)
    training = not isinstance(spec.margin, parts.RandomMargin)
    order_N = torch.tensor(order)
    loss_N = loss_of(spec, training=training)(x_ND, w_RD, label_N)
    reordered_N = loss_of(spec, training=training)(x_ND[order_N], w_RD, label_N[order_N])
    torch.testing.assert_close(reordered_N, loss_N[order_N], rtol=1e-7, atol=1e-9)


@given(specs(), st.booleans())
@UNHURRIED
def test_every_loss_and_its_gradients_are_finite(spec: LossSpec, training: bool) -> None:
    """In float32, and the loss's own state stays finite too; AdaCos may say that it has diverged, and only it."""
    loss = build(spec, num_classes=C, class_counts=COUNTS).train(training)
    x_ND, w_RD, label_N = (t.detach() if t.dtype == torch.int64 else t.detach().float() for t in batch_of(spec, seed=1))
    x_ND, w_RD = x_ND.requires_grad_(), w_RD.requires_grad_()
    loss_N = loss(x_ND, w_RD, label_N)
    if loss.diagnose():
        assert spec.scale == parts.AdaCosScale(variant="dynamic")
        return
    grads = torch.autograd.grad(loss_N.mean(), [x_ND, w_RD, *loss.parameters()])
    assert loss_N.shape == (N,)
    assert loss_N.dtype == torch.float32
    assert loss_N.isfinite().all()
    assert all(grad.isfinite().all() for grad in grads)
    assert all(value.isfinite().all() for value in loss.state_dict().values())


@given(specs(), st.floats(0.01, 1000))
@UNHURRIED
def test_scaling_the_class_weights_changes_nothing(spec: LossSpec, factor: float) -> None:
    x_ND, w_RD, label_N = batch_of(spec)
    torch.testing.assert_close(
        loss_of(spec)(x_ND, factor * w_RD, label_N), loss_of(spec)(x_ND, w_RD, label_N), rtol=1e-7, atol=1e-9
    )


@given(specs(), st.floats(1, 100))
@UNHURRIED
def test_the_weight_multiplies_the_objective_and_not_the_regularizer(spec: LossSpec, weight: float) -> None:
    x_ND, w_RD, label_N = batch_of(spec)
    one_N, two_N, three_N = (loss_of(spec.replace(weight=weight * k))(x_ND, w_RD, label_N) for k in (1, 2, 3))
    torch.testing.assert_close(three_N - two_N, two_N - one_N, rtol=1e-6, atol=1e-7)
    bare = spec.replace(regularizer=parts.NoRegularizer())
    if not isinstance(spec.scale, parts.SoftNormScale):
        objective_N = loss_of(bare.replace(weight=1))(x_ND, w_RD, label_N)
        torch.testing.assert_close(two_N - one_N, weight * objective_N, rtol=1e-6, atol=1e-6)


# A margin of 0 is the plain softmax

NEUTRAL_MARGINS: list[parts.Margin] = [
    parts.ConstantMargin(),
    parts.LearnedMargin(),
    parts.ClassSizeMargin(a=0, b=0),
    parts.MagFaceMargin(lower_rad=0, upper_rad=0),
    parts.AdaFaceMargin(m=0),
    parts.RandomMargin(on="m2_rad", mean=0, std=0.1),
    parts.RandomMargin(on="m3", mean=0, std=0.1, plus=True),
]
KNOTS = (-1.0, -0.5, 0.0, 0.5, 1.0)
NEUTRAL_TARGETS: list[tuple[parts.TargetMap, parts.Margin]] = [
    *[
        (parts.CombinedTarget(guard=guard, only_positive=only_positive), margin)
        for guard in ("monotone", "linear", "clip")
        for only_positive in (False, True)
        for margin in NEUTRAL_MARGINS
    ],
    (parts.ModulatingTarget(u=0), parts.NoMargin()),
    (parts.ModulatingBinsTarget(u=(0.0,) * 10), parts.NoMargin()),
    (parts.PiecewiseTarget(knots=KNOTS), parts.NoMargin()),
    (parts.FreePiecewiseTarget(slopes=(1, 1, 1), offsets=(0, 0, 0)), parts.NoMargin()),
    (parts.IdentityTarget(), parts.NoMargin()),
]
NEUTRAL_NEGATIVES: list[parts.NegativeMap] = [
    parts.IdentityNegative(),
    parts.MVNegative(t=0, variant="adaptive"),
    parts.MVNegative(t=0, variant="fixed"),
    parts.NPCNegative(t=1, a=0),
    parts.SphereFaceRNegative(m=1),
]


@given(
    st.sampled_from(NEUTRAL_TARGETS),
    st.sampled_from(NEUTRAL_NEGATIVES),
    SCALE_PROVIDERS,
    SOFTMAX_OBJECTIVES,
    st.integers(1, 3),
)
@UNHURRIED
def test_a_margin_of_zero_is_the_plain_softmax(
    target: tuple[parts.TargetMap, parts.Margin],
    negative: parts.NegativeMap,
    scale: parts.Scale,
    objective: parts.Objective,
    centers: int,
) -> None:
    """In value and gradient, under every scale and objective (eval: margins have their mean, AdaCos is held)."""
    plain = LossSpec(scale=scale, objective=objective, centers=centers)
    neutral = plain.replace(target=target[0], margin=target[1], negative=negative)
    x_ND, w_RD, label_N = batch_of(plain)
    losses = [loss_of(spec, training=False)(x_ND, w_RD, label_N) for spec in (neutral, plain)]
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-7, atol=1e-8)
    for grad, wanted in zip(*(torch.autograd.grad(loss_N.sum(), (x_ND, w_RD)) for loss_N in losses), strict=True):
        torch.testing.assert_close(grad, wanted, rtol=1e-6, atol=1e-7)


def test_npcface_without_margins_is_the_plain_softmax() -> None:
    plain = LossSpec(scale=parts.ConstantScale(value=8))
    neutral = plain.replace(
        target=parts.CombinedTarget(only_positive=True),
        negative=parts.NPCNegative(margin_rad=0.5, t=1, a=0),
        margin=parts.HardNegativeMargin(m0_rad=0, m1_rad=0),
    )
    batch = batch_of(plain)
    torch.testing.assert_close(loss_of(neutral)(*batch), loss_of(plain)(*batch), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("objective", "neutral"),
    [
        (parts.Poly1(epsilon=0), parts.CrossEntropy()),
        (parts.Focal(gamma=0), parts.CrossEntropy()),
        (parts.PiecewiseTau(slopes=(1,) * 7), parts.CrossEntropy()),
        (parts.FreePiecewiseTau(slopes=(1,) * 7, offsets=(0,) * 7), parts.CrossEntropy()),
    ],
    ids=lambda part: part.kind,
)
@pytest.mark.parametrize("closeness", [0.0, 3.0])
def test_neutral_objectives_are_cross_entropy(
    objective: parts.Objective, neutral: parts.Objective, closeness: float
) -> None:
    x_ND, w_CD, label_N = random_batch(C, D, N, closeness=closeness)
    scale = parts.ConstantScale(value=8)
    losses = [loss_of(LossSpec(objective=each, scale=scale))(x_ND, w_CD, label_N) for each in (objective, neutral)]
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-9, atol=1e-12)
    for grad, wanted in zip(*(torch.autograd.grad(loss_N.sum(), (x_ND, w_CD)) for loss_N in losses), strict=True):
        torch.testing.assert_close(grad, wanted, rtol=1e-8, atol=1e-12)


# Identities


@given(st.floats(0, 64), SCALE_PROVIDERS.filter(lambda scale: scale.kind in ("constant", "adacos")), SOFTMAX_OBJECTIVES)
@UNHURRIED
def test_i1_a_constant_modulating_factor_is_a_cosine_margin(
    u: float, scale: parts.Scale, objective: parts.Objective
) -> None:
    """m = u/s for every scale and objective; margins above 1 are beyond CosFace's range."""
    loss = loss_of(LossSpec(target=parts.ModulatingTarget(u=u), scale=scale, objective=objective), training=False)
    cos_NC, label_N = cosines()
    margin = u / (scale.value if isinstance(scale, parts.ConstantScale) else math.sqrt(2) * math.log(C - 1))
    if margin > 1:
        return
    cosface = LossSpec(
        target=parts.CombinedTarget(), margin=parts.ConstantMargin(m3=margin), scale=scale, objective=objective
    )
    loss_N = loss.from_cosines(cos_NC, label_N)
    wanted_N = loss_of(cosface, training=False).from_cosines(cos_NC, label_N)
    torch.testing.assert_close(loss_N, wanted_N, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(
        torch.autograd.grad(loss_N.sum(), cos_NC)[0],
        torch.autograd.grad(wanted_N.sum(), cos_NC)[0],
        rtol=1e-6,
        atol=1e-8,
    )


def tau(objective: parts.Objective, p_N: Tensor) -> Tensor:
    """τ of each objective of a probability; piecewise ones slope by slope."""
    if isinstance(objective, parts.Poly1):
        return p_N * (-objective.epsilon * (1 - p_N)).exp()
    if isinstance(objective, parts.Focal):
        return p_N ** ((1 - p_N) ** objective.gamma)
    if isinstance(objective, parts.FreePiecewiseTau):
        pieces = len(objective.slopes)
        index = [min(pieces - 1, math.floor(p * pieces)) for p in p_N.tolist()]
        slope_N, offset_N = ([values[k] for k in index] for values in (objective.slopes, objective.offsets))
        return (p_N.new_tensor(slope_N) * p_N + p_N.new_tensor(offset_N)).clamp_min(1e-8)
    if isinstance(objective, parts.PiecewiseTau):
        width = 1 / len(objective.slopes)
        rises = [slope * (p_N - k * width).clamp(0, width) for k, slope in enumerate(objective.slopes)]
        return torch.stack(rises).sum(0)
    return p_N


@given(softmax_specs(scales=st.builds(parts.ConstantScale, value=st.floats(0.5, 8))))
@UNHURRIED
def test_i3_every_softmax_loss_is_its_factor_times_the_plain_probability(spec: LossSpec) -> None:
    """p_m = p/(a·p + 1 − a), a = 1 − e^{s(c_y − f)}·R, R = Σ e^{s·n_j}/Σ e^{s·c_j} over j ≠ y; L = −log τ(p_m)."""
    spec = spec.replace(regularizer=parts.NoRegularizer(), centers=1, weight=1)
    assert isinstance(spec.scale, parts.ConstantScale)
    cos_NC, label_N = cosines()
    loss = loss_of(spec, training=False)
    loss_N, logits = loss.from_cosines(cos_NC.detach(), label_N), loss.logits(cos_NC.detach(), label_N)
    plain_NC = spec.scale.value * cos_NC.detach()
    is_y_NC = torch.nn.functional.one_hot(label_N, C).bool()
    p_N = target_of(plain_NC.softmax(1), label_N)
    log_r_N = (
        logits.negative_NC.masked_fill(is_y_NC, -torch.inf).logsumexp(1)
        - plain_NC.masked_fill(is_y_NC, -torch.inf).logsumexp(1)
    )  # fmt: skip
    a_N = 1 - (target_of(plain_NC, label_N) - logits.target_N + log_r_N).exp()
    p_m_N = p_N / (a_N * p_N + 1 - a_N)
    wanted_N = -tau(spec.objective, p_m_N).log()
    seen = p_m_N > 1e-6  # below, 1 − p rounds where a test divides by it
    torch.testing.assert_close(loss_N[seen], wanted_N[seen], rtol=1e-5, atol=1e-6)


# The two gradient modes


@given(softmax_specs().filter(lambda spec: spec.gradient == "detached"), st.booleans())
@UNHURRIED
def test_the_two_gradient_modes_have_one_value(spec: LossSpec, training: bool) -> None:
    if isinstance(spec.target, parts.CombinedTarget) and spec.target.guard == "none":
        return
    batch = batch_of(spec)
    losses = [loss_of(each, training=training)(*batch) for each in (spec, spec.replace(gradient="exact"))]
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-9, atol=1e-10)


SMOOTH = TARGETS.filter(lambda target: target.kind not in ("identity", "circle"))


@given(
    softmax_specs(targets=SMOOTH, negatives=PLAIN_NEGATIVES).filter(
        lambda spec: (
            not isinstance(spec.margin, parts.LearnedMargin)
            and (not isinstance(spec.target, parts.CombinedTarget) or spec.target.guard != "none")
        )
    )
)
@UNHURRIED
def test_for_target_only_maps_the_modes_differ_by_the_derivative_of_the_map(spec: LossSpec) -> None:
    """∂L/∂c_y is f′ times the detached one, f′ by central differences; nothing else changes."""
    cos_NC, label_N = cosines(3)
    grads = {}
    for mode in ("exact", "detached"):
        loss = loss_of(spec.replace(gradient=mode), training=False)
        (grads[mode],) = torch.autograd.grad(loss.from_cosines(cos_NC, label_N).sum(), cos_NC)
    step = 1e-6
    is_y_NC = torch.nn.functional.one_hot(label_N, C).bool()
    loss = loss_of(spec, training=False)
    low_N, high_N, plain_high_N, plain_low_N = (
        logits_of.logits((cos_NC + sign * step * is_y_NC).detach(), label_N).target_N
        for logits_of, sign in (
            (loss, -1),
            (loss, 1),
            *((loss_of(LossSpec(scale=spec.scale), training=False), sign) for sign in (1, -1)),
        )
    )
    slope_N = (high_N - low_N) / (plain_high_N - plain_low_N)
    scale = grads["detached"].abs().max() * (1 + slope_N.abs().max())
    torch.testing.assert_close(grads["exact"][~is_y_NC], grads["detached"][~is_y_NC], rtol=1e-9, atol=1e-12)
    error_N = (grads["exact"][is_y_NC] - slope_N * grads["detached"][is_y_NC]).abs()
    assert (error_N <= 1e-5 * scale + 1e-9).all()


@given(softmax_specs(negatives=NEGATIVES.filter(lambda negative: negative.kind != "identity")))
@UNHURRIED
def test_detached_gradients_are_scale_times_modified_probability(spec: LossSpec) -> None:
    """With maps on both sides too: ∂L/∂c_y = −s(1 − p_m), ∂L/∂c_j = s·p_{m,j} (cross entropy)."""
    if isinstance(spec.margin, parts.LearnedMargin):
        return
    spec = spec.replace(
        gradient="detached",
        objective=parts.CrossEntropy(),
        scale=parts.ConstantScale(value=6),
        weight=1,
        regularizer=parts.NoRegularizer(),
    )
    cos_NC, label_N = cosines(4)
    loss = loss_of(spec, training=False)
    (grad_NC,) = torch.autograd.grad(loss.from_cosines(cos_NC, label_N).sum(), cos_NC)
    logits = loss.logits(cos_NC.detach(), label_N)
    share_NC = logits.negative_NC.scatter(1, label_N[:, None], logits.target_N[:, None]).softmax(1)
    wanted_NC = 6 * (share_NC - torch.nn.functional.one_hot(label_N, C))
    torch.testing.assert_close(grad_NC, wanted_NC, rtol=1e-9, atol=1e-12)
