"""Reading snapshots: scan, DuckDB views, evolution, renames, odd paths, delete files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyiceberg.types import DoubleType, LongType

from airloop.config import Config
from airloop.errors import BadArgument, BadInput, NotFound
from airloop.warehouse import read
from airloop.warehouse.catalog import Warehouse
from airloop.warehouse.refs import TableRef
from tests.places import EVERYWHERE

SCHEMA = pa.schema([pa.field("id", pa.int64(), False), pa.field("x", pa.float64()), pa.field("s", pa.string())])


def rows(*ids: int) -> pa.Table:
    return pa.table({"id": ids, "x": [i / 2 for i in ids], "s": [f"s{i}" for i in ids]}, SCHEMA)


@pytest.fixture
def table(warehouse: Warehouse) -> str:
    warehouse.ensure("raw.a", SCHEMA)
    return "raw.a"


def both(warehouse: Warehouse, ref: TableRef) -> list[dict[str, Any]]:
    """The rows as scan and as DuckDB give them, which must be the same."""
    scanned: list[dict[str, Any]] = warehouse.scan(ref).read_all().to_pylist()
    with warehouse.duckdb({"t": ref}) as connection:
        assert connection.sql("FROM t").to_arrow_table().to_pylist() == scanned
    return scanned


@EVERYWHERE
def test_scan(warehouse: Warehouse, table: str) -> None:
    done = warehouse.commit(table, rows(1, 2, 3), key="1")
    reader = warehouse.scan(done.ref)
    assert reader.schema == SCHEMA
    assert reader.read_all() == rows(1, 2, 3)
    found = warehouse.scan(done.ref, columns=["s", "id"], where="x >= 1 AND s <> 's3'").read_all()
    assert found.schema.names == ["s", "id"]
    assert found.to_pylist() == [{"s": "s2", "id": 2}]
    # The predicate may use columns that are not asked for.
    assert warehouse.scan(done.ref, columns=["x"], where="id = 1").read_all().to_pylist() == [{"x": 0.5}]


@EVERYWHERE
def test_scan_comes_in_chunks(config: Config) -> None:
    warehouse = Warehouse.open(replace(config, rows_per_chunk=2048))
    warehouse.ensure("raw.a", SCHEMA)
    done = warehouse.commit("raw.a", rows(*range(5000)), key="1")
    sizes = [batch.num_rows for batch in warehouse.scan(done.ref)]
    assert sum(sizes) == 5000
    assert max(sizes) <= 2048


@EVERYWHERE
@pytest.mark.parametrize(("columns", "where"), [(["nope"], None), (None, "nope = 1"), (None, "id = "), ([], None)])
def test_scan_refuses(warehouse: Warehouse, table: str, columns: list[str] | None, where: str | None) -> None:
    for ref in (TableRef(table), warehouse.commit(table, rows(1), key="1").ref):
        with pytest.raises(BadArgument):
            warehouse.scan(ref, columns=columns, where=where)


@EVERYWHERE
def test_an_empty_table_has_its_columns(warehouse: Warehouse, table: str) -> None:
    ref = TableRef(table, 0)
    assert both(warehouse, ref) == []
    assert warehouse.scan(ref).schema == SCHEMA
    assert warehouse.count(ref) == 0
    with warehouse.duckdb({"t": ref}) as connection:
        assert connection.sql("FROM t").columns == ["id", "x", "s"]
        assert [str(t) for t in connection.sql("FROM t").types] == ["BIGINT", "DOUBLE", "VARCHAR"]


@EVERYWHERE
def test_a_view_stays_at_its_snapshot(warehouse: Warehouse, table: str) -> None:
    first = warehouse.commit(table, rows(1), key="1")
    with warehouse.duckdb({"raw.a": TableRef(table), "old": first.ref}) as connection:
        second = warehouse.commit(table, rows(2), key="2")
        assert connection.sql("SELECT id FROM raw.a").fetchall() == [(1,)]
        assert connection.sql("SELECT id FROM old").fetchall() == [(1,)]
    assert [r["id"] for r in both(warehouse, second.ref)] == [1, 2]
    assert [r["id"] for r in both(warehouse, first.ref)] == [1]


@EVERYWHERE
def test_after_adding_a_column(warehouse: Warehouse, table: str) -> None:
    first = warehouse.commit(table, rows(1), key="1")
    grown = SCHEMA.append(pa.field("n", pa.int64()))
    warehouse.ensure(table, grown)
    # At the head the new column is there at once.
    assert both(warehouse, first.ref) == [{"id": 1, "x": 0.5, "s": "s1", "n": None}]
    second = warehouse.commit(table, rows(2).append_column("n", pa.array([7])), key="2")
    assert both(warehouse, second.ref) == [
        {"id": 1, "x": 0.5, "s": "s1", "n": None},
        {"id": 2, "x": 1.0, "s": "s2", "n": 7},
    ]
    # An old snapshot is what it was.
    assert both(warehouse, first.ref) == [{"id": 1, "x": 0.5, "s": "s1"}]
    assert warehouse.schema(first.ref) == SCHEMA
    assert warehouse.schema(second.ref) == warehouse.schema(table) == grown


@EVERYWHERE
def test_after_a_rename_and_a_drop(warehouse: Warehouse, table: str) -> None:
    warehouse.commit(table, rows(1), key="1")
    with warehouse.table(table).update_schema() as update:
        update.rename_column("s", "text")
        update.delete_column("x")
    with warehouse.table(table).update_schema() as update:
        update.add_column("s", DoubleType())
    new = pa.schema([pa.field("id", pa.int64(), False), ("text", pa.string()), ("s", pa.float64())])
    assert both(warehouse, TableRef(table)) == [{"id": 1, "text": "s1", "s": None}]
    done = warehouse.commit(table, pa.table({"id": [2], "text": ["b"], "s": [1.5]}, new), key="2")
    assert both(warehouse, done.ref) == [{"id": 1, "text": "s1", "s": None}, {"id": 2, "text": "b", "s": 1.5}]
    up = warehouse.commit(
        table, pa.table({"id": [1], "text": ["c"], "s": [2.5]}, new), key="3", mode="upsert", on=["id"]
    )
    assert {r["id"]: r["text"] for r in both(warehouse, up.ref)} == {1: "c", 2: "b"}
    assert {r["id"]: r["s"] for r in both(warehouse, up.ref)} == {1: 2.5, 2: 1.5}


@EVERYWHERE
def test_after_a_promotion(warehouse: Warehouse) -> None:
    schema = pa.schema([("n", pa.int32())])
    warehouse.ensure("raw.p", schema)
    warehouse.commit("raw.p", pa.table({"n": [1]}, schema), key="1")
    with warehouse.table("raw.p").update_schema() as update:
        update.update_column("n", LongType())
    done = warehouse.commit("raw.p", pa.table({"n": [2**40]}), key="2")
    assert both(warehouse, done.ref) == [{"n": 1}, {"n": 2**40}]
    found = warehouse.commit("raw.p", pa.table({"n": [2**40]}), key="3", mode="upsert", on=["n"])
    assert not found.changed


@EVERYWHERE
def test_all_types(warehouse: Warehouse) -> None:
    from datetime import UTC, date, datetime, time
    from decimal import Decimal

    values: dict[str, tuple[pa.DataType, Any]] = {
        "b": (pa.bool_(), True),
        "i": (pa.int32(), -5),
        "l": (pa.int64(), 2**62),
        "f": (pa.float32(), 1.5),
        "d": (pa.float64(), float("inf")),
        "day": (pa.date32(), date(2013, 3, 10)),
        "clock": (pa.time64("us"), time(23, 59, 59, 999999)),
        "at": (pa.timestamp("us", tz="UTC"), datetime(2013, 3, 10, 7, 0, 0, 123456, tzinfo=UTC)),
        "s": (pa.string(), "naïve 'quoted' \"twice\""),
        "raw": (pa.binary(), b"\x00\xff"),
        "dec": (pa.decimal128(10, 2), Decimal("12.34")),
        "tags": (pa.list_(pa.field("element", pa.string())), ["a", None]),
        "box": (pa.struct([pa.field("x", pa.float64()), pa.field("the n", pa.int32())]), {"x": 1.0, "the n": None}),
        "many": (pa.list_(pa.field("element", pa.struct([pa.field("k", pa.int64())]))), [{"k": 1}, None]),
        "filename": (pa.string(), "a column may be called so"),
        "Größe, \"m\"": (pa.float64(), 2.0),
    }  # fmt: skip
    schema = pa.schema([(name, type_) for name, (type_, _) in values.items()])
    full = {name: value for name, (_, value) in values.items()}
    empty = dict.fromkeys(values)
    table = pa.Table.from_pylist([full, empty], schema)
    warehouse.ensure("raw.t", schema)
    assert warehouse.schema("raw.t") == schema
    done = warehouse.commit("raw.t", table, key="1")
    assert both(warehouse, done.ref) == [full, empty]
    assert warehouse.scan(done.ref).read_all().schema == schema
    assert not warehouse.commit("raw.t", table, key="2", mode="upsert", on=["i"]).changed
    changed = {**full, "box": {"x": 1.0, "the n": 3}, "tags": ["a"]}
    up = warehouse.commit("raw.t", pa.Table.from_pylist([changed], schema), key="3", mode="upsert", on=["i"])
    assert both(warehouse, up.ref) == [empty, changed]
    gone = warehouse.delete("raw.t", "filename IS NULL", key="4")
    assert both(warehouse, gone.ref) == [changed]
    assert warehouse.table("raw.t").scan().to_arrow().num_rows == 1


@pytest.mark.parametrize("folder", ["it's", "a [b] *", "a b%20c", "ä=ü", "a#b"])
def test_odd_folders(tmp_path: Path, folder: str) -> None:
    warehouse = Warehouse.open(Config.from_environment({"AIRLOOP_HOME": str(tmp_path / folder)}))
    warehouse.ensure("raw.a", SCHEMA, key=["id"], partition_by="identity(s)")
    warehouse.commit("raw.a", rows(1, 2), key="1")
    done = warehouse.commit("raw.a", rows(2, 3).set_column(1, "x", pa.array([9.0, 9.0])), key="2", mode="upsert")
    warehouse.delete("raw.a", "id = 1", key="3")
    assert (done.added, done.updated) == (1, 1)
    assert {r["id"]: r["x"] for r in both(warehouse, TableRef("raw.a"))} == {2: 9.0, 3: 9.0}


def test_delete_files_are_refused(warehouse: Warehouse, table: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from pyiceberg.manifest import ManifestContent, ManifestFile

    done = warehouse.commit(table, rows(1, 2), key="1")
    # PyIceberg cannot write them; what a manifest of them looks like is enough.
    monkeypatch.setattr(ManifestFile, "content", property(lambda self: ManifestContent.DELETES))
    for use in (warehouse.scan, warehouse.count, lambda ref: warehouse.duckdb({"t": ref})):
        with pytest.raises(BadInput, match="has delete files"):
            use(done.ref)


def test_names_of_views(warehouse: Warehouse, table: str) -> None:
    ref = TableRef(table)
    with warehouse.duckdb({"raw.a": ref, "raw.b": ref, 'odd "name"': ref}) as connection:
        assert connection.sql('SELECT count(*) FROM raw.b, "odd ""name"""').fetchall() == [(0,)]
    for name in ("a.b.c", "", "a."):
        with pytest.raises(BadArgument, match="name of a view"):
            warehouse.duckdb({name: ref})
    with pytest.raises(NotFound):
        warehouse.duckdb({"t": TableRef("raw.none")})


