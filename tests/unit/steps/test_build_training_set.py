"""The training set: what is in it, what is not yet, what must not be."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from airloop.config import Config
from airloop.contract import Interval
from airloop.errors import BadArgument, BadInput, LeakageFound, NotFound, SchemaMismatch
from airloop.warehouse.catalog import Warehouse
from airloop.warehouse.refs import TableRef
from tests import offline_world as world
from tests.offline_world import at

MONTH = Interval(at(0), at(24 * 30))
FEATURES = ["hour", "distance", "delays__late_rate", "delays__flights", "weather__temp"]
Build = Callable[..., dict[str, Any]]


@pytest.fixture
def config(config: Config, tmp_path: Path) -> Config:
    return world.with_repo(config, world.write_repo(tmp_path / "feature_repo"))


@pytest.fixture
def refs(warehouse: Warehouse) -> dict[str, TableRef]:
    return world.fill(warehouse)


@pytest.fixture
def build(run_step: Any, config: Config, refs: dict[str, TableRef]) -> Build:
    def run(interval: Interval = MONTH, **arguments: Any) -> dict[str, Any]:
        given = {
            "labels": str(refs["labels.arrivals"]),
            "feature_service": "small_v1",
            "tables": [str(refs["features.delays"]), str(refs["features.weather"])],
            "table": "training.small",
            "max_feature_auc": 1.0,  # every third flight is late, and the hour tells which
        }
        manifest: dict[str, Any] = run_step("build_training_set", interval=interval, **{**given, **arguments})
        return manifest

    return run


def rows_of(warehouse: Warehouse, manifest: dict[str, Any]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = (
        warehouse.scan(TableRef.parse(manifest["outputs"]["table"]["reference"])).read_all().to_pylist()
    )
    return rows


def test_rows_are_split_by_time_and_known_at_the_end(build: Build, warehouse: Warehouse) -> None:
    manifest = build()
    rows = rows_of(warehouse, manifest)
    assert [r["flight_id"] for r in rows] == sorted(r["flight_id"] for r in rows)
    holdout, validation = MONTH.end - timedelta(days=7), MONTH.end - timedelta(days=14)
    for row in rows:
        began = {"train": validation, "validation": holdout, "holdout": MONTH.end}[row["split"]]
        assert row["arrival_time"] <= began, "known when the next part began"
        assert row["event_time"] < began
    assert {r["split"] for r in rows} == {"train", "validation", "holdout"}
    counts = manifest["counts"]
    assert counts["rows"] == len(rows) == 300 - counts["rows_waiting_for_label"] - counts["rows_embargoed"]
    assert counts["rows_waiting_for_label"] == 1
    assert counts["rows_embargoed"] == 2, "in flight when validation and hold-out began"
    assert manifest["details"]["bounds"]["holdout"] == holdout.isoformat()


def test_columns_and_recorded_features(build: Build, warehouse: Warehouse) -> None:
    manifest = build()
    ref = TableRef.parse(manifest["outputs"]["table"]["reference"])
    assert warehouse.schema(ref).names == [
        "flight_id", "carrier", "origin", "event_time", "label", "arrival_time", "split", *FEATURES,
        "delays__event_time", "delays__arrival_time", "weather__event_time", "weather__arrival_time",
    ]  # fmt: skip
    summary = next(s for s in warehouse.history(ref.name) if s.id == ref.snapshot).summary
    assert [f["name"] for f in json.loads(summary["airloop.features"])] == FEATURES
    described = {f["name"]: f for f in manifest["details"]["features"]}
    assert described["delays__flights"]["type"] == "int64"
    assert described["delays__flights"]["null_share"] == pytest.approx(1 / 3, abs=0.01), "no carrier, no value"
    assert manifest["details"]["label_columns_not_used"] == ["arr_delay"], "the outcome itself is no feature"
    assert warehouse.schema(ref).field("hour").type == pa.int64(), "as the request source declares it"


def test_equals_feast_through_our_store(build: Build, config: Config, warehouse: Warehouse) -> None:
    import pandas as pd

    from airloop.features.repo import open_store
    from airloop.features.store import snapshots

    manifest = build()
    ours = pd.DataFrame(rows_of(warehouse, manifest))
    store = open_store(config)
    chosen = {
        TableRef.parse(v).name: TableRef.parse(v).snapshot or 0 for v in manifest["details"]["snapshots"].values()
    }
    # Later commits must not show: the snapshots are named.
    world.put(warehouse, "features.weather", world.weather(3), world.WEATHER)
    with snapshots(chosen):
        job = store.get_historical_features(
            ours[["flight_id", "carrier", "origin", "event_time"]],
            store.get_feature_service("small_v1"),
            full_feature_names=True,
        )
    feast = job.to_df()
    assert len(feast) == len(ours) > 200
    for name in FEATURES[2:]:
        pd.testing.assert_series_equal(feast[name], ours[name], check_dtype=False)
    assert feast["delays__late_rate"].notna().any()
    assert feast["flight_id"].tolist() == ours["flight_id"].tolist()


def test_late_label_comes_with_the_next_run(build: Build, warehouse: Warehouse) -> None:
    first = build(Interval(at(0), at(24 * 20)))
    waiting = first["counts"]["rows_waiting_for_label"]
    assert waiting > 0
    ids = {r["flight_id"] for r in rows_of(warehouse, first)}
    second = build(Interval(at(24 * 20), at(24 * 25)))
    later = {r["flight_id"] for r in rows_of(warehouse, second)}
    assert second["counts"]["rows"] > first["counts"]["rows"]
    assert {r["flight_id"] for r in world.labels() if r["event_time"] < at(24 * 20)} - ids - later == set()
    assert len(rows_of(warehouse, first)) == first["counts"]["rows"], "the first training set can still be read"


def test_window_holdout_and_validation_lengths(build: Build, warehouse: Warehouse) -> None:
    manifest = build(window="10d", holdout="2d", validation="none")
    rows = rows_of(warehouse, manifest)
    assert min(r["event_time"] for r in rows) >= MONTH.end - timedelta(days=10)
    assert {r["split"] for r in rows} == {"train", "holdout"}
    with pytest.raises(BadArgument, match="leaves nothing to train on"):
        build(window="10d", holdout="7d", validation="3d")
    with pytest.raises(BadArgument, match="holdout='a week' is not a duration"):
        build(holdout="a week")


def test_same_inputs_are_reused_and_a_new_snapshot_is_not(
    build: Build, warehouse: Warehouse, refs: dict[str, TableRef]
) -> None:
    first = build()
    again = build()
    assert again["status"] == "reused"
    assert again["outputs"] == first["outputs"]
    new = world.put(warehouse, "features.weather", world.weather(24 * 40), world.WEATHER)
    changed = build(tables=[str(refs["features.delays"]), str(new)])
    assert changed["key"] != first["key"]


def test_rows_do_not_depend_on_the_run(build: Build, warehouse: Warehouse) -> None:
    first = rows_of(warehouse, build())
    second = rows_of(warehouse, build(table="training.other"))
    assert first == second


def test_every_table_must_be_named_once(build: Build, refs: dict[str, TableRef], warehouse: Warehouse) -> None:
    with pytest.raises(BadArgument, match=r"reads features\.weather, which tables does not name"):
        build(tables=[str(refs["features.delays"])])
    new = world.put(warehouse, "features.delays", world.delays(10), world.DELAYS)
    with pytest.raises(BadArgument, match=r"features\.delays is named twice"):
        build(tables=[str(refs["features.delays"]), str(new), str(refs["features.weather"])])
    with pytest.raises(NotFound, match=r"no feature service 'small_v2'.*small_v1"):
        build(feature_service="small_v2")


def test_no_training_rows_is_explained(build: Build) -> None:
    between = r"no training rows: of labels\.arrivals between the first label and 2012-12-25"
    with pytest.raises(BadInput, match=between + ".*69 holdout, 1 waiting_for_label"):
        build(Interval(at(0), at(24 * 7)))
    with pytest.raises(BadInput, match="no labels in the whole window"):
        build(Interval(at(24 * 300), at(24 * 301)), window="30d")


def test_empty_feature_table_gives_nulls(build: Build, warehouse: Warehouse, refs: dict[str, TableRef]) -> None:
    warehouse.ensure("features.delays", world.DELAYS)
    empty = TableRef("features.delays", 0)
    manifest = build(tables=[str(empty), str(refs["features.weather"])])
    assert all(r["delays__late_rate"] is None for r in rows_of(warehouse, manifest))


def test_missing_request_column_is_named(build: Build, warehouse: Warehouse) -> None:
    names = [n for n in world.LABELS.names if n != "distance"]
    schema = pa.schema([world.LABELS.field(n) for n in names])
    ref = world.put(warehouse, "labels.short", [{n: r[n] for n in names} for r in world.labels()], schema)
    with pytest.raises(SchemaMismatch, match=r"labels\.short has no column distance"):
        build(labels=str(ref))


def test_request_value_known_too_late_is_a_leak(build: Build, warehouse: Warehouse) -> None:
    schema = world.LABELS.append(pa.field("hour__arrival_time", world.TIME))
    rows = [{**r, "hour__arrival_time": r["event_time"]} for r in world.labels()]
    rows[10]["hour__arrival_time"] = rows[10]["event_time"] + timedelta(minutes=1)
    ref = world.put(warehouse, "labels.dated", rows, schema, key=("flight_id",))
    with pytest.raises(LeakageFound, match=r"request column \(hour\): 1 rows .*flight_id=f0010"):
        build(labels=str(ref))
    assert not warehouse.exists("training.small")


UNDECLARED = world.FILES["sources.py"].replace('name="delays")', 'name="delays", created_timestamp_column="")')


def test_view_that_overlooks_arrival_is_a_leak(build: Build, config: Config, warehouse: Warehouse) -> None:
    """Feast's default join, by event time only, takes values that had not arrived."""
    world.write_repo(config.feature_repo or Path(), sources=UNDECLARED)
    with pytest.raises(LeakageFound) as caught:
        build()
    text = str(caught.value)
    assert "feature view delays (delays__late_rate, delays__flights)" in text
    assert "rows use a value that arrived after their time" in text
    assert "flight_id=f0000 carrier=AA origin=EWR at 2013-01-01 00:06:00+00:00" in text
    assert "uses a value of 2013-01-01 00:00:00+00:00 that arrived 2013-01-02 00:00:00+00:00" in text
    assert not warehouse.exists("training.small")


