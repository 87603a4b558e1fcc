"""How a search in rounds draws its candidates and what it learns from their rewards.

`Reinforce` is Search-Softmax (Wang et al., ICML 2020) as corrected in its docstring, `Released` what the published code
does, for ablation, and `RandomRounds` Random-Softmax. Shapes: B copies of a round, K parameters.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from search_space.domains import Space
from search_space.spec import LossSpec

Array = npt.NDArray[np.float64]
Units = Array
"""Places in the unit cube of a space's domains."""

Sigma = Literal["annealed", "fixed", "learned"]
Optimizer = Literal["plain", "adam"]
Baseline = Literal["mean", "moving", "none"]

_MOVING_RATE = 0.3
_SIGMA_RATE = 0.1
_ADAM_BETAS = (0.9, 0.999)


class Proposer(Protocol):
    """Draws the losses of each round."""

    def propose(self, space: Space, rng: np.random.Generator, batch: int) -> Sequence[LossSpec]:
        """`batch` losses to try."""

    def learn(self, rewards_B: Array, *, noise: float) -> None:
        """Take in the rewards of the last proposal, in its order."""

    def summary(self, space: Space) -> Mapping[str, float]:
        """Its state in natural units."""

    def constant(self, space: Space) -> LossSpec | None:
        """The constant loss that it recommends, if it learns one."""


def start_of(space: Space) -> Units:
    """The place of the space's `start` in its unit cube. Raises ValueError for a conditional space, which has none."""
    start = space.start
    return np.array([domain.to_unit(float(start[name])) for name, domain in space.domains.items()])


def decode(space: Space, unit_K: Units) -> LossSpec:
    """The loss at a place of the unit cube, clipped into it."""
    inside = np.clip(unit_K, 0.0, 1.0)
    return space.decode(
        {name: domain.from_unit(float(u)) for (name, domain), u in zip(space.domains.items(), inside, strict=True)}
    )


