"""Search-Softmax and Random-Softmax."""

import random
from collections.abc import Sequence

import numpy as np
import pytest

from lfs.proposers import RandomRounds, Reinforce, decode, start_of
from lfs.rounds import RoundSearch
from lfs.trial import Trial
from search_space import AMLFS, CombinedMargin, LossSchedule, ModulatingFactor, Space, Unified, catalog
from search_space.parts import ModulatingTarget
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
    proposer = Reinforce(start_of(space), rounds=horizon_epochs - 2, sigma_start=0.2, sigma_end=0.08)
    return RoundSearch(space, proposer, batch=batch, warmup_epochs=2, horizon_epochs=horizon_epochs, seed=7)


def gaussian(start: float, *, rounds: int = 5, parameters: int = 1) -> Reinforce:
    return Reinforce(np.full(parameters, start), rounds=rounds, sigma_start=0.2, sigma_end=0.08)


def u_of(trial: Trial) -> float:
    target = trial.schedule.final.target
    assert isinstance(target, ModulatingTarget)
    return target.u


def warmed_up(controller: RoundSearch, rewards: Sequence[float | None]) -> Sequence[Trial]:
    """Tell the warm-up; returns its copies."""
    tell_round(controller, controller.ask(100), [0.1])
    copies = controller.ask(100)
    tell_round(controller, copies, rewards)
    return copies


def test_warm_up_is_one_trial_and_then_copies_of_one_loss_in_several_orders_of_the_data() -> None:
    controller = short()
    (alone,) = controller.ask(100)
    assert (alone.epochs, alone.seed, alone.parent) == (1, 7, None)
    tell_round(controller, [alone], [0.1])
    copies = controller.ask(100)
    assert {trial.schedule for trial in copies} == {alone.schedule}
    assert u_of(alone) == pytest.approx(0.2 * 32)
    assert {(trial.epochs, trial.parent) for trial in copies} == {(2, alone.number)}
    assert copies[0].seed == alone.seed
    assert len({trial.seed for trial in copies}) == 4


def test_the_noise_is_the_spread_of_the_copies() -> None:
    controller = short()
    warmed_up(controller, [0.30, 0.34, 0.32, None])
    assert controller.summary()["noise"] == pytest.approx(0.02)


def test_when_the_lone_warm_up_fails_the_copies_start_afresh() -> None:
    controller = short()
    tell_round(controller, controller.ask(100), [None])
    copies = controller.ask(100)
    assert {(trial.epochs, trial.parent) for trial in copies} == {(2, None)}
    tell_round(controller, copies, [0.1, 0.2, 0.4, 0.3])
    assert {trial.parent for trial in controller.ask(100)} == {copies[2].number}


def test_a_warm_up_of_one_epoch_has_copies_alone() -> None:
    space = ModulatingFactor(scale=32)
    controller = RoundSearch(space, gaussian(0.5), batch=4, warmup_epochs=1, horizon_epochs=3, seed=7)
    assert [(trial.epochs, trial.parent) for trial in controller.ask(100)] == [(1, None)] * 4


def test_the_best_copy_starts_the_next_round() -> None:
    controller = short()
    copies = warmed_up(controller, [0.1, 0.4, 0.3, 0.2])
    first = controller.ask(100)
    assert {trial.parent for trial in first} == {copies[1].number}
    assert {trial.seed for trial in first} == {copies[1].seed}
    assert {trial.epochs for trial in first} == {3}
    tell_round(controller, first, [0.1, 0.2, 0.3, 0.9])
    assert {trial.parent for trial in controller.ask(100)} == {first[3].number}


def test_copies_are_rewarded_after_a_cool_down_that_ends_within_the_horizon() -> None:
    space = ModulatingFactor(scale=32)
    controller = RoundSearch(
        space, gaussian(0.5), batch=2, warmup_epochs=2, horizon_epochs=5, seed=7, cooldown_epochs=2
    )
    cooled = {}
    while trials := controller.ask(100):
        cooled[trials[0].epochs] = {trial.cooldown_epochs for trial in trials}
        tell_round(controller, trials, [0.1, 0.2][: len(trials)])
    assert cooled == {1: {0}, 2: {2}, 3: {2}, 4: {1}, 5: {0}}


def test_under_one_loss_the_copies_differ_in_the_order_of_the_data_alone() -> None:
    loss = catalog.cosface(margin=0.2, scale=16)
    controller = RoundSearch(WIDE, RandomRounds(), batch=4, warmup_epochs=2, horizon_epochs=5, seed=7, constant=loss)
    rounds = [controller.ask(100)]
    while rounds[-1]:
        tell_round(controller, rounds[-1], [0.1, 0.4, 0.3, 0.2][: len(rounds[-1])])
        rounds.append(controller.ask(100))
    trials = [trial for round_ in rounds for trial in round_]
    assert {trial.schedule for trial in trials} == {LossSchedule.constant(loss)}
    assert [len({trial.seed for trial in round_}) for round_ in rounds] == [1, 4, 4, 4, 4, 0]
    assert {trial.parent for trial in rounds[3]} == {rounds[2][1].number}
    assert rounds[3][0].seed == rounds[2][1].seed
    assert len({trial.seed for trial in trials}) == 13
    assert controller.constant() == loss


def test_samples_are_antithetic_pairs_about_mu() -> None:
    proposer = gaussian(0.4, parameters=3)
    units = proposer.draw(np.random.default_rng(0), 4)
    assert np.allclose(units[:2] + units[2:], 0.8)
    assert len(np.unique(units)) == units.size


