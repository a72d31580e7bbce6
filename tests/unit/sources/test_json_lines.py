from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import pyarrow as pa
import pytest

from airloop.errors import BadInput, SchemaMismatch
from airloop.sources import json_lines
from airloop.sources.spec import SourceSpec

Make = Callable[..., SourceSpec]
Read = Callable[..., pa.Table]
FIRST = '{"id": 1, "at": "2013-01-01T05:00:00Z", "value": 1, "note": "ä"}\n'


@pytest.fixture
def source(spec: Make) -> SourceSpec:
    return spec(format="jsonl")


def test_values_get_their_declared_types(source: SourceSpec, read: Read) -> None:
    table = read(source, FIRST + '\n{"note": null, "id": 2}')
    assert table.to_pylist() == [
        {"id": 1, "at": datetime(2013, 1, 1, 5, tzinfo=UTC), "value": 1.0, "note": "ä"},
        {"id": 2, "at": None, "value": None, "note": None},
    ]


def test_fields_that_are_not_declared_are_typed_by_all_rows(source: SourceSpec, read: Read, monkeypatch) -> None:
    monkeypatch.setattr(json_lines, "BLOCK", 256)
    rows = "".join(f'{{"id": {i}, "extra": {i}}}\n' for i in range(2, 100))
    table = read(source, FIRST + rows + '{"id": 100, "extra": 0.5, "late": "x"}\n')
    assert table.num_rows == 100
    assert table.schema.field("extra").type == pa.float64()
    assert table.column("late").to_pylist()[-1] == "x"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": 2', r"row 2 is not JSON: .*; the file may be truncated"),
        ("[1, 2]", r"row 2 is a list, not an object"),
        ('{"id": "x"}', r"row 2, column id: 'x' is not a whole number"),
        ('{"id": 2.5}', r"row 2, column id: 2.5 is not a whole number"),
        ('{"id": 9223372036854775808}', r"row 2, column id: 9223372036854775808 is not a whole number of 64 bits"),
        ('{"id": 2, "value": NaN}', r"row 2, column value: nan is not a finite number"),
        ('{"id": 2, "value": "1.5"}', r"row 2, column value: '1.5' is not a number"),
        ('{"id": 2, "note": 5}', r"row 2, column note: 5 is not text"),
        ('{"id": 2, "at": "2013-01-01T05:00:00"}', r"row 2, column at: .* is not an instant with its offset"),
        ('{"note": "x"}', r"row 2 has no value for id"),
        ('{"id": 2, "id": 3}', r"row 2: .*specified twice"),
        ('{"id": 2, "extra": {"a": 1}}', r"column 'extra' is not declared and nested"),
        ('{"id": 2, "extra": 1}\n{"id": 3, "extra": "x"}', r"row 3: .*extra"),
    ],
)
def test_bad_lines_are_named_with_row_and_field(source: SourceSpec, read: Read, line: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        read(source, FIRST + line + "\n")


def test_a_row_is_named_wherever_it_is(source: SourceSpec, read: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_lines, "BLOCK", 256)
    rows = "".join(f'{{"id": {i}}}\n\n' for i in range(2, 1001))
    with pytest.raises(BadInput, match=r"row 1,001, column at: 'x'"):
        read(source, FIRST + rows + '{"id": 1001, "at": "x"}\n')
    with pytest.raises(BadInput, match=r"row 1,001, column id: 1.5"):
        read(source, FIRST + rows + '{"id": 1.5}\n')
    with pytest.raises(BadInput, match=r"byte [\d,]+ \(from 0\), in row 1,001 is not utf-8"):
        read(source, (FIRST + rows).encode() + b'{"id": 1001, "note": "\xe4"}\n')


def test_a_field_that_no_row_has_is_lost(source: SourceSpec, read: Read) -> None:
    with pytest.raises(SchemaMismatch, match=r"lost column 'value' \(double\); lost column 'note'"):
        read(source, '{"id": 1, "at": null}\n')


def test_a_field_of_another_type_is_a_changed_schema(source: SourceSpec, read: Read) -> None:
    with pytest.raises(
        SchemaMismatch, match=r"column note changed its type: declared string, found int, e\.g\. 5 in row 2"
    ):
        read(source, FIRST + "".join(f'{{"id": {i}, "note": {i + 3}}}\n' for i in range(2, 9)))


def test_a_line_without_end_is_refused(source: SourceSpec, read: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_lines, "BLOCK", 256)
    monkeypatch.setattr(json_lines, "LONGEST", 1024)
    with pytest.raises(BadInput, match=r"the line of row 2 is longer than 1,024 bytes"):
        read(source, FIRST + '{"note": "' + "x" * 5000)
