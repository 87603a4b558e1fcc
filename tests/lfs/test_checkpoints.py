"""The checkpoint store."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from lfs.checkpoints import CheckpointStore
from lfs.errors import UnwritableError


def filled(size: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    return np.full(size, 7, dtype=np.uint8)


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "checkpoints")
    store.save(3, np.arange(100, dtype=np.uint8))
    loaded = store.load(3)
    assert loaded is not None
    assert np.array_equal(loaded, np.arange(100))
    assert store.load(4) is None


def test_only_what_is_named_is_kept(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    for number in range(5):
        store.save(number, filled(10))
    store.keep_only([4, 1, 17])
    assert [number for number in range(5) if store.load(number) is not None] == [1, 4]


def test_the_first_named_are_kept_within_the_budget(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, budget_bytes=25)
    for number in range(4):
        store.save(number, filled(10))
    store.keep_only([3, 2, 1, 0])
    assert [number for number in range(4) if store.load(number) is not None] == [2, 3]


def test_a_half_written_checkpoint_is_none(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    (tmp_path / "000001.partial").write_bytes(b"half")
    assert store.load(1) is None


def test_a_full_disk_is_a_sentence_and_costs_no_other_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CheckpointStore(tmp_path / "run" / "checkpoints")
    store.save(0, filled(10))

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        UnwritableError, match=r"run cannot be written \(No space left on device\); make room, then go on"
    ):
        store.save(1, filled(10))
    assert store.load(0) is not None
    assert store.load(1) is None
