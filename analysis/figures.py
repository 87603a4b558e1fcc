"""What every figure of the report shares: its looks, its limits, and plotly, which only this module imports.

A figure is made of plotly traces as plain dictionaries; `draw` checks them and sets the common layout. WebGL traces go
blank where there is no GPU and under a policy without `unsafe-eval`, so only SVG traces are used. Plotly reads text as
markup: whatever comes from a journal goes through `plain`.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import plotly.offline

Trace = dict[str, Any]

WINNER = "#D55E00"
SEARCH = "#0072B2"
FAILED = "#000000"
MUTED = "#767676"
_BASELINE_COLOURS = ("#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#000000")
_DASHES = ("dash", "dot", "dashdot", "longdash")
_SYMBOLS = ("square", "diamond", "triangle-up", "cross", "hexagon", "triangle-down", "bowtie", "pentagon", "hourglass")
_SPARE_AXIS = {"gridcolor": "#E6E6E6", "linecolor": "#888888", "ticks": "outside", "tickcolor": "#888888"}

MAX_MARKS = 200
"""The most trials, and the most points a curve, that a figure draws."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A drawn figure. `label` says it in words and numbers, `plot` is plotly's JSON, `table` holds the data drawn."""

    key: str
    title: str
    label: str
    caption: str
    table: pd.DataFrame
    plot: str


@dataclass(frozen=True, kw_only=True)
class Style:
    """How one baseline looks in every figure: never told apart by colour alone."""

    colour: str
    dash: str
    symbol: str


def plotly_js() -> str:
    """The plotly library itself, to be put into a page once."""
    return str(plotly.offline.get_plotlyjs())


def styles_for(names: Iterable[str]) -> dict[str, Style]:
    """A style for each name, in order of first appearance; the first twenty all differ."""
    return {
        name: Style(
            colour=_BASELINE_COLOURS[index % len(_BASELINE_COLOURS)],
            dash=_DASHES[index % len(_DASHES)],
            symbol=_SYMBOLS[index % len(_SYMBOLS)],
        )
        for index, name in enumerate(dict.fromkeys(names))
    }


def plain(text: object, length: int = 90) -> str:
    """Text that plotly shows as it is, shortened."""
    words = str(text)
    return escape(words if len(words) <= length else words[: length - 1] + "…")


def thin(frame: pd.DataFrame, limit: int = MAX_MARKS) -> pd.DataFrame:
    """At most `limit` rows, evenly spaced, the first and the last among them."""
    if len(frame) <= limit:
        return frame
    return frame.iloc[np.unique(np.linspace(0, len(frame) - 1, limit).round().astype(int))]


def worth_drawing(trials: pd.DataFrame, limit: int = MAX_MARKS) -> pd.DataFrame:
    """At most `limit` trials in their order: half of them the best rewards, half evenly spaced over the others."""
    if len(trials) <= limit:
        return trials
    best = trials["reward"].nlargest(limit // 2).index
    others = thin(trials.drop(best), limit - len(best)).index
    return trials.loc[trials.index.isin(best.union(others))]


def scatter(x: Iterable[Any], y: Iterable[Any], *, name: str, mode: str, **more: Any) -> Trace:
    """A scatter trace; plain lists, so that the page holds readable numbers."""
    return {"type": "scatter", "x": list(x), "y": list(y), "name": name, "mode": mode, **more}


def counting_axis(title: str, values: Iterable[Any]) -> dict[str, Any]:
    """An axis of whole numbers: at most a dozen ticks, none of them between two numbers."""
    numbers = [float(value) for value in values]
    span = max(numbers, default=0.0) - min(numbers, default=0.0)
    return {"title": {"text": title}, "tick0": 0, "dtick": max(1, math.ceil(span / 12))}


def axis_suffix(index: int) -> str:
    """What follows x and y in plotly's names for the axes of the panel of this index: nothing, 2, 3, ..."""
    return str(index + 1) if index else ""


def on_panel(index: int) -> Trace:
    """What puts a trace on the panel of this index; the legend has the first panel's traces."""
    suffix = axis_suffix(index)
    return {"xaxis": f"x{suffix}", "yaxis": f"y{suffix}", "showlegend": index == 0}


def panel_title(text: object, suffix: str, *, xref: str = "") -> dict[str, Any]:
    """A title above the panel whose axes are called x and y with this suffix, at its left edge or that of `xref`."""
    place = {"xref": xref or f"x{suffix} domain", "yref": f"y{suffix} domain", "x": 0, "y": 1}
    look = {"xanchor": "left", "yanchor": "bottom", "yshift": 3, "showarrow": False, "font": {"size": 13}}
    return {"text": f"<b>{plain(text, 50)}</b>", **place, **look}


def draw(traces: Sequence[Trace], *, height: int, **layout: Any) -> str:
    """Plotly's JSON of these traces under the common layout. Axes are given as `xaxis={"title": ...}` and so on.

    Raises ValueError for a trace or layout that plotly does not know.
    """
    axes = {key: _SPARE_AXIS | value for key, value in layout.items() if key[1:].startswith("axis")}
    axes = {key: {"automargin": True, "zeroline": False, "showline": True} | value for key, value in axes.items()}
    common: Mapping[str, Any] = {
        "template": "none",
        "height": height,
        "autosize": True,
        "font": {"family": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif", "size": 13, "color": "#222222"},
        "margin": {"l": 70, "r": 18, "t": 24, "b": 52},
        "legend": {"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom", "x": 0, "font": {"size": 12}},
        "hoverlabel": {"align": "left"},
    }
    return str(go.Figure({"data": list(traces), "layout": {**common, **layout, **axes}}).to_json())
