"""Ports of the loopback interface for servers that tests start by their programs."""

from __future__ import annotations

import socket

_HELD: list[socket.socket] = []


def free_port(beside: int = 0) -> int:
    """
    A port that is this process's as long as it lives: it stays bound, so that the kernel gives it to nobody who asks
    for any, and does not listen, so that a server that asks for this very one gets it, now or after a while.

    :param beside: what a server adds to a port for another one that it takes.
    """
    while True:
        port = _hold(0)
        if not beside or (port + beside < 65_536 and _hold(port + beside)):
            return port


def _hold(port: int) -> int:
    """The port that was got; 0: it is somebody's."""
    found = socket.socket()
    # Servers ask for it too, and only who does may bind what another one has bound.
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind(("127.0.0.1", port))
    except OSError:
        found.close()
        return 0
    _HELD.append(found)
    return int(found.getsockname()[1])
