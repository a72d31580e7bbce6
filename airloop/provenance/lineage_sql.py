"""
Run a step's SQL again on the snapshots of then, whole or without parts of them, and compare the results.

Decimals of floating-point sums depend on the order of addition, so figures that differ by less than :data:`SAME` of
their size count as the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airloop.contract import Interval
from airloop.features.asof import quote
from airloop.warehouse.refs import TableRef

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

SAME = 1e-9


def with_inputs(
    connection: duckdb.DuckDBPyConnection, inputs: Mapping[str, TableRef], gone: Mapping[str, pa.Table] | None = None
) -> None:
    """
    The names that the SQL uses, as views of ``whole.i0``, ``whole.i1``…, in the order of the inputs.

    :param gone: keys of rows that a view leaves out, by the input's name.
    """
    for number, name in enumerate(inputs):
        rest = ""
        if gone and name in gone:
            connection.register(f"gone{number}", gone[name])
            rest = f" ANTI JOIN gone{number} ON {equal(gone[name].column_names, f'i{number}', f'gone{number}')}"
        name_view(connection, name, f"SELECT i{number}.* FROM whole.i{number}{rest}")


def name_view(connection: duckdb.DuckDBPyConnection, name: str, query: str) -> None:
    """A view, with its schema if the name has one; it replaces an earlier one."""
    schema, _, view = name.rpartition(".")
    if schema:
        connection.execute(f"CREATE SCHEMA IF NOT EXISTS {quote(schema)}")
    path = f"{quote(schema)}.{quote(view)}" if schema else quote(view)
    connection.execute(f"CREATE OR REPLACE VIEW {path} AS {query}")


def run_sql(connection: duckdb.DuckDBPyConnection, name: str, arguments: Mapping[str, Any]) -> None:
    """
    The SQL's result as a temporary table; an earlier one of the name is replaced.

    :param arguments: of the step, as its manifest has them.
    """
    from airloop.features.query import Query

    query = Query.parse(arguments["sql"])
    interval = Interval.parse(arguments["interval"]) if arguments["interval"] else None
    connection.execute(f"CREATE OR REPLACE TEMP TABLE {name} AS ({query.sql}\n)", query.bind(interval))


def changed_keys(connection: duckdb.DuckDBPyConnection, key: Sequence[str], *, of: str = "before") -> str:
    """SQL: rows of ``of`` that the table ``after`` has not, or has with other values. Their columns are ``of``'s."""
    described = connection.execute("DESCRIBE after").fetchall()
    others = {str(row[0]): str(row[1]) for row in described if row[0] not in key}
    conditions = [f"a.{quote(key[0])} IS NULL", *(_differs(name, kind) for name, kind in others.items())]
    return f"SELECT b.* FROM {of} b LEFT JOIN after a ON {equal(key, 'b', 'a')} WHERE {' OR '.join(conditions)}"


def equal(columns: Sequence[str], left: str, right: str) -> str:
    """Condition: two rows have the same key."""
    # A source's key may be NULL in a column; there NULL is a value like others.
    return " AND ".join(f"{left}.{quote(c)} IS NOT DISTINCT FROM {right}.{quote(c)}" for c in columns)


def plain(rows: pa.Table) -> list[dict[str, Any]]:
    """Rows as JSON."""
    return [{name: _value(value) for name, value in row.items()} for row in rows.to_pylist()]


def _differs(column: str, kind: str) -> str:
    before, after = f"b.{quote(column)}", f"a.{quote(column)}"
    distinct = f"{before} IS DISTINCT FROM {after}"
    if kind not in ("DOUBLE", "FLOAT"):
        return distinct
    close = f"abs({before} - {after}) <= {SAME} * greatest(abs({before}), abs({after}))"
    return f"({distinct} AND NOT coalesce({close}, false))"


def _value(value: Any) -> Any:
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
