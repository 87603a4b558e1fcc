"""`compare.html`: what a comparison found, on one page that works offline, and its numbers as CSV beside it."""

import os
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from analysis import page
from analysis.comparison import SCORES, WINNER, Results, when, written
from analysis.comparison_plots import cosines_figure, cost_figure, errors_figure, forest_figure, seeds_figure
from analysis.page import Section
from analysis.reproduce import as_toml
from analysis.tables import score_title

PAGE_NAME = "compare"


def write_comparison(results: Results, run_dir: Path) -> list[Path]:
    """Write the page, the verdict as Markdown, and the means, differences and raw scores as CSV, into a run's folder;
    return the paths.

    The first comparison's are called compare.*, later ones compare-2.* and so on. Each file is put in place whole.
    """
    number = int(results.plan["number"])
    stem = PAGE_NAME if number == 1 else f"{PAGE_NAME}-{number}"
    contents = {
        f"{stem}.html": comparison_html(results),
        f"{stem}.md": results.markdown(),
        f"{stem}.csv": results.scores().to_csv(index=False),
        f"{stem}-differences.csv": results.differences().to_csv(index=False),
        f"{stem}-seeds.csv": results.raw().to_csv(index=False),
    }
    for name, content in contents.items():
        draft = run_dir / f".{name}.{os.getpid()}"
        try:
            draft.write_text(content, encoding="utf-8")
            draft.replace(run_dir / name)
        finally:
            draft.unlink(missing_ok=True)
    return [run_dir / name for name in contents]


def comparison_html(results: Results) -> str:
    """The page as one HTML document."""
    sections = [
        _verdict(results),
        _differences(results),
        _thresholds(results),
        _scores(results),
        _seeds(results),
        _costs(results),
        _entrants(results),
        _beforehand(results),
    ]
    data = results.ledger.data.get("name")
    subtitle = (
        f"Comparison {results.plan['number']} of search {results.plan['search_id']}: the winner and "
        f"{len(results.entrants) - 1} others retrained from scratch, {results.repeats}, test opened "
        f"{when(results.opened.time)}."
    )
    footer = "Made by lossearch from the comparison's journal and resamples. All scores are of the test identities."
    return page.page(f"Loss comparison on {data}", subtitle, sections, footer)


def _verdict(results: Results) -> Section:
    rows = [
        {
            "the winner against": contrast.baseline,
            "difference": None if contrast.difference is None else contrast.difference.mean,
            f"{results.coverage} interval": written(contrast.difference, sign="+"),
            "n": 0 if contrast.difference is None else contrast.difference.n,
            "t-test p" if results.of_searches else "sign-flip p": contrast.p,
            "Holm p": contrast.corrected_p,
            "P(better)": contrast.p_better,
            "verdict": contrast.verdict,
        }
        for contrast in results.contrasts
    ]
    frame = pd.DataFrame(rows)
    return Section(
        key="verdict",
        title="Verdict",
        pieces=(
            page.verdict(results.headline, results.remarks()),
            page.table(
                frame,
                caption=f"{score_title(results.metric)} of the winner minus that of each baseline, paired by "
                f"{'search' if results.of_searches else 'seed'}; {results.repeats}.",
                marked=lambda row: row["verdict"] in ("better", "worse"),
            )
            if rows
            else None,
            page.paragraph(f"{_P_OF_SEARCHES if results.of_searches else _P_OF_SEEDS} {_HOW_TO_READ}"),
        ),
    )


_P_OF_SEEDS = "p: exact sign-flip test of the paired differences over seeds, two-sided."
_P_OF_SEARCHES = (
    "p: paired t-test of the differences over searches, two-sided: the mean over the retrainings of a search's winner "
    "minus that of the baseline's under the same seeds; so it is the kind of search that is judged, not one find."
)
_HOW_TO_READ = (
    "Holm p: corrected for all rows of the table. Interval: bootstrap over what is repeated (seeds, or searches) and "
    "test identities together, widened for their small numbers; where the two interact it is wider than needed. "
    "P(better): the share of those resamples in which the winner is ahead. 'better' and 'worse' need both a Holm p "
    "below the level and an interval without 0."
)


def _differences(results: Results) -> Section:
    drawn = [forest_figure(results)] if results.rivals else []
    return Section(
        key="differences",
        title="Differences",
        pieces=tuple(page.figure(each) for each in [*drawn, seeds_figure(results)]),
    )


