"""A real MLflow server of a test's own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.ports import free_port

START_S = 600
"""Seconds that a server may take to answer."""


@contextmanager
def mlflow_server(folder: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """An MLflow server on a free loopback port that keeps the files of runs itself; its address and process."""
    folder.mkdir(exist_ok=True)
    address, process = start(folder, store=f"sqlite:///{folder}/mlflow.db", artifacts=str(folder))
    try:
        wait(folder, address, process)
        yield address, process
    finally:
        end(process)


def start(
    folder: Path, *, store: str, artifacts: str, environment: Mapping[str, str] | None = None
) -> tuple[str, subprocess.Popen[bytes]]:
    """
    Begin to start a server; its address and process.

    :param folder: where its log comes.
    :param store: address of its database.
    :param artifacts: where it keeps the files of runs, which it hands on itself.
    :param environment: more of it: credentials of the store of files.
    """
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--artifacts-destination", artifacts]
    settings = {
        # It may hold a password, and everybody sees a command line.
        "MLFLOW_BACKEND_STORE_URI": store,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=os.environ | settings | (environment or {}),
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    return f"http://127.0.0.1:{port}", process


def wait(folder: Path, address: str, process: subprocess.Popen[bytes]) -> None:
    """Wait until a server answers."""
    until = time.monotonic() + START_S
    while True:
        assert process.poll() is None, (folder / "log").read_text()
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=30):
                return
        except OSError:
            assert time.monotonic() < until, (folder / "log").read_text()
            time.sleep(0.2)


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill a server with all that it started."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
