"""Step materialize: what stock Feast reads online before, during and after it."""

from __future__ import annotations

import random
import sqlite3
import threading
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from airloop.config import Config
from airloop.contract import Interval
from airloop.errors import BadArgument, BadInterval, StoreBusy
from airloop.warehouse.refs import TableRef
from tests.shop import DAY, DEFINITIONS, HOUR, STORE, T0, RunStep, Shop, config, shop

__all__ = ["config", "shop"]  # fixtures


def test_serves_the_newest_value_known_at_the_intervals_end(shop: Shop) -> None:
    shop.put("pace", [
        (1, 10.0, 1, T0, T0 + HOUR),
        (1, 11.0, 2, T0 + 2 * HOUR, T0 + 3 * HOUR),
        (1, 12.0, 3, T0 + 3 * HOUR, T0 + 2 * DAY),   # not yet known
        (2, None, 7, T0, T0),
        (3, 30.0, 9, T0 - 20 * DAY, T0 - 20 * DAY),  # beyond its time to live
    ])  # fmt: skip
    manifest = shop.run(T0 + DAY)
    assert shop.read(1, 2, 3, 4) == [(11.0, 2), (None, 7), (None, None), (None, None)]
    assert manifest["counts"]["rows_written"] == 3
    assert shop.watermark() == T0 + DAY


def test_entities_of_two_keys(shop: Shop, config: Config) -> None:
    from airloop.features.repo import open_store

    shop.put("pace", [(1, 10.0, 1, T0, T0)])
    shop.run(T0 + DAY)
    answer = open_store(config).get_online_features(
        ["route:note"], [{"driver": 1, "city": "Rome"}, {"driver": 1, "city": "Oslo"}]
    ).to_dict()  # fmt: skip
    assert answer["note"] == ["ok", None]


def test_again_is_reused_until_the_values_are_gone(shop: Shop) -> None:
    shop.put("pace", [(1, 10.0, 1, T0, T0), (2, 20.0, 1, T0, T0)])
    shop.run(T0 + DAY)
    assert shop.run(T0 + DAY)["status"] == "reused"
    with sqlite3.connect(shop.config.online_store) as connection:
        connection.execute("DELETE FROM shop_pace WHERE feature_name = 'speed' OR feature_name = 'trips'")
    connection.close()
    again = shop.run(T0 + DAY)
    assert again["status"] == "done"
    assert shop.read(1, 2) == [(10.0, 1), (20.0, 1)]


def test_what_was_lost_is_not_thought_to_be_there(shop: Shop) -> None:
    shop.put("pace", [(1, 1.0, 1, T0, T0), (1, 2.0, 2, T0 + 30 * HOUR, T0 + 30 * HOUR)])
    shop.run(T0 + 3 * DAY)
    with sqlite3.connect(shop.config.online_store) as connection:
        connection.execute("DROP TABLE shop_pace")
    connection.close()
    # An older interval fills it again: what the newer one had brought is missing, and the watermark says so.
    shop.run(T0 + DAY)
    assert (shop.read(1), shop.watermark()) == ([(1.0, 1)], T0 + DAY)
    shop.run(T0 + 3 * DAY)
    assert (shop.read(1), shop.watermark()) == ([(2.0, 2)], T0 + 3 * DAY)


def test_reads_only_what_the_watermark_has_not_seen(shop: Shop) -> None:
    shop.put("pace", [(d, 1.0, 1, T0, T0) for d in range(1, 101)])
    shop.run(T0 + DAY)
    shop.put("pace", [(1, 2.0, 2, T0 + DAY + HOUR, T0 + DAY + HOUR)])
    manifest = shop.run(T0 + 2 * DAY)
    assert manifest["details"]["views"]["pace"]["rows"] == 1
    assert shop.read(1, 2) == [(2.0, 2), (1.0, 1)]


def test_a_row_counts_when_it_is_both_true_and_known(shop: Shop) -> None:
    # Known early (a forecast) or late: the watermark passed neither.
    shop.put("pace", [(1, 1.0, 1, T0 + DAY + HOUR, T0), (2, 2.0, 2, T0, T0 + DAY + HOUR)])
    shop.run(T0 + DAY)
    assert shop.read(1, 2) == [(None, None), (None, None)]
    shop.run(T0 + 2 * DAY)
    assert shop.read(1, 2) == [(1.0, 1), (2.0, 2)]


def test_rows_committed_late_are_not_lost(shop: Shop) -> None:
    shop.put("pace", [(1, 1.0, 1, T0, T0)])
    shop.run(T0 + DAY)
    # Arrived before the watermark by its own account, but was in no snapshot then.
    shop.put("pace", [(2, 5.0, 5, T0 + HOUR, T0 + HOUR), (1, 0.5, 0, T0 - HOUR, T0 - HOUR)])
    shop.run(T0 + 2 * DAY)
    assert shop.read(1, 2) == [(1.0, 1), (5.0, 5)]


