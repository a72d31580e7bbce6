from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from airloop.config import Config
from airloop.contract import Interval
from airloop.errors import AirloopError, BadArgument, BadInput, BadInterval, NotFound, SchemaMismatch
from airloop.reference import Scope
from airloop.sources.files import FileSet
from airloop.sources.spec import SourceSpec
from airloop.steps import load
from airloop.warehouse.refs import TableRef

if TYPE_CHECKING:
    from airloop.frame import StepContext
    from airloop.warehouse.catalog import Warehouse

Run = Callable[..., dict[str, Any]]
SOURCES = Path(__file__).resolve().parents[3] / "dags" / "flights" / "sources"

SOURCE = """
name: sensors
table: raw.sensors
description: Readings.
format: csv
columns:
  id: {type: long, nullable: false}
  at: timestamptz
  value: double
key: [id]
interval_column: at
"""
REGISTER = """
name: places
table: raw.places
format: csv
columns: {id: long, name: string}
key: [id]
"""
JANUARY = Interval(datetime(2013, 1, 1, tzinfo=UTC), datetime(2013, 2, 1, tzinfo=UTC))
FEBRUARY = Interval(JANUARY.end, datetime(2013, 3, 1, tzinfo=UTC))


class Drop:
    """A file that grows, and the step that reads it; each result is published as the validating step does."""

    def __init__(self, path: Path, run_step: Run, warehouse: Warehouse) -> None:
        self.path = path
        self._run_step = run_step
        self._warehouse = warehouse

    def write(self, *rows: str, header: str = "id,at,value") -> None:
        self.path.write_text("\n".join([header, *rows]) + "\n")

    def extract(self, interval: Interval = JANUARY, *, publish: bool = True, **changed: Any) -> dict[str, Any]:
        arguments = {"source": SOURCE, "files": str(self.path), **changed}
        manifest = self._run_step("extract", interval=interval, **arguments)
        ref = TableRef.parse(manifest["outputs"]["table"]["reference"])
        if publish:
            self._warehouse.publish(ref.name, ref.snapshot or 0, drop_branch=manifest["details"]["branch"])
        return manifest

    def rows(self, ref: str = "raw.sensors") -> list[dict[str, Any]]:
        return sorted(self._warehouse.scan(TableRef.parse(ref)).read_all().to_pylist(), key=lambda r: r["id"])


@pytest.fixture
def drop(tmp_path: Path, run_step: Run, warehouse: Warehouse) -> Drop:
    return Drop(tmp_path / "sensors.csv", run_step, warehouse)


def at(day: int, month: int = 1) -> str:
    return f"2013-{month:02}-{day:02}T12:00:00Z"


def counts(manifest: dict[str, Any]) -> tuple[int, ...]:
    return tuple(manifest["counts"][c] for c in ("rows_new", "rows_corrected", "rows_unchanged", "rows_outside"))


def test_rows_land_on_a_branch_and_main_stays(drop: Drop, warehouse: Warehouse) -> None:
    drop.write(f"1,{at(1)},1.5", f"2,{at(2)},", f"3,{at(1, 2)},3")
    manifest = drop.extract(publish=False)
    assert counts(manifest) == (2, 0, 0, 1)
    assert warehouse.head("raw.sensors") == 0
    assert manifest["details"]["branch"] == f"audit-{manifest['key'][:12]}"
    assert manifest["details"]["base"] == 0
    assert manifest["details"]["files"][0]["name"] == "sensors.csv"
    landed = drop.rows(manifest["outputs"]["table"]["reference"])
    assert [(r["id"], r["value"], r["_source"], r["_row"]) for r in landed] == [
        (1, 1.5, "sensors.csv", 1),
        (2, None, "sensors.csv", 2),
    ]
    assert {r["_batch"] for r in landed} == {manifest["key"]}


def test_every_interval_is_brought_once(drop: Drop, warehouse: Warehouse) -> None:
    drop.write(f"1,{at(1)},1", f"2,{at(1, 2)},2")
    january, february = drop.extract(), drop.extract(FEBRUARY)
    assert (counts(january), counts(february)) == ((1, 0, 0, 1), (1, 0, 1, 0))
    assert [r["_batch"] for r in drop.rows()] == [january["key"], february["key"]]
    assert drop.extract()["status"] == "reused"
    assert len(warehouse.history("raw.sensors")) == 2


