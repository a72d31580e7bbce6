"""
Take rows out of a table and out of its whole history.

Every snapshot through which one of the rows could still be found leaves the table: those whose files hold it, and
those whose manifests still describe such a file, for a manifest keeps least and greatest values. Each branch gets a
new head with all other rows, in one commit; then the files are removed. The snapshots that never held the rows
stay what they were.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
from pyiceberg.exceptions import CommitFailedException
from pyiceberg.manifest import ManifestEntry, ManifestEntryStatus, ManifestFile
from pyiceberg.table import StagedTable, Table, Transaction
from pyiceberg.table.refs import SnapshotRefType
from pyiceberg.table.snapshots import Operation, Snapshot, Summary
from pyiceberg.table.update import RemoveSnapshotRefUpdate
from pyiceberg.table.update.snapshot import _FastAppendFiles
from pyiceberg.typedef import EMPTY_DICT

from airloop.errors import CommitConflict
from airloop.faults import point
from airloop.training.examples import FEATURES_PROPERTY
from airloop.warehouse import read, tree
from airloop.warehouse.commit import KEY, TRIES, head, send
from airloop.warehouse.expire import NOTE, Unchanged, removal
from airloop.warehouse.localio import local_path
from airloop.warehouse.plan import Plan, plan_delete
from airloop.warehouse.recall import files as files_of
from airloop.warehouse.recall import recall
from airloop.warehouse.references import References

if TYPE_CHECKING:
    from airloop.config import Config

FILES_PER_QUERY = 200


@dataclass
class Found:
    """Where rows of a table are, in its present and its past."""

    table: str
    rows: int = 0
    """Rows of ``main``."""
    snapshots: list[int] = field(default_factory=list)
    """Snapshots through which one of the rows can be found."""
    recalled: list[int] = field(default_factory=list)
    """Likewise of those that another tool has expired without removing their files."""
    branches: list[str] = field(default_factory=list)
    """Branches whose head is one of them."""
    files: list[str] = field(default_factory=list)
    """Data files, local paths or addresses, that hold one of the rows, whether a snapshot names them or not."""
    unneeded: list[str] = field(default_factory=list)
    """Other files, likewise, that no snapshot needs which never held the rows; new heads may."""

    def __bool__(self) -> bool:
        return bool(self.snapshots or self.files)


@dataclass(frozen=True, slots=True)
class Rows:
    """Which rows of a table."""

    where: str
    """DuckDB predicate over the table's columns."""
    texts: tuple[str, ...]
    """Values that tell the rows, as far as they are texts."""


def find(config: Config, table: Table, rows: Rows) -> Found:
    """
    Look for rows in every file that the table's snapshots name, and in files that no snapshot names.
    """
    where = rows.where
    found = Found(".".join(table.name()))
    recalled = recall(table)
    entries = _Entries(table, recalled)
    named = {path for snapshot in entries.snapshots for path in entries.paths(snapshot)}
    here = {file.path for file in tree.of_tables(config, local_path(table.location()))}
    loose = {path for path in here if path.endswith(".parquet")} - named
    with read.connect(config) as connection:
        # What lies elsewhere, as the files of a table that was copied do, has to be asked for one by one.
        there = sorted(path for path in named if path in here or tree.exists(path))
        dirty = set(_matching(connection, table, there, where))
        # Nothing reads or writes while an erasure runs: a loose file that is no Parquet file is what a kill left.
        dirty |= {path for path in sorted(loose) if is_broken(connection, path)}
        dirty |= set(_matching(connection, table, sorted(loose - dirty), where))
        main = [p for p in entries.paths(head(table, "main"), live=True) if p in dirty]
        found.rows = _count(connection, table, main, where)
    found.files = sorted(dirty)
    # A file that is gone already can be asked no more, but what is described of it may tell a row.
    dirty |= {path for path in named - set(there) if entries.tell(path, rows.texts)}
    told = {snapshot for snapshot in entries.snapshots if dirty & entries.paths(snapshot)}
    found.snapshots = [s.snapshot_id for s in table.metadata.snapshots if s.snapshot_id in told]
    found.recalled = sorted(told & set(recalled))
    references = References(table)
    needed = references.of(s.snapshot_id for s in table.metadata.snapshots if s.snapshot_id not in told)
    needed |= {path for s in recalled.values() if s.snapshot_id not in told for path in files_of(s, table.io)}
    # Manifests keep least and greatest values: those that a killed writer left go as well.
    manifests = {path for path in here if path.endswith(".avro")}
    # Notes of what expired name partitions, and nobody reads now what they keep.
    notes = {path for path in here if NOTE.search(path)} if found else set()
    found.unneeded = sorted((manifests | notes | references.of(found.snapshots)) - needed - set(found.files))
    found.branches = sorted(
        name
        for name, ref in table.metadata.refs.items()
        if ref.snapshot_id in found.snapshots and ref.snapshot_ref_type == SnapshotRefType.BRANCH
    )
    return found


