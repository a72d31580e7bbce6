"""Branches, and publishing by moving main forward."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from airloop.errors import BadArgument, CommitConflict, NotDescendant, NotFound, StoreFull
from airloop.warehouse import branches
from airloop.warehouse.catalog import Warehouse
from airloop.warehouse.refs import TableRef
from tests.places import AND_BY_REST

NAME = "raw.a"


def rows(*ids: int) -> pa.Table:
    return pa.table({"id": pa.array(ids, pa.int64())})


@pytest.fixture
def table(warehouse: Warehouse) -> str:
    warehouse.ensure(NAME, rows().schema, key=["id"])
    return NAME


def ids(warehouse: Warehouse, ref: TableRef) -> list[int]:
    found: list[int] = warehouse.scan(ref).read_all()["id"].to_pylist()
    return sorted(found)


@AND_BY_REST
def test_write_audit_publish(warehouse: Warehouse, table: str) -> None:
    base = warehouse.commit(table, rows(1), key="1")
    assert warehouse.branch(table, "audit") == base.snapshot
    assert warehouse.branch(table, "audit") == base.snapshot
    audit = warehouse.commit(table, rows(2), key="2", branch="audit")
    assert warehouse.head(table) == base.snapshot
    assert warehouse.head(table, "audit") == audit.snapshot
    assert ids(warehouse, TableRef(table)) == [1]
    assert ids(warehouse, TableRef(table, branch="audit")) == [1, 2]
    warehouse.publish(table, audit.snapshot, drop_branch="audit")
    assert warehouse.head(table) == audit.snapshot
    assert "audit" not in warehouse.table(table).metadata.refs
    assert ids(warehouse, TableRef(table)) == [1, 2]
    # Again: nothing to do.
    warehouse.publish(table, audit.snapshot, drop_branch="audit")
    warehouse.publish(table, base.snapshot)
    assert warehouse.head(table) == audit.snapshot


@AND_BY_REST
def test_the_first_batch_is_audited_too(warehouse: Warehouse, table: str) -> None:
    assert warehouse.branch(table, "audit") == 0
    audit = warehouse.commit(table, rows(1), key="1", mode="upsert", branch="audit")
    more = warehouse.commit(table, rows(1, 2), key="2", mode="upsert", branch="audit")
    assert (more.added, more.updated) == (1, 0)
    assert warehouse.head(table) == 0
    assert ids(warehouse, TableRef(table)) == []
    other = warehouse.commit(table, rows(9), key="3", branch="other")
    warehouse.publish(table, more.snapshot)
    assert ids(warehouse, TableRef(table)) == [1, 2]
    assert warehouse.descends(table, more.snapshot, audit.snapshot)
    with pytest.raises(NotDescendant):
        warehouse.publish(table, other.snapshot)
    # main has begun: the next commit to it builds on it.
    assert ids(warehouse, warehouse.commit(table, rows(3), key="4").ref) == [1, 2, 3]


@AND_BY_REST
def test_a_moved_main_is_refused_and_the_others_rows_survive(warehouse: Warehouse, table: str) -> None:
    warehouse.commit(table, rows(1), key="1")
    audit = warehouse.commit(table, rows(2), key="2", branch="audit")
    other = warehouse.commit(table, rows(3), key="3")
    with pytest.raises(NotDescendant, match=f"main moved to {other.snapshot}"):
        warehouse.publish(table, audit.snapshot, drop_branch="audit")
    assert warehouse.head(table) == other.snapshot
    assert ids(warehouse, TableRef(table)) == [1, 3]
    assert warehouse.head(table, "audit") == audit.snapshot, "a refused publish drops nothing"
    # Rebased under a new key, it goes.
    warehouse.drop_branch(table, "audit")
    again = warehouse.commit(table, rows(2), key="2/rebased", branch="audit")
    warehouse.publish(table, again.snapshot)
    assert ids(warehouse, TableRef(table)) == [1, 2, 3]


def test_main_moves_between_look_and_publish(warehouse: Warehouse, table: str, monkeypatch: pytest.MonkeyPatch) -> None:
    warehouse.commit(table, rows(1), key="1")
    audit = warehouse.commit(table, rows(2), key="2", branch="audit")
    send = branches.send
    came = []

    def send_late(*arguments: Any) -> None:
        if not came:
            came.append(warehouse.commit(table, rows(3), key="3"))
        send(*arguments)

    monkeypatch.setattr(branches, "send", send_late)
    with pytest.raises(NotDescendant):
        warehouse.publish(table, audit.snapshot)
    assert ids(warehouse, TableRef(table)) == [1, 3]


def test_an_unrelated_commit_between_look_and_publish_is_no_matter(
    warehouse: Warehouse, table: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    warehouse.commit(table, rows(1), key="1")
    audit = warehouse.commit(table, rows(2), key="2", branch="audit")
    send = branches.send
    came = []

    def send_late(*arguments: Any) -> None:
        if not came:
            came.append(warehouse.commit(table, rows(3), key="3", branch="other"))
        send(*arguments)

    monkeypatch.setattr(branches, "send", send_late)
    warehouse.publish(table, audit.snapshot)
    assert ids(warehouse, TableRef(table)) == [1, 2]
    assert ids(warehouse, TableRef(table, branch="other")) == [1, 3]


def test_publish_gives_up(warehouse: Warehouse, table: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from pyiceberg.exceptions import CommitFailedException

    audit = warehouse.commit(table, rows(2), key="2", branch="audit")

    def refuse(*arguments: Any) -> None:
        raise CommitFailedException("another writer")

    monkeypatch.setattr(branches, "TRIES", 2)
    monkeypatch.setattr(branches, "send", refuse)
    with pytest.raises(CommitConflict, match="won 2 times"):
        warehouse.publish(table, audit.snapshot)


def test_publish_what_is_not_there(warehouse: Warehouse, table: str) -> None:
    warehouse.publish(table, 0)
    with pytest.raises(NotFound, match="no snapshot 17"):
        warehouse.publish(table, 17)
    with pytest.raises(BadArgument, match="main cannot be dropped"):
        warehouse.publish(table, 0, drop_branch="main")


def test_a_commit_to_a_branch_between_look_and_publish_keeps_it(
    warehouse: Warehouse, table: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    audit = warehouse.commit(table, rows(1), key="1", branch="audit")
    send = branches.send
    came = []

    def send_late(*arguments: Any) -> None:
        if not came:
            came.append(warehouse.commit(table, rows(2), key="2", branch="audit"))
        send(*arguments)

    monkeypatch.setattr(branches, "send", send_late)
    warehouse.publish(table, audit.snapshot, drop_branch="audit")
    assert ids(warehouse, TableRef(table)) == [1]
    assert warehouse.head(table, "audit") == came[0].snapshot
    warehouse.publish(table, came[0].snapshot, drop_branch="audit")
    assert set(warehouse.table(table).metadata.refs) == {"main"}


@AND_BY_REST
def test_branch_at(warehouse: Warehouse, table: str) -> None:
    first = warehouse.commit(table, rows(1), key="1")
    warehouse.commit(table, rows(2), key="2")
    assert warehouse.branch(table, "old", at=first.snapshot) == first.snapshot
    assert ids(warehouse, warehouse.commit(table, rows(3), key="3", branch="old").ref) == [1, 3]
    with pytest.raises(NotFound, match="no snapshot 17"):
        warehouse.branch(table, "none", at=17)
    with pytest.raises(BadArgument, match="name of a branch"):
        warehouse.branch(table, "17")


@AND_BY_REST
def test_drop_branch(warehouse: Warehouse, table: str) -> None:
    warehouse.drop_branch(table, "none")
    audit = warehouse.commit(table, rows(1), key="1", branch="audit")
    warehouse.drop_branch(table, "audit")
    assert warehouse.head(table, "audit") == 0
    assert ids(warehouse, audit.ref) == [1], "a snapshot outlives its branch"
    with pytest.raises(BadArgument, match="main cannot be dropped"):
        warehouse.drop_branch(table, "main")


def test_descends(warehouse: Warehouse, table: str) -> None:
    first = warehouse.commit(table, rows(1), key="1").snapshot
    second = warehouse.commit(table, rows(2), key="2").snapshot
    side = warehouse.commit(table, rows(3), key="3", branch="side").snapshot
    assert warehouse.descends(table, second, first)
    assert warehouse.descends(table, second, second)
    assert warehouse.descends(table, side, second)
    assert warehouse.descends(table, first, 0)
    assert not warehouse.descends(table, first, second)
    assert not warehouse.descends(table, second, side)


def test_a_fault_in_publishing_leaves_main(warehouse: Warehouse, table: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from airloop import faults

    audit = warehouse.commit(table, rows(1), key="1", branch="audit")
    monkeypatch.setattr(faults, "_reached", type(faults._reached)())
    monkeypatch.setenv("AIRLOOP_FAULT", "full@publish:before")
    with pytest.raises(StoreFull, match=r"publishing raw\.a: no space left"):
        warehouse.publish(table, audit.snapshot)
    assert warehouse.head(table) == 0
    monkeypatch.delenv("AIRLOOP_FAULT")
    warehouse.publish(table, audit.snapshot)
    assert warehouse.head(table) == audit.snapshot
