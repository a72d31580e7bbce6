from __future__ import annotations

import io
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from airloop.errors import BadInput, SchemaMismatch
from airloop.sources.spec import SourceSpec

Make = Callable[..., SourceSpec]
Read = Callable[..., pa.Table]
AT = datetime(2013, 1, 1, 5, tzinfo=UTC)
GOOD: dict[str, Any] = {
    "id": pa.array([1, 2], pa.int32()),
    "at": pa.array([AT, None], pa.timestamp("ns", tz="America/New_York")),
    "value": pa.array([1.5, None], pa.float32()),
    "note": pa.array(["a", None]).dictionary_encode(),
}


@pytest.fixture
def source(spec: Make) -> SourceSpec:
    return spec(format="parquet")


def written(columns: dict[str, Any], **options: Any) -> bytes:
    buffer = io.BytesIO()
    parquet.write_table(pa.table(columns), buffer, **options)
    return buffer.getvalue()


def test_narrower_types_become_the_declared_ones(source: SourceSpec, read: Read) -> None:
    table = read(source, written(GOOD), "in.parquet")
    assert table.to_pylist() == [
        {"id": 1, "at": AT, "value": 1.5, "note": "a"},
        {"id": 2, "at": None, "value": None, "note": None},
    ]
    assert table.schema.types == [pa.int64(), pa.timestamp("us", tz="UTC"), pa.float64(), pa.string()]


def test_every_difference_is_named_at_once(source: SourceSpec, read: Read) -> None:
    changed = {
        "id": pa.array(["1"]),
        "at": pa.array([datetime(2013, 1, 1)], pa.timestamp("us")),
        "extra": pa.array([[1]]),
        "note": pa.array(["x"]),
    }
    with pytest.raises(SchemaMismatch) as caught:
        read(source, written(changed), "in.parquet")
    for difference in (
        "column 'id' changed its type: declared long, found string",
        "column 'at' is a time without a zone; declare the `zone` that it is in",
        "lost column 'value' (double)",
        "column 'extra' is not declared and nested",
    ):
        assert difference in str(caught.value)


def test_values_that_do_not_fit_are_named(source: SourceSpec, read: Read) -> None:
    moments = pa.array([0, 1_000, 1_001], pa.int64()).cast(pa.timestamp("ns", tz="UTC"))
    columns = {"id": [1, 2, 3], "at": moments, "value": [1.0, 1.0, 1.0], "note": ["a", "b", "c"]}
    with pytest.raises(BadInput, match=r"in\.parquet: row 3, column at: "):
        read(source, written(columns), "in.parquet")
    with pytest.raises(BadInput, match=r"row 2, column value: nan is not a finite"):
        read(source, written({**GOOD, "value": [1.0, float("nan")]}), "in.parquet")
    with pytest.raises(BadInput, match=r"row 2 has no value for id"):
        read(source, written({**GOOD, "id": [1, None]}), "in.parquet")


def test_truncated_and_damaged_files_are_named(source: SourceSpec, read: Read) -> None:
    content = written({**GOOD, "note": ["a" * 50, "b" * 50]}, compression="gzip")
    with pytest.raises(BadInput, match=r"in\.parquet is a damaged or truncated Parquet file"):
        read(source, content[: len(content) // 2], "in.parquet")
    damaged = bytearray(content)
    damaged[4:60] = b"\xff" * 56
    with pytest.raises(BadInput, match=r"in\.parquet is damaged after row 0"):
        read(source, bytes(damaged), "in.parquet")
    with pytest.raises(BadInput, match=r"in\.parquet is not a parquet file; it starts with b'id,v'"):
        read(source, b"id,value\n", "in.parquet")


def test_local_times_of_a_zone_are_kept_for_the_conversion(spec: Make, read: Read) -> None:
    source = spec(format="parquet", columns={"id": "long", "at": {"type": "timestamptz", "zone": "America/New_York"}})
    content = written({"id": [1], "at": pa.array([datetime(2013, 1, 1)], pa.timestamp("ms"))})
    assert read(source, content, "in.parquet").column("at").to_pylist() == [datetime(2013, 1, 1)]
