"""The page of `lossearch evaluate`: numbers, the ROC curve over log FAR, and the DET curve on normal deviates."""

from collections.abc import Mapping, Sequence
from statistics import NormalDist

import pandas as pd

from analysis import page
from analysis.figures import SEARCH, Figure, Trace, draw, plain, scatter, styles_for
from analysis.page import Html, Section
from analysis.tables import records

_FOOTER = "Made by lossearch evaluate."
_MOST_BANDED = 2
"""With more curves, bands would hide each other; the tables have every interval."""
_DEVIATE_RATES = (1e-6, 1e-5, 1e-4, 1e-3, 0.01, 0.05, 0.2, 0.5, 0.8, 0.95, 0.99, 0.999)
_LINE_WIDTH = 2
_EDGE = 1e-5
"""Rates nearer to 0 or 1 are taken for them, which have no deviate; bands end here."""


def evaluation_html(
    title: str,
    subtitle: str,
    *,
    tables: Mapping[str, pd.DataFrame],
    curves: Mapping[str, pd.DataFrame],
    axes: tuple[str, str],
    notes: Sequence[str],
) -> str:
    """One HTML document that works offline.

    `curves`: by name the columns far, tar, low and high (a 95 % interval of tar); `axes`: what far and tar are called,
    `FAR` and `TAR` or `FPIR` and `TPIR`.
    """
    numbers: list[Html | None] = [page.table(frame, caption=name) for name, frame in tables.items()]
    sections = [Section(key="numbers", title="Numbers", pieces=(*numbers, *map(page.paragraph, notes)))]
    if drawn := {name: curve for name, curve in curves.items() if len(curve)}:
        figures = (page.figure(roc_figure(drawn, axes)), page.figure(det_figure(drawn, axes)))
        sections.append(Section(key="curves", title="Error curves", pieces=figures))
    return page.page(title, subtitle, sections, _FOOTER)


def roc_figure(curves: Mapping[str, pd.DataFrame], axes: tuple[str, str]) -> Figure:
    """The true accept rate over the logarithm of the false accept rate."""
    far, tar = axes
    return Figure(
        key="roc",
        title=f"{tar} over {far}",
        label=_label(curves, axes),
        caption="High is good. Steps between resolved rates are drawn straight." + _bands(curves),
        table=_table(curves, axes),
        plot=draw(
            [
                trace
                for name, curve in curves.items()
                for trace in _traces(name, curves, list(curve["far"]), curve[["tar", "low", "high"]])
            ],
            height=480,
            xaxis={"title": {"text": f"{far} (log)"}, "type": "log", "dtick": 1, "exponentformat": "power"},
            yaxis={"title": {"text": tar}, "rangemode": "normal"},
        ),
    )


def det_figure(curves: Mapping[str, pd.DataFrame], axes: tuple[str, str]) -> Figure:
    """False rejects over false accepts, both as normal deviates: two normal distributions make a straight line.

    Martin et al. 1997, "The DET curve in assessment of detection task performance". Where nothing or everything is
    rejected there is no deviate and nothing is drawn.
    """
    far, tar = axes
    traces: list[Trace] = []
    for name, curve in curves.items():
        inside = curve[(curve["tar"] > _EDGE) & (curve["tar"] < 1 - _EDGE)]
        missed = 1 - inside[["tar", "high", "low"]].clip(_EDGE, 1 - _EDGE)
        deviates = missed.apply(lambda column: column.map(_deviate))
        deviates.columns = pd.Index(["tar", "low", "high"])
        traces += _traces(name, curves, [_deviate(rate) for rate in inside["far"]], deviates)
    ticks = {"tickvals": [_deviate(rate) for rate in _DEVIATE_RATES], "ticktext": [f"{r:g}" for r in _DEVIATE_RATES]}
    return Figure(
        key="det",
        title="Detection error trade-off on normal deviates",
        label=_label(curves, axes),
        caption="Low is good. A straight line means that both kinds of scores are normal." + _bands(curves),
        table=_table(curves, axes),
        plot=draw(
            traces,
            height=520,
            xaxis={"title": {"text": f"{far} (normal deviate)"}, **ticks},
            yaxis={"title": {"text": f"1 − {tar} (normal deviate)"}, **ticks},
        ),
    )


def _deviate(rate: float) -> float:
    return NormalDist().inv_cdf(rate)


def _traces(name: str, curves: Mapping[str, pd.DataFrame], x: Sequence[float], y: pd.DataFrame) -> list[Trace]:
    """The line of one curve, before it its band where few curves are drawn."""
    style = styles_for(curves)[name]
    colour = SEARCH if len(curves) == 1 else style.colour
    line = {"color": colour, "width": _LINE_WIDTH, **({} if len(curves) == 1 else {"dash": style.dash})}
    drawn = scatter(x, y["tar"], name=plain(name, 40), mode="lines", line=line)
    if len(curves) > _MOST_BANDED:
        return [drawn]
    around, outline = [*x, *x[::-1]], [*y["high"], *y["low"][::-1]]
    band = {"fill": "toself", "fillcolor": colour, "opacity": 0.16, "line": {"width": 0}, "hoverinfo": "skip"}
    return [scatter(around, outline, name=f"{plain(name, 40)}, 95 %", mode="lines", **band), drawn]


def _bands(curves: Mapping[str, pd.DataFrame]) -> str:
    return " Bands: 95 % intervals at each rate." if len(curves) <= _MOST_BANDED else " Intervals are in the table."


def _label(curves: Mapping[str, pd.DataFrame], axes: tuple[str, str]) -> str:
    """The figure in words: the ends of each curve."""
    far, tar = axes
    said = []
    for name, curve in curves.items():
        low, high = records(curve.iloc[[0, -1]])
        said.append(f"{name}: {tar} {low['tar']:.4f} at {far} {low['far']:.2g}, {high['tar']:.4f} at {high['far']:.2g}")
    return "; ".join(said)


def _table(curves: Mapping[str, pd.DataFrame], axes: tuple[str, str]) -> pd.DataFrame:
    table = pd.concat([curve.assign(curve=name) for name, curve in curves.items()], ignore_index=True)
    return table.rename(columns=dict(zip(("far", "tar"), axes, strict=True)))
