"""Scoring through the frame: which rows, which features, which model, and what is written once."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from airloop.config import Config
from airloop.contract import Interval
from airloop.errors import BadArgument, SchemaMismatch
from airloop.features.offline import features_for
from airloop.features.refs import FeatureServiceRef
from airloop.features.repo import service_of
from airloop.training.models import load_model
from airloop.warehouse.catalog import Warehouse
from airloop.warehouse.refs import TableRef
from tests import offline_world as world
from tests.training_rows import save_rows

Run = Callable[..., dict[str, Any]]
FEATURES = ("hour", "distance", "delays__late_rate", "delays__flights", "weather__temp")
TWO_WEEKS = Interval(world.at(0), world.at(14 * 24))


@pytest.fixture
def config(config: Config, tmp_path: Path) -> Config:
    return world.with_repo(config, world.write_repo(tmp_path / "feature_repo"))


@pytest.fixture
def refs(warehouse: Warehouse) -> dict[str, TableRef]:
    return world.fill(warehouse)


@pytest.fixture
def model(run_step: Run, warehouse: Warehouse) -> str:
    """A candidate that learned from columns of the service's names."""
    return train(run_step, warehouse, FEATURES)


def train(run_step: Run, warehouse: Warehouse, features: tuple[str, ...], **arguments: Any) -> str:
    draw = np.random.default_rng(0)
    columns = {
        "hour": draw.integers(0, 24, 800),
        "distance": draw.uniform(0, 700, 800),
        "delays__late_rate": draw.uniform(0, 2, 800),
        "delays__flights": draw.integers(0, 700, 800),
        "weather__temp": draw.uniform(30, 54, 800),
        "carrier": np.array(["AA", "UA"])[draw.integers(0, 2, 800)],
        "runway": draw.normal(size=800),
    }
    label = (columns["hour"] + 10 * columns["delays__late_rate"] + draw.normal(size=800) > 22).astype(int)
    rows = pa.table(
        {"flight_id": [str(i) for i in range(800)], "split": ["train", "train", "train", "validation"] * 200}
        | columns
        | {"label": label}
    )
    arguments = {"features": list(features), "hyperparameters": {"n_estimators": 15}} | arguments
    done = run_step("train", examples=str(save_rows(warehouse, rows)), **arguments)
    return str(done["outputs"]["model"]["reference"])


def score(run_step: Run, refs: dict[str, TableRef], model: str, **changed: Any) -> dict[str, Any]:
    arguments = {
        "model": model,
        "entities": str(refs["labels.arrivals"]),
        "feature_service": "small_v1",
        "tables": [str(ref) for ref in refs.values()],
        "table": "predictions.delay",
        "interval": TWO_WEEKS,
    } | changed
    return run_step("batch_score", **arguments)


def test_scores_the_intervals_rows_on_features_of_their_time(
    run_step: Run, warehouse: Warehouse, config: Config, refs: dict[str, TableRef], model: str
) -> None:
    done = score(run_step, refs, model)
    assert done["counts"] == {"rows_scored": 140, "rows_new": 140, "rows_updated": 0}
    found = warehouse.scan(TableRef.parse(done["outputs"]["table"]["reference"])).read_all()
    assert found.column_names == ["flight_id", "event_time", "score", "model_version", "feature_snapshots", "_batch"]
    assert set(found["model_version"].to_pylist()) == {model}
    assert set(found["_batch"].to_pylist()) == {done["key"]}
    snapshots = json.loads(found["feature_snapshots"][0].as_py())
    assert snapshots == {name: ref.snapshot for name, ref in refs.items()}
    assert done["details"]["feature_snapshots"] == snapshots

    service = service_of(config, FeatureServiceRef.parse("small_v1"))
    where = f"event_time < TIMESTAMPTZ '{TWO_WEEKS.end.isoformat()}'"
    with features_for(
        warehouse, entities=refs["labels.arrivals"], service=service, tables=list(refs.values()), where=where
    ) as reader:
        features = reader.read_all()
    expected = dict(
        zip(features["flight_id"].to_pylist(), load_model(config, model).predict(features).tolist(), strict=True)
    )
    assert dict(zip(found["flight_id"].to_pylist(), found["score"].to_pylist(), strict=True)) == expected
    assert len(set(expected.values())) > 20
    assert done["details"]["missing"]["hour"] == 0
    assert done["details"]["missing"]["weather__temp"] > 0


