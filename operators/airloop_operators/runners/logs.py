"""A payload's output, line by line, as records of this process's log: with their levels, bounded, without secrets."""

from __future__ import annotations

import logging
import re

from airloop.contract import parse_log_line
from airloop.redact import Redactor

LINE_LIMIT = 256 * 1024
"""Bytes of one line that are looked at; what is longer is counted and dropped."""
MESSAGE_LIMIT = 32 * 1024
"""Characters of one message that are logged."""
PLAIN_LOGGER = "payload"
"""Logger of lines that are plain output."""

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1a\x1c-\x1f\x7f]")


class LogStream:
    """
    Turns the bytes of one pipe into log records.

    :param logger: gets the records, under the name of the logger that the payload used.
    :param plain_level: level of lines that are plain output.
    """

    def __init__(self, logger: logging.Logger, mask: Redactor, plain_level: int = logging.INFO) -> None:
        self._logger = logger
        self._mask = mask
        self._plain_level = plain_level
        self._line = bytearray()
        self._dropped = 0
        self.last_plain = ""
        """Last line of plain output that was not empty."""
        self.last_error = ""
        """Last message at level ERROR or above."""

    def feed(self, chunk: bytes) -> None:
        """Take what came from the pipe; complete lines are logged at once."""
        *complete, rest = chunk.split(b"\n")
        for part in complete:
            self._add(part)
            self._flush()
        self._add(rest)

    def close(self) -> None:
        """Log what came without a line's end."""
        if self._line:
            self._flush()

    def _add(self, part: bytes) -> None:
        room = LINE_LIMIT - len(self._line)
        self._line += part[:room]
        self._dropped += max(0, len(part) - room)

    def _flush(self) -> None:
        # A progress bar redraws its line: what stands there last is what counts.
        text = bytes(self._line).decode(errors="replace").rstrip("\r\n").rpartition("\r")[2]
        size = len(self._line) + self._dropped
        self._line.clear()
        self._dropped, dropped = 0, self._dropped
        if not text.strip():
            return
        parsed = None if dropped else parse_log_line(text)
        if parsed is None:
            level, name, message = self._plain_level, PLAIN_LOGGER, text
        else:
            level, name, message = _level(parsed[0]), parsed[1], parsed[2]
        # Masked before it is cut, so that no secret is cut in two and left.
        message = _CONTROL.sub("\N{REPLACEMENT CHARACTER}", self._mask(message))
        if len(message) > MESSAGE_LIMIT or dropped:
            message = f"{message[:MESSAGE_LIMIT]} … ({size:,} bytes in all)"
        if parsed is None:
            self.last_plain = message
        elif level >= logging.ERROR:
            self.last_error = message
        record = self._logger.makeRecord(name, level, "payload", 0, message, (), None)
        self._logger.handle(record)


def _level(name: str) -> int:
    level = logging.getLevelNamesMapping().get(name.upper())
    return logging.INFO if level is None else level
