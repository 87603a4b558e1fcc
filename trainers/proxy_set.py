"""A smaller set that stands for a larger one: fewer identities and images, chosen to be spread as the whole is."""

import hashlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from trainers.data import task_classes
from trainers.image_source import DataError, ImageSource, Split
from trainers.splits import name_hash

GROUP_MARK = "__"
"""Between group and class in a class name, as in omniglot's `<alphabet>__<character>`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """How much of a split is kept: at most `images` of each of `identities`, which have at least `min_images`.

    None keeps all.
    """

    identities: int | None = None
    images: int | None = None
    min_images: int = 1


def proxy_of(source: ImageSource, shares: Mapping[Split, Share], *, seed: int) -> ImageSource:
    """The identities and images of `source` that `shares` keep; a split without a share stays whole.

    Identities are drawn evenly along the list sorted by group (the part of the name before `__`), then by number of
    images: each is as likely to be kept as any other, groups keep their shares of the identities, and the class sizes
    their distribution. Which they are, and which images of each, depends on `seed` and the names alone.

    Raises `DataError` when a split has too few identities, or when what is left cannot be searched on.
    """
    files: dict[str, Sequence[str]] = {}
    for split in ("train", "val", "test"):
        share = shares.get(split, Share())
        for name in _identities(source, split, share, seed):
            files[name] = _images(source.files[name], share.images, seed)
    proxy = source.only(files)
    largest = max((len(files[name]) for name in proxy.classes("train")), default=0)
    wanted = shares.get("train", Share()).min_images
    fewest = max(1, min(wanted, largest))
    task_classes(proxy, min_images_per_class=fewest, seed=0, max_validation_images=sys.maxsize)
    return proxy


def _identities(source: ImageSource, split: Split, share: Share, seed: int) -> list[str]:
    sizes = {name: len(source.files[name]) for name in source.classes(split)}
    eligible = [name for name, size in sizes.items() if size >= share.min_images]
    if share.identities is None or share.identities == len(eligible):
        return eligible
    if share.identities > len(eligible):
        raise DataError(
            f"the {split} split of {source.path} has {len(eligible)} identities with at least {share.min_images} "
            f"images, but {share.identities} are asked for; ask for fewer"
        )
    ordered = sorted(eligible, key=lambda name: (_group(name), sizes[name], name_hash(name, salt=f"proxy {seed}")))
    start = Fraction(int.from_bytes(hashlib.sha256(f"proxy {split} {seed}".encode()).digest()[:4]), 2**32)
    step = Fraction(len(ordered), share.identities)
    return [ordered[int((index + start) * step)] for index in range(share.identities)]


def _group(name: str) -> str:
    group, mark, _ = name.partition(GROUP_MARK)
    return group if mark else ""


def _images(names: Sequence[str], most: int | None, seed: int) -> Sequence[str]:
    if most is None or len(names) <= most:
        return names
    return sorted(names, key=lambda name: name_hash(name, salt=f"proxy {seed}"))[:most]
