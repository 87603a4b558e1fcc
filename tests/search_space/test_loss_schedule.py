"""`LossSchedule`: which loss holds from which epoch on."""

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from pydantic import ValidationError

from search_space import LossSchedule, LossSpec, ScheduleEntry, catalog

UNHURRIED = settings(deadline=None, derandomize=True)

A, B, C = catalog.softmax(), catalog.cosface(), catalog.p2sgrad()


def schedule(*entries: tuple[int, LossSpec]) -> LossSchedule:
    return LossSchedule(entries=tuple(ScheduleEntry(from_epoch=epoch, spec=spec) for epoch, spec in entries))


@st.composite
def schedules(draw: st.DrawFn) -> LossSchedule:
    later = sorted(draw(st.sets(st.integers(1, 20), max_size=5)))
    return schedule(*((epoch, draw(st.sampled_from([A, B, C]))) for epoch in [0, *later]))


def test_at_gives_the_latest_entry_that_has_begun() -> None:
    given_schedule = schedule((0, A), (3, B), (7, C))
    assert [given_schedule.at(epoch) for epoch in (0, 2, 3, 6, 7, 1000)] == [A, A, B, B, C, C]
    assert given_schedule.final == C
    assert list(given_schedule.specs()) == [A, B, C]
    assert len(given_schedule) == 3


def test_at_refuses_a_negative_epoch() -> None:
    with pytest.raises(ValueError, match="epoch must be 0 or more, but got epoch=-1"):
        LossSchedule.constant(A).at(-1)


def test_a_constant_schedule_has_one_entry() -> None:
    assert LossSchedule.constant(B) == schedule((0, B))


def test_then_replaces_what_came_after() -> None:
    assert schedule((0, A), (3, B), (7, C)).then(5, A) == schedule((0, A), (3, B), (5, A))
    assert schedule((0, A), (3, B)).then(3, C) == schedule((0, A), (3, C))
    assert schedule((0, A), (3, B)).then(0, C) == LossSchedule.constant(C)


def test_then_adds_no_entry_for_the_loss_that_already_holds() -> None:
    assert LossSchedule.constant(A).then(4, A) == LossSchedule.constant(A)
    assert schedule((0, A), (3, B)).then(3, A) == LossSchedule.constant(A)


@given(schedules(), st.integers(0, 20), st.sampled_from([A, B, C]))
@UNHURRIED
def test_then_changes_only_the_epochs_from_its_own_on(before: LossSchedule, from_epoch: int, spec: LossSpec) -> None:
    after = before.then(from_epoch, spec)
    assert [after.at(epoch) for epoch in range(from_epoch)] == [before.at(epoch) for epoch in range(from_epoch)]
    assert [after.at(epoch) for epoch in range(from_epoch, 25)] == [spec] * (25 - from_epoch)
    assert after.final == spec


@given(schedules())
@UNHURRIED
def test_a_schedule_survives_json(given_schedule: LossSchedule) -> None:
    assert LossSchedule.model_validate_json(given_schedule.model_dump_json()) == given_schedule


@pytest.mark.parametrize(
    ("entries", "sentence"),
    [
        ((), "at least 1 item"),
        (((1, A),), "the first entry must hold from epoch 0, but got from_epoch=1"),
        (((0, A), (3, B), (3, C)), r"from_epoch must rise strictly, but got \[0, 3, 3\]"),
        (((0, A), (3, catalog.get("subcenter_arcface"))), r"as many class weights a class, but got \[1, 3\]"),
        (((0, A), (5, B), (3, C)), r"from_epoch must rise strictly, but got \[0, 5, 3\]"),
        (((-1, A),), r"from_epoch\n.*greater than or equal to 0"),
    ],
)
def test_impossible_schedules_are_refused(entries: tuple[tuple[int, LossSpec], ...], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        schedule(*entries)


def test_then_refuses_a_negative_epoch() -> None:
    with pytest.raises(ValidationError, match=r"from_epoch\n.*greater than or equal to 0"):
        LossSchedule.constant(A).then(-2, B)


def test_a_schedule_is_frozen_and_hashable() -> None:
    constant = LossSchedule.constant(A)
    with pytest.raises(ValidationError, match="frozen"):
        constant.entries = ()  # type: ignore[misc]
    assert {constant: 1}[LossSchedule.constant(catalog.softmax())] == 1
