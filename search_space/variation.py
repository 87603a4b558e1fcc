"""Random expressions, and random changes of them: growth, typed mutation, typed crossover.

What comes out of `mutate` and `cross` is always a map of the given variables: a change is only made where the new part
may stand for what the old one stood for, and drawn again when it breaks a limit. Constants are drawn with three
decimals, so that formulas stay readable.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from search_space.expressions import (
    LIMIT,
    MAX_DEPTH,
    OPERATORS,
    VARIABLES,
    Expression,
    Kind,
    Path,
    fits,
    kinds,
    nodes,
    operands,
    operator,
    replaced,
)

NEW_DEPTH = 3
"""Of what a mutation puts in."""

_LEAF_SHARE = 0.3
_CONSTANT_SHARE = 0.5
_PROBES: Mapping[Kind, Expression] = {"angle": "theta", "number": "c"}


def grow(rng: np.random.Generator, kind: Kind, depth: int, variables: Sequence[str]) -> Expression:
    """A random expression of a kind, at most `depth` levels deep (Koza 1992, 'grow'): operators alike, 30 % leaves.

    It need not use a variable. Raises ValueError for a depth outside [1, 8].
    """
    if not 1 <= depth <= MAX_DEPTH:
        raise ValueError(f"depth must lie in [1, {MAX_DEPTH}], but got depth={depth}")
    if depth == 1 or rng.random() < _LEAF_SHARE:
        names = [name for name in variables if VARIABLES[name] == kind]
        if rng.random() < _CONSTANT_SHARE:
            return round(float(rng.uniform(-1, 1)), 3)
        return names[int(rng.integers(len(names)))]
    signatures = [
        (name, taken) for name, each in OPERATORS.items() for taken, result in each.signatures if result == kind
    ]
    name, taken = signatures[int(rng.integers(len(signatures)))]
    return (name, *(grow(rng, operand, depth - 1, variables) for operand in taken))


def grow_map(rng: np.random.Generator, depth: int, variables: Sequence[str]) -> Expression:
    """A random expression that is a map of these variables."""
    while True:
        expression = grow(rng, "number", depth, variables)
        if fits(expression, variables):
            return expression


def accepts(expression: Expression, path: Path) -> frozenset[Kind]:
    """The kinds of expression that may stand at `path`."""
    return frozenset(kind for kind, probe in _PROBES.items() if "number" in kinds(replaced(expression, path, probe)))


def mutate(rng: np.random.Generator, expression: Expression, variables: Sequence[str]) -> Expression:
    """Another map, one change away; in half of the draws a `c` is written as cos θ first, which opens up the angle."""
    while True:  # ends: growing in place of the root may give any small map
        change = _CHANGES[int(rng.integers(len(_CHANGES)))]
        changed = change(rng, _opened(rng, expression) if rng.random() < 0.5 else expression, variables)
        if changed != expression and fits(changed, variables):
            return changed


def cross(rng: np.random.Generator, mother: Expression, father: Expression, variables: Sequence[str]) -> Expression:
    """The mother with a subtree of the father's in place of one of her own; herself where none fits."""
    parts = [part for _, part in nodes(father)]
    places = [path for path, _ in nodes(mother)]
    for place in rng.permutation(len(places)):
        wanted = accepts(mother, places[place])
        children = [replaced(mother, places[place], part) for part in parts if kinds(part) & wanted]
        fitting = [child for child in children if child != mother and fits(child, variables)]
        if fitting:
            return fitting[int(rng.integers(len(fitting)))]
    return mother


def _opened(rng: np.random.Generator, expression: Expression) -> Expression:
    """The same map with a `c` as cos θ."""
    places = [path for path, node in nodes(expression) if node == "c"]
    return replaced(expression, places[int(rng.integers(len(places)))], ("cos", "theta")) if places else expression


def _jittered(rng: np.random.Generator, expression: Expression, _variables: Sequence[str]) -> Expression:
    """A constant moves by a Gaussian step of a fifth of its size, at least 0.05."""
    constants = [(path, node) for path, node in nodes(expression) if isinstance(node, float)]
    if not constants:
        return expression
    path, value = constants[int(rng.integers(len(constants)))]
    moved = value + max(0.05, 0.2 * abs(value)) * float(rng.standard_normal())
    return replaced(expression, path, round(min(max(moved, -LIMIT), LIMIT), 3) + 0.0)


def _shifted(rng: np.random.Generator, expression: Expression, _variables: Sequence[str]) -> Expression:
    """A subtree plus a constant or times one: what a margin does to an angle or a cosine."""
    path, node = _any_node(rng, expression)
    step = 0.3 * float(rng.standard_normal())
    changed: Expression = ("+", node, round(step, 3)) if rng.random() < 0.5 else ("*", round(math.exp(step), 3), node)
    return replaced(expression, path, changed)


def _regrown(rng: np.random.Generator, expression: Expression, variables: Sequence[str]) -> Expression:
    """A new subtree in place of one."""
    path, _ = _any_node(rng, expression)
    return replaced(expression, path, grow(rng, _one_of(rng, accepts(expression, path)), NEW_DEPTH, variables))


def _inserted(rng: np.random.Generator, expression: Expression, variables: Sequence[str]) -> Expression:
    """An operator above a subtree, its other operand new."""
    path, node = _any_node(rng, expression)
    places = [
        (name, taken, slot)
        for name, each in OPERATORS.items()
        for taken, result in each.signatures
        if result in accepts(expression, path)
        for slot, kind in enumerate(taken)
        if kind in kinds(node)
    ]
    if not places:
        return expression
    name, taken, slot = places[int(rng.integers(len(places)))]
    depth = int(rng.integers(1, NEW_DEPTH))
    new = [node if at == slot else grow(rng, kind, depth, variables) for at, kind in enumerate(taken)]
    return replaced(expression, path, (name, *new))


def _deleted(rng: np.random.Generator, expression: Expression, _variables: Sequence[str]) -> Expression:
    """One of its operands in place of an operator."""
    path, node = _any_node(rng, expression)
    left = [operand for operand in operands(node) if kinds(operand) & accepts(expression, path)]
    return replaced(expression, path, left[int(rng.integers(len(left)))]) if left else expression


def _renamed(rng: np.random.Generator, expression: Expression, _variables: Sequence[str]) -> Expression:
    """Another operator over the same operands, or the operands the other way round."""
    inner = [(path, node) for path, node in nodes(expression) if operands(node)]
    if not inner:
        return expression
    path, node = inner[int(rng.integers(len(inner)))]
    arity = len(operands(node))
    if arity == 2 and rng.random() < 0.5:
        return replaced(expression, path, (operator(node), *reversed(operands(node))))
    names = [name for name, each in OPERATORS.items() if each.arity == arity]
    return replaced(expression, path, (names[int(rng.integers(len(names)))], *operands(node)))


_CHANGES: tuple[Callable[[np.random.Generator, Expression, Sequence[str]], Expression], ...] = (
    _jittered,
    _shifted,
    _regrown,
    _inserted,
    _deleted,
    _renamed,
)


def _any_node(rng: np.random.Generator, expression: Expression) -> tuple[Path, Expression]:
    every = list(nodes(expression))
    return every[int(rng.integers(len(every)))]


def _one_of(rng: np.random.Generator, found: frozenset[Kind]) -> Kind:
    every = sorted(found)
    return every[int(rng.integers(len(every)))]
