"""What may be said of a search's winner beside its baselines, and what may not."""

from typing import Any

import pandas as pd

from analysis.tables import records

Row = dict[str, Any]


def entrants_of(board: pd.DataFrame) -> tuple[Row | None, list[Row]]:
    """The winner and the baselines of a leaderboard, those with a reward."""
    rows = records(board[board["reward"].notna()])
    winner = next((row for row in rows if row["entrant"] == "winner"), None)
    return winner, [row for row in rows if row["role"] == "baseline" and row is not winner]


def per_baseline(board: pd.DataFrame) -> pd.DataFrame:
    """One row a scored baseline: its scores on both halves, and the winner's minus its own. Empty without a winner."""
    winner, baselines = entrants_of(board)
    if winner is None or not baselines:
        return pd.DataFrame()
    frame = pd.DataFrame(baselines).astype({"reward": "float64", "choice": "float64"})
    return pd.DataFrame(
        {
            "baseline": frame["entrant"],
            "loss": frame["loss"],
            "reward": frame["reward"],
            "reward_gain": winner["reward"] - frame["reward"],
            "choice": frame["choice"],
            "choice_gain": _or_nan(winner["choice"]) - frame["choice"],
            "lineage_images": frame["lineage_images"].astype("Int64"),
        }
    )


def _or_nan(number: float | None) -> float:
    return float("nan") if number is None else number


def headline(board: pd.DataFrame, metric: str, *, finished: bool) -> str:
    """One or two sentences: the winner against the strongest baseline, on the choice half where it was measured."""
    winner, baselines = entrants_of(board)
    if winner is None and not finished:
        return "No trial of the search has reached the horizon with a reward yet."
    if winner is None:
        return "No trial of the search reached the horizon with a reward, so there is no winner."
    half = "reward" if winner["choice"] is None else "choice"
    loss = winner["loss"] if winner["losses"] == 1 else f"{winner['loss']}, the last of {winner['losses']} losses"
    if winner["recipe"]:
        loss = f"{loss}, with {winner['recipe']}"
    who = f"{'The winner is' if finished else 'The leader so far is'} trial {winner['number']}: {loss}"
    scored = f"{who}. On the {half} half it scores {winner[half]:.4f} ({metric})"
    rivals = [row for row in baselines if row[half] is not None]
    if not rivals:
        return f"{scored}; no baseline has a score to hold it against."
    rival = max(rivals, key=lambda row: float(row[half]))
    gap = winner[half] - rival[half]
    order = f"{abs(gap):.4f} {'above' if gap > 0 else 'below'}" if gap else "level with"
    return f"{scored}, {order} the best baseline, {rival['entrant']} ({rival[half]:.4f})."


def remarks(
    trials: pd.DataFrame, board: pd.DataFrame, finals: pd.DataFrame, *, meaning: str | None, finished: bool
) -> list[str]:
    """What must be read beside the headline: seeds, the sealed test, selection, shrinkage, compute, collapse.

    `meaning` says what the score is.
    """
    winner, baselines = entrants_of(board)
    scored = [row for row in (winner, *baselines) if row is not None]
    seeds = "one seed" if len({row["seed"] for row in scored}) <= 1 else "one seed each"
    collapsed = ", ".join(f"{row['entrant']} ({row['collapse']})" for row in scored if row["collapse"])
    notes = [
        meaning,
        f"Winner and baselines were trained with {seeds} and scored on validation identities only; the test is sealed.",
        "No interval was computed: nothing here shows that one loss is significantly better than another.",
        _ended_early(winner, baselines) if finished else None,
        _selection(trials) if finals.empty else _final(finals),
        _shrinkage(winner, baselines),
        _own_recipe(winner),
        _compute(winner, baselines),
        f"Collapsed, so its scores say little: {collapsed}." if collapsed else None,
    ]
    return [note for note in notes if note]


