"""Two gloo processes under `DistributedDataParallel` do what one process does with the joined batch.

Shapes: N batch, D embedding. All cases run inside one pair of processes, in float64, three steps of training each.
"""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from search_space import LossSpec, MarginHead, catalog
from search_space.distributed import gathered
from search_space.parts import AdaCosScale
from tests.search_space.processes import Answers, Record, answers_of, in_group

CLASSES, DIM, STEPS = 7, 6, 3
COUNTS = [5, 1, 30, 10, 2, 700, 64]
SPLITS = {"even": (4, 4), "uneven": (7, 1)}
RATE = 0.1
"""Large enough to push AdaM's margins out of [0, 1], from where they are projected back."""

CASES: dict[str, LossSpec] = {
    name: catalog.get(name)
    for name in (
        "adacos_dynamic",
        "adaface",
        "adaptiveface",
        "arcface",
        "class_size",
        "curricularface",
        "magface",
        "npcface",
        "sphereface2_c",
        "sphereface_plus",
        "sphereface_r_sfn",
        "subcenter_arcface",
        "uniface",
    )
} | {"curricularface under adacos": catalog.curricularface().replace(scale=AdaCosScale())}


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def head_of(spec: LossSpec) -> MarginHead:
    return MarginHead(spec, CLASSES, DIM, class_counts=COUNTS, generator=generator(0)).double()


def joined_batch(seed: int) -> tuple[Tensor, Tensor]:
    count = sum(SPLITS["even"])
    x_ND = 15 * torch.randn(count, DIM, dtype=torch.float64, generator=generator(seed))
    return x_ND, torch.randint(CLASSES, (count,), generator=generator(seed))


def trained(head: MarginHead, model: nn.Module, rows: slice) -> Record:
    """Three steps of gradient descent on the given rows of each batch."""
    optimiser = torch.optim.SGD(model.parameters(), lr=RATE)
    record: Record = []
    for seed in range(STEPS):
        x_ND, label_N = joined_batch(seed)
        optimiser.zero_grad()
        loss: Tensor = model(x_ND[rows], label_N[rows])
        loss.backward()  # type: ignore[no-untyped-call]
        seen = {"loss": loss.detach()}
        for name, parameter in head.named_parameters():
            assert parameter.grad is not None
            seen[f"gradient of {name}"] = parameter.grad.clone()
        optimiser.step()
        record.append(seen | {name: value.clone() for name, value in head.state_dict().items()})
    return record


def worker(rank: int, world: int, folder: str) -> None:
    """One of the two processes: every case and split, then what must not wait for the other process."""
    with in_group(rank, world, folder) as answers:
        for case, spec in CASES.items():
            for split, counts in SPLITS.items():
                head = head_of(spec)
                rows = slice(0, counts[0]) if rank == 0 else slice(counts[0], None)
                answers[f"{case}, {split}"] = trained(head, DistributedDataParallel(head), rows)
        lengths = (3, 1)
        own_N = 10 * rank + torch.arange(lengths[rank])
        answers["gathered"] = [{"values": gathered(own_N), "doubles": gathered(own_N.double() / 4)}]
        if rank == 0:
            evaluated = [{case: head_of(spec).eval()(*joined_batch(0)).detach()} for case, spec in CASES.items()]
            answers["evaluated alone"] = evaluated


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> list[Answers]:
    return answers_of(worker, 2, tmp_path_factory.mktemp("processes"))


def single(case: str) -> Record:
    head = head_of(CASES[case])
    return trained(head, head, slice(None))


@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_as_one(case: str, answers: list[Answers]) -> None:
    """The ranks' mean loss, the averaged gradients and all state at every step are those of the joined batch."""
    first, second = (answer[f"{case}, even"] for answer in answers)
    for one, other, wanted in zip(first, second, single(case), strict=True):
        torch.testing.assert_close((one["loss"] + other["loss"]) / 2, wanted["loss"], rtol=1e-9, atol=1e-11)
        for name in wanted.keys() - {"loss"}:
            assert torch.equal(one[name], other[name]), name
            torch.testing.assert_close(one[name], wanted[name], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("case", ["adacos_dynamic", "adaface", "curricularface", "curricularface under adacos"])
def test_statistics_are_those_of_the_joined_batch_for_batches_of_unequal_size(
    case: str, answers: list[Answers]
) -> None:
    """Seven samples and one: AdaCos's scale, AdaFace's mean and deviation and Curricular's t at the first step.

    (Later ones differ: DDP averages the gradients of the ranks as if they had as many samples each.)
    """
    (one, *_), (other, *_), (wanted, *_) = (*(answer[f"{case}, uneven"] for answer in answers), single(case))
    tracked = {name for name in wanted if name.startswith("loss.")}
    assert tracked
    for name in tracked:
        assert torch.equal(one[name], other[name])
        torch.testing.assert_close(one[name], wanted[name], rtol=1e-10, atol=1e-12)
    mean = (7 * one["loss"] + other["loss"]) / 8
    torch.testing.assert_close(mean, wanted["loss"], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("case", CASES)
def test_the_processes_never_part(case: str, split: str, answers: list[Answers]) -> None:
    """Weights, learned margins and biases, and buffers agree after every step, whatever the sizes of the batches."""
    for one, other in zip(*(answer[f"{case}, {split}"] for answer in answers), strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one.keys() - {"loss"})


def test_learned_margins_were_projected(answers: list[Answers]) -> None:
    """A step did take margins out of [0, 1] before another, so the projection under DDP was put to the test."""
    _, second, last = (seen["loss.margin.margin_C"] for seen in answers[0]["adaptiveface, even"])
    assert second.max() > 1
    assert last.max() < second.max() + RATE * 70 / CLASSES - 1e-6


def test_values_are_gathered_in_rank_order_whatever_their_number(answers: list[Answers]) -> None:
    for answer in answers:
        (seen,) = answer["gathered"]
        assert seen["values"].tolist() == [0, 1, 2, 10]
        assert seen["doubles"].tolist() == [0, 0.25, 0.5, 2.5]


def test_a_process_that_evaluates_alone_waits_for_nobody(answers: list[Answers]) -> None:
    for seen in answers[0]["evaluated alone"]:
        ((case, loss),) = seen.items()
        assert torch.equal(loss, head_of(CASES[case]).eval()(*joined_batch(0)))
