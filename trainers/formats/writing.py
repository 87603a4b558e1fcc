"""An image set written in another format, whole or not at all."""

import contextlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from trainers.formats.arrow_tables import TABLE_COLUMNS, write_hugging_face, write_parquet
from trainers.formats.image_lists import LIST_COLUMNS, write_list
from trainers.formats.labelled import further_columns
from trainers.formats.pixel_arrays import write_npz
from trainers.formats.record_sets import write_records
from trainers.formats.tar_files import write_shards, write_tar
from trainers.image_folder import write_folder, write_zip
from trainers.image_source import DataError, ImageSource, OnImage, is_text


def write_images(
    source: ImageSource, target: Path, *, kind: str | None = None, on_image: OnImage = lambda _: None
) -> None:
    """Write the images of `source` and its splits to `target`, in the format `kind`, by default `format_of(target)`.

    It is written beside its place and then renamed. Raises `DataError` when `target` exists or cannot be written, for
    an image that cannot be read, and for a name that is no text in a format that must write it as text; nothing is left
    then.
    """
    kind = kind or format_of(target)
    if kind not in WRITERS:
        raise DataError(f"unknown format '{kind}'; known are {', '.join(WRITERS)}")
    if target.exists():
        raise DataError(f"{target} is there already; choose another name or remove it")
    ending = next((ending for ending, of in _ENDINGS.items() if of == kind != "zip"), None)  # zips are known without it
    if ending is not None and target.suffix.lower() != ending:
        raise DataError(f"a set in the format '{kind}' is known by the ending {ending}, but got {target}; add it")
    if kind not in _NAMES_AS_BYTES:
        _refuse_undecoded(source, kind)
    with _in_place(target) as partial:
        WRITERS[kind](source, partial, on_image)


def left_out(source: ImageSource, kind: str) -> list[str]:
    """The columns of a set that the format `kind` has no place for."""
    own = _TABLES.get(kind)
    kept = [] if own is None else further_columns(source, own)
    return [column for column in source.columns if column not in kept]


def format_of(target: Path) -> str:
    """The format that the ending of a name stands for, `folder` where it stands for none."""
    return _ENDINGS.get(target.suffix.lower(), "folder")


def _refuse_undecoded(source: ImageSource, kind: str) -> None:
    undecoded = next((name for name in source.names(source.files) if not is_text(name)), None)
    if undecoded is not None:
        raise DataError(f"the image {undecoded!r} has a name that is not in UTF-8, as {kind} needs it; rename it")


@contextmanager
def _in_place(target: Path) -> Iterator[Path]:
    """A path to write to, which is renamed to `target` at the end and removed after an error."""
    partial = target.with_name(f"{target.name}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove(partial)
        yield partial
        partial.rename(target)
    except OSError as error:
        raise DataError(f"{target} cannot be written ({error.strerror or error}); choose another place") from error
    finally:
        with contextlib.suppress(OSError):
            _remove(partial)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


WRITERS: Mapping[str, Callable[[ImageSource, Path, OnImage], None]] = {
    "folder": write_folder,
    "huggingface": write_hugging_face,
    "list": write_list,
    "npz": write_npz,
    "parquet": write_parquet,
    "recordio": write_records,
    "tar": write_tar,
    "webdataset": write_shards,
    "zip": write_zip,
}
_TABLES = {"huggingface": TABLE_COLUMNS, "list": LIST_COLUMNS, "parquet": TABLE_COLUMNS}
"""The formats that keep further columns, and what they call their own."""

_NAMES_AS_BYTES = {"folder", "npz", "tar", "webdataset"}
"""The formats that keep a name as the file system has it."""

_ENDINGS = {".npz": "npz", ".parquet": "parquet", ".tar": "tar", ".zip": "zip"}
