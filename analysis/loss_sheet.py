"""A loss of the catalog on a terminal: formula, parameters with units and ranges, state, cost, curves."""

from collections.abc import Iterator, Mapping

from rich.console import RenderableType
from rich.table import Table

from analysis.loss_curves import cases, curves
from analysis.loss_facts import facts_of, parameters_of
from analysis.losses import describe
from analysis.terminal_plot import terminal_plot
from search_space import catalog
from search_space.catalog import Value


def loss_sheet(name: str, chosen: Mapping[str, Value], *, num_classes: int, width: int) -> Iterator[RenderableType]:
    """What to print about a loss with `chosen` in place of defaults.

    Raises ValueError for what the catalog refuses, and for fewer classes than the loss needs.
    """
    spec = catalog.get(name, **chosen)
    facts = Table.grid(padding=(0, 2))
    facts.add_row("loss", describe(spec))
    facts.add_row("formula", catalog.ENTRIES[name].formula)
    for what, fact in facts_of(name, spec, num_classes).items():
        facts.add_row(what, fact or "nothing")
    yield from (facts, "")
    yield _parameter_table(name, chosen)
    line_name = describe(spec) if len(cases(spec)) == 1 else ""
    yield from ("", terminal_plot(curves({line_name: spec}, num_classes=num_classes), width=width))
    yield f"At {num_classes:,} classes, all negatives at 90°. --plot FILE.html adds the effective margin."


def _parameter_table(name: str, chosen: Mapping[str, Value]) -> RenderableType:
    parameters = parameters_of(name, chosen)
    if not parameters:
        return "no parameters"
    columns = ("parameter", *(("value",) if chosen else ()), "default", "unit", "range")
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, no_wrap=column in ("parameter", "range"))
    for each in parameters:
        value = (_said(each.value),) if chosen else ()
        table.add_row(each.name, *value, _said(each.default), each.unit or "–", each.accepted)
    return table


def _said(value: Value) -> str:
    """Equal numbers of a list once."""
    if isinstance(value, str):
        return value
    if isinstance(value, float | int):
        return f"{value:.6g}"
    numbers = [f"{number:.6g}" for number in value]
    return f"{numbers[0]}, {len(numbers)} times" if len(set(numbers)) == 1 else ", ".join(numbers)