def test_again_is_reused_and_another_model_replaces_the_scores(
    run_step: Run, warehouse: Warehouse, refs: dict[str, TableRef], model: str
) -> None:
    first = score(run_step, refs, model)
    assert score(run_step, refs, model)["status"] == "reused"
    forced = score(run_step, refs, model, force=True)
    assert forced["outputs"] == first["outputs"]
    assert forced["counts"] == first["counts"]
    other = train(run_step, warehouse, FEATURES, seed=1, imbalance="balanced")
    second = score(run_step, refs, other)
    assert second["counts"] == {"rows_scored": 140, "rows_new": 0, "rows_updated": 140}
    assert warehouse.count(TableRef.parse(second["outputs"]["table"]["reference"])) == 140
    back = score(run_step, refs, model)
    assert (back["status"], back["key"], back["counts"]["rows_updated"]) == ("done", first["key"], 140)
    scored = warehouse.scan(TableRef("predictions.delay")).read_all()["model_version"].to_pylist()
    assert set(scored) == {model}, "the model that was gone back to"
    assert score(run_step, refs, model)["status"] == "reused"
    later = score(run_step, refs, other, interval=Interval(TWO_WEEKS.end, world.at(28 * 24)))
    assert later["counts"]["rows_new"] == 140
    assert warehouse.count(TableRef.parse(later["outputs"]["table"]["reference"])) == 280


def test_a_label_is_neither_needed_nor_looked_at(
    run_step: Run, warehouse: Warehouse, refs: dict[str, TableRef], model: str
) -> None:
    rows = [{k: v for k, v in r.items() if k not in ("label", "arr_delay", "arrival_time")} for r in world.labels()]
    schema = pa.schema([f for f in world.LABELS if f.name in rows[0]])
    plain = world.put(warehouse, "entities.flights", rows, schema, key=("flight_id",))
    with_label = score(run_step, refs, model)
    without = score(run_step, refs, model, entities=str(plain), table="predictions.plain")
    scores = [
        sorted(warehouse.scan(TableRef.parse(m["outputs"]["table"]["reference"])).read_all()["score"].to_pylist())
        for m in (with_label, without)
    ]
    assert scores[0] == scores[1]


def test_without_a_champion_nothing_is_scored_and_it_says_why(
    run_step: Run, warehouse: Warehouse, refs: dict[str, TableRef]
) -> None:
    done = score(run_step, refs, "delay@champion")
    assert done["counts"] == {"rows_scored": 0}
    assert done["changed"] is False
    assert "no delay model yet" in done["details"]["reason"]
    assert warehouse.count(TableRef.parse(done["outputs"]["table"]["reference"])) == 0


def test_an_interval_without_entities(run_step: Run, refs: dict[str, TableRef], model: str) -> None:
    empty = Interval(datetime(2014, 1, 1, tzinfo=UTC), datetime(2014, 2, 1, tzinfo=UTC))
    done = score(run_step, refs, model, interval=empty)
    assert done["counts"]["rows_scored"] == 0
    assert done["changed"] is False
    assert "has no row in the interval" in done["details"]["reason"]


def test_a_model_may_use_the_entities_own_columns_and_misses_are_named(
    run_step: Run, warehouse: Warehouse, refs: dict[str, TableRef]
) -> None:
    known = train(run_step, warehouse, ("hour", "carrier"))
    assert score(run_step, refs, known)["counts"]["rows_scored"] == 140
    unknown = train(run_step, warehouse, ("hour", "runway"))
    with pytest.raises(SchemaMismatch, match=r"runway \(double\) is missing"):
        score(run_step, refs, unknown)
    with pytest.raises(BadArgument, match=r"reads features\.weather, which tables does not name"):
        score(run_step, refs, known, tables=[str(refs["features.delays"])])
    with pytest.raises(SchemaMismatch, match="no column 'departs_at'"):
        score(run_step, refs, known, time_column="departs_at")
    keyless = world.put(warehouse, "entities.keyless", world.labels(3), world.LABELS)
    with pytest.raises(BadArgument, match=r"entities\.keyless has no key"):
        score(run_step, refs, known, entities=str(keyless))
