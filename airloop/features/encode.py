"""
Feature values and entity keys as the bytes that Feast stores online, a column at a time.

Feast builds one Python dictionary and one protobuf message per row and feature; here each distinct value of a column is
encoded once by Feast's own message classes, and floating point columns are laid out by NumPy. The bytes are the same
(a differential test against Feast holds that).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

KEY_VERSION = 3
"""``entity_key_serialization_version`` that is written here; Feast warns about any older one."""

_TAG_DOUBLE = 5 << 3 | 1
_TAG_FLOAT = 6 << 3 | 5
_STRING = 2
_INT64 = 4
"""Feast's numbers of types; the name of a join key is a STRING."""


def encode_values(column: pa.Array, value_type: Any) -> tuple[list[bytes], list[str | None]]:
    """
    The column's values as serialised ``feast.types.Value`` messages, and as Feast's text of scalar values.

    NULL, and NaN in a floating point column, is the empty message, as in Feast.

    :param column: values, shape ``(n,)``.
    :param value_type: ``feast.value_type.ValueType`` that the feature view declares.
    :returns: two lists of length ``n``.
    """
    from feast.value_type import ValueType

    if value_type in (ValueType.DOUBLE, ValueType.FLOAT) and _is_number(column.type):
        return _encode_floats(column, double=value_type == ValueType.DOUBLE)
    if pa.types.is_nested(column.type):
        return _encode_through_feast(column.to_pylist(), value_type)
    coded = column.dictionary_encode()
    messages, texts = _encode_distinct(coded.dictionary, value_type)
    messages.append(b"")
    texts.append(None)
    places = pc.fill_null(coded.indices, len(messages) - 1).to_pylist()
    return [messages[i] for i in places], [texts[i] for i in places]


def encode_keys(columns: Sequence[tuple[str, Any, pa.Array]]) -> list[bytes]:
    """
    Entity keys as Feast serialises them (version 3).

    :param columns: ``(join key, ValueType, values)`` of each join key, in any order; values without NULL.
    """
    if not columns:
        return []
    ordered = sorted(columns, key=lambda c: c[0])
    names = [name.encode() for name, _, _ in ordered]
    prefix = struct.pack("<I", len(names)) + b"".join(struct.pack("<II", _STRING, len(n)) + n for n in names)
    rows = [prefix] * len(ordered[0][2])
    for _, value_type, column in ordered:
        coded = column.dictionary_encode()
        parts = _key_parts(coded.dictionary, value_type)
        rows = [row + parts[i] for row, i in zip(rows, coded.indices.to_pylist(), strict=True)]
    return rows


def _key_parts(values: pa.Array, value_type: Any) -> list[bytes]:
    """Type, length and bytes of each key value."""
    from feast.infra.key_encoding_utils import _serialize_val
    from feast.value_type import ValueType

    if value_type == ValueType.INT64 and pa.types.is_integer(values.type):
        pack = struct.Struct("<IIq").pack
        return [pack(_INT64, 8, value) for value in values.to_pylist()]
    if value_type == ValueType.STRING and pa.types.is_string(values.type):
        texts = [value.encode() for value in values.to_pylist()]
        return [struct.pack("<II", _STRING, len(text)) + text for text in texts]
    parts = []
    for message in _messages(_python_values(values, value_type), value_type):
        content, number = _serialize_val(message.WhichOneof("val"), message, KEY_VERSION)
        parts.append(struct.pack("<II", number, len(content)) + content)
    return parts


def stored_seconds(times_us: np.ndarray[Any, np.dtype[np.int64]]) -> list[int]:
    """
    Instants as Feast's SQLite store keeps them: whole seconds, counted as if UTC's wall clock were the local one.

    Feast reads them back with the local zone too. In a process whose zone is UTC they are seconds since 1970.

    :param times_us: microseconds since 1970, UTC, shape ``(n,)``.
    """
    from datetime import datetime, timedelta

    # Toward zero, as int() does.
    seconds = np.trunc(times_us / 1_000_000).astype(np.int64)
    if _local_zone_is_utc():
        return [int(s) for s in seconds.tolist()]
    epoch = datetime(1970, 1, 1)
    distinct, inverse = np.unique(seconds, return_inverse=True)
    local = [int((epoch + timedelta(seconds=s)).timestamp()) for s in distinct.tolist()]
    return [local[i] for i in inverse.tolist()]


def _local_zone_is_utc() -> bool:
    import time

    return time.timezone == 0 and not time.daylight and time.tzname[0] in ("UTC", "GMT", "Universal", "Zulu")


def _encode_floats(column: pa.Array, *, double: bool) -> tuple[list[bytes], list[str | None]]:
    numbers = column.cast(pa.float64() if double else pa.float32(), safe=False)
    known = pc.is_valid(numbers).to_numpy(zero_copy_only=False)
    values = numbers.fill_null(0).to_numpy(zero_copy_only=False)
    known &= ~np.isnan(values)
    width = 9 if double else 5
    rows = np.empty((len(values), width), np.uint8)
    rows[:, 0] = _TAG_DOUBLE if double else _TAG_FLOAT
    rows[:, 1:] = values.astype("<f8" if double else "<f4").reshape(-1, 1).view(np.uint8)
    flat = rows.tobytes()
    messages = [flat[i : i + width] for i in range(0, len(flat), width)]
    texts: list[str | None] = list(map(repr, values.tolist()))
    for i in np.flatnonzero(~known).tolist():
        messages[i] = b""
        texts[i] = None
    return messages, texts


def _encode_distinct(values: pa.Array, value_type: Any) -> tuple[list[bytes], list[str | None]]:
    """Common types by Feast's message class itself, all others through Feast's converters, a dozen times slower."""
    from feast.protos.feast.types.Value_pb2 import Value
    from feast.value_type import ValueType

    texts: list[str | None]
    found = values.to_pylist()
    if value_type == ValueType.INT64 and pa.types.is_integer(values.type):
        texts = list(map(str, found))
        return [Value(int64_val=value).SerializeToString() for value in found], texts
    if value_type == ValueType.STRING and pa.types.is_string(values.type):
        texts = list(found)
        return [Value(string_val=value).SerializeToString() for value in found], texts
    return _encode_through_feast(_python_values(values, value_type), value_type)


def _encode_through_feast(values: list[Any], value_type: Any) -> tuple[list[bytes], list[str | None]]:
    from feast.infra.online_stores.helpers import extract_text_and_num

    messages = _messages(values, value_type)
    return [m.SerializeToString() for m in messages], [extract_text_and_num(m, False)[0] for m in messages]


def _messages(values: list[Any], value_type: Any) -> list[Any]:
    from feast.type_map import python_values_to_proto_values

    return list(python_values_to_proto_values(values, value_type)) if values else []


def _python_values(values: pa.Array, value_type: Any) -> list[Any]:
    """Distinct values as Feast's converter takes them: exact integers, NumPy instants."""
    from feast.value_type import ValueType

    if pa.types.is_timestamp(values.type) and value_type in (ValueType.UNIX_TIMESTAMP, ValueType.INT64):
        return list(values.to_numpy(zero_copy_only=False))
    found: list[Any] = values.to_pylist()
    return found


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_decimal(kind))
