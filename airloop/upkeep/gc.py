"""
``airloop gc``: take away what nobody needs, while loops run.

In this order, so that a process that is killed anywhere leaves nothing that a reader could miss: branches that led
nowhere, snapshots that nothing protects (metadata first), then files that nothing names. A file goes only if no
snapshot of the table's metadata, read after the file was seen, names it, and it is older than the grace period and
than the oldest attempt that runs: what a writer has not committed yet stays, and so does what a reader still reads.
The files of an expired snapshot are as old as its expiry. Ages of files in a bucket are told by the store's clock.
"""

from __future__ import annotations

import logging
import re
import shutil
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import islice, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airloop.config import Config, S3Address, own_catalog
from airloop.errors import StoreBusy
from airloop.faults import point
from airloop.frame import running
from airloop.locks import PostgresLocks, locks_of
from airloop.objects import Bulk, Listed
from airloop.objects.bulk import AT_A_TIME, CLOCK_STEP_S
from airloop.records import INTERVALS
from airloop.upkeep.owner import refuse_others
from airloop.upkeep.retention import NAMED, Policy, protected, refuse_another_store, tell
from airloop.upkeep.sweep import UNFINISHED, Published, leftovers
from airloop.upkeep.traces import JOURNALS
from airloop.usage import FOLDER

if TYPE_CHECKING:
    from pyiceberg.table import Table

    from airloop.upkeep.orphans import Orphans
    from airloop.warehouse.catalog import Warehouse
    from airloop.warehouse.tree import File

log = logging.getLogger("airloop.upkeep")

GRACE_S = 86_400.0
CLOCKS_S = 300.0
"""Seconds by which clocks of machines that share a state may differ: what an attempt may hold is so much older."""
ARTIFACTS = frozenset({"steps", "runs", INTERVALS, "attempts", "code", "reports", "doctor", JOURNALS, FOLDER})
"""Folders in which Airloop publishes artifacts and records."""
AUDIT = re.compile(r"audit-[0-9a-f]{12}(-.*)?")
"""Branches that steps make for batches which are not published yet."""


@dataclass
class Collected:
    """What went, or would go, and why the rest stayed."""

    branches: list[str] = field(default_factory=list)
    """``table@branch``."""
    snapshots: list[str] = field(default_factory=list)
    """``table@snapshot``."""
    files: Counter[str] = field(default_factory=Counter)
    """Files by kind."""
    bytes: Counter[str] = field(default_factory=Counter)
    """Their bytes by kind."""
    stayed: dict[str, dict[str, int]] = field(default_factory=dict)
    """By table: how many snapshots stayed for which kind of reason."""
    waiting: int = 0
    """Files that nothing names, too young to go."""

    def as_json(self) -> dict[str, Any]:
        return {
            "branches": self.branches,
            "snapshots": self.snapshots,
            "files": dict(self.files),
            "bytes": dict(self.bytes),
            "stayed": self.stayed,
            "files_waiting": self.waiting,
        }


@contextmanager
def alone(config: Config, *, timeout_s: float = 5.0) -> Iterator[None]:
    """Be the only one that takes away, or that copies all there is. :raises StoreBusy: another one is at it."""
    with locks_of(config).turn("upkeep", timeout_s=timeout_s) as held:
        if not held:
            raise StoreBusy("another gc, backup or upgrade works on this home", "wait for its end, then run it again")
        yield


