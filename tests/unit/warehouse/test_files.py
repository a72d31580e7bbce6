"""Data files: chunking, partitions, statistics, field ids."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyiceberg.conversions import from_bytes

from airloop.config import Config
from airloop.errors import BadArgument
from airloop.warehouse.catalog import Warehouse
from airloop.warehouse.files import ROWS_LOOKED_AT, chunks
from airloop.warehouse.read import live_files
from airloop.warehouse.refs import TableRef
from tests.places import EVERYWHERE

UTC_US = pa.timestamp("us", tz="UTC")


def small_chunks(config: Config, rows: int) -> Config:
    from dataclasses import replace

    return replace(config, rows_per_chunk=rows)


def test_chunks_cut_and_join() -> None:
    def parts() -> Iterator[Any]:
        yield pa.record_batch({"a": [1, 2]})
        yield pa.record_batch({"a": pa.array([], pa.int64())})
        yield pa.table({"a": [3, 4, 5, 6, 7]})

    assert [c["a"].to_pylist() for c in chunks(parts(), rows_per_chunk=3)] == [[1, 2, 3], [4, 5, 6], [7]]
    assert list(chunks([], rows_per_chunk=3)) == []
    with pytest.raises(BadArgument, match="rows hold str"):
        list(chunks(["x"], rows_per_chunk=3))  # type: ignore[list-item]


@EVERYWHERE
def test_files_are_small_and_carry_field_ids(config: Config) -> None:
    warehouse = Warehouse.open(small_chunks(config, 4))
    rows = pa.table({"id": list(range(10)), "s": [f"s{i}" for i in range(10)]})
    warehouse.ensure("raw.a", rows.schema)
    commit = warehouse.commit("raw.a", rows, key="1")
    files = live_files(warehouse.table("raw.a"), commit.snapshot)
    assert [f.rows for f in files] == [4, 4, 2]
    with warehouse.table("raw.a").io.new_input(files[0].path).open() as stream:
        schema = pq.read_schema(stream)
    assert [schema.field(i).metadata[b"PARQUET:field_id"] for i in range(2)] == [b"1", b"2"]
    assert warehouse.scan(commit.ref).read_all() == rows


@EVERYWHERE
def test_statistics(warehouse: Warehouse) -> None:
    schema = pa.schema(
        [
            ("i", pa.int64()),
            ("x", pa.float64()),
            ("s", pa.string()),
            ("t", UTC_US),
            ("d", pa.date32()),
            ("b", pa.bool_()),
            ("n", pa.string()),
            ("l", pa.list_(pa.int32())),
        ]
    )
    rows = {
        "i": [3, None, -1],
        "x": [float("nan"), 1.5, 2.5],
        "s": ["b" * 40, "a" * 40, None],
        "t": [datetime(1969, 1, 1, tzinfo=UTC), datetime(9999, 1, 1, tzinfo=UTC), None],
        "d": [date(2013, 1, 1), None, date(2012, 1, 1)],
        "b": [True, False, None],
        "n": [None, None, None],
        "l": [[1], [], None],
    }
    warehouse.ensure("raw.a", schema)
    commit = warehouse.commit("raw.a", pa.table(rows, schema), key="1")
    table = warehouse.table("raw.a")
    (file,) = live_files(table, commit.snapshot)
    ids = {f.name: f.field_id for f in table.schema().fields}
    types = {f.name: f.field_type for f in table.schema().fields}
    low = {n: from_bytes(types[n], v) for n, k in ids.items() if (v := file.data_file.lower_bounds.get(k))}
    high = {n: from_bytes(types[n], v) for n, k in ids.items() if (v := file.data_file.upper_bounds.get(k))}
    assert (low["i"], high["i"]) == (-1, 3)
    assert (low["s"], high["s"]) == ("a" * 16, "b" * 15 + "c")
    assert low["t"] == -31536000000000
    assert (low["x"], high["x"]) == (1.5, 2.5)
    assert "n" not in low
    assert "l" not in low
    assert {n: file.data_file.null_value_counts.get(k) for n, k in ids.items()} == {
        "i": 1, "x": 0, "s": 1, "t": 1, "d": 1, "b": 1, "n": 3, "l": None,
    }  # fmt: skip


@EVERYWHERE
def test_what_grows_from_row_to_row_has_no_dictionary(warehouse: Warehouse) -> None:
    """Whatever comes after the rows that it was chosen by."""
    count, last = ROWS_LOOKED_AT + 500, 2**63 - 1
    first = range(count - 2)
    columns: dict[str, Any] = {
        "place": pa.array(range(1, count + 1), pa.int64()),
        "turns": pa.array([*first, -last - 1, last], pa.int64()),
        "small": pa.array([*first, None, -(2**31)], pa.int32()),
        "at": pa.array([*(n * 1_000_000 for n in first), 0, -1], UTC_US),
        "again": pa.array([n // 2 for n in range(count)], pa.int64()),
        "gap": pa.array([None, *range(1, count)], pa.int64()),
        "text": pa.array([f"{n:05}" for n in range(count)]),
    }
    rows = pa.table(columns)
    warehouse.ensure("raw.a", rows.schema)
    commit = warehouse.commit("raw.a", rows, key="1")
    table = warehouse.table("raw.a")
    assert with_dictionary(warehouse, commit.ref) == {"again", "gap", "text"}
    assert warehouse.scan(commit.ref).read_all() == rows
    assert table.scan(snapshot_id=commit.snapshot).to_arrow().equals(rows.cast(table.scan().to_arrow().schema))


def test_columns_of_few_rows_or_beside_nested_ones_have_one(warehouse: Warehouse) -> None:
    numbers = list(range(ROWS_LOOKED_AT))
    few, nested = {"id": numbers[1:]}, {"id": numbers, "l": [[1]] * len(numbers)}
    for name, columns in {"raw.few": few, "raw.nested": nested}.items():
        rows = pa.table(columns)
        warehouse.ensure(name, rows.schema)
        commit = warehouse.commit(name, rows, key="1")
        assert "id" in with_dictionary(warehouse, commit.ref)
        assert warehouse.scan(commit.ref).read_all() == rows


def with_dictionary(warehouse: Warehouse, ref: TableRef) -> set[str]:
    """Columns that have one in the only file of a snapshot."""
    table = warehouse.table(ref.name)
    (file,) = live_files(table, ref.snapshot)
    with table.io.new_input(file.path).open() as stream:
        group = pq.ParquetFile(stream).metadata.row_group(0)
    columns = [group.column(n) for n in range(group.num_columns)]
    return {column.path_in_schema for column in columns if column.has_dictionary_page}


INSTANTS = [
    datetime(2013, 1, 31, 23, 59, 59, 999999, tzinfo=UTC),
    datetime(2013, 2, 1, tzinfo=UTC),
    datetime(1969, 12, 31, 23, 59, 59, tzinfo=UTC),
    datetime(1970, 1, 1, tzinfo=UTC),
    datetime(1900, 3, 1, tzinfo=UTC),
    None,
]


TRANSFORMS = [
    "year(at)", "month(at)", "day(at)", "hour(at)", "identity(at)", "month(d)", "day(d)", "identity(d)",
    "identity(s)", "identity(b)", "bucket(s, 4)", "truncate(s, 1)", "identity(s), month(at)",
]  # fmt: skip
PLACES = [("folder", t) for t in TRANSFORMS] + [("bucket", t) for t in ("month(at)", "identity(s), identity(at)")]


@pytest.mark.parametrize(("config", "partition_by"), PLACES, indirect=["config"])
def test_partitions_are_icebergs(warehouse: Warehouse, partition_by: str) -> None:
    schema = pa.schema([("at", UTC_US), ("d", pa.date32()), ("s", pa.string()), ("b", pa.bool_())])
    rows = [
        {"at": at, "d": at.date() if at else None, "s": s, "b": b}
        for at in INSTANTS
        for s in ("JFK", "J/F K+%", "LGA", None)
        for b in (True, None)
    ]
    warehouse.ensure("raw.a", schema, partition_by=partition_by)
    commit = warehouse.commit("raw.a", pa.Table.from_pylist(rows, schema), key="1")
    table = warehouse.table("raw.a")
    files = live_files(table, commit.snapshot)
    assert len(files) > 1
    for file in files:
        # Each row's partition, worked out by PyIceberg one value at a time, is its file's.
        with table.io.new_input(file.path).open() as stream:
            content = pq.ParquetFile(stream).read().to_pylist()
        for row in content:
            for place, field in enumerate(table.spec().fields):
                source = table.schema().find_field(field.source_id)
                expected = field.transform.transform(source.field_type)(_internal(row[source.name]))
                assert file.data_file.partition[place] == expected
    found = warehouse.scan(commit.ref).read_all().to_pylist()
    assert Counter(tuple(r.values()) for r in found) == Counter(tuple(r.values()) for r in rows)
    # Every engine reads the same: PyIceberg prunes by partitions that it works out itself.
    if "s" in partition_by:
        assert table.scan("s == 'JFK'").to_arrow().num_rows == 12


def _internal(value: Any) -> Any:
    if isinstance(value, datetime):
        return (value - datetime(1970, 1, 1, tzinfo=UTC)) // (datetime.resolution)
    if isinstance(value, date):
        return (value - date(1970, 1, 1)).days
    return value


@EVERYWHERE
def test_more_partitions_than_open_files(warehouse: Warehouse) -> None:
    rows = pa.table({"p": [i % 70 for i in range(700)], "id": list(range(700))})
    warehouse.ensure("raw.a", rows.schema, partition_by="identity(p)")
    # Twice through all partitions, so that closed files' partitions come again.
    commit = warehouse.commit("raw.a", [rows.slice(0, 350), rows.slice(350)], key="1")
    assert warehouse.count(commit.ref) == 700
    found = warehouse.scan(commit.ref).read_all()
    assert sorted(found["id"].to_pylist()) == list(range(700))


def test_same_content_makes_the_same_bytes(warehouse: Warehouse) -> None:
    rows = pa.table({"id": [3, 1, 2], "s": ["c", "a", "b"]})
    for name, given in (("raw.a", rows), ("raw.b", rows.take([1, 2, 0]))):
        warehouse.ensure(name, rows.schema)
        warehouse.commit(name, given, key="1", sort_by=["id"])
    contents = [
        b"".join(Path(f.path).read_bytes() for f in live_files(warehouse.table(n), warehouse.head(n)))
        for n in ("raw.a", "raw.b")
    ]
    assert contents[0] == contents[1]
    assert warehouse.scan(TableRef("raw.a")).read_all()["id"].to_pylist() == [1, 2, 3]
