"""What a process may use of the machine."""

import os
from pathlib import Path

import pytest

from trainers import machine
from trainers.machine import usable_cpus


@pytest.mark.parametrize(
    ("told", "cpus"),
    [(None, 6), ("max 100000", 6), ("250000 100000", 2), ("50000 100000", 1), ("900000 100000", 6), ("", 6)],
)
def test_usable_cpus_are_those_of_the_process_and_of_its_container(
    told: str | None, cpus: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    monkeypatch.setattr(machine, "_CPU_TIME", tmp_path / "cpu.max")
    if told is not None:
        (tmp_path / "cpu.max").write_text(told, encoding="ascii")
    assert usable_cpus() == cpus
