"""
The switch of online values in SQLite: staged beside the store, verified, then moved in one transaction.

Readers use Feast's own table and Feast's own code. Beside it, in the same file, are two tables of ours:

``airloop_watermark``   per view, up to when values have been materialised, by which key, from which snapshot
``airloop_latest``      per view and entity, the event and arrival time of the value that we wrote, to the microsecond
                        (Feast keeps whole seconds)

Rows are first staged and verified in a temporary file, so that other writers wait only for the switch. A process that
ends at any moment leaves either the old values and the old watermark or the new ones and the new one.

What it does not do: it keeps no vectors (``vector_enabled``) and no numbers for filters
(``enable_openai_compatible_store``); both are refused.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from airloop.errors import BadInput, StoreBusy, StoreReadOnly
from airloop.faults import point
from airloop.features.encode import stored_seconds
from airloop.features.online import Chunk, OnlineTable, Switched, Watermark
from airloop.features.staging import Staging
from airloop.warehouse.mounts import refuse_network

log = logging.getLogger("airloop.online")

BUSY_TIMEOUT_S = 30.0
"""How long the switch waits for another writer of the online store."""
ROWS_PER_INSERT = 10_000
"""Entities that are Python objects at a time, while an empty view is filled."""
MAX_VARIABLES = 999
"""Parameters of one statement, unless a single entity has more; SQLite takes 32,766."""


def text(value: str) -> str:
    """A string as an SQL literal."""
    return "'" + value.replace("'", "''") + "'"


def quoted(name: str) -> str:
    """A name as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


