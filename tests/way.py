"""A way to a server that tests can close for a while, or cut what goes over it: bytes are passed on as they are."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress
from types import TracebackType
from typing import Self

Place = tuple[str, int]


class Way:
    """
    A port here that leads to a server elsewhere.

    :param target: host and port of the server, or the path of its socket.
    :param host: address of this machine at which the port is.
    """

    def __init__(self, target: Place | str, host: str = "127.0.0.1") -> None:
        self._target = target
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, 0), family=family)
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._away_until = 0.0
        self.place: Place = (host, self._listener.getsockname()[1])
        self.connections = 0
        """How many have been made."""
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    def away(self, seconds: float) -> None:
        """Cut everything, and let nobody through for a while."""
        self._away_until = time.monotonic() + seconds
        self.cut()

    def back(self) -> None:
        """Let everybody through again."""
        self._away_until = 0.0

    def cut(self) -> None:
        """End all connections, in the middle of whatever they say."""
        with self._lock:
            ends = list(self._open)
        for end in ends:
            _shut(end)

    def close(self) -> None:
        """Take the port away."""
        # A thread that waits for the next connection is not woken by close().
        _shut(self._listener)
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            if time.monotonic() < self._away_until:
                client.close()
                continue
            threading.Thread(target=self._join, args=(client,), daemon=True).start()

    def _join(self, client: socket.socket) -> None:
        try:
            server = self._reach()
        except OSError:
            client.close()
            return
        with self._lock:
            self._open |= {client, server}
        if time.monotonic() < self._away_until:
            # It was taken away while this one was let through.
            _shut(client)
            _shut(server)
        back = threading.Thread(target=_pass_on, args=(server, client), daemon=True)
        back.start()
        _pass_on(client, server)
        back.join()
        with self._lock:
            self._open -= {client, server}
        client.close()
        server.close()

    def _reach(self) -> socket.socket:
        if not isinstance(self._target, str):
            return socket.create_connection(self._target, timeout=None)
        found = socket.socket(socket.AF_UNIX)
        found.connect(self._target)
        return found


def _pass_on(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(1 << 16):
            sink.sendall(data)
    # Half of a connection is of no use to those who speak here.
    _shut(sink)
    _shut(source)


def _shut(end: socket.socket) -> None:
    with suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
