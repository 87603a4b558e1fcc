"""Search-Softmax and Random-Softmax."""

import random
from collections.abc import Sequence

import numpy as np
import pytest

from lfs.rounds import Reinforce, RoundSearch, decode
from lfs.trial import Trial
from search_space import ModulatingFactor
from search_space.spec import ModulatingTarget
from tests.lfs.test_controllers import drive
from tests.lfs.toy import WIDE, make_random, make_reinforce
from trainers.outcome import Outcome


def outcome(reward: float | None) -> Outcome:
    error = "diverged: loss is nan" if reward is None else None
    return Outcome(reward=reward, error=error, seconds=0.0, images=0)


def tell_round(controller: RoundSearch, trials: Sequence[Trial], rewards: Sequence[float | None]) -> None:
    for trial, reward in zip(trials, rewards, strict=True):
        controller.tell(trial, outcome(reward))


def short(batch: int = 4, horizon_epochs: int = 6) -> RoundSearch:
    space = ModulatingFactor(scale=32)
    proposer = Reinforce(parameters=1, rounds=horizon_epochs - 2, start=1 / 3, sigma_start=0.2, sigma_end=0.08)
    return RoundSearch(
        space, proposer, batch=batch, warmup_epochs=2, warmup_unit=1 / 3, horizon_epochs=horizon_epochs, seed=7
    )


def u_of(trial: Trial) -> float:
    target = trial.schedule.final.target
    assert isinstance(target, ModulatingTarget)
    return target.u


def test_warm_up_trains_one_loss_under_several_seeds() -> None:
    trials = short().ask(100)
    assert len({trial.schedule for trial in trials}) == 1
    assert len({trial.seed for trial in trials}) == 4
    assert u_of(trials[0]) == pytest.approx(0.2 * 32)
    assert {trial.epochs for trial in trials} == {2}


def test_the_best_copy_starts_the_next_round() -> None:
    controller = short()
    warm_up = controller.ask(100)
    tell_round(controller, warm_up, [0.1, 0.4, 0.3, 0.2])
    first = controller.ask(100)
    assert {trial.parent for trial in first} == {1}
    assert {trial.seed for trial in first} == {warm_up[1].seed}
    assert {trial.epochs for trial in first} == {3}
    tell_round(controller, first, [0.1, 0.2, 0.3, 0.9])
    assert {trial.parent for trial in controller.ask(100)} == {first[3].number}


def test_samples_are_antithetic_pairs_about_mu() -> None:
    proposer = Reinforce(parameters=3, rounds=4, start=0.4, sigma_start=0.2, sigma_end=0.08)
    units = proposer.propose(np.random.default_rng(0), 4)
    assert np.allclose(units[:2] + units[2:], 0.8)
    assert len(np.unique(units)) == units.size


def test_mu_follows_the_reward_by_the_stated_step() -> None:
    proposer = Reinforce(parameters=1, rounds=5, start=0.5, sigma_start=0.2, sigma_end=0.08)
    proposed = proposer.propose(np.random.default_rng(0), 4)[:, 0]
    z = (proposed - 0.5) / 0.2
    rewards = np.array([0.9, 0.1, 0.3, 0.5])
    proposer.learn(rewards, noise=1e-6)
    expected = 0.5 + 0.2 * np.mean((rewards - rewards.mean()) / rewards.std() * z)
    mu = proposer.summary(ModulatingFactor(scale=32))["mu/u"] / (0.6 * 32)
    assert mu == pytest.approx(expected)


def test_rewards_within_the_noise_move_mu_less() -> None:
    steps = []
    for noise in (1e-6, 0.4):
        proposer = Reinforce(parameters=1, rounds=5, start=0.5, sigma_start=0.2, sigma_end=0.08)
        proposer.propose(np.random.default_rng(0), 4)
        proposer.learn(np.array([0.51, 0.49, 0.50, 0.52]), noise=noise)
        steps.append(abs(proposer.summary(ModulatingFactor(scale=32))["mu/u"] - 0.3 * 32))
    assert steps[1] < steps[0] / 10


def test_sigma_falls_geometrically_to_its_end() -> None:
    space = ModulatingFactor(scale=32)
    proposer = Reinforce(parameters=1, rounds=5, start=0.5, sigma_start=0.2, sigma_end=0.08)
    sigmas = []
    for round_ in range(5):
        sigmas.append(proposer.summary(space)["sigma"])
        proposer.propose(np.random.default_rng(round_), 4)
        proposer.learn(np.zeros(4), noise=0.1)
    assert sigmas[0] == pytest.approx(0.2)
    assert sigmas[-1] == pytest.approx(0.08)
    assert np.ptp(np.diff(np.log(sigmas))) < 1e-12


def test_converges_on_a_noisy_quadratic() -> None:
    """FORMULAS §6: B=8 at noise .2 of the reward's range ends within about .03 of the optimum (20 rounds)."""
    errors = []
    for seed in range(40):
        rng = np.random.default_rng([99, seed])
        proposer = Reinforce(parameters=1, rounds=20, start=1 / 3, sigma_start=0.2, sigma_end=0.08)
        for _ in range(20):
            units = np.clip(proposer.propose(rng, 8), 0, 1)[:, 0]
            rewards = 1 - ((units - 0.6) / 0.6) ** 2 + rng.normal(0, 0.2, 8)
            proposer.learn(rewards, noise=0.2)
        final = proposer.constant(ModulatingFactor(scale=32))
        assert final is not None
        assert isinstance(final.target, ModulatingTarget)
        errors.append(abs(final.target.u / (0.6 * 32) - 0.6))
    assert np.mean(errors) < 0.05
    assert np.quantile(errors, 0.9) < 0.1


def test_failures_count_as_the_worst_reward_so_far() -> None:
    with_failure, with_worst = short(), short()
    for controller in (with_failure, with_worst):
        tell_round(controller, controller.ask(100), [0.5, 0.4, 0.2, 0.6])
    tell_round(with_failure, with_failure.ask(100), [0.5, None, 0.7, 0.6])
    tell_round(with_worst, with_worst.ask(100), [0.5, 0.2, 0.7, 0.6])
    assert with_failure.summary() == with_worst.summary()


def test_a_round_of_failures_keeps_the_old_start() -> None:
    controller = short()
    tell_round(controller, controller.ask(100), [0.5, 0.4, 0.2, 0.6])
    first = controller.ask(100)
    tell_round(controller, first, [None] * 4)
    again = controller.ask(100)
    assert {trial.parent for trial in again} == {3}
    assert {trial.epochs for trial in again} == {3}


def test_reinforce_recommends_the_mean_of_its_last_mu_and_random_nothing() -> None:
    searching = make_reinforce()
    drive(searching, 2, random.Random(0))
    assert searching.constant() is not None
    drawing = make_random()
    drive(drawing, 2, random.Random(0))
    assert drawing.constant() is None


def test_decode_clips_into_the_space() -> None:
    space = WIDE
    inside = space.encode(decode(space, np.array([-3.0, 0.5, 9.0, 1.0])))
    assert inside["m1"] == space.domains["m1"].low
    assert inside["m3"] == space.domains["m3"].high


def test_warm_up_must_end_before_the_horizon() -> None:
    with pytest.raises(ValueError, match=r"warmup_epochs must lie in \[1, recipe.horizon_epochs\), but got 2"):
        short(horizon_epochs=2)
