import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trainers import image_cache, presets
from trainers.data import DataConfig, load_sealed_test, load_task, sealed_class_sizes
from trainers.formats.opening import open_images
from trainers.image_file import UInt8Array
from trainers.image_source import DataError
from trainers.recipe import Recipe
from trainers.task import Kind

RealData = Callable[[str], Path]

CLASSES = {f"class{index:02d}": "train" if index < 5 else "val" if index < 15 else "test" for index in range(20)}


def encoded(pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], **save: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png", **save)
    return buffer.getvalue()


def write_set(root: Path, *, images_each: int = 4, seed: int = 0) -> Path:
    """Twenty grey classes, 5 train, 10 val and 5 test, each image another noise."""
    rng = np.random.default_rng(seed)
    for name in CLASSES:
        (root / "images" / name).mkdir(parents=True)
        for index in range(images_each):
            pixels = rng.integers(30, 220, (24, 20), dtype=np.uint8)
            (root / "images" / name / f"{index}.png").write_bytes(encoded(pixels))
    rows = ["class,split,note", *(f"{name},{split},x" for name, split in CLASSES.items())]
    (root / "split.csv").write_text("\n".join(rows))
    return root


def test_the_embedded_task_is_the_same_each_time_and_changes_with_its_seed(tmp_path: Path) -> None:
    first, again, other = (load_task(DataConfig(seed=seed), cache_dir=tmp_path) for seed in (0, 0, 1))
    assert first.digest == again.digest != other.digest
    assert first.kind == "drawing"
    assert first.describe()["width"] == 32
    assert not list(tmp_path.iterdir())
    sealed = load_sealed_test(DataConfig(), cache_dir=tmp_path).part
    assert sealed.images.shape == first.choice.images.shape
    assert not (sealed.images == first.choice.images).all()


