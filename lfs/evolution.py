"""Regularised evolution of symbolic losses: a `Sampler` whose candidates are formulas.

Regularised evolution (Real et al., AAAI 2019): the population is a queue; the winner of a tournament is changed and
its child trained; with each newcomer the oldest dies, however good, so that what stays has proved itself again and
again. Formulas and the filter before training follow AutoLoss-Zero (Li et al. 2022) and FORMULAS §9.
"""

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Literal, NamedTuple, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lfs.samplers import Candidate
from search_space import parts
from search_space.algebra import simplify
from search_space.domains import Domain
from search_space.expressions import NEGATIVE_VARIABLES, TARGET_VARIABLES, Expression, fits
from search_space.loss import build
from search_space.preflight import Gradients, examine
from search_space.schedule import LossSchedule
from search_space.spec import LossSpec
from search_space.variation import cross, grow_map, mutate
from trainers.outcome import Outcome

FIRST_DEPTH = 4
"""Of the formulas of a population that starts from scratch."""

ATTEMPTS = 100
"""So often a candidate that is not new or would not learn is drawn again."""

_SCALES = Domain(low=4.0, high=128.0, log=True)
_SCALE_STEP = 0.1
_MUTATED = ("f", "f", "f", "n", "scale")
"""Which part of a loss a mutation changes, all alike."""

_Item = TypeVar("_Item")


class Genome(NamedTuple):
    """A loss: formulas of target and negatives, simplified, and the scale."""

    f: Expression
    n: Expression
    scale: float

    def spec(self) -> LossSpec:
        """The loss; a formula that is `c` alone is the identity."""
        return LossSpec(
            target=parts.IdentityTarget() if self.f == "c" else parts.SymbolicTarget(f=self.f),
            negative=parts.IdentityNegative() if self.n == "c" else parts.SymbolicNegative(n=self.n),
            scale=parts.ConstantScale(value=self.scale),
        )


class _Member(NamedTuple):
    """A candidate of the population: its number, its loss, and its reward after so many epochs."""

    number: int
    genome: Genome
    epochs: int
    reward: float

    def rank(self) -> tuple[int, float, int]:
        """Those that a rung promoted come first, then the better reward, then the earlier candidate."""
        return self.epochs, self.reward, -self.number


CATALOG = (
    Genome("c", "c", 16.0),
    Genome(("+", "c", -0.2), "c", 16.0),
    Genome(("cos", ("min", ("+", "theta", 0.3), math.pi)), "c", 16.0),
    Genome(("+", ("cos", ("min", ("+", "theta", 0.2), math.pi)), -0.1), "c", 16.0),
    Genome(("-", 1.0, ("/", ("+", "theta", 0.3), math.pi / 2)), ("-", 1.0, ("/", "theta", math.pi / 2)), 16.0),
    Genome(("+", ("*", -0.9, ("square", "theta")), 0.65), "c", 16.0),
    Genome("c", ("cos", ("/", "theta", 1.4)), 16.0),
    Genome(("+", "c", -0.2), ("+", "c", ("*", 0.2, ("max", ("-", "c", "c_y"), 0.0))), 16.0),
)
"""Softmax, CosFace, ArcFace (flat past π), both margins, Li-ArcFace, X2-Softmax, SphereFace-R v2, and CosFace with hard
negatives that weigh more, as in MV-Softmax: published shapes with margins for small networks."""


