"""MLflow on its own SQLite file: what is logged, what is found again, and what errors say."""

from __future__ import annotations

import shutil
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from airloop.config import Config
from airloop.errors import BadArgument, BadConfiguration, NotFound, Unreachable
from airloop.training import tracking
from airloop.training.models import load_model


def log(config: Config, tmp_path: Path, **changed: Any) -> tuple[str, str]:
    model = tmp_path / "model"
    model.mkdir(exist_ok=True)
    (model / "MLmodel").write_text("flavors: {}\n")
    what: dict[str, Any] = {
        "name": "a run",
        "tags": {tracking.KEY_TAG: "k1"},
        "parameters": {},
        "curves": {},
        "metrics": {},
        "datasets": [],
    }
    experiment = tracking.experiment_id(config, "delay")
    return tracking.log_run(config, experiment=experiment, model=model, **what | changed)


def test_long_curves_and_many_parameters_are_logged_whole(config: Config, tmp_path: Path) -> None:
    curve = [1 / n for n in range(1, 1501)]
    parameters = {f"p{n}": n for n in range(150)} | {"constraints": {"a": 1}}
    run_id, _ = log(config, tmp_path, curves={"train": {"logloss": curve}}, parameters=parameters)
    client = tracking.client(config)
    assert [m.value for m in client.get_metric_history(run_id, "train_logloss")] == curve
    logged = client.get_run(run_id).data.params
    assert len(logged) == 151
    assert logged["constraints"] == '{"a": 1}'


def test_a_finished_run_is_found_by_its_key_and_only_it(config: Config, tmp_path: Path) -> None:
    run_id, model_id = log(config, tmp_path)
    experiment = tracking.experiment_id(config, "delay")
    found = tracking.finished_run(config, experiment, "k1")
    assert found is not None
    assert found.info.run_id == run_id
    assert tracking.finished_run(config, experiment, "k2") is None
    assert tracking.finished_run(config, tracking.experiment_id(config, "other"), "k1") is None
    assert tracking.logged_model_id(config, run_id) == model_id
    assert tracking.logged_model_uri(config, run_id) == f"models:/{model_id}"
    tracking.client(config).update_run(run_id, "RUNNING")
    assert tracking.finished_run(config, experiment, "k1") is None
    assert tracking.end_leftovers(config, experiment, "k2") == 0
    assert tracking.end_leftovers(config, experiment, "k1") == 1
    assert tracking.client(config).get_run(run_id).info.status == "KILLED"


def test_files_of_runs_stay_below_the_configured_folder(config: Config, tmp_path: Path) -> None:
    _, model_id = log(config, tmp_path)
    folder = tracking.download_model(config, model_id, tmp_path / "unused")
    assert folder.is_relative_to(config.mlflow_artifacts)
    default = tracking.client(config).get_experiment("0")
    assert default.artifact_location.removeprefix("file://").startswith(config.mlflow_artifacts)


def test_what_is_gone_is_not_found(config: Config, tmp_path: Path) -> None:
    run_id, model_id = log(config, tmp_path)
    with pytest.raises(NotFound, match=r"has no bundle\.json"):
        load_model(config, f"model:/run/{run_id}")
    shutil.rmtree(tracking.download_model(config, model_id, tmp_path))
    with pytest.raises(NotFound, match=r"files of MLflow model .* are gone"):
        load_model(config, f"model:/run/{run_id}")
    with pytest.raises(NotFound, match="MLflow at sqlite"):
        load_model(config, "model:/run/" + "0" * 32)
    with pytest.raises(NotFound, match="MLflow at sqlite"):
        load_model(config, "model:/delay/7")
    with pytest.raises(NotFound, match="no such model yet"):
        load_model(config, "model:/delay/none")
    with pytest.raises(BadArgument, match="is no resolved model"):
        load_model(config, "delay@champion")
    tracking.client(config).delete_run(run_id)
    with pytest.raises(NotFound, match="is deleted"):
        tracking.logged_model_id(config, run_id)


def test_a_deleted_experiment_is_said(config: Config) -> None:
    tracking.client(config).delete_experiment(tracking.experiment_id(config, "delay"))
    with pytest.raises(BadConfiguration, match="experiment 'delay' is deleted; restore it"):
        tracking.experiment_id(config, "delay")


@pytest.mark.parametrize("address", ["ftp://me:hunter2@host/x", "./mlruns", "databricks"])
def test_an_address_that_cannot_be_used(config: Config, address: str) -> None:
    with pytest.raises(BadConfiguration, match="no address of MLflow") as caught:
        tracking.client(replace(config, mlflow=address))
    assert "hunter2" not in str(caught.value)


def test_a_refused_connection_is_worth_a_retry(config: Config) -> None:
    with pytest.raises(Unreachable, match=r"MLflow at http://127\.0\.0\.1:9 does not answer"):
        tracking.client(replace(config, mlflow="http://127.0.0.1:9"))


def test_a_database_that_is_none(config: Config, tmp_path: Path) -> None:
    file = tmp_path / "other.db"
    file.write_text("these are not the bytes you are looking for\n" * 100)
    with pytest.raises(BadConfiguration, match="cannot be used"):
        tracking.client(replace(config, mlflow=f"sqlite:///{file}"))


def test_a_database_of_another_version(config: Config, tmp_path: Path) -> None:
    log(config, tmp_path)
    copy = tmp_path / "copy.db"
    shutil.copy(config.mlflow.removeprefix("sqlite:///"), copy)
    with sqlite3.connect(copy) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '451aebb31d03'")
    connection.close()
    with pytest.raises(BadConfiguration, match="is of another version; back it up"):
        tracking.client(replace(config, mlflow=f"sqlite:///{copy}"))