class OnlineFile:
    """The SQLite file of the online store, as its writer sees it."""

    keeps_texts: ClassVar[bool] = True

    def __init__(self, path: Path, *, busy_timeout_s: float = BUSY_TIMEOUT_S) -> None:
        self.path = path
        self.busy_timeout_s = busy_timeout_s
        self._staged: Staging | None = None
        path.parent.mkdir(parents=True, exist_ok=True)

    @property
    def where(self) -> str:
        """The file's path."""
        return str(self.path.resolve())

    @contextmanager
    def locked(self, table: OnlineTable) -> Iterator[None]:
        """
        One materialisation of a view at a time.

        :raises StoreBusy: another one holds the view for longer than the busy time-out.
        """
        from filelock import FileLock, Timeout

        lock = FileLock(self._beside(table.name, "lock"))
        try:
            lock.acquire(timeout=self.busy_timeout_s)
        except Timeout as cause:
            raise StoreBusy(
                f"another process has been materialising {table.view} for more than {self.busy_timeout_s:g} s",
                "run the task again later",
            ) from cause
        try:
            yield
        finally:
            if self._staged is not None:
                self._staged.close()
                self._staged = None
            lock.release()

    @contextmanager
    def connect(self) -> Iterator[sqlite3.Connection]:
        """A connection in WAL mode without implicit transactions; our tables are there."""
        refuse_network(self.path, "the online store")
        connection = sqlite3.connect(self.path, timeout=self.busy_timeout_s, isolation_level=None)
        try:
            try:
                connection.execute("PRAGMA journal_mode=WAL")
                connection.executescript(_OWN_TABLES)
            except sqlite3.DatabaseError as cause:
                raise self._understood(cause) from cause
            yield connection
        finally:
            connection.close()

    def watermark(self, table: OnlineTable) -> Watermark | None:
        """The watermark of a view, or None if it was never materialised or Feast's table lost rows since."""
        if not self.path.exists():
            return None
        with self.connect() as connection:
            found = _watermark(connection, table)
            return None if found is None or _entities(connection, table) < found.entities else found

    def recorded(self, table: OnlineTable) -> Watermark | None:
        """The watermark of a view as it was written, whatever became of the rows since."""
        if not self.path.exists():
            return None
        with self.connect() as connection:
            return _watermark(connection, table)

    def served(self, table: OnlineTable, keys: Sequence[bytes]) -> dict[bytes, tuple[int, int]]:
        """Event and arrival time, microseconds since 1970, of the values that we wrote of some entities."""
        found = {}
        with self.connect() as connection:
            for at in range(0, len(keys), MAX_VARIABLES - 1):
                some = keys[at : at + MAX_VARIABLES - 1]
                rows = connection.execute(
                    "SELECT entity_key, event_us, arrival_us FROM airloop_latest"
                    f" WHERE view = ? AND entity_key IN ({', '.join('?' * len(some))})",
                    (table.name, *some),
                )
                found.update({key: (event, arrival) for key, event, arrival in rows})
        return found

    def forget_if_lost(self, table: OnlineTable) -> None:
        """
        If Feast's table lost rows (``feast teardown``, a file put back from a backup), forget what we wrote.

        What is online is then no longer what the watermark says, whoever fills the table next.
        """
        with self.connect() as connection:
            found = _watermark(connection, table)
            present = _entities(connection, table) if found else 0
            if found is None or present >= found.entities:
                return
            connection.execute("BEGIN IMMEDIATE")
            for own in ("airloop_watermark", "airloop_latest"):
                connection.execute(f"DELETE FROM {own} WHERE view = ?", (table.name,))
            connection.execute("COMMIT")
            log.warning(
                "%s: %d of %d entities are no longer online; it is filled anew",
                table.view, found.entities - present, found.entities,
            )  # fmt: skip

    @contextmanager
    def staging(self, table: OnlineTable) -> Iterator[Staging]:
        """A place for the rows of one view, to be called within :meth:`locked`; they are kept until the switch."""
        self._staged = Staging(table, _columns)
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
        Take over the staged rows in one transaction.

        :param replace_equal: whether a staged value with the very times of the one that is online replaces it; no,
            if it comes from an older state of its table.
        :param watermark: moves there in the same transaction, unless it is there or beyond already; None leaves it.
        :param expire_before_us: values of ours with an older event time are taken offline.
        :param lost: entities whose value of ours has no row any more: what is staged of them replaces it though it be
            older, and those of which nothing is staged are taken offline.
        :raises StoreBusy: another writer holds the store.
        """
        staged = self._staged
        assert staged is not None, "there is nothing staged"
        with self.connect() as connection:
            try:
                if not _is_empty(connection, table):
                    # Before the lock is taken: what is there has to be compared, all over its pages.
                    connection.execute("PRAGMA cache_size=-65536")
                    connection.execute("BEGIN")
                    _spread(connection, staged, lost)
                    connection.execute("COMMIT")
                connection.execute("BEGIN IMMEDIATE")
                try:
                    if _is_empty(connection, table):
                        # Nothing to compare with, nothing that could have outlived its time, no page is needed twice.
                        _fill(connection, staged)
                        result = Switched(rows=staged.rows, written=staged.rows)
                        entities = staged.rows
                    else:
                        result = _take_over(connection, staged, replace_equal, lost)
                        if expire_before_us is not None:
                            result.expired = _take_offline(connection, table, "l.event_us < ?", expire_before_us)
                        if lost:
                            result.expired += _take_offline(connection, table, _LOST)
                        entities = _entities(connection, table)
                    _move(connection, table, watermark, entities, result)
                    point("materialize:before_switch")
                    connection.execute("COMMIT")
                except BaseException:
                    # After a full disk SQLite may have rolled back already.
                    with suppress(sqlite3.OperationalError):
                        connection.execute("ROLLBACK")
                    raise
            except sqlite3.DatabaseError as cause:
                raise self._understood(cause) from cause
        point("materialize:after_switch")
        return result

    def _understood(self, error: sqlite3.DatabaseError) -> Exception:
        text = str(error)
        if "locked" in text or "busy" in text:
            return StoreBusy(
                f"online store {self.path.name} was locked for more than {self.busy_timeout_s:g} s",
                "another process writes to it; the old values are still served, run the task again",
            )
        if "readonly" in text:
            return StoreReadOnly(f"online store {self.path}: {text}", "give the worker's user write access to it")
        if "not a database" in text or "malformed" in text:
            return BadInput(f"online store {self.path} is damaged: {text}", "move the file away and materialise again")
        return error

    def _beside(self, name: str, what: str) -> Path:
        return self.path.with_name(f"{self.path.name}.{what}-{name}")


def _columns(chunk: Chunk) -> dict[str, pa.Array]:
    """Feast's text of each value and its seconds, and our microseconds."""
    times = {"event_us": chunk.event_us, "arrival_us": chunk.arrival_us}
    seconds = {"event_s": stored_seconds(chunk.event_us), "arrival_s": stored_seconds(chunk.arrival_us)}
    texts = {f"t{i}": pa.array(texts, pa.string()) for i, texts in enumerate(chunk.texts)}
    return {**texts, **{name: pa.array(values, pa.int64()) for name, values in {**times, **seconds}.items()}}


_OWN_TABLES = """
CREATE TABLE IF NOT EXISTS airloop_watermark (
    view TEXT PRIMARY KEY, until INTEGER NOT NULL, key TEXT NOT NULL, snapshot INTEGER NOT NULL,
    entities INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS airloop_latest (
    view TEXT, entity_key BLOB, event_us INTEGER NOT NULL, arrival_us INTEGER NOT NULL, event_s INTEGER NOT NULL,
    PRIMARY KEY (view, entity_key)
) WITHOUT ROWID;
"""