class Evolution:
    """Regularised evolution in a population of `population`, the winner of each `tournament` having a child.

    `seeds` says how it starts: from `CATALOG` and its mutants, or from random formulas. A child is its winner's mutant,
    and, with probability `crossover`, its winner crossed with a second one before that. `class_counts` holds the
    training images of each class, for which candidates are examined. What is proposed passes `examine` and `learns`
    and is new, by its simplified formula and by its gradients on fixed probes. (Should 100 draws give nothing, the best
    so far is tried at another scale.) Failed candidates never enter the population.

    Asynchronous: the first `population` candidates need no rewards, and further ones start afresh while there are none.

    Raises ValueError when the tournament is larger than the population.
    """

    def __init__(
        self,
        *,
        class_counts: Sequence[int],
        seed: int,
        population: int = 20,
        tournament: int = 5,
        crossover: float = 0.2,
        seeds: Literal["catalog", "scratch"] = "catalog",
    ) -> None:
        if not 1 <= tournament <= population:
            raise ValueError(
                f"tournament must lie in [1, population], but got tournament={tournament}, population={population}"
            )
        self._class_counts, self._seed = tuple(class_counts), seed
        self._size, self._tournament, self._crossover = population, tournament, crossover
        self._seeds = CATALOG if seeds == "catalog" else ()
        self._proposed: dict[int, Genome] = {}
        self._drawn: set[Genome] = set()
        """Whatever was examined, the unfit too."""
        self._gradients: list[Gradients] = []
        """Of what passed."""
        self._population: deque[_Member] = deque(maxlen=population)
        """The oldest first."""
        self._entered: set[int] = set()
        self._unfit = self._known = 0

    def propose(self, number: int) -> Candidate:
        """A seed, a mutant of one or a random formula at first; then the child of a tournament's winner."""
        rng = np.random.default_rng([self._seed, number])
        genome = self._new(rng)
        self._proposed[number] = genome
        return Candidate(LossSchedule.constant(genome.spec()))

    def _new(self, rng: np.random.Generator) -> Genome:
        count = len(self._proposed)
        if count < len(self._seeds) and self._passes(self._seeds[count]):
            return self._seeds[count]
        draw = self._child if count >= self._size and self._population else self._first
        for _ in range(ATTEMPTS):
            genome = draw(rng)
            if self._passes(genome):
                return genome
        return self._rescaled(rng)

    def _first(self, rng: np.random.Generator) -> Genome:
        if self._seeds:
            return mutated(rng, _one_of(rng, self._seeds))
        f = _simple(lambda: grow_map(rng, FIRST_DEPTH, TARGET_VARIABLES), TARGET_VARIABLES)
        return Genome(f, "c", _SCALES.draw(rng))

    def _child(self, rng: np.random.Generator) -> Genome:
        genome = self._winner(rng)
        if rng.random() < self._crossover:
            genome = crossed(rng, genome, self._winner(rng))
        return mutated(rng, genome)

    def _winner(self, rng: np.random.Generator) -> Genome:
        size = min(self._tournament, len(self._population))
        drawn = [self._population[index] for index in rng.choice(len(self._population), size, replace=False)]
        return max(drawn, key=_Member.rank).genome

    def _rescaled(self, rng: np.random.Generator) -> Genome:
        """When nothing new is found: what is best so far (softmax if nothing is) at another scale."""
        best = max(self._population, key=_Member.rank).genome if self._population else CATALOG[0]
        return best._replace(scale=_SCALES.draw(rng))

    def _passes(self, genome: Genome) -> bool:
        """Whether it is new and may be trained."""
        if genome in self._drawn:
            self._known += 1
            return False
        self._drawn.add(genome)
        spec = genome.spec()
        found = examine(spec, num_classes=len(self._class_counts), class_counts=self._class_counts)
        if found.verdict == "reject" or found.gradients is None or not learns(spec):
            self._unfit += 1
            return False
        if any(found.gradients.same_as(other) for other in self._gradients):
            self._known += 1
            return False
        self._gradients.append(found.gradients)
        return True

    def learn(self, number: int, outcome: Outcome, *, epochs: int) -> None:
        """The candidate enters the population unless it failed; the oldest member makes room.

        One that trained on, by successive halving, keeps its place, if it still has one, with its new reward.
        """
        if outcome.reward is None:
            return
        member = _Member(number, self._proposed[number], epochs, outcome.reward)
        places = [place for place, other in enumerate(self._population) if other.number == number]
        if places:
            self._population[places[0]] = member
        elif number not in self._entered:
            self._entered.add(number)
            self._population.append(member)

    def summary(self) -> Mapping[str, float]:
        """The population's size, rewards and age (in candidates since the oldest), and how many draws were dropped."""
        dropped = {"dropped/unfit": float(self._unfit), "dropped/known": float(self._known)}
        if not self._population:
            return {"population": 0.0, **dropped}
        rewards = [member.reward for member in self._population]
        return {
            "population": float(len(rewards)),
            "population/best_reward": max(rewards),
            "population/mean_reward": sum(rewards) / len(rewards),
            "population/oldest_age": float(len(self._proposed) - self._population[0].number),
            **dropped,
        }


