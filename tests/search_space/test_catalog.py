"""The catalog's names and defaults, the sentences of what it refuses, and the package's public surface."""

import inspect
import re
from collections.abc import Callable, Sequence

import pytest
from pydantic import ValidationError

import search_space
from search_space import LossSpec, build, catalog
from search_space.parts import (
    AdaCosScale,
    AdaFaceMargin,
    ArcNegNegative,
    CircleNegative,
    CircleTarget,
    ClassSizeMargin,
    CombinedTarget,
    ConstantMargin,
    ConstantScale,
    CurricularNegative,
    EnergyRegularizer,
    FeatureNormScale,
    Focal,
    FreePiecewiseTarget,
    FreePiecewiseTau,
    HardNegativeMargin,
    LearnedMargin,
    LiArcNegative,
    LiArcTarget,
    MagFaceMargin,
    MarginRegularizer,
    ModulatingBinsTarget,
    ModulatingTarget,
    MVNegative,
    NormRegularizer,
    NoScale,
    NPCNegative,
    PiecewiseTarget,
    PiecewiseTau,
    Poly1,
    RandomMargin,
    SFace,
    SoftNormScale,
    SphereFace2,
    SphereFaceRNegative,
    SquaredError,
    UniFace,
    X2Target,
)


def test_the_public_surface_is_pinned() -> None:
    assert search_space.__all__ == [
        "AMLFS",
        "SPACES",
        "AnySpace",
        "Choice",
        "CombinedMargin",
        "Domain",
        "HeadSGD",
        "Loss",
        "LossSchedule",
        "LossSpec",
        "MarginHead",
        "ModulatingBins",
        "ModulatingFactor",
        "ScheduleEntry",
        "ShardedMarginHead",
        "Space",
        "Unified",
        "Values",
        "build",
        "catalog",
        "joined_state",
        "margin_loss",
        "parts",
        "target_logit",
    ]


def test_the_names_are_pinned() -> None:
    assert set(catalog.NAMES) == set(DEFAULTS)
    assert len(catalog.NAMES) == 41
    assert tuple(catalog.ENTRIES) == catalog.NAMES
    assert all(getattr(catalog, name) is catalog.ENTRIES[name].make for name in catalog.NAMES)


def scaled(value: float) -> ConstantScale:
    return ConstantScale(value=value)


MONOTONE, LINEAR = CombinedTarget(guard="monotone"), CombinedTarget(guard="linear")
ARC = LossSpec(target=LINEAR, margin=ConstantMargin(m2_rad=0.5), scale=scaled(64))
SPHEREFACE = LossSpec(target=MONOTONE, margin=ConstantMargin(m1=1.5), scale=scaled(30), gradient="detached")
V2 = LossSpec(negative=SphereFaceRNegative(m=1.4), scale=scaled(60), gradient="detached", weight=50 / 60)
TENTHS = tuple(k / 10 for k in range(-10, 11, 2))

