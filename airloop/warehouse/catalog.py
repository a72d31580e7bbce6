"""
The warehouse: Iceberg tables that are written exactly once, audited on branches and read at named snapshots.

What it does not do: row-level deletes by delete files, transactions over several tables, tables of other owners.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import duckdb
import pyarrow as pa
from pyiceberg.exceptions import NoSuchTableError
from pyiceberg.table import Table

from airloop.config import Config, is_rest
from airloop.errors import BadArgument, CommitConflict, NotFound
from airloop.locks import locks_of
from airloop.warehouse import branches, commit, evolve, read
from airloop.warehouse import compact as compaction
from airloop.warehouse.ahead import ahead
from airloop.warehouse.commit import KEY, MODE, Commit
from airloop.warehouse.compact import Compacted
from airloop.warehouse.files import ROWS_PER_GROUP, DataFileWriter, Rows, chunks, remove
from airloop.warehouse.plan import (
    Plan,
    Staged,
    plan_append,
    plan_delete,
    plan_replace,
    plan_upsert,
    refuse_duplicates,
)
from airloop.warehouse.refs import MAIN, TableRef, valid_branch, valid_name
from airloop.warehouse.schema import Conform, to_arrow
from airloop.warehouse.sort import in_order
from airloop.warehouse.store import open_catalog, storing
from airloop.warehouse.work import Work, key_for, replaced

if TYPE_CHECKING:
    from pyiceberg.catalog import Catalog
    from pyiceberg.table.snapshots import Snapshot

__all__ = ["Commit", "SnapshotInfo", "Warehouse"]

Mode = Literal["append", "upsert", "replace"]

_opened: dict[tuple[int, Config], Warehouse] = {}


@dataclass(frozen=True, slots=True)
class SnapshotInfo:
    """One snapshot, for people and lineage."""

    id: int
    parent: int | None
    committed_at: datetime
    operation: str
    key: str
    """Key of the step that made it; empty if another tool did."""
    rows_added: int
    rows_total: int
    summary: dict[str, str]
    sequence: int
    """Number of the commit among all of the table's; a later one has a greater number."""

    @classmethod
    def of(cls, snapshot: Snapshot) -> SnapshotInfo:
        summary = dict(snapshot.summary.additional_properties) if snapshot.summary else {}
        return cls(
            id=snapshot.snapshot_id,
            parent=snapshot.parent_snapshot_id,
            committed_at=datetime.fromtimestamp(snapshot.timestamp_ms / 1000, UTC),
            operation=snapshot.summary.operation.value if snapshot.summary else "",
            key=summary.get(KEY, ""),
            rows_added=int(summary.get(commit.ADDED, summary.get("added-records", 0))),
            rows_total=int(summary.get("total-records", 0)),
            summary=summary,
            sequence=snapshot.sequence_number or 0,
        )


