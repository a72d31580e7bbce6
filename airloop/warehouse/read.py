"""
Read one snapshot: its live files, and DuckDB's SQL over them with columns found by field id.

Field ids make columns right after they were added or renamed. Delete files, which only other engines write, are
refused: to overlook one would bring deleted rows back.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa
from pyiceberg.conversions import from_bytes
from pyiceberg.manifest import DataFile, ManifestContent
from pyiceberg.schema import Schema
from pyiceberg.table import Table
from pyiceberg.types import PrimitiveType

from airloop.config import Config, S3Address
from airloop.errors import BadArgument, BadInput, NotFound
from airloop.warehouse import s3
from airloop.warehouse.localio import local_path
from airloop.warehouse.refs import SAME_ROWS
from airloop.warehouse.schema import duckdb_type, quoted, to_arrow
from airloop.warehouse.store import storing

_connections = itertools.count()


@dataclass(frozen=True, slots=True)
class LiveFile:
    """A data file of a snapshot."""

    path: str
    """Local path, or address in a bucket."""
    data_file: DataFile
    sequence: int
    """Number of the commit that brought it."""
    snapshot: int
    """Snapshot that brought it."""

    @property
    def rows(self) -> int:
        return self.data_file.record_count

    def bounds(self, schema: Schema, field_id: int) -> tuple[object, object] | None:
        """Least and greatest value of a column, perhaps cut short outwards; None if unknown or all NULL."""
        low = (self.data_file.lower_bounds or {}).get(field_id)
        high = (self.data_file.upper_bounds or {}).get(field_id)
        type_ = schema.find_type(field_id)
        if low is None or high is None or not isinstance(type_, PrimitiveType):
            return None
        return from_bytes(type_, low), from_bytes(type_, high)


def snapshot_schema(table: Table, snapshot: int) -> Schema:
    """
    Schema to read a snapshot with: the table's own for a branch's head, else the one it was written with.

    So a column that was just added or renamed is there at once, and an old snapshot stays what it was.
    """
    if not snapshot or any(ref.snapshot_id == snapshot for ref in table.metadata.refs.values()):
        return table.schema()
    found = table.metadata.snapshot_by_id(snapshot)
    if found is None:
        raise NotFound(f"{'.'.join(table.name())} has no snapshot {snapshot}", "see `airloop tables`")
    if found.schema_id is None:
        return table.schema()
    return next((s for s in table.metadata.schemas if s.schema_id == found.schema_id), table.schema())


def live_files(table: Table, snapshot: int) -> list[LiveFile]:
    """
    Data files of a snapshot, oldest commit first, in the order in which each commit wrote them.

    :param snapshot: 0 for the empty table.
    :raises NotFound: no such snapshot.
    :raises BadInput: the snapshot has delete files.
    """
    if not snapshot:
        return []
    name = ".".join(table.name())
    found = table.metadata.snapshot_by_id(snapshot)
    if found is None:
        raise NotFound(f"{name} has no snapshot {snapshot}", "see `airloop tables`")
    files = []
    for manifest in found.manifests(table.io):
        if manifest.content != ManifestContent.DATA:
            if not (manifest.has_added_files() or manifest.has_existing_files()):
                continue
            raise BadInput(
                f"{name}@{snapshot} has delete files, which Airloop does not apply",
                "rewrite the table's data files with the engine that wrote them (copy-on-write)",
            )
        for entry in manifest.fetch_manifest_entry(table.io, discard_deleted=True):
            file = entry.data_file
            found_in = entry.snapshot_id or manifest.added_snapshot_id or 0
            files.append(LiveFile(local_path(file.file_path), file, entry.sequence_number or 0, found_in))
    # Manifests are written from sets: their order means nothing.
    files.sort(key=lambda f: (f.sequence, f.path.rpartition("/")[2]))
    return files


def files_since(table: Table, old: int, new: int) -> list[LiveFile]:
    """
    Data files that snapshot ``new`` has, or had, and ``old`` has not.

    A file that a compaction wrote brings no rows: those that it was made of count instead, as long as they are known.
    """
    before = {file.path for file in live_files(table, old)}
    found: dict[str, LiveFile] = {}
    waiting, seen = [new], {new}
    while waiting:
        for file in live_files(table, waiting.pop()):
            if file.path in before:
                continue
            older = _compacted_from(table, file.snapshot)
            if not older:
                found[file.path] = file
            elif older not in seen:
                seen.add(older)
                waiting.append(older)
    return list(found.values())


def files_gone(table: Table, old: int, new: int) -> list[LiveFile]:
    """
    Data files that snapshot ``old`` has and ``new`` has not: rewritten, compacted or removed.

    :returns: none if ``old`` is not there any more.
    """
    if old == new or table.metadata.snapshot_by_id(old) is None:
        return []
    after = {file.path for file in live_files(table, new)}
    return [file for file in live_files(table, old) if file.path not in after]


def _compacted_from(table: Table, snapshot: int) -> int:
    """Parent of a compaction; 0 if it is none, or its parent has expired."""
    made = table.metadata.snapshot_by_id(snapshot)
    if made is None or made.summary is None or SAME_ROWS not in made.summary.additional_properties:
        return 0
    parent = made.parent_snapshot_id or 0
    return parent if table.metadata.snapshot_by_id(parent) is not None else 0


def literal(text: str) -> str:
    """A string in SQL."""
    return "'" + text.replace("'", "''") + "'"


def source(files: Sequence[LiveFile] | Sequence[str], schema: Schema) -> str:
    """
    SQL table expression over data files, with columns named ``c`` and their field id.

    It also has DuckDB's virtual columns ``filename`` and ``file_row_number``, which no column can hide that way.
    """
    if not files:
        nulls = ", ".join(f"CAST(NULL AS {duckdb_type(f.field_type)}) AS c{f.field_id}" for f in schema.fields)
        empty = "CAST(NULL AS VARCHAR) AS filename, CAST(NULL AS BIGINT) AS file_row_number"
        return f"(SELECT {nulls}, {empty} WHERE false)"
    paths = [f.path if isinstance(f, LiveFile) else f for f in files]
    listed = ", ".join(literal(_escaped(p)) for p in paths)
    entries = ", ".join(
        f"{f.field_id}: {{name: 'c{f.field_id}', type: {literal(duckdb_type(f.field_type))}, default_value: NULL}}"
        for f in schema.fields
    )
    return f"read_parquet([{listed}], hive_partitioning=false, schema=MAP {{{entries}}})"


def _escaped(path: str) -> str:
    """A path without characters that mean something in a glob."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in path)