def _watermark(connection: sqlite3.Connection, table: OnlineTable) -> Watermark | None:
    row = connection.execute(
        "SELECT until, key, snapshot, entities FROM airloop_watermark WHERE view = ?", (table.name,)
    ).fetchone()
    return Watermark(*row) if row else None


def _entities(connection: sqlite3.Connection, table: OnlineTable) -> int:
    """Entities of ours that Feast's table still serves."""
    exists = connection.execute("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?", (table.name,))
    if exists.fetchone() is None:
        return 0
    row = connection.execute(
        f"SELECT count(*) FROM airloop_latest l WHERE view = ? AND EXISTS"
        f" (SELECT 1 FROM {quoted(table.name)} f WHERE f.entity_key = l.entity_key)",
        (table.name,),
    ).fetchone()
    return int(row[0])


def _is_empty(connection: sqlite3.Connection, table: OnlineTable) -> bool:
    """Whether nothing is online of a view, and nothing is remembered."""
    row = connection.execute(
        f"SELECT NOT EXISTS (SELECT 1 FROM {quoted(table.name)})"
        " AND NOT EXISTS (SELECT 1 FROM airloop_latest WHERE view = ?)",
        (table.name,),
    ).fetchone()
    return bool(row[0])


def _spread(connection: sqlite3.Connection, staged: Staging, lost: Collection[bytes]) -> None:
    """The staged rows as ``temp.rows``, the entities that lost their row as ``temp.lost``."""
    connection.execute("CREATE TEMP TABLE lost (entity_key BLOB PRIMARY KEY) WITHOUT ROWID")
    connection.executemany("INSERT INTO temp.lost VALUES (?)", ((key,) for key in lost))
    pairs = "".join(f", v{i}, t{i}" for i in range(len(staged.table.features)))
    connection.execute(f"CREATE TEMP TABLE rows (entity_key, event_us, arrival_us, event_s, arrival_s{pairs})")
    for batch in staged.batches():
        names = ["key", "event_us", "arrival_us", "event_s", "arrival_s"]
        names += [f"{kind}{i}" for i in range(len(staged.table.features)) for kind in "vt"]
        columns = [batch.column(name).to_pylist() for name in names]
        _insert(connection, "temp.rows", columns, f"({', '.join('?' * len(columns))})")


def _fill(connection: sqlite3.Connection, staged: Staging) -> None:
    """The staged rows into an empty view: there is nothing to compare them with."""
    table = staged.table
    feast = f"{quoted(table.name)} (entity_key, feature_name, value, value_text, event_ts, created_ts)"
    latest = "airloop_latest (view, entity_key, event_us, arrival_us, event_s)"
    rows = ", ".join(f"(?, {text(name)}, ?, ?, ?, ?)" for name in table.features)
    names = [n for i in range(len(table.features)) for n in ("key", f"v{i}", f"t{i}", "event_s", "arrival_s")]
    # Feast's index is in the order of the keys: in that order its pages are written once.
    for part in staged.by_key(ROWS_PER_INSERT):
        column = {name: part.column(name).to_pylist() for name in part.schema.names}
        _insert(connection, feast, [column[name] for name in names], rows)
        times = [column[name] for name in ("key", "event_us", "arrival_us", "event_s")]
        _insert(connection, latest, times, f"({text(table.name)}, ?, ?, ?, ?)")


