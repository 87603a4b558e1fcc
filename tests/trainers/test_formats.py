"""One image set in every format: the same names, splits, decoded images and task."""

import io
import json
import os
import random
import resource
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import joblib
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sklearn.datasets import fetch_lfw_people, fetch_olivetti_faces

from tests.trainers.test_image_folder import SPLIT, files, png, split_csv, write_folder
from trainers.data import DataConfig, load_sealed_test, load_task
from trainers.formats.opening import find_images, open_images, set_name
from trainers.formats.writing import WRITERS, write_images
from trainers.image_cache import decode_image
from trainers.image_source import DataError, ImageSource, Split
from trainers.proxy_set import Share, proxy_of

RealData = Callable[[str], Path]
ENDINGS = {"list": "/list.csv", "npz": ".npz", "parquet": ".parquet", "tar": ".tar", "zip": ".zip"}


@pytest.fixture
def source(tmp_path: Path) -> ImageSource:
    return open_images(write_folder(tmp_path / "set", files() | {"split.csv": split_csv(SPLIT)}))


def written(source: ImageSource, folder: Path, kind: str) -> Path:
    """The set in another format: what `data.path` would be."""
    target = folder / kind / f"set{'' if kind == 'list' else ENDINGS.get(kind, '')}"
    write_images(source, target, kind=kind)
    return target / "list.csv" if kind == "list" else target


@pytest.mark.parametrize("kind", WRITERS)
def test_a_set_in_another_format_is_the_same_set(kind: str, source: ImageSource, tmp_path: Path) -> None:
    path = written(source, tmp_path, kind)
    again = open_images(path)
    assert (again.format, again.files, again.splits) == (kind, source.files, source.splits)
    tasks = [load_task(DataConfig(path=each), cache_dir=tmp_path / "cache") for each in (source.path, path)]
    assert tasks[0].digest == tasks[1].digest
    caches = [entry for entry in (tmp_path / "cache").iterdir() if entry.is_dir()]
    assert len(caches) == (2 if kind == "npz" else 1)
    assert len({(cache / "images.npy").read_bytes() for cache in caches}) == 1
    if kind != "npz":
        names = source.names(source.files)
        assert again.fingerprints(names) == source.fingerprints(names)


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(WRITERS.keys() - {"folder"}))
def test_omniglot_is_the_same_task_and_the_same_test_in_every_format(
    kind: str, real_data: RealData, tmp_path: Path
) -> None:
    shares: dict[Split, Share] = {
        "train": Share(identities=40, images=6),
        "val": Share(identities=20, images=5),
        "test": Share(identities=10, images=5),
    }
    subset = proxy_of(open_images(real_data("omniglot")), shares, seed=0)
    cache = tmp_path / "cache"
    configs = [DataConfig(path=written(subset, tmp_path, each)) for each in ("folder", kind)]
    tasks = [load_task(config, cache_dir=cache) for config in configs]
    assert {**tasks[0].describe(), "name": ""} == {**tasks[1].describe(), "name": ""}
    sealed = [load_sealed_test(config, cache_dir=cache).part for config in configs]
    np.testing.assert_array_equal(sealed[0].images, sealed[1].images)
    assert len(list(cache.glob("*/images.npy"))) == (4 if kind == "npz" else 2)


@pytest.mark.parametrize("kind", sorted(WRITERS.keys() - {"folder", "list", "huggingface", "webdataset", "recordio"}))
def test_a_flipped_byte_gives_a_sentence_or_the_right_names(kind: str, source: ImageSource, tmp_path: Path) -> None:
    """500 files with one byte changed: no crash and no hang, and an image that is given bears the name that it had."""
    path = written(source, tmp_path, kind)
    whole, draw = path.read_bytes(), random.Random(0)
    names = {name for of_class in source.files.values() for name in of_class}
    opened = 0
    for _ in range(500):
        at, flip = draw.randrange(len(whole)), draw.randrange(1, 256)
        path.write_bytes(bytes([*whole[:at], whole[at] ^ flip, *whole[at + 1 :]]))
        try:
            changed = open_images(path)
            with changed.reader() as read:
                for name in changed.names(changed.files):
                    decode_image(read(name), name, image_size=None, colour="auto")
            opened += 1
            assert len(names & {name for of_class in changed.files.values() for name in of_class}) >= len(names) - 1
        except DataError as error:
            assert "\n" not in str(error)  # noqa: PT017 (an error is one of two right outcomes)
    assert opened < 500


