"""A training table of known structure, for tests that need something to learn."""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa

from airloop.warehouse.catalog import Warehouse
from airloop.warehouse.refs import TableRef

FEATURES = ("distance", "hour", "carrier", "wet", "visib")


def make_rows(rows: int = 1500, *, seed: int = 0) -> pa.Table:
    """Flights whose label follows distance, hour, carrier and rain, with gaps in ``visib``; split 60/20/20 by time."""
    draw = np.random.default_rng(seed)
    distance, hour = draw.normal(size=rows), draw.integers(5, 24, rows)
    carrier = np.array(["AA", "B6", "DL", "UA"])[draw.integers(0, 4, rows)]
    wet = draw.random(rows) < 0.3
    visib = np.where(draw.random(rows) < 0.2, np.nan, draw.uniform(0, 10, rows))
    logit = distance + 0.2 * (hour - 14) + 1.5 * (carrier == "B6") + 1.2 * wet - 2
    label = (draw.random(rows) < 1 / (1 + np.exp(-logit))).astype(np.int64)
    start = datetime(2013, 1, 1, 5, tzinfo=UTC)
    times = pa.array([start + timedelta(minutes=20 * i) for i in range(rows)], pa.timestamp("us", tz="UTC"))
    share = np.arange(rows) / rows
    return pa.table(
        {
            "flight_id": [f"f{i}" for i in range(rows)],
            "event_time": times,
            "arrival_time": times,
            "split": pa.array(np.select([share < 0.6, share < 0.8], ["train", "validation"], "holdout").tolist()),
            "label": label,
            "distance": distance,
            "hour": hour,
            "carrier": carrier,
            "wet": wet,
            "visib": pa.array(visib, from_pandas=True),
        }
    )


def replaced(rows: pa.Table, column: str, values: Any) -> pa.Table:
    """The same rows with one column exchanged."""
    return rows.set_column(rows.schema.get_field_index(column), column, pa.array(values))


def save_rows(
    warehouse: Warehouse, rows: pa.Table, *, name: str = "training.delay", features: tuple[str, ...] | None = FEATURES
) -> TableRef:
    """Save rows as a training table whose snapshot says which columns are features."""
    warehouse.ensure(name, rows.schema, key=["flight_id"])
    properties = {} if features is None else {"airloop.features": json.dumps([{"name": f} for f in features])}
    key = uuid.uuid4().hex * 2
    return warehouse.commit(name, rows, key=key, mode="replace", properties=properties).ref
