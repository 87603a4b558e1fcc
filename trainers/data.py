"""From a data setting to a `Task`: the embedded glyphs, or an image set decoded, split and checked."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from search_space.frozen import FrozenModel
from trainers import presets
from trainers.formats.opening import open_images, set_name
from trainers.glyphs import GlyphStyle, glyphs
from trainers.image_cache import Colour, decode, decode_image
from trainers.image_source import DataError, ImageSource
from trainers.splits import name_hash
from trainers.task import Kind, LabelledImages, Task

EMBEDDED_NAME = "glyphs"

_SNIFFED_IMAGES = 64
_NEAR_BLACK, _NEAR_WHITE = 16, 239
_DRAWING_SHARE = 0.8


class DataConfig(FrozenModel):
    """Which images a search learns from.

    `path` is an image set in any known format, None the embedded glyphs. `kind` is what the images look like, `auto`
    to find out; the glyphs are drawings. `image_size` is in pixels, None for the kind's own. Of an image set, training
    classes with fewer than `min_images_per_class` images are left out; validation keeps all, one-image classes serving
    as impostors. `seed` draws the glyphs and cuts the validation classes in two halves; it never moves a class into or
    out of the test split.
    """

    path: Path | None = None
    kind: Literal["auto", "photo", "drawing"] = "auto"
    image_size: Annotated[int, Field(ge=16, le=256)] | None = None
    min_images_per_class: Annotated[int, Field(ge=1, le=1_000_000)] = 4
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0


def load_task(config: DataConfig, *, cache_dir: Path) -> Task:
    """The training and validation images of `config`. Test images are neither read nor decoded.

    Raises `DataError` when the images cannot be used.
    """
    if config.path is None:
        size = config.image_size or presets.image_size("drawing")
        parts = {part: glyphs(part, seed=config.seed, image_size=size) for part in ("train", "reward", "choice")}
        return _task(EMBEDDED_NAME, "drawing", parts)
    decoded = _decode_task(config, config.path, cache_dir)
    parts, first = {}, 0
    for part, classes in decoded.classes.items():
        labels_N = _labels(decoded.source, classes)
        images_NCHW = np.array(decoded.images[first : first + len(labels_N)])
        parts[part] = LabelledImages(images=images_NCHW, labels=labels_N)
        first += len(labels_N)
    return _task(set_name(decoded.source.path), decoded.kind, parts)


def sealed_class_sizes(config: DataConfig) -> Mapping[str, int]:
    """How many images each test class has, in the order of `load_sealed_test`'s labels; no image is read.

    Raises `DataError` when there is no test split that gives pairs.
    """
    if config.path is None:
        style = GlyphStyle()
        return {f"glyph{index:03d}": style.held_out_images_each for index in range(style.held_out_identities)}
    source = open_images(config.path)
    sizes = {name: len(source.files[name]) for name in source.classes("test")}
    if len(sizes) < 2 or max(sizes.values()) < 2:
        raise DataError(f"the test split of {config.path} needs two classes or more, one of them with two images")
    return sizes


def load_sealed_test(config: DataConfig, *, cache_dir: Path) -> LabelledImages:
    """The test images of `config`, as large and as coloured as its task's: for `compare` alone.

    Raises `DataError` when there is no test split that gives pairs.
    """
    classes = list(sealed_class_sizes(config))
    if config.path is None:
        return glyphs("test", seed=config.seed, image_size=config.image_size or presets.image_size("drawing"))
    decoded = _decode_task(config, config.path, cache_dir)
    source, (_, channels, image_size, _) = decoded.source, decoded.images.shape
    colour: Colour = "grey" if channels == 1 else "rgb"
    names = source.names(classes)
    images_NCHW = decode(source, names, image_size=image_size, colour=colour, cache_dir=cache_dir)
    return LabelledImages(images=np.array(images_NCHW), labels=_labels(source, classes))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Decoded:
    """An image set's classes of `train`, `reward` and `choice`, and their images in that order."""

    source: ImageSource
    classes: Mapping[str, Sequence[str]]
    kind: Kind
    images: npt.NDArray[np.uint8]


