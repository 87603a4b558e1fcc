"""Spaces: values become losses and come back exactly; samples lie inside, repeat, build and train."""

import math
from collections.abc import Callable

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from pydantic import TypeAdapter, ValidationError

from search_space import (
    AMLFS,
    SPACES,
    AnySpace,
    Choice,
    CombinedMargin,
    Domain,
    LossSpec,
    MarginHead,
    ModulatingBins,
    ModulatingFactor,
    Space,
    Unified,
    Values,
    build,
    catalog,
)

UNHURRIED = settings(deadline=None, derandomize=True)

INSTANCES: dict[str, Space] = {
    "modulating_factor": ModulatingFactor(),
    "modulating_factor at its largest": ModulatingFactor(scale=512, margin_high=1),
    "modulating_bins": ModulatingBins(),
    "modulating_bins at its largest": ModulatingBins(scale=512, margin_high=1),
    "am_lfs": AMLFS(),
    "am_lfs, two pieces, detached": AMLFS(pieces=2, scale=64, gradient="detached"),
    "am_lfs, free": AMLFS(mode="free"),
    "combined_margin": CombinedMargin(),
    "combined_margin, all free": CombinedMargin(m1=(1, 1.5), scale=(8, 64), gradient="exact"),
    "combined_margin, angular only": CombinedMargin(m1=(1, 1), m3=(0.1, 0.1), scale=(32, 32)),
    "combined_margin at its widest": CombinedMargin(m1=(1, 4), m2_rad=(0, math.pi / 2), m3=(0, 1), scale=(0.1, 1024)),
    "unified": Unified(),
}
ANY = st.sampled_from(list(INSTANCES))
each_space = pytest.mark.parametrize("name", INSTANCES)


def any_value(data: st.DataObject) -> Callable[[str, Domain | Choice], float | str]:
    """What hypothesis gives for a parameter that is asked for."""

    def ask(name: str, parameter: Domain | Choice) -> float | str:
        if isinstance(parameter, Choice):
            return data.draw(st.sampled_from(parameter.options), label=name)
        return data.draw(st.floats(parameter.low, parameter.high), label=name)

    return ask


def assert_within(space: Space, values: Values) -> None:
    """The values are those of the active parameters, each inside its domain."""
    assert space.walk(lambda name, _: values[name]) == values
    for name, value in values.items():
        parameter = space.parameters[name]
        if isinstance(parameter, Choice):
            assert value in parameter.options
        else:
            assert parameter.low <= float(value) <= parameter.high


def test_every_kind_of_space_is_tried() -> None:
    assert {type(space) for space in INSTANCES.values()} == set(SPACES.values())


@given(st.data(), ANY)
@UNHURRIED
def test_encode_undoes_decode_exactly(data: st.DataObject, name: str) -> None:
    space = INSTANCES[name]
    values = space.walk(any_value(data))
    spec = space.decode(values)
    assert space.encode(spec) == values
    assert space.encode(LossSpec.model_validate_json(spec.model_dump_json())) == values
    assert space.decode(space.encode(spec)) == spec


@given(ANY, st.integers(0, 2**32))
@UNHURRIED
def test_samples_lie_in_bounds_and_repeat_under_the_passed_generator(name: str, seed: int) -> None:
    space = INSTANCES[name]
    first, second = (space.sample(np.random.default_rng(seed)) for _ in range(2))
    assert first.digest() == second.digest()
    assert_within(space, space.encode(first))


@each_space
def test_samples_spread_over_the_whole_domain(name: str) -> None:
    space, rng = INSTANCES[name], np.random.default_rng(0)
    samples = [space.encode(space.sample(rng)) for _ in range(10_000 if space.conditional else 200)]
    for key, parameter in space.parameters.items():
        drawn = [values[key] for values in samples if key in values]
        assert len(drawn) >= 100
        if isinstance(parameter, Choice):
            counts = [drawn.count(option) for option in parameter.options]
            assert max(counts) < 1.5 * min(counts)
            continue
        units = [parameter.to_unit(float(value)) for value in drawn]
        assert 0 <= min(units) < 0.08
        assert 0.92 < max(units) <= 1
        assert abs(np.mean(units) - 0.5) < 0.12


