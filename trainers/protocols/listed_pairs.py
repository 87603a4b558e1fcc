"""Verification of listed pairs, as Labeled Faces in the Wild (Huang et al. 2007, View 2) and IJB-B/C's 1:1 lists have
them: accuracy in folds, TAR at FAR, EER, AUC.

P pairs, F folds, U units that are resampled, B resamples, C cells of the error curve.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri, stdtrit

from trainers.formats.arrow_tables import Texts, csv_line, read_csv_texts
from trainers.formats.pair_sets import read_pairs
from trainers.image_source import DataError
from trainers.pair_protocol import accuracy_by_fold, read_pair_list, rows_by_number
from trainers.protocols.embedding_sets import EmbeddingSet, ImageTable
from trainers.protocols.measures import LEVEL, Curve, Evaluation, Measure, few_accepts, resolved
from trainers.protocols.roc import Roc, cells, merged
from trainers.resampling import draw_units

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float32]

FOLDS = 10
"""Of a list that says nothing of folds."""

_FEWEST_FOLDS = 5
"""With fewer, pairs are resampled in place of folds."""
_CHUNK_PAIRS = 65_536
_WORDS = {"1": True, "true": True, "0": False, "false": False}


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedPairs:
    """The rows of both images of each pair, which pairs are genuine, and in which fold each is, from 0 on."""

    first_P: Ints
    second_P: Ints
    genuine_P: Bools
    fold_P: Ints

    def only(self, rows: slice | Bools) -> "ListedPairs":
        """Those of the pairs, in their folds."""
        return ListedPairs(
            first_P=self.first_P[rows],
            second_P=self.second_P[rows],
            genuine_P=self.genuine_P[rows],
            fold_P=self.fold_P[rows],
        )


def read_listed_pairs(path: Path, images: ImageTable) -> ListedPairs:
    """The pairs in a `pairs.txt` of LFW, a `.bin` of InsightFace, or a CSV, and which rows of `images` they compare.

    - `pairs.txt` names an image by identity and number: found by `paths`, of which the folder is the identity and the
      last digits of the file's name are the number (`Ann_Veneman/Ann_Veneman_0003.jpg`).
    - `.bin`: `images` are its own in order, two a pair; ten folds of consecutive pairs, as InsightFace's code has them.
    - CSV: `first,second,genuine[,fold]`; images as in `ImageTable.rows_of`, `genuine` 1 or 0.

    Where a list has no folds, its genuine and its impostor pairs go into ten folds in order. Raises `DataError`.
    """
    reader = {".txt": _from_text, ".bin": _from_bin, ".csv": _from_csv}.get(path.suffix)
    if reader is None:
        raise DataError(f"a list of pairs is a pairs.txt, a .bin or a .csv, but got {path}")
    return reader(path, images)


def _from_text(path: Path, images: ImageTable) -> ListedPairs:
    listed = read_pair_list(path)
    paths = images.column("paths", f"{path} needs to find images by identity and number")
    row_of = rows_by_number([*listed.first, *listed.second], paths.tolist(), images.name, str(path))
    first_P, second_P = (
        np.array([row_of[image] for image in side], dtype=np.int64) for side in (listed.first, listed.second)
    )
    folds = listed.fold_P if listed.fold_P.any() else _dealt(listed.genuine_P)
    return ListedPairs(first_P=first_P, second_P=second_P, genuine_P=listed.genuine_P, fold_P=folds)


def _from_bin(path: Path, images: ImageTable) -> ListedPairs:
    genuine_P = read_pairs(path).genuine_P
    if len(images) != 2 * len(genuine_P):
        raise DataError(
            f"{path} has {2 * len(genuine_P)} images, two a pair, but {images.name} has {len(images)} embeddings; it "
            "must have one for each image, in the same order"
        )
    return consecutive_pairs(genuine_P)


def consecutive_pairs(genuine_P: Bools) -> ListedPairs:
    """Pairs of images that follow each other, in `consecutive_folds`, as InsightFace has them."""
    first_P = 2 * np.arange(len(genuine_P))
    fold_P = consecutive_folds(len(genuine_P))
    return ListedPairs(first_P=first_P, second_P=first_P + 1, genuine_P=genuine_P, fold_P=fold_P)


def _from_csv(path: Path, images: ImageTable) -> ListedPairs:
    head = _header(path)
    if head[:3] != ["first", "second", "genuine"] or head[3:] not in ([], ["fold"]):
        raise DataError(f"{path} must begin with first,second,genuine or first,second,genuine,fold, but got {head}")
    columns = read_csv_texts(path, head)
    genuine_P = _booleans(columns["genuine"], path)
    if "fold" in columns:
        fold_P = np.unique(columns["fold"].text_U, return_inverse=True)[1][columns["fold"].code_P]
    else:
        fold_P = _dealt(genuine_P)
    first_P, second_P = (
        images.rows_of(columns[side].text_U, str(path))[columns[side].code_P] for side in ("first", "second")
    )
    return ListedPairs(first_P=first_P, second_P=second_P, genuine_P=genuine_P, fold_P=fold_P)


def _header(path: Path) -> list[str]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return next((row for row in csv.reader(file) if row), [])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read ({error}); give a list of pairs") from None


def _booleans(words: Texts, path: Path) -> Bools:
    known_U = [_WORDS.get(word.strip().lower()) for word in words.text_U.tolist()]
    wrong_P = np.array([known is None for known in known_U], dtype=np.bool_)[words.code_P]
    if wrong_P.any():
        line, text = csv_line(path, 1 + int(wrong_P.argmax()))
        raise DataError(f"line {line} of {path} must have 1 or 0 for genuine, but is {text[:100]!r}")
    return np.array(known_U, dtype=np.bool_)[words.code_P]


def consecutive_folds(pairs: int) -> Ints:
    """Ten folds of consecutive pairs, the first ones longer by one where they are not equal: scikit-learn's `KFold`."""
    sizes = np.full(FOLDS, pairs // FOLDS) + (np.arange(FOLDS) < pairs % FOLDS)
    return np.repeat(np.arange(FOLDS), sizes)


def _dealt(genuine_P: Bools) -> Ints:
    """Ten folds, each with a tenth of the genuine and of the impostor pairs, in order."""
    fold_P = np.empty(len(genuine_P), dtype=np.int64)
    for kind_P in (genuine_P, ~genuine_P):
        fold_P[kind_P] = consecutive_folds(int(kind_P.sum()))
    return fold_P


def cosines(embeddings_ND: Scores, first_P: Ints, second_P: Ints) -> Scores:
    """The cosine of each pair of rows; 0 where one of them has no direction."""
    score_P = np.empty(len(first_P), dtype=np.float32)
    for start in range(0, len(first_P), _CHUNK_PAIRS):
        here = slice(start, start + _CHUNK_PAIRS)
        one_PD, two_PD = (embeddings_ND[rows[here]].astype(np.float64) for rows in (first_P, second_P))
        lengths_P = np.linalg.norm(one_PD, axis=1) * np.linalg.norm(two_PD, axis=1)
        score_P[here] = (one_PD * two_PD).sum(1) / np.maximum(lengths_P, np.finfo(np.float64).tiny)
    return score_P


def evaluate_listed_pairs(
    images: EmbeddingSet, pairs: ListedPairs, *, fars: Sequence[float], resamples: int, rng: np.random.Generator
) -> Evaluation:
    """`accuracy`, `tar_at_far_*` for the rates that so few impostor pairs resolve, `eer` and `auc` over listed pairs.

    A pair is accepted when its cosine lies strictly above the threshold. `accuracy` is the mean over folds under the
    exact threshold that suits the other folds best (no grid of thresholds), its interval Student's t over folds; with
    fewer than two folds it is left out. The others are over all pairs together; their intervals resample folds, whole,
    and are as much wider as so few demand, or where there are fewer than five, genuine and impostor pairs each on
    their own. One genuine pair has TAR 0 or 1
    and an interval of no width. Raises `DataError` where there is no genuine or no impostor pair.
    """
    genuine, impostors = int(pairs.genuine_P.sum()), int((~pairs.genuine_P).sum())
    if not genuine or not impostors:
        raise DataError(f"verification needs pairs of both kinds, but got {genuine} genuine and {impostors} impostor")
    score_P = cosines(images.embeddings_ND, pairs.first_P, pairs.second_P)
    roc, known = Roc.of(score_P, pairs.genuine_P), resolved(fars, impostors)
    folds = len(np.unique(pairs.fold_P))
    by_fold = folds >= _FEWEST_FOLDS
    widening = _widening(folds) if by_fold else 1.0
    drawn = _resampled(score_P, pairs, by_fold, resamples, rng)
    sampled = drawn.scores(known)
    measures = {
        name: Measure.sampled(float(value[0]), sampled[name], widening=widening)
        for name, value in roc.scores(known).items()
    }
    notes = [f"intervals resample {'folds' if by_fold else 'pairs'}", *few_accepts("FAR", fars, impostors)]
    if folds > 1:
        accuracy, note = _accuracy(accuracy_by_fold(score_P, pairs.genuine_P, pairs.fold_P))
        measures, notes = {"accuracy": accuracy, **measures}, [note, *notes]
    else:
        notes.append("no accuracy: a threshold from other folds needs two folds")
    return Evaluation(
        protocol="listed pairs",
        counts={"genuine pairs": genuine, "impostor pairs": impostors, "folds": folds},
        measures=measures,
        notes=notes,
        curve=Curve.sampled(roc, drawn, impostors, widening=widening),
    )


def _widening(folds: int) -> float:
    """By how much a bootstrap over few folds is too narrow: √(n/(n−1)) for the variance, t/z for not knowing it.

    Hesterberg, "What teachers should know about the bootstrap", The American Statistician 69, 2015, section 4.4.
    """
    tail = 1 - LEVEL / 2
    return float(np.sqrt(folds / (folds - 1)) * stdtrit(folds - 1, tail) / ndtri(tail))


def _accuracy(accuracy_F: Floats) -> tuple[Measure, str]:
    """The mean with Student's interval, and LFW's own standard error of the mean in words."""
    mean, error = float(accuracy_F.mean()), float(accuracy_F.std(ddof=1) / np.sqrt(len(accuracy_F)))
    reach = error * float(stdtrit(len(accuracy_F) - 1, 1 - LEVEL / 2))
    note = f"accuracy: {mean:.4f} ± {error:.4f} (standard error over {len(accuracy_F)} folds), interval by Student's t"
    return Measure(value=mean, low=max(mean - reach, 0.0), high=min(mean + reach, 1.0)), note


def _resampled(score_P: Scores, pairs: ListedPairs, by_fold: bool, resamples: int, rng: np.random.Generator) -> Roc:
    """The curve of all pairs in the first column, then of each resample, in at most about `roc.MOST_CELLS` cells."""
    _, cell_P = cells(score_P)
    impostor_C = np.bincount(cell_P[~pairs.genuine_P], minlength=int(cell_P.max()) + 1)
    cell_P = merged(impostor_C.astype(np.float64))[cell_P]
    fold_P = np.unique(pairs.fold_P, return_inverse=True)[1]
    size, units = int(cell_P.max()) + 1, int(fold_P.max()) + 1
    counts = [
        np.bincount(cell_P[kind_P] * units + fold_P[kind_P], minlength=size * units).reshape(size, units)
        for kind_P in (pairs.genuine_P, ~pairs.genuine_P)
    ]
    if not by_fold:
        return Roc.of_cells(*(_redrawn(count_CU.sum(1), resamples, rng) for count_CU in counts))

    def usable(weight_UB: Floats) -> Bools:
        both_B: Bools = np.all([count_CU.sum(0) @ weight_UB > 0 for count_CU in counts], axis=0)
        return both_B

    weight_UB = np.append(np.ones((units, 1)), draw_units(usable, units, resamples, rng), axis=1)
    return Roc.of_cells(*(count_CU @ weight_UB for count_CU in counts))


def _redrawn(count_C: Ints, resamples: int, rng: np.random.Generator) -> Floats:
    """How many pairs of each cell there are, then how many are drawn in each resample of as many pairs."""
    pairs = int(count_C.sum())
    drawn_CB = rng.multinomial(pairs, count_C / pairs, size=resamples).T
    return np.append(count_C[:, None], drawn_CB, axis=1).astype(np.float64)
