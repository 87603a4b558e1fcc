"""`lossearch compare`: a search's winner and the baselines, retrained from scratch over several seeds and tested once.

A comparison is a folder `compare/NN` in its run's, with a journal of its own whose first event holds the whole plan
(`lfs.comparison`). Everything is trained first, through the search's loop and executors; the driver keeps the network,
and nothing else, of each training that stands for an entrant. Only then does the driver open the sealed test
identities, once, which the journal records; it scores every network on them, one at a time, and deletes it. Nothing can
be chosen after that look: a killed comparison goes on with the same networks and the same resamples.
"""

import contextlib
import hashlib
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lfs.checkpoints import Checkpoint, CheckpointStore
from lfs.comparison import FOLDER, KEY, Comparison, clusters_of
from lfs.entrants import Entrant
from lfs.errors import data_refusals, writing_to
from lfs.journal import FILE_NAME, Event, Finished, Journal, JournalError, Opened, Resumed, Scored, Started, read_events
from lfs.launch import OnEvent, Plan, executor_of, held_journal, started, workspace_of
from lfs.runner import default_device
from lfs.search import Past, replay, search
from lfs.sources import versions
from trainers.checkpoint import network_only
from trainers.data import load_sealed_test
from trainers.evaluation import embeddings
from trainers.outcome import Outcome
from trainers.pair_scores import PairScores
from trainers.recipe import FARS, Numerics
from trainers.resampling import draw_clusters, resampled
from trainers.task import LabelledImages
from trainers.verification import MEAN_TAR_FARS, blend, metric_name, verification

_CHANCE_MEAN_TAR = (MEAN_TAR_FARS[1] - MEAN_TAR_FARS[0]) / math.log(MEAN_TAR_FARS[1] / MEAN_TAR_FARS[0])
CHANCE = {
    **{metric_name(far): far for far in FARS},
    "eer": 0.5,
    "auc": 0.5,
    "rank1": 0.0,
    "mean_tar": _CHANCE_MEAN_TAR,
    "blend": blend(0.0, 0.5, _CHANCE_MEAN_TAR),
    "lfw_accuracy": 0.5,
}
"""The scores of a training that diverged: it left no model, and who uses it can but guess."""

_UNLIMITED_BYTES = 2**62


class _NetworkStore(CheckpointStore):
    """Keeps of a checkpoint what the test needs."""

    def save(self, number: int, checkpoint: Checkpoint) -> None:
        """Write the network of a checkpoint so that it is whole or absent."""
        super().save(number, network_only(checkpoint))


def compare(comparison: Comparison, launch: Plan, *, on_event: OnEvent) -> None:
    """Train what is left to train, open the sealed test identities, score every entrant; all of it journalled.

    Raises `JournalError` when another process is at it or a network is gone, `ClusterError` and `SearchStoppedError`
    as a search does.
    """
    folder = comparison.folder
    try:
        with held_journal(folder) as journal, contextlib.chdir(folder):
            for event in journal:
                on_event(event)

            store = _train(comparison, launch, journal, on_event)
            _Test(comparison, launch, journal, store).score_all(on_event)
            store.keep_only([])
    finally:
        with contextlib.suppress(OSError):  # it holds a comparison
            folder.parent.rmdir()


def _train(comparison: Comparison, launch: Plan, journal: Journal, on_event: OnEvent) -> CheckpointStore:
    """Train everything, and return where the networks are."""
    folder = comparison.folder / "checkpoints"
    if any(isinstance(event, Finished) for event in journal):
        return _NetworkStore(folder, budget_bytes=_UNLIMITED_BYTES)
    with executor_of(launch) as (executor, numerics):
        opening = _opening(comparison, launch, numerics)
        journal.append(opening)
        on_event(opening)
        store = _NetworkStore(folder, budget_bytes=_UNLIMITED_BYTES)
        controller = comparison.plan.controller()
        search(controller, executor, journal, store, choose=lambda *_: None, keep_live=True, on_event=on_event)
    return store


def _opening(comparison: Comparison, launch: Plan, numerics: Numerics) -> Started | Resumed:
    if comparison.begun:
        return Resumed(versions=versions())
    plan = {KEY: comparison.plan.model_dump(mode="json")}
    return started(launch.config, launch.task, launch.recipe, numerics, plan)


