"""
One SELECT over named snapshots: what it may say, what comes out, and errors that a person can act on.

A query sees its inputs as views and ``$interval_start`` and ``$interval_end`` as bound parameters, and nothing else:
no files, no network, no settings, no clock, no chance. The result is put aside before anything is written, so that it
can be checked whole; DuckDB spills it to disk when it outgrows the memory limit.

What it does not do: it does not make the order of a parallel sum the same every time. A sum of floating point numbers
that are not whole may differ in its last bit between two runs; round it where that matters.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb

from airloop.contract import Interval
from airloop.errors import BadArgument, BadInput, BadInterval, OutOfMemory, SchemaMismatch
from airloop.features.asof import quote
from airloop.warehouse.read import literal, live_files
from airloop.warehouse.refs import TableRef

if TYPE_CHECKING:
    import pyarrow as pa

    from airloop.warehouse.catalog import Warehouse

PARAMETERS = frozenset({"interval_start", "interval_end"})
ROWS_PER_BATCH = 100_000

_WIDER = {"TINYINT": "INTEGER", "SMALLINT": "INTEGER", "UTINYINT": "INTEGER", "USMALLINT": "INTEGER"}
"""Types that Iceberg lacks and that fit into one that it has."""
_KEPT = re.compile(r"BOOLEAN|INTEGER|BIGINT|FLOAT|DOUBLE|DECIMAL\(\d+,\d+\)|VARCHAR|BLOB|DATE|TIMESTAMP WITH TIME ZONE")
_ADVICE = {
    "TIMESTAMP": "it has no time zone: write (… AT TIME ZONE 'UTC'), or the zone whose clock it shows",
    "TIMESTAMP_NS": "tables keep microseconds and a zone: write CAST(… AS TIMESTAMPTZ)",
    "TIMESTAMP_MS": "it has no time zone: write (CAST(… AS TIMESTAMP) AT TIME ZONE 'UTC')",
    "TIMESTAMP_S": "it has no time zone: write (CAST(… AS TIMESTAMP) AT TIME ZONE 'UTC')",
    "HUGEINT": "sums of whole numbers are that wide: write CAST(… AS BIGINT) or CAST(… AS DOUBLE)",
    "UHUGEINT": "write CAST(… AS BIGINT) or CAST(… AS DOUBLE)",
    "UBIGINT": "write CAST(… AS BIGINT)",
    "UINTEGER": "write CAST(… AS BIGINT)",
    "INTERVAL": "write date_part('epoch', …) for seconds",
}
_CLOCK = frozenset({
    "current_timestamp", "current_date", "current_time", "localtimestamp", "localtime", "current_user", "user",
    "session_user", "current_role", "current_schema", "current_catalog",
})  # fmt: skip
"""Words that SQL reads as functions without parentheses."""


@dataclass(frozen=True, slots=True)
class Query:
    """One SELECT, parsed."""

    sql: str
    """Without the closing semicolon."""
    parameters: frozenset[str]

    @classmethod
    def parse(cls, sql: str) -> Query:
        """
        :raises BadArgument: it is not one SELECT, or uses a parameter that there is not.
        """
        try:
            statements = duckdb.extract_statements(sql)
        except duckdb.Error as cause:
            raise _sql_error(cause) from cause
        if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
            found = ", ".join(s.type.name for s in statements) or "nothing"
            raise BadArgument(
                f"the SQL is not one SELECT (found: {found})",
                "write one SELECT, with WITH for steps in between; PIVOT needs its values listed by IN",
            )
        unknown = sorted(set(statements[0].named_parameters) - PARAMETERS)
        if unknown:
            names = ", ".join(f"${name}" for name in unknown)
            raise BadArgument(f"the SQL uses {names}", "its parameters are $interval_start and $interval_end")
        return cls(_without_semicolon(sql), frozenset(statements[0].named_parameters))

    def bind(self, interval: Interval | None) -> dict[str, datetime]:
        """Values of its parameters. :raises BadInterval: it has some and the run has no interval."""
        if not self.parameters:
            return {}
        if interval is None:
            raise BadInterval(
                f"the SQL uses ${', $'.join(sorted(self.parameters))} and this run has no interval",
                "schedule the DAG with a data interval or a partition key, or pass interval='start/end'",
            )
        values = {"interval_start": interval.start, "interval_end": interval.end}
        return {name: values[name] for name in self.parameters}


class Result:
    """The rows of a query, put aside in DuckDB as ``result``."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, columns: dict[str, str], key: Sequence[str]) -> None:
        self.connection = connection
        self.columns = columns
        """Name and DuckDB type, in order."""
        self.key = list(key)

    def count(self, where: str = "true") -> int:
        row = self.connection.execute(f"SELECT count(*) FROM result WHERE {where}").fetchone()
        return int(row[0]) if row else 0

    def first(self, where: str) -> str:
        """The first rows by key that a condition holds for, as text for people."""
        telling = [c for c in ("event_time", "arrival_time", "label") if c in self.columns]
        shown = list(dict.fromkeys([*self.key, *telling]))
        names = ", ".join(quote(c) for c in shown)
        rows = self.connection.execute(
            f"SELECT {', '.join(f'CAST({quote(c)} AS VARCHAR)' for c in shown)} FROM result WHERE {where}"
            f" ORDER BY {names} LIMIT 3"
        ).fetchall()
        return "; ".join(", ".join(f"{c}={v}" for c, v in zip(shown, row, strict=True)) for row in rows)

    def check_key(self) -> None:
        """:raises BadInput: a key column is NULL, or two rows have the same key."""
        for column in self.key:
            where = f"{quote(column)} IS NULL"
            found = self.count(where)
            if found:
                raise BadInput(
                    f"{found:,} rows of the result have no {column} (first: {self.first(where)})",
                    "a key column is never NULL: filter these rows out in the SQL",
                )
        if not self.key:
            return
        names = ", ".join(quote(c) for c in self.key)
        doubles = f"SELECT {names}, count(*) AS n FROM result GROUP BY {names} HAVING count(*) > 1"
        row = self.connection.execute(f"SELECT count(*), sum(n) FROM ({doubles})").fetchone()
        if row and row[0]:
            shown = ", ".join(f"CAST({quote(c)} AS VARCHAR)" for c in self.key)
            first = self.connection.execute(f"SELECT {shown} FROM ({doubles}) ORDER BY {names} LIMIT 1").fetchone()
            values = ", ".join(f"{c}={v}" for c, v in zip(self.key, first or (), strict=True))
            raise BadInput(
                f"{row[1]:,} rows of the result share {row[0]:,} keys of {', '.join(self.key)} (first: {values})",
                "group by the key, or name all columns that tell rows apart in key",
            )

    def schema(self) -> pa.Schema:
        return self._select("LIMIT 0").schema

    def read(self) -> pa.RecordBatchReader:
        """The rows in the order of the key, the others after it: the same rows make the same files."""
        order = [*self.key, *[c for c in self.columns if c not in self.key]] if not self.key else self.key
        return self._select(f"ORDER BY {', '.join(quote(c) for c in order)}")

    def _select(self, rest: str) -> pa.RecordBatchReader:
        columns = ", ".join(
            f"CAST({quote(name)} AS {_WIDER[kind]}) AS {quote(name)}" if kind in _WIDER else quote(name)
            for name, kind in self.columns.items()
        )
        return self.connection.execute(f"SELECT {columns} FROM result {rest}").to_arrow_reader(ROWS_PER_BATCH)