def mutated(rng: np.random.Generator, genome: Genome) -> Genome:
    """One of target formula, negative formula and scale changed; scales by a Gaussian step of their logarithm."""
    part = _one_of(rng, _MUTATED)
    if part == "scale":
        unit = _SCALES.to_unit(genome.scale) + _SCALE_STEP * rng.standard_normal()
        return genome._replace(scale=_SCALES.from_unit(min(max(unit, 0.0), 1.0)))
    if part == "f":
        return genome._replace(f=_simple(lambda: mutate(rng, genome.f, TARGET_VARIABLES), TARGET_VARIABLES))
    return genome._replace(n=_simple(lambda: mutate(rng, genome.n, NEGATIVE_VARIABLES), NEGATIVE_VARIABLES))


def crossed(rng: np.random.Generator, mother: Genome, father: Genome) -> Genome:
    """The mother with subtrees of the father's formulas in her own, target's in target's, negatives' in negatives'."""
    f = simplify(cross(rng, mother.f, father.f, TARGET_VARIABLES))
    n = simplify(cross(rng, mother.n, father.n, NEGATIVE_VARIABLES))
    return Genome(
        f if fits(f, TARGET_VARIABLES) else mother.f, n if fits(n, NEGATIVE_VARIABLES) else mother.n, mother.scale
    )


def _simple(draw: Callable[[], Expression], variables: Sequence[str]) -> Expression:
    """The first draw that is still a map when simplified: x − x is none."""
    while True:
        expression = simplify(draw())
        if fits(expression, variables):
            return expression


def _one_of(rng: np.random.Generator, items: Sequence[_Item]) -> _Item:
    return items[int(rng.integers(len(items)))]


def learns(spec: LossSpec) -> bool:
    """Whether a few steps on a tiny fixed problem at least halve its error: the samples nearest to a wrong class.

    12 classes of 8 noisy samples, a linear map to 8 dimensions, 30 steps of Adam in float64.
    """
    features_NF, label_N, map_FD, weights_CD = _tiny_problem()
    map_FD, weights_CD = map_FD.clone().requires_grad_(), weights_CD.clone().requires_grad_()
    loss = build(spec, num_classes=len(weights_CD)).double().train()
    optimizer = torch.optim.Adam([map_FD, weights_CD], lr=0.05)
    before = _error(features_NF @ map_FD, weights_CD, label_N)
    for _ in range(30):
        optimizer.zero_grad()
        loss(features_NF @ map_FD, weights_CD, label_N).mean().backward()
        optimizer.step()
    return _error(features_NF @ map_FD, weights_CD, label_N) <= before / 2


@cache
def _tiny_problem() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features N×F, labels, an untrained linear map F×D and class weights C×D."""
    generator = torch.Generator().manual_seed(0)
    label_N = torch.arange(12).repeat(8)
    centers_CF = torch.randn(12, 16, generator=generator, dtype=torch.float64)
    noise_NF = torch.randn(len(label_N), 16, generator=generator, dtype=torch.float64)
    map_FD = torch.randn(16, 8, generator=generator, dtype=torch.float64) / 4
    weights_CD = torch.randn(12, 8, generator=generator, dtype=torch.float64) / 4
    return centers_CF[label_N] + 0.5 * noise_NF, label_N, map_FD, weights_CD


def _error(x_ND: Tensor, w_CD: Tensor, label_N: Tensor) -> float:
    nearest_N = (F.normalize(x_ND) @ F.normalize(w_CD).T).argmax(1)
    return float((nearest_N != label_N).double().mean())
