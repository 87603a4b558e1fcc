"""The same training on a GPU."""

import pytest
import torch

from search_space import LossSchedule, build, catalog
from trainers import Numerics, Recipe, Task, probe, train

pytestmark = pytest.mark.gpu

RECIPE = Recipe(width=4, embedding_dim=16, batch_size=32, horizon_epochs=4, reward="rank1")


@pytest.mark.parametrize("name", catalog.NAMES)
def test_losses_are_the_same_on_both_devices(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x_ND, w_CD = torch.randn(32, 16, generator=generator), torch.randn(50, 16, generator=generator)
    label_N = torch.randint(50, (32,), generator=generator)
    here = build(catalog.get(name), num_classes=50)(x_ND, w_CD, label_N)
    there = build(catalog.get(name), num_classes=50).cuda()(x_ND.cuda(), w_CD.cuda(), label_N.cuda())
    torch.testing.assert_close(there.cpu(), here, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["cosface", "adacos_dynamic"])
def test_training_on_a_gpu_learns_and_continues_from_its_checkpoint(name: str, toy_task: Task) -> None:
    numerics = probe(toy_task, RECIPE, device="cuda")
    schedule = LossSchedule.constant(catalog.get(name))
    _, half = train(schedule, toy_task, recipe=RECIPE, numerics=numerics, seed=0, epochs=2, device="cuda")
    outcome, checkpoint = train(
        schedule, toy_task, recipe=RECIPE, numerics=numerics, seed=0, epochs=4, start=half, device="cuda"
    )
    assert outcome.error is None
    assert outcome.metrics["epoch"] == 4
    assert outcome.metrics["reward/rank1"] > 0.9
    on_cpu, _ = train(schedule, toy_task, recipe=RECIPE, numerics=Numerics(), seed=0, epochs=4, start=half)
    assert checkpoint is not None
    assert on_cpu.metrics["reward/rank1"] == pytest.approx(outcome.metrics["reward/rank1"], abs=0.1)
