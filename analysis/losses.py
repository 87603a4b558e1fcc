"""Losses in words and in numbers."""

import functools
import math
from collections.abc import Iterator, Mapping

from lfs.trial import Scalar
from search_space import LossSpec, catalog, parts
from search_space.algebra import formula
from search_space.frozen import FrozenModel
from search_space.spec import COSINE_OBJECTIVES, margins_given

_PARTS = ("target", "margin", "negative", "objective", "regularizer", "scale")

_SHORT = {
    "target.u": "u",
    "target.knots": "t",
    "target.slopes": "t_slope",
    "target.offsets": "t_offset",
    "objective.slopes": "tau_slope",
    "objective.offsets": "tau_offset",
    "margin.m1": "m1",
    "margin.m2_rad": "m2_rad",
    "margin.m3": "m3",
    "scale.value": "scale",
}
"""Numbers that search spaces know by a name of their own."""

_TITLES = {
    "softmax": "softmax",
    "sphereface": "SphereFace",
    "sphereface_plus": "SphereFace+",
    "sphereface_r_v1": "SphereFace-R v1",
    "sphereface_r_v2": "SphereFace-R v2",
    "sphereface_r_nfn": "SphereFace-R NFN",
    "sphereface_r_sfn": "SphereFace-R SFN",
    "cosface": "CosFace",
    "arcface": "ArcFace",
    "combined": "combined",
    "li_arcface": "Li-ArcFace",
    "x2_softmax": "X2-Softmax",
    "subcenter_arcface": "Sub-center ArcFace",
    "modulating": "modulating",
    "modulating_bins": "modulating bins",
    "am_lfs": "AM-LFS continuous",
    "am_lfs_free": "AM-LFS free",
    "poly1": "Poly-1",
    "focal": "focal",
    "mv_am": "MV-AM-Softmax",
    "mv_arc": "MV-Arc-Softmax",
    "curricularface": "CurricularFace",
    "npcface": "NPCFace",
    "arcnegface": "ArcNegFace",
    "circle": "Circle",
    "elasticface_arc": "ElasticFace-Arc",
    "elasticface_arc_plus": "ElasticFace-Arc+",
    "elasticface_cos": "ElasticFace-Cos",
    "elasticface_cos_plus": "ElasticFace-Cos+",
    "magface": "MagFace",
    "adaface": "AdaFace",
    "adaptiveface": "AdaptiveFace",
    "class_size": "class-size ArcFace",
    "adacos_fixed": "AdaCos fixed",
    "adacos_dynamic": "AdaCos dynamic",
    "p2sgrad": "P2SGrad",
    "sphereface2_c": "SphereFace2-C",
    "sphereface2_a": "SphereFace2-A",
    "sphereface2_m": "SphereFace2-M",
    "uniface": "UniFace",
    "sface": "SFace",
}
"""What the field calls each loss of the catalog."""

_PHRASES: Mapping[type[FrozenModel], str] = {
    parts.IdentityTarget: "softmax",
    parts.CombinedTarget: "combined",
    parts.LiArcTarget: "Li-ArcFace target",
    parts.X2Target: "X2 target",
    parts.ModulatingTarget: "modulating",
    parts.ModulatingBinsTarget: "modulating bins",
    parts.PiecewiseTarget: "piecewise target",
    parts.FreePiecewiseTarget: "free piecewise target",
    parts.CircleTarget: "Circle target",
    parts.SymbolicTarget: "f =",
    parts.ConstantMargin: "",
    parts.RandomMargin: "random margin",
    parts.MagFaceMargin: "MagFace margin",
    parts.AdaFaceMargin: "AdaFace margin",
    parts.LearnedMargin: "learned margin",
    parts.ClassSizeMargin: "class-size margin",
    parts.HardNegativeMargin: "NPCFace margin",
    parts.MVNegative: "MV-Softmax negatives",
    parts.CurricularNegative: "Curricular negatives",
    parts.NPCNegative: "NPCFace negatives",
    parts.ArcNegNegative: "ArcNegFace negatives",
    parts.SphereFaceRNegative: "SphereFace-R negatives",
    parts.LiArcNegative: "Li-ArcFace negatives",
    parts.CircleNegative: "Circle negatives",
    parts.SymbolicNegative: "n =",
    parts.PiecewiseTau: "piecewise τ",
    parts.FreePiecewiseTau: "free piecewise τ",
    parts.Poly1: "Poly-1",
    parts.Focal: "focal",
    parts.SphereFace2: "SphereFace2",
    parts.UniFace: "UniFace",
    parts.SFace: "SFace",
    parts.SquaredError: "P2SGrad",
    parts.NormRegularizer: "MagFace regularizer",
    parts.MarginRegularizer: "AdaM regularizer",
    parts.EnergyRegularizer: "hyperspherical energy",
    parts.FeatureNormScale: "s=‖x‖",
    parts.SoftNormScale: "s=‖x‖",
    parts.AdaCosScale: "AdaCos",
}
"""What each part adds to the words of a loss that has no name; parts that add nothing are left out."""

