"""The arms of the study, from its rows: units, scores, and how these move in the resamples.

`tests/bench/study_plan.py` says how they are judged. U units, B resamples.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from analysis.significance import Estimate, TwoWay
from tests.bench.study_plan import CONSTANT_GRID, LAST, SEARCH_SOFTMAX, SELECTION, SHUFFLED, plan_of
from trainers.recipe import RewardMetric

LEVEL = 0.05
OWN_NETWORK, CONSTANT = ": the search's own network", ": its constant loss"
"""What is put behind the name of a search for the network that it ended with, and, of the one that searches nothing,
for the loss that it was given."""
Floats = npt.NDArray[np.float64]
Row = Mapping[str, Any]


def as_retrained(name: str) -> str:
    """What the retrains of a search are called: of the one that selects alone they are those of the loss that it was
    given, with no search in them."""
    return name + CONSTANT if name == SELECTION else name


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """What is compared: its units' test scores U and how they move in the resamples of the identities, U×B."""

    name: str
    score_U: Floats
    move_UB: Floats
    choice: float
    """The mean on the choice half of validation."""
    images: float
    """Training images of a unit: to find the loss, or to choose its learning rate, and to train it once."""

    def means(self, clusters: int) -> tuple[Floats, TwoWay]:
        """The mean over units in each resample of units and identities, B, and the draws that it comes from."""
        rng = np.random.default_rng([len(self.score_U), *self.name.encode()])
        two_way = TwoWay.draw(
            seeds=len(self.score_U), resamples=self.move_UB.shape[1], clusters=clusters, level=LEVEL, rng=rng
        )
        return two_way.means(self.score_U, self.move_UB), two_way

    def estimate(self, clusters: int) -> Estimate:
        """The mean over units with its interval."""
        mean_B, two_way = self.means(clusters)
        low, high = two_way.interval(mean_B)
        return Estimate(mean=float(self.score_U.mean()), low=low, high=high, n=len(self.score_U))


@dataclass(frozen=True, slots=True, kw_only=True)
class Contrast:
    """One arm minus another."""

    arm: str
    rival: str
    difference: Estimate
    p: float


def contrast(arm: Arm, rival: Arm, clusters: int) -> Contrast:
    """The difference of two arms of at least two units each."""
    (mean_B, two_way), (rival_mean_B, _) = arm.means(clusters), rival.means(clusters)
    low, high = two_way.interval(mean_B - rival_mean_B)
    mean = float(arm.score_U.mean() - rival.score_U.mean())
    p = float(stats.ttest_ind(arm.score_U, rival.score_U, equal_var=False).pvalue)
    estimate = Estimate(mean=mean, low=low, high=high, n=min(len(arm.score_U), len(rival.score_U)))
    return Contrast(arm=arm.name, rival=rival.name, difference=estimate, p=p)


def together(pairs: Sequence[tuple[Arm, Arm, int]]) -> Contrast:
    """The mean over data sets of one arm minus another: on each set the two arms and the number of clusters.

    Units and identities of different sets are independent: their draws are joined in any order, and the variances of
    Welch's test add up, with Satterthwaite's degrees of freedom. `n` counts the sets.
    """
    sets, drawn = len(pairs), []
    for number, (arm, rival, clusters) in enumerate(pairs):
        difference_B = arm.means(clusters)[0] - rival.means(clusters)[0]
        drawn.append(np.random.default_rng(number).permutation(difference_B))
    low, high = np.quantile(np.mean(drawn, axis=0), [LEVEL / 2, 1 - LEVEL / 2])
    mean = float(np.mean([arm.score_U.mean() - rival.score_U.mean() for arm, rival, _ in pairs]))
    scores = [each.score_U for arm, rival, _ in pairs for each in (arm, rival)]
    variance = np.array([score_U.var(ddof=1) / len(score_U) for score_U in scores])
    freedom = variance.sum() ** 2 / (variance**2 / [len(score_U) - 1 for score_U in scores]).sum()
    p = float(2 * stats.t.sf(abs(mean) * sets / variance.sum() ** 0.5, freedom))
    arm, rival, _ = pairs[0]
    estimate = Estimate(mean=mean, low=float(low), high=float(high), n=sets)
    return Contrast(arm=arm.name, rival=rival.name, difference=estimate, p=p)


