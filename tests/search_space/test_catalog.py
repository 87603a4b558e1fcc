"""The catalog's names and defaults, and the package's public surface."""

import inspect

import pytest

import search_space
from search_space import LossSpec, build, catalog
from search_space.parts import (
    AdaCosScale,
    CombinedTarget,
    ConstantMargin,
    ConstantScale,
    CrossEntropy,
    IdentityTarget,
    ModulatingTarget,
    NoMargin,
    NoScale,
    SquaredError,
)


def test_the_public_surface_is_pinned() -> None:
    assert search_space.__all__ == [
        "SPACES",
        "AnySpace",
        "CombinedMargin",
        "Domain",
        "Loss",
        "LossSchedule",
        "LossSpec",
        "MarginHead",
        "ModulatingFactor",
        "ScheduleEntry",
        "Space",
        "build",
        "catalog",
        "target_logit",
    ]


def test_the_names_are_pinned() -> None:
    assert catalog.NAMES == (
        "softmax",
        "sphereface",
        "cosface",
        "arcface",
        "combined",
        "modulating",
        "adacos_fixed",
        "adacos_dynamic",
        "p2sgrad",
    )
    assert tuple(catalog.ENTRIES) == catalog.NAMES


# The published defaults, written out from each paper's table of settings.
DEFAULTS = {
    "softmax": LossSpec(target=IdentityTarget(), margin=NoMargin(), scale=ConstantScale(value=30)),
    "sphereface": LossSpec(
        target=CombinedTarget(guard="monotone"),
        margin=ConstantMargin(m1=1.5),
        scale=ConstantScale(value=30),
        gradient="detached",
    ),
    "cosface": LossSpec(target=CombinedTarget(), margin=ConstantMargin(m3=0.35), scale=ConstantScale(value=64)),
    "arcface": LossSpec(
        target=CombinedTarget(guard="linear"), margin=ConstantMargin(m2_rad=0.5), scale=ConstantScale(value=64)
    ),
    "combined": LossSpec(
        target=CombinedTarget(guard="monotone"),
        margin=ConstantMargin(m1=1.0, m2_rad=0.3, m3=0.2),
        scale=ConstantScale(value=64),
    ),
    "modulating": LossSpec(target=ModulatingTarget(u=6.4), scale=ConstantScale(value=32)),
    "adacos_fixed": LossSpec(scale=AdaCosScale(variant="fixed")),
    "adacos_dynamic": LossSpec(scale=AdaCosScale(variant="dynamic")),
    "p2sgrad": LossSpec(objective=SquaredError(), scale=NoScale()),
}


@pytest.mark.parametrize("name", catalog.NAMES)
def test_the_defaults_are_the_published_ones(name: str) -> None:
    spec = catalog.get(name)
    assert spec == DEFAULTS[name]
    assert spec.weight == 1
    assert spec.gradient == ("detached" if name == "sphereface" else "exact")
    assert isinstance(spec.objective, SquaredError if name == "p2sgrad" else CrossEntropy)


@pytest.mark.parametrize("name", catalog.NAMES)
def test_every_entry_states_its_formula_source_and_defaults(name: str) -> None:
    entry = catalog.ENTRIES[name]
    assert entry.formula
    assert any(year in entry.source for year in ("2017", "2018", "2019", "2020"))
    assert entry.make(**entry.defaults()) == catalog.get(name)
    assert inspect.getdoc(entry.make)


def test_the_losses_without_hyper_parameters_have_none() -> None:
    assert dict(catalog.ENTRIES["adacos_fixed"].defaults()) == {}
    assert dict(catalog.ENTRIES["adacos_dynamic"].defaults()) == {}
    assert dict(catalog.ENTRIES["p2sgrad"].defaults()) == {"weight": 1.0}


def test_get_passes_parameters_on() -> None:
    spec = catalog.get("combined", m1=1.1, m2_rad=0.2, m3=0.3, scale=20, gradient="detached")
    assert spec == catalog.combined(1.1, 0.2, 0.3, 20, "detached")
    assert spec.margin == ConstantMargin(m1=1.1, m2_rad=0.2, m3=0.3)
    assert spec.scale == ConstantScale(value=20)


@pytest.mark.parametrize(
    ("name", "parameters", "sentence"),
    [
        ("arkface", {}, f"unknown loss 'arkface'; known are {', '.join(catalog.NAMES)}"),
        ("arcface", {"margin": 0.5}, "loss 'arcface' has no parameter 'margin'; it has margin_rad, scale, gradient"),
        ("adacos_dynamic", {"scale": 30}, "loss 'adacos_dynamic' has no parameter 'scale'; it has none"),
        ("modulating", {"margin": "x"}, "parameter 'margin' of loss 'modulating' must be a number, but got 'x'"),
        ("cosface", {"scale": "64"}, "parameter 'scale' of loss 'cosface' must be a number, but got '64'"),
        ("cosface", {"margin": True}, "parameter 'margin' of loss 'cosface' must be a number, but got True"),
    ],
)
def test_get_refuses_what_it_does_not_know(name: str, parameters: dict[str, float | str], sentence: str) -> None:
    with pytest.raises(ValueError) as raised:  # noqa: PT011 (the whole sentence is compared)
        catalog.get(name, **parameters)
    assert str(raised.value) == sentence


@pytest.mark.parametrize(
    ("name", "parameters", "sentence"),
    [
        ("arcface", {"margin_rad": 28.6}, r"m2_rad\n.*less than or equal to 1.57"),
        ("arcface", {"gradient": "soft"}, r"gradient\n.*'exact' or 'detached'"),
        ("cosface", {"margin": float("nan")}, r"m3\n.*finite number"),
        ("softmax", {"scale": 0}, r"value\n.*greater than 0"),
        ("modulating", {"margin": -0.1}, r"u\n.*greater than or equal to 0"),
        ("p2sgrad", {"weight": 0}, r"weight\n.*greater than 0"),
    ],
)
def test_get_refuses_values_out_of_range(name: str, parameters: dict[str, float | str], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        catalog.get(name, **parameters)


@pytest.mark.parametrize("name", catalog.NAMES)
def test_a_built_loss_keeps_its_spec(name: str) -> None:
    loss = build(catalog.get(name), num_classes=7)
    assert loss.spec == catalog.get(name)
    assert loss.num_classes == 7
