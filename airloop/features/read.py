"""
Read online features without Feast's objects: the answers of ``get_online_features(…).to_dict()``, in a fraction of
its time.

Feast builds messages and responses for each value; here the stored bytes become Python values at once. Nothing here
imports Feast, so that a service that only reads starts in a fraction of a second.

What it does not do: on-demand features, keys other than whole numbers (``INT64``) and strings, and versions of feature
views (``enable_online_feature_view_versioning``).
"""

from __future__ import annotations

import sqlite3
import struct
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airloop.errors import BadArgument, NotFound
from airloop.features.definitions import RepoDefinition, ViewDefinition
from airloop.features.encode import entity_key

if TYPE_CHECKING:
    from airloop.config import Config

Answer = dict[str, list[Any]]
KEYS_PER_QUERY = 500
"""Entities of one SQLite statement."""
NO_TIME = -(2**63)
"""What Feast's own engine writes for an unknown instant."""


@dataclass(frozen=True, slots=True)
class Lookup:
    """What is read of one view."""

    table: str
    """Feast's name of the view's table: project and view."""
    view: str
    project: str
    keys: tuple[tuple[str, str], ...]
    """Join key, and the column of the request that it is taken from."""
    features: tuple[str, ...]
    columns: tuple[str, ...]
    """Names of the features in the answer."""


class OnlineReader:
    """Reads the online store of a configuration. May be used by several threads."""

    def __init__(self, config: Config) -> None:
        """
        :raises BadConfiguration: there is no feature repository.
        """
        from airloop.features.repo import describe

        self._defined = describe(config)
        self._plans: dict[tuple[Any, ...], list[Lookup]] = {}
        online = config.online_store
        self._fetch: Callable[[Sequence[Lookup], Sequence[Sequence[bytes]]], list[list[Sequence[bytes | None]]]]
        self._fetch = SqliteRows(online).fetch if isinstance(online, Path) else RedisRows(online.url).fetch

    def read(
        self, features: str | Sequence[str], entities: Mapping[str, Sequence[Any]], *, full_names: bool = False
    ) -> Answer:
        """
        The columns of ``entities``, then the features; None where nothing is online.

        :param features: name of a feature service, or ``view:feature`` each.
        :param entities: for each join key its values, all of one length.
        :param full_names: name features ``<view>__<feature>``; otherwise ``<feature>``.
        :raises NotFound: there is no such service, view or feature.
        :raises BadArgument: a join key is missing, or a value is neither a whole number nor a string.
        """
        plan = self._plan(features, full_names)
        lengths = {len(values) for values in entities.values()}
        if len(lengths) != 1:
            raise BadArgument("the columns of the entities differ in length", "give one value of each for each entity")
        keys = [self._keys(lookup, entities) for lookup in plan]
        answer: Answer = {name: list(values) for name, values in entities.items()}
        for lookup, rows in zip(plan, self._fetch(plan, keys), strict=True):
            for i, column in enumerate(lookup.columns):
                answer[column] = [decode(row[i]) for row in rows]
        return answer

    def _plan(self, features: str | Sequence[str], full_names: bool) -> list[Lookup]:
        asked = (features if isinstance(features, str) else tuple(features), full_names)
        if asked not in self._plans:
            self._plans[asked] = plan_of(self._defined, features, full_names)
        return self._plans[asked]

    @staticmethod
    def _keys(lookup: Lookup, entities: Mapping[str, Sequence[Any]]) -> list[bytes]:
        missing = [column for _, column in lookup.keys if column not in entities]
        if missing:
            raise BadArgument(f"view {lookup.view} needs {', '.join(missing)}", f"given are {', '.join(entities)}")
        names = [name for name, _ in lookup.keys]
        columns = [entities[column] for _, column in lookup.keys]
        return [entity_key(names, values) for values in zip(*columns, strict=True)]


def plan_of(defined: RepoDefinition, features: str | Sequence[str], full_names: bool) -> list[Lookup]:
    """:raises NotFound: there is no such service, view or feature."""
    wanted: list[tuple[ViewDefinition, list[str]]] = []
    if isinstance(features, str):
        wanted = [(view, [f.name for f in view.features]) for view in defined.service(features).views]
    else:
        grouped: dict[str, list[str]] = {}
        for reference in features:
            view, _, feature = reference.partition(":")
            grouped.setdefault(view, []).append(feature)
        for view, names in grouped.items():
            found = defined.views.get(view)
            unknown = names if found is None else [n for n in names if n not in {f.name for f in found.features}]
            if found is None or unknown:
                raise NotFound(
                    f"there is no feature {view}:{unknown[0]}", f"the views are {', '.join(sorted(defined.views))}"
                )
            wanted.append((found, names))
    return [_lookup(defined.project, view, names, full_names) for view, names in wanted]


