"""Arguments of expectations as values that a column of a given type can be compared with."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime
from typing import Any

import pyarrow as pa


class Unfit(Exception):
    """A rule cannot be evaluated on columns of these types."""


def family(kind: pa.DataType) -> str:
    """``number``, ``text``, ``time``, ``date``, ``truth``, or the type's own name where nothing is comparable."""
    if pa.types.is_boolean(kind):
        return "truth"
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return "number"
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return "text"
    if pa.types.is_timestamp(kind):
        return "time"
    return "date" if pa.types.is_date(kind) else str(kind)


def fit(value: Any, kind: pa.DataType) -> pa.Scalar:
    """
    An argument of an expectation as a scalar that a column of this type can be compared with.

    :raises Unfit: the two are not comparable; Great Expectations on pandas fails there too, or calls all rows bad.
    """
    group = family(kind)
    if group == "number" and isinstance(value, int | float) and not isinstance(value, bool):
        whole = isinstance(value, float) and value.is_integer() and abs(value) < 2**53
        number = int(value) if whole and pa.types.is_integer(kind) else value
        if isinstance(number, int) and abs(number) >= 2**63:
            number = float(number)
        return pa.scalar(number)
    if group == "truth" and isinstance(value, bool):
        return pa.scalar(value)
    if group == "text" and isinstance(value, str):
        return pa.scalar(value, kind)
    if group in ("time", "date") and isinstance(value, str | datetime | date):
        return _moment(value, kind)
    raise Unfit(f"{value!r} cannot be compared with values of type {kind}")


def _moment(value: str | date, kind: pa.DataType) -> pa.Scalar:
    from dateutil.parser import parse  # type: ignore[import-untyped]

    try:
        moment = parse(value) if isinstance(value, str) else value
    except (ValueError, OverflowError) as cause:
        raise Unfit(f"{value!r} is no date or time: {cause}") from cause
    if pa.types.is_date(kind):
        return pa.scalar(moment.date() if isinstance(moment, datetime) else moment, kind)
    if not isinstance(moment, datetime):
        moment = datetime(moment.year, moment.month, moment.day)
    if (moment.tzinfo is None) != (kind.tz is None):
        raise Unfit(f"{value!r} has {'no' if moment.tzinfo is None else 'a'} time zone, the column has type {kind}")
    return pa.scalar(moment.astimezone(UTC) if moment.tzinfo else moment, kind)


def value_set(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """
    A set of an expectation as an array of the type in which values are looked up; missing values left out.

    :raises Unfit: one of the values cannot be equal to any value of the column.
    """
    scalars = [fit(v, kind) for v in values if v is not None and v == v]
    if family(kind) != "number":
        return pa.array([s.as_py() for s in scalars], kind)
    numbers = [s.as_py() for s in scalars]
    if pa.types.is_integer(kind):
        # A fraction equals no whole number; a number that the type cannot hold equals none of its values.
        limit = 2 ** (kind.bit_width - (0 if pa.types.is_unsigned_integer(kind) else 1))
        least = 0 if pa.types.is_unsigned_integer(kind) else -limit
        return pa.array([n for n in numbers if isinstance(n, int) and least <= n < limit], kind)
    return pa.array([float(n) for n in numbers], pa.float64())
