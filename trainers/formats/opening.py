"""Which format a path is in, by what lies there."""

import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

from trainers.formats.arrow_tables import find_in_tables, holds_tables
from trainers.formats.image_lists import find_in_csv
from trainers.formats.pixel_arrays import find_in_npz, find_olivetti
from trainers.formats.record_sets import find_in_records
from trainers.formats.tar_files import find_in_tar
from trainers.image_folder import beside, find_in_folder, find_in_zip, holds_class_folders
from trainers.image_source import LAYOUT, DataError, FoundImages, ImageSource
from trainers.splits import TABLE_NAME, with_splits

FILES: Mapping[str, Callable[[Path], FoundImages]] = {
    ".csv": find_in_csv,
    ".npz": find_in_npz,
    ".parquet": find_in_tables,
    ".pkz": find_olivetti,
    ".rec": find_in_records,
    ".tar": find_in_tar,
    ".zip": find_in_zip,
}
"""What reads a file of each known ending."""


def open_images(path: Path) -> ImageSource:
    """The image set at `path`, in whichever format, with its splits.

    A `split.csv` beside it, else in it (columns `class` and `split`; train, val or test), says which class is in which
    split, else the format itself. Where neither does, the hash of the class name does: 70 % train, 15 % val, 15 % test.

    Raises `DataError` for everything that cannot be used.
    """
    return with_splits(find_images(path))


def find_images(path: Path) -> FoundImages:
    """The image set at `path`, in whichever format, before it is split. Raises `DataError`."""
    if not path.exists():
        raise DataError(f"there is no file or folder {path}; give an image folder or a zip ({LAYOUT})")
    found = _find_in_file(path) if path.is_file() else _find_in_folder(path)
    if not found.files:
        raise DataError(f"{path} holds no images; it must hold {LAYOUT}")
    if len(found.files) == 1:
        raise DataError(
            f"{path} holds one class only ('{next(iter(found.files))}'); a loss needs classes to tell apart"
        )
    if all(len(of_class) == 1 for of_class in found.files.values()):
        raise DataError(f"every class in {path} has one image; verification needs classes with two or more")
    return found


def set_name(path: Path) -> str:
    """What to call the set at `path`: its file or folder without the ending of a known format.

    >>> set_name(Path("data/faces.v2.zip"))
    'faces.v2'
    """
    name = path.resolve().name
    ending = next((ending for ending in FILES if name.lower().endswith(ending)), "")
    return name[: len(name) - len(ending)]


def _find_in_file(path: Path) -> FoundImages:
    find = next((find for ending, find in FILES.items() if path.name.lower().endswith(ending)), None)
    if find is None and zipfile.is_zipfile(path):
        return find_in_zip(path)
    if find is None:
        raise DataError(f"{path} is in no known format; give an image folder or one of {', '.join(FILES)}")
    return find(path)


def _find_in_folder(path: Path) -> FoundImages:
    if (path / "images").is_dir():
        return find_in_folder(path)
    if any(path.glob("*.rec")):
        return find_in_records(path)
    if holds_tables(path):
        return find_in_tables(path)
    if any(path.glob("*.tar")):
        return find_in_tar(path)
    if found := _find_in_cache_of_sklearn(path):
        return found
    if holds_class_folders(path):
        return find_in_folder(path)
    zips = sorted(path.glob("*.zip"))
    if len(zips) > 1:
        raise DataError(f"{path} holds {len(zips)} zips and no images folder; give one of them, such as {zips[0]}")
    if not zips:
        raise DataError(f"{path} is not an image folder; it must hold {LAYOUT} or exactly one zip of that")
    return find_in_zip(zips[0])


def _find_in_cache_of_sklearn(path: Path) -> FoundImages | None:
    """What `fetch_lfw_people` or `fetch_olivetti_faces` of scikit-learn left in its folder, None where it did not."""
    for faces in ("lfw_home/lfw_funneled", "lfw_funneled", "lfw_home/lfw"):
        if (path / faces).is_dir():
            found = find_in_folder(path / faces)
            table = beside(path / TABLE_NAME)
            return found if table is None else found.with_table(table)
    cached = path / "olivetti_py3.pkz"
    return find_olivetti(cached) if cached.exists() else None
