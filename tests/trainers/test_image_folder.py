import io
import os
import stat
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trainers.data import DataConfig, load_task
from trainers.formats.opening import open_images
from trainers.image_file import ImageFile
from trainers.image_source import DataError

CLASSES = {f"class{index:02d}": 4 for index in range(12)}
SPLIT = {name: ("train", "val", "test")[index // 4] for index, name in enumerate(CLASSES)}


def png(seed: int = 0) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 20), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


def files(classes: Mapping[str, int] = CLASSES) -> dict[str, bytes]:
    names = [f"images/{name}/{index}.png" for name, count in classes.items() for index in range(count)]
    return {name: png(seed) for seed, name in enumerate(names)}


def split_csv(split: Mapping[str, str]) -> bytes:
    return "\n".join(["class,split", *(f"{name},{word}" for name, word in split.items())]).encode()


def write_folder(root: Path, contents: Mapping[str, bytes]) -> Path:
    for name, content in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def write_zip(path: Path, contents: Mapping[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return path


def _good(root: Path) -> Path:
    return write_folder(root, files() | {"split.csv": split_csv(SPLIT)})


def test_a_folder_its_zip_and_a_folder_with_the_zip_are_the_same_set(tmp_path: Path) -> None:
    contents = files() | {"split.csv": split_csv(SPLIT)}
    places = [
        write_folder(tmp_path / "plain", contents),
        write_zip(tmp_path / "inside.zip", contents),
        write_zip(tmp_path / "kept" / "set.zip", files()).parent,
        tmp_path / "kept" / "set.zip",
    ]
    (tmp_path / "kept" / "split.csv").write_bytes(split_csv(SPLIT))
    opened = [open_images(place) for place in places]
    assert {tuple(one.files.items()) for one in opened} == {tuple(opened[0].files.items())}
    assert [one.splits for one in opened] == [SPLIT] * 4
    names = [name for of_class in opened[0].files.values() for name in of_class]
    assert all(one.fingerprints(names) == opened[0].fingerprints(names) for one in opened)


def test_a_table_beside_a_zip_goes_before_the_one_in_it(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "set.zip", files() | {"split.csv": split_csv(SPLIT)})
    later = SPLIT | {"class00": "test", "class08": "train"}
    (tmp_path / "split.csv").write_bytes(split_csv(later))
    assert open_images(path).splits == open_images(tmp_path).splits == later


def test_a_class_with_blanks_around_its_name_keeps_its_split(tmp_path: Path) -> None:
    blank = SPLIT | {" class00": "train", "class01 ": "test"}
    contents = files(dict.fromkeys(blank, 2)) | {"split.csv": split_csv(blank)}
    assert open_images(write_folder(tmp_path / "blank", contents)).splits == blank
    typed = {f" {name} ": split for name, split in SPLIT.items()}
    contents = files() | {"split.csv": split_csv(typed)}
    assert open_images(write_folder(tmp_path / "typed", contents)).splits == SPLIT


def test_the_desktops_files_are_passed_over(tmp_path: Path) -> None:
    litter = ("images/.DS_Store", "images/class00/Thumbs.db", "images/class00/._0.png", "__MACOSX/images/x", "README")
    contents = files() | dict.fromkeys(litter, b"?")
    folder, zipped = write_folder(tmp_path / "a", contents), write_zip(tmp_path / "b.zip", contents)
    assert open_images(folder).files == open_images(zipped).files
    assert {name: len(of_class) for name, of_class in open_images(folder).files.items()} == CLASSES


def test_without_a_table_the_names_alone_decide_the_split(tmp_path: Path) -> None:
    many = {f"person {index}": 2 for index in range(100)} | {f"stranger {index}": 1 for index in range(100)}
    folder = open_images(write_folder(tmp_path / "a", files(many)))
    sizes = {split: len(folder.classes(split)) for split in ("train", "val", "test")}
    assert sizes == {"train": 140, "val": 30, "test": 30}
    for split in ("train", "val", "test"):
        strangers = sum(name.startswith("stranger") for name in folder.classes(split))
        assert strangers == len(folder.classes(split)) / 2
    more_images = {name: count + 1 for name, count in many.items() if count == 2}
    again = open_images(write_folder(tmp_path / "b", files(many | more_images)))
    assert again.splits == folder.splits


def test_the_smallest_set_that_a_hash_may_split_gives_a_task(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "set", files({f"c{index}": 4 for index in range(8)}))
    task = load_task(DataConfig(path=folder), cache_dir=tmp_path / "cache")
    assert (task.train.classes, task.reward.classes, task.choice.classes) == (2, 2, 2)


def _changed(changes: Mapping[str, bytes | None]) -> Callable[[Path], Path]:
    """Make the good folder with some files replaced, added or (None) removed."""

    def make(root: Path) -> Path:
        _good(root)
        write_folder(root, {name: content for name, content in changes.items() if content is not None})
        for name, content in changes.items():
            if content is None:
                (root / name).unlink()
        return root

    return make


def _table(change: Mapping[str, str]) -> Callable[[Path], Path]:
    return _changed({"split.csv": split_csv({**SPLIT, **change})})


def _classes(classes: Mapping[str, int]) -> Callable[[Path], Path]:
    return lambda root: write_folder(root, files(classes))


def _zip_with(name: str, *, mode: int = 0o644) -> Callable[[Path], Path]:
    def make(root: Path) -> Path:
        path = write_zip(root / "set.zip", files())
        with zipfile.ZipFile(path, "a") as archive:
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            archive.writestr(info, b"/etc/passwd")
        return path

    return make


def _broken_member(root: Path) -> Path:
    path = write_zip(root / "set.zip", files())
    content = path.read_bytes()
    at = content.index(png(0))
    path.write_bytes(content[: at + 40] + b"\0\0\0\0" + content[at + 44 :])
    return path


def _dangling_link(root: Path) -> Path:
    _good(root)
    (root / "images/class00/9.png").symlink_to(root / "nowhere.png")
    return root


def _two_zips(root: Path) -> Path:
    write_zip(root / "a.zip", files())
    write_zip(root / "b.zip", files())
    return root


def _latin_1(root: Path) -> Path:
    _good(root)
    (root / "images" / "class00").rename(root / "images" / os.fsdecode("Müller".encode("latin-1")))
    return root


BAD: dict[str, tuple[Callable[[Path], Path], tuple[str, ...]]] = {
    "missing": (lambda root: root / "nowhere", ("there is no file or folder", "nowhere")),
    "not an image folder": (lambda root: write_folder(root, {"notes.txt": b""}), ("is not an image folder", "images/")),
    "empty": (lambda root: write_folder(root, {"images/.keep": b""}), ("holds no images",)),
    "empty zip": (lambda root: write_zip(root / "set.zip", {"readme": b""}), ("holds no images",)),
    "two zips": (_two_zips, ("holds 2 zips", "a.zip")),
    "one class": (_classes({"only": 8}), ("one class only", "'only'")),
    "one image a class": (_classes(dict.fromkeys(CLASSES, 1)), ("every class", "one image", "two or more")),
    "few classes": (_classes(dict.fromkeys("abcdefg", 4)), ("takes 8", "has 7", "split.csv")),
    "train too thin": (_classes(dict.fromkeys(CLASSES, 3)), ("min_images_per_class=4", "largest class has 3")),
    "no val": (
        _table({name: "train" for name, split in SPLIT.items() if split == "val"}),
        ("the val split", "has 0 classes"),
    ),
    "corrupt image": (_changed({"images/class01/2.png": png()[:60]}), ("images/class01/2.png", "damaged")),
    "not an image": (_changed({"images/class01/2.png": b"hello"}), ("images/class01/2.png", "not an image")),
    "two splits": (
        _changed({"split.csv": split_csv(SPLIT) + b"\nclass00,val"}),
        ("'class00'", "both train and val"),
    ),
    "class without folder": (_table({"ghost": "train"}), ("'ghost'", "images/ghost has no files")),
    "folder without class": (_changed({"images/extra/0.png": png()}), ("does not name class 'extra'",)),
    "unknown split": (_table({"class03": "dev"}), ("line 5", "'class03'", "'dev'", "train, val or test")),
    "missing column": (_changed({"split.csv": b"class,fold\na,1"}), ("lacks the column 'split'", "class, fold")),
    "empty table": (_changed({"split.csv": b""}), ("lacks the column 'class'", "none")),
    "table not text": (_changed({"split.csv": b"\xff\xfe\x00c"}), ("split.csv", "UTF-8")),
    "loose file": (_changed({"images/stray.png": png()}), ("images/stray.png", "layout")),
    "too deep": (_changed({"images/class00/deep/0.png": png()}), ("images/class00/deep", "layout")),
    "class not text": (_latin_1, (r"'M\udcfcller'", "not in UTF-8")),
    "zip too deep": (_zip_with("images/class00/deep/0.png"), ("images/class00/deep/0.png", "layout")),
    "zip climbs out": (_zip_with("../evil.png"), ("unsafe name '../evil.png'",)),
    "zip climbs inside": (_zip_with("images/a/../../../evil.png"), ("unsafe name",)),
    "zip absolute": (_zip_with("/etc/evil.png"), ("unsafe name '/etc/evil.png'",)),
    "zip windows": (_zip_with("C:\\evil.png"), ("unsafe name",)),
    "zip link": (_zip_with("images/class00/l.png", mode=stat.S_IFLNK | 0o777), ("symbolic link", "images/class00/l")),
    "bad zip": (lambda root: write_folder(root, {"set.zip": b"PK nonsense"}) / "set.zip", ("read as a zip",)),
    "broken zip member": (_broken_member, ("images/class00/0.png", "cannot be read")),
    "unreadable": (_dangling_link, ("images/class00/9.png", "cannot be read")),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_sentence_and_leaves_no_half_built_cache(case: str, tmp_path: Path) -> None:
    make, fragments = BAD[case]
    path = make(tmp_path / "set")
    with pytest.raises(DataError) as caught:
        load_task(DataConfig(path=path), cache_dir=tmp_path / "cache")
    sentence = str(caught.value)
    assert all(fragment in sentence for fragment in fragments), sentence
    assert "\n" not in sentence
    for cached in (entry for entry in (tmp_path / "cache").glob("*") if entry.is_dir()):
        ImageFile.of(cached).verify()  # whole: the next start need not decode to say the same


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_folder_without_permission_gets_a_sentence(tmp_path: Path) -> None:
    folder = _good(tmp_path / "set")
    (folder / "images").chmod(0)
    with pytest.raises(DataError, match="cannot be listed"):
        open_images(folder)
    (folder / "images").chmod(0o755)


def test_class_folders_alone_are_the_same_set_as_in_an_images_folder(tmp_path: Path) -> None:
    usual = _good(tmp_path / "usual")
    plain = write_folder(
        tmp_path / "plain", {name.removeprefix("images/"): content for name, content in files().items()}
    )
    (plain / "split.csv").write_bytes(split_csv(SPLIT))
    (plain / "README.txt").write_text("what is here")
    assert (open_images(plain).files, open_images(plain).splits) == (open_images(usual).files, SPLIT)
    tasks = [load_task(DataConfig(path=path), cache_dir=tmp_path / "cache") for path in (usual, plain)]
    assert tasks[0].digest == tasks[1].digest
    assert len([entry for entry in (tmp_path / "cache").iterdir() if entry.is_dir()]) == 1
