"""What the rows of the study say: the page `results/STUDY.md` and the pictures beside it, from the rows alone.

    python -m tests.bench.study_report

`tests/bench/study_plan.py` says how it is judged.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from analysis.comparison import pipes, written
from analysis.losses import describe
from analysis.significance import Verdict, holm, verdict
from search_space import LossSchedule
from tests.bench.rates import LONGER as TIMES
from tests.bench.rates import agreements, by_length, longer, spans
from tests.bench.rates import means as rates_of
from tests.bench.rates import report as rates_report
from tests.bench.rows import RESULTS, read_rows
from tests.bench.study_arms import (
    CONSTANT,
    LEVEL,
    OWN_NETWORK,
    Arm,
    Contrast,
    DataSet,
    as_retrained,
    contrast,
    together,
)
from tests.bench.study_pictures import draw_arms, draw_found, draw_reward
from tests.bench.study_plan import (
    ADACOS,
    CONSTANT_GRID,
    FIRST,
    LAST,
    PLANS,
    SEARCH_SOFTMAX,
    SELECTION,
    SHUFFLED,
    SOFTMAX,
    THE_DEFAULT,
    Plan,
)
from trainers.recipe import RewardMetric

NAME = "study"
FOR_DEFAULTS: RewardMetric = "blend"
OTHERS = ("rank1", "eer", "tar_at_far_1e-2", "mean_tar", "blend")
ASKED = """The claim of a loss search is that what it finds beats losses that need no tuning. Here searches of the
product's methods, each with the compute of eight trainings, are held against AdaCos, which has no hyper-parameters, and
against the best constant margin and scale that the same compute finds on a grid. A search is the unit: it is repeated
under other seeds, and what each one found is retrained from scratch. Scores are those of identities that no search has
seen, but for one control that is rewarded by them on purpose."""
UNITS = """A unit is one training; of what a search found, the mean of its trainings. Images in all: to find the loss,
or to choose its learning rate, and to train it once."""
FOR_HEADROOM, ADACOS_IN_RATES = "omniglot", "AdaCos"
HEADROOM = """The three best of the 24 losses that were drawn at random and trained under three seeds each (72
trainings, `fidelity.jsonl`), by validation, retrained under ten seeds. This looks into why, and tests nothing."""
DEFAULTS = """The blend on the choice half, of the mean over a search's retrained networks, paired by search seed; ±
standard error over searches."""
TOGETHER = """`lossearch search` as it is by default was among the searches on these sets. The mean over the sets of its
differences, each in the score that its set is tested by; sets count alike, their units and identities are independent.
That it is looked at over the sets was not decided beforehand: this tests nothing."""
RATES = """Validation alone, three seeds, the study's recipe: mean ± standard error over seeds. A loss's scale
multiplies its gradient, so that a comparison at one learning rate compares rates too."""

LONGER = """Validation alone, at a learning rate of .2, two seeds: the blend on the choice half, ± standard error over
seeds. Margins are said to matter once a network fits its training data. A horizon of the study is 6 epochs on omniglot
and 12 on lfw112."""
REWARDS = """How well each reward orders the losses and rates of the tables above (the two lower rates): the rank
correlation of one training's reward on one half of validation with the tested score on the other half, over the other
seeds; the mean over seeds and both ways round, not corrected for unreliability. `fidelity.csv` has the long version for
omniglot."""


def arms_table(data: DataSet, arms: Sequence[Arm]) -> pd.DataFrame:
    """One line an arm."""
    lines = [
        {
            "": arm.name,
            "units": len(arm.score_U),
            "test": written(arm.estimate(data.clusters)),
            "between units": f"{arm.score_U.std(ddof=1):.4f}",
            "validation, choice half": f"{arm.choice:.4f}",
            "images in all": f"{arm.images:,.0f}",
        }
        for arm in sorted(arms, key=lambda each: -float(each.score_U.mean()))
    ]
    return pd.DataFrame(lines)


def primary(plan: Plan, sets: Mapping[str, DataSet]) -> list[tuple[str, str, Contrast | None, float, Verdict]]:
    """The primary contrasts: data set, rival, contrast (None while rows are lacking), corrected p, verdict."""
    found: list[tuple[str, str, Contrast | None]] = []
    for name in plan.primary:
        arms = sets[name].by_name if name in sets else {}
        best = sets[name].best_search() if name in sets else None
        for rival in plan.rivals:
            wanted = len(plan.seeds if rival in plan.baselines else plan.search_seeds)
            ready = best is not None and rival in arms and len(arms[rival].score_U) == wanted
            found.append((name, rival, contrast(best, arms[rival], sets[name].clusters) if best and ready else None))
    corrected = holm([1.0 if each is None else each.p for *_, each in found])
    return [
        (name, rival, each, p, "not decided" if each is None else verdict(each.difference, p, LEVEL))
        for (name, rival, each), p in zip(found, corrected, strict=True)
    ]


def primary_table(plan: Plan, sets: Mapping[str, DataSet]) -> pd.DataFrame:
    """The primary contrasts as text."""
    lines = []
    for name, rival, each, p, said in primary(plan, sets):
        if each is None:
            lines.append({"data": name, "contrast": f"best search − {rival}", "difference": "rows are lacking"})
            continue
        lines.append(
            {
                "data": name,
                "contrast": f"{each.arm} − {each.rival}",
                "difference": written(each.difference, sign="+"),
                "p": f"{each.p:.3g}",
                "Holm": f"{p:.3g}",
                "the search is": said,
            }
        )
    return pd.DataFrame(lines).fillna("–")


def together_table(sets: Mapping[str, DataSet]) -> pd.DataFrame:
    """The product's default against its rivals, over all sets that have both; of studies of one set the first."""
    lines = []
    for rival in FIRST.rivals:
        both: dict[str, DataSet] = {}
        for name, data in sets.items():
            if {THE_DEFAULT, rival} <= set(data.by_name):
                both.setdefault(data.study.setups[name].data, data)
        if len(both) > 1:
            found = together([(d.by_name[THE_DEFAULT], d.by_name[rival], d.clusters) for d in both.values()])
            lines.append(
                {
                    "contrast": f"{found.arm} − {found.rival}",
                    "sets": ", ".join(data.name for data in both.values()),
                    "difference": written(found.difference, sign="+"),
                    "p, uncorrected": f"{found.p:.3g}",
                }
            )
    return pd.DataFrame(lines)


