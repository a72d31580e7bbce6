"""The loop that the README shows, run by Airflow."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from airloop.config import Config
from airloop.frame import history
from airloop.registry.ledger import Ledger
from airloop.warehouse.artifacts import ArtifactStore
from airloop.warehouse.catalog import Warehouse

REPOSITORY = Path(__file__).resolve().parents[2]


def test_the_loop_in_the_readme_runs(
    config: Config, monkeypatch: pytest.MonkeyPatch, test_dag: Callable[..., Any]
) -> None:
    from airflow.dag_processing.dagbag import DagBag

    monkeypatch.setenv("AIRLOOP_HOME", str(config.home))
    dag = DagBag(str(REPOSITORY / "dags" / "rain.py")).dags["rain"]
    ended = test_dag(dag, logical_date=datetime(2013, 2, 1, tzinfo=UTC))
    assert str(ended.state) == "success"
    entry = Ledger(Warehouse.open(config)).champion_at("rain")
    assert entry is not None
    assert (entry.version, entry.outcome, entry.run_id) == (1, "promote", ended.run_id)
    tasks = history.run(ArtifactStore(config.artifacts), "rain", ended.run_id).tasks
    assert {t.status for t in tasks.values()} == {"done"}
    assert len(tasks) == len(dag.tasks)
