"""
The switch of online values in Redis or Valkey (7 or newer), in Feast's own layout.

Feast keeps one hash for each entity, with the values of all views and, per view, ``_ts:<view>``; its own code reads it.
In the same hash ``_airloop:<view>`` has event and arrival time of the value that we wrote. The watermark of a view is a
hash of its own, whose name and fields are such that Feast removes it with the view's values (``feast teardown``, a view
that is no longer applied).

Rows are staged in a temporary file here and verified there, so that a failure until then has touched nothing. Then they
are sent in slices of :data:`ENTITIES_PER_SLICE`; each slice is one call of a script, which compares and writes without
anyone in between. A view of no more entities than that switches in one instant, watermark included. A larger one
switches entity by entity within seconds, and the watermark moves last: one script for a million entities would keep
every reader waiting for seconds. A process that ends in between leaves verified values, old ones and new ones, and the
old watermark; the next run writes the rest.

One materialisation of a view runs at a time: a lease in Redis, renewed while rows are staged, and looked at by every
script that writes, so that a process that lost it can write no more.

What it does not do: Redis Cluster and Sentinel, keys that expire (``key_ttl_seconds``).
"""

from __future__ import annotations

import json
import logging
import secrets
import struct
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, Self
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from airloop.errors import BadConfiguration, StoreBusy, StoreFull, StoreReadOnly, TryAgain, Unreachable
from airloop.faults import point
from airloop.features import redis_scripts
from airloop.features.encode import encode_instants, key_prefix, with_heads
from airloop.features.online import Chunk, OnlineTable, Switched, Watermark
from airloop.features.staging import Staging

if TYPE_CHECKING:
    from airloop.config import RedisAddress

log = logging.getLogger("airloop.online")

ENTITIES_PER_SLICE = 5_000
"""Entities that one call of a script writes, in some 15 ms; nobody else is served then. Lua takes 8,000 at most."""
LEASE_MS = 60_000
"""How long after its last sign of life the lease of a process is taken over."""
LOCK_WAIT_S = 90.0
"""How long a materialisation waits for another one of the same view: longer than the lease of a killed one runs."""
SLICES_ON_THE_WAY = 2
"""Calls that are sent before the first one is answered."""
KEY_OVERHEAD = 200
"""Bytes that Redis takes for a new hash besides its content, about."""


def feast_section(address: RedisAddress) -> dict[str, Any]:
    """The ``online_store`` section of ``feature_store.yaml`` for a Redis."""
    parts = urlsplit(address.url)
    query = parse_qs(parts.query)
    options: dict[str, Any] = {"socket_connect_timeout": 5, "socket_timeout": 60}
    if parts.scheme == "unix":
        options |= {"unix_socket_path": unquote(parts.path), "db": int(query.get("db", ["0"])[0])}
    else:
        options["db"] = int(parts.path.strip("/") or query.get("db", ["0"])[0])
    options |= {"ssl": True} if parts.scheme == "rediss" else {}
    options |= {"username": unquote(parts.username)} if parts.username else {}
    options |= {"password": unquote(parts.password)} if parts.password else {}
    # Feast splits at commas, then reads each value as JSON: a comma in a password is written as its escape.
    written = [f"{name}={json.dumps(value).replace(',', chr(92) + 'u002c')}" for name, value in options.items()]
    node = f"{parts.hostname or 'localhost'}:{parts.port or 6379}"
    return {"type": "redis", "connection_string": ",".join([node, *written])}


