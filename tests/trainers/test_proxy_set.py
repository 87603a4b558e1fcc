from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from trainers.image_folder import FolderStore
from trainers.image_source import DataError, ImageSource, Split
from trainers.proxy_set import Share, proxy_of


def source_of(sizes: Mapping[str, int], splits: Mapping[str, Split]) -> ImageSource:
    files = {name: tuple(f"images/{name}/{index:03d}.png" for index in range(size)) for name, size in sizes.items()}
    nowhere = Path("nowhere")
    return ImageSource(path=nowhere, format="folder", files=files, splits=splits, store=FolderStore(nowhere, nowhere))


@pytest.fixture
def large() -> ImageSource:
    """900 training identities of three groups and very unequal sizes, 100 to validate, 100 to test."""
    rng = np.random.default_rng(0)
    names = [f"{'abc'[min(index % 9, 2)]}__{index:04d}" for index in range(1100)]
    sizes = {name: int(size) for name, size in zip(names, rng.geometric(0.05, 1100) + 3, strict=True)}
    splits: dict[str, Split] = {
        name: "train" if index < 900 else "val" if index < 1000 else "test" for index, name in enumerate(names)
    }
    return source_of(sizes, splits)


def test_groups_and_class_sizes_keep_their_shares(large: ImageSource) -> None:
    share: dict[Split, Share] = {"train": Share(identities=90, images=10)}
    proxy = proxy_of(large, share, seed=0)
    chosen = proxy.classes("train")
    assert Counter(name[0] for name in chosen) == {"a": 10, "b": 10, "c": 70}
    whole = sorted(len(large.files[name]) for name in large.classes("train"))
    kept = sorted(len(large.files[name]) for name in chosen)
    assert np.abs(np.quantile(kept, [0.1, 0.5, 0.9]) - np.quantile(whole, [0.1, 0.5, 0.9])).max() <= 2
    assert all(len(proxy.files[name]) == min(10, len(large.files[name])) for name in chosen)
    assert all(set(proxy.files[name]) <= set(large.files[name]) for name in chosen)
    for split in ("val", "test"):
        assert {name: proxy.files[name] for name in proxy.classes(split)} == {
            name: large.files[name] for name in large.classes(split)
        }


def test_each_identity_is_as_likely_to_be_drawn_as_any_other(large: ImageSource) -> None:
    share: dict[Split, Share] = {"train": Share(identities=300)}
    drawn = Counter(name for seed in range(200) for name in proxy_of(large, share, seed=seed).classes("train"))
    counts = np.array([drawn[name] for name in large.classes("train")])
    assert counts.mean() == pytest.approx(200 / 3)
    assert counts.std() < 2 * np.sqrt(200 * 1 / 3 * 2 / 3)


def test_the_seed_and_the_names_alone_decide(large: ImageSource) -> None:
    share: dict[Split, Share] = {"train": Share(identities=50, images=5)}
    first, again, other = (proxy_of(large, share, seed=seed).files for seed in (0, 0, 1))
    assert first == again != other


def test_held_out_splits_shrink_when_asked_to(large: ImageSource) -> None:
    shares: dict[Split, Share] = {"val": Share(identities=20, images=3), "test": Share(images=2)}
    proxy = proxy_of(large, shares, seed=0)
    assert len(proxy.classes("train")) == 900
    assert [len(proxy.files[name]) for name in proxy.classes("val")] == [3] * 20
    assert [len(proxy.files[name]) for name in proxy.classes("test")] == [2] * 100


def test_thin_identities_are_not_drawn_and_too_many_are_refused(large: ImageSource) -> None:
    thick = [name for name in large.classes("train") if len(large.files[name]) >= 30]
    share: dict[Split, Share] = {"train": Share(identities=len(thick), min_images=30)}
    assert proxy_of(large, share, seed=0).classes("train") == thick
    too_many: dict[Split, Share] = {"train": Share(identities=len(thick) + 1, min_images=30)}
    with pytest.raises(DataError, match=rf"has {len(thick)} identities with at least 30 images, but {len(thick) + 1}"):
        proxy_of(large, too_many, seed=0)


def test_a_proxy_that_cannot_be_searched_on_is_refused() -> None:
    sizes = {f"c{index}": 5 if index < 12 else 1 for index in range(40)}
    splits: dict[str, Split] = {name: "train" if index < 8 else "val" for index, name in enumerate(sizes)}
    shares: dict[Split, Share] = {"val": Share(identities=4)}
    with pytest.raises(DataError, match=r"val split .* needs four classes"):
        proxy_of(source_of(sizes, splits), shares, seed=0)