_SYMBOLIC = (parts.SymbolicTarget, parts.SymbolicNegative)

_USUAL = {("rate", 0.01), ("clip_rad", 0.0), ("clip_rad", 1e-3), ("initial", 0.0)}
"""Settings that go without saying."""


def parameters(spec: LossSpec) -> dict[str, float]:
    """Every number of a loss by a name that means the same in all losses.

    That is its place in the spec (`negative.t`, `objective.gamma`), or the name that search spaces give it: u, m1,
    m2_rad (radians), m3, scale; numbers of a list are counted (`u_0`, `t_3`, `tau_slope_9`). `weight` and `centers`
    are there where they are not 1.

    >>> parameters(catalog.mv_am())
    {'m1': 1.0, 'm2_rad': 0.0, 'm3': 0.35, 'negative.t': 0.2, 'scale': 32.0}
    """
    values: dict[str, float] = {}
    for part_name in _PARTS:
        if isinstance(getattr(spec, part_name), _SYMBOLIC):
            continue  # a constant means nothing outside of its formula
        for field, value in getattr(spec, part_name):
            name = _SHORT.get(f"{part_name}.{field}", f"{part_name}.{field}")
            if isinstance(value, tuple):
                values |= {f"{name}_{index}": entry for index, entry in enumerate(value)}
            elif isinstance(value, float) and (field, value) != ("clip_rad", 0.0):
                values[name] = value
    whole = {"centers": float(spec.centers), "weight": spec.weight}
    return values | {name: value for name, value in whole.items() if value != 1}


def describe_recipe(differences: Mapping[str, Scalar]) -> str:
    """In what a recipe differs from the run's, in one line; empty where it does not.

    >>> describe_recipe({"embedding_dim": 4096, "learning_rate": 0.37088920596})
    'embedding_dim=4096 learning_rate=0.3709'
    """
    texts = {key: f"{value:.4g}" if isinstance(value, float) else value for key, value in differences.items()}
    return " ".join(f"{key}={text}" for key, text in texts.items())


def describe(spec: LossSpec) -> str:
    """A loss in a few words: its name in the field, else its parts, with the numbers that matter.

    >>> describe(catalog.cosface(margin=0.2, scale=16))
    'CosFace m=0.2 s=16'
    >>> describe(catalog.combined(m3=0).replace(negative=parts.MVNegative(), scale=parts.AdaCosScale()))
    'combined m1=1 m2=0.3 rad m3=0, MV-Softmax negatives t=0.2, AdaCos dynamic'
    >>> describe(LossSpec(target=parts.SymbolicTarget(f=("-", ("cos", ("+", "theta", 0.5)), 0.35))))
    'f = cos(θ + 0.5) − 0.35, s=64'
    """
    title = _names().get(_composition(spec))
    if title is None:
        words = ", ".join(_phrases(spec))
    else:
        numbers = [number for part_name in _PARTS for number in _numbers(spec, part_name, named=True)]
        words = " ".join([title, *dict.fromkeys(numbers)])
    if spec.centers > 1:
        words += f" K={spec.centers}"
    if isinstance(spec.scale, parts.ConstantScale):
        after_formula = isinstance(spec.target, _SYMBOLIC) or isinstance(spec.negative, _SYMBOLIC)
        words += f"{',' if after_formula else ''} s={spec.scale.value:.3g}"
    if spec.weight != 1:
        words += f" ×{spec.weight:.3g}"
    return words + (" detached" if spec.gradient == "detached" else "")


