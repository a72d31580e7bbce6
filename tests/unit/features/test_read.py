"""Reading online values without Feast gives what Feast gives."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from airloop.config import Config, RedisAddress
from airloop.errors import BadArgument, NotFound
from airloop.features import read
from airloop.features.read import Lookup, OnlineReader, decode
from tests import shop as shops
from tests.shop import DAY, T0, RunStep, Shop

REFS = ["pace:speed", "pace:trips", "route:note"]


@pytest.fixture(params=["sqlite", "redis"])
def shop(request: pytest.FixtureRequest, warehouse: Any, config: Config, run_step: RunStep, tmp_path: Any) -> Shop:
    config = shops.with_repository(config, tmp_path / "repo")
    if request.param == "redis":
        config = replace(config, online_store=RedisAddress(request.getfixturevalue("redis_url")))
    shop = Shop(warehouse, config, lambda *a, **k: run_step(*a, config=config, **k))
    rows = [(1, 1.5, 3, T0, T0), (2, None, -(2**60), T0, T0), (3, float("inf"), None, T0, T0), (-4, 0.0, 0, T0, T0)]
    shop.put("pace", rows)
    shop.put("route", [(1, "Köln", "läuft", T0, T0), (2, "", "", T0, T0)])
    shop.run(T0 + DAY)
    return shop


def test_answers_are_feasts(shop: Shop) -> None:
    from airloop.features.repo import open_store

    entities = {"driver": [1, 2, 3, -4, 5, 1], "city": ["Köln", "", "Rome", "x", "Köln", "Rome"]}
    feast = open_store(shop.config)
    reader = OnlineReader(shop.config)
    for full_names in (False, True):
        stock = feast.get_online_features(REFS, entities, full_feature_names=full_names).to_dict()
        assert reader.read(REFS, entities, full_names=full_names) == stock
    assert (
        reader.read("drivers", entities)
        == feast.get_online_features(feast.get_feature_service("drivers"), entities).to_dict()
    )


def test_errors_name_what_is_wrong(shop: Shop) -> None:
    reader = OnlineReader(shop.config)
    with pytest.raises(NotFound, match="no feature pace:colour"):
        reader.read(["pace:colour"], {"driver": [1]})
    with pytest.raises(NotFound, match="there is no feature service 'nobody'"):
        reader.read("nobody", {"driver": [1]})
    with pytest.raises(BadArgument, match="view route needs city"):
        reader.read(REFS, {"driver": [1]})
    with pytest.raises(BadArgument, match="key of type float"):
        reader.read(["pace:speed"], {"driver": [1.0]})
    with pytest.raises(BadArgument, match="differ in length"):
        reader.read(REFS, {"driver": [1], "city": []})


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("double_val", -0.5), ("float_val", 0.25), ("int64_val", -(2**63)), ("int64_val", 2**63 - 1), ("int32_val", -7),
        ("int64_val", 0), ("string_val", "é" * 200), ("bool_val", True), ("bool_val", False), ("bytes_val", b"\0"),
    ],
)  # fmt: skip
def test_every_scalar(kind: str, value: Any) -> None:
    from feast.protos.feast.types.Value_pb2 import Value

    found = decode(Value(**{kind: value}).SerializeToString())
    assert found == value
    assert type(found) is type(value)


def test_instants() -> None:
    from feast.protos.feast.types.Value_pb2 import Value

    def stored(seconds: int) -> Any:
        return decode(Value(unix_timestamp_val=seconds).SerializeToString())

    assert stored(int(T0.timestamp())) == T0
    assert stored(-(2**63)) is None


def test_a_list_is_refused() -> None:
    from feast.protos.feast.types.Value_pb2 import Int64List, Value

    with pytest.raises(BadArgument, match="is no scalar"):
        decode(Value(int64_list_val=Int64List(val=[1])).SerializeToString())


def test_many_keys_and_views_are_of_one_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "online.db"
    lookups = [Lookup(f"shop_{view}", view, "shop", (("id", "id"),), ("x",), ("x",)) for view in ("a", "b")]
    keys = [bytes([n]) for n in range(5)]
    with closing(sqlite3.connect(file, isolation_level=None)) as writer:
        writer.execute("PRAGMA journal_mode=WAL")
        for lookup in lookups:
            writer.execute(f"CREATE TABLE {lookup.table} (entity_key BLOB, feature_name TEXT, value BLOB)")
            writer.executemany(f"INSERT INTO {lookup.table} VALUES (?, 'x', x'01')", [(key,) for key in keys])
        places = read._places
        asked = []

        def switched_meanwhile(values: Sequence[Any]) -> str:
            asked.append(values)
            if len(asked) == 3:
                for lookup in lookups:
                    writer.execute(f"UPDATE {lookup.table} SET value = x'02'")
            return places(values)

        monkeypatch.setattr(read, "_places", switched_meanwhile)
        monkeypatch.setattr(read, "KEYS_PER_QUERY", 2)
        rows = read.SqliteRows(file)
        assert {row[0] for found in rows.fetch(lookups, [keys, keys]) for row in found} == {b"\1"}
        assert {row[0] for found in rows.fetch(lookups, [keys, keys]) for row in found} == {b"\2"}


def test_reading_does_not_import_feast() -> None:
    code = "import sys, airloop.features.read; sys.exit('feast' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
