from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pydantic import ValidationError

from airloop.contract import Interval
from airloop.frame.key import canonical
from airloop.sources.spec import SourceSpec, duration

Make = Callable[..., SourceSpec]
SOURCES = Path(__file__).resolve().parents[3] / "dags" / "flights" / "sources"

YAML = """
name: sensors
table: raw.sensors
format: csv
columns:
  id: {type: int64, nullable: false}
  value: double
key: [id]
"""


def test_yaml_text_and_mapping_are_the_same() -> None:
    mapping = {
        "name": "sensors",
        "table": "raw.sensors",
        "format": "csv",
        "columns": {"id": {"type": "long", "nullable": False}, "value": {"type": "float64"}},
        "key": ["id"],
    }
    assert SourceSpec.model_validate(YAML) == SourceSpec.model_validate(mapping)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"colums": {}}, "Extra inputs are not permitted"),
        ({"columns": {}}, "at least 1 item"),
        ({"columns": {"id": "number"}}, "there is no type 'number'; types: boolean"),
        ({"columns": {"id": "timestamp"}}, "a time without a zone names no instant"),
        ({"columns": {"id": "decimal(40,2)"}}, "out of range"),
        ({"columns": {"_id": "long"}, "key": ["_id"]}, "column '_id': a name is a letter"),
        ({"columns": {"id": "long", "ID": "long"}}, "upper and lower case being the same: id"),
        ({"columns": {"id": "long", "a": {"type": "long", "source": "id"}}}, "columns of the file named twice: id"),
        ({"columns": {"id": {"type": "long", "optional": True}}}, "key columns cannot be optional: id"),
        ({"key": ["nobody"]}, r"key \['nobody'\] must be different columns"),
        ({"interval_column": "value"}, "interval_column value must be a timestamptz"),
        ({"interval_column": "when"}, "interval_column 'when' is not one of"),
        ({"lateness": "5 weeks"}, "'5 weeks' is not a duration"),
        ({"not_after": "2014-01-01T00:00:00"}, "has no time zone"),
        ({"table": "Sensors"}, "'Sensors' is not namespace.table in lower case"),
        ({"csv": {"encoding": "utf-9"}}, "there is no encoding 'utf-9'"),
        ({"csv": {"delimiter": "ab"}}, "at most 1 character"),
        ({"format": "parquet", "compression": "gzip"}, "compression must be none"),
        (
            {"columns": {"id": "long", "at": {"type": "timestamptz", "zone": "Mars/Olympus"}}},
            "no time zone 'Mars/Olympus'",
        ),
        ({"columns": {"id": "long", "at": {"type": "long", "zone": "UTC"}}}, "zone is for timestamptz, not for long"),
    ],
)
def test_mistakes_are_named(spec: Make, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        spec(**changed)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("flights.yaml", "is a path; pass the file's content"),
        ("a: [1", "not YAML: .* line 1"),
        ("- a\n- b", "a source is a YAML mapping"),
        (YAML + "key: [value]\n", "line 9: 'key' is there twice"),
        (YAML + "1: x\n", "line 9: 1 is not text; quote it"),
    ],
)
def test_yaml_mistakes_are_named(text: str, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SourceSpec.model_validate(text)


def test_the_order_of_columns_is_part_of_a_step_s_key(spec: Make) -> None:
    one = spec(columns={"id": "long", "a": "string", "b": "string"})
    other = spec(columns={"id": "long", "b": "string", "a": "string"})
    assert canonical(one)["columns"] == canonical(other)["columns"]
    assert canonical(one) != canonical(other)


def test_durations() -> None:
    assert duration("35d") == timedelta(days=35)
    assert duration("90m") == timedelta(minutes=90)
    assert duration("none") == timedelta(0)
    assert duration("all") is None


def test_lateness_is_counted_from_the_interval_s_start(spec: Make, interval: Interval) -> None:
    assert spec(lateness="31d").late_from(interval) == datetime(2012, 12, 1, 5, tzinfo=UTC)
    assert spec(lateness="none").late_from(interval) == interval.start
    assert spec(lateness="all").late_from(interval) is None
    assert spec(lateness="999999w").late_from(interval) is None


def test_the_table_s_schema(spec: Make) -> None:
    source = spec(derive={"hot": {"type": "boolean", "sql": "value > 30", "description": "Above 30 degrees."}})
    schema = source.table_schema({"extra": "double"})
    assert schema.names == ["id", "at", "value", "note", "hot", "extra", "_batch", "_source", "_row"]
    assert [f.name for f in schema if not f.nullable] == ["id", "_batch", "_source", "_row"]
    assert schema.field("at").type == pa.timestamp("us", tz="UTC")
    assert schema.field("hot").metadata == {b"doc": b"Above 30 degrees."}


@pytest.mark.parametrize("name", ["flights", "weather", "planes"])
def test_the_flights_example_describes_every_column(name: str) -> None:
    source = SourceSpec.model_validate((SOURCES / f"{name}.yaml").read_text())
    undescribed = [n for n, c in [*source.columns.items(), *source.derive.items()] if not c.description]
    assert source.name == name
    assert not undescribed