def _insert(connection: sqlite3.Connection, into: str, columns: Sequence[list[Any]], rows: str) -> None:
    """
    Insert entities by the dozen: to start a statement takes SQLite as long as to insert a row.

    :param columns: what is known of the entities.
    :param rows: SQL of one entity's rows, with a parameter for each column.
    """
    count = len(columns[0])
    each = max(MAX_VARIABLES // len(columns), 1)
    whole = count - count % each
    for begin, end, size in ((0, whole, each), (whole, count, 1)):
        several = (column[begin + n : end : size] for n in range(size) for column in columns)
        values = ", ".join([rows] * size)
        connection.executemany(f"INSERT INTO {into} VALUES {values}", zip(*several, strict=True))


def _take_over(
    connection: sqlite3.Connection, staged: Staging, replace_equal: bool, lost: Collection[bytes]
) -> Switched:
    table = staged.table
    if connection.execute("SELECT 1 FROM temp.sqlite_master WHERE name = 'rows'").fetchone() is None:
        _spread(connection, staged, lost)
    feast = quoted(table.name)
    newer = ">=" if replace_equal else ">"
    # An entity whose rows Feast's table lost (teardown, apply) is free again, whatever we remember of it.
    connection.execute(
        "CREATE TEMP TABLE won (entity_key BLOB PRIMARY KEY, row INTEGER NOT NULL, before_s INTEGER) WITHOUT ROWID"
    )
    connection.execute(
        "INSERT INTO temp.won SELECT s.entity_key, s.rowid, l.event_s FROM temp.rows s"
        " LEFT JOIN airloop_latest l ON l.view = ? AND l.entity_key = s.entity_key"
        f" WHERE l.entity_key IS NULL OR (s.event_us, s.arrival_us) {newer} (l.event_us, l.arrival_us)"
        " OR s.entity_key IN (SELECT entity_key FROM temp.lost)"
        f" OR NOT EXISTS (SELECT 1 FROM {feast} f WHERE f.entity_key = s.entity_key) ORDER BY s.entity_key",
        (table.name,),
    )
    names = ", ".join(f"({i}, ?)" for i in range(len(table.features)))
    by_feature = " ".join(f"WHEN {i} THEN s.v{i}" for i in range(len(table.features)))
    text_by_feature = " ".join(f"WHEN {i} THEN s.t{i}" for i in range(len(table.features)))
    # Entity by entity in the order of Feast's primary key. A value that somebody else wrote since (a push) stays if
    # its time is newer; Feast's seconds of our own last value say nothing more than ours, compared above.
    connection.execute(
        f"WITH feature (i, name) AS (VALUES {names})"
        f" INSERT INTO {feast} AS f (entity_key, feature_name, value, value_text, event_ts, created_ts)"
        f" SELECT s.entity_key, feature.name, CASE feature.i {by_feature} END, CASE feature.i {text_by_feature} END,"
        "   s.event_s, s.arrival_s"
        " FROM temp.won w CROSS JOIN temp.rows s ON s.rowid = w.row CROSS JOIN feature WHERE true"
        " ON CONFLICT (entity_key, feature_name) DO UPDATE SET value = excluded.value,"
        "   value_text = excluded.value_text, event_ts = excluded.event_ts, created_ts = excluded.created_ts"
        " WHERE excluded.event_ts >= f.event_ts"
        "   OR f.event_ts = (SELECT before_s FROM temp.won w WHERE w.entity_key = excluded.entity_key)",
        table.features,
    )
    connection.execute(
        "INSERT INTO airloop_latest SELECT ?, s.entity_key, s.event_us, s.arrival_us, s.event_s"
        " FROM temp.won w CROSS JOIN temp.rows s ON s.rowid = w.row WHERE true"
        " ON CONFLICT (view, entity_key) DO UPDATE SET event_us = excluded.event_us,"
        "   arrival_us = excluded.arrival_us, event_s = excluded.event_s",
        (table.name,),
    )
    written = connection.execute("SELECT count(*) FROM temp.won").fetchone()[0]
    connection.execute("DROP TABLE temp.won")
    return Switched(rows=staged.rows, written=written, skipped=staged.rows - written)


_LOST = "l.entity_key IN (SELECT entity_key FROM temp.lost) AND l.entity_key NOT IN (SELECT entity_key FROM temp.rows)"
"""Entities of which nothing is staged in the place of a row that is there no more."""


def _take_offline(connection: sqlite3.Connection, table: OnlineTable, which: str, *parameters: int) -> int:
    """
    Take values offline that a point-in-time join would no longer find; newer pushes of others stay.

    :param which: condition on ``airloop_latest l``.
    """
    connection.execute(
        f"DELETE FROM {quoted(table.name)} AS f WHERE EXISTS (SELECT 1 FROM airloop_latest l WHERE l.view = ?"
        f" AND l.entity_key = f.entity_key AND {which} AND f.event_ts <= l.event_s)",
        (table.name, *parameters),
    )
    return connection.execute(
        f"DELETE FROM airloop_latest AS l WHERE view = ? AND {which}", (table.name, *parameters)
    ).rowcount


def _move(
    connection: sqlite3.Connection, table: OnlineTable, target: Watermark | None, entities: int, result: Switched
) -> None:
    now = _watermark(connection, table)
    if target is not None and (now is None or target.until_us >= now.until_us):
        now = Watermark(target.until_us, target.key, target.snapshot, entities)
        connection.execute(
            "INSERT OR REPLACE INTO airloop_watermark (view, until, key, snapshot, entities) VALUES (?, ?, ?, ?, ?)",
            (table.name, now.until_us, now.key, now.snapshot, now.entities),
        )
        result.moved = True
    result.watermark = now