def _lookup(project: str, view: ViewDefinition, features: list[str], full_names: bool) -> Lookup:
    if not view.keys:
        raise BadArgument(f"view {view.name} has no entity", "read it through Feast")
    own = view.view or view.name
    return Lookup(
        table=f"{project}_{own}",
        view=own,
        project=project,
        keys=tuple(zip(view.keys, view.spine_keys, strict=True)),
        features=tuple(features),
        columns=tuple(f"{view.name}__{f}" if full_names else f for f in features),
    )


class SqliteRows:
    """Feast's table in SQLite, opened for reading once in each thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._own = threading.local()

    def fetch(
        self, lookups: Sequence[Lookup], keys: Sequence[Sequence[bytes]]
    ) -> list[list[Sequence[bytes | None]]]:  # fmt: skip
        connection = self._connection()
        # One state of the store, however many statements it takes.
        connection.execute("BEGIN")
        try:
            return [self._rows(connection, lookup, listed) for lookup, listed in zip(lookups, keys, strict=True)]
        finally:
            connection.rollback()

    @staticmethod
    def _rows(
        connection: sqlite3.Connection, lookup: Lookup, keys: Sequence[bytes]
    ) -> list[Sequence[bytes | None]]:  # fmt: skip
        place = {name: i for i, name in enumerate(lookup.features)}
        found: dict[bytes, list[bytes | None]] = {}
        table = lookup.table.replace('"', '""')
        distinct = list(dict.fromkeys(keys))
        for at in range(0, len(distinct), KEYS_PER_QUERY):
            some = distinct[at : at + KEYS_PER_QUERY]
            query = (
                f'SELECT entity_key, feature_name, value FROM "{table}" WHERE entity_key IN ({_places(some)})'
                f" AND feature_name IN ({_places(lookup.features)})"
            )
            for key, name, value in connection.execute(query, (*some, *lookup.features)):
                found.setdefault(key, [None] * len(place))[place[name]] = value
        nothing: list[bytes | None] = [None] * len(place)
        return [found.get(key, nothing) for key in keys]

    def _connection(self) -> sqlite3.Connection:
        if not hasattr(self._own, "connection"):
            if not self._path.exists():
                raise NotFound(f"there is no online store {self._path}", "run materialize first")
            self._own.connection = sqlite3.connect(
                f"{self._path.resolve().as_uri()}?mode=ro", uri=True, isolation_level=None
            )
        connection: sqlite3.Connection = self._own.connection
        return connection


def _places(values: Sequence[Any]) -> str:
    return ", ".join("?" * len(values))


class RedisRows:
    """Feast's hashes in Redis: all views of a request in one round trip."""

    def __init__(self, url: str) -> None:
        import redis

        self._client: Any = redis.Redis.from_url(url, socket_connect_timeout=5, socket_timeout=60)
        self._fields: dict[Lookup, list[bytes]] = {}

    def fetch(
        self, lookups: Sequence[Lookup], keys: Sequence[Sequence[bytes]]
    ) -> list[list[Sequence[bytes | None]]]:  # fmt: skip
        from airloop.features.online_redis import understood

        with understood("the online store"), self._client.pipeline(transaction=False) as pipe:
            for lookup, listed in zip(lookups, keys, strict=True):
                fields, suffix = self._names(lookup), lookup.project.encode()
                for key in listed:
                    pipe.execute_command("HMGET", key + suffix, *fields)
            rows = iter(pipe.execute())
            return [[next(rows) for _ in listed] for listed in keys]

    def _names(self, lookup: Lookup) -> list[bytes]:
        if lookup not in self._fields:
            from airloop.features.online_redis import field_name

            self._fields[lookup] = [field_name(lookup.view, feature) for feature in lookup.features]
        return self._fields[lookup]


def decode(message: bytes | None) -> Any:
    """
    The value of a serialised ``feast.types.Value`` of a scalar type; None if it has none.

    :raises BadArgument: it is a list or a map, which no feature here may be.
    """
    if not message:
        return None
    match message[0]:
        case 0x29:
            return _DOUBLE.unpack_from(message, 1)[0]
        case 0x35:
            return _FLOAT.unpack_from(message, 1)[0]
        case 0x12:
            _, at = _varint(message, 1)
            return message[at:].decode()
        case 0x0A:
            _, at = _varint(message, 1)
            return message[at:]
        case 0x18 | 0x20:
            return _signed(message)
        case 0x38:
            return message[1] == 1
        case 0x40:
            seconds = _signed(message)
            return None if seconds == NO_TIME else datetime.fromtimestamp(seconds, UTC)
    raise BadArgument(f"a stored value of kind {message[0] >> 3} is no scalar", "read it through Feast")


_DOUBLE = struct.Struct("<d")
_FLOAT = struct.Struct("<f")


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def _signed(message: bytes) -> int:
    value, _ = _varint(message, 1)
    return value - (1 << 64) if value >> 63 else value
