"""Figures of a comparison: differences, seeds, errors and cosines over all thresholds, what it all cost."""

import math
from collections import Counter
from collections.abc import Sequence

import pandas as pd

from analysis.comparison import FEWEST_FALSE_ACCEPTS, SCORES, WINNER, Results
from analysis.comparison_curves import cosines_of, errors_of, thresholds_of
from analysis.figures import (
    FAILED,
    MUTED,
    SEARCH,
    Figure,
    Style,
    Trace,
    axis_suffix,
    draw,
    on_panel,
    panel_title,
    plain,
    scatter,
    styles_for,
)
from analysis.figures import WINNER as WINNER_COLOUR
from analysis.tables import records, score_title

_SYMBOLS = ("circle", "square-open", "diamond-open", "triangle-up-open", "star-open")
"""Of the tested score, and of up to four others."""
_UNRESOLVED = "rgba(118, 118, 118, 0.13)"
_THRESHOLD_DASHES = ("solid", "dash", "dot", "dashdot")
_ROW_PIXELS = 165
_RATES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1)
_RATE_TICKS = {"tickvals": list(_RATES), "ticktext": [f"{rate:g}" for rate in _RATES]}


def forest_figure(results: Results) -> Figure:
    """The paired differences with their intervals: the tested score filled, the other TARs hollow."""
    table = results.differences()
    others = [score for score in SCORES[:4] if score != results.metric and results.resolved(score)]
    shown = [results.metric, *others]
    traces: list[Trace] = []
    for index, score in enumerate(shown):
        rows = table[(table["score"] == score) & table["mean"].notna()]
        y = [results.rivals.index(name) + 0.15 * index for name in rows["baseline"]]
        traces.append(
            scatter(
                rows["mean"],
                y,
                name=score_title(score) + (", tested" if score == results.metric else ""),
                mode="markers",
                marker={
                    "symbol": _SYMBOLS[index],
                    "size": 10 if index == 0 else 7,
                    "color": WINNER_COLOUR if index == 0 else MUTED,
                },
                error_x={
                    "type": "data",
                    "symmetric": False,
                    "array": list(rows["high"] - rows["mean"]),
                    "arrayminus": list(rows["mean"] - rows["low"]),
                    "color": WINNER_COLOUR if index == 0 else MUTED,
                    "thickness": 2 if index == 0 else 1,
                },
            )
        )
    names = [plain(name, 40) for name in results.rivals]
    tested = table[table["score"] == results.metric]
    said = "; ".join(f"{row['baseline']}: {row['verdict']}" for row in tested.to_dict("records"))
    return Figure(
        key="forest",
        title="The winner minus each baseline",
        label=f"Paired differences with {results.coverage} intervals by baseline, zero line drawn. {said}.",
        caption=(
            f"Right of 0 the winner is ahead. Bars: {results.coverage} intervals over {results.repeated} and "
            "identities. Only the filled marks were tested. Of the other TARs those that rest on fewer than "
            f"{FEWEST_FALSE_ACCEPTS} false accepts are not drawn."
        ),
        table=table[table["score"].isin(shown)],
        plot=draw(
            traces,
            height=140 + 52 * len(names),
            xaxis={
                "title": {"text": "winner − baseline"},
                "zeroline": True,
                "zerolinecolor": FAILED,
                "zerolinewidth": 2,
            },
            yaxis={"tickvals": list(range(len(names))), "ticktext": names, "autorange": "reversed"},
        ),
    )