def exploratory_table(data: DataSet) -> pd.DataFrame:
    """Every search against AdaCos and the constant grid, uncorrected."""
    lines = []
    for arm in data.arms():
        if arm.name in data.study.baselines or arm.name == CONSTANT_GRID:
            continue
        line: dict[str, object] = {"": arm.name}
        for rival in data.study.rivals:
            if rival in data.by_name:
                line[f"− {rival}"] = written(contrast(arm, data.by_name[rival], data.clusters).difference, sign="+")
        lines.append(line)
    return pd.DataFrame(lines)


def other_scores_table(data: DataSet, scores: Sequence[str] = OTHERS) -> pd.DataFrame:
    """Mean test scores that were not to be tested, with the standard error over units."""
    units = {name: data.by_search("retrain", name) for name in data.study.searches}
    units |= {
        name: [[row] for row in data.of("baseline", name)]
        for name in data.study.baselines
        if data.study.times_of(name) == 1
    }
    lines = []
    for name, groups in units.items():
        if len(groups) >= 2:
            tests = [[row["test"] for row in rows] for rows in groups]
            known = [score for score in scores if score in tests[0][0]]
            columns = {score: np.array([np.mean([test[score] for test in each]) for each in tests]) for score in known}
            shown = {score: f"{each.mean():.4f} ± {stats.sem(each):.4f}" for score, each in columns.items()}
            lines.append({"": as_retrained(name), "units": len(groups), **shown})
    return pd.DataFrame(lines)


