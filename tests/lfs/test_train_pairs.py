"""What `lossearch train --pairs` takes: the lists that `lossearch evaluate` takes, scored alike."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lfs.journal import FILE_NAME, Trained, read_events
from tests.lfs.command import SPLIT, contents, lossearch
from tests.lfs.test_bad_input import refused
from tests.lfs.test_train import UNTRACKED
from trainers.formats.opening import open_images

RealData = Callable[[str], Path]

QUICK = (*UNTRACKED, "--loss", "softmax", "--set=recipe.epochs=1")
NOT_TRAINED_ON = sorted(name for name, split in SPLIT.items() if split != "train")
PAIRS = 97


def accuracy_of(folder: Path, name: str) -> float:
    rows = [event.metrics for event in read_events(folder / FILE_NAME)[0] if isinstance(event, Trained)]
    return rows[-1][f"pairs/{name}/accuracy"]


def evaluated(embeddings: str, *arguments: str | Path) -> float:
    done = lossearch("evaluate", embeddings, "--resamples", "20", "--json", "found.json", *arguments)
    assert done.code == 0, done.err
    content = json.loads(Path("found.json").read_text())
    return float(content["results"]["all"]["measures"]["accuracy"]["value"])


def write_csv(path: Path, source: Path, classes: list[str]) -> Path:
    """As many pairs as make folds of two sizes, half of them genuine."""
    files, rng = open_images(source).files, np.random.default_rng(0)
    lines = ["first,second,genuine"]
    for number in range(PAIRS):
        one, two = rng.choice(classes, 2, replace=False).tolist()
        left, right = files[one], files[one if number % 2 else two]
        lines.append(f"{left[rng.integers(3)]},{right[3 + rng.integers(3)]},{number % 2}")
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("flip", ["false", "true"])
def test_pairs_in_a_csv_are_scored_as_an_evaluation_scores_them(shapes: Path, here: Path, flip: str) -> None:
    listed = write_csv(here / "odd.csv", shapes, NOT_TRAINED_ON)
    told = ("--data", shapes, "--pairs", "odd.csv", f"--set=recipe.augmentation.flip={flip}")
    done = lossearch("train", *told, "--out", "out", *QUICK)
    assert done.code == 0, done.err
    assert lossearch("embed", "out", shapes, "all.npz").code == 0
    with np.load("all.npz") as arrays:
        assert ("flipped" in arrays) == (flip == "true")
    found = accuracy_of(here / "out", "odd")
    assert 0.5 < found < 1
    assert evaluated("all.npz", "--pairs", listed) == pytest.approx(found)
    assert f"odd {found:.4f}" in done.out
    assert lossearch("train", "--resume", "out").code == 0


def test_lists_of_a_config_name_their_images(shapes: Path, here: Path) -> None:
    (here / "lists").mkdir()
    write_csv(here / "lists" / "own.csv", shapes, NOT_TRAINED_ON)
    (here / "other").symlink_to(shapes)
    lines = (here / "lists" / "own.csv").read_text()
    (here / "lists" / "theirs.csv").write_text(lines)
    toml = 'pairs = ["lists/own.csv", { path = "lists/theirs.csv", images = "other" }]\n'
    (here / "run.toml").write_text(toml)
    done = lossearch("train", "run.toml", "--data", shapes, "--out", "out", *QUICK)
    assert done.code == 0, done.err
    assert accuracy_of(here / "out", "own") == accuracy_of(here / "out", "theirs")


@pytest.mark.slow
def test_lfws_own_list_is_scored_in_another_set(real_data: RealData, here: Path) -> None:
    """Trained on orl, scored on lfw112's official pairs, its images being looked up by identity and number."""
    listed = real_data("lfw112") / "pairs_val.txt"
    told = ("--data", real_data("orl"), "--pairs", f"{listed}={real_data('lfw112')}", "--out", "out")
    done = lossearch("train", *told, *QUICK, "--set=data.image_size=32")
    assert done.code == 0, done.err
    assert lossearch("embed", "out", real_data("lfw112"), "lfw.npz", "--split", "val").code == 0
    assert evaluated("lfw.npz", "--pairs", listed) == pytest.approx(accuracy_of(here / "out", "pairs_val"))


REFUSED = {
    "another file": (["--pairs", "a.png"], [r"a list of pairs is a pairs.txt, a .bin or a .csv", "a.png"]),
    "no such list": (["--pairs", "absent.csv"], ["pairs: ", "absent.csv cannot be read"]),
    "no such images": (["--pairs", "odd.csv=absent"], ["no file or folder", "absent"]),
    "images of a .bin": (["--pairs", "lfw.bin=SHAPES"], ["lfw.bin holds its own images", "leave out"]),
    "training identities": (["--pairs", "seen.csv"], ["seen.csv names images of 'shape00'", "trained on"]),
    "the same, said twice": (["--pairs", "seen.csv=SHAPES"], ["seen.csv names images of 'shape00'", "trained on"]),
    "an unknown image": (["--pairs", "lost.csv"], ["lost.csv names 'x.png'", "such as 'images/shape00/0.png'"]),
    "few pairs": (["--pairs", "few.csv"], ["few.csv must hold 10 pairs or more in two folds or more"]),
    "one fold": (["--pairs", "fold.csv"], ["fold.csv must hold 10 pairs or more in two folds or more"]),
    "a number": (["--set=pairs=[3]"], ["pairs.0", "a text or a table", "got 3"]),
    "no list": (["--set=pairs=[{images = 'faces'}]"], ["lacks 'pairs.0.path'"]),
    "an unknown key": (["--set=pairs=[{path = 'a.csv', set = 'b'}]"], ["'pairs.0.set'", "known are path, images"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_wrong_pairs_are_one_sentence_and_nothing_is_written(name: str, shapes: Path, here: Path) -> None:
    write_csv(here / "odd.csv", shapes, NOT_TRAINED_ON)
    write_csv(here / "seen.csv", shapes, sorted(SPLIT))
    lines = (here / "odd.csv").read_text().splitlines()
    (here / "few.csv").write_text("\n".join(lines[:10]))
    (here / "fold.csv").write_text("\n".join([f"{lines[0]},fold", *(f"{line},1" for line in lines[1:])]))
    (here / "lost.csv").write_text(f"{lines[0]}\nx.png,y.png,1\n")
    before = contents(here)
    arguments, words = REFUSED[name]
    told = [argument.replace("SHAPES", str(shapes)) for argument in arguments]
    refused(lossearch("train", "--data", shapes, *told, "--out", "out", *QUICK), *words)
    assert contents(here) == before


def test_a_list_without_a_set_is_refused(here: Path) -> None:
    (here / "odd.csv").write_text("first,second,genuine\n")
    told = ("--pairs", "odd.csv", "--out", "out", "--loss", "softmax", "--network", "conv4")
    refused(
        lossearch("train", *told), "odd.csv names images", "the embedded glyphs have none of", "--pairs LIST=IMAGES"
    )
    assert list(contents(here)) == ["odd.csv"]