def test_mu_follows_the_reward_by_the_stated_step() -> None:
    proposer = gaussian(0.5)
    proposed = proposer.draw(np.random.default_rng(0), 4)[:, 0]
    z = (proposed - 0.5) / 0.2
    rewards = np.array([0.9, 0.1, 0.3, 0.5])
    proposer.learn(rewards, noise=1e-6)
    expected = 0.5 + 0.2 * np.mean((rewards - rewards.mean()) / rewards.std() * z)
    mu = proposer.summary(ModulatingFactor(scale=32))["mu/u"] / (0.6 * 32)
    assert mu == pytest.approx(expected)


def test_rewards_within_the_noise_move_mu_less() -> None:
    steps = []
    for noise in (1e-6, 0.4):
        proposer = gaussian(0.5)
        proposer.draw(np.random.default_rng(0), 4)
        proposer.learn(np.array([0.51, 0.49, 0.50, 0.52]), noise=noise)
        steps.append(abs(proposer.summary(ModulatingFactor(scale=32))["mu/u"] - 0.3 * 32))
    assert steps[1] < steps[0] / 10


def test_sigma_falls_geometrically_to_its_end() -> None:
    space = ModulatingFactor(scale=32)
    proposer = gaussian(0.5)
    sigmas = []
    for round_ in range(5):
        sigmas.append(proposer.summary(space)["sigma"])
        proposer.draw(np.random.default_rng(round_), 4)
        proposer.learn(np.zeros(4), noise=0.1)
    assert sigmas[0] == pytest.approx(0.2)
    assert sigmas[-1] == pytest.approx(0.08)
    assert np.ptp(np.diff(np.log(sigmas))) < 1e-12


def test_converges_on_a_noisy_quadratic() -> None:
    """FORMULAS §6: B=8 at noise .2 of the reward's range ends within about .03 of the optimum (20 rounds)."""
    errors = []
    for seed in range(40):
        rng = np.random.default_rng([99, seed])
        proposer = gaussian(1 / 3, rounds=20)
        for _ in range(20):
            units = np.clip(proposer.draw(rng, 8), 0, 1)[:, 0]
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
        warmed_up(controller, [0.5, 0.4, 0.2, 0.6])
    tell_round(with_failure, with_failure.ask(100), [0.5, None, 0.7, 0.6])
    tell_round(with_worst, with_worst.ask(100), [0.5, 0.1, 0.7, 0.6])
    assert with_failure.summary() == with_worst.summary()


def test_a_round_of_failures_keeps_the_old_start() -> None:
    controller = short()
    copies = warmed_up(controller, [0.5, 0.4, 0.2, 0.6])
    tell_round(controller, controller.ask(100), [None] * 4)
    again = controller.ask(100)
    assert {(trial.parent, trial.epochs) for trial in again} == {(copies[3].number, 3)}
    for _ in range(2):
        assert again
        tell_round(controller, again, [None] * 4)
        again = controller.ask(100)
    assert not again


def test_reinforce_recommends_the_mean_of_its_last_mu_and_random_nothing() -> None:
    searching = make_reinforce()
    drive(searching, 2, random.Random(0))
    assert searching.constant() is not None
    drawing = make_random()
    drive(drawing, 2, random.Random(0))
    assert drawing.constant() is None


@pytest.mark.parametrize("space", [AMLFS(), CombinedMargin(), Unified()])
def test_the_warm_up_trains_where_the_space_starts(space: Space) -> None:
    controller = RoundSearch(space, RandomRounds(), batch=2, warmup_epochs=2, horizon_epochs=3, seed=0)
    (alone,) = controller.ask(100)
    assert alone.schedule.final == space.decode(space.start)


def test_reinforce_begins_where_the_space_starts_and_steps_in_its_units() -> None:
    space = AMLFS()
    proposer = Reinforce(start_of(space), rounds=5, sigma_start=0.2, sigma_end=0.08)
    summary = proposer.summary(space)
    assert {name: summary[f"mu/{name}"] for name in space.domains} == pytest.approx(space.start, abs=1e-12)
    half = proposer.draw(np.random.default_rng(0), 4)[0]
    spec = proposer.propose(space, np.random.default_rng(0), 4)[0]
    assert space.encode(spec) == pytest.approx(
        {name: domain.from_unit(unit) for (name, domain), unit in zip(space.domains.items(), half, strict=True)}
    )


def test_reinforce_needs_a_space_of_intervals() -> None:
    with pytest.raises(ValueError, match="a space of intervals alone is needed, but Unified has choices"):
        start_of(Unified())


def test_random_rounds_draw_from_the_whole_of_a_conditional_space() -> None:
    drawn = RandomRounds().propose(Unified(), np.random.default_rng(0), 100)
    assert len({spec.digest() for spec in drawn}) == 100
    assert len({spec.target.kind for spec in drawn}) > 5


def test_decode_clips_into_the_space() -> None:
    space = WIDE
    inside = space.encode(decode(space, np.array([-3.0, 0.5, 9.0, 1.0])))
    assert inside["m1"] == space.domains["m1"].low
    assert inside["m3"] == space.domains["m3"].high


def test_warm_up_must_end_before_the_horizon() -> None:
    with pytest.raises(ValueError, match=r"warmup_epochs must lie in \[1, recipe.horizon_epochs\), but got 2"):
        short(horizon_epochs=2)
