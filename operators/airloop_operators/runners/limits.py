"""Where limits can be kept on this machine, and what libraries are told of them."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping

from airloop.errors import BadConfiguration

ENV_CGROUP = "AIRLOOP_CGROUP"
"""A cgroup v2 folder that is delegated to this user, with the memory (and cpu) controller on; default: looked for."""


def delegated_cgroup(environment: Mapping[str, str] = os.environ) -> str:
    """
    A cgroup v2 folder in which this process may make groups with a memory limit; empty if there is none.

    Only an ancestor qualifies: a group that holds processes itself cannot have limited groups below it.
    """
    given = environment.get(ENV_CGROUP)
    if given:
        if not _divisible(given):
            raise BadConfiguration(
                f"{ENV_CGROUP}={given} is not a cgroup v2 folder that this user may divide",
                "delegate one with the memory controller in its cgroup.subtree_control, or unset the variable",
            )
        return given
    mount, path = _own_cgroup()
    while mount and path not in ("", "/"):
        path = os.path.dirname(path)
        if _divisible(mount + path):
            return mount + path.rstrip("/")
    return ""


def _divisible(folder: str) -> bool:
    try:
        with open(os.path.join(folder, "cgroup.subtree_control")) as file:
            controllers = file.read().split()
    except OSError:
        return False
    # Moving a process takes the right to write the procs of the common ancestor, too.
    return "memory" in controllers and os.access(folder, os.W_OK) and _writable(os.path.join(folder, "cgroup.procs"))


def _writable(path: str) -> bool:
    # Root passes access() even on a read-only mount's files only by chance; opening tells.
    try:
        os.close(os.open(path, os.O_WRONLY))
    except OSError:
        return False
    return True


def _own_cgroup() -> tuple[str, str]:
    """Mount point of cgroup v2 and this process's path below it."""
    try:
        with open("/proc/self/cgroup") as file:
            path = next((line.strip()[3:] for line in file if line.startswith("0::")), "")
        with open("/proc/self/mountinfo") as file:
            for line in file:
                left, _, right = line.partition(" - ")
                if right.split()[:1] == ["cgroup2"]:
                    return left.split()[4], path
    except OSError:
        pass
    return "", ""


def limit_environment(*, memory_mb: int | None, cpus: float | None) -> dict[str, str]:
    """Variables by which libraries keep to the limits by themselves."""
    found: dict[str, str] = {}
    if cpus is not None:
        threads = str(max(1, math.ceil(cpus)))
        for name in ("AIRLOOP_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
            found[name] = threads
    if memory_mb is not None:
        # DuckDB spills to disk above it; the rest is Python, Arrow and what a step itself holds.
        found["AIRLOOP_MEMORY_MB"] = str(max(64, min(2048, memory_mb // 2)))
    return found
