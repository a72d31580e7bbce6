"""
A loop in little, and a year of small data for it: rows of a file, a gate, a feature table whose rows look back over
the month's edge, online values, a training set, a model, a gate, a registry. What a run makes depends on every run
before it.
"""

from __future__ import annotations

import math
import os
import random
import sqlite3
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from airloop.config import Config
from airloop.contract import Call, Interval, RunInfo
from airloop.errors import AirloopError

MONTHS = int(os.environ.get("AIRLOOP_TEST_MONTHS", "12"))
"""How long the year is; at least 4."""
DAG_ID = "year"
STATIONS = ("north", "south")
STEP = timedelta(hours=8)
COLUMNS = ("wind", "pressure", "mean_wind")

SOURCE: dict[str, Any] = {
    "name": "readings",
    "table": "raw.readings",
    "format": "csv",
    "columns": {
        "station": {"type": "string", "nullable": False},
        "read_at": {"type": "timestamptz", "nullable": False},
        "wind": {"type": "double"},
        "pressure": {"type": "double"},
        "storm": {"type": "int"},
    },
    "key": ["station", "read_at"],
    "interval_column": "read_at",
    "lateness": "5d",
    "partition_by": "month(read_at)",
}
SUITE: dict[str, Any] = {
    "name": "readings",
    "expectations": [
        {"type": "expect_column_values_to_not_be_null", "kwargs": {"column": "station"}},
        {
            "type": "expect_column_values_to_be_between",
            "kwargs": {"column": "wind", "min_value": 0, "max_value": 90},
            "meta": {"airloop": {"quarantine": True}},
        },
    ],
}
# Both without a newline at their end: Airflow's templates take it away, and here they are to be the same to the letter.
LAGS = """
SELECT station, read_at AS event_time, read_at AS arrival_time, wind, pressure,
    avg(wind) OVER (PARTITION BY station ORDER BY read_at ROWS 30 PRECEDING) AS mean_wind
FROM readings"""
EXAMPLES = """
SELECT r.station, l.event_time, l.wind, l.pressure, l.mean_wind, CAST(r.storm AS BIGINT) AS label,
    CASE WHEN l.event_time >= $interval_end - INTERVAL 10 DAY THEN 'holdout'
         WHEN l.event_time >= $interval_end - INTERVAL 14 DAY THEN 'validation' ELSE 'train' END AS split
FROM readings AS r JOIN lags AS l ON l.station = r.station AND l.event_time = r.read_at
WHERE l.event_time < $interval_end"""
LAGS_TABLE: dict[str, Any] = {"table": "features.lags", "key": ["station", "event_time"]}
EXAMPLES_TABLE: dict[str, Any] = {"table": "training.storms", "key": ["station", "event_time"], "mode": "replace"}
TRAINING: dict[str, Any] = {
    "trainer": "sklearn.linear_model.LogisticRegression", "features": list(COLUMNS), "experiment": "storms",
}  # fmt: skip
GATE: dict[str, Any] = {"metric": "roc_auc", "min_rows": 20, "confidence": 0.55, "resamples": 200, "cluster": ""}
MODEL = "storms"
SERVICE = "storms_v1"

DEFINITIONS = """
from feast import Entity, FeatureService, FeatureView, Field, ValueType
from feast.types import Float64, String
from airloop.features.source import IcebergSource

station = Entity(name="station", join_keys=["station"], value_type=ValueType.STRING)
lags = FeatureView(
    name="lags", entities=[station], ttl=None, source=IcebergSource(name="lags"),
    schema=[Field(name="station", dtype=String), Field(name="wind", dtype=Float64),
            Field(name="pressure", dtype=Float64), Field(name="mean_wind", dtype=Float64)],
)
storms_v1 = FeatureService(name="storms_v1", features=[lags])
"""
STORE = """
project: year
provider: local
registry: ${AIRLOOP_FEAST_REGISTRY}
offline_store: {type: airloop.features.store.IcebergOfflineStore}
online_store: {type: sqlite, path: "${AIRLOOP_ONLINE_STORE}"}
batch_engine: {type: airloop.features.engine.IcebergComputeEngine}
entity_key_serialization_version: 3
"""


