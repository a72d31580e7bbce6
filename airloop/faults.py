"""
Fault injection for tests, by environment variables. Standard library only.

``AIRLOOP_FAULT`` holds one or more faults separated by ``;``, each ``ACTION@POINT`` or ``ACTION@POINT:N`` (the N-th
time the point is reached in this process, 1 by default). Actions:

======================  ========================================================================================
``kill``                SIGKILL of this process: nothing is cleaned up
``oom``                 allocate until somebody ends the process (bounded by ``AIRLOOP_FAULT_OOM_MB``, default 65,536)
``raise``               an unclassified error
``full``                what a full disk gives: OSError ENOSPC, or SQLite's ``database or disk is full``
``locked``              SQLite's ``database is locked``
``hang``                sleep for an hour
``slow``                sleep for ``AIRLOOP_FAULT_SLOW_S`` seconds (default 5)
``lose``                at ``receipt``: end well without the receipt; at ``manifest``: end well without the manifest
======================  ========================================================================================

A point is a name that the code passes to :func:`point`: ``start``, ``run``, ``commit:before``, ``commit:after``,
``manifest``, ``receipt`` and those that modules add. ``*`` matches every point. Nothing happens, at the cost of one
dictionary look-up, when the variable is not set.

With either variable set, every durable write of this process is two points more, ``NAME:before`` and ``NAME:after``,
hooked where it happens, so that nobody has to list them:

=============================  =================================================================================
``rename:PATH``                a rename or link that publishes a file, below ``AIRLOOP_HOME``
``sql:FILE/TABLE``             a commit in SQLite (catalog, MLflow, online store…), named by the first table that it
                               changes
``sql:postgresql``             the end of a transaction in PostgreSQL (catalog, Feast's registry), if
                               ``AIRLOOP_CATALOG`` is there
``http:METHOD PATH``           a request to an MLflow server that changes something
``redis:COMMAND``              a transaction (EXEC), script or command that changes something, as it is sent to Redis
=============================  =================================================================================

Ids in names become ``*``, so that the same step gives the same names again. With ``AIRLOOP_FAULT_TRACE=FILE`` every
point that is reached is a line ``POINT:N`` of the file, which is how the points of a step are found.

A put into a bucket is two points that the code names, ``artifact:before:NAME`` and ``artifact:after:NAME``.

What it does not do: follow child processes, or files that are written in place (nothing that counts is); statements in
PostgreSQL that are no transaction, by which locks are taken and attempts announced.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import sqlite3
import sqlite3.dbapi2
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeVar
from urllib.parse import unquote, urlsplit

from airloop.contract import ENV_FAULT
from airloop.errors import BadConfiguration

ENV_TRACE = "AIRLOOP_FAULT_TRACE"
"""A file that gets a line for each point that is reached."""
ACTIONS = frozenset({"kill", "oom", "raise", "full", "locked", "hang", "slow", "lose"})
T = TypeVar("T")
_reached: Counter[str] = Counter()
_instrumented = False


def point(name: str) -> bool:
    """
    Reach a named point; injure this process here if a fault asks for it.

    :returns: True if the caller is asked to lose what it is about to hand over (``lose``), else False.
    """
    if ENV_FAULT not in os.environ and ENV_TRACE not in os.environ:
        return False
    return _reach(name, "code")


def instrument() -> None:
    """Make every durable write of this process a point, if a fault or a trace is asked for; else do nothing."""
    global _instrumented
    if _instrumented or (ENV_FAULT not in os.environ and ENV_TRACE not in os.environ):
        return
    _instrumented = True
    for name in ("replace", "rename", "link"):
        _replace(os, name, _published(getattr(os, name)))
    for module in (sqlite3, sqlite3.dbapi2):
        _replace(module, "connect", _connect)
    # Libraries that a step would not load anyway are not loaded for this.
    if os.environ.get("AIRLOOP_CATALOG", "").startswith("postgres"):
        _instrument_postgres()
    if os.environ.get("AIRLOOP_MLFLOW", "").startswith("http"):
        _instrument_http()
    if "://" in os.environ.get("AIRLOOP_ONLINE_STORE", ""):
        _instrument_redis()


Kind = Literal["code", "file", "sql", "postgres", "http", "redis"]


def _reach(name: str, kind: Kind) -> bool:
    name = _IDS.sub("*", name)
    _reached[name] += 1
    trace = os.environ.get(ENV_TRACE)
    if trace:
        descriptor = os.open(trace, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        os.write(descriptor, f"{name}:{_reached[name]}\n".encode())
        os.close(descriptor)
    faults = os.environ.get(ENV_FAULT)
    if not faults:
        return False
    lose = False
    for fault in faults.split(";"):
        action, separator, where = fault.strip().partition("@")
        if action not in ACTIONS or not separator:
            raise BadConfiguration(f"{ENV_FAULT}={faults!r} is not ACTION@POINT[:N]", f"actions: {sorted(ACTIONS)}")
        place, _, count = where.rpartition(":") if where.rpartition(":")[2].isdigit() else (where, "", "1")
        if place in (name, "*") and _reached[name] == int(count):
            lose = _injure(action, name, kind) or lose
    return lose


def _injure(action: str, name: str, kind: Kind) -> bool:
    match action:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "oom":
            blocks = []
            for _ in range(int(os.environ.get("AIRLOOP_FAULT_OOM_MB", "65536")) // 16):
                blocks.append(b"\x01" * (16 << 20))
        case "raise":
            raise RuntimeError(f"injected at {name}")
        case "full" if kind == "sql":
            raise sqlite3.OperationalError("database or disk is full")
        case "full":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name)
        case "locked":
            raise sqlite3.OperationalError("database is locked")
        case "hang":
            time.sleep(3600)
        case "slow":
            time.sleep(float(os.environ.get("AIRLOOP_FAULT_SLOW_S", "5")))
        case "lose":
            return True
    return False


# --- durable writes


def _replace(owner: object, name: str, wrapper: Callable[..., Any]) -> None:
    """Put a wrapper in a function's place, for the rest of this process: it is one that tests injure."""
    setattr(owner, name, wrapper)


