"""What the packages show to the world, and what starting the command costs."""

import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("search_space", "trainers", "lfs", "analysis")
HEAVY = ("torch", "ray", "mlflow", "optuna", "plotly", "pandas")


def by_kind(name: str) -> tuple[int, str]:
    """CONSTANTS, then Classes, then functions and modules, each by letter."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2, name)


@pytest.mark.parametrize("name", PACKAGES)
def test_the_public_surface_is_a_sorted_list_without_accidents(name: str) -> None:
    package = importlib.import_module(name)
    listed = getattr(package, "__all__", [])
    assert listed == sorted(set(listed), key=by_kind)
    public = {key for key, value in vars(package).items() if key[0] != "_" and not inspect.ismodule(value)}
    assert {key for key in listed if not inspect.ismodule(getattr(package, key))} == public


@pytest.mark.parametrize("command", ["", "search", "data proxy", "evaluate"])
def test_asking_for_help_imports_nothing_heavy(command: str) -> None:
    program = f"""
import sys
from lfs.cli import main
sys.argv = ["lossearch", *{command.split()}, "--help"]
try:
    main()
except SystemExit as stop:
    assert not stop.code, stop.code
print("imported:", *sorted(sys.modules.keys() & {set(HEAVY)}))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout
    assert done.stdout.splitlines()[-1] == "imported:"