def _ended_early(winner: Row | None, baselines: list[Row]) -> str | None:
    if winner is None or winner["at_horizon"] or not baselines:
        return None
    return (
        f"The search ended before its horizon: the winner was trained for {winner['epochs']} epochs, the baselines for "
        f"{max(row['epochs'] for row in baselines)}. 'lossearch compare' trains all for the whole horizon."
    )


def _selection(trials: pd.DataFrame) -> str | None:
    told = trials[(trials["role"] == "search") & (trials["state"] == "told")]
    candidates = int((told["epochs"] == told["epochs"].max()).sum())
    if candidates < 2:
        return None
    reward = " So is its reward, by which the search chose what goes on." if told["parent"].notna().any() else ""
    return (
        f"The winner was picked on the choice half among up to {candidates} trials, while each baseline is a single "
        f"run: its score there is optimistic.{reward}"
    )


def _final(finals: pd.DataFrame) -> str:
    first, *others = records(finals)
    behind = f", that of the next {others[0]['mean']:.4f}" if others else ""
    return (
        f"The winner was picked by the finals: over {first['trainings']} trainings its mean on the choice half is "
        f"{first['mean']:.4f}{behind}. The headline's scores are those of its one training in the search, by which it "
        "came into the finals: they are optimistic."
    )


def _own_recipe(winner: Row | None) -> str | None:
    if winner is None or not winner["recipe"]:
        return None
    said = f"The winner has a recipe of its own ({winner['recipe']}), which the baselines had no chance to choose"
    if all(field.startswith("learning_rate=") for field in winner["recipe"].split()):
        return f"{said}: 'lossearch compare' with --learning-rates gives it to them."
    return f"{said}: name a loss with it in [[baselines]] to compare like with like."


def _shrinkage(winner: Row | None, baselines: list[Row]) -> str | None:
    if winner is None or winner["choice"] is None:
        return None
    shift = winner["choice"] - winner["reward"]
    change = (
        f"Shrinkage: from the reward half to the choice half the winner goes from {winner['reward']:.4f} to "
        f"{winner['choice']:.4f} ({_signed(shift)})"
    )
    shifts = [row["choice"] - row["reward"] for row in baselines if row["choice"] is not None]
    if not shifts:
        return f"{change}."
    common = sum(shifts) / len(shifts)
    reading = (
        f"It comes out {common - shift:.4f} lower than they do, as when a search fits its reward, or by chance."
        if shift < common
        else "It comes out no lower than they do; but having been picked on the choice half raises it there, so this "
        "does not tell whether the search has fitted its reward."
    )
    return f"{change}, the baselines by {_signed(common)} on average. {reading}"


def _signed(number: float) -> str:
    return f"{number:+.4f}".replace("-", "−")


def _compute(winner: Row | None, baselines: list[Row]) -> str | None:
    if winner is None or not baselines:
        return None
    searched, one = winner["total_images"], max(row["lineage_images"] for row in baselines)
    return (
        f"Compute is not equal: the search saw {searched:,} training images in all, {searched / max(one, 1):.1f} times "
        f"as many as one baseline ({one:,}). The difference could have gone into tuning the baselines instead."
    )


def headline_numbers(totals: pd.DataFrame, *, seconds: float) -> dict[str, str]:
    """The tiles: trials, failures, images (finals count as search), and the wall time from first to last event."""
    by_role = {row["role"]: row for row in records(totals)}
    searched = sum(by_role[role]["images"] for role in ("search", "final") if role in by_role)
    return {
        "search trials": f"{by_role['search']['trials']:,}",
        "baselines": f"{by_role['baseline']['trials']:,}",
        "failed trials": f"{by_role['total']['failed']:,}",
        "images, search": _short(searched),
        "images, baselines": _short(by_role["baseline"]["images"]),
        "first to last event": f"{seconds / 3600:.1f} h" if seconds >= 7200 else f"{seconds / 60:.1f} min",
    }


def _short(count: int) -> str:
    """Three digits and a unit; what rounds to a thousand has the next unit."""
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if count >= 0.9995 * size:
            return f"{count / size:.3g}{unit}"
    return str(count)
