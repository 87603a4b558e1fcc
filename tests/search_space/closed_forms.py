"""The catalog's losses, each written from its paper's equation in plain torch: what the product is held to.

`form(geometry(x_ND, w_RD, y_N), ...) -> loss_N`, with what the loss tracks or learns as arguments. Defaults are the
published ones. Where a paper stops a gradient there is a `.detach()`; `gradient="detached"` passes every map ψ as
c + sg[ψ − c] (SphereFace-R's characteristic gradient detachment). Meant for float64; nothing here calls the product.

Shapes: N batch, C classes, D embedding, K centers a class, R = C·K rows of weights. Angles θ are radians.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Literal

import torch
from torch import Tensor

PI = math.pi
Mode = Literal["exact", "detached"]
Variant = Literal["adaptive", "fixed"]


@dataclass(frozen=True, slots=True)
class Geometry:
    """What the equations speak of: c_j = cos θ_j, c = cos θ of the target, ‖x‖, and which entries are targets."""

    cos_NC: Tensor
    theta_NC: Tensor
    is_y_NC: Tensor
    c_N: Tensor
    theta_N: Tensor
    norm_N: Tensor
    unit_RD: Tensor
    y_N: Tensor


def geometry(x_ND: Tensor, w_RD: Tensor, y_N: Tensor, *, centers: int = 1) -> Geometry:
    """Class j's centers are rows j·K to j·K + K − 1; the closest one counts."""
    unit_ND, unit_RD = (rows / rows.square().sum(1, keepdim=True).sqrt() for rows in (x_ND, w_RD))
    cos_NC = (unit_ND @ unit_RD.T).reshape(len(x_ND), -1, centers).max(2).values
    theta_NC, rows_N = angle(cos_NC), torch.arange(len(y_N))
    return Geometry(
        cos_NC=cos_NC,
        theta_NC=theta_NC,
        is_y_NC=y_N[:, None] == torch.arange(cos_NC.shape[1]),
        c_N=cos_NC[rows_N, y_N],
        theta_N=theta_NC[rows_N, y_N],
        norm_N=x_ND.square().sum(1).sqrt(),
        unit_RD=unit_RD,
        y_N=y_N,
    )


def angle(cos: Tensor) -> Tensor:
    """arccos; at the tips of its cone (cos = ±1 but for rounding), where it has no derivative, that is taken as 0."""
    smooth = cos.detach().abs() < 1 - 1e-14
    return torch.where(smooth, torch.where(smooth, cos, 0.0).acos(), cos.detach().clamp(-1, 1).acos())


def passed(psi: Tensor, cos: Tensor, gradient: Mode) -> Tensor:
    return psi if gradient == "exact" else cos + (psi - cos).detach()


def logits(
    of: Geometry, s: float | Tensor, gradient: Mode, f_N: Tensor | None = None, n_NC: Tensor | None = None
) -> Tensor:
    """ℓ_y = s·f and ℓ_j = s·n_j; a map that is not given is the cosine itself."""
    f_N = of.c_N if f_N is None else passed(f_N, of.c_N, gradient)
    n_NC = of.cos_NC if n_NC is None else passed(n_NC, of.cos_NC, gradient)
    return s * torch.where(of.is_y_NC, f_N[:, None], n_NC)


def log_p(of: Geometry, logit_NC: Tensor) -> Tensor:
    """log softmax(ℓ)_y."""
    return torch.where(of.is_y_NC, logit_NC, 0.0).sum(1) - logit_NC.logsumexp(1)


def one_minus_p(of: Geometry, logit_NC: Tensor) -> Tensor:
    """1 − softmax(ℓ)_y, as the sum of the others' probabilities."""
    return torch.where(of.is_y_NC, 0.0, logit_NC.softmax(1)).sum(1)


def folded(phi: Tensor) -> Tensor:
    """(−1)^k cos φ − 2k on [kπ, (k + 1)π], interval by interval."""
    value = phi.cos()
    for k, sign in ((1, -1), (2, 1), (3, -1), (4, 1)):
        value = torch.where(phi > k * PI, sign * phi.cos() - 2 * k, value)
    return value


