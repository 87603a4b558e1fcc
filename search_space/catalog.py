"""The catalog: every named loss with its formula and source.

>>> get("arcface", margin_rad=0.4).margin.m2_rad
0.4
"""

import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from search_space.named import (
    adacos_dynamic,
    adacos_fixed,
    adaface,
    adaptiveface,
    am_lfs,
    am_lfs_free,
    arcface,
    arcnegface,
    circle,
    class_size,
    combined,
    cosface,
    curricularface,
    elasticface_arc,
    elasticface_arc_plus,
    elasticface_cos,
    elasticface_cos_plus,
    focal,
    li_arcface,
    magface,
    modulating,
    modulating_bins,
    mv_am,
    mv_arc,
    npcface,
    p2sgrad,
    poly1,
    sface,
    softmax,
    sphereface,
    sphereface2_a,
    sphereface2_c,
    sphereface2_m,
    sphereface_plus,
    sphereface_r_nfn,
    sphereface_r_sfn,
    sphereface_r_v1,
    sphereface_r_v2,
    subcenter_arcface,
    uniface,
    x2_softmax,
)
from search_space.spec import LossSpec

Value = float | str | Sequence[float]


@dataclass(frozen=True, slots=True)
class Entry:
    """A named loss: its function, formula and source. T is the target's logit, n_j a negative's cosine map."""

    make: Callable[..., LossSpec]
    formula: str
    source: str

    def defaults(self) -> Mapping[str, Value]:
        """Parameters and their published defaults."""
        return {name: p.default for name, p in inspect.signature(self.make).parameters.items()}


