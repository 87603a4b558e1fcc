"""Searches that a benchmark starts as a user would, and what they leave."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lfs.journal import FILE_NAME, Asked, Finished, Started, Told, read_events
from lfs.trial import Trial
from trainers.outcome import Outcome

LOSSEARCH = (sys.executable, "-c", "from lfs.cli import main; main()")
"""The command, wherever it is installed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedSearch:
    """What the journal of a finished search says; trials and outcomes by number."""

    started: Started
    finished: Finished
    trials: Mapping[int, Trial]
    outcomes: Mapping[int, Outcome]

    @classmethod
    def read(cls, run_dir: Path) -> "FinishedSearch":
        """That of a run folder."""
        events, _ = read_events(run_dir / FILE_NAME)
        return cls(
            started=next(event for event in events if isinstance(event, Started)),
            finished=next(event for event in events if isinstance(event, Finished)),
            trials={trial.number: trial for event in events if isinstance(event, Asked) for trial in event.trials},
            outcomes={event.trial: event.outcome for event in events if isinstance(event, Told)},
        )
