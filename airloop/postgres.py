"""
PostgreSQL: its addresses, connections that notice a lost network, and what its errors mean.

Standard library only; psycopg is imported where a connection is opened. Nothing that is said here has a password in it.

What it does not do: work through a pooler that gives each transaction another connection (PgBouncer in its mode
``transaction`` or ``statement``). Locks belong to a connection; name the server itself, or use the mode ``session``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit
from weakref import WeakSet

from airloop.errors import BadConfiguration, classify

if TYPE_CHECKING:
    import psycopg
    from sqlalchemy import Engine

SCHEME = "postgresql+psycopg"
SCHEMES = (SCHEME, "postgresql", "postgres")
"""How addresses begin that can be used; the last is what Airflow makes of a connection."""
LOST_S = 50
"""Seconds after which both sides give up a connection whose other side is gone without a word: a lost pod's, say."""
OPTIONS: Mapping[str, str] = {
    "application_name": "airloop",
    "connect_timeout": "10",
    "keepalives_idle": "20",
    "keepalives_interval": "10",
    "keepalives_count": "3",
    "tcp_user_timeout": str(LOST_S * 1000),
}
"""What a connection is opened with where its address does not say otherwise."""
SESSION: Mapping[str, str] = {
    "tcp_keepalives_idle": "20",
    "tcp_keepalives_interval": "10",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": str(LOST_S * 1000),
    # Else who waits for a lock stays in its queue after its end.
    "client_connection_check_interval": "10s",
    # A lock is held by a connection that says nothing for hours.
    "idle_session_timeout": "0",
    "statement_timeout": "0",
}
"""What a server is asked for a connection that holds a lock; older servers do not know all of it."""

_engines: WeakSet[Engine] = WeakSet()


def is_address(text: str) -> bool:
    """Whether a setting names a PostgreSQL."""
    return text.partition("://")[0].startswith("postgres") and "://" in text


def checked(text: str, setting: str) -> str:
    """
    An address as SQLAlchemy takes it, ``postgresql+psycopg://[user[:password]@]host[:port]/database[?option=…]``.

    :param setting: the variable that it comes from.
    :raises BadConfiguration: it cannot be read, or asks for another driver.
    """
    scheme, _, rest = text.partition("://")
    right = f"{SCHEME}://user:password@host:port/database; write %40 for an @ in a password, %2F for a /"
    if scheme not in SCHEMES:
        raise BadConfiguration(f"{setting} is an address of kind {scheme}, not {SCHEME}", f"write {right}")
    try:
        parts = urlsplit(f"{SCHEME}://{rest}")
        readable = bool(parts.path.strip("/")) and parts.port != 0 and not parts.fragment and "@" not in parts.path
        # An empty host is the server's socket on this machine.
        readable = readable and (bool(parts.hostname) or not parts.netloc)
    except ValueError:
        readable = False
    if not readable:
        # What cannot be read may hold a password anywhere.
        raise BadConfiguration(f"{setting} is a PostgreSQL address that cannot be read", f"write {right}")
    return f"{SCHEME}://{rest}"


def for_sqlalchemy(text: str, setting: str) -> str:
    """An address with :data:`OPTIONS`. :raises BadConfiguration: as :func:`checked`, or psycopg is not installed."""
    _psycopg(setting)
    address = checked(text, setting)
    given = {name for name, _ in parse_qsl(urlsplit(address).query, keep_blank_values=True)}
    missing = {name: value for name, value in OPTIONS.items() if name not in given}
    return f"{address}{'&' if '?' in address else '?'}{urlencode(missing)}"


def where(text: str) -> str:
    """Host, port and database of an address, for messages."""
    parts = urlsplit(text)
    return f"{parts.hostname or 'this machine'}:{parts.port or 5432}/{unquote(parts.path.strip('/'))}"


def connect(text: str, setting: str, **options: str) -> psycopg.Connection[Any]:
    """
    A connection of one's own, whose statements take effect at once; close it after use.

    :param options: of libpq, which override :data:`OPTIONS` and the address.
    :raises BadConfiguration: the address cannot be used, or the server refuses user, password or database.
    :raises Unreachable: nobody answers there.
    """
    driver = _psycopg(setting)
    address = checked(text, setting)
    try:
        given = driver.conninfo.conninfo_to_dict(address.replace(SCHEME, "postgresql", 1))
    except driver.ProgrammingError:
        # Its text holds a part of the address.
        raise BadConfiguration(
            f"{setting} is a PostgreSQL address that cannot be read", "see PostgreSQL's documentation of addresses"
        ) from None
    with understood(f"connecting to {where(address)}"):
        made: psycopg.Connection[Any] = driver.connect(autocommit=True, **{**OPTIONS, **given, **options})
        return made


@contextmanager
def understood(doing: str) -> Iterator[None]:
    """Errors of PostgreSQL in our words, where they have a known meaning."""
    try:
        yield
    except Exception as cause:
        known = classify(cause)
        if known is None or known is cause:
            raise
        raise type(known)(f"{doing}: {known.found}", known.advice) from cause


def own_after_fork(engine: Engine) -> None:
    """Let forked children open connections of their own: two processes on one would read each other's answers."""
    _engines.add(engine)


def _leave_to_parent() -> None:
    for engine in list(_engines):
        engine.dispose(close=False)


os.register_at_fork(after_in_child=_leave_to_parent)


def _psycopg(setting: str) -> Any:
    try:
        import psycopg
        import psycopg.conninfo
    except ImportError as cause:
        raise BadConfiguration(f"{setting} names a PostgreSQL: {cause}", "install airloop[postgres]") from cause
    return psycopg
