"""A small loop from CSV files to predictions, run twice through the frame, and what it must say of single rows."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

from airloop.config import Config
from airloop.contract import Call, Interval, RunInfo
from airloop.frame.execute import execute
from airloop.frame.logs import Redactor
from airloop.steps import load
from airloop.warehouse.artifacts import ArtifactStore
from tests.offline_world import write_repo

T0 = datetime(2013, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
DAYS = 10
"""Length of an interval."""
WINDOW = 6 * HOUR
"""Flights that landed in the hours before count in a carrier's delays."""
PUBLISHED = timedelta(minutes=15)
TTL = 12 * HOUR

FLIGHTS_SOURCE: dict[str, Any] = {
    "name": "flights", "table": "raw.flights", "format": "csv", "key": ["flight_id"],
    "interval_column": "landed", "lateness": "1d",
    "columns": {
        "flight_id": {"type": "string", "nullable": False}, "carrier": "string", "origin": "string",
        "sched": "timestamptz", "landed": "timestamptz", "late": "int", "hour": "int", "distance": "double",
    },
}  # fmt: skip
WEATHER_SOURCE: dict[str, Any] = {
    "name": "weather", "table": "raw.weather", "format": "csv", "key": ["origin", "at"], "interval_column": "at",
    "lateness": "1d",
    "columns": {"origin": {"type": "string", "nullable": False}, "at": "timestamptz", "temp": "double"},
}  # fmt: skip
DELAYS_SQL = """
    SELECT f.carrier, avg(f.late)::DOUBLE AS late_rate, count(*)::BIGINT AS flights,
        t.hour AS event_time, t.hour + INTERVAL 15 MINUTES AS arrival_time
    FROM flights f JOIN (SELECT unnest(range($interval_start, $interval_end, INTERVAL 1 HOUR)) AS hour) t
        ON f.landed > t.hour - INTERVAL 6 HOURS AND f.landed <= t.hour
    GROUP BY f.carrier, t.hour
"""
WEATHER_SQL = """
    SELECT origin, temp, "at" AS event_time, "at" + INTERVAL 1 HOUR AS arrival_time FROM weather
    WHERE "at" >= $interval_start AND "at" < $interval_end
"""
LABELS_SQL = """
    SELECT flight_id, carrier, origin, hour, distance, late::BIGINT AS label, sched AS event_time,
        landed AS arrival_time
    FROM flights WHERE landed >= $interval_start - INTERVAL 1 DAY AND landed < $interval_end
"""
ENTITIES_SQL = """
    SELECT flight_id, carrier, origin, hour, distance, sched AS event_time FROM flights
    WHERE sched >= $interval_start AND sched < $interval_end
"""


