"""Checks of values, vectorised; a failure names the first row that it finds."""

from __future__ import annotations

import re
from collections.abc import Mapping

import pyarrow as pa
import pyarrow.compute as pc

from airloop.errors import BadInput, SchemaMismatch
from airloop.sources.types import arrow_type, name_of

SHOWN = 80
"""Characters of a value that an error shows."""


def shown(value: object) -> str:
    """A value as errors show it: on one line and not too long."""
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}… ({len(text):,} characters)"


def unparsable(label: str, row: int, column: str, value: object, kind: str) -> BadInput:
    """The error for a value that is not of the declared type."""
    return BadInput(
        f"{label}: row {row:,}, column {column}: {shown(value)} is not {_a(kind)}{_hint(value, kind)}",
        "correct the file, or the column's type or null texts in the source",
    )


def changed_type(label: str, row: int, column: str, value: object, kind: str, found: str) -> SchemaMismatch:
    """The error for a column that holds another type altogether."""
    return SchemaMismatch(
        f"{label}: column {column} changed its type: declared {kind}, found {found}, "
        f"e.g. {shown(value)} in row {row:,}",
        "declare the new type under a new name, or have the file made as before",
    )


def _a(kind: str) -> str:
    return {
        "int": "a whole number of 32 bits (-2,147,483,648 to 2,147,483,647)",
        "long": "a whole number of 64 bits",
        "boolean": "true, false, 1 or 0",
        "date": "a date such as 2013-01-31",
        "timestamp": "a date and time without offset such as 2013-01-31T23:59:00",
        "timestamptz": "an instant with its offset such as 2013-01-31T23:59:00Z",
        "float": "a number",
        "double": "a number",
        "string": "text",
    }.get(kind, f"a {kind}")


def _hint(value: object, kind: str) -> str:
    if not isinstance(value, str):
        return ""
    if value.strip().upper() in ("", "NA", "N/A", "NULL", "NONE", "NAN", "\\N", "-"):
        return "; if it means no value, add it to csv: {null: […]}"
    if kind in ("int", "long") and re.fullmatch(r"\s*[+-]?\d+\s*", value):
        return "; it is out of range"
    if kind in ("float", "double") and re.fullmatch(r"\s*[+-]?\d{1,3}([.,' ]\d{3})*,\d+\s*", value):
        return "; decimals are written with a point"
    return ""


def cast(values: pa.Array, kind: str, *, label: str, column: str, first_row: int) -> pa.Array:
    """
    Values of one type as another, exactly.

    :param kind: canonical name of the type wanted.
    :param first_row: data row of the first value, 1-based.
    :raises BadInput: one cannot be kept unchanged.
    """
    target = arrow_type(kind)
    if values.type == target:
        return values
    if pa.types.is_string(values.type) and kind not in ("string", "boolean"):
        values = pc.utf8_trim_whitespace(values)
    try:
        return pc.cast(values, target)
    except pa.ArrowInvalid:
        index = _first_failing(values, target)
        raise unparsable(label, first_row + index, column, values[index].as_py(), kind) from None


def _first_failing(values: pa.Array, target: pa.DataType) -> int:
    low, high = 0, len(values)  # the prefix of length low casts, that of length high does not
    while high - low > 1:
        middle = (low + high) // 2
        if castable(values[low:middle], target):
            low = middle
        else:
            high = middle
    return low


def castable(values: pa.Array, target: pa.DataType) -> bool:
    """Whether every value can be had as another type, exactly."""
    try:
        pc.cast(values, target)
    except pa.ArrowInvalid:
        return False
    return True


def check(
    batch: pa.RecordBatch,
    required: set[str],
    nan_allowed: set[str],
    *,
    label: str,
    first_row: int,
    rows: pa.Array = None,
) -> None:
    """
    Required columns have values, numbers are finite.

    :param rows: data row of each row of the batch, if they do not follow each other from ``first_row``.
    :raises BadInput: naming row and column.
    """

    def row_of(index: int) -> int:
        return int(rows[index].as_py()) if rows is not None else first_row + index

    for name, values in zip(batch.schema.names, batch.columns, strict=True):
        if name in required and values.null_count:
            row = row_of(pc.index(pc.is_null(values), pa.scalar(True)).as_py())
            raise BadInput(
                f"{label}: row {row:,} has no value for {name}, which is required",
                "complete the row, or declare the column nullable (those of the key cannot be)",
            )
        if pa.types.is_floating(values.type) and name not in nan_allowed:
            finite = pc.is_finite(values)
            if pc.all(finite).as_py() is False:
                index = pc.index(finite, pa.scalar(False)).as_py()
                raise BadInput(
                    f"{label}: row {row_of(index):,}, column {name}: {values[index].as_py()} is not a finite number",
                    "correct the file; or add its text to the null texts; or declare allow_nan for the column",
                )


INFERRED = ("boolean", "long", "double", "date", "timestamptz")
"""Types that text is taken for if every value of the column is one, the first that fits; else it is a string."""


class TypeGuess:
    """The type of a text column, guessed conservatively from all of its values."""

    def __init__(self) -> None:
        self._left = list(INFERRED)
        self._seen = False

    def add(self, values: pa.Array) -> None:
        values = values.drop_null()
        if not len(values):
            return
        self._seen = True
        if pc.any(pc.match_substring_regex(values, r"^[+-]?0\d")).as_py():
            self._drop("long", "double")
        # "1" and "0" alone are more likely numbers.
        if not pc.all(pc.match_substring_regex(values, r"(?i)^(true|false)$")).as_py():
            self._drop("boolean")
        for kind in list(self._left):
            if not castable(values, arrow_type(kind)):
                self._drop(kind)
        if "double" in self._left and not pc.all(pc.is_finite(pc.cast(values, pa.float64()))).as_py():
            self._drop("double")

    def _drop(self, *kinds: str) -> None:
        self._left = [kind for kind in self._left if kind not in kinds]

    @property
    def kind(self) -> str:
        return self._left[0] if self._seen and self._left else "string"


def conform(
    batch: pa.RecordBatch, wanted: Mapping[str, tuple[str, str]], *, label: str, first_row: int
) -> pa.RecordBatch:
    """
    The columns asked for, under their names in the table and with their types; those that are missing are null.

    :param wanted: ``(name in the file, canonical type)`` by name in the table.
    """
    present = set(batch.schema.names)
    columns = {
        name: cast(batch.column(in_file), kind, label=label, column=in_file, first_row=first_row)
        if in_file in present
        else pa.nulls(batch.num_rows, arrow_type(kind))
        for name, (in_file, kind) in wanted.items()
    }
    return pa.RecordBatch.from_pydict(columns)


def kind_of(values: pa.Array) -> str:
    """Canonical type of an array; ``nested`` if a table cannot hold it."""
    return name_of(values.type) or "nested"
