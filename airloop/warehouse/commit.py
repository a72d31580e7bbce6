"""
Commit exactly once: one Iceberg snapshot that carries the step's key, or none.

PyIceberg's own retry re-applies without looking and would double rows, so nothing here goes through it. The loop
loads the table afresh, looks for the key in every snapshot, works the change out against the branch's head of that
moment, and commits on condition that the head is still the same; if not, all of it is done again.

A catalog behind HTTP may say of a commit that is in that it was refused: something on the way sent it twice. So no file
of it goes before the table was asked.
"""

from __future__ import annotations

import logging
import random
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pyiceberg.exceptions import CommitFailedException, ValidationException
from pyiceberg.table import Table
from pyiceberg.table.metadata import TableMetadata
from pyiceberg.table.snapshots import Snapshot
from pyiceberg.table.update import (
    AssertRefSnapshotId,
    AssertTableUUID,
    SetSnapshotRefUpdate,
    TableRequirement,
    TableUpdate,
)

from airloop.errors import CommitConflict
from airloop.faults import point
from airloop.locks import Locks, check_needed
from airloop.warehouse import expired
from airloop.warehouse.iceberg import Transaction
from airloop.warehouse.merging import MergingOverwrite
from airloop.warehouse.plan import Plan
from airloop.warehouse.refs import MAIN, SAME_ROWS, TableRef

KEY = "airloop.key"
"""Snapshot property: the key of the step that made the snapshot."""
MODE = "airloop.mode"
"""Snapshot property: ``replace`` if nothing of the snapshot before it was kept; else how rows were added."""
ADDED, UPDATED, DELETED = "airloop.rows-added", "airloop.rows-updated", "airloop.rows-deleted"
TRIES = 20
METADATA_KNOWN = 8
"""Metadata whose keys a process keeps at hand, about one of each table that a step works on."""
LOCK_WAIT_S = 10.0
"""Seconds to wait for our turn; correctness does not depend on getting it."""

log = logging.getLogger("airloop.warehouse")


@dataclass(frozen=True, slots=True)
class Commit:
    """What became of a commit."""

    table: str
    snapshot: int
    """The snapshot that holds the rows: a new one, an adopted one, or the head if nothing had to change."""
    changed: bool
    """Whether this call made the snapshot."""
    adopted: bool
    """Whether an earlier attempt with the same key had made it."""
    added: int
    """Rows that are new."""
    updated: int
    """Rows that took the place of one with the same key."""
    deleted: int
    """Rows that went without a successor of the same key."""

    @property
    def ref(self) -> TableRef:
        return TableRef(self.table, self.snapshot)


class RefIs(AssertRefSnapshotId):
    """``ref`` is at ``snapshot_id``; None: it does not exist. Unlike its base it lets an empty table have branches."""

    def validate(self, base_metadata: TableMetadata | None) -> None:  # type: ignore[override]
        ref = base_metadata.refs.get(self.ref) if base_metadata else None
        found = ref.snapshot_id if ref else None
        if found != self.snapshot_id:
            raise CommitFailedException(f"{self.ref} is at {found}, not at {self.snapshot_id}")


def head(table: Table, branch: str) -> int:
    """Snapshot id of a branch's head; 0 if the branch has none."""
    ref = table.metadata.refs.get(branch)
    return ref.snapshot_id if ref else 0


def find_key(table: Table, key: str) -> Snapshot | None:
    """The snapshot, on whichever branch or none, that a step with this key made."""
    return _by_key(table.metadata).get(key)


_keys: OrderedDict[int, tuple[TableMetadata, dict[str, Snapshot]]] = OrderedDict()


def _by_key(metadata: TableMetadata) -> dict[str, Snapshot]:
    """Snapshots by the key that they carry. Metadata never change, and are asked several times in each step."""
    known = _keys.get(id(metadata))
    if known is None or known[0] is not metadata:
        made = {s.summary.additional_properties.get(KEY, ""): s for s in metadata.snapshots if s.summary is not None}
        made.pop("", None)
        known = _keys[id(metadata)] = (metadata, made)
        if len(_keys) > METADATA_KNOWN:
            _keys.popitem(last=False)
    return known[1]


def content(table: Table, snapshot: int) -> int:
    """
    The snapshot that stands for these rows: the one before a compaction, if it is still there.

    References are resolved to it, so that a compaction makes no key new.
    """
    found = table.metadata.snapshot_by_id(snapshot)
    while found is not None and found.summary is not None:
        before = found.summary.additional_properties.get(SAME_ROWS)
        older = table.metadata.snapshot_by_id(int(before)) if before else None
        if older is None:
            return found.snapshot_id
        found = older
    return snapshot


def made_before(name: str, table: Table, key: str, *, adds: bool) -> Commit | None:
    """
    What an earlier attempt with this key committed.

    :param adds: whether a second commit would add rows or bring back older ones. Then a snapshot that has expired
        counts too, as long as ``main`` builds on it: its place is taken by the oldest one there that does.
    """
    found = find_key(table, key)
    if found is not None:
        return adopted(name, found)
    heir = expired.heir(table, key) if adds else 0
    if not heir:
        return None
    log.warning("%s: what this step wrote has expired as a snapshot; its rows are in the table since", name)
    return Commit(name, heir, False, True, 0, 0, 0)


