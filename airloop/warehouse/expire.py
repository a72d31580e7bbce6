"""
Take snapshots out of a table's metadata; their files stay for the grace period, which begins now.

A local file that only they need gets the time of now. In a bucket a file has no time that could be set: there a note
beside the metadata, ``metadata/expired-UUID.json``, names such files, and they count as no older than the note.
"""

from __future__ import annotations

import json
import os
import random
import re
import time
import uuid
from collections.abc import Callable, Collection
from contextlib import suppress

from pydantic import PrivateAttr
from pyiceberg.exceptions import CommitFailedException
from pyiceberg.table import Table
from pyiceberg.table.metadata import TableMetadata
from pyiceberg.table.update import AssertTableUUID, RemoveSnapshotsUpdate, SetPropertiesUpdate, TableUpdate

from airloop.errors import CommitConflict, ContractBroken
from airloop.faults import point
from airloop.warehouse import tree
from airloop.warehouse.commit import KEY, TRIES, send
from airloop.warehouse.expired import PROPERTY, remembering
from airloop.warehouse.localio import local_path
from airloop.warehouse.references import References

NOTE = re.compile(r"/metadata/expired-[0-9a-f-]{36}\.json")


class Unchanged(AssertTableUUID):
    """The table has the snapshots, references and memory that the decision was made on."""

    _seen: object = PrivateAttr()

    @classmethod
    def since(cls, metadata: TableMetadata) -> Unchanged:
        made = cls(uuid=metadata.table_uuid)
        made._seen = _state(metadata)
        return made

    def validate(self, base_metadata: TableMetadata | None) -> None:  # type: ignore[override]
        if base_metadata is None or _state(base_metadata) != self._seen:
            raise CommitFailedException("the table's snapshots or branches changed")


def expire(
    name: str,
    load: Callable[[], Table],
    choose: Callable[[Table], set[int]],
    *,
    known: References | None = None,
    check: Callable[[], None] = lambda: None,
) -> list[int]:
    """
    Expire the snapshots that ``choose`` names, asked afresh after every conflict.

    The files that only they need become young first, so that whoever looks for old files that nobody names gives
    those who read them as long as the files that were never committed.

    :param known: what was read of the table before.
    :param check: called right before each try at the commit; what it raises ends the work.
    :returns: ids of the snapshots that went.
    :raises CommitConflict: other writers kept winning.
    """
    for attempt in range(TRIES):
        table = load()
        there = {s.snapshot_id for s in table.metadata.snapshots}
        heads = {ref.snapshot_id for ref in table.metadata.refs.values()}
        going = (choose(table) & there) - heads
        if not going:
            return []
        references = References(table, known=known)
        _make_young(table, references.of(going) - references.of(there - going))
        check()
        point("expire:before")
        try:
            send(table, removal(table, going), (Unchanged.since(table.metadata),))
        except CommitFailedException:
            time.sleep(random.uniform(0.0, 0.02 * 2 ** min(attempt, 6)))
            continue
        point("expire:after")
        return sorted(going)
    raise CommitConflict(f"{name}: other writers won {TRIES} times", "run it again when fewer tasks write this table")


def noted(note: str) -> set[str]:
    """
    The files that a note names; none if it is gone.

    :raises ContractBroken: it cannot be read.
    """
    try:
        return set(map(str, json.loads(tree.read(note) or b'{"files": []}')["files"]))
    except (ValueError, KeyError, TypeError) as cause:
        raise ContractBroken(f"{note} cannot be read: {cause}", "remove it if it is not Airloop's") from cause


def _make_young(table: Table, paths: Collection[str]) -> None:
    in_bucket = sorted(path for path in paths if path.startswith(tree.SCHEME))
    for path in set(paths).difference(in_bucket):
        with suppress(FileNotFoundError):
            os.utime(path)
    if in_bucket:
        note = f"{local_path(table.location())}/metadata/expired-{uuid.uuid4()}.json"
        with table.io.new_output(note).create() as file:
            file.write(json.dumps({"files": in_bucket}).encode())


def removal(table: Table, leaving: set[int], *, remembered_by: Table | None = None) -> tuple[TableUpdate, ...]:
    """
    What takes snapshots out of the metadata, and keeps in its memory whose child and whose work they were.

    :param table: still has them.
    :param remembered_by: the table as it will be but for the removal, if that has more snapshots than ``table``.
    """
    keys = {
        s.snapshot_id: s.summary.additional_properties.get(KEY, "")
        for s in table.metadata.snapshots
        if s.snapshot_id in leaving and s.summary is not None
    }
    memory = remembering(remembered_by or table, leaving, keys)
    return (
        SetPropertiesUpdate(updates={PROPERTY: memory}),
        RemoveSnapshotsUpdate.model_validate({"snapshot-ids": sorted(leaving)}),
    )


def _state(metadata: TableMetadata) -> object:
    snapshots = frozenset(s.snapshot_id for s in metadata.snapshots)
    refs = {name: ref.snapshot_id for name, ref in metadata.refs.items()}
    return metadata.table_uuid, snapshots, refs, metadata.properties.get(PROPERTY)
