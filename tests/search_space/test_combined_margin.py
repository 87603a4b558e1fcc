"""The combined margin cos(m1·θ + m2) − m3: all three margins at once, and what its guards do past π (float64)."""

import math
from typing import Literal

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from search_space import LossSpec, catalog, target_logit
from search_space.parts import CombinedTarget, ConstantMargin, ConstantScale

UNHURRIED = settings(deadline=None, derandomize=True)

MARGINS = st.tuples(st.floats(1, 4), st.floats(0, math.pi / 2), st.floats(0, 1))
THETA_N = torch.linspace(0, math.pi, 2001, dtype=torch.float64)


def logits_at(spec: LossSpec, theta_N: Tensor = THETA_N) -> Tensor:
    """T at each target angle, at scale 1."""
    return target_logit(spec.replace(scale=ConstantScale(value=1)), theta_N.cos(), num_classes=2)


@pytest.mark.parametrize("theta", [0.3, 1.0, 1.9])
def test_all_three_margins_count_together(theta: float) -> None:
    logit_N = logits_at(catalog.combined(1.2, 0.4, 0.15), torch.tensor([theta], dtype=torch.float64))
    assert logit_N.item() == pytest.approx(math.cos(1.2 * theta + 0.4) - 0.15, rel=1e-12)


@pytest.mark.parametrize("larger", [{"m1": 1.3}, {"m2_rad": 0.5}, {"m3": 0.25}])
def test_raising_any_one_margin_lowers_the_logit_at_every_angle(larger: dict[str, float]) -> None:
    base = {"m1": 1.2, "m2_rad": 0.4, "m3": 0.15}
    low_N, high_N = (logits_at(catalog.get("combined", **margins)) for margins in ({**base, **larger}, base))
    inside = slice(1, None) if "m1" in larger else slice(None)
    assert (low_N[inside] < high_N[inside]).all()


@given(MARGINS)
@UNHURRIED
def test_the_monotone_guard_is_continuous_and_never_rises_with_the_angle(margins: tuple[float, float, float]) -> None:
    logit_N = logits_at(catalog.combined(*margins))
    steps_N = logit_N.diff()
    step_rad = math.pi / 2000
    assert (steps_N <= 1e-7).all()
    assert (steps_N >= -margins[0] * step_rad * 1.001 - 1e-7).all()


@given(MARGINS)
@UNHURRIED
def test_the_margin_never_makes_the_task_easier(margins: tuple[float, float, float]) -> None:
    assert (logits_at(catalog.combined(*margins)) <= THETA_N.cos() + 1e-7).all()


@pytest.mark.parametrize("m", [1.0, 1.5, 1.7, 2.0, 3.0, 4.0])
def test_it_contains_sphereface_v0(m: float) -> None:
    """(−1)^k cos mθ − 2k, k = ⌊mθ/π⌋ (Liu et al. 2017, Eq. 7)."""
    wanted = [(-1) ** int(m * t / math.pi) * math.cos(m * t) - 2 * int(m * t / math.pi) for t in THETA_N[1:-1].tolist()]
    for spec in (catalog.combined(m, 0, 0), catalog.sphereface(m)):
        torch.testing.assert_close(logits_at(spec)[1:-1], torch.tensor(wanted).double(), rtol=1e-6, atol=1e-6)


def test_at_m_2_sphereface_is_a_polynomial_of_the_cosine() -> None:
    c_N = THETA_N.cos()
    torch.testing.assert_close(logits_at(catalog.sphereface(2)), 2 * c_N * c_N.abs() - 1)


def test_at_its_neutral_margins_it_is_the_plain_cosine() -> None:
    assert torch.equal(logits_at(catalog.combined(1, 0, 0)), THETA_N.cos())


