"""Figures of how a search went: outcomes, rewards over time, the controller, the entrants, the compute."""

from collections.abc import Mapping

import pandas as pd

from analysis.figures import (
    FAILED,
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
    panel_title,
    plain,
    scatter,
    thin,
    worth_drawing,
)
from analysis.tables import records

_CAUSE_COLOURS = {
    "failed": FAILED,
    "rejected": MUTED,
    "reused": MUTED,
    "warned": MUTED,
    "noted": MUTED,
    "collapsed": "#CC79A7",
    "retried": "#E69F00",
    "rebuilt": "#56B4E9",
}
_MAX_CAUSES = 12
_FEW_PARAMETERS = 6


def health_figure(trials: pd.DataFrame, failures: pd.DataFrame) -> Figure:
    """Outcomes by cause, as bars."""
    told = trials[trials["state"] == "told"]
    sound, running = int(told["collapse"].isna().sum()), int((trials["state"] == "running").sum())
    bars = [("scored", sound, SEARCH), ("not told yet", running, "#999999")]
    bars += [
        (f"{row['kind']}: {row['cause']}", int(row["count"]), _CAUSE_COLOURS[str(row["kind"])])
        for row in records(failures.head(_MAX_CAUSES))
    ]
    bars = [bar for bar in bars if bar[1]]
    counts = [count for _, count, _ in bars]
    trace: Trace = {
        "type": "bar",
        "orientation": "h",
        "y": list(range(len(bars))),
        "x": counts,
        "text": counts,
        "textposition": "outside",
        "cliponaxis": False,
        "width": 0.65,
        "marker": {"color": [colour for _, _, colour in bars]},
        "hovertext": [plain(name, 200) for name, _, _ in bars],
        "hoverinfo": "text+x",
    }
    names = [plain(name, 60) for name, _, _ in bars]
    plot = draw(
        [trace],
        height=110 + 30 * max(len(bars), 1),
        showlegend=False,
        xaxis={"title": {"text": "trials or attempts (count)"}, "range": [0, 1.12 * max(counts, default=1)]},
        yaxis={"autorange": "reversed", "tickvals": list(range(len(bars))), "ticktext": names, "showgrid": False},
    )
    return Figure(
        key="health",
        title="Outcomes by cause",
        label="Outcomes by cause: " + ", ".join(f"{name} {count}" for name, count, _ in bars),
        caption="A lost attempt that was made again counts beside its trial's own outcome.",
        table=pd.DataFrame(bars, columns=["outcome", "count", "colour"])[["outcome", "count"]],
        plot=plot,
    )


def history_figure(trials: pd.DataFrame, winner: int | None, styles: Mapping[str, Style], metric: str) -> Figure:
    """Images seen × reward: each trial, the best so far, and each baseline from the images that it cost itself."""
    search = trials[(trials["role"] == "search") & trials["search_images"].notna()].sort_values("search_images")
    told = search[search["state"] == "told"].assign(best=lambda frame: frame["reward"].cummax())
    failed = search[search["state"] == "failed"]
    scored_baselines = trials[(trials["role"] == "baseline") & (trials["state"] == "told")]
    collapsed = scored_baselines[scored_baselines["collapse"].notna()]
    baselines = scored_baselines.drop(collapsed.index)
    left_out = "; ".join(f"{row['name']} ({row['reward']:.4f})" for row in records(collapsed))
    shown = worth_drawing(told)
    end = float(search["search_images"].max()) if len(search) else 0.0
    traces = [
        *_trial_points(shown),
        *_best_so_far(told),
        *(_baseline_line(row, styles[str(row["name"])], end) for row in records(baselines)),
        *_winner_star(told[told["number"] == winner]),
        *_failure_marks(thin(failed), pd.concat([told["reward"], baselines["reward"]])),
    ]
    best = f"best reward {told['reward'].max():.4f}" if len(told) else "no reward yet"
    against = ", ".join(f"{row['name']} {row['reward']:.4f}" for row in records(scored_baselines))
    return Figure(
        key="history",
        title="Reward against images seen",
        label=f"Reward against images seen: {len(told)} trials, {best}; baselines: {against or 'none'}",
        caption=(
            f"Drawn: {len(shown):,} of {len(told):,} scored and {len(thin(failed)):,} of {len(failed):,} failed search "
            "trials, the best so far, and the baselines, each from the images that it cost itself on."
            + (f" Not drawn, as they collapsed: {left_out}." if left_out else "")
        ),
        table=shown[["number", "round", "epochs", "search_images", "reward", "best", "loss"]],
        plot=draw(
            traces,
            height=500,
            margin={"l": 70, "r": 18, "t": 24, "b": 130},
            xaxis={"title": {"text": "training images seen by the search"}, "rangemode": "tozero"},
            yaxis={"title": {"text": f"reward: {plain(metric)}"}},
        ),
    )


