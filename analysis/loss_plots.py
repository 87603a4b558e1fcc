"""Figures of what was learnt: training curves and the winning loss itself."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from analysis.figures import MUTED, SEARCH, WINNER, Figure, Style, Trace, counting_axis, draw, plain, scatter, thin
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


def loss_figure(
    winner: pd.DataFrame, earlier: pd.DataFrame, references: pd.DataFrame, *, num_classes: int
) -> Figure | None:
    """Target logit and its gradient by target angle: the winner thick, its earlier losses faint, references dashed.

    Takes frames of `losses.curves`. None when the winner has no target logit.
    """
    if winner.empty:
        return None
    traces = _earlier_curves(earlier)
    for index, (name, part) in enumerate(references.groupby("loss", sort=False)):
        traces += _curve_pair(part, name=plain(name), line=_REFERENCE_LINES[index % len(_REFERENCE_LINES)])
    thick = {"color": WINNER, "width": 3.5}
    traces += _curve_pair(winner, name=plain(winner["loss"].iloc[0]), line=thick, legendrank=1)
    angles = {"title": {"text": "target angle θ (degrees)"}, "tickvals": list(range(0, 181, 30)), "range": [0, 180]}
    data = pd.concat([winner, references])
    at_60 = records(data[data["theta_deg"] == 60])
    return Figure(
        key="loss",
        title="Target logit, and how hard the loss pulls",
        label="At a target angle of 60 degrees, target logit and −∂L/∂cos θ: "
        + "; ".join(f"{row['loss']} {row['logit']:.2f}, {row['gradient']:.2f}" for row in at_60),
        caption=(
            f"L = softplus(lse_neg − T(cos θ)), drawn for {num_classes:,} classes with every negative at 90°. The "
            "references have the winner's scale, so that what differs is the margin; AdaCos has its own. The pull of "
            "an exact angular margin grows without bound towards 0° and 180°: its axis is cut."
        ),
        table=data[data["theta_deg"] % 15 == 0],
        plot=draw(
            traces,
            height=470,
            grid={"rows": 1, "columns": 2, "pattern": "independent", "xgap": 0.2},
            margin={"l": 70, "r": 18, "t": 24, "b": 130},
            xaxis=angles,
            xaxis2=angles,
            yaxis={"title": {"text": "target logit T (no unit)"}},
            yaxis2={"title": {"text": "pull −∂L/∂cos θ (per unit of cosine)"}, "range": _pull_range(data)},
        ),
    )


def _pull_range(data: pd.DataFrame) -> list[float]:
    """From 0, or below where the pull turns into a push, to a little above the highest pull between 10° and 150°."""
    pull = data.loc[data["theta_deg"].between(10, 150), "gradient"]
    return [min(0.0, 1.1 * float(pull.min())), 1.1 * float(pull.max())]


def _earlier_curves(earlier: pd.DataFrame) -> list[Trace]:
    traces: list[Trace] = []
    if earlier.empty:
        return traces
    for _, part in earlier.groupby("loss", sort=False):
        look = {"opacity": 0.4, "legendgroup": "earlier", "hoverinfo": "skip"}
        traces += _curve_pair(part, name="the winner's earlier losses", line={"color": WINNER, "width": 1}, **look)
    return [traces[0], *(trace | {"showlegend": False} for trace in traces[1:])]


def _curve_pair(part: pd.DataFrame, *, name: str, **look: Any) -> list[Trace]:
    logit = scatter(part["theta_deg"], part["logit"], name=name, mode="lines", **look)
    pull = scatter(part["theta_deg"], part["gradient"], name=name, mode="lines", **look)
    return [logit, pull | {"xaxis": "x2", "yaxis": "y2", "showlegend": False}]
