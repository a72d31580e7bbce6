"""What a manifest says of the tables that a step handed over."""

from __future__ import annotations

import pyarrow as pa

from airloop.config import Config
from airloop.frame.tables import describe_tables
from airloop.warehouse.catalog import Warehouse
from airloop.warehouse.commit import MODE
from airloop.warehouse.refs import TableRef

SCHEMA = pa.schema([pa.field("trip", pa.int64(), nullable=False), pa.field("carrier", pa.string())])


def test_columns_rows_and_bytes_of_the_commit(config: Config, warehouse: Warehouse) -> None:
    warehouse.ensure("raw.trips", SCHEMA, key=["trip"])
    warehouse.commit("raw.trips", pa.table({"trip": [1, 2], "carrier": ["AA", None]}, SCHEMA), key="k1")
    done = warehouse.commit("raw.trips", pa.table({"trip": [3], "carrier": ["UA"]}, SCHEMA), key="k2")
    found = describe_tables({"table": done.ref, "note": "raw.trips@1"}, config)
    (described,) = found.values()
    assert list(found) == [str(done.ref)]
    assert described["columns"] == [["trip", "long"], ["carrier", "string"]]
    assert (described["rows"], described["rows_added"], described["files_added"]) == (3, 1, 1)
    assert described["bytes_added"] > 0


def test_a_table_that_is_not_there_is_left_out(config: Config, warehouse: Warehouse) -> None:
    assert warehouse.tables() == []
    assert describe_tables({"table": TableRef("raw.nothing", 1)}, config) == {}


def test_a_table_without_snapshots_has_columns_and_no_rows(config: Config, warehouse: Warehouse) -> None:
    warehouse.ensure("raw.trips", SCHEMA)
    (described,) = describe_tables({"table": TableRef("raw.trips", 0)}, config).values()
    assert (len(described["columns"]), described["rows"], described["bytes_added"]) == (2, 0, 0)


def test_a_snapshot_says_whether_it_replaced_all_rows(warehouse: Warehouse) -> None:
    """Lineage depends on it: what was replaced has no part in what came after."""
    warehouse.ensure("raw.trips", SCHEMA, key=["trip"])
    rows = pa.table({"trip": [1, 2], "carrier": ["AA", None]}, SCHEMA)
    warehouse.commit("raw.trips", rows, key="k1")
    other = pa.table({"trip": [1], "carrier": ["B6"]}, SCHEMA)
    warehouse.commit("raw.trips", other, key="k2", mode="replace", replace_where="trip = 1")
    warehouse.commit("raw.trips", rows.slice(1, 1), key="k3", mode="replace")
    modes = {s.key: s.summary[MODE] for s in warehouse.history("raw.trips")}
    assert modes == {"k1": "append", "k2": "replace_where", "k3": "replace"}
