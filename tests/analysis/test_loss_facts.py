"""Parameters with units and ranges, state and cost of every loss of the catalog, held to the specs themselves."""

import math
from collections.abc import Iterator

import annotated_types
import pytest
from pydantic import BaseModel

from analysis.loss_facts import cost_class, facts_of, parameters_of, unit_of
from search_space import LossSpec, build, catalog, parts
from search_space.catalog import Value

NUMBERS = [
    (name, parameter, default)
    for name, entry in catalog.ENTRIES.items()
    for parameter, default in entry.defaults().items()
    if not isinstance(default, str)
]


def with_value(default: Value, value: float) -> Value:
    return (value,) * len(default) if isinstance(default, tuple) else value


def moved_fields(name: str, parameter: str, default: Value) -> dict[tuple[str, ...], float]:
    """The fields of a spec that move with a parameter, and where they went when the parameter went to `_nudged`."""
    before, after = catalog.get(name), catalog.get(name, **{parameter: with_value(default, nudged(default))})
    fields = dict(leaves(before, ()))
    return {path: value for path, value in leaves(after, ()) if fields[path] != value}


def nudged(default: Value) -> float:
    number = default[0] if isinstance(default, tuple) else default
    assert isinstance(number, float | int)
    return number + 1 if isinstance(number, int) else number * 1.01 + (0.01 if number >= 0 else 0)


def leaves(part: BaseModel, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], float]]:
    for field, value in part:
        if isinstance(value, BaseModel):
            yield from leaves(value, (*path, field))
        elif isinstance(value, tuple):
            yield (*path, field), value[0]
        elif not isinstance(value, str | bool):
            yield (*path, field), value


def ends(accepted: str) -> tuple[float, float, bool, bool]:
    """The ends of '(0, π/2]', and whether they belong to it."""
    interval = accepted.partition(", each")[0]
    low, high = interval[1:-1].replace("−", "-").replace("π/2", str(math.pi / 2)).replace("π", str(math.pi)).split(", ")
    return float(low), float(high), interval[0] == "[", interval[-1] == "]"


def constraints(name: str, path: tuple[str, ...]) -> tuple[float, float, bool, bool]:
    """The bounds that pydantic knows of a field."""
    part: BaseModel = catalog.get(name)
    for field in path[:-1]:
        part = getattr(part, field)
    found = list(type(part).model_fields[path[-1]].metadata)
    argument = type(part).model_fields[path[-1]].annotation
    if not any(isinstance(each, annotated_types.Ge | annotated_types.Gt) for each in found):  # of a tuple's numbers
        inner = getattr(argument, "__args__", ())
        found += [each for extra in inner if hasattr(extra, "__metadata__") for each in flat(extra)]
    low = next(each for each in found if isinstance(each, annotated_types.Ge | annotated_types.Gt))
    high = next(each for each in found if isinstance(each, annotated_types.Le | annotated_types.Lt))
    low_end = low.ge if isinstance(low, annotated_types.Ge) else low.gt
    high_end = high.le if isinstance(high, annotated_types.Le) else high.lt
    closed = isinstance(low, annotated_types.Ge), isinstance(high, annotated_types.Le)
    return float(str(low_end)), float(str(high_end)), *closed


def flat(annotated: object) -> Iterator[object]:
    for each in getattr(annotated, "__metadata__", ()):
        yield from getattr(each, "metadata", [each])


@pytest.mark.parametrize(("name", "parameter", "default"), NUMBERS)
def test_a_range_holds_what_the_catalog_accepts_and_nothing_else(name: str, parameter: str, default: Value) -> None:
    (told,) = (each for each in parameters_of(name, {}) if each.name == parameter)
    low, high, low_closed, high_closed = ends(told.accepted)
    step = 1 if isinstance(default, int) else 1e-5 * (high - low)

    def fits(value: float) -> bool:
        try:
            catalog.get(name, **{parameter: with_value(default, value)})
        except ValueError:
            return False
        return True

    assert fits(low) == low_closed
    assert fits(high) == high_closed
    assert fits(low + step)
    assert fits(high - step)
    assert not fits(low - step)
    assert not fits(high + step)


@pytest.mark.parametrize(("name", "parameter", "default"), NUMBERS)
def test_a_range_is_that_of_the_field_that_a_parameter_sets(name: str, parameter: str, default: Value) -> None:
    """But for what several fields or another parameter bound: a change of scale, an order, a variant."""
    bound_otherwise = {"lw", "margins", "lower_norm", "upper_norm", "lower_margin_rad", "upper_margin_rad"}
    same = [path for path, value in moved_fields(name, parameter, default).items() if value == nudged(default)]
    if parameter in bound_otherwise or name in ("modulating", "modulating_bins") or name.startswith("sphereface2"):
        return
    (told,) = (each for each in parameters_of(name, {}) if each.name == parameter)
    assert same
    for path in same:
        assert ends(told.accepted) == pytest.approx(constraints(name, path), abs=1e-5)