def seeds_figure(results: Results) -> Figure:
    """Each seed's scores as a line over the entrants; what did not train properly as ✕."""
    score = results.metric
    names = [str(entrant["name"]) for entrant in results.entrants]
    ticks = [plain(name, 40) for name in names]
    table = results.raw()
    traces: list[Trace] = []
    for index, seed in enumerate(results.seeds):
        runs = [results.scored[name, seed] for name in names]
        bad = [run.state != "trained" for run in runs]
        traces.append(
            scatter(
                list(range(len(names))),
                [run.score(score) for run in runs],
                name="one seed" if index == 0 else f"seed {seed}",
                mode="lines+markers",
                line={"color": SEARCH, "width": 1},
                opacity=0.6,
                marker={
                    "symbol": ["x" if each else "circle" for each in bad],
                    "size": [11 if each else 6 for each in bad],
                    "color": [FAILED if each else SEARCH for each in bad],
                },
                text=[f"seed {seed}, {run.state}" for run in runs],
                showlegend=index == 0,
            )
        )
    traces.append(_means(results, names))
    states = Counter(run.state for run in results.scored.values())
    lost = f", {states['failed']} lost by the machine and not drawn" if states["failed"] else ""
    troubled = f"{states['collapsed'] + states['diverged']} marked ✕{lost}"
    return Figure(
        key="seeds",
        title="Every seed",
        label=f"{score_title(score)} of {len(names)} entrants under {len(results.seeds)} seeds; {troubled}.",
        caption="A line joins what one seed gave. ✕: collapsed or diverged, counted all the same.",
        table=table[["entrant", "seed", "state", score]],
        plot=draw(
            traces,
            height=460,
            xaxis={"tickvals": list(range(len(names))), "ticktext": ticks, "tickangle": -30},
            yaxis={"title": {"text": f"test {score_title(score)}"}},
        ),
    )


def _means(results: Results, names: Sequence[str]) -> Trace:
    found = {index: value for index, name in enumerate(names) if (value := results.estimate(name, results.metric))}
    return scatter(
        found,
        [value.mean for value in found.values()],
        name=f"mean, {results.coverage} interval",
        mode="markers",
        marker={"symbol": "line-ew-open", "size": 22, "color": WINNER_COLOUR, "line": {"width": 3}},
        error_y={
            "type": "data",
            "symmetric": False,
            "array": [value.high - value.mean for value in found.values()],
            "arrayminus": [value.mean - value.low for value in found.values()],
            "color": WINNER_COLOUR,
        },
    )


def _styles(results: Results) -> dict[str, Style]:
    """How each entrant looks: the winner as everywhere, what else came from the search in the search's colour."""
    own = {
        str(entrant["name"]): Style(colour=SEARCH, dash="dash", symbol="star-diamond")
        for entrant in results.entrants
        if entrant["kind"] == "recommended"
    }
    winner = {WINNER: Style(colour=WINNER_COLOUR, dash="solid", symbol="star")}
    return winner | own | styles_for(results.rivals)


def errors_figure(results: Results) -> Figure | None:
    """Detection error trade-off: false accepts against false rejects. None where no curve was kept."""
    table = errors_of(results)
    if table.empty:
        return None
    banded = _banded(results, list(table["entrant"].unique()))
    low, high = float(table["far"].min()), float(table["far"].max())
    resolved = table.loc[table["resolved"], "far"]
    weak_until = float(resolved.min()) if len(resolved) else high
    at_high = [f"{row['entrant']} {row['frr']:.4f}" for row in records(table) if row["far"] == high]
    return Figure(
        key="errors",
        title="Detection error trade-off",
        label=f"False reject rate at false accept rates from {low:.2g} to {high:.2g}; at {high:.2g}: "
        + ", ".join(at_high),
        caption=(
            f"Low is good. Means over seeds. Bands: {results.coverage} intervals over {results.repeated} and "
            f"identities at each rate, drawn for {' and '.join(banded)}; those of the others are in the table. Bands "
            "may overlap where a paired difference is clear. Grey: fewer than "
            f"{FEWEST_FALSE_ACCEPTS} false accepts, a handful of pairs."
        ),
        table=table,
        plot=draw(
            _error_traces(results, table, banded),
            height=580,
            margin={"l": 70, "r": 18, "t": 24, "b": 130},
            shapes=_grey(low, weak_until) if weak_until > low else [],
            xaxis={
                "title": {"text": "false accept rate (log)"},
                "type": "log",
                "dtick": 1,
                "exponentformat": "power",
                "range": [math.log10(low), math.log10(high) + 0.03],
            },
            yaxis={"title": {"text": "false reject rate, 1 − TAR (log)"}, "type": "log", **_RATE_TICKS},
        ),
    )


