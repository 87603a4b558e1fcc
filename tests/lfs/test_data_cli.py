"""`lossearch data` from end to end: what it says, what it writes, and what it refuses."""

import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lfs.data_cli import FORMATS
from lfs.journal import FILE_NAME, comparable, read_events
from tests.lfs.command import SPLIT, TINY_SEARCH, Result, contents, draw_images, lossearch
from tests.lfs.test_bad_input import refused
from trainers.data import DataConfig, load_task
from trainers.formats.opening import open_images
from trainers.formats.writing import WRITERS, write_images

RealData = Callable[[str], Path]


def rows(printed: str) -> list[list[str]]:
    return [line.split() for line in printed.splitlines()]


def test_info_counts_identities_images_and_splits(shapes: Path) -> None:
    done = lossearch("data", "info", shapes)
    assert done.code == 0, done.err
    assert done.out.startswith(f"{shapes}: 96 images of 16 identities, as folder\n")
    assert "sizes in pixels: 20×20 (96); in colour: 0" in done.out
    for row in (["4-7", "16"], ["train", "8", "8", "8", "48"], ["val", "4", "4", "4", "24"]):
        assert row in rows(done.out)
    assert "suspicious: 0" in done.out
    assert "split by split.csv" in done.out


def test_info_says_what_splits_a_set_without_a_table(here: Path) -> None:
    (draw_images(here / "set") / "split.csv").unlink()
    assert "split by a hash of the class names" in lossearch("data", "info", "set").out


def test_info_names_what_is_damaged_small_flat_or_twice_there(here: Path) -> None:
    images = draw_images(here / "set") / "images"
    (images / "shape01" / "copy.png").write_bytes((images / "shape02" / "3.png").read_bytes())
    (images / "shape01" / "torn.png").write_bytes((images / "shape02" / "3.png").read_bytes()[:60])
    done = lossearch("data", "info", "set")
    assert done.code == 0, done.err
    assert "byte for byte: 1\n  images/shape01/copy.png = images/shape02/3.png" in done.out
    assert "suspicious: 1\n  images/shape01/torn.png is not an image or is damaged" in done.out


def test_info_says_why_a_set_cannot_be_split(here: Path) -> None:
    (draw_images(here / "set") / "split.csv").write_text("class,split\nshape00,train\n", encoding="utf-8")
    done = lossearch("data", "info", "set")
    assert done.code == 0
    assert "splits: split.csv does not name class 'shape01'" in done.out


def test_a_proxy_keeps_what_is_held_out_and_can_be_searched_on(shapes: Path, here: Path) -> None:
    sizes = ("--identities", "5", "--images", "4")
    done = lossearch("data", "proxy", shapes, "small.zip", *sizes)
    assert done.code == 0, done.err
    assert ["train", "5", "5", "5", "20"] in rows(done.out)
    whole, small = open_images(shapes), open_images(here / "small.zip")
    for split in ("val", "test"):
        kept = whole.names(whole.classes(split))
        assert small.fingerprints(small.names(small.classes(split))) == whole.fingerprints(kept)
    trained = small.names(small.classes("train"))
    assert small.fingerprints(trained) == whole.fingerprints(trained)
    assert lossearch("data", "proxy", shapes, "small", *sizes).code == 0
    folder = open_images(here / "small")
    assert (folder.files, folder.splits) == (small.files, small.splits)
    assert lossearch("search", "--data", "small.zip", "--run", "space/runs/mine", *TINY_SEARCH).code == 0


def test_a_proxy_of_few_images_says_how_to_search_it(shapes: Path, here: Path) -> None:
    done = lossearch("data", "proxy", shapes, "small", "--identities", "5", "--images", "2", "--val-images", "3")
    assert "search it with --set data.min_images_per_class=2" in done.out
    assert ["val", "4", "4", "0", "12"] in rows(done.out)
    assert ["test", "4", "4", "4", "24"] in rows(done.out)


