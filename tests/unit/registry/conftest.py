"""MLflow runs with a model, made without training one."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from airloop.config import Config
from airloop.training import tracking


@pytest.fixture(scope="session")
def empty_mlflow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's tables, made once: it takes longer than most tests."""
    home = tmp_path_factory.mktemp("mlflow")
    config = Config.from_environment({"AIRLOOP_HOME": str(home)})
    tracking.client(config)
    return home / "mlflow.db"


@pytest.fixture
def config(config: Config, empty_mlflow: Path) -> Config:
    config.home.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(empty_mlflow, config.home / "mlflow.db")
    return config


@pytest.fixture
def candidate(config: Config, tmp_path: Path) -> Callable[..., str]:
    """Log a run as train does; returns its id."""

    def make(key: str = "k1") -> str:
        folder = tmp_path / f"bundle-{key}"
        folder.mkdir(exist_ok=True)
        (folder / "model.txt").write_text(key)
        run_id, _ = tracking.log_run(
            config, experiment=tracking.experiment_id(config, "delay"), name="train", tags={"airloop.key": key},
            parameters={}, curves={}, metrics={}, datasets=[], model=folder,
        )  # fmt: skip
        return run_id

    return make
