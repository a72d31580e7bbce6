"""
Folders of tables that were dropped: no catalog names their files any more, whoever dropped the table.

Two signs tell that a folder was ours: its namespace is in the catalog, and this state has had a table of this name
(:mod:`.known`). A catalog that is empty, or another one, because a shell lacks a setting, makes nothing ours.
"""

from __future__ import annotations

import glob
from collections.abc import Mapping
from contextlib import closing
from typing import TYPE_CHECKING

from airloop.faults import point
from airloop.upkeep.forget import Found, is_broken
from airloop.upkeep.known import known_tables
from airloop.upkeep.subject import Subject, holding
from airloop.warehouse import read, tree
from airloop.warehouse.expire import NOTE
from airloop.warehouse.store import open_catalog

if TYPE_CHECKING:
    import duckdb

    from airloop.warehouse.catalog import Warehouse


def dropped(warehouse: Warehouse) -> dict[str, str]:
    """Folders with files, by the name of a table that this state has had and that the catalog has no more."""
    config = warehouse.config
    with closing(open_catalog(config)) as catalog:
        namespaces = {".".join(namespace) for namespace in catalog.list_namespaces()}
    names = warehouse.tables()
    places = tree.real_places(warehouse)
    root = tree.real(str(config.warehouse))
    found = {}
    for name, place in known_tables(config).places().items():
        real = tree.real(place)
        if name in names or name.partition(".")[0] not in namespaces:
            continue
        if real == root or not tree.is_within(real, root):
            continue
        if any(tree.is_within(real, other) or tree.is_within(other, real) for other in places):
            continue
        if next(tree.of_tables(config, place), None) is not None:
            found[name] = place
    return found


def strays(warehouse: Warehouse) -> list[str]:
    """Data files below the warehouse's folder that are in no folder of a table, be it dropped."""
    places = tree.real_places(warehouse) | {tree.real(place) for place in dropped(warehouse).values()}
    root = tree.real(str(warehouse.config.warehouse))
    files = (file.path for file in tree.of_tables(warehouse.config, root) if file.path.endswith(".parquet"))
    return sorted(path for path in files if not any(tree.is_within(path, place) for place in places))


def find_dropped(warehouse: Warehouse, name: str, place: str, subject: Subject, renamed: Mapping[str, str]) -> Found:
    """Files of a dropped table that hold a subject's rows, and with them those that describe files."""
    found = Found(name)
    with read.connect(warehouse.config) as connection:
        there = sorted(file.path for file in tree.of_tables(warehouse.config, place))
        for path in (p for p in there if p.endswith(".parquet")):
            if is_broken(connection, path) or _holds(connection, path, subject, renamed):
                found.files.append(path)
    if found.files:
        # Manifests keep least and greatest values, and nobody reads them now.
        found.unneeded = [path for path in there if path.endswith(".avro") or NOTE.search(path)]
    return found


def forget_dropped(found: Found) -> None:
    """Take the files away; what describes them first, so that an erasure that is killed finds the others."""
    tree.remove(found.unneeded)
    point("erase:dropped")
    tree.remove(found.files)


def holds(warehouse: Warehouse, path: str, subject: Subject) -> bool:
    """Whether a data file holds a subject's rows, or one of the values under another name."""
    with read.connect(warehouse.config) as connection:
        if is_broken(connection, path):
            return False
        query = _query(path)
        values = holding(connection, query, _types(connection, query), subject.texts())
        return bool(values) or _holds(connection, path, subject, {})


def _holds(connection: duckdb.DuckDBPyConnection, path: str, subject: Subject, renamed: Mapping[str, str]) -> bool:
    query = _query(path)
    rows = subject.rows(_types(connection, query), renamed)
    if rows is None:
        return False
    return bool(read.execute(connection, f"SELECT 1 FROM ({query}) WHERE {rows.where} LIMIT 1").fetchall())


def _query(path: str) -> str:
    return f"SELECT * FROM read_parquet({read.literal(glob.escape(path))}, hive_partitioning = false)"


def _types(connection: duckdb.DuckDBPyConnection, query: str) -> dict[str, str]:
    return {name: type_ for name, type_, *_ in connection.execute(f"DESCRIBE {query}").fetchall()}