@pytest.mark.parametrize("kind", sorted(WRITERS.keys() - {"folder", "list", "huggingface", "webdataset", "recordio"}))
def test_a_file_cut_short_gives_a_sentence(kind: str, source: ImageSource, tmp_path: Path) -> None:
    path = written(source, tmp_path, kind)
    whole = path.read_bytes()
    for part in (0, 1, 100, len(whole) // 2):
        path.write_bytes(whole[:part])
        with pytest.raises(DataError) as caught:
            open_images(path)
        assert "\n" not in str(caught.value)


def test_a_set_is_called_by_its_file_without_the_ending() -> None:
    assert [set_name(Path(name)) for name in ("a/faces.v2.tar", "a/x.REC", "plain")] == ["faces.v2", "x", "plain"]


# --- what others write ----------------------------------------------------------------------------------------------


def _tar(path: Path, contents: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def test_shards_of_webdataset_without_names_are_read(tmp_path: Path) -> None:
    for shard in range(2):
        samples = {
            f"{key:04d}.{ending}": content
            for key in range(shard * 20, shard * 20 + 20)
            for ending, content in {"jpg": png(key), "cls": f"{key % 4}\n".encode(), "txt": b"a caption"}.items()
        }
        _tar(tmp_path / f"train-{shard:04d}.tar", {"./" + name: content for name, content in samples.items()})
    found = open_images_without_splits(tmp_path)
    assert found == {f"images/{key % 4}/{key:04d}.jpg": png(key) for key in range(40)}


def test_shards_whose_keys_start_anew_keep_all_their_samples(tmp_path: Path) -> None:
    """Files of one name in one class are told apart by their shards, others keep their names."""
    for shard in range(2):
        samples = {
            f"{key}.{ending}": content
            for key in range(4)
            for ending, content in {
                "jpg": png(4 * shard + key),
                "cls": f"{'ann' if key < 2 else ('bob', 'eve')[shard]}".encode(),
            }.items()
        }
        _tar(tmp_path / f"s{shard}.tar", samples)
    assert open_images_without_splits(tmp_path) == {
        **{f"images/ann/s{shard}_{key}.jpg": png(4 * shard + key) for shard in range(2) for key in range(2)},
        **{f"images/{('bob', 'eve')[shard]}/{key}.jpg": png(4 * shard + key) for shard in range(2) for key in (2, 3)},
    }


def test_a_null_in_the_json_of_a_sample_is_as_if_it_were_not_there(tmp_path: Path) -> None:
    told = [json.dumps({"file": None, "split": None, "class": None, "label": f"p{key % 2}"}) for key in range(4)]
    samples = {f"{key}.{end}": of for key in range(4) for end, of in (("png", png(key)), ("json", told[key].encode()))}
    found = find_images(_tar(tmp_path / "set.tar", samples))
    assert found.files == {"p0": ("images/p0/0.png", "images/p0/2.png"), "p1": ("images/p1/1.png", "images/p1/3.png")}
    assert (found.splits, found.conflict) == (None, "")


def test_many_shards_are_read_with_few_open_files(tmp_path: Path) -> None:
    for shard in range(40):
        _tar(tmp_path / f"{shard}.tar", {f"{shard}.png": png(shard), f"{shard}.cls": f"{shard % 2}".encode()})
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(each.name) for each in Path("/dev/fd").iterdir())
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 10, limits[1]))
    try:
        assert len(open_images_without_splits(tmp_path)) == 40
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.parametrize("kind", ["list", "parquet", "tar", "zip"])
def test_a_table_beside_a_file_goes_before_what_the_file_says(kind: str, source: ImageSource, tmp_path: Path) -> None:
    path = written(source, tmp_path, kind)
    later = SPLIT | {"class00": "test", "class08": "train"}
    (path.parent / "split.csv").write_bytes(split_csv(later))
    assert open_images(path).splits == later
    if kind == "list":
        labels = [name.split("/")[1] for name in source.names(source.files)]
        listed = pa.table({"path": source.names(source.files), "label": labels})
        pq.write_table(listed, path.parent / "list.parquet")
        assert open_images(path.parent / "list.parquet").splits == later


def open_images_without_splits(path: Path) -> dict[str, bytes]:
    found = find_images(path)
    with found.store.reader() as read:
        return {name: read(name) for of_class in found.files.values() for name in of_class}