def test_late_and_corrected_rows_arrive_by_key(drop: Drop) -> None:
    drop.write(f"1,{at(1)},1", f"2,{at(2)},2")
    january = drop.extract()
    drop.write(f"2,{at(2)},2.5", f"1,{at(1)},1", f"3,{at(3)},3", f"4,{at(1, 2)},4")
    february = drop.extract(FEBRUARY)
    assert counts(february) == (2, 1, 1, 0)
    assert february["counts"]["rows_late"] == 3
    assert [(r["id"], r["value"], r["_batch"] == january["key"]) for r in drop.rows()] == [
        (1, 1.0, True),  # untouched: its metadata still says who brought it
        (2, 2.5, False),
        (3, 3.0, False),
        (4, 4.0, False),
    ]


def test_rows_later_than_the_lateness_are_left(drop: Drop) -> None:
    drop.write(f"1,{at(1)},1", f"2,{at(31)},2", f"3,{at(1, 2)},3")
    assert counts(drop.extract(FEBRUARY, source=SOURCE + "lateness: 7d\n")) == (2, 0, 0, 1)


def test_an_older_interval_may_run_again_after_a_newer_one(drop: Drop) -> None:
    drop.write(f"1,{at(1)},1", f"2,{at(1, 2)},2")
    drop.extract()
    drop.extract(FEBRUARY)
    drop.write(f"1,{at(1)},1", f"2,{at(1, 2)},2", f"3,{at(3)},3")
    assert counts(drop.extract()) == (1, 0, 1, 1)
    assert [r["id"] for r in drop.rows()] == [1, 2, 3]


def test_the_same_rows_again_change_nothing(drop: Drop, warehouse: Warehouse) -> None:
    drop.write(f"1,{at(1)},1")
    drop.extract()
    head = warehouse.head("raw.sensors")
    drop.write(f"1,{at(1)},1.0", "")
    again = drop.extract()
    assert counts(again) == (0, 0, 1, 0)
    assert not again["changed"]
    assert warehouse.head("raw.sensors") == head
    assert again["outputs"]["table"]["reference"] == f"raw.sensors@{head}"


def test_an_interval_without_rows_is_done_with_a_warning(drop: Drop, caplog: pytest.LogCaptureFixture) -> None:
    drop.write(f"1,{at(1, 2)},1")
    with caplog.at_level(logging.WARNING):
        manifest = drop.extract(publish=False)
    assert counts(manifest) == (0, 0, 0, 1)
    assert manifest["outputs"]["table"]["reference"] == "raw.sensors@0"
    assert "the files hold no row of 2013-01-01" in caplog.text
    assert drop.rows("raw.sensors@0") == []
    drop.write()
    assert counts(drop.extract(publish=False)) == (0, 0, 0, 0)


def test_undated_rows_come_with_every_run(drop: Drop, caplog: pytest.LogCaptureFixture) -> None:
    drop.write("1,,1")
    assert drop.extract(publish=False)["counts"]["rows_undated"] == 1
    assert "1 rows have no at; every run brings them" in caplog.text


def test_evolution_is_accepted_and_reported(drop: Drop, warehouse: Warehouse) -> None:
    drop.write(f"1,{at(1)},1")
    drop.extract()
    drop.write(f"1,{at(1)},1,7", f"2,{at(2)},2,8", header="id,at,value,gate")
    manifest = drop.extract()
    assert counts(manifest) == (1, 1, 0, 0)
    assert manifest["details"]["evolution"] == [
        "sensors.csv: column gate (long) is not declared; kept as a nullable column",
        "added column gate (long)",
    ]
    assert [r["gate"] for r in drop.rows()] == [7, 8]
    # Nobody promised the column, so a file may lack it again; and one that has it is no news.
    drop.write(f"3,{at(3)},3")
    assert drop.extract()["details"]["evolution"] == []
    drop.write(f"4,{at(4)},4,9", header="id,at,value,gate")
    assert drop.extract()["details"]["evolution"] == []
    assert [r["gate"] for r in drop.rows()] == [7, 8, None, 9]


