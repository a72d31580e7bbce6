"""Open the catalog and give the errors of its surroundings a name."""

from __future__ import annotations

import os
import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airloop import postgres
from airloop.config import Config, S3Address, is_rest
from airloop.errors import AirloopError, BadConfiguration, OutOfMemory, StoreFull, StoreReadOnly, classify
from airloop.locks import locks_of
from airloop.warehouse.home import check_home, write_format
from airloop.warehouse.mounts import refuse_network

if TYPE_CHECKING:
    import psycopg
    from pyiceberg.catalog.rest import RestCatalog
    from pyiceberg.catalog.sql import SqlCatalog

BUSY_S = 30
"""Seconds that a writer waits for another one's SQLite transaction."""


def sqlite_path(address: str) -> Path | None:
    """The file of a SQLite address, or None for another engine."""
    prefix = "sqlite:///"
    return Path(address.removeprefix(prefix)) if address.startswith(prefix) else None


def open_catalog(config: Config) -> SqlCatalog | RestCatalog:
    """
    The Iceberg catalog that a configuration names; its folders and tables are created at first use.

    A bucket is not asked for: that comes with the first file.

    :raises BadConfiguration: SQLite on a network file system, or an address that cannot be used.
    :raises StoreReadOnly: the folders cannot be made or written.
    :raises Unreachable: a PostgreSQL does not answer.
    """
    file = sqlite_path(config.catalog)
    address = config.catalog
    with storing("opening the catalog"):
        folders = [config.home / "spill", config.home / "locks" / "tables"]
        if isinstance(config.warehouse, Path):
            folders.insert(0, config.warehouse)
        for folder in folders:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except (FileExistsError, NotADirectoryError) as cause:
                raise BadConfiguration(
                    f"{folder} cannot be a folder: {cause}", "AIRLOOP_HOME and AIRLOOP_WAREHOUSE name folders"
                ) from cause
        check_home(config.home)
        sweep_spill(config.home / "spill")
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            refuse_network(file, "the catalog")
            for place in (file.parent, file):
                # Even to read, SQLite has to write beside its file.
                if place.exists() and not os.access(place, os.W_OK):
                    raise StoreReadOnly(
                        f"the catalog's {place} cannot be written",
                        "give the worker's user write access to AIRLOOP_HOME",
                    )
        if is_rest(config.catalog):
            from airloop.warehouse import rest

            # Opening says that locks are missing, not the first commit.
            locks_of(config)
            return rest.Catalog("airloop", **rest.properties(config))
        if postgres.is_address(config.catalog):
            return _on_postgres(config)
        from sqlalchemy import URL
        from sqlalchemy.exc import ArgumentError, NoSuchModuleError

        if file is not None:
            # Rendered anew: the configured address may hold a path with characters that mean something in a URL.
            url = URL.create("sqlite", database=str(file), query={"timeout": str(BUSY_S)})
            address = url.render_as_string(hide_password=False)

        try:
            if file is None or _is_ready(file):
                return _catalog(config, address)
            # The first processes come at once: only one of them creates.
            with locks_of(config).turn("catalog", timeout_s=BUSY_S):
                if not file.exists():
                    write_format(config.home)
                _prepare(file)
                return _catalog(config, address)
        except (ArgumentError, NoSuchModuleError) as cause:
            raise BadConfiguration("AIRLOOP_CATALOG is not an address that SQLAlchemy can use", str(cause)) from cause


def sweep_spill(folder: Path, *, older_than_s: float = 86_400) -> None:
    """
    Remove what DuckDB spilled in processes that were killed.

    :param older_than_s: seconds since anything in it was written; a process in a container of its own, whose id means
        nothing here, keeps its files that way.
    """
    for left in folder.glob("duckdb-*"):
        pid = left.name.split("-")[1]
        if pid.isdigit() and Path(f"/proc/{pid}").exists():
            continue
        # Another process may sweep too.
        with suppress(FileNotFoundError):
            newest = max(p.stat().st_mtime for p in (left, *left.iterdir()))
            if time.time() - newest > older_than_s:
                shutil.rmtree(left)


