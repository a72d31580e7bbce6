"""Data Docs: Great Expectations' page, that runs nothing, fetches nothing and shows the data as text."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from airloop.quality.docs import plain, validation_result, write_docs
from airloop.quality.evaluate import evaluate
from airloop.quality.suite import load_suite

EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>"


def expect(kind: str, **kwargs: Any) -> dict[str, Any]:
    return {"type": f"expect_{kind}", "kwargs": kwargs}


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The page of a suite with rules that pass, fail and break, on rows with mark-up in them."""

    def no_network(*_: Any) -> None:
        raise AssertionError("Great Expectations opened a connection")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    rows = pa.table({"id": [1, 2, 3], "s": ["ok", EVIL, EVIL], "x": [1.0, 2.0, float("inf")]})
    suite = load_suite(
        {
            "name": "trips",
            "expectations": [
                expect("column_values_to_be_in_set", column="s", value_set=["ok"]),
                expect("column_values_to_be_unique", column="s"),
                expect("compound_columns_to_be_unique", column_list=["s", "id"]),
                expect("select_column_values_to_be_unique_within_record", column_list=["s", "s"]),
                expect("column_pair_values_to_be_equal", column_A="x", column_B="id"),
                expect("column_distinct_values_to_equal_set", column="s", value_set=["ok", "other"]),
                expect("column_most_common_value_to_be_in_set", column="s", value_set=["ok"]),
                expect("column_max_to_be_between", column="x", max_value=1),
                expect("column_quantile_values_to_be_between", column="x",
                       quantile_ranges={"quantiles": [0.5], "value_ranges": [[3, None]]}),
                expect("column_values_to_not_be_null", column="gone"),
                expect("table_row_count_to_equal", value=3),
                expect("table_columns_to_match_set", column_set=["s", "lost"]),
            ],
        }
    )  # fmt: skip
    with duckdb.connect() as connection:
        connection.register("t", rows)
        found = evaluate(connection, "t", suite, identity=["id"], rows_per_chunk=2)
    result = validation_result(found, asset="raw.trips@1", run_name="abc", run_time="2013-01-01T00:00:00+00:00")
    assert [o.error for o in found.outcomes if o.error] == ["no column gone; there are id, s, x"]
    write_docs(result, tmp_path / "docs")
    return (tmp_path / "docs" / "index.html").read_text()


def test_it_is_the_page_of_great_expectations(page: str, tmp_path: Path) -> None:
    for text in ("Expectation Validation Result", "Evaluated Expectations", "raw.trips@1", "no column gone", "≈16.67%"):
        assert text in page
    result = json.loads((tmp_path / "docs" / "result.json").read_text())
    assert result["statistics"] == {
        "evaluated_expectations": 12,
        "successful_expectations": 2,
        "unsuccessful_expectations": 10,
        "success_percent": pytest.approx(100 / 6),
    }
    first = result["results"][0]
    assert first["result"]["partial_unexpected_index_list"] == [{"s": EVIL, "id": 2}, {"s": EVIL, "id": 3}]


@pytest.mark.parametrize("key", ["102535977753", "00e999999999", "201301010000", "ab12cd34ef56"])
def test_a_key_of_digits_is_no_date(tmp_path: Path, key: str) -> None:
    suite = load_suite({"name": "t", "expectations": [expect("table_row_count_to_equal", value=1)]})
    with duckdb.connect() as connection:
        connection.execute("CREATE TABLE t AS SELECT 1 AS id")
        found = evaluate(connection, "t", suite, identity=["id"], rows_per_chunk=2)
    write_docs(validation_result(found, asset="t", run_name=key, run_time="2013-01-01T00:00:00+00:00"), tmp_path)
    assert f"key {key}" in (tmp_path / "index.html").read_text()


def test_nothing_is_fetched_and_nothing_runs(page: str) -> None:
    assert not re.findall(r"(?:src|href)=\"(?!#)[^\"]*\"|url\(", page)
    assert "https://" not in page
    assert "<script" not in page
    assert "Content-Security-Policy" in page


def test_data_is_shown_as_text(page: str) -> None:
    assert "<img" not in page
    assert "&lt;img src=x" in page
    assert "&amp;lt;" not in page, "escaped once"
    # Every kind of failing rule shows it: alone, in a pair, in a record, in a set, as an observed value.
    assert page.count("&lt;script&gt;") >= 5


def test_plain() -> None:
    assert plain({"a": (float("nan"), float("inf"), 1.5), 2: {3}}) == {"a": ["nan", "inf", 1.5], "2": [3]}
