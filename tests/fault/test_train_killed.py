"""Training and scoring that are killed: whatever the points, one finished run and one snapshot come of it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from airloop.config import Config
from airloop.contract import ENV_CALL, ENV_FAULT, ENV_RECEIPT, Call, RunInfo
from airloop.training import tracking
from airloop.training.models import load_model
from airloop.warehouse.catalog import Warehouse
from tests.training_rows import make_rows, save_rows


def kill_at(point: str, call: Call, config: Config, receipt: Path) -> None:
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith("AIRLOOP_")},
        "AIRLOOP_HOME": str(config.home),
        ENV_CALL: call.to_json(),
        ENV_RECEIPT: str(receipt),
        ENV_FAULT: f"kill@{point}",
    }
    command = [sys.executable, "-m", "airloop", "run", call.step]
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert done.returncode == -9, f"{point}: {done.stderr.decode()}"


def test_killed_attempts_leave_one_finished_run(
    run_step: Callable[..., dict[str, Any]], warehouse: Warehouse, config: Config, tmp_path: Path
) -> None:
    arguments = {"examples": str(save_rows(warehouse, make_rows(600))), "hyperparameters": {"n_estimators": 5}}
    call = Call("train", arguments, run=RunInfo("d", "r", "t"))
    for point in ("train:fitted", "mlflow:run", "mlflow:logged"):
        kill_at(point, call, config, tmp_path / "receipt")
    done = run_step("train", **arguments)
    experiment = done["details"]["mlflow"]["experiment_id"]
    runs = tracking.client(config).search_runs([experiment])
    assert sorted(r.info.status for r in runs) == ["FINISHED", "KILLED", "KILLED"]
    finished = done["details"]["mlflow"]["run_id"]
    assert [r.info.run_id for r in runs if r.info.status == "FINISHED"] == [finished]

    # Killed after the run was finished, before anybody was told: adopted, not trained again.
    kill_at(
        "manifest", Call("train", arguments | {"seed": 5}, run=RunInfo("d", "r", "t")), config, tmp_path / "receipt"
    )
    adopted = run_step("train", **arguments, seed=5)
    assert len(tracking.client(config).search_runs([experiment])) == 4
    assert load_model(config, adopted["outputs"]["model"]["reference"]).key == adopted["key"]
