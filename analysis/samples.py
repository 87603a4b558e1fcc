"""What a search asked for, in the parameters of its space: of every candidate the active numbers and choices."""

from collections.abc import Mapping, Sequence

import pandas as pd
from pydantic import TypeAdapter, ValidationError

from analysis.ledger import Ledger
from analysis.losses import describe
from lfs.trial import RATE, Trial
from search_space import parts
from search_space.domains import Domain, Parameter, Space
from search_space.spaces import AnySpace

QUARTERS = 4
_SPACE: TypeAdapter[Space] = TypeAdapter(AnySpace)
_COLUMNS = ("number", "quarter", "parameter", "value", "option", "reward")
_BEST_FORMULAS = 10


def space_of(ledger: Ledger) -> Space | None:
    """The space of a search, None where the journal has none that is known here."""
    try:
        return _SPACE.validate_python(ledger.setting("space"))
    except ValidationError:
        return None


def candidates_of(ledger: Ledger) -> list[Trial]:
    """The search's trials but for those that merely go on with their parent's losses."""
    found = []
    for number in sorted(ledger.trials):
        trial = ledger.trials[number]
        parent = None if trial.parent is None else ledger.trials.get(trial.parent)
        if trial.role == "search" and (parent is None or parent.schedule != trial.schedule):
            found.append(trial)
    return found


def candidate_behind(ledger: Ledger, number: int | None) -> int | None:
    """The candidate whose loss a trial has: itself, or the one in its lineage with which the loss came."""
    candidates = {trial.number for trial in candidates_of(ledger)}
    lineage = () if number is None else ledger.lineage(number)
    return next((member for member in reversed(lineage) if member in candidates), None)


def samples_of(ledger: Ledger) -> pd.DataFrame:
    """One row a candidate and active parameter: its `value`, or the `option` that a choice took; `reward` where told.

    `quarter` is 0 to 3, by the order of the candidates. A learning rate that was searched is a parameter too. A loss
    that moves over training has a row for each epoch in which a knot lies, and the parameter names the epoch. Losses
    outside of the space have no rows.
    """
    space, candidates = space_of(ledger), candidates_of(ledger)
    rows = []
    for index, trial in enumerate(candidates if space is not None else []):
        told = ledger.told.get(trial.number)
        known: dict[str, object] = {
            "number": trial.number,
            "quarter": QUARTERS * index // len(candidates),
            "reward": None if told is None else told.outcome.reward,
        }
        rate = {RATE: float(trial.recipe[RATE])} if RATE in trial.recipe else {}
        for name, value in {**_values(trial, space, _knot_epochs(ledger)), **rate}.items():
            is_option = isinstance(value, str)
            rows.append(
                known
                | {"parameter": name, "value": None if is_option else value, "option": value if is_option else None}
            )
    return pd.DataFrame(rows, columns=list(_COLUMNS)).astype({"value": "float64", "reward": "float64"})


def _knot_epochs(ledger: Ledger) -> Sequence[int]:
    """The epochs nearest to the knots of a loss that moves over training; empty where it does not."""
    knots = ledger.setting("search", "knots")
    if not isinstance(knots, int) or knots < 2:
        return ()
    last = ledger.horizon_epochs - 1
    return list(dict.fromkeys(round(knot * last / (knots - 1)) for knot in range(knots)))


def _values(trial: Trial, space: Space | None, knot_epochs: Sequence[int]) -> Mapping[str, float | str]:
    """The values of a candidate; of one whose loss has changed from round to round the last loss counts."""
    if space is None:
        return {}
    try:
        if not knot_epochs:
            return space.encode(trial.schedule.final)
        return {
            f"{name}, epoch {epoch + 1}": value
            for epoch in knot_epochs
            for name, value in space.encode(trial.schedule.at(epoch)).items()
        }
    except (ValueError, KeyError):
        return {}


def domain_of(space: Space | None, parameter: str) -> Domain | None:
    """The interval of a parameter that `samples_of` names, None for a choice."""
    parameters: Mapping[str, Parameter] = {} if space is None else space.parameters
    found = parameters.get(parameter.partition(", epoch ")[0])
    return found if isinstance(found, Domain) else None


def formulas_of(ledger: Ledger) -> pd.DataFrame:
    """The best of the losses that are written as formulas, best reward first, each formula once."""
    symbolic = (parts.SymbolicTarget, parts.SymbolicNegative)
    rows = []
    for trial in candidates_of(ledger):
        spec, told = trial.schedule.final, ledger.told.get(trial.number)
        if told is None or told.outcome.reward is None:
            continue
        if isinstance(spec.target, symbolic) or isinstance(spec.negative, symbolic):
            rows.append({"number": trial.number, "formula": describe(spec), "reward": told.outcome.reward})
    frame = pd.DataFrame(rows, columns=["number", "formula", "reward"])
    ranked = frame.sort_values("reward", ascending=False, kind="stable")
    return ranked.drop_duplicates("formula").head(_BEST_FORMULAS).reset_index(drop=True)
