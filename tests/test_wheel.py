"""The wheel: what is in it, and that it runs where folders with the packages' generic names lie about."""

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent
PACKAGES = ("search_space", "trainers", "lfs", "analysis")

SMALL_RUN = """
data = { path = "drawings", image_size = 16 }
recipe = { horizon_epochs = 1, width = 4, embedding_dim = 8 }
search = { method = "fixed_list", losses = [{ loss = "arcface" }] }
executor = { kind = "ray", workers = 1 }
tracking = { enabled = false }
"""

pytestmark = pytest.mark.slow


def run(*command: str | Path, cwd: Path) -> str:
    """Standard output of a command that must succeed, run with none of this session's import paths."""
    env = {key: value for key, value in os.environ.items() if key not in {"PYTHONPATH", "RAY_ADDRESS"}}
    done = subprocess.run(
        command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    (built,) = folder.iterdir()
    return built


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new virtual environment that holds the wheel; only its dependencies come from the environment of the tests.

    A folder named in a .pth file is searched last and its own .pth files are not read, so an editable install of this
    repository does not come with it.
    """
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index", wheel, cwd=folder)
    (site_packages,) = folder.glob("lib/python*/site-packages")
    (site_packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return folder


@pytest.fixture
def decoys(tmp_path: Path) -> Path:
    """A working directory whose folders have the packages' names and refuse to be imported."""
    for package in PACKAGES:
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("raise RuntimeError('the decoy was imported')\n")
    return tmp_path


def test_the_wheel_holds_the_four_packages_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    metadata = f"{'-'.join(wheel.name.split('-')[:2])}.dist-info"
    assert {name.split("/")[0] for name in names} == {*PACKAGES, metadata}
    files = (file for package in PACKAGES for file in (ROOT / package).rglob("*") if file.is_file())
    product = {file.relative_to(ROOT).as_posix() for file in files if "__pycache__" not in file.parts}
    assert {name for name in names if not name.startswith(metadata)} == product
    assert f"{metadata}/licenses/LICENSE" in names


def test_the_installed_packages_are_the_wheels(environment: Path, decoys: Path) -> None:
    program = f"import {', '.join(PACKAGES)}; print({', '.join(f'{package}.__file__' for package in PACKAGES)})"
    for file in run(environment / "bin" / "python", "-I", "-c", program, cwd=decoys).split():
        assert Path(file).is_relative_to(environment)


def test_the_command_ignores_the_folders_around_it(environment: Path, decoys: Path) -> None:
    assert "search" in run(environment / "bin" / "lossearch", "--help", cwd=decoys)


def test_ray_workers_ignore_the_folders_around_the_command(environment: Path, decoys: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(40):
        folder = decoys / "drawings" / "images" / f"class{number}"
        folder.mkdir(parents=True)
        for image in range(4):
            pixels_HW = rng.integers(0, 256, (16, 16), dtype=np.uint8)
            Image.fromarray(pixels_HW).save(folder / f"{image}.png")
    (decoys / "run.toml").write_text(SMALL_RUN, encoding="utf-8")
    run(environment / "bin" / "lossearch", "search", "run.toml", "--run", "here/it", cwd=decoys)
    events = [json.loads(line) for line in (decoys / "here" / "it" / "journal.jsonl").read_text().splitlines()]
    assert events[-1]["event"] == "finished"
    assert "arcface" in str([event for event in events if event["event"] == "asked"])
    assert all(event["outcome"]["reward"] is not None for event in events if event["event"] == "told")
