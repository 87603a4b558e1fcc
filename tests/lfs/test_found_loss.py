import json
from pathlib import Path

import pytest

from lfs.errors import UserError
from lfs.found_loss import FoundLoss, LossChoice, find_loss, mapped
from search_space import LossSchedule, LossSpec, catalog
from tests.lfs.command import Result, lossearch

A, B, C = catalog.softmax(16), catalog.cosface(margin=0.1, scale=16), catalog.cosface(margin=0.3, scale=16)
FOUND = FoundLoss(schedule=LossSchedule.constant(A).then(2, B).then(5, C), horizon_epochs=6, constant=catalog.arcface())


def _epochs(mapping: str, epochs: int, found: FoundLoss = FOUND) -> list[LossSpec]:
    choice = LossChoice.model_validate({"source": "winner.json", "mapping": mapping})
    laid = mapped(found, choice, epochs)
    return [laid.at(epoch) for epoch in range(epochs)]


@pytest.mark.parametrize("epochs", [1, 2, 3, 4, 6, 7, 18, 20])
def test_a_scaled_schedule_has_the_loss_of_the_same_share_of_the_search(epochs: int) -> None:
    assert _epochs("scale", epochs) == [FOUND.schedule.at(epoch * 6 // epochs) for epoch in range(epochs)]


def test_a_schedule_may_keep_its_epochs_or_give_one_loss() -> None:
    assert _epochs("epochs", 8) == [A, A, B, B, B, C, C, C]
    assert _epochs("epochs", 3) == [A, A, B]
    assert _epochs("final", 2) == [C, C]
    assert _epochs("constant", 2) == [catalog.arcface()] * 2


def test_what_cannot_be_laid_over_a_training_is_refused() -> None:
    with pytest.raises(UserError, match=r"needs a constant loss, but winner.json has none; use 'final'"):
        _epochs("constant", 2, FoundLoss(schedule=FOUND.schedule))
    with pytest.raises(UserError, match=r"does not say how many epochs .* set loss.mapping to 'epochs' or 'final'"):
        _epochs("scale", 2, FoundLoss(schedule=FOUND.schedule))


def test_a_loss_is_found_by_name_in_files_and_in_a_search(finished_search: tuple[Path, Result], tmp_path: Path) -> None:
    named = find_loss(LossChoice(source="cosface", parameters={"margin": 0.1, "scale": 16}))
    assert named.schedule == LossSchedule.constant(B)
    run_dir, _ = finished_search
    assert lossearch("export", run_dir, "--output", tmp_path / "winner.json").code == 0
    in_run, in_file = (
        find_loss(LossChoice(source=str(run_dir))),
        find_loss(LossChoice(source=f"{tmp_path}/winner.json")),
    )
    assert in_run == in_file
    assert in_run.horizon_epochs == 3
    for name, content in {"spec": B, "schedule": FOUND.schedule}.items():
        (tmp_path / f"{name}.json").write_text(content.model_dump_json())
        found = find_loss(LossChoice(source=f"{tmp_path}/{name}.json"))
        assert found == FoundLoss(schedule=content if isinstance(content, LossSchedule) else LossSchedule.constant(B))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[1, 2]", "holds no loss; give what 'lossearch export'"),
        ("{", "is not valid JSON"),
        ('{"schedule": {"entries": []}}', "holds no loss that can be used: entries"),
        ('{"target": {"kind": "magic"}}', "holds no loss that can be used: target"),
        (json.dumps({"entries": [{"from_epoch": 2, "spec": {}}]}), "must hold from epoch 0"),
    ],
)
def test_files_without_a_loss_are_refused(content: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "loss.json").write_text(content)
    with pytest.raises(UserError, match=words):
        find_loss(LossChoice(source=f"{tmp_path}/loss.json"))


def test_parameters_go_with_names_alone(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"loss.parameters belong to a loss of the catalog"):
        find_loss(LossChoice(source=f"{tmp_path}/loss.json", parameters={"scale": 3.0}))
