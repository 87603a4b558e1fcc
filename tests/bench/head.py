"""How fast and lean is the classification head, against the arithmetic that no head can do without?

    python -m tests.bench.head speed [--classes 100000] [--batch 128] [--rounds 5] [--compile]
    python -m tests.bench.head memory [--batch 128 512]
    python -m tests.bench.head update [--classes 100000] [--batch 128] [--rounds 5]
    python -m tests.bench.head step [--classes 734 10000]
    python -m tests.bench.head growth [--classes 10000 ... 1000000]
    python -m tests.bench.head picture

`speed` runs forward and backward of CosFace (s = 64, D = 512) in turn (A B C A B C ...) on one thread: the three matrix
products alone (`floor`, into memory that is there already), ours by every implementation, and, where its package is
installed, pytorch-metric-learning's CosFaceLoss. The first round is not counted. Seconds are those of the process's
CPU, which other work on the machine disturbs less than a clock; a row holds medians, and medians of each round's
ratio. `memory` is the peak of a fresh process above what it had before the step, in sizes of the class
weights. `update` is speed and memory of a step with SGD (momentum, weight decay) on the class weights: behind the
backward by torch's optimiser (`separate`), and in it (`fused`). `step` is the head's share of a training step of the
default proxy network. `growth` is speed and memory of one way at a time, up to a million classes; `picture` draws its
rows.
"""

import argparse
import importlib.util
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from search_space import HeadSGD, MarginHead, build, catalog, margin_loss
from search_space.margin_loss import Implementation, chosen_implementation
from tests.bench.rows import RESULTS, append_row, read_rows
from trainers import Numerics, Recipe, recipe_defaults
from trainers.learner import Learner

DIM = 512
PML = "pytorch_metric_learning"
OURS: Mapping[str, Mapping[str, Any]] = {
    "chunked": {"impl": "chunked"},
    "chunked, persistent buffers": {"impl": "chunked", "persistent_buffers": True},
    "chunked, recompute": {"impl": "chunked", "memory": "recompute"},
    "plain": {"impl": "plain"},
}
UPDATES = ("separate", "fused")
GROWTH = ("floor", "chunked", "plain", PML)
MAX_CLASSES = {"plain": 500_000, PML: 200_000}
"""Where a way's memory ends here: about 5 sizes of the class weights of 24 GiB for the one, 8 for the other."""


