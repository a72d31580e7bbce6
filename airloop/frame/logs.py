"""Logs of a payload: levels that the scheduler's task log understands, and no secret in any line."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Mapping

from airloop.contract import ENV_LOG_FORMAT, log_line
from airloop.redact import Redactor as Redactor


class _Formatter(logging.Formatter):
    def __init__(self, redact: Redactor, as_json: bool) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S")
        self._redact = redact
        self._json = as_json

    def format(self, record: logging.LogRecord) -> str:
        if not self._json:
            return self._redact(super().format(record))
        message = record.getMessage()
        if record.exc_info:
            message += "\n" + self.formatException(record.exc_info)
        return log_line(record.levelname, record.name, self._redact(message))


def set_up(environment: Mapping[str, str] = os.environ, *, level: int = logging.INFO) -> Redactor:
    """Send all logging of this process to stderr, in the format that the environment asks for."""
    redact = Redactor.from_environment(environment)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter(redact, environment.get(ENV_LOG_FORMAT) == "json"))
    logging.root.handlers[:] = [handler]
    logging.root.setLevel(level)
    logging.captureWarnings(True)
    # Chatty at INFO about every file they open.
    for name in ("pyiceberg", "alembic", "httpx", "urllib3", "great_expectations", "feast", "botocore", "filelock"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return redact


class Progress:
    """Says how far a long step is, at most every few seconds: ``log.info("rows: 2,000,000 of 3,300,000 (61%)")``."""

    def __init__(self, log: logging.Logger, unit: str, total: int | None = None, *, every_s: float = 3.0) -> None:
        self._log = log
        self._unit = unit
        self._total = total
        self._every_s = every_s
        self._done = 0
        self._said = time.monotonic()

    def add(self, count: int) -> None:
        """Count ``count`` more units as done."""
        self._done += count
        now = time.monotonic()
        if now - self._said >= self._every_s:
            self._said = now
            of = f" of {self._total:,} ({self._done / self._total:.0%})" if self._total else ""
            self._log.info("%s: %s%s", self._unit, f"{self._done:,}", of)
