"""The pure functions that losses are made of.

Shapes: N batch, C classes, R rows of class weights, D embedding. `cos_NC` holds cosines between embeddings and class
weights, `cos_N` those of the targets. Every function returns one value a sample; the caller reduces.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from search_space.parts import GradientMode


def wide(x: Tensor, *others: Tensor) -> torch.dtype:
    """The dtype that losses are computed in: at least float32, float64 for float64 input."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    for other in others:
        dtype = torch.promote_types(dtype, other.dtype)
    return dtype


def cosines(x_ND: Tensor, w_RD: Tensor) -> Tensor:
    """Cosines N×R of raw embeddings and raw class weights, at least in float32 whatever autocast says."""
    with torch.autocast(device_type=x_ND.device.type, enabled=False):
        dtype = wide(x_ND, w_RD)
        return F.normalize(x_ND.to(dtype)) @ F.normalize(w_RD.to(dtype)).T


def norms(x_ND: Tensor) -> Tensor:
    """‖x‖ of raw embeddings, at least in float32."""
    with torch.autocast(device_type=x_ND.device.type, enabled=False):
        norm_N: Tensor = torch.linalg.vector_norm(x_ND.to(wide(x_ND)), dim=1)
        return norm_N


def nearest_center(cos_NR: Tensor, centers: int) -> Tensor:
    """Cosines N×C to the nearest of each class's centers; row j·K + k is center k of class j (Deng et al. 2020)."""
    return cos_NR if centers == 1 else cos_NR.view(len(cos_NR), cos_NR.shape[1] // centers, centers).amax(2)


def move(tracked: Tensor, new: Tensor) -> None:
    """What a loss tracks takes a new value, unless that is not finite: a batch that overflows has its step skipped by
    `torch.amp.GradScaler`, and must leave no trace here either."""
    tracked.copy_(torch.where(new.isfinite(), new, tracked))


def angle(cos_N: Tensor) -> Tensor:
    """θ = arccos(cos) in radians, with a gradient that stays finite at ±1.

    dθ/dcos = −1/sin θ, its sine floored at the square root of the dtype's resolution; the value is not clamped away
    from 0 or π. First derivatives only.
    """
    exact = cos_N.detach().clamp(-1.0, 1.0)
    floor = torch.finfo(cos_N.dtype).eps ** 0.5
    sine = ((1.0 - exact) * (1.0 + exact)).clamp_min(floor * floor).sqrt()
    return exact.acos() - (cos_N - cos_N.detach()) / sine


def straight_through(cos: Tensor, mapped: Tensor, gradient: GradientMode) -> Tensor:
    """`mapped`, or for `detached` its value with the gradient of `cos` (characteristic gradient detachment)."""
    return mapped if gradient == "exact" else cos + (mapped - cos).detach()


def mapped_through(n: Callable[[Tensor], Tensor], gradient: GradientMode, cos: Tensor) -> Tensor:
    """n(cos), its gradient as `gradient` says."""
    return straight_through(cos, n(cos), gradient)


def gather_target(value_NC: Tensor, label_N: Tensor) -> Tensor:
    """The target's column, N."""
    return value_NC.gather(1, label_N[:, None]).squeeze(1)


def log_sum_exp_negatives(logit_NC: Tensor, label_N: Tensor) -> Tensor:
    """lse_neg = log Σ_{j≠y} exp(ℓ_j)."""
    return logit_NC.scatter(1, label_N[:, None], -torch.inf).logsumexp(1)


def sum_negatives(value_NC: Tensor, label_N: Tensor) -> Tensor:
    """Σ_{j≠y} of a value."""
    return value_NC.scatter(1, label_N[:, None], 0.0).sum(1)


def softplus(x: Tensor) -> Tensor:
    """log(1 + e^x), exact to rounding: −log p_m = softplus(lse_neg − T) never subtracts a probability from 1."""
    return F.softplus(x, threshold=50.0)


def squared_error(cos_NC: Tensor, label_N: Tensor) -> Tensor:
    """½ Σ_j (cos_j − 1[j = y])², whose gradient is P2SGrad's (Zhang et al., CVPR 2019, Eq. 12)."""
    label_N1 = label_N[:, None]
    residual_NC = cos_NC.scatter(1, label_N1, cos_NC.gather(1, label_N1) - 1.0)
    return 0.5 * residual_NC.square().sum(1)


def with_gradient(value_N: Tensor, surrogate_N: Tensor) -> Tensor:
    """`value` with the gradient of `surrogate`."""
    return value_N.detach() + surrogate_N - surrogate_N.detach()