def test_schema_drift_is_refused_and_nothing_is_lost(drop: Drop, warehouse: Warehouse) -> None:
    drop.write(f"1,{at(1)},1")
    drop.extract()
    before = drop.rows()
    drop.write("1", header="id")
    with pytest.raises(SchemaMismatch, match=r"lost column 'at' \(timestamptz\); lost column 'value' \(double\)"):
        drop.extract()
    drop.write(f"1,{at(1)},a", f"2,{at(1)},b", f"3,{at(1)},c")
    with pytest.raises(SchemaMismatch, match="column value changed its type"):
        drop.extract()
    drop.write(f"1,{at(1)},1")
    with pytest.raises(SchemaMismatch, match=r"value: double in the table, string declared"):
        drop.extract(source=SOURCE.replace("value: double", "value: string"))
    with pytest.raises(SchemaMismatch, match=r"value: double in the table, not declared"):
        drop.extract(source=SOURCE.replace("  value: double\n", "") + "ignore: [value]\n")
    assert drop.rows() == before
    assert len(warehouse.history("raw.sensors")) == 1


def test_a_bad_row_at_the_end_leaves_the_table_alone(drop: Drop, warehouse: Warehouse) -> None:
    drop.write(*(f"{i},{at(1)},1" for i in range(1, 5000)), "x,,")
    with pytest.raises(BadInput, match=r"sensors\.csv: row 5,000, column id: 'x'"):
        drop.extract()
    assert not warehouse.exists("raw.sensors")


def test_a_refused_file_leaves_none_of_its_columns_behind(drop: Drop, warehouse: Warehouse) -> None:
    drop.write("1,2013-01-02T00:00Z,1.0")
    drop.extract()
    before = warehouse.schema("raw.sensors")
    drop.write("2,2013-01-03T00:00Z,1.0,5", "2,2013-01-03T00:00Z,2.0,6", header="id,at,value,gate")
    with pytest.raises(BadInput, match="rows 1, 2 have the same key"):
        drop.extract()
    assert warehouse.schema("raw.sensors") == before


def test_missing_files_and_wrong_arguments(drop: Drop, run_step: Run) -> None:
    with pytest.raises(NotFound, match=r"there is no file .*sensors\.csv"):
        drop.extract()
    drop.write(f"1,{at(1)},1")
    with pytest.raises(BadInterval, match="source sensors is read one interval at a time"):
        run_step("extract", source=SOURCE, files=str(drop.path))
    with pytest.raises(BadArgument, match=r"source: Value error, 'flights\.yaml' is a path; pass the file's content"):
        drop.extract(source="flights.yaml")
    with pytest.raises(BadArgument, match=r"source.columns.id.nulable: Extra inputs are not permitted"):
        drop.extract(source=SOURCE.replace("nullable", "nulable"))
    with pytest.raises(BadArgument, match=r"table 'Sensors' is not namespace\.table"):
        drop.extract(table="Sensors")


def test_another_table_may_be_named(drop: Drop, warehouse: Warehouse) -> None:
    drop.write(f"1,{at(1)},1")
    drop.extract(table="raw.other")
    assert warehouse.tables() == ["raw.other"]


def test_a_snapshot_source_is_read_once_for_all_intervals(run_step: Run, tmp_path: Path) -> None:
    file = tmp_path / "places.csv"
    file.write_text("id,name\n1,Newark\n2,Kennedy\n")
    january = run_step("extract", interval=JANUARY, source=REGISTER, files=str(file))
    february = run_step("extract", interval=FEBRUARY, source=REGISTER, files=str(file))
    assert (january["status"], february["status"]) == ("done", "reused")
    assert january["key"] == february["key"]
    assert run_step("extract", source=REGISTER, files=str(file))["status"] == "reused"


