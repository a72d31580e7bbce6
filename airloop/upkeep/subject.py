"""Whose rows: values of columns that tell a person, an account, a flight."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pyiceberg import types as ice
from pyiceberg.table import Table

from airloop.errors import BadArgument
from airloop.upkeep.forget import Rows
from airloop.warehouse import read
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

    def rows(self, table: Table, renamed: Mapping[str, str]) -> Rows | None:
        """
        The subject's rows of a table; None if it has not all of the columns.

        :param renamed: the table's own names of columns, by the subject's.
        """
        names = [renamed.get(column, column) for column in self.columns]
        schema = table.schema()
        if not self.values or not set(names) <= set(schema.column_names):
            return None
        fields = [schema.find_field(name) for name in names]
        alternatives = (
            " AND ".join(_same(field, value) for field, value in zip(fields, row, strict=True)) for row in self.values
        )
        return Rows(" OR ".join(f"({one})" for one in alternatives), self.texts())


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
    """Text columns of a table whose present rows hold one of the values, under whatever name."""
    from airloop.warehouse.commit import head

    values = ", ".join(read.literal(text) for text in texts)
    columns = [f for f in table.schema().fields if isinstance(f.field_type, ice.StringType)]
    files = read.live_files(table, head(table, "main"))
    if not values or not columns or not files:
        return []
    tests = ", ".join(f"bool_or({quoted(f.name)} IN ({values}))" for f in columns)
    with read.connect(config) as connection:
        found = read.execute(connection, f"SELECT {tests} FROM ({read.select(files, table.schema())})").fetchone()
    return [f.name for f, hit in zip(columns, found or (), strict=True) if hit]


def _same(field: ice.NestedField, value: str) -> str:
    column, text = quoted(field.name), read.literal(value)
    # As text first; a number that another table holds as 7.0 is the same number.
    return f"(CAST({column} AS VARCHAR) = {text} OR {column} = TRY_CAST({text} AS {duckdb_type(field.field_type)}))"


def _telling(value: str) -> bool:
    """Whether a value is unlikely to stand anywhere by chance: a short number does."""
    return len(value) >= 6 or (len(value) >= 4 and any(c.isalpha() for c in value))
