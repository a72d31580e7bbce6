"""Ports for servers that cannot be told to take any free one."""

from __future__ import annotations

import random
import socket
from contextlib import ExitStack
from pathlib import Path

LEAST = 10_000
RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")


def free_port() -> int:
    """A port of this machine's loopback that nobody has; see :func:`free_ports`."""
    return free_ports(1)[0]


def free_ports(count: int, *, beside: int = 0) -> list[int]:
    """
    Different ports of this machine's loopback that nobody has.

    They are none of those that the kernel gives to whoever asks for any: another test would have them before the server
    has begun.

    :param beside: the ports that are so much higher are free as well.
    """
    most = int(RANGE.read_text().split()[0]) - 1 - beside if RANGE.exists() else 0
    # Workers that draw from the same seed would agree.
    draw, found = random.SystemRandom(), []
    with ExitStack() as probes:
        while len(found) < count:
            port = draw.randint(LEAST, max(most, LEAST + 5_000))
            with ExitStack() as both:
                try:
                    for number in {port, port + beside}:
                        both.enter_context(socket.create_server(("127.0.0.1", number)))
                except OSError:
                    continue
                # As long as they are looked for: of those that are higher none is found again.
                probes.enter_context(both.pop_all())
                found.append(port)
    return found
