"""Identification: whose is a probe, among all that a gallery knows? Closed-set ranks, open-set TPIR at FPIR, and the
million distractors of MegaFace.

A probe is mated when the gallery has its identity. A tie between a mate and a stranger is a miss.

P probes, G gallery entries, K identities among probes, T ranks, B resamples, M pairs of a probe and a mate.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array

from trainers.image_source import DataError
from trainers.protocols.embedding_sets import EmbeddingSet
from trainers.protocols.listed_pairs import cosines
from trainers.protocols.matching import Matches, mates, nearest
from trainers.protocols.measures import Curve, Evaluation, Measure, few_accepts, resolved
from trainers.protocols.roc import Roc, cells, merged
from trainers.resampling import draw_units
from trainers.verification import rate_name

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

RANKS = (1, 5)


def evaluate_identification(
    probes: EmbeddingSet,
    gallery: EmbeddingSet,
    *,
    distractors: EmbeddingSet | None = None,
    fpirs: Sequence[float],
    resamples: int,
    rng: np.random.Generator,
    ranks: Sequence[int] = RANKS,
    memory_bytes: int = 2**28,
    device: str = "cpu",
) -> Evaluation:
    """Closed set: `rank1`, `rank5`. Open set, where some probes are not mated: `tpir_at_fpir_*` (also called DIR@FAR).

    Rank k is the share of the mated probes whose best mate is outscored, or equalled, by fewer than k entries of other
    identities; with one entry an identity, as in IJB-B/C's galleries of templates, that is the usual rank. TPIR at a
    FPIR (Whitelam et al. 2017, Maze et al. 2018; 1 − FNIR) is the share of the mated probes whose nearest entry is a
    mate and scores above the threshold, the lowest at which at most the share FPIR of the other probes has any entry
    above it. Entries of `distractors` are strangers to every probe, whatever their labels.

    Intervals resample the identities of the probes, the threshold found anew; the gallery stays. Memory as in
    `matching.nearest`. Raises `DataError` where no probe is mated.
    """
    who_P = probes.column("labels", "says who each probe is")
    mates_2M = mates(who_P, gallery.column("labels", "says whose each gallery entry is"))
    mated_P = np.bincount(mates_2M[0], minlength=len(who_P)) > 0
    if not mated_P.any():
        raise DataError(f"none of the {len(who_P)} probes of {probes.name} has its identity in {gallery.name}")
    found = nearest(
        probes.embeddings_ND,
        gallery.embeddings_ND,
        mates_2M,
        keep=max(ranks),
        memory_bytes=memory_bytes,
        device=device,
    )
    if distractors is not None:
        found = _joined(found, _strangers(probes, distractors, max(ranks), memory_bytes, device))
    identity_P = np.unique(who_P, return_inverse=True)[1]
    drawn_KB = _drawn(identity_P, [mated_P, ~mated_P], resamples, rng)
    hits = {f"rank{rank}": found.rank_within(rank)[mated_P] for rank in ranks}
    measures = _shares(hits, identity_P[mated_P], drawn_KB)
    notes = ["a tie between a mate and a stranger is a miss; intervals resample the identities of the probes"]
    strangers, curve = int((~mated_P).sum()), None
    if strangers:
        known = resolved(fpirs, strangers)
        rates, curve = _open_set(found, mated_P, identity_P, known, drawn_KB)
        measures |= rates
        notes += few_accepts("FPIR", fpirs, strangers)
    else:
        notes.append("every probe is mated, so there is no open set")
    counts = {
        "mated probes": int(mated_P.sum()),
        "other probes": strangers,
        "gallery entries": len(gallery),
        **({} if distractors is None else {"distractors": len(distractors)}),
    }
    return Evaluation(protocol="identification", counts=counts, measures=measures, notes=notes, curve=curve)


def evaluate_distractors(
    images: EmbeddingSet,
    distractors: EmbeddingSet,
    *,
    resamples: int,
    rng: np.random.Generator,
    ranks: Sequence[int] = RANKS,
    memory_bytes: int = 2**28,
    device: str = "cpu",
) -> Evaluation:
    """MegaFace's identification (Kemelmacher-Shlizerman et al. 2016): `rank1` and `rank5` among distractors.

    Every image is a probe, and each other image of its identity in turn its only mate among the distractors: the share
    of all these (probe, mate) whose cosine is reached by fewer than k distractors. Intervals resample identities.
    Memory as in `matching.nearest`. Raises `DataError` where no identity has two images.
    """
    who_N = images.column("labels", "says who is in each image")
    mates_2M = mates(who_N, who_N)
    mates_2M = mates_2M[:, mates_2M[0] != mates_2M[1]]
    if not mates_2M.size:
        raise DataError(f"no identity among the {len(who_N)} images of {images.name} has two; one is needed")
    found = _strangers(images, distractors, max(ranks), memory_bytes, device)
    score_M = cosines(images.embeddings_ND, *mates_2M)
    identity_M = np.unique(who_N[mates_2M[0]], return_inverse=True)[1]
    drawn_KB = _drawn(identity_M, [np.ones(len(identity_M), dtype=np.bool_)], resamples, rng)
    hits = {f"rank{rank}": score_M > found.stranger_PT[mates_2M[0], rank - 1] for rank in ranks}
    return Evaluation(
        protocol="identification among distractors",
        counts={
            "images": len(images),
            "identities": len(drawn_KB),
            "probes with a mate": len(score_M),
            "distractors": len(distractors),
        },
        measures=_shares(hits, identity_M, drawn_KB),
        notes=["each image with each of its mates in turn counts once; a tie is a miss; intervals resample identities"],
    )


def _strangers(probes: EmbeddingSet, others: EmbeddingSet, keep: int, memory_bytes: int, device: str) -> Matches:
    """Matches with a gallery that has nobody's mate."""
    nobody = np.empty((2, 0), dtype=np.int64)
    return nearest(
        probes.embeddings_ND, others.embeddings_ND, nobody, keep=keep, memory_bytes=memory_bytes, device=device
    )


