"""
What a commit changes: which files come, which go, worked out against one snapshot.

Copy-on-write: a file with changed rows is rewritten without them, all others stay. Which rows those are, DuckDB
finds as positions (file, row number), so that no key ever has to be held in Python.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyiceberg import types as ice
from pyiceberg.manifest import DataFile
from pyiceberg.schema import Schema
from pyiceberg.table import Table

from airloop.config import Config
from airloop.errors import BadInput, DuplicateKeys
from airloop.warehouse.ahead import ahead
from airloop.warehouse.distinct import all_distinct
from airloop.warehouse.files import DataFileWriter
from airloop.warehouse.localio import local_path
from airloop.warehouse.read import LiveFile, as_schema, execute, live_files, select, source
from airloop.warehouse.schema import quoted, to_arrow


@dataclass
class Plan:
    """Files to add and to remove in one snapshot, and the rows that this adds, updates and deletes."""

    add: list[DataFile] = field(default_factory=list)
    remove: list[DataFile] = field(default_factory=list)
    added: int = 0
    updated: int = 0
    deleted: int = 0
    rewritten: DataFileWriter | None = None
    """Writer of those added files that are of no use against another snapshot."""

    sent: bool = False
    """Whether it went to the catalog and is not known to have been refused."""

    @property
    def changes(self) -> bool:
        return bool(self.add or self.remove)


@dataclass(frozen=True)
class Staged:
    """Rows of a commit, written as data files that no snapshot names yet."""

    files: list[DataFile]
    rows: int

    @property
    def paths(self) -> list[str]:
        return [local_path(f.file_path) for f in self.files]


def refuse_duplicates(
    connection: duckdb.DuckDBPyConnection, name: str, staged: Staged, schema: Schema, on: Sequence[str]
) -> None:
    """:raises DuplicateKeys: two of the rows have the same key."""
    if not on or not staged.rows:
        return
    keys = ", ".join(f"c{schema.find_field(column).field_id}" for column in on)
    if all_distinct(connection, f"hash({keys})", f"FROM {source(staged.paths, schema)}", staged.rows):
        return
    found = execute(
        connection,
        f"SELECT count(*), sum(n), first(k ORDER BY n DESC, k), first(n ORDER BY n DESC, k) FROM "
        f"(SELECT row({keys}) AS k, count(*) AS n FROM {source(staged.paths, schema)} GROUP BY {keys} HAVING n > 1)",
    ).fetchone()
    assert found is not None
    count, total, first, most = found
    if count:
        values = first.values() if isinstance(first, dict) else first
        shown = ", ".join(f"{column}={value}" for column, value in zip(on, values, strict=True))
        raise DuplicateKeys(
            f"{total:,} of {staged.rows:,} rows for {name} share {count:,} keys ({', '.join(on)}); "
            f"first: {shown}, {most} times",
            "keep one row of each key",
        )


def plan_append(staged: Staged) -> Plan:
    return Plan(add=list(staged.files), added=staged.rows)


def plan_upsert(
    connection: duckdb.DuckDBPyConnection,
    config: Config,
    table: Table,
    snapshot: int,
    staged: Staged,
    on: Sequence[str],
) -> Plan:
    """Bring staged rows in by key: new ones are added, differing ones replace, identical ones leave all as it is."""
    schema = table.schema()
    files = live_files(table, snapshot)
    keys = [schema.find_field(column) for column in on]
    candidates = _overlapping(connection, schema, files, staged, keys)
    if not candidates:
        return plan_append(staged)
    _match(connection, schema, candidates, staged, keys)
    found = execute(
        connection, "SELECT count(DISTINCT (i_file, i_row)), count(DISTINCT (i_file, i_row)) FILTER (differs) FROM pair"
    ).fetchone()
    assert found is not None
    matched, updated = found
    if matched == updated and not updated:
        return plan_append(staged)
    if not updated and matched == staged.rows:
        return Plan()
    plan = Plan(added=staged.rows - matched, updated=updated)
    writer = plan.rewritten = DataFileWriter(table, rows_per_file=config.rows_per_chunk, part=0)
    try:
        for file in candidates:
            gone = _positions(connection, "SELECT e_row FROM pair WHERE differs AND e_file = ?", file.path)
            _rewrite(connection, schema, file, gone, plan)
        if matched == updated:
            plan.add = [*writer.close(), *staged.files]
            return plan
        # Identical rows stay where they are: leave them out of what is added.
        for new in staged.files:
            path = local_path(new.file_path)
            same = _positions(connection, "SELECT DISTINCT i_row FROM pair WHERE NOT differs AND i_file = ?", path)
            if len(same) == new.record_count:
                continue
            for chunk in ahead(_rows_without(connection, schema, path, same)):
                writer.write(chunk)
        plan.add = writer.close()
    except BaseException:
        writer.abort()
        raise
    return plan


def plan_replace(
    connection: duckdb.DuckDBPyConnection,
    config: Config,
    table: Table,
    snapshot: int,
    staged: Staged,
    where: str | None,
) -> Plan:
    """
    Put staged rows in the place of all rows, or of those that ``where`` holds for.

    If both are the same rows, whatever their order, nothing changes: who reads the table need not run again.
    """
    schema = table.schema()
    plan = Plan(added=staged.rows)
    files = live_files(table, snapshot)
    if where is None:
        if _same_rows(connection, schema, files, staged, where):
            return Plan()
        for file in files:
            plan.remove.append(file.data_file)
            plan.deleted += file.rows
        plan.add = list(staged.files)
        return plan
    if staged.files:
        found = execute(
            connection, f"SELECT count(*) FROM ({select(staged.paths, schema)}) WHERE ({where}) IS NOT TRUE"
        ).fetchone()
        if found is not None and found[0]:
            raise BadInput(
                f"{found[0]:,} of {staged.rows:,} rows for {'.'.join(table.name())} are not among those to replace, "
                f"WHERE {where}",
                "a second run would leave them and add them again; widen the condition or drop these rows",
            )
    if _same_rows(connection, schema, files, staged, where):
        return Plan()
    _remove_where(connection, config, table, files, where, plan)
    plan.add += staged.files
    return plan


def plan_delete(connection: duckdb.DuckDBPyConnection, config: Config, table: Table, snapshot: int, where: str) -> Plan:
    """Remove the rows that ``where`` holds for."""
    plan = Plan()
    _remove_where(connection, config, table, live_files(table, snapshot), where, plan)
    return plan


def _same_rows(
    connection: duckdb.DuckDBPyConnection,
    schema: Schema,
    files: Sequence[LiveFile],
    staged: Staged,
    where: str | None,
) -> bool:
    """Whether staged rows are those to replace, but for columns with a leading underscore."""
    condition = f"WHERE ({where})" if where is not None else ""
    compared = [quoted(f.name) for f in schema.fields if not f.name.startswith("_")]
    if not compared:
        return False
    old = f"(SELECT {', '.join(compared)} FROM ({select(files, schema)}) {condition})"
    new = f"(SELECT {', '.join(compared)} FROM ({select(staged.paths, schema)}))"
    found = execute(connection, f"SELECT count(*) FROM {old}").fetchone()
    if found is None or found[0] != staged.rows:
        return False
    # A sum of hashes tells most differences in one cheap pass; only rows themselves prove that there is none.
    total = f"SELECT sum(hash({', '.join(compared)})::HUGEINT) FROM"
    if execute(connection, f"{total} {old}").fetchone() != execute(connection, f"{total} {new}").fetchone():
        return False
    found = execute(connection, f"SELECT count(*) FROM (FROM {new} EXCEPT ALL FROM {old})").fetchone()
    return found is not None and not found[0]


_FILE, _POSITION = '"#file"', '"#position"'
"""Names that no column of a table has; raw tables have a ``_row`` of their own."""


def _remove_where(
    connection: duckdb.DuckDBPyConnection,
    config: Config,
    table: Table,
    files: Sequence[LiveFile],
    where: str,
    plan: Plan,
) -> None:
    schema = table.schema()
    # Bind the condition even if there is no row to test: wrong SQL is wrong on an empty table too.
    counted = execute(
        connection,
        f"SELECT {_FILE}, count(*) FROM ({select(files, schema, extra=f'filename AS {_FILE}')}) "
        f"WHERE ({where}) GROUP BY {_FILE}",
    ).fetchall()
    affected = dict(counted)
    writer = plan.rewritten = DataFileWriter(table, rows_per_file=config.rows_per_chunk, part=0)
    try:
        for file in files:
            count = affected.get(file.path, 0)
            plan.deleted += count
            if count == file.rows:
                plan.remove.append(file.data_file)
            elif count:
                numbered = select([file], schema, extra=f"file_row_number AS {_POSITION}")
                query = f"SELECT {_POSITION} FROM ({numbered}) WHERE ({where})"
                _rewrite(connection, schema, file, _positions(connection, query), plan)
        plan.add += writer.close()
    except BaseException:
        writer.abort()
        raise


def _overlapping(
    connection: duckdb.DuckDBPyConnection,
    schema: Schema,
    files: Sequence[LiveFile],
    staged: Staged,
    keys: Sequence[ice.NestedField],
) -> list[LiveFile]:
    """Files that may hold one of the staged keys, by the least and greatest value of each key column."""
    if not files or not staged.rows:
        return []
    ranges: list[tuple[ice.NestedField, object, object]] = []
    for key in keys:
        # Bounds say nothing of NaN, and are of another kind for these.
        if not isinstance(key.field_type, _RANGED):
            continue
        column = f"c{key.field_id}"
        number = _NUMBERS.get(type(key.field_type), "{}")
        found = execute(
            connection,
            f"SELECT {number.format(f'min({column})')}, {number.format(f'max({column})')}, "
            f"count(*) FILTER ({column} IS NULL) FROM {source(staged.paths, schema)}",
        ).fetchone()
        assert found is not None
        low, high, nulls = found
        if not nulls and low is not None:
            ranges.append((key, low, high))
    return [f for f in files if all(_may_hold(f, schema, key, low, high) for key, low, high in ranges)]


_RANGED = (
    ice.IntegerType, ice.LongType, ice.DateType, ice.TimestamptzType, ice.StringType,
)  # fmt: skip
_NUMBERS = {ice.DateType: "{} - DATE '1970-01-01'", ice.TimestamptzType: "epoch_us({})"}
"""Iceberg's bounds of dates and times are numbers since 1970."""


