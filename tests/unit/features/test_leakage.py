"""The leakage gate on joined tables that are right, and on such that were tampered with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from airloop.errors import LeakageFound
from airloop.features.definitions import Field, ServiceDefinition, ViewDefinition
from airloop.features.leakage import refuse_leaks
from airloop.features.offline import join_features
from tests import offline_world as world

DELAYS = ViewDefinition(
    name="delays", table="features.delays", keys=("carrier",), ttl_s=12 * 3600, arrival_time="arrival_time",
    features=(Field("late_rate", "double"), Field("flights", "int64")),
)  # fmt: skip
WEATHER = ViewDefinition(
    name="weather", table="features.weather", keys=("origin",), arrival_time="arrival_time",
    features=(Field("temp", "double"),),
)  # fmt: skip
SERVICE = ServiceDefinition("small_v1", (DELAYS, WEATHER), (Field("hour", "int32"),))


@pytest.fixture
def connection() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect(config={"threads": 2}) as opened:
        opened.execute("SET TimeZone = 'UTC'; CREATE SCHEMA features")
        for name, rows, schema in (
            ("features.delays", world.delays(), world.DELAYS),
            ("features.weather", world.weather(), world.WEATHER),
            ("labels", world.labels(), world.LABELS),
        ):
            table = pa.Table.from_pylist(rows, schema)
            opened.register("given", table)
            opened.execute(f"CREATE TABLE {name} AS SELECT * FROM given")
        join_features(opened, "labels", SERVICE, time_column="event_time").create("joined")
        yield opened


def check(connection: duckdb.DuckDBPyConnection, service: ServiceDefinition = SERVICE) -> dict[str, Any]:
    return refuse_leaks(connection, "joined", service, keys=["flight_id"])


def test_a_right_join_passes(connection: Any) -> None:
    found = check(connection)
    assert found["rows"] == 300
    assert 150 < found["values"]["delays"] <= 200, "a third of the rows has no carrier"
    assert found["request_columns_dated"] == []


def test_value_that_arrived_later_is_named_with_rows(connection: Any) -> None:
    """The newest value by event time of hour 14, which arrives a day late, put where the join would not."""
    connection.execute(
        "UPDATE joined SET delays__late_rate = s.late_rate, delays__flights = s.flights,"
        " delays__event_time = s.event_time, delays__arrival_time = joined.event_time"
        " FROM features.delays AS s WHERE s.carrier = joined.carrier AND joined.flight_id = 'f0007'"
        " AND s.event_time = TIMESTAMPTZ '2013-01-01 14:00:00Z'"
    )
    with pytest.raises(LeakageFound) as caught:
        check(connection)
    text = str(caught.value)
    assert "feature view delays (delays__late_rate, delays__flights): 1 rows use a value that arrived after" in text
    assert "flight_id=f0007 carrier=UA origin=EWR at 2013-01-01 16:54:00+00:00" in text
    assert "uses a value of 2013-01-01 14:00:00+00:00 that arrived 2013-01-02 14:00:00+00:00" in text
    assert "weather" not in text


def test_value_of_the_future_is_named(connection: Any) -> None:
    connection.execute(
        "UPDATE joined SET weather__temp = s.temp, weather__event_time = s.event_time FROM features.weather AS s"
        " WHERE s.origin = joined.origin AND s.event_time = date_trunc('hour', joined.event_time) + INTERVAL 2 HOUR"
    )
    with pytest.raises(LeakageFound, match=r"weather \(weather__temp\): \d+ rows use a value that arrived after"):
        check(connection)


@pytest.mark.parametrize(
    "change",
    [
        "weather__temp = 99",
        "weather__event_time = NULL",
        "weather__event_time = weather__event_time - INTERVAL 1 MINUTE",
        "origin = CASE origin WHEN 'EWR' THEN 'JFK' ELSE 'EWR' END, weather__temp = weather__temp + 1",
    ],
)
def test_value_from_nowhere_is_named(connection: Any, change: str) -> None:
    connection.execute(f"UPDATE joined SET {change} WHERE flight_id = 'f0100'")
    with pytest.raises(
        LeakageFound, match=r"weather \(weather__temp\): 1 rows .*features\.weather does not hold.*f0100"
    ):
        check(connection)


def test_arrival_that_the_view_does_not_declare_is_looked_at(connection: Any) -> None:
    blind = ViewDefinition("delays", DELAYS.table, DELAYS.keys, DELAYS.features, DELAYS.ttl_s)
    service = ServiceDefinition("blind", (blind,))
    connection.execute("DROP TABLE joined")
    join_features(connection, "labels", service, time_column="event_time").create("joined")
    with pytest.raises(LeakageFound, match="arrived after their time"):
        check(connection, service)


def test_request_column_is_checked_where_its_arrival_is_known(connection: Any) -> None:
    connection.execute("ALTER TABLE joined ADD COLUMN hour__arrival_time TIMESTAMPTZ")
    with pytest.raises(LeakageFound, match=r"request column \(hour\): 300 rows .*known never"):
        check(connection)
    connection.execute("UPDATE joined SET hour__arrival_time = event_time - INTERVAL 1 DAY")
    assert check(connection)["request_columns_dated"] == ["hour"]


def test_nan_values_are_found_again(connection: Any) -> None:
    connection.execute("UPDATE features.weather SET temp = 'nan' WHERE origin = 'EWR'")
    connection.execute("DROP TABLE joined")
    join_features(connection, "labels", SERVICE, time_column="event_time").create("joined")
    assert check(connection)["rows"] == 300