@cache
def flights() -> list[dict[str, Any]]:
    """One flight every 25 minutes for two intervals, in the air for two hours; every third is late."""
    found = []
    for n in range(2 * DAYS * 24 * 60 // 25):
        sched = T0 + timedelta(minutes=25 * n + 7)
        found.append(
            {
                "flight_id": f"f{n:04}", "carrier": ("AA", "UA")[n % 2], "origin": ("EWR", "JFK", "LGA")[n // 2 % 3],
                "sched": sched, "landed": sched + timedelta(hours=2, minutes=n % 50), "late": int(n % 3 == 0),
                "hour": sched.hour, "distance": 100.0 * (n % 7),
            }
        )  # fmt: skip
    return found


def weather() -> list[dict[str, Any]]:
    """Each hour at two airports."""
    return [
        {"origin": origin, "at": T0 + h * HOUR, "temp": 30.0 + h % 24}
        for h in range(2 * DAYS * 24)
        for origin in ("EWR", "JFK")
    ]


@dataclass
class LineageWorld:
    """The loop's home, and its results by run and task."""

    config: Config
    data: Path
    results: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)

    @property
    def store(self) -> ArtifactStore:
        return ArtifactStore(self.config.artifacts)

    def run(self, number: int) -> None:
        """One run: files, features, labels, training set, model, gate, registration, scores of the champion."""
        interval = Interval(T0 + (number - 1) * DAYS * 24 * HOUR, T0 + number * DAYS * 24 * HOUR)

        def step(task: str, step_name: str, **arguments: Any) -> dict[str, Any]:
            done = self.step(f"{number}", task, step_name, arguments, interval)
            self.results[f"{number}", task] = done
            return done

        brought = step("extract_flights", "extract", source=FLIGHTS_SOURCE, files=str(self.data / "flights.csv"))
        raw = step("flights", "validate", table=brought, suite=_suite("flight_id"))
        brought = step("extract_weather", "extract", source=WEATHER_SOURCE, files=str(self.data / "weather.csv"))
        sky = step("weather", "validate", table=brought, suite=_suite("origin"))
        delays = step(
            "delays", "sql", sql=DELAYS_SQL, inputs={"flights": raw}, table="features.delays",
            key=["carrier", "event_time"],
        )  # fmt: skip
        temperature = step(
            "temperature", "sql", sql=WEATHER_SQL, inputs={"weather": sky}, table="features.weather",
            key=["origin", "event_time"],
        )  # fmt: skip
        labels = step(
            "labels",
            "build_labels",
            sql=LABELS_SQL,
            inputs={"flights": raw},
            table="labels.arrivals",
            key=["flight_id"],
        )
        entities = step(
            "entities", "sql", sql=ENTITIES_SQL, inputs={"flights": raw}, table="entities.flights", key=["flight_id"]
        )
        tables = [delays, temperature]
        examples = step(
            "examples", "build_training_set", labels=labels, feature_service="small_v1", tables=tables,
            table="training.small", holdout="2d", validation="1d", max_feature_auc=1.0,
        )  # fmt: skip
        model = step("train", "train", examples=examples, hyperparameters={"n_estimators": 3}, experiment="small")
        gate = step(
            "gate", "evaluate", challenger=model, champion="small@champion", examples=examples, min_rows=2, cluster="",
            resamples=100,
        )  # fmt: skip
        step("register", "register", model=gate, gate=gate, name="small")
        step(
            "score", "batch_score", model="small@champion", entities=entities, feature_service="small_v1",
            tables=tables, table="predictions.small",
        )  # fmt: skip

    def step(
        self, run_id: str, task: str, name: str, arguments: Mapping[str, Any], interval: Interval
    ) -> dict[str, Any]:
        """One step through the frame; what an operator would hand on."""
        call = Call(name, arguments, "", RunInfo("small", run_id, task), interval)
        receipt, error = execute(load(name), call, self.config, Redactor([]))
        if error is not None:
            raise error
        manifest = json.loads(self.store.read_bytes(receipt.manifest.removeprefix(self.store.root.as_uri() + "/")))
        outputs = {role: output["reference"] for role, output in manifest["outputs"].items()}
        return {**outputs, "step": name, "key": receipt.key, "manifest": receipt.manifest}

    def made(self, run: int, task: str, role: str = "table") -> str:
        """Reference that a task of a run made."""
        return str(self.results[f"{run}", task][role])


def make_world(folder: Path) -> LineageWorld:
    """Both runs, in a home below a folder."""
    config = Config.from_environment({"AIRLOOP_HOME": str(folder / "home"), "AIRLOOP_MEMORY_MB": "512"})
    world = LineageWorld(replace(config, feature_repo=write_repo(folder / "repo")), folder / "data")
    world.data.mkdir()
    _write(world.data / "flights.csv", flights())
    _write(world.data / "weather.csv", weather())
    world.run(1)
    world.run(2)
    return world


def _suite(column: str) -> dict[str, Any]:
    rule = {"type": "expect_column_values_to_not_be_null", "kwargs": {"column": column}, "severity": "critical"}
    return {"name": column, "expectations": [rule]}


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


# -------------------------------------------------------------------- what must come out, worked out without SQL


def delay_hours(flight: Mapping[str, Any], until: datetime) -> set[datetime]:
    """Hours whose delays of the flight's carrier the flight counts in."""
    hours = (T0 + n * HOUR for n in range(int((until - T0) / HOUR)))
    return {hour for hour in hours if hour - WINDOW < flight["landed"] <= hour}


def flights_in(carrier: str, hour: datetime) -> list[str]:
    """Flights that count in a carrier's delays of an hour."""
    return [f["flight_id"] for f in flights() if f["carrier"] == carrier and hour - WINDOW < f["landed"] <= hour]


def newest_delays(flight: Mapping[str, Any]) -> datetime | None:
    """Hour of the newest delays of its carrier that were known when a flight was to depart, if not too old."""
    latest = flight["sched"] - PUBLISHED
    hour = latest.replace(minute=0)
    while hour >= max(T0, flight["sched"] - TTL):
        if flights_in(flight["carrier"], hour):
            return hour
        hour -= HOUR
    return None


def examples_that_used(flight: Mapping[str, Any], until: datetime) -> set[str]:
    """Flights whose carrier's newest delays, when they were to depart, had this flight in them."""
    hours = delay_hours(flight, until)
    return {
        other["flight_id"]
        for other in flights()
        if other["carrier"] == flight["carrier"] and newest_delays(other) in hours
    }
