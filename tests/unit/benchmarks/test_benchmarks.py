"""Each benchmark, small: that it does the work, and that ours and the peer's are the same."""

from __future__ import annotations

import argparse
import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from airloop.config import Config
from airloop.registry.ledger import TABLE as LEDGER
from airloop.warehouse.catalog import Warehouse
from airloop.warehouse.refs import TableRef
from benchmarks import extract, join, loop, materialize, online, online_world, parse, run, thousand, upsert, validate
from benchmarks.common import Measured, peak_mb


def test_every_benchmark_is_there() -> None:
    for name in run.NAMES:
        assert (Path(run.__file__).parent / f"{name}.py").is_file()


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """What benchmarks do in processes of their own they do here: the imports of each take longer than the work."""

    def do(work: str, **arguments: Any) -> Measured:
        module, _, name = work.partition(":")
        found = json.loads(json.dumps(getattr(importlib.import_module(module), name)(**arguments)))
        return Measured(found.pop("seconds"), peak_mb(), more=found)

    for module in (join, materialize, online):
        monkeypatch.setattr(module, "own_process", do)


def test_validate(tmp_path: Path) -> None:
    home = str(tmp_path)
    validate.make(home, 20_000)
    ours = validate.ours(home)
    assert len(ours["verdicts"]) == 25
    assert sum(not passed for passed, *_ in ours["verdicts"]) == 5
    assert ours["verdicts"] == validate.great_expectations(home)["verdicts"]


def test_extract(tmp_path: Path) -> None:
    folder = str(tmp_path)
    made = extract.make(folder, 1)["rows"]
    ours = [extract.ours(folder, "csv", "month(time_hour)")["rows"], extract.ours(folder, "parquet", "")["rows"]]
    assert {made, *ours, *(extract.plain(folder, kind)["rows"] for kind in ("csv", "parquet"))} == {336_776}


@pytest.mark.parametrize("pattern", upsert.PATTERNS)
def test_upsert(tmp_path: Path, pattern: str) -> None:
    home = str(tmp_path)
    first = upsert.make(home, 5_000)["first"]
    found = [way(home, 5_000, pattern, first) for way in (upsert.ours, upsert.pyiceberg)]
    assert found[0] | {"seconds": 0} == found[1] | {"seconds": 0}
    assert (found[0]["updated"], found[0]["count"]) == (50, 5_000)


# Feast's DuckDB store uses ibis, which asks DuckDB by a name of before.
@pytest.mark.filterwarnings("ignore:fetch_arrow_table\\(\\) is deprecated:DeprecationWarning")
def test_join(tmp_path: Path, in_this_process: None) -> None:
    join.make(tmp_path, 200, 2_000, "late")
    # It ends the process if the ways differ.
    rows = join.compare(str(tmp_path), "late", argparse.Namespace(labels=200, runs=1, feast=True))
    assert [r["peer"] for r in rows] == ["DuckDB's SQL by hand", "DuckDB's SQL by hand", "Feast's DuckDB store"]


@pytest.mark.parametrize("kind", ["sqlite", "redis"])
def test_materialize_and_online(
    request: pytest.FixtureRequest, tmp_path: Path, in_this_process: None, kind: str
) -> None:
    redis = request.getfixturevalue("redis_url") if kind == "redis" else ""
    online_world.make(tmp_path, 200)
    rows = materialize.compare(tmp_path, 200, kind, redis, 1)
    assert [r["peer"] for r in rows] == ["feast materialize", "bare writes of the same bytes"]
    place = redis or str(tmp_path / "read.db")
    materialize._empty(place)
    online.fill(str(tmp_path), place, 200)
    rows = online._rows(str(tmp_path), kind, place, 200, calls=3, entities=10, runs=1)
    assert [r["size"] for r in rows] == ["10 entities"] * 2


def test_thousand(config: Config, tmp_path: Path) -> None:
    # Two of the thousand: where its time goes by tenths of the way takes twenty.
    for number in range(2):
        thousand._run(config, number, thousand._write_day(tmp_path, number))
    warehouse = Warehouse.open(config)
    rows = {name: warehouse.count(TableRef(name, warehouse.head(name))) for name in warehouse.tables()}
    assert rows == {"raw.readings": 200, "features.readings": 200, "training.readings": 200, LEDGER: 4}


def test_parse(tmp_path: Path, airflow_database: Path) -> None:
    inputs = parse.graph()["inputs"]
    assert parse.make(tmp_path, 2, inputs) == len(inputs)
    assert [parse.parse(str(tmp_path / kind))["tasks"] for kind in ("loops", "plain")] == [2 * len(inputs)] * 2


def test_where_the_time_of_a_loop_went() -> None:
    parts = {"queue_s": 1.0, "airflow_s": 0.3, "start_s": 0.1, "payload_s": 2.0, "total_s": 2.4}
    tasks = [{"task": name, **parts} for name in ("a", "b")]
    loops = [{"wall_s": 10.0, "payload_s": 4.0, "tasks": tasks}]
    empties = [{"wall_s": 5.0, "total_s": [0.2, 0.2]}]
    found = loop.summarise(1, loops, empties, [{"wall_s": 4.0, "tasks": {"a": [1.0], "b": [1.5]}}])
    assert [r["ratio"] for r in found["rows"]] == [2.5, 2.0, 2.0, 2.0, 5.75, 7.0]
    assert [r["met"] for r in found["rows"]] == [None, None, True, True, False, False]
    assert found["tasks"]["b"] == {**parts, "plain_s": 1.5}