def test_an_image_folder_becomes_a_task_with_dense_labels_and_disjoint_halves(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "faces.v2")
    task = load_task(DataConfig(path=folder), cache_dir=tmp_path / "cache")
    assert task.name == "faces.v2"
    assert task.kind == "photo"
    assert task.train.images.shape == (20, 1, 48, 48)
    for part, classes in ((task.train, 5), (task.reward, 5), (task.choice, 5)):
        assert part.labels.tolist() == [label for label in range(classes) for _ in range(4)]
        assert type(part.images) is np.ndarray
    images = np.concatenate([task.train.images, task.reward.images, task.choice.images]).reshape(60, -1)
    assert len(np.unique(images, axis=0)) == 60
    files = open_images(folder).files["class03"]
    expected = Image.open(folder / files[2]).resize((48, 48), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(task.train.images[3 * 4 + 2, 0], np.asarray(expected))


def test_thin_training_classes_are_left_out_and_one_image_people_validate(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set")
    for name in ("class00", "class05", "class06"):
        for index in (1, 2, 3):
            (folder / "images" / name / f"{index}.png").unlink()
    task = load_task(DataConfig(path=folder), cache_dir=tmp_path / "cache")
    assert task.train.classes == 4
    counts = [sorted(np.bincount(half.labels).tolist()) for half in (task.reward, task.choice)]
    assert counts == [[1, 4, 4, 4, 4], [1, 4, 4, 4, 4]]


def test_validation_takes_whole_classes_up_to_its_limit(tmp_path: Path) -> None:
    """Ten validation classes of 24 images."""
    folder = write_set(tmp_path / "set", images_each=24)
    every = load_task(DataConfig(path=folder), cache_dir=tmp_path / "cache")
    task = load_task(DataConfig(path=folder, max_validation_images=100), cache_dir=tmp_path / "cache")
    for whole, half in ((every.reward, task.reward), (every.choice, task.choice)):
        assert np.bincount(half.labels).tolist() == [24, 24]
        kept = {image.tobytes() for image in half.images}
        classes = {
            int(label) for image, label in zip(whole.images, whole.labels, strict=True) if image.tobytes() in kept
        }
        assert len(classes) == 2
    assert (every.unscored, task.unscored) == (0, 240 - 96)
    assert (task.train.images == every.train.images).all()
    assert task.describe()["unscored_images"] == 144
    assert "unscored_images" not in every.describe()
    with pytest.raises(DataError, match="four classes or more"):
        load_task(
            DataConfig(path=write_set(tmp_path / "large", images_each=51), max_validation_images=100),
            cache_dir=tmp_path / "cache",
        )


def test_a_comparison_takes_whole_classes_of_the_test_up_to_its_limit(tmp_path: Path) -> None:
    """Five test classes of 24 images."""
    folder, cache = write_set(tmp_path / "set", images_each=24), tmp_path / "cache"
    every, capped = DataConfig(path=folder), DataConfig(path=folder, max_test_images=100)
    tests = [load_sealed_test(config, cache_dir=cache) for config in (every, capped)]
    whole, kept = (test.part for test in tests)
    assert np.bincount(whole.labels).tolist() == [24] * 5
    assert np.bincount(kept.labels).tolist() == [24] * 4
    assert {image.tobytes() for image in kept.images} < {image.tobytes() for image in whole.images}
    assert [test.unused_images for test in tests] == [0, 24]
    assert set(sealed_class_sizes(capped)) < set(sealed_class_sizes(every))
    large = DataConfig(path=write_set(tmp_path / "large", images_each=101), max_test_images=100)
    with pytest.raises(DataError, match="two classes or more within max_test_images=100, one of them"):
        load_sealed_test(large, cache_dir=cache)


def test_the_seed_moves_the_halves_but_never_the_test_split(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set")
    configs = [DataConfig(path=folder, seed=seed) for seed in (0, 1)]
    tasks = [load_task(config, cache_dir=tmp_path / "cache") for config in configs]
    assert (tasks[0].train.images == tasks[1].train.images).all()
    assert not (tasks[0].reward.images == tasks[1].reward.images).all()
    sealed = [load_sealed_test(config, cache_dir=tmp_path / "cache").part for config in configs]
    assert (sealed[0].images == sealed[1].images).all()


def test_test_images_are_sealed_until_they_are_asked_for(tmp_path: Path) -> None:
    config = DataConfig(path=write_set(tmp_path / "set"))
    before = load_sealed_test(config, cache_dir=tmp_path / "cache").part
    assert before.labels.tolist() == [label for label in range(5) for _ in range(4)]
    digest = load_task(config, cache_dir=tmp_path / "cache").digest
    (tmp_path / "set/images/class19/0.png").write_bytes(b"damaged")
    assert load_task(config, cache_dir=tmp_path / "other").digest == digest
    with pytest.raises(DataError, match=r"images/class19/0\.png is not an image"):
        load_sealed_test(config, cache_dir=tmp_path / "other")


def test_without_test_pairs_there_is_a_task_but_no_sealed_test(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set")
    (folder / "split.csv").write_text((folder / "split.csv").read_text().replace(",test,", ",train,"))
    config = DataConfig(path=folder)
    assert load_task(config, cache_dir=tmp_path / "cache").train.classes == 10
    with pytest.raises(DataError, match=r"the test split of .* needs two classes"):
        load_sealed_test(config, cache_dir=tmp_path / "cache")


def test_decoding_happens_once_and_again_only_when_the_content_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[str] = []
    original = image_cache.decode_image

    def counted(content: bytes, name: str, **options: object) -> UInt8Array:
        decoded.append(name)
        return original(content, name, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(image_cache, "decode_image", counted)
    config = DataConfig(path=write_set(tmp_path / "set"), kind="photo")
    digests = [load_task(config, cache_dir=tmp_path / "cache").digest for _ in range(3)]
    assert len(decoded) == 60
    assert len(set(digests)) == 1
    (tmp_path / "set/images/class00/0.png").write_bytes(encoded(np.zeros((24, 20), np.uint8)))
    assert load_task(config, cache_dir=tmp_path / "cache").digest not in digests
    assert len(decoded) == 120
    load_task(config.model_copy(update={"image_size": 16}), cache_dir=tmp_path / "cache")
    assert len(decoded) == 180


def test_two_processes_at_once_decode_once_and_agree(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set", images_each=40)
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from trainers import image_cache\n"
        "from trainers.data import DataConfig, load_task\n"
        "saves, original = [], image_cache._build\n"
        "image_cache._build = lambda *given, **options: (saves.append(1), original(*given, **options))\n"
        "sys.stdin.readline()\n"
        f"task = load_task(DataConfig(path=Path({str(folder)!r})), cache_dir=Path({str(tmp_path / 'cache')!r}))\n"
        "print(len(saves), task.digest)\n"
    )
    command = [sys.executable, "-c", script]
    pipes = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for process in pipes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    answers = [process.communicate()[0].split() for process in pipes]
    assert sorted(answer[0] for answer in answers) == ["0", "1"]
    assert answers[0][1] == answers[1][1]


def test_what_a_killed_process_left_half_built_is_never_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = DataConfig(path=write_set(tmp_path / "set"))
    whole = load_task(config, cache_dir=tmp_path / "whole")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", killed)
        with pytest.raises(KeyboardInterrupt):
            load_task(config, cache_dir=tmp_path / "cache")
    assert [entry.suffix for entry in (tmp_path / "cache").iterdir() if entry.is_dir()] == [".partial"]
    assert load_task(config, cache_dir=tmp_path / "cache").digest == whole.digest
    assert [entry.suffix for entry in (tmp_path / "cache").iterdir() if entry.is_dir()] == [""]


def test_a_damaged_or_unwritable_cache_gets_a_sentence(tmp_path: Path) -> None:
    config = DataConfig(path=write_set(tmp_path / "set"))
    load_task(config, cache_dir=tmp_path / "cache")
    (array,) = (tmp_path / "cache").glob("*/images.npy")
    array.write_bytes(array.read_bytes()[:1000])
    with pytest.raises(DataError, match=r"are damaged .* remove that folder"):
        load_task(config, cache_dir=tmp_path / "cache")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"file/cache cannot be written .* choose another"):
        load_task(config, cache_dir=tmp_path / "file" / "cache")


def _decode(pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], **save: object) -> UInt8Array:
    return image_cache.decode_image(encoded(pixels, **save), "a.png", image_size=None, colour="auto")


def test_exif_orientation_is_applied() -> None:
    pixels = np.arange(6, dtype=np.uint8).reshape(2, 3)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    np.testing.assert_array_equal(_decode(pixels, exif=exif), np.rot90(pixels, -1))


def test_grey_saved_as_colour_is_grey_and_transparent_is_white() -> None:
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4)
    np.testing.assert_array_equal(_decode(np.repeat(grey[..., None], 3, axis=-1)), grey)
    hidden = np.zeros((3, 4, 4), np.uint8)
    hidden[0, 0] = (200, 10, 10, 255)
    decoded = _decode(hidden)
    assert decoded[0, 0].tolist() == [200, 10, 10]
    assert (decoded.reshape(-1, 3)[1:] == 255).all()


def test_sixteen_bits_keep_their_range() -> None:
    pixels, buffer = np.array([[0, 256], [32768, 65535]], np.uint16), io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    pgm = b"P5 2 2 65535\n" + pixels.astype(">u2").tobytes()
    for content in (buffer.getvalue(), pgm, b"P2 2 2 4095 0 16 2048 4095\n"):
        decoded = image_cache.decode_image(content, "an image", image_size=None, colour="auto")
        assert decoded.tolist() == [[0, 1], [128, 255]]


def test_thirty_two_bits_are_refused() -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.array([[0, 256], [32768, 65535]], np.int32)).save(buffer, "tiff")
    with pytest.raises(DataError, match=r"its pixels have 32 bits \(mode I\); save it with 8 or 16 bits"):
        image_cache.decode_image(buffer.getvalue(), "a.tif", image_size=None, colour="auto")


def test_one_coloured_image_makes_the_task_and_its_test_colour(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set")
    config = DataConfig(path=folder)
    grey = load_task(config, cache_dir=tmp_path / "cache")
    red = np.zeros((24, 20, 3), np.uint8)
    red[..., 0] = 150
    (folder / "images/class19/0.png").write_bytes(encoded(red))
    assert (
        load_sealed_test(config, cache_dir=tmp_path / "cache").part.images.shape[1] == grey.train.images.shape[1] == 1
    )
    (folder / "images/class00/0.png").write_bytes(encoded(red))
    task = load_task(config, cache_dir=tmp_path / "cache")
    assert (
        task.train.images.shape[1] == load_sealed_test(config, cache_dir=tmp_path / "cache").part.images.shape[1] == 3
    )
    assert task.train.images[0].reshape(3, -1).max(axis=1).tolist() == [150, 0, 0]
    assert (task.train.images[1:] == grey.train.images[1:]).all()


@pytest.mark.parametrize(
    ("name", "kind", "described"),
    [
        ("orl", "photo", {"width": 48, "train_classes": 24, "train_images": 240, "reward_images": 30}),
        ("lfw112", "photo", {"width": 48, "train_classes": 350, "train_images": 3549, "reward_classes": 294}),
        ("omniglot", "drawing", {"width": 32, "train_classes": 734, "reward_images": 2300, "choice_classes": 115}),
    ],
)
def test_real_sets_are_read_and_known_for_what_they_are(
    name: str, kind: Kind, described: dict[str, int], real_data: RealData, tmp_path: Path
) -> None:
    task = load_task(DataConfig(path=real_data(name)), cache_dir=tmp_path)
    assert (task.name, task.kind) == (name, kind)
    assert described.items() <= task.describe().items()


def test_the_halves_of_lfw_hold_equally_many_people_who_give_pairs(real_data: RealData, tmp_path: Path) -> None:
    task = load_task(DataConfig(path=real_data("lfw112"), image_size=16), cache_dir=tmp_path)
    pairable = [int((np.bincount(half.labels) > 1).sum()) for half in (task.reward, task.choice)]
    assert pairable == [102, 101]


def test_missing_real_data_fails_in_ci_and_is_skipped_elsewhere(
    real_data: RealData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="no data set nowhere"):
        real_data("nowhere")
    monkeypatch.delenv("CI")
    with pytest.raises(pytest.skip.Exception, match="set LOSSEARCH_DATA"):
        real_data("nowhere")


@pytest.mark.parametrize(("kind", "embedded"), [("photo", False), ("drawing", False), ("drawing", True)])
def test_presets_are_recipes(kind: Kind, embedded: bool) -> None:
    recipe = Recipe.model_validate(presets.recipe_defaults(kind, embedded=embedded))
    assert recipe.augmentation.flip == (kind == "photo")
