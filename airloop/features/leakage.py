"""
The leakage gate: every value in a joined table was known at the row's time.

It does not trust the join, nor the times that the join reports. For each row and view it looks into the view's own
snapshot for a row with the same keys, event time and feature values that had arrived by the prediction time. If there
is none, the value leaked or came from nowhere. A view that declares no arrival time is checked by the table's
``arrival_time`` if it has one. Request columns are taken as known unless the table says when, in
``<column>__arrival_time``.

What it cannot see: a table whose arrival times are wrong, or that was computed from later data than it says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from airloop.errors import LeakageFound
from airloop.features.asof import quote, quote_path
from airloop.features.definitions import ServiceDefinition, ViewDefinition
from airloop.features.offline import arrival_column, types_of

if TYPE_CHECKING:
    import duckdb

SHOWN = 3
"""Rows named in an error."""


@dataclass(frozen=True, slots=True)
class Leak:
    """Rows of a joined table that use values they must not."""

    view: str
    """Feature view, or ``request``."""
    features: tuple[str, ...]
    """Columns that have a value in such rows."""
    rows: int
    reason: str
    first: tuple[str, ...]

    def __str__(self) -> str:
        where = f"feature view {self.view}" if self.view != "request" else "request column"
        return f"{where} ({', '.join(self.features)}): {self.rows:,} rows {self.reason}; first: {'; '.join(self.first)}"


def refuse_leaks(
    connection: duckdb.DuckDBPyConnection,
    joined: str,
    service: ServiceDefinition,
    *,
    keys: Sequence[str],
    time_column: str = "event_time",
) -> dict[str, Any]:
    """
    Check every row of ``joined``.

    :param joined: DuckDB table with ``keys``, the time, ``service.feature_names`` and ``<view>__event_time``.
    :param keys: columns that tell its rows apart, for the error.
    :returns: what was checked: rows, values by view, and request columns whose arrival is known.
    :raises LeakageFound: names features, rows, keys and times.
    """
    leaks: list[Leak] = []
    checked: dict[str, int] = {}
    shown = list(dict.fromkeys([*keys, *service.keys]))
    for view in service.views:
        found, values = check_view_values(connection, joined, view, keys=shown, time_column=time_column)
        leaks += found
        checked[view.name] = values
    columns = types_of(connection, joined)
    dated = [f.name for f in service.request if f"{f.name}__arrival_time" in columns]
    for name in dated:
        leaks += _request_leaks(connection, joined, name, keys=shown, time_column=time_column)
    rows = _count(connection, f"SELECT count(*) FROM {quote_path(joined)}")
    if leaks:
        raise LeakageFound(
            f"features were not known at the time of prediction, of {rows:,} rows: {'. '.join(map(str, leaks))}",
            "declare the arrival time of these values (created_timestamp_column), or leave the feature out",
        )
    return {"rows": rows, "values": checked, "request_columns_dated": dated}


def check_view_values(
    connection: duckdb.DuckDBPyConnection,
    joined: str,
    view: ViewDefinition,
    *,
    keys: Sequence[str],
    time_column: str,
) -> tuple[list[Leak], int]:
    """
    Leaks of one view, and the number of rows that have a value of it.

    :param joined: see :func:`refuse_leaks`.
    :param keys: columns shown of a row that leaks.
    """
    source = types_of(connection, view.table)
    arrival = arrival_column(view, source)
    time = f"j.{quote(time_column)}"
    event_used = f"j.{quote(f'{view.name}__event_time')}"
    has_value = " OR ".join([f"{event_used} IS NOT NULL", *(f"j.{quote(c)} IS NOT NULL" for c in view.columns)])
    same = [f"s.{quote(k)} = j.{quote(e)}" for k, e in zip(view.keys, view.spine_keys, strict=True)]
    same.append(f"s.{quote(view.event_time)} = {event_used}")
    same += [
        f"s.{quote(f.name)} IS NOT DISTINCT FROM j.{quote(c)}" for f, c in zip(view.features, view.columns, strict=True)
    ]
    known = [f"s.{quote(view.event_time)} <= {time}"]
    if arrival:
        known.append(f"s.{quote(arrival)} <= {time}")
    table = quote_path(view.table)

    def without(conditions: list[str]) -> str:
        return f"NOT EXISTS (SELECT 1 FROM {table} AS s WHERE {' AND '.join(conditions)})"

    bad = f"SELECT j.* FROM {quote_path(joined)} AS j WHERE ({has_value}) AND {without(same + known)}"
    values = _count(connection, f"SELECT count(*) FROM {quote_path(joined)} AS j WHERE {has_value}")
    if not _count(connection, f"SELECT count(*) FROM ({bad})"):
        return [], values
    foreign = f"SELECT j.* FROM ({bad}) AS j WHERE {without(same)}"
    late = f"SELECT j.* FROM ({bad}) AS j WHERE NOT ({without(same)})"
    arrived = f"(SELECT min(s.{quote(arrival)}) FROM {table} AS s WHERE {' AND '.join(same)})" if arrival else "NULL"
    found = [
        _leak(connection, late, view, "use a value that arrived after their time", arrived, keys, time_column),
        _leak(connection, foreign, view, f"use a value that {view.table} does not hold", "NULL", keys, time_column),
    ]
    return [leak for leak in found if leak is not None], values


def _leak(
    connection: duckdb.DuckDBPyConnection,
    rows: str,
    view: ViewDefinition,
    reason: str,
    arrived: str,
    keys: Sequence[str],
    time_column: str,
) -> Leak | None:
    counts = connection.execute(
        f"SELECT count(*), {', '.join(f'count({quote(c)})' for c in view.columns)} FROM ({rows})"
    ).fetchone()
    assert counts is not None
    if not counts[0]:
        return None
    order = ", ".join(quote(c) for c in (time_column, *keys))
    first = connection.execute(
        f"SELECT {', '.join(f'j.{quote(c)}' for c in (*keys, time_column, f'{view.name}__event_time'))}, {arrived} "
        f"FROM ({rows}) AS j ORDER BY {order} LIMIT {SHOWN}"
    ).fetchall()
    return Leak(
        view=view.name,
        features=tuple(c for c, n in zip(view.columns, counts[1:], strict=True) if n) or tuple(view.columns),
        rows=int(counts[0]),
        reason=reason,
        first=tuple(
            f"{_named(keys, row)} at {_text(row[len(keys)])} uses a value of {_text(row[len(keys) + 1])}"
            + (f" that arrived {_text(row[len(keys) + 2])}" if row[len(keys) + 2] is not None else "")
            for row in first
        ),
    )


def _request_leaks(
    connection: duckdb.DuckDBPyConnection, joined: str, name: str, *, keys: Sequence[str], time_column: str
) -> list[Leak]:
    arrival, time = quote(f"{name}__arrival_time"), quote(time_column)
    late = f"({arrival} IS NULL OR {arrival} > {time})"
    rows = f"SELECT * FROM {quote_path(joined)} WHERE {quote(name)} IS NOT NULL AND {late}"
    count = _count(connection, f"SELECT count(*) FROM ({rows})")
    if not count:
        return []
    order = ", ".join(quote(c) for c in (time_column, *keys))
    first = connection.execute(
        f"SELECT {', '.join(map(quote, keys))}, {time}, {arrival} FROM ({rows}) ORDER BY {order} LIMIT {SHOWN}"
    ).fetchall()
    shown = tuple(f"{_named(keys, row)} at {_text(row[-2])}, known {_text(row[-1])}" for row in first)
    return [Leak("request", (name,), count, "use a value that was known only after their time", shown)]


def _named(keys: Sequence[str], row: Sequence[Any]) -> str:
    return " ".join(f"{key}={value}" for key, value in zip(keys, row, strict=False))


def _text(time: Any) -> str:
    return "never" if time is None else str(time.isoformat(sep=" ", timespec="seconds"))


def _count(connection: duckdb.DuckDBPyConnection, query: str) -> int:
    row = connection.execute(query).fetchone()
    assert row is not None
    return int(row[0])