@functools.cache
def _names() -> Mapping[tuple[object, ...], str]:
    return {_composition(entry.make()): _TITLES[name] for name, entry in catalog.ENTRIES.items()}


def _composition(spec: LossSpec) -> tuple[object, ...]:
    """What a loss is made of, the same for all settings of one named loss: all but its numbers and gradient mode."""
    made_of = (value for name in _PARTS for _, value in getattr(spec, name) if isinstance(value, str | bool))
    return (*made_of, frozenset(margins_given(spec.margin)), spec.centers > 1)


def _phrases(spec: LossSpec) -> Iterator[str]:
    """The parts of a loss that has no name, a phrase each."""
    if not isinstance(spec.objective, COSINE_OBJECTIVES):
        target_only = {name: LossSpec.model_fields[name].default for name in _PARTS if name not in ("target", "margin")}
        name = _names().get(_composition(spec.model_copy(update=target_only | {"centers": 1})))
        if name is not None:
            yield " ".join([name, *_numbers(spec, "target"), *_numbers(spec, "margin", named=True)])
        else:
            yield " ".join(filter(None, (_phrase(spec, "target"), _phrase(spec, "margin"))))
    yield from filter(None, (_phrase(spec, name) for name in _PARTS[2:]))


def _phrase(spec: LossSpec, part_name: str) -> str:
    part = getattr(spec, part_name)
    name = _PHRASES.get(type(part))
    if isinstance(part, _SYMBOLIC):
        return f"{name} {formula(part.f if isinstance(part, parts.SymbolicTarget) else part.n)}"
    return "" if name is None else " ".join(filter(None, (name, *_words(part), *_numbers(spec, part_name))))


def _words(part: FrozenModel) -> Iterator[str]:
    """The settings of a part that are not numbers, where another could have been chosen tacitly."""
    for field, value in part:
        if isinstance(value, bool) and value:
            yield field.replace("_", " ")
        usual = type(part).model_fields[field].default
        if isinstance(value, str) and field != "kind" and (value != usual or isinstance(part, parts.AdaCosScale)):
            yield value if field != "guard" else f"{value} past π"


def _numbers(spec: LossSpec, part_name: str, *, named: bool = False) -> Iterator[str]:
    """The numbers of a part, those of the constant scale apart. A `named` loss's only margin is its m."""
    part = getattr(spec, part_name)
    if isinstance(part, parts.ConstantScale):
        return
    given = margins_given(part) if named and isinstance(part, parts.ConstantMargin) else set()
    for field, value in part:
        of_tau = isinstance(part, parts.PiecewiseTau | parts.FreePiecewiseTau)
        if isinstance(value, tuple):
            yield f"{'τ ' if of_tau else ''}{field}={_list(value)}"
        if not isinstance(value, float) or (field, value) in _USUAL or (len(given) == 1 and field not in given):
            continue
        in_radians = field.endswith("_rad") or (isinstance(part, parts.RandomMargin) and part.on == "m2_rad")
        symbol = "m" if len(given) == 1 or field == "margin_rad" else field.removesuffix("_rad")
        yield f"{symbol}={value:.3g}" + (" rad" if in_radians else "")
    if isinstance(part, parts.ModulatingTarget) and isinstance(spec.scale, parts.ConstantScale):
        yield f"(m={part.u / spec.scale.value:.3f})"


def _list(values: tuple[float, ...]) -> str:
    """One number for equal ones, else all of them."""
    return f"{values[0]:.3g}" if len(set(values)) == 1 else f"[{' '.join(f'{value:.3g}' for value in values)}]"


def reference_losses(spec: LossSpec, num_classes: int) -> dict[str, LossSpec]:
    """Well-known losses to draw beside `spec`, at its scale (AdaCos's fixed one where it has none)."""
    ada_scale = math.sqrt(2) * math.log(max(num_classes - 1, 2))
    scale = spec.scale.value if isinstance(spec.scale, parts.ConstantScale) else ada_scale
    named = {
        "softmax": catalog.softmax(scale=scale),
        "CosFace": catalog.cosface(margin=0.35, scale=scale),
        "ArcFace": catalog.arcface(margin_rad=0.5, scale=scale),
    }
    references = {describe(reference): reference for reference in named.values()}
    if num_classes >= 3:
        references["AdaCos at its initial scale"] = catalog.adacos_fixed()
    return references
