"""What a loss shows before anything is trained."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search_space import LossSpec, catalog, parts
from search_space.preflight import Examination, Gradients, examine

CLASSES = 20
COUNTS = [3 + index % 7 for index in range(CLASSES)]
SOFTMAX = catalog.softmax(scale=16)

few = settings(max_examples=15, deadline=None)


def look(spec: LossSpec) -> Examination:
    return examine(spec, num_classes=CLASSES, class_counts=COUNTS)


def gradients(spec: LossSpec) -> Gradients:
    found = look(spec).gradients
    assert found is not None
    return found


def scaled(part: parts.TargetMap, value: float) -> LossSpec:
    return LossSpec(target=part, scale=parts.ConstantScale(value=value))


@pytest.mark.parametrize("name", catalog.NAMES)
def test_named_losses_pass_but_for_those_that_push_the_wrong_way_by_design(name: str) -> None:
    found = look(catalog.get(name))
    expected = {"curricularface": "warn", "p2sgrad": "warn"}.get(name, "pass")
    assert found.verdict == expected
    assert ("∂L/∂cos_j < 0 at cos_y = " in found.reason) == (expected == "warn")
    assert found.gradients is not None


@pytest.mark.parametrize(
    "spec",
    [
        scaled(parts.ModulatingTarget(u=3.0), 1e-40),
        LossSpec(negative=parts.ArcNegNegative(sigma=1e-60)),
    ],
    ids=["u/s overflows", "(c_j − f)²/σ is 0/0"],
)
def test_what_is_not_finite_in_float32_is_rejected_wherever_it_is(spec: LossSpec) -> None:
    found = look(spec)
    assert found.verdict == "reject"
    assert found.reason.startswith("its value is not finite in float32 at cos_y = -1")
    assert found.gradients is None


def test_what_cannot_be_built_is_rejected_with_the_reason() -> None:
    found = examine(catalog.adacos_fixed(), num_classes=2, class_counts=[4, 4])
    assert found.verdict == "reject"
    assert found.reason.startswith("it cannot be built: AdaCos needs num_classes >= 3")


def test_class_counts_of_other_classes_are_refused() -> None:
    with pytest.raises(ValueError, match="class_counts must hold num_classes=5 numbers, but got 3"):
        examine(SOFTMAX, num_classes=5, class_counts=[1, 2, 3])


@given(st.integers(0, 9), st.floats(0.01, 2), st.sampled_from(["t", "tau"]))
@few
def test_a_free_form_loss_with_one_falling_piece_is_rejected(piece: int, fall: float, which: str) -> None:
    rising, falling = [1.0] * 10, [1.0] * 10
    falling[piece] = -fall
    t, tau = (falling, rising) if which == "t" else (rising, falling)
    found = look(catalog.am_lfs_free(t, [0.0] * 10, tau, [2.5] * 10))
    assert found.verdict == "reject"
    assert "∂L/∂cos" in found.reason


@given(st.lists(st.floats(0, 1), min_size=2, max_size=12), st.lists(st.floats(0.01, 50), min_size=1, max_size=12))
@few
def test_a_free_form_loss_that_only_rises_passes(steps: list[float], slopes: list[float]) -> None:
    knots = tuple(sum(steps[: index + 1]) - 1 for index in range(len(steps)))
    spec = LossSpec(target=parts.PiecewiseTarget(knots=knots), objective=parts.PiecewiseTau(slopes=tuple(slopes)))
    assert look(spec).verdict == "pass"


@pytest.mark.parametrize("gradient", ["exact", "detached"])
def test_a_falling_target_map_matters_only_where_its_gradient_is_used(gradient: parts.GradientMode) -> None:
    spec = scaled(parts.PiecewiseTarget(knots=(-1.0, 0.5, 0.2, 1.0)), 16).replace(gradient=gradient)
    assert look(spec).verdict == ("reject" if gradient == "exact" else "pass")


CURRICULAR = parts.CurricularNegative()
RISING, FALLING = parts.PiecewiseTarget(knots=(-1.0, 1.0)), parts.PiecewiseTarget(knots=(-1.0, 1.0, 0.9))
X2_PEAK = parts.X2Target(h_rad=1.0)


@pytest.mark.parametrize(
    ("spec", "verdict", "sign"),
    [
        (LossSpec(negative=CURRICULAR, objective=parts.PiecewiseTau(slopes=(1.0, 2.0))), "warn", "∂L/∂cos_j < 0"),
        (LossSpec(negative=CURRICULAR, target=RISING), "warn", "∂L/∂cos_j < 0"),
        (LossSpec(negative=CURRICULAR, target=FALLING), "reject", "∂L/∂cos_y > 0"),
        (LossSpec(negative=parts.SymbolicNegative(n=("-", 0.0, "c"))), "reject", "∂L/∂cos_j < 0"),
        (LossSpec(target=X2_PEAK), "warn", "∂L/∂cos_y > 0"),
        (LossSpec(target=X2_PEAK, objective=parts.PiecewiseTau(slopes=(1.0, 2.0))), "warn", "∂L/∂cos_y > 0"),
        (LossSpec(target=X2_PEAK, negative=parts.SymbolicNegative(n=("-", 0.0, "c"))), "reject", "∂L/∂cos_j < 0"),
    ],
)
def test_a_wrong_sign_is_rejected_only_where_a_part_is_free_to_cause_it(
    spec: LossSpec, verdict: str, sign: str
) -> None:
    found = look(spec)
    assert found.verdict == verdict
    assert found.reason.startswith(f"{sign} at cos_y = ")
    assert found.reason.endswith(", by its design") == (verdict == "warn")


def soft_norm(norm: float) -> LossSpec:
    return LossSpec(scale=parts.SoftNormScale(norm=norm))


def bounded_norm(lower: float, upper: float) -> LossSpec:
    return SOFTMAX.replace(regularizer=parts.NormRegularizer(lower_norm=lower, upper_norm=upper))


SAME = {
    "a margin is a modulating factor (I1)": (
        catalog.cosface(margin=0.2, scale=16),
        scaled(parts.ModulatingTarget(u=3.2), 16),
    ),
    "no margins": (SOFTMAX, catalog.combined(1, 0, 0, 16, gradient="exact")),
    "no hard negatives' bonus": (catalog.cosface(scale=32), catalog.mv_am(t=0, variant="fixed")),
    "no focus": (catalog.softmax(scale=30), catalog.focal(gamma=0)),
    "straight lines": (catalog.softmax(scale=30), catalog.am_lfs()),
    "its gradient imposed": (catalog.p2sgrad(), catalog.p2sgrad(form="update")),
}
OTHER = {
    "AdaCos's scale moves": (catalog.adacos_fixed(), catalog.adacos_dynamic()),
    "margins that learn start at 0": (
        SOFTMAX,
        LossSpec(target=parts.CombinedTarget(), margin=parts.LearnedMargin(), scale=parts.ConstantScale(value=16)),
    ),
    "past π": (catalog.arcface(scale=16), catalog.combined(1, 0.5, 0, 16, gradient="exact")),
    "random margins by rank": (catalog.elasticface_arc(std_rad=0.05), catalog.elasticface_arc_plus(std_rad=0.05)),
    "EMA rates": (
        catalog.curricularface(),
        catalog.curricularface().replace(negative=parts.CurricularNegative(rate=0.02)),
    ),
    "AdaFace's rates": (
        catalog.adaface(),
        catalog.adaface().replace(margin=parts.AdaFaceMargin(rate=0.02)),
    ),
    "margins by class size": (catalog.class_size(power=0.25), catalog.class_size(power=0.3)),
    "more centers": (catalog.arcface(), catalog.subcenter_arcface()),
    "a little more margin": (catalog.cosface(margin=0.35), catalog.cosface(margin=0.3501)),
    "wanted norms, large": (soft_norm(200), soft_norm(400)),
    "wanted norms, small": (soft_norm(4.2), soft_norm(4.8)),
    "wanted norms, tiny": (soft_norm(0.02), soft_norm(0.03)),
    "lower bounds of the norm": (bounded_norm(1, 110), bounded_norm(4, 110)),
    "upper bounds of the norm": (bounded_norm(10, 500), bounded_norm(10, 600)),
}


@pytest.mark.parametrize("pair", SAME.values(), ids=SAME)
def test_the_same_gradients_under_two_names_are_recognised(pair: tuple[LossSpec, LossSpec]) -> None:
    one, other = map(gradients, pair)
    assert one.same_as(other)
    assert other.same_as(one)


@pytest.mark.parametrize("pair", OTHER.values(), ids=OTHER)
def test_other_gradients_are_told_apart(pair: tuple[LossSpec, LossSpec]) -> None:
    one, other = map(gradients, pair)
    assert not one.parallel_to(other)
    assert not other.parallel_to(one)


@given(
    st.sampled_from([name for name in catalog.NAMES if not name.startswith(("magface", "adaptive", "sphere"))]),
    st.floats(0.01, 100),
)
@few
def test_a_weight_changes_the_length_alone(name: str, weight: float) -> None:
    spec = catalog.get(name)
    one, other = gradients(spec), gradients(spec.replace(weight=spec.weight * weight))
    assert other.parallel_to(one)
    assert other.length == pytest.approx(one.length * weight)
    assert other.same_as(one) == (abs(weight - 1) < 1e-6)


def test_a_weight_beside_a_regularizer_changes_the_direction() -> None:
    spec = catalog.magface()
    assert not gradients(spec.replace(weight=2)).parallel_to(gradients(spec))


@given(st.integers(0, 9), st.sampled_from([8.0, 16.0, 32.0, 64.0, 128.0]))
@few
def test_one_bin_of_ten_is_enough_to_differ(index: int, scale: float) -> None:
    u = [1.0] * 10  # more would put p_m near 0 where p is small, and then u hardly matters
    one = gradients(scaled(parts.ModulatingBinsTarget(u=tuple(u)), scale))
    u[index] = 1.01
    assert not gradients(scaled(parts.ModulatingBinsTarget(u=tuple(u)), scale)).parallel_to(one)
    tau = [1.0] * 10
    one = gradients(catalog.am_lfs(tau=tau, scale=scale))
    tau[index] = 1.01
    assert not gradients(catalog.am_lfs(tau=tau, scale=scale)).same_as(one)


@pytest.mark.parametrize("index", [1, 4, 5])
def test_bins_that_no_probe_falls_into_are_not_trusted(index: int) -> None:
    u = [0.5] * 10
    one = gradients(scaled(parts.ModulatingBinsTarget(u=tuple(u)), 512))
    assert one.trains_as(one, fresh=True)
    u[index] = 0.55
    other = gradients(scaled(parts.ModulatingBinsTarget(u=tuple(u)), 512))
    assert not other.trains_as(one, fresh=True)


@pytest.mark.parametrize(("pair", "has_state"), [("no focus", False), ("its gradient imposed", False), ("EMA", True)])
def test_what_goes_on_from_a_state_is_not_trusted(pair: str, has_state: bool) -> None:
    curricular = LossSpec(negative=CURRICULAR)
    rewritten = curricular.replace(target=parts.CombinedTarget(), margin=parts.ConstantMargin())
    one, other = map(gradients, SAME.get(pair, (curricular, rewritten)))
    assert one.trains_as(other, fresh=True)
    assert one.trains_as(other, fresh=False) != has_state


@given(st.integers(0, 20))
@few
def test_one_knot_of_many_is_enough_to_differ(index: int) -> None:
    knots = [-1 + 0.1 * step for step in range(21)]
    one = gradients(scaled(parts.PiecewiseTarget(knots=tuple(knots)), 16))
    knots[index] += 0.001
    assert not gradients(scaled(parts.PiecewiseTarget(knots=tuple(knots)), 16)).parallel_to(one)


def test_an_examination_repeats_itself_to_the_bit() -> None:
    for name in ("elasticface_arc", "adacos_dynamic"):
        one, other = gradients(catalog.get(name)), gradients(catalog.get(name))
        assert one.length == other.length
        assert all((a == b).all() for a, b in zip(one.direction, other.direction, strict=True))
