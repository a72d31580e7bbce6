"""
Which rows of which snapshots a source row went into, row by row.

A row of a table written by SQL *depends* on a row that it reads if it changes or vanishes when that row is left out.
That is found out by doing it: the statement of the step's manifest is run on the snapshots and the interval of then,
with all rows and without the rows in question, and both results are compared by key. It needs no knowledge of the SQL
and misses nothing, whatever windows and joins it has. What a step that is no SQL makes of a row is not known here.

"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from airloop.errors import BadArgument, NotFound
from airloop.features.asof import quote
from airloop.provenance.lineage import Graph
from airloop.provenance.lineage_index import Record
from airloop.provenance.lineage_sql import changed_keys, equal, run_sql, with_inputs
from airloop.warehouse.refs import TableRef

if TYPE_CHECKING:
    import pyarrow as pa

SQL_STEPS = ("sql", "build_labels")


@dataclass(frozen=True)
class Touched:
    """Rows of one snapshot that depend on the rows in question."""

    ref: TableRef
    keys: pa.Table
    """Values of the columns that identify a row, each row once."""
    by: str = ""
    """Id of the step by which they depend; empty: they are the rows in question themselves."""

    @property
    def rows(self) -> int:
        return int(self.keys.num_rows)

    @property
    def columns(self) -> list[str]:
        return list(self.keys.column_names)


@dataclass(frozen=True, slots=True)
class Unknown:
    """Where the trail of single rows ends."""

    step: str
    """Id of the step."""
    reads: list[str]
    """The snapshots that hold rows in question and that it reads."""
    why: str


class Trail:
    """The rows in question, followed through every snapshot of every table."""

    def __init__(self, graph: Graph, table: str, where: str) -> None:
        """
        :param table: table that holds the rows.
        :param where: DuckDB predicate over its columns.
        :raises NotFound: there is no such table.
        :raises BadArgument: the predicate cannot be understood.
        """
        self.graph = graph
        self.table = table
        self.where = where
        self.touched: dict[str, Touched] = {}
        """By reference, in the order in which the snapshots were committed."""
        self.unknown: list[Unknown] = []
        self.keys = self._in_question()
        if self.keys.num_rows:
            self._follow()

    def _in_question(self) -> pa.Table:
        """
        Identities of the rows that the predicate holds for, in whichever snapshot.

        Snapshots share most of their files: each file is read once, however many snapshots hold it.
        """
        import duckdb

        from airloop.warehouse.read import connect, live_files, select

        table = self.graph.warehouse.table(self.table)
        names = identity(self.graph, self.table)
        self._files = {s: {f.path for f in live_files(table, s)} for s in self.graph.history(self.table)}
        paths = sorted(set().union(*self._files.values()))
        with connect(self.graph.config) as connection:
            connection.execute(f"CREATE TEMP VIEW rows AS {select(paths, table.schema(), extra='filename AS __file')}")
            try:
                keys = connection.sql(f"SELECT DISTINCT {_list(names)} FROM rows WHERE {self.where}").to_arrow_table()
            except duckdb.Error as cause:
                raise BadArgument(str(cause), f"`airloop tables {self.table}` names its columns") from cause
            connection.register("asked", keys)
            held = (
                f"SELECT DISTINCT {_list(names)}, __file FROM rows SEMI JOIN asked ON {equal(names, 'rows', 'asked')}"
            )
            self._held = connection.sql(held).to_arrow_table()
        return keys

    def _held_by(self, ref: TableRef) -> Touched:
        """The rows in question that a snapshot of their own table holds."""
        import pyarrow as pa
        import pyarrow.compute as pc

        files = pa.array(sorted(self._files[ref.snapshot or 0]), pa.string())
        there = self._held.filter(pc.is_in(self._held.column("__file"), value_set=files))
        return Touched(ref, _distinct(there.select(self.keys.column_names)))

    def _follow(self) -> None:
        # In the order of commits: whatever a step read had been written before.
        tables = self.graph.warehouse.tables()
        every = [(s.committed_at, name, s.id) for name in tables for s in self.graph.history(name).values()]
        for _, name, snapshot in sorted(every):
            ref = TableRef(name, snapshot)
            found = self._rows_of(ref)
            if found is not None and found.rows:
                self.touched[str(ref)] = found

    def _rows_of(self, ref: TableRef) -> Touched | None:
        if ref.name == self.table:
            return self._held_by(ref)
        if ref.name == f"quarantine.{self.table.replace('.', '_')}":
            return self._present(ref, self.keys, "")
        parent = self.touched.get(self.graph.parent(str(ref)) or "")
        maker = self.graph.maker(str(ref))
        reads = [i for i in maker.inputs if i.reference in self.touched] if maker is not None else []
        if maker is None or maker.step not in SQL_STEPS:
            return self._present(ref, parent.keys, parent.by) if parent is not None else None
        if not reads and parent is None:
            return None
        try:
            return self._by_sql(ref, maker, parent)
        except NotFound as cause:
            self.unknown.append(
                Unknown(maker.node, [i.reference for i in reads], f"what it read is gone: {cause.found}")
            )
            return None

    def _present(self, ref: TableRef, keys: pa.Table, by: str) -> Touched:
        """Those of the keys that a snapshot holds."""
        with self.graph.warehouse.duckdb({"rows": ref}) as connection:
            connection.register("wanted", keys)
            there = f"SELECT * FROM wanted SEMI JOIN rows ON {equal(keys.column_names, 'wanted', 'rows')}"
            return Touched(ref, connection.sql(there).to_arrow_table(), by)

    def _by_sql(self, ref: TableRef, maker: Record, parent: Touched | None) -> Touched:
        """What the SQL makes otherwise without the rows, and what it left of the snapshot before."""
        import pyarrow as pa

        arguments = self.graph.index.manifest(maker)["arguments"]
        key: list[str] = arguments["key"]
        inputs = {name: TableRef.parse(text) for name, text in arguments["inputs"].items()}
        gone = {name: self.touched[str(ref)].keys for name, ref in inputs.items() if str(ref) in self.touched}
        with self.graph.warehouse.duckdb({f"whole.i{n}": ref for n, ref in enumerate(inputs.values())}) as connection:
            # One thread adds in one order.
            connection.execute("SET threads = 1")
            with_inputs(connection, inputs)
            run_sql(connection, "before", arguments)
            found = []
            if gone:
                with_inputs(connection, inputs, gone)
                run_sql(connection, "after", arguments)
                changed = changed_keys(connection, key)
                found.append(connection.sql(f"SELECT {_list(key)} FROM ({changed})").to_arrow_table())
            if parent is not None:
                connection.register("carried", parent.keys)
                kept = f"SELECT * FROM carried ANTI JOIN before ON {equal(key, 'carried', 'before')}"
                found.append(connection.sql(kept).to_arrow_table())
        keys = _distinct(pa.concat_tables(found, promote_options="permissive"))
        return Touched(ref, keys, maker.node if gone else parent.by if parent else "")


def identity(graph: Graph, table: str) -> list[str]:
    """Columns that tell rows of a table apart: its key or, where it has none, all of them."""
    warehouse = graph.warehouse
    return warehouse.key(table) or [str(name) for name in warehouse.schema(table).names]


def _list(columns: Sequence[str]) -> str:
    return ", ".join(quote(c) for c in columns)


def _distinct(keys: pa.Table) -> pa.Table:
    return keys.group_by(keys.column_names, use_threads=False).aggregate([]) if keys.num_rows else keys