REFUSED: dict[str, tuple[list[str], list[str]]] = {
    "missing set": (["info", "absent"], ["no file or folder absent"]),
    "more identities than there are": (
        ["proxy", "SHAPES", "small", "--identities", "9", "--images", "4"],
        ["train split", "has 8 identities", "at least 4 images", "9 are asked for"],
    ),
    "a name that is taken": (["proxy", "SHAPES", "mine", "--identities", "5", "--images", "4"], ["mine is there"]),
    "a place below a file": (
        ["proxy", "SHAPES", "mine/small", "--identities", "5", "--images", "4"],
        ["mine/small cannot be written"],
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_done_is_refused_with_one_sentence_and_nothing_is_written(
    name: str, shapes: Path, here: Path
) -> None:
    (here / "mine").write_text("kept", encoding="utf-8")
    arguments, words = REFUSED[name]
    given = [str(shapes) if argument == "SHAPES" else argument for argument in arguments]
    refused(lossearch("data", *given), *words)
    assert contents(here) == {"mine": b"kept"}


def test_a_damaged_image_ends_a_proxy_and_leaves_nothing(here: Path) -> None:
    images = draw_images(here / "set") / "images"
    (images / "shape15" / "9.png").symlink_to(images / "nowhere.png")
    before = contents(here)
    done: Result = lossearch("data", "proxy", "set", "new/small.zip", "--identities", "5", "--images", "4")
    refused(done, "images/shape15/9.png", "cannot be read")
    assert contents(here).keys() - before.keys() <= {"new"}
    assert len(SPLIT) == 16


def test_a_set_is_converted_there_and_back(shapes: Path, here: Path) -> None:
    whole = open_images(shapes)
    for kind, name in (("recordio", "records"), ("webdataset", "shards"), ("zip", "x.zip"), ("parquet", "x.parquet")):
        choice = [] if "." in name else ["--format", kind]
        assert lossearch("data", "convert", shapes, name, *choice).code == 0
        converted = open_images(here / name)
        assert (converted.format, converted.files, converted.splits) == (kind, whole.files, whole.splits)
    refused(lossearch("data", "convert", shapes, "x", "--format", "lmdb"), "unknown format 'lmdb'", *FORMATS)
    assert tuple(WRITERS) == FORMATS


def test_split_saves_a_table_where_a_search_finds_it(here: Path) -> None:
    (draw_images(here / "set") / "split.csv").unlink()
    done = lossearch("data", "split", "set", "--val", "0.25", "--test", "0.25")
    assert done.code == 0, done.err
    assert ["val", "4", "4", "4", "24"] in rows(done.out)
    source = open_images(here / "set")
    assert [len(source.classes(split)) for split in ("train", "val", "test")] == [8, 4, 4]
    table = (here / "set" / "split.csv").read_bytes()
    refused(lossearch("data", "split", "set", "--val", "0.3"), "set/split.csv is there already", "--output")
    refused(
        lossearch("data", "split", "set", "--val", "0.1", "--output", "x.csv"), "val share of 0.1 takes 2", "needs 4"
    )
    assert (here / "set" / "split.csv").read_bytes() == table
    assert not (here / "x.csv").exists()


def test_check_names_what_is_in_two_splits(here: Path) -> None:
    images = draw_images(here / "set") / "images"
    (images / "shape15" / "copy.png").write_bytes((images / "shape02" / "3.png").read_bytes())
    done = lossearch("data", "check", "set")
    assert done.code == 1
    assert "images/shape02/3.png = images/shape15/copy.png (bytes)" in done.out
    assert "images that cannot be decoded: 0" in done.out


def journal_of(run: Path) -> list[dict[str, Any]]:
    """A search's journal without times, paths and what is drawn to tell searches apart."""
    events = [comparable(event) for event in read_events(run / FILE_NAME)[0]]
    events[0]["config"]["data"].pop("path")
    events[0]["data"].pop("name")
    events[0].pop("search_id")
    return events


def place_of(kind: str, folder: Path) -> tuple[Path, Path]:
    """Where `convert` is to write a format, and where the set then is."""
    if kind == "list":
        return folder / "list", folder / "list" / "list.csv"
    target = folder / (f"set.{kind}" if kind in ("npz", "parquet", "tar", "zip") else kind)
    return target, target


@pytest.mark.slow
def test_omniglot_converted_to_every_format_gives_the_same_cache_and_the_same_journal(
    real_data: RealData, here: Path
) -> None:
    sizes = ("--identities=24", "--images=6", "--val-identities=12", "--val-images=4", "--test-identities=6")
    assert lossearch("data", "proxy", real_data("omniglot"), "subset", *sizes).code == 0
    caches, journals = {}, {}
    for kind in FORMATS:
        target, path = place_of(kind, here)
        assert lossearch("data", "convert", "subset", target, "--format", kind).code == 0
        run = here / f"space of {kind}" / "runs" / "tiny"
        done = lossearch("search", "--data", path, "--run", run, *TINY_SEARCH, "--set=data.image_size=16")
        assert done.code == 0, done.err
        (cache,) = (here / f"space of {kind}" / "cache").glob("*/images.npy")
        task = load_task(DataConfig(path=path, image_size=16), cache_dir=cache.parents[1])
        labels = [part.labels.tolist() for part in (task.train, task.reward, task.choice)]
        caches[kind] = (hashlib.sha256(cache.read_bytes()).hexdigest(), labels)
        journals[kind] = journal_of(run)
    assert len(journals["folder"]) > 10
    assert caches == dict.fromkeys(FORMATS, caches["folder"])
    assert journals == dict.fromkeys(FORMATS, journals["folder"])


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in FORMATS if kind != "folder"])
def test_a_search_keeps_the_same_journal_in_every_format(
    kind: str, finished_search: tuple[Path, Result], shapes: Path, here: Path
) -> None:
    target = here / kind / ("shapes" if kind not in ("npz", "parquet", "tar", "zip") else f"shapes.{kind}")
    write_images(open_images(shapes), target, kind=kind)
    path = target / "list.csv" if kind == "list" else target
    assert lossearch("search", "--data", path, "--run", "space/runs/tiny", *TINY_SEARCH).code == 0
    first, again = map(journal_of, (finished_search[0], here / "space" / "runs" / "tiny"))
    assert again == first