def batch(classes: int, count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x_ND = torch.randn(count, DIM, generator=generator).requires_grad_()
    return x_ND, torch.randint(classes, (count,), generator=generator)


def floor(classes: int, count: int) -> Callable[[], None]:
    """Cosines, gradient of the embeddings, gradient of the class weights: three products and nothing else."""
    x_ND, w_CD = torch.randn(count, DIM), torch.randn(classes, DIM) / DIM**0.5
    cos_NC, grad_ND, grad_CD = torch.empty(count, classes), torch.empty(count, DIM), torch.empty(classes, DIM)

    def run() -> None:
        torch.mm(x_ND, w_CD.T, out=cos_NC)
        torch.mm(cos_NC, w_CD, out=grad_ND)
        torch.mm(cos_NC.T, x_ND, out=grad_CD)

    return run


def head_of(way: str, classes: int) -> nn.Module:
    if way == PML:
        from pytorch_metric_learning.losses import CosFaceLoss

        head: nn.Module = CosFaceLoss(classes, DIM, margin=0.35, scale=64)
        return head
    head = MarginHead(catalog.cosface(), classes, DIM, **OURS[way.removesuffix(", compiled")])
    if way.endswith("compiled"):
        head.compile(fullgraph=True, dynamic=False)
    return head


def runner(way: str, classes: int, count: int) -> Callable[[], None]:
    """Forward and backward."""
    if way == "floor":
        return floor(classes, count)
    head, (x_ND, label_N) = head_of(way, classes), batch(classes, count)

    def run() -> None:
        x_ND.grad = None
        head.zero_grad(set_to_none=True)
        head(x_ND, label_N).backward()

    return run


def in_turn(ways: Mapping[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of every round but the first."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for index in range(rounds + 1):
        for name, run in ways.items():
            began = time.process_time()
            run()
            if index:
                seconds[name].append(time.process_time() - began)
    return seconds


def ratios(seconds: Mapping[str, list[float]], to: str) -> dict[str, float]:
    """Median over the rounds of each way's seconds over those of `to`."""
    pairs = {name: zip(each, seconds[to], strict=True) for name, each in seconds.items()}
    return {name: round(statistics.median(a / b for a, b in each), 2) for name, each in pairs.items()}


def timings(seconds: Mapping[str, list[float]]) -> dict[str, object]:
    """The median of each way, and all rounds, for a row."""
    return {
        "seconds": {name: round(statistics.median(each), 3) for name, each in seconds.items()},
        "all_seconds": {name: [round(each, 3) for each in values] for name, values in seconds.items()},
    }


def facts() -> dict[str, object]:
    peer = {PML: version(PML.replace("_", "-"))} if importlib.util.find_spec(PML) else {}
    return {"threads": torch.get_num_threads(), "dim": DIM, "clock": "process_time", **peer}


def speed(classes: int, count: int, rounds: int, *, compiled: bool) -> None:
    """One row."""
    names = ["floor", *OURS]
    names += ["plain, compiled"] if compiled else []
    names += [PML] if importlib.util.find_spec(PML) else []
    seconds = in_turn({name: runner(name, classes, count) for name in names}, rounds)
    content = {
        "what": "speed",
        "classes": classes,
        "batch": count,
        "times_the_floor": ratios(seconds, "floor"),
        "times_chunked": ratios(seconds, "chunked"),
        **timings(seconds),
    }
    print(append_row("head", facts() | content)["times_the_floor"])


def updater(way: str, classes: int, count: int) -> Callable[[], None]:
    """Forward, backward and the optimiser's step on the class weights."""
    head, (x_ND, label_N) = MarginHead(catalog.cosface(), classes, DIM, impl="chunked"), batch(classes, count)
    optimizer: torch.optim.Optimizer
    if way == "fused":
        optimizer = HeadSGD(head, lr=0.1, momentum=0.9, weight_decay=5e-4)
    else:
        optimizer = torch.optim.SGD([head.weight], lr=0.1, momentum=0.9, weight_decay=5e-4)

    def run() -> None:
        x_ND.grad = None
        optimizer.zero_grad()
        head(x_ND, label_N).backward()
        optimizer.step()

    return run


def update(classes: int, count: int, rounds: int) -> None:
    """One row."""
    seconds = in_turn({way: updater(way, classes, count) for way in UPDATES}, rounds)
    content = {
        "what": "update",
        "classes": classes,
        "batch": count,
        "times_fused": ratios(seconds, "fused"),
        "peak_over_class_weights": {way: in_a_fresh_process(way, classes, count)[0] for way in UPDATES},
        **timings(seconds),
    }
    row = append_row("head", facts() | content)
    print(row["times_fused"], row["peak_over_class_weights"])


def _status_bytes(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(f"{key}:")))


def one(way: str, classes: int, count: int) -> None:
    """Print the peak of a step above the start in sizes of the class weights, and the CPU seconds of a later one."""
    make = updater if way in UPDATES else runner
    few = make(way, 500, count)
    few()
    del few
    run = make(way, classes, count)
    Path("/proc/self/clear_refs").write_text("5")
    start = _status_bytes("VmRSS")
    run()
    peak = (_status_bytes("VmHWM") - start) / (4 * classes * DIM)
    seconds = [0.0] * 2
    for index in range(2):
        began = time.process_time()
        run()
        seconds[index] = time.process_time() - began
    print(f"{peak:.3f} {min(seconds):.4f}")


def in_a_fresh_process(way: str, classes: int, count: int) -> tuple[float, float]:
    command = [sys.executable, "-m", "tests.bench.head", "one", "--way", way]
    command += ["--classes", str(classes), "--batch", str(count)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    peak, seconds = done.stdout.split()
    return float(peak), float(seconds)


def memory(classes: int, count: int) -> None:
    """One row."""
    names = [*OURS, *([PML] if importlib.util.find_spec(PML) else [])]
    peaks = {name: round(in_a_fresh_process(name, classes, count)[0], 2) for name in names}
    content = {"what": "memory", "classes": classes, "batch": count, "peak_over_class_weights": peaks}
    print(append_row("head", facts() | content)["peak_over_class_weights"])


def step(classes: int, count: int, rounds: int) -> None:
    """One row: steps of the proxy network for drawings (conv4, width 32, 32×32), and its head alone, both ways."""
    recipe = Recipe.model_validate(recipe_defaults("drawing", embedded=False))
    generator = torch.Generator().manual_seed(0)
    learner = Learner(
        catalog.cosface(scale=16.0),
        image_shape=(1, 32, 32),
        class_counts=[20] * classes,
        recipe=recipe,
        numerics=Numerics(),
        generator=generator,
        device=torch.device("cpu"),
    )
    images_NKHW = torch.rand(count, 1, 32, 32, generator=generator)
    label_N = torch.randint(classes, (count,), generator=generator)
    loss = build(catalog.cosface(scale=16.0), num_classes=classes)
    w_CD = nn.Parameter(torch.randn(classes, recipe.embedding_dim, generator=generator))
    x_ND = torch.randn(count, recipe.embedding_dim, generator=generator).requires_grad_()

    def step_by(impl: Implementation) -> None:
        with patch("trainers.learner.margin_loss", partial(margin_loss, impl=impl)):
            learner.step(images_NKHW, label_N, learning_rate=0.01)

    def head_by(impl: Implementation) -> None:
        x_ND.grad = w_CD.grad = None
        margin_loss(loss, x_ND, w_CD, label_N, impl=impl).mean().backward()  # type: ignore[no-untyped-call]

    impls: tuple[Implementation, ...] = ("plain", "auto")
    ways = {
        f"{name}, {impl}": partial(run, impl) for impl in impls for name, run in (("step", step_by), ("head", head_by))
    }
    seconds = in_turn(ways, rounds)
    medians = {name: statistics.median(each) for name, each in seconds.items()}
    content = {
        "what": "step",
        "classes": classes,
        "batch": count,
        "dim": recipe.embedding_dim,
        "auto_is": chosen_implementation(loss.spec, "auto", x_ND, w_CD)[0],
        "seconds": {name: round(each, 4) for name, each in medians.items()},
        "head_share": {impl: round(medians[f"head, {impl}"] / medians[f"step, {impl}"], 3) for impl in impls},
    }
    row = append_row("head", facts() | content)
    print(row["head_share"], row["seconds"])


def growth(classes: list[int], count: int) -> None:
    """One row."""
    found: dict[str, dict[str, list[float]]] = {}
    for way in GROWTH:
        if way == PML and not importlib.util.find_spec(PML):
            continue
        mine = [each for each in classes if each <= MAX_CLASSES.get(way, max(classes))]
        results = [in_a_fresh_process(way, each, count) for each in mine]
        found[way] = {
            "classes": [float(each) for each in mine],
            "seconds": [seconds for _, seconds in results],
            "peak_gib": [round(p * each * DIM * 4 / 2**30, 3) for (p, _), each in zip(results, mine, strict=True)],
        }
        print(way, found[way])
    append_row("head", facts() | {"what": "growth", "batch": count, "ways": found})


def picture() -> None:
    """`results/head_growth.png` of the last growth row, logarithmic both ways."""
    from matplotlib.figure import Figure

    row = next(row for row in reversed(read_rows("head")) if row["what"] == "growth")
    figure = Figure(figsize=(10, 4), layout="constrained")
    colours = dict(zip(GROWTH, ("#888888", "#0072b2", "#d55e00", "#009e73"), strict=True))
    titles = {"seconds": "CPU seconds of a step, one thread", "peak_gib": "peak memory of a step above its start, GiB"}
    for axes, (key, title) in zip(figure.subplots(1, 2), titles.items(), strict=True):
        for way, points in row["ways"].items():
            if (way, key) != ("floor", "peak_gib"):
                name = "three products" if way == "floor" else way
                axes.loglog(points["classes"], points[key], "o-", color=colours[way], label=name)
        axes.set(title=title, xlabel=f"classes (D = {DIM}, N = {row['batch']})")
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(RESULTS / "head_growth.png", dpi=110)


def main() -> None:
    """Measure what is asked for and append its rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["speed", "memory", "update", "step", "growth", "picture", "one"])
    parser.add_argument("--classes", type=int, nargs="+")
    parser.add_argument("--batch", type=int, nargs="+", default=[128])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--way", default="chunked")
    parser.add_argument("--compile", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.what == "picture":
        return picture()
    if arguments.what == "growth":
        decades = [10_000, 30_000, 100_000, 300_000, 1_000_000]
        return growth(arguments.classes or decades, arguments.batch[0])
    for classes in arguments.classes or ([734, 10_000] if arguments.what == "step" else [100_000]):
        for count in arguments.batch:
            if arguments.what == "speed":
                speed(classes, count, arguments.rounds, compiled=arguments.compile)
            elif arguments.what == "memory":
                memory(classes, count)
            elif arguments.what == "update":
                update(classes, count, arguments.rounds)
            elif arguments.what == "step":
                step(classes, count, arguments.rounds)
            else:
                one(arguments.way, classes, count)
    return None


if __name__ == "__main__":
    main()