def _error_traces(results: Results, table: pd.DataFrame, banded: Sequence[str]) -> list[Trace]:
    """The bands, then the lines, the winner's on top."""
    styles, floor = _styles(results), _floor(table)
    bands: list[Trace] = []
    lines: list[Trace] = []
    for entrant, rows in table.groupby("entrant", sort=False):
        name, style = str(entrant), styles[str(entrant)]
        if name in banded:
            outline = [max(rate, floor) for rate in (*rows["high"], *rows["low"][::-1])]
            around = [*rows["far"], *rows["far"][::-1]]
            fill = {"fill": "toself", "fillcolor": _faint(style.colour), "line": {"width": 0}, "hoverinfo": "skip"}
            bands.append(scatter(around, outline, name=f"{plain(name, 40)}, {results.coverage}", mode="lines", **fill))
        line = {"color": style.colour, "dash": style.dash, "width": 3 if name == WINNER else 1.6}
        hover = "%{fullData.name}: FAR %{x:.3g}, FRR %{y:.4f}<extra></extra>"
        height = rows["frr"].clip(lower=floor)
        drawn = scatter(rows["far"], height, name=plain(name, 40), mode="lines", line=line, hovertemplate=hover)
        lines.append(drawn)
    return [*bands, *lines[1:], *lines[:1]]


def _floor(table: pd.DataFrame) -> float:
    """The lowest rate drawn on the logarithmic axis, which has no 0."""
    rates = pd.concat([table["frr"], table["low"]])
    return max(float(rates[rates > 0].min()), float(table["frr"].max()) / 1000) if (rates > 0).any() else 1e-3


def _grey(low: float, until: float) -> list[dict[str, object]]:
    place = {"xref": "x", "yref": "paper", "x0": low, "x1": until, "y0": 0, "y1": 1}
    return [{"type": "rect", **place, "fillcolor": _UNRESOLVED, "line": {"width": 0}, "layer": "below"}]


def _banded(results: Results, drawn: Sequence[str]) -> list[str]:
    """The winner and the best of its rivals: more bands than two hide each other."""
    scored = {name: value.mean for name in results.rivals if (value := results.estimate(name, results.metric))}
    rivals = sorted((name for name in scored if name in drawn), key=lambda name: -scored[name])
    return [name for name in (WINNER, *rivals[:1]) if name in drawn]


def _faint(colour: str, opacity: float = 0.16) -> str:
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return f"rgba({red}, {green}, {blue}, {opacity})"


