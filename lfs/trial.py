"""`Trial`: one question that a controller asks; and how the finals of a search stand."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from search_space.schedule import LossSchedule
from trainers.outcome import Outcome

Scalar = str | int | float | bool

RATE = "learning_rate"
"""What a candidate's own learning rate is called, among parameters and in a recipe."""

FAILED = 0.0
"""What a training of a finalist that failed counts as: no score lies below."""

Role = Literal["search", "final", "baseline"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """Train `schedule` up to absolute epoch `epochs`, from the checkpoint of trial `parent` or from scratch.

    Siblings of a round share a seed; a trial that continues another keeps its parent's, but where siblings are to
    differ in the order of the data alone. `role` tells the search's own trials from its finals and from the baselines
    that run beside it; a baseline has a `name`. `recipe` holds the recipe fields in which this trial differs from the
    run's recipe (P2SGrad's own regime, say). `fresh_optimizer` takes the parent's weights without its optimiser's
    state. With `cooldown_epochs` its reward is that of a branch that trains on for so many epochs while the learning
    rate falls to 0; whoever continues the trial continues what was before the branch. A final trains the schedule of
    the trial that it `repeats` from scratch under another seed.
    """

    number: int
    schedule: LossSchedule
    seed: int
    epochs: int
    parent: int | None = None
    round: int | None = None
    role: Role = "search"
    name: str = ""
    recipe: Mapping[str, Scalar] = field(default_factory=dict)
    fresh_optimizer: bool = False
    cooldown_epochs: int = 0
    repeats: int | None = None

    def __post_init__(self) -> None:
        if self.number < 0 or self.epochs < 1 or self.seed < 0 or self.cooldown_epochs < 0:
            raise ValueError(
                f"number >= 0, epochs >= 1, seed >= 0 and cooldown_epochs >= 0 must hold, but got "
                f"number={self.number}, epochs={self.epochs}, seed={self.seed}, cooldown_epochs={self.cooldown_epochs}"
            )
        if self.parent is not None and not 0 <= self.parent < self.number:
            raise ValueError(f"a parent comes before its trial, but got parent={self.parent}, number={self.number}")
        if self.repeats is not None and not 0 <= self.repeats < self.number:
            raise ValueError(f"a trial is repeated after it, but got repeats={self.repeats}, number={self.number}")

    def reaches(self, horizon_epochs: int) -> bool:
        """Whether it trains as long as its learning rate lasts: to the run's horizon, or its recipe's own."""
        return self.epochs == self.recipe.get("horizon_epochs", horizon_epochs)

    def epochs_of_its_own(self, trials: Mapping[int, "Trial"]) -> int:
        """How many epochs it trains beyond its parent, which is among `trials`, a branch that cools down included."""
        before = 0 if self.parent is None else trials[self.parent].epochs
        return self.epochs - before + self.cooldown_epochs


def furthest(trials: Sequence[Trial], horizon_epochs: int) -> list[Trial]:
    """Those that reach the horizon; where none does, those that train the longest."""
    deepest = max((trial.epochs for trial in trials), default=0)
    reached = [trial for trial in trials if trial.reaches(horizon_epochs)]
    return reached or [trial for trial in trials if trial.epochs == deepest]


def finals_of(
    trials: Mapping[int, Trial], outcomes: Mapping[int, Outcome], score: Callable[[Outcome], float]
) -> dict[int, list[float]]:
    """The scores of each finalist, that of the trial itself first; empty where no final has ended."""
    finals: dict[int, list[float]] = {}
    for number, outcome in sorted(outcomes.items()):
        original = trials[number].repeats
        if original is not None:
            scores = finals.setdefault(original, [score(outcomes[original])])
            scores.append(FAILED if outcome.error is not None else score(outcome))
    return finals
