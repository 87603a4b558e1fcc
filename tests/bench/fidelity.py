"""How far can the proxy be trusted? Every reward at every short budget against the final score, over many losses.

    LOSSEARCH_DATA=../shared/data python -m tests.bench.fidelity           # goes on where the rows end
    python -m tests.bench.fidelity --report                                # table and picture from the rows alone

Losses are drawn by a scrambled Sobol sequence from the combined margin with everything free (m1 1-1.5, m2 0-.8 rad, m3
0-.4, s 8-64 log, gradient exact or detached) until `LOSSES` of them are living: neither collapsed nor diverged under
any seed. Each trains under `SEEDS` on 300 classes of omniglot (every 734/300th of the sorted ones, so that all
alphabets take part) of 24×24 pixels at width 16 for the preset's 6 epochs; and once more with a horizon of one epoch,
so that its one reward comes at the end of a decayed rate. A row is one training: all rewards on the reward half of
validation after every epoch, and the final score, TAR@1e-3 on the OTHER half. The test identities are not touched.

`tests/bench/rank_agreement.py` says what the table's columns are. It is written to `results/fidelity.csv`, the picture
to `results/fidelity.html`.
"""

import argparse
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from scipy.stats import qmc

from search_space import CombinedMargin, LossSchedule, LossSpec
from tests.bench.rank_agreement import Floats, Interval, draw_losses, intraclass, judge
from tests.bench.rows import RESULTS, append_row, read_rows
from trainers.data import DataConfig, load_task
from trainers.evaluation import reward_of
from trainers.numerics import probe
from trainers.outcome import Outcome
from trainers.presets import recipe_defaults
from trainers.recipe import Numerics, Recipe, RewardMetric
from trainers.task import LabelledImages, Task
from trainers.training import train

NAME = "fidelity"
LOSSES, SEEDS = 24, (0, 1, 2)
CLASSES, WIDTH, IMAGE_SIZE = 300, 16, 24
REWARDS: tuple[RewardMetric, ...] = get_args(RewardMetric)
FINAL: RewardMetric = "tar_at_far_1e-3"
RESAMPLES = 2000
SPACES = [
    CombinedMargin(m1=(1.0, 1.5), m2_rad=(0.0, 0.8), m3=(0.0, 0.4), scale=(8.0, 64.0), gradient=gradient)
    for gradient in ("exact", "detached")
]
Row = Mapping[str, Any]


def candidates() -> Iterator[LossSpec]:
    """The losses in the order in which they are tried."""
    sobol = qmc.Sobol(d=5, scramble=True, rng=0)
    while True:
        *unit, gradient = sobol.random(1)[0]
        space = SPACES[int(gradient * len(SPACES))]
        places = zip(space.domains.items(), unit, strict=True)
        yield space.decode({name: domain.from_unit(float(place)) for (name, domain), place in places})


def thinned(task: Task, classes: int = CLASSES, *, spare_validate: int = 0) -> Task:
    """The task with so many of its training classes, evenly taken from their list; of the others some may validate."""
    kept = np.unique(np.linspace(0, task.train.classes - 1, classes).round().astype(np.int64))
    of_class = np.full(task.train.classes, -1)
    of_class[kept] = np.arange(len(kept))
    label_N = of_class[task.train.labels]
    few = replace(task, train=LabelledImages(images=task.train.images[label_N >= 0], labels=label_N[label_N >= 0]))
    if not spare_validate:
        return few
    left_out = np.flatnonzero(of_class < 0)
    spare = left_out[np.linspace(0, len(left_out) - 1, spare_validate).round().astype(np.int64)]
    halves = (_joined(task.reward, task.train, spare[::2]), _joined(task.choice, task.train, spare[1::2]))
    return replace(few, reward=halves[0], choice=halves[1])


def _joined(to: LabelledImages, other: LabelledImages, classes: npt.NDArray[np.int64]) -> LabelledImages:
    """These images and those of some classes of others."""
    taken_N = np.isin(other.labels, classes)
    labels = to.classes + np.searchsorted(classes, other.labels[taken_N])
    images = np.concatenate([to.images, other.images[taken_N]])
    return LabelledImages(images=images, labels=np.concatenate([to.labels, labels]))


def rewards(metrics: Mapping[str, float], half: str) -> dict[str, float]:
    """Every reward on a half."""
    return {name: round(reward_of(metrics, name, "reward" if half == "reward" else "choice"), 6) for name in REWARDS}


def content(index: int, spec: LossSpec, seed: int, horizon: int, outcome: Outcome) -> dict[str, object]:
    """What a row says of a training."""
    return {
        "loss": index,
        "spec": spec.model_dump(mode="json", exclude_defaults=True),
        "seed": seed,
        "horizon_epochs": horizon,
        "error": outcome.error,
        "collapse": outcome.collapse,
        "reward": [rewards(epoch, "reward") for epoch in outcome.history],
        "choice": rewards(outcome.metrics, "choice") if outcome.error is None else None,
        "images": outcome.images,
        "seconds": round(outcome.seconds, 1),
    }


