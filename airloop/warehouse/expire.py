"""Take snapshots out of a table's metadata; their files stay for the grace period, which begins now."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from contextlib import suppress

from pydantic import PrivateAttr
from pyiceberg.exceptions import CommitFailedException
from pyiceberg.table import Table
from pyiceberg.table.metadata import TableMetadata
from pyiceberg.table.update import AssertTableUUID, RemoveSnapshotsUpdate, SetPropertiesUpdate, TableUpdate

from airloop.errors import BadConfiguration, CommitConflict
from airloop.faults import point
from airloop.warehouse.commit import KEY, TRIES, send
from airloop.warehouse.expired import PROPERTY, remembering
from airloop.warehouse.references import References


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


def expire(name: str, load: Callable[[], Table], choose: Callable[[Table], set[int]]) -> list[int]:
    """
    Expire the snapshots that ``choose`` names, asked afresh after every conflict.

    The files that only they need get the time of now first, so that whoever looks for old files that nobody names
    gives those who read them as long as the files that were never committed.

    :returns: ids of the snapshots that went.
    :raises BadConfiguration: the table's files are in a bucket, whose files have no time that could be set.
    :raises CommitConflict: other writers kept winning.
    """
    for attempt in range(TRIES):
        table = load()
        there = {s.snapshot_id for s in table.metadata.snapshots}
        heads = {ref.snapshot_id for ref in table.metadata.refs.values()}
        going = (choose(table) & there) - heads
        if not going:
            return []
        if table.location().startswith("s3://"):
            raise BadConfiguration(f"{name} is in a bucket, where snapshots cannot be expired yet", "keep them")
        references = References(table)
        for path in references.of(going) - references.of(there - going):
            with suppress(FileNotFoundError):
                os.utime(path)
        point("expire:before")
        try:
            send(table, removal(table, going), (Unchanged.since(table.metadata),))
        except CommitFailedException:
            time.sleep(random.uniform(0.0, 0.02 * 2 ** min(attempt, 6)))
            continue
        point("expire:after")
        return sorted(going)
    raise CommitConflict(f"{name}: other writers won {TRIES} times", "run it again when fewer tasks write this table")


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
