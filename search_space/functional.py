"""The pure functions that losses are made of.

Shapes: N batch, C classes, D embedding. `cos_NC` holds cosines between embeddings and class weights; `cos_N` those of
the targets. Every function returns one value a sample; the caller reduces.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from search_space.spec import CombinedTarget, ConstantMargin, GradientMode


def cosines(x_ND: Tensor, w_CD: Tensor) -> Tensor:
    """Cosines N×C of raw embeddings and raw class weights, at least in float32 whatever autocast says."""
    with torch.autocast(device_type=x_ND.device.type, enabled=False):
        wide = torch.promote_types(torch.promote_types(x_ND.dtype, w_CD.dtype), torch.float32)
        return F.normalize(x_ND.to(wide)) @ F.normalize(w_CD.to(wide)).T


def angle(cos_N: Tensor) -> Tensor:
    """θ = arccos(cos) in radians, with a gradient that stays finite at ±1.

    dθ/dcos = −1/sin θ, its sine floored at the square root of the dtype's resolution; the value is not clamped away
    from 0 or π. First derivatives only.
    """
    exact = cos_N.detach().clamp(-1.0, 1.0)
    floor = torch.finfo(cos_N.dtype).eps ** 0.5
    sine = ((1.0 - exact) * (1.0 + exact)).clamp_min(floor * floor).sqrt()
    return exact.acos() - (cos_N - cos_N.detach()) / sine


def combined_margin(cos_N: Tensor, margin: ConstantMargin, *, guard: str) -> Tensor:
    """f(cos) = cos φ − m3, φ = m1·θ + m2, past φ = π as `guard` says (see `CombinedTarget`)."""
    if margin.m1 == 1 and margin.m2_rad == 0:
        return cos_N - margin.m3
    theta = angle(cos_N)
    phi = margin.m1 * theta + margin.m2_rad
    if guard == "none":
        return phi.cos() - margin.m3
    if guard == "linear":
        m2_rad = torch.tensor(margin.m2_rad, dtype=cos_N.dtype, device=cos_N.device)
        return torch.where(phi > torch.pi, cos_N - m2_rad * m2_rad.sin(), phi.cos()) - margin.m3
    turns = (phi.detach() / torch.pi).floor()
    sign = 1.0 - 2.0 * (turns % 2)
    return sign * phi.cos() - 2.0 * turns - margin.m3


def straight_through(cos_N: Tensor, mapped_N: Tensor, gradient: GradientMode) -> Tensor:
    """`mapped`, or for `detached` its value with the gradient of `cos` (characteristic gradient detachment)."""
    return mapped_N if gradient == "exact" else cos_N + (mapped_N - cos_N).detach()


def log_sum_exp_negatives(logit_NC: Tensor, label_N: Tensor) -> Tensor:
    """lse_neg = log Σ_{j≠y} exp(ℓ_j)."""
    return logit_NC.scatter(1, label_N[:, None], -torch.inf).logsumexp(1)


def target_only_loss(lse_neg_N: Tensor, target_logit_N: Tensor) -> Tensor:
    """−log softmax(ℓ)_y = softplus(lse_neg − T), which never subtracts a probability from 1."""
    return F.softplus(lse_neg_N - target_logit_N, threshold=50.0)


def squared_error(cos_NC: Tensor, label_N: Tensor) -> Tensor:
    """½ Σ_j (cos_j − 1[j = y])², whose gradient is P2SGrad's (Zhang et al., CVPR 2019, Eq. 12)."""
    label_N1 = label_N[:, None]
    residual_NC = cos_NC.scatter(1, label_N1, cos_NC.gather(1, label_N1) - 1.0)
    return 0.5 * residual_NC.square().sum(1)


def target_map(cos_N: Tensor, target: CombinedTarget, margin: ConstantMargin, gradient: GradientMode) -> Tensor:
    """The combined margin under a gradient mode."""
    return straight_through(cos_N, combined_margin(cos_N, margin, guard=target.guard), gradient)
