"""What an evaluation found, as tables for a page."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict

import pandas as pd

from trainers.protocols.groups import Spread
from trainers.protocols.measures import Evaluation


def measures(found: Mapping[str, Evaluation], unscored: Iterable[str] = ()) -> pd.DataFrame:
    """One row a group and measure, then one without numbers for each group that is `unscored`."""
    rows = [
        {"of": group, "measure": name, **asdict(measure)}
        for group, evaluation in found.items()
        for name, measure in evaluation.measures.items()
    ]
    rows += [{"of": group, "measure": "–"} for group in unscored]
    return pd.DataFrame(rows, columns=["of", "measure", "value", "low", "high"])


def spreads(spread: Mapping[str, Spread]) -> pd.DataFrame:
    """One row a measure."""
    return pd.DataFrame([{"measure": name, **asdict(each)} for name, each in spread.items()])


def curves(found: Mapping[str, Evaluation]) -> dict[str, pd.DataFrame]:
    """The error curve of each group that has one."""
    return {name: pd.DataFrame(asdict(each.curve)) for name, each in found.items() if each.curve is not None}
