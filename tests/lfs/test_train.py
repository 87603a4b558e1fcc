"""`lossearch train` and `lossearch embed`, from the command line to the files."""

import csv
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from lfs.full_run import plan_resumed
from lfs.journal import FILE_NAME, Completed, Event, Resumed, Started, Trained, read_events
from lfs.tracker import sync
from lfs.tracker_uri import default_uri
from search_space import LossSchedule, catalog
from tests.lfs.command import IMAGE_SIZE, IMAGES_PER_CLASS, SPLIT, Result, contents, draw_images, lossearch
from tests.lfs.runners import PATIENCE_SECONDS, wait_until
from tests.lfs.test_bad_input import refused
from trainers.exported_network import embed_images, load_network
from trainers.formats.opening import open_images
from trainers.formats.pair_sets import PairSet, write_pairs
from trainers.image_cache import decode_image

ROOT = Path(__file__).parents[2]
EPOCHS = 4
TINY = (
    "--set=recipe.network=conv4",
    "--set=recipe.width=4",
    "--set=recipe.embedding_dim=8",
    "--set=recipe.batch_size=16",
    f"--set=recipe.epochs={EPOCHS}",
    f"--set=data.image_size={IMAGE_SIZE}",
    "--set=milestones.save_every_steps=2",
)
UNTRACKED = (*TINY, "--set=tracking.enabled=false")


def _found(path: Path) -> Path:
    """What a search over two epochs would export: softmax, then CosFace."""
    schedule = LossSchedule.constant(catalog.softmax(16)).then(1, catalog.cosface(margin=0.1, scale=16))
    path.write_text(json.dumps({"epochs": 2, "schedule": schedule.model_dump(mode="json"), "constant": None}))
    return path


