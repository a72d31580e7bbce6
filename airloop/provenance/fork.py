"""
A private copy of a table's metadata as of some snapshots, whose data stays where it is.

The copy is a table in a catalog of its own: it reads the original's files in place and writes below its own folder.
Whoever works on it can neither change the original nor see what came later.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from pyiceberg.exceptions import NamespaceAlreadyExistsError
from pyiceberg.serializers import ToOutputFile
from pyiceberg.table.refs import SnapshotRef

from airloop.errors import NotFound
from airloop.warehouse.recall import recall
from airloop.warehouse.refs import MAIN
from airloop.warehouse.store import open_catalog

if TYPE_CHECKING:
    from pyiceberg.table import Table
    from pyiceberg.table.snapshots import Snapshot

    from airloop.config import Config

NOT_TAKEN = ("write.data.path", "write.metadata.path")
"""Properties that would send what the copy writes to the original's place."""


def fork(table: Table, into: Config, *, snapshots: Sequence[int], main: int, as_of: int) -> None:
    """
    Make the copy.

    :param into: the configuration whose catalog and warehouse get it; it has no such table yet.
    :param snapshots: to be read by their ids; the snapshots that they build on come along.
    :param main: where the copy's ``main`` is; 0: the copy begins empty.
    :param as_of: snapshot whose schema is the copy's; 0: the table's own.
    :raises NotFound: the table has not all of these snapshots.
    """
    name = ".".join(table.name())
    known = snapshots_of(table, [*snapshots, main, as_of])
    for wanted in (*snapshots, main):
        if wanted and wanted not in known:
            raise NotFound(f"{name} has no snapshot {wanted}", "it has expired, or never was")
    kept = {found for wanted in (*snapshots, main) for found in _line(known, wanted)}
    root = f"file://{into.warehouse}" if isinstance(into.warehouse, Path) else str(into.warehouse)
    location = f"{root}/{name.replace('.', '/')}-{uuid.uuid4().hex[:12]}"
    schema_id = known[as_of].schema_id if as_of else None
    metadata = table.metadata.model_copy(
        update={
            "location": location,
            "snapshots": [s for s in known.values() if s.snapshot_id in kept],
            "snapshot_log": [],
            # Their files belong to the original, which a commit here would tidy up.
            "metadata_log": [],
            "statistics": [],
            "partition_statistics": [],
            "current_snapshot_id": main or None,
            "current_schema_id": schema_id if schema_id is not None else table.metadata.current_schema_id,
            "refs": {MAIN: SnapshotRef.model_validate({"snapshot-id": main, "type": "branch"})} if main else {},
            "properties": {k: v for k, v in table.metadata.properties.items() if k not in NOT_TAKEN},
        }
    )
    catalog = open_catalog(into)
    address = f"{location}/metadata/00000-{uuid.uuid4()}.metadata.json"
    ToOutputFile.table_metadata(metadata, table.io.new_output(address))
    with suppress(NamespaceAlreadyExistsError):
        catalog.create_namespace(name.partition(".")[0])
    catalog.register_table(name, address)


def snapshots_of(table: Table, wanted: Collection[int]) -> dict[int, Snapshot]:
    """All snapshots of a table by id, with those of the wanted ones that another tool expired and left the files of."""
    return {s.snapshot_id: s for s in table.metadata.snapshots} | recall(table, [w for w in wanted if w])


def _line(known: Mapping[int, Snapshot], snapshot: int | None) -> Iterator[int]:
    """A snapshot and those that it builds on, as far as they are there."""
    while snapshot and snapshot in known:
        yield snapshot
        snapshot = known[snapshot].parent_snapshot_id
