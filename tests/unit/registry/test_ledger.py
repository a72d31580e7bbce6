"""The ledger on a real Iceberg table: two clocks, intents, no row twice."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from typing import Any

import pytest

from airloop.contract import Interval
from airloop.errors import ContractBroken
from airloop.reference import Scope
from airloop.registry.ledger import TABLE, Entry, Ledger
from airloop.registry.refs import ModelRef
from airloop.warehouse import read
from airloop.warehouse.catalog import Warehouse

JANUARY, FEBRUARY, MARCH, APRIL = (datetime(2013, month, 1, 5, tzinfo=UTC) for month in range(1, 5))


def entry(version: int, effective: datetime, *, recorded: int = 0, **fields: Any) -> Entry:
    """A closed promotion; ``recorded``: day of May 2024."""
    base: dict[str, Any] = {
        "entry": f"e{version}",
        "seq": 0,
        "model": "delay",
        "alias": "champion",
        "version": version,
        "previous": None,
        "state": "done",
        "moved": True,
        "outcome": "promote",
        "reason": "better",
        "by": "register",
        "key": f"k{version}",
        "recorded_at": datetime(2024, 5, recorded or version, tzinfo=UTC),
        "effective_at": effective,
        "evidence": {"low": 0.01},
    }
    return Entry(**base | fields)


@pytest.fixture
def ledger(warehouse: Warehouse) -> Ledger:
    return Ledger(warehouse)


def test_empty(ledger: Ledger) -> None:
    assert ledger.entries() == []
    assert ledger.champion_at("delay") is None
    assert ledger.live() == []
    assert ledger.open_intents("delay") == []


def test_rows_come_back_as_written(ledger: Ledger) -> None:
    written = ledger.append(entry(1, FEBRUARY))
    assert written.seq == 1
    assert ledger.entries() == [written]
    assert written.as_json()["effective_at"] == "2013-02-01T05:00:00+00:00"
    second = ledger.append(entry(2, MARCH, previous=1))
    assert ledger.entries("delay") == [written, second]
    assert ledger.entries("other") == []
    assert ledger.entries(key="k2") == [second]


def test_the_same_row_is_added_once(ledger: Ledger, warehouse: Warehouse) -> None:
    ledger.append(entry(1, FEBRUARY))
    ledger.append(entry(1, FEBRUARY))
    assert len(ledger.entries()) == 1
    assert len(warehouse.history(TABLE)) == 1


def test_each_sees_what_others_write(ledger: Ledger, warehouse: Warehouse) -> None:
    """Rows are kept in memory for one snapshot: of a table that went on, or was compacted, they are read again."""
    other = Ledger(warehouse)
    for version in range(1, 7, 3):
        ledger.append(entry(version, FEBRUARY))
        other.append(entry(version + 1, FEBRUARY))
        other.append(entry(version + 2, FEBRUARY, model="another"))
        fresh = Ledger(warehouse).entries()
        assert ledger.entries() == other.entries() == fresh
        assert ledger.entries("delay") == other.entries("delay") == [e for e in fresh if e.model == "delay"]
        assert warehouse.compact(TABLE)
    assert [(e.version, e.seq) for e in ledger.entries()] == [(3, 1), (6, 2), (1, 1), (2, 2), (4, 3), (5, 4)]


def test_a_decision_reads_the_table_once(ledger: Ledger, warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger.append(entry(1, FEBRUARY))
    scans: list[int] = []
    scan = read.scan

    def counted(*arguments: Any, **options: Any) -> Any:
        scans.append(1)
        return scan(*arguments, **options)

    monkeypatch.setattr(read, "scan", counted)
    fresh = Ledger(warehouse)
    assert fresh.champion_at("delay") == fresh.entries("delay")[0]
    fresh.close(fresh.append(entry(2, MARCH, state="intent")), "done")
    assert (len(fresh.entries("delay")), len(scans)) == (3, 1)


def test_two_clocks(ledger: Ledger) -> None:
    ledger.append(entry(1, FEBRUARY))
    ledger.append(entry(2, MARCH))
    ledger.append(entry(3, MARCH))

    def version(at: datetime | None, clock: Any) -> int | None:
        found = ledger.champion_at("delay", at=at, clock=clock)
        return found and found.version

    assert version(None, "wall") == 3
    assert version(datetime(2024, 5, 2, 12, tzinfo=UTC), "wall") == 2
    assert version(datetime(2024, 5, 1, tzinfo=UTC), "wall") == 1
    assert version(JANUARY, "wall") is None
    assert version(JANUARY, "data") is None
    assert version(FEBRUARY, "data") == 1
    assert version(MARCH, "data") == 3  # the later of two runs of one interval
    assert version(APRIL, "data") == 3


def test_alias_resolves_as_of_the_intervals_start(ledger: Ledger, warehouse: Warehouse) -> None:
    ledger.append(entry(1, FEBRUARY))
    ledger.append(entry(2, MARCH))
    reference = ModelRef.parse("delay@champion")

    def resolved(interval: Interval | None) -> str:
        return str(reference.resolve(Scope(warehouse.config, interval)))

    assert resolved(None) == "model:/delay/2"
    assert resolved(Interval(JANUARY, FEBRUARY)) == "model:/delay/none"
    assert resolved(Interval(FEBRUARY, MARCH)) == "model:/delay/1"
    assert resolved(Interval(MARCH, APRIL)) == "model:/delay/2"


def test_only_closed_moves_count(ledger: Ledger) -> None:
    ledger.append(entry(1, FEBRUARY))
    ledger.append(entry(2, FEBRUARY, state="superseded", moved=False))
    ledger.append(entry(3, MARCH, state="done", moved=False, outcome="keep"))
    intent = ledger.append(entry(4, MARCH, state="intent"))
    live = ledger.champion_at("delay")
    assert live is not None
    assert live.version == 1
    assert ledger.open_intents("delay") == [intent]
    closed = ledger.close(intent, "done")
    assert (closed.state, closed.moved, closed.entry) == ("done", True, intent.entry)
    assert ledger.open_intents("delay") == []
    assert ledger.champion_at("delay") == closed


def test_an_abandoned_intent_never_was_live(ledger: Ledger) -> None:
    intent = ledger.append(entry(1, FEBRUARY, state="intent"))
    closed = ledger.close(intent, "abandoned", reason="gone")
    assert (closed.moved, closed.reason) == (False, "gone")
    assert ledger.champion_at("delay") is None


def test_live_names_every_alias(ledger: Ledger) -> None:
    ledger.append(entry(1, FEBRUARY))
    ledger.append(entry(2, FEBRUARY, alias="challenger", outcome="keep"))
    ledger.append(entry(7, FEBRUARY, model="fare"))
    assert [(e.model, e.alias, e.version) for e in ledger.live()] == [
        ("delay", "challenger", 2),
        ("delay", "champion", 1),
        ("fare", "champion", 7),
    ]
    assert [e.version for e in ledger.live(datetime(2024, 5, 1, 12, tzinfo=UTC))] == [1]


def test_a_row_that_cannot_be_read_is_an_error(ledger: Ledger, warehouse: Warehouse) -> None:
    import pyarrow as pa

    ledger.append(entry(1, FEBRUARY))
    row = {f.name: getattr(entry(2, MARCH), f.name) for f in dataclasses.fields(Entry)} | {
        "evidence": "{oops",
        "seq": 2,
    }
    warehouse.commit(TABLE, pa.Table.from_pylist([row], schema=warehouse.schema(TABLE)), key="bad")
    with pytest.raises(ContractBroken, match=r"a row of ledger\.promotions cannot be read"):
        ledger.entries()
