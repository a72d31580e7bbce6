"""
What a scheduler and a step's process agree on. Standard library only: both sides import it.

A payload is always ``python -m airloop run STEP``. It gets one JSON document, the :class:`Call`, in the
environment variable :data:`ENV_CALL`, and leaves one JSON document of at most :data:`RECEIPT_LIMIT` bytes, the
:class:`Receipt`, at the path in :data:`ENV_RECEIPT`. Its exit code is one of :class:`Exit`. Nothing else is shared,
so a payload cannot tell a local subprocess from a pod.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from enum import IntEnum
from typing import Any, Self

from airloop.errors import BadArgument, BadInterval, ContractBroken

VERSION = 1
"""Version of this contract; a payload refuses a call of another one."""

ENV_CALL = "AIRLOOP_CALL"
"""The call, as JSON."""
ENV_RECEIPT = "AIRLOOP_RECEIPT"
"""Where the payload writes its receipt: a temporary file, or a container's termination message."""
ENV_LOG_FORMAT = "AIRLOOP_LOG_FORMAT"
"""``json``: one JSON object a line on stderr (:func:`log_line`); anything else: for people."""
ENV_SECRETS = "AIRLOOP_SECRETS"
"""Comma-separated names of environment variables whose values never appear in logs, manifests or errors."""
ENV_SPAWNED_AT = "AIRLOOP_SPAWNED_AT"
"""When the runner set out to start the payload, ISO 8601 with offset; the attempt's record keeps it. Never in a key."""
ENV_FAULT = "AIRLOOP_FAULT"
"""Fault injection for tests; see :mod:`airloop.faults`."""

RECEIPT_LIMIT = 1024
"""Bytes. A container's termination message is cut silently at 4,096, and side-cars share it."""
CALL_LIMIT = 120 * 1024
"""Bytes. Linux refuses to start a process with one environment string of 128 KiB or more."""

RESERVED_ROLES = frozenset({"step", "key", "status", "manifest", "interval", "counts"})
"""Parts of a task's result beside its outputs, whose roles have other names."""


class Exit(IntEnum):
    """Exit codes of a payload. Any other code is an unclassified failure, which the task's own retries may cure."""

    DONE = 0
    """The attempt's manifest is published. A reuse is also 0: a skip would skip everything downstream."""
    REJECTED = 65
    """The input, the arguments or a gate said no: the same call would fail again."""
    TRY_AGAIN = 75
    """Something outside the step failed that may recover."""
    SKIPPED = 99
    """The DAG's author asked this step to skip in this situation."""


@dataclass(frozen=True, slots=True)
class Interval:
    """Half-open interval of time, ``start <= t < end``, both UTC."""

    start: datetime
    end: datetime

    def __post_init__(self) -> None:
        for name in ("start", "end"):
            value = getattr(self, name)
            if value.tzinfo is None:
                raise BadInterval(f"{name} {value.isoformat()} has no time zone", "give an offset, e.g. +00:00")
            object.__setattr__(self, name, value.astimezone(UTC))
        if not self.start < self.end:
            raise BadInterval(
                f"{self.start.isoformat()} .. {self.end.isoformat()} is empty", "start must be before end"
            )

    @classmethod
    def parse(cls, value: Self | Mapping[str, str] | str) -> Self:
        """
        Read ``{"start": …, "end": …}`` or ``start/end``, ISO 8601 with offsets.

        :raises BadInterval: malformed, without a time zone, or empty.
        """
        if isinstance(value, cls):
            return value
        try:
            if isinstance(value, str):
                start, end = value.split("/")
            else:
                start, end = value["start"], value["end"]  # type: ignore[index]
            return cls(datetime.fromisoformat(start), datetime.fromisoformat(end))
        except BadInterval:
            raise
        except (ValueError, KeyError, TypeError) as cause:
            raise BadInterval(
                f"cannot read {value!r} as an interval", "write 2013-01-01T00:00+00:00/2013-02-01T00:00+00:00"
            ) from cause

    def as_json(self) -> dict[str, str]:
        return {"start": self.start.isoformat(), "end": self.end.isoformat()}

    def __str__(self) -> str:
        return f"{self.start.isoformat()}/{self.end.isoformat()}"


@dataclass(frozen=True, slots=True)
class RunInfo:
    """Which task of which run asks; for people and lineage, never part of a step's key."""

    dag_id: str = ""
    run_id: str = ""
    task_id: str = ""
    map_index: int = -1
    try_number: int = 1

    def __str__(self) -> str:
        mapped = f"[{self.map_index}]" if self.map_index >= 0 else ""
        return f"{self.dag_id or 'cli'}/{self.run_id or '-'}/{self.task_id or '-'}{mapped} try {self.try_number}"


