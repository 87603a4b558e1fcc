"""What the tests of the command line share: an image folder, a finished search on it, and a place to stand."""

from pathlib import Path

import pytest

from tests.lfs.command import TINY_SEARCH, Result, draw_images, lossearch


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small image folder; not to be changed."""
    return draw_images(tmp_path_factory.mktemp("data") / "shapes")


@pytest.fixture(scope="session")
def finished_search(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """The run folder of a complete search, and what it printed; not to be changed."""
    run_dir = tmp_path_factory.mktemp("workspace") / "runs" / "tiny"
    return run_dir, lossearch("search", "--data", shapes, "--run", run_dir, *TINY_SEARCH)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, without the user's settings."""
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path
