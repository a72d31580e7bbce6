"""Online and offline are the same after every materialisation, and one corrupted value is found and named."""

from __future__ import annotations

import random
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from airloop.config import Config, RedisAddress
from airloop.contract import Interval
from airloop.errors import BadArgument, NotFound, ParityBroken
from airloop.features.online_redis import field_name
from airloop.warehouse.catalog import Warehouse
from tests.shop import DAY, HOUR, STORE, T0, RunStep, Shop, config, shop

__all__ = ["config", "shop"]


def check(shop: Shop, days: int = 1, **arguments: Any) -> dict[str, Any]:
    end = T0 + days * DAY
    return shop.run_step("check_parity", interval=Interval(end - DAY, end), feature_service="drivers", **arguments)


def corrupt(shop: Shop, statement: str, *values: Any) -> int:
    with closing(sqlite3.connect(shop.config.online_store)) as connection, connection:
        return connection.execute(statement, values).rowcount


def fill(shop: Shop, drivers: int = 300, days: int = 1) -> None:
    """Early, late, repeated, missing and not-a-number values."""
    chance = random.Random(days)
    rows = []
    for driver in range(1, drivers + 1):
        for _ in range(chance.randint(1, 3)):
            event = T0 + chance.random() * days * DAY
            speed = chance.choice([None, float("nan"), chance.gauss(50, 20)])
            rows.append((driver, speed, chance.randint(0, 9), event, event + chance.random() * 6 * HOUR))
    shop.put("pace", rows)


def test_online_is_what_training_is_given(shop: Shop) -> None:
    for days in (1, 4, 9, 15):  # values expire after ten days
        fill(shop, days=days)
        shop.run(T0 + days * DAY)
        manifest = check(shop, days)
        assert manifest["counts"]["views"] == 2
        assert manifest["counts"]["keys_compared"] == manifest["counts"]["keys"] == 301
        assert manifest["counts"]["values_compared"] == 601
        view = manifest["details"]["views"]["pace"]
        assert (view["keys_differing"], view["until"]) == (0, (T0 + days * DAY).isoformat())


def test_one_corrupted_value_of_300_keys_is_found_and_named(shop: Shop) -> None:
    from feast.protos.feast.types.Value_pb2 import Value

    shop.put("pace", [(d, float(d), d, T0, T0) for d in range(1, 301)])
    shop.run(T0 + DAY)
    check(shop)
    wrong = corrupt(
        shop,
        "UPDATE shop_pace SET value = ? WHERE feature_name = 'speed' AND value = ?",
        Value(double_val=217.0000001).SerializeToString(),
        Value(double_val=217.0).SerializeToString(),
    )
    assert wrong == 1
    named = r"pace 1 of 300 keys \(first: pace driver=217: speed is 217\.0000001 online, 217\.0 offline\)"
    with pytest.raises(ParityBroken, match=named):
        check(shop)


def test_one_corrupted_value_in_redis_is_found_and_named(
    warehouse: Warehouse, config: Config, run_step: RunStep, redis_url: str
) -> None:
    import redis
    from feast.infra.key_encoding_utils import serialize_entity_key
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey
    from feast.protos.feast.types.Value_pb2 import Value

    online = replace(config, online_store=RedisAddress(redis_url))
    shop = Shop(warehouse, online, lambda *a, **k: run_step(*a, config=online, **k))
    shop.put("pace", [(d, float(d), d, T0, T0) for d in range(1, 301)])
    shop.run(T0 + DAY)
    assert check(shop)["counts"]["keys_compared"] == 301
    key = serialize_entity_key(EntityKey(join_keys=["driver"], entity_values=[Value(int64_val=217)]), 3) + b"shop"
    speed = field_name("pace", "speed")
    with redis.Redis.from_url(redis_url) as client:
        assert client.hget(key, speed) == Value(double_val=217.0).SerializeToString()
        client.hset(key, speed, Value(double_val=217.0000001).SerializeToString())
    named = r"pace 1 of 300 keys \(first: pace driver=217: speed is 217\.0000001 online, 217\.0 offline\)"
    with pytest.raises(ParityBroken, match=named):
        check(shop)


def test_a_value_that_is_gone_and_one_that_should_be(shop: Shop) -> None:
    shop.put("pace", [(d, float(d), d, T0, T0) for d in range(1, 11)])
    shop.run(T0 + DAY)
    rows = corrupt(shop, "DELETE FROM shop_pace WHERE rowid = (SELECT min(rowid) FROM shop_pace)")
    assert rows == 1
    with pytest.raises(ParityBroken, match=r"is None online, \d"):
        check(shop)


def test_a_value_that_outlived_its_time_is_found(shop: Shop) -> None:
    shop.put("pace", [(1, 1.0, 1, T0, T0), (2, 2.0, 2, T0, T0)])
    shop.run(T0 + DAY)
    with closing(sqlite3.connect(shop.config.online_store)) as connection:
        kept = connection.execute("SELECT * FROM shop_pace").fetchall()
    shop.run(T0 + 12 * DAY)
    check(shop, 12)
    with closing(sqlite3.connect(shop.config.online_store)) as connection, connection:
        connection.executemany(f"INSERT INTO shop_pace VALUES ({', '.join('?' * len(kept[0]))})", kept)
    with pytest.raises(ParityBroken, match=r"pace 2 of 2 keys .*speed is 1\.0 online, None offline"):
        check(shop, 12)