def searches_table(plan: Plan) -> pd.DataFrame:
    """What was searched, as decided before."""
    lines = [
        {
            "search": name,
            "method": search.method or "the product's own",
            "settings": " ".join(search.settings).replace("|", "/") or "the method's own",
            "role": "control" if search.control else "contender",
        }
        for name, search in plan.searches.items()
    ]
    return pd.DataFrame(lines)


def trainings(data: DataSet) -> dict[str, list[tuple[float, float]]]:
    """Reward on the choice half and test score of each training that ended, by name: retrains of the searches that are
    no controls, AdaCos and softmax."""
    names = {ADACOS, SOFTMAX, *(name for name, search in data.study.searches.items() if not search.control)}
    found: dict[str, list[tuple[float, float]]] = {}
    for row in data.rows:
        if row["kind"] in ("retrain", "baseline") and row["choice"] and row["name"] in names:
            point = row["choice"][data.reward], row["test"][data.metric]
            found.setdefault(row["name"], []).append(point)
    return found


def promise_table(data: DataSet) -> pd.DataFrame:
    """What a search was paid for its winner, and what its retrains get on the same half and on the other one."""
    lines = []
    for name, search in data.study.searches.items():
        if search.test_reward:  # its reward half is that of other identities
            continue
        searches, retrains = ([r for r in data.of(kind, name) if r["choice"]] for kind in ("search", "retrain"))
        if not searches or not retrains:
            continue
        mean = {
            (kind, half): float(np.mean([row[half][data.reward] for row in rows]))
            for kind, rows in (("own", searches), ("again", retrains))
            for half in ("reward", "choice")
        }
        lines.append(
            {
                "": name,
                "its own network, reward half": f"{mean['own', 'reward']:.4f}",
                "retrained, reward half": f"{mean['again', 'reward']:.4f}",
                "lost": f"{mean['own', 'reward'] - mean['again', 'reward']:+.4f}",
                "its own network, choice half": f"{mean['own', 'choice']:.4f}",
                "retrained, choice half": f"{mean['again', 'choice']:.4f}",
            }
        )
    return pd.DataFrame(lines)


def default_table(data: DataSet) -> pd.DataFrame:
    """Every other search against the plan's default on validation, paired by search seed.

    The p-value is Holm's over the contenders; controls, which cannot be a default, have none.
    """
    plan = data.study
    blend = {name: data.units_on_validation(name, FOR_DEFAULTS) for name in plan.searches}
    reference = blend.pop(plan.default)
    lines: list[dict[str, object]] = []
    tested: list[tuple[dict[str, object], float]] = []
    for name, by_search in blend.items():
        shared = sorted(set(by_search) & set(reference))
        if len(shared) < 2:
            continue
        gain_U = np.array([by_search[number] - reference[number] for number in shared])
        line: dict[str, object] = {
            "": as_retrained(name),
            "searches": len(shared),
            FOR_DEFAULTS: f"{np.mean([by_search[number] for number in shared]):.4f}",
            f"− {plan.default}": f"{gain_U.mean():+.4f} ± {stats.sem(gain_U):.4f}".replace("-", "−"),
        }
        lines.append(line)
        if not plan.searches[name].control:
            tested.append((line, float(stats.ttest_1samp(gain_U, 0.0).pvalue)))
    for (line, _), p in zip(tested, holm([p for _, p in tested]), strict=True):
        line["Holm"] = f"{p:.2g}"
    return pd.DataFrame(lines).fillna("–")


