"""
Features of a service at named snapshots, for training sets and batch scoring: one join, one order of columns.

Rows come from a table of entities: their keys, the time of prediction, and the columns that are known with the
request. Nothing here imports Feast.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from airloop.errors import BadArgument, SchemaMismatch
from airloop.features.asof import point_in_time_join, quote, quote_path
from airloop.features.definitions import ServiceDefinition, ViewDefinition

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

    from airloop.warehouse.catalog import Warehouse
    from airloop.warehouse.refs import TableRef

DUCKDB_TYPES = {
    "double": ("DOUBLE", "FLOAT", "BIGINT", "INTEGER"),
    "float": ("FLOAT",),
    "int64": ("BIGINT", "INTEGER"),
    "int32": ("INTEGER",),
    "string": ("VARCHAR",),
    "bool": ("BOOLEAN",),
    "timestamp": ("TIMESTAMP WITH TIME ZONE",),
}
"""DuckDB's type for a declared one, first, and those that can be widened to it."""


@contextmanager
def features_for(
    warehouse: Warehouse,
    *,
    entities: TableRef,
    service: ServiceDefinition,
    tables: Sequence[TableRef],
    where: str | None = None,
    time_column: str = "event_time",
    columns: Sequence[str] = (),
    workdir: Path | None = None,
) -> Iterator[pa.RecordBatchReader]:
    """
    Stream the service's features for each entity row, as known at its time.

    Columns: the key columns of ``entities`` and of the service, ``columns``, the time, ``service.feature_names``, and
    per view ``<view>__event_time`` and ``<view>__arrival_time`` of the value that was chosen. Rows are ordered by
    time, then keys.

    :param entities: table of entity rows at a snapshot.
    :param tables: snapshot of each table that the service reads; others are not looked at.
    :param where: DuckDB predicate over the columns of ``entities``.
    :param columns: more columns of ``entities`` to hand through.
    :raises BadArgument: a table is not named, or a view does not say when its values arrived.
    :raises SchemaMismatch: a column is missing or of another type than declared.
    """
    chosen = choose_tables(service, tables)
    with warehouse.duckdb({**chosen, "spine.entities": entities}, workdir=workdir) as connection:
        keys = list(dict.fromkeys([*warehouse.key(entities.name), *service.keys]))
        handed = [c for c in dict.fromkeys([*keys, *columns]) if c != time_column]
        make_spine(connection, "spine.entities", service, [*handed, time_column], called=entities.name, where=where)
        order = [time_column, *(k for k in keys if k != time_column)]
        yield join_features(connection, "spine_rows", service, time_column=time_column, order_by=order).to_arrow_reader(
            warehouse.config.rows_per_chunk
        )


def choose_tables(service: ServiceDefinition, tables: Sequence[TableRef]) -> dict[str, TableRef]:
    """
    The snapshot of each table that a service reads.

    :raises BadArgument: one is not among ``tables``, or is there with two snapshots.
    """
    named: dict[str, TableRef] = {}
    for ref in tables:
        if named.setdefault(ref.name, ref) != ref:
            raise BadArgument(f"table {ref.name} is named twice: {named[ref.name]} and {ref}", "name one snapshot")
    missing = [name for name in service.tables if name not in named]
    if missing:
        raise BadArgument(
            f"feature service {service.name} reads {', '.join(missing)}, which tables does not name",
            f"pass their snapshots, e.g. the results of the tasks that write them; named: {', '.join(named) or 'none'}",
        )
    return {name: named[name] for name in service.tables}