def collect(
    config: Config,
    policy: Policy | None = None,
    *,
    grace_s: float = GRACE_S,
    dry_run: bool = False,
    own_attempt: str = "",
) -> Collected:
    """
    Take away what nobody needs.

    :param policy: what stays for how long.
    :param grace_s: seconds that a file must be old, and a snapshot no branch's head, to go.
    :param dry_run: only say what would go.
    :param own_attempt: the attempt that calls, if it is a step: it reads no table.
    :raises StoreBusy: another gc or a backup runs.
    :raises ContractBroken: a manifest cannot be read, so that nobody knows what it needs.
    :raises BadConfiguration: the artifact store, or the registry of models, is not the one that loops use; or the
        tables may be another catalog's.
    :raises Unreachable: a store is away, or forgot meanwhile who runs; what went was needed by nobody.
    """
    from airloop.upkeep.orphans import Orphans
    from airloop.warehouse.catalog import Warehouse

    own_catalog(config, "airloop gc")
    policy = policy or Policy()
    warehouse = Warehouse.open(config)
    found = Collected()
    with alone(config), running.deciding(config) as still:
        refuse_others(config, dry_run=dry_run)
        # Attempts first, manifests after: what ends in between is in one of them.
        with running.closed(config):
            alive = [a for a in running.attempts(config) if a.alive and a.attempt != own_attempt]
        apart_s = CLOCKS_S if isinstance(locks_of(config), PostgresLocks) else 0.0
        cutoff = min([time.time() - grace_s, *(a.started_at - apart_s for a in alive)])
        told = tell(config)
        refuse_another_store(warehouse, told, cutoff)
        for name in warehouse.tables():
            _drop_branches(warehouse, name, cutoff, found, dry_run)
        reasons = protected(config, policy, told=told)
        orphans = Orphans(warehouse, cutoff)
        for name in warehouse.tables():
            _expire(config, warehouse, name, reasons.get(name, {}), cutoff, found, dry_run, orphans, still)
        orphans.look()
        point("gc:listed")
        for kind, going in orphans.decide(reasons, dry_run=dry_run):
            _remove_files(kind, going, found, dry_run)
        found.waiting += orphans.waiting
        for kind, path in leftovers(config, cutoff):
            _remove(kind, path, found, dry_run)
        published = Published(config, told, cutoff)
        _sweep(published, policy, found, dry_run)
        _sweep_code(config, published, found, dry_run, own_attempt, still)
        _abort_uploads(config, orphans.places(), cutoff, found, dry_run)
    return found


def _drop_branches(warehouse: Warehouse, name: str, cutoff: float, found: Collected, dry_run: bool) -> None:
    """Audit branches whose batch was published or refused; its snapshot stays as long as its run can be replayed."""
    from pyiceberg.table.refs import SnapshotRefType

    metadata = warehouse.table(name).metadata
    for branch, ref in sorted(metadata.refs.items()):
        head = metadata.snapshot_by_id(ref.snapshot_id)
        ours = ref.snapshot_ref_type == SnapshotRefType.BRANCH and AUDIT.fullmatch(branch)
        if ours and head is not None and head.timestamp_ms / 1000 < cutoff:
            if not dry_run:
                warehouse.drop_branch(name, branch)
            found.branches.append(f"{name}@{branch}")


def _expire(
    config: Config,
    warehouse: Warehouse,
    name: str,
    reasons: dict[int, list[str]],
    cutoff: float,
    found: Collected,
    dry_run: bool,
    orphans: Orphans,
    still: running.Check,
) -> None:
    from airloop.warehouse.expire import expire

    def choose(table: Table) -> set[int]:
        stay = set(reasons) | _recent(table, cutoff) | _asked_for(config, name)
        return {s.snapshot_id for s in table.metadata.snapshots} - stay

    if dry_run:
        table = warehouse.table(name)
        gone = sorted(choose(table) - {ref.snapshot_id for ref in table.metadata.refs.values()})
    else:
        # Read before the gate closes: then little is left to read behind it.
        known = orphans.known(name)
        # No attempt resolves a reference between the look at what is asked for and the commit.
        with running.closed(config) as gate:

            def check() -> None:
                gate.check()
                still()

            gone = expire(name, lambda: warehouse.table(name), choose, known=known, check=check)
    found.snapshots += [f"{name}@{snapshot}" for snapshot in gone]
    kept: Counter[str] = Counter()
    for snapshot in warehouse.table(name).metadata.snapshots:
        if snapshot.snapshot_id not in gone:
            because = reasons.get(snapshot.snapshot_id, ["recent"])
            kept.update({reason.partition(" ")[0] for reason in because})
    found.stayed[name] = dict(kept)


def _recent(table: Table, cutoff: float) -> set[int]:
    """Snapshots that are younger than the cutoff, or that were the head of ``main`` since: somebody may hold them."""
    metadata = table.metadata
    recent = {s.snapshot_id for s in metadata.snapshots if s.timestamp_ms / 1000 >= cutoff}
    entries = metadata.snapshot_log
    for entry, following in zip_longest(entries, entries[1:]):
        if following is None or following.timestamp_ms / 1000 >= cutoff:
            recent.add(entry.snapshot_id)
    return recent


