"""Which learning rate suits which loss? On validation, for the default rate of the presets and of searches.

    LOSSEARCH_DATA=../shared/data python -m tests.bench.rates omniglot     # goes on where the rows end
    ... tests.bench.rates omniglot --rates 0.2 --times 4 --seeds 901 902     # for four times as long as the study
    python -m tests.bench.rates --report

Each of `LOSSES` is trained under three seeds at each of `RATES`, with the recipe of the study (`tests/bench/study.py`).
A loss's scale multiplies its gradient, and each of them has its own best rate: a comparison at one rate compares
rates too. The test identities are not touched.

The same rows say how well each reward tells which loss is better: `agreements`.
"""

import argparse
import itertools
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from filelock import FileLock, Timeout

from analysis.comparison import pipes
from search_space import LossSchedule, LossSpec, catalog
from search_space.parts import CombinedTarget, ConstantMargin, ConstantScale
from tests.bench.rank_agreement import agreement
from tests.bench.rows import append_row, read_rows
from tests.bench.study import METRICS, Study
from tests.bench.study_plan import FIRST, THIRD, plan_of

NAME, SEEDS, RATES = "rates", (901, 902, 903), (0.1, 0.2, 0.4, 0.8)
LONGER = 4
"""Horizons of the trainings that say whether losses differ more when they are trained for longer."""
DATA = (*FIRST.setups, *THIRD.setups)
LOSSES: Mapping[str, LossSpec] = {
    "softmax, s 16": catalog.softmax(scale=16.0),
    "AdaCos": catalog.adacos_dynamic(),
    "CosFace .2, s 16": catalog.cosface(scale=16.0, margin=0.2),
    "CosFace .2, s 32": catalog.cosface(scale=32.0, margin=0.2),
    "CosFace .35, s 32": catalog.cosface(scale=32.0, margin=0.35),
    "ArcFace .3, s 16": catalog.arcface(scale=16.0, margin_rad=0.3),
    "three margins, s 14": LossSpec(
        target=CombinedTarget(), margin=ConstantMargin(m1=1.19, m2_rad=0.24, m3=0.32), scale=ConstantScale(value=13.6)
    ),
}


def _rows(times: int = 1) -> list[dict[str, Any]]:
    """The trainings of so many horizons of the study."""
    return [row for row in read_rows(NAME) if row.get("times", 1) == times]


def _scores(times: int = 1) -> dict[str, dict[tuple[str, float], dict[int, float]]]:
    """The blend on the choice half by seed, by data set, and by loss and rate."""
    found: dict[str, dict[tuple[str, float], dict[int, float]]] = {}
    for row in _rows(times):
        score = row["choice"]["blend"] if row["choice"] else 0.0
        found.setdefault(row["data"], {}).setdefault((row["name"], row["rate"]), {})[row["seed"]] = score
    return found


def means(data: str) -> dict[tuple[str, float], float]:
    """The mean blend on the choice half, by loss and rate."""
    return {key: float(np.mean([*scores.values()])) for key, scores in _scores().get(data, {}).items()}


def agreements() -> pd.DataFrame:
    """How well each reward orders the losses at the two lower rates, by data set.

    The rank correlation of one training's reward on one half of validation with what the study tests, on the other
    half and over the other seeds; the mean over seeds and over both ways round. Uncorrected, a loss at two rates
    counts as two: for the order of rewards, not for their worth.
    """
    arms = [(name, rate) for name in LOSSES for rate in RATES[:2]]
    columns: dict[str, dict[str, float]] = {}
    for data in DATA:
        rows = {(r["name"], r["rate"], r["seed"]): r for r in _rows() if r["data"] == data and r["choice"]}
        if any((*arm, seed) not in rows for arm in arms for seed in SEEDS):
            continue
        score_HMLS = np.array(
            [
                [[[rows[*arm, seed][half][metric] for seed in SEEDS] for arm in arms] for metric in METRICS]
                for half in ("reward", "choice")
            ]
        )
        final_HLS = score_HMLS[::-1, METRICS.index(plan_of(data).setups[data].metric)]
        columns[data] = {
            metric: float(agreement(score_HMLS[:, number], final_HLS).mean()) for number, metric in enumerate(METRICS)
        }
    return pd.DataFrame(columns).map("{:.2f}".format).rename_axis("").reset_index()


