"""`Unified`: a conditional space over the whole composition, written out as a table.

A few choices make a loss: the objective, the target map with what gives its margins, the map of the negatives, the
scale, and the gradient mode. Every option puts parts into a spec and leaves some of their numbers free; the
conditions say where a choice exists, so that whatever is drawn is a loss that fits together.
"""

import functools
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from search_space import parts
from search_space.domains import Choice, Condition, Domain, Parameter, Space, Values
from search_space.frozen import FrozenModel
from search_space.parts import CombinedTarget, ConstantMargin, ConstantScale
from search_space.spec import LossSpec

PIECES = 10
"""How many pieces the piecewise-linear maps of cosine and probability have."""


class Option(NamedTuple):
    """What one option of a choice puts into a spec, and which of its numbers are free.

    `fixed` has fields of `LossSpec`; `free` the places of numbers inside them, such as `margin.m2_rad`.
    """

    fixed: Mapping[str, FrozenModel | float | str]
    free: Mapping[str, Domain] = {}


class Table(NamedTuple):
    """A choice: its options by name, and when it exists."""

    options: Mapping[str, Option]
    when: tuple[Condition, ...] = ()


_SCALE = Domain(low=4, high=128, log=True)
_COSINE = Domain(low=0.05, high=0.6)
_ANGLE = Domain(low=0.05, high=0.9)
_MODULATION = Domain(low=0.1, high=32, log=True)
_STRENGTH = Domain(low=5, high=100, log=True)
_SPREAD = Domain(low=0.005, high=0.1, log=True)
_SLOPE = Domain(low=0.25, high=4, log=True)
_SCALED = ConstantScale()
_AT_SCALE: Mapping[str, Domain] = {"scale.value": _SCALE}

_OBJECTIVES: Mapping[str, Option] = {
    "cross_entropy": Option({"objective": parts.CrossEntropy()}),
    "poly1": Option({"objective": parts.Poly1()}, {"objective.epsilon": Domain(low=-1, high=4)}),
    "focal": Option({"objective": parts.Focal()}, {"objective.gamma": Domain(low=0, high=4)}),
    "piecewise_tau": Option(
        {"objective": parts.PiecewiseTau(slopes=(1.0,) * PIECES)},
        {f"objective.slopes.{k}": _SLOPE for k in range(PIECES)},
    ),
    "uniface": Option({"objective": parts.UniFace(), "scale": _SCALED}, _AT_SCALE),
    "sface": Option(
        {"objective": parts.SFace(), "scale": _SCALED},
        {
            "objective.k": Domain(low=10, high=200, log=True),
            "objective.a_rad": Domain(low=0.3, high=1.2),
            "objective.b_rad": Domain(low=0.9, high=1.57),
            **_AT_SCALE,
        },
    ),
    "p2sgrad": Option(
        {"objective": parts.SquaredError(), "scale": parts.NoScale()}, {"weight": Domain(low=1, high=100, log=True)}
    ),
    "sphereface2": Option({"scale": _SCALED, "weight": 50 / 40}, _AT_SCALE),  # last: its objective is yet to be chosen
}


def _sphereface2(variant: Literal["C", "A", "M"], m: Domain) -> Option:
    return Option(
        {"objective": parts.SphereFace2(variant=variant, m=m.high)},
        {"objective.m": m, "objective.t": Domain(low=1, high=6), "objective.alpha": Domain(low=0.3, high=0.95)},
    )


_SPHEREFACE2: Mapping[str, Option] = {
    "C": _sphereface2("C", Domain(low=0, high=0.8)),
    "A": _sphereface2("A", Domain(low=0, high=0.9)),
    "M": _sphereface2("M", Domain(low=1, high=2)),
}

