"""Suites: Great Expectations' own documents, checked by it, and refused by name where no exact evaluation exists."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from airloop.errors import BadArgument
from airloop.quality.suite import KINDS, ROW, TOTAL, UNIQUE, load_suite

SUITES = Path(__file__).parents[3] / "dags" / "flights" / "suites"


def one(kind: str, meta: dict[str, Any] | None = None, severity: str = "critical", **kwargs: Any) -> dict[str, Any]:
    expectation = {"type": kind, "kwargs": kwargs, "severity": severity, "meta": meta or {}}
    return {"name": "s", "expectations": [expectation]}


def test_json_yaml_and_mapping_are_the_same() -> None:
    document = one("expect_column_values_to_be_between", column="a", min_value=1)
    text = """
    name: s
    expectations:
      - type: expect_column_values_to_be_between
        kwargs: {column: a, min_value: 1}
    """
    read = [load_suite(document), load_suite(json.dumps(document)), load_suite(text)]
    assert [(s.name, s.rules[0].name, s.rules[0].kwargs) for s in read] == [
        ("s", "expect_column_values_to_be_between(a)", {"column": "a", "min_value": 1.0})
    ] * 3


def test_kinds() -> None:
    rules = load_suite(
        {
            "name": "s",
            "expectations": [
                {"type": "expect_column_values_to_not_be_null", "kwargs": {"column": "a"}},
                {"type": "expect_column_values_to_be_unique", "kwargs": {"column": "a"}},
                {"type": "expect_table_row_count_to_equal", "kwargs": {"value": 1}},
                {"type": "expect_column_values_to_be_unique", "kwargs": {"column": "a", "mostly": 0.5}},
            ],
        }
    ).rules
    assert [r.kind for r in rules] == [ROW, UNIQUE, TOTAL, UNIQUE]
    assert [r.name.rpartition("expect_")[2] for r in rules] == [
        "column_values_to_not_be_null(a)",
        "column_values_to_be_unique(a)",
        "table_row_count_to_equal",
        "column_values_to_be_unique(a) #2",
    ]


@pytest.mark.parametrize(
    ("document", "why"),
    [
        (one("expect_column_values_to_be_increasing", column="a"), "expect_column_values_to_be_increasing.*no order"),
        (one("expect_column_values_to_be_of_type", column="a", type_="int"), "declared in the source's schema"),
        (
            one("expect_column_value_z_scores_to_be_less_than", column="a", threshold=3, double_sided=True),
            "cannot be evaluated exactly",
        ),
        (one("expect_column_values_to_match_like_pattern", column="a", like_pattern="a%"), "cannot be evaluated"),
        (one("unexpected_rows_expectation", unexpected_rows_query="SELECT * FROM {batch}"), "cannot be evaluated"),
        (one("expect_column_values_to_be_nice", column="a"), "expect_column_values_to_be_nice not found"),
        (one("expect_column_values_to_be_between", column="a"), "min_value and max_value cannot both be None"),
        (one("expect_column_values_to_be_between", column="a", min=1), "extra fields not permitted"),
        (one("expect_column_values_to_be_between", column="a", min_value=1, mostly=2), "mostly"),
        (one("expect_column_max_to_be_between", column="a", max_value={"$PARAMETER": "x"}), "suite parameter"),
        (one("expect_column_values_to_not_be_null", column="a", row_condition="b > 1"), "depends on pandas"),
        (one("expect_column_values_to_not_be_null", severity="bad", column="a"), "severity|FailureSeverity"),
        (
            one("expect_column_max_to_be_between", {"airloop": {"quarantine": True}}, column="a", max_value=1),
            "none can be quarantined",
        ),
        (
            one("expect_column_values_to_not_be_null", {"airloop": {"quarantine": True}}, "warning", column="a"),
            "decides nothing",
        ),
        (one("expect_column_values_to_not_be_null", {"airloop": {"quarantin": True}}, column="a"), "meta.airloop"),
        (one("expect_column_values_to_not_be_null", {"airloop": {"quarantine": "yes"}}, column="a"), "meta.airloop"),
        ({"name": "s", "expectations": []}, "at least one expectation"),
        ({"expectations": [{}]}, "needs a name"),
        ({"name": "s", "expectations": ["x"]}, "not a mapping with a type"),
        ({"name": "s", "expectation": [], "expectations": [{}]}, "has expectation, which"),
        ({**one("expect_column_to_exist", column="a"), "suite_parameters": {"x": 1}}, "suite_parameters"),
        ("- a\n- b", "is list, not a mapping"),
        ("{nonsense", "neither JSON nor YAML"),
    ],
)
def test_refused(document: Any, why: str) -> None:
    with pytest.raises(BadArgument, match=why):
        load_suite(document)


def test_every_fault_is_named_at_once() -> None:
    two = [
        {"type": "expect_column_values_to_be_increasing", "kwargs": {"column": "a"}},
        {"type": "expect_column_values_to_not_be_null", "kwargs": {"column": "a"}},
        {"type": "expect_column_values_to_be_decreasing", "kwargs": {"column": "a"}},
    ]
    with pytest.raises(BadArgument, match=r"expectation 1 \(.*increasing\).*; expectation 3 \(.*decreasing\)"):
        load_suite({"name": "s", "expectations": two})


@pytest.mark.parametrize("name", ["flights", "weather", "planes"])
def test_suites_of_the_example(name: str) -> None:
    suite = load_suite((SUITES / f"{name}.json").read_text())
    assert suite.name == name
    assert any(r.quarantine for r in suite.rules)
    assert any(not r.quarantine and r.decides for r in suite.rules)
    assert any(r.kind == UNIQUE and r.decides for r in suite.rules)
    assert {r.type for r in suite.rules} <= set(KINDS)
