"""Image sets in RecordIO files as MXNet and InsightFace keep them: `train.rec`, `train.idx`, `property`.

An image's record is a header (`IfQQ`: flag, label, id, id2), `flag` labels as float32 where flag > 0, and the bytes of
a JPEG or PNG (MXNet, `recordio.py`). InsightFace (`rec_builder.py`) adds records without an image: number 0, its first
label is one more than the number of images, and one an identity with the numbers of its images.
"""

import math
import mmap
import struct
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from operator import itemgetter
from pathlib import Path, PurePosixPath

from trainers.formats.record_io import Record, append_record, damaged, mapped, record_at, records
from trainers.image_cache import decode_image
from trainers.image_folder import beside
from trainers.image_source import DataError, FoundImages, ImageSource, OnImage, Reader, Store, by_class
from trainers.splits import TABLE_NAME, split_table

_HEADER = struct.Struct("<IfQQ")
_LABEL = struct.Struct("<f")
_EXACT = 2**24
"""Up to here float32 holds every whole number."""
_ENDINGS = ((b"\xff\xd8", ".jpg"), (b"\x89PNG", ".png"), (b"BM", ".bmp"), (b"GIF8", ".gif"))


@dataclass(frozen=True, slots=True)
class RecordStore(Store):
    """Images in a record file; `offsets` says where the record of each begins, in bytes."""

    path: Path
    offsets: Mapping[str, int]

    @contextmanager
    def reader(self) -> Iterator[Reader]:
        """What reads images while the context lasts."""
        with mapped(self.path) as data:

            def read(name: str) -> bytes:
                record = record_at(data, self.offsets[name], self.path)
                return record.content(data, _header(data, record, self.path).image_begin)

            yield read


def find_in_records(path: Path) -> FoundImages:
    """The images of a `.rec` file, or of a folder that holds `train.rec` or exactly one.

    A class is named by its label, padded with zeros, unless a `.lst` beside it lists each image as `<class>/<file>`,
    one class a label. Without an `.idx` the file is read from end to end. Raises `DataError` for a file that does not
    keep to the format.
    """
    file = _records_file(path)
    with mapped(file) as data:
        offsets = _index(file, data)
        images = dict(_images(file, data, offsets))
        _check_number_0(file, data, offsets, images)
    _check_property(file, images)
    names = _listed_names(file, images) or _numbered_names(images)
    store = RecordStore(file, {name: offsets[key] for key, name in names.items()})
    table = beside(file.parent / TABLE_NAME)
    return FoundImages(path=path, format="recordio", files=by_class(names.values(), path), store=store, table=table)


def _records_file(path: Path) -> Path:
    if path.is_file():
        return path
    usual, files = path / "train.rec", sorted(path.glob("*.rec"))
    if len(files) > 1 and usual not in files:
        raise DataError(f"{path} holds {len(files)} .rec files and no train.rec; give one of them, such as {files[0]}")
    return usual if usual in files else files[0]


def _index(path: Path, data: mmap.mmap) -> dict[int, int]:
    """Where each record begins, by key: as the `.idx` says, else by the ids in the records, else (where all are
    the same) by their order."""
    index = path.with_suffix(".idx")
    if not index.exists():
        ids = {offset: _header(data, record, path).id for offset, record in records(data, path)}
        distinct = len(set(ids.values()))
        if 1 < distinct < len(ids):
            raise DataError(f"{path} has two records of one id; restore it, or put its {index.name} beside it")
        return dict(zip(ids.values() if distinct == len(ids) else range(len(ids)), ids, strict=True))
    offsets: dict[int, int] = {}
    for number, line in enumerate(_text(index).splitlines(), start=1):
        words = line.split()
        if len(words) != 2 or not all(map(_is_number, words)):
            raise DataError(f"{index} line {number} is not a key and an offset; restore it, or remove it to do without")
        key, offset = map(int, words)
        if offsets.setdefault(key, offset) != offset or offset % 4 or offset >= len(data):
            raise DataError(f"{index} line {number} does not fit {path}; restore it, or remove it to do without")
    if len(set(offsets.values())) != len(offsets):
        raise DataError(f"{index} has two keys for one record of {path}; restore it, or remove it to do without")
    return offsets


def _text(path: Path) -> str:
    return path.read_bytes().decode("utf-8", errors="replace")


def _is_number(word: str) -> bool:
    return word.isascii() and word.isdecimal() and len(word) < 20


@dataclass(frozen=True, slots=True)
class _Header:
    """What a record says of its image: the first label (−1 for one that is not finite), id, where the image begins
    within the content and with which bytes."""

    flag: int
    label: float
    id: int
    image_begin: int
    magic: bytes


def _header(data: mmap.mmap, record: Record, path: Path) -> _Header:
    at = record.parts[0][0] - 8
    if record.length < _HEADER.size:
        raise damaged(path, at, "it has no room for its header")
    flag, label, key, _ = _HEADER.unpack(record.content(data, 0, _HEADER.size))
    begin = _HEADER.size + _LABEL.size * flag
    if record.length < begin:
        raise damaged(path, at, f"it has no room for the {flag} labels that it announces")
    if flag:
        (label,) = _LABEL.unpack(record.content(data, _HEADER.size, _HEADER.size + _LABEL.size))
    magic = record.content(data, begin, begin + 4)
    return _Header(flag, label if math.isfinite(label) else -1.0, key, begin, magic)


