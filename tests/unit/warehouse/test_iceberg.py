"""What a process keeps of a table's metadata is what lies in the file, and is neither read nor copied again."""

from __future__ import annotations

import pyarrow as pa

from airloop.config import Config
from airloop.upkeep import gc
from airloop.upkeep.retention import Policy
from airloop.warehouse.catalog import Warehouse
from airloop.warehouse.refs import TableRef
from airloop.warehouse.store import open_catalog

TABLE = "shop.orders"
SCHEMA = pa.schema([pa.field("id", pa.int64(), nullable=False), pa.field("amount", pa.float64())])


def put(warehouse: Warehouse, number: int) -> int:
    rows = pa.table({"id": [number, number + 1], "amount": [float(number)] * 2}, schema=SCHEMA)
    return warehouse.commit(TABLE, rows, key=f"{number}", mode="upsert", on=["id"]).snapshot


def test_what_is_kept_is_what_lies_in_the_file(config: Config, warehouse: Warehouse) -> None:
    warehouse.ensure(TABLE, SCHEMA, key=("id",))
    snapshots = [put(warehouse, i) for i in range(6)]
    warehouse.branch(TABLE, "audit-0123456789ab", at=snapshots[2])
    warehouse.compact(TABLE)
    gc.collect(config, Policy(0), grace_s=0)
    fresh = Warehouse(config, open_catalog(config))
    assert warehouse.table(TABLE).metadata == fresh.table(TABLE).metadata
    assert warehouse.table(TABLE).metadata_location == fresh.table(TABLE).metadata_location


def test_another_process_is_seen(config: Config, warehouse: Warehouse) -> None:
    warehouse.ensure(TABLE, SCHEMA, key=("id",))
    put(warehouse, 0)
    other = Warehouse(config, open_catalog(config))
    assert other.count(TableRef(TABLE)) == 2
    put(warehouse, 7)
    assert other.count(TableRef(TABLE)) == 4


def test_snapshots_are_not_copied(warehouse: Warehouse) -> None:
    warehouse.ensure(TABLE, SCHEMA, key=("id",))
    put(warehouse, 0)
    before = warehouse.table(TABLE).metadata.snapshots[0]
    put(warehouse, 7)
    assert warehouse.table(TABLE).metadata.snapshots[0] is before
