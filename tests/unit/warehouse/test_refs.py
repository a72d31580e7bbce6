"""References to tables."""

from __future__ import annotations

import pyarrow as pa
import pytest

from airloop.config import Config
from airloop.errors import NotFound
from airloop.reference import Scope
from airloop.warehouse.catalog import Warehouse
from airloop.warehouse.refs import TableRef

ROWS = pa.table({"id": [1, 2]})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("raw.flights", TableRef("raw.flights")),
        ("raw.flights@main", TableRef("raw.flights")),
        (" raw.flights ", TableRef("raw.flights")),
        ("raw.flights@audit-3f2a", TableRef("raw.flights", branch="audit-3f2a")),
        ("raw.flights@6438", TableRef("raw.flights", snapshot=6438)),
        ("raw.flights@0", TableRef("raw.flights", snapshot=0)),
    ],
)
def test_parse_and_print(text: str, expected: TableRef) -> None:
    assert TableRef.parse(text) == expected
    assert TableRef.parse(str(expected)) == expected


@pytest.mark.parametrize("text", ["flights", "raw.flights@", "a.b.c", "raw.fl ights", "raw.flights@a b", "", 3, None])
def test_parse_refuses(text: object) -> None:
    with pytest.raises(ValueError, match=r"namespace\.table"):
        TableRef.parse(text)


def test_one_snapshot_has_one_reference() -> None:
    assert TableRef("raw.a", 7, "audit") == TableRef("raw.a", 7)
    assert str(TableRef("raw.a", 7, "audit")) == "raw.a@7"


def test_coerce_takes_the_table_of_a_result() -> None:
    result = {"step": "extract", "key": "ab", "status": "done", "table": "raw.a@5"}
    assert TableRef.coerce(result) == TableRef("raw.a", 5)


def test_resolve(config: Config, warehouse: Warehouse) -> None:
    scope = Scope(config)
    with pytest.raises(NotFound, match="no table"):
        TableRef("raw.a").resolve(scope)
    warehouse.ensure("raw.a", ROWS.schema)
    assert TableRef("raw.a").resolve(scope) == TableRef("raw.a", 0)
    assert TableRef("raw.a", 0).exists(scope)
    first = warehouse.commit("raw.a", ROWS, key="1")
    audit = warehouse.commit("raw.a", ROWS, key="2", branch="audit")
    assert TableRef("raw.a").resolve(scope) == first.ref
    assert TableRef("raw.a", branch="audit").resolve(scope) == audit.ref
    assert audit.ref.resolve(scope) == audit.ref
    assert audit.ref.canonical() == f"raw.a@{audit.snapshot}"
    with pytest.raises(NotFound, match="no branch other"):
        TableRef("raw.a", branch="other").resolve(scope)
    with pytest.raises(NotFound, match="no snapshot 17"):
        TableRef("raw.a", 17).resolve(scope)
    assert not TableRef("raw.a", 17).exists(scope)
    assert not TableRef("raw.b").exists(scope)
