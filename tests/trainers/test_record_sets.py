import io
import random
import struct
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.trainers.records import MAGIC, image_record, insightface, record, write_records
from trainers.data import DataConfig, load_task
from trainers.formats.opening import open_images
from trainers.formats.record_io import mapped
from trainers.formats.record_sets import _check_number_0, _Header, find_in_records
from trainers.formats.writing import write_images
from trainers.image_cache import decode_image
from trainers.image_source import DataError

CLASSES, IMAGES_EACH = 12, 4
IMAGES = CLASSES * IMAGES_EACH


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (6, 5), dtype=np.uint8)).save(buffer, "png")
    return buffer.getvalue()


def images() -> dict[int, tuple[int, bytes]]:
    return {key: ((key - 1) // IMAGES_EACH, png(key)) for key in range(1, IMAGES + 1)}


def read_all(path: Path) -> dict[str, bytes]:
    found = find_in_records(path)
    with found.store.reader() as read:
        return {name: read(name) for of_class in found.files.values() for name in of_class}


@pytest.mark.parametrize("index", [True, False])
def test_a_set_of_insightface_is_read_with_and_without_its_index(index: bool, tmp_path: Path) -> None:
    write_records(tmp_path, insightface(images()), index=index)
    (tmp_path / "property").write_text(f"{CLASSES},6,5\n{IMAGES}\n")
    expected = {f"images/{label:02d}/{key:02d}.png": image for key, (label, image) in images().items()}
    assert read_all(tmp_path) == expected
    assert read_all(tmp_path / "train.rec") == expected
    assert load_task(DataConfig(path=tmp_path, min_images_per_class=2), cache_dir=tmp_path / "cache").train.classes > 2


@pytest.mark.parametrize("further", [0, 1, 2])
def test_record_0_counts_images_beyond_what_float32_holds_exactly(further: int, tmp_path: Path) -> None:
    number = 2**24 + further
    write_records(tmp_path, {0: image_record(0, [number + 1, number + 2], b"")})
    with mapped(tmp_path / "train.rec") as data:
        for images in (range(1, number + 1), range(1, number - 4)):
            refused = pytest.raises(DataError, match=rf"promises 1677721\d images .* has {number - 5}; restore it")
            with refused if len(images) < number else nullcontext():
                _check_number_0(tmp_path / "train.rec", data, {0: 0}, _Numbered(images))


class _Numbered(dict[int, _Header]):
    """Images of these numbers, without what is known of them."""

    def __init__(self, numbers: range) -> None:
        self.numbers = numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __contains__(self, key: object) -> bool:
        return key in self.numbers

    def __iter__(self) -> Iterator[int]:
        return reversed(self.numbers[-1:])


def test_records_without_a_number_0_of_many_labels_and_in_any_order_are_read(tmp_path: Path) -> None:
    keys = [5, 0, 3, 1]
    write_records(tmp_path, {key: image_record(key, [key % 2, 0.5, -3], png(key)) for key in keys})
    assert read_all(tmp_path) == {f"images/{key % 2}/{key}.png": png(key) for key in keys}
    (tmp_path / "train.idx").unlink()
    assert read_all(tmp_path) == {f"images/{key % 2}/{key}.png": png(key) for key in keys}


def test_without_index_and_ids_images_are_numbered_in_their_order(tmp_path: Path) -> None:
    write_records(tmp_path, {key: image_record(7, key % 2, png(key)) for key in range(4)}, index=False)
    assert read_all(tmp_path) == {f"images/{key % 2}/{key}.png": png(key) for key in range(4)}


def test_a_list_beside_the_records_gives_the_names(tmp_path: Path) -> None:
    write_records(tmp_path, {key: image_record(key, key % 2, png(key)) for key in range(4)})
    rows = [f"{key}\t{key % 2:f}\t{('ann', 'bob')[key % 2]}/{key}.jpg\n" for key in range(4)]
    (tmp_path / "train.lst").write_text("".join(rows))
    assert read_all(tmp_path) == {f"images/{('ann', 'bob')[key % 2]}/{key}.jpg": png(key) for key in range(4)}
    (tmp_path / "train.lst").write_text("\n".join(["", *rows, " \n"]))
    assert read_all(tmp_path).keys() == {f"images/{('ann', 'bob')[key % 2]}/{key}.jpg" for key in range(4)}
    numbered = {f"images/{key % 2}/{key}.png" for key in range(4)}
    for misleading in (
        [row.replace("\t", " ") for row in rows],
        [row.replace("\t", " ", 1) for row in rows],
        rows[:3],
        [*rows[:3], rows[3].replace("\t1", "\t0")],
        [*rows[:3], rows[3].replace("bob", "ann")],
    ):
        (tmp_path / "train.lst").write_text("".join(misleading))
        assert read_all(tmp_path).keys() == numbered


@given(
    contents=st.lists(
        st.lists(st.one_of(st.binary(max_size=9), st.just(MAGIC), st.just(MAGIC * 3)), max_size=6).map(b"".join),
        min_size=1,
        max_size=6,
    )
)
@settings(max_examples=300, deadline=None)
def test_images_that_hold_the_magic_word_come_back_whole(
    contents: list[bytes], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("records")
    given_images = [b"\xff\xd8" + content for content in contents]
    for index in (True, False):
        by_key = {key: image_record(key, 0, image) for key, image in enumerate(given_images)}
        write_records(folder, by_key, index=index)
        assert list(read_all(folder).values()) == given_images
        (folder / "train.idx").unlink(missing_ok=True)


def test_what_we_write_is_what_the_format_says(tmp_path: Path) -> None:
    awkward = b"\xff\xd8" + MAGIC + b"ab" + MAGIC * 2 + b"c"
    by_key = {**images(), 3: (0, png(3) + awkward)}
    source = open_images(write_records(tmp_path / "ours", insightface(by_key)))
    write_images(source, tmp_path / "again", kind="recordio")
    assert (tmp_path / "again/train.rec").read_bytes() == (
        b"".join(insightface(by_key).values()).replace(
            image_record(0, [IMAGES + 1, IMAGES + CLASSES + 1], b"", id2=1),
            image_record(0, [IMAGES + 1, IMAGES + CLASSES + 1], b""),
        )
    )
    assert (tmp_path / "again/train.idx").read_text() == (tmp_path / "ours/train.idx").read_text()
    assert (tmp_path / "again/property").read_text() == f"{CLASSES},6,5\n"
    again = open_images(tmp_path / "again")
    assert (again.files, again.splits) == (source.files, source.splits)


def _replace_record(key: int, content: bytes) -> Callable[[Path], None]:
    return lambda folder: void(write_records(folder, {**insightface(images()), key: content}))


def void(_: object) -> None:
    pass


def _cut(folder: Path) -> None:
    content = (folder / "train.rec").read_bytes()
    (folder / "train.rec").write_bytes(content[:-10])


def _index(text: str) -> Callable[[Path], None]:
    return lambda folder: void((folder / "train.idx").write_text(text))


BAD: dict[str, tuple[Callable[[Path], None], str]] = {
    "empty": (lambda folder: void((folder / "train.rec").write_bytes(b"")), r"train\.rec cannot be read"),
    "cut off": (_cut, r"damaged in the record at byte \d+ \(its length is wrong\)"),
    "no records": (lambda folder: void((folder / "train.rec").write_bytes(b"x" * 9999)), "no record"),
    "part without a beginning": (_replace_record(3, MAGIC + struct.pack("<I", 3 << 29)), "no record, or no part"),
    "part without an end": (_replace_record(3, MAGIC + struct.pack("<I", 1 << 29)), "no record, or no part"),
    "no header": (_replace_record(3, record(b"short")), "no room for its header"),
    "no labels": (_replace_record(3, record(struct.pack("<IfQQ", 9, 0, 3, 0))), "the 9 labels that it announces"),
    "label of no class": (_replace_record(3, image_record(3, 0.5, png(3))), r"its label 0\.5 is not the number"),
    "label not finite": (_replace_record(3, image_record(3, float("nan"), png(3))), "is not the number of a class"),
    "images missing": (_replace_record(0, image_record(0, [IMAGES + 2, 99], b"")), "promises 49 images .* has 48"),
    "odd number 0": (_replace_record(0, image_record(0, 5, b"")), "neither an image nor the number of images"),
    "index of words": (_index("one\t0\n"), r"train\.idx line 1 is not a key and an offset"),
    "index beyond the end": (_index("1\t0\n2\t99999999\n"), r"line 2 does not fit .*train\.rec"),
    "index to nowhere": (_index("1\t4\n"), "no record, or no part of it, begins"),
    "index with a key twice": (_index("1\t0\n1\t76\n"), "line 2 does not fit"),
    "index with a record twice": (_index("1\t0\n2\t0\n"), "two keys for one record"),
    "property of fewer classes": (
        lambda folder: void((folder / "property").write_text("11,112,112")),
        "there are 11 classes, but .* has the label 11",
    ),
    "property of words": (lambda folder: void((folder / "property").write_text("many")), "begin with the number of"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_damaged_set_gets_one_sentence(case: str, tmp_path: Path) -> None:
    write_records(tmp_path, insightface(images()))
    spoil, sentence = BAD[case]
    spoil(tmp_path)
    with pytest.raises(DataError, match=sentence) as caught:
        find_in_records(tmp_path)
    assert "\n" not in str(caught.value)


def test_of_several_record_files_one_must_be_given(tmp_path: Path) -> None:
    for name in ("a.rec", "b.rec"):
        (tmp_path / name).write_bytes(b"".join(insightface(images()).values()))
    with pytest.raises(DataError, match=r"2 \.rec files and no train\.rec; give one of them, such as .*a\.rec"):
        open_images(tmp_path)
    assert open_images(tmp_path / "a.rec").files == open_images(tmp_path / "b.rec").files


@pytest.mark.slow
def test_a_flipped_byte_never_gives_another_images_bytes(tmp_path: Path) -> None:
    """10 000 files with one byte changed: an error, or all other images whole and the changed one changed there alone.

    The format has no checksums: a changed label or image byte cannot be seen, an image cut short or run into what
    follows it is left to its decoder, which refuses it or gives the same picture.
    """
    draw = random.Random(0)
    truth = {key: ((key - 1) // 2, png(key)) for key in range(1, 7)}
    records = insightface(truth)
    whole = write_records(tmp_path, records).joinpath("train.rec").read_bytes()
    index = (tmp_path / "train.idx").read_bytes()
    owners = [key for key, content in records.items() for _ in content]
    errors = 0
    for case in range(10_000):
        at, flip = draw.randrange(len(whole)), draw.randrange(1, 256)
        changed = bytes([*whole[:at], whole[at] ^ flip, *whole[at + 1 :]])
        (tmp_path / "train.rec").write_bytes(changed)
        (tmp_path / "train.idx").write_bytes(index)
        if case % 2:
            (tmp_path / "train.idx").unlink()
        try:
            got = {int(Path(name).stem): content for name, content in read_all(tmp_path).items()}
        except DataError:
            errors += 1
            continue
        owner = owners[at]
        others = {key: image for key, (_, image) in truth.items() if key != owner}
        assert {key: got[key] for key in others} == others, (case, at, flip)
        for key in got.keys() - others.keys():
            _is_damaged_in_one_place(got[key], truth.get(owner, (0, b""))[1], changed)
    assert 1000 < errors < 9000


def _is_damaged_in_one_place(got: bytes, image: bytes, changed: bytes) -> None:
    differing = sum(one != other for one, other in zip(got, image, strict=False))
    if len(got) - len(image) in range(4) and differing <= 1 and not any(got[len(image) :]) and got in changed:
        return
    try:
        pixels = decode_image(got, "damaged", image_size=None, colour="auto")
    except DataError:
        return
    np.testing.assert_array_equal(pixels, decode_image(image, "whole", image_size=None, colour="auto"))


def test_a_flipped_byte_in_the_index_never_gives_another_images_bytes(tmp_path: Path) -> None:
    draw = random.Random(1)
    truth = {key: ((key - 1) // 2, png(key)) for key in range(1, 7)}
    index = write_records(tmp_path, insightface(truth)).joinpath("train.idx").read_bytes()
    errors = 0
    for _ in range(2000):
        at, flip = draw.randrange(len(index)), draw.randrange(1, 256)
        (tmp_path / "train.idx").write_bytes(bytes([*index[:at], index[at] ^ flip, *index[at + 1 :]]))
        try:
            got = read_all(tmp_path)
        except DataError:
            errors += 1
            continue
        assert sorted(got.values()) == sorted(image for _, image in truth.values())
    assert errors > 1000


@given(content=st.binary(max_size=300), index=st.one_of(st.none(), st.binary(max_size=40)))
@settings(max_examples=500, deadline=None)
def test_any_bytes_give_images_or_a_sentence(
    content: bytes, index: bytes | None, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("any")
    (folder / "train.rec").write_bytes(MAGIC + content)
    if index is not None:
        (folder / "train.idx").write_bytes(index)
    try:
        got = read_all(folder)
    except DataError as error:
        assert "\n" not in str(error)  # noqa: PT017 (an error is one of two right outcomes)
    else:
        assert all(image in content for image in got.values())


def test_two_records_of_one_id_need_an_index(tmp_path: Path) -> None:
    records = {key: image_record(max(key, 1), key % 2, png(key)) for key in range(4)}
    assert len(read_all(write_records(tmp_path, records))) == 4
    (tmp_path / "train.idx").unlink()
    with pytest.raises(DataError, match=r"two records of one id; restore it, or put its train\.idx beside it"):
        read_all(tmp_path)