def arc(of: Geometry, m: float | Tensor) -> Tensor:
    """cos(θ + m), and c − m sin m where θ > π − m."""
    m = torch.as_tensor(m, dtype=of.c_N.dtype)
    return torch.where(of.theta_N > PI - m, of.c_N - m * m.sin(), (of.theta_N + m).cos())


# Target maps


def softmax(of: Geometry, s: float | Tensor = 30, gradient: Mode = "exact") -> Tensor:
    return -log_p(of, logits(of, s, gradient))


def sphereface(of: Geometry, m: float = 1.5, s: float = 30, gradient: Mode = "detached") -> Tensor:
    return -log_p(of, logits(of, s, gradient, folded(m * of.theta_N)))


def sphereface_plus(
    of: Geometry, m: float = 1.5, s: float = 30, strength: float = 0.1, gradient: Mode = "detached"
) -> Tensor:
    """SphereFace + λ·mean of θ_ij^−2 over the pairs of classes in the batch."""
    pairs = combinations(sorted(set(of.y_N.tolist())), 2)
    energies = [(of.unit_RD[i] @ of.unit_RD[j]).acos() ** -2 for i, j in pairs]
    energy = torch.stack(energies).mean() if energies else 0.0
    return sphereface(of, m, s, gradient) + strength * energy


def sphereface_r_v1(of: Geometry, m: float = 1.4, s: float = 60, lw: float = 50, gradient: Mode = "detached") -> Tensor:
    """HFN: the loss × lw/s."""
    return lw / s * -log_p(of, logits(of, s, gradient, (m * of.theta_N).clamp(max=PI).cos()))


def sphereface_r_v2(of: Geometry, m: float = 1.4, s: float = 60, lw: float = 50, gradient: Mode = "detached") -> Tensor:
    return lw / s * -log_p(of, logits(of, s, gradient, n_NC=(of.theta_NC / m).cos()))


def sphereface_r_nfn(of: Geometry, m: float = 1.4, gradient: Mode = "detached") -> Tensor:
    """No feature normalisation: the scale is ‖x‖, which takes part in the gradient."""
    return -log_p(of, logits(of, of.norm_N[:, None], gradient, n_NC=(of.theta_NC / m).cos()))


def sphereface_r_sfn(
    of: Geometry, m: float = 1.4, s: float = 60, t: float = 0.01, lw: float = 50, gradient: Mode = "detached"
) -> Tensor:
    """Soft feature normalisation."""
    return lw / s * sphereface_r_nfn(of, m, gradient) + t * (of.norm_N - s).abs()


def cosface(of: Geometry, m: float | Tensor = 0.35, s: float = 64, gradient: Mode = "exact") -> Tensor:
    return -log_p(of, logits(of, s, gradient, of.c_N - m))


def arcface(of: Geometry, m: float | Tensor = 0.5, s: float = 64, gradient: Mode = "exact") -> Tensor:
    """Sub-center ArcFace too, where the geometry has several centers."""
    return -log_p(of, logits(of, s, gradient, arc(of, m)))


def unguarded_arcface(of: Geometry, m: float = 0.5, s: float = 64, gradient: Mode = "detached") -> Tensor:
    """ArcFace as insightface's arcface_torch has it."""
    return -log_p(of, logits(of, s, gradient, (of.theta_N + m).cos()))


def combined(
    of: Geometry, m1: float = 1, m2: float = 0.3, m3: float = 0.2, s: float = 64, gradient: Mode = "exact"
) -> Tensor:
    return -log_p(of, logits(of, s, gradient, folded(m1 * of.theta_N + m2) - m3))


def li_arcface(of: Geometry, m: float = 0.45, s: float = 64, gradient: Mode = "exact") -> Tensor:
    return -log_p(of, logits(of, s, gradient, 1 - 2 * (of.theta_N + m) / PI, 1 - 2 * of.theta_NC / PI))


def x2_softmax(
    of: Geometry, a: float = -0.9, h: float = 0, k: float = 0.65, s: float = 64, gradient: Mode = "detached"
) -> Tensor:
    return -log_p(of, logits(of, s, gradient, a * (of.theta_N - h) ** 2 + k))


