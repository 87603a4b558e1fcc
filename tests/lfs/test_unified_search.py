"""Random-Softmax over the unified space with real training: each round goes on under losses of other structures."""

from pathlib import Path

import pytest

from lfs.budget import Clock
from lfs.checkpoints import CheckpointStore
from lfs.config import RunConfig
from lfs.executor import SerialExecutor
from lfs.journal import Asked, Finished, Journal, Told
from lfs.plan import make_controller
from lfs.runner import TrainingRunner
from lfs.search import search
from lfs.winner import best_at_horizon
from tests.lfs.toy import started
from trainers.glyphs import GlyphStyle, glyphs
from trainers.recipe import Numerics, Recipe
from trainers.task import LabelledImages, Task

RECIPE = Recipe(width=4, embedding_dim=16, batch_size=32, horizon_epochs=6, reward="one_minus_eer")
CONFIG = RunConfig.model_validate(
    {
        "space": {"kind": "unified"},
        "search": {"method": "random", "batch": 6, "warmup_epochs": 1},
        "baselines": [],
    }
)


@pytest.fixture(scope="module")
def few_glyphs() -> Task:
    style = GlyphStyle(train_identities=12, train_images_each=8, held_out_identities=6, held_out_images_each=5)

    def part(name: str) -> LabelledImages:
        return glyphs(name, seed=0, image_size=16, style=style)  # type: ignore[arg-type]

    return Task(
        name="few", kind="drawing", digest="0" * 12, train=part("train"), reward=part("reward"), choice=part("choice")
    )


def test_a_search_crosses_the_structures_of_the_unified_space(few_glyphs: Task, tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.append(started())
        finished = search(
            make_controller(CONFIG, RECIPE, Clock(), class_counts=[3] * 5),
            SerialExecutor(TrainingRunner(few_glyphs, RECIPE, Numerics())),
            journal,
            CheckpointStore(tmp_path / "checkpoints"),
            choose=best_at_horizon(RECIPE),
        )
        events = list(journal)
    assert isinstance(finished, Finished)
    asked = {trial.number: trial for event in events if isinstance(event, Asked) for trial in event.trials}
    told = {event.trial: event.outcome for event in events if isinstance(event, Told)}
    searched = [trial for trial in asked.values() if trial.round is not None]
    assert {trial.round for trial in searched} == set(range(6))
    rewards = [told[trial.number].reward for trial in searched]
    assert sum(reward is not None for reward in rewards) >= 0.9 * len(searched)
    structures = {(spec.objective.kind, spec.target.kind) for trial in searched for spec in trial.schedule.specs()}
    assert len(structures) >= 12
    assert finished.winner is not None
    winner = asked[finished.winner]
    assert winner.epochs == RECIPE.horizon_epochs
    assert len({spec.objective.kind + spec.target.kind for spec in winner.schedule.specs()}) >= 3
