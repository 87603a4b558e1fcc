"""What a terminal shows while the data are read: a spinner, and a bar while images are decoded."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from trainers.image_cache import OnDecoded

_COUNTED = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())


@contextmanager
def reading(console: Console) -> Iterator[OnDecoded]:
    """What is yielded is told how many images are decoded; all is gone at the end. Shows nothing but on a terminal."""
    quiet = not console.is_terminal
    with Progress(
        SpinnerColumn(), TextColumn("{task.description}"), console=console, transient=True, disable=quiet
    ) as bar:
        task = bar.add_task("reading the data", total=None)

        def on_decoded(done: int, total: int) -> None:
            if bar.tasks[0].total is None:
                bar.columns = (*bar.columns, *_COUNTED)
            bar.update(task, description="decoding the images", completed=done, total=total)

        yield on_decoded
