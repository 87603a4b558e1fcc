"""Searches for several objectives: which trials no other trial beats."""

import pandas as pd

from analysis.figures import MUTED, SEARCH, WINNER, Figure, draw, plain, scatter, worth_drawing
from analysis.ledger import Ledger
from analysis.losses import describe


def objectives_of(ledger: Ledger) -> dict[str, str]:
    """The direction of each objective by its metric, as the config names them; one where it names none."""
    named = ledger.setting("search", "objectives")
    return {
        str(each["metric"]): str(each["direction"])
        for each in (named if isinstance(named, list) else [])
        if isinstance(each, dict)
    }


def pareto_of(ledger: Ledger) -> pd.DataFrame:
    """The search's scored trials with a column for each objective and `on_front`, the front first.

    On the front is a trial that no other equals in all objectives and beats in one.
    """
    objectives = objectives_of(ledger)
    rows = [
        {"number": number, "loss": describe(ledger.trials[number].schedule.final)}
        | {metric: told.outcome.value(metric) for metric in objectives}
        for number, told in sorted(ledger.told.items())
        if told.outcome.error is None and ledger.trials[number].role == "search"
    ]
    frame = pd.DataFrame(rows, columns=["number", "loss", *objectives])
    signs = [1.0 if direction == "maximize" else -1.0 for direction in objectives.values()]
    values_PK = frame[list(objectives)].to_numpy(float) * signs
    frame["on_front"] = [
        not ((values_PK >= value_K).all(1) & (values_PK > value_K).any(1)).any() for value_K in values_PK
    ]
    return frame.sort_values(["on_front", *objectives], ascending=False, kind="stable", ignore_index=True)


def pareto_figure(trials: pd.DataFrame, objectives: dict[str, str]) -> Figure:
    """The first two objectives against each other, the front joined where there are no others."""
    first, second = list(objectives)[:2]
    all_of_them = f"{', '.join(list(objectives)[:-1])} and {list(objectives)[-1]}"
    front = trials[trials["on_front"]].sort_values(second)
    sign = 1 if objectives[first] == "maximize" else -1
    others = worth_drawing(trials[~trials["on_front"]].assign(reward=lambda frame: sign * frame[first]))
    hover = f"trial %{{text}}<br>{plain(first)} %{{y:.4f}}, {plain(second)} %{{x:.4f}}<extra></extra>"
    traces = [
        scatter(
            part[second],
            part[first],
            name=f"{name} ({len(part)})",
            mode=mode,
            text=part["number"],
            hovertemplate=hover,
            marker={"color": colour, "size": size, "symbol": symbol},
            line={"color": MUTED, "dash": "dot", "shape": "hv" if objectives[second] == "minimize" else "vh"},
        )
        for name, part, mode, colour, size, symbol in (
            ("other trials", others, "markers", SEARCH, 6, "circle"),
            ("Pareto set", front, "lines+markers" if len(objectives) == 2 else "markers", WINNER, 11, "star"),
        )
    ]
    return Figure(
        key="pareto",
        title="Pareto set",
        label=f"{len(front)} of {len(trials)} trials are not beaten in {all_of_them} at once",
        caption=(
            f"{first} ({objectives[first]}) against {second} ({objectives[second]}). The winner is chosen by the "
            "choice half alone; this is what it was weighed against."
        ),
        table=front[["number", *objectives, "loss"]],
        plot=draw(
            traces,
            height=430,
            margin={"l": 70, "r": 18, "t": 24, "b": 100},
            xaxis={"title": {"text": f"{plain(second)} ({objectives[second]})"}},
            yaxis={"title": {"text": f"{plain(first)} ({objectives[first]})"}},
        ),
    )
