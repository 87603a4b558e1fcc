"""What all tests share."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

torch.set_num_threads(1)  # two cores that wait for each other are slower than one, and CI has two

RealData = Callable[[str], Path]

RAY_FILES = ("test_killed", "test_ray_cluster", "test_ray_executor", "test_tune")
"""Tests that start clusters of Ray, each for the whole machine: one after the other."""


class ByFile(LoadScopeScheduling):  # type: ignore[misc]  # xdist has no types
    """The tests of a file share what its fixtures make, so they run on one worker; all that start clusters on one."""

    def _split_scope(self, nodeid: str) -> str:
        path = nodeid.partition("::")[0]
        return "ray" if Path(path).stem in RAY_FILES else path


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ByFile:
    """Which worker runs what, where there are several."""
    return ByFile(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """`gpu` needs one."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device, and there is none"))


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