@pytest.mark.parametrize("m2_rad", [0.1, 0.5, 1.5])
def test_the_linear_guard_subtracts_m_sin_m_past_pi_and_keeps_m3(m2_rad: float) -> None:
    spec = LossSpec(target=CombinedTarget(guard="linear"), margin=ConstantMargin(m2_rad=m2_rad, m3=0.1))
    logit_N, past_N = logits_at(spec), math.pi - m2_rad < THETA_N
    assert past_N.any()
    torch.testing.assert_close(logit_N[~past_N], (THETA_N[~past_N] + m2_rad).cos() - 0.1)
    torch.testing.assert_close(logit_N[past_N], THETA_N[past_N].cos() - m2_rad * math.sin(m2_rad) - 0.1)
    assert (logit_N.diff() < 1e-7).all()


@pytest.mark.parametrize("clip_rad", [0.0, 1e-3, 0.1])
@given(margins=MARGINS)
@UNHURRIED
def test_the_clip_guard_holds_the_angle_and_keeps_m3(clip_rad: float, margins: tuple[float, float, float]) -> None:
    """cos(clip(m1·θ + m2, clip, π − clip)) − m3: flat at both ends, never rising with the angle."""
    m1, m2_rad, m3 = margins
    spec = LossSpec(
        target=CombinedTarget(guard="clip", clip_rad=clip_rad), margin=ConstantMargin(m1=m1, m2_rad=m2_rad, m3=m3)
    )
    logit_N = logits_at(spec)
    held = [min(max(m1 * t + m2_rad, clip_rad), math.pi - clip_rad) for t in THETA_N[1:-1].tolist()]
    wanted_N = torch.tensor([math.cos(phi) - m3 for phi in held], dtype=torch.float64)
    torch.testing.assert_close(logit_N[1:-1], wanted_N, rtol=1e-6, atol=1e-6)
    assert (logit_N.diff() <= 1e-7).all()


@pytest.mark.parametrize("guard", ["monotone", "linear", "clip"])
def test_targets_behind_the_right_angle_have_no_margin_where_only_positive_ones_do(
    guard: Literal["monotone", "linear", "clip"],
) -> None:
    margin = ConstantMargin(m2_rad=0.5, m3=0.1)
    everywhere_N, positive_N = (
        logits_at(LossSpec(target=CombinedTarget(guard=guard, only_positive=only), margin=margin))
        for only in (False, True)
    )
    cos_N = THETA_N.cos()
    assert torch.equal(positive_N[cos_N > 0], everywhere_N[cos_N > 0])
    assert torch.equal(positive_N[cos_N <= 0], cos_N[cos_N <= 0])
    assert (everywhere_N < cos_N).all()


def test_without_a_guard_the_logit_rises_again_past_pi() -> None:
    spec = LossSpec(
        target=CombinedTarget(guard="none"), margin=ConstantMargin(m1=1.5, m2_rad=0.2, m3=0.1), gradient="detached"
    )
    logit_N = logits_at(spec)
    torch.testing.assert_close(logit_N, (1.5 * THETA_N + 0.2).cos() - 0.1)
    assert logit_N[-1] > logit_N.min() + 0.5


@pytest.mark.parametrize(("turns", "logit"), [(1, -1), (2, -3), (3, -5)])
def test_the_guard_joins_smoothly_where_phi_is_a_multiple_of_pi(turns: int, logit: float) -> None:
    """Value and derivative agree from both sides (sin φ = 0), so training that crosses the seam meets no kink."""
    seam_cos = math.cos(turns * math.pi / 4)
    cos_N = torch.tensor([seam_cos - 1e-9, seam_cos + 1e-9], dtype=torch.float64, requires_grad=True)
    logit_N = target_logit(catalog.combined(4, 0, 0, 1), cos_N, num_classes=2)
    (grad_N,) = torch.autograd.grad(logit_N.sum(), cos_N)
    assert logit_N.tolist() == pytest.approx([logit, logit], abs=1e-12)
    assert grad_N.abs().max() < 1e-6
