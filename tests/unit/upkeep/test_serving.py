"""An entity's values leave the online store, and its file's pages."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest

from airloop.config import Config, RedisAddress
from airloop.upkeep.serving import entity_of, unserve
from airloop.upkeep.subject import entity


def key(**values: str | int) -> bytes:
    """A key as Feast writes it."""
    from feast.infra.key_encoding_utils import serialize_entity_key
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey
    from feast.protos.feast.types.Value_pb2 import Value

    made = [Value(string_val=v) if isinstance(v, str) else Value(int64_val=v) for v in values.values()]
    return serialize_entity_key(EntityKey(join_keys=list(values), entity_values=made), 3)


@pytest.fixture
def store(config: Config) -> Path:
    """Two of Feast's tables beside our own two."""
    path = Path(str(config.online_store))
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("CREATE TABLE airloop_watermark (view TEXT PRIMARY KEY, until INTEGER)")
        connection.execute("CREATE TABLE airloop_latest (view TEXT, entity_key BLOB, event_us INTEGER)")
        for view in ("p_visits", "p_rooms"):
            connection.execute(f"CREATE TABLE {view} (entity_key BLOB, feature_name TEXT, value BLOB)")
            connection.execute("INSERT INTO airloop_watermark VALUES (?, 1)", (view,))
        for person in ("anna-0", "anna-01", "berta-0"):
            for feature in ("n", "late"):
                values = (key(person=person), feature, person.encode())
                connection.execute("INSERT INTO p_visits VALUES (?, ?, ?)", values)
            connection.execute("INSERT INTO airloop_latest VALUES ('p_visits', ?, 1)", (key(person=person),))
            connection.execute("INSERT INTO p_rooms VALUES (?, 'n', x'00')", (key(room=7, person=person),))
        connection.execute("INSERT INTO p_rooms VALUES (?, 'n', x'00')", (key(room=8),))
    return path


def test_values_by_join_key() -> None:
    assert entity_of(key(person="änne", room=-7)) == {"person": "änne", "room": "-7"}
    assert entity_of(key(person="anna-0") + b"project") == {"person": "anna-0"}
    for other in (b"", b"airloop:lock:x", key(person="anna-0")[:-1], b"\x01\x00\x00\x00" + b"\xff" * 30):
        assert entity_of(other) == {}


def test_an_entity_goes_from_every_view_and_from_the_file(config: Config, store: Path) -> None:
    subject = entity(["person=anna-0"])
    assert unserve(config, subject, {}, remove=False) == {"p_visits": 1, "p_rooms": 1}
    assert unserve(config, subject, {}, remove=True) == {"p_visits": 1, "p_rooms": 1}
    assert unserve(config, subject, {}, remove=True) == {}
    with closing(sqlite3.connect(store)) as connection:
        left = {entity_of(k)["person"] for (k,) in connection.execute("SELECT entity_key FROM p_visits")}
        assert left == {"anna-01", "berta-0"}
        assert connection.execute("SELECT count(*) FROM p_rooms").fetchone() == (3,)
        assert connection.execute("SELECT count(*) FROM airloop_latest").fetchone() == (2,)
        assert connection.execute("SELECT count(*) FROM airloop_watermark").fetchone() == (0,), "filled anew"
    for path in store.parent.glob(store.name + "*"):
        assert b"anna-0" not in path.read_bytes().replace(b"anna-01", b""), path


def test_an_entity_of_a_view_whose_table_is_gone(config: Config, store: Path) -> None:
    with closing(sqlite3.connect(store)) as connection:
        connection.execute("DROP TABLE p_visits")
    subject = entity(["person=anna-0"])
    assert unserve(config, subject, {}, remove=False) == {"p_visits": 1, "p_rooms": 1}
    assert unserve(config, subject, {}, remove=True) == {"p_visits": 1, "p_rooms": 1}
    assert unserve(config, subject, {}, remove=True) == {}
    for path in store.parent.glob(store.name + "*"):
        assert b"anna-0" not in path.read_bytes().replace(b"anna-01", b""), path


def test_another_name_of_the_join_key(config: Config, store: Path) -> None:
    subject = entity(["name=anna-0"])
    assert unserve(config, subject, {}, remove=False) == {}
    assert unserve(config, subject, {"name": "person"}, remove=False) == {"p_visits": 1, "p_rooms": 1}


def test_without_an_online_store(config: Config, tmp_path: Path) -> None:
    assert unserve(replace(config, online_store=tmp_path / "none.db"), entity(["person=anna-0"]), {}, remove=True) == {}


def test_redis(config: Config, redis_url: str) -> None:
    import redis

    config = replace(config, online_store=RedisAddress(redis_url))
    with redis.Redis.from_url(redis_url) as client:
        for person in ("anna-0", "anna-01", "berta-0"):
            client.hset(key(person=person) + b"project", "_ts:visits", person)
        client.hset(key(room=7, person="anna-0") + b"project", "_ts:rooms", 1)
        client.set("airloop:lock:project_visits", 1)
        subject = entity(["person=anna-0"])
        assert unserve(config, subject, {}, remove=False) == {"redis person": 1, "redis person, room": 1}
        assert client.dbsize() == 5
        unserve(config, subject, {}, remove=True)
        assert unserve(config, subject, {}, remove=True) == {}
        assert {entity_of(k).get("person") for k in client.scan_iter()} == {"anna-01", "berta-0", None}


def test_keys_of_others_are_not_kept_in_memory(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    import redis

    hashed = []

    class Key(bytes):
        def __hash__(self) -> int:
            hashed.append(self)
            return super().__hash__()

    wanted = key(person="anna-0")

    class Server:
        deleted: ClassVar[list[bytes]] = []
        connection_pool = SimpleNamespace(connection_kwargs={})

        def info(self, section: str) -> dict[str, int]:
            return {"cluster_enabled": 0}

        def scan_iter(self, count: int) -> Iterator[bytes]:
            yield from (Key(k) for k in (b"other", wanted, key(person="berta-0"), wanted))

        def delete(self, key: bytes) -> None:
            self.deleted.append(key)

        def close(self) -> None:
            pass

    monkeypatch.setattr(redis.Redis, "from_url", lambda *_, **__: Server())
    config = replace(config, online_store=RedisAddress("redis://none"))
    assert unserve(config, entity(["person=anna-0"]), {}, remove=True) == {"redis person": 1}
    assert Server.deleted == [wanted], "a scan may give a key twice"
    assert set(map(bytes, hashed)) == {wanted}
