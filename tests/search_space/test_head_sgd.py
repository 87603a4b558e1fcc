"""A step in the head's backward is the step that `torch.optim.SGD` takes behind it, bit for bit.

Shapes: N batch, C classes, D embedding.
"""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from search_space import HeadSGD, LossSpec, MarginHead, catalog
from search_space.chunked import GradientDtype, Memory
from search_space.parts import EnergyRegularizer
from tests.search_space.processes import in_group

CLASSES, DIM, COUNT, STEPS = 50, 12, 20, 4
RATE = {"lr": 0.5}


@pytest.fixture(autouse=True)
def _several_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("search_space.chunked.CHUNK_ROWS", 16)


def batch(index: int) -> tuple[Tensor, Tensor]:
    """Labels repeat."""
    generator = torch.Generator().manual_seed(index)
    x_ND = 20 * torch.randn(COUNT, DIM, generator=generator)
    return x_ND, torch.randint(CLASSES // 3, (COUNT,), generator=generator)


def head_of(spec: LossSpec, **options: Any) -> MarginHead:
    return MarginHead(spec, CLASSES, DIM, generator=torch.Generator().manual_seed(0), **({"impl": "chunked"} | options))


def trained(
    head: MarginHead, optimizer: torch.optim.Optimizer, first: int = 0, through: nn.Module | None = None
) -> list[Tensor]:
    """Gradients of the embeddings at every step, then class weights and momentum."""
    call = head if through is None else through
    seen = []
    for index in range(first, first + STEPS):
        x_ND, label_N = batch(index)
        torch.manual_seed(index)
        call(x_ND.requires_grad_(), label_N).backward()
        assert x_ND.grad is not None
        seen.append(x_ND.grad)
        optimizer.step()
        optimizer.zero_grad()
    kept = optimizer.state[head.weight].get("momentum_buffer")
    return [*seen, head.weight.detach(), *([] if kept is None else [kept])]


def both(spec: LossSpec, settings: dict[str, Any], **options: Any) -> tuple[list[Tensor], list[Tensor]]:
    """In the backward, and by torch's optimiser."""
    fused, separate = head_of(spec, **options), head_of(spec, **options)
    return trained(fused, HeadSGD(fused, **settings)), trained(separate, torch.optim.SGD([separate.weight], **settings))


def assert_equal(one: list[Tensor], other: list[Tensor]) -> None:
    assert len(one) == len(other)
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("memory", ["store", "recompute"])
@pytest.mark.parametrize(
    "name", ["adacos_dynamic", "cosface", "curricularface", "focal", "p2sgrad", "subcenter_arcface"]
)
def test_losses_train_as_with_an_optimiser_of_their_own(name: str, memory: Memory) -> None:
    settings = {"lr": 0.5, "momentum": 0.9, "weight_decay": 0.01}
    assert_equal(*both(catalog.get(name), settings, memory=memory))


@pytest.mark.parametrize(
    "settings", [RATE, RATE | {"momentum": 0.5}, RATE | {"weight_decay": 0.1}], ids=["plain", "momentum", "decay"]
)
@pytest.mark.parametrize("gradient_dtype", ["float32", "bfloat16"])
def test_each_setting_is_the_optimisers(settings: dict[str, Any], gradient_dtype: GradientDtype) -> None:
    assert_equal(*both(catalog.arcface(), settings, gradient_dtype=gradient_dtype))


def test_no_gradient_of_the_class_weights_is_made() -> None:
    head = head_of(catalog.arcface())
    before = head.weight.detach().clone()
    HeadSGD(head, lr=0.5)
    head(*batch(0)).backward()
    assert head.weight.grad is None
    assert not torch.equal(head.weight, before)


@pytest.mark.parametrize(
    ("spec", "options"),
    [
        (catalog.arcface(), {"impl": "plain"}),
        (catalog.arcface(), {"sample_rate": 0.7}),
        (catalog.arcface().replace(regularizer=EnergyRegularizer()), {}),
        (catalog.sface(), {}),
    ],
    ids=["plain", "sampled classes", "energy", "no softmax"],
)
def test_where_backward_cannot_take_the_step_the_optimiser_does(spec: LossSpec, options: dict[str, Any]) -> None:
    assert_equal(*both(spec, {"lr": 0.5, "momentum": 0.9}, **options))


def test_replicas_leave_their_gradients_to_be_averaged(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"lr": 0.5, "momentum": 0.9}
    separate = head_of(catalog.arcface())
    expected = trained(separate, torch.optim.SGD([separate.weight], **settings))
    head = head_of(catalog.arcface())
    with in_group(0, 1, str(tmp_path)):
        replica = nn.parallel.DistributedDataParallel(head)
        assert_equal(trained(head, HeadSGD(head, **settings), through=replica), expected)


def test_a_gradient_behind_a_step_that_is_taken_is_refused() -> None:
    head = head_of(catalog.arcface())
    optimizer = HeadSGD(head, lr=0.5)
    (head(*batch(0)) + head.weight.sum()).backward()
    with pytest.raises(RuntimeError, match="keep them out of every other term of the loss"):
        optimizer.step()


def test_learning_rates_follow_torchs_schedules() -> None:
    def run(optimizer: torch.optim.Optimizer, head: MarginHead) -> list[Tensor]:
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.1)
        found = trained(head, optimizer)
        schedule.step()
        return found + trained(head, optimizer, first=STEPS)

    one, other = head_of(catalog.arcface()), head_of(catalog.arcface())
    assert_equal(run(HeadSGD(one, lr=0.5), one), run(torch.optim.SGD([other.weight], lr=0.5), other))


def test_it_goes_on_from_its_state() -> None:
    settings = {"lr": 0.5, "momentum": 0.9}
    head = head_of(catalog.arcface())
    optimizer = HeadSGD(head, **settings)
    trained(head, optimizer)
    again = head_of(catalog.arcface())
    again.load_state_dict(head.state_dict())
    other = HeadSGD(again, **settings)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert_equal(trained(head, optimizer, first=STEPS), trained(again, other, first=STEPS))


def test_a_copied_head_steps_by_itself() -> None:
    head = head_of(catalog.arcface())
    HeadSGD(head, lr=0.5)
    other = copy.deepcopy(head)
    other(*batch(0)).backward()
    assert not torch.equal(other.weight, head.weight)
    assert torch.equal(head.weight, head_of(catalog.arcface()).weight)


def test_a_second_backward_of_one_forward_is_refused() -> None:
    head = head_of(catalog.arcface())
    HeadSGD(head, lr=0.5)
    loss = head(*batch(0))
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_only_heads_are_taken() -> None:
    with pytest.raises(TypeError, match=r"^HeadSGD needs a MarginHead or ShardedMarginHead, but got Linear$"):
        HeadSGD(nn.Linear(2, 2))  # type: ignore[arg-type]
