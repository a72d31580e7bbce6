"""docs/explain/gates.md says what was measured, and what was measured keeps what it promises."""

from __future__ import annotations

import json
from typing import Any

import pytest

from benchmarks.gates import OUT, missed, trained_outcome
from benchmarks.gates_page import CHART, DOCS, power_chart, tables


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(OUT.read_text())
    return found


def test_every_table_of_the_page_is_that_of_the_results(results: dict[str, Any]) -> None:
    text = DOCS.read_text()
    for name, lines in tables(results).items():
        assert f"<!-- {name} -->\n\n{lines}\n\n<!-- end of {name} -->" in text, name
    assert CHART.read_text() == power_chart(results["promotion"]["power"])


def test_the_page_says_how_often_another_seed_is_promoted(results: dict[str, Any]) -> None:
    """In words too: it is more often than what is promised of models of the same quality."""
    row = results["trained"]["of the same recipe, another seed; min_gain 0"]
    assert f"{row['hits']} of {row['trials']} are promoted below: {row['rate']:.0%}" in " ".join(
        DOCS.read_text().replace(" %", "%").split()
    )


def test_the_results_keep_every_promise(results: dict[str, Any]) -> None:
    assert set(results) == {"promotion", "trained", "leakage", "drift"}
    assert missed(results) == []


def test_a_promise_that_is_missed_is_named(results: dict[str, Any]) -> None:
    worse = json.loads(json.dumps(results))
    worse["promotion"]["same"][0]["rate"] = 0.06
    worse["promotion"]["power"][-1]["rate"] = 0.94
    worse["leakage"]["clean"]["hits"] = 1
    worse["drift"]["undrifted"][0]["low"] = 0.02
    worse["drift"]["alike"][-1]["low"] = 0.02
    assert len(missed(worse)) == 5


def test_windows_of_a_week_and_of_days_that_differ_are_measured(results: dict[str, Any]) -> None:
    measured = {(row["days"], row["alike"]) for row in results["drift"]["alike"]}
    assert measured == {(days, alike) for days in (5, 7, 10, 28) for alike in (0, 0.2, 0.5, 0.9)}


def test_trained_models() -> None:
    found = trained_outcome(0, blind=1, fresh_rows=5_000)
    assert found["outcomes"] == {0.0: "promote", 0.01: "promote"}
    assert found["gain"] > 0.05
