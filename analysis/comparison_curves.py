"""The networks of a comparison over all thresholds: error curves with intervals, cosines of pairs, thresholds.

Comparisons made before these were kept have none of them, and their tables are empty. F false accept rates, S seeds, B
resamples, H bins.
"""

import numpy as np
import pandas as pd

from analysis.comparison import FEWEST_FALSE_ACCEPTS, Floats, Results
from analysis.significance import estimate

Curve = dict[str, Floats]

THRESHOLD_FARS = (1e-1, 1e-2, 1e-3, 1e-4)


def drawable(results: Results) -> list[str]:
    """The entrants whose every training left a curve or diverged, one of them at least with a curve."""
    names = [str(entrant["name"]) for entrant in results.entrants]
    return [name for name in names if _complete(results, name) and any(_curves(results, name))]


def _curves(results: Results, entrant: str) -> list[Curve | None]:
    """The curve of each seed, None where a training left none."""
    runs = [results.scored[entrant, seed] for seed in results.seeds]
    found = [results.curves.get(run.curves) for run in runs]
    return [dict(curve) if curve is not None and len(curve["far"]) else None for curve in found]


def _complete(results: Results, entrant: str) -> bool:
    states = [results.scored[entrant, seed].state for seed in results.seeds]
    return all(
        curve is not None or state == "diverged" for curve, state in zip(_curves(results, entrant), states, strict=True)
    )


def errors_of(results: Results) -> pd.DataFrame:
    """One row an entrant and false accept rate: the false reject rate 1 − TAR over seeds with its interval.

    `false_accepts` are those of the network that has most; `resolved` says whether they are enough. A diverged training
    counts as chance: TAR = FAR, in every resample.
    """
    rows: list[pd.DataFrame] = []
    for entrant in drawable(results):
        curves = _curves(results, entrant)
        known = [curve for curve in curves if curve is not None]
        far_F = known[0]["far"]
        still_FB = np.zeros_like(known[0]["tar_move"])
        tar_SF = np.array([far_F if curve is None else curve["tar"] for curve in curves])
        move_SFB = np.array([still_FB if curve is None else curve["tar_move"] for curve in curves])
        tar_UF, move_UFB = results.by_unit(tar_SF), results.by_unit(move_SFB)
        values = [estimate(tar_UF[:, f], move_UFB[:, f], results.two_way, least=0.0) for f in range(len(far_F))]
        accepts_F = np.max([curve["false_accepts"] for curve in known], axis=0)
        frame = pd.DataFrame({"far": far_F, "frr": 1 - tar_SF.mean(0)})
        frame["low"] = [1 - value.high for value in values]
        frame["high"] = [1 - value.low for value in values]
        rows.append(frame.assign(entrant=entrant, n=results.units, false_accepts=accepts_F.astype(int)))
    if not rows:
        return pd.DataFrame(columns=["entrant", "far", "false_accepts", "frr", "low", "high", "n", "resolved"])
    table = pd.concat(rows, ignore_index=True)
    enough = table.groupby("far")["false_accepts"].transform("max") >= FEWEST_FALSE_ACCEPTS
    return table.assign(resolved=enough)[["entrant", "far", "false_accepts", "frr", "low", "high", "n", "resolved"]]


def cosines_of(results: Results) -> pd.DataFrame:
    """One row an entrant and bin: the middle of the bin, and the mean share of `genuine` and `impostor` pairs in it.

    Diverged trainings have no cosines: `n` counts the others.
    """
    rows = []
    for entrant in drawable(results):
        known = [curve for curve in _curves(results, entrant) if curve is not None]
        genuine_H, impostor_H = (np.mean([curve[kind] for curve in known], axis=0) for kind in ("genuine", "impostor"))
        edges = np.linspace(-1, 1, len(genuine_H) + 1)
        shares = {"genuine": genuine_H, "impostor": impostor_H, "n": len(known)}
        rows.append(pd.DataFrame({"entrant": entrant, "cosine": (edges[1:] + edges[:-1]) / 2, **shares}))
    columns = ["entrant", "cosine", "genuine", "impostor", "n"]
    return pd.concat(rows, ignore_index=True) if rows else pd.DataFrame(columns=columns)


def thresholds_of(results: Results) -> pd.DataFrame:
    """One row an entrant and resolved rate of `THRESHOLD_FARS`: the mean threshold over seeds, lowest and highest."""
    rows = []
    for entrant in drawable(results):
        known = [curve for curve in _curves(results, entrant) if curve is not None]
        for far in THRESHOLD_FARS:
            at = np.flatnonzero(np.isclose(known[0]["far"], far))
            if len(at) and max(curve["false_accepts"][at[0]] for curve in known) >= FEWEST_FALSE_ACCEPTS:
                found = [float(curve["threshold"][at[0]]) for curve in known]
                means = {"threshold": float(np.mean(found)), "lowest": min(found), "highest": max(found)}
                rows.append({"entrant": entrant, "far": far, **means})
    return pd.DataFrame(rows, columns=["entrant", "far", "threshold", "lowest", "highest"])