class Study:
    """Trains what the rows lack."""

    def __init__(self) -> None:
        root = Path(os.environ.get("LOSSEARCH_DATA", Path(__file__).parents[2] / "../shared/data"))
        cache_dir = Path.home() / ".cache" / "lossearch-bench"
        task = load_task(DataConfig(path=root / "omniglot", image_size=IMAGE_SIZE), cache_dir=cache_dir)
        self._task, self._digest = thinned(task), task.digest
        defaults = recipe_defaults(task.kind, embedded=False)
        self._recipe = Recipe.model_validate({**defaults, "width": WIDTH})
        self._rows = {(row["loss"], row["seed"], row["horizon_epochs"]): row for row in read_rows(NAME)}
        first = next(iter(self._rows.values()), None)
        self._numerics = (
            probe(task, self._recipe, threads=1) if first is None else Numerics.model_validate(first["numerics"])
        )
        if first is not None and first["data_digest"] != task.digest:
            raise ValueError(f"the rows are of other data: their digest is {first['data_digest']}, not {task.digest}")

    def run(self) -> None:
        """All seeds of a loss, as long as it lives; then, for the living ones, the horizon of one epoch."""
        living: list[tuple[int, LossSpec]] = []
        for index, spec in enumerate(candidates()):
            if len(living) == LOSSES:
                break
            if all(_lives(self._row(index, spec, seed, self._recipe.horizon_epochs)) for seed in SEEDS):
                living.append((index, spec))
        for index, spec in living:
            for seed in SEEDS:
                self._row(index, spec, seed, 1)

    def _row(self, index: int, spec: LossSpec, seed: int, horizon: int) -> Row:
        if (index, seed, horizon) in self._rows:
            return self._rows[index, seed, horizon]
        recipe = self._recipe.model_copy(update={"horizon_epochs": horizon})
        schedule = LossSchedule.constant(spec)
        outcome, _ = train(
            schedule, self._task, recipe=recipe, numerics=self._numerics, seed=seed, epochs=recipe.horizon_epochs
        )
        about = {
            "data": "omniglot",
            "data_digest": self._digest,
            "classes": CLASSES,
            "image_size": IMAGE_SIZE,
            "recipe": recipe.model_dump(mode="json"),
            "numerics": self._numerics.model_dump(mode="json"),
        }
        row = append_row(NAME, {**content(index, spec, seed, horizon, outcome), **about})
        print(json.dumps({key: row[key] for key in ("loss", "seed", "horizon_epochs", "seconds", "error", "collapse")}))
        return row


def _lives(row: Row) -> bool:
    return row["error"] is None and row["collapse"] is None


def scores(rows: Sequence[Row]) -> tuple[dict[tuple[str, str], Floats], Floats]:
    """By budget and reward the scores L×S of the losses that lived under every seed, and their final scores L×S."""
    by_key = {(row["loss"], row["seed"], row["horizon_epochs"]): row for row in rows}
    horizon = max(row["horizon_epochs"] for row in rows)
    complete = [
        loss
        for loss in sorted({row["loss"] for row in rows})
        if all((loss, seed, horizon) in by_key and _lives(by_key[loss, seed, horizon]) for seed in SEEDS)
    ]
    grid = [[by_key[loss, seed, horizon] for seed in SEEDS] for loss in complete]
    final_LS = np.array([[row["choice"][FINAL] for row in line] for line in grid])
    found: dict[tuple[str, str], Floats] = {
        (f"epoch {epoch + 1} of {horizon}", reward): np.array(
            [[r["reward"][epoch][reward] for r in line] for line in grid]
        )
        for epoch in range(horizon)
        for reward in REWARDS
    }
    if all((loss, seed, 1) in by_key and by_key[loss, seed, 1]["error"] is None for loss in complete for seed in SEEDS):
        short = [[by_key[loss, seed, 1] for seed in SEEDS] for loss in complete]
        found |= {
            ("epoch 1 of 1", reward): np.array([[r["reward"][0][reward] for r in line] for line in short])
            for reward in REWARDS
        }
    return found, final_LS


def table(rows: Sequence[Row], resamples: int = RESAMPLES) -> pd.DataFrame:
    """One row a budget and reward; the reference of `gain` is the final score's own metric at the same budget."""
    found, final_LS = scores(rows)
    draws_RL = draw_losses(len(final_LS), resamples, np.random.default_rng(0))
    lines = []
    for (budget, reward), proxy_LS in found.items():
        judged = judge(proxy_LS, found[budget, FINAL], final_LS, draws_RL)
        lines.append(
            {
                "budget": budget,
                "reward": reward,
                **_columns("agreement", judged.agreement),
                **_columns("corrected", judged.corrected),
                **_columns(f"gain over {FINAL}", judged.gain),
                **_columns("top-1 regret", judged.regret),
                "range / sd": round(judged.signal_to_noise, 2),
                "losses": len(final_LS),
                "reliability of one seed": round(float(intraclass(final_LS)), 3),
            }
        )
    return pd.DataFrame(lines)


def _columns(name: str, found: Interval) -> dict[str, float]:
    return {name: round(found.value, 4), f"{name} low": round(found.low, 4), f"{name} high": round(found.high, 4)}


def picture(frame: pd.DataFrame) -> str:
    """A page with one line a reward: corrected agreement by budget."""
    from plotly import graph_objects, io

    figure = graph_objects.Figure()
    for reward, part in frame.groupby("reward", sort=False):
        value = part["corrected"]
        bars = {
            "array": part["corrected high"] - value,
            "arrayminus": value - part["corrected low"],
            "symmetric": False,
        }
        figure.add_scatter(x=part["budget"], y=value, name=str(reward), error_y={**bars, "thickness": 0.8})
    figure.update_layout(
        title="Rank correlation with the final score, corrected for its unreliability (95 % over losses)",
        xaxis_title="budget",
        yaxis_title="Spearman",
    )
    page: str = io.to_html(figure, include_plotlyjs="cdn")
    return page


def main() -> None:
    """Train what is lacking, then write table and picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--report", action="store_true", help="train nothing")
    arguments = parser.parse_args()
    if not arguments.report:
        torch.set_num_threads(1)
        Study().run()
    frame = table(read_rows(NAME))
    frame.to_csv(RESULTS / f"{NAME}.csv", index=False)
    (RESULTS / f"{NAME}.html").write_text(picture(frame), encoding="utf-8")
    print(frame.to_string(index=False))


if __name__ == "__main__":
    main()
