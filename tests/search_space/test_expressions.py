"""Expressions: checked, finite wherever they are used, equal to the losses that they write down, readable."""

import ast
import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from pydantic import ValidationError
from torch import Tensor

from search_space import LossSpec, build, catalog, parts
from search_space.algebra import formula, simplify
from search_space.expressions import (
    LIMIT,
    MAX_DEPTH,
    NEGATIVE_VARIABLES,
    OPERATORS,
    TARGET_VARIABLES,
    Expression,
    check,
    depth,
    evaluate,
    fits,
    kinds,
    nodes,
)
from search_space.variation import cross, grow, grow_map, mutate
from tests.search_space.batches import batch_at_angles, batch_at_the_tips, random_batch

PI = math.pi
ARCFACE: Expression = ("cos", ("min", ("+", "theta", 0.5), PI))

SEEDS = st.integers(0, 2**32 - 1)
MAPS = st.builds(
    lambda seed, depth: grow_map(np.random.default_rng(seed), depth, NEGATIVE_VARIABLES),
    SEEDS,
    st.integers(1, MAX_DEPTH),
)
many = settings(max_examples=150, deadline=None)


def at_grid(dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    cos = torch.linspace(-1, 1, 201, dtype=dtype)
    return {"c": cos, "theta": cos.acos(), "c_y": cos.flip(0)}


def at_number(expression: Expression, **values: float) -> float:
    return float(evaluate(expression, {name: torch.tensor([value]).double() for name, value in values.items()}))


@many
@given(expression=MAPS, dtype=st.sampled_from([torch.float32, torch.float64]))
def test_values_and_gradients_are_finite_at_every_cosine(expression: Expression, dtype: torch.dtype) -> None:
    cos_NC = torch.linspace(-1, 1, 60, dtype=dtype).reshape(20, 3).requires_grad_()
    spec = LossSpec(negative=parts.SymbolicNegative(n=expression))
    if fits(expression, TARGET_VARIABLES):
        spec = spec.replace(target=parts.SymbolicTarget(f=expression))
    loss_N = build(spec, num_classes=3).from_cosines(cos_NC, torch.arange(20) % 3)
    (grad_NC,) = torch.autograd.grad(loss_N.sum(), cos_NC)
    assert loss_N.dtype == dtype
    assert loss_N.isfinite().all()
    assert grad_NC.isfinite().all()


@pytest.mark.parametrize(
    ("expression", "x", "value"),
    [
        (("/", 1.0, "c"), 0.5, 2.0),
        (("/", 1.0, "c"), 0.0, 0.0),
        (("/", 1.0, "c"), 0.025, 10.0),
        (("/", 1.0, "c"), -0.05, -20.0),
        (("*", 20.0, ("*", 4.0, "c")), 1.0, LIMIT),
        (("*", 20.0, ("*", -4.0, "c")), 1.0, -LIMIT),
        (("square", ("+", "c", 9.0)), 1.0, LIMIT),
        (("exp", "c"), 1.0, math.e),
        (("exp", ("+", "c", 49.0)), 1.0, LIMIT),
        (("log", "c"), 0.5, math.log(0.5)),
        (("log", "c"), -1.0, math.log(0.05)),
        (("sqrt", "c"), 0.25, 0.5),
        (("sqrt", "c"), -1.0, 0.05),
        (("max", ("min", "c", 0.3), 0.1), 0.7, 0.3),
    ],
)
def test_operators_are_the_usual_ones_where_those_are_tame(expression: Expression, x: float, value: float) -> None:
    assert at_number(check(expression, ("c",)), c=x) == pytest.approx(value)


@many
@given(expression=MAPS)
def test_json_round_trip(expression: Expression) -> None:
    spec = LossSpec(negative=parts.SymbolicNegative(n=expression))
    again = LossSpec.model_validate_json(spec.model_dump_json())
    assert again == spec
    assert again.digest() == spec.digest()
    assert again.negative == parts.SymbolicNegative(n=expression)


def test_json_is_in_prefix_lists() -> None:
    spec = LossSpec.model_validate_json('{"target": {"kind": "symbolic", "f": ["-", ["cos", "theta"], 1]}}')
    assert spec.target == parts.SymbolicTarget(f=("-", ("cos", "theta"), 1.0))


DEEP: list[object] = ["exp", "c"]
for _ in range(100):
    DEEP = ["exp", DEEP]
WIDE: list[object] = ["+", "c", "c"]
for _ in range(5):
    WIDE = ["+", WIDE, WIDE]


@pytest.mark.parametrize(
    ("bad", "sentence"),
    [
        (["tan", "theta"], "unknown operator 'tan' in an expression; those known are +, -, *, /, min, max, cos"),
        ([], "an expression is a number, a variable or [operator, operand, ...], but got '[]'"),
        (True, "an expression is a number, a variable or [operator, operand, ...], but got 'True'"),
        (["cos", "theta", 1], "operator 'cos' needs 1 after it, but got 2 operands"),
        (["-", "c", "c_y"], "unknown variable 'c_y' in an expression; those of this map are c, theta"),
        (["+", "c", 51], "a constant of an expression must lie in [−50, 50], but got 51"),
        (["+", "c", math.nan], "a constant of an expression must lie in [−50, 50], but got nan"),
        (0.3, "an expression must use c or theta, or its map would have no gradient"),
        ("theta", "a map is in units of cosine, but this expression is an angle"),
        (["+", "theta", "c"], "operator '+' cannot take an angle and a number"),
        (["cos", "c"], "operator 'cos' cannot take a number"),
        (["*", ["*", "theta", "theta"], 1], "operator '*' cannot take an angle and an angle"),
        (DEEP, "an expression may be 8 levels deep, but this one is deeper"),
        (WIDE, "an expression may have 40 nodes on 8 levels, but this one has 127 on 7"),
    ],
)
def test_what_is_no_map_is_refused_with_a_sentence(bad: object, sentence: str) -> None:
    with pytest.raises(ValidationError) as refused:
        LossSpec.model_validate({"target": {"kind": "symbolic", "f": bad}})
    assert sentence in str(refused.value)


def test_a_constant_is_an_angle_or_a_number_as_its_place_needs() -> None:
    assert kinds(("+", "theta", 0.5)) == {"angle"}
    assert kinds(("+", "c", 0.5)) == {"number"}
    assert kinds(("/", "theta", 1.5)) == {"angle", "number"}
    assert kinds(("/", "theta", "theta")) == {"number"}
    assert kinds(("min", "theta", "c")) == set()


@many
@given(expression=MAPS)
def test_simplifying_keeps_the_values_and_ends(expression: Expression) -> None:
    simple = simplify(expression)
    before, after = evaluate(expression, at_grid()), evaluate(simple, at_grid())
    torch.testing.assert_close(after.expand(201), before.expand(201), rtol=1e-6, atol=1e-6)
    assert simplify(simple) == simple
    assert "number" in kinds(simple)


@pytest.mark.parametrize(
    ("expression", "simple"),
    [
        (("+", ("*", 1.0, "c"), 0.0), "c"),
        (("*", 0.0, ("exp", "c")), 0.0),
        (("-", ("exp", "c"), ("exp", "c")), 0.0),
        (("-", 0.0, ("-", 0.0, "c")), "c"),
        (("*", -1.0, ("*", -1.0, "c")), "c"),
        (("cos", ("*", 1.0, "theta")), "c"),
        (("+", ("cos", 0.0), "c"), ("+", "c", 1.0)),
        (("-", ("+", 0.1, ("-", "c", 0.2)), 0.3), ("+", "c", -0.4)),
        (("+", ("+", "c", 0.2), ("-", "c_y", 0.3)), ("+", ("+", "c", "c_y"), -0.1)),
        (("max", ("max", "c", 0.2), 0.3), ("max", "c", 0.3)),
        (("min", "c", ("min", "c_y", "c")), ("min", "c", "c_y")),
        (("/", ("cos", "theta"), 1.0), "c"),
        (("/", "theta", 1.0), ("/", "theta", 1.0)),
        (("cos", ("/", "theta", 1.0)), "c"),
        (("cos", ("*", 1.0, "c")), ("cos", ("*", 1.0, "c"))),
    ],
)
def test_simplified_forms(expression: Expression, simple: Expression) -> None:
    assert simplify(expression) == simple


def test_equal_sums_and_products_have_one_form() -> None:
    ways: list[Expression] = [("-", "c", 0.35), ("+", "c", -0.35), ("+", -0.35, ("cos", "theta"))]
    assert {simplify(way) for way in ways} == {("+", "c", -0.35)}
    assert simplify(("*", "c", ("+", "c_y", "c"))) == simplify(("*", ("+", "c", "c_y"), "c"))


def test_saturation_is_not_simplified_away() -> None:
    beyond: Expression = ("*", 1.0, ("+", ("*", 50.0, "c"), 30.0))
    assert simplify(beyond) == ("*", 1.0, ("+", ("*", 50.0, "c"), 30.0))
    assert at_number(simplify(beyond), c=1.0) == LIMIT


@many
@given(first=MAPS, second=MAPS, seed=SEEDS, variables=st.sampled_from([TARGET_VARIABLES, NEGATIVE_VARIABLES]))
def test_what_varies_stays_a_map(first: Expression, second: Expression, seed: int, variables: tuple[str, ...]) -> None:
    assume(fits(first, variables) and fits(second, variables))
    rng = np.random.default_rng(seed)
    mutant, child = mutate(rng, first, variables), cross(rng, first, second, variables)
    assert mutant != first
    for varied in (mutant, child):
        assert check(varied, variables) == varied


@many
@given(seed=SEEDS, kind=st.sampled_from(["angle", "number"]), levels=st.integers(1, MAX_DEPTH))
def test_what_grows_is_of_its_kind_and_no_deeper_than_asked(seed: int, kind: str, levels: int) -> None:
    grown = grow(np.random.default_rng(seed), "angle" if kind == "angle" else "number", levels, NEGATIVE_VARIABLES)
    assert kind in kinds(grown)
    assert depth(grown) <= levels


def test_a_child_has_parts_of_both_parents() -> None:
    mother: Expression = ("+", "c", -0.35)
    father: Expression = ("cos", ("min", ("+", "theta", 0.123), 3.0))
    children = {cross(np.random.default_rng(seed), mother, father, TARGET_VARIABLES) for seed in range(40)}
    assert ("+", father, -0.35) in children
    assert ("+", "c", 0.123) in children
    assert all(set(nodes_of(child)) <= {*nodes_of(mother), *nodes_of(father)} for child in children)


def nodes_of(expression: Expression) -> list[object]:
    return [node[0] if isinstance(node, tuple) else node for _, node in nodes(expression)]


@pytest.mark.parametrize(
    ("expression", "text"),
    [
        (("-", ("cos", ("+", "theta", 0.5)), 0.35), "cos(θ + 0.5) − 0.35"),
        (("+", "c", -0.35), "c − 0.35"),
        (ARCFACE, "cos(min(θ + 0.5, π))"),
        (("-", 1.0, ("/", ("+", "theta", 0.45), PI / 2)), "1 − (θ + 0.45)/1.571"),
        (("-", 0.65, ("*", 0.9, ("square", "theta"))), "0.65 − 0.9·θ²"),
        (("square", ("-", "c", 1.0)), "(c − 1)²"),
        (("-", "c", ("-", "c_y", 1.0)), "c − (c_y − 1)"),
        (("/", "c", ("/", "c", 2.0)), "c/(c/2)"),
        (("*", ("+", "c", 1.0), -0.5), "(c + 1)·(−0.5)"),
        (("*", -0.5, ("-", 0.0, "c")), "−0.5·(−c)"),
        (("-", 0.0, ("*", "c", "c")), "−c·c"),
        (("+", "c", ("-", 0.0, "c")), "c + (−c)"),
        (("+", "c", ("max", ("sqrt", "c"), ("exp", ("log", 0.12345678)))), "c + max(sqrt(c), exp(log(0.1235)))"),
    ],
)
def test_formulas_have_no_needless_parentheses(expression: Expression, text: str) -> None:
    assert formula(expression) == text


@many
@given(expression=MAPS)
def test_a_formula_read_by_the_rules_of_arithmetic_means_the_expression(expression: Expression) -> None:
    at = at_grid()
    for _, node in nodes(expression):
        assume(
            float(evaluate(node, at).abs().max()) < 0.9 * LIMIT
        )  # where nothing saturates, sums and products regroup
    text = formula(expression).translate({ord("−"): "-", ord("·"): "*", ord("²"): "**2", ord("θ"): "theta"})
    read = value_of(ast.parse(text, mode="eval").body, at)
    torch.testing.assert_close(read.expand(201), evaluate(expression, at).expand(201), rtol=1e-6, atol=1e-6)


def value_of(node: ast.expr, at: dict[str, Tensor]) -> Tensor:
    """A formula's syntax tree, as Python's grammar groups it, under the operators of expressions."""
    if isinstance(node, ast.Constant):
        return torch.tensor(float(str(node.value)), dtype=torch.float64)
    if isinstance(node, ast.Name):
        return at[node.id]
    if isinstance(node, ast.UnaryOp):
        return -value_of(node.operand, at)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        return OPERATORS[node.func.id].function(*(value_of(operand, at) for operand in node.args))
    assert isinstance(node, ast.BinOp)
    if isinstance(node.op, ast.Pow):
        return OPERATORS["square"].function(value_of(node.left, at))
    name = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}[type(node.op)]
    return OPERATORS[name].function(value_of(node.left, at), value_of(node.right, at))


