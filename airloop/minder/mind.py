"""Start a payload, watch it, end it with all that it started, report."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import NoReturn

from airloop.minder.limits import Cgroup, Memory, Processors, descendants, kernel_ooms
from airloop.minder.wire import NO_ROOM, NOT_STARTED, Report, Request, receive, send

LOST_GRACE_S = 1.0
"""Seconds between SIGTERM and SIGKILL when nobody is left who waits for a result."""
LEFTOVER_GRACE_S = 2.0
"""Seconds that processes started by the payload may outlive it."""
GIVE_UP_S = 30.0
"""Seconds after which processes that survive SIGKILL, as in a hung network disk, are left behind."""
_NO_ROOM = (errno.ENOMEM, errno.EAGAIN, errno.EMFILE, errno.ENFILE)
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36

Become = Callable[[Request], NoReturn]
"""Turns a process that is ready but for the program itself into the payload."""


def main(descriptor: int) -> NoReturn:
    """Mind one payload that is a new interpreter, asked for on the connected socket ``descriptor``."""

    def become(request: Request) -> NoReturn:
        os.execve(request.argv[0], request.argv, request.environment)

    serve(socket.socket(fileno=descriptor), become)


def serve(connection: socket.socket, become: Become) -> NoReturn:
    """Read a request, mind its payload, report, exit. For a process that does nothing else, and has no thread."""
    try:
        message, descriptors = receive(connection, 2)
        report = _Minder(connection, Request(**message)).run(descriptors, become)
        send(connection, asdict(report))
    except (EOFError, ConnectionError):
        # Whoever asked is gone, and what it asked for has ended by now.
        os._exit(1)
    connection.close()
    os._exit(0)


class _Minder:
    def __init__(self, connection: socket.socket, request: Request) -> None:
        self._connection: socket.socket | None = connection
        self._request = request
        self._report = Report()
        self._memory = Memory(request.memory_bytes)
        self._main = 0
        self._main_ended_at: float | None = None
        self._kill_at: float | None = None

    def run(self, descriptors: Sequence[int], become: Become) -> Report:
        with contextlib.suppress(PermissionError):
            # Not permitted to a process that leads a session already.
            os.setsid()
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)
        request, report = self._request, self._report
        processors = Processors(request.cpus, request.slots)
        cgroup = Cgroup(request.cgroup, memory_bytes=request.memory_bytes, cpus=request.cpus)
        ooms = kernel_ooms()
        wake = self._catch_signals()
        started = time.monotonic()
        own = os.getpid()
        self._main = os.fork()
        if self._main == 0:
            _become_payload(request, own, descriptors, processors.numbers, cgroup, become)
        for descriptor in descriptors:
            os.close(descriptor)
        # The environment may hold secrets, and this process needs it no longer.
        request.environment = {}
        try:
            assert self._connection is not None
            send(self._connection, {"started": self._main})
        except ConnectionError:
            self._end("client", LOST_GRACE_S)
        self._watch(wake, own, started)
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        report.wall_s = round(time.monotonic() - started, 3)
        report.cpu_s = round(used.ru_utime + used.ru_stime, 3)
        report.peak_rss_bytes = used.ru_maxrss * 1024
        report.peak_memory_bytes = max(self._memory.peak, cgroup.peak())
        if cgroup.ooms() and not report.reason:
            report.reason = "memory"
        report.kernel_oom = kernel_ooms() > ooms
        cgroup.remove()
        return report

    def _catch_signals(self) -> int:
        """SIGCHLD wakes the loop; when this process is asked to end, the payload ends first."""
        read, write = os.pipe()
        os.set_blocking(read, False)
        os.set_blocking(write, False)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: self._end("stopped", self._request.grace_s))
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        return read

    def _watch(self, wake: int, own: int, started: float) -> None:
        deadline = started + self._request.timeout_s if self._request.timeout_s else None
        give_up_at = None
        while True:
            self._reap()
            alive = descendants(own)
            now = time.monotonic()
            if self._main_ended_at is not None:
                if not alive:
                    return
                if self._kill_at is None and now >= self._main_ended_at + LEFTOVER_GRACE_S:
                    self._report.killed_leftovers = len(alive)
                    _signal_all(self._main, alive, signal.SIGTERM)
                    self._kill_at = now + LOST_GRACE_S
            elif deadline is not None and now >= deadline:
                self._end("timeout", self._request.grace_s)
            elif self._memory.over(alive, now):
                self._end("memory", 0)
            if self._kill_at is not None and now >= self._kill_at:
                # Again and again: something may be forking faster than we look.
                _signal_all(self._main, descendants(own), signal.SIGKILL)
                give_up_at = give_up_at or now + GIVE_UP_S
                if now >= give_up_at:
                    return
            self._wait(wake, now, deadline)

    def _wait(self, wake: int, now: float, deadline: float | None) -> None:
        ending = self._kill_at is not None or self._main_ended_at is not None
        timeout_s = 0.02 if ending else self._memory.interval_s
        if deadline is not None and not ending:
            timeout_s = min(timeout_s, max(deadline - now, 0))
        # Descriptors may be numbered above 1,023, which select() does not take.
        watched = select.poll()
        watched.register(wake, select.POLLIN)
        if self._connection is not None:
            watched.register(self._connection, select.POLLIN)
        ready = {number for number, _ in watched.poll(timeout_s * 1000)}
        if wake in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(wake, 4096)
        if self._connection is not None and self._connection.fileno() in ready:
            try:
                message, _ = receive(self._connection)
                self._end("stopped", float(message["end"]))
            except (EOFError, OSError):
                self._end("client", LOST_GRACE_S)
                self._connection = None

    def _end(self, reason: str, grace_s: float) -> None:
        now = time.monotonic()
        if self._main_ended_at is None:
            self._report.reason = self._report.reason or reason
        first = self._kill_at is None
        self._kill_at = min(self._kill_at or now + grace_s, now + grace_s)
        if first and grace_s > 0:
            _signal_all(self._main, descendants(os.getpid()), signal.SIGTERM)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self._main:
                self._main_ended_at = time.monotonic()
                if os.WIFSIGNALED(status):
                    self._report.signal = os.WTERMSIG(status)
                else:
                    self._report.exit_code = os.WEXITSTATUS(status)


def _become_payload(
    request: Request,
    minder: int,
    descriptors: Sequence[int],
    processors: set[int],
    cgroup: Cgroup,
    become: Become,
) -> NoReturn:
    """In the payload's process: put in place everything that the program must find."""
    stdout, stderr = descriptors
    try:
        os.setsid()
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != minder:
            os._exit(1)
        _default_signals()
        null = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((null, 0), (stdout, 1), (stderr, 2)):
            os.dup2(source, target, inheritable=True)
        os.closerange(3, _highest_descriptor() + 1)
        os.chdir(request.cwd)
        cgroup.join()
        if processors:
            os.sched_setaffinity(0, processors)
        # If the machine itself runs out of memory, let the kernel take the payload and not the scheduler.
        with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
            file.write("500")
        become(request)
    except BaseException as error:
        os.write(2, f"the payload cannot be started: {type(error).__name__}: {error}\n".encode())
        room = isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in _NO_ROOM)
        os._exit(NO_ROOM if room else NOT_STARTED)


def _default_signals() -> None:
    """What a new interpreter has."""
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals():
        with contextlib.suppress(OSError, ValueError):
            signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _highest_descriptor() -> int:
    try:
        return max(int(name) for name in os.listdir("/proc/self/fd"))
    except FileNotFoundError:
        return min(resource.getrlimit(resource.RLIMIT_NOFILE)[0], 4096)


def _signal_all(group: int, pids: Sequence[int], number: int) -> None:
    for target in (-group, *pids):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(target, number)


def _prctl(option: int, value: int) -> None:
    """On another system than Linux a payload's group is ended, but not what left it."""
    if sys.platform != "linux":
        return
    import ctypes

    ctypes.CDLL(None).prctl(option, value, 0, 0, 0)
