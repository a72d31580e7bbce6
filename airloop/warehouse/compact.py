"""
Few large files in the place of many small ones: the same rows, in one snapshot more.

Small files of one partition become one, in the order in which they are read; files that are large enough stay. Rows
are counted and their hashes summed before and after. The snapshot says whose rows it holds (``airloop.same-rows``), so
that references, keys and readers of new rows take it for that one. Older snapshots keep their files.
"""

from __future__ import annotations

import random
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import duckdb
import pyarrow as pa
from pyiceberg.exceptions import CommitFailedException
from pyiceberg.manifest import DataFile
from pyiceberg.schema import Schema
from pyiceberg.table import Table
from pyiceberg.table.snapshots import Operation, Summary

from airloop.config import Config
from airloop.errors import AirloopError, CommitConflict
from airloop.faults import point
from airloop.locks import Locks
from airloop.warehouse.commit import (
    ADDED,
    DELETED,
    KEY,
    LOCK_WAIT_S,
    TRIES,
    UPDATED,
    content,
    head,
    ref_is,
    send_snapshot,
)
from airloop.warehouse.files import DataFileWriter
from airloop.warehouse.iceberg import Transaction
from airloop.warehouse.localio import local_path
from airloop.warehouse.merging import MANIFESTS, MergingOverwrite
from airloop.warehouse.plan import ROWS_PER_READ, Plan
from airloop.warehouse.read import LiveFile, as_schema, connect, execute, live_files, select
from airloop.warehouse.refs import MAIN, SAME_ROWS
from airloop.warehouse.schema import quoted, to_arrow

SMALL_FILES = 4
"""Small files of a partition at which they are worth rewriting."""


@dataclass(frozen=True, slots=True)
class Compacted:
    """What a compaction did."""

    table: str
    snapshot: int
    """Head of ``main`` afterwards."""
    files_before: int
    files_after: int
    manifests_before: int
    manifests_after: int
    rows: int
    """Rows that were rewritten."""

    @property
    def changed(self) -> bool:
        return (self.files_before, self.manifests_before) != (self.files_after, self.manifests_after)


def compact(config: Config, name: str, load: Callable[[], Table], locks: Locks) -> Compacted:
    """
    Rewrite the small files and manifests of ``main``; nothing happens if there are few.

    Rows are rewritten without a lock; the commit is taken only if the files are still those of ``main``.

    :raises CommitConflict: other writers kept rewriting the same files.
    """
    for attempt in range(TRIES):
        table = load()
        base = head(table, MAIN)
        files = live_files(table, base)
        small = _small(table, files, config.rows_per_chunk)
        manifests = _manifests(table, base)
        if not small and manifests <= MANIFESTS:
            return Compacted(name, base, len(files), len(files), manifests, manifests, 0)
        writer = DataFileWriter(table, rows_per_file=config.rows_per_chunk)
        plan = Plan(remove=[f.data_file for f in small])
        try:
            plan.add = _rewritten(config, table, small, writer)
            point("compact:written")
            with locks.turn(f"tables/{name}", timeout_s=LOCK_WAIT_S):
                current = load()
                if _still_live(current, table, small):
                    snapshot = _commit(current, load, plan)
                    point("compact:after")
                    now = load()
                    return Compacted(
                        name,
                        snapshot,
                        len(files),
                        len(files) - len(small) + len(plan.add),
                        manifests,
                        _manifests(now, snapshot),
                        sum(f.rows for f in small),
                    )
        except CommitFailedException:
            pass
        finally:
            # Of what was sent we may never hear that it was done: the files stay for gc to judge.
            if not plan.sent:
                writer.abort()
        time.sleep(random.uniform(0.0, 0.02 * 2 ** min(attempt, 6)))
    raise CommitConflict(f"{name}: other writers won {TRIES} times", "run it again when fewer tasks write this table")


def _small(table: Table, files: Sequence[LiveFile], rows_per_file: int) -> list[LiveFile]:
    """Files worth rewriting, by partition; those of an older partitioning are left alone."""
    spec = table.spec().spec_id
    groups: dict[Any, list[LiveFile]] = defaultdict(list)
    for file in files:
        if file.data_file.spec_id == spec and file.rows < rows_per_file // 2:
            groups[tuple(file.data_file.partition[i] for i in range(len(table.spec().fields)))].append(file)
    return [file for group in groups.values() if len(group) >= SMALL_FILES for file in group]


def _rewritten(config: Config, table: Table, small: Sequence[LiveFile], writer: DataFileWriter) -> list[DataFile]:
    if not small:
        return []
    schema = table.schema()
    arrow = to_arrow(schema)
    with connect(config) as connection:
        for batch in execute(connection, select(small, schema)).to_arrow_reader(ROWS_PER_READ):
            writer.write(pa.Table.from_batches([as_schema(batch, arrow)]))
        written = writer.close()
        before = _fingerprint(connection, schema, small)
        after = _fingerprint(connection, schema, [local_path(f.file_path) for f in written])
    if before != after:
        raise AirloopError(
            f"{'.'.join(table.name())}: {before} rows and sum of hashes before the compaction, {after} after it",
            "nothing was changed; report this",
        )
    return written


def _fingerprint(
    connection: duckdb.DuckDBPyConnection, schema: Schema, files: Sequence[LiveFile] | Sequence[str]
) -> object:
    columns = ", ".join(quoted(f.name) for f in schema.fields)
    return execute(
        connection, f"SELECT count(*), sum(hash({columns})::HUGEINT) FROM ({select(files, schema)})"
    ).fetchone()


def _still_live(current: Table, planned: Table, small: Sequence[LiveFile]) -> bool:
    if current.schema() != planned.schema() or current.spec() != planned.spec():
        return False
    there = {f.path for f in live_files(current, head(current, MAIN))}
    return all(file.path in there for file in small)


def _manifests(table: Table, snapshot: int) -> int:
    found = table.metadata.snapshot_by_id(snapshot)
    return len(found.manifests(table.io)) if found else 0


def _commit(table: Table, load: Callable[[], Table], plan: Plan) -> int:
    base = head(table, MAIN)
    transaction = Transaction(table)
    properties = {
        KEY: f"compact:{uuid.uuid4()}",
        SAME_ROWS: str(content(table, base)),
        **dict.fromkeys((ADDED, UPDATED, DELETED), "0"),
    }
    producer = _SameRows(transaction, MAIN, properties, merge_at=2)
    for file in plan.add:
        producer.append_data_file(file)
    for file in plan.remove:
        producer.delete_data_file(file)
    return send_snapshot(table, load, producer, plan, (ref_is(MAIN, base),), what="compact")


class _SameRows(MergingOverwrite):
    """A snapshot of the operation that says: the same rows. PyIceberg makes none by itself."""

    def _summary(self, snapshot_properties: dict[str, str] = {}) -> Summary:  # noqa: B006 - PyIceberg's signature
        made = super()._summary(snapshot_properties)
        return Summary(operation=Operation.REPLACE, **made.additional_properties)
