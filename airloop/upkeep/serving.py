"""Take an entity's values out of the online store, from the pages of its file too."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from airloop.config import Config
from airloop.errors import BadConfiguration
from airloop.upkeep.subject import Subject

BUSY_S = 30


def unserve(config: Config, subject: Subject, renamed: Mapping[str, str], *, remove: bool) -> dict[str, int]:
    """
    Entities that are served of a subject, by the online store's table.

    What is online of the views concerned is read from their tables again by the next materialisation.

    :param renamed: other names of the subject's columns among join keys, by the subject's.
    :param remove: take them out; else only count.
    :raises BadConfiguration: the online store is none that can be looked through.
    """
    place = str(config.online_store)
    if "://" in place:
        raise BadConfiguration(
            f"the online store {place.partition('://')[0]}:// cannot be looked through by entity",
            "take the entity out of it by its own means, then run with AIRLOOP_ONLINE_STORE set to a file",
        )
    file = Path(place)
    if not file.is_file():
        return {}
    found: dict[str, int] = {}
    with closing(sqlite3.connect(file, timeout=BUSY_S, isolation_level=None)) as connection:
        connection.execute("PRAGMA secure_delete=ON")
        for table in _tables(connection):
            keys = [k for k in _keys(connection, table) if _is_of(k, subject, renamed)]
            if not keys:
                continue
            found[table] = len(keys)
            if remove:
                _take_out(connection, table, keys)
        if remove:
            # Rows of earlier deletions stay readable in free pages and in the log until both are written anew.
            connection.execute("VACUUM")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return found


def _tables(connection: sqlite3.Connection) -> list[str]:
    """Feast's tables of views."""
    names = [n for (n,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")]
    return [n for n in names if not n.startswith(("airloop_", "sqlite_")) and "entity_key" in _columns(connection, n)]


def _columns(connection: sqlite3.Connection, table: str) -> set[str]:
    return {row[1] for row in connection.execute(f"PRAGMA table_info({_quoted(table)})")}


def _keys(connection: sqlite3.Connection, table: str) -> Iterator[bytes]:
    query = f"SELECT DISTINCT entity_key FROM {_quoted(table)}"
    if "airloop_latest" in {n for (n,) in connection.execute("SELECT name FROM sqlite_master")}:
        # A killed or foreign writer may have left one of the two without the other.
        query += " UNION SELECT entity_key FROM airloop_latest WHERE view = ?"
        yield from (key for (key,) in connection.execute(query, (table,)).fetchall())
    else:
        yield from (key for (key,) in connection.execute(query).fetchall())


def _is_of(key: bytes, subject: Subject, renamed: Mapping[str, str]) -> bool:
    from feast.infra.key_encoding_utils import deserialize_entity_key

    decoded: Any = deserialize_entity_key(key, 3)
    values = {
        name: str(getattr(value, value.WhichOneof("val")))
        for name, value in zip(decoded.join_keys, decoded.entity_values, strict=True)
    }
    names = [renamed.get(column, column) for column in subject.columns]
    return set(names) <= set(values) and tuple(values[n] for n in names) in subject.values


def _take_out(connection: sqlite3.Connection, table: str, keys: Sequence[bytes]) -> None:
    own = {n for (n,) in connection.execute("SELECT name FROM sqlite_master WHERE name LIKE 'airloop_%'")}
    connection.execute("BEGIN IMMEDIATE")
    try:
        for key in keys:
            connection.execute(f"DELETE FROM {_quoted(table)} WHERE entity_key = ?", (key,))
            if "airloop_latest" in own:
                connection.execute("DELETE FROM airloop_latest WHERE view = ? AND entity_key = ?", (table, key))
        if "airloop_watermark" in own:
            connection.execute("DELETE FROM airloop_watermark WHERE view = ?", (table,))
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
