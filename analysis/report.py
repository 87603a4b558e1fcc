"""`report.html`: everything that a journal says about a search, on one page that works offline."""

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from analysis import page, tables
from analysis.figures import Style, styles_for
from analysis.ledger import Ledger
from analysis.loss_curves import curves
from analysis.loss_plots import loss_figure, training_figure
from analysis.losses import describe, reference_losses
from analysis.page import Html, Section
from analysis.pareto import objectives_of, pareto_figure, pareto_of
from analysis.reproduce import reproduce_section
from analysis.sampler_plots import choices_figure, numbers_figure
from analysis.samples import candidate_behind, formulas_of, samples_of, space_of
from analysis.search_plots import compute_figure, controller_figure, entrants_figure, health_figure, history_figure
from analysis.verdict import headline, headline_numbers, per_baseline, remarks
from lfs.journal import FILE_NAME, Event, read_events
from search_space import LossSpec

REPORT_NAME = "report.html"
_MAX_ROWS = 200
_MAX_CURVES = 10
_MAX_EARLIER_LOSSES = 8
_USUAL_CLASSES = 1000


def write_report(run_dir: Path) -> Path:
    """Write `report.html` into a run's folder, from its journal alone, and return its path.

    A journal that is unfinished, empty or full of failures gives a report too. The file is put in place whole or not
    at all. Raises `lfs.journal.JournalError` for a missing or damaged journal.
    """
    journal = run_dir / FILE_NAME
    events, length = read_events(journal)
    digest = hashlib.sha256(journal.read_bytes()[:length]).hexdigest()
    target = run_dir / REPORT_NAME
    draft = run_dir / f".{REPORT_NAME}.{os.getpid()}"
    try:
        draft.write_text(report_html(events, journal_digest=digest), encoding="utf-8")
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)
    return target


def report_html(events: Iterable[Event], *, journal_digest: str) -> str:
    """The report as one HTML document."""
    view = View(Ledger.of(events))
    sections = [
        verdict_section(view),
        health_section(view),
        history_section(view),
        controller_section(view),
        leaderboard_section(view),
        *filter(None, [pareto_section(view)]),
        training_section(view),
        loss_section(view),
        compute_section(view),
        trials_section(view),
        reproduce_section(view.ledger, journal_digest=journal_digest),
    ]
    return page.page(_title(view.ledger), _subtitle(view.ledger), sections, _FOOTER)


_FOOTER = (
    "Made by lossearch from the journal alone. Scores are those of validation identities: half give the reward, half "
    "the final choice. The test identities were not opened."
)


@dataclass(frozen=True)
class View:
    """A ledger with the tables that several sections share, each made once."""

    ledger: Ledger

    @cached_property
    def trials(self) -> pd.DataFrame:
        """One row a trial."""
        return tables.trials_of(self.ledger)

    @cached_property
    def board(self) -> pd.DataFrame:
        """The winner and the baselines."""
        return tables.leaderboard_of(self.ledger)

    @cached_property
    def finals(self) -> pd.DataFrame:
        """The finalists."""
        return tables.finals_of(self.ledger)

    @cached_property
    def totals(self) -> pd.DataFrame:
        """What was spent, by role."""
        return tables.totals_of(self.ledger)

    @cached_property
    def winner(self) -> int | None:
        """The chosen trial, or the leader so far."""
        return tables.winner_of(self.ledger)

    @cached_property
    def styles(self) -> dict[str, Style]:
        """How each baseline looks."""
        return styles_for(self.trials.loc[self.trials["role"] == "baseline", "name"])

    @cached_property
    def top(self) -> list[int]:
        """The search trials with the best rewards among those trained furthest, best first."""
        told = self.trials[(self.trials["role"] == "search") & (self.trials["state"] == "told")]
        furthest = told[told["epochs"] == told["epochs"].max()]
        return [int(number) for number in furthest.nlargest(_MAX_CURVES + 1, "reward")["number"]]

    @property
    def metric(self) -> str:
        """The reward's score in words."""
        return tables.score_title(self.ledger.reward_metric)


def _title(ledger: Ledger) -> str:
    name = ledger.data.get("name")
    return f"Loss search on {name}" if name else "Loss search"


def _subtitle(ledger: Ledger) -> str:
    if ledger.started is None:
        return "The journal is empty: the search has not started."
    begun = datetime.fromtimestamp(ledger.started.time, UTC).strftime("%Y-%m-%d %H:%M UTC")
    method, space = ledger.setting("search", "method"), ledger.setting("space", "kind") or ledger.setting("space")
    how = f"{method} over {space}, " if isinstance(method, str) and isinstance(space, str) else ""
    running = len(ledger.trials.keys() - ledger.told.keys())
    state = "finished" if ledger.finished else f"not finished: {running} trials without an outcome"
    resumed = f", resumed {len(ledger.resumed)}×" if ledger.resumed else ""
    return f"Search {ledger.started.search_id}: {how}started {begun}{resumed}, {state}."


