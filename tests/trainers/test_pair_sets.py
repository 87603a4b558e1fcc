import pickle
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainers.formats.pair_sets import PairSet, read_pairs, write_pairs
from trainers.formats.pickled_data import read_pickle
from trainers.image_source import DataError

IMAGES = [b"\xff\xd8one", b"\x89PNG two", b"", b"\xff" * 300]
GENUINE = [True, False]


def write(path: Path, value: object, protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(value, protocol=protocol))
    return path


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "value",
    [
        (IMAGES, GENUINE),
        [IMAGES, GENUINE],
        (IMAGES, np.array(GENUINE)),
        (IMAGES, list(np.array(GENUINE))),
        (IMAGES, [1, 0]),
        ([np.frombuffer(image, np.uint8) for image in IMAGES], GENUINE),
        ([np.frombuffer(image, np.uint8).reshape(1, -1) for image in IMAGES], tuple(GENUINE)),
    ],
    ids=["tuple", "list", "array", "numpy booleans", "numbers", "images as arrays", "images as rows"],
)
def test_what_python_pickles_is_read_in_every_protocol(value: object, protocol: int, tmp_path: Path) -> None:
    pairs = read_pairs(write(tmp_path / "set.bin", value, protocol))
    assert pairs.images == IMAGES
    assert pairs.genuine_P.tolist() == GENUINE


def test_strings_of_python_2_are_bytes(tmp_path: Path) -> None:
    (tmp_path / "set.bin").write_bytes(b"\x80\x02]q\x00(U\x03\xff\xd8aT\x02\x00\x00\x00\xff\xd8e]q\x01\x88a\x86.")
    assert read_pairs(tmp_path / "set.bin").images == [b"\xff\xd8a", b"\xff\xd8"]


def test_what_we_write_python_reads(tmp_path: Path) -> None:
    pairs = PairSet(images=IMAGES, genuine_P=np.array(GENUINE))
    write_pairs(pairs, tmp_path / "set.bin")
    with (tmp_path / "set.bin").open("rb") as file:
        assert pickle.load(file, encoding="bytes") == (IMAGES, GENUINE)  # noqa: S301 (our own file)
    again = read_pairs(tmp_path / "set.bin")
    assert (again.images, again.genuine_P.tolist()) == (IMAGES, GENUINE)
    with pytest.raises(DataError, match="is there already"):
        write_pairs(pairs, tmp_path / "set.bin")
    with pytest.raises(DataError, match="cannot be written"):
        write_pairs(pairs, tmp_path / "absent" / "set.bin")


class _Runs:
    """Unpickling this would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return open, (str(self.path), "w")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_malicious_pickle_is_refused_and_runs_nothing(protocol: int, tmp_path: Path) -> None:
    trap, path = tmp_path / "ran", tmp_path / "set.bin"
    write(path, ([b"\xff\xd8", _Runs(trap)], [True]), protocol)
    with pytest.raises(
        DataError, match=r"set\.bin holds the name '.*open', which is not plain data; nothing of it was"
    ):
        read_pairs(path)
    assert not trap.exists()
    pickle.loads(path.read_bytes())[0][1].close()  # noqa: S301 (the trap works)
    assert trap.exists()


NAMES = (b"cos\nsystem\n", b"cbuiltins\neval\n", b"cnumpy\nload\n", b"\x8c\x02os\x8c\x06system\x93")
TRICKS = {
    **{f"name {name!r}": name + b"(U\x05touchtR." for name in NAMES},
    "instance": b"(ios\nsystem\n.",
    "object": b"(cos\nsystem\no.",
    "new object": b"cnumpy\nndarray\n)\x81.",
    "extension": b"\x82\x01.",
    "persistent": b"Pid\n.",
    "call of a known name": b"cnumpy\nndarray\n(K\x09tR.",
    "codec": b"c_codecs\nencode\n(X\x01\x00\x00\x00aX\x03\x00\x00\x00zip\x86R.",
    "dtype of objects": b"cnumpy\ndtype\n(X\x02\x00\x00\x00O8tR.",
    "call of a value": b"K\x01)R.",
    "state of a list": b"]K\x01b.",
    "dictionary": b"}.",
    "float": b"G?\xf0\x00\x00\x00\x00\x00\x00.",
}


@pytest.mark.parametrize("trick", TRICKS)
def test_whatever_is_not_plain_data_is_refused(trick: str) -> None:
    with pytest.raises(DataError, match="which is not plain data") as caught:
        read_pickle(TRICKS[trick], "it")
    assert "\n" not in str(caught.value)


def test_a_small_file_cannot_unpack_to_a_large_one() -> None:
    text = b"X\xe8\x03\x00\x00" + b"a" * 1000
    encode = b"c_codecs\nencode\nq\x00" + text + b"q\x01X\x06\x00\x00\x00latin1q\x02"
    bomb = b"(" + encode + b"h\x00(h\x01h\x02tR" * 100 + b"l."
    with pytest.raises(DataError, match="more than its own size"):
        read_pickle(bomb, "it")


def test_lists_within_lists_cost_no_more_than_their_file(tmp_path: Path) -> None:
    nested = b"]" * 50_000 + b"a" * 49_999 + b"."
    read_pickle(nested, "it")
    shared: object = []
    for _ in range(60):
        shared = [shared, shared]
    with pytest.raises(DataError, match="is a list, not bytes"):
        read_pairs(write(tmp_path / "set.bin", (shared, shared)))


BAD = {
    "nothing": (b"", "not a whole pickle"),
    "no pickle": (b"hello", "not a whole pickle"),
    "one list": (pickle.dumps(IMAGES), "a list of images and a list of booleans"),
    "number for images": (pickle.dumps((7, GENUINE)), "first part is no list of images"),
    "text for an image": (pickle.dumps((["a"] * 4, GENUINE)), "among its images is a str"),
    "texts for booleans": (pickle.dumps((IMAGES, ["yes", "no"])), "no list of booleans"),
    "numbers for booleans": (pickle.dumps((IMAGES, [1, 2])), "no list of booleans"),
    "too few images": (pickle.dumps((IMAGES[:3], GENUINE)), "2 pairs need twice as many images, but there are 3"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_verification_set_gets_one_sentence(case: str, tmp_path: Path) -> None:
    content, sentence = BAD[case]
    (tmp_path / "set.bin").write_bytes(content)
    with pytest.raises(DataError, match=sentence):
        read_pairs(tmp_path / "set.bin")


def test_a_missing_file_gets_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_pairs(tmp_path / "set.bin")


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_a_flipped_byte_gives_a_sentence_or_plain_data(protocol: int) -> None:
    draw = random.Random(protocol)
    whole = pickle.dumps(([*IMAGES, np.frombuffer(b"abc", np.uint8)], np.array(GENUINE)), protocol=protocol)
    errors = 0
    for _ in range(2500):
        at, flip = draw.randrange(len(whole)), draw.randrange(1, 256)
        try:
            read_pickle(bytes([*whole[:at], whole[at] ^ flip, *whole[at + 1 :]]), "it")
        except DataError as error:
            assert "\n" not in str(error)  # noqa: PT017 (an error is one of two right outcomes)
            errors += 1
    assert 500 < errors < 2500


@given(content=st.binary(max_size=200))
@settings(max_examples=1000, deadline=None)
def test_any_bytes_give_a_sentence_or_plain_data(content: bytes) -> None:
    for begin in (b"", b"\x80\x04", b"(]("):
        try:
            read_pickle(begin + content + b".", "it")
        except DataError as error:
            assert str(error).startswith("it ")  # noqa: PT017 (an error is one of two right outcomes)
