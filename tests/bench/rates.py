"""Which learning rate suits which loss? On validation, for the default rate of the presets and of searches.

    LOSSEARCH_DATA=../shared/data python -m tests.bench.rates omniglot     # goes on where the rows end
    python -m tests.bench.rates --report

Each of `LOSSES` is trained under three seeds at each of `RATES`, with the recipe of the study (`tests/bench/study.py`).
A loss's scale multiplies its gradient, and each of them has its own best rate: a comparison at one rate compares
rates too. The test identities are not touched.

The same rows say how well each reward tells which loss is better: `agreements`.
"""

import argparse
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from analysis.comparison import pipes
from search_space import LossSchedule, LossSpec, catalog
from search_space.parts import CombinedTarget, ConstantMargin, ConstantScale
from tests.bench.rank_agreement import agreement
from tests.bench.rows import append_row, read_rows
from tests.bench.study import METRICS, Study
from tests.bench.study_plan import FIRST, THIRD, plan_of

NAME, SEEDS, RATES = "rates", (901, 902, 903), (0.1, 0.2, 0.4, 0.8)
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


def _scores() -> dict[str, dict[tuple[str, float], list[float]]]:
    """The blend on the choice half under each seed, by data set, and by loss and rate."""
    found: dict[str, dict[tuple[str, float], list[float]]] = {}
    for row in read_rows(NAME):
        score = row["choice"]["blend"] if row["choice"] else 0.0
        found.setdefault(row["data"], {}).setdefault((row["name"], row["rate"]), []).append(score)
    return found


def means(data: str) -> dict[tuple[str, float], float]:
    """The mean blend on the choice half, by loss and rate."""
    return {key: float(np.mean(scores)) for key, scores in _scores().get(data, {}).items()}


def agreements() -> pd.DataFrame:
    """How well each reward orders the losses at the two lower rates, by data set.

    The rank correlation of one training's reward on one half of validation with what the study tests, on the other
    half and over the other seeds; the mean over seeds and over both ways round. Uncorrected, a loss at two rates
    counts as two: for the order of rewards, not for their worth.
    """
    arms = [(name, rate) for name in LOSSES for rate in RATES[:2]]
    columns: dict[str, dict[str, float]] = {}
    for data in DATA:
        rows = {(r["name"], r["rate"], r["seed"]): r for r in read_rows(NAME) if r["data"] == data and r["choice"]}
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


def report() -> str:
    """A table a data set: the mean blend on the choice half, ± standard error over seeds, by loss and rate."""
    parts = []
    for data, found in _scores().items():
        cells: dict[str, dict[str, str]] = {}
        for (name, rate), scores in found.items():
            if len(scores) > 1:
                error = np.std(scores, ddof=1) / len(scores) ** 0.5
                cells.setdefault(name, {})[f"rate {rate:g}"] = f"{np.mean(scores):.4f} ± {error:.4f}"
        if not cells:
            continue
        frame = pd.DataFrame([{"": name, **row} for name, row in cells.items()]).fillna("–")
        parts += [f"{data}: blend on the choice half", pipes(frame)]
    return "\n\n".join(parts)


def main() -> None:
    """Make the rows that are lacking, or print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=DATA, nargs="?")
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--workspace", type=Path, default=Path(tempfile.gettempdir()) / "lossearch-study")
    arguments = parser.parse_args()
    if arguments.report or arguments.data is None:
        print(report())
        return
    torch.set_num_threads(1)
    study = Study(arguments.data, arguments.workspace)
    for seed in SEEDS:
        for name, spec in LOSSES.items():
            for rate in RATES:
                key = {"data": arguments.data, "name": name, "seed": seed, "rate": rate}
                if any({each: row[each] for each in key} == key for row in read_rows(NAME)):
                    continue
                content = study.training(LossSchedule.constant(spec), seed, {"learning_rate": rate}, test=False)
                append_row(NAME, {**key, **content})
                print(name, rate, seed, content["state"], content["choice"] and content["choice"]["blend"], flush=True)


if __name__ == "__main__":
    main()
