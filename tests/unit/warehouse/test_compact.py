"""Compaction: the same rows in fewer files, for everybody: readers, writers, keys, and who looks for new rows."""

from __future__ import annotations

import itertools
import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest

from airloop.config import Config
from airloop.features.watermark import NOTHING_NEW, first_arrival_since
from airloop.reference import Scope
from airloop.warehouse import compact as compaction
from airloop.warehouse.catalog import Warehouse
from airloop.warehouse.read import files_since, live_files
from airloop.warehouse.refs import TableRef
from tests.places import AND_BY_REST, EVERYWHERE

TABLE = "shop.orders"
START = datetime(2013, 1, 1, tzinfo=UTC)
SCHEMA = pa.schema(
    [
        pa.field("id", pa.int64(), nullable=False),
        pa.field("at", pa.timestamp("us", tz="UTC"), nullable=False),
        pa.field("tags", pa.list_(pa.string())),
        pa.field("amount", pa.float64()),
    ]
)


def rows(first: int, count: int = 5, amount: float | None = 1.0) -> pa.Table:
    """One row a day."""
    ids = range(first, first + count)
    return pa.table(
        {
            "id": list(ids),
            "at": [START + timedelta(days=i) for i in ids],
            "tags": [["a", None] if i % 2 else None for i in ids],
            "amount": [amount] * count,
        },
        schema=SCHEMA,
    )


def us(day: int) -> int:
    return (day + (START - datetime(1970, 1, 1, tzinfo=UTC)).days) * 86_400_000_000


@pytest.fixture
def days(warehouse: Warehouse) -> list[int]:
    """Twelve snapshots of five rows each, from January to the first of March."""
    warehouse.ensure(TABLE, SCHEMA, key=("id",), partition_by="month(at)")
    return [warehouse.commit(TABLE, rows(5 * i), key=f"day-{i}", mode="upsert").snapshot for i in range(12)]


def content(warehouse: Warehouse, snapshot: int | None = None) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = warehouse.scan(TableRef(TABLE, snapshot)).read_all().to_pylist()
    return sorted(found, key=lambda row: row["id"])


@AND_BY_REST
def test_the_same_rows_in_fewer_files(warehouse: Warehouse, days: list[int]) -> None:
    before = content(warehouse)
    done = warehouse.compact(TABLE)
    assert done.changed
    # The one file of March is left alone.
    assert (done.rows, done.files_before) == (59, 14)
    assert done.files_after == len(live_files(warehouse.table(TABLE), done.snapshot)) == 3
    assert done.manifests_after == 1
    assert content(warehouse) == before
    assert [content(warehouse, s) for s in days[:2]] == [before[:5], before[:10]]
    assert warehouse.history(TABLE)[-1].operation == "replace"
    assert not warehouse.compact(TABLE).changed


@EVERYWHERE
def test_no_key_changes(config: Config, warehouse: Warehouse, days: list[int]) -> None:
    done = warehouse.compact(TABLE)
    assert warehouse.head(TABLE) == done.snapshot
    assert TableRef(TABLE).resolve(Scope(config)) == TableRef(TABLE, days[-1])
    nothing = warehouse.commit(TABLE, rows(0), key="again", mode="upsert")
    assert (nothing.snapshot, nothing.changed) == (days[-1], False)
    assert warehouse.commit(TABLE, rows(0), key="day-3", mode="upsert").snapshot == days[3]


@EVERYWHERE
def test_writers_go_on_from_it(warehouse: Warehouse, days: list[int]) -> None:
    done = warehouse.compact(TABLE)
    made = warehouse.commit(TABLE, rows(58, 4, amount=2.0), key="more", mode="upsert")
    assert (made.added, made.updated) == (2, 2)
    assert warehouse.descends(TABLE, made.snapshot, done.snapshot)
    assert warehouse.descends(TABLE, made.snapshot, days[0])
    assert [row["amount"] for row in content(warehouse)] == [1.0] * 58 + [2.0] * 4
    assert warehouse.resolve(TableRef(TABLE)) == made.snapshot


