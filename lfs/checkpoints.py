"""The driver's checkpoints: one safetensors file a trial, renamed into place, within a byte budget."""

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lfs.errors import writing_to

Checkpoint = npt.NDArray[np.uint8]


class CheckpointStore:
    """Checkpoints by trial number in one folder. A missing one is never an error here: it can be rebuilt."""

    def __init__(self, folder: Path, *, budget_bytes: int = 4 * 2**30) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._budget_bytes = budget_bytes

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:06d}.safetensors"

    def save(self, number: int, checkpoint: Checkpoint) -> None:
        """Write a checkpoint so that it is whole or absent. Raises `UnwritableError`."""
        partial = self._path(number).with_suffix(".partial")
        with writing_to(self._folder.parent):
            with partial.open("wb") as file:
                checkpoint.tofile(file)
                file.flush()
                os.fsync(file.fileno())
            partial.rename(self._path(number))

    def load(self, number: int) -> Checkpoint | None:
        """The checkpoint, or None when it is not here, or empty after a power cut."""
        try:
            checkpoint: Checkpoint = np.fromfile(self._path(number), dtype=np.uint8)
        except FileNotFoundError:
            return None
        return checkpoint if checkpoint.size else None

    def latest(self) -> int | None:
        """The highest number that there is."""
        return max((int(path.stem) for path in self._folder.glob("*.safetensors")), default=None)

    def keep_only(self, numbers: Iterable[int]) -> None:
        """Delete all but `numbers`; of these, the last ones where they exceed the budget together."""
        room = self._budget_bytes
        kept = set()
        for path in map(self._path, dict.fromkeys(numbers)):
            if path.exists() and (size := path.stat().st_size) <= room:
                room -= size
                kept.add(path)
        for path in set(self._folder.glob("*.safetensors")) - kept:
            path.unlink()