def _trial_points(shown: pd.DataFrame) -> list[Trace]:
    traces = []
    for at_horizon, name, symbol in (
        (False, "trial before the horizon", "circle-open"),
        (True, "at the horizon", "circle"),
    ):
        part = shown[shown["at_horizon"] == at_horizon]
        text = [f"trial {n}: {plain(loss)}" for n, loss in zip(part["number"], part["loss"], strict=True)]
        marker = {"color": SEARCH, "symbol": symbol, "size": 7, "opacity": 0.7}
        hover = "%{text}<br>%{y:.4f} after %{x:.3s} images<extra></extra>"
        points = scatter(part["search_images"], part["reward"], name=name, mode="markers", marker=marker)
        traces.append(points | {"text": text, "hovertemplate": hover})
    return [trace for trace in traces if trace["x"]]


def _best_so_far(told: pd.DataFrame) -> list[Trace]:
    if told.empty:
        return []
    steps = pd.concat([told[told["best"].diff().fillna(1) > 0], told.tail(1)])
    line = {"color": SEARCH, "width": 2, "shape": "hv"}
    return [scatter(steps["search_images"], steps["best"], name="best so far (optimistic)", mode="lines", line=line)]


def _baseline_line(row: Mapping[str, object], style: Style, end: float) -> Trace:
    cost = float(str(row["lineage_images"]))
    return scatter(
        [cost, max(end, cost)],
        [row["reward"]] * 2,
        name=plain(row["name"]),
        mode="lines+markers",
        line={"color": style.colour, "dash": style.dash, "width": 1.7},
        marker={"symbol": style.symbol, "size": [9, 1], "color": style.colour},
        hovertemplate="%{fullData.name}: %{y:.4f}<extra></extra>",
    )


def _winner_star(chosen: pd.DataFrame) -> list[Trace]:
    if chosen.empty:
        return []
    marker = {"color": WINNER, "symbol": "star", "size": 16, "line": {"color": "white", "width": 1}}
    name = f"winner: trial {chosen['number'].iloc[0]}"
    return [scatter(chosen["search_images"], chosen["reward"], name=name, mode="markers", marker=marker)]


def _failure_marks(failed: pd.DataFrame, rewards: "pd.Series[float]") -> list[Trace]:
    if failed.empty:
        return []
    low, high = (float(rewards.min()), float(rewards.max())) if len(rewards) else (0.0, 0.0)
    floor = low - 0.06 * ((high - low) or 1.0)
    text = [f"trial {n}: {plain(e, 120)}" for n, e in zip(failed["number"], failed["error"], strict=True)]
    marks = scatter(failed["search_images"], [floor] * len(failed), name="failed: no reward", mode="markers")
    return [marks | {"marker": {"color": FAILED, "symbol": "x", "size": 8}, "text": text, "hoverinfo": "text"}]


