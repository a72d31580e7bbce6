"""A task's pods for people: where they ran, what they wait for, what the cluster said of them, what they took."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from airloop import usage
from airloop.contract import RunInfo, attempt_record_path
from airloop.errors import AirloopError
from airloop.records import refuse_unknown
from airloop.report import words
from airloop_operators.web.data import Reader

ATTEMPTS_SHOWN = 20
_TEXTS = (
    "name", "namespace", "image", "phase", "reason", "message", "node", "image_id", "asked_at", "made_at",
    "scheduled_at", "started_at", "ended_at", "seen_at",
)  # fmt: skip
_BLANK: dict[str, Any] = {
    **dict.fromkeys(_TEXTS, ""), "exit_code": None, "held_s": None, "queue_s": None, "pods": 0, "over": False,
    "waits": [], "events": [],
}  # fmt: skip
"""What a record says of a pod; parts of it come with time."""


@dataclass(slots=True)
class Attempt:
    """One attempt, with its pods."""

    attempt: str
    number: int
    """Of the task's try."""
    status: str
    error: str
    message: str
    started_at: str
    finished_at: str
    facts: list[tuple[str, str]]
    pods: list[dict[str, Any]] = field(default_factory=list)
    """The newest first, as the record has them."""

    @property
    def open(self) -> bool:
        return self.status == usage.OPEN


def attempts_of(reader: Reader, run: RunInfo) -> tuple[list[Attempt], int]:
    """The newest attempts at a task, the newest first; and how many more there are."""
    found = usage.of_task(reader.store.objects, run)[::-1]
    return [_attempt(reader, one) for one in found[:ATTEMPTS_SHOWN]], max(0, len(found) - ATTEMPTS_SHOWN)


def use_of(reader: Reader, document: Mapping[str, Any]) -> list[tuple[str, str]]:
    """
    What the making of a manifest took, and all attempts of its task in that run; nothing if no runner told.

    :param document: the manifest, or the record of an attempt.
    """
    run = RunInfo(**document["run"])
    try:
        found = usage.of_task(reader.store.objects, run)
        own = next((one for one in found if one["attempt"] == document["attempt"]), None)
        if own is None:
            return []
        facts = _facts(own)
        if len(found) > 1:
            wasted = sum(float(s) for one in found if (s := usage.spent(one).wasted_s) is not None)
            facts += [("attempts of the task", str(len(found))), ("of them in vain", words.seconds(wasted))]
        return facts
    except AirloopError as unreadable:
        return [("what it took", str(unreadable))]


def _attempt(reader: Reader, one: Mapping[str, Any]) -> Attempt:
    own = _own(reader, one)
    status = str(one["status"])
    if status == usage.OPEN and own:
        # Its runner was lost; the payload came to its end all the same.
        status = str(own.get("status", status))
    return Attempt(
        attempt=str(one["attempt"]),
        number=int(one["run"]["try_number"]),
        status=status,
        error=str((own.get("error") or {}).get("class") or one["error"]),
        message=str((own.get("error") or {}).get("message") or ""),
        started_at=str(one["started_at"]),
        finished_at=str(one["finished_at"] or own.get("finished_at") or ""),
        facts=_facts(one, own),
        pods=[_BLANK | pod for pod in reversed(one["pods"])],
    )


def _own(reader: Reader, one: Mapping[str, Any]) -> dict[str, Any]:
    """The attempt's own record; empty if there is none, or none that can be read."""
    name = attempt_record_path(str(one["attempt"]))
    try:
        found = reader.json(name)
        refuse_unknown(found, name)
    except (AirloopError, ValueError):
        return {}
    return found


def _facts(one: Mapping[str, Any], own: Mapping[str, Any] | None = None) -> list[tuple[str, str]]:
    spent = usage.spent(one, own or None)
    used = one["resources"]
    facts = [("ran as", "a process of the worker" if spent.runner == "local" else _place(spent))]
    if one["reserved"]:
        facts.append(("reserved", _amounts(one["reserved"])))
    # Of one that goes on: so far.
    known = spent.seconds if spent.seconds is not None else used.get("pod_s")
    if known is not None:
        facts.append(("pod seconds" if spent.runner == "pod" else "seconds", words.seconds(float(known))))
    for name, label in (("queue_s", "without a node"), ("lost_s", "of lost pods"), ("cpu_s", "processor")):
        if used.get(name) and (name != "lost_s" or spent.pods > 1):
            facts.append((label, words.seconds(float(used[name]))))
    if spent.pods > 1:
        facts.append(("pods made", str(spent.pods)))
    return facts


def _place(spent: usage.Spent) -> str:
    size = f"size {spent.size}" if spent.size else "a pod"
    return f"{size}, pool {spent.pool}"


def _amounts(reserved: Mapping[str, float]) -> str:
    parts = []
    for name, amount in reserved.items():
        if name == usage.MEMORY:
            parts.append(f"{amount / (1 << 30):,.4g} GiB")
        else:
            parts.append(f"{amount:g} {'processors' if name == usage.CPU else name}")
    return ", ".join(parts)