def spread(data: DataSet) -> str:
    """How far arms lie apart, how far seeds do, and how well the reward orders trainings and arms."""
    points = {name: each for name, each in trainings(data).items() if len(each) >= 3 and name in data.by_name}
    if len(points) < 3:
        return "Too few arms have trainings enough to be told from luck."
    within = float(np.sqrt(np.mean([np.array(each)[:, 1].var(ddof=1) for each in points.values()])))
    scores = [data.by_name[name].score_U for name in points]
    means = np.array([score_U.mean() for score_U in scores])
    luck = float(np.sqrt(np.mean([score_U.var(ddof=1) / len(score_U) for score_U in scores])))
    flat = np.concatenate([np.array(each) for each in points.values()])
    centred = np.concatenate([np.array(each) - np.mean(each, axis=0) for each in points.values()])
    rewards = [np.mean(each, axis=0)[0] for each in points.values()]
    of_means = f", {stats.spearmanr(rewards, means).statistic:.2f} between the means of arms" if len(means) > 4 else ""
    overall, inside = (stats.spearmanr(each[:, 0], each[:, 1]).statistic for each in (flat, centred))
    return (
        f"Of {len(points)} arms (searches without the controls, AdaCos, softmax) the mean test scores have a standard "
        f"deviation of {means.std(ddof=1):.4f}; luck of the units alone would give {luck:.4f}. One training of an arm "
        f"differs from the next by {within:.4f} (standard deviation within arms). The rank correlation of "
        f"{data.reward} on the choice half with {data.metric} on the test is {overall:.2f} over all {len(flat)} "
        f"trainings, {inside:.2f} within arms{of_means}."
    )


def data_sets() -> dict[str, DataSet]:
    """Those that have rows."""
    rows = read_rows(NAME)
    names = dict.fromkeys(row["data"] for row in rows)
    return {name: DataSet([row for row in rows if row["data"] == name]) for name in names}


def beforehand(data: DataSet) -> str:
    """What the plan's row says."""
    plan = data.study
    seeds = (
        f"searches under seeds {plan.search_seeds}, {plan.retrains} retrains each, baselines under {len(plan.seeds)}"
    )
    rates = f"each baseline chooses among learning rates {plan.rates} by {len(plan.rate_seeds)} trainings each"
    return f"Written {data.plan['date']}, commit `{data.plan['commit']}`: {seeds}; {rates}. {data.plan['statistics']}"


def about(data: DataSet) -> str:
    """Rows, compute, machines and versions."""
    if not data.rows:
        return "Nothing is there but the plan."
    machines = ", ".join(sorted({str(row["machine"]) for row in data.rows}))
    versions = ", ".join(sorted({f"torch {row['versions']['torch']}" for row in data.rows}))
    dates = sorted({str(row["date"]) for row in data.rows})
    images, seconds = (sum(row[key] for row in data.rows) for key in ("images", "seconds"))
    bad = sum(row["state"] != "trained" for row in data.rows)
    return (
        f"{len(data.rows)} rows of {dates[0]} to {dates[-1]}, {images:,} training images in {seconds / 3600:.1f} hours "
        f"({machines}; {versions}); {bad} collapsed or diverged and count as they scored."
    )


def headroom(data: DataSet) -> pd.DataFrame:
    """The rows of `tests/bench/headroom.py` against the rivals of the study, uncorrected."""
    found = DataSet([data.plan, *read_rows("headroom")])
    lines = []
    for name in dict.fromkeys(row["name"] for row in found.rows):
        rows, arm = found.of("baseline", name), found.per_seed("baseline", name)
        if arm is not None:
            spec = LossSchedule.model_validate(rows[0]["schedule"]).final
            line = {
                "": f"{name}: {describe(spec)}",
                "trainings": len(rows),
                "validation, choice half": f"{arm.choice:.4f}",
                "test": written(arm.estimate(data.clusters)),
            }
            against = {f"− {rival}": data.by_name[rival] for rival in data.study.rivals if rival in data.by_name}
            gains = {k: written(contrast(arm, v, data.clusters).difference, sign="+") for k, v in against.items()}
            lines.append({**line, **gains})
    return pd.DataFrame(lines)


def lessons(sets: Mapping[str, DataSet]) -> list[str]:
    """What kept searches from paying, as far as the rows tell."""
    found = [said for data in sets if data in FIRST.setups and (said := _rate_lesson(data))]
    found += [said for data in sets if (said := _length_lesson(data))]
    if FOR_HEADROOM in sets and (said := _identity_lesson(sets[FOR_HEADROOM])):
        found.append(said)
    found += [said for data in sets.values() for said in (*_longer(data), *_controls(data))]
    return found + [said for data in sets.values() if (said := _fallen(data))]