def _thresholds(results: Results) -> Section:
    drawn = [figure for figure in (errors_figure(results), cosines_figure(results)) if figure]
    none = page.paragraph(
        "This comparison was made before error curves were kept, or its trainings left none: nothing is drawn here."
    )
    return Section(
        key="thresholds", title="Over all thresholds", pieces=tuple(map(page.figure, drawn)) if drawn else (none,)
    )


def _scores(results: Results) -> Section:
    table, titles = results.scores(), _heading(results)
    wide = pd.DataFrame(
        [
            {"entrant": name, "n": 0 if rows["mean"].isna().any() else results.units}
            | {titles[str(row["score"])]: _bracketed(row) for row in rows.to_dict("records")}
            for name, rows in table.groupby("entrant", sort=False)
        ]
    )
    differences = results.differences()
    return Section(
        key="scores",
        title="Test scores",
        pieces=(
            page.table(
                wide,
                caption=f"Mean [{results.coverage} interval]; {results.repeats}. EER: low is good.",
                marked=lambda row: row["entrant"] == WINNER,
            ),
            page.table(
                differences.assign(score=differences["score"].map(titles)),
                caption="The winner minus each baseline on every score. Only the tested score has p-values.",
            )
            if len(differences)
            else None,
        ),
    )


def _bracketed(row: Mapping[Hashable, Any]) -> str:
    return "–" if pd.isna(row["mean"]) else f"{row['mean']:.4f} [{row['low']:.4f}, {row['high']:.4f}]"


def _heading(results: Results) -> dict[str, str]:
    weak = " (under 30 false accepts)"
    scores = dict.fromkeys((results.metric, *SCORES))
    return {score: score_title(score) + ("" if results.resolved(score) else weak) for score in scores}


def _seeds(results: Results) -> Section:
    table = results.raw().rename(columns={score: score_title(score) for score in (results.metric, *SCORES)})
    return Section(
        key="raw",
        title="Every training",
        pieces=(page.table(table, sortable=True, marked=lambda row: row["state"] != "trained"),),
    )


def _costs(results: Results) -> Section:
    return Section(
        key="cost",
        title="Compute",
        pieces=(
            page.figure(cost_figure(results)),
            page.table(results.costs(), marked=lambda row: row["entrant"] == WINNER),
            page.paragraph(
                "Images to find it: for the winner those of the whole search, for a tuned baseline those of its grid. "
                "A control (best of many seeds, or trained for longer) gets at least what the winner took in all."
            ),
        ),
    )


def _entrants(results: Results) -> Section:
    grids = results.grids()
    return Section(
        key="entrants",
        title="Entrants",
        pieces=(
            page.table(results.losses(), marked=lambda row: row["entrant"] == WINNER),
            page.table(grids, caption="The grids of the tuned baselines, trained under one other seed")
            if len(grids)
            else None,
        ),
    )


def _beforehand(results: Results) -> Section:
    plan, opened = results.plan, results.opened
    started = results.ledger.started
    tested = len(results.rivals)
    began = "–" if started is None else when(started.time)
    seeds = ", ".join(map(str, results.seeds))
    chosen = "as asked for" if plan["options"].get("metric") else "the search's reward"
    statements = {
        "written": f"{began}, before the first training; the test was opened {when(opened.time)}",
        "tested score": f"{score_title(results.metric)}, {chosen}, here on the test identities",
        "tested contrasts": f"{tested}, the winner against each baseline and control; level {results.level:g}, Holm",
        "seeds": f"{seeds}; none of them was used by a search of this comparison or an earlier one",
        "repeated": results.repeats,
        "resamples": f"{plan['options']['resamples']}, each of all {results.repeated} "
        f"and of all {opened.clusters} {results.clustered}",
        "in each resample": "the threshold is found anew; rank-1 keeps its gallery",
        "collapsed trainings": "count with their scores",
        "diverged trainings": "count with the scores of chance: TAR = FAR, EER ½, rank-1 0",
        "trainings that the machine lost": "leave their contrast undecided",
        "test": f"{opened.classes} identities, {opened.images} images, digest {opened.digest}",
        "test opened before": f"{opened.opened_before}× by comparisons of this workspace; others are not known here",
    }
    if not results.of_searches:
        lowest = 2.0 ** (1 - len(results.seeds))
        least = min(1.0, tested * lowest)
        statements["lowest p-values"] = f"{lowest:.2g} for so many seeds, {least:.2g} after Holm"
    table = pd.DataFrame({"what": list(statements), "how": list(statements.values())})
    return Section(
        key="beforehand",
        title="Decided beforehand",
        pieces=(
            page.table(table),
            page.code(as_toml({"options": plan["options"]}), folded="The options"),
        ),
    )