ENTRIES: Mapping[str, Entry] = {
    "softmax": Entry(softmax, "T = s·cos θ", "NormFace, Wang et al., ACM MM 2017"),
    "sphereface": Entry(
        sphereface, "T = s·((−1)^k cos mθ − 2k), k = ⌊mθ/π⌋", "SphereFace, Liu et al., CVPR 2017, Eq. 7"
    ),
    "sphereface_plus": Entry(
        sphereface_plus,
        "SphereFace + λ·mean_{i<j} θ_ij^−2 over the classes of the batch",
        "SphereFace+, Liu et al., NeurIPS 2018",
    ),
    "sphereface_r_v1": Entry(
        sphereface_r_v1, "(lw/s)·CE, T = s·cos(min(mθ, π))", "SphereFace-R, Liu et al., TPAMI 2022, Sec. 3"
    ),
    "sphereface_r_v2": Entry(
        sphereface_r_v2, "(lw/s)·CE, T = s·cos θ, n_j = cos(θ_j/m)", "SphereFace-R, Liu et al., TPAMI 2022, Sec. 3"
    ),
    "sphereface_r_nfn": Entry(
        sphereface_r_nfn, "T = ‖x‖·cos θ, n_j = cos(θ_j/m)", "SphereFace-R, Liu et al., TPAMI 2022, Sec. 3"
    ),
    "sphereface_r_sfn": Entry(
        sphereface_r_sfn,
        "(lw/s)·CE + t·|‖x‖ − s|, T = ‖x‖·cos θ, n_j = cos(θ_j/m)",
        "SphereFace-R, Liu et al., TPAMI 2022, Sec. 3",
    ),
    "cosface": Entry(cosface, "T = s·(cos θ − m)", "CosFace, Wang et al., CVPR 2018, Eq. 4"),
    "arcface": Entry(arcface, "T = s·cos(θ + m); s·(cos θ − m sin m) past π", "ArcFace, Deng et al., CVPR 2019, Eq. 3"),
    "combined": Entry(combined, "T = s·(cos(m1·θ + m2) − m3)", "ArcFace, Deng et al., CVPR 2019, Eq. 4"),
    "li_arcface": Entry(
        li_arcface, "T = s·(1 − 2(θ + m)/π), n_j = 1 − 2θ_j/π", "AirFace, Li et al., ICCV Workshops 2019"
    ),
    "x2_softmax": Entry(x2_softmax, "T = s·(a(θ − h)² + k)", "X2-Softmax, Xu et al., Expert Systems with Appl. 2024"),
    "subcenter_arcface": Entry(
        subcenter_arcface, "ArcFace on cos θ_j = max_k ⟨x, w_jk⟩", "Sub-center ArcFace, Deng et al., ECCV 2020"
    ),
    "modulating": Entry(
        modulating, "−log(h·p), h = 1/(a·p + 1 − a), a = 1 − e^(s·m)", "Wang et al., ICML 2020, Eqs. 5-8"
    ),
    "modulating_bins": Entry(
        modulating_bins, "−log(h(a(p), p)·p), a(p) = 1 − e^(s·m_k) in bin k of p", "Wang et al., ICML 2020, Eqs. 5-8"
    ),
    "am_lfs": Entry(am_lfs, "−log τ(p), T = s·t(cos θ); t by knots, τ by slopes", "after AM-LFS, Li et al., ICCV 2019"),
    "am_lfs_free": Entry(
        am_lfs_free,
        "−log τ(p), T = s·t(cos θ); t, τ = slope_k·x + offset_k on each piece",
        "AM-LFS, Li et al., ICCV 2019",
    ),
    "poly1": Entry(poly1, "−log p + ε(1 − p), T = s·cos θ", "PolyLoss, Leng et al., ICLR 2022"),
    "focal": Entry(focal, "−(1 − p)^γ log p, T = s·cos θ", "Focal loss, Lin et al., ICCV 2017, Eq. 4"),
    "mv_am": Entry(
        mv_am,
        "T = s·f, f = cos θ − m; n_j = (1 + t)c_j + t (fixed: c_j + t) where c_j > f",
        "MV-Softmax, Wang et al., AAAI 2020",
    ),
    "mv_arc": Entry(
        mv_arc,
        "T = s·f, f = cos(θ + m); n_j = (1 + t)c_j + t (fixed: c_j + t) where c_j > f",
        "MV-Softmax, Wang et al., AAAI 2020",
    ),
    "curricularface": Entry(
        curricularface,
        "ArcFace; n_j = c_j(t + c_j) where c_j > cos(θ + m), t ← .01·mean cos θ + .99·t",
        "CurricularFace, Huang et al., CVPR 2020",
    ),
    "npcface": Entry(
        npcface,
        "T = s·cos(θ + m0 + m1·mean hard c_j) where cos θ > 0; n_j = t·c_j + a where c_j > cos(θ + m)",
        "NPCFace, Zeng et al., 2020",
    ),
    "arcnegface": Entry(
        arcnegface,
        "T = s·f, f = cos(θ + m); n_j = t_j·c_j + t_j − 1, t_j = α·exp(−(c_j − f)²/σ)",
        "ArcNegFace, Liu et al., ICCV Workshops 2019",
    ),
    "circle": Entry(
        circle,
        "T = γ[1 + m − c]₊(c − 1 + m), ℓ_j = γ[c_j + m]₊(c_j − m)",
        "Circle Loss, Sun et al., CVPR 2020, Eq. 8",
    ),
    "elasticface_arc": Entry(
        elasticface_arc, "T = s·cos(θ + m_i), m_i ~ N(m, σ)", "ElasticFace, Boutros et al., CVPR Workshops 2022"
    ),
    "elasticface_arc_plus": Entry(
        elasticface_arc_plus,
        "T = s·cos(θ + m_i), m_i ~ N(m, σ), the smallest to the highest cos θ",
        "ElasticFace, Boutros et al., CVPR Workshops 2022",
    ),
    "elasticface_cos": Entry(
        elasticface_cos, "T = s·(cos θ − m_i), m_i ~ N(m, σ)", "ElasticFace, Boutros et al., CVPR Workshops 2022"
    ),
    "elasticface_cos_plus": Entry(
        elasticface_cos_plus,
        "T = s·(cos θ − m_i), m_i ~ N(m, σ), the smallest to the highest cos θ",
        "ElasticFace, Boutros et al., CVPR Workshops 2022",
    ),
    "magface": Entry(
        magface,
        "T = s·cos(θ + m(‖x‖)) where cos θ > 0; + λ(a/u² + 1/a), a = clamp(‖x‖, l, u)",
        "MagFace, Meng et al., CVPR 2021",
    ),
    "adaface": Entry(
        adaface,
        "T = s·(cos(clip(θ − m·k)) − m − m·k), k = clip((‖x‖ − μ)/σ·h, −1, 1)",
        "AdaFace, Kim et al., CVPR 2022",
    ),
    "adaptiveface": Entry(
        adaptiveface, "T = s·(cos θ − m_y), m learned; + λ(1 − mean m)", "AdaptiveFace, Liu et al., CVPR 2019"
    ),
    "class_size": Entry(
        class_size,
        "T = s·cos(θ + a·n_y^−λ + b), n_y images of the class",
        "Ha et al., Google Landmark Recognition 2020, arXiv:2010.05350",
    ),
    "adacos_fixed": Entry(adacos_fixed, "T = s·cos θ, s = √2·log(C − 1)", "AdaCos, Zhang et al., CVPR 2019, Sec. 3.2"),
    "adacos_dynamic": Entry(
        adacos_dynamic,
        "T = s·cos θ, s = log B_avg / cos(min(π/4, θ_med))",
        "AdaCos, Zhang et al., CVPR 2019, Sec. 3.3",
    ),
    "p2sgrad": Entry(p2sgrad, "½ Σ_j (cos θ_j − 1[j = y])²", "P2SGrad, Zhang et al., CVPR 2019, Sec. 4"),
    "sphereface2_c": Entry(
        sphereface2_c,
        "α·softplus(−z_y) + (1 − α)Σ softplus(z_j), z_y = s(g(c) − m) + b, z_j = s(g(c_j) + m) + b",
        "SphereFace2, Wen et al., ICLR 2022",
    ),
    "sphereface2_a": Entry(
        sphereface2_a,
        "α·softplus(−z_y) + (1 − α)Σ softplus(z_j), z_y = s·g(cos(min(θ + m, π))) + b",
        "SphereFace2, Wen et al., ICLR 2022",
    ),
    "sphereface2_m": Entry(
        sphereface2_m,
        "α·softplus(−z_y) + (1 − α)Σ softplus(z_j), z_y = s·g(cos(min(mθ, π))) + b",
        "SphereFace2, Wen et al., ICLR 2022",
    ),
    "uniface": Entry(
        uniface, "softplus(−(s(cos θ − m) − b)) + Σ softplus(s·c_j − b)", "UniFace, Zhou et al., ICCV 2023"
    ),
    "sface": Entry(
        sface,
        "−[r_y]·s·cos θ + Σ [r_j]·s·c_j, r_y = σ(k(θ − a)), r_j = σ(−k(θ_j − b))",
        "SFace, Zhong et al., TIP 2021",
    ),
}