def _decode_task(config: DataConfig, path: Path, cache_dir: Path) -> _Decoded:
    source = open_images(path)
    classes = task_classes(source, min_images_per_class=config.min_images_per_class, seed=config.seed)
    kind = _kind(source, classes["train"], config)
    names = [name for of_part in classes.values() for name in source.names(of_part)]
    image_size = config.image_size or presets.image_size(kind)
    images = decode(source, names, image_size=image_size, colour="auto", cache_dir=cache_dir)
    return _Decoded(source=source, classes=classes, kind=kind, images=images)


def _task(name: str, kind: Kind, parts: Mapping[str, LabelledImages]) -> Task:
    digest = hashlib.sha256(kind.encode())
    for part in ("train", "reward", "choice"):
        digest.update(f"{part} {parts[part].images.shape}".encode())
        digest.update(parts[part].images.data)
        digest.update(parts[part].labels.data)
    return Task(
        name=name,
        kind=kind,
        digest=digest.hexdigest()[:16],
        train=parts["train"],
        reward=parts["reward"],
        choice=parts["choice"],
    )


def task_classes(source: ImageSource, *, min_images_per_class: int, seed: int) -> dict[str, list[str]]:
    """The classes of `train`, `reward` and `choice`, each sorted. Raises `DataError` where they are too few."""
    train = [name for name in source.classes("train") if len(source.files[name]) >= min_images_per_class]
    if len(train) < 2:
        largest = max((len(source.files[name]) for name in source.classes("train")), default=0)
        raise DataError(
            f"the train split of {source.path} needs two classes or more with at least min_images_per_class="
            f"{min_images_per_class} images, but has {len(train)} (its largest class has {largest})"
        )
    counts = {name: len(source.files[name]) for name in source.classes("val")}
    halves = _halves(counts, seed)
    for half in halves:
        if len(half) < 2 or max(counts[name] for name in half) < 2:
            pairable = sum(count > 1 for count in counts.values())
            raise DataError(
                f"the val split of {source.path} needs four classes or more, two of them with two images, "
                f"but has {len(counts)} classes, {pairable} with two images"
            )
    return {"train": train, "reward": halves[0], "choice": halves[1]}


def _halves(counts: Mapping[str, int], seed: int) -> tuple[list[str], list[str]]:
    """Classes dealt out in turn in the order of their names' hashes: first those that give pairs, then the others."""
    ordered = sorted(counts, key=lambda name: (counts[name] < 2, name_hash(name, salt=f"half {seed}")))
    return sorted(ordered[::2]), sorted(ordered[1::2])


def _labels(source: ImageSource, classes: Sequence[str]) -> npt.NDArray[np.int64]:
    return np.repeat(np.arange(len(classes), dtype=np.int64), [len(source.files[name]) for name in classes])


def _kind(source: ImageSource, train_classes: Sequence[str], config: DataConfig) -> Kind:
    """The kind set, or what a sample of the training images looks like.

    A drawing is grey and nearly all of its pixels are near black or white: in Omniglot all are, in handwritten digits
    nine tenths, in photographs of faces a third at most.
    """
    if config.kind != "auto":
        return config.kind
    names = source.names(train_classes)
    sample = names[:: -(-len(names) // _SNIFFED_IMAGES)]
    shares = []
    with source.reader() as read:
        for name in sample:
            pixels = decode_image(read(name), name, image_size=None, colour="auto")
            if pixels.ndim == 3:
                return "photo"
            shares.append(float(((pixels <= _NEAR_BLACK) | (pixels >= _NEAR_WHITE)).mean()))
    return "drawing" if np.median(shares) >= _DRAWING_SHARE else "photo"