def test_a_second_attempt_adopts_what_a_killed_one_committed(
    drop: Drop, warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop.write(f"1,{at(1)},1", f"2,{at(2)},2")
    monkeypatch.setenv("AIRLOOP_FAULT", "raise@commit:after;raise@manifest")
    with pytest.raises(AirloopError, match="injected at commit:after"):
        drop.extract()
    monkeypatch.delenv("AIRLOOP_FAULT")
    manifest = drop.extract()
    assert counts(manifest) == (2, 0, 0, 0)
    assert len(warehouse.history("raw.sensors")) == 1


def test_two_runs_of_one_interval_at_once_end_as_one(
    drop: Drop, config: Config, warehouse: Warehouse, make_context: Callable[..., StepContext], tmp_path: Path
) -> None:
    drop.write(*(f"{i},{at(1 + i % 28)},{i}" for i in range(500)))
    files = FileSet.parse(str(drop.path)).resolve(Scope(config))
    extract = load("extract").function
    source = SourceSpec.model_validate(SOURCE)

    def run(key: str) -> TableRef:
        context = make_context("extract", interval=JANUARY, key=key * 64)
        context.workdir = tmp_path / key
        context.workdir.mkdir()
        result = extract(context, source=source, files=files, interval=JANUARY)
        ref = result.outputs["table"]
        assert isinstance(ref, TableRef)
        return ref

    with ThreadPoolExecutor(2) as pool:
        # Other code, so other keys: the frame's lock does not keep them apart.
        first, second = pool.map(run, "ab")
    content = [[(r["id"], r["value"]) for r in drop.rows(str(ref))] for ref in (first, second)]
    assert content[0] == content[1] == [(i, float(i)) for i in range(500)]
    warehouse.publish("raw.sensors", first.snapshot or 0)
    drop.extract(publish=False)
    assert [(r["id"], r["value"]) for r in drop.rows()] == content[0]


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("parquet", None),
        ("jsonl", f'{{"id": 1, "at": "{at(1)}", "value": 1.5}}\n{{"id": 2, "at": "{at(1, 2)}"}}\n'),
    ],
)
def test_other_formats(drop: Drop, tmp_path: Path, kind: str, content: str | None) -> None:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    file = tmp_path / f"sensors.{kind}"
    if content is None:
        moments = [datetime(2013, 1, 1, 12, tzinfo=UTC), datetime(2013, 2, 1, 12, tzinfo=UTC)]
        parquet.write_table(pa.table({"id": [1, 2], "at": moments, "value": [1.5, None]}), file)
    else:
        file.write_text(content)
    manifest = drop.extract(source=SOURCE.replace("csv", kind), files=str(file))
    assert counts(manifest) == (1, 0, 0, 1)
    assert [(r["id"], r["value"], r["_row"]) for r in drop.rows()] == [(1, 1.5, 1)]


FLIGHTS = """\
year,month,day,dep_time,sched_dep_time,dep_delay,arr_time,sched_arr_time,arr_delay,carrier,flight,tailnum,origin,dest,air_time,distance,hour,minute,time_hour
2013,1,1,517,515,2,830,819,11,UA,1545,N14228,EWR,IAH,227,1400,5,15,2013-01-01T10:00:00Z
2013,1,31,12,2359,13,440,438,2,B6,839,N594JB,JFK,BQN,189,1576,23,59,2013-02-01T04:00:00Z
2013,1,31,NA,600,NA,NA,901,NA,B6,125,N618JB,JFK,FLL,NA,1069,6,0,2013-01-31T11:00:00Z
2013,1,31,627,630,-3,1018,830,NA,MQ,4576,N730MQ,LGA,CLT,NA,544,6,30,2013-01-31T11:00:00Z
2013,2,1,456,500,-4,652,648,4,US,1117,N197UW,EWR,CLT,98,529,5,0,2013-02-01T10:00:00Z
"""


def test_the_flights_example(run_step: Run, warehouse: Warehouse, tmp_path: Path, interval: Interval) -> None:
    file = tmp_path / "flights.csv"
    file.write_text(FLIGHTS)
    manifest = run_step("extract", interval=interval, source=(SOURCES / "flights.yaml").read_text(), files=str(file))
    assert counts(manifest) == (4, 0, 0, 1)
    found = warehouse.scan(TableRef.parse(manifest["outputs"]["table"]["reference"])).read_all().to_pylist()
    by_flight = {r["flight"]: r for r in found}
    assert by_flight[1545]["sched_dep"] == datetime(2013, 1, 1, 10, 15, tzinfo=UTC)
    # After midnight local time, and after the interval's end, but scheduled before it.
    assert by_flight[839]["actual_dep"] == datetime(2013, 2, 1, 5, 12, tzinfo=UTC)
    landed = by_flight[839]["sched_dep"] + timedelta(minutes=13 + 189)
    assert by_flight[839]["known_at"] == landed + timedelta(minutes=60)
    assert {n: r["status"] for n, r in by_flight.items()} == {
        1545: "arrived",
        839: "arrived",
        125: "cancelled",
        4576: "diverted",
    }
    assert by_flight[4576]["known_at"] == by_flight[4576]["sched_dep"] + timedelta(hours=24)
    assert all(r["sched_dep"].replace(minute=0) == r["time_hour"] for r in found)


