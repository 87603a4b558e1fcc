"""`ShardedMarginHead` on two and on three gloo processes does what `MarginHead` does with the joined batch.

Shapes: N global batch, C classes, D embedding. All cases run inside one set of processes, in float64.
"""

import logging
import math
from functools import partial
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor

from search_space import HeadSGD, LossSpec, MarginHead, ShardedMarginHead, catalog, joined_state
from search_space.margin_loss import say_once
from search_space.parts import AdaCosScale, EnergyRegularizer
from tests.search_space.processes import Answers, Record, answers_of, in_group

CLASSES, DIM, STEPS, RATE = 7, 6, 3, 0.05
SAMPLED_BATCHES = 80
COUNTS = [5, 1, 30, 10, 2, 700, 64]
BATCHES = {2: (5, 3), 3: (1, 4, 3)}
CASES: dict[str, LossSpec] = {
    name: catalog.get(name)
    for name in (
        "adacos_dynamic",
        "adaface",
        "adaptiveface",
        "arcface",
        "class_size",
        "curricularface",
        "focal",
        "magface",
        "modulating_bins",
        "mv_am",
        "npcface",
        "p2sgrad",
        "softmax",
        "sphereface_r_sfn",
        "subcenter_arcface",
    )
} | {"curricularface under adacos": catalog.curricularface().replace(scale=AdaCosScale())}


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def joined_batch(seed: int) -> tuple[Tensor, Tensor]:
    x_ND = 15 * torch.randn(8, DIM, dtype=torch.float64, generator=generator(seed))
    return x_ND, torch.randint(CLASSES, (8,), generator=generator(seed))


def trained(head: MarginHead | ShardedMarginHead, rows: slice) -> Record:
    """Steps of gradient descent on the given rows: loss, the embeddings' gradient, and the state afterwards."""
    record: Record = []
    for seed in range(STEPS):
        x_ND, label_N = joined_batch(seed)
        x_nD = x_ND[rows].requires_grad_()
        loss = head(x_nD, label_N[rows])
        grads = torch.autograd.grad(loss, [x_nD, *head.parameters()])
        with torch.no_grad():
            for parameter, grad in zip(head.parameters(), grads[1:], strict=True):
                parameter.sub_(RATE * grad)
        state = {name: value.clone() for name, value in head.state_dict().items()}
        record.append({"loss": loss.detach(), "x": grads[0]} | state)
    return record


def trained_in_backward(head: MarginHead | ShardedMarginHead, rows: slice) -> Record:
    """`trained` where `HeadSGD` updates the class weights."""
    record: Record = []
    HeadSGD(head, lr=RATE)
    for seed in range(STEPS):
        x_ND, label_N = joined_batch(seed)
        x_nD = x_ND[rows].to(head.weight.dtype).requires_grad_()
        loss = head(x_nD, label_N[rows])
        loss.backward()
        assert head.weight.grad is None
        assert x_nD.grad is not None
        record.append({"loss": loss.detach(), "x": x_nD.grad, "weight": head.weight.detach().clone()})
    return record


def kernel_worker(rank: int, world: int, folder: str) -> None:
    start = sum(BATCHES[world][:rank])
    rows = slice(start, start + BATCHES[world][rank])
    with in_group(rank, world, folder) as answers:
        head = ShardedMarginHead(CASES["arcface"], CLASSES, DIM, generator=generator(0), impl="triton")
        answers["kernels"] = trained_in_backward(head, rows)


def worker(rank: int, world: int, folder: str) -> None:
    start = sum(BATCHES[world][:rank])
    rows = slice(start, start + BATCHES[world][rank])
    with in_group(rank, world, folder) as answers:
        for case, spec in CASES.items():
            head = ShardedMarginHead(spec, CLASSES, DIM, class_counts=COUNTS, generator=generator(0)).double()
            answers[case] = trained(head, rows)
        fused = ShardedMarginHead(CASES["arcface"], CLASSES, DIM, generator=generator(0)).double()
        answers["in backward"] = trained_in_backward(fused, rows)
        random = ShardedMarginHead(catalog.elasticface_arc(), CLASSES, DIM, generator=generator(0)).double()
        answers["random margins"] = trained(random, rows)
        torch.manual_seed(rank)
        answers["sampled"] = [sampled_scales(rows)]


