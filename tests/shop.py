"""A small feature repository with its tables, for tests of the online side."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from airloop.config import Config
from airloop.contract import Interval
from airloop.warehouse.catalog import Warehouse
from airloop.warehouse.refs import TableRef

RunStep = Callable[..., dict[str, Any]]
STAMP = pa.timestamp("us", tz="UTC")
T0 = datetime(2013, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)

DEFINITIONS = """
from datetime import timedelta
from feast import Entity, FeatureService, FeatureView, Field, ValueType
from feast.types import Float64, Int64, String
from airloop.features.source import IcebergSource

driver = Entity(name="driver", join_keys=["driver"], value_type=ValueType.INT64)
city = Entity(name="city", join_keys=["city"], value_type=ValueType.STRING)
pace = FeatureView(
    name="pace", entities=[driver], ttl=timedelta(days=10), source=IcebergSource(name="pace"),
    schema=[Field(name="driver", dtype=Int64), Field(name="speed", dtype=Float64), Field(name="trips", dtype=Int64)],
)
route = FeatureView(
    name="route", entities=[driver, city], ttl=None, source=IcebergSource(name="route"),
    schema=[Field(name="driver", dtype=Int64), Field(name="city", dtype=String), Field(name="note", dtype=String)],
)
drivers = FeatureService(name="drivers", features=[pace, route])
"""
STORE = """
project: {project}
provider: local
registry: ${{AIRLOOP_FEAST_REGISTRY}}
offline_store: {{type: airloop.features.store.IcebergOfflineStore}}
online_store: {{type: sqlite, path: "${{AIRLOOP_ONLINE_STORE}}"}}
batch_engine: {{type: {engine}}}
entity_key_serialization_version: 3
"""
OURS = "airloop.features.engine.IcebergComputeEngine"


def with_repository(config: Config, folder: Path) -> Config:
    """The configuration with a feature repository of two views, made in a folder."""
    folder.mkdir()
    (folder / "views.py").write_text(DEFINITIONS)
    (folder / "feature_store.yaml").write_text(STORE.format(project="shop", engine=OURS))
    return replace(config, feature_repo=folder)


@pytest.fixture
def config(config: Config, tmp_path: Path) -> Config:
    """With the feature repository."""
    return with_repository(config, tmp_path / "repo")


class Shop:
    """The tables of the two views, and how to fill and read them."""

    def __init__(self, warehouse: Warehouse, config: Config, run_step: RunStep) -> None:
        self.warehouse = warehouse
        self.config = config
        self.run_step = run_step
        self.commits = 0
        self.put("route", [(1, "Rome", "ok", T0, T0)])

    def put(self, table: str, rows: list[tuple[Any, ...]]) -> TableRef:
        names = {"pace": ["driver", "speed", "trips"], "route": ["driver", "city", "note"]}[table]
        types = {"driver": pa.int64(), "trips": pa.int64(), "speed": pa.float64(), "event_time": STAMP}
        fields = [*names, "event_time", "arrival_time"]
        schema = pa.schema([(n, types.get(n, STAMP if n == "arrival_time" else pa.string())) for n in fields])
        content = pa.Table.from_pylist([dict(zip(fields, row, strict=True)) for row in rows], schema)
        self.commits += 1
        self.warehouse.ensure(f"features.{table}", schema)
        return self.warehouse.commit(f"features.{table}", content, key=f"seed{self.commits}").ref

    def run(self, end: datetime, *, pace: TableRef | None = None, **more: Any) -> dict[str, Any]:
        tables = [str(pace or "features.pace"), "features.route"]
        return self.run_step(
            "materialize", interval=Interval(end - DAY, end), feature_service="drivers", tables=tables, **more
        )

    def read(self, *drivers: int) -> list[tuple[Any, Any]]:
        """Speed and trips as stock Feast serves them."""
        from airloop.features.repo import open_store

        answer = open_store(self.config).get_online_features(
            ["pace:speed", "pace:trips"], [{"driver": d} for d in drivers]
        ).to_dict()  # fmt: skip
        return list(zip(answer["speed"], answer["trips"], strict=True))

    def watermark(self) -> datetime | None:
        with sqlite3.connect(self.config.online_store) as connection:
            try:
                row = connection.execute("SELECT until FROM airloop_watermark WHERE view = 'shop_pace'").fetchone()
            except sqlite3.OperationalError:
                return None
        return datetime.fromtimestamp(row[0] / 1e6, UTC) if row else None


@pytest.fixture
def shop(warehouse: Warehouse, config: Config, run_step: RunStep) -> Shop:
    return Shop(warehouse, config, run_step)
