"""Steps sql and build_labels, through the frame, on real Iceberg tables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar

import pyarrow as pa
import pytest

from airloop.contract import Interval, RunInfo
from airloop.errors import AirloopError, BadArgument, BadInput, BadInterval, LeakageFound, RejectedRows, SchemaMismatch
from airloop.warehouse.catalog import Warehouse
from airloop.warehouse.refs import TableRef

RunStep = Callable[..., dict[str, Any]]
START = datetime(2013, 1, 1, 5, tzinfo=UTC)
STAMP = pa.timestamp("us", tz="UTC")


@pytest.fixture
def rows(warehouse: Warehouse) -> TableRef:
    """Six rows, one every ten days from 1 January."""
    content = pa.table({
        "id": pa.array([1, 2, 3, 4, 5, 6], pa.int64()),
        "moment": pa.array([START + timedelta(days=10 * i) for i in range(6)], STAMP),
        "kind": ["a", "b", "a", "b", "a", None],
        "value": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
    })  # fmt: skip
    warehouse.ensure("raw.rows", content.schema, key=["id"])
    return warehouse.commit("raw.rows", content, key="seed").ref


def read(warehouse: Warehouse, manifest: dict[str, Any]) -> list[dict[str, Any]]:
    ref = TableRef.parse(manifest["outputs"]["table"]["reference"])
    return warehouse.scan(ref).read_all().to_pylist()


def arguments(rows: TableRef, sql: str, **more: Any) -> dict[str, Any]:
    return {"sql": sql, "inputs": {"rows": str(rows)}, "table": "features.x", "key": ["id"], **more}


class TestSql:
    def test_writes_the_interval_in_the_order_of_the_key(
        self, run_step: RunStep, warehouse: Warehouse, rows: TableRef, interval: Interval
    ) -> None:
        text = """-- rows of the interval
            SELECT id, value * 2 AS twice, moment AS event_time FROM rows
            WHERE moment >= $interval_start AND moment < $interval_end ORDER BY id DESC; -- the end"""
        manifest = run_step("sql", interval=interval, **arguments(rows, text))
        assert [(r["id"], r["twice"]) for r in read(warehouse, manifest)] == [(1, 2.0), (2, 4.0), (3, 6.0), (4, 8.0)]
        assert manifest["counts"]["rows_new"] == 4
        assert warehouse.schema("features.x").field("event_time").type == STAMP

    def test_again_is_a_reuse_and_forced_changes_nothing(
        self, run_step: RunStep, warehouse: Warehouse, rows: TableRef, interval: Interval
    ) -> None:
        call = arguments(rows, "SELECT id, value FROM rows WHERE moment < $interval_end")
        first = run_step("sql", interval=interval, **call)
        assert run_step("sql", interval=interval, **call)["status"] == "reused"
        forced = run_step("sql", interval=interval, force=True, **call)
        assert forced["outputs"] == first["outputs"]
        assert not forced["changed"]
        assert len(warehouse.history("features.x")) == 1

    def test_without_parameters_every_interval_reuses(
        self, run_step: RunStep, rows: TableRef, interval: Interval
    ) -> None:
        call = arguments(rows, "SELECT id, kind, '$interval_start' AS text FROM rows -- not $interval_end")
        first = run_step("sql", interval=interval, **call)
        later = Interval(interval.end, interval.end + timedelta(days=28))
        for other in (later, None):
            again = run_step("sql", interval=other, **call)
            assert (again["status"], again["key"]) == ("reused", first["key"])

    def test_intervals_make_different_keys_and_upsert_adds(
        self, run_step: RunStep, warehouse: Warehouse, rows: TableRef, interval: Interval
    ) -> None:
        call = arguments(rows, "SELECT id, value FROM rows WHERE moment >= $interval_start AND moment < $interval_end")
        first = run_step("sql", interval=interval, **call)
        second = run_step("sql", interval=Interval(interval.end, interval.end + timedelta(days=28)), **call)
        assert first["key"] != second["key"]
        assert [r["id"] for r in read(warehouse, second)] == [1, 2, 3, 4, 5, 6]

    def test_replace_makes_the_table_the_result(self, run_step: RunStep, warehouse: Warehouse, rows: TableRef) -> None:
        run_step("sql", **arguments(rows, "SELECT id, value FROM rows", mode="replace"))
        manifest = run_step("sql", **arguments(rows, "SELECT id, value FROM rows WHERE id > 4", mode="replace"))
        assert [r["id"] for r in read(warehouse, manifest)] == [5, 6]

    def test_an_interval_without_rows_is_a_success(
        self, run_step: RunStep, warehouse: Warehouse, rows: TableRef
    ) -> None:
        empty = Interval(datetime(2012, 1, 1, tzinfo=UTC), datetime(2012, 2, 1, tzinfo=UTC))
        text = "SELECT id FROM rows WHERE moment >= $interval_start AND moment < $interval_end"
        manifest = run_step("sql", interval=empty, **arguments(rows, text))
        assert manifest["counts"]["rows"] == 0
        assert not manifest["changed"]
        assert warehouse.count(TableRef.parse(manifest["outputs"]["table"]["reference"])) == 0

    def test_reads_the_named_snapshot_not_the_newest(
        self, run_step: RunStep, warehouse: Warehouse, rows: TableRef
    ) -> None:
        warehouse.commit("raw.rows", warehouse.scan(rows).read_all().slice(0, 1).set_column(
            0, "id", pa.array([7], pa.int64())), key="more")  # fmt: skip
        manifest = run_step("sql", **arguments(rows, "SELECT id FROM rows"))
        assert manifest["counts"]["rows"] == 6

    def test_small_integers_are_widened(self, run_step: RunStep, warehouse: Warehouse, rows: TableRef) -> None:
        run_step("sql", **arguments(rows, "SELECT id, 1::TINYINT AS small FROM rows"))
        assert warehouse.schema("features.x").field("small").type == pa.int32()

    @pytest.mark.parametrize(
        ("sql", "words"),
        [
            ("SELECT 1 AS id; SELECT 2 AS id", "not one SELECT"),
            ("", "nothing"),
            ("CREATE TABLE a AS SELECT 1 AS id", "CREATE"),
            ("COPY rows TO 'out.csv'", "COPY"),
            ("SELECT id,\n  value valu e\nFROM rows", "line 2"),
            ("SELECT id,\n\n  valeu FROM rows", "line 3.*valeu"),
            ("SELECT id FROM flights", "inputs are rows"),
            ("SELECT id, $today AS t FROM rows", r"\$today"),
            ("SELECT id, random() AS r FROM rows", "random"),
            ("SELECT id, now() AS r FROM rows", "now"),
            ("SELECT id, current_date AS r FROM rows", "current_date"),
            ("SELECT id FROM rows USING SAMPLE 50%", "samples"),
            ("SELECT 1 AS id, content FROM read_text('/etc/hostname')", "reads its inputs only"),
            ("SELECT 1 AS id FROM 'https://example.com/a.csv'", "reads its inputs only"),
            ("SELECT value FROM rows", "no column id"),
        ],
    )
    def test_refuses(self, run_step: RunStep, rows: TableRef, sql: str, words: str) -> None:
        with pytest.raises(BadArgument, match=words):
            run_step("sql", **arguments(rows, sql))

    def test_interval_parameters_need_an_interval(self, run_step: RunStep, rows: TableRef) -> None:
        with pytest.raises(BadInterval, match="no interval"):
            run_step("sql", **arguments(rows, "SELECT id FROM rows WHERE moment < $interval_end"))

    @pytest.mark.parametrize(
        ("column", "words"),
        [
            ("TIMESTAMP '2013-01-01'", "no time zone"),
            ("TIMESTAMP_NS '2013-01-01'", "microseconds"),
            ("(SELECT sum(id) FROM rows)", "CAST"),
            ("INTERVAL 1 DAY", "epoch"),
        ],
    )
    def test_refuses_columns_that_tables_cannot_keep(
        self, run_step: RunStep, rows: TableRef, column: str, words: str
    ) -> None:
        with pytest.raises(SchemaMismatch, match=words):
            run_step("sql", **arguments(rows, f"SELECT id, {column} AS odd FROM rows"))

    def test_refuses_equal_keys_and_null_keys_and_writes_nothing(
        self, run_step: RunStep, warehouse: Warehouse, rows: TableRef
    ) -> None:
        with pytest.raises(BadInput, match=r"5 rows of the result share 2 keys of kind \(first: kind=a\)"):
            run_step("sql", **arguments(rows, "SELECT kind FROM rows WHERE kind IS NOT NULL", key=["kind"]))
        with pytest.raises(BadInput, match="1 rows of the result have no kind"):
            run_step("sql", **arguments(rows, "SELECT kind, id FROM rows", key=["kind", "id"]))
        assert not warehouse.exists("features.x")

    def test_names_a_value_that_cannot_be_read(self, run_step: RunStep, rows: TableRef) -> None:
        with pytest.raises(BadInput, match="Could not convert"):
            run_step("sql", **arguments(rows, "SELECT id, kind::INTEGER AS n FROM rows"))

    def test_a_changed_type_is_refused_and_the_table_stays(
        self, run_step: RunStep, warehouse: Warehouse, rows: TableRef
    ) -> None:
        run_step("sql", **arguments(rows, "SELECT id, value FROM rows"))
        with pytest.raises(SchemaMismatch):
            run_step("sql", **arguments(rows, "SELECT id, kind AS value FROM rows"))
        assert len(warehouse.history("features.x")) == 1

    def test_spills_what_does_not_fit_into_memory(self, run_step: RunStep, rows: TableRef, config: Any) -> None:
        manifest = run_step(
            "sql",
            config=replace(config, memory_mb=64, threads=1),
            **arguments(rows, "SELECT range AS id, repeat(md5(range::VARCHAR), 4) AS text FROM range(400000)"),
        )
        assert manifest["counts"]["rows"] == 400_000


LABELS = """
    SELECT id, moment AS event_time, moment + INTERVAL 3 HOURS AS arrival_time, (value > 3)::INT AS label FROM rows
