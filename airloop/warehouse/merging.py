"""
Snapshots whose manifests stay few.

PyIceberg merges the manifests of appends only; here those of every change are merged once there are
:data:`MANIFESTS`, so that what a commit and a reader read does not grow with the number of commits.
"""

from __future__ import annotations

from collections.abc import Mapping

from pyiceberg.manifest import ManifestContent, ManifestFile
from pyiceberg.table import Transaction
from pyiceberg.table.snapshots import Operation
from pyiceberg.table.update.snapshot import _ManifestMergeManager, _OverwriteFiles

MANIFESTS = 16
"""Manifests of a snapshot at which they become one."""
TARGET_BYTES = 8 << 20
PROPERTIES = {
    "commit.manifest-merge.enabled": "true",
    "commit.manifest.min-count-to-merge": str(MANIFESTS),
    "commit.manifest.target-size-bytes": str(TARGET_BYTES),
}
"""Table properties by which PyIceberg, and other engines, do the same for appends."""


class MergingOverwrite(_OverwriteFiles):
    """Add and remove data files; manifests are merged from ``merge_at`` on."""

    def __init__(
        self, transaction: Transaction, branch: str, properties: Mapping[str, str], *, merge_at: int = MANIFESTS
    ) -> None:
        on = transaction.table_metadata.snapshot_by_name(name=branch) is not None
        super().__init__(
            operation=Operation.OVERWRITE if on else Operation.APPEND,
            transaction=transaction,
            io=transaction._table.io,
            branch=branch,
            snapshot_properties=dict(properties),
        )
        self._merge_at = merge_at

    def _process_manifests(self, manifests: list[ManifestFile]) -> list[ManifestFile]:
        # A manifest that only says what earlier snapshots removed says nothing any more.
        said = [
            m for m in manifests
            if m.added_snapshot_id == self._snapshot_id or m.has_added_files() or m.has_existing_files()
        ]  # fmt: skip
        data = [m for m in said if m.content == ManifestContent.DATA]
        others = [m for m in said if m.content != ManifestContent.DATA]
        manager = _ManifestMergeManager(TARGET_BYTES, self._merge_at, len(data) >= self._merge_at, self)
        return manager.merge_manifests(data) + others
