"""
What a table remembers of snapshots that have expired: their parents, and the keys of the steps that made them.

Ancestry and "exactly once" outlive the snapshots themselves. The memory is the table property :data:`PROPERTY`,
32 characters for each expired snapshot, changed in the same commit as the snapshots: ``base64(id, parent, first 8 bytes
of the key's SHA-256)``, each big-endian; a record without a key (zeros) says what the parent of a snapshot was that is
still there.
"""

from __future__ import annotations

import base64
import hashlib
import struct
from collections.abc import Iterable, Mapping
from functools import lru_cache

from pyiceberg.table import Table

from airloop.errors import ContractBroken

PROPERTY = "airloop.expired"
_RECORD = struct.Struct(">qq8s")
_NO_KEY = bytes(8)


def parents(table: Table) -> dict[int, int]:
    """Parent of every snapshot that is or was; 0: it built on the empty table."""
    found = {snapshot: parent for snapshot, (parent, _) in _memory(table).items()}
    for snapshot in table.metadata.snapshots:
        # What removes a snapshot makes orphans of its children; only the memory knows better.
        if snapshot.parent_snapshot_id or snapshot.snapshot_id not in found:
            found[snapshot.snapshot_id] = snapshot.parent_snapshot_id or 0
    return found


def heir(table: Table, key: str) -> int:
    """
    The oldest snapshot still there on ``main`` that builds on what a step with this key made and that has expired.

    :returns: 0 if no such step made one, or ``main`` does not build on it.
    """
    digest = _digest(key)
    gone = {snapshot for snapshot, (_, known) in _memory(table).items() if known == digest}
    if not gone:
        return 0
    above = parents(table)
    there = {s.snapshot_id for s in table.metadata.snapshots}
    current, oldest = table.metadata.current_snapshot_id or 0, 0
    while current:
        if current in gone:
            return oldest
        if current in there:
            oldest = current
        current = above.get(current, 0)
    return 0


def remembering(table: Table, leaving: Iterable[int], keys: Mapping[int, str]) -> str:
    """The property's value once the snapshots ``leaving`` are gone; ``keys`` are those of steps, by snapshot."""
    above = parents(table)
    memory = dict(_memory(table))
    gone = set(leaving)
    for snapshot in gone:
        memory[snapshot] = (above[snapshot], _digest(keys[snapshot]) if keys.get(snapshot) else _NO_KEY)
    for left in table.metadata.snapshots:
        if left.snapshot_id not in gone and above[left.snapshot_id] in gone:
            memory[left.snapshot_id] = (above[left.snapshot_id], _NO_KEY)
    packed = b"".join(_RECORD.pack(snapshot, *rest) for snapshot, rest in memory.items())
    return base64.b64encode(packed).decode()


def _memory(table: Table) -> Mapping[int, tuple[int, bytes]]:
    return _unpacked(table.metadata.properties.get(PROPERTY, ""))


@lru_cache(maxsize=64)
def _unpacked(text: str) -> Mapping[int, tuple[int, bytes]]:
    try:
        packed = base64.b64decode(text, validate=True)
        return {snapshot: (parent, key) for snapshot, parent, key in _RECORD.iter_unpack(packed)}
    except (ValueError, struct.error) as cause:
        raise ContractBroken(
            f"the table property {PROPERTY} cannot be read: {cause}", "restore it from a backup"
        ) from cause


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()[:8]
