"""`MarginHead` with `sample_rate`: the loss over the batch's classes and a random share of the others (Partial FC).

Shapes: N batch, C classes, S sampled classes, R rows of weights, D embedding.
"""

import math

import pytest
import torch
from torch import nn

from search_space import LossSpec, MarginHead, catalog
from search_space.parts import EnergyRegularizer

DIM = 8


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.01])
def test_a_sample_rate_outside_zero_to_one_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match=rf"^sample_rate must lie in \(0, 1\], but got sample_rate={rate}$"):
        MarginHead(catalog.softmax(), 6, DIM, sample_rate=rate)


def test_a_batch_larger_than_the_sample_is_refused() -> None:
    head = MarginHead(catalog.softmax(), 20, DIM, sample_rate=0.25)
    with pytest.raises(ValueError) as raised:  # noqa: PT011 (the whole sentence is compared)
        head(torch.randn(6, DIM, generator=generator()), torch.arange(6))
    assert str(raised.value) == "sample_rate leaves 5 of 20 classes, too few for a batch of 6; raise it"


def tracked_scale(head: MarginHead) -> float:
    return float(head.state_dict()["loss.scale.value"])


def sampled_head(spec: LossSpec, classes: int, rate: float, counts: list[int] | None = None) -> MarginHead:
    torch.manual_seed(0)
    return MarginHead(spec, classes, DIM, class_counts=counts, sample_rate=rate, generator=generator())


@pytest.mark.parametrize("name", catalog.NAMES)
def test_sampling_changes_only_who_takes_part(name: str) -> None:
    """The loss is that of a head with the sampled classes alone, with their own margins and image counts."""
    classes, counts = 12, [1 + 11 * j for j in range(12)]
    head = sampled_head(catalog.get(name), classes, 0.75, counts).eval()
    if name == "adaptiveface":
        with torch.no_grad():
            head.get_parameter("loss.margin.margin_C").copy_(torch.linspace(0, 1, classes))
    x_ND, label_N = 20 * torch.randn(5, DIM, generator=generator(1)), torch.tensor([7, 2, 11, 2, 5])
    torch.manual_seed(1)
    class_S = head._sampled(label_N)
    torch.manual_seed(1)
    loss = head(x_ND, label_N)
    (grad_RD,) = torch.autograd.grad(loss, head.weight)
    takes_part_C = torch.isin(torch.arange(classes), class_S)
    assert len(class_S) == 9
    assert takes_part_C[label_N].all()
    assert not grad_RD.view(classes, -1)[~takes_part_C].any()

    alone = catalog.get(name)
    if name.startswith("adacos"):  # s = √2·log(C − 1) is that of all classes
        alone = catalog.softmax(scale=math.sqrt(2) * math.log(classes - 1))
    small = MarginHead(alone, 9, DIM, class_counts=[counts[j] for j in class_S.tolist()]).eval()
    state = {key: value for key, value in head.state_dict().items() if key != "loss.scale.value"}
    state["weight"] = state["weight"].view(classes, -1, DIM)[class_S].flatten(0, 1)
    penalty = 0.0
    if name == "adaptiveface":  # its regularizer is of all classes
        margin_C = state["loss.margin.margin_C"]
        state["loss.margin.margin_C"] = margin_C[class_S]
        penalty = 70 * (margin_C[class_S].mean() - margin_C.mean()).item()
    small.load_state_dict(state)
    wanted = small(x_ND, torch.searchsorted(class_S, label_N)) + penalty
    torch.testing.assert_close(loss, wanted, rtol=1e-5, atol=1e-6)


def test_every_other_class_is_drawn_alike() -> None:
    """The batch's two always, each of the others in 3 of 8 draws."""
    head = sampled_head(catalog.softmax(scale=1), 10, 0.5)
    x_ND, label_N = torch.randn(2, DIM, generator=generator(1)), torch.tensor([3, 8])
    drawn_C = torch.zeros(10)
    for _ in range(400):
        (grad_CD,) = torch.autograd.grad(head(x_ND, label_N), head.weight)
        drawn_C += grad_CD.abs().sum(1) > 0
    assert drawn_C[label_N].tolist() == [400, 400]
    others_C = drawn_C[[0, 1, 2, 4, 5, 6, 7, 9]] / 400
    assert others_C.sum().item() == pytest.approx(3)
    assert ((others_C - 3 / 8).abs() < 0.1).all()


def test_adacos_scales_its_sum_over_sampled_negatives_up_to_all() -> None:
    """Over many batches B_avg has the mean that all classes give: the scale does not shrink with the sample."""
    full, sampled = (sampled_head(catalog.adacos_dynamic(), 200, rate) for rate in (1.0, 0.1))
    at_start, sums = torch.tensor(tracked_scale(full)), {1.0: 0.0, 0.1: 0.0}
    sampled.load_state_dict(full.state_dict())
    for seed in range(200):
        x_ND = torch.randn(8, DIM, generator=generator(seed))
        label_N = torch.randint(200, (8,), generator=generator(seed))
        for rate, head in ((1.0, full), (0.1, sampled)):
            head.loss.load_state_dict({"scale.value": at_start})
            head(x_ND, label_N)
            sums[rate] += math.exp(tracked_scale(head) * math.cos(math.pi / 4))  # θ_med ≥ π/4 here
    assert sums[0.1] == pytest.approx(sums[1.0], rel=0.05)


def test_hyperspherical_energy_under_sampling_is_that_of_the_batch() -> None:
    spec = catalog.softmax().replace(regularizer=EnergyRegularizer(strength=5))
    x_ND, label_N = torch.randn(3, DIM, generator=generator(1)), torch.tensor([9, 1, 9])
    difference = []
    for each in (spec, catalog.softmax()):
        head = sampled_head(each, 10, 0.4)
        torch.manual_seed(1)
        difference.append(head(x_ND, label_N).item())
    w_BD = nn.functional.normalize(head.weight[[1, 9]])
    wanted = 5 * (w_BD[0] @ w_BD[1]).acos().item() ** -2
    assert difference[0] - difference[1] == pytest.approx(wanted, rel=1e-4)