def test_it_always_looks_again(shop: Shop) -> None:
    shop.put("pace", [(1, 1.0, 1, T0, T0)])
    shop.run(T0 + DAY)
    assert [check(shop)["status"] for _ in range(2)] == ["done", "reused"]
    assert corrupt(shop, "DELETE FROM shop_pace WHERE feature_name = ?", "speed") == 1
    with pytest.raises(ParityBroken, match=r"driver=1: speed is None online, 1\.0 offline"):
        check(shop)


def test_a_push_after_the_watermark_is_counted_not_compared(shop: Shop) -> None:
    import pandas as pd

    from airloop.features.repo import open_store

    shop.put("pace", [(1, 1.0, 1, T0, T0), (2, 2.0, 2, T0, T0)])
    shop.run(T0 + DAY)
    store = open_store(shop.config)
    row = {"driver": [1], "speed": [99.0], "trips": [99]}
    later = T0 + DAY + HOUR
    store.write_to_online_store("pace", pd.DataFrame({**row, "event_time": [later], "arrival_time": [later]}))
    assert check(shop)["counts"]["values_pushed"] == 2
    before = T0 + DAY - HOUR
    row = {"driver": [2], "speed": [99.0], "trips": [2]}
    store.write_to_online_store("pace", pd.DataFrame({**row, "event_time": [before], "arrival_time": [before]}))
    with pytest.raises(ParityBroken, match=r"driver=2: speed is 99\.0 online, 2\.0 offline"):
        check(shop)


def test_a_sample_is_drawn_of_many_keys(shop: Shop) -> None:
    shop.put("pace", [(d, float(d), d, T0, T0) for d in range(1, 1001)])
    shop.run(T0 + DAY)
    first = check(shop, find_share=0.01)
    assert first["counts"]["keys"] == 1001
    assert first["counts"]["keys_compared"] == 300
    assert first["details"]["sample"] == {"find_share": 0.01, "confidence": 0.95, "keys": 299, "seed": 0}
    corrupt(shop, "DELETE FROM shop_pace WHERE rowid % 20 = 0")
    with pytest.raises(ParityBroken, match="of 299 keys"):
        check(shop, find_share=0.01)
    with pytest.raises(ParityBroken, match="of 1,000 keys"):
        check(shop, find_share=0)


def test_what_was_not_materialised_is_refused(shop: Shop) -> None:
    shop.put("pace", [(1, 1.0, 1, T0, T0)])
    with pytest.raises(NotFound, match="pace was never materialised"):
        check(shop)
    shop.run(T0 + DAY)
    with pytest.raises(NotFound, match=r"pace is online only up to 2013-01-02T00:00:00\+00:00"):
        check(shop, 2)
    with pytest.raises(BadArgument, match="no view speeds"):
        check(shop, feature_views=["speeds"])


def test_types_aliases_and_views_without_keys(shop: Shop, tmp_path: Path) -> None:
    import pyarrow as pa

    folder = tmp_path / "repo"
    (folder / "feature_store.yaml").write_text(
        STORE.format(project="shop", engine="airloop.features.engine.IcebergComputeEngine")
    )
    (folder / "views.py").write_text(
        """
from feast import Entity, FeatureService, FeatureView, Field, ValueType
from feast.types import Bool, Float32, Int32, Int64, String, UnixTimestamp
from airloop.features.source import IcebergSource

driver = Entity(name="driver", join_keys=["driver"], value_type=ValueType.INT64)
kinds = FeatureView(
    name="kinds", entities=[driver], ttl=None, source=IcebergSource(name="kinds"),
    schema=[Field(name="driver", dtype=Int64), Field(name="f", dtype=Float32), Field(name="i", dtype=Int32),
            Field(name="b", dtype=Bool), Field(name="s", dtype=String), Field(name="t", dtype=UnixTimestamp)],
)
world = FeatureView(
    name="world", entities=[], ttl=None, source=IcebergSource(name="world"), schema=[Field(name="f", dtype=Float32)],
)
drivers = FeatureService(name="drivers", features=[
    kinds[["f", "i"]].with_name("first").with_join_key_map({"driver": "one"}),
    kinds[["b", "s", "t"]].with_name("second").with_join_key_map({"driver": "two"}), world,
])
"""
    )
    stamp = pa.timestamp("us", tz="UTC")
    times = {"event_time": T0, "arrival_time": T0}
    common = [pa.field("event_time", stamp), pa.field("arrival_time", stamp)]
    schema = pa.schema(
        [("driver", pa.int64()), ("f", pa.float32()), ("i", pa.int32()), ("b", pa.bool_()), ("s", pa.string()),
         ("t", stamp), *common]
    )  # fmt: skip
    rows = [
        {"driver": 1, "f": 0.1, "i": -(2**31), "b": True, "s": "ö'", "t": T0 - 40_000 * DAY, **times},
        {"driver": 2, "f": float("nan"), "i": None, "b": None, "s": None, "t": None, **times},
    ]
    shop.warehouse.ensure("features.kinds", schema)
    shop.warehouse.commit("features.kinds", pa.Table.from_pylist(rows, schema), key="kinds")
    schema = pa.schema([("f", pa.float32()), *common])
    shop.warehouse.ensure("features.world", schema)
    shop.warehouse.commit("features.world", pa.Table.from_pylist([{"f": 1 / 3, **times}], schema), key="world")
    shop.run_step(
        "materialize", interval=Interval(T0, T0 + DAY), feature_service="drivers",
        tables=["features.kinds", "features.world"],
    )  # fmt: skip
    counts = check(shop)["counts"]
    assert (counts["views"], counts["keys_compared"], counts["values_compared"]) == (2, 3, 11)
