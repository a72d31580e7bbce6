"""A small audited table: rows as extract leaves them on an audit branch, and a suite with rules of each kind."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from airloop.warehouse.catalog import Warehouse
from airloop.warehouse.refs import ROWS_BROUGHT, TableRef

TABLE = "raw.trips"
SCHEMA = pa.schema(
    [
        pa.field("trip", pa.int64()),
        pa.field("carrier", pa.string()),
        pa.field("delay", pa.float64()),
        pa.field("_batch", pa.string()),
        pa.field("_source", pa.string()),
        pa.field("_row", pa.int64()),
    ]
)


def rule(kind: str, *, quarantine: bool = False, severity: str = "critical", **kwargs: Any) -> dict[str, Any]:
    """One expectation of a suite."""
    meta = {"airloop": {"quarantine": True}} if quarantine else {}
    return {"type": kind, "kwargs": kwargs, "severity": severity, "meta": meta}


def suite(*rules: dict[str, Any]) -> dict[str, Any]:
    return {"name": "trips", "expectations": list(rules)}


LENIENT = suite(
    rule("expect_column_values_to_be_between", quarantine=True, column="delay", min_value=-60, max_value=600),
    rule("expect_column_values_to_be_in_set", quarantine=True, column="carrier", value_set=["AA", "UA"]),
    rule("expect_column_values_to_not_be_null", column="trip"),
    rule("expect_compound_columns_to_be_unique", column_list=["trip", "carrier"]),
    rule("expect_table_row_count_to_be_between", min_value=1),
)
"""Bad delays and carriers may be kept back; all else decides about all."""


def rows(
    trips: list[tuple[int | None, str | None, float | None]], *, batch: str, source: str = "trips.csv"
) -> pa.Table:
    """Rows of a file, numbered as they are in it."""
    return pa.table(
        {
            "trip": [t for t, _, _ in trips],
            "carrier": [c for _, c, _ in trips],
            "delay": [d for _, _, d in trips],
            "_batch": [batch] * len(trips),
            "_source": [source] * len(trips),
            "_row": range(1, len(trips) + 1),
        },
        schema=SCHEMA,
    )


def bring(warehouse: Warehouse, trips: list[tuple[int | None, str | None, float | None]], *, batch: str) -> TableRef:
    """What extract does: upsert on an audit branch."""
    warehouse.ensure(TABLE, SCHEMA, key=["trip"])
    commit = warehouse.commit(
        TABLE,
        rows(trips, batch=batch),
        key=batch,
        mode="upsert",
        on=["trip"],
        branch=f"audit-{batch[:12]}",
        properties={ROWS_BROUGHT: str(len(trips))},
    )
    return TableRef(TABLE, commit.snapshot)


def on_main(warehouse: Warehouse) -> list[tuple[Any, ...]]:
    """``(trip, carrier, delay)`` of every row that is published, sorted."""
    found = warehouse.scan(TableRef(TABLE, warehouse.head(TABLE))).read_all().to_pylist()
    return sorted((r["trip"], r["carrier"], r["delay"]) for r in found)


def in_quarantine(warehouse: Warehouse) -> list[tuple[Any, ...]]:
    """``(trip, source, row, rules)`` of every quarantined row, sorted."""
    name = "quarantine.raw_trips"
    if not warehouse.exists(name):
        return []
    found = warehouse.scan(TableRef(name, warehouse.head(name))).read_all().to_pylist()
    return sorted((r["trip"], r["_source"], r["_row"], tuple(r["_rules"])) for r in found)


GOOD = [(n, "AA" if n % 2 else "UA", float(n)) for n in range(1, 21)]
"""Twenty rows that break nothing."""
BATCH = "b1" * 32
OTHER = "c2" * 32
