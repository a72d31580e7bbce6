"""
Take an entity's values out of the online store: Feast's tables in SQLite, Feast's hashes in Redis.

The next materialisation of a view that lost an entity fills it anew from its table, which has it no more.
"""

from __future__ import annotations

import sqlite3
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from airloop.config import Config
from airloop.upkeep.subject import Subject

BUSY_S = 30
SCANNED_AT_A_TIME = 2_000
"""Keys that Redis looks at in one call."""
_NUMBERS = {3: "<i", 4: "<q", 8: "<q"}
"""Formats of Feast's whole numbers: 32 and 64 bits, seconds since 1970."""
_STRING = 2


def unserve(config: Config, subject: Subject, renamed: Mapping[str, str], *, remove: bool) -> dict[str, int]:
    """
    Entities that are served of a subject, by the online store's table; in Redis by their join keys.

    :param renamed: names of the subject's columns among join keys, if they differ.
    :param remove: take them out; else only count.
    :raises Unreachable: Redis does not answer.
    """
    names = [renamed.get(column, column) for column in subject.columns]

    def wanted(key: bytes) -> bool:
        values = entity_of(key)
        return set(names) <= set(values) and tuple(values[n] for n in names) in subject.values

    address = getattr(config.online_store, "url", "")
    if address:
        return _of_redis(address, wanted, remove)
    file = Path(str(config.online_store))
    return _of_sqlite(file, wanted, remove) if file.is_file() else {}


def entity_of(key: bytes) -> dict[str, str]:
    """
    Values by join key of a key in Feast's encoding, version 3, whatever follows it; empty if it is none.

    Source: ``feast.infra.key_encoding_utils.serialize_entity_key``.
    """
    try:
        (count,) = struct.unpack_from("<I", key)
        at, parts = 4, []
        for _ in range(2 * count):
            kind, length = struct.unpack_from("<II", key, at)
            content = key[at + 8 : at + 8 + length]
            if len(content) < length or (kind not in _NUMBERS and kind != _STRING):
                return {}
            parts.append(content.decode() if kind == _STRING else str(struct.unpack(_NUMBERS[kind], content)[0]))
            at += 8 + length
    except (struct.error, UnicodeDecodeError):
        return {}
    return dict(zip(parts[:count], parts[count:], strict=True))


def _of_redis(address: str, wanted: Callable[[bytes], bool], remove: bool) -> dict[str, int]:
    import redis

    from airloop.errors import Unreachable
    from airloop.features.online_redis import OnlineRedis, refuse_cluster

    client: Any = redis.Redis.from_url(address, socket_connect_timeout=5, socket_timeout=60)
    found: dict[str, int] = {}
    seen: set[bytes] = set()
    try:
        # A scan of one node would miss what is on the others.
        refuse_cluster(client, OnlineRedis(client).where)
        for key in client.scan_iter(count=SCANNED_AT_A_TIME):
            # A scan may give a key twice; of all that others keep there, only ours are worth the memory.
            if wanted(key) and key not in seen:
                seen.add(key)
                place = "redis " + ", ".join(entity_of(key))
                found[place] = found.get(place, 0) + 1
                if remove:
                    client.delete(key)
    except redis.RedisError as cause:
        what = f"the online store does not answer: {type(cause).__name__}"
        raise Unreachable(what, "see `airloop doctor`") from cause
    finally:
        client.close()
    return found


def _of_sqlite(file: Path, wanted: Callable[[bytes], bool], remove: bool) -> dict[str, int]:
    found: dict[str, int] = {}
    with closing(sqlite3.connect(file, timeout=BUSY_S, isolation_level=None)) as connection:
        connection.execute("PRAGMA secure_delete=ON")
        own = {n for (n,) in connection.execute("SELECT name FROM sqlite_master WHERE name LIKE 'airloop_%'")}
        served = set(_tables(connection))
        for view in sorted(served | _remembered(connection, own)):
            keys = sorted({key for key in _keys(connection, view, own, served) if wanted(key)})
            if keys:
                found[view] = len(keys)
            if keys and remove:
                _take_out(connection, view, keys, own, served)
        if remove:
            # Rows of earlier deletions, of a killed erasure too, stay readable in free pages and in the log.
            connection.execute("VACUUM")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return found


def _tables(connection: sqlite3.Connection) -> Iterator[str]:
    """Feast's tables of views."""
    for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name").fetchall():
        columns = {row[1] for row in connection.execute(f"PRAGMA table_info({_quoted(name)})")}
        if {"entity_key", "feature_name"} <= columns:
            yield str(name)


def _remembered(connection: sqlite3.Connection, own: set[str]) -> set[str]:
    """Views whose entities we remember; Feast's table may be gone (``feast teardown``)."""
    if "airloop_latest" not in own:
        return set()
    return {str(view) for (view,) in connection.execute("SELECT DISTINCT view FROM airloop_latest")}


def _keys(connection: sqlite3.Connection, view: str, own: set[str], served: set[str]) -> Iterator[bytes]:
    """Keys of a view's entities, those too of which only Feast's table or only ours knows; some twice and more."""
    if view in served:
        yield from (bytes(key) for (key,) in connection.execute(f"SELECT entity_key FROM {_quoted(view)}"))
    if "airloop_latest" in own:
        remembered = connection.execute("SELECT entity_key FROM airloop_latest WHERE view = ?", (view,))
        yield from (bytes(key) for (key,) in remembered)


def _take_out(
    connection: sqlite3.Connection, view: str, keys: Sequence[bytes], own: set[str], served: set[str]
) -> None:
    connection.execute("BEGIN IMMEDIATE")
    try:
        for key in keys:
            if view in served:
                connection.execute(f"DELETE FROM {_quoted(view)} WHERE entity_key = ?", (key,))
            if "airloop_latest" in own:
                connection.execute("DELETE FROM airloop_latest WHERE view = ? AND entity_key = ?", (view, key))
        if "airloop_watermark" in own:
            connection.execute("DELETE FROM airloop_watermark WHERE view = ?", (view,))
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
