"""The journal on disk."""

import errno
import os
from pathlib import Path

import pytest

from lfs.errors import UnwritableError
from lfs.journal import (
    FILE_NAME,
    Asked,
    Event,
    Examined,
    Finished,
    Journal,
    JournalError,
    Started,
    Told,
    comparable,
    read_events,
)
from search_space import catalog
from tests.lfs.toy import make_reinforce, started
from trainers.outcome import Outcome


def test_events_come_back_as_they_went_in(tmp_path: Path) -> None:
    trials = tuple(make_reinforce().ask(4))
    outcome = Outcome(reward=0.25, metrics={"val/eer": 0.1}, history=({"epoch": 1.0},), seconds=2.5, images=10)
    events: list[Event] = [
        started(),
        Asked(count=9, trials=trials, summary={"mu/m3": 0.1}),
        Examined(trial=0, verdict="noted", reason="equivalent to another", same_as=None),
        Told(trial=0, outcome=outcome),
        Examined(trial=1, verdict="reused", reason="the same", same_as=0),
        Finished(winner=0, constant=catalog.arcface()),
    ]
    with Journal(tmp_path) as journal:
        for event in events:
            journal.append(event)
    assert read_events(tmp_path / FILE_NAME)[0] == events
    with Journal(tmp_path) as journal:
        assert list(journal) == events


def test_each_event_is_on_disk_when_append_returns(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.append(started())
        journal.append(Finished(winner=None))
        assert len((tmp_path / FILE_NAME).read_bytes().splitlines()) == 2


@pytest.mark.parametrize("torn", [b"{", b'{"event": "finished", "winner": null', b"\xff\xfe"])
def test_a_torn_last_line_is_dropped(torn: bytes, tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.append(started())
    path = tmp_path / FILE_NAME
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    assert len(read_events(path)[0]) == 1
    with Journal(tmp_path) as journal:
        assert len(journal) == 1
        journal.append(Finished(winner=None))
    assert path.read_bytes().startswith(whole)
    assert len(read_events(path)[0]) == 2


def test_a_torn_middle_line_is_an_error_that_names_it(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.append(started())
        journal.append(Finished(winner=None))
    path = tmp_path / FILE_NAME
    first, second = path.read_bytes().splitlines(keepends=True)
    damaged = first + b'{"event": "asked", "coun\n' + second
    path.write_bytes(damaged)
    with pytest.raises(JournalError, match=r"journal.jsonl line 2 is damaged"):
        Journal(tmp_path)
    assert path.read_bytes() == damaged


def test_one_search_at_a_time(tmp_path: Path) -> None:
    with Journal(tmp_path), pytest.raises(JournalError, match="another process is using"):
        Journal(tmp_path)
    with Journal(tmp_path) as journal:
        assert len(journal) == 0


def test_an_unused_journal_leaves_no_file(tmp_path: Path) -> None:
    Journal(tmp_path).close()
    assert not (tmp_path / FILE_NAME).exists()


def test_reading_goes_on_from_an_offset(tmp_path: Path) -> None:
    path = tmp_path / FILE_NAME
    with Journal(tmp_path) as journal:
        journal.append(started())
        events, offset = read_events(path)
        assert len(events) == 1
        assert read_events(path, offset=offset) == ([], offset)
        journal.append(Finished(winner=None))
        with path.open("ab") as file:
            file.write(b'{"event":')
        events, later = read_events(path, offset=offset)
    assert [event.event for event in events] == ["finished"]
    assert offset < later < path.stat().st_size


def test_a_missing_journal_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match="give the folder of a run"):
        read_events(tmp_path / FILE_NAME)


@pytest.mark.parametrize("same_as", ["null", "1", "2"])
def test_a_reused_trial_must_name_an_earlier_one(same_as: str, tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.append(started())
    path = tmp_path / FILE_NAME
    line = f'{{"event": "examined", "trial": 1, "verdict": "reused", "reason": "the same", "same_as": {same_as}}}\n'
    path.write_bytes(path.read_bytes() + line.encode())
    with pytest.raises(JournalError, match="line 2 is damaged"):
        read_events(path)


def test_two_like_searches_compare_equal() -> None:
    def told(seconds: float) -> Told:
        return Told(trial=1, outcome=Outcome(reward=0.5, seconds=seconds, images=3))

    assert comparable(told(1.0)) == comparable(told(2.0))
    assert comparable(told(1.0)) != comparable(Told(trial=2, outcome=told(1.0).outcome))


def test_a_full_disk_costs_the_event_and_nothing_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with Journal(tmp_path) as journal:
        journal.append(started())
        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", full)
            with pytest.raises(UnwritableError, match="No space left on device"):
                journal.append(Finished(winner=None))
        assert len(journal) == 1
    with Journal(tmp_path) as journal:
        assert isinstance(next(iter(journal)), Started)
