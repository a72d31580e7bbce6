from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import duckdb
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airloop.errors import BadArgument
from airloop.sources.localtime import add_functions

NEW_YORK = "America/New_York"


@pytest.fixture(scope="module")
def connection() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as connection:
        add_functions(connection)
        yield connection


def expected(local: datetime, zone: str) -> datetime | None:
    """By the definition: the first instant whose wall clock shows ``local``."""
    for fold in (0, 1):
        instant = local.replace(tzinfo=ZoneInfo(zone), fold=fold).astimezone(UTC)
        if instant.astimezone(ZoneInfo(zone)).replace(tzinfo=None) == local:
            return instant
    return None


def asked(connection: duckdb.DuckDBPyConnection, times: list[datetime], zone: str) -> list[datetime | None]:
    found = connection.execute(
        "SELECT local_to_utc(t, $zone) FROM (SELECT unnest($times::TIMESTAMP[]) AS t)", {"times": times, "zone": zone}
    ).fetchall()
    return [instant.astimezone(UTC) if instant else None for (instant,) in found]


@pytest.mark.parametrize("day", [date(2013, 3, 10), date(2013, 11, 3), date(2013, 7, 4)])
def test_every_minute_of_both_changes_as_hhmm(connection: duckdb.DuckDBPyConnection, day: date) -> None:
    minutes = [(h, m) for h in range(24) for m in range(60)]
    found = connection.execute(
        "SELECT local_hhmm($day::DATE, hhmm, 'America/New_York') FROM (SELECT unnest($hhmm::INT[]) AS hhmm)",
        {"day": day, "hhmm": [100 * h + m for h, m in minutes]},
    ).fetchall()
    assert [i.astimezone(UTC) if i else None for (i,) in found] == [
        expected(datetime(day.year, day.month, day.day, h, m), NEW_YORK) for h, m in minutes
    ]


def test_a_skipped_hour_is_null_and_a_doubled_one_is_the_first(connection: duckdb.DuckDBPyConnection) -> None:
    times = [datetime(2013, 3, 10, 2, 30), datetime(2013, 11, 3, 1, 30), datetime(2013, 11, 3, 2, 0)]
    assert asked(connection, times, NEW_YORK) == [
        None,
        datetime(2013, 11, 3, 5, 30, tzinfo=UTC),
        datetime(2013, 11, 3, 7, 0, tzinfo=UTC),
    ]


@pytest.mark.parametrize(
    ("hhmm", "instant"),
    [
        ("0", "2013-01-01T05:00:00"),
        ("517", "2013-01-01T10:17:00"),
        ("2359", "2013-01-02T04:59:00"),
        ("2400", "2013-01-02T05:00:00"),
        ("2401", None),
        ("175", None),
        ("-5", None),
        ("NULL", None),
    ],
)
def test_numbers_as_times_of_day(connection: duckdb.DuckDBPyConnection, hhmm: str, instant: str | None) -> None:
    (found,) = connection.execute(f"SELECT local_hhmm(DATE '2013-01-01', {hhmm}, '{NEW_YORK}')").fetchall()[0]
    assert found == (datetime.fromisoformat(instant).replace(tzinfo=UTC) if instant else None)


@given(
    st.lists(
        st.datetimes(min_value=datetime(1971, 1, 1), max_value=datetime(2037, 12, 31)).map(
            lambda t: t.replace(microsecond=0)
        ),
        min_size=1,
        max_size=20,
    ),
    st.sampled_from([NEW_YORK, "Europe/London", "Australia/Lord_Howe", "Asia/Kathmandu", "UTC", "Africa/Casablanca"]),
)
def test_any_time_in_many_zones(connection: duckdb.DuckDBPyConnection, times: list[datetime], zone: str) -> None:
    assert asked(connection, times, zone) == [expected(time, zone) for time in times]


def test_half_an_hour_back_and_a_day_left_out(connection: duckdb.DuckDBPyConnection) -> None:
    start = datetime(2013, 4, 7)
    times = [start + timedelta(minutes=10 * i) for i in range(36)]
    assert asked(connection, times, "Australia/Lord_Howe") == [expected(t, "Australia/Lord_Howe") for t in times]
    assert asked(connection, [datetime(2011, 12, 30, 12)], "Pacific/Apia") == [None]


def test_zones_may_differ_by_row(connection: duckdb.DuckDBPyConnection) -> None:
    found = connection.execute(
        "SELECT local_to_utc(TIMESTAMP '2013-07-01 12:00:00', z) FROM (VALUES ('UTC'), ('America/New_York')) t(z)"
    ).fetchall()
    assert [i.astimezone(UTC).hour for (i,) in found] == [12, 16]


def test_years_beyond_python_s_are_null(connection: duckdb.DuckDBPyConnection) -> None:
    assert connection.execute(f"SELECT local_to_utc(TIMESTAMP '20000-01-01', '{NEW_YORK}')").fetchall() == [(None,)]


def test_an_unknown_zone_is_named(connection: duckdb.DuckDBPyConnection) -> None:
    with pytest.raises((BadArgument, duckdb.Error), match="there is no time zone 'America/Gotham'"):
        connection.execute("SELECT local_to_utc(TIMESTAMP '2013-01-01', 'America/Gotham')").fetchall()
