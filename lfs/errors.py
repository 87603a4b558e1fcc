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


class UnwritableError(UserError):
    """A run's folder takes no more, such as on a full disk; what it holds is whole."""


@contextmanager
def writing_to(folder: Path) -> Iterator[None]:
    """Raises `UnwritableError` for an `OSError`; numpy's say nothing but how many bytes it has written."""
    try:
        yield
    except OSError as error:
        raise UnwritableError(
            f"{folder} cannot be written ({error.strerror or error}); make room, then go on where it stopped: nothing "
            "that was finished is lost"
        ) from error


@contextmanager
def data_refusals() -> Iterator[None]:
    """What is wrong with the data is the user's to mend: `DataError` becomes `UserError`."""
    from trainers.image_source import DataError

    try:
        yield
    except DataError as error:
        raise UserError(str(error)) from None