def _mean_and_error(scores: Sequence[float]) -> str:
    return f"{np.mean(scores):.4f} ± {np.std(scores, ddof=1) / len(scores) ** 0.5:.4f}"


def by_length(data: str) -> dict[str, tuple[list[float], list[float]]]:
    """By loss, the blend on the choice half after one horizon and after `LONGER`, under the seeds that both have."""
    short, long = _scores().get(data, {}), _scores(LONGER).get(data, {})
    shared = {key: sorted(set(scores) & set(short.get(key, {}))) for key, scores in long.items()}
    return {
        name: ([short[name, rate][seed] for seed in seeds], [long[name, rate][seed] for seed in seeds])
        for (name, rate), seeds in shared.items()
        if len(seeds) > 1
    }


def spans(data: str) -> list[tuple[float, float]]:
    """How far apart the losses' means lie after one horizon and after `LONGER`, each with how far apart those of equal
    losses would lie on average, by the luck of their seeds; nothing for fewer than two losses."""
    found = by_length(data).values()
    if len(found) < 2:
        return []
    spans = []
    for place in (0, 1):
        means = [float(np.mean(pair[place])) for pair in found]
        variance = float(np.mean([np.var(pair[place], ddof=1) / len(pair[place]) for pair in found]))
        equal = np.random.default_rng(0).normal(scale=variance**0.5, size=(10_000, len(means)))
        spans.append((max(means) - min(means), float(np.ptp(equal, axis=1).mean())))
    return spans


def longer() -> pd.DataFrame:
    """`by_length` of every data set, a line a loss."""
    columns: dict[str, dict[str, str]] = {}
    for data in DATA:
        if found := by_length(data):
            for place, head in enumerate(("one horizon", f"{LONGER} horizons")):
                columns[f"{data}, {head}"] = {name: _mean_and_error(pair[place]) for name, pair in found.items()}
    return pd.DataFrame(columns).fillna("–").rename_axis("").reset_index()


def report() -> str:
    """A table a data set: the mean blend on the choice half, ± standard error over seeds, by loss and rate."""
    parts = []
    for data, found in _scores().items():
        cells: dict[str, dict[str, str]] = {}
        for (name, rate), scores in found.items():
            if len(scores) > 1:
                cells.setdefault(name, {})[f"rate {rate:g}"] = _mean_and_error([*scores.values()])
        if not cells:
            continue
        frame = pd.DataFrame([{"": name, **row} for name, row in cells.items()]).fillna("–")
        parts += [f"{data}: blend on the choice half", pipes(frame)]
    return "\n\n".join(parts)


def main() -> None:
    """Make the rows that are lacking, or print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=DATA, nargs="?")
    parser.add_argument("--rates", type=float, nargs="+", default=RATES)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--times", type=int, default=1, help="horizons of the study")
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--workspace", type=Path, default=Path(tempfile.gettempdir()) / "lossearch-study")
    arguments = parser.parse_args()
    if arguments.report or arguments.data is None:
        print(report())
        return
    torch.set_num_threads(1)
    study = Study(arguments.data, arguments.workspace)
    for seed, name, rate in itertools.product(arguments.seeds, LOSSES, arguments.rates):
        _make(study, arguments.data, name, seed, rate, arguments.times, arguments.workspace)


def _make(study: Study, data: str, name: str, seed: int, rate: float, times: int, workspace: Path) -> None:
    """The row, unless it is there or another process makes it."""
    key = {"data": data, "name": name, "seed": seed, "rate": rate, **({"times": times} if times > 1 else {})}
    try:
        with FileLock(workspace / f"rates-{data}-{name}-{seed}-{rate:g}-{times}.lock", timeout=0):
            if any({each: row[each] for each in key} == key for row in _rows(times)):
                return
            changes = {"learning_rate": rate, "horizon_epochs": times * study.horizon_epochs}
            content = study.training(LossSchedule.constant(LOSSES[name]), seed, changes, test=False)
            append_row(NAME, {**key, **content})
    except Timeout:
        return
    print(name, rate, seed, content["state"], content["choice"] and content["choice"]["blend"], flush=True)


if __name__ == "__main__":
    main()