@each_space
def test_every_sample_builds_and_takes_a_step(name: str) -> None:
    space, rng = INSTANCES[name], np.random.default_rng(2)
    generator = torch.Generator().manual_seed(2)
    label_N = torch.arange(12) % 5
    for _ in range(150):
        loss = build(space.sample(rng), num_classes=5, class_counts=[2, 3, 5, 30, 100])
        loss.generator = generator
        x_ND = (5 * torch.randn(12, 8, generator=generator)).requires_grad_()
        w_CD = torch.randn(5, 8, generator=generator).requires_grad_()
        optimiser = torch.optim.SGD([x_ND, w_CD, *loss.parameters()], lr=0.01)
        before_ND = x_ND.detach().clone()
        loss(x_ND, w_CD, label_N).mean().backward()
        optimiser.step()
        after_N = loss(x_ND, w_CD, label_N)
        assert after_N.isfinite().all(), loss.spec
        assert all(tensor.isfinite().all() for tensor in (x_ND, w_CD, *loss.parameters())), loss.spec
        assert name == "am_lfs, free" or not torch.equal(x_ND, before_ND), loss.spec


@pytest.mark.parametrize("name", [name for name in INSTANCES if name not in ("unified", "am_lfs, free")])
def test_a_step_lowers_the_loss(name: str) -> None:
    space, rng = INSTANCES[name], np.random.default_rng(1)
    generator = torch.Generator().manual_seed(1)
    for _ in range(5):
        spec = space.sample(rng)
        head = MarginHead(spec, num_classes=5, dim=4, generator=generator).double()
        x_ND = torch.randn(12, 4, dtype=torch.float64, generator=generator)
        label_N = torch.arange(12) % 5
        optimiser = torch.optim.SGD(head.parameters(), lr=1e-6)
        before = head(x_ND, label_N)
        before.backward()
        optimiser.step()
        assert head(x_ND, label_N) < before


@each_space
def test_a_space_survives_json(name: str) -> None:
    adapter: TypeAdapter[AnySpace] = TypeAdapter(AnySpace)
    space = INSTANCES[name]
    assert adapter.validate_json(space.model_dump_json()) == space


def test_spaces_are_named_by_their_kind() -> None:
    assert {name: space().model_dump()["kind"] for name, space in SPACES.items()} == {name: name for name in SPACES}


# What each kind means.


def test_a_modulating_factor_is_a_cosine_margin_up_to_margin_high() -> None:
    space = ModulatingFactor(scale=32, margin_high=0.6)
    assert space.domains == {"u": Domain(low=0, high=19.2)}
    assert space.decode({"u": 32 * 0.2}) == catalog.modulating(margin=0.2, scale=32)


def test_local_modulating_factors_are_the_margins_of_ten_bins() -> None:
    space = ModulatingBins(scale=32, margin_high=0.5)
    margins = [k / 20 for k in range(10)]
    assert space.parameters == {f"u_{k}": Domain(low=0, high=16) for k in range(10)}
    assert space.decode({f"u_{k}": 32 * m for k, m in enumerate(margins)}) == catalog.modulating_bins(margins, scale=32)


@pytest.mark.parametrize(
    ("space", "identity"),
    [
        (AMLFS(), catalog.am_lfs()),
        (AMLFS(mode="free", scale=16), catalog.am_lfs_free(scale=16)),
        (AMLFS(mode="free", gradient="detached"), catalog.am_lfs_free(gradient="detached")),
    ],
)
def test_am_lfs_starts_at_the_identity_in_the_middle_of_every_domain(space: AMLFS, identity: LossSpec) -> None:
    values = space.encode(identity)
    assert space.start == pytest.approx(values, abs=1e-12)
    assert [domain.to_unit(float(values[name])) for name, domain in space.domains.items()] == pytest.approx(
        [0.5] * len(values)
    )


def test_in_am_lfs_the_target_map_never_falls_and_slopes_of_tau_are_logarithmic() -> None:
    space, rng = AMLFS(pieces=5), np.random.default_rng(0)
    for _ in range(100):
        values = space.encode(space.sample(rng))
        assert np.diff([float(values[f"t_{k}"]) for k in range(6)]).min() >= 0
    assert space.domains["tau_slope_4"] == Domain(low=0.25, high=4, log=True)