def controller_figure(controller: pd.DataFrame, trials: pd.DataFrame) -> Figure | None:
    """μ ± σ of each parameter by round, over the values that were tried. None when the controller has no μ."""
    names = [column.removeprefix("mu/") for column in controller.columns if column.startswith("mu/")]
    if not names:
        return None
    rounds = thin(controller)
    tried = worth_drawing(trials[(trials["role"] == "search") & trials["round"].notna()])
    columns = min(len(names), 2 if len(names) <= _FEW_PARAMETERS else 3)
    rows = -(-len(names) // columns)
    traces: list[Trace] = []
    titles = []
    layout: dict[str, object] = {"grid": {"rows": rows, "columns": columns, "pattern": "independent", "ygap": 0.34}}
    for index, name in enumerate(names):
        suffix = axis_suffix(index)
        traces += [trace | on_panel(index) for trace in _belief(rounds, tried, name)]
        bottom = index + columns >= len(names)
        layout[f"xaxis{suffix}"] = counting_axis("round" if bottom else "", rounds["round"])
        layout[f"yaxis{suffix}"] = {"nticks": 6}
        titles.append(panel_title(_with_unit(name), suffix))
    last = rounds.iloc[-1]
    state = ", ".join(f"{name} {last[f'mu/{name}']:.4g} ± {last.get(f'sigma/{name}', 0.0):.2g}" for name in names)
    shown = [c for c in rounds.columns if c == "round" or c.startswith(("mu/", "sigma/"))]
    return Figure(
        key="controller",
        title="Controller: μ ± σ by round",
        label=f"Controller by round, {len(controller)} rounds; in the last: {state}",
        caption=(
            "Line: μ. Band: μ ± σ. Dots: the values tried in that round. A band that narrows while μ still wanders has "
            "not found anything."
        ),
        table=rounds[["round", *(column for column in shown if column != "round")]],
        plot=draw(
            traces,
            height=120 + (270 if rows <= 3 else 190) * rows,
            annotations=titles,
            margin={"l": 70, "r": 18, "t": 44, "b": 96},
            **layout,
        ),
    )


def _with_unit(name: str) -> str:
    return {"u": "u = s·margin (logits)", "m2_rad": "m2 (radians)", "scale": "scale s"}.get(name, name)


def _belief(rounds: pd.DataFrame, tried: pd.DataFrame, name: str) -> list[Trace]:
    mu, at = rounds[f"mu/{name}"], rounds["round"].tolist()
    traces = []
    if f"sigma/{name}" in rounds:
        sigma = rounds[f"sigma/{name}"]
        outline = [*(mu + sigma), *(mu - sigma)[::-1]]
        fill = {"fill": "toself", "fillcolor": "rgba(0, 114, 178, 0.18)", "line": {"width": 0}, "hoverinfo": "skip"}
        traces.append(scatter([*at, *at[::-1]], outline, name="μ ± σ", mode="lines", **fill))
    if f"loss/{name}" in tried:
        marker = {"color": MUTED, "size": 5, "opacity": 0.55}
        traces.append(scatter(tried["round"], tried[f"loss/{name}"], name="tried", mode="markers", marker=marker))
    line = {"color": SEARCH, "width": 2.5}
    return [*traces, scatter(at, mu, name="μ", mode="lines+markers", line=line, marker={"size": 6})]


def entrants_figure(board: pd.DataFrame, styles: Mapping[str, Style], metric: str) -> Figure | None:
    """The winner and the baselines: score on the reward half (open) and on the choice half (filled)."""
    scored = board[board["reward"].notna()].reset_index(drop=True)
    if scored.empty:
        return None
    traces: list[Trace] = []
    for at, row in enumerate(records(scored)):
        entrant = str(row["entrant"])
        style = Style(colour=WINNER, dash="solid", symbol="star") if entrant == "winner" else styles[entrant]
        traces.append(
            scatter(
                [row["reward"], row["choice"]],
                [at, at],
                name=plain(entrant),
                mode="lines+markers",
                line={"color": style.colour, "width": 2, "dash": style.dash},
                marker={"color": style.colour, "size": 12, "symbol": [f"{style.symbol}-open", style.symbol]},
                text=["reward half", "choice half"],
                hovertemplate="%{fullData.name}, %{text}: %{x:.4f}<extra></extra>",
            )
        )
    names = [_entrant_name(row) for row in records(scored)]
    told = [f"{row['entrant']} {_four(row['reward'])} and {_four(row['choice'])}" for row in records(scored)]
    return Figure(
        key="entrants",
        title="From the reward half to the choice half",
        label="Score on the reward half and on the choice half: " + "; ".join(told),
        caption=(
            "Open: reward half, which the search has seen. Filled: choice half, on which the winner was picked. One "
            "seed each and no intervals: differences of this size may be noise. A collapsed entrant may lie outside."
        ),
        table=scored[["entrant", "loss", "reward", "choice"]],
        plot=draw(
            traces,
            height=110 + 34 * len(scored),
            showlegend=False,
            xaxis={"title": {"text": plain(metric)}, **_range_without_collapsed(scored)},
            yaxis={"tickvals": list(range(len(names))), "ticktext": names, "autorange": "reversed"},
        ),
    )


def _four(score: float | None) -> str:
    return "not measured" if score is None else f"{score:.4f}"


def _range_without_collapsed(scored: pd.DataFrame) -> dict[str, object]:
    """Let a collapsed entrant lie outside, lest it press the others together; its numbers are in the table."""
    sound = scored[scored["collapse"].isna()]
    if sound.empty or len(sound) == len(scored):
        return {}
    values = pd.concat([sound["reward"], sound["choice"]])
    low, high = float(values.min()), float(values.max())
    margin = 0.06 * ((high - low) or 0.1)
    return {"range": [low - margin, high + margin]}


def _entrant_name(row: Mapping[str, object]) -> str:
    name = f"winner: trial {row['number']}" if row["entrant"] == "winner" else str(row["entrant"])
    return plain(name if not row["collapse"] else f"{name} (collapsed)", 44)


def compute_figure(trials: pd.DataFrame) -> Figure:
    """Images and seconds: the search's trials by what became of them, its finals, and each baseline."""
    frame = trials[~trials["state"].isin(["running", "rejected"])]
    outcome = frame["state"].map({"failed": ", failed", "told": ", scored"})
    role = frame["role"].map({"search": "search", "final": "finals"})
    spender = frame["name"].where(frame["role"] == "baseline", role + outcome)
    spent = (
        frame.assign(spender=spender).sort_values("role", ascending=False, kind="stable").groupby("spender", sort=False)
    )
    table = spent.agg(trials=("number", "size"), images=("images", "sum"), seconds=("seconds", "sum")).reset_index()
    baselines = set(frame.loc[frame["role"] == "baseline", "name"])
    colours = [MUTED if name in baselines else SEARCH for name in table["spender"]]
    bar: Trace = {
        "type": "bar",
        "orientation": "h",
        "y": list(range(len(table))),
        "marker": {"color": colours},
        "width": 0.65,
    }
    axis = {"autorange": "reversed", "showgrid": False, "tickvals": bar["y"]}
    total_images, total_seconds = int(table["images"].sum()), float(table["seconds"].sum())
    return Figure(
        key="compute",
        title="Training images and seconds",
        label=f"Compute spent: {total_images:,} training images, {total_seconds:,.0f} training seconds in all",
        caption="Training seconds are summed over trials, also those that ran side by side. Grey: baselines.",
        table=table,
        plot=draw(
            [
                {**bar, "x": table["images"].tolist(), "hovertemplate": "%{x:,} images<extra></extra>"},
                {
                    **bar,
                    "x": table["seconds"].tolist(),
                    "xaxis": "x2",
                    "yaxis": "y2",
                    "hovertemplate": "%{x:,.1f} s<extra></extra>",
                },
            ],
            height=110 + 28 * max(len(table), 1),
            showlegend=False,
            grid={"rows": 1, "columns": 2, "pattern": "independent", "xgap": 0.06},
            xaxis={"title": {"text": "training images"}, "nticks": 5},
            xaxis2={"title": {"text": "training seconds"}, "nticks": 5},
            yaxis={**axis, "ticktext": [plain(name, 30) for name in table["spender"]]},
            yaxis2={**axis, "showticklabels": False},
        ),
    )
