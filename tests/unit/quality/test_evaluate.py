"""Evaluation: chunks and figures make one result; what Great Expectations leaves open is fixed here."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from datetime import date
from decimal import Decimal
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from airloop.errors import BadArgument
from airloop.quality.evaluate import Evaluation, Outcome, evaluate
from airloop.quality.suite import load_suite

Evaluate = Callable[..., Evaluation]


def rule(kind: str, *, severity: str = "critical", **kwargs: Any) -> dict[str, Any]:
    return {"type": f"expect_{kind}", "kwargs": kwargs, "severity": severity}


@pytest.fixture
def run() -> Iterator[Evaluate]:
    """Evaluate rules on columns; column ``id`` numbers the rows."""
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone='UTC'")

        def go(columns: dict[str, Any], *rules: dict[str, Any], chunk: int = 3, **more: Any) -> Evaluation:
            rows = pa.table(columns)
            if "id" not in columns:
                rows = rows.append_column("id", pa.array(range(rows.num_rows), pa.int64()))
            connection.register("t", rows)
            suite = load_suite({"name": "s", "expectations": list(rules)})
            return evaluate(connection, "t", suite, **{"identity": ["id"], "rows_per_chunk": chunk, **more})

        yield go


def only(found: Evaluation) -> Outcome:
    (outcome,) = found.outcomes
    return outcome


def ids(found: Evaluation) -> list[int]:
    return [int(i) for i in found.broken_ids()["id"].to_pylist()]


class TestRows:
    @pytest.mark.parametrize("chunk", [1, 2, 7, 1000])
    def test_the_size_of_a_chunk_changes_nothing(self, run: Evaluate, chunk: int) -> None:
        found = run(
            {"a": [n % 10 for n in range(100)], "b": [str(n % 7) for n in range(100)]},
            rule("column_values_to_be_between", column="a", max_value=8),
            rule("column_values_to_match_regex", column="b", regex="[0-5]", mostly=0.5),
            rule("column_mean_to_be_between", column="a", min_value=4.5, max_value=4.5),
            rule("compound_columns_to_be_unique", column_list=["a", "b"]),
            chunk=chunk,
        )
        assert found.rows == 100
        assert [o.success for o in found.outcomes] == [False, True, True, False]
        assert found.outcomes[0].result["unexpected_count"] == 10
        assert found.outcomes[0].result["element_count"] == 100
        assert [o["id"] for o in found.outcomes[0].offenders] == list(range(9, 100, 10))
        assert found.outcomes[3].unexpected == 60

    def test_each_broken_row_once_with_all_its_rules(self, run: Evaluate) -> None:
        found = run(
            {"a": [1.0, 50.0, float("nan"), None], "b": ["x", "y", "x", "x"]},
            rule("column_values_to_be_between", column="a", max_value=9),
            rule("column_values_to_be_in_set", column="b", value_set=["x"]),
            rule("column_values_to_not_be_null", column="a"),
            rule("column_values_to_be_in_set", severity="warning", column="b", value_set=["z"]),
            rule("column_values_to_not_be_null", column="a", mostly=0.5),
        )
        (batch,) = found.broken_rows(rows_per_chunk=10)
        rows = batch.to_pylist()
        assert found.broken() == 3
        assert [(r["id"], len(r["_rules"])) for r in rows] == [(1, 2), (2, 1), (3, 1)]
        assert rows[0]["_rules"] == ["expect_column_values_to_be_between(a)", "expect_column_values_to_be_in_set(b)"]
        assert math.isnan(rows[1]["a"]), "the row is as it is in the table"
        assert rows[2]["a"] is None
        assert [o.success for o in found.outcomes] == [False, False, False, False, True]
        assert [o.failed for o in found.outcomes] == [True, True, True, False, False]

    def test_offenders_come_in_the_order_of_their_identity(self, run: Evaluate) -> None:
        found = run(
            {"id": list(range(99, -1, -1)), "a": [1] * 100},
            rule("column_values_to_be_in_set", column="a", value_set=[2]),
        )
        assert [o["id"] for o in only(found).offenders] == list(range(20))

    def test_identity_of_several_columns_with_nulls(self, run: Evaluate) -> None:
        found = run(
            {"id": [1, 1, 2, 2], "k": ["x", None, "x", None], "a": [0, 1, 0, 1]},
            rule("column_values_to_be_in_set", column="a", value_set=[0]),
            identity=["id", "k"],
        )
        assert [r["k"] for b in found.broken_rows(rows_per_chunk=9) for r in b.to_pylist()] == [None, None]
        assert found.broken() == 2

    def test_whole_numbers_beyond_doubles_are_told_apart(self, run: Evaluate) -> None:
        big = 2**53
        found = run(
            {"a": [big, big + 1, None]},
            rule("column_values_to_be_in_set", column="a", value_set=[big + 1]),
            rule("column_values_to_be_unique", column="a"),
            rule("column_values_to_be_in_set", column="a", value_set=[10**30, 1.5, big, big + 1]),
        )
        assert [o.success for o in found.outcomes] == [False, True, True]
        assert ids(found) == [0]

    def test_dates_and_decimals(self, run: Evaluate) -> None:
        found = run(
            {"d": [date(2013, 1, 1), date(2013, 2, 1)], "x": [Decimal("1.10"), Decimal("2.20")]},
            rule("column_values_to_be_between", column="d", min_value="2013-01-15", max_value="2013-12-31"),
            rule("column_values_to_be_between", column="x", min_value=1.1, max_value=2.1),
            rule("column_min_to_be_between", column="x", min_value=1.1, max_value=1.1),
            rule("column_mean_to_be_between", column="x", min_value=1.64, max_value=1.66),
            rule("column_sum_to_be_between", column="x", min_value=3.29, max_value=3.31),
            rule("column_quantile_values_to_be_between", column="x", allow_relative_error="linear",
                 quantile_ranges={"quantiles": [0.5], "value_ranges": [[1.64, 1.66]]}),
        )  # fmt: skip
        assert [o.error for o in found.outcomes] == [""] * 6
        assert [o.unexpected for o in found.outcomes] == [1, 1, 0, 0, 0, 0]
        assert [o.success for o in found.outcomes[2:]] == [True] * 4

    def test_json_schema(self, run: Evaluate) -> None:
        schema = {"type": "object", "required": ["a"]}
        found = run(
            {"j": ['{"a": 1}', '{"b": 1}', None]},
            rule("column_values_to_match_json_schema", column="j", json_schema=schema),
        )
        assert ids(found) == [1]


class TestErrors:
    def test_the_others_are_evaluated(self, run: Evaluate) -> None:
        found = run(
            {"a": [1, 2, 3], "s": ["x", "y", "z"]},
            rule("column_values_to_be_between", column="gone", min_value=1),
            rule("column_values_to_be_between", column="a", max_value=2),
            rule("column_values_to_be_between", column="s", max_value=2),
            rule("column_values_to_be_between", column="a", min_value=3, max_value=2),
            rule("column_values_to_be_in_set", column="a", value_set=["1"]),
            rule("column_pair_values_a_to_be_greater_than_b", column_A="a", column_B="s"),
            rule("column_sum_to_be_between", column="s", max_value=2),
            rule("column_values_to_not_be_null", column="a", row_condition={
                "type": "comparison", "column": {"name": "a"}, "operator": "==", "parameter": "1"}),
            rule("column_values_to_not_be_null", column="a", row_condition={
                "type": "nullity", "column": {"name": "lost"}, "is_null": True}),
            rule("column_value_lengths_to_equal", column="a", value=1),
        )  # fmt: skip
        assert [bool(o.error) for o in found.outcomes] == [True, False, *[True] * 8]
        assert [o.rule.number for o in found.failed] == [1]
        assert found.outcomes[8].error.startswith("no column lost")
        assert ids(found) == [2]
        assert not found.success

    def test_a_check_that_breaks_in_a_later_chunk_blames_no_row(self, run: Evaluate) -> None:
        found = run(
            {"j": ['{"b": 1}'] * 5 + ["no json"]},
            rule("column_values_to_match_json_schema", column="j", json_schema={"required": ["a"]}),
            chunk=2,
        )
        assert "is not JSON" in only(found).error
        assert found.broken() == 0

    def test_one_figure_that_breaks_spoils_no_other(self, run: Evaluate) -> None:
        found = run(
            {"a": [2**62] * 3, "x": [1.0, 2.0, 3.0]},
            rule("column_mean_to_be_between", column="x", min_value=2, max_value=2),
            rule("column_sum_to_be_between", column="a", min_value=3 * 2**62, max_value=3 * 2**62),
            rule("column_max_to_be_between", column="x", max_value="2013-01-01T00:00:00Z"),
        )
        assert [o.success for o in found.outcomes] == [True, True, False]
        assert [bool(o.error) for o in found.outcomes] == [False, False, True]

    def test_a_time_without_a_zone_is_no_bound_for_instants(self, run: Evaluate) -> None:
        when = pa.array([0, 1], pa.timestamp("us", tz="UTC"))
        found = run({"t": when}, rule("column_values_to_be_between", column="t", min_value="2013-01-01T00:00:00"))
        assert "time zone" in only(found).error

    def test_no_column_to_tell_rows_apart(self, run: Evaluate) -> None:
        with pytest.raises(BadArgument, match="no column nope"):
            run({"a": [1]}, rule("column_to_exist", column="a"), identity=["nope"])


class TestFigures:
    def test_infinity(self, run: Evaluate) -> None:
        found = run(
            {"a": [1.0, math.inf, 3.0]},
            rule("column_mean_to_be_between", column="a", max_value=9),
            rule("column_sum_to_be_between", column="a", min_value=9),
            rule("column_stdev_to_be_between", column="a", max_value=9),
            rule("column_max_to_be_between", column="a", max_value=9),
            rule("column_values_to_be_between", column="a", max_value=9),
        )
        assert [o.error for o in found.outcomes] == [""] * 5
        assert [o.success for o in found.outcomes] == [False, True, False, False, False]

    def test_hidden_columns(self, run: Evaluate) -> None:
        found = run(
            {"a": [1], "_row": [1]},
            rule("table_columns_to_match_ordered_list", column_list=["a", "id"]),
            rule("table_column_count_to_equal", value=2),
            hidden=["_row"],
        )
        assert found.success

    def test_names_that_need_quoting(self, run: Evaluate) -> None:
        name = 'odd "name", {braces}'
        found = run(
            {name: [1.0, 2.0, None]},
            rule("column_values_to_be_between", column=name, max_value=1),
            rule("column_mean_to_be_between", column=name, min_value=1.5, max_value=1.5, row_condition={
                "type": "nullity", "column": {"name": name}, "is_null": False}),
            rule("column_values_to_be_unique", column=name),
            rule("column_median_to_be_between", column=name, min_value=1.5, max_value=1.5),
            rule("column_distinct_values_to_equal_set", column=name, value_set=[1, 2]),
        )  # fmt: skip
        assert [o.error for o in found.outcomes] == [""] * 5
        assert [o.success for o in found.outcomes] == [False, True, True, True, True]

    def test_many_values_in_the_first_place(self, run: Evaluate) -> None:
        values = {"a": list(range(3000))}
        found = run(
            values,
            rule("column_most_common_value_to_be_in_set", column="a", value_set=[2999], ties_okay=True),
            rule("column_most_common_value_to_be_in_set", column="a", value_set=[2999]),
            chunk=1000,
        )
        assert [o.success for o in found.outcomes] == [True, False]

    def test_an_empty_table(self, run: Evaluate) -> None:
        found = run(
            {"a": pa.array([], pa.float64())},
            rule("column_values_to_be_between", column="a", max_value=1),
            rule("column_values_to_be_unique", column="a"),
            rule("table_row_count_to_equal", value=0),
            rule("column_mean_to_be_between", column="a", max_value=1),
        )
        assert [o.success for o in found.outcomes] == [True, True, True, False]
        assert found.rows == 0
