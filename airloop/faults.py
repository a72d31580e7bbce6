"""
Fault injection for tests, by one environment variable. Standard library only.

``AIRLOOP_FAULT`` holds one or more faults separated by ``;``, each ``ACTION@POINT`` or ``ACTION@POINT:N`` (the N-th
time the point is reached in this process, 1 by default). Actions:

======================  ========================================================================================
``kill``                SIGKILL of this process: nothing is cleaned up
``oom``                 allocate until somebody ends the process (bounded by ``AIRLOOP_FAULT_OOM_MB``, default 65,536)
``raise``               an unclassified error
``full``                OSError ENOSPC, as a full disk gives it
``hang``                sleep for an hour
``slow``                sleep for ``AIRLOOP_FAULT_SLOW_S`` seconds (default 5)
``lose``                at ``receipt``: end well without the receipt; at ``manifest``: end well without the manifest
======================  ========================================================================================

A point is a name that the code passes to :func:`point`: ``start``, ``run``, ``commit:before``, ``commit:after``,
``manifest``, ``receipt`` and those that modules add. ``*`` matches every point. Nothing happens, at the cost of one
dictionary look-up, when the variable is not set.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from collections import Counter

from airloop.contract import ENV_FAULT
from airloop.errors import BadConfiguration

ACTIONS = frozenset({"kill", "oom", "raise", "full", "hang", "slow", "lose"})
_reached: Counter[str] = Counter()


def point(name: str) -> bool:
    """
    Reach a named point; injure this process here if a fault asks for it.

    :returns: True if the caller is asked to lose what it is about to hand over (``lose``), else False.
    """
    faults = os.environ.get(ENV_FAULT)
    if not faults:
        return False
    _reached[name] += 1
    lose = False
    for fault in faults.split(";"):
        action, separator, where = fault.strip().partition("@")
        if action not in ACTIONS or not separator:
            raise BadConfiguration(f"{ENV_FAULT}={faults!r} is not ACTION@POINT[:N]", f"actions: {sorted(ACTIONS)}")
        place, _, count = where.rpartition(":") if where.rpartition(":")[2].isdigit() else (where, "", "1")
        if place in (name, "*") and _reached[name] == int(count):
            lose = _injure(action, name) or lose
    return lose


def _injure(action: str, name: str) -> bool:
    match action:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "oom":
            blocks = []
            for _ in range(int(os.environ.get("AIRLOOP_FAULT_OOM_MB", "65536")) // 16):
                blocks.append(b"\x01" * (16 << 20))
        case "raise":
            raise RuntimeError(f"injected at {name}")
        case "full":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name)
        case "hang":
            time.sleep(3600)
        case "slow":
            time.sleep(float(os.environ.get("AIRLOOP_FAULT_SLOW_S", "5")))
        case "lose":
            return True
    return False
