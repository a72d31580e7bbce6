"""The digest of rows: the same content has one digest, any other content has another."""

from __future__ import annotations

import math
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airloop.config import Config
from airloop.provenance.digest import ROWS_PER_BLOCK, RowsDigest, digest, digest_table
from airloop.warehouse.catalog import Warehouse

COLUMNS: dict[str, tuple[pa.DataType, list[Any]]] = {
    "i": (pa.int64(), [1, None, -3]),
    "n": (pa.int32(), [1, None, -3]),
    "f": (pa.float64(), [0.5, None, math.nan]),
    "g": (pa.float32(), [0.5, None, -0.0]),
    "b": (pa.bool_(), [True, None, False]),
    "s": (pa.string(), ["a", None, "bc"]),
    "y": (pa.binary(), [b"\x00", None, b""]),
    "d": (pa.date32(), [date(2013, 1, 1), None, date(1969, 1, 1)]),
    "m": (pa.time64("us"), [time(1), None, time(2, 3)]),
    "t": (pa.timestamp("us", "UTC"), [datetime(2013, 1, 1, tzinfo=UTC), None, datetime(1960, 1, 1, tzinfo=UTC)]),
    "x": (pa.decimal128(9, 2), [Decimal("1.25"), None, Decimal("-7.00")]),
    "l": (pa.list_(pa.int64()), [[1, None], None, []]),
    "r": (pa.struct([("a", pa.int64()), ("b", pa.list_(pa.string()))]), [{"a": 1, "b": ["x"]}, None, {"a": None}]),
}
SCHEMA = pa.schema([(name, type_) for name, (type_, _) in COLUMNS.items()])
TABLE = pa.table({name: pa.array(values, type_) for name, (type_, values) in COLUMNS.items()}, SCHEMA)


def of(table: pa.Table, rows_per_batch: int = 10_000) -> RowsDigest:
    return digest(table.schema, table.to_batches(max_chunksize=rows_per_batch))


def test_every_type_counts_and_keeps_its_digest() -> None:
    found = of(TABLE)
    assert found.rows == 3
    assert found.columns[0] == ("i", "int64")
    # Pinned: digests are kept for years.
    assert found.sha256 == "ea4b8e3e801b5389597168d45a98d07a357d17a3b8868d42a013bbdfdfc67b87"


@given(st.integers(1, 7), st.integers(0, 40), st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_chunks_and_offsets_do_not_count(rows_per_batch: int, times: int, skipped: int) -> None:
    table = pa.concat_tables([TABLE] * times) if times else TABLE.slice(0, 0)
    padded = pa.concat_tables([TABLE.slice(0, min(skipped, 3)), table])
    assert of(padded.slice(min(skipped, 3)), rows_per_batch) == of(table)


def test_how_arrow_holds_a_column_does_not_count() -> None:
    texts = ["a", None, "b", "a"]
    forms = [
        pa.array(texts),
        pa.array(texts, pa.large_string()),
        pa.array(texts, pa.string_view()),
        pa.array(texts).dictionary_encode(),
    ]
    assert len({of(pa.table({"s": form})).sha256 for form in forms}) == 1


def test_what_lies_under_a_gap_does_not_count() -> None:
    import numpy as np

    gap = pa.Array.from_buffers(pa.int64(), 2, [pa.py_buffer(b"\x01"), pa.py_buffer(np.array([1, 99]).tobytes())])
    assert of(pa.table({"a": gap})) == of(pa.table({"a": pa.array([1, None])}))


@pytest.mark.parametrize("name", list(COLUMNS))
def test_a_changed_value_a_lost_value_and_a_changed_order_change_it(name: str) -> None:
    type_, values = COLUMNS[name]
    seen = {of(TABLE).sha256}
    for other in ([values[1], values[0], values[2]], [values[0], values[1], None], [values[0]] * 3):
        changed = TABLE.set_column(TABLE.schema.names.index(name), pa.field(name, type_), pa.array(other, type_))
        seen.add(of(changed).sha256)
    assert len(seen) == 4


def test_names_types_and_the_borders_of_texts_count() -> None:
    tables = [
        pa.table({"a": ["ab", "c"]}), pa.table({"a": ["a", "bc"]}), pa.table({"b": ["ab", "c"]}),
        pa.table({"a": pa.array([1], pa.int64())}), pa.table({"a": pa.array([1], pa.int32())}),
        pa.table({"a": pa.array([None], pa.int64())}), pa.table({"a": pa.array([0], pa.int64())}),
        pa.table({"a": pa.array([[1], [2]])}), pa.table({"a": pa.array([[1, 2], []], pa.list_(pa.int64()))}),
        pa.table({"a": pa.array([[]], pa.list_(pa.int64()))}), pa.table({"a": pa.array([None], pa.list_(pa.int64()))}),
    ]  # fmt: skip
    assert len({of(t).sha256 for t in tables}) == len(tables)


def test_more_rows_than_a_block() -> None:
    table = pa.table({"a": range(2 * ROWS_PER_BLOCK + 5)})
    assert of(table, 1000) == of(table, 10**9)
    assert of(table.slice(0, ROWS_PER_BLOCK)).rows == ROWS_PER_BLOCK


def test_a_table_as_written_and_sorted(config: Config, warehouse: Warehouse) -> None:
    rows = pa.table({"k": [3, 1, 2], "v": ["c", None, "b"]})
    refs = []
    for name, order in (("a.one", [0, 1, 2]), ("a.two", [2, 0, 1])):
        warehouse.ensure(name, rows.schema)
        refs.append(warehouse.commit(name, rows.take(order), key=name).ref)
    one, two = (digest_table(config, ref) for ref in refs)
    assert one.sha256 != two.sha256
    one, two = (digest_table(config, ref, in_order=False) for ref in refs)
    assert one == two
    assert one.rows == 3
