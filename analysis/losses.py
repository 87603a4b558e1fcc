"""Losses in words, in numbers and as curves."""

import math
from collections.abc import Mapping

import pandas as pd
import torch
import torch.nn.functional as F

from search_space import LossSpec, catalog, target_logit
from search_space.parts import (
    AdaCosScale,
    CombinedTarget,
    ConstantMargin,
    ConstantScale,
    ModulatingTarget,
    SquaredError,
)


def parameters(spec: LossSpec) -> dict[str, float]:
    """The numbers of a loss under the names that search spaces use: u, m1, m2_rad, m3, scale, weight."""
    values: dict[str, float] = {}
    if isinstance(spec.target, ModulatingTarget):
        values["u"] = spec.target.u
    if isinstance(spec.margin, ConstantMargin):
        values |= {"m1": spec.margin.m1, "m2_rad": spec.margin.m2_rad, "m3": spec.margin.m3}
    if isinstance(spec.scale, ConstantScale):
        values["scale"] = spec.scale.value
    if spec.weight != 1:
        values["weight"] = spec.weight
    return values


def _target_in_words(spec: LossSpec) -> str:
    if isinstance(spec.target, ModulatingTarget):
        words = f"modulating u={spec.target.u:.3g}"
        if isinstance(spec.scale, ConstantScale):
            words += f" (m={spec.target.u / spec.scale.value:.3f})"
        return words
    if isinstance(spec.target, CombinedTarget) and isinstance(spec.margin, ConstantMargin):
        m1, m2_rad, m3 = spec.margin.m1, spec.margin.m2_rad, spec.margin.m3
        if m1 == 1 and m2_rad == 0:
            return f"CosFace m={m3:.3g}"
        if m1 == 1 and m3 == 0:
            return f"ArcFace m={m2_rad:.3g} rad"
        if m2_rad == 0 and m3 == 0:
            return f"SphereFace m={m1:.3g}"
        return f"combined m1={m1:.3g} m2={m2_rad:.3g} rad m3={m3:.3g}"
    return "softmax"


def describe(spec: LossSpec) -> str:
    """A loss in a few words, with every number that it has.

    >>> describe(catalog.cosface(margin=0.2, scale=16))
    'CosFace m=0.2 s=16'
    """
    if isinstance(spec.objective, SquaredError):
        words = "P2SGrad"
    elif isinstance(spec.scale, AdaCosScale):
        target = _target_in_words(spec)
        words = f"AdaCos {spec.scale.variant}" + ("" if target == "softmax" else f", {target}")
    else:
        words = _target_in_words(spec)
        if isinstance(spec.scale, ConstantScale):
            words += f" s={spec.scale.value:.3g}"
    if spec.weight != 1:
        words += f" ×{spec.weight:.3g}"
    return words + (" detached" if spec.gradient == "detached" else "")


def reference_losses(spec: LossSpec, num_classes: int) -> dict[str, LossSpec]:
    """Well-known losses to draw beside `spec`, at its scale (AdaCos's fixed one where it has none)."""
    ada_scale = math.sqrt(2) * math.log(max(num_classes - 1, 2))
    scale = spec.scale.value if isinstance(spec.scale, ConstantScale) else ada_scale
    named = {
        "softmax": catalog.softmax(scale=scale),
        "CosFace": catalog.cosface(margin=0.35, scale=scale),
        "ArcFace": catalog.arcface(margin_rad=0.5, scale=scale),
    }
    return {
        **{describe(reference): reference for reference in named.values()},
        "AdaCos at its initial scale": catalog.adacos_fixed(),
    }


def curves(losses: Mapping[str, LossSpec], *, num_classes: int) -> pd.DataFrame:
    """Target logit T and gradient −∂L/∂cos_y by target angle, one row an angle: loss, theta_deg, logit, gradient.

    L = weight·softplus(lse_neg − T(cos_y)) with every negative at 90°, so that lse_neg = log(C − 1), as after
    initialisation and as AdaCos assumes (Zhang et al. 2019, Sec. 3.2). A loss without a target logit is left out.
    """
    theta_deg = torch.arange(1, 180, dtype=torch.float64)
    lse_neg = math.log(num_classes - 1)
    frames = []
    for name, spec in losses.items():
        cos_N = torch.deg2rad(theta_deg).cos().requires_grad_()
        try:
            logit_N = target_logit(spec, cos_N, num_classes=num_classes)
        except ValueError:
            continue
        loss_N = spec.weight * F.softplus(lse_neg - logit_N, threshold=50.0)
        (grad_N,) = torch.autograd.grad(loss_N.sum(), cos_N)
        columns = {"theta_deg": theta_deg.numpy(), "logit": logit_N.detach().numpy(), "gradient": -grad_N.numpy()}
        frames.append(pd.DataFrame({"loss": name, **columns}))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()
