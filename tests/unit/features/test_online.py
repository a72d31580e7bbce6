"""The switch of online values below Feast: the same promises in every store."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from airloop.errors import BadInput, StoreBusy
from airloop.features.encode import encode_instants, key_prefix
from airloop.features.online import Chunk, OnlineStore, OnlineTable, Switched, Watermark
from airloop.features.online_redis import OnlineRedis, _fields
from airloop.features.online_sqlite import OnlineFile
from airloop.features.watermark import NOTHING_NEW, counts_from

TABLE = OnlineTable("shop_pace", "pace", ("speed", "trips"), "shop", ("driver",))
SECOND = 1_000_000


class File:
    """SQLite, as stock Feast sees it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.store = self.open(0.2)
        self._run(
            "CREATE TABLE shop_pace (entity_key BLOB, feature_name TEXT, value BLOB, value_text TEXT,"
            " vector_value BLOB, event_ts timestamp, created_ts timestamp, PRIMARY KEY (entity_key, feature_name))"
        )

    def open(self, wait_s: float) -> OnlineFile:
        return OnlineFile(self.path, busy_timeout_s=wait_s)

    def key(self, name: bytes) -> bytes:
        return name

    def served(self) -> dict[bytes, bytes]:
        rows = self._run("SELECT entity_key, value FROM shop_pace WHERE feature_name = 'speed'")
        both = self._run("SELECT entity_key, value FROM shop_pace WHERE feature_name = 'trips'")
        assert sorted(rows) == sorted(both)
        return dict(rows)

    def push(self, name: bytes, value: bytes, time_us: int) -> None:
        """As somebody else writes it."""
        self._run("UPDATE shop_pace SET value = ?, event_ts = ? WHERE entity_key = ?", (value, time_us // SECOND, name))

    def lose(self, name: bytes) -> None:
        self._run("DELETE FROM shop_pace WHERE entity_key = ?", (name,))

    def _run(self, sql: str, values: tuple[Any, ...] = ()) -> list[Any]:
        connection = sqlite3.connect(self.path)
        with connection:
            rows = connection.execute(sql, values).fetchall()
        connection.close()
        return rows


class Redis:
    """The same in Redis."""

    def __init__(self, url: str) -> None:
        import redis

        self.url = url
        self.client: Any = redis.Redis.from_url(url)
        self.store = self.open(0.2)

    def open(self, wait_s: float) -> OnlineRedis:
        import redis

        return OnlineRedis(redis.Redis.from_url(self.url), lock_wait_s=wait_s)

    def key(self, name: bytes) -> bytes:
        return key_prefix(["driver"]) + name

    def served(self) -> dict[bytes, bytes]:
        found = {}
        for key in self.client.scan_iter(match="*shop"):
            speed, trips, time = self.client.hmget(key, [*_fields(TABLE), "_ts:pace"])
            assert (speed is None) == (trips is None)
            if speed is not None:
                assert speed == trips
                assert time is not None
                found[key[len(key_prefix(["driver"])) : -4]] = speed
        return found

    def push(self, name: bytes, value: bytes, time_us: int) -> None:
        time = encode_instants(np.array([time_us]))[0].as_py()
        self.client.hset(self.key(name) + b"shop", mapping=dict.fromkeys(_fields(TABLE), value) | {b"_ts:pace": time})

    def lose(self, name: bytes) -> None:
        self.client.delete(self.key(name) + b"shop")


@pytest.fixture(params=["sqlite", "redis"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    if request.param == "sqlite":
        return File(tmp_path / "online.db")
    return Redis(request.getfixturevalue("redis_url"))


@pytest.fixture
def online(world: Any) -> Any:
    return world.store


def chunk(
    rows: Sequence[tuple[bytes, int, bytes]], *, arrival_us: int = 0, key: Any = bytes, samples: Any = ()
) -> Chunk:
    """Key, event time in microseconds and the value of both features."""
    times = np.array([time for _, time, _ in rows], np.int64)
    values = pa.array([value for _, _, value in rows], pa.binary())
    arrivals = np.full(len(rows), arrival_us) if arrival_us else times
    keys = pa.array([key(name) for name, _, _ in rows], pa.binary())
    texts = [None] * len(rows)
    return Chunk(keys, times, arrivals, [values, values], [texts, texts], samples)


def put(
    world: Any, rows: Sequence[tuple[bytes, int, bytes]], *, until: int | None = None,
    replace_equal: bool = True, arrival_us: int = 0, expire_before_us: int | None = None, lost: Sequence[bytes] = (),
) -> Switched:  # fmt: skip
    online: OnlineStore = world.store
    with online.locked(TABLE):
        online.forget_if_lost(TABLE)
        with online.staging(TABLE) as staging:
            staging.add(chunk(rows, arrival_us=arrival_us, key=world.key))
            staging.verify(len(rows))
        mark = None if until is None else Watermark(until, "key", 1, 0)
        return online.switch(
            TABLE, replace_equal=replace_equal, watermark=mark, expire_before_us=expire_before_us,
            lost=[world.key(name) for name in lost],
        )  # fmt: skip


def test_microseconds_decide_within_one_second(world: Any) -> None:
    put(world, [(b"a", SECOND + 200, b"new")])
    result = put(world, [(b"a", SECOND + 100, b"old")])
    assert (result.written, result.skipped) == (0, 1)
    assert world.served() == {b"a": b"new"}
    put(world, [(b"a", SECOND + 300, b"newer")])
    assert world.served() == {b"a": b"newer"}


def test_of_equal_events_the_later_arrival_wins(world: Any) -> None:
    put(world, [(b"a", SECOND, b"late")], arrival_us=9 * SECOND)
    put(world, [(b"a", SECOND, b"early")], arrival_us=5 * SECOND)
    assert world.served() == {b"a": b"late"}


def test_equal_times_are_replaced_only_by_a_newer_state_of_the_table(world: Any) -> None:
    put(world, [(b"a", SECOND, b"one")])
    put(world, [(b"a", SECOND, b"two")], replace_equal=False)
    assert world.served() == {b"a": b"one"}
    put(world, [(b"a", SECOND, b"three")], replace_equal=True)
    assert world.served() == {b"a": b"three"}


def test_the_watermark_never_moves_back(world: Any) -> None:
    assert put(world, [(b"a", SECOND, b"1")], until=5 * SECOND).moved
    result = put(world, [(b"b", SECOND, b"2")], until=4 * SECOND)
    assert not result.moved
    found = world.store.watermark(TABLE)
    assert found is not None
    assert found.until_us == 5 * SECOND
    assert world.served() == {b"a": b"1", b"b": b"2"}


def test_a_foreign_write_that_is_newer_stays_and_survives_expiry(world: Any) -> None:
    put(world, [(b"a", SECOND, b"ours"), (b"b", SECOND, b"ours")], until=SECOND)
    world.push(b"a", b"P", 50 * SECOND)
    put(world, [(b"a", 20 * SECOND, b"mine"), (b"b", 20 * SECOND, b"mine")], until=20 * SECOND)
    assert world.served() == {b"a": b"P", b"b": b"mine"}
    result = put(world, [], until=40 * SECOND, expire_before_us=30 * SECOND)
    assert result.expired == 2
    assert world.served() == {b"a": b"P"}


def test_a_lost_row_gives_way_to_an_older_one_or_to_none(world: Any) -> None:
    put(world, [(name, 9 * SECOND, b"new") for name in (b"a", b"b", b"c")], until=9 * SECOND)
    world.push(b"c", b"P", 50 * SECOND)
    keys = [world.key(name) for name in (b"a", b"x")]
    assert world.store.served(TABLE, keys) == {keys[0]: (9 * SECOND, 9 * SECOND)}
    result = put(world, [(b"a", SECOND, b"old")], until=10 * SECOND, lost=[b"a", b"b", b"c"])
    assert (result.written, result.skipped, result.expired) == (1, 0, 2)
    assert world.served() == {b"a": b"old", b"c": b"P"}
    assert world.store.served(TABLE, keys) == {keys[0]: (SECOND, SECOND)}
    found = world.store.watermark(TABLE)
    assert found is not None
    assert found.entities == 1
    # It is a value like any other from then on.
    put(world, [(b"a", 2 * SECOND, b"next"), (b"b", 2 * SECOND, b"next")])
    assert world.served() == {b"a": b"next", b"b": b"next", b"c": b"P"}


def test_one_entity_twice_is_refused_and_nothing_changes(world: Any) -> None:
    put(world, [(b"a", SECOND, b"1")], until=SECOND)
    with pytest.raises(BadInput, match="same entity key"):
        put(world, [(b"a", 2 * SECOND, b"2"), (b"a", 2 * SECOND, b"3")], until=2 * SECOND)
    assert world.served() == {b"a": b"1"}


def test_what_differs_from_feasts_own_bytes_is_refused(world: Any) -> None:
    online = world.store
    online = world.store
    with online.locked(TABLE), online.staging(TABLE) as staging:
        staging.add(chunk([(b"a", SECOND, b"1")], samples=[(b"a", (b"1", b"2"))]))
        with pytest.raises(BadInput, match="not what Feast would serve"):
            staging.verify(1)


def test_a_missing_row_is_noticed(world: Any) -> None:
    online = world.store
    with online.locked(TABLE), online.staging(TABLE) as staging:
        staging.add(chunk([(b"a", SECOND, b"1")]))
        with pytest.raises(BadInput, match="1 rows were staged, the feature table has 2"):
            staging.verify(2)


def test_one_view_is_materialised_once_at_a_time(world: Any) -> None:
    other = world.open(0.1)
    with world.store.locked(TABLE), pytest.raises(StoreBusy, match="pace"), other.locked(TABLE):
        pass


def test_a_full_disk_in_the_switch_keeps_values_and_watermark(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    put(world, [(b"a", SECOND, b"1")], until=SECOND)
    monkeypatch.setattr("airloop.faults._reached", Counter())
    monkeypatch.setenv("AIRLOOP_FAULT", "full@materialize:before_switch")
    with pytest.raises(OSError, match="No space"):
        put(world, [(b"a", 2 * SECOND, b"2")], until=2 * SECOND)
    monkeypatch.delenv("AIRLOOP_FAULT")
    found = world.store.watermark(TABLE)
    assert found is not None
    assert (world.served(), found.until_us) == ({b"a": b"1"}, SECOND)


def test_lost_entities_fill_the_view_anew(world: Any) -> None:
    put(world, [(b"a", SECOND, b"1"), (b"b", SECOND, b"1")], until=SECOND)
    world.lose(b"b")
    assert world.store.watermark(TABLE) is None
    with world.store.locked(TABLE):
        world.store.forget_if_lost(TABLE)
        assert world.store.recorded(TABLE) is None
    assert put(world, [(b"a", SECOND, b"2"), (b"b", SECOND, b"2")], until=SECOND).moved
    assert world.served() == {b"a": b"2", b"b": b"2"}
    assert world.store.watermark(TABLE) == Watermark(SECOND, "key", 1, 2)


def test_times_before_1970(world: Any) -> None:
    put(world, [(b"a", -5 * SECOND - 1, b"1")])
    put(world, [(b"a", -5 * SECOND - 2, b"older")])
    assert world.served() == {b"a": b"1"}
    put(world, [(b"a", -5 * SECOND, b"newer")], expire_before_us=-4 * SECOND)
    assert world.served() == {}


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "online.db"
    path.write_bytes(b"this is no database at all, but long enough to be read as one" * 20)
    with pytest.raises(BadInput, match="damaged"):
        OnlineFile(path).watermark(TABLE)


@pytest.mark.parametrize(
    ("until", "late", "expected"),
    [(None, NOTHING_NEW, None), (100, None, None), (100, NOTHING_NEW, 100), (100, 50, 49), (100, 200, 100)],
)
def test_rows_to_look_at(until: int | None, late: int | None, expected: int | None) -> None:
    assert counts_from(until, late) == expected


def test_many_features_with_odd_names_and_values_of_any_length(world: Any) -> None:
    names = [f"it's {{{i}}}?" for i in range(230)]
    table = OnlineTable("shop_wide", "wide", tuple(names), "shop", ("driver",))
    if isinstance(world, File):
        world._run(world._run("SELECT sql FROM sqlite_master WHERE name = 'shop_pace'")[0][0].replace("pace", "wide"))
    entities = 123
    lengths = [0, 31, 32, 255, 256, 70_000]
    values = [
        pa.array([b"%d-%d" % (i, row) + b"x" * lengths[(i + row) % 6 if row < 2 else 0] for row in range(entities)])
        for i in range(len(names))
    ]
    times = np.full(entities, SECOND)
    keys = pa.array([world.key(b"%03d" % row) for row in range(entities)], pa.binary())
    texts = [[None] * entities] * len(names)
    online = world.store
    with online.locked(table):
        with online.staging(table) as staging:
            staging.add(Chunk(keys, times, times, values, texts))
            staging.verify(entities)
        assert online.switch(table, replace_equal=True, watermark=None).written == entities
    for row in (0, 1, 100, 122):
        if isinstance(world, File):
            found = dict(world._run("SELECT feature_name, value FROM shop_wide WHERE entity_key = ?", (b"%03d" % row,)))
            served = [found[name] for name in names]
        else:
            served = world.client.hmget(world.key(b"%03d" % row) + b"shop", _fields(table))
        assert served == [column[row].as_py() for column in values]
