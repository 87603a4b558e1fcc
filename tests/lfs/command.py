"""The command line run in this process, and an image folder drawn for it."""

import contextlib
import io
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import numpy as np
from PIL import Image, ImageDraw

from lfs.cli import main

SPLIT = {f"shape{index:02d}": "train" if index < 8 else "val" if index < 12 else "test" for index in range(16)}
IMAGES_PER_CLASS = 6
IMAGE_SIZE = 20
TINY_SEARCH = (
    "--set=executor.kind=serial",
    "--set=tracking.enabled=false",
    "--set=numerics.dtype=float32",
    "--set=numerics.channels_last=false",
    "--set=numerics.lockstep=1",
    "--set=numerics.execution=eager",
    "--set=recipe.width=4",
    "--set=recipe.embedding_dim=8",
    "--set=recipe.batch_size=16",
    "--set=recipe.horizon_epochs=3",
    "--set=recipe.reward=rank1",
    "--set=search.batch=2",
    "--set=search.warmup_epochs=1",
)


@dataclass(frozen=True)
class Result:
    """What a command left: its exit code and what it printed."""

    code: int
    out: str
    err: str


def lossearch(*arguments: str | Path) -> Result:
    """Run `lossearch` with these arguments; checks that the process is afterwards as it was."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    folder, handlers = Path.cwd(), _handlers()
    with (
        patch.object(sys, "argv", ["lossearch", *map(str, arguments)]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as ended:
            code = int(ended.code or 0)
    assert Path.cwd() == folder
    assert _handlers() == handlers
    return Result(code, out.getvalue(), err.getvalue())


def _handlers() -> list[object]:
    return [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]


def contents(root: Path) -> dict[str, bytes | None]:
    """Every file below a folder with its bytes, every folder with None."""
    places = (Path(folder) / name for folder, folders, files in os.walk(root) for name in folders + files)
    return {str(place.relative_to(root)): place.read_bytes() if place.is_file() else None for place in places}


def draw_images(root: Path) -> Path:
    """An image folder with `split.csv`: polygons, one shape and grey level a class, jittered in each image."""
    rng = np.random.default_rng(0)
    for index, name in enumerate(SPLIT):
        folder = root / "images" / name
        folder.mkdir(parents=True)
        for number in range(IMAGES_PER_CLASS):
            _polygon(3 + index % 4, 40 + 50 * (index // 4), rng).save(folder / f"{number}.png")
    rows = "".join(f"{name},{split}\n" for name, split in SPLIT.items())
    (root / "split.csv").write_text("class,split\n" + rows, encoding="utf-8")
    return root


def _polygon(corners: int, grey: int, rng: np.random.Generator) -> Image.Image:
    image = Image.new("L", (IMAGE_SIZE, IMAGE_SIZE), 255)
    angle_rad = rng.uniform(-0.2, 0.2) + 2 * np.pi * np.arange(corners) / corners
    middle, radius = IMAGE_SIZE / 2 + rng.uniform(-1.5, 1.5, 2), rng.uniform(6, 8)
    points = middle + radius * np.stack([np.cos(angle_rad), np.sin(angle_rad)], axis=1)
    ImageDraw.Draw(image).polygon([(float(x), float(y)) for x, y in points], fill=grey)
    return image