def test_duckdb_settings(warehouse: Warehouse, config: Config, tmp_path: Path) -> None:
    with warehouse.duckdb(workdir=tmp_path / "spill") as connection:
        settings = dict(connection.sql("SELECT name, value FROM duckdb_settings()").fetchall())
        assert settings["TimeZone"] == "UTC"
        assert settings["memory_limit"] == "512.0 MiB"
        assert settings["threads"] == str(config.cpu_threads())
        assert settings["temp_directory"].startswith(str(tmp_path / "spill"))
        assert connection.sql("SELECT TIMESTAMPTZ '2013-01-01' = TIMESTAMPTZ '2013-01-01T00:00:00Z'").fetchall() == [
            (True,)
        ]


def test_spilling_cleans_up(config: Config) -> None:
    with read.connect(replace(config, memory_mb=64)) as connection:
        connection.execute("SET threads=1")
        connection.execute("CREATE TABLE t AS SELECT range AS i, hash(range) AS h FROM range(8_000_000)")
        assert [p for p in (config.home / "spill").rglob("*") if p.is_file()], "nothing was spilled"
    assert not [p for p in (config.home / "spill").rglob("*") if p.is_file()]


@EVERYWHERE
def test_tables(warehouse: Warehouse) -> None:
    assert warehouse.tables() == []
    for name in ("raw.b", "features.z", "raw.a"):
        warehouse.ensure(name, SCHEMA)
    assert warehouse.tables() == ["features.z", "raw.a", "raw.b"]
    assert warehouse.exists("raw.a")
    assert not warehouse.exists("raw.z")
    assert warehouse.key("raw.a") == []
    with pytest.raises(NotFound, match=r"no table raw\.z"):
        warehouse.schema("raw.z")
