"""What there is to know about a loss of the catalog beside its formula: parameters, state and cost."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args, get_origin, get_type_hints

from analysis.loss_curves import Case
from search_space import LossSpec, catalog, parts
from search_space.catalog import Value
from search_space.spec import COSINE_OBJECTIVES

_COSINE, _FACTOR, _LOGITS = "cosine", "factor of the angle", "logits per cosine"
_UNITS = {
    "a": "cosine",
    "alpha": "factor",
    "b": "rad",
    "centers": "class weights a class",
    "epsilon": "factor of 1 − p",
    "gamma": _LOGITS,
    "h": "factor",
    "k": "1/rad",
    "lower_norm": "‖x‖",
    "lw": "weight × scale",
    "m": _FACTOR,
    "m1": _FACTOR,
    "m3": _COSINE,
    "margin": _COSINE,
    "margins": _COSINE,
    "norm": "‖x‖",
    "power": "power of the class size",
    "scale": _LOGITS,
    "sigma": "cosine²",
    "std": _COSINE,
    "strength": "factor of the regularizer",
    "t": _COSINE,
    "t_offsets": _COSINE,
    "t_slopes": "factor of the cosine",
    "tau": "factor of p",
    "tau_offsets": "probability",
    "tau_slopes": "factor of p",
    "upper_norm": "‖x‖",
    "weight": "factor of the loss",
    "class_size.a": "rad",
    "focal.gamma": "power of 1 − p",
    "npcface.t": "factor of the cosine",
    "sphereface2_a.alpha": "share of the target",
    "sphereface2_a.t": "power",
    "sphereface2_c.alpha": "share of the target",
    "sphereface2_c.t": "power",
    "sphereface2_m.alpha": "share of the target",
    "sphereface2_m.t": "power",
    "x2_softmax.a": "cosine/rad²",
    "x2_softmax.k": _COSINE,
}
"""Units by parameter, where a loss differs by loss and parameter; a name that ends in `_rad` is in radians."""

_KEPT = {
    "scale.value": "the scale s, from each batch (starts at {:.4g})",
    "negative.t": "t, a running mean of cos θ (starts at {:.4g})",
    "margin.norm_mean": "the running mean of ‖x‖ (starts at {:.4g})",
    "margin.norm_std": "its running deviation (starts at {:.4g})",
    "margin.margin_C": "a margin for each class (start at {:.4g})",
    "objective.bias": "the bias b (starts at {:.4g})",
    "objective.threshold": "the threshold b (starts at {:.4g})",
}
"""What a loss keeps, by its key in `state_dict`."""

_NOTABLE = {"π/2": math.pi / 2, "π": math.pi, "−π": -math.pi}
_TOLERANCE = 1e-9
_BEYOND = 1e9


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """A parameter of a catalog loss: its value here, the published default, its unit, and what the catalog accepts."""

    name: str
    value: Value
    default: Value
    unit: str
    accepted: str


def parameters_of(name: str, chosen: Mapping[str, Value]) -> list[Parameter]:
    """The parameters of a loss of the catalog with `chosen` in place of defaults.

    Ranges are those of one parameter while the others stay as they are. Raises ValueError for what the catalog refuses.
    """
    catalog.get(name, **chosen)
    entry = catalog.ENTRIES[name]
    values = {**entry.defaults(), **chosen}
    hints = get_type_hints(entry.make)
    return [
        Parameter(
            name=parameter,
            value=values[parameter],
            default=default,
            unit=unit_of(name, parameter),
            accepted=_choices(hints[parameter]) or accepted(name, parameter, values),
        )
        for parameter, default in entry.defaults().items()
    ]


def unit_of(name: str, parameter: str) -> str:
    """The unit of a loss's parameter; empty for a choice."""
    unit = "rad" if parameter.endswith("_rad") else _UNITS.get(parameter, "")
    return _UNITS.get(f"{name}.{parameter}", unit)


def _choices(hint: object) -> str:
    return " or ".join(get_args(hint)) if get_origin(hint) is Literal else ""


def accepted(name: str, parameter: str, values: Mapping[str, Value]) -> str:
    """The interval of numbers that the catalog accepts for a parameter, as `[0, π/2]`; round brackets exclude an end.

    Found by bisection on what `catalog.get` refuses, so that it holds whatever turns a parameter into a spec.
    """
    value = values[parameter]
    count = len(value) if isinstance(value, tuple | list) else 0
    start = next(iter(value)) if isinstance(value, tuple | list) else value
    if not isinstance(start, float | int):
        raise ValueError(f"parameter '{parameter}' of loss '{name}' is no number, but {start!r}")
    whole = isinstance(start, int)

    def fits(number: float) -> bool:
        try:
            catalog.get(name, **{**values, parameter: (number,) * count if count else number})
        except ValueError:
            return False
        return True

    low, high = (_end(fits, float(start), way, whole=whole) for way in (-_BEYOND, _BEYOND))
    text = f"{'[' if fits(low) else '('}{_said(low)}, {_said(high)}{']' if fits(high) else ')'}"
    return f"{text}, each of {count}" if count else text


def _end(fits: Callable[[float], bool], inside: float, outside: float, *, whole: bool) -> float:
    """Where a range that holds `inside` ends on the way to `outside`."""
    while abs(outside - inside) > (1 if whole else _TOLERANCE * max(1.0, abs(inside))):
        middle = (inside + outside) / 2
        middle = float(math.floor(middle)) if whole else middle
        inside, outside = (middle, outside) if fits(middle) else (inside, middle)
    if whole:
        return inside
    close = [number for number in _NOTABLE.values() if abs(number - inside) < 1e-7]
    return close[0] if close else round(inside, 6) + 0.0


def _said(number: float) -> str:
    return next((name for name, value in _NOTABLE.items() if value == number), f"{number:.6g}".replace("-", "−"))


def facts_of(name: str, spec: LossSpec, num_classes: int) -> dict[str, str]:
    """Source, state and cost of a catalog loss with these settings; empty for no state.

    Raises ValueError for fewer classes than the loss needs.
    """
    loss = Case(spec=spec).build(num_classes)
    taught = {key for key, _ in loss.named_parameters()}
    kept = {key: _KEPT[key].format(float(value.flatten()[0])) for key, value in loss.state_dict().items()}
    learns, tracks = ([words for key, words in kept.items() if (key in taught) == by] for by in (True, False))
    return {
        "source": catalog.ENTRIES[name].source,
        "learns": " and ".join(learns),
        "tracks": " and ".join(tracks),
        "cost": cost_class(spec),
    }


def cost_class(spec: LossSpec) -> str:
    """What a fast path needs to compute a loss without the matrix of its cosines."""
    if isinstance(spec.objective, (*COSINE_OBJECTIVES, parts.UniFace)):
        return "another reducer: no log-sum-exp of the negatives"
    if isinstance(
        spec.negative, parts.MVNegative | parts.CurricularNegative | parts.ArcNegNegative | parts.NPCNegative
    ):
        return "a hook on each negative that needs cos θ of the target first"
    if not isinstance(spec.negative, parts.IdentityNegative) or spec.centers > 1:
        return "a hook on each negative alone"
    return "target-only: cos θ of the target and the log-sum-exp of the negatives suffice"
