"""`MarginHead` in other people's hands: metric-learning loops, autocast, `torch.compile`, other dtypes.

Shapes: N batch, D embedding.
"""

import copy
import shutil
from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import Tensor, nn

from search_space import LossSpec, MarginHead, catalog

CLASSES, DIM = 6, 8


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def head_of(name: str) -> MarginHead:
    spec: LossSpec = catalog.get(name)
    return MarginHead(spec, CLASSES, DIM, class_counts=[5, 1, 30, 10, 2, 700], generator=generator())


def batch(seed: int = 0, count: int = 12) -> tuple[Tensor, Tensor]:
    return 20 * torch.randn(count, DIM, generator=generator(seed)), torch.arange(count) % CLASSES


def state_of(head: MarginHead) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in head.state_dict().items()}


def test_it_stands_in_a_metric_learning_loop() -> None:
    """pytorch-metric-learning's recipe: `loss_func(embeddings, labels)` and a second optimiser for its weights."""
    network, loss_func = nn.Linear(DIM, DIM), MarginHead(catalog.cosface(), num_classes=CLASSES, dim=DIM)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    loss_optimizer = torch.optim.SGD(loss_func.parameters(), lr=0.01)
    data, labels = batch()
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss_optimizer.zero_grad()
        loss = loss_func(network(data), labels)
        loss.backward()
        optimizer.step()
        loss_optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


# Autocast


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", catalog.NAMES)
def test_under_autocast_only_the_embedding_is_rounded(name: str, dtype: torch.dtype) -> None:
    """Logits, loss, state and the weights' gradient are what float32 makes of the rounded embeddings."""
    network, head = nn.Linear(DIM, DIM), head_of(name)
    plain = copy.deepcopy(head)
    x_ND, label_N = batch()
    torch.manual_seed(0)
    with torch.autocast("cpu", dtype=dtype):
        embedding_ND = network(x_ND)
        loss = head(embedding_ND, label_N)
    loss.backward()
    torch.manual_seed(0)
    wanted = plain(embedding_ND.detach().float(), label_N)
    wanted.backward()
    assert embedding_ND.dtype == dtype
    assert loss.dtype == torch.float32
    assert torch.equal(loss, wanted)
    for (key, parameter), other in zip(head.named_parameters(), plain.parameters(), strict=True):
        assert parameter.grad is not None, key
        assert other.grad is not None
        assert parameter.grad.dtype == torch.float32
        assert torch.equal(parameter.grad, other.grad)
    assert all(torch.equal(value, state_of(plain)[key]) for key, value in state_of(head).items())
    assert network.weight.grad is not None
    assert network.weight.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["arcface", "curricularface", "sphereface_r_nfn", "modulating_bins", "circle"])
def test_logits_are_float32_under_autocast(name: str, dtype: torch.dtype) -> None:
    """Where the matrix product of a head is rounded to bfloat16, logits at s = 64 are off by a tenth and more."""
    head = head_of(name).eval()
    x_ND, label_N = batch()
    with torch.autocast("cpu", dtype=dtype):
        normal_ND, normal_RD = nn.functional.normalize(x_ND), nn.functional.normalize(head.weight)
        rounded_NC = normal_ND @ normal_RD.T
    cos_NC = normal_ND @ normal_RD.T
    with torch.autocast("cpu", dtype=dtype):
        logits = head.loss.logits(cos_NC, label_N, norm_N=x_ND.norm(dim=1))
        loss = head(x_ND, label_N)
    assert rounded_NC.dtype == dtype
    assert logits.target_N.dtype == logits.negative_NC.dtype == torch.float32
    torch.testing.assert_close(loss, head(x_ND, label_N), rtol=0, atol=0)
    torch.testing.assert_close(loss, nn.functional.softplus(-logits.gap()).mean(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", catalog.NAMES)
def test_float64_stays_float64(name: str) -> None:
    head = head_of(name).double()
    x_ND, label_N = batch()
    assert head(x_ND.double(), label_N).dtype == torch.float64


# torch.compile


@pytest.fixture
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def assert_compiled_is_eager(head: MarginHead, backend: str, *, rtol: float, modes: Sequence[bool]) -> None:
    """A step in training for each true mode and in eval for each other, in one graph: loss, gradients and state."""
    eager = copy.deepcopy(head)
    compiled = torch.compile(head, backend=backend, fullgraph=True)
    for seed, training in enumerate(modes):
        head.train(training)
        eager.train(training)
        answers = []
        for function, module in ((compiled, head), (eager, eager)):
            x_ND, label_N = batch(seed)
            x_ND.requires_grad_()
            torch.manual_seed(seed)
            loss = function(x_ND, label_N)
            answers.append([loss, *torch.autograd.grad(loss, [x_ND, *module.parameters()], allow_unused=True)])
        for mine, wanted in zip(*answers, strict=True):
            torch.testing.assert_close(mine, wanted, rtol=rtol, atol=rtol)
        for key, value in state_of(eager).items():
            torch.testing.assert_close(head.state_dict()[key], value, rtol=rtol, atol=rtol)


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize("name", catalog.NAMES)
def test_every_loss_traces_into_one_graph(name: str) -> None:
    assert_compiled_is_eager(head_of(name), "aot_eager", rtol=1e-5, modes=[True, True, False])


@pytest.mark.usefixtures("_fresh_compiler")
def test_sampled_classes_trace_into_one_graph() -> None:
    head = MarginHead(catalog.arcface(), 40, DIM, sample_rate=0.5, generator=generator())
    assert_compiled_is_eager(head, "aot_eager", rtol=1e-5, modes=[True, True, False])


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # Dynamo's own, where a graph breaks
def test_drawing_from_a_generator_breaks_the_graph_and_draws_the_same() -> None:
    """Dynamo cannot trace a `torch.Generator`: ElasticFace with one of its own compiles, but not with `fullgraph`."""
    head, eager = head_of("elasticface_arc"), head_of("elasticface_arc")
    head.loss.generator, eager.loss.generator = generator(3), generator(3)
    compiled = torch.compile(head, backend="aot_eager")
    for seed in range(2):
        torch.testing.assert_close(compiled(*batch(seed)), eager(*batch(seed)), rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")  # torch's own import
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
@pytest.mark.parametrize("name", ["adacos_dynamic", "npcface", "sphereface_plus"])
def test_inductor_gives_the_same_loss_and_gradients(name: str) -> None:
    assert_compiled_is_eager(head_of(name), "inductor", rtol=1e-4, modes=[True])
