"""How fast and lean is the classification head on a GPU, against the arithmetic that no head can do without?

    python -m tests.bench.head_gpu [--classes 10000 100000 1000000] [--batch 128 512 1024] [--rounds 20]
        [--insightface .../recognition/arcface_torch]

Forward and backward of CosFace (s = 64, D = 512), float32, in turn (A B C A B C ...): the three matrix products alone
(`floor`), ours by every implementation, the plain form under torch.compile, and, where they are there,
pytorch-metric-learning's CosFaceLoss, torch's `linear_cross_entropy`, which knows no margin and no normalisation, and
insightface's `PartialFC_V2` from a checkout's folder, as a group of one process.
Milliseconds are between events of the device, medians of the rounds after three that are not counted; the peak is that
of the allocator above the start, in sizes of the class weights. What does not fit has no number. Once with torch's
default precision of products, once with TF32. Says so and does nothing where there is no CUDA device.
"""

import argparse
import importlib
import importlib.util
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from search_space import MarginHead, catalog
from tests.bench.head import DIM, PML
from tests.bench.rows import append_row

OURS: Mapping[str, Mapping[str, Any]] = {
    "triton": {"impl": "triton"},
    "triton, persistent buffers": {"impl": "triton", "persistent_buffers": True},
    "triton, recompute": {"impl": "triton", "memory": "recompute"},
    "triton, bfloat16 gradients": {"impl": "triton", "gradient_dtype": "bfloat16"},
    "chunked": {"impl": "chunked"},
    "plain": {"impl": "plain"},
    "plain, compiled": {"impl": "plain"},
}
INSIGHTFACE = "insightface"
WARM_UP = 3


def runner(way: str, classes: int, count: int) -> Callable[[], None]:
    """Forward and backward of one step on the device."""
    generator = torch.Generator("cuda").manual_seed(0)
    x_ND = torch.randn(count, DIM, generator=generator, device="cuda").requires_grad_()
    label_N = torch.randint(classes, (count,), generator=generator, device="cuda")
    if way == "floor":
        return _floor(x_ND.detach(), classes)
    if way == "linear_cross_entropy":
        w_CD = torch.randn(classes, DIM, generator=generator, device="cuda").requires_grad_()

        def without_margin() -> None:
            F.linear_cross_entropy(x_ND, w_CD, label_N).backward()  # type: ignore[no-untyped-call]
            x_ND.grad = w_CD.grad = None

        return without_margin
    head = head_of(way, classes).to("cuda")

    def run() -> None:
        head(x_ND, label_N).backward()
        x_ND.grad = None
        head.zero_grad(set_to_none=True)  # so that other ways find room

    return run


def head_of(way: str, classes: int) -> nn.Module:
    """On the CPU."""
    if way == PML:
        from pytorch_metric_learning.losses import CosFaceLoss

        learner: nn.Module = CosFaceLoss(classes, DIM, margin=0.35, scale=64)
        return learner
    if way == INSIGHTFACE:
        margin = importlib.import_module("losses").CosFace(s=64.0, m=0.35)
        peer: nn.Module = importlib.import_module("partial_fc_v2").PartialFC_V2(margin, DIM, classes)
        return peer
    head = MarginHead(catalog.cosface(), classes, DIM, **OURS[way])
    if way.endswith("compiled"):
        head.compile(fullgraph=True, dynamic=False)
    return head


def find_insightface(folder: str) -> None:
    """Make its modules importable, and the group of processes that its head asks for."""
    sys.path.insert(0, folder)
    dist.init_process_group("nccl", f"file://{tempfile.mkdtemp()}/store", rank=0, world_size=1)


def _floor(x_ND: torch.Tensor, classes: int) -> Callable[[], None]:
    count = len(x_ND)
    w_CD = torch.randn(classes, DIM, device="cuda")
    cos_NC, grad_ND, grad_CD = (x_ND.new_empty(shape) for shape in ((count, classes), (count, DIM), (classes, DIM)))

    def run() -> None:
        torch.mm(x_ND, w_CD.T, out=cos_NC)
        torch.mm(cos_NC, w_CD, out=grad_ND)
        torch.mm(cos_NC.T, x_ND, out=grad_CD)

    return run


def peak(run: Callable[[], None]) -> int:
    """Bytes of a step above those that are there before it."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    start = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - start


def milliseconds(run: Callable[[], None]) -> float:
    """Of one step, by the device's own events."""
    began = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    ended = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    began.record()
    run()
    ended.record()
    torch.cuda.synchronize()
    return float(began.elapsed_time(ended))


def measure(classes: int, count: int, rounds: int) -> dict[str, object]:
    """The row's own part: peaks way by way, then all that fit in turn."""
    names = ["floor", *OURS]
    names += [INSIGHTFACE] if dist.is_initialized() else []
    names += ["linear_cross_entropy"] if hasattr(F, "linear_cross_entropy") else []
    names += [PML] if importlib.util.find_spec(PML) else []
    ways: dict[str, Callable[[], None]] = {}
    peaks: dict[str, float] = {}
    failed: dict[str, str] = {}
    for name in names:
        try:
            run = runner(name, classes, count)
            peaks[name] = round(peak(run) / (4 * classes * DIM), 2)
            for _ in range(WARM_UP):
                run()
            ways[name] = run
        except RuntimeError as error:  # among them out of memory and what a compiler refuses
            failed[name] = str(error).partition("\n")[0]
        torch.cuda.empty_cache()
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, run in list(ways.items()):
            try:
                times[name].append(milliseconds(run))
            except torch.cuda.OutOfMemoryError:
                failed[name] = "no room beside the others"
                del ways[name], times[name]
    return {
        "classes": classes,
        "batch": count,
        "peak_over_class_weights": peaks,
        "milliseconds": {name: round(statistics.median(each), 3) for name, each in times.items()},
        "all_milliseconds": {name: [round(one, 3) for one in each] for name, each in times.items()},
        "failed": failed,
    }


def main() -> None:
    """Measure what is asked for and append its rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--batch", type=int, nargs="+", default=[128, 512, 1024])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--insightface", help="folder with its losses.py and partial_fc_v2.py")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA device here: nothing measured")
        return
    if arguments.insightface:
        find_insightface(arguments.insightface)
    facts = {"device": torch.cuda.get_device_name(), "dim": DIM, "clock": "cuda events"}
    for precision in ("highest", "high"):
        torch.set_float32_matmul_precision(precision)
        for classes in arguments.classes:
            for count in arguments.batch:
                content = facts | {"matmul_precision": precision} | measure(classes, count, arguments.rounds)
                print(append_row("head_gpu", content)["milliseconds"])


if __name__ == "__main__":
    main()
