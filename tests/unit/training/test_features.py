"""Columns become numbers, the same way at training and at scoring."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from airloop.errors import BadArgument, BadInput, SchemaMismatch
from airloop.training.features import FeatureSpec, check_columns, encode, learn_features
from airloop.training.summary import summarise_codes, summarise_numbers

NAN = float("nan")


def spec_of(column: Any, **options: Any) -> FeatureSpec:
    (spec,), _, _ = learn_features(pa.table({"x": column}), ["x"], **options)
    return spec


@pytest.mark.parametrize(
    ("column", "kind", "codes"),
    [
        (pa.array([1, None, 3]), "number", [1, NAN, 3]),
        (pa.array([1.5, NAN, None]), "number", [1.5, NAN, NAN]),
        (pa.array([Decimal("1.25"), None, Decimal("-2.50")]), "number", [1.25, NAN, -2.5]),
        (pa.array([True, None, False]), "boolean", [1, NAN, 0]),
        (pa.array(["b", None, "a"]), "category", [1, NAN, 0]),
        (pa.array(["b", None, "a"], pa.large_string()), "category", [1, NAN, 0]),
        (pa.array(["b", None, "a"]).dictionary_encode(), "category", [1, NAN, 0]),
        (pa.chunked_array([["b"], [None, "a"]]), "category", [1, NAN, 0]),
    ],
)
def test_every_kind_of_column(column: Any, kind: str, codes: list[float]) -> None:
    spec = spec_of(column)
    assert spec.kind == kind
    assert FeatureSpec.from_json(spec.as_json()) == spec
    matrix = encode(pa.table({"x": column}), [spec], where="rows")
    np.testing.assert_array_equal(matrix, np.array([codes]).T)


def test_a_category_that_training_has_not_seen_is_missing() -> None:
    spec = spec_of(pa.array(["a", "b"]))
    np.testing.assert_array_equal(encode(pa.table({"x": ["c", "b"]}), [spec], where="rows"), [[NAN], [1]])


def test_rare_categories_beyond_the_limit_are_missing_and_said_so() -> None:
    rows = pa.table({"x": ["d", "c", "b", "b", "a", "a", "a"]})
    (spec,), _, (warning,) = learn_features(rows, ["x"], max_categories=3)
    assert spec.categories == ("a", "b", "c"), "of equal counts the first by name"
    assert "4 categories: the 3 most frequent" in warning


def test_columns_may_come_in_any_order_with_others_between() -> None:
    rows = pa.table({"a": [1, 2], "b": ["x", "y"]})
    specs, _, _ = learn_features(rows, ["a", "b"])
    other = pa.table({"b": ["y"], "z": [0], "a": [5.0]})
    np.testing.assert_array_equal(encode(other, specs, where="rows"), [[5, 1]])
    nulls = pa.table({"a": pa.nulls(1), "b": pa.nulls(1)})
    assert np.isnan(encode(nulls, specs, where="rows")).all()
    assert encode(other.slice(0, 0), specs, where="rows").shape == (0, 2)


def test_all_differences_of_a_schema_are_named_at_once() -> None:
    specs, _, _ = learn_features(pa.table({"a": [1], "b": ["x"], "c": [True]}), ["a", "b", "c"])
    with pytest.raises(SchemaMismatch) as caught:
        encode(pa.table({"a": ["1"], "c": [1]}), specs, where="rows of june")
    assert "a is string, the model learned from int64" in caught.value.found
    assert "b (string) is missing" in caught.value.found
    assert "c " not in caught.value.found.partition("model: ")[2], "0 and 1 stand for a boolean"


def test_infinity_is_refused_by_name_and_count() -> None:
    spec = spec_of(pa.array([1.0]))
    with pytest.raises(BadInput, match="infinite values of x in 2 of 3 rows"):
        encode(pa.table({"x": [np.inf, -np.inf, 1.0]}), [spec], where="rows")


def test_columns_are_checked_by_name() -> None:
    schema = pa.schema([("hour", pa.int64()), ("at", pa.timestamp("us"))])
    with pytest.raises(BadArgument, match="has no feature column"):
        check_columns(schema, [], where="t")
    with pytest.raises(BadArgument, match="named twice: hour"):
        check_columns(schema, ["hour", "hour"], where="t")
    with pytest.raises(BadArgument, match=r"no column 'hours'.*did you mean 'hour'"):
        check_columns(schema, ["hours"], where="t")
    with pytest.raises(BadArgument, match=r"feature at of t has type timestamp"):
        check_columns(schema, ["at"], where="t")


def test_a_histogram_counts_every_value_once() -> None:
    values = np.r_[np.arange(100.0), NAN, NAN]
    found = summarise_numbers(values)
    assert found["missing"] == 2
    assert found["counts"] == [10] * 10
    bins = np.searchsorted(found["edges"], values[:100], side="right")
    assert np.bincount(bins).tolist() == found["counts"]
    assert (found["min"], found["max"], found["mean"]) == (0, 99, 49.5)


def test_a_histogram_of_few_values_has_fewer_bins() -> None:
    found = summarise_numbers(np.array([0.0, 0, 0, 0, 1]))
    assert sum(found["counts"]) == 5
    assert found["edges"] == sorted(set(found["edges"]))
    nothing = summarise_numbers(np.array([NAN]))
    assert (nothing["edges"], nothing["counts"], nothing["missing"], nothing["mean"]) == ([], [0], 1, None)


def test_categories_are_counted_with_those_that_do_not_occur() -> None:
    assert summarise_codes(np.array([0, 0, NAN, 2]), ("a", "b", "c")) == {
        "counts": {"a": 2, "b": 0, "c": 1},
        "other": 0,
        "missing": 1,
    }
