"""`FixedList`: losses named beforehand, each trained once for the whole horizon. The baselines are one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lfs.trial import Role, Trial
from search_space.schedule import LossSchedule
from search_space.spec import LossSpec
from trainers.outcome import Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedSchedule:
    """A schedule to train for `epochs`, what to call it, and the recipe fields in which it differs from the run's."""

    name: str
    schedule: LossSchedule
    epochs: int
    recipe: Mapping[str, str | int | float | bool] = field(default_factory=dict)


class FixedList:
    """Asks for each schedule of a list, in order, and learns nothing."""

    def __init__(self, items: Sequence[NamedSchedule], *, seed: int, role: Role) -> None:
        self._items = tuple(items)
        self._seed = seed
        self._role: Role = role
        self._asked = 0

    def ask(self, count: int) -> Sequence[Trial]:
        """The next `count` of the list."""
        first = self._asked
        self._asked = min(first + count, len(self._items))
        return [
            Trial(
                number=number,
                schedule=self._items[number].schedule,
                seed=self._seed,
                epochs=self._items[number].epochs,
                role=self._role,
                name=self._items[number].name,
                recipe=self._items[number].recipe,
            )
            for number in range(first, self._asked)
        ]

    def tell(self, trial: Trial, outcome: Outcome) -> None:
        """Nothing is learned."""

    def live(self) -> frozenset[int]:
        """No trial is continued."""
        return frozenset()

    def summary(self) -> Mapping[str, float]:
        """How many were asked."""
        return {"asked": float(self._asked)}

    def constant(self) -> LossSpec | None:
        """No recommendation."""
        return None
