"""
Locks by name between processes: of one machine, or of all that share a PostgreSQL.

A name is a path of plain parts, ``models/delay``. With a SQLite catalog a lock is a file below ``AIRLOOP_HOME/locks``;
with one on PostgreSQL it is an advisory lock of that database, held by a connection of its own. ``AIRLOOP_LOCKS`` says
it for any other catalog, which has no locks. Either way a lock goes with its process, however that ends. A machine that
is lost without a word keeps its locks for about a minute (:data:`airloop.postgres.LOST_S`), then the server gives them
up.

A forked child holds nothing: what it does with its parent's locks has no effect on them.

What it does not do: hold on to a lock when the server is restarted. What a lock guards must be right without it, or ask
:meth:`Held.check` before it takes effect. A lock without which nothing may take effect that this process makes is
:meth:`Held.needed`: whoever lets something take effect calls :func:`check_needed`, and need not know which it is.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airloop import postgres
from airloop.config import LOCAL, Config, is_rest
from airloop.errors import AirloopError, BadConfiguration, StoreBusy, Unreachable

if TYPE_CHECKING:
    import psycopg

log = logging.getLogger("airloop.locks")

POLL_S = 0.01

_mine: dict[tuple[int, int, str, str], tuple[bool, int]] = {}
"""Whether shared, and how often, by process, thread, place and name."""

_needed: list[Held] = []
"""A forked child has its parent's too: what it makes is part of what they do."""


def check_needed() -> None:
    """
    Ask after the locks without which nothing may take effect; call it right before something does.

    :raises Unreachable: one was lost, and somebody may rely on it that this process is over.
    """
    for held in tuple(_needed):
        try:
            held.check()
        except Unreachable as lost:
            if held not in _needed:
                # Another thread has released it meanwhile.
                continue
            raise Unreachable(f"not done, since {lost.found}", lost.advice) from lost


def locks_of(config: Config) -> Locks:
    """
    The locks of all processes that work with a configuration's catalog.

    :raises BadConfiguration: the catalog has none, and nothing else is named.
    """
    if config.locks != LOCAL:
        setting, address = ("AIRLOOP_LOCKS", config.locks) if config.locks else ("AIRLOOP_CATALOG", config.catalog)
        if postgres.is_address(address):
            return PostgresLocks(address, setting)
        if config.locks or is_rest(config.catalog):
            found = "cannot be read" if config.locks else "is not set, and an Iceberg REST catalog has no locks"
            right = f"{postgres.SCHEME}://user:password@host:port/database"
            raise BadConfiguration(
                f"AIRLOOP_LOCKS {found}", f"write {right}; or {LOCAL}, if all steps run on one machine"
            )
    return FileLocks(config.home / "locks")


class Held(ABC):
    """A lock that this process holds."""

    def __init__(self, mine: tuple[int, int, str, str]) -> None:
        self._mine = mine

    @abstractmethod
    def check(self) -> None:
        """
        Also in a forked child, after its parent's lock.

        :raises Unreachable: the lock was lost meanwhile, and somebody else may hold it.
        """

    def needed(self) -> None:
        """Until it is released nothing may take effect without it: see :func:`check_needed`."""
        _needed.append(self)

    @abstractmethod
    def _free(self) -> None: ...

    def release(self) -> None:
        """Free the lock; nothing happens in a forked child, or the second time."""
        with suppress(ValueError):
            _needed.remove(self)
        if self._mine[0] != os.getpid() or self._mine not in _mine:
            return
        shared, count = _mine.pop(self._mine)
        if count > 1:
            _mine[self._mine] = (shared, count - 1)
        self._free()


class Locks(ABC):
    """Locks by name."""

    place: str
    """What tells these locks from others of this process."""

    @abstractmethod
    def _take(self, name: str, timeout_s: float | None, shared: bool, mine: tuple[int, int, str, str]) -> Held | None:
        """See :meth:`take`."""

    def take(self, name: str, *, timeout_s: float | None = None, shared: bool = False) -> Held | None:
        """
        Take a lock; the caller releases it.

        :param timeout_s: how long to wait; None: for ever, 0: not at all.
        :param shared: whether others may hold it too that share it.
        :returns: None if it was not had in time.
        :raises Unreachable: the server of the locks does not answer.
        :raises RuntimeError: this thread holds it already, and would wait for itself for ever.
        """
        mine = (os.getpid(), threading.get_ident(), self.place, name)
        if mine in _mine and timeout_s is None and not (shared and _mine[mine][0]):
            raise RuntimeError(f"lock {name} is held by this thread already")
        held = self._take(name, timeout_s, shared, mine)
        if held is not None:
            _mine[mine] = (shared, _mine.get(mine, (shared, 0))[1] + 1)
        return held

    @contextmanager
    def hold(
        self, name: str, *, timeout_s: float | None = None, shared: bool = False, what: str = ""
    ) -> Iterator[Held]:
        """
        Hold a lock while the block runs.

        :param what: how messages name what is locked; default the lock's name.
        :raises StoreBusy: it was not had in time.
        :raises Unreachable: the server of the locks does not answer.
        """
        held = self.take(name, timeout_s=timeout_s, shared=shared)
        if held is None:
            raise StoreBusy(f"{what or name} was locked for {timeout_s:g} s", "another process holds it: run it again")
        try:
            yield held
        finally:
            held.release()

    @contextmanager
    def turn(self, name: str, *, timeout_s: float) -> Iterator[bool]:
        """
        Hold a lock while the block runs, if it is to be had in time; the block runs all the same.

        :returns: whether it is held.
        """
        held = self.take(name, timeout_s=timeout_s)
        try:
            yield held is not None
        finally:
            if held is not None:
                held.release()


