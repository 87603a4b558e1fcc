"""Samplers: what they are told, and that those of Optuna learn."""

import numpy as np
import pytest

from lfs.optuna_sampler import Kind, OptunaSampler
from lfs.samplers import Objective, Sampler, UniformSampler
from search_space import CombinedMargin, Unified
from search_space.parts import ConstantMargin
from search_space.schedule import LossSchedule
from tests.lfs.toy import trajectories
from trainers.outcome import Outcome

SPACE = CombinedMargin(m2_rad=(0.0, 1.0), m3=(0.0, 0.5))


def loss_of(schedule: LossSchedule) -> float:
    margin = schedule.final.margin
    assert isinstance(margin, ConstantMargin)
    return (margin.m2_rad - 0.6) ** 2 + (margin.m3 - 0.1) ** 2


def late_losses(sampler: Sampler, trials: int, noise: float, seed: int) -> float:
    """The mean true loss of the last ten candidates, after noisy rewards."""
    rng, seen = np.random.default_rng(seed), []
    for number in range(trials):
        schedule = sampler.propose(number).schedule
        reward = -loss_of(schedule) + noise * rng.standard_normal()
        sampler.learn(number, Outcome(reward=float(reward), seconds=1.0, images=1), epochs=1)
        seen.append(loss_of(schedule))
    return float(np.mean(seen[-10:]))


@pytest.mark.parametrize("kind", ["tpe", "cmaes", "gp"])
def test_they_learn_where_uniform_draws_do_not(kind: Kind) -> None:
    candidates = trajectories(SPACE)
    learnt = [late_losses(OptunaSampler(candidates, kind=kind, seed=s), 40, 0.003, s) for s in range(3)]
    uniform = [late_losses(UniformSampler(candidates, seed=s), 40, 0.003, s) for s in range(3)]
    assert np.mean(learnt) < 0.6 * np.mean(uniform)


def test_a_failed_candidate_is_told_and_the_study_goes_on() -> None:
    sampler = OptunaSampler(trajectories(SPACE), kind="tpe", seed=0, startup=2)
    for number in range(8):
        sampler.propose(number)
        failed = number % 2 == 0
        reward, error = (None, "diverged: loss is nan") if failed else (0.5, None)
        sampler.learn(number, Outcome(reward=reward, error=error, seconds=1.0, images=1), epochs=1)
    assert sampler.summary() == {"learnt_from": 8.0}


@pytest.mark.parametrize("kind", ["cmaes", "gp"])
def test_samplers_of_intervals_refuse_choices_with_the_reason(kind: Kind) -> None:
    with pytest.raises(ValueError, match=rf"sampler '{kind}' .* over intervals, but the space has choices"):
        OptunaSampler(trajectories(Unified()), kind=kind, seed=0)


def test_several_objectives_need_a_sampler_that_takes_them() -> None:
    two = (Objective(), Objective(metric="seconds", direction="minimize"))
    OptunaSampler(trajectories(SPACE), kind="nsga2", seed=0, objectives=two)
    with pytest.raises(ValueError, match="sampler 'cmaes' takes one objective, but got 2"):
        OptunaSampler(trajectories(SPACE), kind="cmaes", seed=0, objectives=two)


def test_objectives_read_what_they_name() -> None:
    outcome = Outcome(reward=0.7, metrics={"val/eer": 0.1}, seconds=3.0, images=50)
    values = {name: Objective(metric=name).of(outcome) for name in ("reward", "seconds", "images", "val/eer")}
    assert values == {"reward": 0.7, "seconds": 3.0, "images": 50.0, "val/eer": 0.1}


def test_nsga2_spreads_along_the_trade_off() -> None:
    """Two objectives that pull m2 to either end: the candidates after the first generations lie on both."""
    two = (Objective(), Objective(metric="seconds", direction="minimize"))
    sampler = OptunaSampler(trajectories(SPACE), kind="nsga2", seed=0, population=10, objectives=two)
    late = []
    for number in range(120):
        schedule = sampler.propose(number).schedule
        margin = schedule.final.margin
        assert isinstance(margin, ConstantMargin)
        sampler.learn(
            number, Outcome(reward=margin.m2_rad - margin.m3, seconds=margin.m2_rad + margin.m3, images=1), epochs=1
        )
        late.append((margin.m2_rad, margin.m3))
    m2_P, m3_P = np.array(late[80:]).T
    assert m2_P.max() - m2_P.min() > 0.5
    assert np.median(m3_P) < 0.1


def test_nsga2_inherits_parameters_that_depend_on_choices() -> None:
    """The reward is the margin m2 of the losses that have one: later generations have larger ones, if they have one."""
    sampler = OptunaSampler(trajectories(Unified()), kind="nsga2", seed=0, population=10)
    m2_P = []
    for number in range(120):
        margin = sampler.propose(number).schedule.final.margin
        m2_P.append(margin.m2_rad if isinstance(margin, ConstantMargin) else np.nan)
        reward = float(np.nan_to_num(m2_P[-1], nan=-1.0))
        sampler.learn(number, Outcome(reward=reward, seconds=1.0, images=1), epochs=1)
    assert np.nanmedian(m2_P[80:]) > np.nanmedian(m2_P[:20]) + 0.1


def test_rewards_of_different_depths_are_never_compared() -> None:
    """The deeper the higher the rewards; at 9 epochs the best is m2 = .6 rad, at 1 epoch it would be 0."""
    sampler = OptunaSampler(trajectories(SPACE), kind="tpe", seed=0, startup=5)
    late = []
    for number in range(60):
        schedule = sampler.propose(number).schedule
        margin = schedule.final.margin
        assert isinstance(margin, ConstantMargin)
        shallow = Outcome(reward=0.1 - 0.1 * margin.m2_rad, seconds=1.0, images=1)
        deep = Outcome(reward=0.5 - loss_of(schedule), seconds=1.0, images=1)
        sampler.learn(number, shallow, epochs=1)
        if number % 3 == 0:
            sampler.learn(number, deep, epochs=9)
        late.append(margin.m2_rad)
    assert abs(float(np.mean(late[-20:])) - 0.6) < 0.15


def test_a_candidate_that_fails_at_a_later_rung_is_learnt_from_once() -> None:
    sampler = OptunaSampler(trajectories(SPACE), kind="tpe", seed=0, startup=2)
    for number in range(4):
        sampler.propose(number)
        sampler.learn(number, Outcome(reward=0.5, seconds=1.0, images=1), epochs=1)
        failed = Outcome(reward=None, error="diverged: loss is nan", seconds=1.0, images=1)
        sampler.learn(number, failed, epochs=3)
    assert sampler.summary() == {"learnt_from": 4.0}
