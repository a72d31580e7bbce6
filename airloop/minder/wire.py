"""
Messages between a minder and whoever asked for it: JSON after a length of four bytes, on a connected Unix socket.

From the warm server's minder first ``{"ready": true}``. To the minder: the request (a :class:`Request`'s fields; two
descriptors, standard output and error, ride on it), then perhaps ``{"end": grace in seconds}``. From it:
``{"started": pid}``, then a :class:`Report`'s fields.
"""

from __future__ import annotations

import array
import json
import os
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

NOT_STARTED = 127
"""Exit code of a payload whose interpreter could not be started."""
NO_ROOM = 71
"""The same, for want of memory, processes or open files: it may be started later. (``EX_OSERR``; a shell gives 126.)"""


@dataclass
class Request:
    """What to start, and its limits."""

    argv: list[str]
    """Command of the payload; a child of the warm server takes its last word, the step's name."""
    environment: dict[str, str] = field(repr=False)
    cwd: str
    timeout_s: float | None = None
    memory_bytes: int | None = None
    """Of the payload and all that it started: anonymous and shared memory, without mapped files."""
    cpus: float | None = None
    grace_s: float = 10.0
    """Between SIGTERM and SIGKILL at a time-out, and if this process itself is asked to end."""
    cgroup: str = ""
    """A cgroup v2 folder in which one may be made for this attempt; empty: limits are kept without."""
    slots: str = ""
    """A folder for lock files, by which attempts that are limited to some processors choose different ones."""


@dataclass
class Report:
    """How a payload ended."""

    exit_code: int | None = None
    signal: int | None = None
    reason: str = ""
    """Why it was ended: ``timeout``, ``memory``, ``stopped``, ``client`` (nobody waits any more); else empty."""
    kernel_oom: bool = False
    """The kernel's out-of-memory killer was at work meanwhile."""
    peak_memory_bytes: int = 0
    """Highest memory seen, as :attr:`Request.memory_bytes` counts it."""
    peak_rss_bytes: int = 0
    """Highest resident size of one process of the payload."""
    cpu_s: float = 0.0
    wall_s: float = 0.0
    killed_leftovers: int = 0
    """Processes that the payload had started and that had to be ended after it."""


def send(connection: socket.socket, message: Any, descriptors: Sequence[int] = ()) -> None:
    """Send a message, and descriptors with it."""
    body = json.dumps(message).encode()
    header = struct.pack("!I", len(body))
    if descriptors:
        connection.sendmsg([header], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))])
    else:
        connection.sendall(header)
    connection.sendall(body)


def receive(connection: socket.socket, descriptors: int = 0) -> tuple[Any, list[int]]:
    """
    Receive a message and up to so many descriptors.

    :raises EOFError: the other side closed the connection.
    """
    got: list[int] = []
    head = b""
    while len(head) < 4:
        if descriptors and not head:
            chunk, got, _, _ = socket.recv_fds(connection, 4, descriptors)
            for descriptor in got:
                os.set_inheritable(descriptor, False)
        else:
            chunk = connection.recv(4 - len(head))
        if not chunk:
            raise EOFError
        head += chunk
    (size,) = struct.unpack("!I", head)
    body = bytearray()
    while len(body) < size:
        chunk = connection.recv(min(size - len(body), 1 << 16))
        if not chunk:
            raise EOFError
        body += chunk
    return json.loads(body), got
