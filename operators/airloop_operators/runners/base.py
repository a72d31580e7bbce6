"""
What every runner takes and gives, and how the end of a payload is judged, wherever it ran.

A payload is done if, and only if, its attempt's manifest is published and has the promised digest. The receipt says
where; without one, the attempt's record does. Everything else is an error whose type says whether a retry helps.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

import airloop.errors as errors
from airloop import records
from airloop.config import S3Address
from airloop.contract import Call, Exit, Receipt, attempt_record_path
from airloop.errors import (
    AirloopError,
    BadConfiguration,
    ContractBroken,
    InfrastructureFailure,
    OutOfMemory,
    ProcessLost,
    Rejected,
    ResultLost,
    StepSkipped,
    TimedOut,
    TryAgain,
)
from airloop.minder.wire import NO_ROOM, NOT_STARTED
from airloop.objects import Objects, open_objects
from airloop.redact import Redactor
from airloop_operators.runners.records import record_end

MIB = 1 << 20


@dataclass(frozen=True, kw_only=True)
class RunRequest:
    """One attempt at one step, and what it may use."""

    call: Call
    artifacts: Path | S3Address
    """The artifact store, where the attempt's record and manifest are looked up."""
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Environment variables beside those that the payload inherits."""
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    """More of them, whose values are masked wherever they turn up."""
    memory_mb: int | None = None
    """Memory limit of the payload with all that it starts, MiB; None: none."""
    cpus: float | None = None
    """Processors that the payload may use; None: all."""
    timeout_s: float | None = None
    """Seconds until the payload is asked to end; None: never."""
    python: str | None = None
    """Interpreter of another virtual environment that has airloop installed."""
    cwd: Path | None = None
    """Working directory of the payload; default: this process's."""
    size: str | None = None
    """Size of its pod; None: the configured default. Local runs have none."""
    ranks: int = 1
    """
    Processes that work on the step together, each of this size. They are one attempt: one call for all, one record and
    one manifest, which the first of them publishes; if one is lost, all are ended. A runner that starts a single
    process says so by :meth:`alone`.
    """
    may_leave: bool = False
    """Whether the attempt may be left to itself once it is under way; local runs never are."""
    left: Mapping[str, Any] | None = None
    """State of an attempt that was left before; None: it is started now."""

    def alone(self, runner: str) -> None:
        """
        For a runner that starts one process.

        :raises BadConfiguration: several are asked for.
        """
        if self.ranks != 1:
            raise BadConfiguration(
                f"step {self.call.step} asks for {self.ranks} ranks; the {runner} runner starts one process of a step",
                "leave out ranks, or let the step start its processes itself, on one machine",
            )

    @property
    def objects(self) -> Objects:
        """The artifact store, with the credentials that the payload is given."""
        return open_objects(self.artifacts, {**os.environ, **self.environment, **self.secrets})


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How a payload's process ended, as far as whoever ran it could see."""

    exit_code: int | None = None
    signal: int | None = None
    reason: str = ""
    """Why the runner ended it: ``timeout``, ``memory``, ``stopped``, or empty: it ended by itself."""
    kernel_oom: bool = False
    """The kernel's out-of-memory killer was at work meanwhile."""
    peak_memory_bytes: int = 0
    last_error: str = ""
    """Last line of its log at level ERROR, or of its standard error."""
    cause: AirloopError | None = None
    """What the runner saw end it from outside; the payload's own word counts for more."""

    def __str__(self) -> str:
        number = self.signal_number
        if number is not None:
            try:
                return f"signal {signal.Signals(number).name}"
            except ValueError:
                return f"signal {number}"
        return f"exit code {self.exit_code}"

    @property
    def signal_number(self) -> int | None:
        """A shell and a container report death by a signal as 128 + its number."""
        if self.signal is None and self.exit_code is not None and self.exit_code - 128 in signal.valid_signals():
            return self.exit_code - 128
        return self.signal


@dataclass(frozen=True, kw_only=True)
class RunOutcome:
    """What became of an attempt."""

    receipt: Receipt | None
    """As the payload left it, or as the attempt's record tells it, which the runner wrote if the payload did not."""
    exit_code: int
    """Of the payload's process; minus the signal's number if a signal ended it."""
    error: AirloopError | None
    """None: the step is done."""
    manifest: Mapping[str, Any] | None = None
    """Of a done step."""
    record: Mapping[str, Any] | None = None
    """How the payload itself says that the attempt ended."""
    resources: Mapping[str, float | int | str] = field(default_factory=dict)
    """
    What the attempt used, as far as it is known: ``wall_s``, ``cpu_s``, ``peak_memory_bytes``, ``peak_rss_bytes``,
    ``start`` (``cold`` or ``warm``) and ``start_s``, the time until the step's own frame began.
    """
    note: str = ""
    """Something odd about a success, for the log."""


