"""A payload's output as log records."""

from __future__ import annotations

import logging

from hypothesis import given
from hypothesis import strategies as st

from airloop.contract import log_line
from airloop.redact import Redactor
from airloop_operators.runners.logs import LINE_LIMIT, MESSAGE_LIMIT, LogStream


class Records(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, str, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.seen.append((record.levelname, record.name, record.getMessage()))


def stream(*secrets: str) -> tuple[LogStream, list[tuple[str, str, str]]]:
    logger = logging.Logger("test")
    handler = Records()
    logger.addHandler(handler)
    return LogStream(logger, Redactor(secrets)), handler.seen


def test_lines_are_logged_as_soon_as_they_are_complete() -> None:
    feed, seen = stream()
    feed.feed(b"one\ntw")
    assert seen == [("INFO", "payload", "one")]
    feed.feed(b"o\r\n\n  \nthree")
    assert seen[1:] == [("INFO", "payload", "two")]
    feed.close()
    assert seen[2:] == [("INFO", "payload", "three")]
    feed.close()
    assert len(seen) == 3


def test_levels_and_loggers_come_through() -> None:
    feed, seen = stream()
    feed.feed((log_line("WARNING", "airloop.step", "50% of %s") + "\n").encode())
    feed.feed((log_line("NOTICE", "x", "y") + "\n").encode())
    feed.feed(b'{"airloop_log": 1, "level"\n')
    assert seen == [
        ("WARNING", "airloop.step", "50% of %s"),
        ("INFO", "x", "y"),
        ("INFO", "payload", '{"airloop_log": 1, "level"'),
    ]


def test_the_last_error_is_kept() -> None:
    feed, _ = stream("hunter2hunter2")
    feed.feed(
        (log_line("ERROR", "a", "first") + "\n" + log_line("ERROR", "a", "is hunter2hunter2") + "\nplain\n").encode()
    )
    assert (feed.last_error, feed.last_plain) == ("is ***", "plain")


def test_control_characters_cannot_fake_lines() -> None:
    feed, seen = stream()
    feed.feed(b"a\x00b\x08c\x7f\tind\x1b[0m\n" + (log_line("INFO", "n", "x\ry\x0b") + "\n").encode())
    assert seen == [("INFO", "payload", "a�b�c�\tind\x1b[0m"), ("INFO", "n", "x\ry�")]


def test_long_lines_are_bounded_and_counted() -> None:
    feed, seen = stream()
    for _ in range(40):
        feed.feed(b"x" * 65536)
    feed.feed(b"\nnext\n")
    message = seen[0][2]
    assert message == "x" * MESSAGE_LIMIT + " … (2,621,440 bytes in all)"
    assert seen[1] == ("INFO", "payload", "next")


def test_a_secret_is_masked_before_a_line_is_cut() -> None:
    feed, seen = stream("hunter2hunter2")
    feed.feed(b"x" * (MESSAGE_LIMIT - 5) + b"hunter2hunter2" + b"\n")
    assert "hunter" not in seen[0][2]
    feed.feed(b"x" * (LINE_LIMIT - 5) + b"hunter2hunter2" + b"\n")
    assert "hunter" not in seen[1][2]


@given(st.lists(st.binary(max_size=40), max_size=10))
def test_no_bytes_are_too_odd(chunks: list[bytes]) -> None:
    feed, seen = stream()
    for chunk in chunks:
        feed.feed(chunk)
    feed.close()
    whole = b"".join(chunks)
    assert len(seen) <= whole.count(b"\n") + 1
