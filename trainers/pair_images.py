"""Verification sets as a training scores itself on them: lists of pairs, and the images that they compare.

P pairs of N images, K colour channels, H×W image.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt

from trainers.formats.opening import open_images
from trainers.formats.pair_sets import read_pairs
from trainers.image_cache import OnDecoded, decode_image
from trainers.image_source import DataError, ImageSource, Reader, Store
from trainers.protocols.embedding_sets import ImageTable
from trainers.protocols.listed_pairs import FOLDS, ListedPairs, consecutive_pairs, read_listed_pairs


@dataclass(frozen=True, slots=True, kw_only=True)
class PairFiles:
    """Pairs whose images are not decoded yet: `listed` counts the images of `names`, which `store` holds."""

    names: Sequence[str]
    store: Store
    listed: ListedPairs


@dataclass(frozen=True, slots=True, kw_only=True)
class PairImages:
    """Decoded images, uint8, N×K×H×W, and which of them are compared."""

    images: npt.NDArray[np.uint8]
    listed: ListedPairs


def open_pairs(path: Path, images: Path | None, *, trained_on: Path | None) -> PairFiles:
    """The pairs in the list at `path`: InsightFace's `.bin`, which holds its images, or what `read_listed_pairs` reads.

    The images of the latter are those of the set at `images`, None: of the set `trained_on`, of which it must name no
    training identity. Raises `DataError`.
    """
    if path.suffix == ".bin":
        if images is not None:
            raise DataError(f"{path} holds its own images; leave out {images}")
        return _checked(_of_bin(path), path)
    place = images or trained_on
    if place is None:
        raise DataError(
            f"{path} names images, which the embedded glyphs have none of; say of which set, as in --pairs LIST=IMAGES"
        )
    source = open_images(place)
    found = _of_list(path, source)
    if trained_on is not None and (trained := _trained_set(source, place, trained_on)) is not None:
        _refuse_training_identities(found, trained, path)
    return _checked(found, path)


def _trained_set(source: ImageSource, place: Path, trained_on: Path) -> ImageSource | None:
    """What lies at `trained_on` where it is the set at `place`, or a part or the whole of it, as a zip is of the folder
    that it is in."""
    one, other = place.resolve(), trained_on.resolve()
    if one == other:
        return source
    if not (one.is_relative_to(other) or other.is_relative_to(one)):
        return None
    trained = open_images(trained_on)
    ours, theirs = (set(each.names(each.files)) for each in (source, trained))
    return trained if ours <= theirs or theirs <= ours else None


def _of_bin(path: Path) -> PairFiles:
    pairs = read_pairs(path)
    contents = {f"image {number} of {path}": content for number, content in enumerate(pairs.images)}
    return PairFiles(names=list(contents), store=_Held(contents), listed=consecutive_pairs(pairs.genuine_P))


@dataclass(frozen=True, slots=True)
class _Held(Store):
    contents: Mapping[str, bytes]

    @contextmanager
    def reader(self) -> Iterator[Reader]:
        yield self.contents.__getitem__


def _of_list(path: Path, source: ImageSource) -> PairFiles:
    names = source.names(source.files)
    listed = read_listed_pairs(path, ImageTable(name=str(source.path), columns={"paths": np.array(names)}))
    wanted = np.unique([listed.first_P, listed.second_P])
    first_P, second_P = (np.searchsorted(wanted, rows_P) for rows_P in (listed.first_P, listed.second_P))
    renumbered = replace(listed, first_P=first_P, second_P=second_P)
    return PairFiles(names=[names[row] for row in wanted], store=source.store, listed=renumbered)


def _refuse_training_identities(found: PairFiles, source: ImageSource, path: Path) -> None:
    identities = {PurePosixPath(name).parts[1] for name in found.names}
    if known := sorted(name for name in identities if source.splits.get(name) == "train"):
        raise DataError(
            f"{path} names images of '{known[0]}', whom the network is trained on; give pairs of other identities"
        )


def _checked(found: PairFiles, path: Path) -> PairFiles:
    genuine_P, folds = found.listed.genuine_P, len(np.unique(found.listed.fold_P))
    if len(genuine_P) < FOLDS or genuine_P.all() or not genuine_P.any() or folds < 2:
        raise DataError(f"{path} must hold {FOLDS} pairs or more in two folds or more, genuine ones and others")
    return found


def decoded_pairs(
    pairs: PairFiles, image_shape: tuple[int, int, int], *, on_decoded: OnDecoded = lambda *_: None
) -> PairImages:
    """The images as large and as coloured as `image_shape`. Raises `DataError` for a damaged one."""
    channels, size, _ = image_shape
    images_NKHW = np.empty((len(pairs.names), channels, size, size), np.uint8)
    with pairs.store.reader() as read:
        for number, name in enumerate(pairs.names):
            pixels = decode_image(read(name), name, image_size=size, colour="grey" if channels == 1 else "rgb")
            images_NKHW[number] = pixels if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
            on_decoded(number + 1, len(pairs.names))
    return PairImages(images=images_NKHW, listed=pairs.listed)