@pytest.mark.parametrize(("name", "parameter", "default"), NUMBERS)
def test_a_parameter_is_in_radians_exactly_where_its_field_is(name: str, parameter: str, default: Value) -> None:
    spec = catalog.get(name)
    random_angle = isinstance(spec.margin, parts.RandomMargin) and spec.margin.on == "m2_rad"
    angles = {("margin", "a"), ("margin", "b")} if isinstance(spec.margin, parts.ClassSizeMargin) else set()
    angles |= {("margin", "mean"), ("margin", "std")} if random_angle else set()
    angles |= {("objective", "m")} if name == "sphereface2_a" else set()
    moved = moved_fields(name, parameter, default)
    in_radians = any(path[-1].endswith("_rad") or path in angles for path in moved)
    assert (unit_of(name, parameter) == "rad") == in_radians
    assert unit_of(name, parameter)


def test_a_range_follows_the_other_values_given() -> None:
    def accepted(name: str, chosen: dict[str, float], parameter: str) -> str:
        return next(each.accepted for each in parameters_of(name, chosen) if each.name == parameter)

    assert accepted("modulating", {}, "margin") == "[0, 16]"
    assert accepted("modulating", {"scale": 64}, "margin") == "[0, 8]"
    assert accepted("magface", {"upper_norm": 50}, "lower_norm") == "(0, 50)"
    assert accepted("sphereface2_c", {"scale": 20}, "lw") == "(0, 20000]"
    assert accepted("subcenter_arcface", {}, "centers") == "[1, 20]"
    assert accepted("arcface", {}, "margin_rad") == "[0, π/2]"
    assert accepted("modulating_bins", {}, "margins") == "[0, 16], each of 10"


def test_choices_are_named() -> None:
    told = {each.name: each for each in parameters_of("mv_arc", {"variant": "fixed"})}
    assert told["variant"].accepted == "adaptive or fixed"
    assert (told["variant"].value, told["variant"].default) == ("fixed", "adaptive")
    assert told["gradient"].accepted == "exact or detached"


def test_what_the_catalog_refuses_is_refused() -> None:
    with pytest.raises(ValueError, match="loss 'cosface' has no parameter 'margin_rad'; it has margin, scale"):
        parameters_of("cosface", {"margin_rad": 0.3})


@pytest.mark.parametrize("name", catalog.NAMES)
def test_all_that_a_loss_keeps_is_named(name: str) -> None:
    spec = catalog.get(name)
    loss = build(spec, num_classes=50, class_counts=[5] * 50)
    facts = facts_of(name, spec, 50)
    learned = {key for key, _ in loss.named_parameters()}
    assert (facts["learns"] == "") == (not learned)
    assert (facts["tracks"] == "") == (loss.state_dict().keys() == learned)
    assert facts["source"] == catalog.ENTRIES[name].source


def test_where_a_state_starts_is_told() -> None:
    def facts(name: str) -> dict[str, str]:
        return facts_of(name, catalog.get(name), 10_575)

    assert facts("sphereface2_c")["learns"] == "the bias b (starts at 5.581)"
    assert facts("adacos_dynamic")["tracks"] == "the scale s, from each batch (starts at 13.1)"
    assert "starts at 20" in facts("adaface")["tracks"]


HOOKS = {"li_arcface", "sphereface_r_v2", "sphereface_r_nfn", "sphereface_r_sfn", "circle", "subcenter_arcface"}
HOOKS_THAT_NEED_THE_TARGET = {"mv_am", "mv_arc", "curricularface", "arcnegface", "npcface"}
OTHER_REDUCERS = {"sphereface2_c", "sphereface2_a", "sphereface2_m", "uniface", "sface", "p2sgrad"}


@pytest.mark.parametrize("name", catalog.NAMES)
def test_the_cost_class_is_the_published_table_s(name: str) -> None:
    beginning = "target-only"
    if name in HOOKS:
        beginning = "a hook on each negative alone"
    elif name in HOOKS_THAT_NEED_THE_TARGET:
        beginning = "a hook on each negative that needs cos θ of the target first"
    elif name in OTHER_REDUCERS:
        beginning = "another reducer"
    assert cost_class(catalog.get(name)).startswith(beginning)


def test_several_centers_turn_a_target_only_loss_into_a_hook() -> None:
    assert cost_class(LossSpec(centers=2)).startswith("a hook")
