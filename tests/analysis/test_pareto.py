"""The Pareto set of a search for several objectives."""

import json

import numpy as np
import pandas as pd

from analysis.figures import MAX_MARKS
from analysis.ledger import Ledger
from analysis.pareto import objectives_of, pareto_figure, pareto_of
from analysis.report import report_html
from lfs.journal import Asked, Event, Started, Told
from lfs.trial import Trial
from search_space import LossSchedule, catalog
from trainers.outcome import Outcome

OBJECTIVES = [{"metric": "reward", "direction": "maximize"}, {"metric": "seconds", "direction": "minimize"}]
POINTS = {0: (0.5, 10.0), 1: (0.6, 20.0), 2: (0.4, 15.0), 3: (0.6, 25.0), 4: (0.3, 5.0), 5: (0.5, 10.0)}


def journal(objectives: list[dict[str, str]]) -> list[Event]:
    schedule = LossSchedule.constant(catalog.softmax())
    trials = tuple(Trial(number=n, schedule=schedule, seed=0, epochs=3) for n in (*POINTS, 6))
    told = [
        Told(trial=n, outcome=Outcome(reward=reward, seconds=seconds, images=1))
        for n, (reward, seconds) in POINTS.items()
    ]
    failed = Told(trial=6, outcome=Outcome(reward=None, error="diverged: loss is nan", seconds=0.0, images=0))
    begun = Started.model_validate(
        {
            "search_id": "0123456789ab",
            "config": {"search": {"objectives": objectives}},
            "data": {},
            "versions": {},
            "numerics": {},
        }
    )
    return [begun, Asked(count=7, trials=trials), *told, failed]


def test_on_the_front_are_the_trials_that_none_beats() -> None:
    frame = pareto_of(Ledger.of(journal(OBJECTIVES)))
    assert sorted(frame.loc[frame["on_front"], "number"]) == [0, 1, 4, 5]
    assert set(frame["number"]) == set(POINTS)


def test_directions_count() -> None:
    longest = [OBJECTIVES[0], {"metric": "seconds", "direction": "maximize"}]
    frame = pareto_of(Ledger.of(journal(longest)))
    assert frame.loc[frame["on_front"], "number"].tolist() == [3]


def test_the_report_shows_it_only_for_several_objectives() -> None:
    events = journal(OBJECTIVES)
    assert 'id="pareto"' in report_html(events, journal_digest="0")
    assert 'id="pareto"' not in report_html(journal(OBJECTIVES[:1]), journal_digest="0")
    drawn = pareto_figure(pareto_of(Ledger.of(events)), objectives_of(Ledger.of(events)))
    assert drawn.label == "4 of 6 trials are not beaten in reward and seconds at once"
    assert [trace["mode"] for trace in json.loads(drawn.plot)["data"]] == ["markers", "lines+markers"]


def test_a_front_of_three_objectives_names_them_and_is_not_joined() -> None:
    ledger = Ledger.of(journal([*OBJECTIVES, {"metric": "images", "direction": "minimize"}]))
    drawn = pareto_figure(pareto_of(ledger), objectives_of(ledger))
    assert drawn.label == "4 of 6 trials are not beaten in reward, seconds and images at once"
    assert [trace["mode"] for trace in json.loads(drawn.plot)["data"]] == ["markers", "markers"]


def test_of_many_beaten_trials_those_near_the_front_are_drawn() -> None:
    objectives = {"val/eer": "minimize", "seconds": "minimize"}
    count = 2 * MAX_MARKS
    trials = pd.DataFrame({"number": range(count), "loss": "", "val/eer": np.linspace(0.1, 0.5, count), "seconds": 1.0})
    drawn = pareto_figure(trials.assign(on_front=trials["number"] == 0), objectives)
    others = json.loads(drawn.plot)["data"][0]["y"]
    assert len(others) == MAX_MARKS
    assert max(others[: MAX_MARKS // 2]) < 0.25


def test_without_outcomes_it_says_so() -> None:
    text = report_html(journal(OBJECTIVES)[:2], journal_digest="0")
    assert 'id="pareto"' in text
    assert "No trial has an outcome yet." in text