NAMES = tuple(ENTRIES)
"""The names that `get` knows."""

__all__ = [
    "ENTRIES",
    "NAMES",
    "Entry",
    "Value",
    "adacos_dynamic",
    "adacos_fixed",
    "adaface",
    "adaptiveface",
    "am_lfs",
    "am_lfs_free",
    "arcface",
    "arcnegface",
    "circle",
    "class_size",
    "combined",
    "cosface",
    "curricularface",
    "elasticface_arc",
    "elasticface_arc_plus",
    "elasticface_cos",
    "elasticface_cos_plus",
    "focal",
    "get",
    "li_arcface",
    "magface",
    "modulating",
    "modulating_bins",
    "mv_am",
    "mv_arc",
    "npcface",
    "p2sgrad",
    "poly1",
    "sface",
    "softmax",
    "sphereface",
    "sphereface2_a",
    "sphereface2_c",
    "sphereface2_m",
    "sphereface_plus",
    "sphereface_r_nfn",
    "sphereface_r_sfn",
    "sphereface_r_v1",
    "sphereface_r_v2",
    "subcenter_arcface",
    "uniface",
    "x2_softmax",
]


def get(name: str, **parameters: Value) -> LossSpec:
    """The named loss. Raises ValueError for an unknown name or parameter, or a value that does not fit."""
    entry = ENTRIES.get(name)
    if entry is None:
        near = difflib.get_close_matches(name.lower(), NAMES, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"known are {', '.join(NAMES)}"
        raise ValueError(f"unknown loss '{name}'; {hint}")
    known = entry.defaults()
    for parameter, value in parameters.items():
        if parameter not in known:
            listed = ", ".join(known) or "none"
            raise ValueError(f"loss '{name}' has no parameter '{parameter}'; it has {listed}")
        _refuse_kind(f"parameter '{parameter}' of loss '{name}'", known[parameter], value)
    return entry.make(**parameters)


def _refuse_kind(what: str, default: Value, value: Value) -> None:
    """A number where the default is one, a list of numbers where it is a list."""
    if isinstance(default, float | int) and not _is_number(value):
        raise ValueError(f"{what} must be a number, but got {value!r}")
    if isinstance(default, tuple) and not (isinstance(value, list | tuple) and all(map(_is_number, value))):
        raise ValueError(f"{what} must be a list of numbers, but got {value!r}")


def _is_number(value: object) -> bool:
    return isinstance(value, float | int) and not isinstance(value, bool)