def test_view_without_any_arrival_time_needs_a_statement(
    build: Build, config: Config, warehouse: Warehouse, refs: dict[str, TableRef]
) -> None:
    folder = config.feature_repo or Path()
    world.write_repo(folder, sources=UNDECLARED.replace('"delays", c', '"delays", table="features.bare", c'))
    names = [n for n in world.DELAYS.names if n != "arrival_time"]
    schema = pa.schema([world.DELAYS.field(n) for n in names])
    bare = world.put(warehouse, "features.bare", [{n: r[n] for n in names} for r in world.delays()], schema)
    tables = [str(bare), str(refs["features.weather"])]
    with pytest.raises(BadArgument, match="delays does not say when its values became known"):
        build(tables=tables)
    stated = world.FILES["views.py"].replace('name="delays", e', 'name="delays", tags={"known": "at_event"}, e')
    world.write_repo(
        folder, sources=UNDECLARED.replace('"delays", c', '"delays", table="features.bare", c'), views=stated
    )
    assert build(tables=tables)["counts"]["rows"] > 200


def test_feature_of_another_type_is_named(build: Build, warehouse: Warehouse, refs: dict[str, TableRef]) -> None:
    schema = world.WEATHER.set(1, pa.field("temp", pa.string()))
    rows = [{**r, "temp": str(r["temp"])} for r in world.weather(10)]
    other = world.put(warehouse, "other.weather", rows, schema)
    assert other.name == "other.weather"
    warehouse._catalog.rename_table("features.weather", "features.old")
    warehouse._catalog.rename_table("other.weather", "features.weather")
    ref = TableRef("features.weather", other.snapshot)
    with pytest.raises(SchemaMismatch, match=r"features\.weather: column temp is VARCHAR, declared is DOUBLE"):
        build(tables=[str(refs["features.delays"]), str(ref)])


