"""Errors that the user can mend: the command line prints their sentence and exits with code 2."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class UserError(ValueError):
    """Something that the user gave cannot be used; the message is one sentence that says what would be right."""


def refuse_other_ending(path: Path | None, ending: str, why: str) -> None:
    """Raises `UserError` for a file, where there is one, whose name does not say what is written to it."""
    if path is not None and path.suffix != ending:
        raise UserError(f"{why}, so its file must end in {ending}, but got {path}")


@contextmanager
def data_refusals() -> Iterator[None]:
    """What is wrong with the data is the user's to mend: `DataError` becomes `UserError`."""
    from trainers.image_source import DataError

    try:
        yield
    except DataError as error:
        raise UserError(str(error)) from None
