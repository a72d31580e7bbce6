"""Our Feast store through Feast's own door."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd  # noqa: TID253 - what this module tests lives on both
import pyarrow as pa
import pytest
from feast import FeatureStore  # noqa: TID253

from airloop.config import Config
from airloop.errors import BadArgument, BadInput, SchemaMismatch
from airloop.features import repo
from airloop.features.definitions import ServiceDefinition
from airloop.features.offline import features_for, join_features
from airloop.features.source import IcebergSource
from airloop.features.store import IcebergOfflineStore, snapshots, warehouse_of
from airloop.warehouse.catalog import Warehouse
from airloop.warehouse.refs import TableRef
from tests import offline_world as world
from tests.offline_world import at

REFS = ["delays:late_rate", "delays:flights", "weather:temp"]


@pytest.fixture
def config(config: Config, tmp_path: Path) -> Config:
    return world.with_repo(config, world.write_repo(tmp_path / "feature_repo"))


@pytest.fixture
def refs(warehouse: Warehouse) -> dict[str, TableRef]:
    return world.fill(warehouse)


@pytest.fixture
def store(config: Config, refs: dict[str, TableRef]) -> FeatureStore:
    return repo.open_store(config)


def entities(**columns: Any) -> pd.DataFrame:
    given = {
        "carrier": ["UA", "AA", "UA", None, "UA", "ZZ"],
        "origin": ["EWR", "JFK", "EWR", "EWR", "EWR", "EWR"],
        "event_timestamp": [at(50.1), at(2), at(50.1), at(50.1), at(0), at(50.1)],
    }
    return pd.DataFrame({**given, **columns})


def test_keeps_every_row_and_their_order(store: FeatureStore) -> None:
    found = store.get_historical_features(entities(n=range(6)), REFS).to_df()
    assert found["n"].tolist() == list(range(6))
    # The value of hour 42 arrives a day late, hour 48 is known at 48:15, hour 50 at 50:15.
    assert found["flights"].tolist()[0::2][:2] == [48, 48]
    assert found["late_rate"].isna().tolist() == [False, True, False, True, True, True]
    assert found["temp"].isna().tolist() == [False, False, False, False, True, False]
    assert found["temp"].tolist()[:2] == [31.0, 31.0], "of hours 49 and 1"
    assert found.columns.tolist() == ["carrier", "origin", "event_timestamp", "n", "late_rate", "flights", "temp"]


def test_late_arrival_is_not_seen_whatever_the_flag_says(store: FeatureStore) -> None:
    """feast#6615: by default Feast takes values that had not arrived."""
    rows = entities().iloc[[0]].assign(event_timestamp=[at(43)])
    for flag in (False, True):
        job = store.get_historical_features(rows, REFS, filter_by_created_timestamp=flag)
        assert job.to_df()["flights"].tolist() == [40], "hour 42 arrives at hour 66"


def test_reads_the_snapshots_that_are_named(
    store: FeatureStore, warehouse: Warehouse, refs: dict[str, TableRef]
) -> None:
    old = refs["features.weather"].snapshot or 0
    world.put(warehouse, "features.weather", [{**r, "temp": -1.0} for r in world.weather(72)], world.WEATHER)
    with snapshots({"features.weather": old}):
        kept = store.get_historical_features(entities(), ["weather:temp"])
        with snapshots({"features.weather": 0}):
            assert store.get_historical_features(entities(), ["weather:temp"]).to_df()["temp"].isna().all()
        then = store.get_historical_features(entities(), ["weather:temp"]).to_df()
    assert (then["temp"].dropna() >= 30).all()
    now = store.get_historical_features(entities(), ["weather:temp"]).to_df()
    assert (now["temp"].dropna() == -1).all()
    pd.testing.assert_frame_equal(kept.to_df(), then)


@pytest.mark.parametrize(
    "times",
    [
        [datetime(2013, 1, 3, 2, 6)] * 6,
        ["2013-01-03T02:06:00Z"] * 6,
        ["2013-01-02T21:06:00-05:00"] * 6,
        pd.Series([datetime(2013, 1, 3, 2, 6, tzinfo=UTC)] * 6).dt.tz_convert("America/New_York"),
    ],
)
def test_times_with_and_without_zones(store: FeatureStore, times: Any) -> None:
    found = store.get_historical_features(entities(event_timestamp=times), REFS).to_df()
    assert found["flights"].tolist()[0] == 48


def test_entity_rows_as_arrow(store: FeatureStore) -> None:
    table = pa.table({"origin": ["EWR"], "when": pa.array([at(50.1)], pa.timestamp("us", "UTC"))})
    found = store.get_historical_features(table, ["weather:temp"], full_feature_names=True).to_arrow()
    assert found.column_names == ["origin", "when", "weather__temp"]
    assert found["weather__temp"].to_pylist() == [31.0]
    none = store.get_historical_features(table.slice(0, 0), ["weather:temp"]).to_arrow()
    assert none.num_rows == 0


