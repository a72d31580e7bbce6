"""CSV, streamed as Arrow record batches; every error names row and column."""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.csv as arrow_csv

from airloop.errors import BadInput
from airloop.sources.spec import SourceSpec
from airloop.sources.streams import Counted, Data, Recoded, as_utf8, undecodable
from airloop.sources.types import arrow_type
from airloop.sources.values import TypeGuess, castable, changed_type, shown, unparsable

BLOCK = 4 << 20
"""Bytes parsed at a time; also the longest row."""
_HEADER = 1 << 20
_VALUE = re.compile(r"In CSV column #(\d+): Row #(\d+): (.*)", re.S)
_RAGGED = re.compile(r"CSV parse error: Row #(\d+): Expected (\d+) columns, got (\d+): (.*)", re.S)
_SAMPLE = 1_000
"""Values looked at to tell a wrong value from a column that changed its type."""


def inspect(data: Data, spec: SourceSpec) -> dict[str, str]:
    """
    Columns of the file in its order; types are empty, text has none.

    :raises BadInput: no header, a name in it twice, or another delimiter.
    """
    return dict.fromkeys(_names(data, spec), "")


def infer(data: Data, spec: SourceSpec, names: list[str]) -> dict[str, str]:
    """Canonical types of columns that are not declared, from all of their values."""
    guesses = {name: TypeGuess() for name in names}
    for batch in read(data, spec, dict.fromkeys(names, "string")):
        for name, guess in guesses.items():
            guess.add(batch.column(name))
    return {name: guess.kind for name, guess in guesses.items()}


def read(data: Data, spec: SourceSpec, wanted: Mapping[str, str]) -> Iterator[pa.RecordBatch]:
    """
    Batches with the columns asked for.

    :param wanted: canonical type by name in the file; all of them are in it.
    :raises BadInput: a row has too few or too many fields, or a value cannot be read as its type.
    """
    names = _names(data, spec)
    kinds = {name: arrow_type(kind) for name, kind in wanted.items()}
    with as_utf8(data, spec.csv.encoding) as raw:
        rows = 0
        stream = Counted(raw, spec.csv.quote.encode(), spec.csv.escape.encode())
        try:
            reader = _open(cast(BinaryIO, stream), spec, names, kinds)
            for batch in reader:
                rows += batch.num_rows
                yield batch
        except pa.ArrowInvalid as cause:
            if "Empty CSV file or block" in str(cause) and not rows and spec.csv.header and _only_header(data, spec):
                return  # not even a line's end after it
            raise _explained(data, spec, names, wanted, rows, str(cause)) from cause
        except KeyError as cause:
            raise BadInput(
                f"{data.label}: the header cannot be read: {cause}", "check quotes and delimiter of the first line"
            ) from cause
        if stream.found % 2:
            _refuse_open_quote(data, spec)


def _open(
    stream: BinaryIO, spec: SourceSpec, names: list[str], kinds: Mapping[str, pa.DataType]
) -> arrow_csv.CSVStreamingReader:
    # One thread: only then do Arrow's errors name the row. It is as fast, for the threads fight over the GIL to read.
    return arrow_csv.open_csv(
        stream,
        read_options=arrow_csv.ReadOptions(
            use_threads=False, block_size=BLOCK, column_names=None if spec.csv.header else names
        ),
        parse_options=arrow_csv.ParseOptions(
            delimiter=spec.csv.delimiter,
            quote_char=spec.csv.quote or False,
            escape_char=spec.csv.escape or False,
            newlines_in_values=bool(spec.csv.quote),
            ignore_empty_lines=len(names) > 1,
        ),
        convert_options=arrow_csv.ConvertOptions(
            column_types=dict(kinds),
            include_columns=list(kinds),
            null_values=list(spec.csv.null),
            strings_can_be_null=True,
            true_values=["true", "True", "TRUE", "1"],
            false_values=["false", "False", "FALSE", "0"],
        ),
    )


def _names(data: Data, spec: SourceSpec) -> list[str]:
    """Column names by the header, or as declared if there is none."""
    with as_utf8(data, spec.csv.encoding) as stream:
        start = b""
        while len(start) < _HEADER and (chunk := stream.read(_HEADER - len(start))):
            start += chunk
    try:
        # The cut may go through a character.
        text = codecs.getincrementaldecoder("utf-8")().decode(start, final=len(start) < _HEADER)
    except UnicodeDecodeError as cause:
        if b"\n" not in start[: cause.start]:
            raise undecodable(data.label, spec.csv.encoding, cause.start, ", in line 1") from cause
        # Further down: the row and the column are told when they are read.
        text = start[: cause.start].decode()
    if "\x00" in text:
        raise BadInput(
            f"{data.label} holds NUL characters, as no text does",
            "it may be UTF-16 (declare csv: {encoding: utf-16}) or a binary file",
        )
    rows = csv.reader(io.StringIO(text, newline=""), **_dialect(spec))
    try:
        first = next((row for row in rows if row), [])
    except csv.Error as cause:
        raise BadInput(f"{data.label}: the first line cannot be read: {cause}", "is it CSV?") from cause
    if not first:
        raise BadInput(f"{data.label} holds only empty lines", "a file without rows has at least its header")
    declared = list(spec.in_file.values())
    if len(first) == 1 and len(declared) > 1 and first[0] not in declared:
        raise _one_column(data, spec, first[0], len(declared))
    if not spec.csv.header:
        if len(first) != len(declared):
            raise BadInput(
                f"{data.label}: row 1 has {len(first)} fields, {len(declared)} columns are declared",
                "a file without header has all columns in the declared order",
            )
        return declared
    doubled = sorted({name for name in first if first.count(name) > 1})
    if doubled:
        raise BadInput(
            f"{data.label}: the header names {', '.join(map(repr, doubled))} more than once", "names must be different"
        )
    return first