class Reinforce:
    """A Gaussian over the unit cube that follows the reward: Search-Softmax as corrected in FORMULAS §6.

    Antithetic pairs z, −z; r̂ = (r − baseline) / max(std, noise); μ ← clip(μ + rate·σ·mean(r̂ z)). The score is that of
    the unclipped sample, the applied value the clipped one. The recommendation is the mean of the last five μ.

    `sigma`: `annealed` falls geometrically from `sigma_start` to `sigma_end` over the rounds; `fixed` stays at
    `sigma_start`; `learned` follows the score of log σ, between the two. `optimizer`: `plain` takes the step above,
    `adam` steps of about `rate`·σ whatever the size of the gradient. `baseline`: the round's `mean`, a `moving` average
    over the rounds, or `none`.
    """

    def __init__(
        self,
        start_K: Units,
        *,
        rounds: int,
        sigma_start: float,
        sigma_end: float,
        sigma: Sigma = "annealed",
        optimizer: Optimizer = "plain",
        baseline: Baseline = "mean",
        rate: float = 1.0,
    ) -> None:
        self._mu_K = start_K
        self._past_mu: list[Units] = []
        self._sigmas = np.geomspace(sigma_start, sigma_end, rounds)
        self._sigma_mode, self._optimizer, self._baseline, self._rate = sigma, optimizer, baseline, rate
        self._log_sigma_K = np.full(len(start_K), np.log(sigma_start))
        self._log_bounds = sorted((np.log(sigma_start), np.log(sigma_end)))
        self._average: float | None = None
        self._moments = np.zeros((2, len(start_K)))
        self._z_BK: Units = np.zeros((0, len(start_K)))

    @property
    def _sigma_K(self) -> Array:
        if self._sigma_mode == "learned":
            learned_K: Array = np.exp(self._log_sigma_K)
            return learned_K
        index = 0 if self._sigma_mode == "fixed" else min(len(self._past_mu), len(self._sigmas) - 1)
        return np.full(len(self._mu_K), self._sigmas[index])

    def propose(self, space: Space, rng: np.random.Generator, batch: int) -> Sequence[LossSpec]:
        """The losses at `draw`."""
        return [decode(space, unit_K) for unit_K in self.draw(rng, batch)]

    def draw(self, rng: np.random.Generator, batch: int) -> Units:
        """μ ± σz (B×K) for half as many z, outside the unit cube too."""
        half_z = rng.standard_normal((batch // 2, len(self._mu_K)))
        self._z_BK = np.concatenate([half_z, -half_z])
        return self._mu_K + self._sigma_K * self._z_BK

    def learn(self, rewards_B: Array, *, noise: float) -> None:
        """One step of μ, and of σ where it is learned."""
        advantage_B1 = (rewards_B - self._baseline_of(rewards_B))[:, None] / max(float(rewards_B.std()), noise)
        score_K = (advantage_B1 * self._z_BK).mean(0)
        step_K = self._adam(score_K) if self._optimizer == "adam" else score_K
        self._mu_K = np.clip(self._mu_K + self._rate * self._sigma_K * step_K, 0.0, 1.0)
        if self._sigma_mode == "learned":
            spread_K = (advantage_B1 * (self._z_BK**2 - 1)).mean(0)
            self._log_sigma_K = np.clip(self._log_sigma_K + _SIGMA_RATE * spread_K, *self._log_bounds)
        self._past_mu.append(self._mu_K)

    def _baseline_of(self, rewards_B: Array) -> float:
        mean = float(rewards_B.mean())
        if self._baseline == "none":
            return 0.0
        if self._baseline == "mean":
            return mean
        before = mean if self._average is None else self._average
        self._average = (1 - _MOVING_RATE) * before + _MOVING_RATE * mean
        return before

    def _adam(self, score_K: Array) -> Array:
        """Adam's direction (Kingma & Ba 2015)."""
        betas, steps = np.array(_ADAM_BETAS)[:, None], len(self._past_mu) + 1
        self._moments = betas * self._moments + (1 - betas) * np.stack([score_K, score_K**2])
        first_K, second_K = self._moments / (1 - betas**steps)
        direction_K: Array = first_K / (np.sqrt(second_K) + 1e-8)
        return direction_K

    def summary(self, space: Space) -> Mapping[str, float]:
        """μ and σ of each parameter in its own units (half the distance between μ − σ and μ + σ)."""
        numbers: dict[str, float] = {"sigma": float(self._sigma_K.mean())}
        places = zip(space.domains.items(), self._mu_K.tolist(), self._sigma_K.tolist(), strict=True)
        for (name, domain), mu, sigma in places:
            low, high = (domain.from_unit(mu + side * sigma) for side in (-1.0, 1.0))
            numbers[f"mu/{name}"] = domain.from_unit(mu)
            numbers[f"sigma/{name}"] = (high - low) / 2
        return numbers

    def constant(self, space: Space) -> LossSpec | None:
        """The loss at the mean of the last five μ."""
        return decode(space, np.mean(self._past_mu[-5:] or [self._mu_K], axis=0))


class Released:
    """The update of Search-Softmax's published code, which does not search; kept for ablation (FORMULAS §6).

    μ = relu(w) with w = 0 at first, where relu has no gradient: μ never moves. The applied factor is folded, a = −|x|
    with x ~ N(μ, σ²), but its score is that of the unfolded Gaussian: ∇_μ log N(−|x|; μ, σ) = (−|x| − μ)/σ²
    has the wrong sign.
    """

    def __init__(self, *, sigma: float = 0.2, rate: float = 0.05, weight: float = 0.0) -> None:
        self._weight, self._sigma, self._rate = weight, sigma, rate
        self._folded_B = np.zeros(0)

    @property
    def mu(self) -> float:
        """relu(w)."""
        return max(self._weight, 0.0)

    def propose(self, space: Space, rng: np.random.Generator, batch: int) -> Sequence[LossSpec]:
        """Modulating factors a = −|x|, so u = log(1 + |x|)."""
        self._folded_B = -np.abs(rng.normal(self.mu, self._sigma, batch))
        high = space.domains["u"].high
        return [space.decode({"u": min(float(np.log1p(-folded)), high)}) for folded in self._folded_B]

    def learn(self, rewards_B: Array, *, noise: float) -> None:  # noqa: ARG002 (the protocol's signature)
        """w ← w + rate·mean(r·score)·relu′(w); no baseline."""
        score_B = (self._folded_B - self.mu) / self._sigma**2
        self._weight += self._rate * float((rewards_B * score_B).mean()) * (self._weight > 0)

    def summary(self, space: Space) -> Mapping[str, float]:  # noqa: ARG002
        """μ in units of −a, and σ."""
        return {"mu": self.mu, "sigma": self._sigma}

    def constant(self, space: Space) -> LossSpec | None:
        """The loss at μ."""
        return space.decode({"u": float(np.log1p(self.mu))})


class RandomRounds:
    """Uniform draws that learn nothing: Random-Softmax."""

    def propose(self, space: Space, rng: np.random.Generator, batch: int) -> Sequence[LossSpec]:
        """Samples of the space, conditional or not."""
        return [space.sample(rng) for _ in range(batch)]

    def learn(self, rewards_B: Array, *, noise: float) -> None:
        """Nothing."""

    def summary(self, space: Space) -> Mapping[str, float]:  # noqa: ARG002 (the protocol's signature)
        """No state."""
        return {}

    def constant(self, space: Space) -> LossSpec | None:  # noqa: ARG002
        """No recommendation."""
        return None
