"""`lossearch evaluate` from end to end: what it prints and writes, and what it refuses."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.lfs.command import contents, lossearch
from tests.lfs.test_bad_input import refused
from trainers.formats.opening import open_images
from trainers.pair_protocol import accuracy_by_fold, read_pair_list, rows_by_number
from trainers.verification import verification

RealData = Callable[[str], Path]

FEW = ("--resamples", "50")


@pytest.fixture
def faces(here: Path) -> Path:
    """Sixty people, five images each, in two groups, and strangers."""
    rng = np.random.default_rng(0)
    label_N = np.repeat(np.arange(60), 5)
    centres = rng.standard_normal((60, 8))
    x_ND = (centres[label_N] + 0.7 * rng.standard_normal((300, 8))).astype(np.float32)
    path = here / "faces.npz"
    half_N = label_N % 2
    race_N, kind_N = np.array(["a", "b"])[half_N], np.array(["all", "some"])[half_N]
    np.savez(path, embeddings=x_ND, labels=label_N, race=race_N, kind=kind_N)
    np.savez(here / "strangers.npz", embeddings=rng.standard_normal((500, 8)).astype(np.float32))
    return path


def rows(printed: str) -> dict[str, list[str]]:
    return {line.split()[0]: line.split()[1:] for line in printed.splitlines() if line.strip()}


def test_all_pairs_are_printed_and_written_with_intervals(faces: Path, here: Path) -> None:
    done = lossearch("evaluate", faces, *FEW, "--json", "all.json", "--plot", "all.html")
    assert done.code == 0, done.err
    with np.load(faces) as arrays:
        exact = verification(arrays["embeddings"], arrays["labels"], (1e-1, 1e-2, 1e-3, 1e-4))
    found = json.loads((here / "all.json").read_text())["results"]["all"]
    assert done.out.startswith("all pairs: 300 images, 60 identities, 600 genuine pairs, 44,250 impostor pairs\n")
    assert {*found["measures"]} == {*[f"tar_at_far_1e-{power}" for power in (1, 2, 3, 4)], "eer", "auc", "rank1"}
    for name, measure in found["measures"].items():
        assert measure["value"] == pytest.approx(exact[name])
        interval = f"[{measure['low']:.4f}, {measure['high']:.4f}]"
        assert rows(done.out)[name] == [f"{measure['value']:.4f}", *interval.split()]
    assert len(found["curve"]["far"]) == len(found["curve"]["tar"])
    page = (here / "all.html").read_text()
    assert "roc-figure" in page
    assert "det-figure" in page


def test_groups_are_shown_beside_all_with_their_spread(faces: Path, here: Path) -> None:
    done = lossearch("evaluate", faces, *FEW, "--by", "race", "--json", "by.json", "--plot", "by.html", "--far", "0.01")
    assert done.code == 0, done.err
    content = json.loads((here / "by.json").read_text())
    assert list(content["results"]) == ["all", "a", "b"]
    values = [content["results"][group]["measures"]["eer"]["value"] for group in "ab"]
    assert content["spread"]["eer"]["mean"] == pytest.approx(np.mean(values))
    assert content["spread"]["eer"]["skewed_error_ratio"] == pytest.approx(max(values) / min(values))
    assert f"{np.mean(values):.4f}" in done.out
    assert "tar_at_far_1e-2" in content["results"]["all"]["measures"]
    assert "skewed error ratio" in done.out


def test_a_group_of_too_few_pairs_gets_a_dash_and_the_reason(faces: Path, here: Path) -> None:
    with np.load(faces) as arrays:
        whole = dict(arrays)
    whole["race"] = np.where(np.arange(300) < 2, "c", whole["race"])
    np.savez(here / "rare.npz", **whole)
    done = lossearch("evaluate", "rare.npz", *FEW, "--by", "race", "--json", "by.json", "--plot", "by.html")
    assert done.code == 0, done.err
    content = json.loads((here / "by.json").read_text())
    assert list(content["results"]) == ["all", "a", "b"]
    values = [content["results"][group]["measures"]["eer"]["value"] for group in "ab"]
    assert content["spread"]["eer"]["mean"] == pytest.approx(np.mean(values))
    reason = "rare.npz has 1 pairs of one identity and 0 of two among 2 images"
    assert content["unscored"]["c"].startswith(reason)
    assert f"group 'c' is not scored: {reason}" in done.out
    assert len(re.findall(r"^genuine pairs +[\d,]+ +[\d,]+ +[\d,]+ *$", done.out, re.M)) == 1  # of all, a and b
    assert ["eer", "–"] in [line.split() for line in done.out.splitlines()]  # in a table of its own, at 80 columns
    page = (here / "by.html").read_text()
    assert "group &#x27;c&#x27; is not scored" in page
    assert "<td>c</td><td>–</td>" in page


def test_the_same_seed_draws_the_same_intervals(faces: Path) -> None:
    one, again, other = (lossearch("evaluate", faces, *FEW, "--seed", seed).out for seed in ("0", "0", "1"))
    assert one == again != other


def test_probes_are_looked_up_in_a_gallery_with_distractors(faces: Path, here: Path) -> None:
    (here / "gallery.txt").write_text("\n".join(str(row) for row in range(0, 250, 5)))
    done = lossearch(
        "evaluate", faces, *FEW, "--gallery", "gallery.txt", "--distractors", "strangers.npz", "--json", "id.json"
    )
    assert done.code == 0, done.err
    assert done.out.startswith(
        "identification: 200 mated probes, 50 other probes, 50 gallery entries, 500 distractors\n"
    )
    found = json.loads((here / "id.json").read_text())["results"]["all"]["measures"]
    assert {*found} == {"rank1", "rank5", "tpir_at_fpir_1e-1"}
    assert found["tpir_at_fpir_1e-1"]["value"] <= found["rank1"]["value"] <= found["rank5"]["value"]
    with np.load(faces) as arrays:
        whole = {name: arrays[name] for name in arrays.files}
    entries = np.arange(0, 250, 5)
    np.savez(here / "gallery.npz", **{name: values[entries] for name, values in whole.items()})
    np.savez(here / "probes.npz", **{name: np.delete(values, entries, axis=0) for name, values in whole.items()})
    again = lossearch("evaluate", "probes.npz", *FEW, "--gallery", "gallery.npz", "--distractors", "strangers.npz")
    assert again.out.splitlines()[:5] == done.out.splitlines()[:5]


def test_distractors_alone_are_the_protocol_of_megaface(faces: Path) -> None:
    done = lossearch("evaluate", faces, *FEW, "--distractors", "strangers.npz", "--by", "race")
    assert done.code == 0, done.err
    assert "300 images, 60 identities, 1,200 probes with a mate, 500 distractors" in done.out


def test_pairs_of_templates_are_verified_in_folds(here: Path) -> None:
    rng = np.random.default_rng(1)
    x_ND = rng.standard_normal((200, 8)).astype(np.float32)
    template_N, media = np.repeat(np.arange(100), 2), np.tile([0, 1], 100)
    np.savez(here / "x.npz", embeddings=x_ND, flipped=x_ND, templates=template_N, media=media, labels=template_N // 2)
    pairs = [(2 * n, 2 * n + 1, 1) for n in range(50)] + [(n, (n + 5) % 100, 0) for n in range(50)]
    lines = "".join(f"{a},{b},{mate}\n" for a, b, mate in pairs)
    (here / "pairs.csv").write_text("first,second,genuine\n" + lines)
    done = lossearch("evaluate", "x.npz", *FEW, "--pairs", "pairs.csv")
    assert done.code == 0, done.err
    assert done.out.startswith("listed pairs: 50 genuine pairs, 50 impostor pairs, 10 folds\n")
    assert "accuracy" in rows(done.out)


def test_lfw_has_its_accuracy_under_its_own_list(real_data: RealData, here: Path) -> None:
    source, listed = open_images(real_data("lfw112")), read_pair_list(real_data("lfw112") / "pairs_val.txt")
    every = source.names(source.files)
    found = rows_by_number([*listed.first, *listed.second], every, "lfw112", "the list")
    names = {image: every[row] for image, row in found.items()}
    wanted = sorted(set(names.values()))
    x_ND = np.random.default_rng(0).standard_normal((len(wanted), 16)).astype(np.float32)
    np.savez(here / "lfw.npz", embeddings=x_ND, paths=np.array(wanted))
    done = lossearch(
        "evaluate", "lfw.npz", *FEW, "--pairs", real_data("lfw112") / "pairs_val.txt", "--json", "lfw.json"
    )
    assert done.code == 0, done.err
    unit = x_ND / np.linalg.norm(x_ND, axis=1, keepdims=True)
    row_of = {name: row for row, name in enumerate(wanted)}
    one, two = (unit[[row_of[names[image]] for image in side]] for side in (listed.first, listed.second))
    dealt_P = np.tile(np.repeat(np.arange(10), 30), 2)  # the list has one fold: a tenth of each kind goes into one
    exact = accuracy_by_fold((one * two).sum(1), listed.genuine_P, dealt_P).mean()
    found = json.loads((here / "lfw.json").read_text())["results"]["all"]["measures"]["accuracy"]["value"]
    assert found == pytest.approx(exact)


REFUSED: dict[str, tuple[list[str], list[str]]] = {
    "absent": (["absent.npz"], ["absent.npz cannot be read"]),
    "another file": (["faces.csv"], ["faces.csv must be an .npz"]),
    "two protocols": (["faces.npz", "--pairs", "p.csv", "--gallery", "g.npz"], ["--pairs", "leave out --gallery"]),
    "probe alone": (["faces.npz", "--probe", "p.txt"], ["--probe needs a --gallery"]),
    "rate": (["faces.npz", "--far", "1"], ["--far must lie between 0 and 1", "got 1"]),
    "device": (["faces.npz", "--device", "abacus"], ["--device must be one of cpu", "'abacus'"]),
    "column": (["faces.npz", "--by", "sex"], ["no array 'sex'", "it has embeddings, labels, race"]),
    "group": (["faces.npz", "--by", "kind"], ["--by kind", "a group of faces.npz is called 'all'"]),
    "list": (["faces.npz", "--pairs", "p.csv"], ["p.csv cannot be read"]),
    "no labels": (["strangers.npz"], ["strangers.npz has no array 'labels'"]),
    "name": (["faces.npz", "--gallery", "names.txt"], ["names.txt names '300'", "neither 'templates' nor 'paths'"]),
    "nobody": (["faces.npz", "--gallery", "empty.txt"], ["empty.txt names nobody"]),
    "dimensions": (["faces.npz", "--distractors", "other.npz"], ["3 dimensions", "of 8"]),
    "page": (["faces.npz", "--plot", "p.png"], ["must end in .html", "p.png"]),
    "another ending": (["faces.npz", "--json", "faces.npz"], ["must end in .json", "faces.npz"]),
    "folder": (["faces.npz", "--json", "no/where.json"], ["--json", "no/where.json"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_evaluated_is_refused_with_one_sentence_and_nothing_is_written(
    name: str, faces: Path, here: Path
) -> None:
    (here / "names.txt").write_text("0\n300\n")
    (here / "empty.txt").write_text("\n")
    np.savez(here / "other.npz", embeddings=np.eye(3, dtype=np.float32))
    before = contents(here)
    arguments, words = REFUSED[name]
    if "--plot" not in arguments and "--json" not in arguments:
        arguments = [*arguments, "--plot", "page.html", "--json", "all.json"]
    refused(lossearch("evaluate", *arguments), *words)
    assert contents(here) == before