@dataclass(frozen=True, kw_only=True)
class Underway:
    """An attempt that goes on without its task: it is judged when it is run again with its state."""

    state: Mapping[str, Any]
    """JSON values; no secrets, for Airflow keeps it."""


class Runner(Protocol):
    """Runs attempts. One instance belongs to one task."""

    def run(self, request: RunRequest) -> RunOutcome | Underway:
        """
        Run an attempt to its end, or until it may be left; its log goes to this process's log as it comes.

        :raises AirloopError: the attempt could not even be started.
        """
        ...

    def under_way(self, calls: Sequence[Call]) -> int:
        """Which of a try's attempts was left and is still there; 0 if none is."""
        ...

    def end_earlier(self, calls: Sequence[Call]) -> None:
        """
        End what other tries of a task have left.

        :param calls: of this try's attempts.
        """
        ...

    def abandon(self, state: Mapping[str, Any]) -> None:
        """End an attempt that was left and will not be run again."""
        ...

    def on_kill(self) -> None:
        """End the attempts that are running, with all that they started; may be called from a signal handler."""
        ...


def read_record(request: RunRequest) -> bytes | None:
    """The attempt's record as it lies in the store; None if there is none."""
    return records.read(request.objects, request.call)


def conclude(
    request: RunRequest,
    ending: Ending,
    receipt_text: str,
    *,
    before: bytes | None = None,
    resources: Mapping[str, float | int | str] | None = None,
    started_at: float | None = None,
) -> RunOutcome:
    """
    Judge an attempt by what it left; record its end if it could not do so itself.

    :param receipt_text: what was found where the receipt should be; empty if nothing.
    :param before: the attempt's record as it was before the payload started, which proves nothing.
    :param started_at: Unix time at which the payload was asked for.
    :raises ContractBroken: its airloop wrote a record or a manifest of a format that this one does not know.
    """
    content = read_record(request)
    address = request.objects.uri(attempt_record_path(request.call.attempt))
    record = parse_record(content, request.call.attempt, address) if content != before else None
    receipt, doubt = _receipt(receipt_text, record, request.call)
    manifest: Mapping[str, Any] | None = None
    if receipt is not None and receipt.status in ("done", "reused"):
        manifest, doubt = _manifest(receipt, request)
    number = ending.signal_number
    exit_code = -number if number is not None else (ending.exit_code if ending.exit_code is not None else 1)
    error: AirloopError | None = None
    note = ""
    if manifest is None or ending.reason == "stopped":
        error = _error(request, ending, record, doubt)
    elif exit_code != Exit.DONE:
        note = f"its process ended with {ending} after its manifest was published: the step is done"
    used = dict(resources or {})
    if started_at is not None and record is not None:
        used["start_s"] = round(datetime.fromisoformat(record["started_at"]).timestamp() - started_at, 3)
    if error is not None and record is None:
        redact = Redactor(request.secrets.values(), request.environment)
        told = record_end(request.objects, request.call, error, redact, started_at=started_at, resources=used)
        receipt = receipt or told
    return RunOutcome(
        receipt=receipt,
        exit_code=exit_code,
        error=error,
        manifest=manifest if error is None else None,
        record=record,
        resources=used,
        note=note,
    )


def parse_record(content: bytes | None, attempt: str, address: str) -> Mapping[str, Any] | None:
    """
    An attempt's record; None if it is none, or another's.

    :param address: where it lies, for the error.
    :raises ContractBroken: it is of another format.
    """
    if content is None:
        return None
    try:
        record: Mapping[str, Any] = json.loads(content)
        if record["attempt"] != attempt:
            return None
    except (ValueError, KeyError, TypeError):
        return None
    records.refuse_unknown(record, address)
    return record


def _receipt(text: str, record: Mapping[str, Any] | None, call: Call) -> tuple[Receipt | None, str]:
    """The receipt, or the one that follows from the record; and why there is none."""
    doubt = "it left no receipt"
    if text:
        try:
            receipt = Receipt.from_json(text)
            if receipt.attempt == call.attempt:
                return receipt, "its receipt promises no manifest"
            doubt = "the receipt is another attempt's"
        except ContractBroken as unreadable:
            doubt = unreadable.found
    if record is None:
        return None, f"{doubt} and no record of its attempt"
    fields = {name: str(record.get(name, "")) for name in ("attempt", "status", "key", "manifest", "digest")}
    return Receipt(**fields), f"{doubt}, and its record promises no manifest"


