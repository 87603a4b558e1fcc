"""Image sets in tar files: laid out `images/<class>/<file>`, or as shards of WebDataset.

A sample of WebDataset is a run of files of one shard that share their name up to the first dot: an image, and its class
in `.cls` (a text) or `.json` (`class`, `label` or `cls`, and optionally `file` and `split`). Only uncompressed tars are
read, for images are compressed already and a compressed tar can only be read from its beginning.
"""

import io
import json
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from trainers.formats.labelled import Row, found_in_table, image_names
from trainers.image_folder import beside, reading, refuse_unsafe
from trainers.image_source import DataError, FoundImages, ImageSource, OnImage, Reader, Store, by_class
from trainers.splits import TABLE_NAME, split_table

_IMAGE_ENDINGS = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "ppm", "pgm", "tif", "tiff", "img")
_SHARD_IMAGES = 10_000


@dataclass(frozen=True, slots=True)
class Place:
    """Where a file's bytes are: in which tar, from which byte on, how many."""

    tar: Path
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class TarStore(Store):
    """Images in uncompressed tars, by name."""

    places: Mapping[str, Place]

    @contextmanager
    def reader(self) -> Iterator[Reader]:
        """What reads images while the context lasts; a tar is opened for each, for there may be thousands."""

        def read(name: str) -> bytes:
            place = self.places[name]
            content = reading(lambda: _content(place), name, place.tar)
            if len(content) < place.size:
                raise DataError(f"{name} in {place.tar} is cut off; restore the file")
            return content

        yield read


def find_in_tar(path: Path) -> FoundImages:
    """The images of a tar, or of the shards of a folder. Raises `DataError`."""
    shards = sorted(path.glob("*.tar")) if path.is_dir() else [path]
    members = {shard: dict(_members(shard)) for shard in shards}
    inside = [name for of_shard in members.values() for name in of_shard if name.startswith("images/")]
    if not inside or any(name.endswith((".cls", ".json")) for name in inside):
        return _find_samples(path, members)
    files = by_class(inside, path)
    uses = Counter(inside)
    twice = next((name for names in files.values() for name in names if uses[name] > 1), None)
    if twice is not None:
        raise DataError(f"{path} has {twice} in two tars; remove one of them")
    places = {name: place for of_shard in members.values() for name, place in of_shard.items()}
    table = beside(_folder(path) / TABLE_NAME)
    if table is None and TABLE_NAME in places:
        table = _content(places[TABLE_NAME])
    return FoundImages(path=path, format="tar", files=files, store=TarStore(places), table=table)


def _folder(path: Path) -> Path:
    return path if path.is_dir() else path.parent


def _members(tar: Path) -> Iterator[tuple[str, Place]]:
    try:
        with tarfile.open(tar, "r:") as archive:
            for member in archive:
                name = member.name.removeprefix("./")
                refuse_unsafe(name, tar)
                if member.issym() or member.islnk():
                    raise DataError(f"{tar} holds the link '{name}'; put the file itself there")
                if member.issparse():
                    raise DataError(f"{tar} holds '{name}' as a sparse file; repack it without --sparse (-S)")
                if member.isreg():
                    yield name, Place(tar, member.offset_data, member.size)
            if any(_content(Place(tar, archive.offset, tarfile.BLOCKSIZE))):  # where tarfile stops without a word
                raise tarfile.ReadError(f"no file begins at byte {archive.offset}")
    except (OSError, tarfile.TarError, ValueError, EOFError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{tar} cannot be read as an uncompressed tar ({error}); unpack or repack it") from error


def _content(place: Place) -> bytes:
    with place.tar.open("rb") as file:
        file.seek(place.offset)
        return file.read(place.size)


def _find_samples(path: Path, members: Mapping[Path, Mapping[str, Place]]) -> FoundImages:
    """The samples of all shards; files of one name whose key is in several shards lie in folders named by these."""
    samples = [(shard, key, parts) for shard, of_shard in members.items() for key, parts in _samples(of_shard).items()]
    uses = Counter(key for _, key, _ in samples)
    rows, places = [], []
    for shard, key, parts in samples:
        image = next((ending for ending in _IMAGE_ENDINGS if ending in parts), None)
        if image is None:
            continue
        row = _row(key, image, parts, shard)
        rows.append(row if uses[key] == 1 else replace(row, file=f"{shard.stem}/{row.file}"))
        places.append(parts[image])
    names = image_names(rows, path)
    store = TarStore(dict(zip(names, places, strict=True)))
    found = found_in_table(path, "webdataset", rows, names, store)
    return found.with_table(beside(_folder(path) / TABLE_NAME))


def _samples(members: Mapping[str, Place]) -> dict[str, dict[str, Place]]:
    """The files of each sample of a shard by what follows the first dot, by key."""
    samples: dict[str, dict[str, Place]] = {}
    for name, place in members.items():
        folder, _, base = name.rpartition("/")
        stem, _, ending = base.partition(".")
        samples.setdefault(f"{folder}/{stem}" if folder else stem, {})[ending.lower()] = place
    return samples


def _row(key: str, ending: str, parts: Mapping[str, Place], shard: Path) -> Row:
    told: object = None
    if "json" in parts:
        try:
            told = json.loads(_content(parts["json"]))
        except ValueError as error:
            raise DataError(f"{key}.json in {shard} is not JSON ({error}); correct it") from error
    told = {word: value for word, value in told.items() if value is not None} if isinstance(told, dict) else {}
    label = next((told[word] for word in ("class", "label", "cls") if word in told), None)
    if label is None and "cls" in parts:
        label = _content(parts["cls"]).decode("utf-8", errors="replace").strip()
    if not isinstance(label, str | int):
        raise DataError(f"{key} in {shard} has no class; a sample needs a .cls, or a .json with 'class'")
    return Row(str(label), str(told.get("file", f"{key}.{ending}")), str(told.get("split", "")))


def write_tar(source: ImageSource, target: Path, on_image: OnImage) -> None:
    """One tar of `images/<class>/<file>` and `split.csv`."""
    with tarfile.open(target, "w:", format=tarfile.GNU_FORMAT) as archive, source.reader() as read:
        _add(archive, TABLE_NAME, split_table(source.splits))
        for name in source.names(source.files):
            _add(archive, name, read(name))
            on_image(name)


def write_shards(source: ImageSource, target: Path, on_image: OnImage) -> None:
    """Shards of WebDataset: an image, its class as a number (`.cls`) and by name with file and split (`.json`)."""
    target.mkdir()
    names = source.names(source.files)
    numbers = {name: str(number) for number, name in enumerate(source.files)}
    with source.reader() as read:
        for shard in range(0, len(names), _SHARD_IMAGES):
            tar = target / f"shard-{shard // _SHARD_IMAGES:06d}.tar"
            with tarfile.open(tar, "w:", format=tarfile.GNU_FORMAT) as archive:
                for number, name in enumerate(names[shard : shard + _SHARD_IMAGES], start=shard):
                    _, class_name, file = PurePosixPath(name).parts
                    ending = PurePosixPath(file).suffix.lower().removeprefix(".")
                    told = {"class": class_name, "file": file, "split": source.splits[class_name]}
                    _add(archive, f"{number:09d}.{ending if ending in _IMAGE_ENDINGS else 'img'}", read(name))
                    _add(archive, f"{number:09d}.cls", numbers[class_name].encode())
                    _add(archive, f"{number:09d}.json", json.dumps(told).encode())
                    on_image(name)


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))
