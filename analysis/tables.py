"""What a journal says, as pandas tables. The events are the only input; any journal will do, an empty one too."""

from collections import Counter
from collections.abc import Iterable, Mapping
from statistics import fmean, stdev
from typing import Any

import pandas as pd

from analysis.ledger import Ledger
from analysis.losses import describe, describe_recipe, parameters
from lfs.journal import Event, without_numbers
from lfs.trial import Trial
from lfs.trial import finals_of as scores_in_finals

SCORES = (
    "tar_at_far_1e-1",
    "tar_at_far_1e-2",
    "tar_at_far_1e-3",
    "tar_at_far_1e-4",
    "eer",
    "auc",
    "rank1",
    "mean_tar",
    "blend",
    "lfw_accuracy",
)
_TRIAL_COLUMNS = (
    *("number", "role", "name", "round", "parent", "repeats", "epochs", "at_horizon", "seed", "state", "attempts"),
    *("loss", "losses", "digest", "recipe", "preflight", "reward", "choice", *(f"val/{score}" for score in SCORES)),
    *("error", "collapse", "seconds", "images", "lineage_seconds", "lineage_images"),
    *("search_images", "told_at_seconds"),
)
_INTEGERS = ("round", "parent", "repeats", "images", "lineage_images", "search_images")


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a frame as dictionaries, with None for whatever is missing."""
    plain = frame.astype(object).where(frame.notna(), None)
    return [{str(column): value for column, value in row.items()} for row in plain.to_dict("records")]


def trials_table(events: Iterable[Event]) -> pd.DataFrame:
    """One row a trial, by number.

    `state` is told, failed, rejected (before training) or running (asked but not told); `preflight` is what the
    pre-flight filter said of it. `reward` is the score on the reward half of the validation identities, `choice` the
    same score on the choice half. `images` and `seconds` are the trial's own, `lineage_*` include the trials that it
    continues; `search_images` counts what the search's own trials and finals had seen when this one was told. A final
    `repeats` a trial under another seed. `loss` and `digest` name the last loss of its schedule, `losses` counts the
    schedule's entries, and `loss/<parameter>` columns hold the last loss's numbers.
    """
    return trials_of(Ledger.of(events))


def trials_of(ledger: Ledger) -> pd.DataFrame:
    """`trials_table` of a ledger."""
    search_images = _images_when_told(ledger)
    rows = [_trial_row(ledger, ledger.trials[number], search_images) for number in sorted(ledger.trials)]
    frame = pd.DataFrame(rows, columns=None if rows else list(_TRIAL_COLUMNS))
    extra = [column for column in frame.columns if column not in _TRIAL_COLUMNS]
    frame = frame.reindex(columns=[*_TRIAL_COLUMNS, *extra])
    floats = [c for c in frame.columns if c.startswith(("val/", "loss/")) or c in ("reward", "choice", "seconds")]
    return frame.astype({**dict.fromkeys(floats, "float64"), **dict.fromkeys(_INTEGERS, "Int64")})


def _images_when_told(ledger: Ledger) -> dict[int, int]:
    """Images that the search's own trials and its finals had seen when each of them was told."""
    total = 0
    seen: dict[int, int] = {}
    for number, told in ledger.told.items():
        trial = ledger.trials.get(number)
        if trial is not None and trial.role != "baseline":
            total += told.outcome.images
            seen[number] = total
    return seen


def _trial_row(ledger: Ledger, trial: Trial, search_images: dict[int, int]) -> dict[str, object]:
    row: dict[str, object] = {
        "number": trial.number,
        "role": trial.role,
        "name": trial.name,
        "round": trial.round,
        "parent": trial.parent,
        "repeats": trial.repeats,
        "epochs": trial.epochs,
        "at_horizon": trial.epochs >= int(trial.recipe.get("horizon_epochs", ledger.horizon_epochs)),
        "seed": trial.seed,
        "state": "running",
        "attempts": 1 + ledger.retries[trial.number],
        "loss": describe(trial.schedule.final),
        "losses": len(trial.schedule),
        "digest": trial.schedule.final.digest(),
        "recipe": describe_recipe(trial.recipe),
        "lineage_seconds": ledger.seconds_of(trial.number),
        "lineage_images": ledger.images_of(trial.number),
        "search_images": search_images.get(trial.number),
        **{f"loss/{name}": value for name, value in parameters(trial.schedule.final).items()},
    }
    verdict = ledger.examined.get(trial.number)
    if verdict is not None:
        row["preflight"] = f"{verdict.verdict}: {verdict.reason}"
    told = ledger.told.get(trial.number)
    if told is None:
        return row
    outcome = told.outcome
    metric = str(trial.recipe.get("reward", ledger.reward_metric or ""))
    started = ledger.started.time if ledger.started else told.time
    return row | {
        "state": "rejected" if ledger.rejected(trial.number) else "failed" if outcome.error is not None else "told",
        "reward": outcome.reward,
        "choice": choice_score(outcome.metrics, metric),
        **{f"val/{score}": outcome.metrics.get(f"val/{score}") for score in SCORES},
        "error": outcome.error,
        "collapse": outcome.collapse,
        "seconds": outcome.seconds,
        "images": outcome.images,
        "told_at_seconds": told.time - started,
    }


