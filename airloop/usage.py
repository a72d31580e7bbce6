"""
What attempts cost: where that is kept, and what it says. Standard library only: runners write it.

``usage/DAG/RUN/TASK/ATTEMPT.json`` is the runner's side of an attempt. A manifest is published by the payload, in the
middle of its pod's life, and never changes; how long its pod was held, how long it waited and which pods were lost on
the way is known to the runner alone, and later. So both are kept, under the same attempt, and joined when they are
read. All attempts of a task lie in one folder, those that failed as well: what they cost is lost, and counts too.

The payload's own record (:mod:`airloop.records`) stands in where no runner lived to write this one, with the seconds
that the payload itself measured.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any

from airloop.contract import RunInfo
from airloop.errors import ContractBroken
from airloop.objects import Objects
from airloop.records import RECORD_FORMAT, parse, run_folder, run_record_path

FOLDER = "usage"
WAY_OUT = "remove the file: its attempt's use is not known then"
"""What to do about a record of use that nobody can read."""
OPEN = "open"
"""Status of an attempt whose end its runner has not told."""
GOOD = frozenset({"done", "reused", "skipped"})
"""Statuses of attempts whose seconds were not wasted."""
CPU, MEMORY = "cpu", "memory"
"""Resources: processors, and GiB of memory. Others have the names that the cluster has for accelerators."""
GIB = Decimal(1 << 30)
AT_ONCE = 8
"""Records that are read at once."""
_ZERO = Decimal(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """One attempt, as far as it is known what it took."""

    attempt: str
    step: str
    run: RunInfo
    status: str
    """As a receipt has it, or :data:`OPEN`."""
    started_at: str
    """ISO 8601."""
    runner: str = ""
    """``local``, ``pod``; empty: only the payload's own record tells of it."""
    pool: str = ""
    """Of its pod; ``local`` for a local run, ``default`` for a pod of no pool; empty: not known."""
    size: str = ""
    pods: int = 0
    """Pods that were made for it."""
    seconds: Decimal | None = None
    """For which its pods were held, or its process ran; None: not known."""
    queue_s: Decimal | None = None
    """For which its pods were asked for and had no node; None: not known, or it had none."""
    lost_s: Decimal = _ZERO
    """Seconds of pods that were lost before its last one."""
    amounts: Mapping[str, Decimal] | None = field(default=None)
    """Amount times seconds by resource: those that pods reserve, those that a local run used; None: not known."""

    @property
    def wasted_s(self) -> Decimal | None:
        """Seconds that came to nothing: all of an attempt that failed or was lost; None: not known."""
        if self.status == OPEN:
            return self.lost_s or None
        return self.lost_s if self.status in GOOD else self.seconds

    @property
    def name(self) -> str:
        """Tells it from all others: also a try of which there is no record, and so no attempt."""
        return self.attempt or f"{self.task} {self.run.try_number}"

    @property
    def task(self) -> tuple[str, str, str, int]:
        """Whose tries it is one of."""
        return (self.run.dag_id, self.run.run_id, self.run.task_id, self.run.map_index)


def usage_path(run: RunInfo, attempt: str) -> str:
    """Name of an attempt's record of use, below the artifact store's root."""
    return f"{_task_folder(run)}/{attempt}.json"


