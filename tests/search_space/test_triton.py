"""The kernels of the classification head, interpreted on a CPU in a process of their own, and on a GPU where one is.

Triton must be told to interpret before it is imported, and other tests import it.
"""

import importlib.util
import logging
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pytest
import torch

from search_space import MarginHead, catalog
from search_space.chunked import GradientDtype, Memory
from search_space.margin_loss import chosen_implementation, say_once
from tests.search_space import triton_cases
from tests.search_space.head_cases import SPECS, float32_batch

Run = Callable[..., Any]
"""Calls a function of `triton_cases` with these arguments and a device."""


def apart(**variables: str) -> ProcessPoolExecutor:
    """A process with these environment variables."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("Triton is not installed here")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
        pool.submit(len, ()).result()
    return pool


@pytest.fixture(scope="module")
def interpreter() -> Iterator[ProcessPoolExecutor]:
    with apart(TRITON_INTERPRET="1", OMP_NUM_THREADS="1") as pool:
        yield pool


@pytest.fixture(params=["interpreted", pytest.param("gpu", marks=pytest.mark.gpu)])
def run(request: pytest.FixtureRequest) -> Run:
    if request.param == "gpu":
        return lambda function, *arguments: function(*arguments, "cuda")
    pool: ProcessPoolExecutor = request.getfixturevalue("interpreter")

    def interpreted(function: Callable[..., Any], *arguments: Any) -> Any:
        return pool.submit(function, *arguments, "cpu").result()

    return interpreted


@pytest.mark.parametrize("scale", [16, 64])
@pytest.mark.parametrize("name", triton_cases.TARGET_ONLY)
def test_kernels_err_at_most_twice_as_much_as_the_plain_form(name: str, scale: float, run: Run) -> None:
    found = run(triton_cases.scaled_errors, name, scale, "store")
    assert all(error.is_at_most_twice_the_plain() for error in found), found


@pytest.mark.parametrize(
    ("name", "scale"),
    [("am_lfs", 256), ("arcface", 256), ("arcface", 512), ("elasticface_cos", 512), ("focal", 512), ("softmax", 512)],
)
def test_so_they_do_at_large_scales(name: str, scale: float, run: Run) -> None:
    """A batch's error is nearly all that of the sample or two whose targets are on a level with a negative: 40 samples
    compare luck, of 24 batches the errors are of one size. All losses were tried, with 60 (CONTRIBUTING)."""
    found = run(triton_cases.steep_errors, name, scale)
    assert all(error.is_at_most_twice_the_plain() for error in found), found


@pytest.mark.parametrize("name", ["arcface", "adacos_dynamic", "arcface under feature norms", "modulating_bins"])
def test_so_they_do_when_they_compute_exponentials_again(name: str, run: Run) -> None:
    found = run(triton_cases.scaled_errors, name, 64, "recompute")
    assert all(error.is_at_most_twice_the_plain() for error in found), found


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_so_they_do_on_half_precision_inputs(dtype: torch.dtype, run: Run) -> None:
    found = run(triton_cases.half_errors, "arcface", dtype)
    assert all(error.is_at_most_twice_the_plain(dtype) for error in found), found


@pytest.mark.parametrize("memory", ["store", "recompute"])
def test_gradient_products_in_bfloat16_err_by_its_rounding_and_leave_the_loss_alone(memory: Memory, run: Run) -> None:
    """The interpreter cuts bits off where a GPU rounds, which is off by twice as much."""
    loss, *gradients = run(triton_cases.bfloat16_errors, "cosface", memory)
    assert loss.is_at_most_twice_the_plain()
    assert all(1e-4 * error.size < error.ours < 8e-3 * error.size for error in gradients), gradients


@pytest.mark.parametrize("memory", ["store", "recompute"])
@pytest.mark.parametrize("shape", triton_cases.SHAPES, ids=str)
def test_no_shape_needs_to_fill_a_tile(shape: tuple[int, int, int], memory: Memory, run: Run) -> None:
    for ours, truth in run(triton_cases.pairs, shape, memory):
        torch.testing.assert_close(ours, truth, rtol=1e-4, atol=1e-5 * float(truth.abs().max()))


def test_kernels_repeat_themselves_bit_for_bit(run: Run) -> None:
    assert run(triton_cases.repeats)


def test_only_what_asks_for_a_gradient_gets_one(run: Run) -> None:
    of_x, of_w, both_x, both_w = run(triton_cases.partial_gradients)
    assert torch.equal(of_x, both_x)
    assert torch.equal(of_w, both_w)


def test_embeddings_may_lie_in_memory_as_they_like(run: Run) -> None:
    by_rows, by_columns = run(triton_cases.sharded_losses)
    torch.testing.assert_close(by_rows, by_columns)


@pytest.mark.parametrize("gradient_dtype", ["float32", "bfloat16"])
def test_persistent_buffers_change_nothing_but_where_results_lie(gradient_dtype: GradientDtype, run: Run) -> None:
    without, kept = run(triton_cases.weights_after_steps, gradient_dtype)
    assert torch.equal(without, kept)
    assert not torch.equal(without, MarginHead(catalog.arcface(), 70, 16).weight)


@pytest.mark.parametrize(("momentum", "memory"), [(0.9, "store"), (0.9, "recompute"), (0.0, "store")])
def test_the_kernel_of_the_weights_gradient_can_take_the_optimisers_step(
    momentum: float, memory: Memory, run: Run
) -> None:
    for fused, separate in run(triton_cases.fused_and_separate, momentum, memory):
        torch.testing.assert_close(fused, separate, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("capability", [86, 90])
def test_kernels_compile_for_gpus_within_the_shared_memory_of_the_smallest(capability: int) -> None:
    """99 KiB, that of capability 8.6; at the widest embeddings, in the precision that needs most."""
    with apart(TRITON_INTERPRET="0") as pool:
        found = pool.submit(triton_cases.shared_bytes, capability).result()
    assert found.keys() == {"exponentials", "embedding_gradients", "weight_gradients"}
    assert all(0 < shared <= 99 * 1024 for shared in found.values()), found


# Which implementation runs


def test_triton_without_a_gpu_is_refused_in_a_sentence() -> None:
    x_ND, w_RD, _ = float32_batch(catalog.arcface(), 100, 4, 20)
    with pytest.raises(
        ValueError, match=r"impl='triton' cannot run here: Triton (needs a CUDA device|is not installed)"
    ):
        chosen_implementation(catalog.arcface(), "triton", x_ND, w_RD)


@pytest.mark.parametrize(
    ("name", "chosen", "why"),
    [
        ("curricularface", "chunked", "the kernels change no negatives, as 'curricular' does"),
        ("subcenter_arcface", "chunked", "the kernels take one class weight a class, not 3"),
        ("sface", "plain", "objective 'sface' is no softmax of the logits"),
    ],
)
def test_what_kernels_cannot_run_falls_back_and_says_so(
    name: str, chosen: str, why: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("search_space.triton_head.missing", lambda *_: None)
    say_once.cache_clear()
    head = MarginHead(catalog.get(name), 10, 8, impl="triton")
    with caplog.at_level(logging.INFO, logger="search_space"):
        head(torch.randn(4, 8), torch.arange(4))
    (record,) = caplog.records
    assert record.getMessage().endswith(f"cpu: '{chosen}', {why}")


def test_float64_and_embeddings_too_wide_are_not_for_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    x_ND, w_RD, _ = float32_batch(SPECS["arcface"], 100, 4, 20)
    assert chosen_implementation(SPECS["arcface"], "triton", x_ND, w_RD)[0] == "triton"
    with pytest.raises(ValueError, match="the kernels compute in float32, not float64"):
        chosen_implementation(SPECS["arcface"], "triton", x_ND.double(), w_RD)
    chosen = chosen_implementation(SPECS["arcface"], "triton", torch.randn(4, 2000), torch.randn(100, 2000))
    assert chosen == ("chunked", "the kernels hold 1024 dimensions, not 2000")
