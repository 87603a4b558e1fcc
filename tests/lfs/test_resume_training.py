"""Resume with real training: from a cut journal and an empty checkpoint folder comes the same search, bit for bit."""

from pathlib import Path

import pytest

from lfs.budget import Clock
from lfs.checkpoints import CheckpointStore
from lfs.config import RunConfig
from lfs.executor import SerialExecutor
from lfs.journal import FILE_NAME, Event, Finished, Journal, Rebuilt, Resumed, Told, comparable
from lfs.plan import make_controller
from lfs.runner import TrainingRunner
from lfs.search import search
from lfs.winner import best_at_horizon
from tests.lfs.command import IMAGE_SIZE
from tests.lfs.toy import started
from trainers.data import DataConfig, load_task
from trainers.recipe import Numerics, Recipe

RECIPE = Recipe(width=4, embedding_dim=32, batch_size=16, horizon_epochs=3)
CONFIG = RunConfig.model_validate(
    {"search": {"method": "reinforce", "batch": 2, "warmup_epochs": 1, "cooldown_epochs": 1}, "baselines": []}
)


def run(folder: Path, runner: TrainingRunner) -> list[Event]:
    """Search or resume; AdaCos, whose scale is state of the loss, is among the baselines."""
    folder.mkdir(exist_ok=True)
    with Journal(folder) as journal:
        journal.append(Resumed(versions={}) if len(journal) else started())
        search(
            make_controller(CONFIG, RECIPE, Clock(), class_counts=[3] * 5),
            SerialExecutor(runner, lockstep=runner.numerics.lockstep),
            journal,
            CheckpointStore(folder / "checkpoints"),
            choose=best_at_horizon(RECIPE),
        )
        return list(journal)


@pytest.mark.parametrize("lockstep", [1, 4])
def test_resume_of_real_training_gives_the_same_journal(lockstep: int, shapes: Path, tmp_path: Path) -> None:
    task = load_task(DataConfig(path=shapes, image_size=IMAGE_SIZE), cache_dir=tmp_path / "cache")
    runner = TrainingRunner(task, RECIPE, Numerics(lockstep=lockstep))
    whole = run(tmp_path / "whole", runner)
    assert isinstance(whole[-1], Finished)
    assert sum(isinstance(event, Told) for event in whole) == 2 * RECIPE.horizon_epochs + 4
    lines = (tmp_path / "whole" / FILE_NAME).read_bytes().splitlines(keepends=True)
    rebuilt = 0
    for cut in (3, 8, 13):  # in the warm-up, in the first round, after the last
        folder = tmp_path / f"cut{cut}"
        folder.mkdir()
        (folder / FILE_NAME).write_bytes(b"".join(lines[:cut]))
        resumed = run(folder, runner)
        rebuilt += sum(isinstance(event, Rebuilt) for event in resumed)
        assert all(event.same for event in resumed if isinstance(event, Rebuilt))
        assert [comparable(event) for event in resumed if not isinstance(event, Resumed | Rebuilt)] == [
            comparable(event) for event in whole
        ]
    assert rebuilt > 0