def circle(of: Geometry, m: float = 0.25, gamma: float = 256, gradient: Mode = "exact") -> Tensor:
    f_N = (1 + m - of.c_N).clamp(min=0).detach() * (of.c_N - (1 - m))
    n_NC = (of.cos_NC + m).clamp(min=0).detach() * (of.cos_NC - m)
    return -log_p(of, logits(of, gamma, gradient, f_N, n_NC))


def modulating(of: Geometry, m: float = 0.2, s: float = 32, gradient: Mode = "exact") -> Tensor:
    """−log(h·p), h = 1/(a·p + 1 − a), a = 1 − e^(s·m), p the plain softmax probability.

    With a·p + 1 − a = p + e^(s·m)·(1 − p). A constant a has no gradient to stop: both modes are this.
    """
    logit_NC = s * of.cos_NC
    log_p_N = log_p(of, logit_NC)
    return torch.logaddexp(log_p_N, s * m + one_minus_p(of, logit_NC).log()) - log_p_N


def modulating_bins(of: Geometry, m: Sequence[float] = (0.2,) * 10, s: float = 32, gradient: Mode = "exact") -> Tensor:
    """The margin is m_k where p, the plain softmax probability, lies in [k/K, (k + 1)/K)."""
    p_N = log_p(of, s * of.cos_NC).exp()
    m_N = torch.tensor([m[min(int(len(m) * p), len(m) - 1)] for p in p_N.tolist()], dtype=p_N.dtype)
    return cosface(of, m_N, s, gradient)


# Negative maps


def mv_am(
    of: Geometry,
    m: float = 0.35,
    t: float = 0.2,
    variant: Variant = "adaptive",
    s: float = 32,
    gradient: Mode = "exact",
) -> Tensor:
    return _mv_softmax(of, of.c_N - m, t, variant, s, gradient)


def mv_arc(
    of: Geometry,
    m: float = 0.35,
    t: float = 0.2,
    variant: Variant = "adaptive",
    s: float = 32,
    gradient: Mode = "exact",
) -> Tensor:
    return _mv_softmax(of, arc(of, m), t, variant, s, gradient)


def _mv_softmax(of: Geometry, f_N: Tensor, t: float, variant: Variant, s: float, gradient: Mode) -> Tensor:
    hard_NC = (1 + t) * of.cos_NC + t if variant == "adaptive" else of.cos_NC + t
    n_NC = torch.where(of.cos_NC > f_N[:, None], hard_NC, of.cos_NC)
    return -log_p(of, logits(of, s, gradient, f_N, n_NC))


def curricularface(of: Geometry, t: float | Tensor, m: float = 0.5, s: float = 64, gradient: Mode = "exact") -> Tensor:
    """`t` is the mean that this batch has already moved."""
    hard_NC = of.cos_NC > (of.theta_N + m).cos()[:, None]
    n_NC = torch.where(hard_NC, of.cos_NC * (t + of.cos_NC), of.cos_NC)
    return -log_p(of, logits(of, s, gradient, arc(of, m), n_NC))


def npcface(
    of: Geometry,
    m: float = 0.5,
    m0: float = 0.4,
    m1: float = 0.2,
    t: float = 1.1,
    a: float = 0.2,
    s: float = 64,
    gradient: Mode = "exact",
) -> Tensor:
    """m̃_i = m0 + m1·(mean of the hard negatives' cosines), m0 where there is none."""
    hard_NC = (of.cos_NC > (of.theta_N + m).cos()[:, None]) & ~of.is_y_NC
    rows = zip(of.cos_NC.detach(), hard_NC, strict=True)
    m_N = torch.stack([m0 + m1 * (cos_C[hard_C].mean() if hard_C.any() else 0 * cos_C[0]) for cos_C, hard_C in rows])
    f_N = torch.where(of.c_N > 0, (of.theta_N + m_N).cos(), of.c_N)
    return -log_p(of, logits(of, s, gradient, f_N, torch.where(hard_NC, t * of.cos_NC + a, of.cos_NC)))


