"""`Loss.chunked` gives what `Loss.forward` gives, for every loss that is a softmax of its logits, and P2SGrad.

Shapes: N batch, C classes, R rows of class weights, D embedding.
"""

import copy
import gc
import logging
import statistics
import weakref
from collections.abc import Sequence
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from search_space import HeadSGD, Loss, LossSpec, MarginHead, build, catalog, margin_loss
from search_space.chunked import ChunkedNegatives, GradientDtype, Memory
from search_space.margin_loss import chosen_implementation, say_once
from search_space.step_buffers import Buffers
from tests.search_space.head_cases import CHUNKED, CLASSES, SPECS, answers, at_scale, built, errors, float32_batch

DIM = 8


def batch(spec: LossSpec, labels: Sequence[int], classes: int = CLASSES) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings of norms from 1 to 60, some near their target; weights of unequal norms."""
    generator = torch.Generator().manual_seed(1)
    w_RD = torch.randn(classes * spec.centers, DIM, dtype=torch.float64, generator=generator)
    label_N = torch.tensor(labels)
    closeness_N1 = torch.linspace(-1, 3, len(labels))[:, None]
    x_ND = torch.randn(len(labels), DIM, dtype=torch.float64, generator=generator)
    x_ND = (x_ND + closeness_N1 * w_RD[label_N * spec.centers]) * torch.linspace(0.3, 10, len(labels))[:, None]
    return x_ND.requires_grad_(), (0.1 * w_RD).requires_grad_(), label_N


def results(loss: Loss, loss_N: Tensor, x_ND: Tensor, w_RD: Tensor) -> dict[str, Tensor]:
    """The losses, their gradients (unequally weighed) and what the loss tracks."""
    learned = dict(loss.named_parameters())
    weight_N = 1 + torch.arange(len(loss_N), dtype=loss_N.dtype)
    grads = torch.autograd.grad((weight_N * loss_N).sum(), [x_ND, w_RD, *learned.values()])
    named = dict(zip(["x", "w", *learned], grads, strict=True))
    return {"loss": loss_N.detach(), **loss.state_dict(), **{f"gradient of {name}": g for name, g in named.items()}}


@pytest.mark.parametrize("chunk_rows", [6, 4096])
@pytest.mark.parametrize("memory", ["store", "recompute"])
@pytest.mark.parametrize("name", SPECS)
def test_chunks_give_the_plain_loss_its_gradients_and_its_state(name: str, memory: Memory, chunk_rows: int) -> None:
    """Duplicate labels, chunks without a target, a last chunk that is shorter, one chunk for all."""
    plain, chunked = built(SPECS[name]), built(SPECS[name])
    x_ND, w_RD, label_N = batch(SPECS[name], [3, 22, 3, 0, 9, 3, 21, 10, 0])
    for _ in range(2):
        wanted = results(plain, plain(x_ND, w_RD, label_N), x_ND, w_RD)
        losses_N = chunked.chunked(x_ND, w_RD, label_N, memory=memory, chunk_rows=chunk_rows)
        got = results(chunked, losses_N, x_ND, w_RD)
        assert got.keys() == wanted.keys()
        for key, value in wanted.items():
            torch.testing.assert_close(got[key], value, rtol=1e-6 if value.ndim == 0 else 1e-9, atol=1e-10, msg=key)


# Accuracy: judged by float64, against the plain form in float32.


@pytest.mark.parametrize("scale", [16, 64, 256, 512])
@pytest.mark.parametrize("name", SPECS)
def test_float32_errs_at_most_twice_as_much_as_the_plain_form(name: str, scale: float) -> None:
    """512 samples of 300 classes in chunks of 64 rows; AdaCos at the scale that it has."""
    found = errors(at_scale(name, scale), 300, 512, scale, chunk_rows=64)
    assert all(error.is_at_most_twice_the_plain() for error in found), found


@pytest.mark.parametrize("name", ["softmax", "arcface", "li_arcface", "npcface", "symbolic"])
def test_the_largest_error_at_the_largest_scale_is_the_plain_forms_in_the_median_batch(name: str) -> None:
    """One batch's largest errors are those of one sample, whose target is on a level with its hardest negative: 512
    times the rounding of two cosines, so that over batches either form's is three times the other's (24 batches each:
    .3 to 3.0 for softmax too), and the median 1."""
    largest: list[list[float]] = []
    for seed in range(100, 112):
        found = zip(*answers(at_scale(name, 512), 300, 512, 512, seed, chunk_rows=64), strict=True)
        largest.append([float((ours - true).abs().max() / (plain - true).abs().max()) for true, plain, ours in found])
    assert all(statistics.median(ratios) <= 1.5 for ratios in zip(*largest, strict=True)), largest


@pytest.mark.parametrize("memory", ["store", "recompute"])
@pytest.mark.parametrize(("classes", "count"), [(300, 1), (64, 40), (65, 40), (40, 64), (3, 1)])
@pytest.mark.parametrize("name", ["arcface", "adacos_dynamic", "curricularface", "sphereface_r_nfn", "magface"])
def test_so_does_it_for_a_single_sample_and_classes_that_fill_no_chunk(
    name: str, classes: int, count: int, memory: Memory
) -> None:
    found = errors(SPECS[name], classes, count, 64, memory=memory, chunk_rows=64)
    assert all(error.is_at_most_twice_the_plain() for error in found), found


@pytest.mark.parametrize("memory", ["store", "recompute"])
@pytest.mark.parametrize("name", SPECS)
def test_gradient_products_in_bfloat16_err_by_its_rounding_and_leave_the_loss_alone(name: str, memory: Memory) -> None:
    """Half a unit in the last place is 2e-3; each factor is rounded, and on a CPU the product."""
    loss, *gradients = errors(SPECS[name], 300, 128, 20, memory=memory, gradient_dtype="bfloat16", chunk_rows=64)
    assert loss.is_at_most_twice_the_plain()
    assert all(1e-4 * error.size < error.ours < 5e-3 * error.size for error in gradients), gradients


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", SPECS)
def test_half_precision_inputs_give_float32_losses_and_gradients_off_by_their_own_rounding(
    name: str, dtype: torch.dtype
) -> None:
    found = errors(SPECS[name], 100, 40, 20, dtype=dtype, chunk_rows=64)
    assert all(error.is_at_most_twice_the_plain(dtype) for error in found), found
    x_ND, w_RD, label_N = (t.to(dtype) if t.is_floating_point() else t for t in float32_batch(SPECS[name], 100, 40, 20))
    w_RD.requires_grad_()
    loss_N = built(SPECS[name], 100).chunked(x_ND, w_RD, label_N, chunk_rows=64)
    assert loss_N.dtype == torch.float32
    (grad_RD,) = torch.autograd.grad(loss_N.sum(), w_RD)
    assert grad_RD.dtype == dtype


# What stays in memory, and when it is refused


@pytest.mark.parametrize("memory", ["store", "recompute"])
@pytest.mark.parametrize("name", ["arcface", "adacos_dynamic", "npcface", "modulating_bins", "sphereface_r_nfn"])
def test_between_forward_and_backward_no_more_is_held_than_one_number_a_cosine(name: str, memory: Memory) -> None:
    """The plain form holds several, and a normalised copy of the class weights."""
    classes, count = 4000, 16
    x_ND, w_RD, label_N = (t.detach() for t in float32_batch(SPECS[name], classes, count, 20))
    x_ND.requires_grad_()
    w_RD.requires_grad_()
    saved: list[weakref.ref[Tensor]] = []

    def packed(tensor: Tensor) -> Tensor:
        saved.append(weakref.ref(tensor))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(packed, lambda tensor: tensor):
        loss_N = built(SPECS[name], classes).chunked(x_ND, w_RD, label_N, memory=memory, chunk_rows=256)
    alive = [tensor for each in saved if (tensor := each()) is not None]
    held = {tensor.data_ptr(): tensor.untyped_storage().nbytes() for tensor in alive if tensor.data_ptr()}
    held.pop(w_RD.data_ptr())
    matrix, small = 4 * count * classes, 4 * 40 * count * 32
    assert sum(held.values()) <= (matrix if memory == "store" else 0) + small
    assert sum(held.values()) >= (matrix if memory == "store" else 0)
    loss_N.sum().backward()  # type: ignore[no-untyped-call]


def test_what_a_graph_held_is_freed_by_its_backward_and_with_the_graph() -> None:
    """Nothing waits for the garbage collector."""
    x_ND, w_RD, label_N = batch(SPECS["curricularface"], [3, 1, 3])
    for ends in ("backward", "dropped"):
        loss = built(SPECS["curricularface"])
        negatives: list[weakref.ref[object]] = []

        class Watched(ChunkedNegatives):
            def __init__(self, *args: Any, **kwargs: Any) -> None:
                super().__init__(*args, **kwargs)
                negatives.append(weakref.ref(self))  # noqa: B023 (used within the round)

        gc.disable()
        try:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("search_space.loss.negatives_of", lambda *_, **__: Watched)
                loss_N = loss.chunked(x_ND, w_RD, label_N)
            if ends == "backward":
                loss_N.sum().backward()  # type: ignore[no-untyped-call]
            del loss_N
            assert negatives[0]() is None
        finally:
            gc.enable()


def test_the_gradient_of_the_class_weights_is_handed_over_not_copied() -> None:
    """Two gradients of them at once would be the peak of the head's memory."""
    x_ND, w_RD, label_N = batch(SPECS["arcface"], [3, 1, 3])
    buffers = Buffers()
    built(SPECS["arcface"]).chunked(x_ND, w_RD, label_N, buffers=buffers).sum().backward()  # type: ignore[no-untyped-call]
    assert w_RD.grad is not None
    first = w_RD.grad.data_ptr()
    w_RD.grad = None
    built(SPECS["arcface"]).chunked(x_ND, w_RD, label_N, buffers=buffers).sum().backward()  # type: ignore[no-untyped-call]
    assert w_RD.grad is not None
    assert w_RD.grad.data_ptr() == first


