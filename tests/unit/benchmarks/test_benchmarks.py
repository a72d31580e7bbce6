"""Each benchmark, small: that it does the work, and that ours and the peer's are the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import extract, loop, parse, run, upsert, validate


def test_every_benchmark_is_there() -> None:
    for name in run.NAMES:
        assert (Path(run.__file__).parent / f"{name}.py").is_file()


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