def _longer(data: DataSet) -> list[str]:
    """The compute of a search, spent on longer training."""
    best, said = data.best_search(), []
    for name, baseline in data.study.baselines.items():
        if baseline.times > 1 and name in data.by_name and best is not None:
            gain = written(contrast(data.by_name[name], best, data.clusters).difference, sign="+")
            ratio = data.by_name[name].images / best.images
            said.append(
                f"A training as long as a whole search, against what the best search found on {data.name}: {name} − "
                f"{best.name} {gain}. Its learning rate was tuned beside, so that it saw {ratio:.1f} times the images."
            )
    return said


QUESTIONS = {
    SHUFFLED: "Does the order in which Search-Softmax's losses came matter? Shuffled",
    LAST: "Or would the last of them do? It alone",
    SELECTION + OWN_NETWORK: "What is selection worth? The network that rounds under one constant CosFace end with",
    SELECTION + CONSTANT: "Would that CosFace do, trained without a search? It alone",
    "search-softmax, constant rate": "Is a reward after one epoch under a falling learning rate myopic? At a held rate",
    "search-softmax, cool-down": "With each reward after an epoch of cool-down",
    "search-softmax as released": "What do the published code's choices cost? μ that cannot move, its sign inverted",
    "search-softmax, reward from the test": "And its reward from the test",
}
"""What a control of Search-Softmax asks, and what was done."""


def _controls(data: DataSet) -> list[str]:
    said = []
    for name, question in QUESTIONS.items():
        own = OWN_NETWORK if name.endswith(OWN_NETWORK) else ""
        arm, plain = data.by_name.get(name), data.by_name.get(SEARCH_SOFTMAX + own)
        if arm is not None and plain is not None:
            against = written(contrast(arm, plain, data.clusters).difference, sign="+")
            choice = f"{arm.choice - plain.choice:+.4f} on validation".replace("-", "−")
            whom = "that of Search-Softmax" if own else "Search-Softmax"
            said.append(f"{question}: {against} on the test of {data.name} against {whom}, {choice}; uncorrected.")
    return said


def _rate_lesson(data: str) -> str | None:
    blend = rates_of(data)
    if not all((ADACOS_IN_RATES, rate) in blend for rate in (0.1, 0.2)):
        return None
    gains = {loss: blend[loss, 0.2] - blend[loss, 0.1] for loss, rate in blend if rate == 0.2 and (loss, 0.1) in blend}
    return (
        f"On {data} a learning rate of .2 in place of .1 is worth {gains[ADACOS_IN_RATES]:+.4f} of the blend on "
        f"validation to AdaCos, and {np.mean([*gains.values()]):+.4f} to the {len(gains)} losses that were tried, on "
        "average. In the first study AdaCos chose its rate, and searches kept .1."
    )


def _length_lesson(data: str) -> str | None:
    found = spans(data)
    if not found:
        return None
    (short, luck), (long, long_luck) = found
    return (
        f"Do losses differ more when they are trained for longer? The means of {len(by_length(data))} span "
        f"{short:.4f} of the blend after one horizon of {data}, {long:.4f} after {TIMES}; equal losses would span "
        f"{luck:.4f} and {long_luck:.4f} by the luck of two seeds: they cannot tell."
    )


def _identity_lesson(data: DataSet) -> str | None:
    rival, rows = data.by_name.get(ADACOS), read_rows("headroom")
    if rival is None or not rows:
        return None
    names = {row["name"] for row in rows}
    arm = DataSet([data.plan, *({**row, "name": "all"} for row in rows)]).per_seed("baseline", "all")
    if arm is None:
        return None
    validated = f"{arm.choice - rival.choice:+.4f}"
    tested = written(contrast(arm, rival, data.clusters).difference, sign="+")
    return (
        f"The {len(names)} losses under 'Is there anything to find?' were the best of 24 on the validation identities "
        f"of {data.name}. Under ten new seeds they are together {validated} above AdaCos there, and {tested} on the "
        "test identities: the lead is not seen there, though the interval allows it."
    )


