"""
Column types as sources declare them: the names of Iceberg, their Arrow and DuckDB counterparts.

==================  =========================================================================
``boolean``         true, false; 1, 0
``int``, ``long``   whole numbers of 32 and 64 bits
``float``, ``double``  IEEE numbers; NaN and infinity only where a column allows them
``decimal(p,s)``    exact, ``p`` digits of which ``s`` are behind the point
``date``            calendar day, ISO 8601
``timestamptz``     instant, microseconds UTC; text carries an offset (``Z``, ``+01:00``), or the column a ``zone``
``string``          Unicode text
==================  =========================================================================

``bool``, ``int32``, ``int64``, ``float32`` and ``float64`` are understood too.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa

LOCAL = "timestamp"
"""A time without a zone, as files may hold it; tables do not."""
ALIASES = {"bool": "boolean", "int32": "int", "int64": "long", "float32": "float", "float64": "double"}
_DUCKDB = {
    "boolean": "BOOLEAN",
    "int": "INTEGER",
    "long": "BIGINT",
    "float": "FLOAT",
    "double": "DOUBLE",
    "date": "DATE",
    "timestamptz": "TIMESTAMPTZ",
    "string": "VARCHAR",
}
_DECIMAL = re.compile(r"decimal\(\s*(\d{1,2})\s*,\s*(\d{1,2})\s*\)")


def type_name(text: str) -> str:
    """
    The canonical name of a type as people write it.

    :raises ValueError: there is no such type.
    """
    name = ALIASES.get(text.strip().lower(), text.strip().lower())
    if name == LOCAL:
        raise ValueError(
            "a time without a zone names no instant; write timestamptz, and `zone` if the file has local times"
        )
    if name in _DUCKDB:
        return name
    if match := _DECIMAL.fullmatch(name):
        precision, scale = int(match[1]), int(match[2])
        if 1 <= precision <= 38 and scale <= precision:
            return f"decimal({precision},{scale})"
        raise ValueError(f"{text!r} is out of range; at most 38 digits, not more of them behind the point")
    raise ValueError(f"there is no type {text!r}; types: {', '.join(_DUCKDB)}, decimal(p,s)")


def duckdb_type(name: str) -> str:
    """The DuckDB type of a canonical name."""
    return _DUCKDB.get(name) or name.upper()


def arrow_type(name: str) -> pa.DataType:
    """The Arrow type of a canonical name."""
    import pyarrow as pa

    if match := _DECIMAL.fullmatch(name):
        return pa.decimal128(int(match[1]), int(match[2]))
    types: dict[str, pa.DataType] = {
        "boolean": pa.bool_(),
        "int": pa.int32(),
        "long": pa.int64(),
        "float": pa.float32(),
        "double": pa.float64(),
        "date": pa.date32(),
        LOCAL: pa.timestamp("us"),
        "timestamptz": pa.timestamp("us", tz="UTC"),
        "string": pa.string(),
    }
    return types[name]


def name_of(data_type: pa.DataType) -> str:
    """
    The canonical name that holds every value of an Arrow type; empty if there is none (nested, binary, time of day).

    Unsigned and short integers widen, other time units become microseconds, dictionaries become their values.
    """
    import pyarrow as pa

    if pa.types.is_dictionary(data_type):
        return name_of(data_type.value_type)
    if pa.types.is_decimal(data_type):
        return f"decimal({data_type.precision},{data_type.scale})" if data_type.scale >= 0 else ""
    if pa.types.is_timestamp(data_type):
        return "timestamptz" if data_type.tz else LOCAL
    if pa.types.is_integer(data_type):
        small = data_type.bit_width < 32 or data_type == pa.int32()
        return "int" if small else "long"
    if pa.types.is_floating(data_type):
        return "double" if data_type == pa.float64() else "float"
    if pa.types.is_boolean(data_type):
        return "boolean"
    if pa.types.is_date(data_type):
        return "date"
    if pa.types.is_string(data_type) or pa.types.is_large_string(data_type) or pa.types.is_string_view(data_type):
        return "string"
    if pa.types.is_null(data_type):
        return "string"
    return ""


_WIDER = {("int", "long"), ("int", "double"), ("float", "double"), ("date", LOCAL)}


def widens(narrow: str, wide: str) -> bool:
    """Whether every value of one type can be kept, unchanged, in another."""
    if narrow == wide or (narrow, wide) in _WIDER:
        return True
    a, b = _DECIMAL.fullmatch(narrow), _DECIMAL.fullmatch(wide)
    if a and b:
        return int(b[2]) >= int(a[2]) and int(b[1]) - int(b[2]) >= int(a[1]) - int(a[2])
    return False
