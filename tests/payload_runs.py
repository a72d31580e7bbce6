"""Fixtures of the tests that start payload processes: a copy of the code that nobody edits, runners, requests."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import airloop
from airloop.contract import Call
from airloop.warm import stop
from airloop_operators.runners.base import RunOutcome, RunRequest
from airloop_operators.runners.local import LocalRunner
from airloop_operators.runners.warm import WarmServer

PRELOAD = ("airloop.payload", "filelock", "pydantic")
STEPS = Path(__file__).parent


@pytest.fixture(scope="session")
def code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a copy of the package: the warm server retires when its code is edited."""
    folder = tmp_path_factory.mktemp("code")
    package = Path(airloop.__file__).parent
    shutil.copytree(package, folder / "airloop", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(STEPS / "steps_for_tests.py", folder)
    return folder


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Stands for ``XDG_RUNTIME_DIR``; its warm servers are ended with the session."""
    folder = tmp_path_factory.mktemp("run")
    folder.chmod(0o700)
    yield folder
    if (folder / "airloop").is_dir():
        stop(folder / "airloop")


@pytest.fixture
def environment(tmp_path: Path, code: Path, run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    # A busy machine's server is slow to answer, and no test is about how slow.
    monkeypatch.setattr("airloop_operators.runners.warm.ANSWER_S", 60)
    return {
        "AIRLOOP_HOME": str(tmp_path / "home"),
        "XDG_RUNTIME_DIR": str(run_folder),
        "PYTHONPATH": str(code),
    }


@pytest.fixture(params=["cold", "warm"])
def start(request: pytest.FixtureRequest) -> str:
    """How payloads start; every behaviour is the same."""
    return str(request.param)


@pytest.fixture
def make_request(tmp_path: Path, environment: dict[str, str]) -> Callable[..., RunRequest]:
    def make(step: str, *, call: Call | None = None, **more: Any) -> RunRequest:
        extra = more.pop("environment", {})
        limits = {name: more.pop(name) for name in list(more) if name in RunRequest.__dataclass_fields__}
        name = step if ":" in step else f"steps_for_tests:{step}"
        return RunRequest(
            call=call or Call(name, more, os.urandom(8).hex()),
            artifacts=tmp_path / "home" / "artifacts",
            environment={**environment, **extra},
            **limits,
        )

    return make


@pytest.fixture
def make_runner(start: str, make_request: Callable[..., RunRequest]) -> Callable[..., LocalRunner]:
    """A runner whose payloads start as the parameter ``start`` says, beyond doubt."""

    def make(**options: Any) -> LocalRunner:
        if start == "warm":
            wait_for_server(warm_server(make_request("count")))
        return LocalRunner(**{"warm": start == "warm", "preload": PRELOAD, "grace_s": 2.0} | options)

    return make


@pytest.fixture
def run(
    start: str, make_runner: Callable[..., LocalRunner], make_request: Callable[..., RunRequest]
) -> Callable[..., RunOutcome]:
    """Run a step of ``steps_for_tests``."""

    def call(step: str, **more: Any) -> RunOutcome:
        outcome = make_runner().run(make_request(step, **more))
        assert outcome.resources["start"] == start
        return outcome

    return call


def warm_server(request: RunRequest, **options: Any) -> WarmServer:
    """The server that a runner's payload for this request would come from."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", **request.environment}
    return WarmServer(sys.executable, environment, **{"preload": PRELOAD} | options)


def wait_for_server(server: WarmServer, timeout_s: float = 240) -> int:
    """Start a server if there is none, wait until it is ready; returns its process id."""
    lock = server.path.with_suffix(".lock")
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        connection, _ = server.connect()
        words = lock.read_text().split() if lock.exists() else []
        if connection is not None:
            connection.close()
            if words[2:] == ["ready"]:
                return int(words[0])
        starting = server.start()
        if starting is not None:
            starting.wait(timeout_s)
        time.sleep(0.05)
    log = server.path.with_suffix(".log")
    raise AssertionError(f"no warm server: {log.read_text() if log.exists() else 'not started'}")


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def wait_until(condition: Callable[[], object], timeout_s: float = 240) -> None:
    """Wait for something that takes no longer than a machine is busy."""
    until = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.02)