@contextmanager
def _durable(name: str, kind: Kind) -> Iterator[None]:
    _reach(f"{name}:before", kind)
    yield
    _reach(f"{name}:after", kind)


_IDS = re.compile(r"(?:\b[0-9a-f]{2}/)?(?:[0-9a-f]{8}-[0-9a-f-]{27}|[0-9a-f]{16,})|[0-9]{6,}|;")


def _place(path: str) -> str | None:
    """A path as points name it, below AIRLOOP_HOME; None for what is outside, or has no final name yet."""
    home, whole = Path(os.environ.get("AIRLOOP_HOME", "/")).expanduser().absolute(), Path(path).absolute()
    if not whole.is_relative_to(home) or ".part-" in whole.as_posix() or ".staging-" in whole.name:
        return None
    return whole.relative_to(home).as_posix()


def _published(function: Callable[..., None]) -> Callable[..., None]:
    @wraps(function)
    def publish(source: Any, target: Any, **options: Any) -> None:
        # By descriptor of a folder: what shutil moves about.
        place = None if options else _place(os.fsdecode(target))
        if place is None:
            return function(source, target, **options)
        with _durable(f"rename:{place}", "file"):
            return function(source, target)

    return publish


_WRITES = re.compile(
    r"\s*(?:INSERT\s+(?:OR\s+\w+\s+)?INTO|REPLACE\s+INTO|UPDATE(?:\s+OR\s+\w+)?|DELETE\s+FROM"
    r"|(?:CREATE|DROP|ALTER)\s+(?:UNIQUE\s+)?(?:TABLE|INDEX)(?:\s+IF\s+(?:NOT\s+)?EXISTS)?)\s+(?P<table>[\w.\"'`\[\]]+)",
    re.IGNORECASE,
)
_CREATES = re.compile(r"\s*CREATE\s+(?:UNIQUE\s+)?(?:TABLE|INDEX)\s+IF\s+NOT\s+EXISTS", re.IGNORECASE)
_WITH = re.compile(r"\s*WITH\b.*?\bINSERT\s+INTO\s+(?P<table>[\w.\"]+)", re.IGNORECASE | re.DOTALL)
_ENDS = re.compile(r"\s*(?:COMMIT|END)\b", re.IGNORECASE)


class _Cursor(sqlite3.Cursor):
    """Tells its connection what is changed, and reaches the points of statements that are durable by themselves."""

    def execute(self, sql: str, parameters: Any = (), /) -> Self:
        return self._run(sql, lambda: super(_Cursor, self).execute(sql, parameters))

    def executemany(self, sql: str, parameters: Any, /) -> Self:
        return self._run(sql, lambda: super(_Cursor, self).executemany(sql, parameters))

    def executescript(self, script: str, /) -> sqlite3.Cursor:
        return self._run(script, lambda: super(_Cursor, self).executescript(script))

    def _run(self, sql: str, work: Callable[[], T]) -> T:
        connection = self.connection
        if not isinstance(connection, _Connection) or connection.place is None:
            return work()
        if _ENDS.match(sql) and connection.in_transaction:
            with connection.commits():
                return work()
        written = _WRITES.match(sql) or _WITH.match(sql)
        if written is None:
            return work()
        table = written["table"].strip("\"'`[]")
        if _CREATES.match(sql) and connection.knows(table):
            return work()
        connection.changed = connection.changed or table
        alone = not connection.in_transaction and (
            connection.isolation_level is None or not re.match(r"\s*(INSERT|UPDATE|DELETE|REPLACE)", sql, re.IGNORECASE)
        )
        if not alone:
            return work()
        with connection.commits():
            return work()


