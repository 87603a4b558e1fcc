"""From a data setting to a `Task`: the embedded glyphs, or an image set decoded, split and checked."""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from search_space.frozen import FrozenModel, Real
from trainers import presets
from trainers.formats.opening import open_images, set_name
from trainers.glyphs import GlyphStyle, glyphs
from trainers.image_cache import Colour, OnDecoded, decode, decode_image
from trainers.image_file import ImageFile, MappedImages
from trainers.image_source import DataError, ImageSource
from trainers.machine import memory_bytes
from trainers.splits import name_hash
from trainers.task import Kind, LabelledImages, Task

EMBEDDED_NAME = "glyphs"

_SNIFFED_IMAGES = 64
_NEAR_BLACK, _NEAR_WHITE = 16, 239
_DRAWING_SHARE = 0.8


class DataConfig(FrozenModel):
    """Which images a search learns from.

    `path` is an image set in any known format, None the embedded glyphs. `kind` is what the images look like, `auto` to
    find out; the glyphs are drawings. `image_size` is in pixels, None for the kind's own. Of an image set, training
    classes with fewer than `min_images_per_class` images are left out; validation keeps all, one-image classes serving
    as impostors, up to `max_validation_images`: whole classes drawn by their names, as the time that scoring takes
    grows with the square. A comparison takes `max_test_images` of the test split in the same way, as it holds all pairs
    in memory (8 GiB for 20 000 images). `seed` draws the glyphs and cuts the validation classes in two halves; it never
    moves a class into or out of the test split. Up to `corrupt_share` of the images may be damaged and are left out.
    Images that would take more than `memory_share` of the machine's memory are mapped from the cache, not held.
    """

    path: Path | None = None
    kind: Literal["auto", "photo", "drawing"] = "auto"
    image_size: Annotated[int, Field(ge=16, le=256)] | None = None
    min_images_per_class: Annotated[int, Field(ge=1, le=1_000_000)] = 4
    max_validation_images: Annotated[int, Field(ge=100)] = 20_000
    max_test_images: Annotated[int, Field(ge=100)] = 20_000
    corrupt_share: Annotated[Real, Field(ge=0, le=0.5)] = 0.01
    memory_share: Annotated[Real, Field(ge=0, le=1)] = 0.25
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0


def load_task(config: DataConfig, *, cache_dir: Path, on_decoded: OnDecoded = lambda *_: None) -> Task:
    """The training and validation images of `config`. Test images are neither read nor decoded.

    Raises `DataError` when the images cannot be used.
    """
    if config.path is None:
        size = config.image_size or presets.image_size("drawing")
        parts = {part: glyphs(part, seed=config.seed, image_size=size) for part in ("train", "reward", "choice")}
        return _task(EMBEDDED_NAME, "drawing", parts)
    decoded = _decode_task(config, config.path, cache_dir, on_decoded)
    mapped = _exceeds_memory_share(decoded.file, config)
    parts, first = {}, 0
    for part, classes in decoded.classes.items():
        labels_N = _labels(decoded.source, classes)
        parts[part] = _labelled(decoded.file.part(first, len(labels_N)), labels_N, mapped=mapped)
        first += len(labels_N)
    name = set_name(decoded.source.path)
    return _task(name, decoded.kind, parts, damaged=decoded.damaged, unscored=decoded.unscored)


def sealed_class_sizes(config: DataConfig) -> Mapping[str, int]:
    """How many images each test class has; no image is read.

    Raises `DataError` when there is no test split that gives pairs.
    """
    if config.path is None:
        style = GlyphStyle()
        return {f"glyph{index:03d}": style.held_out_images_each for index in range(style.held_out_identities)}
    return _sealed_sizes(open_images(config.path), config.max_test_images)


def _sealed_sizes(source: ImageSource, images: int) -> dict[str, int]:
    sizes = {name: len(source.files[name]) for name in source.classes("test")}
    found = {name: sizes[name] for name in _capped(list(sizes), sizes, images, salt="test")}
    _refuse_without_pairs(found, source.path, f" within max_test_images={images}" if len(found) < len(sizes) else "")
    return found


def _refuse_without_pairs(sizes: Mapping[str, int], path: Path, among: str) -> None:
    if len(sizes) < 2 or max(sizes.values()) < 2:
        raise DataError(f"the test split of {path} needs two classes or more{among}, one of them with two images")


@dataclass(frozen=True, slots=True)
class SealedTest:
    """The test images, the names of the classes that their labels count, and how many images of the split
    `max_test_images` leaves out."""

    part: LabelledImages
    names: Sequence[str]
    unused_images: int = 0


def load_sealed_test(config: DataConfig, *, cache_dir: Path) -> SealedTest:
    """The test images of `config`, as large and as coloured as its task's, without classes of which every image is
    damaged: for `compare` alone.

    Raises `DataError` when there is no test split that gives pairs.
    """
    if config.path is None:
        size = config.image_size or presets.image_size("drawing")
        return SealedTest(glyphs("test", seed=config.seed, image_size=size), list(sealed_class_sizes(config)))
    source = open_images(config.path)
    sizes = _sealed_sizes(source, config.max_test_images)
    classes = list(sizes)
    _, channels, image_size, _ = _decode_task(config, config.path, cache_dir).file.images().shape
    colour: Colour = "grey" if channels == 1 else "rgb"
    test = decode(
        source,
        source.names(classes),
        image_size=image_size,
        colour=colour,
        cache_dir=cache_dir,
        corrupt_share=config.corrupt_share,
    )
    left = _without(source, test.damaged)
    names = [name for name in classes if name in left.files]
    _refuse_without_pairs({name: len(left.files[name]) for name in names}, config.path, ", without damaged images")
    part = _labelled(test.file, _labels(left, names), mapped=_exceeds_memory_share(test.file, config))
    return SealedTest(part, names, len(source.names(source.classes("test"))) - sum(sizes.values()))


