"""Verification over all pairs of images, each image counting once (`trainers.verification`), with intervals.

N images, F false accept rates, B resamples.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from trainers.image_source import DataError
from trainers.pair_scores import PairScores
from trainers.protocols.embedding_sets import EmbeddingSet
from trainers.protocols.measures import CURVE_FARS, Curve, Evaluation, Measure, few_accepts, resolved
from trainers.protocols.pair_histogram import BINS, PairHistogram
from trainers.resampling import draw_clusters, resampled
from trainers.verification import verification

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

EXACT_PAIRS = 20_000_000
"""Up to so many pairs (6325 images) all scores are held and sorted, in .8 GB; more go into a histogram."""

_FEW_IDENTITIES = 20


def evaluate_all_pairs(
    images: EmbeddingSet,
    *,
    fars: Sequence[float],
    resamples: int,
    rng: np.random.Generator,
    memory_bytes: int = 2**28,
    device: str = "cpu",
    exact_pairs: int = EXACT_PAIRS,
) -> Evaluation:
    """`tar_at_far_*` for the rates that so few impostor pairs resolve, `eer`, `auc` and `rank1` over all pairs.

    The definitions are those of `trainers.verification`; intervals resample identities as `trainers.resampling` has it.
    With more than `exact_pairs` pairs impostors are counted in a histogram of cosines, in memory as `PairHistogram.of`
    says, and intervals resample blocks of identities. Embeddings that are all the same have TAR 0, EER and AUC ½ and
    rank-1 0; a single genuine pair has TAR 0 or 1 with an interval of no width. Raises `DataError` where there is no
    genuine or no impostor pair.
    """
    label_N = images.labels()
    size_L = np.bincount(label_N)
    genuine = int((size_L * (size_L - 1) // 2).sum())
    impostors = len(label_N) * (len(label_N) - 1) // 2 - genuine
    if not genuine or not impostors:
        raise DataError(
            f"{images.name} has {genuine} pairs of one identity and {impostors} of two among {len(label_N)} images; "
            "verification needs pairs of both kinds"
        )
    known = resolved(fars, impostors)
    if genuine + impostors <= exact_pairs:
        measures, curve = _exact(images, label_N, known, resamples, rng)
        notes = ["scores are exact; intervals resample identities"]
    else:
        histogram = PairHistogram.of(images.embeddings_ND, label_N, rng=rng, memory_bytes=memory_bytes, device=device)
        measures, curve = _binned(histogram, known, resamples, rng)
        worst = max((histogram.error_at(far) for far in known), default=0.0)
        notes = [
            f"impostor pairs counted in {BINS} bins of cosine: a TAR may be too low by {worst:.1e} at most",
            f"intervals resample {len(histogram.hits_K)} blocks of identities",
        ]
    notes.insert(0, "every image with a mate counts once: a genuine pair weighs 1/(n − 1) for each of its two images")
    if len(size_L) < _FEW_IDENTITIES:
        notes.append(f"{len(size_L)} identities: intervals over so few are too narrow")
    return Evaluation(
        protocol="all pairs",
        counts={
            "images": len(label_N),
            "identities": len(size_L),
            "genuine pairs": genuine,
            "impostor pairs": impostors,
        },
        measures=measures,
        notes=[*notes, *few_accepts("FAR", fars, impostors)],
        curve=curve,
    )


def _exact(
    images: EmbeddingSet, label_N: Ints, fars: Sequence[float], resamples: int, rng: np.random.Generator
) -> tuple[Mapping[str, Measure], Curve]:
    scores = verification(images.embeddings_ND, label_N, fars)
    pairs = PairScores.of(images.embeddings_ND, label_N, label_N)
    curve_fars = resolved(CURVE_FARS, len(pairs.impostor_P))
    weight_GB = draw_clusters(label_N, label_N, resamples, rng)
    moves = resampled(pairs, weight_GB, fars, curve_fars)
    names = [name for name in scores if name.startswith("tar_at_far")] + ["eer", "auc", "rank1"]
    measures = {name: Measure.moved(scores[name], moves.scores[name]) for name in names}
    curve = pairs.curve(curve_fars)
    return measures, Curve.moved(curve["far"], curve["tar"], moves.tar_FB)


def _binned(
    histogram: PairHistogram, fars: Sequence[float], resamples: int, rng: np.random.Generator
) -> tuple[Mapping[str, Measure], Curve]:
    roc = histogram.roc()
    blocks = len(histogram.hits_K)
    weight_KB = np.append(np.ones((blocks, 1)), histogram.draw(resamples, rng), axis=1)
    drawn, rank1_B = histogram.resampled(weight_KB), histogram.rank1(weight_KB)
    sampled = drawn.scores(fars)
    measures = {name: Measure.sampled(float(value[0]), sampled[name]) for name, value in roc.scores(fars).items()}
    measures["rank1"] = Measure.sampled(float(rank1_B[0]), rank1_B)
    return measures, Curve.sampled(roc, drawn, histogram.impostor_pairs)