class _Test:
    """The one look at the sealed test identities."""

    def __init__(self, comparison: Comparison, launch: Plan, journal: Journal, store: CheckpointStore) -> None:
        self._folder, self._plan, self._launch = comparison.folder, comparison.plan, launch
        self._journal, self._store = journal, store
        self._controller = comparison.plan.controller()
        self._past: Past = replay(self._controller, list(journal))
        first = next(event for event in journal if isinstance(event, Started))
        self._numerics = Numerics.model_validate(first.numerics)

    def score_all(self, on_event: OnEvent) -> None:
        """Open the test and score what is not scored yet."""
        config = self._launch.config.data
        run_dir = self._folder.parent.parent
        with data_refusals():
            test = load_sealed_test(config, cache_dir=workspace_of(run_dir) / "cache")
        sealed = test.part
        cluster_N = clusters_of(test.names)[sealed.labels]
        if not any(isinstance(event, Opened) for event in self._journal):
            self._record(_opened(sealed, cluster_N, run_dir, test.unused_images), on_event)
        # the run's search names the resamples, so that they are known before the test is opened
        rng = np.random.default_rng([int(self._plan.search_id, 16), self._plan.number])
        weight_GB = draw_clusters(sealed.labels, cluster_N, self._plan.options.resamples, rng)
        scored = {(event.entrant, event.seed): event for event in self._journal if isinstance(event, Scored)}
        metrics = {event.trial: event.metrics for event in scored.values()}
        for replicate, seed in enumerate(self._plan.seeds):
            for entrant in self._plan.entrants:
                if (entrant.name, seed) in scored:
                    continue
                number = self._controller.champion(entrant, replicate)
                if number is None:
                    raise JournalError(f"the journal is damaged: {entrant.name} has no training under seed {seed}")
                outcome = self._past.told[number]
                if outcome.error is None and number not in metrics:
                    metrics[number] = self._score(number, sealed, cluster_N, weight_GB)
                event = _scored(entrant, seed, number, outcome, metrics.get(number, {}))
                self._record(event, on_event)

    def _record(self, event: Event, on_event: OnEvent) -> None:
        self._journal.append(event)
        on_event(event)

    def _score(
        self,
        number: int,
        sealed: LabelledImages,
        cluster_N: npt.NDArray[np.int64],
        weight_GB: npt.NDArray[np.float64],
    ) -> Mapping[str, float]:
        """The test scores of a trial's network; how they move under the resamples, and curves, go into files."""
        checkpoint = self._store.load(number)
        if checkpoint is None:
            raise JournalError(
                f"the network of trial {number} is gone from {self._folder / 'checkpoints'}; put it back, or start "
                "another comparison with --again"
            )
        recipe = self._launch.recipe.changed(self._past.asked[number].recipe)
        embedded_ND = embeddings(
            checkpoint, sealed.images, recipe=recipe, numerics=self._numerics, device=default_device()
        )
        pairs = PairScores.of(embedded_ND, sealed.labels, cluster_N)
        curve = pairs.curve()
        moves = resampled(pairs, weight_GB, FARS, list(curve["far"]))
        _write(self._folder / _resamples_of(number), moves.scores)
        small = moves.tar_FB.astype(np.float32)
        _write(self._folder / _curves_of(number), {**curve, "tar_move": small, **pairs.histograms()})
        return verification(embedded_ND, sealed.labels, FARS)


def _scored(entrant: Entrant, seed: int, number: int, outcome: Outcome, metrics: Mapping[str, float]) -> Scored:
    """The event of a training; `metrics` are those of its network, if it left one."""
    who = {"entrant": entrant.name, "seed": seed, "trial": number}
    if outcome.diverged:
        return Scored.model_validate({**who, "state": "diverged", "metrics": CHANCE, "why": outcome.error})
    if outcome.error is not None:
        return Scored.model_validate({**who, "state": "failed", "why": outcome.error})
    how = {"state": "collapsed" if outcome.collapse else "trained", "why": outcome.collapse or ""}
    files = {"resamples": _resamples_of(number), "curves": _curves_of(number)}
    return Scored.model_validate({**who, **how, "metrics": metrics, **files})


def _resamples_of(number: int) -> str:
    return f"test/{number:06d}.npz"


def _curves_of(number: int) -> str:
    return f"test/{number:06d}-curves.npz"


def _write(path: Path, arrays: Mapping[str, npt.NDArray[np.floating[Any]]]) -> None:
    """Write arrays so that the file is whole or absent. Raises `UnwritableError`."""
    partial = path.with_suffix(".partial")
    with writing_to(path.parent.parent):
        path.parent.mkdir(exist_ok=True)
        with partial.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(path)


def _opened(sealed: LabelledImages, cluster_N: npt.NDArray[np.int64], run_dir: Path, unused_images: int) -> Opened:
    digest = hashlib.sha256(str(sealed.images.shape).encode())
    digest.update(sealed.images.data)
    digest.update(sealed.labels.data)
    name = digest.hexdigest()[:16]
    return Opened(
        classes=sealed.classes,
        images=len(sealed.labels),
        clusters=int(cluster_N.max()) + 1,
        digest=name,
        opened_before=_opened_before(run_dir, name),
        unused_images=unused_images,
    )


def _opened_before(run_dir: Path, digest: str) -> int:
    """How often comparisons in this workspace have opened the same test identities. Unreadable journals are passed
    over."""
    runs = run_dir.parent.iterdir() if run_dir.parent.name == "runs" else (run_dir,)
    count = 0
    for path in (path for run in runs for path in (run / FOLDER).glob(f"*/{FILE_NAME}")):
        with contextlib.suppress(JournalError):
            count += sum(isinstance(event, Opened) and event.digest == digest for event in read_events(path)[0])
    return count