class DataSet:
    """The rows of a data set."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.plan = next(row for row in rows if row["kind"] == "plan")
        self.name = str(self.plan["data"])
        self.study = plan_of(self.name)
        self.rows = [row for row in rows if row["kind"] != "plan"]
        self.metric, self.reward = str(self.plan["setup"]["metric"]), str(self.plan["setup"]["reward"])
        self.clusters = int(self.plan["clusters"])

    def of(self, kind: str, name: str) -> list[Row]:
        """The rows of a kind and name, by seed."""
        return sorted((r for r in self.rows if (r["kind"], r["name"]) == (kind, name)), key=lambda r: int(r["seed"]))

    @cached_property
    def by_name(self) -> Mapping[str, Arm]:
        """All arms that have two units; what a search found is a unit, with all its trainings."""
        found = [self._retrained(name) for name in self.study.searches]
        found += [self._own_network(name) for name in self.study.searches]
        parts_cost = self._search_images(SEARCH_SOFTMAX)
        found += [self._arm(name, self.by_search("part", name), parts_cost) for name in (SHUFFLED, LAST)]
        found += [self.per_seed("pool", self.study.pooled, found_by=self._search_images(CONSTANT_GRID))]
        found += [self.per_seed("baseline", name, found_by=self._rates_images(name)) for name in self.study.baselines]
        return {arm.name: arm for arm in found if arm is not None}

    def arms(self) -> list[Arm]:
        """The same as a list."""
        return list(self.by_name.values())

    def _arm(self, name: str, groups: Iterable[Sequence[Row]], found_by: float) -> Arm | None:
        units = [group for group in groups if group]
        if len(units) < 2:
            return None
        rows = [row for group in units for row in group]
        choices = [row["choice"][self.metric] if row["choice"] else 0.0 for row in rows]
        return Arm(
            name=name,
            score_U=np.array([np.mean([row["test"][self.metric] for row in group]) for group in units]),
            move_UB=np.array([np.mean([row["moves_1e5"] for row in group], axis=0) for group in units]) / 1e5,
            choice=float(np.mean(choices)),
            images=found_by + float(np.mean([row["images"] for row in rows])),
        )

    def _search_images(self, name: str) -> float:
        rows = self.of("search", name)
        return float(np.mean([row["images"] for row in rows])) if rows else 0.0

    def _rates_images(self, name: str) -> float:
        """What it took to choose a baseline's learning rate."""
        rows = self.of("rate", self.study.baselines[name].rates_of or name)
        return float(sum(row["images"] for row in rows))

    def by_search(self, kind: str, name: str) -> list[list[Row]]:
        """The trainings of what each search found, where all are there."""
        found: dict[int, list[Row]] = {}
        for row in self.of(kind, name):
            found.setdefault(self.study.search_of(row["seed"]), []).append(row)
        return [rows for rows in found.values() if len(rows) == self.study.retrains]

    def _retrained(self, name: str) -> Arm | None:
        whole = self.by_search("retrain", name)
        return self._arm(as_retrained(name), whole, 0.0 if name == SELECTION else self._search_images(name))

    def units_on_validation(self, name: str, score: RewardMetric) -> dict[int, float]:
        """A score of the choice half, by search seed: the mean over the retrains, 0 for one that diverged.

        Searches that lack a retrain are left out.
        """
        return {
            self.study.search_of(rows[0]["seed"]): float(
                np.mean([row["choice"][score] if row["choice"] else 0.0 for row in rows])
            )
            for rows in self.by_search("retrain", name)
        }

    def _own_network(self, name: str) -> Arm | None:
        return self._arm(name + OWN_NETWORK, [[row] for row in self.of("search", name)], 0.0)

    def per_seed(self, kind: str, name: str, *, found_by: float = 0.0) -> Arm | None:
        """An arm whose units are single trainings, of a loss that it took `found_by` images to find."""
        return self._arm(name, [[row] for row in self.of(kind, name)], found_by)

    def best_search(self) -> Arm | None:
        """The best contender by the choice half, None while one of them lacks a search or a retrain."""
        names = [name for name, search in self.study.searches.items() if not search.control and name != CONSTANT_GRID]
        whole = {arm.name: arm for arm in self.arms() if len(arm.score_U) == len(self.study.search_seeds)}
        if not set(names) <= set(whole):
            return None
        return max((whole[name] for name in names), key=lambda arm: arm.choice)