def test_a_list_tells_files_of_one_name_apart_by_their_folders(tmp_path: Path) -> None:
    rows = ["file,identity"]
    for session in ("a", "b"):
        for person in range(2):
            place = tmp_path / session / str(person) / "0.png"
            place.parent.mkdir(parents=True)
            place.write_bytes(png(person))
            rows.append(f"{session}/{person}/0.png,p{person}")
    (tmp_path / "faces.csv").write_text("\n".join(rows))
    assert open_images_without_splits(tmp_path / "faces.csv") == {
        f"images/p{person}/{session}_{person}_0.png": png(person) for session in "ab" for person in range(2)
    }


def test_parquet_lists_paths_too(source: ImageSource, tmp_path: Path) -> None:
    names = source.names(source.files)
    labels = [name.split("/")[1] for name in names]
    pq.write_table(pa.table({"path": names, "label": labels}), tmp_path / "set" / "faces.parquet")
    assert open_images(tmp_path / "set" / "faces.parquet").files == source.files


def test_blanks_around_the_labels_of_a_list_are_no_part_of_them(tmp_path: Path) -> None:
    labels = ["ann", " ann", "bob", "bob "]
    rows = [f"{number}.png,{label}" for number, label in enumerate(labels)]
    (tmp_path / "set.csv").write_text("\n".join(["path,label", *rows]))
    pq.write_table(pa.table({"path": [f"{n}.png" for n in range(4)], "label": labels}), tmp_path / "set.parquet")
    for name in ("set.csv", "set.parquet"):
        files = find_images(tmp_path / name).files
        assert files == {
            "ann": ("images/ann/0.png", "images/ann/1.png"),
            "bob": ("images/bob/2.png", "images/bob/3.png"),
        }


def test_images_without_names_are_numbered_over_the_files_of_a_split(tmp_path: Path) -> None:
    for number, name in enumerate(("train-0", "train-1", "valid")):
        images = [png(8 * number + row) for row in range(8)]
        labels = ["ann", "bob"] * 4 if number < 2 else ["eve", "max"] * 4
        pq.write_table(pa.table({"image": images, "label": labels}), tmp_path / f"{name}.parquet")
    expected = {f"images/{('ann', 'bob')[row % 2]}/train{row:02d}.img": png(row) for row in range(16)}
    expected |= {f"images/{('eve', 'max')[row % 2]}/valid{row}.img": png(16 + row) for row in range(8)}
    assert open_images_without_splits(tmp_path) == expected


@pytest.mark.parametrize("word", ["val", "valid", "validation", "dev"])
def test_a_parquet_file_is_in_the_split_that_it_is_called_by(word: str, tmp_path: Path) -> None:
    for name, people in (("train", "ab"), (word, "cd"), ("test", "ef")):
        table = pa.table({"image": [png(row) for row in range(4)], "label": list(people * 2)})
        pq.write_table(table, tmp_path / f"{name}.parquet")
    splits = dict(zip("abcdef", ("train", "train", "val", "val", "test", "test"), strict=True))
    assert open_images(tmp_path).splits == splits


def test_what_datasets_saves_to_disk_is_read(tmp_path: Path) -> None:
    names, folder = ["ann", "bob", "eve"], tmp_path / "train"
    folder.mkdir()
    images = [{"bytes": png(key), "path": None} for key in range(9)]
    table = pa.table({"image": images, "label": [key % 3 for key in range(9)]})
    with (
        pa.OSFile(str(folder / "data-00000-of-00001.arrow"), "wb") as sink,
        pa.ipc.new_stream(sink, table.schema) as to,
    ):
        to.write_table(table, max_chunksize=4)
    state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_split": "train"}
    (folder / "state.json").write_text(json.dumps(state))
    features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    (folder / "dataset_info.json").write_text(json.dumps({"features": features}))
    expected = {f"images/{names[key % 3]}/{key}.img": png(key) for key in range(9)}
    assert open_images_without_splits(folder) == expected
    (tmp_path / "dataset_dict.json").write_text(json.dumps({"splits": ["train"]}))
    expected = {f"images/{names[key % 3]}/train{key}.img": png(key) for key in range(9)}
    assert open_images_without_splits(tmp_path) == expected