def _may_hold(file: LiveFile, schema: Schema, key: ice.NestedField, low: object, high: object) -> bool:
    bounds = file.bounds(schema, key.field_id)
    if bounds is None:
        return True
    least, greatest = bounds
    return not (high < least or low > greatest)  # type: ignore[operator]


def _match(
    connection: duckdb.DuckDBPyConnection,
    schema: Schema,
    files: Sequence[LiveFile],
    staged: Staged,
    keys: Sequence[ice.NestedField],
) -> None:
    """Make table ``pair``: which existing row has the key of which staged row, and whether the two differ."""
    ids = {key.field_id for key in keys}
    same_key = " AND ".join(f"e.c{k} IS NOT DISTINCT FROM i.c{k}" for k in sorted(ids))
    compared = [f.field_id for f in schema.fields if f.field_id not in ids and not f.name.startswith("_")]
    differs = " OR ".join(f"e.c{c} IS DISTINCT FROM i.c{c}" for c in compared) or "false"
    execute(
        connection,
        f"CREATE OR REPLACE TEMP TABLE pair AS "
        f"SELECT e.filename AS e_file, e.file_row_number AS e_row, i.filename AS i_file, i.file_row_number AS i_row, "
        f"({differs}) AS differs FROM {source(files, schema)} e JOIN {source(staged.paths, schema)} i ON {same_key}",
    )
    # A key that the table holds twice, by an append, is mended: all of its rows give way to the one that came.
    execute(
        connection,
        "UPDATE pair SET differs = true FROM "
        "(SELECT i_file, i_row FROM pair GROUP BY ALL HAVING count(*) > 1) twice "
        "WHERE pair.i_file = twice.i_file AND pair.i_row = twice.i_row",
    )


