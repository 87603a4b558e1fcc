"""A page with a picture of every loss of the catalog, or of some: formula, source, settings and curves."""

from collections.abc import Mapping

from analysis import page
from analysis.loss_curves import cases, curves
from analysis.loss_facts import facts_of
from analysis.loss_plots import loss_figure
from analysis.losses import describe
from analysis.page import Section
from search_space import LossSpec, catalog, parts

_FOOTER = "Made by lossearch. Every curve is computed by the loss itself; what a formula says is tested against it."


def losses_html(losses: Mapping[str, LossSpec], *, num_classes: int) -> str:
    """One HTML document with a section for each loss, named as in the catalog. It works offline.

    Raises ValueError for fewer classes than a loss needs.
    """
    title = "The losses" if len(losses) > 1 else f"The loss {describe(next(iter(losses.values())))}"
    subtitle = (
        f"{len(losses)} of the catalog's {len(catalog.NAMES)} named losses at {num_classes:,} classes. T: target "
        "logit; c_j: cosine of a negative, n_j: what the loss makes of it; s: scale; p: softmax probability of the "
        "target."
    )
    sections = [_section(name, spec, num_classes) for name, spec in losses.items()]
    return page.page(title, subtitle, sections, _FOOTER)


def _section(name: str, spec: LossSpec, num_classes: int) -> Section:
    entry = catalog.ENTRIES[name]
    line_name = describe(spec) if len(cases(spec)) == 1 else ""
    drawn = loss_figure(
        curves({line_name: spec}, num_classes=num_classes),
        curves({}, num_classes=num_classes),
        curves(_plain(spec), num_classes=num_classes),
        num_classes=num_classes,
        key=name,
        title=describe(spec),
    )
    facts = [f"{what.capitalize()}: {fact}." for what, fact in facts_of(name, spec, num_classes).items() if fact]
    pieces = (page.code(entry.formula), page.paragraph(" ".join(facts)), page.figure(drawn))
    return Section(key=name, title=name, pieces=pieces)


def _plain(spec: LossSpec) -> dict[str, LossSpec]:
    """Softmax at the same constant scale, to see what the loss adds."""
    softmax = LossSpec(scale=spec.scale) if isinstance(spec.scale, parts.ConstantScale) else spec
    return {} if softmax == spec else {describe(softmax): softmax}