def decode_sealed_test(config: DataConfig, *, cache_dir: Path) -> None:
    """Decode the test images into the cache, and look at none. Raises `DataError` as `load_sealed_test` does."""
    load_sealed_test(config, cache_dir=cache_dir)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Decoded:
    """An image set without its `damaged` images, its classes of `train`, `reward` and `choice`, the file that holds
    their images in that order, and how many validation images were too many."""

    source: ImageSource
    classes: Mapping[str, Sequence[str]]
    kind: Kind
    file: ImageFile
    damaged: Sequence[str]
    unscored: int


def _decode_task(config: DataConfig, path: Path, cache_dir: Path, on_decoded: OnDecoded = lambda *_: None) -> _Decoded:
    source = open_images(path)
    classes = task_classes(
        source,
        min_images_per_class=config.min_images_per_class,
        seed=config.seed,
        max_validation_images=config.max_validation_images,
    )
    scored = [*classes["reward"], *classes["choice"]]
    unscored = len(source.names(source.classes("val"))) - len(source.names(scored))
    kind = _kind(source, classes["train"], config)
    decoded = decode(
        source,
        [name for of_part in classes.values() for name in source.names(of_part)],
        image_size=config.image_size or presets.image_size(kind),
        colour="auto",
        cache_dir=cache_dir,
        corrupt_share=config.corrupt_share,
        on_decoded=on_decoded,
    )
    left = _without(source, decoded.damaged)
    classes = {part: [name for name in of_part if name in left.files] for part, of_part in classes.items()}
    _refuse_too_few(left, classes, min_images_per_class=config.min_images_per_class)
    return _Decoded(
        source=left,
        classes=classes,
        kind=kind,
        file=decoded.file,
        damaged=list(decoded.damaged),
        unscored=unscored,
    )


def _without(source: ImageSource, damaged: Collection[str]) -> ImageSource:
    """The set without these images, and without the classes that have no others."""
    if not damaged:
        return source
    left = {name: [file for file in files if file not in damaged] for name, files in source.files.items()}
    return source.only({name: files for name, files in left.items() if files})


def _exceeds_memory_share(file: ImageFile, config: DataConfig) -> bool:
    return file.images().nbytes > config.memory_share * memory_bytes()


def _labelled(file: ImageFile, labels_N: npt.NDArray[np.int64], *, mapped: bool) -> LabelledImages:
    if mapped:
        return MappedImages(images=file.images(), labels=labels_N, file=file)
    return LabelledImages(images=np.array(file.images()), labels=labels_N)


def _task(
    name: str, kind: Kind, parts: Mapping[str, LabelledImages], *, damaged: Sequence[str] = (), unscored: int = 0
) -> Task:
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
        damaged=tuple(damaged),
        unscored=unscored,
    )


def task_classes(
    source: ImageSource, *, min_images_per_class: int, seed: int, max_validation_images: int
) -> dict[str, list[str]]:
    """The classes of `train`, `reward` and `choice`, each sorted. Raises `DataError` where they are too few."""
    train = [name for name in source.classes("train") if len(source.files[name]) >= min_images_per_class]
    counts = {name: len(source.files[name]) for name in source.classes("val")}
    reward, choice = (
        _capped(half, counts, max_validation_images // 2, salt=f"half {seed}") for half in _halves(counts, seed)
    )
    classes = {"train": train, "reward": reward, "choice": choice}
    _refuse_too_few(source, classes, min_images_per_class=min_images_per_class)
    return classes


def _refuse_too_few(source: ImageSource, classes: Mapping[str, Sequence[str]], *, min_images_per_class: int) -> None:
    if len(classes["train"]) < 2:
        largest = max((len(source.files[name]) for name in source.classes("train")), default=0)
        raise DataError(
            f"the train split of {source.path} needs two classes or more with at least min_images_per_class="
            f"{min_images_per_class} images, but has {len(classes['train'])} (its largest class has {largest})"
        )
    for half in (classes["reward"], classes["choice"]):
        if len(half) < 2 or max(len(source.files[name]) for name in half) < 2:
            counts = [len(source.files[name]) for name in source.classes("val")]
            raise DataError(
                f"the val split of {source.path} needs four classes or more, two of them with two images, "
                f"but has {len(counts)} classes, {sum(count > 1 for count in counts)} with two images"
            )


def _halves(counts: Mapping[str, int], seed: int) -> tuple[list[str], list[str]]:
    """Classes dealt out in turn in the order of their names' hashes: first those that give pairs, then the others."""
    ordered = sorted(counts, key=lambda name: (counts[name] < 2, name_hash(name, salt=f"half {seed}")))
    return sorted(ordered[::2]), sorted(ordered[1::2])


def _capped(names: Sequence[str], counts: Mapping[str, int], images: int, *, salt: str) -> list[str]:
    """The classes that hold so many images together at most, in the order of their names' hashes."""
    kept = []
    for name in sorted(names, key=lambda name: name_hash(name, salt=salt)):
        if counts[name] <= images:
            kept.append(name)
            images -= counts[name]
    return sorted(kept)


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
            try:
                pixels = decode_image(read(name), name, image_size=None, colour="auto")
            except DataError:
                continue  # it is counted when all are decoded
            if pixels.ndim == 3:
                return "photo"
            shares.append(float(((pixels <= _NEAR_BLACK) | (pixels >= _NEAR_WHITE)).mean()))
    return "drawing" if shares and np.median(shares) >= _DRAWING_SHARE else "photo"
