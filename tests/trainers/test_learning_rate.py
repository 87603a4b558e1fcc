import pytest

from trainers import Recipe
from trainers.learning_rate import constant, cooling_down, one_cycle, rate_of


def test_one_cycle_climbs_over_a_quarter_of_the_steps_and_ends_near_zero() -> None:
    rates = [one_cycle(step, 100, peak=0.5) for step in range(100)]
    assert rates[0] == pytest.approx(0.5 / 25)
    assert rates[25] == max(rates) == 0.5
    assert rates[:26] == sorted(rates[:26])
    assert rates[25:] == sorted(rates[25:], reverse=True)
    assert 0 < rates[-1] < 1e-3


@pytest.mark.parametrize("total_steps", [1, 2, 3])
def test_one_cycle_is_defined_for_very_short_trainings(total_steps: int) -> None:
    rates = [one_cycle(step, total_steps, peak=0.5) for step in range(total_steps)]
    assert all(0 < rate <= 0.5 for rate in rates)


def test_constant_climbs_as_one_cycle_does_stays_and_goes_down_over_its_last_share() -> None:
    rates = [constant(step, 100, peak=0.5, decay=0.2) for step in range(100)]
    assert rates[:25] == [one_cycle(step, 100, peak=0.5) for step in range(25)]
    assert set(rates[25:81]) == {0.5}
    assert rates[80:] == sorted(rates[80:], reverse=True)
    assert rates[90] == pytest.approx(0.25)
    assert 0 < rates[-1] < 0.01


def test_constant_without_a_decay_stays_at_its_peak_and_with_the_longest_is_one_cycle() -> None:
    assert {constant(step, 100, peak=0.5, decay=0.0) for step in range(25, 100)} == {0.5}
    longest = [constant(step, 100, peak=0.5, decay=0.75) for step in range(100)]
    assert longest == pytest.approx([one_cycle(step, 100, peak=0.5) for step in range(100)])


@pytest.mark.parametrize("total_steps", [1, 2, 3])
def test_constant_is_defined_for_very_short_trainings(total_steps: int) -> None:
    rates = [constant(step, total_steps, peak=0.5, decay=0.75) for step in range(total_steps)]
    assert all(0 < rate <= 0.5 for rate in rates)


def test_a_cool_down_begins_at_the_rate_of_its_first_step_and_ends_near_zero() -> None:
    rate = rate_of(Recipe(learning_rate=0.5, horizon_epochs=10, schedule="constant"), 10)
    falling = cooling_down(rate, 40, 20)
    rates = [falling(step) for step in range(40, 60)]
    assert rates[0] == rate(40) == 0.5
    assert rates == sorted(rates, reverse=True)
    assert rates[10] == pytest.approx(0.25)
    assert 0 < rates[-1] < 0.01


@pytest.mark.parametrize(("schedule", "last_but_one"), [("one_cycle", 0.0), ("constant", 0.3)])
def test_the_recipe_chooses_the_schedule_over_its_horizon(schedule: str, last_but_one: float) -> None:
    recipe = Recipe.model_validate({"schedule": schedule, "learning_rate": 0.3, "horizon_epochs": 4, "decay": 0.1})
    rate = rate_of(recipe, 25)
    assert rate(25) == 0.3
    assert (rate(89) == 0.3) == (last_but_one == 0.3)
    assert rate(99) < 0.01