def forget(
    config: Config, load: Callable[[], Table], rows: Rows, *, key: str, before: Callable[[Found, list[str]], None]
) -> Found:
    """
    Take the rows out, in one commit, and remove their files.

    :param load: gives the table with metadata fresh from the catalog.
    :param key: what the new heads' keys begin with.
    :param before: called with what is found and the files that will go, before each attempt at the commit.
    :raises CommitConflict: other writers kept winning.
    """
    for attempt in range(TRIES):
        table = load()
        found = find(config, table, rows)
        if not found:
            return found
        going = {*found.files, *found.unneeded}
        before(found, sorted(going))
        if found.snapshots:
            try:
                _commit(config, table, found, rows.where, key)
            except CommitFailedException:
                time.sleep(random.uniform(0.0, 0.02 * 2 ** min(attempt, 6)))
                continue
        point("erase:committed")
        tree.remove(going - References(load()).all())
        return found
    raise CommitConflict(f"{found.table}: other writers won {TRIES} times", "stop what writes it, then run it again")


def remove_empty_folders(root: Path) -> None:
    """Take folders without files away: that of a partition bears the value of its rows."""
    for place, _, _ in os.walk(root, topdown=False):
        # With a file in it, it stays.
        with suppress(OSError):
            if Path(place) != root:
                Path(place).rmdir()


def _commit(config: Config, table: Table, found: Found, where: str, key: str) -> None:
    """Give the branches new heads and let the snapshots go."""
    transaction = Transaction(table)
    leaving = set(found.snapshots)
    plans: list[Plan] = []
    sent = False
    try:
        with read.connect(config) as connection:
            for branch in found.branches:
                at = head(table, branch)
                plan = plan_delete(connection, config, table, at, where)
                plans.append(plan)
                gone = {file.file_path for file in plan.remove}
                entries = [e for e in _Entries(table, {}).live(at) if e.data_file.file_path not in gone]
                producer = _Rewritten(transaction, branch, _carried(table, at, f"{key}:{branch}"), entries)
                for file in plan.add:
                    producer.append_data_file(file)
                updates, _ = producer._commit()
                transaction._stage(updates)
        tags = [
            RemoveSnapshotRefUpdate.model_validate({"ref-name": name})
            for name, ref in table.metadata.refs.items()
            if ref.snapshot_id in leaving and name not in found.branches
        ]
        # The new heads' ancestry goes through the snapshots that leave: remember it with them there.
        staged = StagedTable(table.name(), transaction.table_metadata, table.metadata_location, table.io, table.catalog)
        changes = (*transaction._updates, *tags, *removal(table, leaving, remembered_by=staged))
        point("erase:commit")
        sent = True
        send(table, changes, (Unchanged.since(table.metadata),))
    except CommitFailedException:
        sent = False
        raise
    finally:
        if not sent:
            for plan in plans:
                if plan.rewritten is not None:
                    plan.rewritten.abort()


def _carried(table: Table, snapshot: int, key: str) -> dict[str, str]:
    """Properties of a new head: what the builder of a training table recorded has to stay with its rows."""
    carried = {KEY: key}
    at: int | None = snapshot
    while at:
        found = table.metadata.snapshot_by_id(at)
        if found is None:
            break
        properties = found.summary.additional_properties if found.summary else {}
        if FEATURES_PROPERTY in properties:
            return carried | {FEATURES_PROPERTY: properties[FEATURES_PROPERTY]}
        at = found.parent_snapshot_id
    return carried


