"""The unified space: whatever is drawn fits together, every kind of part is in it, and published losses are points."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, get_args

import numpy as np
import pytest

from search_space import Choice, Domain, LossSpec, Unified, Values, catalog, parts
from search_space.unified_space import CHOICES

SPACE = Unified()
PARAMETERS = SPACE.parameters

ELSEWHERE = {
    "sphereface_plus": "hyperspherical energy",
    "sphereface_r_v1": "weight 50/60, and the guard 'clip'",
    "sphereface_r_v2": "weight 50/60",
    "sphereface_r_sfn": "weight 50/60",
    "subcenter_arcface": "three centers",
    "am_lfs_free": "maps that may jump",
    "circle": "scale 256",
    "elasticface_arc_plus": "ranked margins",
    "elasticface_cos_plus": "ranked margins",
}
"""Published losses that are no points of the space, and why."""

SOFTMAX: Values = {
    "objective": "cross_entropy",
    "target": "identity",
    "negative": "identity",
    "scale": "constant",
    "scale.constant.value": 16.0,
}


def structures(number: Callable[[Domain], float]) -> Iterator[Values]:
    """Every combination of options, with these numbers."""
    names = list(PARAMETERS)

    def extended(values: dict[str, float | str], index: int) -> Iterator[Values]:
        if index == len(names):
            yield values
            return
        parameter = PARAMETERS[names[index]]
        if not parameter.active(values):
            yield from extended(values, index + 1)
        elif isinstance(parameter, Choice):
            for option in parameter.options:
                yield from extended({**values, names[index]: option}, index + 1)
        else:
            yield from extended({**values, names[index]: number(parameter)}, index + 1)

    return extended({}, 0)


def kinds(union: Any) -> set[str]:
    return {part.model_fields["kind"].default for part in get_args(get_args(union)[0])}


@pytest.mark.parametrize("end", ["low", "high"])
def test_every_combination_of_options_is_a_loss_of_its_own(end: str) -> None:
    combinations = list(structures(lambda domain: getattr(domain, end)))
    maps = 15 * 9 * 2 + (1 + 8 * 2) + 9 + 2  # most targets; identity; learned, exact alone; hard negatives
    assert len(combinations) == 4 * 5 * maps + maps + 3 * 2 + 2  # softmaxes by scale; uniface; sphereface2; the rest
    digests = {SPACE.decode(values).digest() for values in combinations}
    assert len(digests) == len(combinations)


def test_every_kind_of_part_occurs_but_those_that_are_left_out() -> None:
    rng = np.random.default_rng(0)
    samples = [SPACE.sample(rng) for _ in range(2000)]
    for field, union, left_out in (
        ("target", parts.TargetMap, {"piecewise_free", "symbolic"}),
        ("negative", parts.NegativeMap, {"symbolic"}),
        ("margin", parts.Margin, set()),
        ("scale", parts.Scale, set()),
        ("objective", parts.Objective, {"piecewise_tau_free"}),
        ("regularizer", parts.Regularizer, {"hyperspherical_energy"}),
    ):
        assert {getattr(spec, field).kind for spec in samples} == kinds(union) - left_out
    assert {spec.gradient for spec in samples} == {"exact", "detached"}
    assert {spec.centers for spec in samples} == {1}


@pytest.mark.parametrize("name", catalog.NAMES)
def test_published_losses_are_points_of_it(name: str) -> None:
    spec = catalog.get(name)
    if name in ELSEWHERE:
        with pytest.raises(ValueError, match=r"the loss is not in the space 'unified'|must lie in \[4.0, 128.0\]"):
            SPACE.encode(spec)
    else:
        assert SPACE.decode(SPACE.encode(spec)) == spec


def test_a_condition_looks_at_earlier_choices_and_their_options() -> None:
    before: dict[str, Choice] = {}
    for name, parameter in PARAMETERS.items():
        for condition in parameter.when:
            assert all(set(options) <= set(before[choice].options) for choice, options in condition.items())
        if isinstance(parameter, Choice):
            before[name] = parameter
    assert list(before) == list(CHOICES)


def test_a_walk_asks_for_the_active_parameters_alone_and_in_order() -> None:
    asked: list[str] = []

    def ask(name: str, parameter: Choice | Domain) -> float | str:
        asked.append(name)
        told: Mapping[str, str] = {"objective": "uniface", "target": "learned", "negative": "mv_fixed"}
        return told[name] if isinstance(parameter, Choice) else parameter.low

    values = SPACE.walk(ask)
    assert asked == [
        "objective",
        "objective.uniface.scale.value",
        "target",
        "target.learned.regularizer.strength",
        "negative",
        "negative.mv_fixed.t",
    ]
    spec = SPACE.decode(values)
    assert (spec.scale, spec.gradient) == (parts.ConstantScale(value=4), "exact")


def test_it_starts_at_softmax_without_a_margin() -> None:
    assert SPACE.start == SOFTMAX
    assert SPACE.decode(SPACE.start) == catalog.softmax(scale=16)


def test_it_is_conditional_and_has_no_unit_cube() -> None:
    assert SPACE.conditional
    with pytest.raises(ValueError, match=r"^a space of intervals alone is needed, but Unified has choices$"):
        SPACE.domains  # noqa: B018 (a property that refuses)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"target": None}, "a value for target is needed, but got objective, negative, scale, scale.constant.value"),
        (
            {"target": "cosine"},
            "a value for target.cosine.margin.m3 is needed, but got objective, target, negative, scale, ",
        ),
        ({"target": "arcfce"}, "target must be one of identity, cosine, angular, .*, but got target=arcfce"),
        ({"negative": 1.0}, "negative must be one of identity, mv_adaptive, .*, but got negative=1.0"),
        (
            {"scale.constant.value": 3.9},
            r"scale.constant.value must lie in \[4.0, 128.0\], but got scale.constant.value=3.9",
        ),
        (
            {"negative.npc.t": 1.2},
            "negative.npc.t=1.2 has no place here: it needs that negative is npc$",
        ),
        (
            {"objective": "p2sgrad", "objective.p2sgrad.weight": 1.0},
            "target=identity has no place here: it needs that objective is cross_entropy or poly1 or ",
        ),
        ({"gradient": "exact"}, "gradient=exact has no place here: it needs that target is cosine or .*, or that "),
        ({"seed": 1.0}, "unknown parameter seed=1.0; those needed are objective, target, negative, scale, scale.con"),
    ],
)
def test_bad_values_are_refused_with_a_sentence(changes: dict[str, float | str | None], sentence: str) -> None:
    values = {name: value for name, value in {**SOFTMAX, **changes}.items() if value is not None}
    with pytest.raises(ValueError, match=f"^{sentence}"):
        SPACE.decode(values)


@pytest.mark.parametrize(
    "spec",
    [
        catalog.softmax().replace(weight=2.0),
        catalog.cosface().replace(centers=2),
        catalog.cosface().replace(regularizer=parts.EnergyRegularizer()),
        catalog.magface(lower_norm=5),
        catalog.am_lfs(t=(-1, 0, 1), tau=(1, 1)),
        catalog.p2sgrad(form="update"),
    ],
)
def test_a_loss_outside_has_no_values(spec: LossSpec) -> None:
    with pytest.raises(ValueError, match=r"^the loss is not in the space 'unified': target="):
        SPACE.encode(spec)


def test_a_number_beyond_the_bounds_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"^target.angular.margin.m2_rad must lie in \[0.05, 0.9\], but got .*=1.2$"):
        SPACE.encode(catalog.arcface(margin_rad=1.2))
