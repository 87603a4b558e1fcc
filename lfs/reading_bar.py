"""What is shown while the data are read: a spinner, a bar while images are decoded, and then what was left out."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from trainers.image_cache import OnDecoded
from trainers.task import Task

_COUNTED = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
_SHOWN = 10
"""How many damaged images are named."""


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


def say_what_is_left_out(console: Console, task: Task) -> None:
    """A sentence about the images that cannot be decoded and one about the validation images that are too many; nothing
    where there are none."""
    say_damaged(console, task.damaged)
    if task.unscored:
        scored = len(task.reward.labels) + len(task.choice.labels)
        console.print(
            f"validation takes {scored:,} of {scored + task.unscored:,} images: data.max_validation_images",
            soft_wrap=True,
        )


def say_damaged(console: Console, names: Sequence[str]) -> None:
    """A sentence about the images that cannot be decoded; nothing where there are none."""
    if names:
        more = ", ..." if len(names) > _SHOWN else ""
        shown = ", ".join(names[:_SHOWN])
        console.print(f"images that cannot be decoded and are left out: {len(names):,} ({shown}{more})", soft_wrap=True)