@pytest.mark.parametrize("wrong", ["2013,13,1,517,515", "2013,2,30,517,515", "2013,3,10,230,230", "2013,1,5,517,2599"])
def test_a_flight_at_a_time_that_never_was_is_left_to_the_gate(
    run_step: Run, warehouse: Warehouse, tmp_path: Path, interval: Interval, wrong: str
) -> None:
    file = tmp_path / "flights.csv"
    file.write_text(FLIGHTS.replace("2013,1,1,517,515", wrong))
    manifest = run_step("extract", interval=interval, source=(SOURCES / "flights.yaml").read_text(), files=str(file))
    assert manifest["counts"]["rows_undated"] == 1
    found = warehouse.scan(TableRef.parse(manifest["outputs"]["table"]["reference"])).read_all().to_pylist()
    assert [r["sched_dep"] for r in found if r["flight"] == 1545] == [None]


SUITE = {
    "name": "sensors",
    "expectations": [
        {"type": "expect_column_values_to_not_be_null", "kwargs": {"column": "id"}, "severity": "critical", "meta": {}}
    ],
}


class TestEarlierContent:
    """A file is put back to what it was: its rows come back to main, through the gate."""

    def test_reaches_main(self, drop: Drop, run_step: Run, warehouse: Warehouse) -> None:
        made = []
        for value in (1, 2, 1):
            drop.write(f"1,{at(1)},{value}", f"2,{at(2)},5", f"3,{at(1, 2)},{value}")
            made.append(drop.extract(publish=False))
            passed = run_step("validate", table=made[-1]["outputs"]["table"]["reference"], suite=SUITE)
        first, _, back = made
        assert (back["status"], back["key"], back["changed"]) == ("done", first["key"], True)
        assert passed["counts"]["rows_checked"] == 1
        assert [(r["id"], r["value"], r["_batch"]) for r in drop.rows()] == [
            (1, 1.0, f"{first['key']}:again:1"),
            (2, 5.0, first["key"]),
        ]
        assert set(warehouse.table("raw.sensors").metadata.refs) == {"main"}
        assert drop.extract(publish=False)["status"] == "reused"

    def test_reaches_a_main_that_it_was_rebased_onto(self, drop: Drop, run_step: Run, warehouse: Warehouse) -> None:
        def put(value: int, interval: Interval = JANUARY) -> dict[str, Any]:
            drop.write(f"1,{at(1)},{value}" if interval == JANUARY else f"3,{at(1, 2)},{value}")
            return drop.extract(interval, publish=False)

        def audit(extracted: dict[str, Any]) -> dict[str, Any]:
            return run_step("validate", table=extracted["outputs"]["table"]["reference"], suite=SUITE)

        audit(put(1))
        waits, other = put(2), put(9, FEBRUARY)
        audit(other)
        assert audit(waits)["details"]["rebases"] == 1
        assert [r["value"] for r in drop.rows()] == [2.0, 9.0]
        audit(put(1))
        assert [r["value"] for r in drop.rows()] == [1.0, 9.0]

    def test_what_was_refused_replaced_nothing(self, drop: Drop) -> None:
        drop.write(f"1,{at(1)},1")
        first = drop.extract()
        drop.write(f"1,{at(1)},2")
        drop.extract(publish=False)
        drop.write(f"1,{at(1)},1")
        assert (drop.extract()["status"], first["status"]) == ("reused", "done")

    def test_a_later_correction_by_a_newer_interval_stays(self, drop: Drop) -> None:
        for value, interval in ((1, JANUARY), (2, FEBRUARY), (1, JANUARY)):
            drop.write(f"1,{at(1)},{value}")
            last = drop.extract(interval)
        assert last["status"] == "reused"
        assert [r["value"] for r in drop.rows()] == [2.0]