def test_it_is_no_new_row(warehouse: Warehouse, days: list[int]) -> None:
    done = warehouse.compact(TABLE)
    assert first_arrival_since(warehouse, TABLE, days[-1], done.snapshot, "at") == NOTHING_NEW
    assert first_arrival_since(warehouse, TABLE, days[3], done.snapshot, "at") == us(20)
    made = warehouse.commit(TABLE, rows(60), key="more", mode="upsert").snapshot
    assert first_arrival_since(warehouse, TABLE, days[-1], made, "at") == us(60)
    for i in range(4):
        made = warehouse.commit(TABLE, rows(65 + 5 * i), key=f"later-{i}", mode="upsert").snapshot
    again = warehouse.compact(TABLE)
    assert again.changed
    assert first_arrival_since(warehouse, TABLE, days[5], again.snapshot, "at") == us(30)
    assert {f.path for f in files_since(warehouse.table(TABLE), made, again.snapshot)} == set()


@EVERYWHERE
def test_a_commit_meanwhile_is_not_lost(warehouse: Warehouse, days: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """An append leaves the files as they are; a correction takes one of them away, and the compaction begins again."""
    real, meanwhile = compaction._rewritten, itertools.count()

    def rewrite_slowly(*arguments: Any) -> Any:
        written = real(*arguments)
        turn = next(meanwhile)
        if turn == 0:
            warehouse.commit(TABLE, rows(2, 1, amount=9.0), key="correction", mode="upsert")
        elif turn == 1:
            warehouse.commit(TABLE, rows(100, 1), key="append")
        return written

    monkeypatch.setattr(compaction, "_rewritten", rewrite_slowly)
    assert warehouse.compact(TABLE).changed
    assert next(meanwhile) == 2
    found = {row["id"]: row["amount"] for row in content(warehouse)}
    assert len(found) == 61
    assert (found[2], found[100]) == (9.0, 1.0)


def test_writers_and_compactions_at_once(warehouse: Warehouse, days: list[int]) -> None:
    errors: list[BaseException] = []

    def write(start: int) -> None:
        try:
            for i in range(4):
                warehouse.commit(TABLE, rows(start + i, 1), key=f"{start}-{i}", mode="upsert")
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(start,)) for start in (200, 300)]
    for thread in threads:
        thread.start()
    for _ in range(3):
        warehouse.compact(TABLE)
    for thread in threads:
        thread.join()
    assert errors == []
    ids = [row["id"] for row in content(warehouse)]
    assert ids == [*range(60), *range(200, 204), *range(300, 304)]


def test_rows_that_differ_stop_it(warehouse: Warehouse, days: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    from airloop.errors import AirloopError

    real = compaction.as_schema
    monkeypatch.setattr(compaction, "as_schema", lambda batch, schema: real(batch.slice(1), schema))
    head = warehouse.head(TABLE)
    files = set((warehouse.config.warehouse / "shop").rglob("*.parquet"))
    with pytest.raises(AirloopError, match="sum of hashes"):
        warehouse.compact(TABLE)
    assert warehouse.head(TABLE) == head
    assert set((warehouse.config.warehouse / "shop").rglob("*.parquet")) == files


def test_an_empty_table(warehouse: Warehouse) -> None:
    warehouse.ensure(TABLE, SCHEMA)
    assert not warehouse.compact(TABLE).changed


def test_manifests_stay_few(warehouse: Warehouse) -> None:
    warehouse.ensure(TABLE, SCHEMA, key=("id",))
    for i in range(20):
        warehouse.commit(TABLE, rows(i, 2, amount=float(i)), key=f"{i}", mode="upsert")
    table = warehouse.table(TABLE)
    current = table.current_snapshot()
    assert current is not None
    assert len(current.manifests(table.io)) < 20
    assert [row["amount"] for row in content(warehouse)] == [*map(float, range(20)), 19.0]
