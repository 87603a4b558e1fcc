"""What a comparison found: its journal and its resamples as tables, and what may be said of them.

The first event says what was decided before anything was trained: entrants, seeds, the one score whose differences
are tested, how the intervals are made. Nothing here chooses.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from analysis.ledger import Ledger
from analysis.losses import describe, describe_recipe
from analysis.significance import Estimate, TwoWay, Verdict, estimate, holm, p_better, paired_t_p, sign_flip_p, verdict
from analysis.tables import choice_score, score_meaning, score_title
from lfs.journal import FILE_NAME, JournalError, Opened, Scored, read_events

Floats = npt.NDArray[np.float64]

WINNER = "winner"
SCORES = ("tar_at_far_1e-1", "tar_at_far_1e-2", "tar_at_far_1e-3", "tar_at_far_1e-4", "eer", "rank1")
FEWEST_FALSE_ACCEPTS = 30
"""With fewer impostor pairs accepted than these, a TAR@FAR hangs on a handful of pairs."""
FEW_CLUSTERS = 20
"""Over fewer identities or groups than these a bootstrap is remarked upon."""


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """The winner minus a baseline on the tested score. `difference` and what follows is None where nothing can be
    said."""

    baseline: str
    difference: Estimate | None
    p: float | None
    corrected_p: float
    p_better: float | None
    verdict: Verdict


@dataclass(frozen=True)
class Results:
    """A finished comparison."""

    ledger: Ledger
    scored: Mapping[tuple[str, int], Scored]
    opened: Opened
    moves: Mapping[str, Mapping[str, Floats]]
    """By file and score: by how much a score moves in each resample, B."""
    curves: Mapping[str, Mapping[str, Floats]]
    """By file: an error curve and histograms of cosines; `analysis.comparison_curves` reads them."""

    @classmethod
    def read(cls, folder: Path) -> "Results":
        """The comparison in a folder. Raises `JournalError` for one that is not finished, or whose files are gone."""
        events, _ = read_events(folder / FILE_NAME)
        scored = {(event.entrant, event.seed): event for event in events if isinstance(event, Scored)}
        opened = next((event for event in events if isinstance(event, Opened)), None)
        ledger = Ledger.of(events)
        plan = ledger.setting("comparison")
        wanted = len(plan["entrants"]) * len(plan["seeds"]) if isinstance(plan, dict) else None  # type: ignore[arg-type]
        if opened is None or wanted is None or len(scored) < wanted:
            raise JournalError(f"the comparison {folder} is not finished: go on with 'lossearch compare'")
        names = sorted({event.resamples for event in scored.values() if event.resamples})
        curves = sorted({event.curves for event in scored.values() if (folder / event.curves).is_file()})
        return cls(
            ledger,
            scored,
            opened,
            {name: _arrays(folder / name) for name in names},
            {name: _arrays(folder / name) for name in curves},
        )

    @cached_property
    def plan(self) -> dict[str, Any]:
        """What was decided beforehand."""
        plan = self.ledger.setting("comparison")
        return plan if isinstance(plan, dict) else {}

    @property
    def entrants(self) -> list[dict[str, Any]]:
        """Name, kind and origin of each entrant, the winner first."""
        return list(self.plan["entrants"])

    @property
    def seeds(self) -> list[int]:
        """The seeds that every entrant was trained with."""
        return list(self.plan["seeds"])

    @property
    def metric(self) -> str:
        """The tested score."""
        return str(self.plan["metric"])

    @property
    def level(self) -> float:
        """1 − the coverage of the intervals, and the chance of any false verdict."""
        return float(self.plan["level"])

    @property
    def units(self) -> int:
        """What is repeated and resampled: the searches where there are several, else the seeds."""
        return len(self.plan.get("searches", ())) or len(self.seeds)

    @property
    def of_searches(self) -> bool:
        """Whether several searches are compared."""
        return bool(self.plan.get("searches"))

    @property
    def repeated(self) -> str:
        """What the units are, in a word."""
        return "searches" if self.of_searches else "seeds"

    def by_unit(self, value_S: Floats) -> Floats:
        """The mean over the seeds of each unit, along the first axis; every search has as many seeds."""
        mean_U: Floats = value_S.reshape(self.units, -1, *value_S.shape[1:]).mean(1)
        return mean_U

    @cached_property
    def two_way(self) -> TwoWay:
        """The draws of units that go with the resamples of identities."""
        return TwoWay.draw(
            seeds=self.units,
            resamples=int(self.plan["options"]["resamples"]),
            clusters=self.opened.clusters,
            level=self.level,
            rng=np.random.default_rng([int(self.plan["search_id"], 16), int(self.plan["number"]), 1]),
        )

    def values(self, entrant: str, score: str) -> tuple[Floats, Floats] | None:
        """The scores of the units (U) and how they move in the resamples (U×B); None where a training failed."""
        runs = [self.scored[entrant, seed] for seed in self.seeds]
        if any(run.state == "failed" for run in runs):
            return None
        resamples = int(self.plan["options"]["resamples"])
        sign, stored = (-1.0, "eer") if score == "one_minus_eer" else (1.0, score)
        score_S = np.array([run.score(score) for run in runs], dtype=np.float64)
        still_B = np.zeros(resamples)
        move_SB = np.array([sign * self.moves[r.resamples][stored] if r.resamples else still_B for r in runs])
        return self.by_unit(score_S), self.by_unit(move_SB)

    def estimate(self, entrant: str, score: str) -> Estimate | None:
        """An entrant's mean over units with its interval, which cannot leave [0, 1]."""
        values = self.values(entrant, score)
        return None if values is None else estimate(*values, self.two_way, least=0.0)

    def difference(self, baseline: str, score: str) -> tuple[Floats, Floats] | None:
        """The winner's scores minus a baseline's, paired by unit and by resample."""
        ours, theirs = self.values(WINNER, score), self.values(baseline, score)
        return None if ours is None or theirs is None else (ours[0] - theirs[0], ours[1] - theirs[1])

    @cached_property
    def rivals(self) -> list[str]:
        """The entrants that the winner is held against: baselines and controls."""
        return [str(entrant["name"]) for entrant in self.entrants if entrant["kind"] in ("baseline", "control")]

    @cached_property
    def contrasts(self) -> list[Contrast]:
        """The tested differences, in the order of the plan. A failed training leaves its contrast undecided; it keeps
        its place in the correction."""
        differences = {name: self.difference(name, self.metric) for name in self.rivals}
        test = paired_t_p if self.of_searches else sign_flip_p
        p_values = {name: None if d is None else test(list(d[0])) for name, d in differences.items()}
        corrected = holm([1.0 if p is None else p for p in p_values.values()])
        found = []
        for (name, values), corrected_p in zip(differences.items(), corrected, strict=True):
            shown = None if values is None else estimate(*values, self.two_way)
            found.append(
                Contrast(
                    baseline=name,
                    difference=shown,
                    p=p_values[name],
                    corrected_p=corrected_p,
                    p_better=None if values is None else p_better(*values, self.two_way),
                    verdict="not decided" if shown is None else verdict(shown, corrected_p, self.level),
                )
            )
        return found

    def resolved(self, score: str) -> bool:
        """Whether a score rests on enough false accepts to be drawn."""
        if not score.startswith("tar_at_far_"):
            return True
        images = self.opened.images
        return float(score.removeprefix("tar_at_far_")) * images * (images - 1) / 2 >= FEWEST_FALSE_ACCEPTS

    @property
    def headline(self) -> str:
        """One sentence: how many baselines the winner beats."""
        counts = {kind: [c.baseline for c in self.contrasts if c.verdict == kind] for kind in _SAID}
        said = [_SAID[kind].format(", ".join(names)) for kind, names in counts.items() if names]
        return (
            f"{score_title(self.metric)} on {self.opened.classes} sealed test identities, {self.repeats}: "
            f"the winner is {'; '.join(said) or 'alone'}."
        )

    @property
    def repeats(self) -> str:
        """How often what was repeated, in words."""
        seeds = len(self.seeds)
        return f"{self.units} searches retrained {seeds // self.units}× each" if self.of_searches else f"{seeds} seeds"

    def remarks(self) -> list[str]:
        """What must be read beside the table."""
        before = self.opened.opened_before
        caution = f"Comparisons in this workspace had opened them {before}× before, which may have shaped this one."
        first = caution if before else "It was the first time in this workspace."
        return [
            *filter(None, [score_meaning(self.metric)]),
            f"The test identities were opened {when(self.opened.time)}, once, when all training was done. {first}",
            *self._weaknesses(),
            *self._troubles(),
        ]

    @property
    def clustered(self) -> str:
        """What stands for other identities in the intervals, in words."""
        return "groups of identities (from the class names)" if self.plan["grouped"] else "identities"

    def _weaknesses(self) -> list[str]:
        """What makes intervals and verdicts less sure than they look."""
        opened, said = self.opened, []
        if opened.clusters < FEW_CLUSTERS:
            said.append(
                f"The intervals resample {opened.clusters} {self.clustered}: over fewer than {FEW_CLUSTERS} they are "
                "rough, over two or three they show next to nothing of what other identities would change."
            )
        if not self.resolved(self.metric):
            said.append(
                f"The tested score rests on fewer than {FEWEST_FALSE_ACCEPTS} false accepts: its intervals and "
                "verdicts hang on a handful of pairs."
            )
        if opened.unused_images:
            said.append(
                f"Of the test split {opened.images:,} of {opened.images + opened.unused_images:,} images were scored, "
                "of whole classes: data.max_test_images."
            )
        return said

    def _troubles(self) -> list[str]:
        found: dict[tuple[str, str], list[int]] = {}
        for (entrant, seed), run in self.scored.items():
            if run.state != "trained":
                found.setdefault((entrant, run.state), []).append(seed)
        return [
            f"{entrant}: {len(seeds)} of {len(self.seeds)} trainings {state} (seed {', '.join(map(str, seeds))}); "
            f"{_COUNTED[state]}. {self.scored[entrant, seeds[0]].why}"
            for (entrant, state), seeds in found.items()
        ]

    def terminal_tables(self) -> list[pd.DataFrame]:
        """The entrants' scores, and the tested differences, as text."""
        images = self.costs().set_index("entrant")["images in all"]
        entrants = [
            {
                "": entrant["name"],
                f"{score_title(self.metric)} [{self.coverage}]": written(own),
                "n": "–" if own is None else str(own.n),
                "images in all": f"{images[entrant['name']]:,}",
            }
            for entrant in self.entrants
            for own in (self.estimate(str(entrant["name"]), self.metric),)
        ]
        contrasts = [
            {
                "winner −": contrast.baseline,
                f"difference [{self.coverage}]": written(contrast.difference, sign="+"),
                "p": "–" if contrast.p is None else f"{contrast.p:.3g}",
                "Holm": f"{contrast.corrected_p:.3g}",
                "the winner is": contrast.verdict,
            }
            for contrast in self.contrasts
        ]
        return [pd.DataFrame(rows) for rows in (entrants, contrasts) if rows]

    def markdown(self) -> str:
        """Headline, tables and remarks, for a page that takes Markdown."""
        tables = [pipes(table) for table in self.terminal_tables()[::-1]]
        remarks = "\n".join(f"- {remark}" for remark in self.remarks())
        return "\n\n".join([self.headline, *tables, remarks]) + "\n"

    @property
    def coverage(self) -> str:
        """The intervals' level in words."""
        return f"{100 * (1 - self.level):g} %"

    def scores(self) -> pd.DataFrame:
        """Every entrant and score: mean, interval, n."""
        return pd.DataFrame(
            [
                {"entrant": e["name"], "score": score, **_columns(self.estimate(str(e["name"]), score))}
                for e in self.entrants
                for score in dict.fromkeys((self.metric, *SCORES))
            ]
        )

    def differences(self) -> pd.DataFrame:
        """The winner minus each baseline on every score; only those of the tested score were tested."""
        tested = {contrast.baseline: contrast for contrast in self.contrasts}
        rows = []
        for name in self.rivals:
            for score in dict.fromkeys((self.metric, *SCORES)):
                values = self.difference(name, score)
                row: dict[str, object] = {"baseline": name, "score": score}
                row |= _columns(None if values is None else estimate(*values, self.two_way))
                if score == self.metric:
                    contrast = tested[name]
                    row |= {"p": contrast.p, "p_holm": contrast.corrected_p, "p_better": contrast.p_better}
                    row |= {"verdict": contrast.verdict}
                rows.append(row)
        return pd.DataFrame(rows)

    def raw(self) -> pd.DataFrame:
        """One row an entrant and seed: state, test scores, trial."""
        return pd.DataFrame(
            [
                {
                    "entrant": entrant["name"],
                    "seed": seed,
                    "trial": run.trial,
                    "state": run.state,
                    **{score: run.score(score) for score in dict.fromkeys((self.metric, *SCORES))},
                    "why": run.why,
                }
                for entrant in self.entrants
                for seed in self.seeds
                for run in (self.scored[str(entrant["name"]), seed],)
            ]
        )

    def costs(self) -> pd.DataFrame:
        """Training images: to find an entrant's loss, to train it once (a control's whole pool), and both."""
        rows = []
        for entrant in self.entrants:
            name, of = str(entrant["name"]), str(entrant["of"])
            found = self._images(str(entrant["grid"])) if entrant["grid"] else 0
            if entrant["kind"] in ("winner", "recommended") or of == WINNER:
                found = int(self.plan["search_images"])
            trained = self._images(name) + (self._images(of) if entrant["best_of"] > 1 else 0)
            once = trained // len(self.seeds)
            rows.append(
                {
                    "entrant": name,
                    "found by": entrant["how"],
                    "images to find it": found,
                    "images a training": once,
                    "images in all": found + once,
                }
            )
        return pd.DataFrame(rows)

    def _images(self, name: str) -> int:
        ledger = self.ledger
        return sum(told.outcome.images for number, told in ledger.told.items() if ledger.trials[number].name == name)

    def losses(self) -> pd.DataFrame:
        """What each entrant is: its loss (the last one of a schedule), where it comes from, its own recipe; one row a
        search where an entrant is of several."""
        rows = []
        own_seeds = self.seeds[:: len(self.seeds) // self.units]
        found = [(e, seed) for e in self.entrants for seed in (own_seeds if e.get("of_searches") else self.seeds[:1])]
        for entrant, seed in found:
            trial = self.ledger.trials[self.scored[str(entrant["name"]), seed].trial]
            recipe = describe_recipe(trial.recipe)
            loss = describe(trial.schedule.final)
            rows.append(
                {
                    "entrant": entrant["name"],
                    "loss": loss if len(trial.schedule) == 1 else f"{loss}, the last of {len(trial.schedule)}",
                    "from": entrant["how"],
                    "recipe": recipe or "the run's",
                    "epochs": trial.epochs,
                }
            )
        return pd.DataFrame(rows)

    def grids(self) -> pd.DataFrame:
        """The tuning of the tuned baselines: one seed, the tested score on the choice half of validation."""
        names = {str(entrant["grid"]) for entrant in self.entrants}
        rows = []
        for number, told in self.ledger.told.items():
            trial, metrics = self.ledger.trials[number], told.outcome.metrics
            if trial.name in names - {""}:
                score = choice_score(metrics, self.metric)
                recipe = describe_recipe(trial.recipe)
                loss = describe(trial.schedule.final)
                rows.append({"grid": trial.name, "loss": loss, "recipe": recipe or "the run's", "choice": score})
        return pd.DataFrame(rows).sort_values(["grid", "choice"], ascending=[True, False]) if rows else pd.DataFrame()


_SAID = {
    "better": "better than {}",
    "worse": "worse than {}",
    "no significant difference": "not significantly different from {}",
    "not decided": "not compared with {}, where a training failed",
}
_COUNTED = {
    "collapsed": "they count with their scores",
    "diverged": "they count with the scores of chance",
    "failed": "the machine failed, not the loss, so nothing is decided",
}


def pipes(frame: pd.DataFrame) -> str:
    """A table in Markdown."""
    rows = [list(frame.columns), ["---"] * len(frame.columns), *frame.itertuples(index=False)]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "/") for cell in row) + " |" for row in rows)


def written(value: Estimate | None, *, sign: str = "") -> str:
    """A mean with its interval.

    >>> written(Estimate(mean=0.5, low=0.25, high=0.75, n=2))
    '0.5000 [0.2500, 0.7500]'
    """
    if value is None:
        return "–"
    numbers = [f"{number:{sign}.4f}".replace("-", "−") for number in (value.mean, value.low, value.high)]
    return f"{numbers[0]} [{numbers[1]}, {numbers[2]}]"


def _columns(value: Estimate | None) -> dict[str, float | int | None]:
    if value is None:
        return {"mean": None, "low": None, "high": None, "n": 0}
    return {"mean": value.mean, "low": value.low, "high": value.high, "n": value.n}


def when(seconds: float) -> str:
    """A time of the journal as people write it."""
    return pd.Timestamp(seconds, unit="s", tz="UTC").strftime("%Y-%m-%d %H:%M:%S UTC")


def _arrays(path: Path) -> Mapping[str, Floats]:
    try:
        with np.load(path) as stored:
            return {name: stored[name] for name in stored.files}
    except (OSError, ValueError) as error:
        raise JournalError(f"{path} of the comparison cannot be read ({error}); start another with --again") from None