def choice_score(metrics: Mapping[str, float], metric: str) -> float | None:
    """The reward's score on the choice half, None where it was not measured."""
    if metric == "one_minus_eer" and "choice/eer" in metrics:
        return 1.0 - metrics["choice/eer"]
    return metrics.get(f"choice/{metric}")


def score_title(metric: str | None) -> str:
    """A score's name as people write it.

    >>> score_title("tar_at_far_1e-3")
    'TAR@FAR 1e-3'
    """
    if metric is None:
        return "reward"
    named = {
        "one_minus_eer": "1 − EER",
        "eer": "EER",
        "auc": "AUC",
        "rank1": "rank-1",
        "mean_tar": "mean TAR over log FAR",
        "lfw_accuracy": "LFW-style accuracy",
    }
    return named.get(metric, metric.replace("tar_at_far_", "TAR@FAR "))


def score_meaning(metric: str | None) -> str | None:
    """What a score is, in a sentence, where its name does not say it."""
    if metric != "blend":
        return None
    return "The blend is the mean of rank-1, 1 − EER and the mean TAR over log FAR."


def history_table(events: Iterable[Event]) -> pd.DataFrame:
    """One row an epoch trained: `number`, `epoch` (1-based, absolute) and every metric of that epoch."""
    return history_of(Ledger.of(events))


def history_of(ledger: Ledger) -> pd.DataFrame:
    """`history_table` of a ledger."""
    rows = [{"number": n, **epoch} for n, told in ledger.told.items() for epoch in told.outcome.history]
    return pd.DataFrame(rows) if rows else pd.DataFrame(columns=["number", "epoch"])


def lineage_history(ledger: Ledger, number: int) -> pd.DataFrame:
    """`history_table` of one trial and of the trials that it continues: its whole training, epoch by epoch."""
    rows = [
        {"number": number, **epoch}
        for member in ledger.lineage(number)
        if member in ledger.told
        for epoch in ledger.told[member].outcome.history
    ]
    return pd.DataFrame(rows) if rows else pd.DataFrame(columns=["number", "epoch"])


def controller_of(ledger: Ledger) -> pd.DataFrame:
    """The controller's numbers by round, the last row being its state at the end: `round`, `mu/<parameter>`, ..."""
    summaries = [ask.summary for ask in ledger.asks] + ([ledger.finished.summary] if ledger.finished else [])
    rows = [
        {**summary, "round": summary.get("round", float(index))}
        for index, summary in enumerate(summaries)
        if any(key.startswith("mu/") for key in summary)
    ]
    frame = pd.DataFrame(rows) if rows else pd.DataFrame(columns=["round"])
    return frame.drop_duplicates("round", keep="last").sort_values("round", ignore_index=True)


def failures_table(events: Iterable[Event]) -> pd.DataFrame:
    """What was out of the ordinary, by `kind` and `cause`: failed, retried, collapsed, rebuilt with other numbers, or
    as the pre-flight filter found: rejected, reused, warned, noted.

    Causes are the first line of the message with its numbers replaced, so that alike failures count together;
    `example` is one whole message.
    """
    return failures_of(Ledger.of(events))


def failures_of(ledger: Ledger) -> pd.DataFrame:
    """`failures_table` of a ledger."""
    found: list[tuple[str, int, str]] = []
    for number, told in ledger.told.items():
        if told.outcome.error is not None and not ledger.rejected(number):
            found.append(("failed", number, told.outcome.error))
        if told.outcome.collapse is not None:
            found.append(("collapsed", number, told.outcome.collapse))
    found += [(event.verdict, number, event.reason) for number, event in ledger.examined.items()]
    found += [("retried", event.trial, event.reason) for event in ledger.retried]
    found += [("rebuilt", event.trial, "other numbers than before") for event in ledger.rebuilt if not event.same]
    rows = [{"kind": kind, "cause": _cause(text), "trial": n, "example": text} for kind, n, text in found]
    if not rows:
        return pd.DataFrame(columns=["kind", "cause", "count", "trials", "example"])
    groups = pd.DataFrame(rows).groupby(["kind", "cause"], sort=False)
    table = groups.agg(count=("trial", "size"), trials=("trial", _first_numbers), example=("example", "first"))
    return table.reset_index().sort_values("count", ascending=False, kind="stable", ignore_index=True)


