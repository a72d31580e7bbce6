"""Types that a table can hold, conforming rows, and how a table may evolve."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pyarrow as pa
import pytest

from airloop.errors import BadArgument, BadInput, SchemaMismatch
from airloop.warehouse.catalog import Warehouse
from airloop.warehouse.refs import TableRef
from airloop.warehouse.schema import Conform, normal_schema, normal_type, to_arrow, to_iceberg

UTC_US = pa.timestamp("us", tz="UTC")


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (pa.int8(), pa.int32()),
        (pa.uint16(), pa.int32()),
        (pa.uint32(), pa.int64()),
        (pa.float16(), pa.float32()),
        (pa.large_string(), pa.string()),
        (pa.dictionary(pa.int32(), pa.string()), pa.string()),
        (pa.timestamp("ns", tz="America/New_York"), UTC_US),
        (pa.date64(), pa.date32()),
        (pa.decimal128(38, 0), pa.decimal128(38, 0)),
        (pa.list_(pa.int16()), pa.list_(pa.field("element", pa.int32()))),
    ],
)
def test_normal_type(given: pa.DataType, kept: pa.DataType) -> None:
    assert normal_type("x", given) == kept


@pytest.mark.parametrize("type_", [pa.uint64(), pa.null(), pa.duration("s"), pa.timestamp("us"), pa.decimal256(40, 0)])
def test_types_that_no_table_holds(type_: pa.DataType) -> None:
    with pytest.raises(SchemaMismatch, match="column x"):
        normal_type("x", type_)


def test_names_that_differ_in_case_only() -> None:
    with pytest.raises(SchemaMismatch, match="named twice"):
        normal_schema(pa.schema([("Origin", pa.string()), ("origin", pa.string())]))
    with pytest.raises(SchemaMismatch, match="no column"):
        normal_schema(pa.schema([]))


def test_there_and_back() -> None:
    schema = pa.schema(
        [
            pa.field("id", pa.int64(), False),
            pa.field("at", UTC_US),
            pa.field("tags", pa.list_(pa.field("element", pa.string()))),
            pa.field("box", pa.struct([pa.field("x", pa.float64()), pa.field("n", pa.int32())])),
            pa.field("price", pa.decimal128(10, 2)),
        ]
    )
    assert to_arrow(to_iceberg(schema)) == schema


def conform(target: pa.DataType, values: list[Any], type_: pa.DataType) -> list[Any]:
    schema = pa.schema([("x", target)])
    found: list[Any] = Conform("raw.a", schema)(pa.table({"x": pa.array(values, type_)}))["x"].to_pylist()
    return found


def test_conform_widens_and_checks() -> None:
    assert conform(pa.int64(), [1, None], pa.int8()) == [1, None]
    assert conform(pa.int32(), [7], pa.int64()) == [7]
    assert conform(pa.float64(), [1, 2], pa.int32()) == [1.0, 2.0]
    assert conform(pa.int64(), [5], pa.decimal128(38, 0)) == [5]
    assert conform(pa.string(), [None, None], pa.null()) == [None, None]
    assert conform(pa.string(), ["a", "b", "a"], pa.dictionary(pa.int8(), pa.string())) == ["a", "b", "a"]
    new_york = datetime(2013, 1, 1, 5, tzinfo=timezone(timedelta(hours=-5)))
    assert conform(UTC_US, [new_york], pa.timestamp("s", tz="America/New_York")) == [
        datetime(2013, 1, 1, 10, tzinfo=UTC)
    ]
    with pytest.raises(BadInput, match="does not fit int"):
        conform(pa.int32(), [2**40], pa.int64())
    with pytest.raises(BadInput, match="does not fit"):
        conform(UTC_US, [1], pa.timestamp("ns", tz="UTC"))


@pytest.mark.parametrize(
    ("target", "given"),
    [
        (pa.int64(), pa.string()),
        (pa.int64(), pa.float64()),
        (pa.float32(), pa.float64()),
        (pa.string(), pa.int64()),
        (UTC_US, pa.timestamp("us")),
        (UTC_US, pa.date32()),
        (pa.bool_(), pa.int64()),
    ],
)
def test_conform_refuses(target: pa.DataType, given: pa.DataType) -> None:
    with pytest.raises(SchemaMismatch, match=r"x: .* in the table, .* in the rows"):
        conform(target, [None], given)


def test_conform_names_every_difference() -> None:
    target = pa.schema([("a", pa.int64()), ("b", pa.string()), ("c", pa.string())])
    with pytest.raises(SchemaMismatch, match=r"a: .*; b: .* missing in the rows; d: not in the table") as caught:
        Conform("raw.a", target, optional=["c"])(pa.table({"a": ["x"], "d": [1]}))
    assert "c:" not in str(caught.value)


def test_required_values() -> None:
    target = pa.schema([pa.field("a", pa.int64(), False)])
    with pytest.raises(BadInput, match="1 of 2 rows have no a"):
        Conform("raw.a", target)(pa.table({"a": [1, None]}))


BASE = pa.schema([pa.field("id", pa.int64(), False), pa.field("x", pa.float64()), pa.field("s", pa.string())])


def test_added_nullable_column(warehouse: Warehouse) -> None:
    assert warehouse.ensure("raw.a", BASE) == []
    warehouse.commit("raw.a", pa.table({"id": [1], "x": [1.0], "s": ["a"]}, schema=BASE), key="1")
    grown = BASE.append(pa.field("at", UTC_US)).append(pa.field("n", pa.int64()))
    assert warehouse.ensure("raw.a", grown) == ["added column at (timestamptz)", "added column n (long)"]
    assert warehouse.ensure("raw.a", grown) == []
    assert warehouse.schema("raw.a") == grown
    assert warehouse.scan(TableRef("raw.a")).read_all().to_pylist() == [
        {"id": 1, "x": 1.0, "s": "a", "at": None, "n": None}
    ]
    # Rows have to have the new column from now on.
    with pytest.raises(SchemaMismatch, match="at: timestamptz in the table, missing in the rows"):
        warehouse.commit("raw.a", pa.table({"id": [2], "x": [1.0], "s": ["a"]}, schema=BASE), key="2")


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        (BASE.set(1, pa.field("x", pa.int64())), "x: double in the table, long declared"),
        (BASE.set(0, pa.field("id", pa.int32(), False)), "id: long in the table, int declared"),
        (BASE.remove(2), "s: string in the table, not declared"),
        (BASE.remove(0), "id: long in the table, not declared"),
        (BASE.append(pa.field("n", pa.int64(), False)), "n: new and required"),
        (BASE.set(0, pa.field("id", pa.int64())), "id: required in the table, nullable declared"),
        (BASE.set(1, pa.field("x", pa.float64(), False)), "x: nullable in the table, required declared"),
    ],
)
def test_refused_evolution(warehouse: Warehouse, schema: pa.Schema, message: str) -> None:
    warehouse.ensure("raw.a", BASE)
    with pytest.raises(SchemaMismatch, match=message):
        warehouse.ensure("raw.a", schema)
    assert warehouse.schema("raw.a") == BASE


def test_every_difference_is_named(warehouse: Warehouse) -> None:
    warehouse.ensure("raw.a", BASE, key=["id"], partition_by="identity(s)")
    with pytest.raises(SchemaMismatch, match=r"x: .*; s: .*; key: .*; partition: identity\(s\) .* bucket\[4\]\(id\)"):
        warehouse.ensure(
            "raw.a",
            pa.schema([pa.field("id", pa.int64(), False), ("x", pa.string())]),
            key=["id", "x"],
            partition_by="bucket(id, 4)",
        )


def test_optional_column(warehouse: Warehouse) -> None:
    warehouse.ensure("raw.a", BASE, optional=["s"])
    assert warehouse.ensure("raw.a", BASE.remove(2), optional=["s"]) == []
    warehouse.commit("raw.a", pa.table({"id": [1], "x": [2.0]}), key="1")
    assert warehouse.scan(TableRef("raw.a")).read_all().to_pylist() == [{"id": 1, "x": 2.0, "s": None}]


@pytest.mark.parametrize("text", ["week(at)", "month(at), day", "bucket(id)", "month(nope)", "month(id)", "day(at, 3)"])
def test_partitions_that_cannot_be(warehouse: Warehouse, text: str) -> None:
    schema = pa.schema([("id", pa.int64()), ("at", UTC_US)])
    with pytest.raises(BadArgument, match="partition"):
        warehouse.ensure("raw.a", schema, partition_by=text)
    assert not warehouse.exists("raw.a")


def test_a_key_has_to_be_a_column(warehouse: Warehouse) -> None:
    with pytest.raises(BadArgument, match="key column nope"):
        warehouse.ensure("raw.a", BASE, key=["nope"])


@pytest.mark.parametrize("name", ["flights", "a.b.c", "raw.", "ra w.a", "raw.a;drop"])
def test_names_of_tables(warehouse: Warehouse, name: str) -> None:
    with pytest.raises(BadArgument, match="name of a table"):
        warehouse.ensure(name, BASE)
