"""The gate: what passes is published, what does not is in quarantine, and ``main`` never holds what was not audited."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

import pytest

from airloop.config import Config
from airloop.errors import BadArgument, CheckNotEvaluated, RejectedRows
from airloop.warehouse.catalog import Warehouse
from airloop.warehouse.refs import TableRef
from tests.audit_world import BATCH, GOOD, LENIENT, OTHER, TABLE, bring, in_quarantine, on_main, rows, rule, suite

BAD_DELAY = "expect_column_values_to_be_between(delay)"
BAD_CARRIER = "expect_column_values_to_be_in_set(carrier)"
RunStep = Callable[..., dict[str, Any]]


def branches(warehouse: Warehouse) -> list[str]:
    return sorted(b for b in warehouse.table(TABLE).metadata.refs if b != "main")


def local(uri: str) -> Path:
    return Path(urlsplit(uri).path)


class TestPassing:
    def test_first_publication_into_an_empty_table(self, warehouse: Warehouse, run_step: RunStep) -> None:
        ref = bring(warehouse, GOOD, batch=BATCH)
        assert warehouse.head(TABLE) == 0

        made = run_step("validate", table=str(ref), suite=LENIENT)

        assert warehouse.head(TABLE) == ref.snapshot
        assert made["outputs"]["table"]["reference"] == str(ref)
        assert made["counts"] == {"rows_checked": 20, "rows_quarantined": 0, "rows_published": 20, "expectations": 5}
        assert branches(warehouse) == []
        assert not warehouse.exists("quarantine.raw_trips")

    def test_data_docs_and_evidence(self, warehouse: Warehouse, run_step: RunStep) -> None:
        made = run_step("validate", table=str(bring(warehouse, GOOD, batch=BATCH)), suite=json.dumps(LENIENT))

        page = local(made["links"]["docs"]).read_text()
        assert "Expectation Validation Result" in page
        assert "http:" not in page.replace('http-equiv="', "")
        assert "https:" not in page
        assert "<script" not in page
        assert made["details"]["statistics"]["success_percent"] == 100
        assert made["details"]["expectations"][0]["rule"] == BAD_DELAY
        result = json.loads((local(made["links"]["docs"]).parent / "result.json").read_text())
        assert result["success"] is True
        assert result["statistics"]["evaluated_expectations"] == 5

    def test_second_run_reuses_the_first(self, warehouse: Warehouse, run_step: RunStep) -> None:
        ref = bring(warehouse, GOOD, batch=BATCH)
        assert run_step("validate", table=str(ref), suite=LENIENT)["status"] == "done"
        assert run_step("validate", table=str(ref), suite=LENIENT)["status"] == "reused"

    def test_not_reused_if_main_was_rolled_back(self, warehouse: Warehouse, run_step: RunStep) -> None:
        first = bring(warehouse, GOOD[:10], batch=OTHER)
        run_step("validate", table=str(first), suite=LENIENT)
        second = bring(warehouse, GOOD, batch=BATCH)
        run_step("validate", table=str(second), suite=LENIENT)
        warehouse.table(TABLE).manage_snapshots().set_current_snapshot(snapshot_id=first.snapshot).commit()

        assert run_step("validate", table=str(second), suite=LENIENT)["status"] == "done"
        assert len(on_main(warehouse)) == 20

    def test_nothing_new(self, warehouse: Warehouse, run_step: RunStep) -> None:
        ref = bring(warehouse, GOOD, batch=BATCH)
        run_step("validate", table=str(ref), suite=LENIENT)
        again = bring(warehouse, GOOD, batch=OTHER)
        assert again == ref, "the same rows again change nothing"

        made = run_step("validate", table=str(again), suite=suite(rule("expect_column_to_exist", column="gone")))

        assert made["counts"]["rows_checked"] == 0
        assert made["changed"] is False
        assert made["outputs"]["table"]["reference"] == str(ref)

    def test_table_without_any_snapshot(self, warehouse: Warehouse, run_step: RunStep) -> None:
        ref = bring(warehouse, [], batch=BATCH)
        made = run_step("validate", table=f"{TABLE}@main", suite=LENIENT)
        assert ref.snapshot == 0
        assert made["counts"]["rows_published"] == 0

    def test_a_warning_decides_nothing(self, warehouse: Warehouse, run_step: RunStep) -> None:
        ref = bring(warehouse, GOOD, batch=BATCH)
        late = rule("expect_column_max_to_be_between", severity="warning", column="delay", max_value=5)
        made = run_step("validate", table=str(ref), suite=suite(late))
        assert made["details"]["expectations"][0]["success"] is False
        assert len(on_main(warehouse)) == 20


class TestRejecting:
    TRIPS: ClassVar = [*GOOD, (21, "AA", 9999.0), (22, "ZZ", -500.0)]

    def test_main_is_untouched_and_rows_are_in_quarantine(self, warehouse: Warehouse, run_step: RunStep) -> None:
        run_step("validate", table=str(bring(warehouse, GOOD[:5], batch=OTHER)), suite=LENIENT)
        before = warehouse.head(TABLE)
        ref = bring(warehouse, self.TRIPS, batch=BATCH)

        with pytest.raises(RejectedRows) as caught:
            run_step("validate", table=str(ref), suite=LENIENT)

        assert warehouse.head(TABLE) == before
        assert in_quarantine(warehouse) == [
            (21, "trips.csv", 21, (BAD_DELAY,)),
            (22, "trips.csv", 22, (BAD_DELAY, BAD_CARRIER)),
        ]
        text = str(caught.value)
        assert f"2 of 17 rows (11.76%) break {BAD_DELAY}" in text
        assert "first: trips.csv row 21: delay = 9999.0, trips.csv row 22: delay = -500.0" in text
        assert f'1 of 17 rows (5.88%) break {BAD_CARRIER} (first: trips.csv row 22: carrier = "ZZ")' in text
        assert "quarantine.raw_trips@" in text
        assert "more than the 0.00% that may be kept back" in text
        page = local(text.partition("Data Docs: ")[2].partition(";")[0]).read_text()
        assert "9999" in page

    def test_again_writes_nothing_twice(self, warehouse: Warehouse, run_step: RunStep) -> None:
        ref = bring(warehouse, self.TRIPS, batch=BATCH)
        for _ in range(2):
            with pytest.raises(RejectedRows):
                run_step("validate", table=str(ref), suite=LENIENT)
        assert len(warehouse.history("quarantine.raw_trips")) == 1
        assert len(in_quarantine(warehouse)) == 2

    def test_a_rule_that_is_not_marked_rejects_all(self, warehouse: Warehouse, run_step: RunStep) -> None:
        ref = bring(warehouse, self.TRIPS, batch=BATCH)
        strict = suite(rule("expect_column_values_to_be_in_set", column="carrier", value_set=["AA", "UA"]))
        with pytest.raises(RejectedRows, match="1 of 22 rows"):
            run_step("validate", table=str(ref), suite=strict, max_quarantined_share=1.0)
        assert warehouse.head(TABLE) == 0
        assert [r[0] for r in in_quarantine(warehouse)] == [22]

    def test_a_figure_has_no_rows_to_blame(self, warehouse: Warehouse, run_step: RunStep) -> None:
        ref = bring(warehouse, GOOD, batch=BATCH)
        figure = suite(rule("expect_column_mean_to_be_between", column="delay", max_value=5))
        with pytest.raises(RejectedRows, match=r"mean_to_be_between\(delay\) is .*10\.5.*expected .*5.*No single row"):
            run_step("validate", table=str(ref), suite=figure)
        assert not warehouse.exists("quarantine.raw_trips")
        assert warehouse.head(TABLE) == 0

    def test_a_wider_suite_empties_the_quarantine(self, warehouse: Warehouse, run_step: RunStep) -> None:
        ref = bring(warehouse, self.TRIPS, batch=BATCH)
        with pytest.raises(RejectedRows):
            run_step("validate", table=str(ref), suite=LENIENT)
        run_step("validate", table=str(ref), suite=suite(rule("expect_column_values_to_not_be_null", column="trip")))
        assert in_quarantine(warehouse) == []
        assert len(on_main(warehouse)) == 22


class TestQuarantineAndGoOn:
    TRIPS: ClassVar = [*GOOD, (21, "AA", 9999.0), (22, "ZZ", -500.0), (23, None, float("nan"))]

    def test_offenders_are_kept_back_and_the_rest_published(self, warehouse: Warehouse, run_step: RunStep) -> None:
        ref = bring(warehouse, self.TRIPS, batch=BATCH)
        made = run_step("validate", table=str(ref), suite=LENIENT, max_quarantined_share=0.1)

        assert made["counts"] == {"rows_checked": 23, "rows_quarantined": 2, "rows_published": 21, "expectations": 5}
        assert [t for t, _, _ in on_main(warehouse)] == [*range(1, 21), 23]
        assert [r[0] for r in in_quarantine(warehouse)] == [21, 22]
        published = TableRef.parse(made["outputs"]["table"]["reference"])
        assert published.snapshot == warehouse.head(TABLE)
        assert warehouse.descends(TABLE, published.snapshot or 0, ref.snapshot or 0)
        assert made["outputs"]["quarantine"]["reference"].startswith("quarantine.raw_trips@")
        assert made["details"]["quarantined_share"] == pytest.approx(2 / 23)
        assert branches(warehouse) == []

    def test_brought_again_it_is_there_once_and_leaves_when_mended(
        self, warehouse: Warehouse, run_step: RunStep
    ) -> None:
        run_step(
            "validate", table=str(bring(warehouse, self.TRIPS, batch=BATCH)), suite=LENIENT, max_quarantined_share=1
        )
        again = bring(warehouse, self.TRIPS, batch=OTHER)
        made = run_step("validate", table=str(again), suite=LENIENT, max_quarantined_share=1)
        assert made["counts"]["rows_checked"] == 2, "only what was kept back is new"
        assert [r[0] for r in in_quarantine(warehouse)] == [21, 22]

        mended = bring(warehouse, [*GOOD, (21, "AA", 99.0), (22, "ZZ", -500.0)], batch="d3" * 32)
        run_step("validate", table=str(mended), suite=LENIENT, max_quarantined_share=1)

        assert [r[0] for r in in_quarantine(warehouse)] == [22]
        assert (21, "AA", 99.0) in on_main(warehouse)

    def test_rows_that_were_there_already_count_in_the_share(self, warehouse: Warehouse, run_step: RunStep) -> None:
        run_step(
            "validate", table=str(bring(warehouse, self.TRIPS, batch=BATCH)), suite=LENIENT, max_quarantined_share=0.1
        )
        before = str(on_main(warehouse))
        # Read again, the source brings nothing new but what was kept back: that is no reason to stop.
        again = bring(warehouse, self.TRIPS, batch=OTHER)
        made = run_step("validate", table=str(again), suite=LENIENT, max_quarantined_share=0.1)
        assert made["counts"]["rows_quarantined"] == 2
        assert str(on_main(warehouse)) == before  # as text: NaN is not equal to itself

    def test_what_brings_nothing_new_leaves_main_where_it_is(self, warehouse: Warehouse, run_step: RunStep) -> None:
        ref = bring(warehouse, self.TRIPS, batch=BATCH)
        run_step("validate", table=str(ref), suite=LENIENT, max_quarantined_share=0.1)
        head = warehouse.head(TABLE)
        more = suite(*LENIENT["expectations"], rule("expect_column_values_to_not_be_null", column="trip"))
        for batch in (BATCH, OTHER):
            table = ref if batch == BATCH else bring(warehouse, self.TRIPS, batch=batch)
            made = run_step("validate", table=str(table), suite=more, max_quarantined_share=0.1)
            assert made["counts"]["rows_quarantined"] == 2
            assert made["outputs"]["table"]["reference"] == f"{TABLE}@{head}"
            assert not made["changed"]
            assert made["event"] is None
            assert warehouse.head(TABLE) == head
            assert branches(warehouse) == []
            assert [r[0] for r in in_quarantine(warehouse)] == [21, 22]
        # A stricter rule takes back what was published, and main moves.
        fewer = rule("expect_column_values_to_be_between", quarantine=True, column="trip", max_value=19)
        stricter = suite(*LENIENT["expectations"], fewer)
        made = run_step("validate", table=str(ref), suite=stricter, max_quarantined_share=0.5)
        assert made["changed"]
        assert warehouse.head(TABLE) != head

    def test_share_is_a_limit(self, warehouse: Warehouse, run_step: RunStep) -> None:
        ref = bring(warehouse, self.TRIPS, batch=BATCH)
        with pytest.raises(
            RejectedRows, match=r"8\.70% of the 23 rows that came, more than the 8\.00% that may be kept back"
        ):
            run_step("validate", table=str(ref), suite=LENIENT, max_quarantined_share=0.08)
        assert warehouse.head(TABLE) == 0

    def test_what_is_left_has_to_pass_too(self, warehouse: Warehouse, run_step: RunStep) -> None:
        ref = bring(warehouse, self.TRIPS, batch=BATCH)
        whole = suite(*LENIENT["expectations"], rule("expect_table_row_count_to_equal", value=23))
        with pytest.raises(RejectedRows, match="This is after 2 rows were taken out"):
            run_step("validate", table=str(ref), suite=whole, max_quarantined_share=0.5)
        assert warehouse.head(TABLE) == 0

    def test_share_outside_its_range_is_refused(self, warehouse: Warehouse, run_step: RunStep) -> None:
        ref = bring(warehouse, GOOD, batch=BATCH)
        with pytest.raises(BadArgument, match="max_quarantined_share"):
            run_step("validate", table=str(ref), suite=LENIENT, max_quarantined_share=1.5)


class TestErrors:
    @pytest.mark.parametrize(
        ("broken", "why"),
        [
            (rule("expect_column_values_to_not_be_null", column="gone"), "no column gone; there are trip, carrier"),
            (rule("expect_column_values_to_be_between", column="carrier", max_value=3), "cannot be compared"),
            (rule("expect_column_values_to_match_regex", column="carrier", regex="("), "not a regular expression"),
            (rule("expect_column_mean_to_be_between", column="carrier", max_value=3), "about numbers"),
        ],
    )
    def test_a_check_that_breaks_is_an_error(
        self, warehouse: Warehouse, run_step: RunStep, broken: dict[str, Any], why: str
    ) -> None:
        ref = bring(warehouse, [*GOOD, (21, "ZZ", 1.0)], batch=BATCH)
        with pytest.raises(CheckNotEvaluated, match=why) as caught:
            run_step("validate", table=str(ref), suite=suite(*LENIENT["expectations"], broken))
        assert caught.value.exit_code == 1
        assert warehouse.head(TABLE) == 0
        assert in_quarantine(warehouse) == []

    def test_even_if_its_severity_is_low(self, warehouse: Warehouse, run_step: RunStep) -> None:
        ref = bring(warehouse, GOOD, batch=BATCH)
        with pytest.raises(CheckNotEvaluated):
            run_step("validate", table=str(ref), suite=suite(rule("expect_column_to_exist", column="trip"),
                     rule("expect_column_values_to_not_be_null", severity="info", column="gone")))  # fmt: skip

    def test_a_snapshot_that_no_step_made(self, warehouse: Warehouse, run_step: RunStep) -> None:
        bring(warehouse, GOOD, batch=BATCH)
        warehouse.table(TABLE).append(rows([(1, "AA", 1.0)], batch="x"), branch="foreign")
        with pytest.raises(BadArgument, match="was not made by a step"):
            run_step("validate", table=f"{TABLE}@foreign", suite=LENIENT)


COMPETITOR = """
from airloop.config import Config
from airloop.warehouse.catalog import Warehouse
from tests.audit_world import TABLE, rows
Warehouse.open(Config.from_environment()).commit(
    TABLE, rows([(3, "UA", 333.0), (100, "UA", 1.0)], batch="somebody", source="other.csv"),
    key="somebody", mode="upsert", on=["trip"])