def symbolic(scale: float, f: Expression = "c", n: Expression = "c") -> LossSpec:
    return LossSpec(
        target=parts.SymbolicTarget(f=f),
        negative=parts.SymbolicNegative(n=n),
        scale=parts.ConstantScale(value=scale),
    )


@pytest.mark.parametrize(
    ("published", "written"),
    [
        (catalog.softmax(scale=20), symbolic(20)),
        (catalog.cosface(margin=0.35, scale=20), symbolic(20, ("-", "c", 0.35))),
        (
            catalog.arcface(margin_rad=0.5, scale=20).replace(target=parts.CombinedTarget(guard="clip")),
            symbolic(20, ARCFACE),
        ),
        (
            catalog.li_arcface(margin_rad=0.45, scale=20),
            symbolic(20, ("-", 1.0, ("/", ("+", "theta", 0.45), PI / 2)), ("-", 1.0, ("/", "theta", PI / 2))),
        ),
        (
            catalog.x2_softmax(scale=20, gradient="exact"),
            symbolic(20, ("-", 0.65, ("*", 0.9, ("square", "theta")))),
        ),
        (
            catalog.sphereface_r_v2(scale=20, weight=1, gradient="exact"),
            symbolic(20, n=("cos", ("/", "theta", 1.4))),
        ),
    ],
    ids=["softmax", "cosface", "arcface", "li_arcface", "x2_softmax", "sphereface_r_v2"],
)
def test_published_losses_as_formulas(published: LossSpec, written: LossSpec) -> None:
    for x_ND, w_RD, label_N in (
        random_batch(7, 5, 30),
        random_batch(4, 6, 20, closeness=3.0, seed=1),
        batch_at_angles([0.1, 0.8, 1.6, 2.5, 3.0]),
        batch_at_the_tips(),
    ):
        values, grads = [], []
        for spec in (published, written):
            loss_N = build(spec, num_classes=len(w_RD))(x_ND, w_RD, label_N)
            values.append(loss_N)
            grads.append(torch.autograd.grad((loss_N * (1 + torch.arange(len(label_N)))).sum(), [x_ND, w_RD]))
        torch.testing.assert_close(values[1], values[0], rtol=1e-9, atol=1e-11)
        for got, wanted in zip(grads[1], grads[0], strict=True):
            assert (got - wanted).norm() <= 1e-7 * wanted.norm()  # at the tips dθ/dc is 7e7


