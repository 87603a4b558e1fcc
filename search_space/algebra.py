"""Expressions for people: simplified, and in infix notation."""

import math

from search_space.expressions import LIMIT, OPERATORS, Expression, Kind, evaluate, kinds, operands, operator

_PRECEDENCE = {"+": 1, "-": 1, "*": 2, "/": 2, "square": 3}
_TIGHTEST = 4
_SIGNS = {"+": " + ", "-": " − ", "*": "·", "/": "/"}


def simplify(expression: Expression, kind: Kind = "number") -> Expression:
    """An expression of equal value (but for rounding) in a normal form, in which many equal ones are identical.

    Constants are folded, those of nested sums and products too, and stand at the end of a sum; x + 0, x·1, x/1, x·0,
    0/x, x − x, min(x, x), min(x, min(x, y)) and cos θ go; x − 0.35 becomes x + (−0.35); the operands of + · min max are
    ordered. It still may stand for `kind`; raises ValueError when it never could.

    >>> simplify(("-", ("+", 0.1, ("cos", "theta")), 0.45))
    ('+', 'c', -0.35)
    """
    if not isinstance(expression, tuple):
        return expression
    name = operator(expression)
    taken = _operand_kinds(expression, kind)
    simple = [simplify(operand, each) for operand, each in zip(operands(expression), taken, strict=True)]
    if all(isinstance(operand, float) for operand in simple):
        return _number(float(evaluate((name, *simple), {})))
    if name in ("+", "*", "min", "max"):
        constant_first = name == "*"
        simple.sort(key=lambda operand: (isinstance(operand, float) != constant_first, repr(operand)))
    ordered = (name, *simple)
    shorter = _rewritten(ordered)
    return ordered if shorter is None or kind not in kinds(shorter) else simplify(shorter, kind)


def _operand_kinds(expression: Expression, kind: Kind) -> tuple[Kind, ...]:
    """What the operands stand for where the expression stands for `kind`."""
    given = [kinds(operand) for operand in operands(expression)]
    for taken, result in OPERATORS[operator(expression)].signatures:
        if result == kind and all(each in found for each, found in zip(taken, given, strict=True)):
            return taken
    raise ValueError(f"{formula(expression)} is no {kind}")


def _rewritten(expression: Expression) -> Expression | None:
    """One step towards the normal form; None at the end. Saturation is minded: x·1 is x only where |x| ≤ L."""
    match expression:
        case ("-", x, y) | ("min", x, y) | ("max", x, y) if x == y:
            return 0.0 if operator(expression) == "-" else x
        case ("min" | "max" as name, x, (inner, *rest)) | ("min" | "max" as name, (inner, *rest), x) if (
            inner == name and x in rest
        ):
            return (name, *rest)
        case ("min" | "max" as name, (inner, x, float(a)), float(b)) if inner == name:
            return (name, x, min(a, b) if name == "min" else max(a, b))
        case ("-", x, float(k)):
            return ("+", x, -k)
        case ("+", x, 0.0):
            return x
        case ("*", 0.0, _) | ("/", 0.0, _):
            return 0.0
        case ("*", 1.0, x) | ("/", x, 1.0) if _bound(x) <= LIMIT:
            return x
        case ("*", -1.0, x) if _bound(x) <= LIMIT:
            return ("-", 0.0, x)
        case ("*", float(a), ("*", float(b), x)) if abs(b) * _bound(x) <= LIMIT and abs(a * b) <= LIMIT:
            return ("*", _number(a * b), x)
        case ("+", ("+", x, float(a)), float(b)) if abs(a + b) <= LIMIT:
            return ("+", x, _number(a + b))
        case ("+", ("-", float(a), x), float(b)) if abs(a + b) <= LIMIT:
            return ("-", _number(a + b), x)
        case ("-", float(a), ("+", x, float(b))) if abs(a - b) <= LIMIT:
            return ("-", _number(a - b), x)
        case ("-", float(a), ("-", float(b), x)) if abs(a - b) <= LIMIT:
            return ("+", x, _number(a - b))
        case ("+", ("+", x, float(a)), y) | ("+", y, ("+", x, float(a))) if not isinstance(y, float):
            return ("+", ("+", x, y), a)
        case ("-", ("+", x, float(a)), y) if not isinstance(y, float):
            return ("+", ("-", x, y), a)
        case ("-", y, ("+", x, float(a))) if not isinstance(y, float):
            return ("+", ("-", y, x), -a)
        case ("cos", "theta"):
            return "c"
    return None


def _number(value: float) -> float:
    """Without the last digits, in which two ways to the same number differ, and without a negative zero."""
    return round(value, 12) + 0.0


def _bound(expression: Expression) -> float:
    """Never less than the size of its value."""
    if isinstance(expression, float):
        return abs(expression)
    if isinstance(expression, str):
        return math.pi if expression == "theta" else 1.0
    bounds = [_bound(operand) for operand in operands(expression)]
    match operator(expression):
        case "+" | "-":
            return sum(bounds)
        case "min" | "max":
            return max(bounds)
        case "log" | "sqrt":
            return max(3.0, *bounds)
        case "cos":
            return 1.0
    return LIMIT


def formula(expression: Expression) -> str:
    """In infix notation, with as few parentheses as are needed and four digits a constant.

    >>> formula(("-", ("cos", ("+", "theta", 0.5)), 0.35))
    'cos(θ + 0.5) − 0.35'
    """
    return _written(expression)[0]


def _written(expression: Expression) -> tuple[str, int]:
    """The text and how tightly its outermost sign binds."""
    match expression:
        case float(value):
            size = "π" if abs(value) == math.pi else f"{abs(value):.4g}"
            return (f"−{size}", _PRECEDENCE["*"]) if value < 0 else (size, _TIGHTEST)
        case str(name):
            return "θ" if name == "theta" else name, _TIGHTEST
        case ("+", x, float(k)) if k < 0:
            return _written(("-", x, -k))
        case ("-", 0.0, x):
            return f"−{_after_sign(x, _PRECEDENCE['*'])}", _PRECEDENCE["*"]
        case ("square", x):
            return f"{_within(*_written(x), _TIGHTEST)}²", _PRECEDENCE["square"]
        case ("+" | "-" | "*" | "/" as name, left, right):
            level = _PRECEDENCE[name]
            tighter = level + 1 if name in ("-", "/") else level
            return f"{_within(*_written(left), level)}{_SIGNS[name]}{_after_sign(right, tighter)}", level
    text = ", ".join(_written(operand)[0] for operand in operands(expression))
    return f"{operator(expression)}({text})", _TIGHTEST


def _after_sign(expression: Expression, level: int) -> str:
    """The text of a right operand: no two signs in a row."""
    text, own = _written(expression)
    return _within(text, 0 if text.startswith("−") else own, level)


def _within(text: str, own: int, level: int) -> str:
    """In parentheses where it binds less tightly than its place needs."""
    return f"({text})" if own < level else text
