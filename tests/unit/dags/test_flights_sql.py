"""The SQL of the flights loop, against the same figures counted flight by flight."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import duckdb
import pyarrow as pa
import pytest

from airloop.contract import Interval
from airloop.features.query import Query, Result, run
from airloop.warehouse.catalog import Warehouse
from airloop.warehouse.refs import TableRef

SQL = Path(__file__).parents[3] / "dags" / "flights" / "sql"
NEW_YORK = ZoneInfo("America/New_York")
STAMP = pa.timestamp("us", tz="UTC")
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)

Run = Callable[[str, Interval], list[dict[str, Any]]]


def local_interval(year: int, month: int) -> Interval:
    """A month of New York."""
    end = datetime(year + month // 12, month % 12 + 1, 1, tzinfo=NEW_YORK)
    return Interval(datetime(year, month, 1, tzinfo=NEW_YORK), end)


def flights() -> list[dict[str, Any]]:
    """A flight every two hours or so from February to April and October to December 2013, over both clock changes."""
    chance = random.Random(7)
    made = []
    for first, days in ((datetime(2013, 2, 1), 65), (datetime(2013, 10, 20), 50)):
        for number in range(days * 14):
            local = first + timedelta(minutes=number * 103 + chance.randrange(60))
            planned = local.replace(tzinfo=NEW_YORK).astimezone(UTC)
            state = chance.choices(["arrived", "cancelled", "diverted"], [90, 6, 4])[0]
            # Whole hours and equal moments are where windows go wrong.
            dep_delay = None if state == "cancelled" else float(chance.choice([-5, 0, 0, 20, 95]))
            air_time = float(chance.choice([30, 60, 90])) if state == "arrived" else None
            arr_delay = float(chance.choice([-10, 0, 14, 15, 60])) if state == "arrived" else None
            if state == "arrived":
                assert dep_delay is not None
                assert air_time is not None
                known = planned + timedelta(minutes=dep_delay + air_time + 60)
            else:
                known = planned + DAY
            made.append({
                "year": local.year, "month": local.month, "day": local.day,
                "sched_dep_time": local.hour * 100 + local.minute,
                "sched_arr_time": (local.hour + 2) % 24 * 100 + local.minute,
                "dep_delay": dep_delay, "arr_delay": arr_delay, "air_time": air_time,
                "carrier": chance.choice(["AA", "UA"]), "flight": number, "hour": local.hour,
                "tailnum": None if state == "cancelled" and number % 2 else f"N{number % 17}",
                "origin": chance.choice(["EWR", "JFK"]), "dest": chance.choice(["BOS", "LAX"]),
                "distance": 500.0, "sched_dep": planned, "known_at": known, "status": state,
                "actual_dep": None if dep_delay is None else planned + timedelta(minutes=dep_delay),
            })  # fmt: skip
    return made


FLIGHTS = flights()
INTS = ("year", "month", "day", "sched_dep_time", "sched_arr_time", "flight", "hour")
STAMPS = ("sched_dep", "known_at", "actual_dep")


@pytest.fixture
def execute(warehouse: Warehouse, tmp_path: Path) -> Run:
    types: dict[str, pa.DataType] = dict.fromkeys(INTS, pa.int32()) | dict.fromkeys(STAMPS, STAMP)
    schema = pa.schema([
        (n, types.get(n, pa.float64() if n in ("dep_delay", "arr_delay", "air_time", "distance") else pa.string()))
        for n in FLIGHTS[0]
    ])  # fmt: skip
    warehouse.ensure("raw.flights", schema)
    ref = warehouse.commit("raw.flights", pa.Table.from_pylist(FLIGHTS, schema), key="seed").ref

    def go(name: str, interval: Interval) -> list[dict[str, Any]]:
        key = {"labels": ["flight_id"], "schedule": ["flight_id"], "previous_leg": ["tailnum", "event_time"]}
        query = Query.parse((SQL / f"{name}.sql").read_text())
        keys = key.get(name, ["event_time"])
        inputs: dict[str, TableRef] = {"flights": ref}
        with run(warehouse, query, inputs=inputs, key=keys, interval=interval, workdir=tmp_path) as result:
            assert isinstance(result, Result)
            if name in key:
                result.check_key()
            rows: list[dict[str, Any]] = result.read().read_all().to_pylist()
            return rows

    return go


INTERVALS = [local_interval(2013, 3), local_interval(2013, 11)]
BOTH = pytest.mark.parametrize("interval", INTERVALS, ids=["March", "November"])


def steps(interval: Interval, step: timedelta) -> list[datetime]:
    """Whole hours or days, UTC, in the interval."""
    first = datetime(2013, 1, 1, tzinfo=UTC)
    count = (datetime(2014, 1, 1, tzinfo=UTC) - first) // step
    return [t for t in (first + i * step for i in range(count)) if interval.start <= t < interval.end]


def known(end: datetime, length: timedelta, **wanted: Any) -> list[dict[str, Any]]:
    """Flights whose outcome became known in ``(end - length, end]``."""
    return [
        f for f in FLIGHTS if end - length < f["known_at"] <= end and all(f[n] == v for n, v in wanted.items())
    ]  # fmt: skip


def rate(rows: list[dict[str, Any]]) -> float | None:
    return sum(f["arr_delay"] >= 15 for f in rows) / len(rows) if rows else None


def mean(rows: list[dict[str, Any]], column: str = "arr_delay") -> float | None:
    return sum(f[column] for f in rows) / len(rows) if rows else None


@BOTH
def test_carrier_delays(execute: Run, interval: Interval) -> None:
    expected = []
    for carrier in ("AA", "UA"):
        for t in steps(interval, HOUR):
            week = known(t, 7 * DAY, carrier=carrier, status="arrived")
            recent = known(t, 6 * HOUR, carrier=carrier, status="arrived")
            if week:
                expected.append({
                    "carrier": carrier, "late_rate_6h": rate(recent), "mean_delay_6h": mean(recent),
                    "flights_6h": len(recent), "late_rate_7d": rate(week), "mean_delay_7d": mean(week),
                    "flights_7d": len(week), "event_time": t, "arrival_time": t + timedelta(minutes=15),
                })  # fmt: skip
    found = execute("carrier_delays", interval)
    assert sorted(found, key=lambda r: (r["carrier"], r["event_time"])) == expected
    # 28 or 30 days and an hour less or more: the clock change does not lose or double an hour.
    assert len({r["event_time"] for r in found}) == (interval.end - interval.start) // HOUR


@BOTH
def test_origin_delays(execute: Run, interval: Interval) -> None:
    expected = []
    for origin in ("EWR", "JFK"):
        for t in steps(interval, HOUR):
            day = known(t, DAY, origin=origin)
            left = [
                f for f in FLIGHTS
                if f["origin"] == origin and f["actual_dep"] and t - 3 * HOUR < f["actual_dep"] <= t
            ]  # fmt: skip
            if day:
                expected.append({
                    "origin": origin,
                    "late_rate_3h": rate(known(t, 3 * HOUR, origin=origin, status="arrived")),
                    "mean_dep_delay_3h": mean(left, "dep_delay"),
                    "late_rate_24h": rate([f for f in day if f["status"] == "arrived"]),
                    "cancelled_share_24h": sum(f["status"] == "cancelled" for f in day) / len(day),
                    "event_time": t, "arrival_time": t + timedelta(minutes=15),
                })  # fmt: skip
    found = execute("origin_delays", interval)
    assert sorted(found, key=lambda r: (r["origin"], r["event_time"])) == expected


@BOTH
def test_route_delays(execute: Run, interval: Interval) -> None:
    expected = []
    for origin in ("EWR", "JFK"):
        for dest in ("BOS", "LAX"):
            for t in steps(interval, DAY):
                month = known(t, 28 * DAY, origin=origin, dest=dest, status="arrived")
                if month:
                    expected.append({
                        "origin": origin, "dest": dest, "late_rate_28d": rate(month), "mean_delay_28d": mean(month),
                        "flights_28d": len(month), "event_time": t, "arrival_time": t + timedelta(minutes=15),
                    })  # fmt: skip
    found = execute("route_delays", interval)
    assert sorted(found, key=lambda r: (r["origin"], r["dest"], r["event_time"])) == expected


@BOTH
def test_previous_leg(execute: Run, interval: Interval) -> None:
    found = execute("previous_leg", interval)
    landed = {
        (f["tailnum"], f["known_at"] - HOUR): (f["arr_delay"], f["dep_delay"])
        for f in sorted(FLIGHTS, key=lambda f: f["sched_dep"])
        if f["status"] == "arrived" and interval.start <= f["known_at"] < interval.end
    }
    assert {(r["tailnum"], r["event_time"]): (r["prev_arr_delay"], r["prev_dep_delay"]) for r in found} == landed
    assert all(r["arrival_time"] - r["event_time"] == HOUR for r in found)


@BOTH
def test_labels_are_those_known_by_the_end(execute: Run, interval: Interval) -> None:
    found = {r["flight_id"]: r for r in execute("labels", interval)}
    expected = {
        f"{f['year']}-{f['month']:02}-{f['day']:02}/{f['carrier']}/{f['flight']}/{f['origin']}": f
        for f in known(interval.end - timedelta(microseconds=1), 365 * DAY, status="arrived")
        if f["known_at"] >= interval.start - 35 * DAY
    }
    assert set(found) == set(expected)
    for name, flight in expected.items():
        row = found[name]
        assert row["label"] == (flight["arr_delay"] >= 15)
        assert (row["event_time"], row["arrival_time"]) == (flight["sched_dep"], flight["known_at"])
        assert (row["hour"], row["sched_minutes"]) == (flight["hour"], 120.0)
        assert row["weekday"] == flight["sched_dep"].astimezone(NEW_YORK).isoweekday()


@BOTH
def test_the_schedule_says_nothing_of_how_flights_went(execute: Run, interval: Interval) -> None:
    found = execute("schedule", interval)
    assert len(found) == sum(interval.start <= f["sched_dep"] < interval.end for f in FLIGHTS)
    assert not {"label", "arr_delay", "dep_delay", "status", "arrival_time", "known_at"} & set(found[0])


@BOTH
@pytest.mark.parametrize("name", ["carrier_delays", "origin_delays", "route_delays", "previous_leg"])
def test_what_happens_after_the_interval_changes_nothing(
    execute: Run, warehouse: Warehouse, interval: Interval, name: str
) -> None:
    before = execute(name, interval)
    warehouse.delete("raw.flights", f"known_at >= TIMESTAMPTZ '{interval.end.isoformat()}'", key="cut")
    ref = TableRef("raw.flights", warehouse.head("raw.flights"))
    query = Query.parse((SQL / f"{name}.sql").read_text())
    workdir = Path(warehouse.config.home)
    with run(
        warehouse, query, inputs={"flights": ref}, key=["event_time"], interval=interval, workdir=workdir
    ) as result:
        after = result.read().read_all().to_pylist()

    def ordered(rows: list[dict[str, Any]]) -> list[str]:
        return sorted(map(repr, rows))

    if name == "origin_delays":
        # Flights that left in the interval and land after it are known to have left.
        before = [{k: v for k, v in r.items() if k != "mean_dep_delay_3h"} for r in before]
        after = [{k: v for k, v in r.items() if k != "mean_dep_delay_3h"} for r in after]
    assert ordered(after) == ordered(before)


@pytest.mark.parametrize("path", sorted(SQL.glob("*.sql")), ids=lambda p: p.stem)
def test_each_file_says_in_its_header_what_its_times_mean(path: Path) -> None:
    text = path.read_text()
    header = text.partition("SELECT")[0]
    assert header.startswith("--")
    assert "event_time" in header
    assert path.stem == "schedule" or "arrival_time" in header
    assert Query.parse(text).parameters <= {"interval_start", "interval_end"}


def test_the_register_of_aircraft_is_the_same_for_every_interval(warehouse: Warehouse, tmp_path: Path) -> None:
    rows = pa.table({
        "tailnum": ["N1", "N2"], "year": pa.array([1999, None], pa.int32()),
        "seats": pa.array([100, 55], pa.int32()), "engines": pa.array([2, 2], pa.int32()),
    })  # fmt: skip
    warehouse.ensure("raw.planes", rows.schema)
    ref = warehouse.commit("raw.planes", rows, key="seed").ref
    query = Query.parse((SQL / "aircraft.sql").read_text())
    assert not query.parameters
    with run(warehouse, query, inputs={"planes": ref}, key=["tailnum"], interval=None, workdir=tmp_path) as result:
        found = result.read().read_all().to_pylist()
    assert [(r["built_year"], r["event_time"]) for r in found] == [
        (1999.0, datetime(1999, 1, 1, tzinfo=UTC)),
        (None, datetime(1970, 1, 1, tzinfo=UTC)),
    ]


def test_duckdb_counts_hours_as_we_do() -> None:
    row = duckdb.sql("SELECT ceil(epoch(TIMESTAMPTZ '2013-03-10 07:00:00.000001+00') / 3600)::BIGINT").fetchone()
    assert row == (int(datetime(2013, 3, 10, 8, tzinfo=UTC).timestamp()) // 3600,)
