"""Training and loading against a real MLflow server, one that is silent, and one that ends."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from airloop.config import Config
from airloop.errors import NotFound, Unreachable
from airloop.training import tracking
from airloop.training.models import load_model
from airloop.warehouse.catalog import Warehouse
from tests.mlflow_server import end, mlflow_server
from tests.training_rows import make_rows, save_rows

Run = Callable[..., dict[str, Any]]
LIMIT_S = 240
"""Seconds in which a server that does not answer is given up; the machine may be busy."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    with mlflow_server(tmp_path / "server") as started:
        yield started


def test_train_and_load_over_http_until_the_server_ends(
    server: tuple[str, subprocess.Popen[bytes]], run_step: Run, warehouse: Warehouse, config: Config
) -> None:
    address, process = server
    there = replace(config, mlflow=address)
    rows = make_rows(600)
    arguments = {"examples": str(save_rows(warehouse, rows)), "hyperparameters": {"n_estimators": 10}}
    done = run_step("train", **arguments, config=there)
    assert done["links"]["mlflow"].startswith(f"{address}/#/experiments/")
    uri = done["outputs"]["model"]["reference"]
    model = load_model(there, uri)
    assert model.key == done["key"]
    here = run_step("train", **arguments, config=replace(config, artifacts=config.home / "other"))
    np.testing.assert_array_equal(
        model.predict(rows), load_model(config, here["outputs"]["model"]["reference"]).predict(rows)
    )
    assert run_step("train", **arguments, config=there)["status"] == "reused"
    with pytest.raises(NotFound, match="MLflow at"):
        load_model(there, "model:/run/" + "0" * 32)
    with pytest.raises(NotFound, match="MLflow at"):
        load_model(there, "model:/delay/1")

    end(process)
    started = time.monotonic()
    with pytest.raises(Unreachable, match="does not answer"):
        load_model(there, uri)
    assert time.monotonic() - started < LIMIT_S


def test_a_silent_server_is_given_up_in_bounded_time(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"http://me:hunter2@127.0.0.1:{silent.getsockname()[1]}"
        started = time.monotonic()
        with pytest.raises(Unreachable, match=r"me:\*\*\*@127\.0\.0\.1:\d+ does not answer") as caught:
            tracking.experiment_id(replace(config, mlflow=address), "delay")
    assert time.monotonic() - started < LIMIT_S
    cause: BaseException | None = caught.value
    while cause is not None:
        assert "hunter2" not in str(cause)
        cause = cause.__cause__


def test_two_processes_make_the_database_at_once(config: Config) -> None:
    code = (
        "import sys; from airloop.config import Config; from airloop.training import tracking; "
        "print(tracking.experiment_id(Config.from_environment(), 'delay'))"
    )
    environment = os.environ | {"AIRLOOP_HOME": str(config.home)}
    processes = [
        subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    answers = [p.communicate(timeout=800) for p in processes]
    assert [p.returncode for p in processes] == [0, 0], answers
    assert answers[0][0] == answers[1][0], "one experiment"
    assert answers[0][1] == b"", "MLflow says nothing of its own"


def test_many_threads_of_mlflow_do_not_outlive_the_step(run_step: Run, warehouse: Warehouse) -> None:
    run_step("train", examples=str(save_rows(warehouse, make_rows(600))), hyperparameters={"n_estimators": 5})
    left = [t.name for t in threading.enumerate() if t is not threading.main_thread() and not t.daemon]
    assert not [name for name in left if "mlflow" in name.lower()]