# The published defaults, written out from each paper's or its released code's settings.
DEFAULTS = {
    "softmax": LossSpec(scale=scaled(30)),
    "sphereface": SPHEREFACE,
    "sphereface_plus": SPHEREFACE.replace(regularizer=EnergyRegularizer(strength=0.1)),
    "sphereface_r_v1": LossSpec(
        target=CombinedTarget(guard="clip"),
        margin=ConstantMargin(m1=1.4),
        scale=scaled(60),
        gradient="detached",
        weight=50 / 60,
    ),
    "sphereface_r_v2": V2,
    "sphereface_r_nfn": V2.replace(scale=FeatureNormScale(), weight=1),
    "sphereface_r_sfn": V2.replace(scale=SoftNormScale(norm=60, strength=0.01)),
    "cosface": LossSpec(target=MONOTONE, margin=ConstantMargin(m3=0.35), scale=scaled(64)),
    "arcface": ARC,
    "combined": LossSpec(target=MONOTONE, margin=ConstantMargin(m1=1, m2_rad=0.3, m3=0.2), scale=scaled(64)),
    "li_arcface": LossSpec(
        target=LiArcTarget(), negative=LiArcNegative(), margin=ConstantMargin(m2_rad=0.45), scale=scaled(64)
    ),
    "x2_softmax": LossSpec(target=X2Target(a=-0.9, h_rad=0, k=0.65), scale=scaled(64), gradient="detached"),
    "subcenter_arcface": ARC.replace(centers=3),
    "modulating": LossSpec(target=ModulatingTarget(u=6.4), scale=scaled(32)),
    "modulating_bins": LossSpec(target=ModulatingBinsTarget(u=(6.4,) * 10), scale=scaled(32)),
    "am_lfs": LossSpec(
        target=PiecewiseTarget(knots=TENTHS), objective=PiecewiseTau(slopes=(1,) * 10), scale=scaled(30)
    ),
    "am_lfs_free": LossSpec(
        target=FreePiecewiseTarget(slopes=(1,) * 10, offsets=(0,) * 10),
        objective=FreePiecewiseTau(slopes=(1,) * 10, offsets=(0,) * 10),
        scale=scaled(30),
    ),
    "poly1": LossSpec(objective=Poly1(epsilon=1), scale=scaled(30)),
    "focal": LossSpec(objective=Focal(gamma=2), scale=scaled(30)),
    "mv_am": LossSpec(
        target=MONOTONE,
        negative=MVNegative(t=0.2, variant="adaptive"),
        margin=ConstantMargin(m3=0.35),
        scale=scaled(32),
    ),
    "mv_arc": LossSpec(
        target=LINEAR,
        negative=MVNegative(t=0.2, variant="adaptive"),
        margin=ConstantMargin(m2_rad=0.35),
        scale=scaled(32),
    ),
    "curricularface": ARC.replace(negative=CurricularNegative(rate=0.01)),
    "npcface": LossSpec(
        target=CombinedTarget(only_positive=True),
        negative=NPCNegative(margin_rad=0.5, t=1.1, a=0.2),
        margin=HardNegativeMargin(m0_rad=0.4, m1_rad=0.2),
        scale=scaled(64),
    ),
    "arcnegface": ARC.replace(negative=ArcNegNegative(alpha=1.2, sigma=2)),
    "circle": LossSpec(target=CircleTarget(m=0.25), negative=CircleNegative(m=0.25), scale=scaled(256)),
    "elasticface_arc": ARC.replace(margin=RandomMargin(on="m2_rad", mean=0.5, std=0.05)),
    "elasticface_arc_plus": ARC.replace(margin=RandomMargin(on="m2_rad", mean=0.5, std=0.0175, plus=True)),
    "elasticface_cos": ARC.replace(target=MONOTONE, margin=RandomMargin(on="m3", mean=0.35, std=0.05)),
    "elasticface_cos_plus": ARC.replace(target=MONOTONE, margin=RandomMargin(on="m3", mean=0.35, std=0.02, plus=True)),
    "magface": LossSpec(
        target=CombinedTarget(only_positive=True),
        margin=MagFaceMargin(lower_norm=10, upper_norm=110, lower_rad=0.45, upper_rad=0.8),
        scale=scaled(64),
        regularizer=NormRegularizer(strength=35, lower_norm=10, upper_norm=110),
    ),
    "adaface": LossSpec(
        target=CombinedTarget(guard="clip", clip_rad=1e-3),
        margin=AdaFaceMargin(m=0.4, h=0.333, rate=0.01),
        scale=scaled(64),
    ),
    "adaptiveface": LossSpec(
        target=MONOTONE,
        margin=LearnedMargin(initial=0),
        scale=scaled(30),
        regularizer=MarginRegularizer(strength=70),
    ),
    "class_size": ARC.replace(margin=ClassSizeMargin(a=0.5, b=0.05, power=0.25)),
    "adacos_fixed": LossSpec(scale=AdaCosScale(variant="fixed")),
    "adacos_dynamic": LossSpec(scale=AdaCosScale(variant="dynamic")),
    "p2sgrad": LossSpec(objective=SquaredError(form="loss"), scale=NoScale()),
    "sphereface2_c": LossSpec(
        objective=SphereFace2(variant="C", m=0.4, t=3, alpha=0.7), scale=scaled(40), gradient="detached", weight=50 / 40
    ),
    "sphereface2_a": LossSpec(
        objective=SphereFace2(variant="A", m=0.5, t=3, alpha=0.7), scale=scaled(40), gradient="detached", weight=50 / 40
    ),
    "sphereface2_m": LossSpec(
        objective=SphereFace2(variant="M", m=1.7, t=3, alpha=0.7), scale=scaled(40), gradient="detached", weight=50 / 40
    ),
    "uniface": LossSpec(target=MONOTONE, margin=ConstantMargin(m3=0.4), scale=scaled(64), objective=UniFace()),
    "sface": LossSpec(objective=SFace(k=80, a_rad=0.8, b_rad=1.23), scale=scaled(64)),
}


