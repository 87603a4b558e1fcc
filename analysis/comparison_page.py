"""`compare.html`: what a comparison found, on one page that works offline, and its numbers as CSV beside it."""

import os
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from analysis import page
from analysis.comparison import SCORES, WINNER, Results, when, written
from analysis.figures import FAILED, MUTED, SEARCH, Figure, Trace, draw, plain, scatter
from analysis.figures import WINNER as WINNER_COLOUR
from analysis.page import Section
from analysis.reproduce import as_toml
from analysis.tables import score_title

PAGE_NAME = "compare"
_OTHER_SYMBOLS = ("circle-open", "square-open", "diamond-open", "triangle-up-open")


def write_comparison(results: Results, run_dir: Path) -> list[Path]:
    """Write the page, and the means, differences and raw scores as CSV, into a run's folder; return the paths.

    The first comparison's are called compare.*, later ones compare-2.* and so on. Each file is put in place whole.
    """
    number = int(results.plan["number"])
    stem = PAGE_NAME if number == 1 else f"{PAGE_NAME}-{number}"
    contents = {
        f"{stem}.html": comparison_html(results),
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
        _figures(results),
        _scores(results),
        _seeds(results),
        _costs(results),
        _entrants(results),
        _beforehand(results),
    ]
    data = results.ledger.data.get("name")
    subtitle = (
        f"Comparison {results.plan['number']} of search {results.plan['search_id']}: the winner and "
        f"{len(results.entrants) - 1} others retrained from scratch with {len(results.seeds)} seeds, test opened "
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
            "sign-flip p": contrast.p,
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
                caption=f"{score_title(results.metric)} of the winner minus that of each baseline, paired by seed.",
                marked=lambda row: row["verdict"] in ("better", "worse"),
            )
            if rows
            else None,
            page.paragraph(_HOW_TO_READ),
        ),
    )


_HOW_TO_READ = (
    "p: exact sign-flip test of the paired differences over seeds, two-sided. Holm p: corrected for all rows of the "
    "table. Interval: bootstrap over seeds and test identities together, widened for their small numbers; where seeds "
    "and identities interact it is wider than needed. P(better): the share of those resamples in which the winner is "
    "ahead. 'better' and 'worse' need both a Holm p below the level and an interval without 0."
)


def _figures(results: Results) -> Section:
    drawn = [forest_figure(results)] if results.rivals else []
    return Section(
        key="figures", title="Differences", pieces=tuple(page.figure(each) for each in [*drawn, seeds_figure(results)])
    )


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
                    "symbol": "circle" if index == 0 else _OTHER_SYMBOLS[index],
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
            f"Right of 0 the winner is ahead. Bars: {results.coverage} intervals over seeds and identities. Only the "
            "filled marks were tested. A TAR that rests on fewer than 30 false accepts is not drawn."
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
    score = "eer" if results.metric == "one_minus_eer" else results.metric
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
                [run.metrics.get(score) for run in runs],
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
    troubled = sum(run.state != "trained" for run in results.scored.values())
    return Figure(
        key="seeds",
        title="Every seed",
        label=f"{score_title(score)} of {len(names)} entrants under {len(results.seeds)} seeds; {troubled} marked ✕.",
        caption="A line joins what one seed gave. ✕: collapsed or diverged, counted all the same.",
        table=table[["entrant", "seed", "state", *([score] if score in table else [])]],
        plot=draw(
            traces,
            height=460,
            xaxis={"tickvals": list(range(len(names))), "ticktext": ticks, "tickangle": -30},
            yaxis={"title": {"text": f"test {score_title(score)}"}},
        ),
    )


def _means(results: Results, names: Sequence[str]) -> Trace:
    score = "eer" if results.metric == "one_minus_eer" else results.metric
    found = {index: value for index, name in enumerate(names) if (value := results.estimate(name, score))}
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


def _scores(results: Results) -> Section:
    table, titles = results.scores(), _heading(results)
    wide = pd.DataFrame(
        [
            {"entrant": name, "n": 0 if rows["mean"].isna().any() else len(results.seeds)}
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
                caption=f"Mean over n seeds [{results.coverage} interval]. EER: low is good.",
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
    table = results.raw().rename(columns={score: score_title(score) for score in SCORES})
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
    unit = "groups of identities (from the class names)" if plan["grouped"] else "identities"
    tested = len(results.rivals)
    least = min(1.0, tested * 2.0 ** (1 - len(results.seeds)))
    began = "–" if started is None else when(started.time)
    seeds = ", ".join(map(str, results.seeds))
    lowest = 2.0 ** (1 - len(results.seeds))
    statements = {
        "written": f"{began}, before the first training; the test was opened {when(opened.time)}",
        "tested score": f"{score_title(results.metric)}, the search's reward, here on the test identities",
        "tested contrasts": f"{tested}, the winner against each baseline and control; level {results.level:g}, Holm",
        "seeds": f"{seeds}; none of them was used by the search or an earlier comparison",
        "lowest p-values": f"{lowest:.2g} for so many seeds, {least:.2g} after Holm",
        "resamples": f"{plan['options']['resamples']}, each of all seeds and of all {opened.clusters} {unit}",
        "in each resample": "the threshold is found anew; rank-1 keeps its gallery",
        "collapsed trainings": "count with their scores",
        "diverged trainings": "count with the scores of chance: TAR = FAR, EER ½, rank-1 0",
        "trainings that the machine lost": "leave their contrast undecided",
        "test": f"{opened.classes} identities, {opened.images} images, digest {opened.digest}",
        "test opened before": f"{opened.opened_before}× by comparisons of this workspace; others are not known here",
    }
    table = pd.DataFrame({"what": list(statements), "how": list(statements.values())})
    return Section(
        key="beforehand",
        title="Decided beforehand",
        pieces=(
            page.table(table),
            page.code(as_toml({"options": plan["options"]}), folded="The options"),
        ),
    )