def month(number: int) -> Interval:
    """A month of 2013, UTC; 13 is January 2014."""
    start, end = (datetime(2013 + (n - 1) // 12, (n - 1) % 12 + 1, 1, tzinfo=UTC) for n in (number, number + 1))
    return Interval(start, end)


def write_world(folder: Path, months: int = MONTHS) -> None:
    """The file and the feature repository. What makes a storm changes over the year, so models age."""
    draw = random.Random(5)
    lines = ["station,read_at,wind,pressure,storm"]
    time, end = month(1).start, month(months).end
    while time < end:
        season = 2 * math.pi * (time - month(1).start) / timedelta(days=365)
        for station in STATIONS:
            wind, pressure = max(0.0, draw.gauss(20, 8)), draw.gauss(1010, 9)
            signal = 0.15 * (wind - 20) * math.cos(season) - 0.12 * (pressure - 1010) * math.sin(season)
            storm = int(draw.random() < 1 / (1 + math.exp(-signal)))
            # One in a hundred is out of range: the data gate keeps it back.
            shown = 99.0 if draw.random() < 0.01 else round(wind, 2)
            lines.append(f"{station},{time.isoformat()},{shown},{pressure:.2f},{storm}")
        time += STEP
    (folder / "readings.csv").write_text("\n".join(lines) + "\n")
    repo = folder / "repo"
    repo.mkdir()
    (repo / "views.py").write_text(DEFINITIONS)
    (repo / "feature_store.yaml").write_text(STORE)


@dataclass(frozen=True)
class Year:
    """One home in which the loop's steps are run one by one, without Airflow."""

    config: Config
    folder: Path

    @classmethod
    def at(cls, home: Path, folder: Path, stores: Mapping[str, str] | None = None) -> Year:
        """
        :param home: of the machine; all state is there unless something else is said.
        :param folder: with the world that :func:`write_world` wrote.
        :param stores: environment that says where state is.
        """
        environment = {**(stores or {}), "AIRLOOP_HOME": str(home), "AIRLOOP_MEMORY_MB": "512"}
        return cls(replace(Config.from_environment(environment), feature_repo=folder / "repo"), folder)

    def calls(self) -> dict[str, tuple[str, Callable[[dict[str, Any]], dict[str, Any]]]]:
        """Step by task, and its arguments given the results of the tasks before it: what ``year/year.py`` says."""
        files = str(self.folder / "readings.csv")
        return {
            "extract": ("extract", lambda _: {"source": SOURCE, "files": files}),
            "validate": ("validate", lambda r: {"table": r["extract"], "suite": SUITE, "max_quarantined_share": 0.1}),
            "lags": ("sql", lambda r: {"sql": LAGS, "inputs": {"readings": r["validate"]}, **LAGS_TABLE}),
            "online": ("materialize", lambda r: {"feature_service": SERVICE, "tables": [r["lags"]]}),
            "examples": (
                "sql",
                lambda r: {
                    "sql": EXAMPLES,
                    "inputs": {"readings": r["validate"], "lags": r["lags"]},
                    **EXAMPLES_TABLE,
                },
            ),
            "train": ("train", lambda r: {"examples": r["examples"], **TRAINING}),
            "gate": (
                "evaluate",
                lambda r: {
                    "challenger": r["train"],
                    "champion": f"{MODEL}@champion",
                    "examples": r["examples"],
                    **GATE,
                },
            ),
            "register": ("register", lambda r: {"model": r["gate"], "gate": r["gate"], "name": MODEL}),
        }

    def run(self, interval: Interval, tasks: Iterable[str] | None = None, run_id: str = "") -> dict[str, str]:
        """Run the loop for an interval; status by task."""
        from airloop.frame.execute import execute
        from airloop.frame.logs import Redactor
        from airloop.frame.manifest import read_manifest
        from airloop.steps import load
        from airloop.warehouse.artifacts import ArtifactStore

        results: dict[str, Any] = {}
        statuses: dict[str, str] = {}
        for task, (name, arguments) in self.calls().items():
            if tasks is not None and task not in tasks:
                continue
            step = load(name)
            info = RunInfo(DAG_ID, run_id or f"{interval.start:%Y-%m}", task)
            receipt, error = execute(
                step, Call(name, arguments(results), "", info, interval), self.config, Redactor([])
            )
            if error is not None:
                raise AssertionError(f"{task} of {interval}: {error}") from error
            manifest = read_manifest(ArtifactStore(self.config.artifacts), step.name, receipt.key)
            assert manifest is not None
            outputs = {role: output["reference"] for role, output in manifest["outputs"].items()}
            results[task] = outputs | {"step": step.name, "key": receipt.key}
            statuses[task] = receipt.status
        return statuses

    def state(self) -> dict[str, Any]:
        """Everything that counts: rows of tables, online values, the ledger in data time, aliases."""
        return tables(self.config) | {
            "online": online(self.config), "ledger": ledger(self.config), "aliases": aliases(self.config),
        }  # fmt: skip


def tables(config: Config) -> dict[str, list[dict[str, Any]]]:
    """The rows of every table but the ledger, without columns that say who wrote them when, sorted."""
    from airloop.registry.ledger import TABLE
    from airloop.warehouse.catalog import Warehouse
    from airloop.warehouse.refs import TableRef

    warehouse = Warehouse.open(config)
    found = {}
    for name in warehouse.tables():
        if name == TABLE:
            continue
        rows = warehouse.scan(TableRef(name, warehouse.head(name))).read_all()
        rows = rows.select([c for c in rows.column_names if not c.startswith("_")])
        found[name] = sorted(rows.to_pylist(), key=str)
    return found


def ledger(config: Config) -> list[dict[str, Any]]:
    """Every decision, in the order of its data time, with the figures that led to it."""
    from airloop.registry.ledger import Ledger
    from airloop.warehouse.catalog import Warehouse

    entries = [e for e in Ledger(Warehouse.open(config)).entries() if e.state != "intent"]
    return [
        {
            "effective_at": e.effective_at.isoformat(), "alias": e.alias, "version": e.version, "previous": e.previous,
            "state": e.state, "moved": e.moved, "outcome": e.outcome, "reason": e.reason,
            "challenger": e.evidence["challenger_metrics"], "champion": e.evidence["champion_metrics"],
        }
        for e in sorted(entries, key=lambda e: (e.effective_at, e.seq))
    ]  # fmt: skip


def aliases(config: Config) -> dict[str, int]:
    """What MLflow's aliases name."""
    from airloop.training import tracking

    try:
        return {a: int(v) for a, v in tracking.client(config).get_registered_model(MODEL).aliases.items()}
    except AirloopError:
        return {}


def online(config: Config) -> list[tuple[Any, ...]]:
    """The values that are served: entity, feature, value and the value's time, as Feast keeps them."""
    if not isinstance(config.online_store, Path):
        return online_in_redis(config.online_store.url)
    with closing(sqlite3.connect(config.online_store)) as connection:
        return connection.execute(
            "SELECT hex(entity_key), feature_name, hex(value), event_ts FROM year_lags ORDER BY 1, 2"
        ).fetchall()


def online_in_redis(url: str) -> list[tuple[Any, ...]]:
    """Feast keeps a hash for each entity there, whose name ends in the project's."""
    import redis
    from google.protobuf.timestamp_pb2 import Timestamp

    from airloop.features.encode import stored_seconds
    from airloop.features.online_redis import field_name

    found = []
    with redis.Redis.from_url(url) as client:
        for key in client.scan_iter():
            if b"airloop:" in key:
                continue
            values = client.hgetall(key)
            event_us = Timestamp.FromString(values[b"_ts:lags"]).ToMicroseconds()
            event_s = stored_seconds(np.array([event_us], np.int64))[0]
            entity = key.removesuffix(DAG_ID.encode()).hex().upper()
            found += [(entity, c, values[field_name("lags", c)].hex().upper(), event_s) for c in COLUMNS]
    return sorted(found)


def main() -> None:
    """``python -m tests.year_world FOLDER HOME MONTHS``: the first months, one after another."""
    folder, home = map(Path, sys.argv[1:3])
    year = Year.at(home, folder)
    for number in range(1, int(sys.argv[3]) + 1):
        year.run(month(number))


if __name__ == "__main__":
    main()
