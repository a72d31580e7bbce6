from __future__ import annotations

import codecs
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest

from airloop.errors import BadInput, SchemaMismatch
from airloop.sources import csv_file
from airloop.sources.spec import SourceSpec

Make = Callable[..., SourceSpec]
Read = Callable[..., pa.Table]
HEADER = "id,at,value,note\n"


def test_values_get_their_declared_types(spec: Make, read: Read) -> None:
    table = read(spec(), HEADER + '1,2013-01-01T10:00:00-05:00,1.5,"a, ""b""\nc"\n 2 ,,,\n')
    assert table.to_pylist() == [
        {"id": 1, "at": datetime(2013, 1, 1, 15, tzinfo=UTC), "value": 1.5, "note": 'a, "b"\nc'},
        {"id": 2, "at": None, "value": None, "note": None},
    ]
    assert table.schema.field("at").type == pa.timestamp("us", tz="UTC")


def test_all_types(spec: Make, read: Read) -> None:
    kinds = ["boolean", "int", "long", "float", "double", "decimal(8,2)", "date", "timestamptz", "string"]
    source = spec(columns={"id": "long"} | {f"c{i}": kind for i, kind in enumerate(kinds)})
    header = ",".join(["id", *(f"c{i}" for i in range(len(kinds)))])
    (row,) = read(source, f"{header}\n1,true,-5,5000000000,1.5,1e3,12.25,2013-02-28,2013-01-01T00:00Z,x\n").to_pylist()
    assert list(row.values())[1:6] == [True, -5, 5_000_000_000, 1.5, 1000.0]
    assert row["c5"] == Decimal("12.25")
    assert row["c6"].isoformat() == "2013-02-28"


@pytest.mark.parametrize(
    ("content", "changed"),
    [
        (codecs.BOM_UTF8 + (HEADER + "1,,,ä\n").encode(), {}),
        ((HEADER + "1,,,ä\n").encode("cp1252"), {"csv": {"encoding": "cp1252"}}),
        ((HEADER + "1,,,ä\n").encode("utf-16"), {"csv": {"encoding": "utf-16"}}),
        ((HEADER + "1,,,ä\n").replace(",", ";").encode(), {"csv": {"delimiter": ";"}}),
        (b"\n\n" + (HEADER + "\n1,,,ä\n\n").encode(), {}),
        ((HEADER + "1,,,ä").replace("\n", "\r\n").encode(), {}),
        ("1,,,ä\n".encode(), {"csv": {"header": False}}),
        ((HEADER + "1,NA,NA,ä\n").encode(), {"csv": {"null": ["NA"]}}),
        (("note,value,at,id\nä,,,1\n").encode(), {}),
        ((HEADER + "1,,,'ä'\n").encode(), {"csv": {"quote": "'"}}),
    ],
)
def test_ways_to_write_a_file(spec: Make, read: Read, content: bytes, changed: dict[str, Any]) -> None:
    assert read(spec(**changed), content).to_pylist() == [{"id": 1, "at": None, "value": None, "note": "ä"}]


