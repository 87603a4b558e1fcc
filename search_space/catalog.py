"""Named losses: one function each, with the published defaults, that returns a `LossSpec`.

>>> get("arcface", margin_rad=0.4).margin.m2_rad
0.4
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from search_space.spec import (
    AdaCosScale,
    CombinedTarget,
    ConstantMargin,
    ConstantScale,
    GradientMode,
    LossSpec,
    ModulatingTarget,
    NoScale,
    SquaredError,
)


def softmax(scale: float = 30.0) -> LossSpec:
    """Normalised softmax without a margin."""
    return LossSpec(scale=ConstantScale(value=scale))


def sphereface(m: float = 1.5, scale: float = 30.0, gradient: GradientMode = "detached") -> LossSpec:
    """Multiplicative angular margin m1 = m, SphereFace v0."""
    return LossSpec(
        target=CombinedTarget(),
        margin=ConstantMargin(m1=m),
        scale=ConstantScale(value=scale),
        gradient=gradient,
    )


def cosface(margin: float = 0.35, scale: float = 64.0) -> LossSpec:
    """Additive cosine margin m3 = margin."""
    return LossSpec(target=CombinedTarget(), margin=ConstantMargin(m3=margin), scale=ConstantScale(value=scale))


def arcface(margin_rad: float = 0.5, scale: float = 64.0, gradient: GradientMode = "exact") -> LossSpec:
    """Additive angular margin m2 = margin_rad, linear past π."""
    return LossSpec(
        target=CombinedTarget(guard="linear"),
        margin=ConstantMargin(m2_rad=margin_rad),
        scale=ConstantScale(value=scale),
        gradient=gradient,
    )


def combined(
    m1: float = 1.0,
    m2_rad: float = 0.3,
    m3: float = 0.2,
    scale: float = 64.0,
    gradient: GradientMode = "exact",
) -> LossSpec:
    """All three margins at once, continuous and monotone past π."""
    return LossSpec(
        target=CombinedTarget(),
        margin=ConstantMargin(m1=m1, m2_rad=m2_rad, m3=m3),
        scale=ConstantScale(value=scale),
        gradient=gradient,
    )


def modulating(margin: float = 0.2, scale: float = 32.0) -> LossSpec:
    """A constant modulating factor a = 1 − exp(scale·margin)."""
    return LossSpec(target=ModulatingTarget(u=scale * margin), scale=ConstantScale(value=scale))


def adacos_fixed() -> LossSpec:
    """AdaCos with its fixed scale; no hyper-parameter."""
    return LossSpec(scale=AdaCosScale(variant="fixed"))


def adacos_dynamic() -> LossSpec:
    """AdaCos with its dynamic scale; no hyper-parameter."""
    return LossSpec(scale=AdaCosScale(variant="dynamic"))


def p2sgrad(weight: float = 1.0) -> LossSpec:
    """P2SGrad as a sum of squares; no hyper-parameter but the gradient multiplier `weight`."""
    return LossSpec(scale=NoScale(), objective=SquaredError(), weight=weight)


@dataclass(frozen=True, slots=True)
class Entry:
    """A named loss: its function, formula and source."""

    make: Callable[..., LossSpec]
    formula: str
    source: str

    def defaults(self) -> Mapping[str, object]:
        """Parameters and their published defaults."""
        return {name: p.default for name, p in inspect.signature(self.make).parameters.items()}


ENTRIES: Mapping[str, Entry] = {
    "softmax": Entry(softmax, "T = s·cos θ", "NormFace, Wang et al., ACM MM 2017"),
    "sphereface": Entry(
        sphereface, "T = s·((−1)^k cos mθ − 2k), k = ⌊mθ/π⌋", "SphereFace, Liu et al., CVPR 2017, Eq. 7"
    ),
    "cosface": Entry(cosface, "T = s·(cos θ − m)", "CosFace, Wang et al., CVPR 2018, Eq. 4"),
    "arcface": Entry(arcface, "T = s·cos(θ + m); s·(cos θ − m sin m) past π", "ArcFace, Deng et al., CVPR 2019, Eq. 3"),
    "combined": Entry(combined, "T = s·(cos(m1·θ + m2) − m3)", "ArcFace, Deng et al., CVPR 2019, Eq. 4"),
    "modulating": Entry(
        modulating, "−log(h·p), h = 1/(a·p + 1 − a), a = 1 − e^(s·m)", "Wang et al., ICML 2020, Eqs. 5-8"
    ),
    "adacos_fixed": Entry(adacos_fixed, "T = s·cos θ, s = √2·log(C − 1)", "AdaCos, Zhang et al., CVPR 2019, Sec. 3.2"),
    "adacos_dynamic": Entry(
        adacos_dynamic,
        "T = s·cos θ, s = log B_avg / cos(min(π/4, θ_med))",
        "AdaCos, Zhang et al., CVPR 2019, Sec. 3.3",
    ),
    "p2sgrad": Entry(p2sgrad, "½ Σ_j (cos θ_j − 1[j = y])²", "P2SGrad, Zhang et al., CVPR 2019, Sec. 4"),
}

NAMES = tuple(ENTRIES)
"""The names that `get` knows."""


def get(name: str, **parameters: float | str) -> LossSpec:
    """The named loss. Raises ValueError for an unknown name or parameter, or a value that does not fit."""
    entry = ENTRIES.get(name)
    if entry is None:
        raise ValueError(f"unknown loss '{name}'; known are {', '.join(NAMES)}")
    known = entry.defaults()
    for parameter, value in parameters.items():
        if parameter not in known:
            listed = ", ".join(known) or "none"
            raise ValueError(f"loss '{name}' has no parameter '{parameter}'; it has {listed}")
        if isinstance(known[parameter], float) and isinstance(value, str | bool):
            raise ValueError(f"parameter '{parameter}' of loss '{name}' must be a number, but got {value!r}")
    return entry.make(**parameters)