_TARGETS: Mapping[str, Option] = {
    "identity": Option({"target": parts.IdentityTarget()}),
    "cosine": Option({"target": CombinedTarget(), "margin": ConstantMargin()}, {"margin.m3": _COSINE}),
    "angular": Option(
        {"target": CombinedTarget(guard="linear"), "margin": ConstantMargin()}, {"margin.m2_rad": _ANGLE}
    ),
    "multiplicative": Option(
        {"target": CombinedTarget(), "margin": ConstantMargin()}, {"margin.m1": Domain(low=1.05, high=2)}
    ),
    "combined": Option(
        {"target": CombinedTarget(), "margin": ConstantMargin()},
        {
            "margin.m1": Domain(low=1, high=1.5),
            "margin.m2_rad": Domain(low=0.05, high=0.6),
            "margin.m3": Domain(low=0.05, high=0.4),
        },
    ),
    "random_cosine": Option(
        {"target": CombinedTarget(), "margin": parts.RandomMargin(on="m3", mean=0.35, std=0.05)},
        {"margin.mean": _COSINE, "margin.std": _SPREAD},
    ),
    "random_angle": Option(
        {"target": CombinedTarget(guard="linear"), "margin": parts.RandomMargin(on="m2_rad", mean=0.5, std=0.05)},
        {"margin.mean": _ANGLE, "margin.std": _SPREAD},
    ),
    "magface": Option(
        {
            "target": CombinedTarget(only_positive=True),
            "margin": parts.MagFaceMargin(),
            "regularizer": parts.NormRegularizer(),
        },
        {
            "margin.lower_rad": Domain(low=0, high=0.5),
            "margin.upper_rad": Domain(low=0.5, high=1),
            "regularizer.strength": _STRENGTH,
        },
    ),
    "adaface": Option(
        {"target": CombinedTarget(guard="clip", clip_rad=1e-3), "margin": parts.AdaFaceMargin()},
        {"margin.m": _COSINE, "margin.h": Domain(low=0.1, high=1, log=True)},
    ),
    "learned": Option(
        {"target": CombinedTarget(), "margin": parts.LearnedMargin(), "regularizer": parts.MarginRegularizer()},
        {"regularizer.strength": _STRENGTH},
    ),
    "class_size": Option(
        {"target": CombinedTarget(guard="linear"), "margin": parts.ClassSizeMargin()},
        {
            "margin.a": Domain(low=0.1, high=1),
            "margin.b": Domain(low=0, high=0.3),
            "margin.power": Domain(low=0.1, high=1, log=True),
        },
    ),
    "hard_negatives": Option(
        {
            "target": CombinedTarget(only_positive=True),
            "margin": parts.HardNegativeMargin(),
            "negative": parts.NPCNegative(),
        },
        {
            "margin.m0_rad": Domain(low=0.05, high=0.7),
            "margin.m1_rad": Domain(low=0, high=0.5),
            "negative.margin_rad": _ANGLE,
            "negative.t": Domain(low=1, high=1.5),
            "negative.a": Domain(low=0, high=0.5),
        },
    ),
    "li_arc": Option({"target": parts.LiArcTarget(), "margin": ConstantMargin()}, {"margin.m2_rad": _ANGLE}),
    "x2": Option(
        {"target": parts.X2Target()},
        {
            "target.a": Domain(low=-2, high=-0.3),
            "target.h_rad": Domain(low=-0.5, high=0),
            "target.k": Domain(low=0.3, high=1),
        },
    ),
    "modulating": Option({"target": parts.ModulatingTarget(u=1)}, {"target.u": _MODULATION}),
    "modulating_bins": Option(
        {"target": parts.ModulatingBinsTarget(u=(1,) * parts.BINS)},
        {f"target.u.{k}": _MODULATION for k in range(parts.BINS)},
    ),
    "piecewise": Option(
        {"target": parts.PiecewiseTarget(knots=(0.0,) * (PIECES + 1))},
        {
            f"target.knots.{k}": Domain(low=(2 * k - 1) / PIECES - 1, high=(2 * k + 1) / PIECES - 1)
            for k in range(PIECES + 1)
        },
    ),
    "circle": Option({"target": parts.CircleTarget()}, {"target.m": Domain(low=0, high=0.5)}),
}