def test_scikit_learns_lfw_is_read_from_its_cache(tmp_path: Path) -> None:
    for person in range(3):
        folder = tmp_path / "lfw_home" / "lfw_funneled" / f"Person_{person}"
        folder.mkdir(parents=True)
        for number in range(2):
            pixels = np.random.default_rng(10 * person + number).integers(0, 256, (250, 250, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"Person_{person}_{number + 1:04d}.jpg")
    for name in ("pairs.txt", "pairsDevTrain.txt", "pairsDevTest.txt"):
        (tmp_path / "lfw_home" / name).write_text("")
    table = {f"Person_{person}": split for person, split in enumerate(("train", "val", "test"))}
    (tmp_path / "split.csv").write_bytes(split_csv(table))
    assert open_images(tmp_path).splits == table
    theirs = fetch_lfw_people(data_home=str(tmp_path), download_if_missing=False, resize=None, slice_=None, color=True)
    ours = open_images_without_splits(tmp_path)
    decoded = {
        name: decode_image(content, name, image_size=None, colour="rgb").tobytes() for name, content in ours.items()
    }
    expected = {
        (str(theirs.target_names[label]), (255 * image).round().astype(np.uint8).tobytes())
        for image, label in zip(theirs.images, theirs.target, strict=True)
    }
    assert {(name.split("/")[1].replace("_", " "), pixels) for name, pixels in decoded.items()} == {
        (name.replace("_", " "), pixels) for name, pixels in expected
    }


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
def test_scikit_learns_olivetti_faces_are_read_from_their_cache(dtype: type, tmp_path: Path) -> None:
    faces = np.random.default_rng(0).integers(0, 256, (400, 4096), dtype=np.uint8)
    joblib.dump(faces.astype(dtype), tmp_path / "olivetti_py3.pkz", compress=6)
    theirs = fetch_olivetti_faces(data_home=str(tmp_path), download_if_missing=False)
    ours = open_images(tmp_path)
    assert ours.files.keys() == {f"{identity:02d}" for identity in range(40)}
    with ours.reader() as read:
        decoded = [decode_image(read(name), name, image_size=None, colour="auto") for name in ours.names(ours.files)]
    np.testing.assert_array_equal(np.stack(decoded), (255 * theirs.images).round().astype(np.uint8))
    (tmp_path / "olivetti_py3.pkz").write_bytes(zlib.compress(b"something else"))
    with pytest.raises(DataError, match="does not hold the Olivetti faces"), open_images(tmp_path).reader():
        pass


# --- what cannot be used --------------------------------------------------------------------------------------------


def _npz(**arrays: object) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        with (folder / "set.npz").open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
        return folder / "set.npz"

    return make


def _text(name: str, content: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_text(content)
        return folder / name

    return make


def _table(**columns: list[object]) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        pq.write_table(pa.table(columns), folder / "set.parquet")
        return folder / "set.parquet"

    return make


GREY = np.zeros((4, 9, 9), np.uint8)
BAD: dict[str, tuple[Callable[[Path], Path], str]] = {
    "unknown ending": (
        _text("set.lmdb", "x"),
        r"is in no known format; give an image folder or one of \.csv",
    ),
    "npz without labels": (_npz(images=GREY), "lacks the arrays images and labels; it has images"),
    "npz of floats": (_npz(images=GREY / 1.0, labels=[0, 0, 1, 1]), "must be uint8, .* but are float64"),
    "npz of odd shape": (_npz(images=GREY[0], labels=[0] * 9), r"must be uint8, .* \(9, 9\)"),
    "npz of fewer labels": (_npz(images=GREY, labels=[0, 1]), "must be 4 whole numbers or texts"),
    "npz of fewer names": (_npz(images=GREY, labels=[0, 0, 1, 1], names=["a"]), "has 4 labels, but names of shape"),
    "npz of objects": (_npz(images=GREY, labels=np.array([{}] * 4)), "cannot be read as an .npz of plain arrays"),
    "csv without header": (_text("set.csv", "a.png,ann\nb.png,bob\n"), "lacks a column 'path' .* it has a.png, ann"),
    "csv without labels": (_text("set.csv", "path,name\na.png,ann\n"), "lacks a column 'label'"),
    "csv with an image twice": (_text("set.csv", "path,label\na.png,ann\na.png,ann\n"), "has images/ann/.*a.png twice"),
    "csv with slashes": (
        _text("set.csv", "path,label\na.png,../ann\n"),
        r"has the class '\.\./ann'; a class is",
    ),
    "csv without a label": (_text("set.csv", "path,label\na.png,\n"), "has the class ''"),
    "csv with a hidden file": (
        _text("set.csv", "path,label\na.png,ann\nx/.b.png,ann\nc.png,bob\n"),
        r"has images/ann/\.b\.png, whose name is that of a hidden file; rename it or remove its row",
    ),
    "csv in another encoding": (
        lambda root: _binary(root / "set.csv", b"path,label\n\xff\xfe"),
        "not a CSV file in UTF-8",
    ),
    "class in two splits": (
        _text("set.csv", "path,label,split\na.png,ann,train\nb.png,ann,test\nc.png,bob,train\n"),
        "class 'ann' is in both train and test, .* make a split.csv with 'lossearch data split'",
    ),
    "unknown split": (
        _text("set.csv", "path,label,split\na.png,ann,one\nb.png,ann,one\nc.png,bob,one\n"),
        "class 'ann' is in the split 'one'; use train, val or test",
    ),
    "parquet without images": (_table(text=["a"], label=["ann"]), "lacks a column 'path'"),
    "parquet without labels": (_table(image=[b"a"], name=["ann"]), "lacks a column 'label'"),
    "sample without a class": (lambda root: _tar(root / "set.tar", {"0.jpg": png()}), "0 in .* has no class"),
    "sample with bad JSON": (lambda root: _tar(root / "set.tar", {"0.jpg": png(), "0.json": b"{"}), "is not JSON"),
    "tars with one image": (
        lambda root: _tar(_tar(root / "a.tar", files()).with_name("b.tar"), {"images/class03/1.png": b"x"}).parent,
        r"has images/class03/1\.png in two tars; remove one of them",
    ),
    "sparse tar": (lambda root: _sparse_tar(root / "set.tar"), r"holds 'images/a/0\.png' as a sparse file; repack it"),
    "tar that climbs": (lambda root: _tar(root / "set.tar", {"images/../../x.png": b""}), "unsafe name"),
    "compressed tar": (lambda root: _binary(root / "set.tar", zlib.compress(b"x" * 9999)), "as an uncompressed tar"),
}


def _sparse_tar(path: Path) -> Path:
    """As GNU tar writes one with `-S --format=posix`: a map of the data goes before them."""
    content = b"1\n0\n512\n".ljust(512, b"\0") + png().ljust(512, b"\0")
    member = tarfile.TarInfo("images/a/0.png")
    member.size = len(content)
    told = {"major": "1", "minor": "0", "name": "images/a/0.png", "realsize": "512"}
    member.pax_headers = {f"GNU.sparse.{word}": value for word, value in told.items()}
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(member, io.BytesIO(content))
    return path


def _binary(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_used_gets_one_sentence(case: str, tmp_path: Path) -> None:
    make, sentence = BAD[case]
    with pytest.raises(DataError, match=sentence) as caught:
        open_images(make(tmp_path))
    assert "\n" not in str(caught.value)


def test_images_of_different_sizes_are_no_array(source: ImageSource, tmp_path: Path) -> None:
    Image.new("L", (9, 9)).save(tmp_path / "set" / "images" / "class03" / "0.png")
    with pytest.raises(DataError, match=r"images/class03/0\.png is of another size"):
        write_images(source, tmp_path / "out.npz")
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize("kind", ["npz", "parquet", "tar"])
def test_a_name_by_which_a_set_would_not_be_known_again_is_refused(
    kind: str, source: ImageSource, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=rf"is known by the ending \.{kind}, but got .*out; add it"):
        write_images(source, tmp_path / "out", kind=kind)
    assert not list(tmp_path.glob("out*"))


@pytest.fixture
def latin_1(tmp_path: Path) -> ImageSource:
    folder = write_folder(tmp_path / "latin-1", files() | {"split.csv": split_csv(SPLIT)})
    image = folder / "images" / "class03" / "0.png"
    image.rename(image.with_name(os.fsdecode(b"caf\xe9.png")))
    return open_images(folder)


@pytest.mark.parametrize("kind", ["folder", "npz", "tar", "webdataset"])
def test_a_name_that_is_no_text_is_kept(kind: str, latin_1: ImageSource, tmp_path: Path) -> None:
    assert open_images(written(latin_1, tmp_path, kind)).files == latin_1.files


@pytest.mark.parametrize("kind", ["huggingface", "list", "parquet", "recordio", "zip"])
def test_a_name_that_is_no_text_is_refused(kind: str, latin_1: ImageSource, tmp_path: Path) -> None:
    sentence = rf"'images/class03/caf\\udce9\.png' has a name that is not in UTF-8, as {kind} needs it; rename it"
    with pytest.raises(DataError, match=sentence):
        write_images(latin_1, tmp_path / f"out.{kind}", kind=kind)
    assert not list(tmp_path.glob("out*"))