def test_a_search_names_the_damaged_images_that_it_leaves_out(here: Path) -> None:
    images = draw_images(here / "set") / "images"
    (images / "shape03" / "2.png").write_bytes(b"no image")
    command = ("search", "--data", "set", "--run", "space/runs/mine", *TINY_SEARCH)
    refused(lossearch(*command), "1 of 72 images", "images/shape03/2.png is not an image", "data.corrupt_share = 0.01")
    done = lossearch(*command, "--set=data.corrupt_share=0.1")
    assert done.code == 0, done.err
    assert "images that cannot be decoded and are left out: 1 (images/shape03/2.png)" in done.out
    started = read_events(here / "space/runs/mine" / FILE_NAME)[0][0]
    assert started.data["damaged_images"] == 1  # type: ignore[union-attr]


def test_check_doubts_labels_by_a_runs_winner_or_by_given_embeddings(
    finished_search: tuple[Path, Result], shapes: Path, here: Path
) -> None:
    done = lossearch("data", "check", shapes, "--checkpoint", finished_search[0])
    assert done.code in (0, 1), done.err
    assert re.search(r"images whose label looks wrong: \d+ of 96\n", done.out)
    names = open_images(shapes).names(open_images(shapes).files)
    numbers = [int(name.split("/")[1].removeprefix("shape")) for name in names]
    labels = [f"shape{number:02d}" for number in numbers]
    labels[8] = "shape05"
    np.savez("x.npz", embeddings=np.eye(16)[numbers], labels=np.array(labels), paths=np.array(names))
    done = lossearch("data", "check", shapes, "--embeddings", "x.npz")
    assert "images whose label looks wrong: 1 of 96\n" in done.out
    assert [names[8], "shape05", "shape01", "5/5", "1.000", "0.000"] in rows(done.out)
    refused(lossearch("data", "check", shapes, "--embeddings", "y.npz"), "y.npz", "cannot be read")
    both = ("--embeddings", "x.npz", "--checkpoint", finished_search[0])
    refused(lossearch("data", "check", shapes, *both), "--checkpoint", "x.npz", "leave one out")
    refused(lossearch("data", "check", shapes, "--checkpoint", here), "journal")
