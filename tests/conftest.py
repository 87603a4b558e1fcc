"""What all tests share."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)  # two cores that wait for each other are slower than one, and CI has two

RealData = Callable[[str], Path]


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
