"""Whose work a snapshot is, and which key it is committed under when it has been replaced."""

from __future__ import annotations

from dataclasses import replace

import pyarrow as pa
import pytest

from airloop.contract import Call, Interval, RunInfo
from airloop.warehouse.catalog import Warehouse
from airloop.warehouse.expire import expire
from airloop.warehouse.refs import TableRef
from airloop.warehouse.work import Work

NAME = "raw.a"
SCHEMA = pa.schema([("id", pa.int64()), ("x", pa.int64())])
JANUARY, FEBRUARY = "2013-01-01T00:00Z/2013-02-01T00:00Z", "2013-02-01T00:00Z/2013-03-01T00:00Z"


@pytest.fixture
def table(warehouse: Warehouse) -> str:
    warehouse.ensure(NAME, SCHEMA, key=["id"])
    return NAME


def work(key: str, interval: str = JANUARY, task: str = "t") -> Work:
    month = Interval.parse(interval)
    return Work.of(Call("sql", run=RunInfo("d", "r", task), interval=month), key, month)


def put(warehouse: Warehouse, wanted: Work, x: int) -> int:
    """Commit the work; the snapshot that holds it."""
    rows = pa.table({"id": [1], "x": [x]}, SCHEMA)
    key = warehouse.key_for(NAME, wanted)
    return warehouse.commit(NAME, rows, key=key, mode="upsert", properties=wanted.properties).snapshot


def test_a_table_that_is_not_there_yet(warehouse: Warehouse) -> None:
    assert warehouse.key_for("raw.none", work("a")) == "a"


def test_keys_count_how_often_work_was_replaced(warehouse: Warehouse, table: str) -> None:
    first = put(warehouse, work("a"), 1)
    assert warehouse.key_for(table, work("a")) == "a"
    other = put(warehouse, work("b"), 2)
    assert warehouse.replaced(TableRef(table, first), work("a")) == other
    assert warehouse.replaced(TableRef(table, other), work("b")) == 0
    put(warehouse, work("a"), 1)
    assert warehouse.key_for(table, work("a")) == "a:again:1", "the same until it is replaced too"
    put(warehouse, work("b"), 2)
    put(warehouse, work("a"), 1)
    assert [s.key for s in warehouse.history(table)] == ["a", "b", "a:again:1", "b:again:1", "a:again:2"]


def test_what_takes_no_place(warehouse: Warehouse, table: str) -> None:
    put(warehouse, work("a"), 1)
    put(warehouse, work("b", FEBRUARY), 2)
    put(warehouse, work("c", task="other"), 3)
    warehouse.commit(table, pa.table({"id": [1], "x": [4]}, SCHEMA), key="somebody", mode="upsert")
    off = work("d")
    rows = pa.table({"id": [1], "x": [5]}, SCHEMA)
    warehouse.commit(table, rows, key="d", mode="upsert", branch="audit", properties=off.properties)
    assert warehouse.key_for(table, work("a")) == "a"


def test_work_of_all_intervals_is_replaced_by_no_newer_one(warehouse: Warehouse, table: str) -> None:
    whole = [replace(work(key, month), bound="") for key, month in (("a", JANUARY), ("b", FEBRUARY))]
    for x, one in enumerate(whole):
        put(warehouse, one, x)
    assert warehouse.key_for(table, whole[0]) == "a"
    assert warehouse.key_for(table, replace(whole[0], interval=whole[1].interval)) == "a:again:1"


def test_replaced_after_its_snapshot_has_expired(warehouse: Warehouse, table: str) -> None:
    first = put(warehouse, work("a"), 1)
    put(warehouse, work("b"), 2)
    assert expire(table, lambda: warehouse.table(table), lambda _: {first}) == [first]
    assert warehouse.key_for(table, work("a")) == "a:again:1"
    put(warehouse, work("a"), 1)
    assert warehouse.scan(TableRef(table)).read_all()["x"].to_pylist() == [1]