def _images(path: Path, data: mmap.mmap, offsets: Mapping[int, int]) -> Iterator[tuple[int, _Header]]:
    """Key and header of each record that has an image, in the order of the file."""
    ordered = sorted(offsets.items(), key=itemgetter(1))
    for (key, offset), (_, following) in pairwise([*ordered, (-1, len(data))]):
        record = record_at(data, offset, path)
        header = _header(data, record, path)
        if record.after > following:
            raise damaged(path, offset, "it reaches into the next one")
        if header.magic and not (0 <= header.label < _EXACT and header.label == int(header.label)):
            raise damaged(path, offset, f"its label {header.label:g} is not the number of a class")
        if header.magic:
            yield key, header


def _check_number_0(path: Path, data: mmap.mmap, offsets: Mapping[int, int], images: Mapping[int, _Header]) -> None:
    """Where record 0 says how many images there are, that many must be there, numbered from 1.

    It says so as float32, which from 2**24 on means several numbers.
    """
    if 0 in images or 0 not in offsets:
        return
    header = _header(data, record_at(data, offsets[0], path), path)
    if header.flag != 2 or header.label < 1:
        raise damaged(path, offsets[0], "it has neither an image nor the number of images")
    (next_key,) = _LABEL.unpack(_LABEL.pack(len(images) + 1))
    if header.label != next_key or max(images, default=0) != len(images):
        promised = int(header.label) - 1
        raise DataError(f"{path} promises {promised} images in its record 0, but has {len(images)}; restore it")


def _check_property(path: Path, images: Mapping[int, _Header]) -> None:
    """Labels must stay below the number of classes that `property` begins with."""
    told = path.parent / "property"
    if not told.exists():
        return
    first = _text(told)[:100].partition(",")[0].strip()
    if not _is_number(first):
        raise DataError(f"{told} must begin with the number of classes and a comma; correct or remove it")
    largest = max((int(header.label) for header in images.values()), default=-1)
    if largest >= int(first):
        raise DataError(f"{told} says that there are {first} classes, but {path} has the label {largest}; restore both")


def _numbered_names(images: Mapping[int, _Header]) -> dict[int, str]:
    """`images/<label>/<key>.<ending>` of each image by key, with zeros before the numbers, so that they sort."""
    label_width = max((len(f"{header.label:.0f}") for header in images.values()), default=1)
    key_width = len(str(max(images, default=0)))
    return {
        key: f"images/{header.label:0{label_width}.0f}/{key:0{key_width}d}{_ending(header.magic)}"
        for key, header in images.items()
    }


def _ending(magic: bytes) -> str:
    return next((ending for begin, ending in _ENDINGS if magic.startswith(begin)), ".img")


def _listed_names(path: Path, images: Mapping[int, _Header]) -> dict[int, str] | None:
    """The names by key that a `.lst` gives (key, labels, path, as MXNet's `im2rec` writes it), None where it does not.

    Each image must be listed under its label, each label have one class and each class one label.
    """
    listed = path.with_suffix(".lst")
    if not listed.exists():
        return None
    names: dict[int, str] = {}
    for line in _text(listed).splitlines():
        if not line.strip():
            continue
        key, *words = line.split("\t")
        header = images.get(int(key)) if _is_number(key) else None
        if header is None or len(words) < 2 or not _is_label(words[0], header.label):
            return None
        parts = PurePosixPath(words[-1]).parts
        if len(parts) < 2:
            return None
        names[int(key)] = f"images/{parts[-2]}/{parts[-1]}"
    if names.keys() != images.keys() or len(set(names.values())) != len(names):
        return None
    pairs = {(images[key].label, PurePosixPath(name).parts[1]) for key, name in names.items()}
    one_to_one = all(max(Counter(side).values()) == 1 for side in zip(*pairs, strict=True))
    return names if one_to_one else None


def _is_label(word: str, label: float) -> bool:
    try:
        return float(word) == label
    except ValueError:
        return False


def write_records(source: ImageSource, target: Path, on_image: OnImage) -> None:
    """The set as InsightFace keeps one, with a `train.lst`, so that names are kept, and `split.csv`.

    The image size in `property` is that of the first image.
    """
    target.mkdir()
    index: list[str] = []
    listed: list[str] = []
    ranges: list[tuple[int, int]] = []
    size = (0, 0)
    key = 1
    with (target / "train.rec").open("wb") as file, source.reader() as read:
        for label, names in enumerate(source.files.values()):
            ranges.append((key, key + len(names)))
            for name in names:
                content = read(name)
                size = size if index else decode_image(content, name, image_size=None, colour="auto").shape[:2]
                index.append(f"{key}\t{append_record(file, _HEADER.pack(0, label, key, 0) + content)}\n")
                listed.append(f"{key}\t{label}\t{name}\n")
                key += 1
                on_image(name)
        identities = key
        for begin, end in ranges:
            index.append(f"{key}\t{append_record(file, _without_image(key, begin, end))}\n")
            key += 1
        index.append(f"0\t{append_record(file, _without_image(0, identities, key))}\n")
    (target / "train.idx").write_text("".join(index), encoding="utf-8")
    (target / "train.lst").write_text("".join(listed), encoding="utf-8")
    (target / "property").write_text(f"{len(ranges)},{size[0]},{size[1]}\n", encoding="utf-8")
    (target / TABLE_NAME).write_bytes(split_table(source.splits))


def _without_image(key: int, begin: int, end: int) -> bytes:
    return _HEADER.pack(2, 0, key, 0) + _LABEL.pack(begin) + _LABEL.pack(end)