@contextmanager
def understood(where: str) -> Iterator[None]:
    """Errors of Redis in our words. Nothing that they say has the password in it."""
    from redis import exceptions

    try:
        yield
    except (exceptions.AuthenticationError, exceptions.AuthorizationError, exceptions.NoPermissionError) as cause:
        raise BadConfiguration(
            f"Redis at {where} refused the user or password: {cause}", "correct AIRLOOP_ONLINE_STORE"
        ) from cause
    except (exceptions.ConnectionError, exceptions.TimeoutError) as cause:
        raise Unreachable(
            f"Redis at {where} does not answer: {cause}", "start it or correct AIRLOOP_ONLINE_STORE, then run it again"
        ) from cause
    except exceptions.OutOfMemoryError as cause:
        raise _full(where, str(cause)) from cause
    except (exceptions.ReadOnlyError, exceptions.MasterDownError) as cause:
        raise StoreReadOnly(f"Redis at {where} is a replica: {cause}", "name the primary") from cause
    except (
        exceptions.AskError,  # and MOVED
        exceptions.ClusterCrossSlotError,
        exceptions.ClusterDownError,
        exceptions.TryAgainError,
    ) as cause:
        raise _cluster(where, f"{type(cause).__name__}: {cause}") from cause
    except exceptions.NoScriptError as cause:
        raise TryAgain(
            f"Redis at {where} has forgotten a script that it had just been given: it was restarted, or another one "
            "took its place",
            "run the task again: old values are still served, and the watermark has not moved",
        ) from cause
    except exceptions.ResponseError as cause:
        if "cluster mode" in str(cause):
            raise _cluster(where, str(cause)) from cause
        if str(cause).startswith("LEASE"):
            raise StoreBusy(
                f"another process took over the materialisation: {cause}", "run the task again later"
            ) from cause
        raise


def _full(where: str, what: str) -> StoreFull:
    return StoreFull(f"Redis at {where} has no memory left: {what}", "raise maxmemory; the old values are still served")


def refuse_cluster(client: Any, where: str) -> None:
    """:raises BadConfiguration: it is a node of a Redis Cluster, which has only some of the keys."""
    with understood(where):
        told = client.info("cluster")
    if int(told.get("cluster_enabled", 0)):
        raise _cluster(where, "cluster_enabled:1")


def _cluster(where: str, what: str) -> BadConfiguration:
    return BadConfiguration(
        f"Redis at {where} is a node of a Redis Cluster ({what}), and scripts that compare and write many entities at "
        "once cannot run across its nodes",
        "name a Redis with cluster mode off in AIRLOOP_ONLINE_STORE",
    )