@pytest.fixture(scope="module")
def pairs(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty pairs of the test identities."""
    source = open_images(shapes)
    names = source.names(source.classes("test"))
    with source.reader() as read:
        images = [read(names[number % len(names)]) for number in range(30)] + [read(name) for name in names * 2][:30]
    rng = np.random.default_rng(0)
    order = rng.permutation(60)
    chosen = [images[number] for number in order]
    write_pairs(PairSet(images=chosen, genuine_P=np.arange(30) % 2 == 0), tmp_path_factory.mktemp("p") / "toy.bin")
    return tmp_path_factory.getbasetemp() / "p0" / "toy.bin"


@pytest.fixture(scope="module")
def trained(shapes: Path, pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """The folder of a finished training, and what was printed; not to be changed."""
    base = tmp_path_factory.mktemp("trained")
    folder, winner = base / "out", _found(base / "winner.json")
    told: list[str | Path] = ["--data", shapes, "--loss", winner, "--pairs", pairs, "--out", folder]
    return folder, lossearch("train", *told, *UNTRACKED)


def events_of(folder: Path) -> list[Event]:
    return read_events(folder / FILE_NAME)[0]


def rows_of(folder: Path) -> list[dict[str, float]]:
    return [dict(event.metrics) for event in events_of(folder) if isinstance(event, Trained)]


def test_a_training_leaves_network_loss_and_history(trained: tuple[Path, Result]) -> None:
    folder, result = trained
    assert result.code == 0, result.err
    rows = rows_of(folder)
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    assert rows[-1]["train/loss"] < rows[2]["train/loss"]
    assert 0 <= rows[-1]["pairs/toy/accuracy"] <= 1
    assert f"epoch 4/4: loss {rows[-1]['train/loss']:.4f}" in result.out
    assert f"toy {rows[-1]['pairs/toy/accuracy']:.4f}" in result.out
    with (folder / "history.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [{key: float(value) for key, value in line.items()} for line in table] == rows
    (completed,) = (event for event in events_of(folder) if isinstance(event, Completed))
    for name in completed.files:
        assert f"written: {folder / name}" in result.out
        assert (folder / name).is_file()


def test_a_found_schedule_is_laid_over_the_longer_run_and_recorded(trained: tuple[Path, Result]) -> None:
    folder, _ = trained
    (started,) = (event for event in events_of(folder) if isinstance(event, Started))
    training = started.config["training"]
    assert isinstance(training, dict)
    laid = LossSchedule.model_validate(training["schedule"])
    assert [entry.from_epoch for entry in laid.entries] == [0, 2]
    assert training["horizon_epochs"] == 2
    loss = started.config["loss"]
    assert isinstance(loss, dict)
    assert loss["mapping"] == "scale"
    written = json.loads((folder / "loss.json").read_text())
    assert (written["epochs"], LossSchedule.model_validate(written["schedule"])) == (EPOCHS, laid)


def test_embeddings_are_those_of_the_exported_network(
    trained: tuple[Path, Result], shapes: Path, tmp_path: Path
) -> None:
    folder, _ = trained
    assert lossearch("embed", folder, shapes, tmp_path / "all.npz").code == 0
    assert lossearch("embed", folder, shapes, tmp_path / "val.npz", "--split", "val").code == 0
    with np.load(tmp_path / "all.npz") as found, np.load(tmp_path / "val.npz") as val:
        assert set(found) == {"embeddings", "flipped", "labels", "paths"}
        assert list(found["labels"]) == [name for name in sorted(SPLIT) for _ in range(IMAGES_PER_CLASS)]
        assert all(
            path.startswith(f"images/{label}/") for path, label in zip(found["paths"], found["labels"], strict=True)
        )
        assert set(val["labels"]) == {name for name, split in SPLIT.items() if split == "val"}
        network, description = load_network(folder)
        for number in (0, 50):
            content = (shapes / found["paths"][number]).read_bytes()
            image_HW = decode_image(content, "", image_size=description.image_shape[1], colour="grey")
            for key, pixels in {"embeddings": image_HW, "flipped": image_HW[:, ::-1]}.items():
                x_1D = embed_images(network, np.ascontiguousarray(pixels)[None, None])
                np.testing.assert_allclose(found[key][number], x_1D[0], rtol=1e-4, atol=1e-5)


def test_a_few_damaged_images_are_not_embedded_and_many_are_refused(trained: tuple[Path, Result], here: Path) -> None:
    folder, _ = trained
    images = draw_images(here / "set") / "images"
    for number in range(30):
        shutil.copy(images / "shape01" / "0.png", images / "shape01" / f"more{number}.png")
    (images / "shape03" / "2.png").write_bytes(b"no image")
    done = lossearch("embed", folder, "set", "some.npz")
    assert done.code == 0, done.err
    assert "images that cannot be decoded and are left out: 1 (images/shape03/2.png)" in done.out
    assert "written: some.npz (125 images)" in done.out
    with np.load(here / "some.npz") as found:
        assert len(found["embeddings"]) == len(found["flipped"]) == len(found["labels"]) == 125
        assert "images/shape03/2.png" not in found["paths"]
        assert [path.split("/")[1] for path in found["paths"]] == found["labels"].tolist()
    (images / "shape03" / "3.png").write_bytes(b"no image")
    refused(lossearch("embed", folder, "set", "none.npz"), "2 of 126 images", "shape03/2.png", "shape03/3.png")
    assert not (here / "none.npz").exists()


def test_a_finished_training_is_shown_again_not_repeated(trained: tuple[Path, Result]) -> None:
    folder, first = trained
    before = contents(folder)
    again = lossearch("train", "--resume", folder)
    assert again.code == 0
    assert again.out == first.out
    assert contents(folder) == before


COMMAND = [sys.executable, "-c", "from lfs.cli import main; main()", "train"]


def _session(*arguments: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _stop(process: subprocess.Popen[str], folder: Path, steps: int, how: signal.Signals) -> tuple[int, str]:
    """Stop it as soon as a checkpoint of so many steps or more is there."""

    def saved() -> bool:
        names = [path.stem for path in folder.glob("checkpoints/*.safetensors")]
        return any(int(name) >= steps for name in names)

    wait_until(lambda: process.poll() is not None or saved())
    process.send_signal(how)
    stdout, _ = process.communicate(timeout=PATIENCE_SECONDS)
    return process.returncode, stdout


@pytest.mark.slow
def test_a_training_that_was_killed_and_interrupted_ends_like_one_that_was_not(shapes: Path, tmp_path: Path) -> None:
    longer = (*UNTRACKED, "--set=recipe.epochs=60", "--set=milestones.save_every_steps=1")
    told: list[str | Path] = ["--data", shapes, "--loss", _found(tmp_path / "winner.json"), *longer]
    assert lossearch("train", *told, "--out", tmp_path / "whole").code == 0
    folder = tmp_path / "cut"
    assert _stop(_session(*told, "--out", folder), folder, 10, signal.SIGKILL)[0] == -signal.SIGKILL
    assert not any(isinstance(event, Completed) for event in events_of(folder))
    code, stdout = _stop(_session("--resume", folder), folder, 40, signal.SIGTERM)
    assert code == 130
    assert stdout.endswith(f"interrupted; go on with: lossearch train --resume {folder}\n")
    assert lossearch("train", "--resume", folder).code == 0
    assert sum(isinstance(event, Resumed) for event in events_of(folder)) == 2
    assert rows_of(folder) == rows_of(tmp_path / "whole")
    for name in ("network.safetensors", "network.json", "loss.json", "history.csv"):
        assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_tracking_may_be_set_anew_when_a_training_is_resumed(trained: tuple[Path, Result], here: Path) -> None:
    overrides = ["tracking.enabled=true", 'tracking.uri="sqlite:///x.db"']
    tracking = plan_resumed(trained[0], overrides).config.tracking
    assert (tracking.enabled, tracking.uri) == (True, f"sqlite:///{here}/x.db")
    wrong = lossearch("train", "--resume", trained[0], "--set=tracking.enabled=yes")
    refused(wrong, "tracking.enabled: must be true or false", "'yes'")


@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated:sqlalchemy.exc.SADeprecationWarning")
def test_mlflow_gets_every_epoch_once(trained: tuple[Path, Result], workspace: Path) -> None:
    from mlflow import MlflowClient

    folder = workspace / "runs" / "full"
    shutil.copytree(trained[0], folder)
    uri = default_uri(workspace)
    for _ in range(2):
        sync(folder, uri)
    client = MlflowClient(uri)
    (experiment,) = [each for each in client.search_experiments() if "full training" in each.name]
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.tags["lossearch.network_name"] == "conv4"
    rows = rows_of(folder)
    for key in ("train/loss", "val/rank1", "pairs/toy/accuracy"):
        points = client.get_metric_history(run.info.run_id, key)
        assert [(point.step, point.value) for point in points] == [(row["epoch"], row[key]) for row in rows]
    artifacts = {artifact.path for artifact in client.list_artifacts(run.info.run_id)}
    assert {"journal.jsonl", "history.csv", "loss.json", "network.json"} <= artifacts


# --- what a user can get wrong --------------------------------------------------------------------------------------

WRONG = {
    "no loss": (["--out", "o"], ["needs a loss", "give --loss"]),
    "no folder": (["--loss", "arcface"], ["give --out DIR"]),
    "an unknown loss": (["--loss", "arcfce", "--out", "o"], ["arcfce"]),
    "a missing loss file": (["--loss", "winner.json", "--out", "o"], ["winner.json", "cannot be read"]),
    "a parameter that is none": (
        ["--loss", "arcface", "--set=loss.parameters={magic = 3}", "--out", "o"],
        ["loss", "magic"],
    ),
    "an unknown key": (["--loss", "arcface", "--set=recipe.epoch=3", "--out", "o"], ["'recipe.epoch'", "'epochs'"]),
    "an unknown table": (["--loss", "arcface", "--set=search.batch=3", "--out", "o"], ["'search'", "known are"]),
    "a bad mapping": (
        ["--loss", "arcface", "--set=loss.mapping=stretch", "--out", "o"],
        ["loss.mapping", "'scale'", "'stretch'"],
    ),
    "a parameter out of range": (
        ["--loss", "arcface", "--set=loss.parameters.margin_rad=3", "--out", "o"],
        ["loss.parameters.margin_rad: must be at most 1.5708, but got 3"],
    ),
    "a product of parameters out of range": (
        ["--loss", "modulating", "--set=loss.parameters.margin=0.9", "--set=loss.parameters.scale=1000", "--out", "o"],
        ["u must be at most 512", "900"],
    ),
    "a bad network": (["--loss", "arcface", "--network", "vgg", "--out", "o"], ["recipe.network", "module:factory"]),
    "a missing module": (
        ["--loss", "arcface", "--network", "no_such_module:net", "--out", "o"],
        ["recipe.network", "'no_such_module'", "PYTHONPATH"],
    ),
    "parts that do not fit": (
        ["--loss", "arcface", "--set=recipe.accumulation=3", "--out", "o"],
        ["recipe", "accumulation must cut batch_size=128"],
    ),
    "a step in the backward over parts": (
        ["--loss", "arcface", "--set=numerics.fused_head_step=true", "--set=recipe.accumulation=4", "--out", "o"],
        ["numerics.fused_head_step needs optimizer 'sgd' and accumulation=1, but got 'sgd' and accumulation=4"],
    ),
    "an unknown key of the sampling": (
        ["--loss", "arcface", "--set=recipe.sampling.cap=3", "--out", "o"],
        ["'recipe.sampling.cap'", "known are kind, images_per_class, max_images_per_class"],
    ),
    "a batch larger than the data": (
        ["--loss", "arcface", "--network", "conv4", "--set=recipe.batch_size=99999", "--out", "o"],
        ["batch_size must be at most", "99999"],
    ),
    "float16 without a GPU": (
        ["--loss", "arcface", "--set=numerics.dtype=float16", "--out", "o"],
        ["numerics.dtype = 'float16' needs a GPU"],
    ),
    "missing data": (["--loss", "arcface", "--data", "absent", "--out", "o"], ["no file or folder", "absent"]),
    "missing pairs": (["--loss", "arcface", "--pairs", "lfw.bin", "--out", "o"], ["lfw.bin", "cannot be read"]),
    "pairs of one name": (
        ["--loss", "arcface", "--pairs", "a/lfw.bin", "--pairs", "b/lfw.bin", "--out", "o"],
        ["different names", "lfw, lfw"],
    ),
    "nothing to resume": (["--resume", "absent"], ["no journal", "absent"]),
    "resuming something else": (["--resume", "absent", "--loss", "arcface"], ["leave out --loss"]),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments_are_one_sentence_and_nothing_is_written(name: str, here: Path) -> None:
    if name.startswith("float16") and _has_gpu():
        pytest.skip("there is a GPU")
    arguments, words = WRONG[name]
    refused(lossearch("train", *arguments, "--set=tracking.enabled=false"), *words)
    assert contents(here) == {}


def test_a_folder_with_other_files_is_left_alone(here: Path) -> None:
    (here / "mine").mkdir()
    (here / "mine" / "loss.json").write_text("{}", encoding="utf-8")
    before = contents(here)
    said = f"{here / 'mine'} holds loss.json, which is no run's; choose another"
    refused(lossearch("train", "--loss", "arcface", "--out", "mine"), f"{said} --out")
    refused(lossearch("search", "--run", here / "mine"), f"{said} --run")
    assert contents(here) == before


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def test_folders_of_something_else_are_refused(
    trained: tuple[Path, Result], finished_search: tuple[Path, Result], shapes: Path
) -> None:
    folder, run_dir = trained[0], finished_search[0]
    before = contents(folder), contents(run_dir)
    for taken in (folder, run_dir):
        told: list[str | Path] = ["--data", shapes, "--loss", "arcface", "--out", taken, *UNTRACKED]
        refused(lossearch("train", *told), "already holds", "--resume", "--out")
    refused(lossearch("train", "--resume", run_dir), "holds a search, not a training", f"lossearch resume {run_dir}")
    for command in ("resume", "report", "export", "compare"):
        refused(lossearch(command, folder), "holds a training, not a search", f"lossearch train --resume {folder}")
    refused(lossearch("train", "--loss", folder, "--out", "o"), "not a search", f"{folder / 'loss.json'} has its loss")
    refused(lossearch("data", "check", shapes, "--checkpoint", folder), "not a search", f"lossearch embed {folder}")
    refused(lossearch("train", "--resume", folder, "--set=recipe.epochs=9"), "tracking only", "recipe.epochs=9")
    assert (contents(folder), contents(run_dir)) == before


def test_changed_data_are_noticed(trained: tuple[Path, Result], tmp_path: Path) -> None:
    folder = tmp_path / "out"
    shutil.copytree(trained[0], folder)
    lines = (folder / FILE_NAME).read_text().splitlines()
    started = json.loads(lines[0])
    started["data"]["digest"] = "0" * 16
    (folder / FILE_NAME).write_text("\n".join([json.dumps(started), *lines[1:]]) + "\n")
    refused(lossearch("train", "--resume", folder), "have changed since the training began")


def test_wrong_places_for_embeddings_are_refused(trained: tuple[Path, Result], shapes: Path, here: Path) -> None:
    folder = trained[0]
    refused(lossearch("embed", folder, shapes, "x.npy"), "ends in .npz", "x.npy")
    refused(lossearch("embed", shapes, shapes, "x.npz"), "there is no network.json in", "finished training")
    refused(lossearch("embed", folder, "absent", "x.npz"), "no file or folder absent")
    assert contents(here) == {}
    (here / "x.npz").write_bytes(b"mine")
    refused(lossearch("embed", folder, shapes, "x.npz"), "x.npz is there already")
    assert contents(here) == {"x.npz": b"mine"}


def test_the_decoding_bar_is_shown_and_damaged_images_are_named(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = draw_images(here / "set") / "images"
    (images / "shape03" / "2.png").write_bytes(b"no image")
    screen = io.StringIO()
    monkeypatch.setattr("lfs.train_cli.out", Console(file=screen, force_terminal=True, width=200, color_system=None))
    told = ("train", "--data", "set", "--loss", "softmax", "--out", "out", *UNTRACKED, "--set=recipe.epochs=1")
    refused(lossearch(*told), "1 of 72 images", "images/shape03/2.png is not an image", "data.corrupt_share = 0.01")
    assert re.search(r"decoding the images .* 72/72", screen.getvalue())
    assert lossearch(*told, "--set=data.corrupt_share=0.1").code == 0
    assert "images that cannot be decoded and are left out: 1 (images/shape03/2.png)\n" in screen.getvalue()