@pytest.mark.parametrize("name", catalog.NAMES)
def test_the_defaults_are_the_published_ones(name: str) -> None:
    assert catalog.get(name) == DEFAULTS[name]


def test_no_two_names_are_the_same_loss() -> None:
    assert len({catalog.get(name).digest() for name in catalog.NAMES}) == 41


@pytest.mark.parametrize("name", catalog.NAMES)
def test_every_entry_states_its_formula_source_and_defaults(name: str) -> None:
    entry = catalog.ENTRIES[name]
    assert entry.formula
    assert re.search(r"\b20(17|18|19|2[0-6])\b", entry.source)
    assert entry.make(**entry.defaults()) == catalog.get(name)
    assert inspect.getdoc(entry.make)


def test_the_losses_without_hyper_parameters_have_none() -> None:
    assert dict(catalog.ENTRIES["adacos_fixed"].defaults()) == {}
    assert dict(catalog.ENTRIES["adacos_dynamic"].defaults()) == {}
    assert dict(catalog.ENTRIES["p2sgrad"].defaults()) == {"weight": 1.0, "form": "loss"}


def test_get_passes_parameters_on() -> None:
    spec = catalog.get("combined", m1=1.1, m2_rad=0.2, m3=0.3, scale=20, gradient="detached")
    assert spec == catalog.combined(1.1, 0.2, 0.3, 20, "detached")
    assert spec.margin == ConstantMargin(m1=1.1, m2_rad=0.2, m3=0.3)
    assert spec.scale == ConstantScale(value=20)
    assert catalog.get("modulating_bins", margins=[0.1] * 10, scale=10).target == ModulatingBinsTarget(u=(1,) * 10)
    assert catalog.get("am_lfs", t=[-1, 0.5, 1], tau=[2, 3]) == LossSpec(
        target=PiecewiseTarget(knots=(-1, 0.5, 1)), objective=PiecewiseTau(slopes=(2, 3)), scale=scaled(30)
    )
    assert catalog.get("sphereface2_a", scale=64, lw=10).weight == 10 / 64