@contextmanager
def run(
    warehouse: Warehouse,
    query: Query,
    *,
    inputs: Mapping[str, TableRef],
    key: Sequence[str],
    interval: Interval | None,
    workdir: Path,
) -> Iterator[Result]:
    """
    Run a query; its result is there until the block ends.

    :param inputs: resolved tables by the name that the SQL uses.
    :raises BadArgument: the SQL is wrong, or reaches for something other than its inputs.
    :raises BadInput: a value of the inputs cannot be used as the SQL says.
    :raises SchemaMismatch: the result has columns that a table cannot keep.
    """
    bound = query.bind(interval)
    with warehouse.duckdb(inputs, workdir=workdir) as connection:
        _refuse_chance(connection, query)
        _close_doors(connection, warehouse, inputs)
        try:
            # On one line with the SQL, so that the lines which errors name are the author's.
            described = connection.execute(f"DESCRIBE ({query.sql}\n)", bound).fetchall()
            columns = {str(row[0]): str(row[1]) for row in described}
            _check_columns(columns, key)
            connection.execute(f"CREATE TEMP TABLE result AS ({query.sql}\n)", bound)
        except duckdb.Error as cause:
            raise _sql_error(cause, inputs) from cause
        yield Result(connection, columns, key)


def _close_doors(connection: duckdb.DuckDBPyConnection, warehouse: Warehouse, inputs: Mapping[str, TableRef]) -> None:
    """From here on DuckDB opens the inputs' files and its own spill files, and nothing else."""
    allowed = [
        file.path for ref in inputs.values() for file in live_files(warehouse.table(ref.name), ref.snapshot or 0)
    ]
    connection.execute(f"SET allowed_paths = [{', '.join(literal(path) for path in allowed)}]")
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")