def sampled_scales(rows: slice) -> dict[str, Tensor]:
    """Mean of exp(s·cos(π/4)), which is B_avg where θ_med ≥ π/4, over many batches at the initial scale."""
    head = ShardedMarginHead(catalog.adacos_dynamic(), 200, DIM, sample_rate=0.2, generator=generator(0)).double()
    at_start, total = head.state_dict()["loss.scale.value"].clone(), 0.0
    for seed in range(SAMPLED_BATCHES):
        x_ND = torch.randn(8, DIM, dtype=torch.float64, generator=generator(seed))
        label_N = torch.randint(200, (8,), generator=generator(seed))
        head.loss.load_state_dict({"scale.value": at_start})
        head(x_ND[rows], label_N[rows])
        total += math.exp(float(head.state_dict()["loss.scale.value"]) * math.cos(math.pi / 4))
    return {"mean": torch.tensor(total / SAMPLED_BATCHES)}


@pytest.fixture(scope="module", params=[2, 3])
def answers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Answers]:
    return answers_of(worker, request.param, tmp_path_factory.mktemp("processes"))


def whole_head(spec: LossSpec) -> MarginHead:
    return MarginHead(spec, CLASSES, DIM, class_counts=COUNTS, generator=generator(0), impl="plain").double()


@pytest.mark.parametrize("case", CASES)
def test_the_processes_train_as_one(case: str, answers: list[Answers]) -> None:
    """Loss, gradient of the embeddings, class weights, and all that is tracked or learned, at every step."""
    wanted = trained(whole_head(CASES[case]), slice(None))
    for index, seen in enumerate(wanted):
        each = [answer[case][index] for answer in answers]
        x_ND = torch.cat([one["x"] for one in each]) / len(each)
        torch.testing.assert_close(x_ND, seen.pop("x"), rtol=1e-6, atol=1e-10)
        weight_RD = torch.cat([one["weight"] for one in each])
        torch.testing.assert_close(weight_RD, seen.pop("weight"), rtol=1e-6, atol=1e-10)
        for one in each:
            for name, value in seen.items():
                torch.testing.assert_close(one[name], value, rtol=1e-6, atol=1e-10)