class _Rewritten(_FastAppendFiles):
    """A snapshot of files that were there, with their sequence numbers, and of rewritten ones; no word of others."""

    def __init__(
        self, transaction: Transaction, branch: str, properties: Mapping[str, str], kept: Sequence[ManifestEntry]
    ) -> None:
        super().__init__(
            operation=Operation.OVERWRITE,
            transaction=transaction,
            io=transaction._table.io,
            branch=branch,
            snapshot_properties=dict(properties),
        )
        self._kept = kept

    def _existing_manifests(self) -> list[ManifestFile]:
        made = []
        for spec_id in sorted({e.data_file.spec_id for e in self._kept}):
            with self.new_manifest_writer(self.spec(spec_id)) as writer:
                for entry in self._kept:
                    if entry.data_file.spec_id == spec_id:
                        writer.add_entry(
                            ManifestEntry.from_args(
                                status=ManifestEntryStatus.EXISTING,
                                snapshot_id=entry.snapshot_id,
                                sequence_number=entry.sequence_number,
                                file_sequence_number=entry.file_sequence_number,
                                data_file=entry.data_file,
                            )
                        )
            made.append(writer.to_manifest_file())
        return made

    def _summary(self, snapshot_properties: Mapping[str, str] = EMPTY_DICT) -> Summary:
        files = [e.data_file for e in self._kept] + self._added_data_files
        totals = {
            "total-data-files": len(files),
            "total-records": sum(f.record_count for f in files),
            "total-files-size": sum(f.file_size_in_bytes for f in files),
            "total-delete-files": 0,
            "total-position-deletes": 0,
            "total-equality-deletes": 0,
        }
        return Summary(Operation.OVERWRITE, **{n: str(v) for n, v in totals.items()}, **dict(snapshot_properties))


class _Entries:
    """What the manifests of a table's snapshots list; a manifest that several share is read once."""

    def __init__(self, table: Table, more: Mapping[int, Snapshot]) -> None:
        """:param more: snapshots beside those that the table's metadata names."""
        self._table = table
        self.snapshots = {s.snapshot_id: s for s in table.metadata.snapshots} | dict(more)
        self._read: dict[str, list[ManifestEntry]] = {}

    def paths(self, snapshot: int, *, live: bool = False) -> set[str]:
        """Paths or addresses of the data files that a snapshot lists, as there or (unless ``live``) as removed."""
        return {
            local_path(e.data_file.file_path)
            for e in self._of(snapshot)
            if not live or e.status != ManifestEntryStatus.DELETED
        }

    def live(self, snapshot: int) -> list[ManifestEntry]:
        """Entries of the data files of a snapshot."""
        return [e for e in self._of(snapshot) if e.status != ManifestEntryStatus.DELETED]

    def tell(self, path: str, texts: Sequence[str]) -> bool:
        """Whether the least and greatest values of a file's columns hold one of the texts."""
        for entry in (e for entries in self._read.values() for e in entries):
            if local_path(entry.data_file.file_path) == path:
                bounds = (entry.data_file.lower_bounds or {}, entry.data_file.upper_bounds or {})
                # Long texts are cut short, to 16 characters by most writers.
                if any(text.encode()[:16] in bound for b in bounds for bound in b.values() for text in texts):
                    return True
        return False

    def _of(self, snapshot: int) -> Iterator[ManifestEntry]:
        found = self.snapshots.get(snapshot)
        for manifest in found.manifests(self._table.io) if found is not None else []:
            if manifest.manifest_path not in self._read:
                self._read[manifest.manifest_path] = manifest.fetch_manifest_entry(
                    self._table.io, discard_deleted=False
                )
            yield from self._read[manifest.manifest_path]


def _matching(connection: duckdb.DuckDBPyConnection, table: Table, paths: Sequence[str], where: str) -> Iterator[str]:
    for start in range(0, len(paths), FILES_PER_QUERY):
        files = paths[start : start + FILES_PER_QUERY]
        query = read.select(files, table.schema(), extra='filename AS "#file"')
        found = read.execute(connection, f'SELECT DISTINCT "#file" FROM ({query}) WHERE {where}').fetchall()
        yield from (str(path) for (path,) in found)


def _count(connection: duckdb.DuckDBPyConnection, table: Table, paths: Sequence[str], where: str) -> int:
    if not paths:
        return 0
    query = f"SELECT count(*) FROM ({read.select(paths, table.schema())}) WHERE {where}"
    row: Any = read.execute(connection, query).fetchone()
    return int(row[0])


def is_broken(connection: duckdb.DuckDBPyConnection, path: str) -> bool:
    """Whether a file is no Parquet file. A store that is away says nothing of it."""
    try:
        connection.execute("SELECT 1 FROM parquet_metadata(?) LIMIT 1", [path])
    except duckdb.HTTPException:
        raise
    except (duckdb.IOException, duckdb.InvalidInputException):
        return True
    return False
