"""Whether rows differ from one another, whichever pass they fall into."""

from __future__ import annotations

import duckdb
import pytest

from airloop.warehouse import distinct
from airloop.warehouse.distinct import all_distinct


@pytest.mark.parametrize("per_pass", [1_000_000, 300, 7])
@pytest.mark.parametrize(
    ("identity", "differ"),
    [
        ("hash(i)", True),
        ("hash(i % 999)", False),
        ("CASE WHEN i <> 500 THEN hash(i) END", False),
        ("CASE WHEN i <> 500 THEN hash(i) ELSE 12345 END", True),
    ],
)
def test_rows_of_one_identity_are_found(
    monkeypatch: pytest.MonkeyPatch, per_pass: int, identity: str, differ: bool
) -> None:
    monkeypatch.setattr(distinct, "ROWS_PER_PASS", per_pass)
    monkeypatch.setattr(distinct, "ROWS_PER_BATCH", 100)
    with duckdb.connect() as connection:
        assert all_distinct(connection, identity, "FROM range(1000) t(i)", 1000) is differ
        assert all_distinct(connection, identity, "FROM range(1000) t(i) WHERE i < 400", 1000)
        assert all_distinct(connection, identity, "FROM range(0) t(i)", 0)
