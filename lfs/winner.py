"""Which trial wins, and what a user takes home from it."""

from collections.abc import Iterable, Mapping
from statistics import fmean

from pydantic import JsonValue

from lfs.journal import Asked, Event, Finished, JournalError, Started
from lfs.search import Choose
from lfs.trial import Trial, finals_of, furthest
from trainers.evaluation import reward_of
from trainers.outcome import Outcome
from trainers.recipe import Recipe


def best_at_horizon(recipe: Recipe, *, or_deepest: bool = False) -> Choose:
    """Picks, among the search's trials that reached the horizon, the best on the choice identities; after finals, the
    finalist with the best mean over its trainings.

    `or_deepest`: where none did, among those that trained the longest; a budget may end a search early.
    """

    def score(outcome: Outcome) -> float:
        return reward_of(outcome.metrics, recipe.reward, "choice")

    def choose(trials: Mapping[int, Trial], outcomes: Mapping[int, Outcome]) -> int | None:
        finals = finals_of(trials, outcomes, score)
        if finals:
            return max(finals, key=lambda number: fmean(finals[number]))
        done = [trials[number] for number, outcome in sorted(outcomes.items()) if outcome.error is None]
        deep = furthest([trial for trial in done if trial.role == "search"], recipe.horizon_epochs)
        scores = {
            trial.number: score(outcomes[trial.number])
            for trial in deep
            if or_deepest or trial.reaches(recipe.horizon_epochs)
        }
        return max(scores, key=lambda number: scores[number], default=None)

    return choose


def take_home(journal_events: Iterable[Event]) -> Mapping[str, JsonValue]:
    """What `lossearch export` writes: the winner's schedule, in what its recipe differs from the run's (a learning rate
    that was searched), and, where one was learned, the constant loss.

    The schedule's epochs are those of the proxy, of which there are `epochs`.

    Raises `JournalError` for a search that is not finished or has no winner.
    """
    trials: dict[int, Trial] = {}
    finished, search_id = None, ""
    for event in journal_events:
        if isinstance(event, Started):
            search_id = event.search_id
        elif isinstance(event, Asked):
            trials |= {trial.number: trial for trial in event.trials}
        elif isinstance(event, Finished):
            finished = event
    if finished is None:
        raise JournalError("the search is not finished: resume it first, then export")
    if finished.winner is None:
        raise JournalError("the search has no winner: no trial reached the horizon")
    return {
        "search": search_id,
        "trial": finished.winner,
        "epochs": trials[finished.winner].epochs,
        "schedule": trials[finished.winner].schedule.model_dump(mode="json"),
        "recipe": dict(trials[finished.winner].recipe),
        "constant": None if finished.constant is None else finished.constant.model_dump(mode="json"),
    }
