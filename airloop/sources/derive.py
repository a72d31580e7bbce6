"""Derived columns, and which rows belong to an interval: DuckDB, one chunk at a time."""

from __future__ import annotations

from contextlib import AbstractContextManager
from datetime import datetime
from typing import Self

import duckdb
import pyarrow as pa

from airloop.errors import BadArgument, BadInput
from airloop.sources.localtime import add_functions
from airloop.sources.spec import SourceSpec
from airloop.sources.types import arrow_type, duckdb_type
from airloop.warehouse.store import storing


class Deriver(AbstractContextManager["Deriver"]):
    """Evaluates a source's expressions; it sees the chunk and nothing else, no file and no network."""

    def __init__(self, spec: SourceSpec, added: dict[str, str], *, memory_mb: int, threads: int) -> None:
        """
        :raises BadArgument: an expression is not SQL, names a column that is not there, or has another type.
        """
        self._spec = spec
        self._names = [*spec.columns, *spec.derive, *added]
        self._local = [name for name, column in spec.columns.items() if column.zone]
        self._computes = bool(spec.derive or self._local)
        if not self._computes:
            # All is as it stands in the file, and DuckDB takes its time to start.
            return
        self._connection = duckdb.connect(
            config={"memory_limit": f"{memory_mb}MB", "threads": threads, "enable_external_access": "false"}
        )
        add_functions(self._connection)
        kinds = {name: column.kind for name, column in spec.columns.items()} | added
        empty = pa.table({name: pa.array([], arrow_type(kind)) for name, kind in kinds.items()})
        self._try_out(empty)

    def _try_out(self, empty: pa.Table) -> None:
        """Evaluate the expressions one after the other on no rows, so that an error names the column."""
        self._connection.register("chunk", empty)
        known = list(self._spec.columns)
        derived_names = list(self._spec.derive)
        for position, (name, derived) in enumerate(self._spec.derive.items(), 1):
            try:
                self._connection.execute(self._nested(derived_names[:position]))
            except duckdb.Error as cause:
                raise BadArgument(
                    f"source {self._spec.name}: derived column {name} cannot be computed: {_first_line(cause)}",
                    f"its expression is {derived.sql!r}; the columns are {', '.join(known)}",
                ) from cause
            known.append(name)

    def _nested(self, derived: list[str]) -> str:
        """Query of the chunk and derived columns, each able to use those before it."""
        query = "SELECT * FROM chunk"
        if self._local:
            zones = {name: self._spec.columns[name].zone for name in self._local}
            instants = ", ".join(f"local_to_utc({_quoted(n)}, '{zone}') AS {_quoted(n)}" for n, zone in zones.items())
            query = f"SELECT * REPLACE ({instants}) FROM chunk"
        for name in derived:
            column = self._spec.derive[name]
            # A line of its own closes the expression even if it ends in a comment.
            query = (
                f"SELECT *, CAST((\n{column.sql}\n) AS {duckdb_type(column.type)}) AS {_quoted(name)} FROM ({query})"
            )
        return query

    def moments(self, chunk: pa.Table, *, label: str, first_row: int) -> pa.Array:
        """The interval column's values, only it being computed."""
        wanted = self._spec.interval_column
        if wanted in chunk.schema.names and wanted not in self._local:
            return chunk.column(wanted).combine_chunks()
        return self._run(chunk, f"SELECT {_quoted(wanted)} FROM", label, first_row).column(0).combine_chunks()

    def derived(self, chunk: pa.Table, *, label: str, first_row: int) -> pa.Table:
        """The chunk with its derived columns, in the order of the table."""
        if not self._computes:
            return chunk.select(self._names)
        names = ", ".join(map(_quoted, self._names))
        return self._run(chunk, f"SELECT {names} FROM", label, first_row)

    def _run(self, chunk: pa.Table, select: str, label: str, first_row: int) -> pa.Table:
        self._connection.register("chunk", chunk)
        try:
            with storing(f"computing derived columns of {self._spec.name}"):
                return self._connection.execute(f"{select} ({self._nested(list(self._spec.derive))})").to_arrow_table()
        except (duckdb.ConversionException, duckdb.OutOfRangeException, duckdb.InvalidInputException) as cause:
            raise BadInput(
                f"{label}: a derived column cannot be computed in rows {first_row:,} and following: "
                f"{_first_line(cause)}",
                "correct the file, or write the expression so that it gives NULL there (TRY_CAST, CASE)",
            ) from cause
        finally:
            self._connection.unregister("chunk")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._computes:
            self._connection.close()


def microseconds(moment: datetime) -> pa.Scalar:
    """An instant as the tables hold it."""
    return pa.scalar(moment, pa.timestamp("us", tz="UTC"))


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
