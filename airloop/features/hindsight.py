"""
The look-ahead gate, against hindsight: a feature is the same if nothing later had happened.

A window that reaches past the time of its value, a mean over the whole table, a rate that counts the very row it is
joined to: all of them use what was known only later, and say an earlier arrival time. So the SQL runs once more for
some earlier times ``T``, seeing only input rows that were known by ``T``. Every row of the result that claims to have
arrived by ``T`` must come out again with the same values (numbers within a relative :data:`SAME`: sums in another
order round differently). That is exact: no row is refused by chance.

What it cannot see: inputs without a column that says when a row became known, a value that looks ahead less than to
the first row known after ``T`` (several ``T`` make that unlikely), and inputs whose own times are wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from airloop.errors import BadArgument, LeakageFound
from airloop.features.asof import quote, quote_path, time_literal

if TYPE_CHECKING:
    from airloop.contract import Interval
    from airloop.features.query import Query, Result

CUTS = (0.3, 0.6, 0.9)
"""Quantiles of the arrival times at which the SQL runs again."""
SAME = 1e-9
ARRIVAL = "arrival_time"
SHOWN = 3


def refuse_hindsight(
    result: Result, query: Query, interval: Interval | None, *, known: Mapping[str, str], table: str
) -> dict[str, Any]:
    """
    Hold a result with ``arrival_time`` against what the same SQL gives of what was known earlier.

    :param known: by input, its column that says when a row became known; other inputs are read whole.
    :param table: the result's name for people.
    :returns: the times and how many rows were compared at each.
    :raises BadArgument: an input or column is not there, or the result has no ``arrival_time``.
    :raises LeakageFound: names columns, rows, keys, times and values.
    """
    _check(result, known, table)
    connection = result.connection
    whole = {name: _renamed(result, name) for name in known}
    compared = []
    for cut in _cuts(result):
        for name, column in known.items():
            connection.execute(
                f"CREATE OR REPLACE VIEW {quote_path(name)} AS SELECT * FROM {whole[name]} "
                f"WHERE {quote(column)} <= {time_literal(cut)}"
            )
        connection.execute(f"CREATE OR REPLACE TEMP TABLE earlier AS ({query.sql}\n)", query.bind(interval))
        rows = _refuse_differing(result, cut, known, table)
        compared.append({"until": cut.isoformat(), "rows": rows})
    connection.execute("DROP TABLE IF EXISTS earlier")
    return {"known": dict(known), "cuts": compared}


def _check(result: Result, known: Mapping[str, str], table: str) -> None:
    if result.columns.get(ARRIVAL) != "TIMESTAMP WITH TIME ZONE":
        raise BadArgument(
            f"{table}: the result has no {ARRIVAL} of type TIMESTAMPTZ, so nothing says when its rows were known",
            "select one, or leave out known",
        )
    if not result.key:
        raise BadArgument(f"{table}: known needs a key", "name the columns that tell rows apart")
    for name, column in known.items():
        try:
            rows = result.connection.execute(f"DESCRIBE SELECT * FROM {quote_path(name)}").fetchall()
        except Exception as cause:
            raise BadArgument(f"known names {name}, which is no input", "name the inputs as the SQL does") from cause
        types = {str(row[0]): str(row[1]) for row in rows}
        if types.get(column) != "TIMESTAMP WITH TIME ZONE":
            raise BadArgument(
                f"input {name} has no column {column} of type TIMESTAMPTZ", f"it has {', '.join(sorted(types))}"
            )


def _renamed(result: Result, name: str) -> str:
    *schema, last = name.split(".")
    hidden = f"airloop_whole_{last}"
    result.connection.execute(f"ALTER VIEW {quote_path(name)} RENAME TO {quote(hidden)}")
    return quote_path(".".join([*schema, hidden]))


def _cuts(result: Result) -> list[datetime]:
    """Distinct times, ascending; the last row of all has nothing after it."""
    quantiles = f"[{', '.join(map(str, CUTS))}]"
    row = result.connection.execute(
        f"SELECT list_transform(quantile_disc({ARRIVAL}, {quantiles}), t -> epoch_us(t)) FROM result"
    ).fetchone()
    from datetime import UTC, timedelta

    found = sorted(set((row[0] if row else None) or []))
    return [datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=us) for us in found]


def _refuse_differing(result: Result, cut: datetime, known: Mapping[str, str], table: str) -> int:
    connection = result.connection
    columns = [c for c in result.columns if c not in result.key]
    differs = {c: _differs(quote(c), result.columns[c]) for c in columns}
    on = " AND ".join(f"a.{quote(k)} = b.{quote(k)}" for k in result.key)
    claimed = f"(SELECT * FROM result WHERE {ARRIVAL} <= {time_literal(cut)})"
    gone = f"b.{quote(result.key[0])} IS NULL"
    joined = f"{claimed} AS a LEFT JOIN earlier AS b ON {on}"
    counts = ", ".join([f"count(*) FILTER (NOT {gone} AND {d})" for d in differs.values()] or ["0"])
    any_differs = " OR ".join([gone, *differs.values()])
    found = connection.execute(
        f"SELECT count(*), count(*) FILTER ({any_differs}), count(*) FILTER ({gone}), {counts} FROM {joined}"
    ).fetchone()
    assert found is not None
    rows, wrong, missing = (int(n) for n in found[:3])
    if not wrong:
        return rows
    named = [f"{c} ({n:,} rows)" for c, n in zip(columns, found[3:], strict=False) if n]
    if missing:
        named.append(f"the whole row ({missing:,} rows)")
    raise LeakageFound(
        f"{table}: {wrong:,} of {rows:,} rows that say they were known by {cut.isoformat(sep=' ')} come out otherwise "
        f"from what was known then of {', '.join(known)}: {', '.join(named)}; first: "
        f"{_first(result, joined, any_differs, differs)}",
        "end the SQL's windows before what they are joined to, or let arrival_time say when the values can be known",
    )


def _differs(column: str, kind: str) -> str:
    same = f"a.{column} IS NOT DISTINCT FROM b.{column}"
    if kind in ("DOUBLE", "FLOAT"):
        same += f" OR coalesce(abs(a.{column} - b.{column}) <= {SAME} * greatest(1, abs(a.{column})), false)"
    return f"NOT ({same})"


def _first(result: Result, joined: str, where: str, differs: Mapping[str, str]) -> str:
    keys = ", ".join(f"CAST(a.{quote(k)} AS VARCHAR)" for k in result.key)
    values = ", ".join(
        f"CASE WHEN {d} THEN concat({_text(f'a.{quote(c)}')}, ' instead of ', {_text(f'b.{quote(c)}')}) END"
        for c, d in differs.items()
    )
    rows = result.connection.execute(
        f"SELECT {keys}{', ' + values if values else ''} FROM {joined} WHERE {where} ORDER BY {keys} LIMIT {SHOWN}"
    ).fetchall()
    size = len(result.key)
    return "; ".join(
        ", ".join(f"{k}={v}" for k, v in zip(result.key, row, strict=False))
        + ": "
        + ", ".join(f"{c} {v}" for c, v in zip(differs, row[size:], strict=True) if v is not None)
        for row in rows
    )


def _text(value: str) -> str:
    return f"coalesce(CAST({value} AS VARCHAR), 'NULL')"