def make_spine(
    connection: duckdb.DuckDBPyConnection,
    relation: str,
    service: ServiceDefinition,
    columns: Sequence[str],
    *,
    called: str,
    where: str | None = None,
) -> None:
    """
    A DuckDB view ``spine_rows``: ``columns`` of ``relation``, then the service's request columns in their types.

    :param called: the relation's name for people.
    :raises SchemaMismatch: a column is missing or of another type.
    """
    present = types_of(connection, relation)
    missing = [c for c in [*columns, *service.keys, *(f.name for f in service.request)] if c not in present]
    if missing:
        raise SchemaMismatch(
            f"{called} has no column {', '.join(dict.fromkeys(missing))}",
            f"feature service {service.name} needs it in each entity row; there are {', '.join(present)}",
        )
    selected = [quote(c) for c in dict.fromkeys([*columns, *service.keys])]
    for field in service.request:
        _refuse_type(called, field.name, present[field.name], DUCKDB_TYPES[field.type])
        if field.name not in (*columns, *service.keys):
            selected.append(f"CAST({quote(field.name)} AS {DUCKDB_TYPES[field.type][0]}) AS {quote(field.name)}")
    condition = f" WHERE {where}" if where else ""
    connection.execute(
        f"CREATE TEMP VIEW spine_rows AS SELECT {', '.join(selected)} FROM {quote_path(relation)}{condition}"
    )


def join_features(
    connection: duckdb.DuckDBPyConnection,
    spine: str,
    service: ServiceDefinition,
    *,
    time_column: str,
    order_by: Sequence[str] = (),
) -> duckdb.DuckDBPyRelation:
    """
    The spine's rows with the service's features and their evidence. Lazy.

    :raises BadArgument: a view does not say when its values arrived, or names collide.
    :raises SchemaMismatch: a feature is missing or of another type than declared.
    """
    for view in service.views:
        check_view(connection, view)
    specs = [view.spec() for view in service.views]
    return point_in_time_join(connection, spine, specs, time_column=time_column, order_by=order_by)


def check_view(connection: duckdb.DuckDBPyConnection, view: ViewDefinition) -> None:
    """
    Compare a view's declaration with its table.

    :raises SchemaMismatch: a column is missing or of another type than declared.
    :raises BadArgument: nothing says when its values became known.
    """
    present = types_of(connection, view.table)
    needed = [*view.keys, view.event_time, *([view.arrival_time] if view.arrival_time else [])]
    missing = [c for c in [*needed, *(f.name for f in view.features)] if c not in present]
    if missing:
        raise SchemaMismatch(
            f"feature view {view.name}: table {view.table} has no column {', '.join(missing)}",
            f"it has {', '.join(present)}; correct the view or the SQL that makes the table",
        )
    for column in (view.event_time, view.arrival_time):
        if column:
            _refuse_type(view.table, column, present[column], DUCKDB_TYPES["timestamp"])
    for field in view.features:
        # Not widened: the online store would serve another type than the model was trained on.
        _refuse_type(view.table, field.name, present[field.name], DUCKDB_TYPES[field.type][:1])
    if not arrival_column(view, present) and not view.known_at_event:
        raise BadArgument(
            f"feature view {view.name} does not say when its values became known: leakage could not be ruled out",
            "give its source a created_timestamp_column, or state tags={'known': 'at_event'} on the view",
        )


def arrival_column(view: ViewDefinition, columns: Mapping[str, str]) -> str:
    """
    The column that tells when a view's values arrived: the declared one or, where none is, ``arrival_time`` if the
    table has it, since a view that overlooks it leaks. Empty if there is none.
    """
    return view.arrival_time or ("arrival_time" if "arrival_time" in columns else "")


def types_of(connection: duckdb.DuckDBPyConnection, relation: str) -> dict[str, str]:
    """DuckDB's type of each column of a table or view."""
    rows = connection.execute(f"DESCRIBE SELECT * FROM {quote_path(relation)}").fetchall()
    return {str(row[0]): str(row[1]) for row in rows}


def _refuse_type(table: str, column: str, found: str, expected: Sequence[str]) -> None:
    if found not in expected:
        raise SchemaMismatch(
            f"{table}: column {column} is {found}, declared is {expected[0]}",
            "cast it in the SQL that makes the table, or declare it as it is",
        )