def cosines_figure(results: Results) -> Figure | None:
    """The cosines of genuine and impostor pairs, an entrant a panel, with the thresholds. None without curves."""
    table, thresholds = cosines_of(results), thresholds_of(results)
    if table.empty:
        return None
    names = [str(name) for name in table["entrant"].unique()]
    columns = min(len(names), 2)
    rows = -(-len(names) // columns)
    present = table[(table["genuine"] > 1e-4) | (table["impostor"] > 1e-4)]["cosine"]
    shown = [max(-1.0, float(present.min()) - 0.05), min(1.0, float(present.max()) + 0.05)]
    layout: dict[str, object] = {"grid": {"rows": rows, "columns": columns, "pattern": "independent", "ygap": 0.42}}
    traces: list[Trace] = []
    titles = []
    for index, name in enumerate(names):
        suffix = axis_suffix(index)
        panel = _panel(table[table["entrant"] == name], thresholds[thresholds["entrant"] == name])
        traces += [trace | on_panel(index) for trace in panel]
        bottom = index + columns >= len(names)
        layout[f"xaxis{suffix}"] = {"range": shown, "title": {"text": "cosine of a pair" if bottom else ""}}
        layout[f"yaxis{suffix}"] = {"title": {"text": "share of pairs"}, "rangemode": "tozero", "nticks": 4}
        titles.append(panel_title(name, suffix))
    at = ", ".join(f"{row['entrant']} {row['threshold']:.3f}" for row in records(thresholds.drop_duplicates("entrant")))
    return Figure(
        key="cosines",
        title="Cosines of genuine and impostor pairs",
        label=f"Histograms of the cosines of test pairs of {len(names)} entrants; thresholds at the highest rate: {at}",
        caption=(
            "Means over seeds; a genuine pair counts so that each image counts once. Lines: the threshold at each "
            "false accept rate that rests on enough false accepts. The overlap matters, not the place on the axis."
        ),
        table=table,
        plot=draw(
            traces,
            height=120 + _ROW_PIXELS * rows,
            annotations=titles,
            margin={"l": 70, "r": 18, "t": 44, "b": 96},
            **layout,
        ),
    )


def _panel(shares: pd.DataFrame, thresholds: pd.DataFrame) -> list[Trace]:
    traces = []
    for kind, colour, fill in (("impostor", MUTED, 0.35), ("genuine", SEARCH, 0.3)):
        look = {"fill": "tozeroy", "fillcolor": _faint(colour, fill)}
        line = {"color": colour, "width": 1.3, "shape": "hvh"}
        hover = f"{kind} at %{{x:.2f}}: %{{y:.4f}}<extra></extra>"
        drawn = scatter(shares["cosine"], shares[kind], name=f"{kind} pairs", mode="lines", line=line, **look)
        traces.append(drawn | {"hovertemplate": hover, "legendgroup": kind})
    top = float(shares[["genuine", "impostor"]].max().max())
    for row, dash in zip(records(thresholds), _THRESHOLD_DASHES, strict=False):
        line = {"color": WINNER_COLOUR, "width": 1.6, "dash": dash}
        name = f"threshold at FAR {row['far']:.0e}".replace("e-0", "e-")
        hover = "%{fullData.name}: %{x:.3f}<extra></extra>"
        traces.append(
            scatter([row["threshold"]] * 2, [0, top], name=name, mode="lines", line=line, hovertemplate=hover)
        )
    return traces


def cost_figure(results: Results) -> Figure:
    """What each entrant cost in all, the finding of its loss included, against the tested score."""
    styles, costs = _styles(results), results.costs().set_index("entrant")["images in all"]
    found = {
        name: value
        for name in (str(entrant["name"]) for entrant in results.entrants)
        if (value := results.estimate(name, results.metric))
    }
    table = pd.DataFrame(
        [
            {"entrant": name, "images in all": int(costs[name]), "mean": v.mean, "low": v.low, "high": v.high, "n": v.n}
            for name, v in found.items()
        ],
        columns=["entrant", "images in all", "mean", "low", "high", "n"],
    )
    beside = side_by_side([int(costs[name]) for name in found])
    traces = [
        scatter(
            [at],
            [value.mean],
            name=plain(name, 40),
            mode="markers",
            marker={"color": styles[name].colour, "symbol": styles[name].symbol, "size": 16 if name == WINNER else 11},
            error_y={
                "type": "data",
                "symmetric": False,
                "array": [value.high - value.mean],
                "arrayminus": [value.mean - value.low],
                "color": styles[name].colour,
                "thickness": 1.2,
            },
            hovertemplate=f"%{{fullData.name}}: %{{y:.4f}} for {costs[name]:,} images<extra></extra>",
        )
        for at, (name, value) in zip(beside, found.items(), strict=True)
    ]
    said = ", ".join(f"{row['entrant']} {row['mean']:.4f} for {row['images in all']:,}" for row in records(table))
    return Figure(
        key="cost",
        title="Total images against the score",
        label=f"{score_title(results.metric)} against the training images that it took in all: {said or 'none'}",
        caption=(
            f"Up and to the left is good. Bars: {results.coverage} intervals. The winner's images hold its search. "
            "Entrants with the same number of images stand side by side."
        ),
        table=table,
        plot=draw(
            traces,
            height=470,
            margin={"l": 70, "r": 18, "t": 24, "b": 150},
            xaxis={
                "title": {"text": "training images in all: to find the loss, and to train it once (log)"},
                "type": "log",
            },
            yaxis={"title": {"text": f"test {score_title(results.metric)}"}},
        ),
    )


def side_by_side(images: Sequence[int]) -> list[float]:
    """Where to draw counts on a logarithmic axis: equal ones next to each other around their own place, all of them
    within a twelfth of the axis."""
    decades = max(math.log10(max(images, default=1) / min(images, default=1)), 0.3)
    places = []
    for index, count in enumerate(images):
        behind, equal = images[:index].count(count), images.count(count)
        step = min(0.02, 0.08 / max(equal - 1, 1)) * decades
        places.append(count * 10 ** (step * (behind - (equal - 1) / 2)))
    return places
