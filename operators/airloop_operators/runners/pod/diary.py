"""
The history of an attempt's pods, for when they are gone: where they ran and how long, why they waited, and what the
cluster said of them. Pure, but for the clock: it is fed with objects and events as they are seen.

It is bounded, whatever a cluster says: few events, short texts, few pods in full.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from datetime import UTC, datetime
from typing import Any

from airloop_operators.runners.pod import ending
from airloop_operators.runners.pod.ending import Object

TEXT = 300
"""Characters of a message."""
EVENTS = 12
"""Events of a pod, the newest; and reasons for which it waited."""
IN_FULL = 3
"""Pods that are told with events, the newest."""
PODS = 20
"""Pods that are told one by one, the newest."""

Entry = dict[str, Any]


class Diary:
    """
    The pods of one attempt, oldest first.

    :param about: of each pod: ``name``, ``namespace``, ``image``.
    :param mask: takes secrets out of a text.
    :param before: what a runner that was lost wrote of this attempt's pods.
    :param now: the clock, for what the cluster does not date.
    """

    def __init__(
        self,
        about: Mapping[str, str],
        mask: Callable[[str], str],
        *,
        before: Iterable[Mapping[str, Any]] = (),
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._about = dict(about)
        self._mask = mask
        self._now = now
        self._entries: list[Entry] = [deepcopy(dict(entry)) for entry in before]
        self._said: set[tuple[str, str, str]] = set()
        """Events that were told, by pod."""
        for entry in self._entries:
            self._close(entry, entry.get("seen_at"))
            self._said.update((entry.get("uid", ""), e["reason"], e["message"]) for e in entry.get("events", ()))

    def asked(self) -> None:
        """A pod is asked for, one that there was not."""
        if self._entries and "uid" not in self._entries[-1]:
            # As before, by a runner that did not live to have it.
            self._reopen(self._entries[-1])
            return
        self.end()
        self._entries.append({**self._about, "phase": "Asked for", "pods": 0, "asked_at": self._time(), "over": False})
        self._shorten()

    def waits(self, what: str, reason: str) -> None:
        """Why the newest pod waits: ``quota``, ``node`` or ``start``, and the cluster's words."""
        if not self._entries:
            return
        waits = self._entries[-1].setdefault("waits", [])
        found = {"for": what, "reason": self._text(reason)}
        if not waits or {name: waits[-1][name] for name in found} != found:
            waits.append({"at": self._time(), **found})
            del waits[:-EVENTS]

    def seen(self, pod: Object, events: Iterable[Object] = (), *, over: bool = False) -> list[str]:
        """
        A pod as it is.

        :param over: nothing more will be seen of it.
        :returns: what is new and worth a line in the log.
        """
        entry, news = self._entry_of(pod), []
        told = {name: self._text(v) if isinstance(v, str) else v for name, v in ending.summary(pod).items()}
        for name, sentence in (("node", "has node {}"), ("image_id", "has image {}")):
            if told.get(name) and told[name] != entry.get(name):
                news.append(sentence.format(told[name]))
        if told.get("reason") or not over:
            # What it waited for before is over.
            entry.pop("reason", None)
            entry.pop("message", None)
        when = ending.times(pod)
        dated = {"made_at": when.made, "scheduled_at": when.scheduled, "started_at": when.began, "ended_at": when.ended}
        entry |= told | {name: _iso(at) for name, at in dated.items() if at is not None}
        entry["seen_at"] = self._time()
        news += self._take(entry, events)
        if over:
            self._close(entry, self._time())
        return news

    def end(self) -> None:
        """Nothing more will be seen of the newest pod."""
        if self._entries:
            self._close(self._entries[-1], self._time())

    def totals(self) -> dict[str, float | int]:
        """Of all pods: ``pods``, ``pod_s`` with a node, ``lost_s`` of all but the last, ``queue_s`` without a node."""
        now = self._time()
        held = [_held_s(entry, now) for entry in self._entries]
        return {
            "pods": sum(entry["pods"] for entry in self._entries),
            "pod_s": round(sum(held), 3),
            "lost_s": round(sum(held[:-1]), 3),
            "queue_s": round(sum(_queue_s(entry, now) for entry in self._entries), 3),
        }

    def entries(self) -> list[Entry]:
        """For the record: the newest pods, with their events and why they waited. Another thread may keep them."""
        full = len(self._entries) - IN_FULL
        return [
            {name: deepcopy(value) for name, value in entry.items() if i >= full or name not in ("events", "waits")}
            for i, entry in enumerate(self._entries)
        ]

    def _entry_of(self, pod: Object) -> Entry:
        uid = str(pod.get("metadata", {}).get("uid", ""))
        known = next((entry for entry in self._entries if entry.get("uid") == uid), None)
        if known is not None:
            if known.get("over"):
                self._reopen(known)
            if self._entries[-1] is not known:
                # A pod that is there already was not waited for a second time.
                others = [entry for entry in self._entries if entry is not known]
                self._entries = [*(others if others[-1].get("uid") else others[:-1]), known]
            return known
        if not self._entries or "uid" in self._entries[-1]:
            self.asked()
        entry = self._entries[-1]
        if entry.get("over"):
            # It was asked for by a runner that did not live to see it made.
            self._reopen(entry)
        entry |= {"uid": uid, "pods": 1}
        return entry

    def _take(self, entry: Entry, events: Iterable[Object]) -> list[str]:
        kept: list[dict[str, Any]] = entry.setdefault("events", [])
        known = {(event["reason"], event["message"]): event for event in kept}
        news = []
        for event in events:
            at = event.get("lastTimestamp") or event.get("eventTime") or event.get("firstTimestamp") or ""
            reason, message = self._text(event.get("reason")), self._text(event.get("message"))
            found = known.get((reason, message))
            if found is None:
                known[reason, message] = found = {"reason": reason, "message": message}
                kept.append(found)
            if (entry["uid"], reason, message) not in self._said:
                self._said.add((entry["uid"], reason, message))
                news.append(f"{reason}: {message}")
            found |= {"at": str(at)[:40], "type": self._text(event.get("type")), "count": int(event.get("count") or 1)}
        kept.sort(key=lambda event: str(event["at"]))
        del kept[:-EVENTS]
        return news

    def _close(self, entry: Entry, at: str | None) -> None:
        """Fix what a pod took. What the node does not date has ended when it was last seen."""
        if entry.get("over"):
            return
        if "ended_at" not in entry and at:
            entry["ended_at"] = at
        entry |= {"held_s": _held_s(entry, at), "queue_s": _queue_s(entry, at), "over": True}

    def _reopen(self, entry: Entry) -> None:
        """It was given up with its runner, and goes on."""
        for guess in ("ended_at", "held_s", "queue_s"):
            entry.pop(guess, None)
        entry["over"] = False

    def _shorten(self) -> None:
        """Of very many pods the oldest are told as one."""
        while len(self._entries) > PODS:
            first, second, *rest = self._entries
            sums = {name: round(first[name] + second[name], 3) for name in ("pods", "held_s", "queue_s")}
            self._entries = [{**self._about, "phase": "Earlier", "over": True, **sums, "uid": "-"}, *rest]

    def _text(self, value: Any) -> str:
        text = self._mask(str(value or "")).strip()
        return text if len(text) <= TEXT else f"{text[: TEXT - 1]}…"

    def _time(self) -> str:
        return _iso(self._now())


def _held_s(entry: Mapping[str, Any], now: str | None) -> float:
    """Seconds for which a pod had a node, which was kept for it all the time."""
    if "held_s" in entry:
        return float(entry["held_s"])
    since = entry.get("scheduled_at") or entry.get("started_at")
    return _between(since, entry.get("ended_at") or now) if since else 0.0


def _queue_s(entry: Mapping[str, Any], now: str | None) -> float:
    """Seconds from the first asking for a pod, a quota's refusals among them, until it had a node."""
    if "queue_s" in entry:
        return float(entry["queue_s"])
    until = entry.get("scheduled_at") or entry.get("started_at") or entry.get("ended_at") or now
    # One that was made by another runner was waited for before this one asked.
    return _between(min(filter(None, (entry.get("asked_at"), entry.get("made_at"))), default=None), until)


def _between(start: str | None, end: str | None) -> float:
    """Seconds; clocks of nodes and workers differ, so that it may be 0."""
    if not start or not end:
        return 0.0
    return max(0.0, round((datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds(), 3))


def _iso(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="milliseconds")
