import math
import typing

import pytest

from analysis.losses import _PHRASES, describe, parameters, reference_losses
from search_space import LossSpec, catalog, parts

FIELD_NAMES = {
    "curricularface": "CurricularFace m=0.5 rad s=64",
    "mv_arc": "MV-Arc-Softmax m=0.35 rad t=0.2 s=32",
    "npcface": "NPCFace m0=0.4 rad m1=0.2 rad m=0.5 rad t=1.1 a=0.2 s=64",
    "magface": "MagFace lower_norm=10 upper_norm=110 lower=0.45 rad upper=0.8 rad strength=35 s=64",
    "elasticface_arc": "ElasticFace-Arc mean=0.5 rad std=0.05 rad s=64",
    "subcenter_arcface": "Sub-center ArcFace m=0.5 rad K=3 s=64",
    "sphereface_r_sfn": "SphereFace-R SFN m=1.4 norm=60 strength=0.01 ×0.833 detached",
    "sphereface2_c": "SphereFace2-C m=0.4 t=3 alpha=0.7 s=40 ×1.25 detached",
    "sface": "SFace k=80 a=0.8 rad b=1.23 rad s=64",
}


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (catalog.softmax(scale=30), "softmax s=30"),
        (catalog.sphereface(m=1.5, scale=30), "SphereFace m=1.5 s=30 detached"),
        (catalog.cosface(margin=0.35, scale=64), "CosFace m=0.35 s=64"),
        (catalog.arcface(margin_rad=0.5, scale=64), "ArcFace m=0.5 rad s=64"),
        (catalog.combined(), "combined m1=1 m2=0.3 rad m3=0.2 s=64"),
        (catalog.modulating(margin=0.2, scale=32), "modulating u=6.4 (m=0.200) s=32"),
        (catalog.modulating_bins((0.1,) * 9 + (0.3,), scale=10), "modulating bins u=[1 1 1 1 1 1 1 1 1 3] s=10"),
        (catalog.adacos_fixed(), "AdaCos fixed"),
        (catalog.adacos_dynamic(), "AdaCos dynamic"),
        (catalog.p2sgrad(weight=10), "P2SGrad ×10"),
        *((catalog.get(name), words) for name, words in FIELD_NAMES.items()),
    ],
)
def test_a_known_loss_has_the_name_that_the_field_knows_and_all_its_numbers(spec: LossSpec, words: str) -> None:
    assert describe(spec) == words


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (
            catalog.combined(m3=0, gradient="detached").replace(
                negative=parts.MVNegative(), scale=parts.AdaCosScale(), weight=2
            ),
            "combined m1=1 m2=0.3 rad m3=0, MV-Softmax negatives t=0.2, AdaCos dynamic ×2 detached",
        ),
        (catalog.mv_arc(variant="fixed"), "ArcFace m=0.35 rad, MV-Softmax negatives fixed t=0.2 s=32"),
        (catalog.arcface().replace(target=parts.CombinedTarget()), "combined m1=1 m2=0.5 rad m3=0 s=64"),
        (
            catalog.magface().replace(regularizer=parts.NoRegularizer(), centers=2),
            "combined only positive MagFace margin lower_norm=10 upper_norm=110 lower=0.45 rad upper=0.8 rad K=2 s=64",
        ),
        (
            catalog.softmax(16).replace(negative=parts.CurricularNegative(rate=0.1), objective=parts.Focal(gamma=1)),
            "softmax, Curricular negatives rate=0.1, focal gamma=1 s=16",
        ),
        (
            catalog.cosface().replace(scale=parts.FeatureNormScale(), regularizer=parts.EnergyRegularizer()),
            "CosFace m=0.35, hyperspherical energy strength=0.1, s=‖x‖",
        ),
        (catalog.p2sgrad(form="update"), "P2SGrad update"),
        (
            catalog.modulating().replace(objective=parts.PiecewiseTau(slopes=(1, 2)), scale=parts.FeatureNormScale()),
            "modulating u=6.4, piecewise τ τ slopes=[1 2], s=‖x‖",
        ),
    ],
)
def test_a_loss_without_a_name_is_described_by_its_parts(spec: LossSpec, words: str) -> None:
    assert describe(spec) == words


def test_every_loss_of_the_catalog_is_told_from_every_other() -> None:
    words = {name: describe(catalog.get(name)) for name in catalog.NAMES}
    assert len(set(words.values())) == len(words)
    assert not [said for said in words.values() if "None" in said or "  " in said or "," in said]


def test_every_part_that_adds_something_has_a_phrase() -> None:
    silent = {parts.IdentityNegative, parts.NoMargin, parts.NoScale, parts.ConstantScale, parts.CrossEntropy}
    unions = (parts.TargetMap, parts.NegativeMap, parts.Margin, parts.Scale, parts.Objective, parts.Regularizer)
    known = {part for union in unions for part in typing.get_args(typing.get_args(union)[0])}
    assert set(_PHRASES) == known - silent - {parts.NoRegularizer}


@pytest.mark.parametrize(
    ("spec", "numbers"),
    [
        (catalog.arcface(), {"m1": 1, "m2_rad": 0.5, "m3": 0, "scale": 64}),
        (catalog.modulating(), {"u": 6.4, "scale": 32}),
        (catalog.circle(), {"target.m": 0.25, "negative.m": 0.25, "scale": 256}),
        (catalog.poly1(epsilon=2), {"objective.epsilon": 2, "scale": 30}),
        (
            catalog.sphereface_r_sfn(weight=0.5),
            {"negative.m": 1.4, "scale.norm": 60, "scale.strength": 0.01, "weight": 0.5},
        ),
        (catalog.subcenter_arcface(), {"m1": 1, "m2_rad": 0.5, "m3": 0, "scale": 64, "centers": 3}),
        (
            catalog.am_lfs(t=(-1, 0, 2), tau=(1, 3)),
            {"t_0": -1, "t_1": 0, "t_2": 2, "tau_slope_0": 1, "tau_slope_1": 3, "scale": 30},
        ),
        (
            catalog.adaface(),
            {"target.clip_rad": 1e-3, "margin.m": 0.4, "margin.h": 0.333, "margin.rate": 0.01, "scale": 64},
        ),
        (catalog.p2sgrad(), {}),
    ],
)
def test_the_numbers_of_a_loss_have_stable_names(spec: LossSpec, numbers: dict[str, float]) -> None:
    assert parameters(spec) == numbers


@pytest.mark.parametrize("name", catalog.NAMES)
def test_every_number_of_a_loss_is_among_its_parameters(name: str) -> None:
    spec = catalog.get(name)
    dump = spec.model_dump(exclude={"gradient", "centers", "weight"})
    flat = [value for part in dump.values() for field, value in part.items() if (field, value) != ("clip_rad", 0.0)]
    numbers = [number for value in flat for number in (value if isinstance(value, tuple) else [value])]
    found = parameters(spec)
    expected = [number for number in numbers if isinstance(number, float)]
    extra = [float(number) for number in (spec.centers, spec.weight) if number != 1]
    assert sorted(found.values()) == sorted(expected + extra)


def test_references_share_the_losss_scale_or_adacos_fixed_one() -> None:
    assert "ArcFace m=0.5 rad s=16" in reference_losses(catalog.modulating(scale=16), 300)
    fixed = math.sqrt(2) * math.log(299)
    assert f"softmax s={fixed:.3g}" in reference_losses(catalog.adacos_dynamic(), 300)


def test_two_classes_have_no_adacos_to_compare_with() -> None:
    assert not [name for name in reference_losses(catalog.softmax(), 2) if "AdaCos" in name]
