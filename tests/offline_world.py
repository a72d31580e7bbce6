"""A small world to test offline features on: a feature repository, its tables, and labels, in a real warehouse."""

from __future__ import annotations

import textwrap
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa

from airloop.config import Config
from airloop.warehouse.catalog import Warehouse
from airloop.warehouse.refs import TableRef

T0 = datetime(2013, 1, 1, tzinfo=UTC)
TIME = pa.timestamp("us", "UTC")

FILES = {
    "feature_store.yaml": """
        # ${NOT_SET_ANYWHERE} in a comment is nobody's business
        project: small
        provider: local
        registry: ${AIRLOOP_FEAST_REGISTRY}
        offline_store: {type: airloop.features.store.IcebergOfflineStore}
        online_store: {type: sqlite, path: "${AIRLOOP_ONLINE_STORE}"}
        entity_key_serialization_version: 3
    """,
    "entities.py": """
        from feast import Entity, ValueType

        carrier = Entity(name="carrier", join_keys=["carrier"], value_type=ValueType.STRING)
        origin = Entity(name="origin", join_keys=["origin"], value_type=ValueType.STRING)
    """,
    "sources.py": """
        from feast import Field, RequestSource
        from feast.types import Float64, Int64

        from airloop.features.source import IcebergSource

        delays_source = IcebergSource(name="delays")
        weather_source = IcebergSource(name="weather")
        schedule = RequestSource(
            name="schedule", schema=[Field(name="hour", dtype=Int64), Field(name="distance", dtype=Float64)]
        )
    """,
    "views.py": """
        from datetime import timedelta

        from entities import carrier, origin
        from feast import FeatureView, Field
        from feast.types import Float64, Int64, String
        from sources import delays_source, weather_source

        delays = FeatureView(
            name="delays", entities=[carrier], ttl=timedelta(hours=12), source=delays_source,
            schema=[
                Field(name="carrier", dtype=String),
                Field(name="late_rate", dtype=Float64),
                Field(name="flights", dtype=Int64),
            ],
        )
        weather = FeatureView(
            name="weather", entities=[origin], ttl=None, source=weather_source,
            schema=[Field(name="origin", dtype=String), Field(name="temp", dtype=Float64)],
        )
    """,
    "services.py": """
        from feast import FeatureService
        from views import delays, weather

        small_v1 = FeatureService(
            name="small_v1", features=[delays, weather[["temp"]]], tags={"request_source": "schedule"}
        )
    """,
}


def at(hours: float) -> datetime:
    return T0 + timedelta(hours=hours)


def write_repo(folder: Path, **changed: str) -> Path:
    """Write the feature repository; ``changed`` are replacements of whole files by their stem."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in FILES.items():
        (folder / name).write_text(textwrap.dedent(changed.get(name.partition(".")[0], text)).lstrip())
    return folder


def with_repo(config: Config, folder: Path) -> Config:
    return replace(config, feature_repo=folder)


def put(
    warehouse: Warehouse, name: str, rows: list[dict[str, Any]], schema: pa.Schema, *, key: tuple[str, ...] = ()
) -> TableRef:
    """Replace a table's rows."""
    warehouse.ensure(name, schema, key=key)
    rows_key = f"{name}-{warehouse.head(name)}"
    return warehouse.commit(name, pa.Table.from_pylist(rows, schema), key=rows_key, mode="replace").ref


DELAYS = pa.schema(
    [
        ("carrier", pa.string()),
        ("late_rate", pa.float64()),
        ("flights", pa.int64()),
        ("event_time", TIME),
        ("arrival_time", TIME),
    ]
)
WEATHER = pa.schema([("origin", pa.string()), ("temp", pa.float64()), ("event_time", TIME), ("arrival_time", TIME)])
LABELS = pa.schema(
    [
        ("flight_id", pa.string()), ("carrier", pa.string()), ("origin", pa.string()), ("event_time", TIME),
        ("hour", pa.int32()), ("distance", pa.float64()), ("arr_delay", pa.float64()), ("label", pa.int64()),
        ("arrival_time", TIME),
    ]
)  # fmt: skip


def delays(hours: int = 24 * 31, *, lag: float = 0.25) -> list[dict[str, Any]]:
    """Every second hour for two carriers; each seventh value arrives a day late."""
    return [
        {
            "carrier": carrier,
            "late_rate": (hour % 10) / 10 + (carrier == "UA"),
            "flights": hour,
            "event_time": at(hour),
            "arrival_time": at(hour + (24 if hour % 14 == 0 else lag)),
        }
        for carrier in ("AA", "UA")
        for hour in range(0, hours, 2)
    ]


def weather(hours: int = 24 * 31) -> list[dict[str, Any]]:
    return [
        {"origin": origin, "temp": 30.0 + hour % 24, "event_time": at(hour), "arrival_time": at(hour + 1)}
        for origin in ("EWR", "JFK")
        for hour in range(hours)
    ]


def labels(count: int = 300, *, every: float = 2.4) -> list[dict[str, Any]]:
    """One flight each ``every`` hours, over 30 days by default; its label is known three hours later."""
    return [
        {
            "flight_id": f"f{n:04}",
            "carrier": ("AA", "UA", None)[n % 3],
            "origin": ("EWR", "JFK", "LGA", "EWR")[n % 4],
            "event_time": at(n * every + 0.1),
            "hour": int(n * every) % 24,
            "distance": 100.0 * (n % 7),
            "arr_delay": float(n % 40),
            "label": int(n % 5 == 0),
            "arrival_time": at(n * every + 3.1),
        }
        for n in range(count)
    ]


def fill(warehouse: Warehouse) -> dict[str, TableRef]:
    """All tables of the world, by name."""
    refs = [
        put(warehouse, "features.delays", delays(), DELAYS, key=("carrier", "event_time")),
        put(warehouse, "features.weather", weather(), WEATHER, key=("origin", "event_time")),
        put(warehouse, "labels.arrivals", labels(), LABELS, key=("flight_id",)),
    ]
    return {ref.name: ref for ref in refs}