def _positions(connection: duckdb.DuckDBPyConnection, query: str, *parameters: str) -> NDArray[np.int64]:
    found = execute(connection, query, parameters).fetchnumpy()
    return np.sort(np.asarray(next(iter(found.values())), dtype=np.int64))


def _rewrite(
    connection: duckdb.DuckDBPyConnection, schema: Schema, file: LiveFile, gone: NDArray[np.int64], plan: Plan
) -> None:
    """Put a file's rows, but for those at the positions ``gone``, into new files."""
    if not len(gone):
        return
    assert plan.rewritten is not None
    plan.remove.append(file.data_file)
    if len(gone) < file.rows:
        for chunk in ahead(_rows_without(connection, schema, file.path, gone)):
            plan.rewritten.write(chunk)


def _rows_without(
    connection: duckdb.DuckDBPyConnection, schema: Schema, path: str, gone: NDArray[np.int64]
) -> Iterator[pa.Table]:
    """A file's rows in their order, without those at the positions ``gone``."""
    arrow = to_arrow(schema)
    start = 0
    for batch in execute(connection, select([path], schema)).to_arrow_reader(ROWS_PER_READ):
        keep = np.ones(batch.num_rows, dtype=bool)
        inside = gone[np.searchsorted(gone, start) : np.searchsorted(gone, start + batch.num_rows)]
        keep[inside - start] = False
        start += batch.num_rows
        yield pa.Table.from_batches([as_schema(batch, arrow)]).filter(pa.array(keep))


ROWS_PER_READ = 262_144
