"""Lists of pairs to verify, as Labeled Faces in the Wild has them, and their accuracy in folds.

P pairs in F folds.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt

from trainers.formats.pair_sets import PairSet
from trainers.image_source import DataError, ImageSource

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class PairList:
    """The images of each pair by (identity, number from 1 on), which pairs are genuine, and in which fold each is."""

    first: Sequence[tuple[str, int]]
    second: Sequence[tuple[str, int]]
    genuine_P: Bools
    fold_P: Ints


def read_pair_list(path: Path) -> PairList:
    """The pairs of a `pairs.txt`: first the numbers of folds and of pairs of each kind in one (a single number: those
    of the only fold), then fold by fold the genuine pairs (`name i j`) and as many impostor pairs (`name i name j`),
    separated by tabs.

    Raises `DataError` for any other content.
    """
    try:
        lines = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error}); give a list of pairs") from error
    head = lines[0] if lines else []
    if len(head) not in (1, 2) or not all(map(_is_count, head)):
        raise DataError(f"{path} must begin with the number of folds and of pairs of each kind, separated by a tab")
    folds, each = (1, int(head[0])) if len(head) == 1 else (int(head[0]), int(head[1]))
    if len(lines) - 1 != 2 * folds * each:
        raise DataError(f"{path} promises {2 * folds * each} pairs, but has {len(lines) - 1}")
    first, second = [], []
    for number, line in enumerate(lines[1:]):
        genuine = number % (2 * each) < each
        name, *others = line
        right = [name, others[0], name, others[1]] if genuine and len(line) == 3 else line
        if len(line) != (3 if genuine else 4) or not (_is_count(right[1]) and _is_count(right[3])):
            kind = "genuine pair (name, i, j)" if genuine else "impostor pair (name, i, name, j)"
            raise DataError(f"pair {number + 1} of {path} is no {kind}, separated by tabs")
        first.append((right[0], int(right[1])))
        second.append((right[2], int(right[3])))
    number_P = np.arange(len(first))
    return PairList(first=first, second=second, genuine_P=number_P % (2 * each) < each, fold_P=number_P // (2 * each))


def _is_count(word: str) -> bool:
    return word.isascii() and word.isdecimal() and 0 < len(word) < 10 and int(word) > 0


def rows_by_number(
    wanted: Iterable[tuple[str, int]], names: Sequence[str], known: str, of: str
) -> dict[tuple[str, int], int]:
    """Which of the `names` each (identity, number) means: the folder is the identity, the last digits of the file's
    name before its ending are the number, as in `Ann_Veneman/Ann_Veneman_0003.jpg`.

    Raises `DataError` for one that none or several of them fit, naming the set, `known`, and the list, `of`.
    """
    rows_of: dict[tuple[str, int], list[int]] = {image: [] for image in wanted}
    for row, name in enumerate(names):
        rows_of.get((PurePosixPath(name).parent.name, _number_of(name)), []).append(row)
    for (identity, number), rows in rows_of.items():
        if not rows:
            raise DataError(f"{known} has no image {number} of {identity}, which {of} names")
        if len(rows) > 1:
            one, two = (names[row] for row in rows[:2])
            raise DataError(
                f"{known} has {one} and {two}, either of which may be the image {number} of {identity} that {of} "
                "names; leave one out"
            )
    return {image: rows[0] for image, rows in rows_of.items()}


def _number_of(name: str) -> int:
    """The number in a file's name; 0 where it has none."""
    digits = PurePosixPath(name).stem.rpartition("_")[2]
    return int(digits) if _is_count(digits) else 0


def pair_set(pairs: PairList, source: ImageSource) -> PairSet:
    """The pairs with their images, as `write_pairs` takes them. Raises `DataError` where none or several images
    of `source` fit."""
    names = source.names(source.files)
    wanted = [image for both in zip(pairs.first, pairs.second, strict=True) for image in both]
    row_of = rows_by_number(wanted, names, str(source.path), "the list of pairs")
    with source.reader() as read:
        contents = {image: read(names[row]) for image, row in row_of.items()}
    return PairSet(images=[contents[image] for image in wanted], genuine_P=pairs.genuine_P)


def accuracy_by_fold(score_P: npt.NDArray[np.float32], genuine_P: Bools, fold_P: Ints) -> Floats:
    """The accuracy in each fold under the threshold that suits all other folds best, F (Huang et al. 2007, View 2).

    A pair is accepted when its score lies strictly above the threshold. Every threshold that tells two scores apart is
    tried: halfway between neighbours, below all and above all; of equally good ones the lowest is taken. Raises
    `ValueError` for fewer than two folds.
    """
    folds = np.unique(fold_P)
    if len(folds) < 2:
        raise ValueError("a threshold from the other folds needs two folds or more")
    accuracy = []
    for fold in folds:
        here = fold_P == fold
        threshold = _best_threshold(score_P[~here], genuine_P[~here])
        # in float64: a threshold between neighbours of float32 would be rounded onto one of them
        accuracy.append(((score_P[here].astype(np.float64) > threshold) == genuine_P[here]).mean())
    return np.array(accuracy)


def _best_threshold(score_P: npt.NDArray[np.float32], genuine_P: Bools) -> float:
    rising, first, count = np.unique(score_P.astype(np.float64), return_inverse=True, return_counts=True)
    genuine = np.bincount(first, weights=genuine_P, minlength=len(rising))
    gain = np.concatenate([[0], np.cumsum(count - 2 * genuine)])  # right decisions more than when all are accepted
    thresholds = np.concatenate([[-np.inf], (rising[1:] + rising[:-1]) / 2, [np.inf]])
    return float(thresholds[gain.argmax()])