def test_margins_start_at_a_third_of_their_range() -> None:
    assert ModulatingFactor(scale=30, margin_high=0.6).start == pytest.approx({"u": 6})
    assert ModulatingBins(scale=30, margin_high=0.6).start == pytest.approx({f"u_{k}": 6 for k in range(10)})
    assert CombinedMargin(m2_rad=(0, 0.9), scale=(8, 64)).start == pytest.approx(
        {"m2_rad": 0.3, "m3": 0.4 / 3, "scale": 16}
    )


def test_a_combined_margin_searches_only_the_parameters_with_open_bounds() -> None:
    space = CombinedMargin(m1=(1, 1), m2_rad=(0.1, 0.6), m3=(0.05, 0.05), scale=(8, 64))
    assert space.domains == {"m2_rad": Domain(low=0.1, high=0.6), "scale": Domain(low=8, high=64, log=True)}
    assert space.decode({"m2_rad": 0.5, "scale": 16}) == catalog.combined(1, 0.5, 0.05, 16, gradient="detached")


# Domains.


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6), st.floats(0, 1))
@UNHURRIED
def test_a_linear_domain_keeps_to_its_bounds_and_inverts(low: float, width: float, unit: float) -> None:
    domain = Domain(low=low, high=low + width)
    value = domain.from_unit(unit)
    assert domain.low <= value <= domain.high
    assert domain.to_unit(value) == pytest.approx(unit, abs=1e-6)


@given(st.floats(1e-6, 1e3), st.floats(1.01, 1e6), st.floats(0, 1))
@UNHURRIED
def test_a_log_domain_keeps_to_its_bounds_and_inverts(low: float, factor: float, unit: float) -> None:
    domain = Domain(low=low, high=low * factor, log=True)
    value = domain.from_unit(unit)
    assert domain.low <= value <= domain.high
    assert domain.to_unit(value) == pytest.approx(unit, abs=1e-6)


def test_rounding_never_leads_out_of_a_log_domain() -> None:
    """0.7·(1.7/0.7) rounds to 1.7000000000000002."""
    assert Domain(low=0.7, high=1.7, log=True).from_unit(1.0) == 1.7


def test_equal_steps_of_a_log_domain_multiply_by_equal_factors() -> None:
    domain = Domain(low=8, high=128, log=True)
    assert [domain.from_unit(unit) for unit in (0, 0.25, 0.5, 0.75, 1)] == pytest.approx([8, 16, 32, 64, 128])


@pytest.mark.parametrize(("low", "high", "log"), [(3, 1, False), (1, 1, False), (0, 1, True), (-1, 1, True)])
def test_a_domain_without_width_or_a_logarithm_is_refused(low: float, high: float, log: bool) -> None:
    with pytest.raises(ValidationError, match=rf"low < high must hold.* but got low={low:.1f}, high={high:.1f}"):
        Domain(low=low, high=high, log=log)


# Bad input.


