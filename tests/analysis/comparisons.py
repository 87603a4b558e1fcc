"""Finished comparisons whose numbers are made up: a folder with journal, resamples and error curves."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from lfs.comparison import CompareOptions, ComparisonPlan
from lfs.entrants import Entrant
from lfs.journal import Asked, Event, Finished, Opened, Scored, Told
from lfs.trial import Trial
from search_space import LossSchedule, LossSpec, catalog
from tests.analysis.journals import started, write_journal
from trainers.outcome import Outcome
from trainers.pair_scores import PairScores
from trainers.recipe import FARS, RewardMetric
from trainers.resampling import draw_clusters, resampled
from trainers.verification import verification

CLASSES, IMAGES_EACH, DIM = 20, 8, 8
RESAMPLES = 100
ENTRANTS: Mapping[str, tuple[LossSpec, float]] = {
    "winner": (catalog.combined(m2_rad=0.25, scale=16), 0.8),
    "softmax": (catalog.softmax(scale=16), 1.0),
    "cosface": (catalog.cosface(margin=0.2, scale=16), 0.9),
    "p2sgrad": (catalog.p2sgrad(), 1.3),
}
"""Each entrant's loss, and the noise in its embeddings."""


def plan(seeds: int, metric: RewardMetric = "tar_at_far_1e-2") -> ComparisonPlan:
    """What a comparison decides before it begins."""
    entrants = tuple(
        Entrant(
            name=name,
            kind="winner" if name == "winner" else "baseline",
            how="made up",
            candidates=(LossSchedule.constant(spec),),
            epochs=6,
        )
        for name, (spec, _) in ENTRANTS.items()
    )
    return ComparisonPlan(
        number=1,
        search_id="c0ffee12",
        options=CompareOptions(seeds=seeds, resamples=RESAMPLES),
        metric=metric,
        entrants=entrants,
        seeds=tuple(range(1, seeds + 1)),
        spare_seeds=((),) * seeds,
        grid_seed=seeds + 1,
        search_images=400_000,
        grouped=False,
    )


def write_compared(
    run_dir: Path,
    *,
    seeds: int = 3,
    curves: bool = True,
    diverged: str = "",
    error: str = "",
    metric: RewardMetric = "tar_at_far_1e-2",
) -> Path:
    """A comparison's folder. Without `curves` it is as older versions wrote it; `diverged` names an entrant whose
    first seed gave no model."""
    folder = run_dir / "compare" / "01"
    (folder / "test").mkdir(parents=True)
    label_N = np.repeat(np.arange(CLASSES), IMAGES_EACH)
    weight_GB = draw_clusters(label_N, label_N, RESAMPLES, np.random.default_rng(0))
    trials: list[Trial] = []
    told: list[Event] = []
    scored: list[Event] = []
    for seed in range(1, seeds + 1):
        for name, (spec, noise) in ENTRANTS.items():
            number = len(trials)
            schedule = LossSchedule.constant(spec)
            trials.append(Trial(number=number, schedule=schedule, seed=seed, epochs=6, name=name))
            told.append(Told(trial=number, outcome=Outcome(reward=0.5, metrics={}, seconds=1.0, images=12_000)))
            if name == diverged and seed == 1:
                chance = {
                    **{f"tar_at_far_1e-{k}": 10.0**-k for k in (1, 2, 3, 4)},
                    "eer": 0.5,
                    "auc": 0.5,
                    "rank1": 0.0,
                }
                lost = {"state": "diverged", "metrics": chance, "why": error or "diverged: the loss is not finite"}
                scored.append(Scored.model_validate({"entrant": name, "seed": seed, "trial": number, **lost}))
                continue
            rng = np.random.default_rng(seed)
            centre_CD = rng.standard_normal((CLASSES, DIM))
            x_ND = (centre_CD[label_N] + noise * rng.standard_normal((len(label_N), DIM))).astype(np.float32)
            pairs = PairScores.of(x_ND, label_N, label_N)
            curve = pairs.curve()
            moves = resampled(pairs, weight_GB, FARS, list(curve["far"]))
            files = {"resamples": f"test/{number}.npz", "curves": f"test/{number}-curves.npz" if curves else ""}
            np.savez(folder / files["resamples"], allow_pickle=False, **moves.scores)
            if curves:
                np.savez(
                    folder / files["curves"], allow_pickle=False, **curve, tar_move=moves.tar_FB, **pairs.histograms()
                )
            metrics = verification(x_ND, label_N, FARS)
            who = {"entrant": name, "seed": seed, "trial": number, "state": "trained"}
            scored.append(Scored.model_validate({**who, "metrics": metrics, **files}))
    events: list[Event] = [
        started(comparison=plan(seeds, metric).model_dump(mode="json")).model_copy(update={"search_id": "c0mpare"}),
        Asked(count=len(trials), trials=tuple(trials)),
        *told,
        Finished(winner=None),
        Opened(classes=CLASSES, images=len(label_N), clusters=CLASSES, digest="ab12", opened_before=0),
        *scored,
    ]
    write_journal(folder, events)
    return folder