def test_a_correction_replaces_the_value_of_the_same_time(shop: Shop) -> None:
    shop.put("pace", [(1, 1.0, 1, T0, T0)])
    shop.run(T0 + DAY)
    fixed = shop.warehouse.commit(
        "features.pace",
        shop.warehouse.scan(TableRef("features.pace")).read_all().set_column(1, "speed", pa.array([9.0])),
        key="fix", mode="replace",
    ).ref  # fmt: skip
    shop.run(T0 + 2 * DAY, pace=fixed)
    assert shop.read(1) == [(9.0, 1)]
    # And the state before the correction does not come back.
    old = TableRef("features.pace", shop.warehouse.history("features.pace")[0].id)
    shop.run(T0 + 2 * DAY, pace=old, force=True)
    assert shop.read(1) == [(9.0, 1)]


def test_an_older_interval_moves_nothing_back_and_says_so(shop: Shop) -> None:
    noon = T0 + 12 * HOUR
    shop.put("pace", [(1, 1.0, 1, noon, noon), (1, 2.0, 2, noon + DAY, noon + DAY), (2, 3.0, 3, noon, noon)])
    shop.run(T0 + 2 * DAY)
    manifest = shop.run(T0 + DAY)
    view = manifest["details"]["views"]["pace"]
    assert (view["rows_written"], view["rows_skipped"], view["moved"]) == (0, 2, False)
    assert "nothing moved back" in view["notes"][0]
    assert shop.read(1, 2) == [(2.0, 2), (3.0, 3)]
    assert shop.watermark() == T0 + 2 * DAY
    assert shop.run(T0 + DAY)["status"] == "reused"


def test_values_expire_when_the_watermark_passes_their_time_to_live(shop: Shop) -> None:
    shop.put("pace", [(1, 1.0, 1, T0, T0), (2, 2.0, 2, T0 + 5 * DAY, T0 + 5 * DAY)])
    shop.run(T0 + 6 * DAY)
    manifest = shop.run(T0 + 12 * DAY)
    assert manifest["counts"]["rows_expired"] == 1
    assert shop.read(1, 2) == [(None, None), (2.0, 2)]


def test_a_push_by_somebody_else_that_is_newer_stays(shop: Shop, config: Config) -> None:
    import pandas as pd

    from airloop.features.repo import open_store

    shop.put("pace", [(1, 1.0, 1, T0, T0), (1, 2.0, 2, T0 + DAY + HOUR, T0 + DAY + HOUR)])
    shop.run(T0 + DAY)
    pushed = T0 + DAY + 5 * HOUR
    open_store(config).write_to_online_store(
        "pace",
        pd.DataFrame({"driver": [1], "speed": [99.0], "trips": [99], "event_time": [pushed], "arrival_time": [pushed]}),
    )
    shop.run(T0 + 2 * DAY)
    assert shop.read(1) == [(99.0, 99)]


def test_a_run_of_the_future_is_refused_and_the_next_one_is_right(shop: Shop) -> None:
    shop.put("pace", [(1, 1.0, 1, T0, T0)])
    with pytest.raises(BadInterval, match="future"):
        shop.run(datetime.now(UTC) + 300 * DAY)
    shop.run(T0 + DAY)
    assert shop.read(1) == [(1.0, 1)]
    assert shop.watermark() == T0 + DAY


def test_rows_of_the_future_are_not_served(shop: Shop) -> None:
    shop.put("pace", [(1, 1.0, 1, T0, T0), (1, 9.0, 9, T0 + 400 * DAY, T0 + 400 * DAY)])
    shop.run(T0 + DAY)
    assert shop.read(1) == [(1.0, 1)]


def test_names_tables_and_views_that_are_missing(shop: Shop, run_step: RunStep) -> None:
    shop.put("pace", [(1, 1.0, 1, T0, T0)])
    interval = Interval(T0, T0 + DAY)
    with pytest.raises(BadArgument, match=r"features\.route"):
        run_step("materialize", interval=interval, feature_service="drivers", tables=["features.pace"])
    with pytest.raises(BadArgument, match="speeds"):
        run_step("materialize", interval=interval, feature_service="drivers", tables=[], feature_views=["speeds"])
    manifest = run_step(
        "materialize", interval=interval, feature_service="drivers", tables=["features.pace"], feature_views=["pace"]
    )
    assert manifest["counts"]["views"] == 1


def test_online_is_what_a_point_in_time_join_gives_after_each_run(shop: Shop, config: Config) -> None:
    import pandas as pd

    from airloop.features.repo import open_store

    chance = random.Random(3)
    for day in range(1, 16, 3):
        rows = []
        for _ in range(120):
            event = T0 + chance.randrange(day * 24) * HOUR
            arrival = event + chance.randrange(0, 96) * HOUR  # days late, out of order, and some with equal times
            rows.append((chance.randrange(1, 25), chance.random(), chance.randrange(5), event, arrival))
        shop.put("pace", rows)
        now = T0 + day * DAY
        shop.run(now)
        drivers = list(range(1, 27))
        entities = pd.DataFrame({"driver": drivers, "event_timestamp": [now] * len(drivers)})
        joined = open_store(config).get_historical_features(entities, ["pace:speed", "pace:trips"]).to_arrow()
        assert shop.read(*drivers) == list(
            zip(joined["speed"].to_pylist(), joined["trips"].to_pylist(), strict=True)
        )  # fmt: skip


