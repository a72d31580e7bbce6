"""The switch in the SQLite file, below Feast."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path

import pytest

from airloop.errors import BadInput, StoreBusy
from airloop.features.online import Chunk, OnlineFile, OnlineTable, Switched, Watermark
from airloop.features.watermark import NOTHING_NEW, counts_from

TABLE = OnlineTable("shop_pace", "pace", ("speed", "trips"))
SECOND = 1_000_000


@pytest.fixture
def online(tmp_path: Path) -> OnlineFile:
    path = tmp_path / "online.db"
    with sqlite3.connect(path) as connection:
        connection.execute(
            "CREATE TABLE shop_pace (entity_key BLOB, feature_name TEXT, value BLOB, value_text TEXT,"
            " vector_value BLOB, event_ts timestamp, created_ts timestamp, PRIMARY KEY (entity_key, feature_name))"
        )
    connection.close()
    return OnlineFile(path, busy_timeout_s=0.2)


def chunk(rows: Sequence[tuple[bytes, int, bytes]], *, arrival_us: int = 0) -> Chunk:
    """Key, event time in microseconds and the value of both features."""
    keys = [key for key, _, _ in rows]
    times = [time for _, time, _ in rows]
    values = [value for _, _, value in rows]
    seconds = [time // SECOND for time in times]
    arrivals = [arrival_us or time for time in times]
    texts = [None] * len(rows)
    return Chunk(keys, times, arrivals, seconds, seconds, [values, values], [texts, texts])


def put(
    online: OnlineFile, rows: Sequence[tuple[bytes, int, bytes]], *, until: int | None = None,
    replace_equal: bool = True, arrival_us: int = 0, expire_before_us: int | None = None,
) -> Switched:  # fmt: skip
    with online.locked(TABLE):
        with online.staging(TABLE) as staging:
            staging.add(chunk(rows, arrival_us=arrival_us))
            staging.verify(len(rows))
        mark = None if until is None else Watermark(until, "key", 1, 0)
        return online.switch(
            TABLE, replace_equal=replace_equal, watermark=mark, expire_before_us=expire_before_us
        )  # fmt: skip


def served(online: OnlineFile) -> dict[bytes, bytes]:
    with sqlite3.connect(online.path) as connection:
        rows = connection.execute("SELECT entity_key, value FROM shop_pace WHERE feature_name = 'speed'").fetchall()
        both = connection.execute("SELECT entity_key, value FROM shop_pace WHERE feature_name = 'trips'").fetchall()
    connection.close()
    assert sorted(rows) == sorted(both)
    return dict(rows)


def test_microseconds_decide_within_one_second(online: OnlineFile) -> None:
    put(online, [(b"a", SECOND + 200, b"new")])
    result = put(online, [(b"a", SECOND + 100, b"old")])
    assert (result.written, result.skipped) == (0, 1)
    assert served(online) == {b"a": b"new"}
    put(online, [(b"a", SECOND + 300, b"newer")])
    assert served(online) == {b"a": b"newer"}


def test_of_equal_events_the_later_arrival_wins(online: OnlineFile) -> None:
    put(online, [(b"a", SECOND, b"late")], arrival_us=9 * SECOND)
    put(online, [(b"a", SECOND, b"early")], arrival_us=5 * SECOND)
    assert served(online) == {b"a": b"late"}


def test_equal_times_are_replaced_only_by_a_newer_state_of_the_table(online: OnlineFile) -> None:
    put(online, [(b"a", SECOND, b"one")])
    put(online, [(b"a", SECOND, b"two")], replace_equal=False)
    assert served(online) == {b"a": b"one"}
    put(online, [(b"a", SECOND, b"three")], replace_equal=True)
    assert served(online) == {b"a": b"three"}


def test_the_watermark_never_moves_back(online: OnlineFile) -> None:
    assert put(online, [(b"a", SECOND, b"1")], until=5 * SECOND).moved
    result = put(online, [(b"b", SECOND, b"2")], until=4 * SECOND)
    assert not result.moved
    found = online.watermark(TABLE)
    assert found is not None
    assert (found.until_us, found.entities) == (5 * SECOND, 1)
    assert served(online) == {b"a": b"1", b"b": b"2"}


def test_a_foreign_write_that_is_newer_stays_and_survives_expiry(online: OnlineFile) -> None:
    put(online, [(b"a", SECOND, b"ours"), (b"b", SECOND, b"ours")], until=SECOND)
    with sqlite3.connect(online.path) as connection:
        connection.execute("UPDATE shop_pace SET value = x'50', event_ts = 50 WHERE entity_key = x'61'")
    connection.close()
    put(online, [(b"a", 20 * SECOND, b"mine"), (b"b", 20 * SECOND, b"mine")], until=20 * SECOND)
    assert served(online) == {b"a": b"P", b"b": b"mine"}
    result = put(online, [], until=40 * SECOND, expire_before_us=30 * SECOND)
    assert result.expired == 2
    assert served(online) == {b"a": b"P"}


def test_one_entity_twice_is_refused_and_nothing_changes(online: OnlineFile) -> None:
    put(online, [(b"a", SECOND, b"1")], until=SECOND)
    with pytest.raises(BadInput, match="same entity key"):
        put(online, [(b"a", 2 * SECOND, b"2"), (b"a", 2 * SECOND, b"3")], until=2 * SECOND)
    assert served(online) == {b"a": b"1"}


def test_what_differs_from_feasts_own_bytes_is_refused(online: OnlineFile) -> None:
    with online.locked(TABLE), online.staging(TABLE) as staging:
        rows = chunk([(b"a", SECOND, b"1")])
        staging.add(Chunk(**{n: getattr(rows, n) for n in rows.__slots__} | {"samples": [(b"a", (b"1", b"2"))]}))
        with pytest.raises(BadInput, match="not what Feast would serve"):
            staging.verify(1)


def test_a_missing_row_is_noticed(online: OnlineFile) -> None:
    with online.locked(TABLE), online.staging(TABLE) as staging:
        staging.add(chunk([(b"a", SECOND, b"1")]))
        with pytest.raises(BadInput, match="1 rows were staged, the feature table has 2"):
            staging.verify(2)


def test_one_view_is_materialised_once_at_a_time(online: OnlineFile) -> None:
    other = OnlineFile(online.path, busy_timeout_s=0.1)
    with online.locked(TABLE), pytest.raises(StoreBusy, match="pace"), other.locked(TABLE):
        pass


def test_what_an_ended_process_left_is_removed(online: OnlineFile) -> None:
    left = online.path.with_name("online.db.staging-shop_pace")
    left.write_bytes(b"half a file")
    put(online, [(b"a", SECOND, b"1")])
    assert not left.exists()


def test_a_full_disk_in_the_switch_keeps_values_and_watermark(
    online: OnlineFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(online, [(b"a", SECOND, b"1")], until=SECOND)
    monkeypatch.setenv("AIRLOOP_FAULT", "full@materialize:before_switch")
    with pytest.raises(OSError, match="No space"):
        put(online, [(b"a", 2 * SECOND, b"2")], until=2 * SECOND)
    monkeypatch.delenv("AIRLOOP_FAULT")
    found = online.watermark(TABLE)
    assert found is not None
    assert (served(online), found.until_us) == ({b"a": b"1"}, SECOND)


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
