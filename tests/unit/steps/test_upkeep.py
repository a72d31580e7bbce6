"""Steps upkeep and backup: what Airflow schedules."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa

from airloop.config import Config
from airloop.contract import Interval
from airloop.upkeep.points import Vault
from airloop.warehouse.catalog import Warehouse
from airloop.warehouse.refs import TableRef

SCHEMA = pa.schema([pa.field("id", pa.int64(), nullable=False)])
RunStep = Callable[..., dict[str, Any]]


def fill(warehouse: Warehouse) -> None:
    warehouse.ensure("shop.orders", SCHEMA)
    for i in range(5):
        warehouse.commit("shop.orders", pa.table({"id": [i]}, schema=SCHEMA), key=f"{i}")


def test_upkeep(config: Config, warehouse: Warehouse, interval: Interval, run_step: RunStep) -> None:
    fill(warehouse)
    first = run_step("upkeep", interval=interval, keep_days=0, grace_hours=0)
    assert first["counts"]["tables_compacted"] == 1
    # The head stays, and the snapshot before the compaction, which `main` still stands for.
    assert first["counts"]["snapshots_expired"] == 4
    assert warehouse.count(TableRef("shop.orders")) == 5
    assert run_step("upkeep", interval=interval, keep_days=0, grace_hours=0)["status"] == "reused"


def test_backup(config: Config, warehouse: Warehouse, interval: Interval, run_step: RunStep, tmp_path: Path) -> None:
    fill(warehouse)
    vault = tmp_path / "vault"
    made = run_step("backup", interval=interval, target=str(vault))
    assert Vault(vault).points() == [made["details"]["point"]]
    assert run_step("backup", interval=interval, target=str(vault))["status"] == "reused"
    shutil.rmtree(vault)
    assert run_step("backup", interval=interval, target=str(vault))["status"] == "done"
