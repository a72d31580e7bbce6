"""
Feature values and entity keys as the bytes that Feast stores online, a column at a time.

Feast builds one Python dictionary and one protobuf message per row and feature; here NumPy and Arrow lay out numbers
and strings, and of other types each distinct value is encoded once by Feast's own message classes. The bytes are the
same (a differential test against Feast holds that).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from airloop.errors import BadArgument

KEY_VERSION = 3
"""``entity_key_serialization_version`` that is written here; Feast warns about any older one."""

_TAG_STRING = 2 << 3 | 2
_TAG_INT64 = 4 << 3
_TAG_DOUBLE = 5 << 3 | 1
_TAG_FLOAT = 6 << 3 | 5
_STRING = 2
_INT64 = 4
"""Feast's numbers of types; the name of a join key is a STRING."""


def encode_values(column: pa.Array, value_type: Any) -> pa.Array:
    """
    The column's values as serialised ``feast.types.Value`` messages.

    NULL, and NaN in a floating point column, is the empty message, as in Feast.

    :param column: values, shape ``(n,)``.
    :param value_type: ``feast.value_type.ValueType`` that the feature view declares.
    :returns: binary, shape ``(n,)``, without NULL.
    """
    from feast.value_type import ValueType

    if value_type in (ValueType.DOUBLE, ValueType.FLOAT) and _is_number(column.type):
        return _encode_floats(column, double=value_type == ValueType.DOUBLE)
    if pa.types.is_nested(column.type):
        return _serialised(column.to_pylist(), value_type)
    coded = column.dictionary_encode()
    messages = _encode_distinct(coded.dictionary, value_type)
    return pc.fill_null(messages.take(coded.indices), b"")


def value_texts(column: pa.Array, value_type: Any) -> list[str | None]:
    """Feast's text of each scalar value, which its SQLite store keeps beside the message; None for NULL and NaN."""
    from feast.infra.online_stores.helpers import extract_text_and_num
    from feast.value_type import ValueType

    if value_type in (ValueType.DOUBLE, ValueType.FLOAT) and _is_number(column.type):
        numbers = column.cast(pa.float64() if value_type == ValueType.DOUBLE else pa.float32(), safe=False)
        if numbers.null_count == 0 and not pc.any(pc.is_nan(numbers)).as_py():
            return list(map(repr, numbers.to_pylist()))
        return [None if value is None or value != value else repr(value) for value in numbers.to_pylist()]
    if value_type == ValueType.INT64 and pa.types.is_integer(column.type):
        return [None if value is None else str(value) for value in column.to_pylist()]
    if value_type == ValueType.STRING and pa.types.is_string(column.type):
        return list(column.to_pylist())
    if pa.types.is_nested(column.type):
        return [extract_text_and_num(m, False)[0] for m in _messages(column.to_pylist(), value_type)]
    coded = column.dictionary_encode()
    messages = _messages(_python_values(coded.dictionary, value_type), value_type)
    texts = [extract_text_and_num(m, False)[0] for m in messages]
    return [None if i is None else texts[i] for i in coded.indices.to_pylist()]


def key_prefix(names: Sequence[str]) -> bytes:
    """What the serialised keys of all entities with these join keys begin with."""
    encoded = [name.encode() for name in sorted(names)]
    return struct.pack("<I", len(encoded)) + b"".join(struct.pack("<II", _STRING, len(n)) + n for n in encoded)


def entity_key(names: Sequence[str], values: Sequence[Any]) -> bytes:
    """
    One entity key, of whole numbers (``INT64``) and strings.

    :raises BadArgument: a value is of another type.
    """
    parts = [key_prefix(names)]
    for _, value in sorted(zip(names, values, strict=True)):
        if isinstance(value, str):
            text = value.encode()
            parts.append(struct.pack("<II", _STRING, len(text)) + text)
        elif isinstance(value, int | np.integer) and not isinstance(value, bool):
            parts.append(struct.pack("<IIq", _INT64, 8, value))
        else:
            raise BadArgument(
                f"{value!r} is a key of type {type(value).__name__}", "keys are whole numbers and strings"
            )
    return b"".join(parts)


def encode_keys(columns: Sequence[tuple[str, Any, pa.Array]]) -> pa.Array:
    """
    Entity keys as Feast serialises them (version 3): binary, without NULL.

    :param columns: ``(join key, ValueType, values)`` of each join key, in any order; at least one; values without NULL.
    """
    parts = [pa.scalar(key_prefix([name for name, _, _ in columns]), pa.binary())]
    for _, value_type, column in sorted(columns, key=lambda c: c[0]):
        coded = column.dictionary_encode()
        parts.append(_key_parts(coded.dictionary, value_type).take(coded.indices))
    return pc.binary_join_element_wise(*parts, b"")


