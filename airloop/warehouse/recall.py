"""
Snapshots that another tool took out of a table's metadata, but whose files it left.

Airloop's tables forbid it (``gc.enabled`` is ``false``), and not every engine asks. An expiry that only rewrites
metadata loses nothing: the table's earlier metadata files still say what the snapshot was.
"""

from __future__ import annotations

from collections.abc import Collection

from pyiceberg.io import FileIO
from pyiceberg.manifest import ManifestEntryStatus
from pyiceberg.table import Table
from pyiceberg.table.metadata import TableMetadataUtil
from pyiceberg.table.snapshots import Snapshot

from airloop.warehouse.localio import local_path


def recall(table: Table, wanted: Collection[int] | None = None) -> dict[int, Snapshot]:
    """Those of the wanted snapshots (default all) that the metadata names no more and that can be read all the same."""
    found: dict[int, Snapshot] = {}
    there = {s.snapshot_id for s in table.metadata.snapshots}
    missing = None if wanted is None else set(wanted) - there
    for entry in reversed(table.metadata.metadata_log):
        if missing is not None and missing <= set(found):
            break
        file = table.io.new_input(entry.metadata_file)
        if file.exists():
            with file.open() as stream:
                metadata = TableMetadataUtil.parse_raw(stream.read().decode())
            for snapshot in metadata.snapshots:
                if snapshot.snapshot_id not in there and (missing is None or snapshot.snapshot_id in missing):
                    found[snapshot.snapshot_id] = snapshot
    return {i: s for i, s in found.items() if all(table.io.new_input(p).exists() for p in files(s, table.io))}


def files(snapshot: Snapshot, io: FileIO) -> set[str]:
    """Paths, or addresses in a bucket, of all that a snapshot needs; the manifest list alone if that is gone."""
    listed = local_path(snapshot.manifest_list)
    found = {listed}
    if not io.new_input(listed).exists():
        return found
    for manifest in snapshot.manifests(io):
        path = local_path(manifest.manifest_path)
        found.add(path)
        if io.new_input(path).exists():
            entries = manifest.fetch_manifest_entry(io, discard_deleted=True)
            found |= {local_path(e.data_file.file_path) for e in entries if e.status != ManifestEntryStatus.DELETED}
    return found
