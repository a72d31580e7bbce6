"""
Which interval of time a task works on.

In this order: the task's own ``interval`` argument; the run's data interval, if it has one that is not empty; the
run's partition key; the time from the beginning of the earliest to the end of the latest interval that the triggering
asset events carry (Airflow starts one run for all events that have queued up, and none of them may be lost). Else
there is none, and a step that needs one says so. (``{{ ds }}`` does not exist in a run whose logical date is null.)
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any

from airloop.contract import Interval
from airloop.errors import BadInterval

log = logging.getLogger(__name__)


def interval_of(context: Mapping[str, Any], explicit: object = None) -> Interval | None:
    """
    Interval of the task that runs in ``context``.

    :param explicit: the task's own argument: ``start/end``, a mapping, or None.
    :raises BadInterval: the explicit argument or the partition key cannot be read.
    """
    if explicit is not None:
        return Interval.parse(explicit)  # type: ignore[arg-type]
    start, end = context.get("data_interval_start"), context.get("data_interval_end")
    if start is not None and end is not None and start < end:
        return Interval(start, end)
    run = context.get("dag_run")
    key = getattr(run, "partition_key", None) or context.get("partition_key")
    if key:
        zone = getattr(context.get("dag"), "timezone", None) or UTC
        return partition_interval(key, zone)
    return _interval_of_events(context.get("triggering_asset_events") or {})


def partition_interval(key: str, zone: tzinfo) -> Interval:
    """
    Interval that a partition key stands for: ``2013``, ``2013-01``, ``2013-01-31``, ``2013-01-31T05`` or ``start/end``.

    :param zone: time zone of keys that name none.
    :raises BadInterval: the key is none of these.
    """
    if "/" in key:
        return Interval.parse(key)
    match = re.fullmatch(r"(\d{4})(?:-(\d\d)(?:-(\d\d)(?:T(\d\d)(?::?00){0,2})?)?)?", key)
    if not match:
        raise BadInterval(
            f"partition key {key!r} is not a time", "use 2013, 2013-01, 2013-01-31, 2013-01-31T05, or pass interval="
        )
    year, month, day, hour = (int(part) if part else None for part in match.groups())
    try:
        start = datetime(year or 0, 1 if month is None else month, 1 if day is None else day, hour or 0)
        if month is None:
            end = start.replace(year=start.year + 1)
        elif day is None:
            end = start.replace(year=start.year + start.month // 12, month=start.month % 12 + 1)
        else:
            end = start + timedelta(days=1)
    except (ValueError, OverflowError) as cause:
        raise BadInterval(f"partition key {key!r} is no date: {cause}", "use a day of the calendar") from cause
    if hour is not None:
        begin = start.replace(tzinfo=zone).astimezone(UTC)
        return Interval(begin, begin + timedelta(hours=1))
    # Wall-clock midnights: a day in New York has 23 or 25 hours twice a year.
    return Interval(start.replace(tzinfo=zone), end.replace(tzinfo=zone))


def _interval_of_events(events: Mapping[Any, Iterable[Any]]) -> Interval | None:
    carried = ((getattr(event, "extra", None) or {}).get("interval") for group in events.values() for event in group)
    found = {Interval.parse(interval) for interval in carried if interval}
    if not found:
        return None
    whole = Interval(min(i.start for i in found), max(i.end for i in found))
    if len(found) > 1:
        log.info("This run stands for %d events; it works on all of their time, %s", len(found), whole)
    return whole
