"""
The runner's side of an attempt, kept in the artifact store while it goes on: what it took, and what its pods wait for.

The store may be slow or away, and an attempt waits for neither: what changes is written by a thread of its own, at most
every few seconds, and only the last of it. A record that cannot be written is a warning in the log.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from airloop import records, usage
from airloop.contract import Call, RunInfo, attempt_record_path
from airloop.errors import AirloopError
from airloop.objects import Objects
from airloop_operators.runners.base import RunOutcome, parse_record

log = logging.getLogger("airloop.runner")

EVERY_S = 10.0
"""Seconds between two writings of a record that changes."""
FINISH_S = 5.0
"""Seconds that a writing under way may take when the attempt has ended."""


class UsageRecord:
    """
    The record of one attempt. Safe to use from several threads.

    :param objects: the artifact store.
    :param runner: ``local`` or ``pod``.
    :param started_at: Unix time at which the payload was asked for.
    :param every_s: seconds between two writings; default :data:`EVERY_S`.
    """

    def __init__(
        self, objects: Objects, call: Call, runner: str, *, started_at: float, every_s: float | None = None
    ) -> None:
        self._objects = objects
        self._call = call
        self._runner = runner
        self._started_at = _iso(started_at)
        self._every_s = EVERY_S if every_s is None else every_s
        self._kept = bool(call.run.dag_id)
        self._parts: dict[str, Any] = {}
        self._sequence = 0
        self._changed = threading.Condition()
        self._next: dict[str, Any] | None = None
        self._closed = False
        self._thread: threading.Thread | None = None

    def before(self) -> Mapping[str, Any] | None:
        """What a runner that was lost wrote of this very attempt; this record goes on where that one ends."""
        try:
            found = usage.read(self._objects, self._call.run, self._call.attempt)
        except (OSError, AirloopError) as unread:
            log.warning("what attempt %s took before is not known: %s", self._call.attempt, unread)
            return None
        if found is not None:
            self._sequence, self._started_at = int(found["sequence"]), str(found["started_at"])
        return found

    def update(self, **parts: Any) -> None:
        """Write what is new, soon; does not wait. :param parts: see :func:`airloop.usage.document`."""
        with self._changed:
            if self._closed or not self._kept:
                return
            self._parts |= parts
            self._next = self._document()
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="airloop-usage", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def close(self, status: str, error: str = "", **parts: Any) -> None:
        """Write how the attempt ended, now. Only the first call counts."""
        with self._changed:
            if self._closed or not self._kept:
                return
            self._closed = True
            self._parts |= parts | {"status": status, "error": error, "finished_at": _iso()}
            document = self._document()
            self._changed.notify_all()
        if self._thread is not None:
            # One that hangs may end later: then it finds a newer version, and leaves it.
            self._thread.join(FINISH_S)
        self._write(document, last=True)

    def leave(self, **parts: Any) -> None:
        """Write what is known, now: the attempt goes on, and another process will tell its end."""
        with self._changed:
            if self._closed or not self._kept:
                return
            self._closed = True
            self._parts |= parts
            document = self._document()
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(FINISH_S)
        self._write(document)

    def conclude(self, outcome: RunOutcome, **parts: Any) -> None:
        """Write how the attempt ended, as its runner judged it."""
        error = outcome.error
        if error is not None:
            status = records.status_of(error)
        else:
            status = outcome.receipt.status if outcome.receipt is not None else "done"
        self.close(status, type(error).__name__ if error else "", **{"resources": outcome.resources, **parts})

    def fail(self, cause: BaseException, **parts: Any) -> None:
        """Write that the attempt was broken off."""
        status = records.status_of(cause) if isinstance(cause, AirloopError) else "try_again"
        self.close(status, type(cause).__name__, **parts)

    def _document(self) -> dict[str, Any]:
        self._sequence += 1
        return usage.document(
            attempt=self._call.attempt,
            step=self._call.step,
            run=self._call.run,
            runner=self._runner,
            started_at=self._started_at,
            sequence=self._sequence,
            **self._parts,
        )

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._next is not None)
                if self._closed or self._next is None:
                    return
                document, self._next = self._next, None
            self._write(document)
            with self._changed:
                self._changed.wait_for(lambda: self._closed, self._every_s)

    def _write(self, document: Mapping[str, Any], *, last: bool = False) -> None:
        try:
            usage.publish(self._objects, document, last=last)
        except (OSError, AirloopError) as unwritten:
            log.warning("what attempt %s takes cannot be recorded: %s", self._call.attempt, unwritten)


def end_for(
    objects: Objects,
    run: RunInfo,
    attempt: str,
    told: Callable[[Mapping[str, Any]], Mapping[str, Any]],
    *,
    again: int | None = None,
) -> dict[str, Any] | None:
    """
    Write the end of an attempt whose runner is lost. Whether it was done, its payload's own word counts.

    :param told: given the record as it is, the parts of it that are new: what it took, and how it ended as far as its
        surroundings tell.
    :param again: see :func:`airloop.usage.end`.
    :returns: the record as it is written; None: there is none, or it tells of an end.
    :raises OSError, AirloopError: the store cannot be read or written, or the record.
    """
    content = records.read(objects, Call("", {}, attempt, run))
    own = parse_record(content, attempt, objects.uri(attempt_record_path(attempt)))
    by_payload = {"status": own["status"], "error": (own.get("error") or {}).get("class", "")} if own else {}
    return usage.end(objects, run, attempt, lambda known: {**told(known), **by_payload}, again=again)


def _iso(at: float | None = None) -> str:
    moment = datetime.now(UTC) if at is None else datetime.fromtimestamp(at, UTC)
    return moment.isoformat(timespec="milliseconds")
