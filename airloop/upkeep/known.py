"""
Which tables this state has had, so that files of one that was dropped are known as ours, and since when it is gone.

A drop leaves no time: it counts from the first gc that misses the table. With a SQLite catalog the lock files of
tables, below ``AIRLOOP_HOME/locks/tables``, say which there were, and a note beside one says since when it is gone.
With a catalog on PostgreSQL, where locks leave no files, gc keeps a list in that database: it knows a dropped table if
some gc saw it before.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import closing
from pathlib import Path
from typing import Protocol

from airloop import postgres
from airloop.config import Config
from airloop.warehouse.refs import valid_name

SETTING = "AIRLOOP_CATALOG"
CREATE = "CREATE TABLE IF NOT EXISTS airloop_tables (name text PRIMARY KEY, place text NOT NULL, gone_at timestamptz)"
SEEN = (
    "INSERT INTO airloop_tables (name, place) VALUES (%s, %s)"
    " ON CONFLICT (name) DO UPDATE SET place = EXCLUDED.place, gone_at = NULL"
)
MISSED = "UPDATE airloop_tables SET gone_at = coalesce(gone_at, clock_timestamp()) WHERE name = ANY(%s)"
BACK = "UPDATE airloop_tables SET gone_at = NULL WHERE gone_at IS NOT NULL AND name <> ALL(%s)"


class Known(Protocol):
    """Tables that this state has had."""

    def places(self) -> dict[str, str]:
        """Where the files of each table are, or were, by its name; those that are there may be among them."""
        ...

    def gone_for_s(self, name: str, now: float) -> float:
        """
        Seconds since a gc first missed a table; 0 if none did.

        :param now: seconds since 1970.
        """
        ...

    def note(self, there: Mapping[str, str], gone: Collection[str]) -> None:
        """
        Remember what a gc saw.

        :param there: places by name of the tables that are there.
        :param gone: names of those that are not, and of which there are files; no others are remembered as gone.
        """
        ...


def known_tables(config: Config) -> Known:
    """Of a configuration."""
    return _Rows(config.catalog) if postgres.is_address(config.catalog) else _Files(config)


class _Files:
    def __init__(self, config: Config) -> None:
        self._folder = config.home / "locks" / "tables"
        self._root = str(config.warehouse)

    def places(self) -> dict[str, str]:
        names = (path.name.removesuffix(".lock") for path in sorted(self._folder.glob("*.lock")))
        return {name: f"{self._root}/{name.replace('.', '/')}" for name in names if valid_name(name)}

    def gone_for_s(self, name: str, now: float) -> float:
        note = self._note(name)
        return now - note.stat().st_mtime if note.exists() else 0.0

    def note(self, there: Mapping[str, str], gone: Collection[str]) -> None:
        for note in self._folder.glob("*.dropped"):
            if note.name.removesuffix(".dropped") not in gone:
                # It is there again, or nothing is left of it.
                note.unlink(missing_ok=True)
        for name in gone:
            if not self._note(name).exists():
                self._note(name).touch()

    def _note(self, name: str) -> Path:
        return self._folder / f"{name}.dropped"


class _Rows:
    def __init__(self, address: str) -> None:
        self._address = address

    def places(self) -> dict[str, str]:
        return {name: place for name, (place, _) in self._rows().items()}

    def gone_for_s(self, name: str, now: float) -> float:
        return self._rows().get(name, ("", 0.0))[1]

    def note(self, there: Mapping[str, str], gone: Collection[str]) -> None:
        with (
            closing(postgres.connect(self._address, SETTING)) as connection,
            postgres.understood("noting which tables there are"),
            connection.transaction(),
        ):
            connection.execute(CREATE)
            with connection.cursor() as cursor:
                cursor.executemany(SEEN, sorted(there.items()))
            connection.execute(BACK, (sorted(gone),))
            connection.execute(MISSED, (sorted(gone),))

    def _rows(self) -> dict[str, tuple[str, float]]:
        """Place and seconds since it is gone, by name; an age, for the server's clock need not be ours."""
        from psycopg.errors import UndefinedTable

        query = (
            "SELECT name, place, coalesce(extract(epoch FROM clock_timestamp() - gone_at), 0)::float8"
            " FROM airloop_tables ORDER BY name"
        )
        with closing(postgres.connect(self._address, SETTING)) as connection, postgres.understood("looking for tables"):
            try:
                return {name: (place, age_s) for name, place, age_s in connection.execute(query).fetchall()}
            except UndefinedTable:
                return {}