def verdict_section(view: View) -> Section:
    """The winner against each baseline, with what may and may not be concluded."""
    rows, finished = per_baseline(view.board), view.ledger.finished is not None
    meaning = tables.score_meaning(view.ledger.reward_metric)
    pieces: tuple[Html | None, ...] = (
        page.verdict(
            headline(view.board, view.metric, finished=finished),
            remarks(view.trials, view.board, view.finals, meaning=meaning, finished=finished),
        ),
        page.tiles(headline_numbers(view.totals, seconds=view.ledger.seconds)),
        page.table(rows, caption=f"The winner's {view.metric} minus each baseline's.") if len(rows) else None,
        page.table(
            view.finals,
            caption="The finals: the search's best, trained again under other seeds. Scores of the choice half.",
            marked=lambda row: row["finalist"] == view.winner,
        )
        if len(view.finals)
        else None,
    )
    return Section(key="verdict", title="Verdict", pieces=pieces)


def health_section(view: View) -> Section:
    """Did it run properly?"""
    failures = tables.failures_of(view.ledger)
    empty = view.trials.empty
    nothing = page.paragraph("No trial failed, collapsed or had to be tried again.")
    pieces = (
        page.paragraph("No trial was asked yet.") if empty else page.figure(health_figure(view.trials, failures)),
        page.table(failures.head(_MAX_ROWS), caption="Failures, collapses, retries and what was found before training")
        if len(failures)
        else None,
        nothing if failures.empty and not empty else None,
        page.paragraph(f"{len(view.ledger.rebuilt)} checkpoints were rebuilt by training again.")
        if view.ledger.rebuilt
        else None,
    )
    return Section(key="health", title="Health", pieces=pieces)


def history_section(view: View) -> Section:
    """When, if ever, did the search pass the baselines?"""
    if not (view.trials["state"] != "running").any():
        return Section(key="history", title="History", pieces=(page.paragraph("No trial has an outcome yet."),))
    drawn = history_figure(view.trials, view.winner, view.styles, view.metric)
    return Section(key="history", title="History", pieces=(page.figure(drawn),))


def controller_section(view: View) -> Section:
    """Is the controller learning or wandering? A μ ± σ where it has one, else what it asked for."""
    believed = controller_figure(tables.controller_of(view.ledger), view.trials)
    samples = samples_of(view.ledger)
    winner = candidate_behind(view.ledger, view.winner)
    asked = [choices_figure(samples, winner), numbers_figure(samples, space_of(view.ledger), winner)]
    drawn = [believed] if believed else asked
    formulas = formulas_of(view.ledger)
    pieces = [
        *(page.figure(figure) for figure in drawn if figure),
        *([page.table(formulas, caption="The best formulas, each once")] if len(formulas) else []),
    ]
    none = page.paragraph("This search has no parameters that could be drawn.")
    return Section(key="controller", title="Controller", pieces=tuple(pieces) or (none,))


def leaderboard_section(view: View) -> Section:
    """The winner and the baselines with all their scores."""
    columns = ["entrant", "number", "loss", "recipe", "epochs", "reward", "choice"]
    scores = [f"val/{score}" for score in tables.SCORES if view.board[f"val/{score}"].notna().any()]
    drawn = entrants_figure(view.board, view.styles, view.metric)
    troubles = [column for column in ("error", "collapse") if view.board[column].notna().any()]
    spent = ["entrant", "lineage_images", "total_images", "lineage_seconds", *troubles]
    pieces = (
        page.paragraph("Neither a winner nor a baseline has an outcome yet.") if view.board.empty else None,
        page.figure(drawn) if drawn else None,
        page.table(view.board[columns], caption="Sorted by the choice half", marked=_is_winner),
        page.table(view.board[["entrant", *scores]], caption="All validation identities", marked=_is_winner),
        page.table(
            view.board[spent],
            caption="Cost. Images in all: for the winner, every trial of the search; for a baseline, its own training.",
            marked=_is_winner,
        ),
    )
    return Section(key="leaderboard", title="Leaderboard", pieces=pieces if len(view.board) else pieces[:1])


def pareto_section(view: View) -> Section | None:
    """Of a search for several objectives: the trials that no other trial beats. None for one objective."""
    objectives = objectives_of(view.ledger)
    if len(objectives) < 2:
        return None
    scored = pareto_of(view.ledger)
    if scored.empty:
        return Section(key="pareto", title="Pareto set", pieces=(page.paragraph("No trial has an outcome yet."),))
    front = scored[scored["on_front"]].drop(columns="on_front").head(_MAX_ROWS)
    pieces = page.figure(pareto_figure(scored, objectives)), page.table(front, caption="The Pareto set")
    return Section(key="pareto", title="Pareto set", pieces=pieces)


def _is_winner(row: object) -> bool:
    return isinstance(row, dict) and row.get("entrant") == "winner"


