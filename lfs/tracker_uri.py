"""Where a search is tracked: the MLflow tracking URI, and MLflow's environment. Knows no MLflow."""

import os
import re
from importlib.metadata import entry_points
from pathlib import Path
from urllib.parse import quote, unquote

from lfs.errors import UserError

_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # its default blocks for minutes on a refused port; we retry ourselves
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}


_SCHEMES = {"http", "https", "databricks", "uc", "sqlite", "postgresql", "mysql", "mssql"}
"""What MLflow can track to; databases with a driver behind `+`."""


class TrackingError(UserError):
    """MLflow could not be written or read; the message says where and why."""


def default_uri(workspace: Path) -> str:
    """The SQLite database of a workspace."""
    return _sqlite_uri(workspace.resolve() / "mlflow.db")


def resolve_uri(uri: str | None, workspace: Path) -> str:
    """Where to track: `uri`, else the environment's MLFLOW_TRACKING_URI, else the workspace's database.

    A relative SQLite path is resolved against the current directory, once, here. Raises `TrackingError` for a plain
    folder, which MLflow no longer writes to.
    """
    chosen = uri or os.environ.get("MLFLOW_TRACKING_URI") or default_uri(workspace)
    if chosen.startswith("sqlite:///"):
        return anchored(chosen, Path.cwd())
    scheme, _, place = chosen.partition("://")
    if chosen == "databricks" or (place and scheme.partition("+")[0] in _SCHEMES | _plugin_schemes()):
        return chosen
    why = (
        f"MLflow knows no '{scheme}://'"
        if place and scheme != "file"
        else "MLflow no longer keeps runs in plain folders"
    )
    raise TrackingError(f"the MLflow tracking URI must be sqlite:///PATH or http(s)://HOST, but got {chosen!r}: {why}")


def _plugin_schemes() -> set[str]:
    """What installed packages have taught MLflow."""
    return {point.name for point in entry_points(group="mlflow.tracking_store")}


def anchored(uri: str, folder: Path) -> str:
    """The URI with a relative SQLite path made absolute, seen from `folder`; any other URI as it is."""
    if not uri.startswith("sqlite:///"):
        return uri
    _, mark, options = uri.partition("?")
    return _sqlite_uri((folder / database_path(uri)).resolve()) + mark + options


def database_path(uri: str) -> Path:
    """The file of a SQLite URI."""
    return Path(unquote(uri.removeprefix("sqlite:///").partition("?")[0]))


def _sqlite_uri(path: Path) -> str:
    return "sqlite:///" + re.sub("[%?#]", lambda special: quote(special[0]), str(path))


def artifact_root(uri: str) -> str | None:
    """Where artifacts lie: beside a SQLite database, else where the server or MLflow itself decides."""
    return (database_path(uri).parent / "mlartifacts").as_uri() if uri.startswith("sqlite:///") else None


def printable(uri: str) -> str:
    """A URI without the user's name and password."""
    return re.sub(r"(?<=://)[^/@]*@", "", uri)


def set_environment() -> None:
    """Defaults for MLflow, where the user has set nothing: silent, no telemetry, no long retries."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
