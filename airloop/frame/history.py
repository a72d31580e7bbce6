"""What has run: loops, their runs, and how each task of a run ended. Read-only; used by pages, reports and the CLI."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from airloop.contract import Interval
from airloop.frame.manifest import manifest_at
from airloop.objects import Listed
from airloop.records import SHORTENED, parse, run_folder
from airloop.warehouse.artifacts import ArtifactStore


@dataclass(frozen=True, slots=True)
class TaskRecord:
    """The newest attempt of one task in one run."""

    task_id: str
    map_index: int
    record: dict[str, Any]
    """The attempt's record: status, key, manifest, seconds, resources, error."""

    @property
    def status(self) -> str:
        return str(self.record["status"])

    @property
    def wall_s(self) -> float:
        """Seconds between the payload's start of work and its end."""
        return float(sum(self.record.get("seconds", {}).values()))


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One run of a loop."""

    dag_id: str
    run_id: str
    tasks: dict[str, TaskRecord]
    """By task id, with ``[index]`` for mapped tasks, in the order in which they started."""

    @property
    def interval(self) -> Interval | None:
        for task in self.tasks.values():
            if task.record.get("interval"):
                return Interval.parse(task.record["interval"])
        return None

    @property
    def started_at(self) -> str:
        return min((t.record["started_at"] for t in self.tasks.values()), default="")


def loops(store: ArtifactStore) -> list[str]:
    """DAG ids of everything that has run, sorted."""
    return _children(store, "runs", "dag_id")


def run_ids(store: ArtifactStore, dag_id: str) -> list[str]:
    """Run ids of a loop, sorted."""
    return _children(store, run_folder(dag_id), "run_id")


def changed(store: ArtifactStore, dag_id: str) -> dict[str, Listed]:
    """When the records of each run of a loop last changed, by run id."""
    found = store.changed(run_folder(dag_id))
    folders = {run_id: run_folder(dag_id, run_id).rpartition("/")[2] for run_id in run_ids(store, dag_id)}
    # A run that came since it was listed is told the next time.
    return {run_id: found[folder] for run_id, folder in folders.items() if folder in found}


def run(store: ArtifactStore, dag_id: str, run_id: str) -> RunRecord:
    """
    One run; without tasks if nothing of it has ended yet.

    :raises ContractBroken: a record cannot be read, or is of a format that this airloop does not know.
    """
    found = []
    for name in store.names(run_folder(dag_id, run_id)):
        record = parse(store.read_bytes(name), store.uri(name))
        info = record["run"]
        found.append(TaskRecord(info["task_id"], info["map_index"], record))
    found.sort(key=lambda t: (t.record["started_at"], t.task_id, t.map_index))
    tasks = {t.task_id if t.map_index < 0 else f"{t.task_id}[{t.map_index}]": t for t in found}
    return RunRecord(dag_id, run_id, tasks)


def runs(store: ArtifactStore, dag_id: str, *, last: int | None = None) -> list[RunRecord]:
    """
    Runs of a loop in the order of their data intervals, then of their start.

    :param last: only so many of the newest.
    """
    found = [run(store, dag_id, run_id) for run_id in run_ids(store, dag_id)]
    found.sort(key=lambda r: (r.interval.start.isoformat() if r.interval else "", r.started_at))
    return found[-last:] if last else found


def manifest_of(store: ArtifactStore, task: TaskRecord) -> dict[str, Any] | None:
    """
    The manifest that a done or reused task relies on; None for any other.

    :raises BadArgument: the record names a manifest outside this store.
    :raises ContractBroken: the manifest is of a format that this airloop does not know.
    """
    return manifest_at(store, task.record)


def _children(store: ArtifactStore, folder: str, what: str) -> list[str]:
    return sorted(filter(None, (_full_name(store, folder, child, what) for child in store.folders(folder))))


def _full_name(store: ArtifactStore, folder: str, child: str, what: str) -> str:
    """The id that a folder stands for; empty if nobody can tell."""
    if SHORTENED not in child:
        return unquote(child)
    for name in store.names(f"{folder}/{child}"):
        return str(parse(store.read_bytes(name), store.uri(name))["run"][what])
    return ""