_NEGATIVES: Mapping[str, Option] = {
    "identity": Option({"negative": parts.IdentityNegative()}),
    "mv_adaptive": Option({"negative": parts.MVNegative()}, {"negative.t": Domain(low=0, high=0.6)}),
    "mv_fixed": Option({"negative": parts.MVNegative(variant="fixed")}, {"negative.t": Domain(low=0, high=0.6)}),
    "curricular": Option(
        {"negative": parts.CurricularNegative()}, {"negative.rate": Domain(low=0.001, high=0.1, log=True)}
    ),
    "npc": Option(
        {"negative": parts.NPCNegative()},
        {
            "negative.margin_rad": _ANGLE,
            "negative.t": Domain(low=1, high=1.5),
            "negative.a": Domain(low=0, high=0.5),
        },
    ),
    "arcneg": Option(
        {"negative": parts.ArcNegNegative()},
        {"negative.alpha": Domain(low=0.8, high=1.6), "negative.sigma": Domain(low=0.5, high=8, log=True)},
    ),
    "sphereface_r": Option({"negative": parts.SphereFaceRNegative()}, {"negative.m": Domain(low=1, high=2)}),
    "li_arc": Option({"negative": parts.LiArcNegative()}),
    "circle": Option({"negative": parts.CircleNegative()}, {"negative.m": Domain(low=0, high=0.5)}),
}

_SCALES: Mapping[str, Option] = {
    "constant": Option({"scale": _SCALED}, _AT_SCALE),
    "adacos_fixed": Option({"scale": parts.AdaCosScale(variant="fixed")}),
    "adacos_dynamic": Option({"scale": parts.AdaCosScale(variant="dynamic")}),
    "feature_norm": Option({"scale": parts.FeatureNormScale()}),
    "soft_norm": Option(
        {"scale": parts.SoftNormScale()},
        {"scale.norm": _SCALE, "scale.strength": Domain(low=0.001, high=1, log=True)},
    ),
}

_GRADIENTS: Mapping[str, Option] = {
    "exact": Option({"gradient": "exact"}),
    "detached": Option({"gradient": "detached"}),
}


def _but(options: Mapping[str, Option], *without: str) -> tuple[str, ...]:
    return tuple(name for name in options if name not in without)


_SOFTMAX = ("cross_entropy", "poly1", "focal", "piecewise_tau")
_WITH_LOGITS = (*_SOFTMAX, "uniface")

CHOICES: Mapping[str, Table] = {
    "objective": Table(_OBJECTIVES),
    "sphereface2": Table(_SPHEREFACE2, ({"objective": ("sphereface2",)},)),
    "target": Table(_TARGETS, ({"objective": _WITH_LOGITS},)),
    "negative": Table(_NEGATIVES, ({"target": _but(_TARGETS, "hard_negatives")},)),
    "scale": Table(_SCALES, ({"objective": _SOFTMAX},)),
    "gradient": Table(
        _GRADIENTS,
        (
            {"target": _but(_TARGETS, "identity", "learned")},
            {"target": ("identity",), "negative": _but(_NEGATIVES, "identity")},
            {"objective": ("sphereface2",)},
        ),
    ),
}
"""The choices in the order in which they are made."""


