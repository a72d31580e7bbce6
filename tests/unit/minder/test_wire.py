"""Messages on the minder's socket."""

from __future__ import annotations

import os
import socket
import threading

import pytest

from airloop.minder.wire import Request, receive, send


def test_a_large_message_and_descriptors_come_through() -> None:
    ours, theirs = socket.socketpair()
    read, write = os.pipe()
    message = {"environment": {"A": "ü" * 300_000}}
    with ours, theirs:
        thread = threading.Thread(target=send, args=(ours, message, [write]))
        thread.start()
        got, descriptors = receive(theirs, 2)
        thread.join()
    os.close(write)
    assert got == message
    assert len(descriptors) == 1
    assert not os.get_inheritable(descriptors[0])
    os.write(descriptors[0], b"x")
    assert os.read(read, 1) == b"x"
    os.close(descriptors[0])
    os.close(read)


@pytest.mark.parametrize("sent", [b"", b"\0\0", b"\0\0\0\x09{}"])
def test_a_connection_that_ends_early_is_told(sent: bytes) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        with ours:
            ours.sendall(sent)
        with pytest.raises(EOFError):
            receive(theirs)


def test_an_environment_is_not_shown() -> None:
    assert "hunter2" not in repr(Request(["python"], {"PASSWORD": "hunter2"}, "/"))
