"""JSON lines, one object a line, streamed as Arrow record batches; every error names row and field."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.json as arrow_json

from airloop.errors import BadInput
from airloop.sources.spec import SourceSpec
from airloop.sources.streams import Data, as_utf8, undecodable
from airloop.sources.types import LOCAL, arrow_type, name_of, widens
from airloop.sources.values import cast, changed_type, unparsable

BLOCK = 4 << 20
"""Bytes parsed at a time."""
LONGEST = 64 << 20
"""Bytes; a longer line is refused."""
_AS_TEXT = ("date", LOCAL, "timestamptz")
"""JSON has no such types; Arrow's own reader would take a time without offset for UTC."""


def inspect(data: Data, spec: SourceSpec) -> dict[str, str]:
    """
    Fields that are there in any row; types only of those that are not declared.

    The whole file is looked at: a field may first come in its last line.

    :raises BadInput: a line is no JSON object, or a value is not of the declared type.
    """
    declared = {column.source or name: column.kind for name, column in spec.columns.items()}
    found: dict[str, str] = {}
    for chunk, first_row in _chunks(data):
        table = _parse(data.label, chunk, first_row, declared, "infer")
        for field, values in zip(table.schema, table.columns, strict=True):
            if field.name in declared:
                # Arrow gives declared fields in any case; absent and null look alike.
                if values.null_count < len(values) or f'"{field.name}"'.encode() in chunk:
                    found.setdefault(field.name, "")
            elif field.name not in spec.ignore:
                kind = "" if pa.types.is_null(field.type) else name_of(field.type) or "nested"
                found[field.name] = _wider(data.label, field.name, found.get(field.name, ""), kind)
    return found


def infer(data: Data, spec: SourceSpec, names: list[str]) -> dict[str, str]:
    """Canonical types of fields that are not declared, from all of their values."""
    found = inspect(data, spec)
    return {name: found[name] or "string" for name in names}


def read(data: Data, spec: SourceSpec, wanted: Mapping[str, str]) -> Iterator[pa.RecordBatch]:
    """
    Batches with the fields asked for; a field that a row lacks is null.

    :param wanted: canonical type by name in the file.
    :raises BadInput: a line is no JSON object, or a value is not of its type.
    """
    for chunk, first_row in _chunks(data):
        table = _parse(data.label, chunk, first_row, wanted, "ignore")
        for batch in table.combine_chunks().to_batches():
            columns = {
                name: cast(batch.column(name), kind, label=data.label, column=name, first_row=first_row)
                for name, kind in wanted.items()
            }
            yield pa.RecordBatch.from_pydict(columns)
            first_row += batch.num_rows


def _wider(label: str, name: str, one: str, other: str) -> str:
    if not one or not other or widens(other, one):
        return one or other
    if widens(one, other) or {one, other} <= {"int", "long", "float", "double"}:
        return other if widens(one, other) else "double"
    raise BadInput(
        f"{label}: the values of {name}, which is not declared, are {one} and {other}", "declare or ignore it"
    )


def _chunks(data: Data) -> Iterator[tuple[bytes, int]]:
    """Whole lines, about :data:`BLOCK` bytes at a time, and the data row of the first; empty lines do not count."""
    row = 1
    position = 0
    rest = b""
    with as_utf8(data, "utf-8") as stream:
        while True:
            block = stream.read(BLOCK)
            if not block and not rest:
                return
            cut = block.rfind(b"\n") + 1 if block else 0
            chunk, rest = (rest + block[:cut], block[cut:]) if cut else (b"", rest + block)
            if not block:
                chunk, rest = rest, b""
            if len(rest) > LONGEST:
                raise BadInput(f"{data.label}: the line of row {row:,} is longer than {LONGEST:,} bytes", "split it")
            if not chunk.strip():
                position += len(chunk)
                continue
            try:
                chunk.decode("utf-8")
            except UnicodeDecodeError as cause:
                at = row + sum(1 for line in chunk[: cause.start].split(b"\n")[:-1] if line.strip())
                raise undecodable(data.label, "utf-8", position + cause.start, f", in row {at:,}") from cause
            yield chunk, row
            position += len(chunk)
            row += len(_lines(chunk))


def _lines(chunk: bytes) -> list[bytes]:
    return [line for line in chunk.split(b"\n") if line.strip()]


def _parse(label: str, chunk: bytes, first_row: int, wanted: Mapping[str, str], unexpected: str) -> pa.Table:
    try:
        return _arrow(chunk, wanted, unexpected)
    except pa.ArrowInvalid as cause:
        raise _explained(label, chunk, first_row, wanted, unexpected, str(cause)) from cause


def _arrow(chunk: bytes, wanted: Mapping[str, str], unexpected: str) -> pa.Table:
    kinds = {name: arrow_type("string" if kind in _AS_TEXT else kind) for name, kind in wanted.items()}
    return arrow_json.read_json(
        io.BytesIO(chunk),
        read_options=arrow_json.ReadOptions(use_threads=False, block_size=max(len(chunk), 1 << 16)),
        parse_options=arrow_json.ParseOptions(
            explicit_schema=pa.schema(kinds), unexpected_field_behavior=unexpected, newlines_in_values=False
        ),
    )


def _explained(
    label: str, chunk: bytes, first_row: int, wanted: Mapping[str, str], unexpected: str, message: str
) -> BadInput:
    """The first line that Arrow does not take, and what is wrong in it."""
    lines = _lines(chunk)
    low, high = 0, len(lines)  # the first low lines are fine together, the first high ones are not
    while high - low > 1:
        middle = (low + high) // 2
        if _fine(b"\n".join(lines[:middle]), wanted, unexpected):
            low = middle
        else:
            high = middle
    row, line = first_row + low, lines[low]
    try:
        value = json.loads(line)
    except ValueError as cause:
        advice = "the file may be truncated; send it again" if low == len(lines) - 1 else "one object a line"
        return BadInput(f"{label}: row {row:,} is not JSON: {cause}", advice)
    if not isinstance(value, dict):
        return BadInput(f"{label}: row {row:,} is a {type(value).__name__}, not an object", "one object a line")
    for name, kind in wanted.items():
        if name in value and not _fine(json.dumps({name: value[name]}).encode(), {name: kind}, unexpected):
            following = [_field(text, name) for text in lines[low : low + 1_000]]
            others = [v for v in following if v is not None]
            wrong = [v for v in others if not _fine(json.dumps({name: v}).encode(), {name: kind}, unexpected)]
            if len(others) >= 3 and len(wrong) == len(others):
                return changed_type(label, row, name, value[name], kind, type(value[name]).__name__)
            return unparsable(label, row, name, value[name], kind)
    return BadInput(f"{label}: row {row:,}: {message}", "every row of a field has one type; declare or ignore it")


def _field(line: bytes, name: str) -> Any:
    try:
        return json.loads(line).get(name)
    except (ValueError, AttributeError):
        return None


def _fine(chunk: bytes, wanted: Mapping[str, str], unexpected: str) -> bool:
    try:
        _arrow(chunk, wanted, unexpected)
    except pa.ArrowInvalid:
        return False
    return True