"""


class TestBuildLabels:
    def test_writes_and_describes_labels(self, run_step: RunStep, warehouse: Warehouse, rows: TableRef) -> None:
        manifest = run_step("build_labels", **arguments(rows, LABELS, table="labels.x"))
        assert [r["label"] for r in read(warehouse, manifest)] == [0, 0, 0, 1, 1, 1]
        assert manifest["details"]["labels"]["mean"] == 0.5
        assert manifest["details"]["labels"]["median_delay_s"] == 3 * 3600

    @pytest.mark.parametrize("label", ["value > 3", "value", "(value > 3)::BIGINT"])
    def test_takes_booleans_and_real_numbers(self, run_step: RunStep, rows: TableRef, label: str) -> None:
        sql = f"SELECT id, moment AS event_time, moment AS arrival_time, {label} AS label FROM rows"
        assert run_step("build_labels", **arguments(rows, sql))["counts"]["rows"] == 6

    @pytest.mark.parametrize(
        ("sql", "words"),
        [
            ("SELECT id, moment AS event_time, moment - INTERVAL 1 HOUR AS arrival_time, 1 AS label FROM rows",
             "before event_time in 6 rows"),
            ("SELECT id, moment AS event_time, moment AS arrival_time, id::INT AS label FROM rows",
             "neither 0 nor 1 in 5 rows .first: id=2.*label=2"),
            ("SELECT id, moment AS event_time, moment AS arrival_time, nullif(id, 4) > 3 AS label FROM rows",
             "label is NULL in 1 rows .first: id=4"),
            ("SELECT id, moment AS event_time, moment AS arrival_time, value / (value - 6) AS label FROM rows",
             "NaN or infinite in 1 rows|label is NULL in 1 rows"),
            ("SELECT nullif(id, 2) AS id, moment AS event_time, moment AS arrival_time, 1 AS label FROM rows",
             "id is NULL in 1 rows"),
        ],
    )  # fmt: skip
    def test_rejects_rows_with_counts_and_the_first(
        self, run_step: RunStep, warehouse: Warehouse, rows: TableRef, sql: str, words: str
    ) -> None:
        with pytest.raises(RejectedRows, match=words):
            run_step("build_labels", **arguments(rows, sql, table="labels.x"))
        assert not warehouse.exists("labels.x")

    @pytest.mark.parametrize(
        "sql",
        [
            "SELECT id, moment AS event_time, 1 AS label FROM rows",
            "SELECT id, moment AS event_time, moment AS arrival_time, kind AS label FROM rows",
            "SELECT id, moment::DATE AS event_time, moment AS arrival_time, 1 AS label FROM rows",
        ],
    )
    def test_names_columns_that_labels_need(self, run_step: RunStep, rows: TableRef, sql: str) -> None:
        with pytest.raises(SchemaMismatch, match="expected"):
            run_step("build_labels", **arguments(rows, sql))

    def test_every_error_says_what_to_do(self, run_step: RunStep, rows: TableRef) -> None:
        with pytest.raises(AirloopError) as caught:
            run_step("build_labels", **arguments(rows, "SELECT id FROM rows"))
        assert caught.value.advice


class TestHindsight:
    """``known`` hands the SQL to the gate; what that refuses is not written."""

    VALUES = "SELECT id, {} AS value, moment AS event_time, moment AS arrival_time FROM rows"
    AHEAD = VALUES.format("lead(value) OVER (ORDER BY moment)")
    BEHIND = VALUES.format("sum(value) OVER (ORDER BY moment ROWS 3 PRECEDING)")
    LABELS = """
        SELECT id, moment AS event_time, moment AS arrival_time,
            coalesce(lead(value) OVER (ORDER BY moment), 0) > 3 AS label FROM rows
    """
    HONEST = "SELECT id, moment AS event_time, moment AS arrival_time, value > 3 AS label FROM rows"
    KNOWN: ClassVar = {"rows": "moment"}

    @pytest.mark.parametrize(
        ("step", "sql", "column"), [("sql", AHEAD, "value"), ("build_labels", LABELS, "label")], ids=["sql", "labels"]
    )
    def test_what_looks_ahead_is_refused_and_writes_nothing(
        self, run_step: RunStep, warehouse: Warehouse, rows: TableRef, step: str, sql: str, column: str
    ) -> None:
        said = rf"features\.x: \d of \d rows that say they were known by 2013-.*: {column} \(1 rows\)"
        with pytest.raises(LeakageFound, match=said):
            run_step(step, **arguments(rows, sql, known=self.KNOWN))
        assert not warehouse.exists("features.x")
        assert "hindsight" not in run_step(step, **arguments(rows, sql))["details"], "nobody asked"

    @pytest.mark.parametrize(("step", "sql"), [("sql", BEHIND), ("build_labels", HONEST)], ids=["sql", "labels"])
    def test_what_does_not_is_written_and_the_comparison_kept(
        self, run_step: RunStep, warehouse: Warehouse, rows: TableRef, step: str, sql: str
    ) -> None:
        manifest = run_step(step, **arguments(rows, sql, known=self.KNOWN))
        found = manifest["details"]["hindsight"]
        assert found["known"] == self.KNOWN
        assert [cut["rows"] for cut in found["cuts"]] == [2, 4, 6]
        assert len(read(warehouse, manifest)) == 6


class TestEarlierContent:
    """A run that goes back to what it had before: its result comes back to main."""

    MONTH = "SELECT id, value * {} AS value FROM rows WHERE moment >= $interval_start AND moment < $interval_end"
    WHOLE = "SELECT id, value * {} AS value FROM rows"

    @staticmethod
    def run(run_step: RunStep, rows: TableRef, sql: str, factor: int, **more: Any) -> dict[str, Any]:
        interval = more.pop("interval", None)
        how = {name: more.pop(name) for name in ("force", "run") if name in more}
        return run_step("sql", interval=interval, **how, **arguments(rows, sql.format(factor), **more))

    @staticmethod
    def main(warehouse: Warehouse) -> dict[int, float]:
        return {r["id"]: r["value"] for r in warehouse.scan(TableRef("features.x")).read_all().to_pylist()}

    @pytest.mark.parametrize("force", [False, True])
    @pytest.mark.parametrize("mode", ["upsert", "replace"])
    @pytest.mark.parametrize("sql", [MONTH, WHOLE])
    def test_reaches_main(
        self,
        run_step: RunStep,
        warehouse: Warehouse,
        rows: TableRef,
        interval: Interval,
        sql: str,
        mode: str,
        force: bool,
    ) -> None:
        first = self.run(run_step, rows, sql, 1, mode=mode, interval=interval)
        self.run(run_step, rows, sql, 2, mode=mode, interval=interval)
        back = self.run(run_step, rows, sql, 1, mode=mode, interval=interval, force=force)
        assert (back["status"], back["key"], back["changed"]) == ("done", first["key"], True)
        assert self.main(warehouse)[2] == 2.0
        assert read(warehouse, back) == read(warehouse, first)
        assert TableRef.parse(back["outputs"]["table"]["reference"]).snapshot == warehouse.head("features.x")
        # From here on it is a run like any other, as often as it changes its mind.
        assert self.run(run_step, rows, sql, 1, mode=mode, interval=interval)["status"] == "reused"
        assert len(warehouse.history("features.x")) == 3
        for factor in (2, 1):
            self.run(run_step, rows, sql, factor, mode=mode, interval=interval)
            assert self.main(warehouse)[2] == 2.0 * factor
        assert len(warehouse.history("features.x")) == 5

    def test_by_a_later_interval_too(
        self, run_step: RunStep, warehouse: Warehouse, rows: TableRef, interval: Interval
    ) -> None:
        """SQL that uses no interval has one key for all of them."""
        for month, factor in enumerate((1, 2, 1)):
            at = Interval(interval.end + timedelta(days=28 * month), interval.end + timedelta(days=28 * (month + 1)))
            self.run(run_step, rows, self.WHOLE, factor, interval=at)
            assert self.main(warehouse)[2] == 2.0 * factor

    def test_an_older_interval_moves_nothing_back(
        self, run_step: RunStep, warehouse: Warehouse, rows: TableRef, interval: Interval
    ) -> None:
        later = Interval(interval.end, interval.end + timedelta(days=28))
        for mode in ("upsert", "replace"):
            self.run(run_step, rows, self.WHOLE, 1, interval=interval, mode=mode)
            self.run(run_step, rows, self.WHOLE, 2, interval=later, mode=mode)
            again = self.run(run_step, rows, self.WHOLE, 1, interval=interval, mode=mode)
            assert again["status"] == "reused"
            assert self.main(warehouse)[2] == 4.0

    def test_intervals_in_any_order_leave_each_other_alone(
        self, run_step: RunStep, warehouse: Warehouse, rows: TableRef, interval: Interval
    ) -> None:
        later = Interval(interval.end, interval.end + timedelta(days=28))
        for at in (later, interval):
            self.run(run_step, rows, self.MONTH, 1, interval=at)
        for at in (later, interval):
            assert self.run(run_step, rows, self.MONTH, 1, interval=at)["status"] == "reused"

    def test_another_task_takes_no_place(self, run_step: RunStep, rows: TableRef, interval: Interval) -> None:
        tasks = [RunInfo("d", "r", "t", index) for index in range(2)]
        for factor, task in zip((1, 2, 1), (*tasks, tasks[0]), strict=True):
            last = self.run(run_step, rows, self.WHOLE, factor, interval=interval, run=task)
        assert last["status"] == "reused"

    def test_by_hand_stands_for_any_task(
        self, run_step: RunStep, warehouse: Warehouse, rows: TableRef, interval: Interval
    ) -> None:
        task, by_hand = RunInfo("d", "r", "t"), RunInfo()
        for factor, who in zip((1, 2, 1), (task, by_hand, task), strict=True):
            self.run(run_step, rows, self.MONTH, factor, interval=interval, run=who)
        assert self.main(warehouse)[2] == 2.0

    def test_what_was_appended_is_not_appended_again(
        self, run_step: RunStep, warehouse: Warehouse, rows: TableRef, interval: Interval
    ) -> None:
        for factor in (1, 2, 1):
            last = self.run(run_step, rows, self.MONTH, factor, interval=interval, mode="append")
        assert last["status"] == "reused"
        assert warehouse.count(TableRef("features.x")) == 8

    def test_a_kill_before_the_manifest_commits_once(
        self,
        run_step: RunStep,
        warehouse: Warehouse,
        rows: TableRef,
        interval: Interval,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        for factor in (1, 2):
            self.run(run_step, rows, self.MONTH, factor, interval=interval)
        with monkeypatch.context() as patched:
            patched.setattr("airloop.frame.execute.publish_manifest", lambda *_: 1 / 0)
            with pytest.raises(AirloopError, match="ZeroDivisionError"):
                self.run(run_step, rows, self.MONTH, 1, interval=interval)
        back = self.run(run_step, rows, self.MONTH, 1, interval=interval)
        assert (back["status"], back["details"]["adopted"]) == ("done", True)
        assert len(warehouse.history("features.x")) == 3
        assert self.main(warehouse)[2] == 2.0