@pytest.mark.parametrize(
    ("space", "values", "sentence"),
    [
        ("modulating_factor", {}, "a value for u is needed, but got none"),
        ("modulating_factor", {"u": 1.0, "v": 2.0}, "unknown parameter v=2.0; those needed are u"),
        ("modulating_factor", {"u": "1.0"}, r"u must lie in \[0.0, 19.2\], but got u=1.0"),
        ("modulating_factor", {"u": 19.3}, r"u must lie in \[0.0, 19.2\], but got u=19.3"),
        ("modulating_factor", {"u": -0.1}, r"u must lie in \[0.0, 19.2\], but got u=-0.1"),
        ("modulating_factor", {"u": math.nan}, r"u must lie in \[0.0, 19.2\], but got u=nan"),
        ("modulating_factor", {"u": math.inf}, r"u must lie in \[0.0, 19.2\], but got u=inf"),
        (
            "combined_margin, all free",
            {"m1": 1.0, "m2_rad": 0.5, "m3": 0.1},
            "a value for scale is needed, but got m1, m2_rad, m3",
        ),
        ("am_lfs", {"t_0": -1.2}, r"t_0 must lie in \[-1.1, -0.9\], but got t_0=-1.2"),
        ("modulating_bins", {"u_0": 1.0}, "a value for u_1 is needed, but got u_0"),
        (
            "combined_margin, all free",
            {"m1": 1.0, "m2_rad": 0.5, "m3": 0.1, "scale": 7.0},
            r"scale must lie in \[8.0, 64.0\], but got scale=7.0",
        ),
    ],
)
def test_bad_values_are_refused_with_a_sentence(space: str, values: dict[str, float | str], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        INSTANCES[space].decode(values)


@pytest.mark.parametrize(
    ("space", "spec"),
    [
        ("modulating_factor", catalog.softmax(32)),
        ("modulating_factor", catalog.modulating(0.2, scale=16)),
        ("modulating_factor", catalog.modulating(0.2).model_copy(update={"weight": 2.0})),
        ("modulating_factor", catalog.modulating(0.2).model_copy(update={"gradient": "detached"})),
        ("modulating_bins", catalog.modulating(0.2)),
        ("modulating_bins", catalog.modulating_bins(scale=16)),
        ("am_lfs", catalog.am_lfs_free()),
        ("am_lfs", catalog.am_lfs(scale=16)),
        ("am_lfs", catalog.am_lfs(t=(-1, 0, 1), tau=(1, 1))),
        ("am_lfs", catalog.am_lfs().replace(objective=catalog.softmax().objective)),
        ("am_lfs, free", catalog.am_lfs()),
        ("am_lfs, free", catalog.am_lfs_free(gradient="detached")),
        ("combined_margin", catalog.softmax(32)),
        ("combined_margin", catalog.adacos_dynamic()),
        ("combined_margin", catalog.arcface()),
        ("combined_margin", catalog.combined(gradient="detached")),
        ("combined_margin", catalog.combined().model_copy(update={"weight": 2.0})),
        ("combined_margin, angular only", catalog.combined(1, 0.3, 0.2, 32)),
    ],
)
def test_a_loss_outside_the_space_has_no_values(space: str, spec: LossSpec) -> None:
    with pytest.raises(ValueError, match="the loss is not in the space '"):
        INSTANCES[space].encode(spec)


def test_a_loss_of_the_right_form_beyond_the_bounds_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"u must lie in \[0.0, 19.2\], but got u=25.6"):
        ModulatingFactor(scale=32, margin_high=0.6).encode(catalog.modulating(0.8, scale=32))
    with pytest.raises(ValueError, match=r"m3 must lie in \[0.0, 0.4\], but got m3=0.5"):
        CombinedMargin().encode(catalog.combined(m3=0.5))


@pytest.mark.parametrize(
    ("kind", "fields", "sentence"),
    [
        ("combined_margin", {"m1": (2, 1)}, r"m1 must be \[low, high\] with low <= high, but got \[2.0, 1.0\]"),
        ("combined_margin", {"m1": (0.5, 1)}, "m1\n.*greater than or equal to 1"),
        ("combined_margin", {"m2_rad": (0, 28.6)}, "m2_rad\n.*less than or equal to 1.57"),
        ("combined_margin", {"m3": (0, 1.5)}, "m3\n.*less than or equal to 1"),
        ("combined_margin", {"scale": (0, 64)}, "greater than 0"),
        ("combined_margin", {"scale": (8, math.nan)}, "scale.1\n.*finite number"),
        (
            "combined_margin",
            {"m1": (1, 1), "m2_rad": (0, 0), "m3": (0, 0), "scale": (8, 8)},
            "every parameter is fixed",
        ),
        ("combined_margin", {"m4": (0, 1)}, "m4\n.*Extra inputs"),
        ("modulating_factor", {"scale": 1024}, "scale·margin_high must be at most 512, but got 614.4"),
        ("modulating_bins", {"scale": 1024}, "scale·margin_high must be at most 512, but got 614.4"),
        ("am_lfs", {"pieces": 1}, "pieces\n.*greater than or equal to 2"),
        ("am_lfs", {"pieces": 101}, "pieces\n.*less than or equal to 100"),
        ("am_lfs", {"mode": "both"}, "mode\n.*'continuous' or 'free'"),
        ("unified", {"scale": 16}, "scale\n.*Extra inputs"),
        ("modulating_factor", {"scale": 0}, "scale\n.*greater than 0"),
        ("modulating_factor", {"margin_high": 1.5}, "margin_high\n.*less than or equal to 1"),
    ],
)
def test_impossible_spaces_are_refused(kind: str, fields: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        SPACES[kind].model_validate(fields)