@pytest.mark.parametrize("memory", ["store", "recompute"])
@pytest.mark.parametrize("name", ["arcface", "curricularface", "adacos_dynamic"])
def test_a_graph_may_be_walked_twice(name: str, memory: Memory) -> None:
    x_ND, w_RD, label_N = batch(SPECS[name], [3, 1, 3, 22, 9])
    loss_N = built(SPECS[name]).chunked(x_ND, w_RD, label_N, memory=memory, chunk_rows=6)
    first = torch.autograd.grad(loss_N.sum(), (x_ND, w_RD), retain_graph=True)
    second = torch.autograd.grad(2 * loss_N.sum(), (x_ND, w_RD))
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(2 * one, other)


def test_only_what_asks_for_a_gradient_gets_one() -> None:
    x_ND, w_RD, label_N = batch(SPECS["arcface"], [3, 1, 3])
    wanted = torch.autograd.grad(built(SPECS["arcface"])(x_ND, w_RD, label_N).sum(), (x_ND, w_RD))
    for x, w, mine, index in ((x_ND, w_RD.detach(), x_ND, 0), (x_ND.detach(), w_RD, w_RD, 1)):
        (grad,) = torch.autograd.grad(built(SPECS["arcface"]).chunked(x, w, label_N).sum(), mine)
        torch.testing.assert_close(grad, wanted[index])
    with torch.no_grad():
        assert not built(SPECS["arcface"]).chunked(x_ND, w_RD, label_N).requires_grad