"""


def test_a_commit_of_somebody_else_survives(
    warehouse: Warehouse, run_step: RunStep, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_step("validate", table=str(bring(warehouse, GOOD[:5], batch=OTHER)), suite=LENIENT)
    ref = bring(warehouse, [*GOOD[5:], (3, "AA", 4.0), (21, "ZZ", 1.0)], batch=BATCH)
    environment = {**os.environ, "AIRLOOP_HOME": str(config.home), "PYTHONPATH": str(Path(__file__).parents[3])}
    reached = []

    def other_process_moves_main(name: str) -> bool:
        """Between the first verdict and its publication another process commits to main."""
        reached.append(name)
        if name == "validate:verdict" and reached.count(name) == 1:
            subprocess.run([sys.executable, "-c", COMPETITOR], env=environment, check=True)
        return False

    monkeypatch.setattr("airloop.quality.gate.point", other_process_moves_main)
    made = run_step("validate", table=str(ref), suite=LENIENT, max_quarantined_share=0.1)

    assert reached.count("validate:verdict") == 2
    assert made["details"]["rebases"] == 1
    published = {t: (c, d) for t, c, d in on_main(warehouse)}
    assert sorted(published) == [*range(1, 21), 100]
    assert published[100] == ("UA", 1.0), "the other's new row"
    assert published[3] == ("AA", 4.0), "the row that both changed is as the later publication has it"
    assert [r[0] for r in in_quarantine(warehouse)] == [21]
    assert branches(warehouse) == []
    assert warehouse.descends(TABLE, warehouse.head(TABLE), warehouse.find_key(TABLE, "somebody") or 0)


def test_rebased_rows_are_validated_again(
    warehouse: Warehouse, run_step: RunStep, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What passed on the old main may not pass on the new one: the rows count, not the verdict."""
    run_step("validate", table=str(bring(warehouse, GOOD[:5], batch=OTHER)), suite=LENIENT)
    ref = bring(warehouse, GOOD, batch=BATCH)

    def main_moves(name: str) -> bool:
        if name == "validate:verdict":
            warehouse.commit(TABLE, rows(GOOD[:10], batch="else"), key="else", mode="upsert", on=["trip"])
        return False

    monkeypatch.setattr("airloop.quality.gate.point", main_moves)
    enough = suite(rule("expect_table_row_count_to_be_between", min_value=12))
    before = warehouse.head(TABLE)
    with pytest.raises(RejectedRows, match="table_row_count"):
        run_step("validate", table=str(ref), suite=enough)
    assert warehouse.find_key(TABLE, "else") == warehouse.head(TABLE) != before