def document(
    *,
    attempt: str,
    step: str,
    run: RunInfo,
    runner: str,
    started_at: str,
    status: str = OPEN,
    error: str = "",
    finished_at: str | None = None,
    sequence: int = 0,
    resources: Mapping[str, float | int | str] | None = None,
    reserved: Mapping[str, float] | None = None,
    pods: Iterable[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """
    The record, as runners write it.

    :param sequence: counts its versions: an older one never takes the place of a newer.
    :param resources: what it used: see :attr:`airloop_operators.runners.base.RunOutcome.resources`.
    :param reserved: what its pods hold: processors, ``memory`` in bytes, accelerators by their resource.
    :param pods: the newest of them, oldest first, without secrets.
    """
    return {
        "format": RECORD_FORMAT,
        "attempt": attempt,
        "step": step,
        "run": asdict(run),
        "runner": runner,
        "status": status,
        "error": error,
        "started_at": started_at,
        "finished_at": finished_at,
        "sequence": sequence,
        "resources": dict(resources or {}),
        "reserved": dict(reserved or {}),
        "pods": [dict(pod) for pod in pods],
    }


def publish(objects: Objects, wanted: Mapping[str, Any], *, last: bool = False) -> None:
    """
    Publish a record, unless a newer version of it is there. An attempt of no DAG has none.

    :param last: this one counts, whatever is there.
    """
    run = RunInfo(**wanted["run"])
    if not run.dag_id:
        return

    def newer(there: bytes | None) -> bytes | None:
        before = _sequence(there)
        if before >= wanted["sequence"] and not last:
            return None
        return _content({**wanted, "sequence": max(before + 1, wanted["sequence"])})

    objects.change(usage_path(run, wanted["attempt"]), newer)


def end(
    objects: Objects,
    run: RunInfo,
    attempt: str,
    told: Callable[[Mapping[str, Any]], Mapping[str, Any]],
    *,
    again: int | None = None,
) -> dict[str, Any] | None:
    """
    Write how an attempt ended, for a runner that did not live to tell. An end that is there stays, whoever told it.

    :param told: given the record as it is, the parts of it that are new.
    :param again: version (``sequence``) of a record that tells of an end and may be replaced: of one's own, when more
        is known.
    :returns: the record as it is written; None: there is none, or it tells of an end.
    :raises ContractBroken: it cannot be read, or what is to be told of it.
    """
    name = usage_path(run, attempt)
    # A task of which nothing was told is to have no folder.
    if not run.dag_id or objects.read(name) is None:
        return None
    written: dict[str, Any] | None = None

    def ended(there: bytes | None) -> bytes | None:
        nonlocal written
        found = None if there is None else parse(there, objects.uri(name), WAY_OUT)
        # The store may show what was just written to it.
        if found is None or found == written:
            return None
        written = None
        try:
            if found["status"] != OPEN and found["sequence"] != again:
                return None
            written = {**found, **told(found), "sequence": found["sequence"] + 1}
        except (KeyError, TypeError, ValueError) as cause:
            raise ContractBroken(f"what attempt {attempt} took cannot be told: {cause!r}") from cause
        return _content(written)

    objects.change(name, ended)
    return written


def read(objects: Objects, run: RunInfo, attempt: str) -> dict[str, Any] | None:
    """An attempt's record; None if there is none. :raises ContractBroken: it cannot be read."""
    if not run.dag_id:
        return None
    name = usage_path(run, attempt)
    content = objects.read(name)
    return None if content is None else parse(content, objects.uri(name), WAY_OUT)


def of_task(objects: Objects, run: RunInfo) -> list[dict[str, Any]]:
    """Records of all attempts at a task of a run, oldest first. :raises ContractBroken: one cannot be read."""
    return _below(objects, _task_folder(run)) if run.dag_id else []


def of_run(objects: Objects, dag_id: str, run_id: str) -> list[dict[str, Any]]:
    """Records of all attempts of a run, oldest first. :raises ContractBroken: one cannot be read."""
    return _below(objects, FOLDER + run_folder(dag_id, run_id).removeprefix("runs"))


def spent(usage: Mapping[str, Any], own: Mapping[str, Any] | None = None) -> Spent:
    """
    What a record of use says.

    :param own: the payload's own record of the attempt, which knows its end if the runner did not live to tell.
    :raises ContractBroken: a part of it is missing.
    """
    try:
        used, runner = usage["resources"], str(usage["runner"])
        status, held = str(usage["status"]), _number(used.get("pod_s" if runner == "pod" else "wall_s"))
        if status == OPEN:
            status, held = (str(own["status"]), _until(usage, own)) if own else (OPEN, None)
        pool = "local" if runner == "local" else str(used.get("pool") or "default")
        return Spent(
            attempt=usage["attempt"],
            step=usage["step"],
            run=RunInfo(**usage["run"]),
            status=status,
            started_at=usage["started_at"],
            runner=runner,
            pool=pool,
            size=str(used.get("size", "")),
            pods=int(used.get("pods", 0)),
            seconds=held,
            queue_s=_number(used.get("queue_s")),
            lost_s=_number(used.get("lost_s")) or _ZERO,
            amounts=_amounts(usage, held) if runner == "pod" else _used(used, held),
        )
    except (KeyError, TypeError, ValueError, ArithmeticError) as cause:
        raise ContractBroken(f"what attempt {usage.get('attempt')} took cannot be read: {cause!r}") from cause


def spent_by_itself(record: Mapping[str, Any], status: str = "") -> Spent:
    """
    What the record of an attempt, or a manifest, says where no runner told more.

    :param status: of a manifest, which has none: ``done``.
    :raises ContractBroken: a part of it is missing.
    """
    try:
        used = record.get("resources") or {}
        parts = record.get("seconds") or {}
        held = sum((Decimal(str(s)) for s in parts.values()), _ZERO) if parts else _number(used.get("wall_s"))
        return Spent(
            attempt=record["attempt"],
            step=record["step"],
            run=RunInfo(**record["run"]),
            status=status or str(record["status"]),
            started_at=record["started_at"],
            seconds=held,
            amounts=_used(used, held),
        )
    except (KeyError, TypeError, ValueError, ArithmeticError) as cause:
        raise ContractBroken(f"the record of attempt {record.get('attempt')} cannot be read: {cause!r}") from cause


def _amounts(usage: Mapping[str, Any], held: Decimal | None) -> dict[str, Decimal] | None:
    """What pods reserve, they hold for all of their seconds, whether they use it or not."""
    if held is None:
        return None
    if not usage["reserved"]:
        # Nothing was asked of the cluster yet: nothing was held, or nobody knows what.
        return {} if not held else None
    found = {name: Decimal(str(amount)) * held for name, amount in usage["reserved"].items()}
    found[MEMORY] = found.get(MEMORY, _ZERO) / GIB
    return found


def _used(used: Mapping[str, Any], held: Decimal | None) -> dict[str, Decimal] | None:
    """Processor time, and the most memory for all of the time: more is not measured, and less would be a guess."""
    cpu, most = _number(used.get("cpu_s")), _number(used.get("peak_memory_bytes") or used.get("peak_rss_bytes"))
    if held is None or cpu is None:
        return None
    return {CPU: cpu, MEMORY: (most or _ZERO) / GIB * held}


def _until(usage: Mapping[str, Any], own: Mapping[str, Any]) -> Decimal | None:
    """Seconds of an attempt whose runner was lost, and whose payload came to its end all the same."""
    if usage["runner"] != "pod":
        return None
    pod = usage["pods"][-1] if usage["pods"] else {}
    began = pod.get("scheduled_at") or pod.get("started_at") or own.get("started_at")
    if not began or not own.get("finished_at"):
        return None
    last = datetime.fromisoformat(own["finished_at"]) - datetime.fromisoformat(began)
    before = _number(usage["resources"].get("lost_s")) or _ZERO
    return before + max(_ZERO, Decimal(str(last.total_seconds())))


def _below(objects: Objects, folder: str) -> list[dict[str, Any]]:
    names = [found.name for found in objects.listed(folder)]
    with ThreadPoolExecutor(AT_ONCE) as threads:
        contents = list(threads.map(objects.read, names))
    # One that was removed since it was listed is none.
    found = [parse(c, objects.uri(n), WAY_OUT) for n, c in zip(names, contents, strict=True) if c is not None]
    return sorted(found, key=lambda usage: (str(usage.get("started_at", "")), str(usage.get("attempt", ""))))


def _content(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, indent=1, allow_nan=False).encode() + b"\n"


def _sequence(content: bytes | None) -> int:
    """Version of what is there; -1 if there is nothing that can be read."""
    try:
        return int(json.loads(content or b"{}")["sequence"])
    except (ValueError, KeyError, TypeError):
        return -1


def _task_folder(run: RunInfo) -> str:
    return FOLDER + run_record_path(run).removeprefix("runs").removesuffix(".json")


def _number(value: Any) -> Decimal | None:
    return None if value is None else Decimal(str(value))
