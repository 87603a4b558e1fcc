"""The cache of decoded images: built once, gone on with after a kill, checked, mapped, and without damaged images."""

import errno
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from search_space import LossSchedule, catalog
from tests.trainers.test_data import CLASSES, encoded, write_set
from trainers import image_cache, image_copies
from trainers.data import DataConfig, load_sealed_test, load_task
from trainers.image_file import ImageFile, MappedImages, UInt8Array
from trainers.image_source import DataError
from trainers.machine import memory_bytes
from trainers.recipe import Numerics, Recipe
from trainers.training import train

KILLED_AFTER = 100
BLOCK = 32
KILLED = f"""
import os, signal, sys
from pathlib import Path
from trainers import image_cache, image_copies
from trainers.data import DataConfig, load_task

def stopping(done, total):
    if done >= {KILLED_AFTER}:
        os.kill(os.getpid(), signal.SIGKILL)

image_cache._BLOCK_IMAGES = {BLOCK}
load_task(DataConfig(path=Path(sys.argv[1]), kind="photo"), cache_dir=Path(sys.argv[2]), on_decoded=stopping)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """60 images of 15 classes are decoded, 20 more are sealed."""
    return write_set(tmp_path / "set")


def partials(cache: Path) -> list[Path]:
    return [entry for entry in cache.iterdir() if entry.suffix == ".partial"]


def test_a_killed_build_is_gone_on_with_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, cache = write_set(tmp_path / "set", images_each=12), tmp_path / "cache"
    whole = load_task(DataConfig(path=folder, kind="photo"), cache_dir=tmp_path / "whole")
    killed = subprocess.run([sys.executable, "-c", KILLED, str(folder), str(cache)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(partials(cache)) == 1
    decoded: list[str] = []
    original = image_cache.decode_image

    def counted(content: bytes, name: str, **options: object) -> UInt8Array:
        decoded.append(name)
        return original(content, name, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(image_cache, "decode_image", counted)
    assert load_task(DataConfig(path=folder, kind="photo"), cache_dir=cache).digest == whole.digest
    assert len(decoded) == 180 - 128  # it was killed after 4 blocks
    assert partials(cache) == []


@pytest.mark.parametrize("torn", ["log cut in a line", "array too short", "log empty", "array longer than the log"])
def test_what_a_kill_tore_is_decoded_again(torn: str, tmp_path: Path) -> None:
    folder, cache = write_set(tmp_path / "set", images_each=12), tmp_path / "cache"
    whole = load_task(DataConfig(path=folder, kind="photo"), cache_dir=tmp_path / "whole")
    subprocess.run([sys.executable, "-c", KILLED, str(folder), str(cache)], check=False)
    log, array = (partials(cache)[0] / name for name in ("blocks.jsonl", "images.npy"))
    if torn == "log cut in a line":
        log.write_bytes(log.read_bytes()[:-3])
    elif torn == "array too short":
        array.write_bytes(array.read_bytes()[:-5000])
    elif torn == "log empty":
        log.write_bytes(b"")
    else:
        array.write_bytes(array.read_bytes() + b"x" * 5000)
    assert load_task(DataConfig(path=folder, kind="photo"), cache_dir=cache).digest == whole.digest


def test_every_block_is_checked_against_its_checksum(folder: Path, tmp_path: Path) -> None:
    load_task(DataConfig(path=folder), cache_dir=tmp_path / "cache")
    (array,) = (tmp_path / "cache").glob("*/images.npy")
    content = bytearray(array.read_bytes())
    content[-1] ^= 1
    array.write_bytes(content)
    with pytest.raises(DataError, match=r"are damaged \(the checksum of block 0 does not fit\); remove that folder"):
        load_task(DataConfig(path=folder), cache_dir=tmp_path / "cache")


def test_the_file_is_one_that_numpy_opens(folder: Path, tmp_path: Path) -> None:
    task = load_task(DataConfig(path=folder), cache_dir=tmp_path / "cache")
    (array,) = (tmp_path / "cache").glob("*/images.npy")
    parts = [part.images for part in (task.train, task.reward, task.choice)]
    np.testing.assert_array_equal(np.load(array), np.concatenate(parts))


def test_damaged_images_are_left_out_up_to_their_share_and_counted(folder: Path, tmp_path: Path) -> None:
    whole = load_task(DataConfig(path=folder), cache_dir=tmp_path / "whole")
    torn, gone = (folder / "images" / name for name in ("class03/2.png", "class07/0.png"))
    torn.write_bytes(torn.read_bytes()[:60])
    gone.unlink()
    gone.symlink_to(folder / "nowhere")
    sizes = {"corrupt_share": 0.04, "min_images_per_class": 3}
    task = load_task(DataConfig.model_validate({"path": folder, **sizes}), cache_dir=tmp_path / "cache")
    assert task.damaged == ("images/class03/2.png", "images/class07/0.png")
    assert task.describe()["damaged_images"] == 2
    assert "damaged_images" not in whole.describe()
    assert task.train.labels.tolist() == [label for label in range(5) for _ in range(4)][:14] + [3] + [4] * 4
    kept = np.delete(whole.train.images, 3 * 4 + 2, axis=0)
    np.testing.assert_array_equal(task.train.images, kept)
    halves = len(task.reward.labels) + len(task.choice.labels)
    assert halves == len(whole.reward.labels) + len(whole.choice.labels) - 1
    config = DataConfig(path=folder, corrupt_share=0.03)
    with pytest.raises(DataError, match=r"2 of 60 images .* 0\.03 .*class03/2\.png is not.*class07/0\.png in .* read"):
        load_task(config, cache_dir=tmp_path / "cache")


def test_by_default_one_image_in_a_hundred_may_be_damaged(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set", images_each=7)
    (folder / "images/class03/2.png").write_bytes(b"")
    assert load_task(DataConfig(path=folder), cache_dir=tmp_path / "cache").damaged == ("images/class03/2.png",)
    (folder / "images/class03/3.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"2 of 105 images .* are damaged, more than data\.corrupt_share = 0\.01"):
        load_task(DataConfig(path=folder), cache_dir=tmp_path / "cache")


def test_a_class_without_a_sound_image_is_left_out_of_every_split(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set")
    for name in ("class00", "class19"):
        for index in range(4):
            (folder / "images" / name / f"{index}.png").write_bytes(b"x")
    config = DataConfig(path=folder, corrupt_share=0.3)
    task = load_task(config, cache_dir=tmp_path / "cache")
    assert (task.train.classes, len(task.train.labels)) == (4, 16)
    test = load_sealed_test(config, cache_dir=tmp_path / "cache")
    assert test.names == ["class15", "class16", "class17", "class18"]
    assert np.bincount(test.part.labels).tolist() == [4, 4, 4, 4]
    for name in ("class16", "class17", "class18"):
        for index in range(4):
            (folder / "images" / name / f"{index}.png").write_bytes(b"x")
    config = DataConfig(path=folder, corrupt_share=0.5)
    with pytest.raises(DataError, match=r"16 of 20 images .* are damaged"):
        load_sealed_test(config, cache_dir=tmp_path / "cache")
    with pytest.raises(DataError, match=r"the test split .* needs two classes or more, without damaged images"):
        load_sealed_test(config.model_copy(update={"corrupt_share": 0.9}), cache_dir=tmp_path / "cache")


@pytest.mark.parametrize("share", [0.01, 0.5])
def test_a_disk_that_fails_while_images_are_decoded_leaves_no_cache_that_says_they_are_damaged(
    share: float, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, reads = DataConfig(path=folder, kind="photo", corrupt_share=share), Counter[str]()
    really_read = Path.read_bytes

    def stale(path: Path) -> bytes:
        """The second read of an image, which is that for decoding, fails."""
        reads[str(path)] += 1
        if path.parent.name == "class03" and reads[str(path)] == 2:
            raise OSError(errno.ESTALE, "Stale file handle")
        return really_read(path)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_bytes", stale)
        with pytest.raises(
            DataError, match=r"class03/.\.png .* cannot be read .* try again: it could be read a moment"
        ):
            load_task(config, cache_dir=tmp_path / "cache")
    assert load_task(config, cache_dir=tmp_path / "cache").damaged == ()


def test_memory_that_runs_out_is_no_damage(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(image_cache, "_eight_bit", lambda *_: (_ for _ in ()).throw(MemoryError()))
        with pytest.raises(MemoryError):
            load_task(DataConfig(path=folder), cache_dir=tmp_path / "cache")
    assert load_task(DataConfig(path=folder), cache_dir=tmp_path / "cache").damaged == ()


def test_a_damaged_image_may_have_a_name_in_another_encoding(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set", images_each=7)
    name = os.fsdecode(b"caf\xe9.png")
    (folder / "images" / "class03" / name).write_bytes(b"no image")
    for _ in range(2):  # decoded, then from the cache
        task = load_task(DataConfig(path=folder), cache_dir=tmp_path / "cache")
        assert task.damaged == (f"images/class03/{name}",)


def test_too_many_damaged_validation_images_leave_nothing_to_search_on(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set", images_each=1)
    for index in (0, 1):
        for name in (f"class{number:02d}" for number in range(15)):
            (folder / "images" / name / f"{index}.png").write_bytes(encoded(np.full((9, 9), index, np.uint8)))
    for name in [name for name, split in CLASSES.items() if split == "val"][:10]:
        (folder / "images" / name / "1.png").write_bytes(b"x")
    with pytest.raises(DataError, match=r"the val split .* has 10 classes, 0 with two images"):
        load_task(DataConfig(path=folder, corrupt_share=0.5, min_images_per_class=1), cache_dir=tmp_path / "cache")


def test_a_late_coloured_image_makes_all_coloured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_cache, "_BLOCK_IMAGES", 8)
    folder = write_set(tmp_path / "set")
    grey = load_task(DataConfig(path=folder, kind="photo"), cache_dir=tmp_path / "cache")
    last = sorted(name for name, split in CLASSES.items() if split == "train")[-1]
    red = np.zeros((24, 20, 3), np.uint8)
    red[..., 0] = 99
    (folder / "images" / last / "3.png").write_bytes(encoded(red))
    task = load_task(DataConfig(path=folder, kind="photo"), cache_dir=tmp_path / "cache")
    np.testing.assert_array_equal(task.train.images[:-1], np.repeat(grey.train.images[:-1], 3, axis=1))
    assert task.train.images[-1].reshape(3, -1).max(axis=1).tolist() == [99, 0, 0]
    np.testing.assert_array_equal(task.reward.images, np.repeat(grey.reward.images, 3, axis=1))


def test_it_is_told_how_far_decoding_is(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_cache, "_BLOCK_IMAGES", 25)
    told: list[tuple[int, int]] = []
    for _ in range(2):
        load_task(DataConfig(path=folder), cache_dir=tmp_path, on_decoded=lambda *given: told.append(given))
    assert told == [(25, 60), (50, 60), (60, 60)]


def test_images_beyond_the_memory_share_are_mapped_and_train_bit_for_bit_alike(folder: Path, tmp_path: Path) -> None:
    held, mapped = (
        load_task(DataConfig(path=folder, memory_share=share), cache_dir=tmp_path / "cache") for share in (0.25, 0)
    )
    assert held.digest == mapped.digest
    assert type(held.train.images) is np.ndarray is type(mapped.train.images)
    assert held.train.images.flags.owndata
    for part in (mapped.train, mapped.reward, mapped.choice):
        assert isinstance(part, MappedImages)
        assert not part.images.flags.writeable
        np.testing.assert_array_equal(part.images, part.file.images())
    recipe = Recipe(width=4, embedding_dim=8, batch_size=8, horizon_epochs=2)
    outcomes = [
        train(LossSchedule.constant(catalog.softmax()), task, recipe=recipe, numerics=Numerics(), seed=0, epochs=2)
        for task in (held, mapped)
    ]
    assert outcomes[0][0].history == outcomes[1][0].history
    np.testing.assert_array_equal(outcomes[0][1], outcomes[1][1])
    sealed = load_sealed_test(DataConfig(path=folder, memory_share=0), cache_dir=tmp_path / "cache").part
    assert isinstance(sealed, MappedImages)


def test_mapped_images_of_two_processes_are_the_same_memory(tmp_path: Path) -> None:
    """Of the file that two processes read whole, each is charged half: the pages are shared."""
    folder, cache = write_set(tmp_path / "set", images_each=200), tmp_path / "cache"
    config = DataConfig(path=folder, kind="photo", image_size=64, memory_share=0)
    file = load_task(config, cache_dir=cache).train.file  # type: ignore[attr-defined]
    script = (
        "import sys, pathlib, re\n"
        "from trainers.image_file import ImageFile\n"
        f"images = ImageFile.of(pathlib.Path({str(file.folder)!r})).images()\n"
        "total = int(images.sum())\n"
        "print('read', flush=True)\n"
        "sys.stdin.readline()\n"
        "maps = pathlib.Path('/proc/self/smaps').read_text().split('VmFlags')\n"
        "mine = next(each for each in maps if 'images.npy' in each)\n"
        "print(*re.findall(r'^(?:Rss|Pss): +(\\d+)', mine, re.M), flush=True)\n"
    )
    both = [
        subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for process in both:
        assert process.stdout is not None
        assert process.stdout.readline() == "read\n"
    process, other = both
    resident, proportional = map(int, process.communicate("\n")[0].split())
    other.communicate("\n")
    size = ImageFile.of(file.folder).images().nbytes / 1024
    assert resident == pytest.approx(size, rel=0.05)
    assert proportional == pytest.approx(size / 2, rel=0.05)


def test_memory_is_what_the_machine_or_its_container_has() -> None:
    assert 2**28 < memory_bytes() < 2**50


def test_a_copy_is_made_once_in_pieces_and_checked(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(image_copies.CACHE_VARIABLE, str(tmp_path / "copies"))
    monkeypatch.setattr(image_copies, "PIECE_BYTES", 10_000)
    task = load_task(DataConfig(path=folder, memory_share=0), cache_dir=tmp_path / "cache")
    assert isinstance(task.reward, MappedImages)
    file, asked = task.reward.file, []

    def read(name: str, offset: int) -> bytes:
        asked.append((name, offset))
        content = image_copies.piece(file.folder, name, offset)
        return content.replace(b"\x64", b"\x65") if damage and name == "images.npy" else content

    damage = True
    with pytest.raises(DataError, match="checksum of block 0 does not fit"):
        image_copies.copy_of(file, read)
    damage, failed = False, len(asked)
    copy = image_copies.copy_of(file, read)
    assert copy.folder.parent == tmp_path / "copies"
    np.testing.assert_array_equal(copy.images(), task.reward.images)
    count = len(asked)
    assert count > 2 * 14
    assert image_copies.copy_of(file, read) == copy
    assert len(asked) == count
    array = copy.folder / "images.npy"
    array.write_bytes(array.read_bytes()[:128] + bytes(array.stat().st_size - 128))  # as a power cut may leave it
    np.testing.assert_array_equal(image_copies.copy_of(file, read).images(), task.reward.images)
    assert len(asked) == 2 * count - failed
