"""The contract of labels: what was true, about when, and when it became known."""

from __future__ import annotations

from typing import Any

from airloop.errors import RejectedRows, SchemaMismatch
from airloop.features.asof import quote
from airloop.features.query import Result

_TIME = "TIMESTAMP WITH TIME ZONE"
_WHOLE = frozenset({"TINYINT", "SMALLINT", "INTEGER", "BIGINT"})
_REAL = frozenset({"FLOAT", "DOUBLE"})


def check_labels(result: Result, *, table: str) -> None:
    """
    Columns ``event_time`` and ``arrival_time`` (timestamptz) and ``label`` (boolean, 0/1 or a real number), none of
    them NULL, nor a key; nothing is known before it happened.

    :raises SchemaMismatch: a column is missing or of another type.
    :raises RejectedRows: rows break the rules; all rules are named, each with its first rows.
    """
    columns = result.columns
    label = columns.get("label", "")
    faults = [
        f"{name} is {columns.get(name, 'missing')}, expected timestamptz"
        for name in ("event_time", "arrival_time")
        if columns.get(name) != _TIME
    ]
    if label != "BOOLEAN" and label not in _WHOLE | _REAL:
        faults.append(f"label is {label or 'missing'}, expected boolean, a whole number 0 or 1, or a real number")
    if faults:
        raise SchemaMismatch(f"{table}: {'; '.join(faults)}", "see airloop.features.outcomes for what labels are")
    rules = {f"{c} is NULL": f"{quote(c)} IS NULL" for c in [*result.key, "event_time", "arrival_time", "label"]}
    rules["arrival_time is before event_time"] = "arrival_time < event_time"
    if label in _WHOLE:
        rules["label is neither 0 nor 1"] = "label NOT IN (0, 1)"
    if label in _REAL:
        rules["label is NaN or infinite"] = "NOT isfinite(label)"
    broken = []
    for rule, where in rules.items():
        count = result.count(where)
        if count:
            broken.append(f"{rule} in {count:,} rows (first: {result.first(where)})")
    if broken:
        raise RejectedRows(
            f"{table}: of {result.count():,} labels, {'; '.join(broken)}",
            "nothing was written; correct the SQL or leave these rows out with a rule that the header explains",
        )


def describe_labels(result: Result) -> dict[str, Any]:
    """What the labels are about, for people: mean, and first and last of both times; empty if there are none."""
    row = result.connection.execute(
        "SELECT avg(CAST(label AS DOUBLE)), min(event_time), max(event_time), min(arrival_time), max(arrival_time),"
        " median(date_part('epoch', arrival_time) - date_part('epoch', event_time)) FROM result"
    ).fetchone()
    if row is None or row[0] is None:
        return {}
    times = [value.isoformat() for value in row[1:5]]
    return {
        "mean": row[0], "first_event": times[0], "last_event": times[1], "first_arrival": times[2],
        "last_arrival": times[3], "median_delay_s": row[5],
    }  # fmt: skip