def test_entity_rows_that_cannot_be_used(store: FeatureStore) -> None:
    with pytest.raises(BadArgument, match="as a data frame, not str"):
        store.get_historical_features("SELECT 1", REFS)
    rows = entities().rename(columns={"event_timestamp": "a"}).assign(b=at(1))
    with pytest.raises(BadArgument, match="2 time columns"):
        store.get_historical_features(rows, REFS)
    with pytest.raises(BadInput, match="cannot be read"):
        store.get_historical_features(entities(event_timestamp=["soon"] * 6), REFS)
    with pytest.raises(BadArgument, match="no column carrier"):
        store.get_historical_features(entities().drop(columns="carrier"), REFS).to_df()


def pulled(store: FeatureStore, method: str, start: datetime, end: datetime) -> pd.DataFrame:
    source = store.get_feature_view("delays").batch_source
    job = getattr(IcebergOfflineStore, method)(
        store.config, source, ["carrier"], ["late_rate", "flights"], "event_time", "arrival_time", start, end
    )
    frame: pd.DataFrame = job.to_df()
    return frame


def test_pull_latest_takes_what_was_known(store: FeatureStore) -> None:
    found = pulled(store, "pull_latest_from_table_or_query", at(0), at(43))
    assert sorted(found["carrier"]) == ["AA", "UA"]
    assert found["flights"].tolist() == [40, 40], "hour 42 arrives at hour 66"
    assert found.columns.tolist() == ["carrier", "late_rate", "flights", "event_time", "arrival_time"]


def test_pull_all_takes_the_range(store: FeatureStore) -> None:
    found = pulled(store, "pull_all_from_table_or_query", at(40), at(44))
    assert sorted(found["flights"]) == [40, 40, 42, 42, 44, 44]


def test_source_survives_the_registry_and_knows_its_columns(store: FeatureStore) -> None:
    source = store.get_data_source("delays")
    assert isinstance(source, IcebergSource)
    assert source.table == "features.delays"
    again = IcebergSource.from_proto(source.to_proto())
    assert again == source
    assert hash(again) == hash(source)
    assert again != IcebergSource(name="delays", table="features.other")
    types = dict(source.get_table_column_names_and_types(store.config))
    assert types["late_rate"] == "double"
    convert = source.source_datatype_to_feast_value_type()
    assert [convert(types[c]).name for c in ("carrier", "flights", "event_time")] == [
        "STRING",
        "INT64",
        "UNIX_TIMESTAMP",
    ]
    source.validate(store.config)
    with pytest.raises(SchemaMismatch, match="no column landed_at"):
        IcebergSource(name="delays", timestamp_field="landed_at").validate(store.config)
    IcebergSource(name="not_made_yet").validate(store.config)
    assert warehouse_of(store.config).exists("features.delays")


def service_of(config: Config) -> ServiceDefinition:
    return repo.describe(config).service("small_v1")


def test_features_for_streams_the_same_values(
    store: FeatureStore, config: Config, warehouse: Warehouse, refs: dict[str, TableRef]
) -> None:
    with features_for(
        warehouse, entities=refs["labels.arrivals"], service=service_of(config), tables=list(refs.values()),
        where="event_time >= TIMESTAMPTZ '2013-01-10 00:00:00Z'", columns=["label"],
    ) as reader:  # fmt: skip
        rows = reader.read_all()
    assert rows.column_names == [
        "flight_id", "carrier", "origin", "label", "event_time", *service_of(config).feature_names,
        "delays__event_time", "delays__arrival_time", "weather__event_time", "weather__arrival_time",
    ]  # fmt: skip
    ours = rows.to_pandas()
    assert ours["event_time"].is_monotonic_increasing
    assert ours["event_time"].min() >= pd.Timestamp("2013-01-10", tz="UTC")
    feast = store.get_historical_features(
        ours[["carrier", "origin", "event_time"]], REFS, full_feature_names=True
    ).to_df()
    for name in ("delays__late_rate", "delays__flights", "weather__temp"):
        pd.testing.assert_series_equal(ours[name], feast[name])
    alive = ours["delays__event_time"] >= ours["event_time"] - timedelta(hours=12)
    assert alive[ours["delays__flights"].notna()].all()


def test_large_joins_are_never_nested_loops(config: Config, warehouse: Warehouse, refs: dict[str, TableRef]) -> None:
    """DuckDB knows no row counts of our views, and takes an ASOF join of a million rows for one of a few."""
    with warehouse.duckdb({**refs, "rows": refs["labels.arrivals"]}) as connection:
        plan = join_features(connection, "rows", service_of(config), time_column="event_time").explain()
    assert plan.count("ASOF_JOIN") == 2
    assert "NESTED_LOOP" not in plan


def test_aliased_view_with_other_keys(store: FeatureStore) -> None:
    view = store.get_feature_view("weather").with_name("there").with_join_key_map({"origin": "dest"})
    from feast import FeatureService

    service = FeatureService(name="aliased", features=[view, store.get_feature_view("weather").with_name("here")])
    store.apply([service])
    rows = pd.DataFrame({"origin": ["EWR"], "dest": ["ZZZ"], "event_timestamp": [at(50.1)]})
    found = store.get_historical_features(rows, store.get_feature_service("aliased"), full_feature_names=True).to_df()
    assert found["here__temp"].tolist() == [31.0]
    assert found["there__temp"].isna().all()