@dataclass(frozen=True, slots=True)
class Call:
    """One attempt at one step."""

    step: str
    """Name in the catalogue (``airloop steps``), or ``package.module:function`` for a step of your own."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """The step's arguments as JSON values; references not yet resolved."""
    attempt: str = ""
    """Identity of this attempt, lower-case hex; the attempt's record is found under it."""
    run: RunInfo = field(default_factory=RunInfo)
    interval: Interval | None = None
    """The data interval that the run works on, if it has one."""
    force: bool = False
    """Do the work even if a complete manifest under the same key exists."""

    def __post_init__(self) -> None:
        if self.attempt and not re.fullmatch(r"[0-9a-f]{8,64}", self.attempt):
            raise BadArgument(f"attempt {self.attempt!r} is not 8 to 64 lower-case hex digits")

    def to_json(self) -> str:
        """
        :raises BadArgument: an argument is not JSON, or the call is longer than :data:`CALL_LIMIT` bytes.
        """
        document = {
            "version": VERSION,
            "step": self.step,
            "arguments": dict(self.arguments),
            "attempt": self.attempt,
            "run": asdict(self.run),
            "interval": self.interval.as_json() if self.interval else None,
            "force": self.force,
        }
        try:
            text = json.dumps(document, allow_nan=False, separators=(",", ":"))
        except (TypeError, ValueError) as cause:
            raise BadArgument(f"step {self.step}: an argument is not plain JSON: {cause}") from cause
        if len(text.encode()) > CALL_LIMIT:
            raise BadArgument(
                f"step {self.step}: its arguments take {len(text.encode()):,} bytes, at most {CALL_LIMIT:,} fit; "
                "put the data into a file or a table and pass its name"
            )
        return text

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """
        :raises ContractBroken: no call, not JSON, or of another contract version.
        """
        text = environment.get(ENV_CALL)
        if text is None:
            raise ContractBroken(f"{ENV_CALL} is not set", "start steps through an operator or `airloop run STEP`")
        try:
            document = json.loads(text)
            if document["version"] != VERSION:
                raise ContractBroken(
                    f"the call has contract version {document['version']}, this payload speaks {VERSION}",
                    "install the same airloop in the scheduler and in the payload",
                )
            interval = document["interval"]
            return cls(
                step=document["step"],
                arguments=document["arguments"],
                attempt=document["attempt"],
                run=RunInfo(**document["run"]),
                interval=Interval.parse(interval) if interval else None,
                force=document["force"],
            )
        except (ValueError, KeyError, TypeError) as cause:
            if isinstance(cause, ContractBroken | BadInterval):
                raise
            raise ContractBroken(f"{ENV_CALL} cannot be read: {cause}", "see airloop.contract.Call") from cause


@dataclass(frozen=True, slots=True)
class Receipt:
    """What the payload hands back: where the truth is, never the truth itself."""

    attempt: str
    status: str
    """``done``, ``reused``, ``skipped``, ``rejected``, ``try_again`` or ``failed``."""
    key: str = ""
    manifest: str = ""
    """Address of the result manifest (``done``, ``reused``) or of the attempt's record (otherwise)."""
    digest: str = ""
    """SHA-256 of the manifest's bytes, hex."""

    def to_json(self) -> str:
        text = json.dumps({"version": VERSION, **asdict(self)}, separators=(",", ":"))
        if len(text.encode()) > RECEIPT_LIMIT:
            raise ContractBroken(
                f"the receipt takes {len(text.encode())} bytes, at most {RECEIPT_LIMIT} are safe",
                "use a shorter address for the artifact store",
            )
        return text

    @classmethod
    def from_json(cls, text: str) -> Self:
        """
        :raises ContractBroken: not a receipt of this version.
        """
        try:
            document = json.loads(text)
            if document.pop("version") != VERSION:
                raise ValueError("another contract version")
            return cls(**document)
        except (ValueError, KeyError, TypeError, AttributeError) as cause:
            raise ContractBroken(f"the receipt cannot be read: {cause}", "look for the attempt's record") from cause


def attempt_id(*parts: object) -> str:
    """Identity of an attempt from what makes it unique: the task instance's id, or dag, run, task, index and try."""
    return hashlib.sha256("\x1f".join(map(str, parts)).encode()).hexdigest()[:20]


def attempt_record_path(attempt: str) -> str:
    """Path of the attempt's record below the artifact store's root; known without the step's key."""
    return f"attempts/{attempt[:2]}/{attempt}.json"


LOG_PREFIX = '{"airloop_log":'


def log_line(level: str, logger: str, message: str) -> str:
    """One log record as the payload prints it on stderr; a line that is none of these is plain output."""
    return json.dumps({"airloop_log": VERSION, "level": level, "logger": logger, "message": message})


def parse_log_line(line: str) -> tuple[str, str, str] | None:
    """``(level, logger, message)`` of a line made by :func:`log_line`; None for any other line."""
    if not line.startswith(LOG_PREFIX):
        return None
    try:
        record = json.loads(line)
        return str(record["level"]), str(record["logger"]), str(record["message"])
    except (ValueError, KeyError, TypeError):
        return None
