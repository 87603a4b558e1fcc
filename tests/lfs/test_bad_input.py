"""What a user can get wrong: one sentence each that says what would be right, exit code 2, and nothing touched."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from lfs.config_file import ConfigError, load_config
from lfs.journal import FILE_NAME, Finished, Journal, read_events
from lfs.launch import plan_new, run
from tests.lfs.command import SPLIT, TINY_SEARCH, Result, contents, draw_images, lossearch
from tests.lfs.toy import started

ROOT = Path(__file__).parents[2]
TRACEBACK_WORDS = ("Traceback", "Error(", "pydantic", "Input should", "input should")


def refused(result: Result, *words: str) -> None:
    """Exit code 2 and one line on stderr that has all these words."""
    assert result.code == 2, result.err
    assert result.err.startswith("lossearch: ")
    assert result.err.count("\n") == 1, result.err
    assert not [word for word in TRACEBACK_WORDS if word in result.err], result.err
    assert not [word for word in words if word not in result.err], result.err


# --- configs --------------------------------------------------------------------------------------------------------

CONFIGS = {
    "invalid TOML": ("seed =\nbatch = 4", ["run.toml", "not valid TOML", "line 1"]),
    "a key twice": ("seed = 1\nseed = 2", ["run.toml", "not valid TOML"]),
    "unknown key at the top": ("sed = 1", ["'sed'", "did you mean 'seed'?"]),
    "unknown key in a table": ("[search]\nbatc = 4", ["'search.batc'", "did you mean 'batch'?"]),
    "unknown key in the finals": ("[finals]\ncandidate = 4", ["'finals.candidate'", "did you mean 'candidates'?"]),
    "unknown key in the recipe": ("[recipe]\nwidht = 8", ["'recipe.widht'", "did you mean 'width'?"]),
    "unknown name of an augmentation": (
        '[recipe]\naugmentation = "photograph"',
        ["recipe.augmentation", "must be a table or one of none, drawing", "got 'photograph'"],
    ),
    "sampling of classes in too small a batch": (
        '[recipe]\nbatch_size = 6\nsampling = { kind = "classes" }',
        ["recipe", "at least twice sampling.images_per_class = 4", "got 6"],
    ),
    "unknown key in the augmentation": (
        "[recipe.augmentation]\nmirror = true",
        ["'recipe.augmentation.mirror'", "known are flip, rotate_degrees, scale, shift, downscale"],
    ),
    "unknown key in a baseline's recipe": (
        '[[baselines]]\nloss = "softmax"\nrecipe = {widht = 8}',
        ["'baselines.0.recipe.widht'", "'width'"],
    ),
    "key of another method": (
        '[search]\nmethod = "random"\nsigma_start = 0.1',
        ["'search.sigma_start'", "known are batch, warmup_epochs, broadcast_momentum, cooldown_epochs, method"],
    ),
    "recipe of a constant loss": (
        '[search]\nmethod = "selection"\nloss = {loss = "softmax", recipe = {width = 8}}',
        ["search.loss: must have no recipe of its own", "width"],
    ),
    "text for a number": ('[executor]\nworkers = "many"', ["executor.workers", "whole number", "'many'"]),
    "text for a flag": ('[tracking]\nenabled = "perhaps"', ["tracking.enabled", "true or false", "'perhaps'"]),
    "number for a table": ("recipe = 4", ["recipe: must be a table", "4"]),
    "number for a list": ("baselines = 3", ["baselines: must be a list", "3"]),
    "fraction for a whole number": ("seed = 1.5", ["seed", "whole number", "1.5"]),
    "NaN": ("[recipe]\nlearning_rate = nan", ["recipe.learning_rate", "finite", "nan"]),
    "infinity": ("[search]\nsigma_start = inf", ["search.sigma_start", "finite", "inf"]),
    "NaN for a loss": (
        '[[baselines]]\nloss = "softmax"\nparameters = {scale = nan}',
        ["baselines.0.parameters.scale", "finite", "nan"],
    ),
    "NaN in bounds": ("[space]\nm1 = [nan, 2]", ["space.m1.0", "finite", "nan"]),
    "negative workers": ("[executor]\nworkers = -1", ["executor.workers", "at least 1", "-1"]),
    "true for a number": ("seed = true", ["seed: must be a whole number", "true"]),
    "a quoted number": ('seed = "7"', ["seed: must be a whole number", "'7'"]),
    "a fraction for a count": ("[search]\nbatch = 8.0", ["search.batch", "whole number", "8.0"]),
    "a quoted number in a recipe": ('[recipe]\nwidth = "32"', ["recipe.width", "whole number", "'32'"]),
    "a date": ("[recipe]\nlearning_rate = 2026-11-22", ["recipe.learning_rate", "must be a number", "2026-11-22"]),
    "one and a half GPUs": ("[executor]\ngpus_per_worker = 1.5", ["executor.gpus_per_worker", "whole number", "1.5"]),
    "empty rounds": ("[search]\nbatch = 0", ["search.batch", "at least 2", "0"]),
    "odd rounds": ("[search]\nbatch = 3", ["search.batch", "even", "antithetic", "3"]),
    "warm-up as long as the search": (
        "[recipe]\nhorizon_epochs = 2\n[search]\nwarmup_epochs = 2",
        ["search.warmup_epochs", "[1, recipe.horizon_epochs)", "got 2"],
    ),
    "no epochs": ("[recipe]\nhorizon_epochs = 0", ["recipe.horizon_epochs", "at least 1", "0"]),
    "unknown method": (
        '[search]\nmethod = "annealing"',
        ["search.method", "'reinforce', 'released', 'random', 'selection', 'fixed_list'", "'annealing'"],
    ),
    "a covariance over choices": (
        '[space]\nkind = "unified"\n[search]\nmethod = "sampler"\nsampler = "cmaes"',
        ["search.sampler = 'cmaes'", "space.kind = 'unified' has choices", "use search.sampler = 'tpe'"],
    ),
    "a moving loss over choices": (
        '[space]\nkind = "unified"\n[search]\nmethod = "sampler"\nknots = 2',
        ["search.knots = 2", "space.kind = 'unified' has choices", "use search.knots = 1"],
    ),
    "two objectives for a sampler of one": (
        '[search]\nmethod = "sampler"\nsampler = "gp"\nobjectives = [{}, {metric = "seconds"}]',
        ["sampler 'gp' takes one objective, but got 2", "use 'nsga2' or 'tpe'"],
    ),
    "objective that is no score": (
        '[search]\nmethod = "sampler"\nobjectives = [{metric = "val/accuracy"}]',
        ["search.objectives.0.metric", "must be reward, seconds, images, or a score such as val/eer", "val/accuracy"],
    ),
    "population of CMA-ES below the workers": (
        '[search]\nmethod = "sampler"\nsampler = "cmaes"\n[executor]\nworkers = 9',
        ["search.population of CMA-ES must be at least the number of workers times numerics.lockstep, 9", "got 8"],
    ),
    "population of CMA-ES below what trains at once": (
        '[search]\nmethod = "sampler"\nsampler = "cmaes"\n[executor]\nworkers = 3\n[numerics]\nlockstep = 4',
        ["search.population of CMA-ES must be at least the number of workers times numerics.lockstep, 12", "got 8"],
    ),
    "no candidate at a time": ("[numerics]\nlockstep = 0", ["numerics.lockstep", "1", "0"]),
    "CUDA graphs without a GPU": (
        '[executor]\nkind = "serial"\n[numerics]\nexecution = "cuda_graph"',
        ["numerics.execution = 'cuda_graph' needs a GPU, but the workers have none", "use 'eager' or 'compiled'"],
    ),
    "too few candidates for a rung": (
        '[search]\nmethod = "sampler"\nfidelity = "halving"\ncandidates = 2',
        ["needs 9 candidates for one to reach the end, but has 2"],
    ),
    "released code on another space": (
        '[search]\nmethod = "released"',
        ["search.method = 'released'", "needs space.kind = 'modulating_factor'", "'combined_margin'"],
    ),
    "budget of nothing": ("[budget]\nimages = 0", ["budget.images", "at least 1", "0"]),
    "a Gaussian over choices": (
        '[space]\nkind = "unified"',
        ["search.method = 'reinforce'", "space.kind = 'unified' has choices", "use search.method = 'random'"],
    ),
    "too few pieces": ('[space]\nkind = "am_lfs"\npieces = 1', ["space.pieces", "at least 2", "got 1"]),
    "unknown mode of a space": ('[space]\nkind = "am_lfs"\nmode = "both"', ["space.mode", "'continuous' or 'free'"]),
    "unknown space": ('[space]\nkind = "unifed"', ["space.kind", "'combined_margin'", "'unifed'"]),
    "bounds reversed": ("[space]\nm2_rad = [0.8, 0.1]", ["space", "m2_rad", "low <= high", "[0.8, 0.1]"]),
    "one bound": ("[space]\nm2_rad = [0.8]", ["space.m2_rad", "longer list", "[0.8]"]),
    "bounds beyond the loss": ("[space]\nscale = [8, 5000]", ["space.scale", "at most 1024", "5000"]),
    "everything fixed": (
        "[space]\nm1 = [1, 1]\nm2_rad = [0, 0]\nm3 = [0, 0]\nscale = [8, 8]",
        ["space", "every parameter is fixed", "widen the bounds"],
    ),
    "unknown loss": ('[[baselines]]\nloss = "arcfce"', ["baselines.0", "'arcfce'", "did you mean 'arcface'?"]),
    "no loss": ('[[baselines]]\nname = "mine"', ["lacks 'baselines.0.loss'"]),
    "unknown parameter of a loss": (
        '[[baselines]]\nloss = "arcface"\nparameters = {margin = 0.5}',
        ["baselines.0", "'arcface'", "'margin'", "it has margin_rad, scale, gradient"],
    ),
    "text for a loss's number": (
        '[[baselines]]\nloss = "arcface"\nparameters = {scale = "big"}',
        ["baselines.0", "'scale'", "'arcface'", "must be a number", "'big'"],
    ),
    "list for a loss's number": (
        '[[baselines]]\nloss = "arcface"\nparameters = {scale = [1]}',
        ["parameter 'scale' of loss 'arcface'", "must be a number", "(1.0,)"],
    ),
    "margin out of range": (
        '[[baselines]]\nloss = "arcface"\nparameters = {margin_rad = 4.0}',
        ["baselines.0.parameters.margin_rad", "at most 1.5708", "4.0"],
    ),
    "product out of range": (
        '[[baselines]]\nloss = "modulating"\nparameters = {margin = 0.9, scale = 1000.0}',
        ["baselines.0: u must be at most 512", "900"],
    ),
    "scale 0": (
        '[[baselines]]\nloss = "softmax"\nparameters = {scale = 0}',
        ["baselines.0.parameters.scale", "above 0", "got 0"],
    ),
    "parameter of a loss without it": (
        '[[baselines]]\nloss = "p2sgrad"\nparameters = {scale = 30.0}',
        ["baselines.0", "'p2sgrad'", "'scale'", "it has weight"],
    ),
    "two baselines of one name": (
        '[[baselines]]\nloss = "arcface"\n[[baselines]]\nloss = "arcface"\nparameters = {margin_rad = 0.3}',
        ["two baselines are called 'arcface'", "another name"],
    ),
    "a baseline called winner": (
        '[[baselines]]\nloss = "arcface"\nname = "winner"',
        ["a baseline is called 'winner'", "rename it"],
    ),
    "a baseline with the name of one that always runs": (
        '[[baselines]]\nloss = "p2sgrad"\nparameters = {weight = 2.0}',
        ["two baselines are called 'p2sgrad'", "another name"],
    ),
    "a baseline's recipe that does not fit the run's": (
        "[recipe]\nsampling = {kind = 'classes'}\n[[baselines]]\nloss = 'softmax'\nrecipe = {batch_size = 6}",
        ["baselines.0.recipe: with the run's", "batch_size must be at least twice sampling.images_per_class", "got 6"],
    ),
    "a listed loss's recipe whose network is not there": (
        "[search]\nmethod = 'fixed_list'\nlosses = [{loss = 'softmax', recipe = {network = 'no_such_module:net'}}]",
        ["search.losses.0.recipe.network", "'no_such_module'", "PYTHONPATH"],
    ),
    "fixed list without losses": ('[search]\nmethod = "fixed_list"', ["lacks 'search.losses'"]),
    "empty fixed list": ('[search]\nmethod = "fixed_list"\nlosses = []', ["search.losses", "1 or more", "[]"]),
    "unknown network": ('[recipe]\nnetwork = "vgg"', ["recipe.network", "must be conv4", "module:factory", "'vgg'"]),
    "a network without a factory": ('[recipe]\nnetwork = "mine:"', ["recipe.network", "'module:factory'", "'mine:'"]),
    "a network whose module is not there": (
        '[recipe]\nnetwork = "no_such_module:net"',
        ["recipe.network", "'no_such_module'", "install it", "PYTHONPATH"],
    ),
    "a network whose factory is not there": (
        '[recipe]\nnetwork = "torch.nn:NoSuchNetwork"',
        ["recipe.network", "torch.nn has nothing of that name"],
    ),
    "unknown reward": ('[recipe]\nreward = "accuracy"', ["recipe.reward", "'tar_at_far_1e-3'", "'accuracy'"]),
    "unknown executor": ('[executor]\nkind = "spark"', ["executor.kind", "'ray' or 'serial'", "'spark'"]),
    "image size too small": ("[data]\nimage_size = 4", ["data.image_size", "at least 16", "4"]),
    "image size too large": ("[data]\nimage_size = 512", ["data.image_size", "at most 256", "512"]),
    "number for a path": ("[data]\npath = 3", ["data.path", "text", "3"]),
    "Ray Client address": (
        '[executor]\naddress = "ray://head:10001"',
        ["executor.address", "'auto' or host:port", "node of its cluster", "'ray://head:10001'"],
    ),
    "no place that MLflow knows": ('[tracking]\nuri = "foo://x"', ["sqlite:///PATH", "'foo://x'", "knows no 'foo://'"]),
    "plain folder for MLflow": ('[tracking]\nuri = "./mlruns"', ["MLflow", "sqlite:///PATH", "'./mlruns'"]),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_bad_config(name: str, here: Path) -> None:
    toml, words = CONFIGS[name]
    (here / "run.toml").write_text(toml, encoding="utf-8")
    before = contents(here)
    refused(lossearch("search", "run.toml", "--run", "mine"), *words)
    assert contents(here) == before


OVERRIDES = {
    "no equals sign": (["search.batch"], ["--set", "key=value", "'search.batch'"]),
    "no key": (["=3"], ["--set", "key=value", "'=3'"]),
    "an empty part of a key": (["search..batch=4"], ["--set", "'search..batch=4'"]),
    "through a scalar": (["seed=1", "seed.x=2"], ["seed.x=2", "'seed' is a value, not a table"]),
    "an empty value": (["search.batch="], ["search.batch", "whole number", "''"]),
    "an unknown key": (["executor.worker=2"], ["'executor.worker'", "did you mean 'workers'?"]),
}


@pytest.mark.parametrize("name", OVERRIDES)
def test_a_bad_override(name: str, here: Path) -> None:
    overrides, words = OVERRIDES[name]
    refused(lossearch("search", "--run", "mine", *(f"--set={each}" for each in overrides)), *words)
    assert contents(here) == {}


def test_a_missing_config(here: Path) -> None:
    refused(lossearch("search", "absent.toml"), "config absent.toml", "No such file")
    assert contents(here) == {}


def test_mlflow_settings_of_the_environment_are_checked_too(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "file:///tmp/mlruns")
    refused(lossearch("search", "--run", "mine"), "MLflow", "sqlite:///PATH", "'file:///tmp/mlruns'")
    assert contents(here) == {}


# --- data -----------------------------------------------------------------------------------------------------------


def _split(root: Path, split: dict[str, str]) -> None:
    rows = "".join(f"{name},{word}\n" for name, word in split.items())
    (root / "split.csv").write_text("class,split\n" + rows, encoding="utf-8")


def _keep(root: Path, classes: int, images: int) -> None:
    for index, name in enumerate(SPLIT):
        for number in range(6):
            if index >= classes or number >= images:
                (root / "images" / name / f"{number}.png").unlink()
    _split(root, dict(list(SPLIT.items())[:classes]))


def _missing(root: Path) -> None:
    shutil.rmtree(root)


def _not_an_image_folder(root: Path) -> None:
    (root / "images").rename(root / "pictures")


def _no_images(root: Path) -> None:
    _keep(root, classes=0, images=0)


def _one_class(root: Path) -> None:
    _keep(root, classes=1, images=6)


def _one_image_a_class(root: Path) -> None:
    _keep(root, classes=16, images=1)


def _few_images_a_class(root: Path) -> None:
    _keep(root, classes=16, images=3)


def _corrupt_jpeg(root: Path) -> None:
    (root / "images" / "shape00" / "7.jpg").write_bytes(b"\xff\xd8\xff\xe0 no picture")


def _truncated_png(root: Path) -> None:
    image = root / "images" / "shape09" / "2.png"
    image.write_bytes(image.read_bytes()[:60])


def _a_text_among_the_images(root: Path) -> None:
    (root / "images" / "shape03" / "notes.txt").write_text("hello", encoding="utf-8")


def _a_file_beside_the_classes(root: Path) -> None:
    (root / "images" / "lost.png").write_bytes(b"")


def _class_in_two_splits(root: Path) -> None:
    with (root / "split.csv").open("a", encoding="utf-8") as file:
        file.write("shape00,val\n")


def _class_without_split(root: Path) -> None:
    _split(root, {name: word for name, word in SPLIT.items() if name != "shape05"})


def _class_without_images(root: Path) -> None:
    _split(root, SPLIT | {"shape99": "train"})


def _unknown_split(root: Path) -> None:
    _split(root, SPLIT | {"shape02": "training"})


def _no_split_column(root: Path) -> None:
    (root / "split.csv").write_text("class,part\nshape00,train\n", encoding="utf-8")


def _split_in_another_encoding(root: Path) -> None:
    (root / "split.csv").write_bytes("class,split\nMüller,train\n".encode("latin-1"))


def _no_val_classes(root: Path) -> None:
    _split(root, {name: "train" if word == "val" else word for name, word in SPLIT.items()})


def _zip_of(root: Path, name: str) -> None:
    shutil.rmtree(root)
    root.mkdir()
    with zipfile.ZipFile(root / "set.zip", "w") as archive:
        archive.writestr(name, b"")


def _zip_that_climbs(root: Path) -> None:
    _zip_of(root, "images/../../escape.png")


def _zip_from_the_root(root: Path) -> None:
    _zip_of(root, "/images/a/0.png")


def _zip_without_images(root: Path) -> None:
    _zip_of(root, "faces/a/0.png")


def _bad_zip(root: Path) -> None:
    shutil.rmtree(root)
    root.mkdir()
    (root / "set.zip").write_bytes(b"PK no zip")


DATA: dict[str, tuple[Callable[[Path], None], list[str]]] = {
    "missing folder": (_missing, ["no file or folder", "set", "images/<class>/<file>"]),
    "not an image folder": (_not_an_image_folder, ["set is not an image folder", "images/<class>/<file>"]),
    "no images": (_no_images, ["holds no images", "images/<class>/<file>"]),
    "one class": (_one_class, ["one class only", "'shape00'"]),
    "one image a class": (_one_image_a_class, ["every class", "one image", "two or more"]),
    "too few images a class": (_few_images_a_class, ["min_images_per_class=4", "has 0", "largest class has 3"]),
    "corrupt JPEG": (_corrupt_jpeg, ["images/shape00/7.jpg", "damaged", "repair or remove them"]),
    "truncated PNG": (_truncated_png, ["images/shape09/2.png", "damaged", "repair or remove them"]),
    "a text among the images": (_a_text_among_the_images, ["images/shape03/notes.txt", "not an image"]),
    "a file beside the classes": (_a_file_beside_the_classes, ["images/lost.png", "images/<class>/<file>"]),
    "class in two splits": (_class_in_two_splits, ["'shape00'", "both train and val", "choose one"]),
    "class missing from split.csv": (_class_without_split, ["split.csv", "'shape05'", "add a row"]),
    "class without images": (_class_without_images, ["split.csv", "'shape99'", "remove the row"]),
    "unknown split": (_unknown_split, ["line 4", "'shape02'", "'training'", "train, val or test"]),
    "split.csv without its column": (_no_split_column, ["split.csv", "lacks the column 'split'", "class, part"]),
    "split.csv in another encoding": (_split_in_another_encoding, ["split.csv", "UTF-8"]),
    "no val classes": (_no_val_classes, ["val split", "four classes or more", "has 0 classes"]),
    "zip that climbs": (_zip_that_climbs, ["unsafe name", "'images/../../escape.png'"]),
    "zip from the root": (_zip_from_the_root, ["unsafe name", "'/images/a/0.png'"]),
    "zip without images": (_zip_without_images, ["holds no images", "images/<class>/<file>"]),
    "bad zip": (_bad_zip, ["set.zip", "cannot be read as a zip"]),
}


@pytest.mark.parametrize("name", DATA)
def test_bad_data(name: str, here: Path) -> None:
    spoil, words = DATA[name]
    spoil(draw_images(here / "set"))
    before = contents(here)
    refused(lossearch("search", "--data", "set", "--run", "space/runs/mine", *TINY_SEARCH), "data: ", *words)
    after = {place: content for place, content in contents(here).items() if not place.startswith("space/cache")}
    assert set(after) - set(before) <= {"space"}
    assert {place: after[place] for place in before} == before


# --- run folders ----------------------------------------------------------------------------------------------------


@pytest.fixture
def unfinished(here: Path, finished_search: tuple[Path, Result]) -> Path:
    """A run that stopped after its third outcome."""
    run_dir = here / "space" / "runs" / "mine"
    run_dir.mkdir(parents=True)
    lines = (finished_search[0] / FILE_NAME).read_bytes().splitlines(keepends=True)
    told = [index for index, line in enumerate(lines) if b'"event":"told"' in line]
    (run_dir / FILE_NAME).write_bytes(b"".join(lines[: told[2] + 1]))
    return run_dir


def _edit_line(run_dir: Path, number: int, line: bytes) -> None:
    lines = (run_dir / FILE_NAME).read_bytes().splitlines(keepends=True)
    lines[number - 1] = line
    (run_dir / FILE_NAME).write_bytes(b"".join(lines))


def _edit_started(run_dir: Path, **changes: object) -> None:
    first = json.loads((run_dir / FILE_NAME).read_bytes().splitlines()[0])
    _edit_line(run_dir, 1, json.dumps(first | changes).encode() + b"\n")


def refused_untouched(run_dir: Path, command: list[str], *words: str) -> None:
    """The command is refused and leaves the folder byte for byte."""
    before = contents(run_dir)
    refused(lossearch(*command), *words)
    assert contents(run_dir) == before


def test_a_run_folder_below_a_file(here: Path) -> None:
    (here / "notes.txt").write_text("mine", encoding="utf-8")
    words = ("run folder", "notes.txt/run", "cannot be written", "Not a directory")
    refused(lossearch("search", "--run", "notes.txt/run", *TINY_SEARCH), *words)
    assert contents(here) == {"notes.txt": b"mine"}


def test_a_cache_folder_below_a_file(here: Path, shapes: Path) -> None:
    (here / "notes.txt").write_text("mine", encoding="utf-8")
    words = ("notes.txt/run/cache", "cannot be written", "Not a directory")
    refused(lossearch("search", "--data", shapes, "--run", "notes.txt/run", *TINY_SEARCH), *words)
    assert contents(here) == {"notes.txt": b"mine"}


def test_a_run_folder_that_holds_a_search(unfinished: Path) -> None:
    command = ["search", "--run", str(unfinished), *TINY_SEARCH]
    refused_untouched(unfinished, command, "already holds a search", f"lossearch resume {unfinished}", "--run")


def test_a_run_folder_whose_search_was_killed_before_its_first_event(shapes: Path, here: Path) -> None:
    (here / "run").mkdir()
    (here / "run" / FILE_NAME).write_bytes(b'{"event": "sta')
    done = lossearch("search", "--data", shapes, "--run", "run", *TINY_SEARCH)
    assert done.code == 0, done.err
    assert isinstance(read_events(here / "run" / FILE_NAME)[0][-1], Finished)


def test_two_searches_on_one_folder(unfinished: Path) -> None:
    with Journal(unfinished):
        refused_untouched(unfinished, ["resume", str(unfinished)], "another process is using", str(unfinished))


def test_two_searches_on_one_folder_with_tracking(unfinished: Path) -> None:
    with Journal(unfinished):
        command = ["resume", str(unfinished), "--set=tracking.enabled=true"]
        refused_untouched(unfinished, command, "another process is using", str(unfinished))
    assert not (unfinished.parents[1] / "mlflow.db").exists()


COMMANDS = ("resume", "report", "export", "sync", "dashboard")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_missing_run_folder(command: str, here: Path) -> None:
    refused(lossearch(command, "absent"), "no journal", "absent", "folder of a run")
    assert contents(here) == {}


@pytest.mark.parametrize("command", COMMANDS)
def test_an_empty_run_folder(command: str, here: Path) -> None:
    (here / "empty").mkdir()
    refused(lossearch(command, "empty"), "no journal", "empty", "folder of a run")
    assert contents(here) == {"empty": None}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_file_for_a_run_folder(command: str, here: Path) -> None:
    (here / "notes.txt").write_text("mine", encoding="utf-8")
    refused(lossearch(command, "notes.txt"), "notes.txt", "give the folder of a run")
    assert contents(here) == {"notes.txt": b"mine"}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_foreign_journal(command: str, here: Path) -> None:
    (here / FILE_NAME).write_text('{"step": 1, "loss": 0.5}\n', encoding="utf-8")
    refused_untouched(here, [command, str(here)], FILE_NAME, "line 1")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_torn_middle_line(command: str, unfinished: Path) -> None:
    _edit_line(unfinished, 3, b'{"event":"told","tri\n')
    refused_untouched(unfinished, [command, str(unfinished)], FILE_NAME, "line 3", "damaged")


def test_a_journal_that_does_not_begin_with_its_beginning(unfinished: Path) -> None:
    lines = (unfinished / FILE_NAME).read_bytes().splitlines(keepends=True)
    (unfinished / FILE_NAME).write_bytes(b"".join(lines[1:]))
    refused_untouched(unfinished, ["resume", str(unfinished)], "does not begin with a 'started' event")


def test_a_journal_of_a_newer_schema(unfinished: Path) -> None:
    _edit_started(unfinished, schema_version=2, versions={"lossearch": "9.1"})
    refused_untouched(unfinished, ["resume", str(unfinished)], "schema 2", "reads schema 1", "use lossearch 9.1")


def test_data_that_has_changed(unfinished: Path) -> None:
    started = read_events(unfinished / FILE_NAME)[0][0].model_dump(mode="json")
    _edit_started(unfinished, data=started["data"] | {"digest": "0123456789abcdef"})
    words = ["data has changed", "0123456789abcdef", started["data"]["digest"], "start a new search"]
    refused_untouched(unfinished, ["resume", str(unfinished)], *words)


def test_an_override_that_a_resumed_search_cannot_take(unfinished: Path) -> None:
    command = ["resume", str(unfinished), "--set=search.batch=8"]
    refused_untouched(unfinished, command, "executor and tracking only", "'search.batch=8'")


def test_threads_belong_to_the_search_that_is_resumed(unfinished: Path) -> None:
    command = ["resume", str(unfinished), "--set=executor.threads=2"]
    refused_untouched(unfinished, command, "executor.threads belongs to the arithmetic", "'executor.threads=2'")


def test_a_bad_override_of_a_resumed_search(unfinished: Path) -> None:
    command = ["resume", str(unfinished), "--set=executor.workers=0"]
    refused_untouched(unfinished, command, "executor.workers", "at least 1", "got 0")


def test_export_of_an_unfinished_run(unfinished: Path) -> None:
    refused_untouched(unfinished, ["export", str(unfinished)], "not finished", "resume it first")


def test_export_of_a_run_without_a_winner(unfinished: Path) -> None:
    with Journal(unfinished) as journal:
        journal.append(Finished(winner=None))
    refused_untouched(unfinished, ["export", str(unfinished)], "no winner", "horizon")


def test_export_to_a_place_that_cannot_be_written(finished_search: tuple[Path, Result], here: Path) -> None:
    (here / "notes.txt").write_text("mine", encoding="utf-8")
    command = ["export", str(finished_search[0]), "--output", "notes.txt/winner.json"]
    refused_untouched(finished_search[0], command, "notes.txt/winner.json", "cannot be written", "Not a directory")
    assert contents(here) == {"notes.txt": b"mine"}


def test_export_to_a_file_of_another_kind(finished_search: tuple[Path, Result], here: Path) -> None:
    (here / "run.toml").write_text("seed = 1", encoding="utf-8")
    command = ["export", str(finished_search[0]), "--output", "run.toml"]
    refused_untouched(finished_search[0], command, "must end in .json", "but got run.toml")
    assert contents(here) == {"run.toml": b"seed = 1"}


def test_the_dashboard_of_a_workspace_without_runs(here: Path) -> None:
    refused(lossearch("dashboard"), "no runs", str(here / "lossearch" / "runs"), "lossearch search")
    assert contents(here) == {}


def test_sync_to_a_plain_folder(unfinished: Path) -> None:
    refused_untouched(unfinished, ["sync", str(unfinished), "--uri", "mlruns"], "sqlite:///PATH", "'mlruns'")


# --- the same from a process of its own -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["search", "--set", "search.batch=3"], ["search.batch", "even"]),
        (["search", "--data", "absent"], ["no file or folder", "absent"]),
        (["resume", "absent"], ["no journal", "absent"]),
    ],
)
def test_from_a_shell(arguments: list[str], words: list[str], here: Path) -> None:
    command = [sys.executable, "-c", "from lfs.cli import main; main()", *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    refused(Result(done.returncode, done.stdout, done.stderr), *words)
    assert contents(here) == {}


def test_a_run_folder_that_another_search_took_while_the_data_were_read(shapes: Path, here: Path) -> None:
    run_dir = here / "runs" / "run"
    first = plan_new(load_config(None, [f"data.path={shapes}"]), run_dir)
    run_dir.mkdir(parents=True)
    with Journal(run_dir) as journal:
        journal.append(started())
    before = contents(run_dir)
    with pytest.raises(ConfigError, match="already holds a search"):
        run(first, on_event=lambda _: None)
    assert contents(run_dir) == before


def test_an_interrupt_before_anything_began_leaves_no_run_folder(
    shapes: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = plan_new(load_config(None, [f"data.path={shapes}", "executor.kind=serial"]), here / "runs" / "run")

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("lfs.launch.probe", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(planned, on_event=interrupt)
    assert not (here / "runs" / "run").exists()
