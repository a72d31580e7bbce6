"""Steps as processes on this machine."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import airloop
from airloop.contract import ENV_CALL, ENV_LOG_FORMAT, ENV_RECEIPT, ENV_SECRETS, ENV_SPAWNED_AT, RECEIPT_LIMIT, Call
from airloop.errors import AirloopError, BadArgument, BadConfiguration, ProcessLost
from airloop.minder.folder import runtime_folder
from airloop.minder.wire import Report, Request, receive, send
from airloop.redact import Redactor
from airloop_operators.runners.base import Ending, RunOutcome, RunRequest, conclude, read_record
from airloop_operators.runners.limits import delegated_cgroup, limit_environment
from airloop_operators.runners.logs import LogStream
from airloop_operators.runners.records import record_end
from airloop_operators.runners.usage import UsageRecord
from airloop_operators.runners.warm import WarmServer

log = logging.getLogger("airloop.runner")

DRAIN_S = 2.0
"""Seconds that output may still come after the payload and all that it started have ended."""
AIRFLOWS_OWN = ("AIRFLOW__", "AIRFLOW_CONN_", "AIRFLOW_VAR_", "AIRFLOW_CTX_", "_AIRFLOW_", "__AIRFLOW_")
"""Beginnings of variables that hold Airflow's configuration, connections and tokens; a payload never sees them."""
_MINDER = "import sys; sys.path.append(sys.argv[2]); from airloop.minder.mind import main; main(int(sys.argv[1]))"


class LocalRunner:
    """
    Runs each attempt in a process group of its own: a new interpreter, or a child of the warm server.

    :param warm: use the warm server where it is up, and start it where it is not.
    :param preload: modules that the warm server imports; None: its own list.
    :param grace_s: seconds between asking a payload to end and killing it.
    :param idle_s: seconds without a step after which the warm server exits; None: its own default.
    """

    def __init__(
        self,
        *,
        warm: bool = True,
        preload: tuple[str, ...] | None = None,
        grace_s: float = 10.0,
        idle_s: float | None = None,
    ) -> None:
        self._warm = warm
        self._preload = preload
        self._grace_s = grace_s
        self._idle_s = idle_s
        self._attempts: set[_Attempt] = set()
        self._stopped = False

    def run(self, request: RunRequest) -> RunOutcome:
        """
        Run an attempt to its end.

        :raises BadArgument: its call has no attempt.
        :raises BadConfiguration: it asks for several ranks.
        :raises ProcessLost: the task was stopped before.
        """
        if not request.call.attempt:
            raise BadArgument(f"the call of step {request.call.step} has no attempt", "see airloop.contract.attempt_id")
        request.alone("local")
        attempt = _Attempt(request, self._grace_s, self._server)
        self._attempts.add(attempt)
        try:
            if self._stopped:
                raise ProcessLost(f"step {request.call.step} was not started because its task was stopped")
            return attempt.run()
        finally:
            self._attempts.discard(attempt)

    def _server(self, request: RunRequest, environment: Mapping[str, str]) -> WarmServer | None:
        """The warm server that fits; None if it is not wanted or there is no safe place for its socket."""
        if not self._warm:
            return None
        try:
            return WarmServer(
                request.python or sys.executable,
                environment,
                preload=self._preload,
                secrets=request.secrets,
                idle_s=self._idle_s,
            )
        except (AirloopError, OSError) as error:
            log.warning("no warm server: %s", error)
            return None

    def under_way(self, calls: Sequence[Call]) -> int:
        """None is: a process is never left."""
        return 0

    def end_earlier(self, calls: Sequence[Call]) -> None:
        """There is nothing: a process ends with its task."""

    def abandon(self, state: Mapping[str, Any]) -> None:
        """There is none."""

    def on_kill(self) -> None:
        """End everything that runs, and start nothing more; returns when it is gone."""
        self._stopped = True
        for attempt in list(self._attempts):
            attempt.stop()