def _fallen(data: DataSet) -> str | None:
    rows = data.of("baseline", ADACOS)
    test_S = np.array([row["test"][data.metric] for row in rows])
    stands_S = test_S >= test_S.mean() / 2 if rows else test_S
    if stands_S.all():
        return None
    rate = rows[0]["changes"]["learning_rate"]
    fell, others = int((~stands_S).sum()), f"{test_S[stands_S].mean():.4f}"
    return (
        f"On {data.name} {ADACOS} chose a learning rate of {rate:g} by two trainings, and scored less than half its "
        f"mean in {fell} of {len(rows)}; the mean of the others is {others}."
    )


def page(sets: Mapping[str, DataSet], pictures: Path | None = None) -> str:
    """`STUDY.md`; its pictures are drawn into a folder unless that is None."""
    parts = ["# Does searching pay?", "Written by `python -m tests.bench.study_report`; do not edit.", ASKED]
    if said := lessons(sets):
        parts += ["## What did not work, and why", "\n".join(f"- {each}" for each in said)]
    for plan in PLANS:
        own = {name: data for name, data in sets.items() if data.study is plan}
        if own:
            parts += [f"## {plan.title}", "Decided before the first row:", beforehand(next(iter(own.values())))]
            parts += [pipes(searches_table(plan)), "### The primary contrasts", pipes(primary_table(plan, own))]
        for name, data in own.items():
            parts += _of_data(name, data, pictures)
    parts += _all_primary(sets)
    if (table := together_table(sets)).size:
        parts += ["## The default over the data sets", TOGETHER, pipes(table)]
    if FOR_HEADROOM in sets and (table := headroom(sets[FOR_HEADROOM])).size:
        parts += ["## Is there anything to find?", HEADROOM, pipes(table)]
    if rates := rates_report():
        parts += ["## Learning rates", RATES, rates]
    if (table := longer()).size:
        parts += ["## Do losses differ more when they are trained for longer?", LONGER, pipes(table)]
    if (table := agreements()).size:
        parts += ["## Rewards", REWARDS, pipes(table)]
    return "\n\n".join(parts) + "\n"


def _all_primary(sets: Mapping[str, DataSet]) -> list[str]:
    """The correction that the plans do not make: over the contrasts of all studies."""
    p_values = [each.p for plan in PLANS for *_, each, _, _ in primary(plan, sets) if each is not None]
    if not p_values:
        return []
    said = (
        f"The correction is within each study. Over the {len(p_values)} primary contrasts of all of them, some on the "
        f"same test identities, the smallest p-value is {min(p_values):.2g}, and {min(holm(p_values)):.2g} corrected."
    )
    return ["## All primary contrasts together", said]


def _of_data(name: str, data: DataSet, pictures: Path | None) -> list[str]:
    arms = data.arms()
    parts = [f"### {name}: {data.metric}", about(data)]
    if not arms:
        return parts
    parts += [UNITS, pipes(arms_table(data, arms))]
    if pictures is not None:
        parts += _drawn(name, data, arms, pictures)
    parts += ["Differences, exploratory, not corrected:", pipes(exploratory_table(data))]
    parts += ["Other scores of the test, ± standard error over units:", pipes(other_scores_table(data))]
    if data.study.default and (table := default_table(data)).size:
        parts += [f"#### {name}: which method should be the default?", DEFAULTS, pipes(table)]
    return [*parts, f"#### {name}: could the reward tell?", spread(data), pipes(promise_table(data))]


def _drawn(name: str, data: DataSet, arms: Sequence[Arm], folder: Path) -> list[str]:
    draw_arms(data, arms, folder / f"study_{name}_arms.png")
    draw_found(data, folder / f"study_{name}_found.png")
    draw_reward(data, trainings(data), folder / f"study_{name}_reward.png")
    said = {
        "arms": "test scores",
        "found": "what was found, and margins over the training",
        "reward": "reward and test",
    }
    return [f"![{name}: {words}](study_{name}_{kind}.png)" for kind, words in said.items()]


def main() -> None:
    """Write the page."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    text = page(data_sets(), RESULTS)
    (RESULTS / "STUDY.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