class OnlineRedis:
    """A Redis as the online store, as its writer sees it."""

    keeps_texts: ClassVar[bool] = False

    def __init__(self, client: Any, *, lock_wait_s: float = LOCK_WAIT_S) -> None:
        self._client = client
        self._lock_wait_s = lock_wait_s
        self._token = secrets.token_hex(16).encode()
        self._renewed = 0.0
        self._counted: set[str] = set()
        self._staged: Staging | None = None

    @classmethod
    def at(cls, address: RedisAddress) -> Self:
        try:
            import redis
        except ImportError as cause:
            raise BadConfiguration(f"the online store is a Redis: {cause}", "install airloop[redis]") from cause

        return cls(redis.Redis.from_url(address.url, socket_connect_timeout=5, socket_timeout=60))

    @property
    def where(self) -> str:
        """Host, port and database, or the socket and the database."""
        options = self._client.connection_pool.connection_kwargs
        place = options.get("path") or f"{options.get('host', 'localhost')}:{options.get('port', 6379)}"
        return f"{place}/{options.get('db') or 0}"

    @contextmanager
    def locked(self, table: OnlineTable) -> Iterator[None]:
        """
        One materialisation of a view at a time.

        :raises StoreBusy: another one holds the view for longer than is waited for.
        """
        with understood(self.where):
            waited_until = time.monotonic() + self._lock_wait_s
            while not self._client.set(_lock(table), self._token, nx=True, px=LEASE_MS):
                if time.monotonic() > waited_until:
                    raise StoreBusy(
                        f"another process has been materialising {table.view} for more than {self._lock_wait_s:g} s",
                        "run the task again later",
                    )
                time.sleep(0.05)
        self._renewed = time.monotonic()
        try:
            yield
        finally:
            self._counted.discard(table.name)
            if self._staged is not None:
                self._staged.close()
                self._staged = None
            with understood(self.where):
                self._client.eval(redis_scripts.RELEASE, 1, _lock(table), self._token)

    def watermark(self, table: OnlineTable) -> Watermark | None:
        """The watermark of a view, or None if it was never materialised or entities were lost since."""
        found = self.recorded(table)
        if found is None or table.name in self._counted:
            return found
        with understood(self.where):
            return None if self._survey(table)[0] < found.entities else found

    def recorded(self, table: OnlineTable) -> Watermark | None:
        """The watermark of a view as it was written, whatever became of the entities since."""
        with understood(self.where):
            until, key, snapshot, entities = self._client.hmget(_meta(table), ["until", "key", "snapshot", "entities"])
        return None if until is None else Watermark(int(until), key.decode(), int(snapshot), int(entities))

    def served(self, table: OnlineTable, keys: Sequence[bytes]) -> dict[bytes, tuple[int, int]]:
        """Event and arrival time, microseconds since 1970, of the values that we wrote of some entities."""
        suffix, mark = table.project.encode(), _mark(table)
        found = {}
        for at in range(0, len(keys), ENTITIES_PER_SLICE):
            some = keys[at : at + ENTITIES_PER_SLICE]
            with understood(self.where), self._client.pipeline(transaction=False) as pipe:
                for key in some:
                    pipe.hget(key + suffix, mark)
                marks = pipe.execute()
            found.update({key: struct.unpack(">qq", text[:16]) for key, text in zip(some, marks, strict=True) if text})
        return found

    def forget_if_lost(self, table: OnlineTable) -> None:
        """If entities are gone (evicted, removed by hand), forget the watermark: the view is filled anew."""
        with understood(self.where):
            kept = self._client.hmget(_meta(table), ["until", "entities"])
            if kept[0] is not None:
                present, _ = self._survey(table)
                if present < int(kept[1]):
                    self._client.hset(_meta(table), "entities", present)
                    self._client.hdel(_meta(table), "until", "key", "snapshot")
                    log.warning(
                        "%s: %d of %d entities are no longer online; it is filled anew",
                        table.view, int(kept[1]) - present, int(kept[1]),
                    )  # fmt: skip
        self._counted.add(table.name)

    @contextmanager
    def staging(self, table: OnlineTable) -> Iterator[Staging]:
        """A place for the rows of one view, to be called within :meth:`locked`; they are kept until the switch."""

        def columns(chunk: Chunk) -> dict[str, pa.Array]:
            self._renew(table)
            return _columns(chunk)

        # Feast's key of a hash: the entity's, then the project.
        self._staged = Staging(table, columns, key_suffix=table.project.encode())
        yield self._staged

    def switch(
        self,
        table: OnlineTable,
        *,
        replace_equal: bool,
        watermark: Watermark | None,
        expire_before_us: int | None = None,
        lost: Collection[bytes] = (),
    ) -> Switched:
        """
        Take over the staged rows, then take old values offline, then move the watermark; see :class:`OnlineStore`.

        :raises StoreFull: there is no room for the new entities; nothing has changed then.
        """
        staged = self._staged
        assert staged is not None, "there is nothing staged"
        with understood(self.where):
            self._renew(table)
            expired = [] if expire_before_us is None else self._survey(table, expire_before_us)[1]
            self._refuse_full(staged)
            point("materialize:before_switch")
            suffix = table.project.encode()
            going = pa.array([key + suffix for key in lost], pa.binary())
            calls = self._calls(table, staged, replace_equal, expired, expire_before_us, going, watermark)
            replies = self._send(calls, at_once=max(staged.rows, len(expired), len(going)) <= ENTITIES_PER_SLICE)
            result = Switched(rows=staged.rows)
            result.written = sum(int(value) for what, value in replies if what == b"written")
            result.skipped = staged.rows - result.written
            result.expired = sum(int(value) for what, value in replies if what == b"expired")
            result.moved = any(int(value) for what, value in replies if what == b"moved")
        result.watermark = self.watermark(table)
        point("materialize:after_switch")
        return result

    def _calls(
        self, table: OnlineTable, staged: Staging, replace_equal: bool, expired: Sequence[bytes],
        expire_before_us: int | None, lost: pa.Array, watermark: Watermark | None,
    ) -> Iterator[list[Any]]:  # fmt: skip
        """What is to be done, as calls of scripts ready to be sent."""
        fields, times = _fields(table), [_ts(table), _mark(table)]
        switch, expire, move = (
            self._client.script_load(script).encode()
            for script in (redis_scripts.switch(len(fields)), redis_scripts.EXPIRE, redis_scripts.MOVE)
        )
        owned = [self._token, str(LEASE_MS).encode()]
        listed = _packed([pa.array([name], pa.binary()) for name in (*times, *fields)])
        both = [_meta(table), _lock(table)]
        for batch in _slices(staged):
            equal = b"1" if replace_equal else b"0"
            keys, *values, stamps, marks = batch.columns
            if len(lost):
                here = pc.is_in(keys, lost)
                marks = pc.if_else(here, pc.binary_join_element_wise(marks, redis_scripts.REPLACES, b""), marks)
                lost = lost.filter(pc.invert(pc.is_in(lost, keys)))
            yield _call(switch, both, [*owned, equal, listed, _packed([keys, stamps, marks, *values])])
        names = [str(len(fields)).encode(), *fields, *times]
        for going, before_us in ((expired, expire_before_us), (lost.to_pylist(), redis_scripts.NEVER)):
            for at in range(0, len(going), ENTITIES_PER_SLICE):
                gone = [*both, *going[at : at + ENTITIES_PER_SLICE]]
                yield _call(expire, gone, [*owned, str(before_us).encode(), *names])
        if watermark is not None:
            values = [str(watermark.until_us).encode(), watermark.key.encode(), str(watermark.snapshot).encode()]
            yield _call(move, both, [*owned, *values, _ts(table)])

    def _send(self, calls: Iterator[list[Any]], *, at_once: bool) -> list[Any]:
        """Send calls one after the other, or all in one transaction; returns their replies."""
        pool = self._client.connection_pool
        connection = pool.get_connection()
        replies: list[Any] = []
        whole = False
        try:
            if at_once:
                listed = list(calls)
                connection.send_packed_command([b"*1\r\n$5\r\nMULTI\r\n", *(p for c in listed for p in c)])
                connection.send_packed_command([b"*1\r\n$4\r\nEXEC\r\n"])
                for _ in range(len(listed) + 1):
                    connection.read_response()
                replies = connection.read_response()
                for reply in replies:
                    if isinstance(reply, Exception):
                        raise reply
            else:
                waiting = 0
                for call in calls:
                    connection.send_packed_command(call)
                    waiting += 1
                    if waiting == SLICES_ON_THE_WAY:
                        replies.append(connection.read_response())
                        waiting -= 1
                        point("materialize:in_switch")
                replies += [connection.read_response() for _ in range(waiting)]
            whole = True
        finally:
            if not whole:
                # Answers that nobody has read would be taken for those of the next command.
                connection.disconnect()
            pool.release(connection)
        return replies

    def _survey(self, table: OnlineTable, before_us: int | None = None) -> tuple[int, list[bytes]]:
        """Entities of ours that are online, and those of them whose event time is before a time."""
        pattern = _glob(key_prefix(table.join_keys)) + b"*" + _glob(table.project.encode())
        survey = self._client.register_script(redis_scripts.SURVEY)
        before = b"" if before_us is None else str(before_us).encode()
        count, old, cursor = 0, set[bytes](), 0
        while True:
            cursor, keys = self._client.scan(cursor, match=pattern, count=2_000)
            for at in range(0, len(keys), ENTITIES_PER_SLICE):
                found = survey(keys=keys[at : at + ENTITIES_PER_SLICE], args=[before, _ts(table), _mark(table)])
                count += found[0]
                old.update(found[1])
            if cursor == 0:
                return count, sorted(old)

    def _renew(self, table: OnlineTable) -> None:
        """:raises StoreBusy: another process has the lease."""
        if time.monotonic() - self._renewed < LEASE_MS / 4_000:
            return
        with understood(self.where):
            self._client.eval(redis_scripts.RENEW, 1, _lock(table), self._token, LEASE_MS)
        self._renewed = time.monotonic()

    def _refuse_full(self, staged: Staging) -> None:
        memory = self._client.info("memory")
        most, policy = int(memory.get("maxmemory", 0)), str(memory.get("maxmemory_policy", ""))
        if policy.startswith("allkeys"):
            log.warning("Redis at %s evicts any key when it is full (%s): set noeviction", self.where, policy)
        if not most or policy.startswith("volatile") or not staged.rows:
            return
        each = staged.bytes // staged.rows + KEY_OVERHEAD
        free = most - int(memory["used_memory"])
        if staged.rows * each <= free:
            return
        # Only entities that are not there yet take more room.
        fresh = sum(batch.num_rows - self._client.exists(*batch.column(0).to_pylist()) for batch in _slices(staged))
        if fresh * each > free:
            raise _full(
                self.where, f"{fresh:,} new entities need about {fresh * each >> 20} MiB, {free >> 20} are free"
            )