def test_class_weights_that_moved_before_the_backward_are_refused() -> None:
    x_ND, w_RD, label_N = batch(SPECS["arcface"], [3, 1])
    loss_N = built(SPECS["arcface"]).chunked(x_ND, w_RD, label_N)
    with torch.no_grad():
        w_RD.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss_N.sum().backward()  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("label", [-1, CLASSES])
def test_a_label_that_names_no_class_is_refused(label: int) -> None:
    x_ND, w_RD, _ = batch(SPECS["arcface"], [3])
    with pytest.raises((IndexError, RuntimeError), match=r"out of (range|bounds)"):
        built(SPECS["arcface"]).chunked(x_ND, w_RD, torch.tensor([label]))


def test_class_weights_of_another_count_are_refused() -> None:
    x_ND, w_RD, label_N = batch(SPECS["arcface"], [3])
    with pytest.raises(ValueError, match="needs 23 class weights, but got 22"):
        built(SPECS["arcface"]).chunked(x_ND, w_RD[1:], label_N)


# Persistent buffers


def head_with_buffers(gradient_dtype: GradientDtype = "float32") -> MarginHead:
    generator = torch.Generator().manual_seed(0)
    return MarginHead(
        catalog.arcface(),
        50,
        DIM,
        generator=generator,
        impl="chunked",
        gradient_dtype=gradient_dtype,
        persistent_buffers=True,
    )