def test_arcface_as_published_where_its_guard_is_not_needed() -> None:
    cos_N = torch.linspace(math.cos(PI - 0.51), 1, 300, dtype=torch.float64).requires_grad_()
    cos_NC = torch.stack([cos_N, -cos_N, cos_N / 2], dim=1)
    losses = [
        build(spec, num_classes=3).from_cosines(cos_NC, torch.zeros(300, dtype=torch.long))
        for spec in (catalog.arcface(margin_rad=0.5, scale=64), symbolic(64, ARCFACE))
    ]
    torch.testing.assert_close(losses[1], losses[0])
    grads = [torch.autograd.grad(loss_N.sum(), cos_N, retain_graph=True)[0] for loss_N in losses]
    torch.testing.assert_close(grads[1], grads[0])


def test_a_map_of_negatives_sees_the_target_but_does_not_move_it() -> None:
    n: Expression = ("+", "c", ("*", 0.2, ("max", ("-", "c", "c_y"), 0.0)))
    cos_NC = torch.tensor([[0.3, 0.8, -0.4]], dtype=torch.float64).requires_grad_()
    logits = build(symbolic(10, n=n), num_classes=3).logits(cos_NC, torch.tensor([0]))
    torch.testing.assert_close(logits.negative_NC[0, 1:], torch.tensor([9.0, -4.0], dtype=torch.float64))
    (grad_NC,) = torch.autograd.grad(logits.negative_NC[0, 1], cos_NC)
    torch.testing.assert_close(grad_NC, torch.tensor([[0.0, 12.0, 0.0]], dtype=torch.float64))