def _columns(chunk: Chunk) -> dict[str, pa.Array]:
    """Feast's time of each row, and our mark."""
    pairs = np.stack([chunk.event_us, chunk.arrival_us], axis=1).astype(">i8").tobytes()
    marks = pa.Array.from_buffers(pa.binary(16), len(chunk.keys), [None, pa.py_buffer(pairs)]).cast(pa.binary())
    return {"ts": encode_instants(chunk.event_us), "mark": marks}


def _slices(staged: Staging) -> Iterator[pa.RecordBatch]:
    """The staged rows, as many at a time as one script takes."""
    for batch in staged.batches():
        for at in range(0, batch.num_rows, ENTITIES_PER_SLICE):
            yield batch.slice(at, ENTITIES_PER_SLICE)


def _meta(table: OnlineTable) -> bytes:
    """Key of the watermark: to Feast that of one more entity of the view, so that it is removed with the others."""
    return key_prefix(table.join_keys) + f"airloop:watermark:{table.name}:".encode() + table.project.encode()


def _lock(table: OnlineTable) -> bytes:
    return f"airloop:lock:{table.name}".encode()


def _feast_name(table: OnlineTable) -> str:
    return table.name.removeprefix(f"{table.project}_")


def _ts(table: OnlineTable) -> bytes:
    return f"_ts:{_feast_name(table)}".encode()