def _refuse_chance(connection: duckdb.DuckDBPyConnection, query: Query) -> None:
    """A result must follow from its inputs: no clock, no random numbers, no sampling."""
    tree = json.loads(connection.execute("SELECT json_serialize_sql(?)", [query.sql]).fetchall()[0][0])
    changing = {
        str(row[0])
        for row in connection.execute(
            "SELECT DISTINCT function_name FROM duckdb_functions()"
            " WHERE stability IN ('VOLATILE', 'CONSISTENT_WITHIN_QUERY') AND function_name <> 'error'"
        ).fetchall()
    }
    for node in _nodes(tree):
        called = str(node.get("function_name", "")).lower()
        names = node.get("column_names")
        word = str(names[0]).lower() if isinstance(names, list) and len(names) == 1 else ""
        if called in changing or word in _CLOCK:
            raise BadArgument(
                f"the SQL uses {called or word}, which differs between runs on the same data",
                "use $interval_start or $interval_end for the time; a result must follow from its inputs",
            )
        if node.get("sample"):
            raise BadArgument("the SQL samples its rows", "choose rows by hash(key) % n, which every run repeats")


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            yield node
            waiting.extend(node.values())
        elif isinstance(node, list):
            waiting.extend(node)


def _check_columns(columns: Mapping[str, str], key: Sequence[str]) -> None:
    missing = [c for c in key if c not in columns]
    if missing:
        raise BadArgument(f"the result has no column {', '.join(missing)}", f"key must be of {', '.join(columns)}")
    faults = []
    for name, kind in columns.items():
        plain = kind.partition("[")[0]
        if plain in _WIDER or _KEPT.fullmatch(plain) or plain.startswith("STRUCT("):
            continue
        faults.append(f"{name} is {kind.strip(chr(34))} ({_ADVICE.get(kind, 'cast it to a type that tables keep')})")
    if faults:
        raise SchemaMismatch(
            f"the result cannot be kept: {'; '.join(faults)}",
            "tables keep BOOLEAN, INTEGER, BIGINT, FLOAT, DOUBLE, DECIMAL, VARCHAR, BLOB, DATE, TIMESTAMPTZ and lists",
        )


def _without_semicolon(sql: str) -> str:
    # The parser has seen one statement: a semicolon token can only be its last. Offsets count bytes.
    content = sql.encode()
    tokens = [offset for offset, _ in duckdb.tokenize(sql) if content[offset : offset + 1] == b";"]
    return content[: tokens[0]].decode() if tokens else sql


def _sql_error(error: duckdb.Error, inputs: Mapping[str, TableRef] | None = None) -> Exception:
    text = str(error).strip()
    line = re.search(r"^LINE (\d+):", text, re.M)
    where = f"line {line[1]} of the SQL" if line else "the SQL"
    message = text.partition("\n\nLINE ")[0].replace("\n", " ")
    if isinstance(error, duckdb.OutOfMemoryException):
        return OutOfMemory(f"{where}: {message}", "raise AIRLOOP_MEMORY_MB or read fewer rows at a time")
    if isinstance(error, duckdb.PermissionException):
        return BadArgument(f"{where}: {message}", "the SQL reads its inputs only; extract files into tables first")
    wrong = (
        duckdb.ParserException, duckdb.SyntaxException, duckdb.BinderException, duckdb.CatalogException,
        duckdb.NotImplementedException, duckdb.NotSupportedError,
    )  # fmt: skip
    if isinstance(error, wrong):
        names = f"its inputs are {', '.join(inputs)}" if inputs else "it has no inputs"
        return BadArgument(f"{where}: {message}", "" if inputs is None else names)
    if isinstance(error, duckdb.DataError | duckdb.InvalidInputException):
        return BadInput(f"{where}: {message}", "use TRY_CAST or filter the rows that cannot be used")
    return error
