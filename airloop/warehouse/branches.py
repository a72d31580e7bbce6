"""Branches: made, published by moving ``main`` forward, and dropped."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from pyiceberg.exceptions import CommitFailedException
from pyiceberg.table import Table
from pyiceberg.table.update import RemoveSnapshotRefUpdate, TableRequirement, TableUpdate

from airloop.errors import BadArgument, CommitConflict, NotDescendant, NotFound
from airloop.faults import point
from airloop.locks import check_needed
from airloop.warehouse.commit import TRIES, head, ref_is, send, set_ref
from airloop.warehouse.expired import parents
from airloop.warehouse.refs import MAIN

Change = tuple[tuple[TableUpdate, ...], tuple[TableRequirement, ...]]


def descends(table: Table, snapshot: int, ancestor: int) -> bool:
    """Whether ``snapshot`` is ``ancestor`` or builds on it; everything builds on 0, the empty table."""
    if not ancestor:
        return True
    above = parents(table)
    current = snapshot
    while current and current != ancestor:
        current = above.get(current, 0)
    return current == ancestor


def create(name: str, load: Callable[[], Table], branch: str, at: int | None) -> int:
    """See ``Warehouse.branch``."""

    def change(table: Table) -> Change | int:
        found = head(table, branch)
        if found:
            return found
        start = head(table, MAIN) if at is None else at
        if not start:
            return 0
        if table.metadata.snapshot_by_id(start) is None:
            raise NotFound(f"{name} has no snapshot {start}", "see `airloop tables`")
        return (set_ref(branch, start),), (ref_is(branch, 0),)

    return _until_committed(name, load, change, lambda table: head(table, branch))


def publish(name: str, load: Callable[[], Table], snapshot: int, drop_branch: str) -> None:
    """See ``Warehouse.publish``."""

    def change(table: Table) -> Change | int:
        main = head(table, MAIN)
        updates: tuple[TableUpdate, ...] = ()
        requirements: tuple[TableRequirement, ...] = (ref_is(MAIN, main),)
        if snapshot and not descends(table, main, snapshot):
            if table.metadata.snapshot_by_id(snapshot) is None:
                raise NotFound(f"{name} has no snapshot {snapshot}", "see `airloop tables`")
            if not descends(table, snapshot, main):
                raise NotDescendant(
                    f"{name}: main moved to {main}, which snapshot {snapshot} does not build on",
                    "apply the rows to the new main and validate them again",
                )
            updates = (set_ref(MAIN, snapshot),)
        tip = head(table, drop_branch)
        if tip and descends(table, snapshot if updates else main, tip):
            updates += (_remove_ref(drop_branch),)
            requirements += (ref_is(drop_branch, tip),)
        if not updates:
            return main
        point("publish:before")
        return updates, requirements

    if drop_branch == MAIN:
        raise BadArgument("main cannot be dropped")
    _until_committed(name, load, change, lambda table: head(table, MAIN))
    point("publish:after")


def drop(name: str, load: Callable[[], Table], branch: str) -> None:
    """See ``Warehouse.drop_branch``."""
    if branch == MAIN:
        raise BadArgument("main cannot be dropped")

    def change(table: Table) -> Change | int:
        if branch not in table.metadata.refs:
            return 0
        return (_remove_ref(branch),), (ref_is(branch, head(table, branch)),)

    _until_committed(name, load, change, lambda table: 0)


def _remove_ref(branch: str) -> RemoveSnapshotRefUpdate:
    return RemoveSnapshotRefUpdate.model_validate({"ref-name": branch})


def _until_committed(
    name: str, load: Callable[[], Table], change: Callable[[Table], Change | int], result: Callable[[Table], int]
) -> int:
    """Try a change of references until it is in, or until ``change``, asked afresh each time, has nothing to do."""
    for attempt in range(TRIES):
        table = load()
        wanted = change(table)
        if isinstance(wanted, int):
            return wanted
        try:
            check_needed()
            send(table, *wanted)
        except CommitFailedException:
            time.sleep(random.uniform(0.0, 0.02 * 2 ** min(attempt, 6)))
            continue
        return result(table)
    raise CommitConflict(f"{name}: other writers won {TRIES} times", "run the task again")
