"""How many images should be embedded at a time? Batch sizes in turn, on images like those of a proxy.

    python -m tests.bench.embedding [--width 16] [--image-size 32] [--images 2048] [--rounds 9]

The default proxy network on one CPU thread, channels last as the probe mostly finds faster. The row gives the median
seconds of each batch size, and how many times as fast as 512, which was the choice before, by the median of the rounds'
ratios. `trainers.evaluation` takes the size from here.
"""

import argparse
import json
import time

import numpy as np
import torch

from tests.bench.rows import append_row
from trainers.networks import build_network
from trainers.recipe import Recipe

SIZES = (32, 64, 128, 256, 512)


def seconds(network: torch.nn.Module, images_NKHW: torch.Tensor, size: int) -> float:
    """To embed all images."""
    began = time.perf_counter()
    with torch.no_grad():
        for batch in torch.split(images_NKHW, size):
            network(batch.to(memory_format=torch.channels_last))
    return time.perf_counter() - began


def main() -> None:
    """One row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    generator, side = torch.Generator().manual_seed(0), arguments.image_size
    network = build_network(Recipe(width=arguments.width), image_shape=(1, side, side), generator=generator).eval()
    network = network.to(memory_format=torch.channels_last)
    images_NKHW = torch.randn(arguments.images, 1, side, side, generator=generator)
    taken_RS = np.array([[seconds(network, images_NKHW, size) for size in SIZES] for _ in range(arguments.rounds + 1)])[
        1:
    ]
    row = append_row(
        "embedding",
        {
            **vars(arguments),
            "seconds": dict(zip(map(str, SIZES), np.median(taken_RS, axis=0).round(4).tolist(), strict=True)),
            "times_as_fast_as_512": dict(
                zip(map(str, SIZES), np.median(taken_RS[:, -1:] / taken_RS, axis=0).round(2).tolist(), strict=True)
            ),
        },
    )
    print(json.dumps(row))


if __name__ == "__main__":
    main()
