"""The options of Search-Softmax's Gaussian, its published code, and what each does on simulated rewards."""

from typing import Any

import numpy as np
import pytest

from lfs.proposers import Reinforce, Released
from search_space import LossSpec, ModulatingFactor
from search_space.parts import ModulatingTarget

SPACE = ModulatingFactor(scale=32, margin_high=0.6)


def u_of(spec: LossSpec) -> float:
    assert isinstance(spec.target, ModulatingTarget)
    return spec.target.u


def gaussian(start: float = 1 / 3, *, rounds: int = 12, **options: Any) -> Reinforce:
    settings = {"sigma_start": 0.2, "sigma_end": 0.08} | options
    return Reinforce(np.array([start]), rounds=rounds, **settings)


def answer(proposer: Reinforce) -> float:
    """The recommended place in the unit interval."""
    constant = proposer.constant(SPACE)
    assert constant is not None
    return SPACE.domains["u"].to_unit(u_of(constant))


def simulate(seed: int, *, optimum: float, noise: float, rounds: int, batch: int, **options: Any) -> float:
    """Distance of the answer from the optimum of a quadratic reward of range about 1, under Gaussian noise."""
    rng, proposer = np.random.default_rng(seed), gaussian(rounds=rounds, **options)
    for _ in range(rounds):
        places_B = np.clip(proposer.draw(rng, batch)[:, 0], 0, 1)
        proposer.learn(1 - 2 * (places_B - optimum) ** 2 + noise * rng.standard_normal(batch), noise=noise)
    return abs(answer(proposer) - optimum)


def test_the_corrected_search_converges_on_the_simulated_reward() -> None:
    """FORMULAS §6: B = 8, noise .2 of the range; the released settings (rate .05, σ fixed at .2) never settle."""
    errors = [simulate(seed, optimum=0.6, noise=0.2, rounds=12, batch=8) for seed in range(200)]
    assert np.median(errors) < 0.05
    assert np.quantile(errors, 0.9) < 0.12
    slow = [simulate(seed, optimum=0.6, noise=0.2, rounds=12, batch=8, sigma="fixed", rate=0.05) for seed in range(200)]
    assert np.median(slow) > 3 * np.median(errors)


@pytest.mark.parametrize(
    "options",
    [{"optimizer": "adam"}, {"baseline": "moving"}, {"sigma": "learned"}, {"sigma": "fixed"}],
    ids=lambda options: "=".join(*options.items()),
)
def test_every_option_finds_the_optimum_with_time(options: dict[str, Any]) -> None:
    errors = [simulate(seed, optimum=0.7, noise=0.05, rounds=30, batch=8, **options) for seed in range(50)]
    assert np.median(errors) < 0.06


def test_adam_steps_alike_whatever_the_size_of_the_score() -> None:
    """Its first step is rate·σ in the direction of the score."""
    for spread in (0.2, 5.0):
        proposer = gaussian(0.5, optimizer="adam", rate=0.5)
        places_B1 = proposer.draw(np.random.default_rng(0), 4)
        proposer.learn(spread * places_B1[:, 0], noise=100.0)
        assert answer(proposer) == pytest.approx(0.5 + 0.5 * 0.2, abs=2e-3)


def test_the_moving_baseline_is_the_average_of_earlier_rounds() -> None:
    """Against a higher round than the last, every sample counts as good: the antithetic pairs cancel."""
    proposer = gaussian(0.5, baseline="moving")
    proposer.draw(np.random.default_rng(0), 4)
    proposer.learn(np.zeros(4), noise=1.0)
    proposer.draw(np.random.default_rng(1), 4)
    proposer.learn(np.ones(4), noise=1.0)
    assert answer(proposer) == pytest.approx(0.5)


def test_a_learned_sigma_shrinks_where_the_middle_is_best_and_grows_where_the_tails_are() -> None:
    for sign, wanted in ((-1, 0.08), (1, 0.2)):
        proposer, rng = gaussian(0.5, sigma="learned"), np.random.default_rng(0)
        for _ in range(60):
            places_B = proposer.draw(rng, 16)[:, 0]
            proposer.learn(sign * (places_B - 0.5) ** 2, noise=1e-6)
        assert proposer.summary(SPACE)["sigma"] == pytest.approx(wanted, rel=0.02)


def test_the_published_code_never_moves_mu() -> None:
    proposer, rng = Released(), np.random.default_rng(0)
    for _ in range(50):
        specs = proposer.propose(SPACE, rng, 8)
        proposer.learn(np.array([spec.target.u for spec in specs]), noise=0.0)  # type: ignore[union-attr]
        assert proposer.mu == 0
    assert proposer.constant(SPACE) == SPACE.decode({"u": 0.0})


def test_the_published_code_draws_folded_factors() -> None:
    """u = log(1 − a), a = −|x|, x ~ N(0, .2²): none of them is a margin above .02 at s = 32."""
    specs = Released().propose(SPACE, np.random.default_rng(0), 1000)
    a_B = [1 - np.exp(u_of(spec)) for spec in specs]
    assert max(a_B) <= 0
    assert np.mean(np.square(a_B)) == pytest.approx(0.2**2, rel=0.1)
    assert max(u_of(spec) for spec in specs) / 32 < 0.02


def test_the_published_code_would_move_mu_the_wrong_way_if_it_moved() -> None:
    """Started where relu has a gradient: a reward that grows with |a| lowers μ, where the unfolded score raises it."""
    proposer, rng = Released(weight=0.5, rate=1e-3), np.random.default_rng(0)
    specs = proposer.propose(SPACE, rng, 1000)
    size_B = np.array([np.expm1(u_of(spec)) for spec in specs])
    right = float((size_B * (size_B - 0.5) / 0.2**2).mean())
    proposer.learn(size_B, noise=0.0)
    assert right > 0
    assert proposer.mu < 0.5