def _refuse_open_quote(data: Data, spec: SourceSpec) -> None:
    """
    Arrow takes a quote that is never closed for one long value, and the rows in it would be lost.

    :raises BadInput: there is one. An odd number of quotes can also be a stray one inside a value, which is fine.
    """
    row = 0 if spec.csv.header else 1
    with as_utf8(data, spec.csv.encoding) as stream:
        lines = codecs.getreader("utf-8")(stream)
        try:
            for fields in csv.reader(lines, strict=True, **_dialect(spec)):
                row += bool(fields)
        except csv.Error as cause:
            if "unexpected end of data" in str(cause):
                raise BadInput(
                    f"{data.label}: a quote in row {max(row, 1):,} is never closed",
                    "close it; without that the rest of the file is one value",
                ) from cause


def _dialect(spec: SourceSpec) -> dict[str, Any]:
    quoting: dict[str, Any] = {"quotechar": spec.csv.quote} if spec.csv.quote else {"quoting": csv.QUOTE_NONE}
    escaping = {"escapechar": spec.csv.escape, "doublequote": False} if spec.csv.escape else {}
    return {"delimiter": spec.csv.delimiter, **quoting, **escaping}


def _only_header(data: Data, spec: SourceSpec) -> bool:
    with as_utf8(data, spec.csv.encoding) as stream:
        return b"\n" not in stream.read(_HEADER).strip()


def _one_column(data: Data, spec: SourceSpec, header: str, expected: int) -> BadInput:
    counts = {d: header.count(d) for d in (",", ";", "\t", "|") if d != spec.csv.delimiter and header.count(d)}
    found = f"{data.label}: one column found where {expected} are expected, with {spec.csv.delimiter!r} as delimiter"
    if not counts:
        return BadInput(f"{found}; the first line is {shown(header)}", "is this the right file?")
    likely = max(counts, key=lambda d: counts[d])
    return BadInput(
        f"{found}; the first line has {counts[likely]} {likely!r}", f"declare csv: {{delimiter: {likely!r}}}"
    )


def _explained(
    data: Data, spec: SourceSpec, names: list[str], wanted: Mapping[str, str], rows: int, message: str
) -> BadInput:
    """What Arrow found, with row and column as people count them."""
    header = 1 if spec.csv.header else 0
    if match := _RAGGED.match(message):
        row, expected, got = int(match[1]) - header, match[2], match[3]
        return BadInput(
            f"{data.label}: row {row:,} has {got} fields, expected are {expected}: {shown(match[4])}",
            "a value that holds the delimiter must be quoted"
            if int(got) > int(expected)
            else "the row is cut off, or a quote in it is never closed; send the file again",
        )
    if match := _VALUE.match(message):
        column, row = names[int(match[1])], int(match[2]) - header
        if "invalid UTF8" in match[3]:
            return _not_utf8(data, spec, row, column)
        values = _values_from(data, spec, names, column, row)
        if not len(values):
            return BadInput(f"{data.label}: row {row:,}, column {column}: {match[3]}", "correct the file")
        kind = wanted[column]
        value = values[0].as_py()
        present = values.drop_null()
        if not _is_text(value):
            return _not_utf8(data, spec, row, column)
        if len(present) >= 3 and not any(castable(present[i : i + 1], arrow_type(kind)) for i in range(len(present))):
            guess = TypeGuess()
            guess.add(present)
            if guess.kind != kind:
                return changed_type(data.label, row, column, value, kind, guess.kind)
        return unparsable(data.label, row, column, value, kind)
    if "straddling" in message:
        return BadInput(
            f"{data.label}: a row after row {rows:,} is longer than {BLOCK:,} bytes",
            "a quote that is opened and never closed does that; look for it from there on",
        )
    return BadInput(f"{data.label}, after row {rows:,}: {message}", "correct the file")


def _is_text(value: object) -> bool:
    return not (isinstance(value, str) and "\ufffd" in value)


def _values_from(data: Data, spec: SourceSpec, names: list[str], column: str, row: int) -> pa.Array:
    """Up to :data:`_SAMPLE` texts of a column from a data row on."""
    found: list[str | None] = []
    at = 1
    # A ragged row further on ends the sample: what was found before it is enough.
    with as_utf8(data, spec.csv.encoding) as stream, suppress(pa.ArrowInvalid):
        for batch in _open(stream, spec, names, {column: pa.binary()}):
            if at + batch.num_rows > row:
                skip = max(row - at, 0)
                texts = batch.column(0)[skip : skip + _SAMPLE - len(found)]
                found += [None if v is None else v.decode("utf-8", "replace") for v in texts.to_pylist()]
                if len(found) >= _SAMPLE:
                    break
            at += batch.num_rows
    return pa.array(found, pa.string())


def _not_utf8(data: Data, spec: SourceSpec, row: int, column: str) -> BadInput:
    """Where the first byte is that is no UTF-8."""
    with data.open() as raw:
        recoded = Recoded(raw, data.label, "utf-8")
        try:
            while recoded.read(BLOCK):
                continue
        except BadInput as found:
            return BadInput(f"{found.found} (row {row:,}, column {column})", found.advice)
    return BadInput(f"{data.label}: row {row:,}, column {column} is not {spec.csv.encoding}", "send it as UTF-8")