def commit(
    name: str,
    load: Callable[[], Table],
    locks: Locks,
    *,
    key: str,
    branch: str,
    properties: Mapping[str, str],
    adds: bool,
    plan: Callable[[Table, int], Plan],
) -> Commit:
    """
    Commit what ``plan`` works out, once.

    :param load: gives the table with metadata fresh from the catalog.
    :param locks: those by which writers take turns.
    :param adds: see :func:`made_before`.
    :param plan: works out the change against a table and a snapshot; called again after every conflict.
    :raises CommitConflict: other writers kept winning.
    """
    for attempt in range(TRIES):
        with locks.turn(f"tables/{name}", timeout_s=LOCK_WAIT_S):
            table = load()
            done = made_before(name, table, key, adds=adds)
            if done is not None:
                return done
            # A branch that does not exist starts at main's head.
            base = head(table, branch) or head(table, MAIN)
            planned = plan(table, base)
            if not planned.changes:
                return Commit(name, content(table, base), False, False, 0, 0, 0)
            try:
                snapshot = _commit_once(table, load, key, branch, properties, planned)
                return Commit(name, snapshot, True, False, planned.added, planned.updated, planned.deleted)
            except CommitFailedException:
                pass
            finally:
                # Of what was sent we may never hear that it was done: only the key tells, so the files stay.
                if not planned.sent and planned.rewritten is not None:
                    planned.rewritten.abort()
        time.sleep(random.uniform(0.0, 0.02 * 2 ** min(attempt, 6)))
    raise CommitConflict(
        f"{name}: other writers won {TRIES} times", "run the task again, with fewer tasks at once that write this table"
    )


def adopted(name: str, snapshot: Snapshot) -> Commit:
    """The commit that an earlier attempt made."""
    summary = snapshot.summary.additional_properties if snapshot.summary else {}
    added, updated, deleted = (int(summary.get(p, 0)) for p in (ADDED, UPDATED, DELETED))
    return Commit(name, snapshot.snapshot_id, False, True, added, updated, deleted)


def _commit_once(
    table: Table, load: Callable[[], Table], key: str, branch: str, properties: Mapping[str, str], plan: Plan
) -> int:
    transaction = Transaction(table)
    on_branch, on_main = head(table, branch), head(table, MAIN)
    if not on_branch and on_main:
        transaction._stage((set_ref(branch, on_main),))
    carried = {
        **properties,
        KEY: key,
        ADDED: str(plan.added),
        UPDATED: str(plan.updated),
        DELETED: str(plan.deleted),
    }
    producer: Any
    if plan.remove:
        producer = MergingOverwrite(transaction, branch, carried)
    else:
        producer = transaction.update_snapshot(snapshot_properties=carried, branch=branch).merge_append()
    for file in plan.add:
        producer.append_data_file(file)
    for file in plan.remove:
        producer.delete_data_file(file)
    snapshot = send_snapshot(
        table, load, producer, plan, (ref_is(branch, on_branch),), before=transaction._updates, what="commit"
    )
    point("commit:after")
    return snapshot


def send_snapshot(
    table: Table,
    load: Callable[[], Table],
    producer: Any,
    plan: Plan,
    requirements: tuple[TableRequirement, ...],
    *,
    before: tuple[TableUpdate, ...] = (),
    what: Literal["commit", "compact"],
) -> int:
    """
    Commit the snapshot that a producer makes of a plan: what PyIceberg's commit does, without its retry.

    Manifests of what was not sent, or was refused, are removed; ``plan.sent`` says whether data files may be.

    :param load: gives the table with metadata fresh from the catalog.
    :param before: updates that come before the snapshot, in the same commit.
    :returns: the snapshot's id.
    :raises CommitFailedException: the requirements do not hold, or another writer was first; nothing has changed.
    :raises Unreachable: a lock that this process needs was lost; nothing was sent.
    """
    snapshot = int(producer.snapshot_id)
    try:
        updates, _ = producer._commit()
        point(f"{what}:before")
        check_needed()
        plan.sent = True
        send(table, (*before, *updates), requirements)
    except (CommitFailedException, ValidationException) as cause:
        # Sent twice on its way, it is in conflict with itself. If nobody can be asked, it counts as sent.
        if plan.sent and snapshot in expired.parents(load()):
            log.warning("%s: the catalog refused snapshot %s, and has it", ".".join(table.name()), snapshot)
            return snapshot
        plan.sent = False
        if isinstance(cause, ValidationException):
            raise CommitFailedException(str(cause)) from cause
        raise
    finally:
        if not plan.sent:
            producer._clean_all_uncommitted()
    return snapshot


def set_ref(branch: str, snapshot: int) -> SetSnapshotRefUpdate:
    """Let a branch point at a snapshot."""
    return SetSnapshotRefUpdate.model_validate({"ref-name": branch, "type": "branch", "snapshot-id": snapshot})


def ref_is(branch: str, snapshot: int) -> RefIs:
    """Require that a branch points at a snapshot; 0: that it does not exist."""
    return RefIs.model_validate({"ref": branch, "snapshot-id": snapshot or None})


def send(table: Table, updates: tuple[TableUpdate, ...], requirements: tuple[TableRequirement, ...]) -> None:
    """
    Change a table's metadata in one compare-and-set, if the requirements hold on what the catalog has now.

    :raises CommitFailedException: they do not, or another writer was first; or this very change came twice.
    """
    table._do_commit(updates, (AssertTableUUID(uuid=table.metadata.table_uuid), *requirements))
