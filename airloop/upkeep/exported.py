"""The catalog in PostgreSQL as a SQLite file, and back: what lies in a backup is the same wherever the catalog is."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from airloop import postgres
from airloop.config import Config, without_password
from airloop.errors import BadArgument
from airloop.warehouse.store import open_catalog

SETTING = "AIRLOOP_CATALOG"
TABLES = ("iceberg_namespace_properties", "iceberg_tables")
"""PyIceberg's. Announcements of attempts are of this moment only; what gc knows of tables it finds out again."""
WHERE_THERE = {
    "iceberg_namespace_properties": "ON CONFLICT (catalog_name, namespace, property_key)"
    " DO UPDATE SET property_value = EXCLUDED.property_value"
}
"""What becomes of a row that is there already."""
ANY_TABLE = "SELECT 1 FROM iceberg_tables LIMIT 1"


def export_catalog(config: Config, folder: Path) -> Path:
    """
    The catalog as of one moment, in a SQLite file below a folder.

    :raises Unreachable: the server does not answer.
    """
    file = folder / "catalog.db"
    with (
        closing(open_catalog(replace(config, catalog=f"sqlite:///{file}", home=folder))),
        closing(sqlite3.connect(file)) as target,
        closing(postgres.connect(config.catalog, SETTING)) as source,
        postgres.understood("copying the catalog"),
    ):
        # Every table as of the first statement.
        source.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        for table in TABLES:
            columns, rows = _rows(source.execute(f"SELECT * FROM {table}"))
            target.executemany(_insert(table, columns, "?"), rows)
        source.execute("COMMIT")
        target.commit()
    return file


def import_catalog(config: Config, file: Path) -> None:
    """
    Fill the empty catalog of a configuration from a SQLite file, in one transaction.

    Namespaces that are there, of tables that were dropped, stay; of one that comes too, what comes counts.

    :raises BadArgument: the catalog names tables.
    :raises Unreachable: the server does not answer.
    """
    with (
        # It makes the tables.
        closing(open_catalog(config)),
        closing(sqlite3.connect(file)) as source,
        closing(postgres.connect(config.catalog, SETTING)) as target,
        postgres.understood("filling the catalog"),
        target.transaction(),
    ):
        target.execute("LOCK TABLE iceberg_tables IN SHARE ROW EXCLUSIVE MODE")
        if target.execute(ANY_TABLE).fetchone() is not None:
            raise not_empty(config)
        for table in TABLES:
            columns, rows = _rows(source.execute(f"SELECT * FROM {table}"))
            with target.cursor() as cursor:
                cursor.executemany(f"{_insert(table, columns, '%s')} {WHERE_THERE.get(table, '')}", list(rows))


def is_empty(config: Config) -> bool:
    """Whether a catalog in PostgreSQL names no table. :raises Unreachable: the server does not answer."""
    with closing(postgres.connect(config.catalog, SETTING)) as connection, postgres.understood("looking for tables"):
        there = connection.execute("SELECT to_regclass('iceberg_tables')").fetchone()
        if there is None or there[0] is None:
            return True
        return connection.execute(ANY_TABLE).fetchone() is None


def not_empty(config: Config) -> BadArgument:
    """What is said of a catalog that is to be filled and names tables."""
    return BadArgument(f"the catalog {without_password(config.catalog)} names tables", "name a database that is empty")


def _rows(found: Any) -> tuple[list[str], Iterator[tuple[Any, ...]]]:
    return [column[0] for column in found.description], iter(found)


def _insert(table: str, columns: list[str], mark: str) -> str:
    return f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({', '.join(mark for _ in columns)})"