class Warehouse:
    """All tables of one configuration."""

    def __init__(self, config: Config, catalog: Catalog) -> None:
        self.config = config
        self._catalog = catalog
        self._locks = locks_of(config)

    @classmethod
    def open(cls, config: Config) -> Warehouse:
        """
        The warehouse of a configuration, opened once in a process; its folders are made at first use.

        :raises BadConfiguration: the catalog's address is wrong, or is SQLite on a network file system.
        :raises StoreReadOnly: the folders cannot be made.
        """
        # A forked child must not share its parent's database connections.
        place = (os.getpid(), config)
        if place not in _opened:
            _opened[place] = cls(config, open_catalog(config))
        return _opened[place]

    # --- tables

    def exists(self, name: str) -> bool:
        """Whether there is a table of this name."""
        with storing(f"looking for {name}"):
            return self._catalog.table_exists(_checked(name))

    def tables(self) -> list[str]:
        """Names of all tables, sorted; of a REST catalog's those that can be ours."""
        with storing("listing tables"):
            found = [".".join(t) for n in self._catalog.list_namespaces() for t in self._catalog.list_tables(n)]
            return sorted(name for name in found if valid_name(name) or not is_rest(self.config.catalog))

    def table(self, name: str) -> Table:
        """
        The PyIceberg table, with metadata as of now.

        :raises NotFound: there is no such table.
        """
        with storing(f"opening {name}"):
            try:
                return self._catalog.load_table(_checked(name))
            except NoSuchTableError as cause:
                raise NotFound(f"there is no table {name}", "see `airloop tables`") from cause

    def ensure(
        self,
        name: str,
        schema: pa.Schema,
        *,
        key: Sequence[str] = (),
        partition_by: str = "",
        description: str = "",
        optional: Sequence[str] = (),
    ) -> list[str]:
        """
        Make the table, or make the existing one hold what is declared.

        :param schema: columns, types and which of them are required (``nullable=False``).
        :param key: columns that identify a row; the default of ``on`` in :meth:`commit`.
        :param partition_by: ``month(event_time)``, ``identity(origin), day(event_time)``… or nothing.
        :param optional: columns that the schema, and rows to come, may lack; such rows get NULL there.
        :returns: one line for each column that was added to an existing table.
        :raises SchemaMismatch: a type changed, a column is lost, or a new one is required; names every difference.
        """
        with storing(f"creating {name}"):
            return evolve.ensure(
                self._catalog,
                _checked(name),
                lambda: self._catalog.load_table(name),
                schema,
                key=key,
                partition_by=partition_by,
                description=description,
                optional=optional,
            )

    def bring_up(self, name: str) -> dict[str, str]:
        """Set the properties that a table of an older format lacks; returns them."""
        with storing(f"upgrading {name}"):
            table = self.table(name)
            evolve.check_format(table, name)
            return evolve.bring_up(table)

    def schema(self, table: str | TableRef) -> pa.Schema:
        """Arrow schema of a table, or of one snapshot of it, without Iceberg's field ids."""
        if isinstance(table, str):
            return to_arrow(self.table(table).schema())
        found = self.table(table.name)
        return to_arrow(read.snapshot_schema(found, self._snapshot(found, table)))

    def key(self, name: str) -> list[str]:
        """Columns that identify a row, as :meth:`ensure` was told; empty if it was not."""
        return _key(self.table(name))

    # --- snapshots

    def head(self, name: str, branch: str = MAIN) -> int:
        """Snapshot id of a branch's head; 0 if the table or the branch has none."""
        return commit.head(self.table(name), branch)

    def resolve(self, ref: TableRef) -> int:
        """
        Snapshot id that a reference names now; 0 for ``main`` of a table without snapshots.

        A compaction counts as what it compacted, as long as that is there: its rows are the same.

        :raises NotFound: the table, the branch or the snapshot is not there.
        """
        table = self.table(ref.name)
        found = self._snapshot(table, ref)
        return found if ref.snapshot is not None else commit.content(table, found)

    def _snapshot(self, table: Table, ref: TableRef) -> int:
        if ref.snapshot is not None:
            if ref.snapshot and table.metadata.snapshot_by_id(ref.snapshot) is None:
                raise NotFound(f"{ref.name} has no snapshot {ref.snapshot}", "it has expired, or never was")
            return ref.snapshot
        found = commit.head(table, ref.branch)
        if not found and ref.branch != MAIN:
            raise NotFound(f"{ref.name} has no branch {ref.branch}", f"it has {', '.join(sorted(table.metadata.refs))}")
        return found

    def find_key(self, name: str, key: str) -> int | None:
        """Snapshot that a step with this key made, on whichever branch or none."""
        found = commit.find_key(self.table(name), key)
        return found.snapshot_id if found else None

    def key_for(self, name: str, work: Work) -> str:
        """
        The key to commit a step's work under.

        :returns: the step's own, unless ``main`` has later work of the same task in its place (:mod:`.work`): then one
            that begins with it, the same one until that is replaced too.
        """
        return key_for(self.table(name), work) if self.exists(name) else work.key

    def replaced(self, ref: TableRef, work: Work) -> int:
        """The snapshot on ``main`` that took the place of work whose result ``ref`` is; 0: none did."""
        return replaced(self.table(ref.name), ref.snapshot or 0, work)

    def history(self, name: str) -> list[SnapshotInfo]:
        """All snapshots, oldest first, whichever branch they are on."""
        return sorted(map(SnapshotInfo.of, self.table(name).metadata.snapshots), key=lambda s: s.committed_at)

    def snapshot(self, name: str, snapshot: int) -> SnapshotInfo | None:
        """One snapshot, whichever branch it is on; None if it is not there."""
        found = self.table(name).metadata.snapshot_by_id(snapshot)
        return SnapshotInfo.of(found) if found else None

    # --- branches

    def branch(self, name: str, branch: str, *, at: int | None = None) -> int:
        """
        Make a branch unless it exists.

        :param at: snapshot to start at; default ``main``'s head.
        :returns: its head; 0 if the table is empty, where the first commit makes the branch.
        """
        _checked_branch(branch)
        with storing(f"branching {name}"):
            return branches.create(name, lambda: self.table(name), branch, at)

    def publish(self, name: str, snapshot: int, *, drop_branch: str = "") -> None:
        """
        Move ``main`` forward to ``snapshot``; nothing happens if ``main`` holds it already.

        :param drop_branch: a branch to drop in the same commit, unless it has what ``main`` will not have.
        :raises NotDescendant: ``main`` has moved to where ``snapshot`` does not come from; ``main`` stays.
        :raises NotFound: there is no such snapshot.
        """
        with storing(f"publishing {name}"):
            branches.publish(name, lambda: self.table(name), snapshot, drop_branch)

    def descends(self, name: str, snapshot: int, ancestor: int) -> bool:
        """Whether ``snapshot`` is ``ancestor`` or builds on it; everything builds on 0, the empty table."""
        return branches.descends(self.table(name), snapshot, ancestor)

    def drop_branch(self, name: str, branch: str) -> None:
        """Drop a branch if it is there; its snapshots can still be read by their ids."""
        with storing(f"dropping a branch of {name}"):
            branches.drop(name, lambda: self.table(name), branch)

    # --- writing

    def commit(
        self,
        name: str,
        rows: Rows,
        *,
        key: str,
        mode: Mode = "append",
        on: Sequence[str] = (),
        replace_where: str | None = None,
        branch: str = MAIN,
        properties: Mapping[str, str] | None = None,
        sort_by: Sequence[str] = (),
    ) -> Commit:
        """
        Write rows in one snapshot that carries ``key``, or adopt the snapshot that carries it already.

        Rows are streamed, ``config.rows_per_chunk`` in memory at a time. Nothing is committed if nothing changes.

        :param rows: an Arrow table, a reader, or an iterable of tables or batches, with the table's columns.
        :param key: the step's key; the same key never commits twice to a table, on any branch.
        :param mode: ``append``; ``upsert``: by ``on``, new rows are added, differing ones replace, identical ones
            (columns with a leading underscore are not compared) leave the old row as it is; ``replace``: the rows
            take the place of all rows, or of those that ``replace_where`` holds for.
        :param on: columns that identify a row, default those given to :meth:`ensure`; no two of ``rows`` may share
            their values. NULL and NaN are values like others.
        :param replace_where: DuckDB predicate over the table's columns; it has to hold for every new row.
        :param branch: where to commit; one that does not exist starts at ``main``'s head.
        :param properties: more properties of the snapshot.
        :param sort_by: columns to sort the rows by first, so that equal content makes equal files.
        :raises SchemaMismatch: columns or types differ from the table's.
        :raises BadInput: a required value is missing, a value does not fit, or a key comes twice.
        :raises CommitConflict: other writers kept winning.
        """
        _checked_branch(branch)
        if mode not in ("append", "upsert", "replace"):
            raise BadArgument(f"mode {mode!r} is unknown", "use append, upsert or replace")
        if replace_where is not None and mode != "replace":
            raise BadArgument(f"replace_where does not go with mode {mode}", "use mode='replace'")
        with storing(f"writing {name}"):
            table = self.table(name)
            done = commit.made_before(name, table, key, adds=mode != "replace")
            if done is not None:
                return done
            on = list(on) or (_key(table) if mode == "upsert" else [])
            if mode == "upsert" and not on:
                raise BadArgument(f"an upsert into {name} needs `on`", "name the columns that identify a row")
            unknown = [c for c in (*on, *sort_by) if c not in table.schema().column_names]
            if unknown:
                raise BadArgument(f"{name} has no column {', '.join(unknown)}")
            with read.connect(self.config) as connection:
                writer, staged = self._stage(table, rows, sort_by)
                last = Plan()

                def plan(current: Table, snapshot: int) -> Plan:
                    nonlocal last
                    if current.schema() != table.schema() or current.spec() != table.spec():
                        raise CommitConflict(f"the schema of {name} changed while rows were written", "run it again")
                    if mode == "append":
                        last = plan_append(staged)
                    elif mode == "replace":
                        last = plan_replace(connection, self.config, current, snapshot, staged, replace_where)
                    else:
                        last = plan_upsert(connection, self.config, current, snapshot, staged, on)
                    return last

                try:
                    refuse_duplicates(connection, name, staged, table.schema(), on)
                    kept = {MODE: mode if replace_where is None else "replace_where", **(properties or {})}
                    return self._commit(name, key, branch, kept, mode != "replace", plan)
                finally:
                    # What was sent may be named by a snapshot, even if we never heard of it.
                    used = {file.file_path for file in last.add} if last.sent else set()
                    remove(table.io, [location for location in writer.locations if location not in used])

    def delete(self, name: str, where: str, *, key: str, branch: str = MAIN) -> Commit:
        """
        Remove the rows that a DuckDB predicate holds for, in one snapshot that carries ``key``.

        :raises BadArgument: the predicate cannot be understood.
        """
        _checked_branch(branch)
        with storing(f"deleting from {name}"), read.connect(self.config) as connection:
            return self._commit(
                name, key, branch, None, True, lambda table, at: plan_delete(connection, self.config, table, at, where)
            )

    def _stage(self, table: Table, rows: Rows, sort_by: Sequence[str]) -> tuple[DataFileWriter, Staged]:
        optional = table.metadata.properties.get(evolve.OPTIONAL, "").split(",")
        conform = Conform(".".join(table.name()), to_arrow(table.schema()), optional=optional)
        writer = DataFileWriter(table, rows_per_file=self.config.rows_per_chunk)
        try:
            # Split by partition, a chunk becomes small row groups: the larger, the better for who reads them.
            size = (
                self.config.rows_per_chunk if table.spec().fields else min(self.config.rows_per_chunk, ROWS_PER_GROUP)
            )
            conformed: Iterator[pa.Table] = map(conform, chunks(rows, rows_per_chunk=size))
            if sort_by:
                conformed = in_order(self.config, conformed, to_arrow(table.schema()), sort_by)
            for chunk in ahead(conformed):
                writer.write(chunk)
            return writer, Staged(writer.close(), writer.rows)
        except BaseException:
            writer.abort()
            raise

    def _commit(
        self,
        name: str,
        key: str,
        branch: str,
        properties: Mapping[str, str] | None,
        adds: bool,
        plan: Callable[[Table, int], Plan],
    ) -> Commit:
        if not key:
            raise BadArgument("a commit needs a key")
        return commit.commit(
            name,
            lambda: self.table(name),
            self._locks,
            key=key,
            branch=branch,
            properties=properties or {},
            adds=adds,
            plan=plan,
        )

    def compact(self, name: str) -> Compacted:
        """
        Put few large files in the place of many small ones: the same rows, in one snapshot more, or none.

        :raises CommitConflict: other writers kept rewriting the same files.
        """
        with storing(f"compacting {name}"):
            return compaction.compact(self.config, name, lambda: self.table(name), self._locks)

    # --- reading

    def scan(
        self, ref: TableRef, *, columns: Sequence[str] | None = None, where: str | None = None
    ) -> pa.RecordBatchReader:
        """
        Stream the rows of a snapshot, in batches of at most ``config.rows_per_chunk``, oldest commit first.

        :param columns: which, in this order; default all.
        :param where: DuckDB predicate over the table's columns.
        :raises BadArgument: an unknown column, or a predicate that cannot be understood.
        """
        with storing(f"reading {ref}"):
            table = self.table(ref.name)
            return read.scan(self.config, table, self._snapshot(table, ref), columns=columns, where=where)

    def count(self, ref: TableRef) -> int:
        """Number of rows of a snapshot, from its metadata."""
        with storing(f"reading {ref}"):
            table = self.table(ref.name)
            return sum(file.rows for file in read.live_files(table, self._snapshot(table, ref)))

    def duckdb(
        self, tables: Mapping[str, TableRef] | None = None, *, workdir: Path | None = None
    ) -> duckdb.DuckDBPyConnection:
        """
        A DuckDB connection of one's own with a view of each table at its snapshot; close it after use.

        :param tables: view name (``flights`` or ``raw.flights``) and what it shows.
        :param workdir: where to spill; default below ``config.home``.
        """
        with storing("opening DuckDB"):
            connection = read.connect(self.config, workdir)
            try:
                for name, ref in (tables or {}).items():
                    table = self.table(ref.name)
                    read.add_view(connection, name, table, self._snapshot(table, ref))
            except BaseException:
                connection.close()
                raise
            return connection


def _key(table: Table) -> list[str]:
    return [c for c in table.metadata.properties.get(evolve.TABLE_KEY, "").split(",") if c]


def _checked(name: str) -> str:
    if not valid_name(name):
        raise BadArgument(f"{name!r} is not the name of a table", "write namespace.table, each a plain identifier")
    return name


def _checked_branch(branch: str) -> None:
    if not valid_branch(branch):
        raise BadArgument(f"{branch!r} is not the name of a branch", "use letters, digits, dot, dash, underscore")