def arcnegface(
    of: Geometry, m: float = 0.5, alpha: float = 1.2, sigma: float = 2, s: float = 64, gradient: Mode = "exact"
) -> Tensor:
    f_N = arc(of, m)
    t_NC = (alpha * torch.exp(-((of.cos_NC - f_N[:, None]) ** 2) / sigma)).detach()
    return -log_p(of, logits(of, s, gradient, f_N, t_NC * of.cos_NC + t_NC - 1))


# Margins of a sample or a class


def magface(
    of: Geometry,
    l_a: float = 10,
    u_a: float = 110,
    l_m: float = 0.45,
    u_m: float = 0.8,
    strength: float = 35,
    s: float = 64,
    gradient: Mode = "exact",
) -> Tensor:
    """m(a) is linear in a = ‖x‖ clamped to [l_a, u_a], and so is part of the gradient; + λ(a/u_a² + 1/a)."""
    a_N = of.norm_N.clamp(l_a, u_a)
    m_N = l_m + (u_m - l_m) / (u_a - l_a) * (a_N - l_a)
    f_N = torch.where(of.c_N > 0, (of.theta_N + m_N).cos(), of.c_N)
    return -log_p(of, logits(of, s, gradient, f_N)) + strength * (a_N / u_a**2 + 1 / a_N)


def adaface(
    of: Geometry,
    mu: float | Tensor,
    sigma: float | Tensor,
    m: float = 0.4,
    h: float = 0.333,
    s: float = 64,
    gradient: Mode = "exact",
) -> Tensor:
    """μ and σ of the norms, as this batch has already moved them; ε = 1e-3 as in the released code."""
    norm_N = of.norm_N.clamp(1e-3, 100).detach()
    k_N = ((norm_N - mu) / (sigma + 1e-3) * h).clamp(-1, 1)
    g_ang_N, g_add_N = -m * k_N, m + m * k_N
    return -log_p(of, logits(of, s, gradient, (of.theta_N + g_ang_N).clamp(1e-3, PI - 1e-3).cos() - g_add_N))


def elastic_margins(of: Geometry, noise_N: Tensor, mean: float, std: float, plus: bool) -> Tensor:
    """mean + std·noise; "+" gives the smallest of them to the highest target cosine, and so on down."""
    drawn = [mean + std * noise for noise in noise_N.tolist()]
    if plus:
        easiest_first = of.c_N.detach().argsort(descending=True).tolist()
        drawn = [margin for _, margin in sorted(zip(easiest_first, sorted(drawn), strict=True))]
    return torch.tensor(drawn, dtype=of.c_N.dtype)


def adaptiveface(
    of: Geometry, margin_C: Tensor, strength: float = 70, s: float = 30, gradient: Mode = "exact"
) -> Tensor:
    """AdaM: a learned margin for each class + λ(1 − their mean)."""
    return cosface(of, margin_C[of.y_N], s, gradient) + strength * (1 - margin_C.mean())


def class_size_margins(counts: Sequence[int], a: float = 0.5, b: float = 0.05, power: float = 0.25) -> Tensor:
    """a·n^−λ + b of each class, n the number of its images."""
    return torch.tensor([a * math.pow(n, -power) + b for n in counts], dtype=torch.float64)


# Objectives


def poly1(of: Geometry, epsilon: float = 1, s: float = 30, gradient: Mode = "exact") -> Tensor:
    logit_NC = logits(of, s, gradient)
    return -log_p(of, logit_NC) + epsilon * one_minus_p(of, logit_NC)


def focal(of: Geometry, gamma: float = 2, s: float = 30, gradient: Mode = "exact") -> Tensor:
    logit_NC = logits(of, s, gradient)
    return one_minus_p(of, logit_NC) ** gamma * -log_p(of, logit_NC)


def piecewise(z_N: Tensor, slopes: Sequence[float], offsets: Sequence[float], low: float, high: float) -> Tensor:
    """a_k·z + b_k on the k-th of M equal intervals of [low, high]."""
    count = len(slopes)
    bins = [max(0, min(math.floor(count * (z - low) / (high - low)), count - 1)) for z in z_N.tolist()]
    a_N, b_N = (torch.tensor([values[k] for k in bins], dtype=z_N.dtype) for values in (slopes, offsets))
    return a_N * z_N + b_N


