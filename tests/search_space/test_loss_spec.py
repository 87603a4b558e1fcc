"""`LossSpec` is a value: it survives JSON, names itself, cannot change, and refuses what does not fit."""

import json
import math
import subprocess
import sys
from collections.abc import Callable

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from pydantic import BaseModel, ValidationError

from search_space import SPACES, LossSpec, catalog
from search_space.parts import (
    AdaCosScale,
    AdaFaceMargin,
    CircleTarget,
    ClassSizeMargin,
    CombinedTarget,
    ConstantMargin,
    ConstantScale,
    EnergyRegularizer,
    FeatureNormScale,
    FreePiecewiseTarget,
    HardNegativeMargin,
    LearnedMargin,
    LiArcTarget,
    MagFaceMargin,
    MarginRegularizer,
    ModulatingBinsTarget,
    ModulatingTarget,
    MVNegative,
    NoMargin,
    NoScale,
    PiecewiseTarget,
    RandomMargin,
    SFace,
    SoftNormScale,
    SphereFace2,
    SquaredError,
    UniFace,
    X2Target,
)
from tests.search_space.strategies import specs

UNHURRIED = settings(deadline=None, derandomize=True)

SAMPLED = st.builds(
    lambda kind, seed: SPACES[kind]().sample(np.random.default_rng(seed)),
    st.sampled_from(list(SPACES)),
    st.integers(0, 2**32),
)
NAMED = st.sampled_from([catalog.get(name) for name in catalog.NAMES])
SPECS = st.one_of(NAMED, SAMPLED, specs())


@given(SPECS)
@UNHURRIED
def test_a_spec_survives_json(spec: LossSpec) -> None:
    again = LossSpec.model_validate_json(spec.model_dump_json())
    assert again == spec
    assert again.digest() == spec.digest()
    assert hash(again) == hash(spec)
    assert LossSpec.model_validate(json.loads(json.dumps(spec.model_dump(mode="json")))) == spec


@given(SPECS, SPECS)
@UNHURRIED
def test_equal_specs_and_only_those_share_a_digest(one: LossSpec, other: LossSpec) -> None:
    assert (one.digest() == other.digest()) == (one == other)


def test_a_digest_is_twelve_hex_digits() -> None:
    for name in catalog.NAMES:
        digest = catalog.get(name).digest()
        assert len(digest) == 12
        assert int(digest, 16) >= 0


PRINT_DIGESTS = """
import sys
from search_space import LossSpec
for line in sys.stdin:
    print(LossSpec.model_validate_json(line).digest())
"""


def test_digests_are_the_same_in_another_process(pytestconfig: pytest.Config) -> None:
    lines = [catalog.get(name).model_dump_json() for name in catalog.NAMES]
    answer = subprocess.run(
        [sys.executable, "-c", PRINT_DIGESTS],
        input="\n".join(lines),
        cwd=pytestconfig.rootpath,
        capture_output=True,
        text=True,
        check=True,
    )
    assert answer.stdout.split() == [catalog.get(name).digest() for name in catalog.NAMES]
    assert len(set(answer.stdout.split())) == len(catalog.NAMES)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (catalog.cosface(margin=0), catalog.cosface(margin=-0.0)),
        (catalog.modulating(margin=0), catalog.modulating(margin=-0.0)),
        (catalog.softmax(30), catalog.softmax(30.0)),
        (catalog.combined(1, 0, 0, 64), catalog.combined(1.0, 0.0, 0.0, 64.0)),
        (LossSpec(), LossSpec(margin=NoMargin(), weight=1)),
    ],
)
def test_negative_zeros_integers_and_defaults_written_out_change_nothing(one: LossSpec, other: LossSpec) -> None:
    assert one == other
    assert one.digest() == other.digest()
    assert one.model_dump_json() == other.model_dump_json()
    assert "-0.0" not in other.model_dump_json()


@pytest.mark.parametrize(
    "part", [LossSpec(), catalog.cosface().margin, catalog.cosface().scale, catalog.cosface().target]
)
def test_specs_and_their_parts_are_frozen(part: BaseModel) -> None:
    for field in type(part).model_fields:
        with pytest.raises(ValidationError, match="frozen"):
            setattr(part, field, 1)


@pytest.mark.parametrize(
    "text",
    [
        '{"margn": {"kind": "none"}}',
        '{"target": {"kind": "identity", "u": 1}}',
        '{"scale": {"kind": "constant", "value": 8, "unit": "logits"}}',
    ],
)
def test_unknown_fields_are_refused(text: str) -> None:
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        LossSpec.model_validate_json(text)


