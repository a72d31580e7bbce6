"""Metadata are written as PyIceberg writes them, though the text of each snapshot is made once."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa

from airloop.warehouse import commit
from airloop.warehouse.catalog import Warehouse

TABLE = "raw.numbers"
SCHEMA = pa.schema([pa.field("n", pa.int64(), nullable=False)])


def test_what_is_on_disk_is_what_pyiceberg_would_write(warehouse: Warehouse) -> None:
    warehouse.ensure(TABLE, SCHEMA, key=["n"])
    for number in range(5):
        warehouse.commit(TABLE, pa.table({"n": [number]}, SCHEMA), key=f"step-{number}", properties={"note": 'a "b"\n'})
        table = warehouse.table(TABLE)
        written = Path(table.metadata_location.removeprefix("file://")).read_bytes()
        assert json.loads(written) == json.loads(table.metadata.model_dump_json(exclude_none=True))
    assert len(table.metadata.snapshots) == 5


def test_a_key_is_found_in_the_metadata_that_have_it(warehouse: Warehouse) -> None:
    warehouse.ensure(TABLE, SCHEMA, key=["n"])
    older = warehouse.table(TABLE)
    for number in range(commit.METADATA_KNOWN + 3):
        made = warehouse.commit(TABLE, pa.table({"n": [number]}, SCHEMA), key=f"step-{number}")
        found = commit.find_key(warehouse.table(TABLE), f"step-{number}")
        assert found is not None
        assert found.snapshot_id == made.snapshot
        assert commit.find_key(older, f"step-{number}") is None
        older = warehouse.table(TABLE)
    assert commit.find_key(older, "") is None