def am_lfs_free(
    of: Geometry,
    t_slopes: Sequence[float] = (1,) * 10,
    t_offsets: Sequence[float] = (0,) * 10,
    tau_slopes: Sequence[float] = (1,) * 10,
    tau_offsets: Sequence[float] = (0,) * 10,
    s: float = 30,
    gradient: Mode = "exact",
) -> Tensor:
    """−log τ(p_m), t the target map, τ kept above 1e-8."""
    p_N = log_p(of, logits(of, s, gradient, piecewise(of.c_N, t_slopes, t_offsets, -1, 1))).exp()
    return -piecewise(p_N, tau_slopes, tau_offsets, 0, 1).clamp(min=1e-8).log()


def am_lfs(
    of: Geometry,
    t: Sequence[float] = (-1, -0.8, -0.6, -0.4, -0.2, 0, 0.2, 0.4, 0.6, 0.8, 1),
    tau: Sequence[float] = (1,) * 10,
    s: float = 30,
    gradient: Mode = "exact",
) -> Tensor:
    """t through M + 1 equally spaced knots of [−1, 1]; τ(0) = 0 and M slopes on [0, 1]."""
    width = 2 / (len(t) - 1)
    t_slopes = [(right - left) / width for left, right in pairwise(t)]
    t_offsets = [t[k] - slope * (k * width - 1) for k, slope in enumerate(t_slopes)]
    tau_offsets = [(sum(tau[:k]) - k * slope) / len(tau) for k, slope in enumerate(tau)]
    p_N = log_p(of, logits(of, s, gradient, piecewise(of.c_N, t_slopes, t_offsets, -1, 1))).exp()
    return -piecewise(p_N, tau, tau_offsets, 0, 1).log()


def p2sgrad(of: Geometry, weight: float = 1) -> Tensor:
    return weight / 2 * ((of.cos_NC - of.is_y_NC.to(of.cos_NC.dtype)) ** 2).sum(1)


def sface(of: Geometry, s: float = 64, k: float = 80, a: float = 0.8, b: float = 1.23) -> Tensor:
    r_y_N = (1 / (1 + torch.exp(-k * (of.theta_N - a)))).detach()
    r_NC = (1 / (1 + torch.exp(k * (of.theta_NC - b)))).detach()
    return -r_y_N * s * of.c_N + torch.where(of.is_y_NC, 0.0, r_NC * s * of.cos_NC).sum(1)


def softplus(z: Tensor) -> Tensor:
    return torch.logaddexp(z, torch.zeros_like(z))


def uniface(of: Geometry, bias: Tensor, m: float = 0.4, s: float = 64, gradient: Mode = "exact") -> Tensor:
    f_N = passed(of.c_N - m, of.c_N, gradient)
    return softplus(-(s * f_N - bias)) + torch.where(of.is_y_NC, 0.0, softplus(s * of.cos_NC - bias)).sum(1)


def sphereface2(
    of: Geometry,
    bias: Tensor,
    kind: Literal["c", "a", "m"],
    m: float,
    alpha: float = 0.7,
    r: float = 40,
    t: float = 3,
    lw: float = 50,
    gradient: Mode = "detached",
) -> Tensor:
    """Mean over the C classes of (lw·C/r)·[α softplus(−z_y) or (1 − α) softplus(z_j)], z = r·ψ + b."""

    def g(z: Tensor) -> Tensor:
        return 2 * ((z + 1) / 2).clamp(min=0) ** t - 1

    if kind == "c":
        f_N, n_NC = g(of.c_N) - m, g(of.cos_NC) + m
    else:
        phi_N = of.theta_N + m if kind == "a" else m * of.theta_N
        f_N, n_NC = g(phi_N.clamp(max=PI).cos()), g(of.cos_NC)
    z_NC = logits(of, r, gradient, f_N, n_NC) + bias
    each_NC = torch.where(of.is_y_NC, alpha * softplus(-z_NC), (1 - alpha) * softplus(z_NC))
    return lw * z_NC.shape[1] / r * each_NC.mean(1)
