"""The journal: one JSON line an event, append-only, the only state of a search.

Everything else (controller, MLflow pages, tables, reports) is a view of it: a search is resumed by replaying it. Each
line is flushed and fsynced before the search goes on. A torn last line, left by a crash in mid-write, is dropped; a
torn line in the middle means damage and is an error that names the line.
"""

import contextlib
import io
import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from filelock import FileLock, Timeout
from pydantic import ConfigDict, Field, JsonValue, TypeAdapter, ValidationError, model_validator

from lfs.errors import UserError, writing_to
from lfs.trial import Trial
from search_space.frozen import FrozenModel
from search_space.spec import LossSpec
from trainers.outcome import Outcome

SCHEMA = 1
FILE_NAME = "journal.jsonl"
LOCK_NAME = "journal.lock"
TRAINING = "training"
"""The key of a `Started` event's config by which a full training is known from a search."""


class JournalError(UserError):
    """The journal cannot be used as it is; the message says why and what to do."""


class _Event(FrozenModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    time: float = Field(default_factory=time.time)
    """Seconds since the epoch; the only clock that MLflow and the report use."""


class Started(_Event):
    """The first event: everything that a resume must find unchanged, and what a reader needs to repeat the search."""

    event: Literal["started"] = "started"
    schema_version: int = SCHEMA
    search_id: str
    config: Mapping[str, JsonValue]
    data: Mapping[str, JsonValue]
    """Name, digest, classes and images of each part of the data."""
    versions: Mapping[str, str]
    numerics: Mapping[str, JsonValue]


class Asked(_Event):
    """The controller was asked for `count` trials and returned `trials` (a non-empty ask); `summary` is its state."""

    event: Literal["asked"] = "asked"
    count: int
    trials: tuple[Trial, ...]
    summary: Mapping[str, float] = {}


class Retried(_Event):
    """An attempt at a trial was lost and is made again."""

    event: Literal["retried"] = "retried"
    trial: int
    attempt: int
    reason: str


Verdict = Literal["rejected", "reused", "warned", "noted"]


class Examined(_Event):
    """What the pre-flight filter has to say of a trial that was asked; it is silent about most.

    `rejected`: not trained, told as a failure. `reused`: not trained, told the outcome of trial `same_as`, which
    trains the same loss from the same start in the same way. `warned` and `noted` (equivalent to the loss of trial
    `same_as`, but not trained in the same way) change nothing. The last verdict on a trial counts: a reused one whose
    original the machine failed is noted afterwards, and trained.
    """

    event: Literal["examined"] = "examined"
    trial: int
    verdict: Verdict
    reason: str
    same_as: int | None = None

    @model_validator(mode="after")
    def _names_its_original(self) -> Self:
        if self.verdict == "reused" and (self.same_as is None or self.same_as >= self.trial):
            raise ValueError(f"a reused trial names an earlier one, but got same_as={self.same_as}")
        return self

    @property
    def trained(self) -> bool:
        """Whether the trial is trained all the same."""
        return self.verdict in ("warned", "noted")

    @property
    def original(self) -> int | None:
        """The trial whose outcome and checkpoint are this one's, None where it has its own or none."""
        return self.same_as if self.verdict == "reused" else None


class Rebuilt(_Event):
    """A missing checkpoint was made again by re-running its trial; `same` says whether the outcome was reproduced."""

    event: Literal["rebuilt"] = "rebuilt"
    trial: int
    same: bool


class Told(_Event):
    """The outcome of a trial. The first one counts."""

    event: Literal["told"] = "told"
    trial: int
    outcome: Outcome


class Resumed(_Event):
    """A later process took the search up again."""

    event: Literal["resumed"] = "resumed"
    versions: Mapping[str, str]


class Finished(_Event):
    """The search is over.

    `winner` is the number of the chosen trial, None when every one failed; `summary` the controller's last state;
    `constant` the one constant loss that it recommends, if it learns one.
    """

    event: Literal["finished"] = "finished"
    winner: int | None
    summary: Mapping[str, float] = {}
    constant: LossSpec | None = None


class Opened(_Event):
    """A comparison opens the sealed test identities, all its training being done. Only `compare` writes this."""

    event: Literal["opened"] = "opened"
    classes: int
    images: int
    clusters: int
    """What the bootstrap resamples: identities, or groups of them."""
    digest: str
    """Of the decoded images and their labels."""
    opened_before: int
    """How often comparisons of this workspace had opened these identities before."""
    unused_images: int = 0
    """Of the test split, left out as they are too many."""


State = Literal["trained", "collapsed", "diverged", "failed"]


class Scored(_Event):
    """The test scores of an entrant of a comparison under one seed, from the model that `trial` trained.

    `collapsed` scores are as measured. A `diverged` training leaves no model and has the scores of chance. `failed`
    says that the machine failed, not the loss; it has no scores. `why` says more of the last three.
    """

    event: Literal["scored"] = "scored"
    entrant: str
    seed: int
    trial: int
    state: State
    metrics: Mapping[str, float] = {}
    why: str = ""
    resamples: str = ""
    """A file in the comparison's folder: by how much each score moves in each resample of the identities."""
    curves: str = ""
    """Another file there: the error curve with its thresholds and its moves, and histograms of the cosines."""

    def score(self, metric: str) -> float | None:
        """A test score, by its name or a reward's; None where the machine failed the training."""
        if metric == "one_minus_eer" and "eer" in self.metrics:
            return 1 - self.metrics["eer"]
        return self.metrics.get(metric)


class Trained(_Event):
    """An epoch (1-based) of a full training is done; `metrics` as in `trainers.full_training.Row`. The first counts."""

    event: Literal["trained"] = "trained"
    epoch: int
    metrics: Mapping[str, float]


class Completed(_Event):
    """A full training is over: `files` were written into its folder, or there is an `error` and no network.

    `remarks` are sentences on what is odd about the network (it did not learn) or its files (no ONNX).
    """

    event: Literal["completed"] = "completed"
    files: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    error: str | None = None


Event = Annotated[
    Started | Asked | Examined | Retried | Rebuilt | Told | Resumed | Finished | Opened | Scored | Trained | Completed,
    Field(discriminator="event"),
]
_EVENT: TypeAdapter[Event] = TypeAdapter(Event)


def _parse(line: bytes, where: str) -> Event:
    try:
        return _EVENT.validate_json(line)
    except ValidationError as error:
        field = ".".join(str(part) for part in error.errors()[0]["loc"])
        what = f"{field} is not what an event holds there" if field else "it is no event of a search"
        raise JournalError(f"{where} is damaged: {what}; restore the line, or give the folder of a run") from None


def _complete_lines(data: bytes) -> tuple[list[bytes], int]:
    """The lines that end in a newline, and how many bytes they take."""
    end = data.rfind(b"\n") + 1
    return data[:end].splitlines(), end


def read_events(path: Path, *, offset: int = 0) -> tuple[list[Event], int]:
    """The complete events from byte `offset` on, and the offset behind them. A torn last line is left out.

    Raises `JournalError` for a missing file or a line that is not an event.
    """
    try:
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read()
    except (FileNotFoundError, NotADirectoryError):
        raise JournalError(f"no journal at {path}; give the folder of a run") from None
    lines, length = _complete_lines(data)
    first = 1
    return [_parse(line, f"{path} line {first + index}") for index, line in enumerate(lines)], offset + length


class Journal:
    """The journal of one run folder, held under a lock for as long as this object is open.

    Opening drops a torn last line from the file. Raises `JournalError` when another search holds the folder.
    """

    def __init__(self, run_dir: Path) -> None:
        self.path = run_dir / FILE_NAME
        self._lock = FileLock(run_dir / LOCK_NAME)
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise JournalError(f"another process is using {run_dir}; wait for it to end") from None
        try:
            self._events, length = read_events(self.path) if self.path.exists() else ([], 0)
            self._file: io.BufferedWriter = self.path.open("ab")
            self._file.truncate(length)
        except BaseException:
            self._lock.release()
            raise

    def append(self, event: Event) -> None:
        """Write one event and return once it is on disk. Raises `UnwritableError`."""
        with writing_to(self.path.parent):
            self._file.write(_EVENT.dump_json(event) + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        self._events.append(event)

    def __iter__(self) -> Iterator[Event]:
        return iter(tuple(self._events))

    def __len__(self) -> int:
        return len(self._events)

    def close(self) -> None:
        """Release the folder, and leave nothing in it if nothing was written."""
        with contextlib.suppress(OSError):  # what could not be written is dropped, as a torn line is
            self._file.close()
        if not self._events:
            self.path.unlink()
        self._lock.release()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def without_numbers(message: str) -> str:
    """What failures of one kind have in common: their text, with # for each number, address and process."""
    return re.sub(r"0x[0-9a-f]+|\d+(\.\d+)?([eE][-+]?\d+)?", "#", message)


def comparable(event: Event) -> dict[str, Any]:
    """An event without what two identical searches may differ in: times and seconds."""
    content: dict[str, Any] = json.loads(_EVENT.dump_json(event))
    del content["time"]
    if isinstance(event, Told):
        del content["outcome"]["seconds"]
    return content
