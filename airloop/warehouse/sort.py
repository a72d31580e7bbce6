"""Sort any amount of rows in bounded memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import pyarrow as pa

from airloop.config import Config
from airloop.warehouse.files import ROWS_PER_GROUP
from airloop.warehouse.read import as_schema, connect, execute
from airloop.warehouse.schema import quoted


def in_order(config: Config, rows: Iterable[pa.Table], schema: pa.Schema, by: Sequence[str]) -> Iterator[pa.Table]:
    """
    Rows by the columns ``by``, NULL last; DuckDB spills what does not fit into memory.

    Rows that are equal in ``by`` keep the order in which they came.
    """
    batches = (batch for chunk in rows for batch in chunk.to_batches())
    with connect(config) as connection:
        execute(connection, f"CREATE TEMP TABLE given AS {_empty(schema)}")
        for batch in batches:
            connection.register("batch", pa.Table.from_batches([batch]))
            execute(connection, "INSERT INTO given SELECT * FROM batch")
            connection.unregister("batch")
        order = ", ".join(f"{quoted(c)} NULLS LAST" for c in (*by,))
        query = f"SELECT * FROM given ORDER BY {order}, rowid"
        for batch in execute(connection, query).to_arrow_reader(ROWS_PER_GROUP):
            yield pa.Table.from_batches([as_schema(batch, schema)])


def _empty(schema: pa.Schema) -> str:
    from airloop.warehouse.schema import duckdb_type, to_iceberg

    fields = to_iceberg(schema).fields
    return (
        "SELECT "
        + ", ".join(f"CAST(NULL AS {duckdb_type(f.field_type)}) AS {quoted(f.name)}" for f in fields)
        + (" WHERE false")
    )
