"""
Records of attempts that could not tell their own end: killed, out of memory, over their time limit, never started.

Without one, pages, reports and `airloop why` would show nothing of them, or the attempt before.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Mapping
from dataclasses import asdict, replace
from datetime import UTC, datetime

from airloop import records
from airloop.contract import Call, Receipt
from airloop.errors import AirloopError, ProcessLost
from airloop.objects import Objects
from airloop.redact import Redactor

log = logging.getLogger("airloop.runner")


def record_end(
    objects: Objects,
    call: Call,
    cause: BaseException,
    redact: Redactor,
    *,
    started_at: float | None = None,
    resources: Mapping[str, float | int | str] | None = None,
) -> Receipt | None:
    """
    Publish how an attempt ended, unless it did so itself. A store that cannot be written to is a warning in the log.

    :param objects: the artifact store, where the attempt would have published it.
    :param cause: the error; anything but ours is what broke off the wait for the attempt, and so the attempt.
    :param started_at: Unix time at which the payload was asked for.
    :returns: what the payload would have handed back; None if nothing could be written.
    """
    error = cause
    if not isinstance(error, AirloopError):
        error = ProcessLost(f"step {call.step} was ended with its task: {type(cause).__name__}: {cause}")
    now = datetime.now(UTC)
    began = now if started_at is None else datetime.fromtimestamp(started_at, UTC)
    receipt = Receipt(call.attempt, records.status_of(error))
    document = records.attempt_record(
        receipt,
        {
            "step": call.step,
            "run": asdict(call.run),
            "interval": call.interval.as_json() if call.interval else None,
            "host": socket.gethostname(),
            "recorded_by": "runner",
            "spawned_at": began.isoformat(timespec="milliseconds"),
            "started_at": began.isoformat(timespec="milliseconds"),
            "finished_at": now.isoformat(timespec="milliseconds"),
            # Nobody knows how long its phases took.
            "seconds": {"run": round((now - began).total_seconds(), 3)},
            "resources": dict(resources or {}),
            "error": {"class": type(error).__name__, "type": type(cause).__name__, "message": redact(str(error))},
        },
    )
    try:
        return replace(receipt, manifest=records.publish_for(objects, document))
    except (OSError, AirloopError) as unwritten:
        log.warning("how the attempt at step %s ended cannot be recorded: %s", call.step, unwritten)
        return None
