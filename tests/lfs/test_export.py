"""A winner taken home: `MarginHead` from the exported JSON in a training loop that knows nothing of us."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lfs.journal import FILE_NAME, read_events
from search_space import LossSchedule, LossSpec, MarginHead
from tests.lfs.command import Result, lossearch

CLASSES, DIM, EPOCHS, STEPS_AN_EPOCH = 6, 8, 3, 20


@pytest.fixture
def exported(finished_search: tuple[Path, Result], here: Path) -> dict[str, Any]:
    """What `lossearch export` wrote."""
    done = lossearch("export", finished_search[0], "--output", "winner.json")
    assert done.code == 0, done.err
    content: dict[str, Any] = json.loads((here / "winner.json").read_text(encoding="utf-8"))
    return content


def toy_batch(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Points scattered about one centre a class."""
    centre_CD = torch.eye(CLASSES, 10)
    label_N = torch.randint(CLASSES, (48,), generator=generator)
    return centre_CD[label_N] + 0.2 * torch.randn(48, 10, generator=generator), label_N


def test_a_plain_training_loop_learns_under_the_exported_schedule(exported: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(0)
    schedule = LossSchedule.model_validate(exported["schedule"])
    assert len(schedule) > 1
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, DIM))
    head = MarginHead(schedule.at(0), num_classes=CLASSES, dim=DIM, generator=generator)
    optimiser = torch.optim.SGD([*network.parameters(), *head.parameters()], lr=0.05, momentum=0.9)
    held_x_NK, held_label_N = toy_batch(generator)

    def held_out() -> tuple[float, float]:
        with torch.no_grad():
            embedding_ND = network(held_x_NK)
            right_N = (embedding_ND @ nn.functional.normalize(head.weight).T).argmax(1) == held_label_N
            return float(head(embedding_ND, held_label_N)), float(right_N.float().mean())

    weight_before = head.weight.detach().clone()
    losses, used = [], []
    for epoch in range(EPOCHS):
        head.use(schedule.at(epoch))
        used.append(head.loss.spec)
        losses.append(held_out()[0])
        for _ in range(STEPS_AN_EPOCH):
            x_NK, label_N = toy_batch(generator)
            loss = head(network(x_NK), label_N)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        assert held_out()[0] < losses[-1]
    assert used == [schedule.at(epoch) for epoch in range(EPOCHS)]
    assert held_out()[1] > 0.95
    assert not torch.equal(head.weight, weight_before)


def test_the_constant_loss_trains_too(exported: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(0)
    head = MarginHead(LossSpec.model_validate(exported["constant"]), CLASSES, 10, generator=generator)
    optimiser = torch.optim.SGD(head.parameters(), lr=0.1)
    x_NK, label_N = toy_batch(generator)
    losses = []
    for _ in range(20):
        loss = head(x_NK, label_N)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_the_exported_schedule_is_the_winning_trials(
    exported: dict[str, Any], finished_search: tuple[Path, Result]
) -> None:
    events, _ = read_events(finished_search[0] / FILE_NAME)
    trials = {trial.number: trial for event in events if event.event == "asked" for trial in event.trials}
    assert events[-1].event == "finished"
    assert exported["trial"] == events[-1].winner
    assert exported["search"] == getattr(events[0], "search_id", None)
    assert LossSchedule.model_validate(exported["schedule"]) == trials[exported["trial"]].schedule
    assert LossSpec.model_validate(exported["constant"]) == events[-1].constant
    assert exported["epochs"] == 3


def test_the_printed_example_runs_as_it_stands(finished_search: tuple[Path, Result], here: Path) -> None:
    printed = lossearch("export", finished_search[0], "--output", "winner.json").out
    example = printed[printed.index("import json") :].replace("classes=...", "classes=4").replace("dim=...", "dim=8")
    embeddings = torch.randn(16, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    names: dict[str, Any] = {"embeddings": embeddings, "labels": torch.arange(16) % 4, "epoch": 1}
    exec(compile(example, "example", "exec"), names)
    assert embeddings.grad is not None
    assert float(embeddings.grad.norm()) > 0
    assert float(names["head"].weight.grad.norm()) > 0


def test_export_goes_into_the_run_folder_unless_told_otherwise(
    finished_search: tuple[Path, Result], here: Path
) -> None:
    run_dir = here / "run"
    run_dir.mkdir()
    (run_dir / FILE_NAME).write_bytes((finished_search[0] / FILE_NAME).read_bytes())
    done = lossearch("export", "run/")
    assert done.code == 0
    assert "written: run/winner.json" in done.out
    assert LossSchedule.model_validate(json.loads((run_dir / "winner.json").read_text(encoding="utf-8"))["schedule"])
