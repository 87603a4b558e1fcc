import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from tests.trainers.test_image_folder import SPLIT, split_csv, write_folder
from trainers.formats.opening import open_images
from trainers.repeats import Repeat, _candidates, between_splits, repeats

RealData = Callable[[str], Path]


def picture(seed: int) -> Image.Image:
    """Soft blobs, as different from each other as photographs are."""
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 12), dtype=np.uint8)
    return Image.fromarray(pixels).resize((96, 96), Image.Resampling.BICUBIC).filter(ImageFilter.GaussianBlur(3))


def saved(image: Image.Image, kind: str = "png", **options: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture
def contents() -> dict[str, bytes]:
    names = [f"images/{name}/{number}.png" for name in SPLIT for number in range(4)]
    return {name: saved(picture(seed)) for seed, name in enumerate(names)} | {"split.csv": split_csv(SPLIT)}


def test_different_pictures_are_no_repeats(contents: dict[str, bytes], tmp_path: Path) -> None:
    assert repeats(open_images(write_folder(tmp_path, contents))) == ([], [], 0)


def test_repeats_are_found_and_told_apart(contents: dict[str, bytes], tmp_path: Path) -> None:
    first, planted = (
        "images/class00/0.png",
        {
            "images/class05/bytes.png": contents["images/class00/0.png"],
            "images/class06/pixels.bmp": saved(picture(0), "bmp"),
            "images/class09/resaved.jpg": saved(picture(0), "jpeg", quality=60),
            "images/class10/smaller.png": saved(picture(0).resize((70, 70), Image.Resampling.BILINEAR)),
            "images/class11/torn.png": contents[first := "images/class00/0.png"][:60],
        },
    )
    source = open_images(write_folder(tmp_path, contents | planted))
    found, damaged, passed_over = repeats(source)
    assert damaged == ["images/class11/torn.png"]
    assert passed_over == 0
    copies = list(planted)
    assert [repeat for repeat in found if repeat.first == first] == [
        Repeat(first, copies[0], "bytes"),
        Repeat(first, copies[1], "pixels"),
        Repeat(first, copies[2], "nearly"),
        Repeat(first, copies[3], "nearly"),
    ]
    assert [(repeat.first, repeat.second) for repeat in found if repeat.first != first] == [(copies[2], copies[3])]
    assert {splits: len(pairs) for splits, pairs in between_splits(found, source).items()} == {
        ("train", "val"): 2,
        ("train", "test"): 2,
        ("test", "test"): 1,
    }


def test_a_repeat_among_many_pictures_of_one_kind_is_found_and_blank_ones_are_counted() -> None:
    """The first 40 bits are the same for all, as those of aligned faces nearly are: two bands hold all images."""
    rng = np.random.default_rng(0)
    hash_NB = rng.random((3000, 64)) < 0.5
    hash_NB[:, :40] = hash_NB[0, :40]
    hash_NB[1700] = hash_NB[20]
    hash_NB[1700, [41, 50, 63]] ^= True
    found, passed_over = _candidates(hash_NB)
    near = {(i, j) for i in range(100) for j in range(i + 1, 3000) if (hash_NB[i] != hash_NB[j]).sum() <= 3}
    assert (20, 1700) in near
    assert {pair for pair in found if pair[0] < 100} == near
    assert not passed_over
    blank_NB = np.concatenate([hash_NB, np.zeros((500, 64), dtype=bool)])
    found, passed_over = _candidates(blank_NB)
    assert (20, 1700) in found
    assert passed_over == set(range(3000, 3500))


def test_the_known_repeat_of_lfw_is_found(real_data: RealData) -> None:
    source = open_images(real_data("lfw112"))
    few = {name: source.files[name] for name in list(source.files)[::40]}
    chosen = few | {name: source.files[name] for name in ("Gabrielle_Rose", "Martha_Bowen")}
    found, damaged, passed_over = repeats(source.only(chosen))
    names = ("images/Gabrielle_Rose/Gabrielle_Rose_0001.jpg", "images/Martha_Bowen/Martha_Bowen_0002.jpg")
    assert names in {(repeat.first, repeat.second) for repeat in found}
    assert len(found) < 4
    assert damaged == []
    assert passed_over == 0