def training_section(view: View) -> Section:
    """How training went, epoch by epoch."""
    entrants = {str(row["entrant"]): int(row["number"]) for row in tables.records(view.board)}
    others = [number for number in view.top if number != view.winner][:_MAX_CURVES]
    numbers = {f"trial {number}": number for number in others} | entrants
    curves_by_name = {name: tables.lineage_history(view.ledger, number) for name, number in numbers.items()}
    score = {"one_minus_eer": "eer"}.get(view.ledger.reward_metric or "", view.ledger.reward_metric or "rank1")
    half = next((h for h in ("val", "reward") if any(f"{h}/{score}" in c for c in curves_by_name.values())), "val")
    drawn = [
        training_figure(
            curves_by_name,
            view.styles,
            column=f"{half}/{score}",
            key="training",
            title="Validation score",
            unit=f"{tables.score_title(score)}, {'all' if half == 'val' else 'reward half of'} validation identities",
        ),
        training_figure(
            curves_by_name,
            view.styles,
            column="train/loss",
            key="training-loss",
            title="Training loss",
            unit="training loss, each in its own scale",
        ),
    ]
    figures = tuple(page.figure(figure) for figure in drawn if figure)
    none = (page.paragraph("No epoch was recorded."),)
    return Section(key="curves", title="Training curves", pieces=figures or none)


def loss_section(view: View) -> Section:
    """The winning loss as curves and as a schedule."""
    if view.winner is None:
        return Section(key="loss", title="The loss", pieces=(page.paragraph("There is no winner to draw."),))
    schedule = view.ledger.trials[view.winner].schedule
    final = schedule.final
    classes = view.ledger.data.get("train_classes")
    num_classes = classes if isinstance(classes, int) and classes > 1 else _USUAL_CLASSES
    winner = {f"winner: {describe(final)}": final}
    before = [spec for spec in schedule.specs() if spec != final][-_MAX_EARLIER_LOSSES:]
    earlier = {f"earlier: {describe(spec)}": spec for spec in before}
    drawn = loss_figure(
        curves(winner, num_classes=num_classes),
        curves(earlier, num_classes=num_classes),
        curves(_recommended(view.ledger) | reference_losses(final, num_classes), num_classes=num_classes),
        num_classes=num_classes,
    )
    steps = [
        {"from epoch": entry.from_epoch + 1, "loss": describe(entry.spec), "digest": entry.spec.digest()}
        for entry in schedule.entries
    ]
    pieces = (
        page.figure(drawn),
        page.heading("The winner's schedule"),
        page.table(pd.DataFrame(steps)),
        *(
            page.paragraph(f"{name}: where the controller ended. It was not trained by itself.")
            for name in _recommended(view.ledger)
        ),
        page.code(final.model_dump_json(indent=2), folded="Its last loss as JSON"),
    )
    return Section(key="loss", title="The loss", pieces=pieces)


def _recommended(ledger: Ledger) -> dict[str, LossSpec]:
    """The constant loss that the controller recommends, under the name that figures and text give it."""
    constant = ledger.finished.constant if ledger.finished else None
    return {} if constant is None else {f"Recommended constant: {describe(constant)}": constant}


def compute_section(view: View) -> Section:
    """What it cost."""
    drawn = page.figure(compute_figure(view.trials)) if view.ledger.told else None
    return Section(key="compute", title="Compute spent", pieces=(drawn, page.table(view.totals)))


def trials_section(view: View) -> Section:
    """Every trial, or the best of them when there are too many to read."""
    ranked = view.trials.sort_values("reward", ascending=False, na_position="last", kind="stable", ignore_index=True)
    always = ranked["role"].eq("baseline") | (ranked["number"] == view.winner)
    shown = ranked[always | (ranked.index < _MAX_ROWS)].copy()
    scored = ranked[(ranked["role"] == "search") & ranked["reward"].notna()]
    best_note = {int(number): f"best of {len(scored)}: optimistic" for number in scored["number"].head(1)}
    shown["note"] = [_note(row, view.winner, best_note) for row in tables.records(shown)]
    shown["entrant"] = shown["name"].where(shown["role"] == "baseline", shown["role"])
    columns = [
        "number",
        "entrant",
        "round",
        "parent",
        "epochs",
        "loss",
        "reward",
        "choice",
        "images",
        "seconds",
        "note",
    ]
    board = page.table(
        shown[columns],
        caption=f"{len(shown):,} of {len(view.trials):,} trials, best reward first. Press a heading to sort.",
        sortable=True,
        marked=lambda row: row["number"] == view.winner,
    )
    return Section(key="trials", title="All trials", pieces=(board,))


def _note(row: dict[str, Any], winner: int | None, best_note: dict[int, str]) -> str:
    notes = (
        "winner" if row["number"] == winner else None,
        best_note.get(row["number"]),
        f"final of trial {row['repeats']}" if row["repeats"] is not None else None,
        "no outcome yet" if row["state"] == "running" else None,
        f"failed: {row['error']}" if row["state"] == "failed" else None,
        row["preflight"],
        f"collapsed: {row['collapse']}" if row["collapse"] else None,
    )
    return "; ".join(note for note in notes if note)
