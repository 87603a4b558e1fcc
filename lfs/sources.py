"""Which code runs here: versions of what matters, and a digest of our own sources."""

import hashlib
import platform
from collections.abc import Mapping
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

PACKAGES = ("search_space", "trainers", "lfs", "analysis")
LIBRARIES = ("torch", "numpy", "ray", "optuna", "mlflow")


@cache
def source_digest() -> str:
    """Twelve hex digits over the sources of the four packages."""
    digest = hashlib.sha256()
    for package in PACKAGES:
        spec = find_spec(package)
        folders = [] if spec is None else list(spec.submodule_search_locations or [])
        for folder in map(Path, folders):
            for path in sorted(folder.rglob("*.py")):
                digest.update(f"{package}/{path.relative_to(folder)}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def versions() -> Mapping[str, str]:
    """Python, the libraries that decide results, lossearch and the digest of its sources."""
    libraries = {name: version(name) for name in ("lossearch", *LIBRARIES)}
    return {"python": platform.python_version(), **libraries, "sources": source_digest()}
