"""gc, compact, backup and restore killed at each of their points: nothing is lost, and the next one does the rest."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from airloop.config import Config
from airloop.contract import ENV_FAULT
from airloop.objects import Bulk
from airloop.upkeep import gc
from airloop.upkeep.backup import backup
from airloop.upkeep.points import Vault
from airloop.upkeep.restore import restore
from airloop.upkeep.retention import Policy
from airloop.warehouse.catalog import Warehouse
from airloop.warehouse.references import References
from airloop.warehouse.refs import TableRef
from tests.places import IN_A_CLUSTER, table_files

TABLE = "shop.orders"
SCHEMA = pa.schema([pa.field("id", pa.int64(), nullable=False)])


def killed(fault: str, work: Callable[[], Any]) -> bool:
    """Do work in a child process with a fault; whether it was killed. Anything else but success is an error."""
    pid = os.fork()
    if not pid:
        os.environ[ENV_FAULT] = f"kill@{fault}"
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    status = os.waitpid(pid, 0)[1]
    assert os.WIFSIGNALED(status) or os.waitstatus_to_exitcode(status) == 0
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


@pytest.fixture
def shop(config: Config) -> Config:
    """Six snapshots of one row each, an old file of a killed writer, an old working folder."""
    warehouse = Warehouse.open(config)
    warehouse.ensure(TABLE, SCHEMA)
    for i in range(6):
        warehouse.commit(TABLE, pa.table({"id": [i]}, schema=SCHEMA), key=f"{i}")
    left = [config.warehouse / "shop" / "orders" / "data" / f"0-left-{i}.parquet" for i in range(3)]
    for path in left:
        path.write_bytes(b"x")
        os.utime(path, (time.time() - 10**6,) * 2)
    return config


def ids(config: Config, ref: TableRef) -> list[int]:
    rows = Warehouse.open(config).scan(ref).read_all().column("id").to_pylist()
    return sorted(rows)


def whole(config: Config) -> None:
    """Every snapshot in the metadata can be read, and has all of its rows."""
    warehouse = Warehouse.open(config)
    for snapshot in warehouse.history(TABLE):
        assert ids(config, TableRef(TABLE, snapshot.id)) == list(range(snapshot.rows_total))
    assert ids(config, TableRef(TABLE)) == list(range(6))


@pytest.mark.parametrize("fault", ["expire:before", "expire:after", "gc:listed", "gc:remove", "gc:remove:2"])
def test_gc(shop: Config, fault: str) -> None:
    def work() -> None:
        gc.collect(shop, Policy(keep_days=0), grace_s=0)

    assert killed(fault, work)
    whole(shop)
    for i in range(6):
        assert Warehouse.open(shop).commit(TABLE, pa.table({"id": [i]}, schema=SCHEMA), key=f"{i}").adopted
    gc.collect(shop, Policy(keep_days=0), grace_s=0)
    gc.collect(shop, Policy(keep_days=0), grace_s=0)
    whole(shop)
    there = {str(p) for p in (shop.warehouse / "shop" / "orders").rglob("*") if p.is_file()}
    assert there == References(Warehouse.open(shop).table(TABLE)).all()
    assert not (shop.home / "locks" / "deciding").exists()


COLLECT = """
from airloop.config import Config
from airloop.upkeep import gc
from airloop.upkeep.retention import Policy
gc.collect(Config.from_environment(), Policy(keep_days=0), grace_s=-5)
"""


@IN_A_CLUSTER
@pytest.mark.parametrize("fault", ["expire:after", "gc:remove:2"])
def test_gc_of_state_that_pods_share(config: Config, fault: str) -> None:
    """It is killed between metadata and files, or between two batches of files: what is named is there."""
    warehouse = Warehouse.open(config)
    warehouse.ensure(TABLE, SCHEMA)
    for i in range(6):
        warehouse.commit(TABLE, pa.table({"id": [i]}, schema=SCHEMA), key=f"{i}")
    warehouse.compact(TABLE)
    Bulk(config.warehouse).publish("shop/orders/data/0-left.parquet", b"x")
    environment = {
        "AIRLOOP_HOME": config.home, "AIRLOOP_WAREHOUSE": config.warehouse, "AIRLOOP_ARTIFACTS": config.artifacts,
        "AIRLOOP_CATALOG": config.catalog, ENV_FAULT: f"kill@{fault}",
    }  # fmt: skip
    # Not forked: Arrow's client has threads.
    done = subprocess.run(
        [sys.executable, "-c", COLLECT], env=os.environ | {n: str(v) for n, v in environment.items()}, check=False
    )
    assert done.returncode == -signal.SIGKILL
    whole(config)
    assert References(warehouse.table(TABLE)).all() < table_files(config)
    gc.collect(config, Policy(keep_days=0), grace_s=-5)
    whole(config)
    assert References(warehouse.table(TABLE)).all() == table_files(config)
    assert warehouse.commit(TABLE, pa.table({"id": [3]}, schema=SCHEMA), key="3").adopted


@pytest.mark.parametrize("fault", ["compact:written", "compact:before", "compact:after"])
def test_compact(shop: Config, fault: str) -> None:
    assert killed(fault, lambda: Warehouse.open(shop).compact(TABLE))
    whole(shop)
    again = Warehouse.open(shop).compact(TABLE)
    assert again.changed == (fault != "compact:after")
    whole(shop)
    for _ in range(2):
        gc.collect(shop, grace_s=0)
    there = {str(p) for p in (shop.warehouse / "shop" / "orders").rglob("*") if p.is_file()}
    assert there == References(Warehouse.open(shop).table(TABLE)).all()


@pytest.mark.parametrize(
    "fault", ["backup:object", "backup:object:5", "backup:artifacts", "backup:catalog", "backup:point"]
)
def test_backup(shop: Config, tmp_path: Path, fault: str) -> None:
    vault = tmp_path / "vault"
    (shop.artifacts / "reports").mkdir(parents=True)
    (shop.artifacts / "reports" / "index.html").write_text("<p>")
    assert killed(fault, lambda: backup(shop, vault))
    assert Vault(vault).points() == []
    made, _ = backup(shop, vault)
    assert Vault(vault).verify(made)
    assert Vault(vault).points() == [made.name]


@pytest.mark.parametrize("fault", ["restore:copied", "restore:before"])
def test_restore(shop: Config, tmp_path: Path, fault: str) -> None:
    backup(shop, tmp_path / "vault")
    home = tmp_path / "new"
    assert killed(fault, lambda: restore(tmp_path / "vault", home))
    assert not home.exists()
    restore(tmp_path / "vault", home)
    whole(Config.from_environment({"AIRLOOP_HOME": str(home), "AIRLOOP_MEMORY_MB": "512"}))
