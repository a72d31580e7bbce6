"""
Point-in-time joins in DuckDB: which value was known, and the newest, at each entity row's time.

A feature row speaks about its *event time* and became known at its *arrival time*. At time ``t`` the right row of a
key is, among rows with ``event_time <= t`` and ``arrival_time <= t``, the one with the greatest event time; between
equals the greatest arrival time; between equals again the greatest feature values, compared in the declared order
with NULL the least. That order is total, so the result does not depend on the order of rows in files.

``ASOF JOIN`` compares one time only. A row is usable from ``a = greatest(event_time, arrival_time)`` on. In the order
of ``a``, a row that is older by event time than one before it is never the right one again; without such rows, and
with the best row only of those with the same ``a``, the last row with ``a <= t`` is the right one. That timeline costs
a sort, which is skipped where a look at the keys and times alone shows that every row is on it: arrival follows event
by one constant lag and no key has two rows of one event time. Then the join carries one time instead of three.

A time to live needs no more: if the right row's event time is too old, so are all others'.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from airloop.errors import BadArgument
from airloop.warehouse.distinct import all_distinct

if TYPE_CHECKING:
    import duckdb

ROWS_AT_FIRST = 100_000
"""Rows that are looked at before all are."""


@dataclass(frozen=True, slots=True)
class ViewSpec:
    """A feature view as the join sees it."""

    name: str
    """Prefix of the output columns."""
    relation: str
    """Table or view in DuckDB; dots separate schema and name."""
    keys: tuple[str, ...]
    """Key columns; none: one value for everybody. A NULL key on either side never matches."""
    features: tuple[str, ...]
    ttl: timedelta | None = None
    """A value is used while ``event_time >= t - ttl``, both inclusive as in Feast; None: for ever."""
    event_time: str = "event_time"
    arrival_time: str = "arrival_time"
    """Empty: a value counts as known at its event time. A row whose arrival time is NULL is not known yet."""
    spine_keys: tuple[str, ...] = ()
    """Columns of the spine compared with ``keys``; empty: the same names."""


def quote(name: str) -> str:
    """An SQL identifier. :raises BadArgument: it is empty."""
    if not name:
        raise BadArgument("an empty name is no SQL identifier")
    return '"' + name.replace('"', '""') + '"'


def quote_path(name: str) -> str:
    """An SQL identifier with schema: each part between dots quoted."""
    return ".".join(quote(part) for part in name.split("."))


def time_literal(time: datetime) -> str:
    """A time in SQL; one without a zone is UTC."""
    aware = time if time.tzinfo else time.replace(tzinfo=UTC)
    return f"TIMESTAMPTZ '{aware.astimezone(UTC).isoformat(sep=' ')}'"


def point_in_time_join(
    connection: duckdb.DuckDBPyConnection,
    spine: str,
    views: Sequence[ViewSpec],
    *,
    time_column: str = "event_time",
    full_names: bool = True,
    evidence: bool = True,
    order_by: Sequence[str] = (),
) -> duckdb.DuckDBPyRelation:
    """
    Join to each row of ``spine`` the values of ``views`` that were known and newest at its time. Lazy.

    Every row of the spine comes out once, with NULL where nothing was known. Their order is ``order_by``.

    :param spine: table or view of entity rows; its columns all come out, first.
    :param time_column: timestamp column of the spine; a row where it is NULL gets no values.
    :param full_names: name columns ``<view>__<feature>``; otherwise ``<feature>``.
    :param evidence: add at the end, per view, ``<view>__event_time`` and ``<view>__arrival_time`` of the row that was
        chosen, NULL where there was none. Without an arrival time column the second repeats the first.
    :param order_by: columns of the result.
    :raises BadArgument: a column is missing, or two columns would have the same name.
    """
    # Parquet files that are read with a schema of one's own have no row counts: DuckDB takes them for a few rows and
    # the join for a nested loop, which for 100,000 rows was seen to take 170 seconds instead of 0.1.
    connection.execute("SET asof_loop_join_threshold = 0")
    spine_columns = columns_of(connection, spine)
    _require(spine, spine_columns, [time_column])
    bounds = _time_range(connection, spine, time_column)
    # To DuckDB's ASOF operator a NULL time is later than all others: it would get the last value.
    time = f"coalesce(spine.{quote(time_column)}, TIMESTAMPTZ '-infinity')"
    outputs = [f"spine.{quote(c)}" for c in spine_columns]
    names = list(spine_columns)
    proofs: list[str] = []
    joins: list[str] = []
    ctes: list[str] = []
    for number, view in enumerate(views):
        _require(view.relation, columns_of(connection, view.relation), _needed(view))
        spine_keys = view.spine_keys or view.keys
        _require(spine, spine_columns, spine_keys)
        alias = f"v{number}"
        timeline = _timeline(connection, view, bounds)
        event, arrival = timeline.event.format(alias), timeline.arrival.format(alias)
        ctes.append(f"{alias} AS ({timeline.sql})")
        on = [f"spine.{quote(s)} = {alias}.k{i}" for i, s in enumerate(spine_keys)]
        on.append(f"{time} >= {alias}.a")
        joins.append(f"ASOF LEFT JOIN {alias} ON {' AND '.join(on)}")
        alive = f"{event} >= spine.{quote(time_column)} - {_interval(view.ttl)}" if view.ttl else ""

        def output(name: str, column: str, alive: str = alive) -> str:
            return f"{f'CASE WHEN {alive} THEN {column} END' if alive else column} AS {quote(name)}"

        for i, feature in enumerate(view.features):
            names.append(f"{view.name}__{feature}" if full_names else feature)
            outputs.append(output(names[-1], f"{alias}.f{i}"))
        if evidence:
            proof = {f"{view.name}__event_time": event, f"{view.name}__arrival_time": arrival}
            names += proof
            proofs += [output(name, column) for name, column in proof.items()]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise BadArgument(
            f"the joined table would have two columns named {', '.join(twice)}",
            "rename the feature or the column, give a view an alias, or use full feature names",
        )
    ordered = f" ORDER BY {', '.join(quote(c) for c in order_by)}" if order_by else ""
    heading = f"WITH {', '.join(ctes)} " if ctes else ""
    return connection.sql(
        f"{heading}SELECT {', '.join(outputs + proofs)} FROM {quote_path(spine)} AS spine {' '.join(joins)}{ordered}"
    )


def columns_of(connection: duckdb.DuckDBPyConnection, relation: str) -> list[str]:
    """Names of the columns of a table or view in DuckDB."""
    return [str(row[0]) for row in connection.execute(f"DESCRIBE SELECT * FROM {quote_path(relation)}").fetchall()]


def _require(relation: str, present: Sequence[str], needed: Sequence[str]) -> None:
    missing = [name for name in needed if name not in present]
    if missing:
        raise BadArgument(f"{relation} has no column {', '.join(missing)}", f"it has {', '.join(present)}")


def _needed(view: ViewSpec) -> list[str]:
    return [*view.keys, *view.features, view.event_time, *([view.arrival_time] if view.arrival_time else [])]


def _time_range(connection: duckdb.DuckDBPyConnection, spine: str, time_column: str) -> tuple[str, str] | None:
    """First and last time of the spine as SQL literals; None if it has no row with a time."""
    column = quote(time_column)
    row = connection.execute(
        f"SELECT epoch_us(min({column}::TIMESTAMPTZ)), epoch_us(max({column}::TIMESTAMPTZ)) FROM {quote_path(spine)}"
    ).fetchone()
    if row is None or row[0] is None:
        return None
    return f"make_timestamptz({row[0]})", f"make_timestamptz({row[1]})"


def _interval(duration: timedelta) -> str:
    return f"to_microseconds({duration // timedelta(microseconds=1)})"


@dataclass(frozen=True, slots=True)
class _Timeline:
    """The rows of a view of which the last one with ``a <= t`` is the right one at ``t``."""

    sql: str
    """Key columns ``k*``, features ``f*``, usable from ``a``, and what ``event`` and ``arrival`` need."""
    event: str = "{0}.e"
    """SQL of the event time; ``{0}`` is the name of the relation."""
    arrival: str = "{0}.r"


def _timeline(connection: duckdb.DuckDBPyConnection, view: ViewSpec, bounds: tuple[str, str] | None) -> _Timeline:
    event = quote(view.event_time)
    arrival = quote(view.arrival_time) if view.arrival_time else event
    names = [f"{quote(k)} AS k{i}" for i, k in enumerate(view.keys)]
    names += [f"{quote(f)} AS f{i}" for i, f in enumerate(view.features)]
    # Rows outside the spine's time range can be chosen for none of its rows: files without such rows are not read.
    conditions = [f"{event} IS NOT NULL", f"{arrival} IS NOT NULL", *(f"{quote(k)} IS NOT NULL" for k in view.keys)]
    if bounds is None:
        conditions.append("false")
    else:
        first, last = bounds
        conditions += [f"{event} <= {last}", f"{arrival} <= {last}"]
        if view.ttl:
            conditions.append(f"{event} >= {first} - {_interval(view.ttl)}")
    source = f"FROM {quote_path(view.relation)} WHERE {' AND '.join(conditions)}"
    lag_us = _constant_lag_us(connection, view.relation, source, event, arrival, view.keys)
    if lag_us is not None and lag_us >= 0:
        rows = f"SELECT {', '.join([*names, f'{arrival} AS a'])} {source}"
        return _Timeline(rows, event=f"{{0}}.a - to_microseconds({lag_us})", arrival="{0}.a")
    if lag_us is not None:
        rows = f"SELECT {', '.join([*names, f'{event} AS a'])} {source}"
        return _Timeline(rows, event="{0}.a", arrival=f"{{0}}.a - to_microseconds({-lag_us})")
    usable = f"greatest({event}, {arrival})"
    rows = f"SELECT {', '.join([*names, f'{event} AS e', f'{arrival} AS r', f'{usable} AS a'])} {source}"
    keys = ", ".join(f"k{i}" for i in range(len(view.keys)))
    ties = [f"f{i} NULLS FIRST" for i in range(len(view.features))]
    window = f"({f'PARTITION BY {keys} ' if keys else ''}ORDER BY {', '.join(['a', 'e', 'r', *ties])}"
    return _Timeline(
        f"SELECT * FROM ({rows}) QUALIFY lead(a) OVER {window}) IS DISTINCT FROM a "
        f"AND e >= max(e) OVER {window} ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW)"
    )


def _constant_lag_us(
    connection: duckdb.DuckDBPyConnection, relation: str, source: str, event: str, arrival: str, keys: Sequence[str]
) -> int | None:
    """
    Microseconds by which every arrival follows its event, if no key has two rows of one event time; else None.

    Two equal hashes by chance only cost the sort.
    """
    types = connection.execute(f"SELECT typeof({event}), typeof({arrival}) {source} LIMIT 1").fetchone()
    if types is None:
        return 0
    # Other types are finer or coarser than a lag in microseconds.
    if types[0] != types[1] or types[0] not in ("TIMESTAMP WITH TIME ZONE", "TIMESTAMP"):
        return None
    lag = f"epoch_us({arrival}) - epoch_us({event})"
    # Where arrivals are irregular, some rows show it.
    some = f"SELECT {lag} AS lag {source} LIMIT {ROWS_AT_FIRST}"
    looked = connection.execute(f"SELECT min(lag), max(lag) FROM ({some})").fetchone()
    if looked is None or looked[0] is None or looked[0] != looked[1]:
        return None
    lag_us = int(looked[0])
    counted = connection.execute(f"SELECT count(*) FROM {quote_path(relation)}").fetchone()
    assert counted is not None
    identity = f"CASE WHEN {lag} = {lag_us} THEN hash({', '.join([*map(quote, keys), event])}) END"
    return lag_us if all_distinct(connection, identity, source, counted[0]) else None