def embeddings(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(6, DIM, generator=generator), torch.randint(50, (6,), generator=generator)


@pytest.mark.parametrize("gradient_dtype", ["float32", "bfloat16"])
def test_persistent_buffers_change_nothing_but_where_results_lie(gradient_dtype: GradientDtype) -> None:
    """Three steps, the second with a batch of another size, and a look in between that asks for no gradient."""
    head = head_with_buffers(gradient_dtype)
    without = MarginHead(catalog.arcface(), 50, DIM, impl="chunked", gradient_dtype=gradient_dtype)
    without.load_state_dict(head.state_dict())
    for seed in range(3):
        x_ND, label_N = embeddings(seed)
        x_ND, label_N = x_ND[: 6 - seed % 2], label_N[: 6 - seed % 2]
        for each in (head, without):
            each.zero_grad(set_to_none=True)
            loss = each(x_ND, label_N)
            with torch.no_grad():
                each(x_ND, label_N)
            loss.backward()
            with torch.no_grad():
                each.weight.sub_(each.get_parameter("weight").grad)  # type: ignore[arg-type]
        assert torch.equal(head.weight, without.weight)


def test_persistent_buffers_serve_a_step_in_backward_while_its_loss_is_still_held() -> None:
    heads = [head_with_buffers(), MarginHead(catalog.arcface(), 50, DIM, impl="chunked")]
    heads[1].load_state_dict(heads[0].state_dict())
    for head in heads:
        optimizer = HeadSGD(head, lr=0.1)
        for seed in range(3):
            optimizer.zero_grad()
            loss = head(*embeddings(seed))
            loss.backward()
            optimizer.step()
    assert torch.equal(heads[0].weight, heads[1].weight)


@pytest.mark.parametrize("name", ["sphereface2_c", "sface", "uniface"])
def test_what_is_no_softmax_has_no_chunks(name: str) -> None:
    loss = build(catalog.get(name), num_classes=5)
    with pytest.raises(ValueError, match=r"is no softmax of the logits and has no chunks"):
        loss.chunked(torch.randn(3, DIM), torch.randn(5, DIM), torch.arange(3))


def test_persistent_buffers_refuse_two_forwards_before_a_backward() -> None:
    head = head_with_buffers()
    first = head(*embeddings(0))
    with pytest.raises(RuntimeError, match="persistent buffers hold one batch, but there is a forward whose backward"):
        head(*embeddings(1))
    del first
    head(*embeddings(1)).backward()


def test_persistent_buffers_refuse_gradient_accumulation() -> None:
    head = head_with_buffers()
    head(*embeddings(0)).backward()
    loss = head(*embeddings(1))
    with pytest.raises(RuntimeError, match="persistent buffers hold one gradient and cannot add to it"):
        loss.backward()


def test_a_copy_of_a_head_has_buffers_of_its_own() -> None:
    head = head_with_buffers()
    head(*embeddings(0)).backward()
    twin = copy.deepcopy(head)
    twin.zero_grad(set_to_none=True)
    held = head.get_parameter("weight").grad
    assert held is not None
    before = held.clone()
    twin(*embeddings(1)).backward()
    assert torch.equal(held, before)


# Which implementation runs


@pytest.mark.parametrize("name", catalog.NAMES)
def test_auto_is_plain_for_few_classes_bit_for_bit_and_chunked_for_many(name: str) -> None:
    for classes in (1000, 4096):
        spec = catalog.get(name)
        x_ND, w_RD, label_N = float32_batch(spec, classes, 4, 20)
        chosen, _ = chosen_implementation(spec, "auto", x_ND, w_RD)
        assert chosen == ("chunked" if name in CHUNKED and classes * spec.centers >= 4096 else "plain")
        got = margin_loss(built(spec, classes), x_ND, w_RD, label_N)
        loss = built(spec, classes)
        wanted = loss(x_ND, w_RD, label_N) if chosen == "plain" else loss.chunked(x_ND, w_RD, label_N)
        assert torch.equal(got, wanted)


@pytest.mark.parametrize("name", [name for name in catalog.NAMES if name not in CHUNKED])
def test_what_chunks_cannot_run_falls_back_and_says_so_once(name: str, caplog: pytest.LogCaptureFixture) -> None:
    say_once.cache_clear()
    head = MarginHead(catalog.get(name), 10, DIM, impl="chunked")
    plain = MarginHead(catalog.get(name), 10, DIM, impl="plain")
    plain.load_state_dict(head.state_dict())
    x_ND, label_N = embeddings(0)
    with caplog.at_level(logging.INFO, logger="search_space"):
        for _ in range(2):
            assert torch.equal(head(x_ND, label_N % 10), plain(x_ND, label_N % 10))
    (record,) = caplog.records
    kind = catalog.get(name).objective.kind
    assert record.getMessage() == (
        f"classification head: 10 class weights, cpu: 'plain', objective '{kind}' is no softmax of the logits"
    )


def test_under_compile_auto_traces_into_one_graph_for_many_classes_too() -> None:
    head = MarginHead(catalog.arcface(), 5000, DIM)
    x_ND, label_N = embeddings(0)
    torch._dynamo.reset()
    compiled = torch.compile(head, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x_ND, label_N), head(x_ND, label_N))
    torch._dynamo.reset()


