"""
Whose work a snapshot is, so that work whose place other work took can be done again.

A key stands for content: whoever goes back to an earlier file or an earlier line of SQL has the earlier key again, and
the table has a snapshot that bears it, though ``main`` holds what came in between. So a snapshot says, in the property
:data:`WORK`, which task made it and for which interval. Work is *replaced* if ``main`` has later work of the same task
for the same rows under another key. It is then done again, under its key with an ordinal: ``KEY:again:1``.

The rows are the same if both are bound to one interval, or if neither is to any; whoever replaces a whole table takes
the place of everything. What a newer interval wrote is never replaced by an older one. What was appended replaces
nothing. A run by hand, which is of no task, stands for any task of the same step.

What it does not do: tell what became of work by snapshots that have expired.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Self

from pyiceberg.table import Table
from pyiceberg.table.snapshots import Snapshot

from airloop.contract import Call, Interval
from airloop.warehouse import expired
from airloop.warehouse.commit import MODE, find_key, head
from airloop.warehouse.refs import MAIN

WORK = "airloop.work"
"""Snapshot property: the work as JSON."""


@dataclass(frozen=True, slots=True)
class Work:
    """What one step of one run does to a table."""

    key: str
    """The step's."""
    step: str
    task: str
    """``DAG/TASK``, with the index of a mapped task; empty: by hand."""
    bound: str
    """The interval whose rows it makes; empty if it makes the same for every interval."""
    interval: str
    """The run's; empty if it has none."""

    @classmethod
    def of(cls, call: Call, key: str, bound: Interval | None) -> Self:
        """
        :param bound: the interval that the step was given, once what it does not depend on was left out.
        """
        run = call.run
        index = f"[{run.map_index}]" if run.map_index >= 0 else ""
        task = f"{run.dag_id}/{run.task_id}{index}" if run.dag_id else ""
        return cls(key, call.step, task, str(bound or ""), str(call.interval or ""))

    @property
    def properties(self) -> dict[str, str]:
        """Of the snapshots that it makes."""
        return {WORK: json.dumps(asdict(self))}

    def is_of_the_task_of(self, other: Work) -> bool:
        """Whether one task, or somebody in its place, does both."""
        return self.step == other.step and (self.task == other.task or not (self.task and other.task))

    def is_newer_than(self, other: Work) -> bool:
        """Whether both have an interval, and this one's ends later."""
        if not (self.interval and other.interval):
            return False
        return Interval.parse(self.interval).end > Interval.parse(other.interval).end


def key_for(table: Table, work: Work) -> str:
    """The key to commit the work under: its own, or with the ordinal of the first time that was not replaced."""
    key, times = work.key, 0
    while _replaced_since(table, _made(table, key), work):
        times += 1
        key = f"{work.key}:again:{times}"
    return key


def replaced(table: Table, snapshot: int, work: Work) -> int:
    """The newest snapshot on ``main`` that took the place of work whose result a snapshot is; 0: none did."""
    found = table.metadata.snapshot_by_id(snapshot)
    return _replaced_since(table, (found.sequence_number or 0) if found else 0, work)


def _made(table: Table, key: str) -> int | None:
    """Sequence number of the commit with this key, or of the last one before those that ``main`` has since."""
    found = find_key(table, key)
    if found is not None:
        return found.sequence_number or 0
    heir = table.metadata.snapshot_by_id(expired.heir(table, key))
    return (heir.sequence_number or 1) - 1 if heir else None


def _replaced_since(table: Table, since: int | None, work: Work) -> int:
    if since is None:
        return 0
    later = _on_main(table, {s.snapshot_id: other for s, other in _later(table, since) if _same_rows(s, other, work)})
    # What a newer interval wrote is the last word.
    if any(other.is_newer_than(work) for other in later.values()):
        return 0
    return next((snapshot for snapshot, other in later.items() if other.key != work.key), 0)


def _later(table: Table, since: int) -> Iterator[tuple[Snapshot, Work]]:
    """Snapshots with a greater sequence number, and whose work they are."""
    for snapshot in table.metadata.snapshots:
        if (snapshot.sequence_number or 0) > since and (text := _property(snapshot, WORK)):
            yield snapshot, Work(**json.loads(text))


def _same_rows(snapshot: Snapshot, other: Work, work: Work) -> bool:
    """Whether a snapshot that the other work made can have taken the place of the work's rows."""
    mode = _property(snapshot, MODE)
    whole = mode == "replace" or (mode != "append" and other.bound == work.bound)
    return whole and other.is_of_the_task_of(work)


def _on_main(table: Table, wanted: dict[int, Work]) -> dict[int, Work]:
    """Those that ``main`` is or builds on, newest first."""
    found: dict[int, Work] = {}
    above = expired.parents(table) if wanted else {}
    current = head(table, MAIN)
    while current and len(found) < len(wanted):
        if current in wanted:
            found[current] = wanted[current]
        current = above.get(current, 0)
    return found


def _property(snapshot: Snapshot, name: str) -> str:
    return str(snapshot.summary.additional_properties.get(name, "")) if snapshot.summary else ""
