"""A commit that something on its way sends twice: the second is refused for the first, which is in."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from pyiceberg.exceptions import CommitFailedException
from requests.exceptions import ConnectionError as NoConnection

from airloop.config import Config
from airloop.errors import Unreachable
from airloop.warehouse.catalog import Warehouse
from airloop.warehouse.commit import KEY
from airloop.warehouse.references import References
from airloop.warehouse.refs import TableRef
from tests.places import table_files

TABLE = "shop.orders"
SCHEMA = pa.schema([pa.field("id", pa.int64()), pa.field("x", pa.float64())])

pytestmark = pytest.mark.parametrize("config", ["rest"], indirect=True)


def rows(*ids: int, x: float = 1.0) -> pa.Table:
    return pa.Table.from_pylist([{"id": i, "x": x} for i in ids], SCHEMA)


def content(warehouse: Warehouse, table: str = TABLE) -> dict[int, float]:
    return {row["id"]: row["x"] for row in warehouse.scan(TableRef(table)).read_all().to_pylist()}


class Twice:
    """A catalog's commits, of which the next is sent twice."""

    def __init__(self, catalog: Any, monkeypatch: pytest.MonkeyPatch, *, then_away: bool) -> None:
        self.refused = 0
        send, load = catalog.commit_table, catalog.load_table

        def away(name: str) -> Any:
            monkeypatch.setattr(catalog, "load_table", load)
            raise NoConnection("nobody there")

        def twice(*change: Any) -> Any:
            monkeypatch.setattr(catalog, "commit_table", send)
            send(*change)
            try:
                return send(*change)
            except CommitFailedException:
                self.refused += 1
                if then_away:
                    monkeypatch.setattr(catalog, "load_table", away)
                raise

        monkeypatch.setattr(catalog, "commit_table", twice)


@pytest.fixture
def table(warehouse: Warehouse) -> str:
    warehouse.ensure(TABLE, SCHEMA, key=["id"])
    warehouse.commit(TABLE, rows(1, 2), key="before")
    return TABLE


@pytest.mark.parametrize("mode", ["append", "upsert", "replace"])
@pytest.mark.parametrize("then_away", [False, True], ids=["there", "away"])
def test_what_is_in_keeps_its_files(
    warehouse: Warehouse, config: Config, table: str, monkeypatch: pytest.MonkeyPatch, mode: Any, then_away: bool
) -> None:
    catalog = Twice(warehouse._catalog, monkeypatch, then_away=then_away)
    new = rows(3) if mode == "append" else rows(2, 3, x=7.0)
    if then_away:
        with pytest.raises(Unreachable, match="does not answer"):
            warehouse.commit(table, new, key="once", mode=mode)
    else:
        assert warehouse.commit(table, new, key="once", mode=mode).changed
    assert catalog.refused == 1
    expected = {"append": {1: 1.0, 2: 1.0, 3: 1.0}, "upsert": {1: 1.0, 2: 7.0, 3: 7.0}, "replace": {2: 7.0, 3: 7.0}}
    assert content(warehouse) == expected[mode]
    assert References(warehouse.table(table)).all() <= table_files(config), "every file that it names is there"
    again = warehouse.commit(table, new, key="once", mode=mode)
    assert (again.changed, again.adopted) == (False, True)


@pytest.mark.parametrize("then_away", [False, True], ids=["there", "away"])
def test_a_compaction_that_is_in_keeps_its_files(
    warehouse: Warehouse, config: Config, table: str, monkeypatch: pytest.MonkeyPatch, then_away: bool
) -> None:
    for number in range(3, 8):
        warehouse.commit(table, rows(number), key=f"row-{number}")
    expected = content(warehouse)
    catalog = Twice(warehouse._catalog, monkeypatch, then_away=then_away)
    if then_away:
        with pytest.raises(Unreachable, match="does not answer"):
            warehouse.compact(table)
    else:
        done = warehouse.compact(table)
        assert (done.files_after, done.snapshot) == (1, warehouse.head(table))
    assert catalog.refused == 1
    assert content(warehouse) == expected
    assert References(warehouse.table(table)).all() <= table_files(config), "every file that it names is there"
    made_by = [
        s.summary.additional_properties.get(KEY, "") for s in warehouse.table(table).metadata.snapshots if s.summary
    ]
    assert sum(key.startswith("compact:") for key in made_by) == 1


def test_branches_are_where_they_were_sent(warehouse: Warehouse, table: str, monkeypatch: pytest.MonkeyPatch) -> None:
    warehouse.branch(table, "audit")
    done = warehouse.commit(table, rows(3), key="audited", branch="audit")
    catalog = Twice(warehouse._catalog, monkeypatch, then_away=False)
    warehouse.publish(table, done.snapshot, drop_branch="audit")
    assert catalog.refused == 1
    assert warehouse.head(table) == done.snapshot
    assert set(content(warehouse)) == {1, 2, 3}