def _asked_for(config: Config, name: str) -> set[int]:
    """Snapshots that the arguments of an attempt name which runs now, or ended since this gc began."""
    texts = [a.arguments for a in running.attempts(config)]
    return {int(at) for text in texts for table, at in NAMED.findall(text) if table == name}


def _remove_files(kind: str, going: Sequence[File], found: Collected, dry_run: bool) -> None:
    """Files of tables that nothing names."""
    from airloop.warehouse import tree

    point("gc:remove")
    if not dry_run:
        tree.remove([file.path for file in going])
    found.files[kind] += len(going)
    found.bytes[kind] += sum(file.bytes for file in going)


def _sweep(published: Published, policy: Policy, found: Collected, dry_run: bool) -> None:
    """What is of no use any more among artifacts and records."""
    for file in published.unfinished():
        # One by one, and looked at right before: its step may be at it again.
        if published.is_same(file):
            _remove_published(UNFINISHED, published, [file], found, dry_run)
    records = published.attempts(policy.keep_days * 86_400)
    _remove_published("attempts' records", published, records, found, dry_run)
    used = published.usage(policy.keep_days * 86_400)
    _remove_published("records of use", published, used, found, dry_run)


def _sweep_code(
    config: Config, published: Published, found: Collected, dry_run: bool, own_attempt: str, still: running.Check
) -> None:
    """Archived code that no manifest names, unless an attempt that runs, or ended since, may be about to name it."""

    def is_quiet() -> bool:
        return all(a.attempt == own_attempt for a in running.attempts(config))

    if is_quiet():
        code = list(published.code())
        with running.closed(config) as gate:
            if is_quiet():
                gate.check()
                still()
                _remove_published("code", published, code, found, dry_run)


def _remove_published(
    kind: str, published: Published, files: Iterable[Listed], found: Collected, dry_run: bool
) -> None:
    waiting = iter(files)
    while piece := list(islice(waiting, AT_A_TIME)):
        point("gc:remove")
        if not dry_run:
            published.remove([file.name for file in piece])
        found.files[kind] += len(piece)
        found.bytes[kind] += sum(file.bytes for file in piece)


def _abort_uploads(config: Config, places: Collection[str], cutoff: float, found: Collected, dry_run: bool) -> None:
    """Uploads to a bucket that killed processes left: of artifacts, and of files of tables."""
    for place in {config.artifacts, config.warehouse}:
        if not isinstance(place, S3Address):
            continue
        bulk = Bulk(place)
        until = cutoff + bulk.clock_ahead_s() - CLOCK_STEP_S
        for upload in bulk.uploads():
            address = f"{place}/{upload.name}"
            # The place may be a whole bucket, which other tools use too.
            ours = place == config.artifacts and upload.name.partition("/")[0] in ARTIFACTS
            if (ours or any(address.startswith(f"{folder}/") for folder in places)) and upload.begun_at < until:
                if not dry_run:
                    bulk.abort(upload)
                found.files["unfinished uploads"] += 1


def _remove(kind: str, path: Path, found: Collected, dry_run: bool) -> None:
    point("gc:remove")
    files = [p for p in path.rglob("*") if p.is_file()] if path.is_dir() and not path.is_symlink() else [path]
    with suppress(FileNotFoundError):
        size = sum(f.lstat().st_size for f in files)
        if not dry_run:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        found.files[kind] += len(files)
        found.bytes[kind] += size


def describe(found: Collected, *, dry_run: bool) -> Iterator[str]:
    """Lines for people."""
    went = "would go" if dry_run else "went"
    yield f"{len(found.branches):,} audit branches, {len(found.snapshots):,} snapshots {went}"
    for kind, count in sorted(found.files.items()):
        yield f"{count:,} files of {kind} {went}: {found.bytes[kind] / 2**20:,.1f} MiB"
    if found.waiting:
        yield f"{found.waiting:,} files that nothing names are too young to go"
    for table, because in sorted(found.stayed.items()):
        said = ", ".join(f"{reason} {count:,}" for reason, count in sorted(because.items()))
        yield f"{table}: stayed because of {said}" if because else f"{table}: no snapshots"