def with_heads(content: pa.Array, head: Callable[[int], bytes], *, tail: bytes = b"") -> pa.Array:
    """Each binary value behind a head that follows from its length, and before a tail."""
    coded = pc.binary_length(content).dictionary_encode()
    heads = pa.array([head(length) for length in coded.dictionary.to_pylist()], pa.binary())
    return pc.binary_join_element_wise(heads.take(coded.indices), content, tail, b"")


def _key_parts(values: pa.Array, value_type: Any) -> pa.Array:
    """Type, length and bytes of each key value."""
    from feast.infra.key_encoding_utils import _serialize_val
    from feast.value_type import ValueType

    if value_type == ValueType.INT64 and pa.types.is_integer(values.type):
        rows = np.empty((len(values), 16), np.uint8)
        rows[:, :8] = np.frombuffer(struct.pack("<II", _INT64, 8), np.uint8)
        rows[:, 8:] = values.to_numpy().astype("<i8").reshape(-1, 1).view(np.uint8)
        return _binary(rows.tobytes(), np.full(len(values), 16))
    if value_type == ValueType.STRING and pa.types.is_string(values.type):
        content = values.cast(pa.binary())
        return with_heads(content, lambda length: struct.pack("<II", _STRING, length))
    parts = []
    for message in _messages(_python_values(values, value_type), value_type):
        content, number = _serialize_val(message.WhichOneof("val"), message, KEY_VERSION)
        parts.append(struct.pack("<II", number, len(content)) + content)
    return pa.array(parts, pa.binary())


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


def encode_instants(times_us: np.ndarray[Any, np.dtype[np.int64]]) -> pa.Array:
    """
    Instants as serialised ``google.protobuf.Timestamp`` messages, which Feast's Redis store keeps.

    :param times_us: microseconds since 1970, UTC, shape ``(n,)``.
    """
    parts = []
    for tag, numbers in ((1 << 3, times_us // 1_000_000), (2 << 3, times_us % 1_000_000 * 1_000)):
        # A number that is zero is not written.
        parts.append(pc.if_else(pa.array(numbers != 0), _encode_integers(numbers, tag), pa.scalar(b"", pa.binary())))
    return pc.binary_join_element_wise(*parts, b"")


def _local_zone_is_utc() -> bool:
    import time

    return time.timezone == 0 and not time.daylight and time.tzname[0] in ("UTC", "GMT", "Universal", "Zulu")


def _encode_floats(column: pa.Array, *, double: bool) -> pa.Array:
    numbers = column.cast(pa.float64() if double else pa.float32(), safe=False)
    values = numbers.fill_null(float("nan")).to_numpy(zero_copy_only=False)
    known = ~np.isnan(values)
    width = 9 if double else 5
    rows = np.empty((len(values), width), np.uint8)
    rows[:, 0] = _TAG_DOUBLE if double else _TAG_FLOAT
    rows[:, 1:] = values.astype("<f8" if double else "<f4").reshape(-1, 1).view(np.uint8)
    return _binary(rows[known].tobytes(), known * width)


def _encode_distinct(values: pa.Array, value_type: Any) -> pa.Array:
    """Common types in columns, all others through Feast's converters, a hundred times slower."""
    from feast.value_type import ValueType

    if value_type == ValueType.INT64 and pa.types.is_integer(values.type):
        return _encode_integers(values.to_numpy().astype(np.int64), _TAG_INT64)
    if value_type == ValueType.STRING and pa.types.is_string(values.type):
        content = values.cast(pa.binary())
        return with_heads(content, lambda length: bytes([_TAG_STRING]) + _varint(length))
    return _serialised(_python_values(values, value_type), value_type)


def _encode_integers(values: np.ndarray[Any, np.dtype[np.int64]], tag: int) -> pa.Array:
    """A tag and a varint: seven bits to a byte, least first, the eighth bit says that more come."""
    rest = values.astype(np.uint64)
    rows = np.empty((len(values), 11), np.uint8)
    rows[:, 0] = tag
    lengths = np.full(len(values), 2)
    for place in range(1, 11):
        rows[:, place] = (rest & np.uint64(0x7F)).astype(np.uint8)
        rest = rest >> np.uint64(7)
        more = rest > 0
        rows[more, place] |= 0x80
        lengths += more
    return _binary(rows[np.arange(11) < lengths[:, None]].tobytes(), lengths)


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])


def _binary(content: bytes, lengths: np.ndarray[Any, Any]) -> pa.Array:
    """A binary array without NULL: its values one after the other, and how long each is."""
    offsets = np.zeros(len(lengths) + 1, np.int32)
    np.cumsum(lengths, out=offsets[1:])
    return pa.Array.from_buffers(pa.binary(), len(lengths), [None, pa.py_buffer(offsets), pa.py_buffer(content)])


def _serialised(values: list[Any], value_type: Any) -> pa.Array:
    return pa.array([m.SerializeToString() for m in _messages(values, value_type)], pa.binary())


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
