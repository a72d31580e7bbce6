"""
Announcements of attempts as rows of the database in which locks are: for processes on several machines.

A row names the lock that its attempt holds; who looks asks the server which locks are held. Who may read the database
may read the arguments.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import cast

from airloop import postgres
from airloop.errors import AirloopError
from airloop.frame.running import Check, Running
from airloop.locks import HeldInPostgres, PostgresLocks, lock_key

log = logging.getLogger("airloop.step")

DECIDING = "deciding"
CREATE = (
    "CREATE TABLE IF NOT EXISTS airloop_running (attempt text PRIMARY KEY, lock bigint NOT NULL,"
    " started_at timestamptz NOT NULL DEFAULT clock_timestamp(), arguments text NOT NULL)"
)
PUT = (
    "INSERT INTO airloop_running (attempt, lock, arguments) VALUES (%s, %s, %s) ON CONFLICT (attempt)"
    " DO UPDATE SET lock = EXCLUDED.lock, started_at = clock_timestamp(), arguments = EXCLUDED.arguments"
)
# A server that was restarted has forgotten its locks: an attempt from before counts as alive for a day.
ATTEMPTS = """
    SELECT attempt, extract(epoch FROM statement_timestamp() - started_at)::float8, arguments,
           lock IN (SELECT (classid::bigint << 32) | objid::bigint
                    FROM pg_locks JOIN pg_database ON pg_database.oid = pg_locks.database
                    WHERE locktype = 'advisory' AND objsubid = 1 AND granted AND datname = current_database())
           OR started_at BETWEEN clock_timestamp() - interval '1 day' AND pg_postmaster_start_time()
    FROM airloop_running ORDER BY attempt
"""


class Rows:
    """Announcements in a database."""

    def __init__(self, locks: PostgresLocks) -> None:
        self._locks = locks

    def put(self, attempt: str, arguments: str) -> Callable[[], None]:
        from psycopg.errors import UndefinedTable

        held = cast(HeldInPostgres, self._locks.take(f"running/{attempt}"))
        try:
            with postgres.understood("announcing the attempt"):
                try:
                    held.connection.execute(PUT, (attempt, held.key, arguments))
                except UndefinedTable:
                    # The first processes come at once: only one of them creates.
                    with self._locks.hold("catalog"):
                        held.connection.execute(CREATE)
                    held.connection.execute(PUT, (attempt, held.key, arguments))
        except BaseException:
            held.release()
            raise
        # Who looks takes an attempt without its lock for dead, and removes what it has not committed.
        held.needed()
        return lambda: self._take_down(held, attempt)

    def _take_down(self, held: HeldInPostgres, attempt: str) -> None:
        try:
            with postgres.understood("the attempt's end"):
                # What ended while upkeep is at work may have published a manifest that upkeep did not read.
                query = "SELECT pg_try_advisory_lock_shared(%s)"
                found = held.connection.execute(query, (lock_key(held.schema, DECIDING),)).fetchone()
                if found and found[0]:
                    held.connection.execute("DELETE FROM airloop_running WHERE attempt = %s", (attempt,))
        except AirloopError as error:
            # How the attempt ended is not decided here, and upkeep removes what is left of it.
            log.warning("the attempt stays announced: %s", error)
        finally:
            held.release()

    def attempts(self) -> list[Running]:
        from psycopg.errors import UndefinedTable

        with closing(self._locks.connect()) as connection, postgres.understood("looking who runs"):
            try:
                found = connection.execute(ATTEMPTS).fetchall()
                # Ages, not times: the server's clock need not be ours.
                now = time.time()
                return [Running(attempt, now - age_s, *rest) for attempt, age_s, *rest in found]
            except UndefinedTable:
                return []

    def remove(self, attempt: str) -> None:
        with (
            closing(self._locks.connect()) as connection,
            postgres.understood("removing what ended"),
        ):
            connection.execute("DELETE FROM airloop_running WHERE attempt = %s", (attempt,))

    @contextmanager
    def deciding(self) -> Iterator[Check]:
        with self._locks.hold(DECIDING) as held:
            yield held.check