def assert_as_one(answers: list[Answers], case: str, tolerance: float) -> None:
    """The processes' embedding gradients and class weights are those of arcface in one process."""
    for index, seen in enumerate(trained(whole_head(CASES["arcface"]), slice(None))):
        each = [answer[case][index] for answer in answers]
        x_ND, weight_RD = (torch.cat([one[name] for one in each]).double() for name in ("x", "weight"))
        torch.testing.assert_close(x_ND / len(each), seen["x"], rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(weight_RD, seen["weight"], rtol=tolerance, atol=tolerance)


def test_the_processes_train_as_one_in_their_backward(answers: list[Answers]) -> None:
    assert_as_one(answers, "in backward", 1e-9)


@pytest.mark.parametrize("world", [2, 3])
def test_the_processes_train_as_one_by_kernels(world: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Triton interprets them, in float32."""
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert_as_one(answers_of(kernel_worker, world, tmp_path), "kernels", 1e-5)


def test_all_processes_draw_the_same_random_margins(answers: list[Answers]) -> None:
    first, *others = (answer["random margins"] for answer in answers)
    for other in others:
        assert [one["loss"] for one in first] == [one["loss"] for one in other]


def test_adacos_scales_its_sum_over_sampled_negatives_up_to_all(answers: list[Answers]) -> None:
    (one, *rest) = (answer["sampled"][0]["mean"].item() for answer in answers)
    assert rest == [one] * len(rest)
    head = MarginHead(catalog.adacos_dynamic(), 200, DIM, generator=generator(0)).double()
    at_start, total = head.state_dict()["loss.scale.value"].clone(), 0.0
    for seed in range(SAMPLED_BATCHES):
        x_ND = torch.randn(8, DIM, dtype=torch.float64, generator=generator(seed))
        label_N = torch.randint(200, (8,), generator=generator(seed))
        head.loss.load_state_dict({"scale.value": at_start})
        head(x_ND, label_N)
        total += math.exp(float(head.state_dict()["loss.scale.value"]) * math.cos(math.pi / 4))
    assert one == pytest.approx(total / SAMPLED_BATCHES, rel=0.05)


def test_checkpoints_go_from_any_number_of_processes_to_any_other(
    answers: list[Answers], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The parts of two or three, joined, are a `MarginHead`'s, and are cut anew for five."""
    case = "curricularface under adacos"
    kept = [
        {name: value for name, value in answer[case][-1].items() if name not in ("loss", "x")} for answer in answers
    ]
    state = joined_state(kept)
    whole = whole_head(CASES[case])
    whole.load_state_dict(state)
    again = []
    monkeypatch.setattr("search_space.sharded.world_size", lambda: 1)
    single = ShardedMarginHead(CASES[case], CLASSES, DIM).double()
    single.load_joined(state)
    x_ND, label_N = joined_batch(9)
    torch.testing.assert_close(single.eval()(x_ND, label_N), whole.eval()(x_ND, label_N))
    for of_rank in range(5):
        cut = partial(first_class_of_five, of_rank)
        monkeypatch.setattr("search_space.sharded.first_class", cut)
        part = ShardedMarginHead(CASES[case], CLASSES, DIM).double()
        part.load_joined(state)
        again.append(part.state_dict())
    for name, value in joined_state(again).items():
        assert torch.equal(value, state[name])


def start_worker(rank: int, world: int, folder: str) -> None:
    """A backend that knows no CPU, as NCCL, and one seed for all."""
    with in_group(rank, world, folder, backend="cuda:gloo") as answers:
        torch.manual_seed(0)
        head = ShardedMarginHead(catalog.elasticface_arc(), 10, DIM)
        answers["start"] = [{"weight": head.weight.detach()}]


def test_a_head_is_made_without_a_message_and_each_process_begins_with_weights_of_its_own(tmp_path: Path) -> None:
    one, other = (answer["start"][0]["weight"] for answer in answers_of(start_worker, 2, tmp_path))
    assert one.shape == other.shape
    assert not torch.isclose(one, other).any()


@pytest.mark.parametrize(
    ("count", "labels", "sentence"),
    [
        (3, [0, 7, 1], r"labels must lie in \[0, 7\), but lie in \[0, 7\]"),
        (3, [0, -1, 1], r"labels must lie in \[0, 7\), but lie in \[-1, 1\]"),
        (3, [0, 1], "labels must be one for each embedding"),
        (0, [], "a batch must have one embedding at least"),
    ],
)
def test_a_batch_that_does_not_fit_is_refused(count: int, labels: list[int], sentence: str) -> None:
    head = ShardedMarginHead(catalog.curricularface(), CLASSES, DIM)
    before = head.state_dict()["loss.negative.t"].clone()
    with pytest.raises(ValueError, match=sentence):
        head(torch.randn(count, DIM), torch.tensor(labels, dtype=torch.long))
    assert torch.equal(head.state_dict()["loss.negative.t"], before)


@pytest.mark.parametrize("name", ["arcface", "adacos_dynamic"])
def test_a_sampled_class_has_another_one_beside_it(name: str) -> None:
    head = ShardedMarginHead(catalog.get(name), 10, DIM, sample_rate=0.05)
    x_ND = torch.randn(4, DIM, requires_grad=True)
    (grad_ND,) = torch.autograd.grad(head(x_ND, torch.full((4,), 3)), x_ND)
    assert grad_ND.isfinite().all()
    assert grad_ND.any()


def test_the_state_of_other_classes_is_refused() -> None:
    state = MarginHead(catalog.arcface(), 20, DIM).state_dict()
    with pytest.raises(ValueError, match="the head has 7 class weights in all, but the state has 20"):
        ShardedMarginHead(catalog.arcface(), CLASSES, DIM).load_joined(state)


def first_class_of_five(own: int, step: int, _: int, classes: int) -> int:
    return (own + step) * classes // 5


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        (catalog.sface(), "objective 'sface' is no softmax of the logits and cannot be sharded"),
        (catalog.uniface(), "objective 'uniface' is no softmax of the logits and cannot be sharded"),
        (catalog.softmax().replace(regularizer=EnergyRegularizer()), "regularizer 'hyperspherical_energy' needs all"),
    ],
    ids=["sface", "uniface", "energy"],
)
def test_what_needs_all_classes_in_one_place_is_refused(spec: LossSpec, sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{sentence}"):
        ShardedMarginHead(spec, CLASSES, DIM)


@pytest.mark.parametrize(
    ("impl", "said"),
    [
        ("auto", "'chunked', classes that are split have no plain form"),
        ("chunked", "'chunked', as asked for"),
    ],
)
def test_what_was_chosen_is_logged_once(
    impl: Literal["auto", "chunked"], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    say_once.cache_clear()
    head = ShardedMarginHead(catalog.cosface(), 10, 8, impl=impl)
    with caplog.at_level(logging.INFO, logger="search_space"):
        for _ in range(2):
            head(torch.randn(4, 8), torch.arange(4))
    assert [each.getMessage() for each in caplog.records] == [
        f"classification head: 10 class weights of a process, cpu: {said}"
    ]
