"""What is online stays what a join gives, whatever becomes of the past: withdrawn rows, late backfills."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from airloop.config import Config, RedisAddress
from airloop.features import online_redis
from airloop.warehouse.catalog import Warehouse
from airloop.warehouse.refs import TableRef
from tests import shop as shops
from tests.shop import DAY, HOUR, T0, RunStep, Shop

Row = tuple[int, float, int, datetime, datetime]
NOTHING = (None, None)


@pytest.fixture(params=["sqlite", "redis"])
def shop(
    request: pytest.FixtureRequest, warehouse: Warehouse, config: Config, run_step: RunStep, tmp_path: Path
) -> Shop:
    config = shops.with_repository(config, tmp_path / "repo")
    if request.param == "redis":
        config = replace(config, online_store=RedisAddress(request.getfixturevalue("redis_url")))
    return Shop(warehouse, config, lambda *a, **k: run_step(*a, config=config, **k))


def row(driver: int, value: int, event: datetime, arrival: datetime | None = None) -> Row:
    return driver, float(value), value, event, arrival or event


def joined(shop: Shop, at: datetime, *drivers: int) -> list[tuple[Any, Any]]:
    """The answer of a point-in-time join on the table as it is now."""
    import pandas as pd

    from airloop.features.repo import open_store

    entities = pd.DataFrame({"driver": drivers, "event_timestamp": [at] * len(drivers)})
    found = open_store(shop.config).get_historical_features(entities, ["pace:speed", "pace:trips"]).to_arrow()
    return list(zip(found["speed"].to_pylist(), found["trips"].to_pylist(), strict=True))


def withdraw(shop: Shop, where: str) -> TableRef:
    shop.commits += 1
    return shop.warehouse.delete("features.pace", where, key=f"withdrawn{shop.commits}").ref


class TestWithdrawn:
    def test_what_is_left_takes_the_place(self, shop: Shop) -> None:
        shop.put("pace", [row(1, 1, T0), row(1, 2, T0 + 5 * HOUR), row(2, 7, T0), row(3, 5, T0 + 5 * HOUR)])
        shop.run(T0 + DAY)
        assert shop.read(1, 2, 3) == [(2.0, 2), (7.0, 7), (5.0, 5)]
        withdraw(shop, "driver IN (1, 3) AND trips > 1")
        manifest = shop.run(T0 + DAY)
        assert shop.read(1, 2, 3) == [(1.0, 1), (7.0, 7), NOTHING]
        counts = manifest["details"]["views"]["pace"]
        assert (counts["rows_expired"], counts["entities"]) == (1, 2)
        assert joined(shop, T0 + DAY, 1, 2, 3) == shop.read(1, 2, 3)
        # And it comes back like any other row.
        shop.put("pace", [row(3, 6, T0 + 6 * HOUR)])
        shop.run(T0 + 2 * DAY)
        assert shop.read(1, 2, 3) == [(1.0, 1), (7.0, 7), (6.0, 6)]

    def test_dated_back(self, shop: Shop) -> None:
        shop.put("pace", [row(1, 2, T0 + 5 * HOUR)])
        shop.run(T0 + DAY)
        withdraw(shop, "driver = 1")
        shop.put("pace", [row(1, 3, T0 + HOUR)])
        shop.run(T0 + 2 * DAY)
        assert shop.read(1) == [(3.0, 3)]

    def test_by_a_run_of_an_older_interval(self, shop: Shop) -> None:
        shop.put("pace", [row(1, 1, T0), row(1, 2, T0 + DAY + HOUR)])
        shop.run(T0 + 2 * DAY)
        withdraw(shop, "trips = 2")
        shop.run(T0 + DAY)
        assert shop.read(1) == [(1.0, 1)]

    def test_an_older_state_of_the_table_withdraws_nothing(self, shop: Shop) -> None:
        before = shop.put("pace", [row(1, 1, T0)])
        shop.put("pace", [row(1, 2, T0 + HOUR), row(2, 2, T0 + HOUR)])
        shop.run(T0 + DAY)
        for force in (False, True):
            shop.run(T0 + DAY, pace=before, force=force)
            assert shop.read(1, 2) == [(2.0, 2), (2.0, 2)]

    def test_a_push_by_somebody_else_that_is_newer_stays(self, shop: Shop) -> None:
        import pandas as pd

        from airloop.features.repo import open_store

        shop.put("pace", [row(1, 1, T0), row(1, 2, T0 + HOUR), row(2, 2, T0 + HOUR)])
        shop.run(T0 + DAY)
        pushed = [T0 + DAY + HOUR] * 2
        content = {"driver": [1, 2], "speed": [9.0, 9.0], "trips": [9, 9], "event_time": pushed, "arrival_time": pushed}
        open_store(shop.config).write_to_online_store("pace", pd.DataFrame(content))
        withdraw(shop, "trips = 2")
        shop.run(T0 + 2 * DAY)
        assert shop.read(1, 2) == [(9.0, 9), (9.0, 9)]

    def test_a_correction_and_a_compaction_withdraw_nothing(self, shop: Shop) -> None:
        for driver in range(1, 7):
            shop.put("pace", [row(driver, driver, T0), row(driver, 2 * driver, T0 + HOUR)])
        shop.run(T0 + DAY)
        assert shop.warehouse.compact("features.pace").changed
        counts = shop.run(T0 + 2 * DAY)["details"]["views"]["pace"]
        assert (counts["rows_written"], counts["rows_expired"]) == (0, 0)


class TestLateBackfill:
    def test_a_value_that_would_have_expired_does_not_come_online(self, shop: Shop) -> None:
        shop.put("pace", [row(1, 1, T0 + 59 * DAY)])
        shop.run(T0 + 60 * DAY)
        late = T0 + 30 * DAY
        shop.put("pace", [row(1, 8, late), row(2, 8, late)])
        shop.run(T0 + 31 * DAY)
        assert shop.read(1, 2) == [(1.0, 1), NOTHING]
        assert joined(shop, T0 + 60 * DAY, 1, 2) == shop.read(1, 2)

    def test_what_it_brought_is_online_as_of_the_watermark(self, shop: Shop) -> None:
        from airloop.features.online import OnlineTable
        from airloop.features.online_store import online_store_of

        shop.put("pace", [row(1, 1, T0)])
        shop.run(T0 + 5 * DAY)
        # One row of the older interval, and one that was known only after it.
        ref = shop.put("pace", [row(2, 2, T0 + HOUR), row(3, 3, T0 + HOUR, T0 + 3 * DAY)])
        manifest = shop.run(T0 + DAY)
        assert shop.read(1, 2, 3) == [(1.0, 1), (2.0, 2), (3.0, 3)]
        assert "online as of that time" in manifest["details"]["views"]["pace"]["notes"][0]
        mark = online_store_of(shop.config).watermark(OnlineTable("shop_pace", "pace", (), "shop", ("driver",)))
        assert mark is not None
        assert (mark.until_us, mark.snapshot) == (int((T0 + 5 * DAY).timestamp() * 1e6), ref.snapshot)
        assert shop.run(T0 + DAY)["status"] == "reused"


def test_online_is_what_a_join_gives_whatever_happens(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    # Several slices in Redis.
    monkeypatch.setattr(online_redis, "ENTITIES_PER_SLICE", 7)
    chance = random.Random(11)
    drivers = list(range(1, 26))
    online_at = T0

    def some(before: datetime) -> list[Row]:
        hours = int((before - T0) / HOUR)
        times = [T0 + chance.randrange(hours) * HOUR for _ in range(40)]
        delays = [chance.randrange(0, 72) * HOUR for _ in times]
        return [
            row(chance.choice(drivers), chance.randrange(9), event, event + delay)
            for event, delay in zip(times, delays, strict=True)
        ]

    happens: list[Callable[[datetime], Any]] = [
        lambda at: shop.put("pace", some(at)),
        lambda at: shop.put("pace", some(at)),
        lambda at: withdraw(shop, f"driver % 5 = {chance.randrange(5)} AND trips % 3 = {chance.randrange(3)}"),
        lambda at: withdraw(shop, f"event_time > TIMESTAMPTZ '{at - 2 * DAY}'"),
        lambda at: shop.warehouse.compact("features.pace"),
    ]
    shop.put("pace", some(T0 + DAY))
    for day in range(2, 26, 2):
        for _ in range(chance.randrange(3)):
            chance.choice(happens)(T0 + day * DAY)
        # Now and then an interval that ended long ago.
        end = T0 + (day if chance.random() < 0.7 else chance.randrange(1, day)) * DAY
        shop.run(end)
        online_at = max(online_at, end)
        assert shop.read(*drivers) == joined(shop, online_at, *drivers), (day, end)