@pytest.mark.parametrize("part", ["target", "negative", "margin", "scale", "objective", "regularizer"])
def test_unknown_kinds_are_refused_with_those_that_exist(part: str) -> None:
    with pytest.raises(ValidationError, match=r"'magic' .*does not match any of the expected tags"):
        LossSpec.model_validate({part: {"kind": "magic"}})


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, "nan"])
@pytest.mark.parametrize(
    ("model", "field"),
    [
        (ConstantMargin, "m1"),
        (ConstantMargin, "m2_rad"),
        (ConstantMargin, "m3"),
        (ConstantScale, "value"),
        (ModulatingTarget, "u"),
        (LossSpec, "weight"),
        (ClassSizeMargin, "power"),
        (SFace, "k"),
        (SphereFace2, "t"),
    ],
)
def test_nan_and_infinity_are_refused(model: type[BaseModel], field: str, bad: float | str) -> None:
    with pytest.raises(ValidationError, match=rf"{field}\n.*finite number"):
        model.model_validate({field: bad})


@pytest.mark.parametrize("text", ['{"weight": NaN}', '{"weight": Infinity}', '{"weight": 1e999}'])
def test_nan_and_infinity_are_refused_in_json(text: str) -> None:
    with pytest.raises(ValidationError, match="finite number"):
        LossSpec.model_validate_json(text)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: ConstantMargin(m1=0.99), r"m1\n.*greater than or equal to 1"),
        (lambda: ConstantMargin(m1=4.01), r"m1\n.*less than or equal to 4"),
        (lambda: ConstantMargin(m2_rad=-0.01), r"m2_rad\n.*greater than or equal to 0"),
        (lambda: ConstantMargin(m2_rad=28.6), r"m2_rad\n.*less than or equal to 1.57"),
        (lambda: ConstantMargin(m3=-0.35), r"m3\n.*greater than or equal to 0"),
        (lambda: ConstantMargin(m3=1.01), r"m3\n.*less than or equal to 1"),
        (lambda: ConstantScale(value=0), r"value\n.*greater than 0"),
        (lambda: ConstantScale(value=1025), r"value\n.*less than or equal to 1024"),
        (lambda: ModulatingTarget(u=-0.1), r"u\n.*greater than or equal to 0"),
        (lambda: ModulatingTarget(u=513), r"u\n.*less than or equal to 512"),
        (lambda: LossSpec(weight=0), r"weight\n.*greater than 0"),
        (lambda: LossSpec(weight=1001), r"weight\n.*less than or equal to 1000"),
    ],
)
def test_numbers_out_of_range_are_refused_by_name(make: Callable[[], BaseModel], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        make()


COMBINED, MARGIN = CombinedTarget(), ConstantMargin(m3=0.1)
LEARNED, SQUARES = LearnedMargin(), {"objective": SquaredError(), "scale": NoScale()}
DETACHED: dict[str, object] = {"gradient": "detached"}

MISFITS: list[tuple[dict[str, object], str]] = [
    # A map and its margins
    ({"target": COMBINED}, "target map 'combined' needs a margin provider, but got margin 'none'"),
    ({"target": LiArcTarget()}, "target map 'li_arc' needs a margin provider, but got margin 'none'"),
    ({"margin": MARGIN}, "target map 'identity' takes no margin, but got margin 'constant'"),
    (
        {"target": ModulatingTarget(u=1), "margin": MARGIN},
        "target map 'modulating' takes no margin, but got margin 'constant'",
    ),
    (
        {"target": ModulatingBinsTarget(u=(1,) * 10), "margin": LEARNED},
        "target map 'modulating_bins' takes no margin, but got margin 'learned'",
    ),
    ({"target": X2Target(), "margin": AdaFaceMargin()}, "target map 'x2' takes no margin, but got margin 'adaface'"),
    ({"target": CircleTarget(), "margin": MARGIN}, "target map 'circle' takes no margin, but got margin 'constant'"),
    (
        {"target": PiecewiseTarget(knots=(-1, 1)), "margin": MagFaceMargin()},
        "target map 'piecewise' takes no margin, but got margin 'magface'",
    ),
    (
        {"target": FreePiecewiseTarget(slopes=(1,), offsets=(0,)), "margin": ClassSizeMargin()},
        "target map 'piecewise_free' takes no margin, but got margin 'class_size'",
    ),
    (
        {"target": LiArcTarget(), "margin": ConstantMargin(m1=2, m2_rad=0.1, m3=0.1)},
        "target map 'li_arc' takes m2_rad alone, but margin 'constant' gives m1, m2_rad, m3",
    ),
    (
        {"target": LiArcTarget(), "margin": LEARNED},
        "target map 'li_arc' takes m2_rad alone, but margin 'learned' gives m3",
    ),
    (
        {"target": LiArcTarget(), "margin": RandomMargin(on="m3", mean=0.3, std=0.1)},
        "target map 'li_arc' takes m2_rad alone, but margin 'random' gives m3",
    ),
    (
        {"target": LiArcTarget(), "margin": AdaFaceMargin()},
        "target map 'li_arc' takes m2_rad alone, but margin 'adaface' gives m2_rad, m3",
    ),
    (
        {"target": COMBINED, "margin": HardNegativeMargin()},
        "margin 'hard_negatives' needs negative map 'npc' to say what is hard, but got 'identity'",
    ),
    # Guards
    (
        {"target": CombinedTarget(guard="linear"), "margin": ConstantMargin(m1=1.5)},
        "guard 'linear' needs m1 = 1, but got m1=1.5; use 'monotone'",
    ),
    (
        {"target": CombinedTarget(clip_rad=0.01), "margin": MARGIN},
        "clip_rad belongs to guard 'clip', but got clip_rad=0.01 with guard 'monotone'",
    ),
    (
        {"target": CombinedTarget(guard="none"), "margin": MARGIN},
        "guard 'none' needs gradient 'detached': past π the exact gradient changes sign",
    ),
    # Scales and objectives
    ({"scale": NoScale()}, "objective 'cross_entropy' needs a scale, but got scale 'none'"),
    ({"objective": SFace(), "scale": NoScale()}, "objective 'sface' needs a scale, but got scale 'none'"),
    (
        {"objective": SquaredError()},
        "objective 'p2sgrad' ignores the scale, so it needs scale 'none', but got scale 'constant'",
    ),
    (
        {"objective": SquaredError(), "scale": FeatureNormScale()},
        "objective 'p2sgrad' ignores the scale, so it needs scale 'none', but got scale 'feature_norm'",
    ),
    (
        {"objective": UniFace(), "scale": AdaCosScale()},
        "objective 'uniface' is no softmax and needs scale 'constant', but got scale 'adacos'",
    ),
    (
        {"objective": SphereFace2(), "scale": SoftNormScale()},
        "objective 'sphereface2' is no softmax and needs scale 'constant', but got scale 'soft_norm'",
    ),
    (
        {"objective": SFace(), "scale": FeatureNormScale()},
        "objective 'sface' is no softmax and needs scale 'constant', but got scale 'feature_norm'",
    ),
    (
        {**SQUARES, "target": COMBINED, "margin": MARGIN},
        "objective 'p2sgrad' takes target map 'identity', but got 'combined'",
    ),
    (
        {"objective": SFace(), "target": CircleTarget()},
        "objective 'sface' takes target map 'identity', but got 'circle'",
    ),
    (
        {"objective": SphereFace2(), "negative": MVNegative()},
        "objective 'sphereface2' takes negative map 'identity', but got 'mv'",
    ),
    # Gradient modes
    (
        {**SQUARES, **DETACHED},
        "objective 'p2sgrad' on bare cosines has no map to detach: gradient must be 'exact'",
    ),
    (
        {"objective": SFace(), **DETACHED},
        "objective 'sface' on bare cosines has no map to detach: gradient must be 'exact'",
    ),
    (DETACHED, "objective 'cross_entropy' on bare cosines has no map to detach: gradient must be 'exact'"),
    (
        {"target": COMBINED, "margin": LEARNED, **DETACHED},
        "margin 'learned' needs gradient 'exact': detached, nothing would teach it",
    ),
    # Regularizers
    (
        {"target": COMBINED, "margin": MARGIN, "regularizer": MarginRegularizer()},
        "regularizer 'adam' needs margin 'learned', but got margin 'constant'",
    ),
    (
        {"regularizer": EnergyRegularizer(), "centers": 2},
        "regularizer 'hyperspherical_energy' needs centers = 1, but got centers=2",
    ),
]


@pytest.mark.parametrize(("parts", "sentence"), MISFITS)
def test_parts_that_do_not_fit_are_refused_with_a_sentence(parts: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValidationError) as raised:
        LossSpec.model_validate(parts)
    assert raised.value.error_count() == 1
    assert raised.value.errors()[0]["msg"] == f"Value error, {sentence}"


def test_a_gradient_mode_is_part_of_the_identity() -> None:
    exact, detached = catalog.arcface(), catalog.arcface(gradient="detached")
    assert exact != detached
    assert exact.digest() != detached.digest()
