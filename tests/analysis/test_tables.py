from collections.abc import Mapping
from typing import Any

import pandas as pd
import pytest

from analysis import failures_table, history_table, leaderboard, search_totals, trials_table
from analysis.tables import records
from lfs.journal import Asked, Event, Finished, Retried, Told
from lfs.trial import Trial
from search_space import LossSchedule, catalog
from tests.analysis.journals import BASELINES, IMAGES_PER_EPOCH, failed, search_journal, started
from trainers.outcome import Outcome

SOFTMAX = LossSchedule.constant(catalog.softmax(scale=16))


def asked(*trials: Trial) -> Asked:
    return Asked(time=1_795_000_001.0, count=len(trials), trials=trials)


def told(number: int, reward: float = 0.5, *, images: int = 100, metrics: Mapping[str, float] | None = None) -> Told:
    outcome = Outcome(reward=reward, metrics=metrics or {}, seconds=2.0, images=images)
    return Told(time=1_795_000_009.0, trial=number, outcome=outcome)


def row(frame: pd.DataFrame, number: int) -> dict[str, Any]:
    return next(each for each in records(frame) if each["number"] == number)


def test_an_empty_journal_gives_empty_tables_with_their_columns() -> None:
    assert {"number", "reward", "choice", "lineage_images"} <= set(trials_table([]).columns)
    assert trials_table([]).empty
    assert leaderboard([]).empty
    assert history_table([]).empty
    assert failures_table([]).empty
    assert search_totals([])["images"].tolist() == [0, 0, 0]


def test_a_trials_lineage_counts_the_images_of_all_that_it_continues() -> None:
    first = Trial(number=0, schedule=SOFTMAX, seed=0, epochs=1)
    second = Trial(number=1, schedule=SOFTMAX, seed=0, epochs=2, parent=0)
    third = Trial(number=2, schedule=SOFTMAX, seed=0, epochs=3, parent=1)
    events: list[Event] = [started(), asked(first, second, third)]
    events += [told(number, images=10**number) for number in range(3)]
    assert trials_table(events)["lineage_images"].tolist() == [1, 11, 111]
    assert trials_table(events)["lineage_seconds"].tolist() == [2.0, 4.0, 6.0]
    assert trials_table(events)["search_images"].tolist() == [1, 11, 111]


def test_the_first_outcome_of_a_trial_counts() -> None:
    events: list[Event] = [
        started(),
        asked(Trial(number=0, schedule=SOFTMAX, seed=0, epochs=1)),
        told(0, 0.4),
        told(0, 0.9),
    ]
    assert trials_table(events)["reward"].tolist() == [0.4]
    assert search_totals(events)["images"].tolist() == [100, 0, 100]


def test_states_tell_scored_failed_and_untold_trials_apart() -> None:
    trials = [Trial(number=n, schedule=SOFTMAX, seed=0, epochs=6) for n in range(3)]
    failure = Told(trial=1, outcome=failed("out of memory"))
    frame = trials_table([started(), asked(*trials), told(0), failure])
    assert frame["state"].tolist() == ["told", "failed", "running"]
    assert row(frame, 1)["error"] == "out of memory"
    assert frame["reward"].isna().tolist() == [False, True, True]
    assert frame["at_horizon"].all()


@pytest.mark.parametrize(
    ("reward", "metrics", "choice"),
    [
        ("rank1", {"choice/rank1": 0.7, "choice/eer": 0.1}, 0.7),
        ("one_minus_eer", {"choice/eer": 0.1}, 0.9),
    ],
)
def test_the_choice_score_is_the_rewards_metric_on_the_choice_half(
    reward: str, metrics: dict[str, float], choice: float
) -> None:
    events: list[Event] = [
        started(recipe={"reward": reward}),
        asked(Trial(number=0, schedule=SOFTMAX, seed=0, epochs=1)),
        told(0, metrics=metrics),
    ]
    assert trials_table(events)["choice"].tolist() == [choice]


def test_the_choice_score_is_missing_where_it_was_not_measured() -> None:
    events: list[Event] = [started(recipe={}), asked(Trial(number=0, schedule=SOFTMAX, seed=0, epochs=1)), told(0)]
    assert trials_table(events)["choice"].isna().all()


def test_loss_numbers_have_a_column_each() -> None:
    frame = trials_table(search_journal())
    assert row(frame, 4)["loss"] == "softmax s=16"
    assert frame["loss/u"].notna().sum() == 36
    assert frame.loc[frame["role"] == "search", "losses"].max() == 6


def test_failures_of_one_cause_count_together_whatever_their_numbers() -> None:
    trials = [Trial(number=n, schedule=SOFTMAX, seed=0, epochs=1) for n in range(4)]
    events: list[Event] = [started(), asked(*trials)]
    events += [Told(trial=n, outcome=failed(f"loss is inf at batch {n + 3}\ntraceback")) for n in range(3)]
    events += [Retried(trial=3, attempt=1, reason="worker 12 was lost")]
    table = failures_table(events)
    assert table[["kind", "cause", "count", "trials"]].to_numpy().tolist() == [
        ["failed", "loss is inf at batch #", 3, "0, 1, 2"],
        ["retried", "worker # was lost", 1, "3"],
    ]
    assert row(trials_table(events), 3)["attempts"] == 2


def test_the_leaderboard_holds_the_winner_and_every_baseline_by_choice_score() -> None:
    events = search_journal()
    board = leaderboard(events)
    assert set(board["entrant"]) == {"winner", *BASELINES}
    assert board["choice"].is_monotonic_decreasing
    winner = board[board["entrant"] == "winner"].iloc[0]
    finished = events[-1]
    assert isinstance(finished, Finished)
    assert winner["number"] == finished.winner
    assert winner["lineage_images"] == 6 * IMAGES_PER_EPOCH
    assert winner["total_images"] == search_totals(events).set_index("role").loc["search", "images"]
    baselines = board[board["entrant"] != "winner"]
    assert (baselines["total_images"] == baselines["lineage_images"]).all()


def test_before_the_end_the_leader_is_the_best_choice_score_among_those_trained_furthest() -> None:
    trials = [Trial(number=n, schedule=SOFTMAX, seed=0, epochs=epochs) for n, epochs in enumerate((1, 2, 2))]
    scores = [told(n, metrics={"choice/tar_at_far_1e-3": score}) for n, score in enumerate((0.9, 0.4, 0.6))]
    assert leaderboard([started(), asked(*trials), *scores])["number"].tolist() == [2]


def test_a_search_without_a_winner_leaves_the_baselines() -> None:
    assert set(leaderboard(search_journal(all_fail=True))["entrant"]) == set(BASELINES)


def test_totals_add_up_over_roles() -> None:
    totals = search_totals(search_journal())
    search, baseline, total = records(totals.drop(columns="role"))
    assert total == {key: search[key] + baseline[key] for key in search}
    assert {key: search[key] for key in ("trials", "told", "failed", "running", "retries")} == {
        "trials": 36,
        "told": 35,
        "failed": 1,
        "running": 0,
        "retries": 1,
    }


def test_history_has_a_row_for_each_epoch_trained() -> None:
    history = history_table(search_journal())
    assert len(history) == 7 * 6 + 35
    assert history.loc[history["number"] == 0, "epoch"].tolist() == [1, 2, 3, 4, 5, 6]
