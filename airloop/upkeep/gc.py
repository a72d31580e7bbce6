"""
``airloop gc``: take away what nobody needs, while loops run.

In this order, so that a process that is killed anywhere leaves nothing that a reader could miss: branches that led
nowhere, snapshots that nothing protects (metadata first), then files that nothing names. A file goes only if no
snapshot of the table's metadata, read after the file was seen, names it, and it is older than the grace period and
than the oldest attempt that runs: what a writer has not committed yet stays, and so does what a reader still reads.
The files of an expired snapshot are as old as its expiry.
"""

from __future__ import annotations

import logging
import re
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airloop.config import Config, local_folder, own_catalog
from airloop.errors import StoreBusy
from airloop.faults import point
from airloop.frame import running
from airloop.locks import locks_of
from airloop.upkeep.retention import NAMED, Policy, Reasons, protected
from airloop.upkeep.sweep import folders_below, leftovers

if TYPE_CHECKING:
    from pyiceberg.table import Table

    from airloop.warehouse.catalog import Warehouse

log = logging.getLogger("airloop.upkeep")

GRACE_S = 86_400.0
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
    :raises BadConfiguration: the tables' files are in a bucket.
    :raises StoreBusy: another gc or a backup runs.
    :raises ContractBroken: a manifest cannot be read, so that nobody knows what it needs.
    :raises BadConfiguration: the artifacts are in a bucket.
    """
    from airloop.warehouse.catalog import Warehouse

    own_catalog(config, "airloop gc")
    local_folder(config.artifacts, "airloop gc")
    policy = policy or Policy()
    local_folder(config.warehouse, "airloop gc")
    warehouse = Warehouse.open(config)
    found = Collected()
    with alone(config), running.deciding(config):
        # Attempts first, manifests after: what ends in between is in one of them.
        with running.closed(config):
            alive = [a for a in running.attempts(config) if a.alive and a.attempt != own_attempt]
        cutoff = min([time.time() - grace_s, *(a.started_at for a in alive)])
        for name in warehouse.tables():
            _drop_branches(warehouse, name, cutoff, found, dry_run)
        reasons = protected(config, policy)
        for name in warehouse.tables():
            _expire(config, warehouse, name, reasons.get(name, {}), cutoff, found, dry_run)
        _remove_files(warehouse, reasons, cutoff, found, dry_run)
        for kind, path in leftovers(config, cutoff, keep_s=policy.keep_days * 86_400, busy=bool(alive)):
            _remove(kind, path, found, dry_run)
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
) -> None:
    from airloop.warehouse.expire import expire

    def choose(table: Table) -> set[int]:
        stay = set(reasons) | _recent(table, cutoff) | _asked_for(config, name)
        return {s.snapshot_id for s in table.metadata.snapshots} - stay

    if dry_run:
        table = warehouse.table(name)
        gone = sorted(choose(table) - {ref.snapshot_id for ref in table.metadata.refs.values()})
    else:
        # No attempt resolves a reference between the look at what is asked for and the commit.
        with running.closed(config):
            gone = expire(name, lambda: warehouse.table(name), choose)
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
    for entry, following in zip(entries, [*entries[1:], None], strict=True):
        if following is None or following.timestamp_ms / 1000 >= cutoff:
            recent.add(entry.snapshot_id)
    return recent


def _asked_for(config: Config, name: str) -> set[int]:
    """Snapshots that the arguments of an attempt name which runs now, or ended since this gc began."""
    texts = [a.arguments for a in running.attempts(config)]
    return {int(at) for text in texts for table, at in NAMED.findall(text) if table == name}


def _remove_files(warehouse: Warehouse, reasons: Reasons, cutoff: float, found: Collected, dry_run: bool) -> None:
    """Files below the folders of tables, also of dropped ones, that no table's metadata names."""
    from airloop.warehouse.recall import files, recall
    from airloop.warehouse.references import References, folder

    places = {folder(warehouse.table(name)) for name in warehouse.tables()}
    root = local_folder(warehouse.config.warehouse, "airloop gc").resolve()
    seen = [
        path
        for place in sorted(places)
        if place.resolve().is_relative_to(root) and place.resolve() != root
        for path in folders_below(place)
    ]
    seen += _of_dropped(warehouse, cutoff, found, dry_run)
    point("gc:listed")
    # Read after the files were seen: what was committed since is named here.
    named: set[str] = set()
    for name in warehouse.tables():
        table = warehouse.table(name)
        named |= References(table).all()
        # What another tool expired in spite of us can be read as long as its files are there.
        named |= {path for s in recall(table, reasons.get(name, {})).values() for path in files(s, table.io)}
    for path in seen:
        if str(path) in named:
            continue
        with suppress(FileNotFoundError):
            if path.stat().st_mtime >= cutoff:
                found.waiting += 1
                continue
            kind = "metadata" if path.parent.name == "metadata" else "data"
            _remove(kind, path, found, dry_run)


def _of_dropped(warehouse: Warehouse, cutoff: float, found: Collected, dry_run: bool) -> Iterator[Path]:
    """
    Files of tables that were dropped before the cutoff, as far as we know.

    A drop leaves no time: it counts from the first gc that sees it, which leaves a note beside the table's lock.
    """
    from airloop.upkeep.dropped import dropped

    places = dropped(warehouse)
    notes = warehouse.config.home / "locks" / "tables"
    for note in [] if dry_run else notes.glob("*.dropped"):
        if note.name.removesuffix(".dropped") not in places:
            # It is there again, or nothing is left of it.
            note.unlink(missing_ok=True)
    for name, place in places.items():
        note = notes / f"{name}.dropped"
        if note.exists() and note.stat().st_mtime < cutoff:
            yield from folders_below(place)
            continue
        found.waiting += sum(1 for _ in folders_below(place))
        if not dry_run and not note.exists():
            note.touch()


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
