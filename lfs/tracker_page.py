"""The MLflow page as a process of its own, on the loopback interface."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from types import TracebackType
from typing import IO

from lfs.tracker_uri import TrackingError, artifact_root, printable, set_environment

HOST = "127.0.0.1"
STOP_SECONDS = 10.0


class Page:
    """A served MLflow page; `base` is its address. Leaving its context ends the server, if it started one."""

    def __init__(self, base: str, process: subprocess.Popen[bytes] | None = None) -> None:
        self.base = base
        self._process = process

    def wait(self) -> None:
        """Return when the server has ended; at once when none was started."""
        if self._process is not None:
            self._process.wait()

    def close(self) -> None:
        """End the server and every process it started."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def __enter__(self) -> "Page":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def serve(uri: str, *, port: int = 0, timeout_seconds: float = 120.0) -> Page:
    """Show the store at `uri` on 127.0.0.1 and return when the page answers; port 0 takes a free one.

    A store that is a server already (http, https) is shown by itself. Raises `TrackingError` when the port is taken
    or the server does not come up in time.
    """
    if uri.startswith(("http://", "https://")):
        return Page(uri)
    port = _free_port(port)
    set_environment()
    command = [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1"]
    command += ["--no-serve-artifacts"]  # they lie on this machine's disk, where the page reads them
    root = artifact_root(uri)
    settings = {"MLFLOW_DEFAULT_ARTIFACT_ROOT": root} if root else {}
    settings |= {"MLFLOW_BACKEND_STORE_URI": uri, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            env={**os.environ, **settings},
        )
        page = Page(f"http://{HOST}:{port}", process)
        try:
            trouble = _trouble(page.base, process, timeout_seconds)
        except BaseException:  # an interrupt: the server has a session of its own and would stay
            page.close()
            raise
        if trouble:
            page.close()
            raise TrackingError(f"the MLflow page for {printable(uri)} {trouble}: {_last_line(log)}")
    return page


def _trouble(base: str, process: subprocess.Popen[bytes], timeout_seconds: float) -> str | None:
    """None once the page answers, else what it did instead."""
    deadline = time.monotonic() + timeout_seconds
    while not _answers(base):
        if process.poll() is not None:
            return "stopped at once"
        if time.monotonic() > deadline:
            return f"did not answer within {timeout_seconds:g} s"
        time.sleep(0.2)
    return None


def _free_port(port: int) -> int:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, port))
        except OSError as error:
            raise TrackingError(f"port {port} of {HOST} cannot be used ({error.strerror}); choose another") from None
        return int(listener.getsockname()[1])


def _answers(base: str) -> bool:
    try:
        with urllib.request.urlopen(f"{base}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _last_line(log: IO[bytes]) -> str:
    log.seek(0)
    lines = log.read().decode(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
