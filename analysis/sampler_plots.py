"""Figures of what a sampler asked for: numbers and choices, candidate by candidate and by quarter of the search."""

import math

import pandas as pd

from analysis.figures import (
    MUTED,
    SEARCH,
    WINNER,
    Figure,
    Trace,
    axis_suffix,
    draw,
    on_panel,
    panel_title,
    plain,
    scatter,
    worth_drawing,
)
from analysis.samples import QUARTERS, domain_of
from analysis.tables import records
from search_space.domains import Domain, Space

_MOST_PANELS = 12
_FEWEST_VALUES = 3
_FEWEST_FOR_A_BAND = 3
_PANEL_PIXELS = 215
_OPTION_PIXELS = 21
_BEST_SHARE = 0.1
_TICKS = tuple(digit * 10.0**power for power in range(-4, 4) for digit in (1, 2, 5))
"""Of a logarithmic axis."""


def numbers_figure(samples: pd.DataFrame, space: Space | None, winner: int | None) -> Figure | None:
    """The values of each number over the candidates, with the middle half of each quarter. None without any."""
    numbers = samples[samples["value"].notna()]
    counts = numbers["parameter"].value_counts()
    order = list(dict.fromkeys(numbers["parameter"]))
    often = [name for name in order if counts[name] >= min(_FEWEST_VALUES, counts.max())] if len(order) else []
    shown = sorted(sorted(often, key=lambda name: -counts[name])[:_MOST_PANELS], key=order.index)
    if not shown:
        return None
    columns = min(len(shown), 2)
    rows = -(-len(shown) // columns)
    traces: list[Trace] = []
    titles = []
    layout: dict[str, object] = {"grid": {"rows": rows, "columns": columns, "pattern": "independent", "ygap": 0.34}}
    for index, name in enumerate(shown):
        suffix = axis_suffix(index)
        part = numbers[numbers["parameter"] == name]
        traces += [trace | on_panel(index) for trace in [*_bands(part), *_dots(part, "value", _best(samples), winner)]]
        bottom = index + columns >= len(shown)
        layout[f"xaxis{suffix}"] = {"title": {"text": "trial" if bottom else ""}, "range": _span(samples)}
        layout[f"yaxis{suffix}"] = _value_axis(domain_of(space, name))
        titles.append(panel_title(name, suffix))
    left_out = len(order) - len(shown)
    more = f" {left_out} numbers that were active less often are in the table alone." if left_out else ""
    return Figure(
        key="sampled",
        title="Sampler: numbers by trial",
        label=f"Sampled values of {len(shown)} numbers; medians of the first and last quarter with values: "
        + "; ".join(_change(numbers[numbers["parameter"] == name], name) for name in shown),
        caption=(
            "Dots: the candidates for which the number exists, on an axis as wide as the space. Band: the middle half "
            "of a quarter of the search where it has three or more, line: its median. A band that narrows shows where "
            f"the sampler looks, not that it is right.{more}"
        ),
        table=_quartiles(numbers),
        plot=draw(
            traces,
            height=130 + _PANEL_PIXELS * rows,
            annotations=titles,
            margin={"l": 70, "r": 18, "t": 44, "b": 96},
            **layout,
        ),
    )


def choices_figure(samples: pd.DataFrame, winner: int | None) -> Figure | None:
    """The option that each choice took, candidate by candidate. None without choices."""
    choices = samples[samples["option"].notna()]
    names = list(dict.fromkeys(choices["parameter"]))
    if not names:
        return None
    options = {name: sorted(choices.loc[choices["parameter"] == name, "option"].unique()) for name in names}
    slots = [len(options[name]) + 2.4 for name in names]
    traces: list[Trace] = []
    titles = []
    layout: dict[str, object] = {}
    top = 1.0
    for index, (name, slot) in enumerate(zip(names, slots, strict=True)):
        suffix = axis_suffix(index)
        height = slot / sum(slots)
        part = choices[choices["parameter"] == name].assign(
            row=lambda frame, o=options[name]: frame["option"].map(o.index)
        )
        dots = _dots(part, "row", _best(samples), winner)
        traces += [trace | {"xaxis": "x", "yaxis": f"y{suffix}", "showlegend": index == 0} for trace in dots]
        layout[f"yaxis{suffix}"] = {
            "domain": [max(top - height * (1 - 1.6 / slot), 0.0), top],
            "tickvals": list(range(len(options[name]))),
            "ticktext": [plain(option, 28) for option in options[name]],
            "range": [len(options[name]) - 0.3, -0.7],
        }
        titles.append(panel_title(name, suffix, xref="paper"))
        top -= height
    last = f"y{len(names)}" if len(names) > 1 else "y"
    table = _shares(choices)
    favourites = table.sort_values("quarter 4", ascending=False, kind="stable").drop_duplicates("choice")
    return Figure(
        key="choices",
        title="Sampler: choices by trial",
        label=f"{len(names)} choices; most frequent in the last quarter: "
        + ", ".join(f"{row['choice']} {row['option']} {row['quarter 4']:.0%}" for row in records(favourites)),
        caption=(
            "A dot: the option that a candidate took; choices that exist under some options alone have fewer dots. The "
            "table gives each option's share of the candidates of a quarter for which the choice exists."
        ),
        table=table,
        plot=draw(
            traces,
            height=int(150 + _OPTION_PIXELS * sum(slots)),
            annotations=titles,
            margin={"l": 70, "r": 18, "t": 44, "b": 96},
            xaxis={"title": {"text": "trial"}, "anchor": last, "range": _span(samples)},
            **layout,
        ),
    )


def _value_axis(domain: Domain | None) -> dict[str, object]:
    """An axis as wide as the space."""
    if domain is None:
        return {"nticks": 6}
    if not domain.log:
        margin = 0.04 * (domain.high - domain.low)
        return {"range": [domain.low - margin, domain.high + margin], "nticks": 6}
    low, high = math.log10(domain.low), math.log10(domain.high)
    margin = 0.04 * (high - low)
    ticks = [tick for tick in _TICKS if domain.low <= tick <= domain.high]
    ticks = ticks if len(ticks) <= 6 else ticks[:: -(-len(ticks) // 6)]
    names = {"tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks]}
    return {"type": "log", "range": [low - margin, high + margin], **names}


def _span(samples: pd.DataFrame) -> list[float]:
    low, high = float(samples["number"].min()), float(samples["number"].max())
    margin = 0.02 * (high - low) + 0.5
    return [low - margin, high + margin]


def _best(samples: pd.DataFrame) -> set[int]:
    """The best tenth of the candidates, at least one."""
    rewards = samples.drop_duplicates("number").set_index("number")["reward"].dropna()
    return {int(number) for number in rewards.nlargest(max(1, int(_BEST_SHARE * len(rewards)))).index}


def _dots(part: pd.DataFrame, column: str, best: set[int], winner: int | None) -> list[Trace]:
    drawn = worth_drawing(part)
    good, won = drawn["number"].isin(best), drawn["number"] == winner
    looks = (
        ("candidate", drawn[~good & ~won], {"color": MUTED, "size": 6, "opacity": 0.6}),
        ("best tenth", drawn[good & ~won], {"color": SEARCH, "size": 8, "symbol": "diamond"}),
        ("winner", drawn[won], {"color": WINNER, "size": 14, "symbol": "star", "line": {"color": "white", "width": 1}}),
    )
    traces = []
    for name, rows, marker in looks:
        told = ["no reward" if pd.isna(reward) else f"reward {reward:.4f}" for reward in rows["reward"]]
        shown = rows["option"] if column == "row" else rows["value"].map("{:.4g}".format)
        text = [f"trial {n}: {plain(s)}, {t}" for n, s, t in zip(rows["number"], shown, told, strict=True)]
        points = scatter(rows["number"], rows[column], name=name, mode="markers", marker=marker, text=text)
        traces.append(points | {"hoverinfo": "text", "legendgroup": name} if len(rows) else _nothing(name, marker))
    return traces


def _nothing(name: str, marker: dict[str, object]) -> Trace:
    """An entry of the legend where the first panel happens to have no such dot."""
    return scatter([None], [None], name=name, mode="markers", marker=marker, legendgroup=name)


def _bands(part: pd.DataFrame) -> list[Trace]:
    """The middle half and the median of each quarter, over the trials of that quarter."""
    around: list[float | None] = []
    outline: list[float | None] = []
    at: list[float | None] = []
    middle: list[float | None] = []
    for _, rows in part.groupby("quarter"):
        if len(rows) < _FEWEST_FOR_A_BAND:
            continue
        low, median, high = rows["value"].quantile([0.25, 0.5, 0.75])
        left, right = float(rows["number"].min()) - 0.4, float(rows["number"].max()) + 0.4
        around += [left, right, right, left, left, None]
        outline += [high, high, low, low, high, None]
        at += [left, right, None]
        middle += [median, median, None]
    fill = {"fill": "toself", "fillcolor": "rgba(0, 114, 178, 0.18)", "line": {"width": 0}, "hoverinfo": "skip"}
    line = {"color": SEARCH, "width": 2.5}
    return [
        scatter(around or [None], outline or [None], name="middle half of a quarter", mode="lines", **fill),
        scatter(at or [None], middle or [None], name="its median", mode="lines", line=line, hoverinfo="skip"),
    ]


def _quartiles(numbers: pd.DataFrame) -> pd.DataFrame:
    groups = numbers.groupby(["parameter", "quarter"], sort=False)["value"]
    table = groups.agg(
        candidates="size",
        low=lambda values: values.quantile(0.25),
        median="median",
        high=lambda values: values.quantile(0.75),
    ).reset_index()
    return table.assign(quarter=table["quarter"] + 1)


def _change(part: pd.DataFrame, name: str) -> str:
    medians = part.groupby("quarter")["value"].median()
    return f"{name} {medians.iloc[0]:.4g} to {medians.iloc[-1]:.4g}"


def _shares(choices: pd.DataFrame) -> pd.DataFrame:
    """Each option's share of the candidates of a quarter."""
    counts = choices.pivot_table(index=["parameter", "option"], columns="quarter", values="number", aggfunc="count")
    counts = counts.reindex(columns=range(QUARTERS)).fillna(0)
    totals = counts.groupby(level="parameter").transform("sum")
    shares = (counts / totals.where(totals > 0, 1)).rename(columns=lambda quarter: f"quarter {quarter + 1}")
    return shares.reset_index().rename(columns={"parameter": "choice"}).rename_axis(columns=None)