@pytest.mark.parametrize("content", [HEADER, HEADER.strip(), HEADER + "\n\n", HEADER.encode("utf-8-sig")])
def test_a_header_alone_is_a_file_without_rows(spec: Make, read: Read, content: str | bytes) -> None:
    assert read(spec(), content).num_rows == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"in\.csv is empty \(0 bytes\)"),
        ("\n\n", r"in\.csv holds only empty lines"),
        (
            "id;at;value;note\n1;;;\n",
            r"one column found where 4 are expected.*has 3 ';'; declare csv: {delimiter: ';'}",
        ),
        ("something else\n", r"one column found where 4 are expected.*'something else'; is this the right file"),
        ("id,at,value,note,note\n", r"the header names 'note' more than once"),
        (HEADER + "1,,,\n2,,\n", r"in\.csv: row 2 has 3 fields, expected are 4: '2,,'"),
        (HEADER + "1,,,\n2,,,,5\n", r"in\.csv: row 2 has 5 fields, expected are 4"),
        (HEADER + "1,,,\nx2,,,\n", r"row 2, column id: 'x2' is not a whole number of 64 bits"),
        (HEADER + "1,,,\n99999999999999999999,,,\n", r"row 2, column id: '9+' is not .*; it is out of range"),
        (HEADER + "1,,,\n2.0,,,\n", r"row 2, column id: '2.0' is not a whole number"),
        (HEADER + "1,,,\n,,,\n", r"row 2 has no value for id, which is required"),
        (HEADER + "1,,NA,\n", r"row 1, column value: 'NA' is not a number; if it means no value, add it to csv"),
        (HEADER + '1,,"1,5",\n', r"row 1, column value: '1,5' is not a number; decimals are written with a point"),
        (HEADER + "1,,1,\n2,,nan,\n", r"row 2, column value: nan is not a finite number.*allow_nan"),
        (HEADER + "1,,1,\n2,,-inf,\n", r"row 2, column value: -inf is not a finite number"),
        (
            HEADER + "1,2013-01-01T10:00:00,,\n",
            r"row 1, column at: '2013-01-01T10:00:00' is not an instant with its offset",
        ),
        (HEADER + "1,2013-13-01T10:00:00Z,,\n", r"row 1, column at: '2013-13-01T10:00:00Z' is not an instant"),
        (HEADER + '1,,,"never closed\n2,,,\n', r"in\.csv: a quote in row 1 is never closed; close it"),
        (HEADER + '1,,,"x\ny"\n2,,,z\n3,,,"q\n4,,,\n5,,,\n', r"a quote in row 3 is never closed"),
        (
            HEADER.encode() + b"1,,,a\n2,,,b\xe4\n",
            r"byte 28 \(from 0\) is not utf-8 \(row 2, column note\); declare the",
        ),
        (HEADER.encode() + b"1,,,a\n2,,\xe4,\n", r"byte \d+ \(from 0\) is not utf-8 \(row 2, column value\)"),
        ("id,at,välue,note\n".encode("latin-1"), r"byte 7 \(from 0\), in line 1 is not utf-8"),
        (HEADER.encode("utf-16"), r"in\.csv is UTF-16, declared is utf-8; declare encoding: utf-16"),
        (HEADER.encode("utf-16-le"), r"in\.csv holds NUL characters"),
        (b"\x1f\x8b\x08\x00", r"in\.csv is a gzip file.*declare compression: gzip"),
        (b"PK\x03\x04", r"in\.csv is a zip file"),
        (b"PAR1", r"in\.csv is a parquet file.*declare format: parquet"),
    ],
)
def test_bad_files_are_named_with_row_and_column(spec: Make, read: Read, content: str | bytes, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        read(spec(), content)


def test_a_row_is_named_wherever_it_is(spec: Make, read: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_file, "BLOCK", 4096)
    good = "".join(f'{i},,,"two\nlines"\n' for i in range(1, 3001))
    with pytest.raises(BadInput, match=r"row 3,001, column value: 'x'"):
        read(spec(), HEADER + good + "3001,,x,\n")
    with pytest.raises(BadInput, match=r"row 3,001 has 2 fields"):
        read(spec(), HEADER + good + "3001,\n")
    with pytest.raises(BadInput, match=r"row 3,001, column value: inf"):
        read(spec(), HEADER + good + "3001,,inf,\n")
    with pytest.raises(BadInput, match=r"row after row 3,000 is longer than|a row after row \d"):
        read(spec(), HEADER + good + '3001,,,"' + "x" * 9000)


def test_a_column_of_another_type_is_a_changed_schema(spec: Make, read: Read) -> None:
    with pytest.raises(SchemaMismatch, match=r"column id changed its type: declared long, found double, e\.g\. '1\.5'"):
        read(spec(), HEADER + "1.5,,,\n2.5,,,\n3.5,,,\n")
    with pytest.raises(SchemaMismatch, match=r"column value changed its type: declared double, found string"):
        read(spec(), HEADER + "1,,a,\n2,,b,\n3,,c,\n")


def test_a_quote_inside_a_value_is_a_character(spec: Make, read: Read) -> None:
    assert read(spec(), HEADER + '1,,,5" pipe\n2,,,x\n').column("note").to_pylist() == ['5" pipe', "x"]
    escaped = read(spec(csv={"escape": "\\"}), HEADER + '1,,,"5\\" pipe"\n2,,,x\n')
    assert escaped.column("note").to_pylist() == ['5" pipe', "x"]


def test_without_header_the_number_of_fields_counts(spec: Make, read: Read) -> None:
    with pytest.raises(BadInput, match="row 1 has 3 fields, 4 columns are declared"):
        read(spec(csv={"header": False}), "1,,\n")
    with pytest.raises(BadInput, match="row 2, column id: 'x'"):
        read(spec(csv={"header": False}), "1,,,\nx,,,\n")


def test_a_wrong_encoding_is_named_by_byte(spec: Make, read: Read) -> None:
    with pytest.raises(BadInput, match=r"byte 21 \(from 0\).* is not ascii"):
        read(spec(csv={"encoding": "ascii"}), HEADER.encode() + "1,,,ä\n".encode())


def test_nan_where_it_is_allowed(spec: Make, read: Read) -> None:
    source = spec(columns={"id": "long", "value": {"type": "double", "allow_nan": True}})
    assert str(read(source, "id,value\n1,nan\n2,inf\n").column("value").to_pylist()) == "[nan, inf]"


def test_columns_under_another_name(spec: Make, read: Read) -> None:
    source = spec(columns={"id": "long", "delay": {"type": "double", "source": "Departure delay (min)"}})
    assert read(source, "Departure delay (min),id\n1.5,1\n").to_pylist() == [{"id": 1, "delay": 1.5}]
    with pytest.raises(BadInput, match=r"row 1, column Departure delay \(min\): 'x'"):
        read(source, "Departure delay (min),id\nx,1\n")
