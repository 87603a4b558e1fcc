"""Which pairs a training may score itself on."""

from pathlib import Path

import pytest

from tests.trainers.test_image_folder import SPLIT, files, split_csv, write_folder, write_zip
from trainers.formats.opening import open_images
from trainers.formats.writing import write_images
from trainers.image_source import DataError
from trainers.pair_images import open_pairs


def write_pairs(path: Path, split: str) -> Path:
    """Ten pairs of classes in this split."""
    one, two = (name for name in list(SPLIT)[:10] if SPLIT[name] == split and name[-1] in "0189")
    rows = [f"images/{one}/0.png,images/{one if number % 2 else two}/1.png,{number % 2}" for number in range(10)]
    path.write_text("\n".join(["first,second,genuine", *rows]))
    return path


@pytest.fixture
def places(tmp_path: Path) -> dict[str, Path]:
    """One set by several paths."""
    folder, table = tmp_path / "set", {"split.csv": split_csv(SPLIT)}
    write_zip(tmp_path / "zipped" / "set.zip", files() | table)
    write_images(open_images(write_folder(folder, files() | table)), tmp_path / "records", kind="recordio")
    return {
        "zip": tmp_path / "zipped" / "set.zip",
        "its folder": tmp_path / "zipped",
        "folder": folder,
        "its images": folder / "images",
        "records": tmp_path / "records",
        "their file": tmp_path / "records" / "train.rec",
    }


@pytest.mark.parametrize(
    ("images", "trained_on"),
    [
        (None, "zip"),
        ("zip", "zip"),
        ("its folder", "zip"),
        ("zip", "its folder"),
        ("its images", "folder"),
        ("their file", "records"),
        ("records", "their file"),
    ],
)
def test_training_identities_are_refused_by_whichever_path(
    images: str | None, trained_on: str, places: dict[str, Path], tmp_path: Path
) -> None:
    place = places[images] if images else None
    with pytest.raises(DataError, match=r"images of 'class00', whom the network is trained on"):
        open_pairs(write_pairs(tmp_path / "train.csv", "train"), place, trained_on=places[trained_on])
    held_out = open_pairs(write_pairs(tmp_path / "test.csv", "test"), place, trained_on=places[trained_on])
    assert len(held_out.names) == 3


def test_another_set_within_the_folder_of_the_one_trained_on_is_another(
    places: dict[str, Path], tmp_path: Path
) -> None:
    other = write_folder(places["records"] / "other", files({"class00": 5, "class01": 5, "new": 2}))
    (other / "split.csv").write_bytes(split_csv({"class00": "test", "class01": "test", "new": "test"}))
    pairs = write_pairs(tmp_path / "train.csv", "train")
    assert len(open_pairs(pairs, other, trained_on=places["records"]).names) == 3
