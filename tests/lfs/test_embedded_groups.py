"""From a list of images with a column of groups to the spread over groups, as Racial Faces in-the-Wild is used."""

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lfs.data_cli import FORMATS
from tests.lfs.command import SPLIT, contents, lossearch
from tests.lfs.test_bad_input import refused
from tests.lfs.test_data_cli import place_of
from tests.lfs.test_train import UNTRACKED
from trainers.formats.opening import open_images
from trainers.image_source import ImageSource

GROUPS = {name: f"group {index % 2}" for index, name in enumerate(sorted(SPLIT))}


@pytest.fixture(scope="module")
def network(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("network") / "out"
    told = ("--data", shapes, "--loss", "softmax", "--out", folder, "--set=recipe.epochs=1", *UNTRACKED)
    assert lossearch("train", *told).code == 0
    return folder


def listed(shapes: Path) -> tuple[ImageSource, dict[str, list[str]]]:
    """A table of all images with a column of groups and two that could be taken for something else."""
    source = open_images(shapes)
    names = source.names(source.files)
    labels = [name.split("/")[1] for name in names]
    table = {
        "path": [str(shapes / name) for name in names],
        "label": labels,
        "race": [GROUPS[label] for label in labels],
        "file": [f"{number % 3}" for number in range(len(names))],
        "split": [SPLIT[label] for label in labels],
    }
    return source, table


def write_csv(path: Path, table: dict[str, list[str]]) -> None:
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(table)
        rows.writerows(zip(*table.values(), strict=True))


def write_parquet(path: Path, table: dict[str, list[str]]) -> None:
    pq.write_table(pa.table({**table, "race": pa.array(table["race"]).dictionary_encode()}), path)


def write_images(path: Path, table: dict[str, list[str]]) -> None:
    """The images themselves in a table; `file` is a column of whole numbers."""
    images = [{"bytes": Path(place).read_bytes(), "path": Path(place).name} for place in table["path"]]
    numbers = [int(text) for text in table["file"]]
    further = {"race": table["race"], "file": numbers, "quality": [0.5] * len(images)}
    pq.write_table(pa.table({"image": images, "label": table["label"], **further, "split": table["split"]}), path)


KINDS = {"list.csv": write_csv, "list.parquet": write_parquet, "images.parquet": write_images}


@pytest.mark.parametrize("name", KINDS)
def test_groups_of_a_list_are_embedded_and_evaluated(name: str, network: Path, shapes: Path, here: Path) -> None:
    source, table = listed(shapes)
    KINDS[name](here / name, table)
    assert lossearch("embed", network, name, "faces.npz", "--split", "test").code == 0
    classes = source.classes("test")
    with np.load("faces.npz") as found:
        assert set(found) == {"embeddings", "flipped", "labels", "paths", "race", "file"}
        assert list(found["paths"]) == source.names(classes)
        assert list(found["race"]) == [GROUPS[label] for label in found["labels"]]
        rows = [table["path"].index(str(shapes / path)) for path in found["paths"]]
        assert list(found["file"]) == [table["file"][row] for row in rows]
    done = lossearch(
        "evaluate", "faces.npz", "--by", "race", "--resamples", "20", "--far", "0.1", "--json", "found.json"
    )
    assert done.code == 0, done.err
    content = json.loads(Path("found.json").read_text())
    assert list(content["results"]) == ["all", "group 0", "group 1"]
    aucs = [content["results"][group]["measures"]["auc"]["value"] for group in ("group 0", "group 1")]
    assert content["spread"]["auc"]["mean"] == pytest.approx(np.mean(aucs))


@pytest.mark.parametrize("kind", FORMATS)
def test_further_columns_of_a_list_are_converted_or_said_to_be_left_out(kind: str, shapes: Path, here: Path) -> None:
    _, table = listed(shapes)
    write_csv(here / "list.csv", {**table, "image": table["race"]})
    target, place = place_of(kind, here)
    done = lossearch("data", "convert", "list.csv", target, "--format", kind)
    assert done.code == 0, done.err
    lost = {"list": [], "parquet": ["image"], "huggingface": ["image"]}.get(kind, ["race", "file", "image"])
    told = f"left out, as the format {kind} has no place for them: {', '.join(lost)}"
    assert [line for line in done.out.splitlines() if "left out" in line] == ([told] if lost else [])
    before, after = open_images(here / "list.csv"), open_images(place)
    assert after.splits == before.splits
    assert after.columns == {name: texts for name, texts in before.columns.items() if name not in lost}


def test_a_proxy_keeps_the_groups_of_its_images(shapes: Path, here: Path) -> None:
    write_csv(here / "list.csv", listed(shapes)[1])
    assert lossearch("data", "proxy", "list.csv", "small.parquet", "--identities", "5", "--images", "4").code == 0
    small = open_images(Path("small.parquet"))
    assert len(small.columns["race"]) == sum(map(len, small.files.values())) < 96
    assert all(text == GROUPS[name.split("/")[1]] for name, text in small.columns["race"].items())


def test_a_column_that_embeddings_have_themselves_is_refused(network: Path, shapes: Path, here: Path) -> None:
    _, table = listed(shapes)
    write_csv(here / "list.csv", {**table, "labels": table["race"]})
    before = contents(here)
    refused(lossearch("embed", network, "list.csv", "x.npz"), "list.csv has a column 'labels'", "rename it")
    assert contents(here) == before
