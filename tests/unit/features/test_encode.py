"""Bytes of values and keys, against Feast's own functions."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airloop.features.encode import encode_keys, encode_values, key_prefix, stored_seconds, value_texts

STAMPS = pa.array([0, 1_359_000_000_123_456, -5_500_000], pa.timestamp("us", tz="UTC"))
COLUMNS = [
    (pa.array([1.5, None, float("nan"), 0.0, -0.0, float("inf"), 1e-300]), "DOUBLE"),
    (pa.array([1, 2, 3]), "DOUBLE"),
    (pa.array([0.1, None, 2.5], pa.float32()), "FLOAT"),
    (pa.array([0.1, None, 2.5]), "FLOAT"),
    (pa.array([1, None, -7, 2**40, 0]), "INT64"),
    (pa.array([1, -7, 2**62 + 1, 0]), "INT64"),
    (pa.array([1, None, -7], pa.int32()), "INT32"),
    (pa.array([5, 6], pa.int32()), "INT64"),
    (pa.array(["a", None, "", "é", "a"]), "STRING"),
    (pa.array([True, None, False]), "BOOL"),
    (pa.array([b"a", None, b""]), "BYTES"),
    (STAMPS, "UNIX_TIMESTAMP"),
    (pa.array([[1.0, 2.0], None, []]), "DOUBLE_LIST"),
    (pa.array([["a"], ["b", "c"]]), "STRING_LIST"),
    (pa.array([[1, 2], [3]]), "INT64_LIST"),
    (pa.array(['{"a": 1}', None]), "JSON"),
    (pa.array([None, None], pa.float64()), "DOUBLE"),
    (pa.array([None, None], pa.int64()), "INT64"),
    (pa.array([], pa.int64()), "INT64"),
]


def kind(name: str) -> Any:
    from feast.value_type import ValueType

    return ValueType[name]


def ours(column: pa.Array, value_type: Any) -> tuple[list[bytes], list[str | None]]:
    return encode_values(column, value_type).to_pylist(), value_texts(column, value_type)


def by_feast(column: pa.Array, value_type: Any) -> tuple[list[bytes], list[str | None]]:
    from feast.infra.online_stores.helpers import extract_text_and_num
    from feast.type_map import python_values_to_proto_values

    messages = python_values_to_proto_values(column.to_numpy(zero_copy_only=False), value_type)
    return [m.SerializeToString() for m in messages], [extract_text_and_num(m, False)[0] for m in messages]


@pytest.mark.parametrize(("column", "name"), COLUMNS)
def test_values_are_feasts(column: pa.Array, name: str) -> None:
    assert ours(column, kind(name)) == by_feast(column, kind(name))


@given(st.lists(st.none() | st.floats(allow_nan=False)))
def test_any_double(values: list[float | None]) -> None:
    column = pa.array(values, pa.float64())
    assert ours(column, kind("DOUBLE")) == by_feast(column, kind("DOUBLE"))


@given(st.lists(st.integers(-(2**63), 2**63 - 1)))
def test_any_integer(values: list[int]) -> None:
    column = pa.array(values, pa.int64())
    assert ours(column, kind("INT64")) == by_feast(column, kind("INT64"))


def test_integers_beside_null_stay_exact() -> None:
    # Feast's own way goes through floating point here and loses the last digits.
    messages, texts = ours(pa.array([2**60 + 1, None]), kind("INT64"))
    assert texts == [str(2**60 + 1), None]
    assert messages[1] == b""


def test_an_unknown_instant_is_the_empty_value() -> None:
    # Feast writes the least int64 here and reads it as NULL too.
    assert ours(pa.array([0, None], STAMPS.type), kind("UNIX_TIMESTAMP"))[0][1] == b""


KEYS: list[list[tuple[str, str, pa.Array]]] = [
    [("driver", "INT64", pa.array([1, -5, 1, 2**40]))],
    [("city", "STRING", pa.array(["Rome", "", "Köln", "Rome"]))],
    [("b", "STRING", pa.array(["x", "y"])), ("a", "INT64", pa.array([1, 2]))],
    [("n", "INT32", pa.array([1, -2], pa.int32())), ("raw", "BYTES", pa.array([b"\0", b"z"]))],
    [("when", "UNIX_TIMESTAMP", STAMPS)],
]


@pytest.mark.parametrize("columns", KEYS, ids=lambda c: "-".join(name for name, _, _ in c))
def test_keys_are_feasts(columns: list[tuple[str, str, pa.Array]]) -> None:
    from feast.infra.key_encoding_utils import serialize_entity_key
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey
    from feast.type_map import python_values_to_proto_values

    messages = [
        python_values_to_proto_values(list(c.to_numpy(zero_copy_only=False)), kind(name)) for _, name, c in columns
    ]
    expected = [
        serialize_entity_key(EntityKey(join_keys=[n for n, _, _ in columns], entity_values=row), 3)
        for row in zip(*messages, strict=True)
    ]
    assert encode_keys([(key, kind(name), column) for key, name, column in columns]).to_pylist() == expected


def test_the_prefix_of_keys_is_feasts() -> None:
    from feast.infra.key_encoding_utils import serialize_entity_key_prefix

    for names in (["driver"], ["city", "a", "ü"]):
        assert key_prefix(names) == serialize_entity_key_prefix(names)


@pytest.fixture
def zone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The process's local zone."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", request.param)
        time.tzset()
        yield
    time.tzset()


@pytest.mark.usefixtures("zone")
@pytest.mark.parametrize("zone", ["UTC", "America/New_York", "Asia/Shanghai"], indirect=True)
def test_event_times_are_stored_as_feast_does_in_any_zone() -> None:
    from feast.infra.online_stores.sqlite import adapt_datetime_epoch

    times = [
        datetime(2013, 3, 10, 2, 30, 1, 999_999, UTC),
        datetime(2013, 11, 3, 6, 0, tzinfo=UTC),
        datetime(1960, 1, 1, 0, 0, 0, 5, UTC),
    ]
    micros = np.array([(t - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1) for t in times])
    assert stored_seconds(micros) == [adapt_datetime_epoch(t.replace(tzinfo=None)) for t in times]


@pytest.mark.usefixtures("zone")
@pytest.mark.parametrize("zone", ["UTC"], indirect=True)
def test_seconds_since_1970_where_the_zone_is_utc() -> None:
    assert stored_seconds(np.array([1_372_680_000_600_000])) == [1_372_680_000]
