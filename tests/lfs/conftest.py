"""What the tests of the command line and of MLflow share: an image folder, a finished search on it, places to stand."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from lfs.tracker_uri import default_uri, set_environment
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


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated database without runs: making one takes MLflow seconds."""
    from mlflow import MlflowClient

    set_environment()
    path = tmp_path_factory.mktemp("database") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}")
    return path


@pytest.fixture
def workspace(tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A workspace with an empty database; whatever is written into the current directory is an error."""
    folder = tmp_path / "a workspace: 100%20 sure?"
    current = tmp_path / "current"
    folder.mkdir()
    current.mkdir()
    shutil.copy(empty_database, folder / "mlflow.db")
    monkeypatch.chdir(current)
    yield folder
    assert list(current.iterdir()) == []


@pytest.fixture
def uri(workspace: Path) -> str:
    return default_uri(workspace)


@pytest.fixture
def run_dir(workspace: Path) -> Path:
    return workspace / "runs" / "first run"
