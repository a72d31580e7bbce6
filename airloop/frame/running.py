"""
Which attempts run now, since when and on what: what upkeep must not take away under them.

Each attempt keeps a file ``locks/running/ATTEMPT.json`` with its arguments as they were given, which only its user may
read, locked as long as its process lives; the file's time is the attempt's start. While its arguments are resolved it
holds a gate, shared with other attempts; upkeep closes that gate for the moment in which it decides what nobody names
any more. Files and processes of one machine; state on network file systems is refused elsewhere.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from airloop.config import Config
from airloop.contract import Call


@dataclass(frozen=True, slots=True)
class Running:
    """An attempt that runs, or that ended since upkeep began."""

    attempt: str
    started_at: float
    """Seconds since 1970."""
    arguments: str
    """JSON."""
    alive: bool


class Announced:
    """An attempt that upkeep knows of, from before its arguments are resolved until its end."""

    def __init__(self, config: Config, call: Call) -> None:
        self._config = config
        self._call = call
        self._path = _folder(config) / f"{call.attempt}.json"

    def __enter__(self) -> Self:
        self._gate = _gate(self._config, fcntl.LOCK_SH)
        try:
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._file, fcntl.LOCK_EX)
            os.write(self._file, json.dumps(dict(self._call.arguments), default=str).encode())
        except BaseException:
            os.close(self._gate)
            raise
        return self

    def resolved(self) -> None:
        """The arguments name snapshots now: upkeep may decide again."""
        if self._gate >= 0:
            os.close(self._gate)
            self._gate = -1

    def __exit__(self, *_: object) -> None:
        self.resolved()
        # What ended while upkeep was at work may have published a manifest that upkeep did not read.
        if not _deciding(self._config).exists():
            with suppress(FileNotFoundError):
                self._path.unlink()
        os.close(self._file)


def attempts(config: Config) -> list[Running]:
    """Attempts that run now, and those that ended since :func:`deciding` began; call it inside :func:`closed`."""
    found = []
    for path in sorted(_folder(config).glob("*.json")):
        with suppress(FileNotFoundError):
            alive = not _free(path)
            found.append(Running(path.stem, path.stat().st_mtime, path.read_text(), alive))
    return found


@contextmanager
def deciding(config: Config) -> Iterator[None]:
    """Within the block attempts stay known after their end. One block at a time; the caller sees to that."""
    flag = _deciding(config)
    with closed(config):
        flag.touch()
        # What a killed process left behind is not asked for any more.
        for left in attempts(config):
            if not left.alive:
                (_folder(config) / f"{left.attempt}.json").unlink(missing_ok=True)
    try:
        yield
    finally:
        flag.unlink(missing_ok=True)


@contextmanager
def closed(config: Config) -> Iterator[None]:
    """Within the block no attempt resolves its arguments: keep it short."""
    gate = _gate(config, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(gate)


def _gate(config: Config, mode: int) -> int:
    descriptor = os.open(_folder(config).parent / "gate.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, mode)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _free(path: Path) -> bool:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)


def _deciding(config: Config) -> Path:
    return _folder(config).parent / "deciding"


def _folder(config: Config) -> Path:
    folder = config.home / "locks" / "running"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