def _manifest(receipt: Receipt, request: RunRequest) -> tuple[Mapping[str, Any] | None, str]:
    """The manifest that a receipt promises, and what is wrong with it."""
    if not receipt.manifest:
        return None, "it published no manifest"
    try:
        content = _content(receipt.manifest, request.objects)
    except OSError as cause:
        if isinstance(cause, AirloopError):
            raise
        return None, f"its manifest {receipt.manifest} cannot be read: {cause.strerror or cause}"
    if hashlib.sha256(content).hexdigest() != receipt.digest:
        return None, f"its manifest {receipt.manifest} is not the one that it promised"
    manifest = records.parse(content, f"manifest {receipt.manifest}", records.REDO)
    if manifest["key"] != receipt.key:
        return None, f"its manifest {receipt.manifest} has another key"
    if receipt.status == "done" and manifest["attempt"] != receipt.attempt:
        return None, f"its manifest {receipt.manifest} was made by another attempt"
    return manifest, ""


def _content(uri: str, objects: Objects) -> bytes:
    """What is at an address. :raises OSError: nothing is."""
    name = objects.name_of(uri)
    if name:
        content = objects.read(name)
        if content is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        return content
    # A task may have a home of its own: what its payload says of it counts.
    parts = urlsplit(uri)
    if parts.scheme not in ("", "file"):
        raise BadConfiguration(f"manifest {uri} is not in {objects}", "see [airloop] artifacts")
    return Path(unquote(parts.path)).read_bytes()


def _error(request: RunRequest, ending: Ending, record: Mapping[str, Any] | None, doubt: str) -> AirloopError:
    """The error of an attempt that is not done."""
    step = f"step {request.call.step}"
    peak = f"{ending.peak_memory_bytes / MIB:,.0f} MiB"
    number = ending.signal_number
    if ending.reason == "timeout":
        return TimedOut(
            f"{step} ran over its time limit of {request.timeout_s or 0:,.0f} s and was ended",
            "raise its task's execution_timeout, some of which is kept for ending it, or give it less",
        )
    if ending.reason == "stopped":
        return ProcessLost(f"{step} was ended because its task was stopped")
    # A payload that recorded a failure of its own had come to its end by itself.
    if ending.cause is not None and (record is None or record.get("status") in ("done", "reused")):
        return ending.cause
    if ending.reason == "memory":
        return OutOfMemory(
            f"{step} was ended: it used {peak} of memory, its limit is {request.memory_mb:,} MiB",
            f"raise the task's memory_mb above {request.memory_mb}, or lower AIRLOOP_ROWS_PER_CHUNK",
        )
    if number == signal.SIGKILL and ending.kernel_oom:
        return OutOfMemory(
            f"{step} was ended by the kernel because the machine ran out of memory; it used {peak}"
            + (f" of its limit of {request.memory_mb:,} MiB" if request.memory_mb else ", without a limit"),
            "set memory_mb on the tasks, run fewer at once (a pool), or use a larger machine",
        )
    if number is not None:
        return ProcessLost(
            f"{step} was ended by {ending}, which Airloop did not send; it used {peak} of memory at most",
            "a crash in native code leaves a traceback in the log above"
            if number in (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL)
            else "somebody or something on this machine ended it",
        )
    if ending.exit_code == Exit.DONE:
        return ResultLost(f"{step} ended well, but {doubt}", "it will be adopted or done again at the next try")
    if ending.exit_code == NO_ROOM and record is None:
        return InfrastructureFailure(
            f"{step}: {ending.last_error or 'it cannot be started'}",
            "the machine had no memory or processes left for it; run fewer tasks at once (a pool)",
        )
    if ending.exit_code == NOT_STARTED and record is None:
        return BadConfiguration(f"{step}: {ending.last_error or 'its interpreter cannot be started'}")
    return _own_error(step, ending, record)


def _own_error(step: str, ending: Ending, record: Mapping[str, Any] | None) -> AirloopError:
    """The error that the payload itself reported."""
    said = (record or {}).get("error") or {}
    message = said.get("message") or ending.last_error or f"{step} ended with {ending} and said nothing"
    by_exit: dict[int | None, type[AirloopError]] = {
        Exit.REJECTED: Rejected,
        Exit.TRY_AGAIN: TryAgain,
        Exit.SKIPPED: StepSkipped,
    }
    exit_code = ending.exit_code
    if exit_code is None and ending.signal is None:
        # Nobody saw its process end.
        exit_code = {"rejected": 65, "try_again": 75, "skipped": 99}.get(str((record or {}).get("status")))
    base = by_exit.get(exit_code, AirloopError)
    exact = getattr(errors, str(said.get("class", "")), None)
    if base is AirloopError:
        return AirloopError(f"{step} failed ({ending}): {message}", "its traceback is in the log above")
    if isinstance(exact, type) and issubclass(exact, base):
        return exact(message)
    return base(message)
