"""How evenly a network serves groups of people (Racial Faces in-the-Wild, Wang et al. 2019).

Every group is evaluated by itself, its thresholds included, as in RFW's protocol.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

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


def spreads(groups: Mapping[str, Evaluation]) -> dict[str, Spread]:
    """The spread of every measure that all groups have."""
    first = next(iter(groups.values())).measures
    shared = [name for name in first if all(name in each.measures for each in groups.values())]
    return {name: spread(name, {g: each.measures[name].value for g, each in groups.items()}) for name in shared}


def by_group(
    group_N: npt.NDArray[np.str_], evaluate: Callable[[npt.NDArray[np.bool_]], Evaluation]
) -> dict[str, Evaluation]:
    """`evaluate` on the rows of each group but `NO_GROUP`.

    Raises `DataError` for fewer than two groups, and names the group that fails.
    """
    names = [name for name in np.unique(group_N).tolist() if name != NO_GROUP]
    if len(names) < 2:
        raise DataError(f"a comparison of groups needs two groups, but got {' and '.join(names) or 'none'}")
    found = {}
    for name in names:
        try:
            found[name] = evaluate(group_N == name)
        except DataError as error:
            raise DataError(f"group '{name}': {error}") from None
    return found