def _mark(table: OnlineTable) -> bytes:
    return f"_airloop:{_feast_name(table)}".encode()


def _fields(table: OnlineTable) -> list[bytes]:
    return [field_name(_feast_name(table), feature) for feature in table.features]


def field_name(view: str, feature: str) -> bytes:
    """Name of a feature's field in an entity's hash."""
    import mmh3

    return struct.pack("<I", mmh3.hash(f"{view}:{feature}", signed=False))


def _glob(text: bytes) -> bytes:
    """The text as a pattern that matches nothing else."""
    return b"".join(b"\\" + bytes([c]) if bytes([c]) in b"*?[]\\" else bytes([c]) for c in text)


def _call(script: bytes, keys: Sequence[bytes], arguments: Sequence[bytes | memoryview]) -> list[Any]:
    """A call of a script in Redis's protocol."""
    given = [b"EVALSHA", script, str(len(keys)).encode(), *keys, *arguments]
    parts = [part for value in given for part in (b"$%d\r\n" % len(value), value, b"\r\n")]
    return [b"*%d\r\n" % len(given), *parts]


def _packed(columns: Sequence[pa.Array]) -> memoryview:
    """Binary values row by row, one after another in MessagePack; Redis's knows the types of its first days."""
    framed = [with_heads(column, _raw_head) for column in columns]
    rows = pc.binary_join_element_wise(*framed, b"")
    end = np.frombuffer(rows.buffers()[1], np.int32)[len(rows)]
    return memoryview(rows.buffers()[2])[:end]


def _raw_head(length: int) -> bytes:
    """What stands before so many bytes in MessagePack."""
    if length < 1 << 5:
        return bytes([0xA0 | length])
    if length < 1 << 16:
        return struct.pack(">BH", 0xDA, length)
    return struct.pack(">BI", 0xDB, length)