class Unified(Space):
    """The whole composition as one conditional space: every draw is a loss that fits together, builds and trains.

    The choices, where they exist, and the bounds of the numbers are those of `CHOICES`; a number is called
    `choice.option.place`, such as `target.angular.margin.m2_rad` or `scale.constant.value`. Bounds enclose the
    published settings with room on both sides: cosine margins .05-.6, angular ones .05-.9 rad, scales 4-128 (log, as
    are strengths, spreads, rates, slopes and modulating factors).

    Left out: Circle Loss's own γ = 256; sub-centers (their class weights have another shape, so that no other loss
    could continue their training); the hyperspherical energy; `weight` but for P2SGrad's, since a weight is a learning
    rate; guards other than one for each margin; ElasticFace's ranked variant; AM-LFS's free pieces; P2SGrad's `update`,
    which equals it.
    Building its losses needs 3 classes or more (AdaCos) and the class sizes.

    >>> space = Unified()
    >>> space.encode(LossSpec(scale=parts.ConstantScale(value=16)))
    {'objective': 'cross_entropy', 'target': 'identity', 'negative': 'identity', 'scale': 'constant', \
'scale.constant.value': 16.0}
    """

    kind: Literal["unified"] = "unified"

    @property
    def parameters(self) -> Mapping[str, Parameter]:
        """Every choice, followed by the numbers of its options."""
        return _parameters()

    @property
    def start(self) -> Values:
        """Softmax without a margin at scale 16, whence every other loss can go on."""
        return self.encode(LossSpec(scale=ConstantScale(value=16)))

    def decode(self, values: Values) -> LossSpec:
        """The composition of the options at these values."""
        fields: dict[str, Any] = {}
        checked = self.checked(values)
        for choice, table in CHOICES.items():
            if choice in checked:
                label = str(checked[choice])
                option = table.options[label]
                fields |= _filled(option, {place: checked[_name(choice, label, place)] for place in option.free})
        return LossSpec.model_validate(fields)

    def encode(self, spec: LossSpec) -> Values:
        """The choices and numbers of a loss that is composed of options of this space."""
        outside = f"the loss is not in the space 'unified': {spec}"
        data = spec.model_dump(mode="json")
        values: dict[str, float | str] = {}
        for choice, table in CHOICES.items():
            if _parameters()[choice].active(values):
                found = _found(choice, table, data)
                if found is None:
                    raise ValueError(outside)
                values |= found
        if self.decode(values) != spec:
            raise ValueError(outside)
        return values


@functools.cache
def _parameters() -> Mapping[str, Parameter]:
    parameters: dict[str, Parameter] = {}
    for choice, table in CHOICES.items():
        parameters[choice] = Choice(options=tuple(table.options), when=table.when)
        for label, option in table.options.items():
            for place, parameter in option.free.items():
                only_here = {"when": ({choice: (label,)},)}
                parameters[_name(choice, label, place)] = parameter.model_copy(update=only_here)
    return parameters


def _name(choice: str, label: str, place: str) -> str:
    """`target.x2.a` for the place `target.a`, but `target.angular.margin.m2_rad` for a place in another part."""
    return f"{choice}.{label}.{place.removeprefix(f'{choice}.')}"


def _filled(option: Option, numbers: Mapping[str, float | str]) -> dict[str, Any]:
    """The option's fields of a spec as plain data, with these numbers in their places."""
    data = {
        field: part.model_dump(mode="json") if isinstance(part, FrozenModel) else part
        for field, part in option.fixed.items()
    }
    for place, number in numbers.items():
        *path, last = _keys(place)
        node: Any = data
        for key in path:
            node = node[key]
        node[last] = number
    return data


def _found(choice: str, table: Table, data: Mapping[str, Any]) -> Values | None:
    """The option whose parts the plain data of a spec holds, and its numbers there."""
    for label, option in table.options.items():
        try:
            numbers = {place: _read(data, place) for place in option.free}
        except (KeyError, IndexError, TypeError):  # a part of another kind has no such place
            continue
        filled = _filled(option, numbers)
        if filled == {field: data[field] for field in filled}:
            return {choice: label, **{_name(choice, label, place): number for place, number in numbers.items()}}
    return None


def _read(data: Any, place: str) -> Any:
    for key in _keys(place):
        data = data[key]
    return data


def _keys(place: str) -> list[str | int]:
    return [int(key) if key.isdigit() else key for key in place.split(".")]
