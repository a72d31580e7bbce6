"""
Folders of tables that were dropped: no catalog names their files any more, whoever dropped the table.

Two signs tell that a folder was ours: its namespace is in the catalog, and this home has written a table of this name
(its lock is there). A catalog that is empty, or another one, because a shell lacks a setting, makes nothing ours.
"""

from __future__ import annotations

import glob
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from airloop.config import local_folder
from airloop.faults import point
from airloop.upkeep.forget import Found, is_broken, remove_files
from airloop.upkeep.subject import Subject, holding
from airloop.upkeep.sweep import folders_below
from airloop.warehouse import read
from airloop.warehouse.references import folder
from airloop.warehouse.refs import valid_name
from airloop.warehouse.store import open_catalog

if TYPE_CHECKING:
    import duckdb

    from airloop.warehouse.catalog import Warehouse


def dropped(warehouse: Warehouse) -> dict[str, Path]:
    """Folders with files, by the name of a table that this home has written and that the catalog has no more."""
    config = warehouse.config
    root = local_folder(config.warehouse, "airloop gc")
    with closing(open_catalog(config)) as catalog:
        namespaces = {".".join(namespace) for namespace in catalog.list_namespaces()}
    names = warehouse.tables()
    places = _places(warehouse)
    found = {}
    for lock in sorted((config.home / "locks" / "tables").glob("*.lock")):
        name = lock.name.removesuffix(".lock")
        namespace, _, table = name.partition(".")
        place = root / namespace / table
        real = place.resolve()
        if name in names or not valid_name(name) or namespace not in namespaces:
            continue
        if any(real.is_relative_to(other) or other.is_relative_to(real) for other in places):
            continue
        if next(folders_below(place), None) is not None:
            found[name] = place
    return found


def strays(warehouse: Warehouse) -> list[Path]:
    """Data files below the warehouse's folder that are in no folder of a table, be it dropped."""
    places = _places(warehouse) | {place.resolve() for place in dropped(warehouse).values()}
    root = local_folder(warehouse.config.warehouse, "airloop erase").resolve()
    files = sorted(p for p in folders_below(root) if p.suffix == ".parquet")
    return [path for path in files if not places.intersection(path.parents)]


def find_dropped(warehouse: Warehouse, name: str, place: Path, subject: Subject, renamed: Mapping[str, str]) -> Found:
    """Files of a dropped table that hold a subject's rows, and with them those that describe files."""
    found = Found(name)
    with read.connect(warehouse.config) as connection:
        for path in sorted(place.rglob("*.parquet")):
            if is_broken(connection, str(path)) or _holds(connection, path, subject, renamed):
                found.files.append(str(path))
    if found.files:
        # Manifests keep least and greatest values, and nobody reads them now.
        found.unneeded = sorted(str(path) for path in place.rglob("*.avro"))
    return found


def forget_dropped(found: Found) -> None:
    """Take the files off the disk; what describes them first, so that an erasure that is killed finds the others."""
    remove_files(found.unneeded)
    point("erase:dropped")
    remove_files(found.files)


def holds(warehouse: Warehouse, path: Path, subject: Subject) -> bool:
    """Whether a data file holds a subject's rows, or one of the values under another name."""
    with read.connect(warehouse.config) as connection:
        if is_broken(connection, str(path)):
            return False
        query = _query(path)
        values = holding(connection, query, _types(connection, query), subject.texts())
        return bool(values) or _holds(connection, path, subject, {})


def _holds(connection: duckdb.DuckDBPyConnection, path: Path, subject: Subject, renamed: Mapping[str, str]) -> bool:
    query = _query(path)
    rows = subject.rows(_types(connection, query), renamed)
    if rows is None:
        return False
    return bool(read.execute(connection, f"SELECT 1 FROM ({query}) WHERE {rows.where} LIMIT 1").fetchall())


def _query(path: Path) -> str:
    return f"SELECT * FROM read_parquet({read.literal(glob.escape(str(path)))}, hive_partitioning = false)"


def _types(connection: duckdb.DuckDBPyConnection, query: str) -> dict[str, str]:
    return {name: type_ for name, type_, *_ in connection.execute(f"DESCRIBE {query}").fetchall()}


def _places(warehouse: Warehouse) -> set[Path]:
    return {folder(warehouse.table(name)).resolve() for name in warehouse.tables()}
