"""SQL that looks ahead is refused and told where; SQL that does not never is."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from airloop.contract import Interval
from airloop.errors import BadArgument, LeakageFound
from airloop.features.hindsight import refuse_hindsight
from airloop.features.query import Query, run
from airloop.warehouse.catalog import Warehouse
from airloop.warehouse.refs import TableRef

STAMP = pa.timestamp("us", tz="UTC")
T0 = datetime(2013, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
MONTH = Interval(T0, T0 + timedelta(days=30))

Check = Callable[..., dict[str, Any]]


@pytest.fixture
def flights(warehouse: Warehouse) -> TableRef:
    chance = random.Random(1)
    rows = []
    for number in range(600):
        leaves = T0 + chance.random() * timedelta(days=30)
        rows.append(
            {"flight": number, "carrier": chance.choice(["AA", "UA"]), "late": float(chance.random() < 0.3),
             "delay": chance.gauss(5, 20), "leaves": leaves, "lands": leaves + chance.random() * 6 * HOUR}
        )  # fmt: skip
    schema = pa.schema(
        [("flight", pa.int64()), ("carrier", pa.string()), ("late", pa.float64()), ("delay", pa.float64()),
         ("leaves", STAMP), ("lands", STAMP)]
    )  # fmt: skip
    warehouse.ensure("raw.flights", schema)
    return warehouse.commit("raw.flights", pa.Table.from_pylist(rows, schema), key="seed").ref


@pytest.fixture
def check(warehouse: Warehouse, flights: TableRef, tmp_path: Path) -> Check:
    def go(sql: str, *, key: tuple[str, ...] = ("flight",), known: dict[str, str] | None = None) -> dict[str, Any]:
        query = Query.parse(sql)
        with run(
            warehouse, query, inputs={"flights": flights}, key=list(key), interval=MONTH, workdir=tmp_path
        ) as result:
            result.check_key()
            found = refuse_hindsight(
                result, query, MONTH, known={"flights": "lands"} if known is None else known, table="features.x"
            )
            assert result.read().read_all().num_rows == result.count()
            return found

    return go


@pytest.mark.parametrize("value", ["late", "delay"])
def test_a_window_that_ends_before_what_it_is_joined_to(check: Check, value: str) -> None:
    # One row per hour, as a feature table has them: flights that have landed by then.
    sql = f"""
    SELECT hour AS event_time, hour AS arrival_time, carrier,
        avg({value}) AS rate, stddev({value}) AS spread, count(*) AS flights, list(flight ORDER BY lands) AS which
    FROM flights, (SELECT unnest(range($interval_start, $interval_end, INTERVAL 1 HOUR)) AS hour)
    WHERE lands <= hour AND lands > hour - INTERVAL 7 DAYS GROUP BY ALL
    """
    found = check(sql, key=("carrier", "event_time"))
    assert [c["rows"] for c in found["cuts"]] == sorted(c["rows"] for c in found["cuts"])
    assert len(found["cuts"]) == 3
    assert found["cuts"][0]["rows"] > 300


def test_sums_in_another_order_are_the_same(check: Check) -> None:
    check("""
    SELECT flight, lands AS event_time, lands AS arrival_time, sum(delay / 3) OVER w AS total, avg(delay) OVER w AS mean
    FROM flights
    WINDOW w AS (PARTITION BY carrier ORDER BY lands RANGE BETWEEN INTERVAL 5 DAYS PRECEDING AND CURRENT ROW)
    """)


def honest(chance: random.Random) -> tuple[str, tuple[str, ...]]:
    """SQL at random that looks back only, and its key: over single rows, or over the rows known at each full hour."""
    value = chance.choice(["late", "delay", "delay * late", "abs(delay)", "coalesce(nullif(late, 0), delay)"])
    function = chance.choice(["avg", "sum", "count", "min", "max", "stddev", "median", "arg_max"])
    made = f"{function}({value}{', lands' if function == 'arg_max' else ''})"
    span = f"INTERVAL {chance.randint(1, 400)} HOURS"
    if chance.random() < 0.3:
        before = f"INTERVAL {chance.randint(0, 5)} HOURS"
        return (
            f"""SELECT carrier, hour AS event_time, hour AS arrival_time, {made} AS made
            FROM flights, (SELECT unnest(range($interval_start, $interval_end, INTERVAL 6 HOURS)) AS hour)
            WHERE lands <= hour - {before} AND lands > hour - {before} - {span} GROUP BY ALL""",
            ("carrier", "event_time"),
        )
    frame = chance.choice(
        [
            f"ROWS {chance.randint(1, 60)} PRECEDING",
            f"ROWS BETWEEN {chance.randint(5, 60)} PRECEDING AND {chance.randint(1, 4)} PRECEDING",
            f"RANGE BETWEEN {span} PRECEDING AND CURRENT ROW",
            "ROWS UNBOUNDED PRECEDING",
        ]
    )
    by = chance.choice(["", "PARTITION BY carrier ", "PARTITION BY late "])
    known = chance.choice(["lands", f"lands + INTERVAL {chance.randint(1, 90)} MINUTES"])
    where = chance.choice(["", "WHERE delay > -10", "WHERE carrier = 'AA' OR late = 1"])
    return (
        f"""SELECT flight, lands AS event_time, {known} AS arrival_time, lag(delay) OVER w AS one_before,
            {made} OVER (w {frame}) AS made FROM flights {where} WINDOW w AS ({by}ORDER BY lands)""",
        ("flight",),
    )


def test_none_of_100_windows_at_random_is_refused_that_look_back(check: Check) -> None:
    chance = random.Random(20)
    for _ in range(100):
        sql, key = honest(chance)
        found = check(sql, key=key)
        assert [cut["rows"] > 10 for cut in found["cuts"]] == [True] * 3, sql


LOOKS_AHEAD = {
    "the row itself and later ones": """
        SELECT flight, leaves AS event_time, leaves AS arrival_time,
            avg(late) OVER (PARTITION BY carrier ORDER BY leaves RANGE BETWEEN INTERVAL 7 DAYS PRECEDING
                            AND INTERVAL 1 DAY FOLLOWING) AS rate FROM flights""",
    "the row itself": """
        SELECT flight, leaves AS event_time, leaves AS arrival_time,
            avg(late) OVER (PARTITION BY carrier ORDER BY leaves ROWS 20 PRECEDING) AS rate FROM flights""",
    "the whole table": """
        SELECT carrier, TIMESTAMPTZ '2013-01-01 00:00:00Z' + to_days(d::INT) AS event_time, event_time AS arrival_time,
            avg(late) AS rate FROM flights, range(30) t(d) GROUP BY ALL""",
    "by departure, not by landing": """
        SELECT carrier, hour AS event_time, hour AS arrival_time, sum(late) AS rate
        FROM flights, (SELECT unnest(range($interval_start, $interval_end, INTERVAL 1 HOUR)) AS hour)
        WHERE leaves <= hour AND leaves > hour - INTERVAL 1 DAY GROUP BY ALL""",
    "the next value": """
        SELECT flight, lands AS event_time, lands AS arrival_time,
            lead(delay) OVER (PARTITION BY carrier ORDER BY lands) AS rate FROM flights""",
    "a rank among all": """
        SELECT flight, lands AS event_time, lands AS arrival_time,
            percent_rank() OVER (ORDER BY delay) AS rate FROM flights""",
}


@pytest.mark.parametrize("name", LOOKS_AHEAD)
def test_a_future_aggregate_is_refused(check: Check, name: str) -> None:
    sql = LOOKS_AHEAD[name]
    key = ("flight",) if "SELECT flight" in sql else ("carrier", "event_time")
    with pytest.raises(LeakageFound, match=r"features\.x: [\d,]+ of [\d,]+ rows that say they were known by 2013-01"):
        check(sql, key=key)


def test_the_error_names_column_rows_key_and_values(check: Check) -> None:
    with pytest.raises(LeakageFound) as caught:
        check(LOOKS_AHEAD["the next value"])
    text = str(caught.value)
    assert "from what was known then of flights: rate (2 rows)" in text
    assert "first: flight=" in text
    assert " instead of NULL" in text
    assert "end the SQL's windows before" in text


def test_a_row_of_a_flight_that_was_not_known_is_refused(check: Check) -> None:
    # The schedule is known long before, but this table says that its rows are known at the landing only.
    with pytest.raises(LeakageFound, match="the whole row"):
        check("SELECT flight, carrier, leaves AS event_time, leaves AS arrival_time FROM flights")


def test_what_it_needs(check: Check) -> None:
    with pytest.raises(BadArgument, match="no arrival_time"):
        check("SELECT flight, lands AS event_time FROM flights")
    sql = "SELECT flight, lands AS event_time, lands AS arrival_time FROM flights"
    with pytest.raises(BadArgument, match="known names planes, which is no input"):
        check(sql, known={"planes": "lands"})
    with pytest.raises(BadArgument, match="input flights has no column known_at of type TIMESTAMPTZ"):
        check(sql, known={"flights": "known_at"})
    assert check(sql + " WHERE flight < 0") == {"known": {"flights": "lands"}, "cuts": []}