@pytest.mark.parametrize("name", ["arcface", "adacos_dynamic", "subcenter_arcface"])
def test_sampled_classes_run_on_chunks(name: str) -> None:
    impls: tuple[Literal["plain", "chunked"], ...] = ("plain", "chunked")
    heads = [
        MarginHead(catalog.get(name), 60, DIM, sample_rate=0.5, impl=impl, generator=torch.Generator().manual_seed(0))
        for impl in impls
    ]
    grads = []
    for head in heads:
        torch.manual_seed(3)
        head(*embeddings(1)).backward()
        grads.append(head.weight.grad)
    torch.testing.assert_close(grads[0], grads[1])


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("name", ["adaface", "arcface", "adacos_dynamic", "curricularface", "subcenter_arcface"])
def test_an_empty_batch_has_no_losses_and_gradients_of_zero(name: str, *, chunked: bool) -> None:
    loss = built(SPECS[name], 10)
    w_CD = torch.randn(loss.rows, 4, requires_grad=True)
    x_0D, label_0 = torch.randn(0, 4, requires_grad=True), torch.empty(0, dtype=torch.long)
    tracked = [value.clone() for value in loss.buffers()]
    loss_0 = loss.chunked(x_0D, w_CD, label_0) if chunked else loss(x_0D, w_CD, label_0)
    assert all(map(torch.equal, loss.buffers(), tracked))
    loss_0.sum().backward()
    assert loss_0.shape == (0,)
    assert w_CD.grad is not None
    assert not w_CD.grad.any()
