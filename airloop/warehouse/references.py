"""Which files a table's snapshots need."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pyiceberg.manifest import ManifestFile
from pyiceberg.table import Table

from airloop.warehouse.localio import local_path

READ_AT_ONCE = 8
"""Files of a bucket that are read at a time: each is a wait."""


class References:
    """
    The files of one table's snapshots; a manifest that several share is read once.

    All names are held: some 200 bytes for each file that a snapshot names.
    """

    def __init__(self, table: Table, *, known: References | None = None) -> None:
        """:param known: of an earlier state of this table: what it has read is not read again, for it never changes."""
        self._table = table
        self._lists: dict[int, list[ManifestFile]] = known._lists if known else {}
        self._files: dict[str, frozenset[str]] = known._files if known else {}

    def of(self, snapshots: Iterable[int]) -> set[str]:
        """Paths, or addresses in a bucket, of manifest lists, manifests and data files of these snapshots."""
        found: set[str] = set()
        snapshots = list(snapshots)
        if self._table.location().startswith("s3://"):
            self._read(snapshots)
        for snapshot in snapshots:
            listed = self._table.metadata.snapshot_by_id(snapshot)
            if listed is None:
                continue
            if snapshot not in self._lists:
                self._lists[snapshot] = list(listed.manifests(self._table.io))
            found.add(local_path(listed.manifest_list))
            for manifest in self._lists[snapshot]:
                found.add(local_path(manifest.manifest_path))
                found |= self._of_manifest(manifest)
        return found

    def all(self) -> set[str]:
        """Paths, or addresses in a bucket, of all that the metadata names, itself and its older versions included."""
        metadata = self._table.metadata
        found = self.of(s.snapshot_id for s in metadata.snapshots)
        found.add(local_path(self._table.metadata_location))
        found |= {local_path(entry.metadata_file) for entry in metadata.metadata_log}
        found |= {local_path(s.statistics_path) for s in metadata.statistics}
        found |= {local_path(s.statistics_path) for s in metadata.partition_statistics}
        return found

    def _read(self, snapshots: Sequence[int]) -> None:
        """Read what is not known of these snapshots, several files at a time."""
        there = {s.snapshot_id: s for s in self._table.metadata.snapshots}
        new = [there[s] for s in snapshots if s in there and s not in self._lists]
        with ThreadPoolExecutor(READ_AT_ONCE) as pool:
            for snapshot, manifests in zip(new, pool.map(lambda s: s.manifests(self._table.io), new), strict=True):
                self._lists[snapshot.snapshot_id] = list(manifests)
            listed = {m.manifest_path: m for s in snapshots if s in self._lists for m in self._lists[s]}
            # A map waits for all, and raises what one of them raises.
            list(pool.map(self._of_manifest, (m for path, m in listed.items() if path not in self._files)))

    def _of_manifest(self, manifest: ManifestFile) -> frozenset[str]:
        if manifest.manifest_path not in self._files:
            entries = manifest.fetch_manifest_entry(self._table.io, discard_deleted=True)
            self._files[manifest.manifest_path] = frozenset(local_path(e.data_file.file_path) for e in entries)
        return self._files[manifest.manifest_path]


def folder(table: Table) -> Path:
    """Local folder of a table's files."""
    return Path(local_path(table.location()))