def _on_postgres(config: Config) -> SqlCatalog:
    setting = "AIRLOOP_CATALOG"
    address = postgres.for_sqlalchemy(config.catalog, setting)
    with closing(postgres.connect(config.catalog, setting)) as connection:
        ready = _tables_are_there(connection)
    # The first processes come at once: only one of them creates.
    with nullcontext() if ready else locks_of(config).hold("catalog", timeout_s=BUSY_S):
        if not ready:
            write_format(config.home)
        # A connection that the server has closed since its last use is replaced by a new one.
        catalog = _catalog(config, address, pool_pre_ping="true")
    postgres.own_after_fork(catalog.engine)
    return catalog


def _tables_are_there(connection: psycopg.Connection[Any]) -> bool:
    """
    Whether the catalog's tables are in the database, all of them in the schema by which locks are told apart.

    :raises BadConfiguration: they are in another one.
    """
    found = connection.execute(
        "SELECT current_schema(), nspname, relname"
        " FROM unnest(ARRAY['iceberg_tables', 'iceberg_namespace_properties']) AS name"
        " JOIN pg_class ON pg_class.oid = to_regclass(name) JOIN pg_namespace ON pg_namespace.oid = relnamespace"
    ).fetchall()
    for current, schema, name in found:
        if schema != current:
            raise BadConfiguration(
                f"AIRLOOP_CATALOG: its table {name} is in the schema {schema}, and search_path begins with {current}",
                f"let search_path begin with the catalog's schema: …/database?options=-csearch_path%3D{schema}",
            )
    return len(found) == 2


def _catalog(config: Config, address: str, **options: str) -> SqlCatalog:
    from airloop.warehouse.iceberg import Catalog

    if isinstance(config.warehouse, S3Address):
        place, files = str(config.warehouse), "airloop.warehouse.s3io.BucketFileIO"
    else:
        place, files = f"file://{config.warehouse}", "airloop.warehouse.localio.LocalFileIO"
    return Catalog("airloop", **{"uri": address, "warehouse": place, "py-io-impl": files, **options})


def _is_ready(file: Path) -> bool:
    """Whether the file is a catalog in WAL mode already."""
    if not file.exists() or not file.stat().st_size:
        return False
    connection = sqlite3.connect(f"file:{_quoted(file)}?mode=ro", uri=True, timeout=BUSY_S)
    try:
        tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master")}
        wal = connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
        return wal and {"iceberg_tables", "iceberg_namespace_properties"} <= tables
    finally:
        connection.close()


def _prepare(file: Path) -> None:
    connection = sqlite3.connect(file, timeout=BUSY_S)
    try:
        # Readers go on while a writer writes; the mode stays with the file.
        connection.execute("PRAGMA journal_mode=WAL")
    finally:
        connection.close()


def _quoted(file: Path) -> str:
    from urllib.parse import quote

    return quote(str(file))


@contextmanager
def storing(doing: str) -> Iterator[None]:
    """Let the block's foreign errors come out as Airloop's where they have a known meaning."""
    try:
        yield
    except AirloopError:
        raise
    except Exception as cause:
        known = _of_duckdb(cause) or classify(cause)
        if known is None:
            raise
        raise type(known)(f"{doing}: {known.found}", known.advice) from cause


def _of_duckdb(cause: Exception) -> AirloopError | None:
    # DuckDB's errors carry no errno, only text.
    if not type(cause).__module__.startswith(("duckdb", "_duckdb")):
        return None
    text = str(cause)
    if "No space left" in text or "max_temp_directory_size" in text:
        return StoreFull(f"DuckDB: {text}", "free space or move AIRLOOP_HOME, then run the task again")
    if "Read-only file system" in text or "Permission denied" in text:
        return StoreReadOnly(f"DuckDB: {text}", "give the worker's user write access to AIRLOOP_HOME")
    if type(cause).__name__ == "OutOfMemoryException":
        return OutOfMemory(f"DuckDB: {text}", "raise AIRLOOP_MEMORY_MB or lower AIRLOOP_ROWS_PER_CHUNK")
    return None
