"""
Which rows of a feature table the online store has not seen.

A row counts from the moment when it is both true and known, ``greatest(event time, arrival time)``. Rows that count
from after the watermark are new. So are rows that somebody committed since, though they arrived before it: late files,
corrected hours. Those are found by comparing the data files of the two snapshots and reading the least arrival time
from Iceberg's own file statistics; no row of an unchanged file is read for that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from airloop.warehouse.catalog import Warehouse

NOTHING_NEW = 2**63 - 1
"""What :func:`first_arrival_since` returns if no file was added."""


def first_arrival_since(warehouse: Warehouse, name: str, old: int, new: int, column: str) -> int | None:
    """
    Least arrival time among rows in data files that snapshot ``new`` has and ``old`` has not.

    A rewritten file counts whole, so the answer may be earlier than the first truly new row, never later. A compaction
    brings no rows.

    :param old: snapshot id; 0: the empty table.
    :param column: the table's arrival time.
    :returns: microseconds since 1970, :data:`NOTHING_NEW`, or None if the table cannot tell (a snapshot has expired,
        a file has no statistics).
    """
    if old == new:
        return NOTHING_NEW
    from airloop.warehouse.read import files_since

    table = warehouse.table(name)
    if any(snapshot and table.snapshot_by_id(snapshot) is None for snapshot in (old, new)):
        return None
    arrival = table.schema().find_field(column).field_id
    least = NOTHING_NEW
    for file in files_since(table, old, new):
        bounds = file.bounds(table.schema(), arrival)
        if bounds is None:
            return None
        least = min(least, cast(int, bounds[0]))
    return least


def counts_from(until_us: int | None, first_late_us: int | None) -> int | None:
    """
    Rows that count from later than this, microseconds since 1970, have to be looked at; None: all.

    :param until_us: the watermark, or None if there is none.
    :param first_late_us: see :func:`first_arrival_since`.
    """
    if until_us is None or first_late_us is None:
        return None
    return min(until_us, first_late_us - 1)
