"""Whose rows: values of columns that tell a person, an account, a flight."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import duckdb
from pyiceberg.table import Table

from airloop.errors import BadArgument
from airloop.upkeep.forget import Rows
from airloop.warehouse import read, tree
from airloop.warehouse.localio import local_path
from airloop.warehouse.schema import duckdb_type, quoted

if TYPE_CHECKING:
    from airloop.config import Config

MOST_KEYS = 10_000
"""Keys that one request may stand for."""


@dataclass(frozen=True, slots=True)
class Subject:
    """Values of columns by which rows are told in whatever table has these columns."""

    columns: tuple[str, ...]
    values: tuple[tuple[str, ...], ...]
    """As texts, the way DuckDB writes them in UTC; each as many as there are columns."""

    @property
    def canonical(self) -> str:
        """One text for each subject."""
        return json.dumps([list(self.columns), sorted(self.values)])

    def texts(self) -> tuple[str, ...]:
        """The values that can be told from others wherever they stand."""
        return tuple(sorted({value for row in self.values for value in row if _telling(value)}))

    def short(self) -> int:
        """How many values are too short for that: they can be looked for in the subject's columns only."""
        return len({value for row in self.values for value in row if not _telling(value)})

    def rows(self, types: Mapping[str, str], renamed: Mapping[str, str]) -> Rows | None:
        """
        The subject's rows of a table; None if it has not all of the columns.

        :param types: DuckDB's, by the table's columns; see :func:`types_of`.
        :param renamed: the table's own names of columns, by the subject's.
        """
        names = [renamed.get(column, column) for column in self.columns]
        if not self.values or not set(names) <= set(types):
            return None
        alternatives = (
            " AND ".join(_same(name, types[name], value) for name, value in zip(names, row, strict=True))
            for row in self.values
        )
        return Rows(" OR ".join(f"({one})" for one in alternatives), self.texts())


def types_of(table: Table) -> dict[str, str]:
    """DuckDB's types by column."""
    return {field.name: duckdb_type(field.field_type) for field in table.schema().fields}


def entity(texts: Sequence[str]) -> Subject:
    """
    The subject of ``column=value`` texts, several values of one column for one who has several names.

    :raises BadArgument: a text is not ``column=value``, or they name several columns.
    """
    pairs = [text.partition("=") for text in texts]
    wrong = [text for text, (column, sign, value) in zip(texts, pairs, strict=True) if not (column and sign and value)]
    columns = sorted({column.strip() for column, _, _ in pairs})
    if wrong or len(columns) != 1:
        raise BadArgument(f"--entity {' '.join(wrong or texts)}", "write --entity column=value, always the same column")
    return Subject((columns[0],), tuple(sorted((value.strip(),) for _, _, value in pairs)))


def of_rows(config: Config, table: Table, key: Sequence[str], where: str) -> Subject:
    """
    The subject of rows of a table, by the table's key, looked for in all of its history.

    :raises BadArgument: the predicate cannot be understood, or holds for too many rows.
    """
    from airloop.warehouse.references import References

    paths = [p for p in References(table).of(s.snapshot_id for s in table.metadata.snapshots) if p.endswith(".parquet")]
    if not key or not paths:
        return Subject(tuple(key), ())
    texts = ", ".join(f"CAST({quoted(column)} AS VARCHAR)" for column in key)
    query = f"SELECT DISTINCT {texts} FROM ({read.select(sorted(paths), table.schema())}) WHERE {where}"
    with read.connect(config) as connection:
        rows = read.execute(connection, f"{query} LIMIT {MOST_KEYS + 1}").fetchall()
    if len(rows) > MOST_KEYS:
        raise BadArgument(
            f"more than {MOST_KEYS:,} rows of {'.'.join(table.name())} match", "erase them in several requests"
        )
    return Subject(tuple(key), tuple(sorted(tuple(row) for row in rows if None not in row)))


def elsewhere(config: Config, table: Table, texts: Iterable[str]) -> list[str]:
    """Columns, under whatever name, in which a snapshot or branch of a table holds one of the values."""
    from airloop.warehouse.references import References

    named = References(table).of(s.snapshot_id for s in table.metadata.snapshots)
    data = (path for path in named if path.endswith(".parquet"))
    files = tree.those_there(data, local_path(table.location()))
    if not files:
        return []
    with read.connect(config) as connection:
        return holding(connection, read.select(files, table.schema()), types_of(table), texts)


def holding(
    connection: duckdb.DuckDBPyConnection, query: str, types: Mapping[str, str], texts: Iterable[str]
) -> list[str]:
    """Columns of a query's rows, of the given types, in which one of the values stands."""
    values = [read.literal(text) for text in texts]
    columns = [(name, test) for name, type_ in types.items() if (test := _one_of(name, type_, values))]
    if not columns:
        return []
    tests = ", ".join(f"bool_or({test})" for _, test in columns)
    found = read.execute(connection, f"SELECT {tests} FROM ({query})").fetchone()
    return [name for (name, _), hit in zip(columns, found or (), strict=True) if hit]


def _one_of(name: str, type_: str, values: Sequence[str]) -> str:
    """Whether a column holds one of some literals; empty if it cannot: a time is nobody's name."""
    column = quoted(name)
    if not values or type_.startswith(("BOOLEAN", "DATE", "TIME", "BLOB")):
        return ""
    if type_.endswith(("]", ")")) and not type_.startswith("DECIMAL"):
        # A list or a struct, which is written out with all that is in it.
        return " OR ".join(f"contains(CAST({column} AS VARCHAR), {value})" for value in values)
    same = f"CAST({column} AS VARCHAR) IN ({', '.join(values)})"
    if type_ == "VARCHAR":
        return same
    return f"{same} OR {column} IN ({', '.join(f'TRY_CAST({value} AS {type_})' for value in values)})"


def _same(name: str, type_: str, value: str) -> str:
    column, text = quoted(name), read.literal(value)
    # As text first; a number that another table holds as 7.0 is the same number.
    return f"(CAST({column} AS VARCHAR) = {text} OR {column} = TRY_CAST({text} AS {type_}))"


def _telling(value: str) -> bool:
    """Whether a value is unlikely to stand anywhere by chance: a short number does."""
    return len(value) >= 6 or (len(value) >= 4 and any(c.isalpha() for c in value))