class _Attempt:
    """One payload from start to end."""

    def __init__(
        self,
        request: RunRequest,
        grace_s: float,
        server: Callable[[RunRequest, Mapping[str, str]], WarmServer | None],
    ) -> None:
        self._request = request
        self._find_server = server
        self._grace_s = grace_s
        self._mask = Redactor.from_environment(payload_environment(request, Path()))
        logger = logging.getLogger("airloop.payload")
        self._streams = {"out": LogStream(logger, self._mask), "err": LogStream(logger, self._mask)}
        self._connection: socket.socket | None = None
        self._children: list[subprocess.Popen[bytes]] = []
        self._from = "cold"
        self._asked = False
        self._stopped = False
        self._pid = 0
        self._report: Report | None = None

    def run(self) -> RunOutcome:
        request = self._request
        started_at = time.time()
        usage = UsageRecord(request.objects, request.call, "local", started_at=started_at)
        try:
            outcome = self._run(started_at)
        except BaseException as cause:
            record_end(request.objects, request.call, cause, self._mask, started_at=started_at)
            usage.fail(cause, resources={"wall_s": round(time.time() - started_at, 3)})
            raise
        usage.conclude(outcome)
        return outcome

    def _run(self, started_at: float) -> RunOutcome:
        request = self._request
        before = read_record(request)
        with tempfile.TemporaryDirectory(prefix="airloop-") as private, contextlib.ExitStack() as stack:
            receipt = Path(private) / "receipt.json"
            environment = payload_environment(request, receipt)
            pipes = self._start(environment, stack)
            try:
                if self._stopped:
                    # Asked while there was nobody yet to tell.
                    self._end(self._grace_s)
                self._pump(pipes)
            except BaseException:
                # Airflow's time-out, a signal, a bug of ours: nothing may go on without its task.
                self._end(self._grace_s)
                self._pump(pipes, until=time.monotonic() + self._grace_s + DRAIN_S)
                raise
            finally:
                self._close()
            text = _read_receipt(receipt)
        report = self._report or Report(signal=signal.SIGKILL)
        err = self._streams["err"]
        ending = Ending(
            exit_code=report.exit_code,
            signal=report.signal,
            reason="stopped" if self._stopped or report.reason == "client" else report.reason,
            kernel_oom=report.kernel_oom,
            peak_memory_bytes=report.peak_memory_bytes,
            last_error=err.last_error or err.last_plain,
        )
        if report.killed_leftovers:
            log.warning("ended %d processes that the step had left running", report.killed_leftovers)
        resources: dict[str, float | int | str] = {
            "start": self._from,
            "wall_s": round(time.time() - started_at, 3),
            "cpu_s": report.cpu_s,
            "peak_memory_bytes": report.peak_memory_bytes,
            "peak_rss_bytes": report.peak_rss_bytes,
        }
        outcome = conclude(request, ending, text, before=before, resources=resources, started_at=started_at)
        if outcome.note:
            log.warning("step %s: %s", request.call.step, outcome.note)
        return outcome

    def stop(self) -> None:
        """End the payload; returns when it is gone. Safe in a signal handler that interrupts :meth:`run`."""
        self._stopped = True
        self._end(self._grace_s)
        connection = self._connection
        if connection is None:
            return
        gone = select.poll()
        # No event is asked for: the report stays unread for run(), and a hang-up is told anyway.
        gone.register(connection, 0)
        gone.poll((self._grace_s + DRAIN_S) * 1000)

    def _start(self, environment: dict[str, str], stack: contextlib.ExitStack) -> dict[int, str]:
        """Start minder and payload; returns the reading ends of its pipes."""
        request = self._request
        python = request.python or sys.executable
        if not os.access(python, os.X_OK):
            raise BadConfiguration(f"python={python!r} is not an interpreter", "give the path of venv/bin/python")
        pipes: dict[int, str] = {}
        writing: list[int] = []
        for name in ("out", "err"):
            read, write = os.pipe()
            stack.callback(os.close, read)
            os.set_blocking(read, False)
            pipes[read] = name
            writing.append(write)
        try:
            server = self._find_server(request, environment)
            if server is not None:
                self._connection, why = server.connect()
                self._from = "cold" if self._connection is None else "warm"
            if self._connection is None:
                self._connection = self._cold(writing[1])
            asked = Request(
                argv=[python, "-m", "airloop", "run", request.call.step],
                environment=environment,
                cwd=str(request.cwd or Path.cwd()),
                timeout_s=request.timeout_s,
                memory_bytes=request.memory_mb << 20 if request.memory_mb is not None else None,
                cpus=request.cpus,
                grace_s=self._grace_s,
                cgroup=delegated_cgroup(environment) if request.memory_mb or request.cpus else "",
                slots=_slots(environment) if request.cpus else "",
            )
            send(self._connection, asdict(asked), writing)
            self._asked = True
            if server is not None and self._from == "cold":
                # After the payload, which need not wait for it.
                starting = server.start()
                log.debug("a new interpreter; the warm server: %s%s", why, ", starting it" if starting else "")
                if starting is not None:
                    self._children.append(starting)
        finally:
            for descriptor in writing:
                os.close(descriptor)
        return pipes

    def _cold(self, stderr: int) -> socket.socket:
        """A minder that is a new process; what it has to say itself goes to the payload's standard error."""
        ours, theirs = socket.socketpair()
        with theirs:
            root = str(Path(airloop.__file__).parents[1])
            own = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
            minder = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _MINDER, str(theirs.fileno()), root],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                env=own,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
            self._children.append(minder)
        return ours

    def _pump(self, pipes: Mapping[int, str], until: float | None = None) -> None:
        """Log what comes until the payload has ended and its pipes are at their end."""
        assert self._connection is not None
        with selectors.DefaultSelector() as selector:
            for descriptor in pipes:
                selector.register(descriptor, selectors.EVENT_READ)
            if self._report is None:
                selector.register(self._connection, selectors.EVENT_READ)
            while selector.get_map():
                timeout_s = None if until is None else until - time.monotonic()
                if timeout_s is not None and timeout_s <= 0:
                    break
                for key, _ in selector.select(timeout_s):
                    if key.fileobj is self._connection:
                        if not self._listen():
                            selector.unregister(self._connection)
                            until = min(until or float("inf"), time.monotonic() + DRAIN_S)
                        continue
                    try:
                        chunk = os.read(key.fd, 1 << 16)
                    except BlockingIOError:
                        continue
                    if chunk:
                        self._streams[pipes[key.fd]].feed(chunk)
                    else:
                        selector.unregister(key.fd)
        for stream in self._streams.values():
            stream.close()

    def _listen(self) -> bool:
        """Take a message of the minder; False if it was the last."""
        assert self._connection is not None
        try:
            message, _ = receive(self._connection)
        except (EOFError, ConnectionError):
            # The minder is lost, and by it the payload; what it started shares its group.
            if self._pid:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(self._pid, signal.SIGKILL)
            return False
        if "started" in message:
            self._pid = message["started"]
            return True
        self._report = Report(**message)
        return False

    def _end(self, grace_s: float) -> None:
        connection = self._connection
        if connection is None:
            return
        with contextlib.suppress(OSError):
            if self._asked:
                send(connection, {"end": grace_s})
            else:
                connection.shutdown(socket.SHUT_RDWR)

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        for child in self._children:
            # A minder exits right after its report, or when the closed connection has made it end its payload.
            try:
                child.wait(self._grace_s)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def payload_environment(request: RunRequest, receipt: Path) -> dict[str, str]:
    """What the payload finds in its environment: this process's without Airflow's own, the request's, the contract."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(AIRFLOWS_OWN)}
    limits = limit_environment(memory_mb=request.memory_mb, cpus=request.cpus)
    return {
        **inherited,
        **limits,
        "PYTHONUNBUFFERED": "1",
        **request.environment,
        **request.secrets,
        ENV_CALL: request.call.to_json(),
        ENV_RECEIPT: str(receipt),
        ENV_LOG_FORMAT: "json",
        ENV_SPAWNED_AT: datetime.now(UTC).isoformat(timespec="milliseconds"),
        ENV_SECRETS: ",".join(request.secrets),
    }


def _read_receipt(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(RECEIPT_LIMIT + 1).decode(errors="replace")
    except FileNotFoundError:
        return ""


def _slots(environment: Mapping[str, str]) -> str:
    try:
        return str(runtime_folder(environment))
    except (AirloopError, OSError) as error:
        log.warning("limited steps may share processors: %s", error)
        return ""
