"""Embeddings of any network, as an `.npz` holds them, and templates made of several images.

N images, D embedding, T templates.
"""

import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from trainers.image_source import DataError

Column = npt.NDArray[np.str_]
Floats32 = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

_FINITE_ROWS = 65_536
"""Rows that are looked at together, so that the check needs no array as large as the embeddings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageTable:
    """What is known of each of N images: texts of length N by the name of the column, at least one."""

    name: str
    columns: Mapping[str, Column] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def column(self, name: str, purpose: str) -> Column:
        """The column; where there is none, a `DataError` that says what it was wanted for."""
        if name not in self.columns:
            known = ", ".join(["embeddings", *self.columns])
            raise DataError(f"{self.name} has no array '{name}', which {purpose}; it has {known}")
        return self.columns[name]

    def rows_of(self, names: Column, purpose: str) -> Ints:
        """The rows of these images: by `templates` where the set has them, else by `paths`, else by number from 0 on.

        Raises `DataError` for a name that no image or several images have.
        """
        key = next((key for key in ("templates", "paths") if key in self.columns), None)
        known_N = np.arange(len(self)).astype(str) if key is None else self.columns[key]
        order_N = np.argsort(known_N, kind="stable")
        rising_N = known_N[order_N]
        first, last = (np.searchsorted(rising_N, names, side=side) for side in ("left", "right"))
        wrong = np.flatnonzero(last - first != 1)
        if len(wrong):
            name, count = names[wrong[0]], int((last - first)[wrong[0]])
            of = (
                "neither 'templates' nor 'paths', so that its rows go by number, and no such row"
                if key is None
                else f"{count} entries of '{key}' of that name, which are such as '{known_N[0]}'"
            )
            raise DataError(f"{purpose} names '{name}', but {self.name} has {of}; one is needed")
        rows: Ints = order_N[first]
        return rows


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingSet(ImageTable):
    """N embeddings with what is known of each."""

    embeddings_ND: Floats32

    def __len__(self) -> int:
        return len(self.embeddings_ND)

    def labels(self) -> Ints:
        """The identity of each image as a number from 0 on."""
        return np.unique(self.column("labels", "says who is in each image"), return_inverse=True)[1]

    def only(self, rows: slice | npt.NDArray[np.bool_] | Ints) -> "EmbeddingSet":
        """The set of these rows."""
        kept = {name: values[rows] for name, values in self.columns.items()}
        return EmbeddingSet(name=self.name, embeddings_ND=self.embeddings_ND[rows], columns=kept)


def read_embeddings(path: Path) -> EmbeddingSet:
    """The embeddings in an `.npz`: `embeddings` (N×D numbers), and as many texts or whole numbers in each of the other
    arrays, of which `labels`, `templates`, `media`, `paths` and `groups` mean something.

    `flipped` (N×D) are embeddings of the same images mirrored: the mean of both takes the image's place. Raises
    `DataError` for anything else, for embeddings that are not finite, and for one without a direction (all 0).
    """
    if path.suffix != ".npz":
        raise DataError(f"{path} must be an .npz with the arrays embeddings and labels, as numpy.savez writes it")
    arrays = _arrays(path)
    if "embeddings" not in arrays:
        raise DataError(f"{path} lacks the array embeddings; it has {', '.join(arrays)[:200] or 'none'}")
    embeddings_ND = _embeddings(arrays.pop("embeddings"), "embeddings", path)
    if "flipped" in arrays:
        flipped_ND = _embeddings(arrays.pop("flipped"), "flipped", path)
        if flipped_ND.shape != embeddings_ND.shape:
            raise DataError(f"{path} has embeddings of shape {embeddings_ND.shape}, but flipped of {flipped_ND.shape}")
        embeddings_ND = np.float32(0.5) * (embeddings_ND + flipped_ND)
    _check_values(embeddings_ND, path)
    columns = {name: _column(array, name, len(embeddings_ND), path) for name, array in arrays.items()}
    return EmbeddingSet(name=str(path), embeddings_ND=embeddings_ND, columns=columns)


def _arrays(path: Path) -> dict[str, npt.NDArray[np.generic]]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as opened:
            return {name: opened[name] for name in opened.files}
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error}); give an .npz of embeddings") from None
    except (ValueError, EOFError, KeyError, TypeError, zipfile.BadZipFile, zlib.error, AttributeError) as error:
        reason = " ".join(str(error).split())[:120]
        raise DataError(f"{path} is no whole .npz of plain arrays ({reason}); write it with numpy.savez") from None


def _embeddings(array: npt.NDArray[np.generic], name: str, path: Path) -> Floats32:
    if array.ndim != 2 or array.dtype.kind != "f" or 0 in array.shape:
        raise DataError(f"{path}: {name} must be images × dimensions of floats, but is {array.shape} of {array.dtype}")
    with np.errstate(over="ignore"):  # what overflows is refused as not finite
        return array.astype(np.float32, copy=False)


def _check_values(embeddings_ND: Floats32, path: Path) -> None:
    for start in range(0, len(embeddings_ND), _FINITE_ROWS):
        rows = embeddings_ND[start : start + _FINITE_ROWS]
        failing = (~np.isfinite(rows).all(1), "is not finite"), (~rows.any(1), "has no direction: it is 0")
        for wrong_R, what in failing:
            if wrong_R.any():
                raise DataError(f"{path}: the embedding of row {start + int(wrong_R.argmax())} {what}; leave it out")


def _column(array: npt.NDArray[np.generic], name: str, images: int, path: Path) -> Column:
    if array.shape != (images,) or array.dtype.kind not in "iuUb":
        raise DataError(
            f"{path}: {name} must be {images} texts or whole numbers, one an embedding, but is {array.shape} of "
            f"{array.dtype}"
        )
    return array.astype(np.str_)


def pooled(images: EmbeddingSet) -> EmbeddingSet:
    """One embedding a template: the mean over the images of each of its `media`, then over media, of unit length.

    Whitelam et al. 2017 (IJB-B) and Maze et al. 2018 (IJB-C) compare templates; the two means are those of the field's
    code (InsightFace, `evaluation/IJB`, with image norms kept). Without `media` every image is one. A set without
    `templates` comes back as it is. Columns that are the same throughout every template are kept, others are dropped.
    Raises `DataError` for a template of two `labels`, or whose mean is 0.
    """
    if "templates" not in images.columns:
        return images
    name_T, first_T, template_N = np.unique(images.columns["templates"], return_index=True, return_inverse=True)
    media = images.columns.get("media", np.arange(len(images)).astype(np.str_))
    _, first_M, medium_N = np.unique(
        np.stack([template_N, np.unique(media, return_inverse=True)[1]]), axis=1, return_index=True, return_inverse=True
    )
    mean_MD = _means(images.embeddings_ND, medium_N.ravel())
    mean_TD = _means(mean_MD, template_N[first_M])
    length_T = np.linalg.norm(mean_TD, axis=1)
    if (length_T == 0).any():
        raise DataError(f"{images.name}: the images of template {name_T[length_T.argmin()]} cancel out; leave it out")
    columns = {"templates": name_T}
    for name, values in images.columns.items():
        if (values == values[first_T][template_N]).all():
            columns[name] = values[first_T]
        elif name == "labels":
            wrong = template_N[np.argmax(values != values[first_T][template_N])]
            raise DataError(f"{images.name}: template {name_T[wrong]} has images of several labels; it must have one")
    return EmbeddingSet(
        name=images.name, embeddings_ND=(mean_TD / length_T[:, None]).astype(np.float32), columns=columns
    )


def _means(value_ND: npt.NDArray[np.floating], of_N: Ints) -> npt.NDArray[np.float64]:
    """The mean of the rows of each number, summed in float64."""
    order_N = np.argsort(of_N, kind="stable")
    starts = np.flatnonzero(np.diff(of_N[order_N], prepend=-1))
    summed_MD = np.add.reduceat(value_ND[order_N].astype(np.float64), starts, axis=0)
    mean_MD: npt.NDArray[np.float64] = summed_MD / np.bincount(of_N)[:, None]
    return mean_MD