def test_a_locked_store_is_tried_again_and_keeps_its_values(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    from airloop.features import online_sqlite

    shop.put("pace", [(1, 1.0, 1, T0, T0)])
    shop.run(T0 + DAY)
    shop.put("pace", [(1, 2.0, 2, T0 + DAY + HOUR, T0 + DAY + HOUR)])
    monkeypatch.setattr(online_sqlite.OnlineFile.__init__, "__kwdefaults__", {"busy_timeout_s": 0.2})
    holder = sqlite3.connect(shop.config.online_store, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreBusy, match="locked"):
        shop.run(T0 + 2 * DAY)
    assert shop.read(1) == [(1.0, 1)]
    holder.execute("ROLLBACK")
    holder.close()
    shop.run(T0 + 2 * DAY)
    assert shop.read(1) == [(2.0, 2)]


def test_readers_never_see_a_mix_of_old_and_new(shop: Shop) -> None:
    drivers = range(1, 20_001)
    shop.put("pace", [(d, 1.0, 1, T0, T0) for d in drivers])
    shop.run(T0 + DAY)
    shop.put("pace", [(d, 2.0, 2, T0 + DAY + HOUR, T0 + DAY + HOUR) for d in drivers])
    looked, done = threading.Event(), threading.Event()
    seen: set[tuple[Any, ...]] = set()

    def look() -> None:
        last = False
        while not last:
            last = done.is_set()
            seen.update({tuple(shop.read(1, 5_000, 10_000, 20_000))})
            looked.set()

    reader = threading.Thread(target=look)
    reader.start()
    try:
        assert looked.wait(60)
        shop.run(T0 + 2 * DAY)
    finally:
        done.set()
        reader.join()
    assert seen == {((1.0, 1),) * 4, ((2.0, 2),) * 4}
    assert shop.read(7_777) == [(2.0, 2)]


class TestBareFeastMaterialize:
    def test_never_puts_an_older_value_over_a_newer_nor_moves_the_watermark(self, shop: Shop, config: Config) -> None:
        from airloop.features.repo import open_store

        shop.put("pace", [(1, 1.0, 1, T0, T0), (1, 2.0, 2, T0 + 30 * HOUR, T0 + 30 * HOUR), (2, 5.0, 5, T0, T0)])
        shop.run(T0 + 2 * DAY)
        open_store(config).materialize(T0 - DAY, T0 + DAY)
        assert shop.read(1, 2) == [(2.0, 2), (5.0, 5)]
        assert shop.watermark() == T0 + 2 * DAY
        assert shop.run(T0 + 2 * DAY)["status"] == "reused"

    def test_loads_what_it_is_asked_for_and_our_next_run_still_sees_everything(
        self, shop: Shop, config: Config
    ) -> None:
        from airloop.features.repo import open_store

        shop.put("pace", [(1, 1.0, 1, T0, T0), (1, 2.0, 2, T0 + 30 * HOUR, T0 + 30 * HOUR)])
        open_store(config).materialize(T0 - DAY, T0 + 100 * DAY)
        assert shop.read(1) == [(2.0, 2)]
        assert shop.watermark() is None
        shop.run(T0 + DAY)
        assert shop.read(1) == [(2.0, 2)]
        assert shop.watermark() == T0 + DAY

    def test_serves_what_feasts_own_engine_serves(self, shop: Shop, config: Config, tmp_path: Path) -> None:
        from airloop.features.repo import open_store

        shop.put("pace", [
            (d, None if d % 7 == 0 else d / 3, None if d % 5 == 0 else d, T0 + (d % 11) * HOUR, T0 + (d % 11) * HOUR)
            for d in range(1, 300)
        ])  # fmt: skip
        shop.run(T0 + DAY)
        other = tmp_path / "stock"
        other.mkdir()
        (other / "views.py").write_text(DEFINITIONS)
        (other / "feature_store.yaml").write_text(STORE.format(project="shop", engine="local"))
        registry = tmp_path / "stock-registry.db"
        stock = replace(config, feature_repo=other, online_store=tmp_path / "stock.db", feast_registry=registry)
        open_store(stock).materialize(T0 - DAY, T0 + DAY)

        def content(path: Path, table: str) -> list[Any]:
            with sqlite3.connect(path) as connection:
                return connection.execute(
                    f"SELECT entity_key, feature_name, value, value_text, event_ts, created_ts FROM {table}"
                    " ORDER BY entity_key, feature_name"
                ).fetchall()

        for table in ("shop_pace", "shop_route"):
            assert content(config.online_store, table) == content(stock.online_store, table)
        ours = Shop.read(shop, *range(1, 302))
        shop.config = stock
        assert ours == shop.read(*range(1, 302))
