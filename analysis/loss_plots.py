"""Figures of what was learnt: training curves and losses themselves."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from analysis.figures import (
    MUTED,
    SEARCH,
    WINNER,
    Figure,
    Style,
    Trace,
    axis_suffix,
    counting_axis,
    draw,
    on_panel,
    plain,
    scatter,
    thin,
)
from analysis.loss_curves import PUSH_TARGET_DEG, SHOWN_PROBABILITIES, axis_range
from analysis.tables import records

_WINNER_STYLE = Style(colour=WINNER, dash="solid", symbol="star")


def training_figure(
    curves: Mapping[str, pd.DataFrame], styles: Mapping[str, Style], *, column: str, key: str, title: str, unit: str
) -> Figure | None:
    """One metric by epoch: the winner's whole training, each baseline's, and other trials thin. None without data.

    `curves` maps a name (`winner`, a baseline's, or `trial N`) to that entrant's epochs.
    """
    known = {name: thin(frame[frame[column].notna()]) for name, frame in curves.items() if column in frame}
    known = {name: frame for name, frame in known.items() if len(frame)}
    if not known:
        return None
    others = [name for name in known if name != "winner" and name not in styles]
    traces = [_thin_curve(known[name], column, name, first=index == 0) for index, name in enumerate(others)] + [
        _named_curve(frame, column, name, styles.get(name, _WINNER_STYLE))
        for name, frame in known.items()
        if name not in others
    ]
    data = pd.concat([frame.assign(entrant=name) for name, frame in known.items()])
    ends = ", ".join(f"{name} {frame[column].iloc[-1]:.4f}" for name, frame in known.items())
    return Figure(
        key=key,
        title=title,
        label=f"{title} by epoch, {len(known)} curves; at the end: {ends}",
        caption=(
            f"The winner with the trials that it continues, {len(styles.keys() & known.keys())} baselines, and "
            f"{len(others)} more of the search's best trials (thin)."
        ),
        table=data[["entrant", "epoch", column]],
        plot=draw(
            traces,
            height=430,
            margin={"l": 70, "r": 18, "t": 24, "b": 120},
            xaxis=counting_axis("epoch", data["epoch"]),
            yaxis={"title": {"text": plain(unit)}},
        ),
    )


def _thin_curve(frame: pd.DataFrame, column: str, name: str, *, first: bool) -> Trace:
    line = {"color": SEARCH, "width": 1}
    hover = f"{plain(name)}: %{{y:.4f}}<extra></extra>"
    shown = {"legendgroup": "others", "showlegend": first, "opacity": 0.35, "hovertemplate": hover}
    return scatter(frame["epoch"], frame[column], name="other search trials", mode="lines", line=line, **shown)


def _named_curve(frame: pd.DataFrame, column: str, name: str, style: Style) -> Trace:
    width = 3 if style is _WINNER_STYLE else 1.7
    return scatter(
        frame["epoch"],
        frame[column],
        name=plain(name),
        mode="lines+markers",
        line={"color": style.colour, "dash": style.dash, "width": width},
        marker={"symbol": style.symbol, "size": 7, "color": style.colour},
        hovertemplate="%{fullData.name}: %{y:.4f}<extra></extra>",
    )


_REFERENCE_LINES = (
    {"color": MUTED, "dash": "solid", "width": 2},
    {"color": "#000000", "dash": "dot", "width": 1.8},
    {"color": "#009E73", "dash": "dash", "width": 1.8},
    {"color": SEARCH, "dash": "dashdot", "width": 1.8},
    {"color": "#CC79A7", "dash": "longdash", "width": 1.8},
)
_WINNER_LINES = (
    {"color": WINNER, "dash": "solid", "width": 3.5},
    {"color": "#0072B2", "dash": "dash", "width": 2.5},
    {"color": "#009E73", "dash": "dot", "width": 2.5},
)
_LAST_DIGIT = 4
"""Decimals of a drawn number: finer than a pixel."""
_LONGEST_NAME = 180
"""Of a line that stands for one situation of a loss: the situation comes last."""


@dataclass(frozen=True)
class _Panel:
    """One of a loss's panels: which columns of `loss_curves.curves` it draws, and its axes' titles."""

    x: str
    y: str
    across: str
    up: str


_LOGIT = _Panel("theta_deg", "logit", "target angle θ (degrees)", "target logit T (no unit)")
_PULL = _Panel("theta_deg", "gradient", "target angle θ (degrees)", "pull −∂L/∂cos θ (per unit of cosine)")
_MARGIN = _Panel("p", "margin", "plain softmax probability p", "effective margin (cosine)")
_PUSH = _Panel("theta_deg", "push", "angle θ_j of one negative (degrees)", "push ∂L/∂cos θ_j (per unit of cosine)")
_NO_LOGIT = "no target logit T and no<br>effective margin: this objective<br>works on bare cosines"


def loss_figure(
    winner: pd.DataFrame,
    earlier: pd.DataFrame,
    references: pd.DataFrame,
    *,
    num_classes: int,
    key: str = "loss",
    title: str = "Target logit, pull and effective margin",
) -> Figure:
    """A loss thick, its earlier versions faint, references dashed: T and the pull by angle, the effective margin by p.

    Takes frames of `loss_curves.curves`. A loss with its own way of pushing negatives has a panel for that too; one
    without a target logit has its pull and push alone.
    """
    has_logit = bool(winner["logit"].notna().any())
    pushes = bool(winner["own_negatives"].any())
    shown = {_LOGIT: has_logit, _PULL: True, _MARGIN: has_logit, _PUSH: pushes}
    panels = [panel for panel, is_shown in shown.items() if is_shown]
    data = pd.concat([frame for frame in (winner, references) if len(frame)])
    traces = _earlier_curves(earlier, panels)
    for index, (name, part) in enumerate(references.groupby("loss", sort=False)):
        traces += _curve(part, panels, name=plain(name), line=_REFERENCE_LINES[index % len(_REFERENCE_LINES)])
    for index, (name, part) in enumerate(winner.groupby("loss", sort=False)):
        line = _WINNER_LINES[index % len(_WINNER_LINES)]
        traces += _curve(part, panels, name=plain(name, _LONGEST_NAME), line=line, legendrank=1)
    columns = ["loss", "theta_deg", "gradient", *(("logit", "p", "margin") if has_logit else ())]
    at_round = data["theta_deg"].mod(15).eq(0) | data["p"].mul(100).mod(10).sub(5).abs().lt(1e-6)
    return Figure(
        key=key,
        title=title,
        label=_label(winner),
        caption=_caption(num_classes, panels, data),
        table=data.loc[at_round, [*columns, *(("push",) if pushes else ())]],
        plot=draw(traces, **_layout(panels, data)),
    )


def _label(winner: pd.DataFrame) -> str:
    """What the figure shows, in numbers, at 60° and at p = .5."""
    said = []
    for name, part in winner.groupby("loss", sort=False):
        at_60 = records(part[part["theta_deg"] == 60])[0]
        words = f"{name}: −∂L/∂cos θ {at_60['gradient']:.2f}"
        if part["logit"].notna().any():
            near_half = records(part.iloc[[int((part["p"] - 0.5).abs().argmin())]])[0]
            words += f", target logit {at_60['logit']:.2f} at 60 degrees, effective margin "
            words += f"{near_half['margin']:.3f} at p = {near_half['p']:.2f}"
        said.append(words)
    return "Curves of a loss. " + "; ".join(said)


def _caption(num_classes: int, panels: Sequence[_Panel], data: pd.DataFrame) -> str:
    sentences = [f"Drawn for {num_classes:,} classes with every negative at 90°, the loss's state as it starts."]
    if _MARGIN in panels:
        sentences.append("Effective margin: (logit(p) − logit(p_m))/s, p the plain softmax's probability at scale s.")
    if _PUSH in panels:
        sentences.append(f"Push: one negative moves to θ_j while the target stays at {PUSH_TARGET_DEG}°.")
    if any(data[panel.y].max() > axis_range(data, panel.y)[1] for panel in panels if panel in (_PULL, _PUSH)):
        sentences.append("Towards 0° and 180° an exact angular map grows without bound: the axis is cut.")
    return " ".join(sentences)


def _layout(panels: Sequence[_Panel], data: pd.DataFrame) -> dict[str, Any]:
    """Three panels side by side, or four in two rows."""
    rows, columns = (2, 2) if len(panels) == 4 else (1, 3)
    gaps = {"xgap": 0.22 if columns == 3 else 0.14, "ygap": 0.26}
    layout: dict[str, Any] = {
        "height": 420 if rows == 1 else 680,
        "grid": {"rows": rows, "columns": columns, "pattern": "independent", **gaps},
        "margin": {"l": 64, "r": 18, "t": 14, "b": 112},
    }
    axes_by_column: dict[str, dict[str, Any]] = {
        "theta_deg": {"range": [0, 180], "tickvals": list(range(0, 181, 30))},
        "p": {"range": [0, 1], "tickvals": [0, 0.2, 0.4, 0.6, 0.8, 1]},
    }
    small = {"size": 12}
    for index, panel in enumerate(panels):
        suffix = axis_suffix(index)
        layout[f"xaxis{suffix}"] = {"title": {"text": panel.across, "font": small}, **axes_by_column[panel.x]}
        layout[f"yaxis{suffix}"] = {"title": {"text": panel.up, "font": small}, "range": axis_range(data, panel.y)}
    if _LOGIT not in panels:
        layout["xaxis3"] = layout["yaxis3"] = {"visible": False}
        place = {"xref": "paper", "yref": "paper", "x": 0.85, "xanchor": "center", "y": 0.5, "showarrow": False}
        layout["annotations"] = [{"text": _NO_LOGIT, "font": {"size": 13, "color": MUTED}, **place}]
    return layout


def _earlier_curves(earlier: pd.DataFrame, panels: Sequence[_Panel]) -> list[Trace]:
    traces: list[Trace] = []
    if earlier.empty:
        return traces
    for _, part in earlier.groupby("loss", sort=False):
        look = {"opacity": 0.4, "legendgroup": "earlier", "hoverinfo": "skip"}
        line = {"color": WINNER, "width": 1}
        traces += _curve(part, panels, name="the winner's earlier losses", line=line, **look)
    return [traces[0], *(trace | {"showlegend": False} for trace in traces[1:])]


def _curve(part: pd.DataFrame, panels: Sequence[_Panel], *, name: str, **look: Any) -> list[Trace]:
    """One line in each panel, the first with its entry in the legend."""
    traces = []
    for index, panel in enumerate(panels):
        shown = part[part["p"].between(*SHOWN_PROBABILITIES)] if panel is _MARGIN else part
        x, y = (shown[column].round(_LAST_DIGIT) for column in (panel.x, panel.y))
        line = {**look["line"], "simplify": False}
        place = on_panel(index) | {"legendgroup": name}
        traces.append(scatter(x, y, name=name, mode="lines") | place | look | {"line": line})
    return traces
