"""`MarginHead`: a loss with its class weights in someone's own training loop."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from search_space import LossSpec, MarginHead, build, catalog

CLASSES, DIM = 6, 8


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def head_of(spec: LossSpec, seed: int = 0) -> MarginHead:
    return MarginHead(spec, CLASSES, DIM, generator=generator(seed))


def batch(seed: int = 0, count: int = 12) -> tuple[Tensor, Tensor]:
    return torch.randn(count, DIM, generator=generator(seed)), torch.arange(count) % CLASSES


def tracked_scale(head: MarginHead) -> float:
    return float(head.state_dict()["loss.scale"])


@pytest.mark.parametrize("name", catalog.NAMES)
def test_the_loss_is_the_mean_over_the_batch(name: str) -> None:
    head = head_of(catalog.get(name))
    x_ND, label_N = batch()
    losses_N = build(catalog.get(name), num_classes=CLASSES)(x_ND, head.weight, label_N)
    loss = head(x_ND, label_N)
    assert loss.shape == ()
    assert losses_N.shape == label_N.shape
    torch.testing.assert_close(loss, losses_N.mean(), rtol=0, atol=0)


@pytest.mark.parametrize("name", catalog.NAMES)
def test_a_saved_head_computes_the_same_loss_when_loaded(name: str, tmp_path: Path) -> None:
    trained, fresh = head_of(catalog.get(name)), head_of(catalog.get(name), seed=1)
    trained(*batch())
    torch.save(trained.state_dict(), tmp_path / "head.pt")
    fresh.load_state_dict(torch.load(tmp_path / "head.pt", weights_only=True))
    assert torch.equal(fresh.eval()(*batch(2)), trained.eval()(*batch(2)))


def test_adacos_moves_its_scale_in_training_and_saves_it(tmp_path: Path) -> None:
    trained, fresh = head_of(catalog.adacos_dynamic()), head_of(catalog.adacos_dynamic())
    at_start = tracked_scale(trained)
    trained(*batch())
    assert tracked_scale(trained) != at_start
    torch.save(trained.state_dict(), tmp_path / "head.pt")
    fresh.load_state_dict(torch.load(tmp_path / "head.pt", weights_only=True))
    assert tracked_scale(fresh) == tracked_scale(trained)


def test_adacos_freezes_its_scale_in_eval() -> None:
    head = head_of(catalog.adacos_dynamic())
    head(*batch())
    frozen = tracked_scale(head)
    first = head.eval()(*batch(1))
    assert tracked_scale(head) == frozen
    assert torch.equal(head(*batch(1)), first)


def test_adacos_scale_is_a_buffer_not_a_parameter() -> None:
    head = head_of(catalog.adacos_dynamic())
    assert [name for name, _ in head.named_parameters()] == ["weight"]
    assert [name for name, _ in head.named_buffers()] == ["loss.scale"]


def test_adacos_says_when_its_scale_has_diverged() -> None:
    loss = build(catalog.adacos_dynamic(), num_classes=CLASSES)
    assert loss.diagnose() is None
    for scale in (float("inf"), float("nan"), 0.0, -1.0, 2000.0):
        loss.load_state_dict({"scale": torch.tensor(scale)})
        assert loss.diagnose() == f"AdaCos's dynamic scale diverged: it is {scale:g}, and must lie in (0, 1024]"


@pytest.mark.parametrize("name", [name for name in catalog.NAMES if name != "adacos_dynamic"])
def test_losses_without_state_have_nothing_to_save_or_diagnose(name: str) -> None:
    loss = build(catalog.get(name), num_classes=CLASSES)
    assert loss.state_dict() == {}
    assert loss.diagnose() is None


def test_use_changes_the_loss_and_keeps_the_class_weights() -> None:
    head, direct = head_of(catalog.softmax()), head_of(catalog.arcface())
    weight = head.weight
    head.use(catalog.arcface())
    assert head.weight is weight
    assert head.loss.spec == catalog.arcface()
    assert torch.equal(head(*batch()), direct(*batch()))


def test_use_carries_adacos_scale_where_both_losses_track_it() -> None:
    head = head_of(catalog.adacos_dynamic())
    at_start = tracked_scale(head)
    head(*batch())
    tracked = tracked_scale(head)
    head.use(LossSpec.model_validate({**catalog.adacos_dynamic().model_dump(), "weight": 2}))
    assert tracked_scale(head) == tracked != at_start
    head.use(catalog.softmax())
    assert "loss.scale" not in head.state_dict()
    head.use(catalog.adacos_dynamic())
    assert tracked_scale(head) == at_start


@pytest.mark.parametrize("training", [True, False])
def test_use_keeps_to_training_or_eval(training: bool) -> None:
    head = head_of(catalog.softmax()).train(training)
    head.use(catalog.adacos_dynamic())
    at_start = tracked_scale(head)
    head(*batch())
    assert (tracked_scale(head) != at_start) == training


def test_initial_weights_repeat_under_the_passed_generator() -> None:
    one, same, other = (head_of(catalog.softmax(), seed).weight for seed in (3, 3, 4))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    wide = MarginHead(catalog.softmax(), 100, 512, generator=generator()).weight
    assert wide.norm(dim=1).mean().item() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("shape", [(4, DIM + 1), (DIM,), (4, DIM, 1)])
def test_embeddings_of_another_width_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError) as raised:  # noqa: PT011 (the whole sentence is compared)
        head_of(catalog.softmax())(torch.zeros(shape), torch.zeros(4, dtype=torch.int64))
    assert str(raised.value) == f"embeddings must be N×{DIM}, but got shape {shape}"


@pytest.mark.parametrize(
    ("name", "classes", "sentence"),
    [
        ("softmax", 1, "num_classes must be at least 2, but got num_classes=1"),
        ("p2sgrad", 0, "num_classes must be at least 2, but got num_classes=0"),
        ("adacos_fixed", 2, r"AdaCos needs num_classes >= 3 \(its scale is 0 below\), but got num_classes=2"),
        ("adacos_dynamic", 2, r"AdaCos needs num_classes >= 3 \(its scale is 0 below\), but got num_classes=2"),
    ],
)
def test_too_few_classes_are_refused(name: str, classes: int, sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        MarginHead(catalog.get(name), classes, DIM)


@pytest.mark.parametrize("name", catalog.NAMES)
def test_autocast_gives_a_float32_loss_and_float32_gradients(name: str) -> None:
    """Only the embedding is rounded to bfloat16: cosines, softmax and the loss stay wide."""
    network, head = nn.Linear(DIM, DIM), head_of(catalog.get(name)).eval()
    x_ND, label_N = batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        embedding_ND = network(x_ND)
        loss = head(embedding_ND, label_N)
    loss.backward()
    assert embedding_ND.dtype == torch.bfloat16
    assert loss.dtype == torch.float32
    assert torch.equal(loss, head(embedding_ND.float(), label_N))
    assert head.weight.grad is not None
    assert head.weight.grad.dtype == torch.float32
    assert network.weight.grad is not None
    assert network.weight.grad.isfinite().all()


# A toy problem: six noisy clusters. Each loss must fall below its level, and each sample be nearest to its own class.
# AdaCos stays above 0 by its small scale: at s = √2·log 5 the best arrangement of six classes has a loss of .28.

LEVELS = {
    "softmax": 0.001,
    "sphereface": 0.001,
    "cosface": 0.001,
    "arcface": 0.001,
    "combined": 0.001,
    "modulating": 0.001,
    "adacos_fixed": 0.35,
    "adacos_dynamic": 0.8,
    "p2sgrad": 0.03,
}


@pytest.mark.parametrize("name", catalog.NAMES)
def test_every_loss_trains_a_toy_problem(name: str) -> None:
    centre_CD = 3 * torch.eye(CLASSES, DIM)
    label_N = torch.arange(60) % CLASSES
    x_ND = centre_CD[label_N] + 0.3 * torch.randn(60, DIM, generator=generator(5))
    network = nn.Linear(DIM, DIM)
    with torch.no_grad():
        network.weight.copy_(torch.randn(DIM, DIM, generator=generator(6)) / DIM**0.5)
        network.bias.zero_()
    head = head_of(catalog.get(name))
    optimiser = torch.optim.Adam([*network.parameters(), *head.parameters()], lr=0.02)
    first = head(network(x_ND), label_N).item()
    for _ in range(150):
        optimiser.zero_grad()
        loss = head(network(x_ND), label_N)
        loss.backward()
        optimiser.step()
    assert loss.item() < LEVELS[name] < first
    cos_NC = nn.functional.normalize(network(x_ND)) @ nn.functional.normalize(head.weight).T
    assert torch.equal(cos_NC.argmax(1), label_N)


def test_class_weights_of_another_count_are_refused() -> None:
    loss = build(catalog.adacos_fixed(), num_classes=CLASSES)
    x_ND, label_N = batch()
    with pytest.raises(ValueError, match="built for num_classes=6, but got 7 class weights"):
        loss(x_ND, torch.randn(7, DIM, generator=generator()), label_N)
