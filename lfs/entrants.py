"""Who takes part in a comparison, and the controller that asks for its trainings.

Every entrant is trained from scratch under each of the comparison's seeds. A tuned entrant first trains its grid of
losses under one seed of its own; the best on the choice half of the validation identities stands for it from then on.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from pydantic import BeforeValidator, Field

from lfs.config import HYPER_PARAMETER_FREE, WINNER, NamedLoss
from lfs.trial import RATE, Scalar, Trial
from search_space import catalog
from search_space.frozen import FrozenModel, Real
from search_space.parts import MAX_SCALE
from search_space.schedule import LossSchedule
from search_space.spec import LossSpec
from trainers.evaluation import reward_of
from trainers.outcome import Outcome
from trainers.recipe import MAX_LEARNING_RATE, Recipe, RewardMetric

LAST, SHUFFLED = "winner's last loss", "winner's schedule shuffled"
PUBLISHED = ("softmax", "cosface", "arcface")
TUNED = tuple(f"{name}-tuned" for name in PUBLISHED)
EqualCompute = Literal["seeds", "longer"]


def _split(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return tuple(float(part) for part in value.split(","))
    except ValueError:
        raise ValueError(f"must be numbers, such as 0.1,0.2, but got '{value}'") from None


Numbers = Annotated[tuple[Real, ...], BeforeValidator(_split), Field(min_length=1)]
"""Also as a text, '16,32'."""

Scales = Annotated[tuple[Annotated[Real, Field(gt=0, le=MAX_SCALE)], ...], BeforeValidator(_split), Field(min_length=1)]

LearningRate = Annotated[Real, Field(gt=0, le=MAX_LEARNING_RATE)]


class Grid(FrozenModel):
    """The constant margins and scales among which the tuned baselines choose, and the learning rates among which all
    baselines do (none: they have the recipe's)."""

    scales: Scales = (16.0, 32.0, 64.0)
    cosface_margins: Numbers = (0.1, 0.2, 0.35)
    arcface_margins_rad: Numbers = (0.3, 0.5, 0.7)
    learning_rates: Annotated[tuple[LearningRate, ...], BeforeValidator(_split)] = ()

    def losses(self, name: str) -> tuple[LossSpec, ...]:
        """The grid of a tuned baseline. Raises ValueError for a margin or scale that its loss cannot have."""
        margins: Mapping[str, tuple[str, Sequence[float]]] = {
            "softmax-tuned": ("", ()),
            "cosface-tuned": ("margin", self.cosface_margins),
            "arcface-tuned": ("margin_rad", self.arcface_margins_rad),
        }
        parameter, values = margins[name]
        points = [{parameter: value} for value in values] or [{}]
        loss = name.removesuffix("-tuned")
        return tuple(catalog.get(loss, **point, scale=scale) for point in points for scale in self.scales)


class Entrant(FrozenModel):
    """One row of the comparison's table.

    `candidates` holds its schedule, a grid of them, or what each of several searches found. A control for equal compute
    is the baseline `of` again: the best on the choice half of `best_of` seeds in place of one, or trained for more
    `epochs`. A control of the winner is a part of its schedule.
    """

    name: str
    kind: Literal["winner", "recommended", "baseline", "control"]
    how: str
    """Where its parameters come from."""
    candidates: tuple[LossSchedule, ...]
    recipes: tuple[Mapping[str, Scalar], ...] = ()
    """In what the training of each candidate differs beside `recipe`; empty: in nothing."""
    epochs: int
    recipe: Mapping[str, Scalar] = {}
    of: str = ""
    best_of: int = 1
    grid: str = ""
    """What its grid's trials are called; a control uses the grid of its baseline."""
    of_searches: bool = False
    """Whether the candidates are those of several searches, which share the seeds evenly, the first of them first."""

    @property
    def tuned(self) -> bool:
        """Whether its loss, or its learning rate, is chosen from a grid."""
        return len(self.candidates) > 1 and not self.of_searches

    def recipe_of(self, candidate: int) -> Mapping[str, Scalar]:
        """All in which the training of a candidate differs from the run's recipe."""
        return {**self.recipe, **(self.recipes[candidate] if self.recipes else {})}

    def with_rates(self, rates: Sequence[float]) -> "Entrant":
        """Itself, choosing its learning rate too."""
        listed = ", ".join(f"{rate:g}" for rate in rates)
        alone = f"learning rate the best of {listed} on the choice half of validation, one seed"
        chosen = f"learning rate of {listed}, chosen likewise" if self.tuned else alone
        return self.model_copy(
            update={
                "candidates": tuple(each for each in self.candidates for _ in rates),
                "recipes": tuple({RATE: rate} for _ in self.candidates for rate in rates),
                "how": f"{self.how}; {chosen}",
                "grid": self.grid or f"grid of {self.name}",
            }
        )


def own_entrants(
    winners: Sequence[Trial], constants: Sequence[LossSpec | None], *, searched_epochs: int
) -> tuple[Entrant, ...]:
    """The winner of each search, and the constant loss that its controller recommends, unless that is the winner.

    Several searches, whose winners train for equally many epochs, make one entrant of each kind. `searched_epochs`:
    after how many the (first) search ended.
    """
    several, first = len(winners) > 1, winners[0]
    goes_on = f", whose last loss goes on after epoch {searched_epochs}" if searched_epochs < first.epochs else ""
    found = Entrant(
        name=WINNER,
        kind="winner",
        how=f"the winners of {len(winners)} searches, their schedules"
        if several
        else f"trial {first.number} of the search, its schedule{goes_on}",
        candidates=tuple(winner.schedule for winner in winners),
        recipes=tuple(winner.recipe for winner in winners),
        epochs=first.epochs,
        of_searches=several,
    )
    schedules = tuple(LossSchedule.constant(spec) for spec in constants if spec is not None)
    if len(schedules) < len(winners) or schedules == found.candidates:
        return (found,)
    how = "the constant loss that the controller recommends"
    if several:
        how = "the constant losses that the controllers recommend"
    return found, found.model_copy(
        update={"name": "recommended", "kind": "recommended", "how": how, "candidates": schedules}
    )


def schedule_controls(winner: Trial, seed: int) -> tuple[Entrant, ...]:
    """What in the winner's schedule helps: its losses after the first in another order, drawn by `seed`, and the last
    of them from beginning to end. None for a constant loss, the last alone where there are no two to exchange."""
    schedule, epochs = winner.schedule, winner.epochs
    if len(schedule) == 1:
        return ()
    found = {LAST: ("the last loss of the winner's schedule, constant", LossSchedule.constant(schedule.final))}
    later = [schedule.at(epoch) for epoch in range(schedule.entries[1].from_epoch, epochs)]
    if len(set(later)) > 1:
        rng, shuffled = np.random.default_rng(seed), later
        while shuffled == later:
            shuffled = [later[index] for index in rng.permutation(len(later))]
        mixed = LossSchedule.constant(schedule.at(0))
        for epoch, spec in enumerate(shuffled, schedule.entries[1].from_epoch):
            mixed = mixed.then(epoch, spec)
        found[SHUFFLED] = ("the winner's schedule, its losses after the first shuffled", mixed)
    return tuple(
        Entrant(
            name=name,
            kind="control",
            how=how,
            candidates=(candidate,),
            epochs=epochs,
            recipe=winner.recipe,
            of=WINNER,
        )
        for name, (how, candidate) in found.items()
    )


def known_baselines(
    given: Sequence[NamedLoss], defaults: Sequence[NamedLoss], recipe: Recipe, grid: Grid
) -> list[Entrant]:
    """Every baseline that a comparison can have: AdaCos, P2SGrad in a recipe in which it trains, the published
    defaults, the tuned ones, and the run's own where these are not the `defaults` of a run."""
    free = [loss for loss in HYPER_PARAMETER_FREE if loss.title != "p2sgrad"]
    published = [NamedLoss(loss=name) for name in PUBLISHED]
    own = [loss for loss in given if loss not in defaults]
    named = [
        *((loss, "no hyper-parameters" if not loss.recipe else "no hyper-parameters, its own recipe") for loss in free),
        *((loss, "published defaults") for loss in published),
        *((loss.model_copy(update={"name": f"run's {loss.title}"}), "the run's own baseline") for loss in own),
    ]
    fixed = [
        Entrant(
            name=loss.title,
            kind="baseline",
            how=how,
            candidates=(LossSchedule.constant(loss.spec()),),
            epochs=recipe.changed(loss.recipe).horizon_epochs,
            recipe=loss.recipe,
        )
        for loss, how in named
    ]
    tuned = [
        Entrant(
            name=name,
            kind="baseline",
            how="best of a grid on the choice half of validation, one seed",
            candidates=tuple(map(LossSchedule.constant, grid.losses(name))),
            epochs=recipe.horizon_epochs,
            grid=f"grid of {name}",
        )
        for name in TUNED
    ]
    known = fixed + tuned
    return [each.with_rates(grid.learning_rates) for each in known] if grid.learning_rates else known


def controls(baselines: Sequence[Entrant], kinds: Sequence[EqualCompute], times: int) -> list[Entrant]:
    """Each baseline again, with `times` its training: what the search and one training of its winner took."""
    found = []
    for base in baselines:
        common = {"kind": "control", "of": base.name}
        if "seeds" in kinds:
            name, how = f"{base.name} (best of {times})", f"best of {times} seeds on the choice half of validation"
            found.append(base.model_copy(update={**common, "name": name, "how": how, "best_of": times}))
        if "longer" in kinds:
            name, how, epochs = f"{base.name} ({times}× as long)", f"{times}× the epochs", times * base.epochs
            recipe = {**base.recipe, "horizon_epochs": epochs}
            changes = {**common, "name": name, "how": how, "epochs": epochs, "recipe": recipe}
            found.append(base.model_copy(update=changes))
    return found


@dataclass(frozen=True, slots=True)
class _Job:
    """One training: a candidate of an entrant's grid, or the entrant under a member of a seed's pool."""

    entrant: Entrant
    candidate: int | None = None
    replicate: int = 0
    member: int = 0


class ComparisonController:
    """Asks for the grids first and for the entrants seed by seed; a tuned entrant waits for its grid.

    `seeds` are the comparison's, `spare_seeds` those of the controls' further pool members, as many for each seed,
    `grid_seed` that of the grids; `metric` says by which score on the choice half the choices are made.
    """

    def __init__(
        self,
        entrants: Sequence[Entrant],
        *,
        seeds: Sequence[int],
        spare_seeds: Sequence[Sequence[int]],
        grid_seed: int,
        metric: RewardMetric,
    ) -> None:
        self._entrants = {entrant.name: entrant for entrant in entrants}
        self._pools = [(seed, *spare) for seed, spare in zip(seeds, spare_seeds, strict=True)]
        self._grid_seed, self._metric = grid_seed, metric
        self._waiting = list(self._jobs())
        self._jobs_asked: list[_Job] = []
        self._scores: dict[int, float] = {}
        """On the choice half, by trial; a failure is below all others."""
        self._lost: set[int] = set()
        """The trials that the machine failed, not their loss."""
        self._grids: dict[str, dict[int, float]] = {}
        """The scores of an entrant's grid, by candidate."""
        self._trained: dict[tuple[str, int], list[int]] = {}
        """The told trials of an entrant under a seed."""

    def _jobs(self) -> Iterator[_Job]:
        for entrant in self._entrants.values():
            if entrant.tuned and not entrant.of:
                yield from (_Job(entrant, candidate=index) for index in range(len(entrant.candidates)))
        for replicate in range(len(self._pools)):
            for entrant in self._entrants.values():
                members = range(1, entrant.best_of) if entrant.best_of > 1 else (0,)  # member 0 is the baseline's own
                yield from (_Job(entrant, replicate=replicate, member=member) for member in members)

    def ask(self, count: int) -> Sequence[Trial]:
        """The next `count` trainings that can begin."""
        asked: list[Trial] = []
        waiting: list[_Job] = []
        for job in self._waiting:
            candidate = self._candidate(job) if len(asked) < count else None
            if candidate is None:
                waiting.append(job)
            else:
                asked.append(self._trial(job, candidate))
        self._waiting = waiting
        return asked

    def _candidate(self, job: _Job) -> int | None:
        """Which candidate to train; None while its grid is not told."""
        candidates = job.entrant.candidates
        if job.entrant.of_searches:
            return job.replicate * len(candidates) // len(self._pools)
        if job.candidate is not None or len(candidates) == 1:
            return job.candidate or 0
        scores = self._grids.get(job.entrant.of or job.entrant.name, {})
        if len(scores) < len(candidates):
            return None
        return max(sorted(scores), key=scores.__getitem__)

    def _trial(self, job: _Job, candidate: int) -> Trial:
        number, in_grid = len(self._jobs_asked), job.candidate is not None
        self._jobs_asked.append(job)
        return Trial(
            number=number,
            schedule=job.entrant.candidates[candidate],
            seed=self._grid_seed if in_grid else self._pools[job.replicate][job.member],
            epochs=job.entrant.epochs,
            name=job.entrant.grid if in_grid else job.entrant.name,
            recipe=job.entrant.recipe_of(candidate),
        )

    def tell(self, trial: Trial, outcome: Outcome) -> None:
        """Note the score on the choice half."""
        job = self._jobs_asked[trial.number]
        score = float("-inf") if outcome.error else reward_of(outcome.metrics, self._metric, "choice")
        self._scores[trial.number] = score
        if outcome.error and not outcome.diverged:
            self._lost.add(trial.number)
        if job.candidate is None:
            self._trained.setdefault((job.entrant.name, job.replicate), []).append(trial.number)
        else:
            self._grids.setdefault(job.entrant.name, {})[job.candidate] = score

    def champion(self, entrant: Entrant, replicate: int) -> int | None:
        """The number of the trial that stands for an entrant under a seed: its own, or the best of its pool so far.

        Of a pool in which the machine failed one it is that one: the best of fewer is another entrant.
        """
        pool = (entrant.name, entrant.of) if entrant.best_of > 1 else (entrant.name,)
        told = sorted(number for name in pool for number in self._trained.get((name, replicate), []))
        return max(told, key=lambda number: (number in self._lost, self._scores[number]), default=None)

    def live(self) -> frozenset[int]:
        """The trials whose networks the test may be given: one for each entrant and seed, and all in flight."""
        replicates = range(len(self._pools))
        champions = {self.champion(entrant, index) for entrant in self._entrants.values() for index in replicates}
        in_flight = set(range(len(self._jobs_asked))) - self._scores.keys()
        return frozenset({number for number in champions if number is not None} | in_flight)

    def summary(self) -> Mapping[str, float]:
        """How many trainings are asked for and how many wait."""
        return {"asked": float(len(self._jobs_asked)), "waiting": float(len(self._waiting))}

    def constant(self) -> LossSpec | None:
        """No recommendation."""
        return None
