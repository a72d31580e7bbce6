"""Which interval a task works on."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from types import SimpleNamespace
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from airloop.contract import Interval
from airloop.errors import BadInterval
from airloop_operators.intervals import interval_of, partition_interval

NEW_YORK = ZoneInfo("America/New_York")
START, END = datetime(2013, 1, 1, tzinfo=UTC), datetime(2013, 2, 1, tzinfo=UTC)


def _context(**more: Any) -> dict[str, Any]:
    return {"dag_run": SimpleNamespace(partition_key=None), "dag": SimpleNamespace(timezone=NEW_YORK), **more}


def test_the_runs_data_interval_comes_first() -> None:
    context = _context(data_interval_start=START, data_interval_end=END)
    assert interval_of(context) == Interval(START, END)


def test_an_explicit_argument_is_what_its_author_wants() -> None:
    context = _context(data_interval_start=START, data_interval_end=END)
    assert interval_of(context, "2013-03-01T00:00+00:00/2013-04-01T00:00+00:00") == Interval(
        datetime(2013, 3, 1, tzinfo=UTC), datetime(2013, 4, 1, tzinfo=UTC)
    )


def test_an_empty_data_interval_falls_through_to_the_partition_key() -> None:
    context = _context(data_interval_start=START, data_interval_end=START)
    context["dag_run"] = SimpleNamespace(partition_key="2013-02")
    assert interval_of(context) == Interval(
        datetime(2013, 2, 1, tzinfo=NEW_YORK), datetime(2013, 3, 1, tzinfo=NEW_YORK)
    )


def test_events_that_carry_an_interval_are_the_last_resort() -> None:
    extra = {"interval": {"start": "2013-01-02T00:00+00:00", "end": "2013-01-03T00:00+00:00"}}
    events = {"a": [SimpleNamespace(extra=extra)] * 2, "b": [SimpleNamespace(extra={})]}
    assert interval_of(_context(triggering_asset_events=events)) == Interval.parse(extra["interval"])


def test_events_that_queued_up_are_all_worked_on(caplog: pytest.LogCaptureFixture) -> None:
    days = [f"2013-01-0{day}T00:00+00:00" for day in (1, 2, 3, 4)]
    extras = [{"interval": {"start": a, "end": b}} for a, b in pairwise(days)]
    events = {"a": [SimpleNamespace(extra=extras[2]), SimpleNamespace(extra=extras[0])]}
    with caplog.at_level(logging.INFO):
        assert interval_of(_context(triggering_asset_events=events)) == Interval.parse(f"{days[0]}/{days[3]}")
    assert "stands for 2 events" in caplog.text


def test_a_run_may_have_no_interval() -> None:
    assert interval_of(_context(data_interval_start=None, data_interval_end=None)) is None


@pytest.mark.parametrize(
    ("key", "hours"),
    [
        ("2013", 365 * 24),
        ("2013-12", 31 * 24),
        ("2013-03-10", 23),  # clocks go forward
        ("2013-11-03", 25),  # clocks go back
        ("2013-07-04T05", 1),
    ],
)
def test_a_partition_key_is_wall_clock_time_in_the_dags_zone(key: str, hours: int) -> None:
    interval = partition_interval(key, NEW_YORK)
    assert interval.end - interval.start == timedelta(hours=hours)


@pytest.mark.parametrize("key", ["2013-13", "2013-00", "2013-01-00", "9999", "2013-02-30", "eu-west", "13-01"])
def test_a_partition_key_that_is_no_time_is_named(key: str) -> None:
    with pytest.raises(BadInterval, match=key):
        partition_interval(key, UTC)
