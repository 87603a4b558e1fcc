"""How evenly a network serves groups of people (Racial Faces in-the-Wild, Wang et al. 2019).

Every group is evaluated by itself, its thresholds included, as in RFW's protocol.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from trainers.image_source import DataError
from trainers.protocols.measures import Evaluation

NO_GROUP = ""
"""The name of rows that are of no group."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """One measure over groups, each counting once.

    `deviation` is the standard deviation with n − 1, as RFW's tables have it; `skewed_error_ratio` the highest error
    over the lowest (Wang and Deng 2020, "Mitigating bias in face recognition using skewness-aware reinforcement
    learning"), None where the lowest is 0. The error is 1 − the measure; of `eer` it is the measure itself.
    """

    mean: float
    deviation: float
    lowest: float
    highest: float
    skewed_error_ratio: float | None


def spread(name: str, value_of: Mapping[str, float]) -> Spread:
    """How a measure of this name is spread over its groups. Raises `ValueError` for fewer than two."""
    values = np.array(list(value_of.values()))
    if len(values) < 2:
        raise ValueError(f"a spread needs two groups or more, but got {len(values)}")
    errors = values if name == "eer" else 1 - values
    ratio = float(errors.max() / errors.min()) if errors.min() > 0 else None
    return Spread(
        mean=float(values.mean()),
        deviation=float(values.std(ddof=1)),
        lowest=float(values.min()),
        highest=float(values.max()),
        skewed_error_ratio=ratio,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Breakdown:
    """What was found on each group that could be scored, and why the others could not."""

    scored: Mapping[str, Evaluation] = field(default_factory=dict)
    unscored: Mapping[str, str] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """Of all groups, sorted."""
        return sorted([*self.scored, *self.unscored])

    def spreads(self) -> dict[str, Spread]:
        """The spread of every measure that all scored groups have; none where fewer than two groups are scored."""
        if len(self.scored) < 2:
            return {}
        first = next(iter(self.scored.values())).measures
        shared = [name for name in first if all(name in each.measures for each in self.scored.values())]
        return {
            name: spread(name, {group: each.measures[name].value for group, each in self.scored.items()})
            for name in shared
        }

    def notes(self, known: Sequence[str] = ()) -> list[str]:
        """What must be read beside the numbers of groups, but what is `known`; a sentence about each group that was not
        scored."""
        of_note: dict[str, list[str]] = {}
        for name, each in self.scored.items():
            for note in each.notes:
                of_note.setdefault(note, []).append(name)
        said = [f"in {', '.join(names)}: {note}" for note, names in of_note.items() if note not in known]
        said += [f"group '{name}' is not scored: {reason}" for name, reason in self.unscored.items()]
        return [*said, "no spread over groups: it needs two that are scored"] if len(self.scored) == 1 else said


def by_group(group_N: npt.NDArray[np.str_], evaluate: Callable[[npt.NDArray[np.bool_]], Evaluation]) -> Breakdown:
    """`evaluate` on the rows of each group but `NO_GROUP`. A group of which it raises `DataError` is not scored.

    Raises `DataError` for fewer than two groups, and where none can be scored.
    """
    names = [name for name in np.unique(group_N).tolist() if name != NO_GROUP]
    if len(names) < 2:
        raise DataError(f"a comparison of groups needs two groups, but got {' and '.join(names) or 'none'}")
    scored, unscored = {}, {}
    for name in names:
        try:
            scored[name] = evaluate(group_N == name)
        except DataError as error:
            unscored[name] = str(error)
    if not scored:
        raise DataError(f"none of {len(names)} groups can be scored; '{names[0]}': {unscored[names[0]]}")
    return Breakdown(scored=scored, unscored=unscored)