def _joined(found: Matches, others: Matches) -> Matches:
    """Matches with both galleries at once."""
    both_PT = np.concatenate([found.stranger_PT, others.stranger_PT], axis=1)
    highest_PT = -np.sort(-both_PT, axis=1)[:, : found.stranger_PT.shape[1]]
    return Matches(mate_P=np.maximum(found.mate_P, others.mate_P), stranger_PT=highest_PT)


def _drawn(identity_P: Ints, kinds: Sequence[Bools], resamples: int, rng: np.random.Generator) -> Floats:
    """How often each identity counts: once in the first column, then as drawn, with some of every kind there is."""
    identities = int(identity_P.max()) + 1
    of_kind = [np.bincount(identity_P[kind_P], minlength=identities) for kind_P in kinds if kind_P.any()]

    def usable(weight_KB: Floats) -> Bools:
        every_B: Bools = np.all([count_K @ weight_KB > 0 for count_K in of_kind], axis=0)
        return every_B

    return np.append(np.ones((identities, 1)), draw_units(usable, identities, resamples, rng), axis=1)


def _shares(hits: Mapping[str, Bools], identity_P: Ints, drawn_KB: Floats) -> dict[str, Measure]:
    """The share of hits with its interval."""
    total_B = np.bincount(identity_P, minlength=len(drawn_KB)) @ drawn_KB
    found = {}
    for name, hit_P in hits.items():
        share_B = (np.bincount(identity_P[hit_P], minlength=len(drawn_KB)) @ drawn_KB) / total_B
        found[name] = Measure.sampled(float(hit_P.mean()), share_B)
    return found


def _open_set(
    found: Matches, mated_P: Bools, identity_P: Ints, fpirs: Sequence[float], drawn_KB: Floats
) -> tuple[dict[str, Measure], Curve]:
    """TPIR at each FPIR, and along a curve.

    That is the TAR at a FAR of the scores of mates (−inf for those that are not nearest) as genuine and of the nearest
    strangers of probes without a mate as impostors.
    """
    hit_P = np.where(found.rank_within(1), found.mate_P, -np.inf)
    score_P = np.where(mated_P, hit_P, found.stranger_PT[:, 0]).astype(np.float32)
    exact = Roc.of(score_P, mated_P)
    _, cell_P = cells(score_P)
    others_C = np.bincount(cell_P[~mated_P], minlength=int(cell_P.max()) + 1)
    cell_P = merged(others_C.astype(np.float64))[cell_P]
    drawn = Roc.of_cells(*(_counted(cell_P, kind_P, identity_P, drawn_KB) for kind_P in (mated_P, ~mated_P)))
    measures = {
        rate_name("tpir_at_fpir", fpir): Measure.sampled(float(exact.tar_at(fpir)[0]), drawn.tar_at(fpir))
        for fpir in fpirs
    }
    return measures, Curve.sampled(exact, drawn, int((~mated_P).sum()))


def _counted(cell_P: Ints, kind_P: Bools, identity_P: Ints, drawn_KB: Floats) -> Floats:
    """How many probes of a kind are in each cell when identities count so often, C×B."""
    shape = (int(cell_P.max()) + 1, int(identity_P.max()) + 1)
    ones_P = np.ones(int(kind_P.sum()))
    counted_CK = coo_array((ones_P, (cell_P[kind_P], identity_P[kind_P])), shape=shape).tocsr()
    return np.asarray(counted_CK @ drawn_KB, dtype=np.float64)
