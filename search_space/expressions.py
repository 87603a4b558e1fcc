"""Expressions: target and negative maps written as formulas (after AutoLoss-Zero, Li et al. 2022; FORMULAS §9).

An expression is a value of plain JSON: a number, the name of a variable, or an operator before its operands, as in
`["-", ["cos", ["+", "theta", 0.5]], 0.35]` (tuples in Python). Nothing is ever run as code: `evaluate` walks the tree.

Variables: `c`, a cosine; `theta`, its angle in radians; in maps of negatives also `c_y`, the target's cosine. A map is
in units of cosine, so its type is `number`:

    + − min max   two numbers give a number, two angles an angle
    ×             two numbers give a number, an angle and a number an angle
    ÷             two numbers or two angles give a number, an angle by a number an angle
    cos           of an angle, a number
    square        of a number or an angle, a number
    exp log sqrt  of a number, a number

c and c_y are numbers, theta is an angle, and a constant is whichever its place needs. Types never change a value; they
keep out sums of a cosine and an angle.

Every operator is defined, continuous and has a bounded slope for all real operands, so that no value or gradient
overflows float32 within the limits on depth and size. With L = 50 and ε = 0.05:

    x × y, x²     held in [−L, L]
    x ÷ y         held in [−L, L]; where |y| < ε it is x·y/ε², which passes through 0 in place of the pole
    exp x         min(eˣ, L)
    log x         log max(x, ε)
    sqrt x        √max(x, ε²)
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

Expression: TypeAlias = float | str | tuple["Expression", ...]
"""A constant, a variable, or (operator, operand, ...)."""

Kind = Literal["angle", "number"]
Path = tuple[int, ...]
"""Where a node is: the places of the operands on the way to it, from 1."""

LIMIT = 50.0
NEAR_ZERO = 0.05
MAX_DEPTH = 8
MAX_SIZE = 40

VARIABLES: Mapping[str, Kind] = {"c": "number", "theta": "angle", "c_y": "number"}
TARGET_VARIABLES = ("c", "theta")
NEGATIVE_VARIABLES = ("c", "theta", "c_y")
OWN_VARIABLES = frozenset({"c", "theta"})
"""Those of which a map must use one: without them it could not teach its own cosine anything."""


class Operator(NamedTuple):
    """Which kinds of operands give which kind, and the function over tensors."""

    signatures: tuple[tuple[tuple[Kind, ...], Kind], ...]
    function: Callable[..., Tensor]

    @property
    def arity(self) -> int:
        """How many operands it takes."""
        return len(self.signatures[0][0])


def _times(x: Tensor, y: Tensor) -> Tensor:
    return (x * y).clamp(-LIMIT, LIMIT)


def _divided(x: Tensor, y: Tensor) -> Tensor:
    small = y.abs() < NEAR_ZERO
    divisor = torch.where(small, 1.0, y)  # replaced before dividing: a pole that `where` only hides has NaN gradients
    return torch.where(small, x * y / NEAR_ZERO**2, x / divisor).clamp(-LIMIT, LIMIT)


_ALIKE: tuple[tuple[tuple[Kind, ...], Kind], ...] = (
    (("number", "number"), "number"),
    (("angle", "angle"), "angle"),
)
_OF_NUMBER: tuple[tuple[tuple[Kind, ...], Kind], ...] = ((("number",), "number"),)

OPERATORS: Mapping[str, Operator] = {
    "+": Operator(_ALIKE, torch.add),
    "-": Operator(_ALIKE, torch.sub),
    "*": Operator(
        ((("number", "number"), "number"), (("angle", "number"), "angle"), (("number", "angle"), "angle")), _times
    ),
    "/": Operator(
        ((("number", "number"), "number"), (("angle", "angle"), "number"), (("angle", "number"), "angle")), _divided
    ),
    "min": Operator(_ALIKE, torch.minimum),
    "max": Operator(_ALIKE, torch.maximum),
    "cos": Operator(((("angle",), "number"),), torch.cos),
    "square": Operator(((("number",), "number"), (("angle",), "number")), lambda x: x.square().clamp_max(LIMIT)),
    "exp": Operator(_OF_NUMBER, lambda x: x.clamp_max(math.log(LIMIT)).exp()),
    "log": Operator(_OF_NUMBER, lambda x: x.clamp_min(NEAR_ZERO).log()),
    "sqrt": Operator(_OF_NUMBER, lambda x: x.clamp_min(NEAR_ZERO**2).sqrt()),
}


def operator(expression: Expression) -> str:
    """The name of the operator at the root. Raises ValueError for a leaf."""
    if not isinstance(expression, tuple):
        raise ValueError(f"an operator and its operands are needed, but got {expression!r}")
    return str(expression[0])


def operands(expression: Expression) -> tuple[Expression, ...]:
    """What the operator at the root is applied to; nothing for a leaf."""
    return expression[1:] if isinstance(expression, tuple) else ()


def nodes(expression: Expression, path: Path = ()) -> Iterator[tuple[Path, Expression]]:
    """Every node with its path, the root first."""
    yield path, expression
    for place, operand in enumerate(operands(expression), 1):
        yield from nodes(operand, (*path, place))


def replaced(expression: Expression, path: Path, new: Expression) -> Expression:
    """The expression with another node at `path`."""
    if not path or not isinstance(expression, tuple):
        return new
    place, *rest = path
    return (*expression[:place], replaced(expression[place], tuple(rest), new), *expression[place + 1 :])


def depth(expression: Expression) -> int:
    """Nodes on the longest way from the root to a leaf."""
    return 1 + max(map(depth, operands(expression)), default=0)


def kinds(expression: Expression) -> frozenset[Kind]:
    """What it may stand for: both kinds where constants leave it open, none where its types do not fit."""
    if isinstance(expression, float):
        return frozenset({"angle", "number"})
    if isinstance(expression, str):
        return frozenset({VARIABLES[expression]})
    given = set(product(*map(kinds, operands(expression))))
    return frozenset(result for taken, result in OPERATORS[operator(expression)].signatures if taken in given)


def fits(expression: Expression, variables: Sequence[str]) -> bool:
    """Whether a tree of known operators is a map of these variables, within the limits."""
    return _misfit(expression, variables) is None


def check(value: object, variables: Sequence[str]) -> Expression:
    """The expression that a value of JSON is.

    Raises ValueError for what is none, does not fit the types, uses other variables or neither `c` nor `theta`, or is
    deeper than 8 levels or larger than 40 nodes.
    """
    expression = _read(value, variables, MAX_DEPTH)
    misfit = _misfit(expression, variables)
    if misfit is not None:
        raise ValueError(misfit)
    return expression


def _read(value: object, variables: Sequence[str], levels: int) -> Expression:
    if levels == 0:
        raise ValueError(f"an expression may be {MAX_DEPTH} levels deep, but this one is deeper")
    if isinstance(value, str):
        if value not in variables:
            raise ValueError(f"unknown variable '{value}' in an expression; those of this map are {_and(variables)}")
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        if not abs(value) <= LIMIT:
            raise ValueError(f"a constant of an expression must lie in [−{LIMIT:g}, {LIMIT:g}], but got {value}")
        return float(value) + 0.0
    if not isinstance(value, list | tuple) or not value:
        raise ValueError(
            f"an expression is a number, a variable or [operator, operand, ...], but got {str(value)[:60]!r}"
        )
    name, *rest = value
    if not isinstance(name, str) or name not in OPERATORS:
        raise ValueError(f"unknown operator {str(name)[:60]!r} in an expression; those known are {_and(OPERATORS)}")
    if len(rest) != OPERATORS[name].arity:
        raise ValueError(f"operator '{name}' needs {OPERATORS[name].arity} after it, but got {len(rest)} operands")
    return (name, *(_read(operand, variables, levels - 1) for operand in rest))


def _misfit(expression: Expression, variables: Sequence[str]) -> str | None:
    """Why a tree of known operators and variables is no map, in a sentence."""
    every = [node for _, node in nodes(expression)]
    used = {node for node in every if isinstance(node, str)}
    if len(every) > MAX_SIZE or depth(expression) > MAX_DEPTH:
        return (
            f"an expression may have {MAX_SIZE} nodes on {MAX_DEPTH} levels, but this one has {len(every)} on "
            f"{depth(expression)}"
        )
    if not used <= set(variables):
        return f"the variables of this map are {_and(variables)}, but the expression uses {_and(sorted(used))}"
    if not used & OWN_VARIABLES:
        return "an expression must use c or theta, or its map would have no gradient"
    for node in reversed(every):
        if not kinds(node):
            got = " and ".join(_some(kinds(operand)) for operand in operands(node))
            return f"operator '{operator(node)}' cannot take {got}; see the table of search_space.expressions"
    return None if "number" in kinds(expression) else "a map is in units of cosine, but this expression is an angle"


def _some(found: frozenset[Kind]) -> str:
    return "a constant" if len(found) > 1 else "an angle" if "angle" in found else "a number"


def _and(names: Sequence[str] | Mapping[str, Operator]) -> str:
    return ", ".join(names)


def uses(expression: Expression, variable: str) -> bool:
    """Whether a variable occurs in it."""
    return any(node == variable for _, node in nodes(expression))


def evaluate(expression: Expression, variables: Mapping[str, Tensor]) -> Tensor:
    """The value at tensors that broadcast against each other; a constant alone has no dimensions."""
    if isinstance(expression, float):
        return torch.tensor(expression, dtype=torch.float64)  # without dimensions: the variables' dtype prevails
    if isinstance(expression, str):
        return variables[expression]
    values = [evaluate(operand, variables) for operand in operands(expression)]
    return OPERATORS[operator(expression)].function(*values)
