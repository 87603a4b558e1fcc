"""What the commands that run for long share: how they are interrupted, how MLflow follows them, how they end."""

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from rich.console import Console

if TYPE_CHECKING:
    from lfs.tracker import Tracker

INTERRUPTED = 130
STOPPED = 1
TRACKER_SECONDS = 60.0
"""How long the end of a search waits for MLflow; `lossearch sync` writes the rest."""


class Interrupted(KeyboardInterrupt):
    """SIGINT or SIGTERM."""


@contextlib.contextmanager
def signals() -> Iterator[None]:
    """SIGINT and SIGTERM raise `Interrupted` once; what follows is ignored while the search is put away."""

    def interrupt(signum: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001 (the signature of a handler)
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_IGN)
        raise Interrupted

    before = {each: signal.signal(each, interrupt) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _say_above(sentence: str) -> None:
    """Onto stderr, through what rich puts in its place while a live view is drawn: above the view."""
    sys.stderr.write(f"{sentence}\n")


@contextlib.contextmanager
def tracked(tracker: "Tracker | None") -> Iterator[Callable[[], None]]:
    """Yields what starts the tracker: not before the journal is ours and has an event."""
    started = False

    def start() -> None:
        nonlocal started
        if tracker is not None and not started:
            tracker.start(_say_above)
            started = True

    try:
        yield start
    finally:
        if tracker is not None and started and (unwritten := tracker.stop(TRACKER_SECONDS)):
            Console(highlight=False, markup=False, stderr=True).print(unwritten, soft_wrap=True)
