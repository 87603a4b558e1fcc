"""Losses that move over training, as candidates."""

import math

import pytest

from search_space import CombinedMargin, Unified
from search_space.parts import ConstantMargin, ConstantScale
from search_space.trajectories import Trajectories

SPACE = CombinedMargin(m2_rad=(0.0, 1.0), scale=(8.0, 32.0))


def test_one_knot_is_a_constant_loss_of_any_space() -> None:
    plain = Trajectories(SPACE, knots=1, epochs=5)
    values = {"m2_rad": 0.3, "m3": 0.1, "scale": 16.0}
    assert plain.parameters == SPACE.parameters
    assert list(plain.decode(values).specs()) == [SPACE.decode(values)]
    assert Trajectories(Unified(), knots=1, epochs=5).conditional


def test_knots_are_joined_by_straight_lines_and_log_domains_by_equal_factors() -> None:
    moving = Trajectories(SPACE, knots=3, epochs=5)
    ends = {"m2_rad": (0.0, 0.4, 0.2), "m3": (0.1, 0.1, 0.1), "scale": (8.0, 32.0, 8.0)}
    schedule = moving.decode({f"{name}@{knot}": value for name, row in ends.items() for knot, value in enumerate(row)})
    margins = [schedule.at(epoch).margin for epoch in range(5)]
    scales = [schedule.at(epoch).scale for epoch in range(5)]
    assert all(isinstance(margin, ConstantMargin) for margin in margins)
    assert [m.m2_rad for m in margins if isinstance(m, ConstantMargin)] == pytest.approx([0, 0.2, 0.4, 0.3, 0.2])
    assert [s.value for s in scales if isinstance(s, ConstantScale)] == pytest.approx([8, 8 * math.sqrt(4), 32, 16, 8])


def test_equal_knots_are_one_loss() -> None:
    moving = Trajectories(SPACE, knots=2, epochs=4)
    values = {f"{name}@{knot}": value for knot in (0, 1) for name, value in (("m2_rad", 0.3), ("m3", 0.1))}
    assert len(moving.decode({**values, "scale@0": 8.0, "scale@1": 8.0})) == 1


@pytest.mark.parametrize("knots", [0, 6])
def test_knots_must_fit_the_epochs(knots: int) -> None:
    with pytest.raises(ValueError, match=rf"knots must lie in \[1, 5\], the number of epochs, but got knots={knots}"):
        Trajectories(SPACE, knots=knots, epochs=5)


def test_a_space_with_choices_has_no_lines() -> None:
    with pytest.raises(ValueError, match="needs a space of intervals alone, but this one has choices"):
        Trajectories(Unified(), knots=2, epochs=5)


def test_values_must_be_those_of_every_knot_and_within_bounds() -> None:
    moving = Trajectories(SPACE, knots=2, epochs=4)
    good = dict.fromkeys(moving.parameters, 0.1) | {"scale@0": 8.0, "scale@1": 8.0}
    with pytest.raises(ValueError, match="values needed for m2_rad@0"):
        moving.decode({"m2_rad@0": 0.1})
    with pytest.raises(ValueError, match="m2_rad must lie in"):
        moving.decode({**good, "m2_rad@1": 2.0})
