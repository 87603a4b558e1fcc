"""What all tests share."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)  # two cores that wait for each other are slower than one, and CI has two

RealData = Callable[[str], Path]

RAY_FILES = ("test_killed", "test_ray_cluster", "test_ray_executor", "test_tune")
"""Tests that start clusters of Ray, each for the whole machine: one after the other."""


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Under pytest-xdist a file's tests stay together, as they share what its fixtures make. `gpu` needs one."""
    without_gpu = pytest.mark.skip(reason="needs a CUDA device, and there is none")
    has_gpu = torch.cuda.is_available()
    for item in items:
        if not has_gpu and item.get_closest_marker("gpu"):
            item.add_marker(without_gpu)
        group = "ray" if item.path.stem in RAY_FILES else item.nodeid.partition("::")[0]
        item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(scope="session", autouse=True)
def _nothing_waits_for_the_disk() -> Iterator[None]:
    """What is written survives the process that wrote it, not a power cut, which no test can make."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda _: None)
        yield


@pytest.fixture
def real_data() -> RealData:
    """The folder of a real data set by name; where it is missing the test is skipped, but fails when CI is `true`."""
    root = Path(os.environ.get("LOSSEARCH_DATA", Path(__file__).parents[2] / "shared" / "data"))

    def find(name: str) -> Path:
        if (root / name).is_dir():
            return root / name
        sentence = f"no data set {name} in {root}; set LOSSEARCH_DATA to the folder that holds it"
        if os.environ.get("CI") == "true":
            pytest.fail(sentence)
        pytest.skip(sentence)

    return find