@pytest.mark.parametrize(
    ("name", "parameters", "sentence"),
    [
        ("nope", {}, f"unknown loss 'nope'; known are {', '.join(catalog.NAMES)}"),
        ("arkface", {}, "unknown loss 'arkface'; did you mean 'arcface'?"),
        ("ArcFace", {}, "unknown loss 'ArcFace'; did you mean 'arcface'?"),
        ("arcface", {"margin": 0.5}, "loss 'arcface' has no parameter 'margin'; it has margin_rad, scale, gradient"),
        ("adacos_dynamic", {"scale": 30}, "loss 'adacos_dynamic' has no parameter 'scale'; it has none"),
        ("modulating", {"margin": "x"}, "parameter 'margin' of loss 'modulating' must be a number, but got 'x'"),
        ("cosface", {"scale": "64"}, "parameter 'scale' of loss 'cosface' must be a number, but got '64'"),
        ("cosface", {"margin": True}, "parameter 'margin' of loss 'cosface' must be a number, but got True"),
        ("cosface", {"margin": [0.3]}, "parameter 'margin' of loss 'cosface' must be a number, but got [0.3]"),
        (
            "subcenter_arcface",
            {"centers": True},
            "parameter 'centers' of loss 'subcenter_arcface' must be a number, but got True",
        ),
        (
            "modulating_bins",
            {"margins": 0.2},
            "parameter 'margins' of loss 'modulating_bins' must be a list of numbers, but got 0.2",
        ),
        (
            "modulating_bins",
            {"margins": "0.2"},
            "parameter 'margins' of loss 'modulating_bins' must be a list of numbers, but got '0.2'",
        ),
        ("am_lfs", {"t": True}, "parameter 't' of loss 'am_lfs' must be a list of numbers, but got True"),
        (
            "am_lfs",
            {"tau": [1, True]},
            "parameter 'tau' of loss 'am_lfs' must be a list of numbers, but got [1, True]",
        ),
        (
            "am_lfs_free",
            {"t_slopes": [1, "2"]},
            "parameter 't_slopes' of loss 'am_lfs_free' must be a list of numbers, but got [1, '2']",
        ),
    ],
)
def test_get_refuses_what_it_does_not_know(name: str, parameters: dict[str, catalog.Value], sentence: str) -> None:
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
        ("p2sgrad", {"form": "squares"}, r"form\n.*'loss' or 'update'"),
        ("mv_am", {"variant": "both"}, r"variant\n.*'adaptive' or 'fixed'"),
        ("subcenter_arcface", {"centers": 2.5}, r"centers\n.*valid integer"),
        ("modulating_bins", {"margins": [0.1] * 9}, r"u\n.*at least 10 items"),
        ("modulating_bins", {"margins": [0.1] * 11}, r"u\n.*at most 10 items"),
        ("am_lfs", {"t": [0.0]}, r"knots\n.*at least 2 items"),
        ("am_lfs", {"tau": [1.0, 0.0]}, r"slopes.1\n.*greater than 0"),
        ("am_lfs", {"t": [0.0, float("inf")]}, r"knots.1\n.*finite number"),
        (
            "am_lfs_free",
            {"tau_slopes": [1.0, 1.0], "tau_offsets": [0.0]},
            "slopes and offsets must be as many, but got 2 and 1",
        ),
        ("sphereface2_c", {"margin": 1.2}, r"m of variant 'C' must lie in \[0, 1\], but got m=1.2"),
        ("sphereface2_a", {"margin_rad": 1.6}, r"m of variant 'A' must lie in \[0, 1.57\], but got m=1.6"),
        ("sphereface2_m", {"m": 0.9}, r"m of variant 'M' must lie in \[1, 4\], but got m=0.9"),
        (
            "magface",
            {"lower_norm": 110},
            "lower_norm < upper_norm .* must hold, but got norms 110, 110 and margins 0.45, 0.8",
        ),
        (
            "magface",
            {"lower_margin_rad": 0.9},
            "lower_rad <= upper_rad must hold, but got norms 10, 110 and margins 0.9, 0.8",
        ),
    ],
)
def test_get_refuses_values_out_of_range(name: str, parameters: dict[str, catalog.Value], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        catalog.get(name, **parameters)


def test_a_regularizer_needs_norms_that_rise() -> None:
    with pytest.raises(ValueError, match=r"lower_norm < upper_norm must hold, but got norms 110, 10"):
        NormRegularizer(lower_norm=110, upper_norm=10)


@pytest.mark.parametrize("name", catalog.NAMES)
def test_a_built_loss_keeps_its_spec(name: str) -> None:
    loss = build(catalog.get(name), num_classes=7, class_counts=[3] * 7)
    assert loss.spec == catalog.get(name)
    assert loss.num_classes == 7


COUNTS_SENTENCE = (
    "margin 'class_size' needs class_counts, a positive number of images for each of the 3 classes, but got "
)


@pytest.mark.parametrize(
    ("name", "counts", "seen", "sentence"),
    [
        ("class_size", None, None, COUNTS_SENTENCE + "none"),
        ("class_size", [1, 2], None, COUNTS_SENTENCE + "2, the least 1"),
        ("class_size", [], None, COUNTS_SENTENCE + "0, the least 0"),
        ("class_size", [1, 0, 2], None, COUNTS_SENTENCE + "3, the least 0"),
        ("softmax", None, 1, "classes_seen must lie in [2, num_classes=3], but got classes_seen=1"),
        ("softmax", None, 4, "classes_seen must lie in [2, num_classes=3], but got classes_seen=4"),
    ],
)
def test_build_refuses_what_the_loss_cannot_be_built_from(
    name: str, counts: Sequence[int] | None, seen: int | None, sentence: str
) -> None:
    with pytest.raises(ValueError) as raised:  # noqa: PT011 (the whole sentence is compared)
        build(catalog.get(name), num_classes=3, class_counts=counts, classes_seen=seen)
    assert str(raised.value) == sentence


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda: catalog.arcface().replace(scale=NoScale()), "objective 'cross_entropy' needs a scale"),
        (lambda: catalog.softmax().replace(gradient="detached"), "has no map to detach"),
        (lambda: catalog.subcenter_arcface().replace(regularizer=EnergyRegularizer()), "needs centers = 1"),
        (lambda: catalog.softmax().replace(weight=-1), "weight\n.*greater than 0"),
        (lambda: catalog.softmax().replace(margins=1), "margins\n.*Extra inputs"),
    ],
)
def test_replace_checks_like_any_spec(change: Callable[[], LossSpec], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        change()


def test_replace_leaves_the_original_alone() -> None:
    spec = catalog.arcface()
    assert spec.replace(weight=2).weight == 2
    assert spec == catalog.arcface()