class _Connection(sqlite3.Connection):
    place: str | None = None
    """Its file as points name it; None for one that is none of ours."""
    changed = ""
    """The first table that the transaction has changed."""

    def cursor(self, factory: Any = _Cursor) -> Any:
        return super().cursor(factory)

    def _own(self) -> sqlite3.Cursor:
        # The base class would make plain cursors for what follows.
        return super().cursor(_Cursor)

    def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
        return self._own().execute(sql, parameters)

    def executemany(self, sql: str, parameters: Any, /) -> sqlite3.Cursor:
        return self._own().executemany(sql, parameters)

    def executescript(self, script: str, /) -> sqlite3.Cursor:
        return self._own().executescript(script)

    def knows(self, name: str) -> bool:
        """Whether a table or index is there."""
        found = super().cursor(sqlite3.Cursor).execute("SELECT 1 FROM sqlite_master WHERE name = ?", (name,))
        return found.fetchone() is not None

    @contextmanager
    def commits(self) -> Iterator[None]:
        table, self.changed = self.changed, ""
        # A transaction that only read is over without a trace.
        if self.place is None or not table or table.startswith("temp."):
            yield
            return
        with _durable(f"sql:{self.place}/{table}", "sql"):
            yield

    def commit(self) -> None:
        if not self.in_transaction:
            return super().commit()
        with self.commits():
            return super().commit()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> Literal[False]:
        if kind is not None or not self.in_transaction:
            return super().__exit__(kind, error, trace)
        with self.commits():
            return super().__exit__(kind, error, trace)


_sqlite_connect: Any = sqlite3.connect


def _connect(database: Any, *arguments: Any, **options: Any) -> sqlite3.Connection:
    if "factory" in options or len(arguments) > 4:
        opened: sqlite3.Connection = _sqlite_connect(database, *arguments, **options)
        return opened
    connection: _Connection = _sqlite_connect(database, *arguments, factory=_Connection, **options)
    text = os.fsdecode(database)
    if text.startswith("file:"):
        text = unquote(urlsplit(text).path)
    if text and text != ":memory:":
        connection.place = _place(text)
    return connection


def _instrument_postgres() -> None:
    from psycopg import Connection
    from psycopg.pq import TransactionStatus

    commit: Callable[[Any], None] = Connection.commit

    def committed(connection: Any) -> None:
        if connection.info.transaction_status != TransactionStatus.INTRANS:
            commit(connection)
            return
        with _durable("sql:postgresql", "postgres"):
            commit(connection)

    _replace(Connection, "commit", committed)


def _instrument_http() -> None:
    from requests import Session

    send: Any = Session.send

    def sent(session: Any, request: Any, **options: Any) -> Any:
        if request.method in ("GET", "HEAD", "OPTIONS"):
            return send(session, request, **options)
        # MLflow counts its experiments, and names folders of files by that.
        place = re.sub("(?<=/)[0-9]+(?=/)", "*", urlsplit(request.url).path)
        with _durable(f"http:{request.method} {place}", "http"):
            return send(session, request, **options)

    _replace(Session, "send", sent)


_REDIS_WRITES = re.compile(rb"\$\d+\r\n(EXEC|EVALSHA|EVAL|H?SET|H?DEL|EXPIRE|RENAME|UNLINK)\r\n")


def _instrument_redis() -> None:
    from redis.connection import AbstractConnection

    send: Any = AbstractConnection.send_packed_command

    def sent(connection: Any, command: Any, *arguments: Any, **options: Any) -> Any:
        head = command if isinstance(command, bytes) else b"".join(command[:1])
        found = _REDIS_WRITES.search(bytes(head)[:200])
        # What follows MULTI is done at EXEC.
        if found is None or b"MULTI" in bytes(head)[:20]:
            return send(connection, command, *arguments, **options)
        with _durable(f"redis:{found[1].decode()}", "redis"):
            return send(connection, command, *arguments, **options)

    _replace(AbstractConnection, "send_packed_command", sent)
