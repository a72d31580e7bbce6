"""Limits of memory and processors, and what was used, by Linux's ``/proc`` or a cgroup of the payload's own."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Iterator, Sequence

SAMPLE_S = 0.1
"""Seconds between two looks at the memory."""
_PAGE = os.sysconf("SC_PAGE_SIZE")


class Processors:
    """
    Processors that one attempt may run on, chosen so that limited attempts do not crowd on the same ones.

    :param cpus: how many, rounded up; None: all that this process may use, and nothing is chosen.
    :param slots: a folder for lock files, one per processor, held as long as this process lives; empty: none.
    """

    def __init__(self, cpus: float | None, slots: str) -> None:
        self.numbers: set[int] = set()
        self._locks: list[int] = []
        if cpus is None or not hasattr(os, "sched_setaffinity"):
            return
        allowed = sorted(os.sched_getaffinity(0))
        wanted = max(1, math.ceil(cpus))
        if wanted >= len(allowed):
            return
        free = self._unlocked(allowed, wanted, slots) if slots else []
        # All taken: share, beginning at a place that differs from attempt to attempt.
        begin = os.getpid() % len(allowed)
        others = [n for n in allowed[begin:] + allowed[:begin] if n not in free]
        self.numbers = set((free + others)[:wanted])

    def _unlocked(self, allowed: Sequence[int], wanted: int, slots: str) -> list[int]:
        import fcntl

        free: list[int] = []
        for number in allowed:
            if len(free) == wanted:
                break
            lock = os.open(os.path.join(slots, f"cpu-{number}.lock"), os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(lock)
                continue
            free.append(number)
            self._locks.append(lock)
        return free


class Cgroup:
    """
    A cgroup v2 folder of one payload's own; without a delegated parent, or if it cannot be made, there is none.

    :param parent: a folder of the cgroup tree in which this user may make others; empty: none.
    """

    def __init__(self, parent: str, *, memory_bytes: int | None, cpus: float | None) -> None:
        self.path = ""
        if not parent or (memory_bytes is None and cpus is None):
            return
        path = os.path.join(parent, f"airloop-{os.getpid()}")
        try:
            os.mkdir(path)
            self.path = path
            if memory_bytes is not None:
                self._write("memory.max", str(memory_bytes))
                # A kernel without swap accounting has no such file, one before 4.19 no group kill.
                for name, value in (("memory.swap.max", "0"), ("memory.oom.group", "1")):
                    if os.path.exists(os.path.join(path, name)):
                        self._write(name, value)
            if cpus is not None and os.path.exists(os.path.join(path, "cpu.max")):
                self._write("cpu.max", f"{max(1000, int(cpus * 100_000))} 100000")
        except OSError:
            self.remove()

    def __bool__(self) -> bool:
        return bool(self.path)

    def join(self) -> None:
        """Put the calling process into the group."""
        if self.path:
            self._write("cgroup.procs", "0")

    def ooms(self) -> int:
        """Processes of the group that the kernel ended because the group was over its limit."""
        return _count(os.path.join(self.path, "memory.events"), b"oom_kill ") if self.path else 0

    def peak(self) -> int:
        """Highest memory in bytes, page cache included; 0 where the kernel (before 5.19) does not tell."""
        if self.path:
            with contextlib.suppress(OSError), open(os.path.join(self.path, "memory.peak")) as file:
                return int(file.read())
        return 0

    def remove(self) -> None:
        """Remove the folder; its processes have ended."""
        if self.path:
            with contextlib.suppress(OSError):
                os.rmdir(self.path)
            self.path = ""

    def _write(self, name: str, value: str) -> None:
        with open(os.path.join(self.path, name), "w") as file:
            file.write(value)


class Memory:
    """What the payload and all that it started use, looked at seldom enough not to matter."""

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        self.peak = 0
        self.interval_s = SAMPLE_S
        self._next_full = 0.0

    def over(self, pids: Sequence[int], now: float) -> bool:
        """Whether they use more than the limit now."""
        # Resident pages are cheap to read and an upper bound; the exact figure costs a walk of all page tables.
        resident = sum(_resident_bytes(pid) for pid in pids)
        above = self.limit is not None and resident > self.limit
        if not above and now < self._next_full:
            return False
        used = sum(_own_bytes(pid) for pid in pids)
        cost_s = time.monotonic() - now
        self.interval_s = max(SAMPLE_S, 10 * cost_s)
        self._next_full = now + max(0.5, 20 * cost_s)
        self.peak = max(self.peak, used)
        return self.limit is not None and used > self.limit


def _resident_bytes(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            return int(file.read().split()[1]) * _PAGE
    except (OSError, IndexError):
        return 0


def _own_bytes(pid: int) -> int:
    """Proportional share of anonymous, shared and swapped memory; clean pages of mapped files cost nothing."""
    figures: dict[bytes, int] = {}
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
            for line in file.readlines()[1:]:
                name, _, value = line.partition(b":")
                figures[name] = int(value.split()[0]) * 1024
    except (OSError, ValueError, IndexError):
        return 0
    swapped = figures.get(b"SwapPss", 0)
    if b"Pss_Anon" not in figures:
        return figures.get(b"Pss", 0) + swapped
    return figures[b"Pss_Anon"] + figures.get(b"Pss_Shmem", 0) + swapped


def descendants(root: int) -> list[int]:
    """Processes below ``root``, at any depth, zombies left out."""
    found: list[int] = []
    waiting = [root]
    while waiting:
        for pid in _children(waiting.pop()):
            waiting.append(pid)
            if not _is_zombie(pid):
                found.append(pid)
    return found


def _children(pid: int) -> Iterator[int]:
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError), open(f"/proc/{pid}/task/{thread}/children", "rb") as file:
                yield from map(int, file.read().split())


def _is_zombie(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] in (b"Z", b"X")
    except (OSError, IndexError):
        return True


def kernel_ooms() -> int:
    """Processes that the kernel's out-of-memory killer has ended since this machine started."""
    return _count("/proc/vmstat", b"oom_kill ")


def _count(path: str, name: bytes) -> int:
    try:
        with open(path, "rb") as file:
            return next((int(line.split()[1]) for line in file if line.startswith(name)), 0)
    except OSError:
        return 0