def _cause(message: str) -> str:
    lines = message.strip().splitlines()
    first = lines[0] if lines else "no message"
    return without_numbers(first)[:120]


def _first_numbers(numbers: "pd.Series[int]") -> str:
    distinct = list(dict.fromkeys(int(number) for number in numbers))
    return ", ".join(map(str, distinct[:8])) + (f" and {len(distinct) - 8} more" if len(distinct) > 8 else "")


def search_totals(events: Iterable[Event]) -> pd.DataFrame:
    """What was spent, a row each for `search`, `final` (where there are any), `baseline` and `total`: trials by state,
    retries, images, seconds."""
    return totals_of(Ledger.of(events))


def totals_of(ledger: Ledger) -> pd.DataFrame:
    """`search_totals` of a ledger."""
    trials = trials_of(ledger)
    roles = ("search", "final", "baseline") if (trials["role"] == "final").any() else ("search", "baseline")
    parts = {role: trials[trials["role"] == role] for role in roles} | {"total": trials}
    rows = []
    for role, part in parts.items():
        states = {state: int((part["state"] == state).sum()) for state in ("told", "failed", "rejected", "running")}
        retries = int((part["attempts"] - 1).sum())
        spent = {"images": int(part["images"].sum()), "seconds": float(part["seconds"].sum())}
        rows.append({"role": role, "trials": len(part), **states, "retries": retries, **spent})
    return pd.DataFrame(rows)


def winner_of(ledger: Ledger) -> int | None:
    """The chosen trial; before the search is over, the leader so far.

    The leader is the search trial with the best score on the choice half (its reward where that was not measured)
    among those trained furthest; once finals have ended, the best mean. None when no trial succeeded.
    """
    if ledger.finished is not None:
        return ledger.finished.winner
    finals = finals_of(ledger)
    if len(finals):
        return int(finals["finalist"].iloc[0])
    trials = trials_of(ledger)
    told = trials[(trials["role"] == "search") & (trials["state"] == "told")]
    if told.empty:
        return None
    furthest = told[told["epochs"] == told["epochs"].max()]
    return int(furthest.loc[furthest["choice"].fillna(furthest["reward"]).idxmax(), "number"])


def finals_table(events: Iterable[Event]) -> pd.DataFrame:
    """One row a finalist, the best mean first: `finalist` (its trial), `loss`, `trainings` that have ended, that of the
    search among them, `failed` ones, `mean` and `sd` of their choice scores (a failure counts as 0), and `own`, the
    score by which it became a finalist."""
    return finals_of(Ledger.of(events))


def finals_of(ledger: Ledger) -> pd.DataFrame:
    """`finals_table` of a ledger."""
    metric = ledger.reward_metric or ""
    outcomes = {number: told.outcome for number, told in ledger.told.items() if number in ledger.trials}
    finals = scores_in_finals(ledger.trials, outcomes, lambda outcome: choice_score(outcome.metrics, metric) or 0.0)
    errors = Counter(ledger.trials[number].repeats for number, outcome in outcomes.items() if outcome.error is not None)
    rows = [
        {
            "finalist": number,
            "loss": describe(ledger.trials[number].schedule.final),
            "trainings": len(scores),
            "failed": errors[number],
            "mean": fmean(scores),
            "sd": stdev(scores),
            "own": scores[0],
        }
        for number, scores in finals.items()
    ]
    columns = ["finalist", "loss", "trainings", "failed", "mean", "sd", "own"]
    return pd.DataFrame(rows, columns=columns).sort_values("mean", ascending=False, kind="stable", ignore_index=True)


def leaderboard(events: Iterable[Event]) -> pd.DataFrame:
    """The winner and the baselines, best on the choice half first.

    `entrant` is the baseline's name or 'winner'; `lineage_images` is what training this one lineage saw,
    `total_images` what finding it saw: all trials and finals of the search for the winner, the lineage for a baseline.
    """
    return leaderboard_of(Ledger.of(events))


def leaderboard_of(ledger: Ledger) -> pd.DataFrame:
    """`leaderboard` of a ledger."""
    trials = trials_of(ledger)
    winner = winner_of(ledger)
    chosen = trials[(trials["number"] == winner) | (trials["role"] == "baseline")].copy()
    is_winner = chosen["number"] == winner
    searched = int(trials.loc[trials["role"] != "baseline", "images"].sum())
    chosen.insert(0, "entrant", chosen["name"].where(~is_winner, "winner"))
    chosen["total_images"] = chosen["lineage_images"].where(~is_winner, searched)
    order = chosen.assign(score=chosen["choice"].fillna(chosen["reward"]), first=is_winner)
    order = order.sort_values(["score", "first"], ascending=False, na_position="last", kind="stable")
    return chosen.loc[order.index].reset_index(drop=True)