def test_changed_definitions_change_the_key_and_the_columns(build: Build, config: Config, warehouse: Warehouse) -> None:
    first = build()
    smaller = world.FILES["services.py"].replace("[delays, weather", "[delays[['flights']], weather")
    world.write_repo(config.feature_repo or Path(), services=smaller)
    second = build()
    assert second["key"] != first["key"]
    rows = rows_of(warehouse, second)
    assert all(r["delays__late_rate"] is None for r in rows), "the dropped feature's column stays, empty"
    ref = TableRef.parse(second["outputs"]["table"]["reference"])
    summary = next(s for s in warehouse.history(ref.name) if s.id == ref.snapshot).summary
    assert "delays__late_rate" not in summary["airloop.features"]


def test_label_cannot_be_a_feature(build: Build) -> None:
    with pytest.raises(BadArgument, match="hour cannot be time, label, arrival or split"):
        build(label_column="hour")


def test_a_copy_of_the_label_is_refused_and_can_be_allowed(
    build: Build, warehouse: Warehouse, refs: dict[str, TableRef]
) -> None:
    rows = warehouse.scan(refs["labels.arrivals"]).read_all().to_pylist()
    for number, row in enumerate(rows):
        row["label"] = number * 7 % 11 % 2
        row["distance"] = 100.0 + 50 * row["label"] + number / 1000
    labels = str(world.put(warehouse, "labels.arrivals", rows, world.LABELS, key=("flight_id",)))
    with pytest.raises(LeakageFound, match=r"1 of 5 features give label away, by \d+ rows: distance: alone it ranks"):
        build(labels=labels, max_feature_auc=0.97)
    target = build(labels=labels, max_feature_auc=0.97, allow=["distance"])["details"]["leakage"]["target"]
    assert list(target["allowed"]) == ["distance"]
    assert target["allowed"]["distance"].startswith("alone it ranks the labels with an AUC of 1.0000")
    assert target["highest"]["distance"] == 1
    assert build(labels=labels)["details"]["leakage"]["target"]["allowed"] == {}
    with pytest.raises(BadArgument, match="allow: feature service small_v1 has no feature speed"):
        build(labels=labels, allow=["speed"])


def test_rows_with_the_value_that_decides_are_shown(
    build: Build, warehouse: Warehouse, refs: dict[str, TableRef]
) -> None:
    rows = warehouse.scan(refs["labels.arrivals"]).read_all().to_pylist()
    rows = [row | {"flight_id": f"{row['flight_id']}-{copy}"} for row in rows for copy in range(4)]
    for number, row in enumerate(rows):
        row["label"] = number % 2
        row["hour"] = 1 if row["label"] and number % 4 == 1 else 0
    labels = str(world.put(warehouse, "labels.arrivals", rows, world.LABELS, key=("flight_id",)))
    with pytest.raises(
        LeakageFound, match=r"hour: of \d+ rows with the value 1, .* \(first: flight_id=.* has 1 and label 1"
    ):
        build(labels=labels)