class FileLocks(Locks):
    """Locks of processes of this machine: files below a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.place = str(folder)

    def _take(self, name: str, timeout_s: float | None, shared: bool, mine: tuple[int, int, str, str]) -> Held | None:
        path = self._folder / f"{name}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        until = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                had = _locked(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX, until)
                # Upkeep removes old files: a lock on one that is gone keeps nobody out.
                if had and os.fstat(descriptor).st_nlink:
                    return _HeldFile(mine, descriptor)
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)
            if not had:
                return None


def _locked(descriptor: int, mode: int, until: float | None) -> bool:
    if until is None:
        fcntl.flock(descriptor, mode)
        return True
    while True:
        with suppress(BlockingIOError):
            fcntl.flock(descriptor, mode | fcntl.LOCK_NB)
            return True
        if time.monotonic() >= until:
            return False
        time.sleep(POLL_S)


class _HeldFile(Held):
    def __init__(self, mine: tuple[int, int, str, str], descriptor: int) -> None:
        super().__init__(mine)
        self._descriptor = descriptor

    def check(self) -> None:
        """A file's lock is not lost."""

    def _free(self) -> None:
        # Not unlocked: that would free it for a child that shares the file.
        os.close(self._descriptor)


class PostgresLocks(Locks):
    """Locks of all processes that use one schema of one PostgreSQL database, whatever name they know its server by."""

    def __init__(self, address: str, setting: str) -> None:
        """
        :param setting: the variable that the address comes from.
        """
        self._address = address
        self._setting = setting
        self.place = address

    def connect(self) -> psycopg.Connection[Any]:
        """A connection to where the locks are, for what belongs to them; close it after use."""
        return postgres.connect(self._address, self._setting)

    def _take(self, name: str, timeout_s: float | None, shared: bool, mine: tuple[int, int, str, str]) -> Held | None:
        connection = self.connect()
        try:
            with postgres.understood(f"locking {name}"):
                held = HeldInPostgres(mine, self, connection, name, shared)
                if held.waited(timeout_s):
                    return held
        except BaseException:
            connection.close()
            raise
        connection.close()
        return None


def _prepared(connection: psycopg.Connection[Any]) -> tuple[str, int]:
    """Make a connection one that holds locks; returns the schema that it works in, and its process of the server."""
    settings = ", ".join(f"('{name}', '{value}')" for name, value in postgres.SESSION.items())
    connection.execute(
        f"SELECT set_config(name, wanted, false) FROM (VALUES {settings}) AS v (name, wanted) JOIN pg_settings"
        " USING (name)"
    )
    schema, backend = connection.execute("SELECT current_schema(), pg_backend_pid()").fetchone() or ("", 0)
    return str(schema), int(backend)


def lock_key(schema: str, name: str) -> int:
    """The number by which PostgreSQL knows a lock. A database has numbers of its own; the schema is one catalog's."""
    digest = hashlib.sha256("\x1f".join(("airloop", schema, name)).encode()).digest()
    return int.from_bytes(digest[:8], signed=True)


HELD = (
    "SELECT count(*) > 0 FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 1 AND granted AND pid = {}"
    " AND (classid::bigint << 32) | objid::bigint = %s"
)
"""Whether a process of the server holds a lock: through a pooler, a connection may come to another one."""


class HeldInPostgres(Held):
    """A lock that a connection holds."""

    def __init__(
        self,
        mine: tuple[int, int, str, str],
        locks: PostgresLocks,
        connection: psycopg.Connection[Any],
        name: str,
        shared: bool,
    ) -> None:
        super().__init__(mine)
        self.connection = connection
        """Of this lock alone; whoever holds it may use it for what belongs to the lock."""
        self._locks = locks
        self.schema, self._backend = _prepared(connection)
        self.key = lock_key(self.schema, name)
        self._name = name
        self._shared = "_shared" if shared else ""

    def waited(self, timeout_s: float | None) -> bool:
        """Wait for the lock; whether it is had."""
        if timeout_s is not None and timeout_s <= 0:
            query = f"SELECT pg_try_advisory_lock{self._shared}(%s)"
            found = self.connection.execute(query, (self.key,)).fetchone()
            return bool(found and found[0])
        if timeout_s is not None:
            limit_ms = max(1, int(timeout_s * 1000))
            self.connection.execute("SELECT set_config('lock_timeout', %s, false)", (str(limit_ms),))
        from psycopg.errors import LockNotAvailable

        try:
            self.connection.execute(f"SELECT pg_advisory_lock{self._shared}(%s)", (self.key,))
        except LockNotAvailable:
            return False
        return True

    def check(self) -> None:
        with self._lost():
            if self._mine[0] == os.getpid():
                found = self.connection.execute(HELD.format("pg_backend_pid()"), (self.key,)).fetchone()
            else:
                with closing(self._locks.connect()) as connection:
                    found = connection.execute(HELD.format("%s"), (self._backend, self.key)).fetchone()
        if not found or not found[0]:
            raise Unreachable(f"lock {self._name} was lost: the server does not know of it", "run the task again")

    @contextmanager
    def _lost(self) -> Iterator[None]:
        try:
            with postgres.understood(f"holding {self._name}"):
                yield
        except Unreachable as cause:
            raise Unreachable(f"lock {self._name} was lost: {cause.found}", "run the task again") from cause

    def _free(self) -> None:
        try:
            # Asked for: after a mere close the server takes its time.
            with self._lost():
                self.connection.execute("SELECT pg_advisory_unlock_all()")
        except AirloopError as error:
            # The work is done; what must not be done without the lock has checked before.
            log.warning("%s", error)
        finally:
            self.connection.close()