def select(files: Sequence[LiveFile] | Sequence[str], schema: Schema, *, extra: str = "") -> str:
    """SQL query for all rows and columns of data files, by their names; ``extra`` is more of the select list."""
    named = ", ".join(f"c{f.field_id} AS {quoted(f.name)}" for f in schema.fields)
    return f"SELECT {named}{', ' + extra if extra else ''} FROM {source(files, schema)}"


def connect(config: Config, workdir: Path | None = None) -> duckdb.DuckDBPyConnection:
    """
    A DuckDB connection in memory, in UTC, within the configured memory and threads; it spills to disk.

    :raises BadConfiguration: the tables' files are in a bucket that DuckDB cannot be let into.
    """
    # A folder of one's own: DuckDB's spill files have the same names in every process.
    parent = workdir or config.home / "spill"
    parent.mkdir(parents=True, exist_ok=True)
    folder = parent / f"duckdb-{os.getpid()}-{next(_connections)}"
    connection = duckdb.connect(
        ":memory:",
        config={
            "threads": config.cpu_threads(),
            "memory_limit": f"{config.memory_mb}MiB",
            "temp_directory": str(folder),
            "autoinstall_known_extensions": False,
            "allow_persistent_secrets": False,
        },
    )
    try:
        connection.execute("SET TimeZone='UTC'")
        # The views below have no row counts: DuckDB takes a million rows for a few, and an ASOF JOIN for a nested loop.
        connection.execute("SET asof_loop_join_threshold=0")
        if isinstance(config.warehouse, S3Address):
            s3.attach(connection, config.warehouse)
    except BaseException:
        connection.close()
        raise
    return connection


def add_view(connection: duckdb.DuckDBPyConnection, name: str, table: Table, snapshot: int) -> None:
    """
    Add a view of one snapshot; a dotted name makes the schema too.

    :raises BadArgument: the name has more than one dot, or is empty.
    """
    parts = name.split(".")
    if len(parts) > 2 or not all(parts):
        raise BadArgument(f"{name!r} is not the name of a view", "give `name` or `schema.name`")
    if len(parts) == 2:
        connection.execute(f"CREATE SCHEMA IF NOT EXISTS {quoted(parts[0])}")
    query = select(live_files(table, snapshot), snapshot_schema(table, snapshot))
    connection.execute(f"CREATE VIEW {'.'.join(map(quoted, parts))} AS {query}")


def scan(
    config: Config,
    table: Table,
    snapshot: int,
    *,
    columns: Sequence[str] | None = None,
    where: str | None = None,
) -> pa.RecordBatchReader:
    """Stream rows of a snapshot in batches of at most ``config.rows_per_chunk``; see ``Warehouse.scan``."""
    schema = snapshot_schema(table, snapshot)
    names = [f.name for f in schema.fields]
    unknown = sorted(set(columns or ()) - set(names))
    if unknown:
        raise BadArgument(f"{'.'.join(table.name())} has no column {', '.join(unknown)}", f"it has {', '.join(names)}")
    arrow = to_arrow(schema)
    wanted = pa.schema([arrow.field(n) for n in columns]) if columns is not None else arrow
    if not len(wanted):
        raise BadArgument("no column is asked for")
    connection = connect(config)
    try:
        picked = ", ".join(quoted(n) for n in wanted.names)
        query = f"SELECT {picked} FROM ({select(live_files(table, snapshot), schema)})"
        if where is not None:
            query += f" WHERE ({where})"
        batches = execute(connection, query).to_arrow_reader(config.rows_per_chunk)
    except BaseException:
        connection.close()
        raise

    def rows() -> Iterator[pa.RecordBatch]:
        with connection, storing(f"reading {'.'.join(table.name())}"):
            for batch in batches:
                yield as_schema(batch, wanted)

    return pa.RecordBatchReader.from_batches(wanted, rows())


def execute(
    connection: duckdb.DuckDBPyConnection, query: str, parameters: Mapping[str, object] | Sequence[object] = ()
) -> duckdb.DuckDBPyConnection:
    """
    Run a query.

    :raises BadArgument: the SQL cannot be understood.
    """
    try:
        return connection.execute(query, parameters) if parameters else connection.execute(query)
    except (duckdb.ParserException, duckdb.BinderException, duckdb.CatalogException) as cause:
        raise BadArgument(f"SQL: {cause}") from cause


def as_schema(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """DuckDB's batch under the table's own schema: its types are the same but for how Arrow stores them."""
    arrays = [c if c.type == f.type else c.cast(f.type) for c, f in zip(batch.columns, schema, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)
