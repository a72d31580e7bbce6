"""
Which attempts run now, since when and on what: what upkeep must not take away under them.

Each attempt is announced with its arguments as they were given, and holds a lock as long as its process lives. While
its arguments are resolved it holds a gate, shared with other attempts; upkeep closes that gate for the moment in which
it decides what nobody names any more.

With a SQLite catalog an announcement is a file ``locks/running/ATTEMPT.json``, which only its user may read; the file's
time is the attempt's start. Files and processes of one machine; state on network file systems is refused elsewhere.
With a catalog on PostgreSQL it is a row of that database (:mod:`airloop.frame.running_postgres`).
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Protocol, Self

from airloop.config import Config
from airloop.contract import Call
from airloop.locks import Held, PostgresLocks, locks_of

GATE = "gate"
Check = Callable[[], None]
"""Asks whether what upkeep holds was lost meanwhile."""


@dataclass(frozen=True, slots=True)
class Running:
    """An attempt that runs, or that ended since upkeep began."""

    attempt: str
    started_at: float
    """Seconds since 1970, by the clock of who asks."""
    arguments: str
    """JSON."""
    alive: bool


class Board(Protocol):
    """Where attempts are announced."""

    def put(self, attempt: str, arguments: str) -> Callable[[], None]:
        """Announce an attempt; returns what takes it down, unless upkeep is deciding: then it stays known."""
        ...

    def attempts(self) -> list[Running]:
        """All that are announced, by name."""
        ...

    def remove(self, attempt: str) -> None:
        """Forget an attempt that is over."""
        ...

    def deciding(self) -> AbstractContextManager[Check]:
        """Within the block attempts stay known after their end; see :func:`deciding`."""
        ...


class Announced:
    """An attempt that upkeep knows of, from before its arguments are resolved until its end."""

    def __init__(self, config: Config, call: Call) -> None:
        self._config = config
        self._call = call

    def __enter__(self) -> Self:
        with ExitStack() as gate:
            gate.enter_context(locks_of(self._config).hold(GATE, shared=True))
            arguments = json.dumps(dict(self._call.arguments), default=str)
            self._take_down = _board(self._config).put(self._call.attempt, arguments)
            self._gate = gate.pop_all()
        return self

    def resolved(self) -> None:
        """The arguments name snapshots now: upkeep may decide again."""
        self._gate.close()

    def __exit__(self, *_: object) -> None:
        self.resolved()
        self._take_down()


def attempts(config: Config) -> list[Running]:
    """Attempts that run now, and those that ended since :func:`deciding` began; call it inside :func:`closed`."""
    return _board(config).attempts()


@contextmanager
def deciding(config: Config) -> Iterator[Check]:
    """
    Within the block attempts stay known after their end. One block at a time; the caller sees to that.

    :returns: to be called before something takes effect that relies on it; it raises Unreachable if the server that
        keeps attempts known was restarted meanwhile.
    """
    board = _board(config)
    with ExitStack() as stack:
        with closed(config):
            check = stack.enter_context(board.deciding())
            # What a killed process left behind is not asked for any more.
            for left in board.attempts():
                if not left.alive:
                    board.remove(left.attempt)
        yield check


@contextmanager
def closed(config: Config) -> Iterator[Held]:
    """Within the block no attempt resolves its arguments: keep it short."""
    with locks_of(config).hold(GATE) as held:
        yield held


def _board(config: Config) -> Board:
    locks = locks_of(config)
    if isinstance(locks, PostgresLocks):
        from airloop.frame.running_postgres import Rows

        return Rows(locks)
    return _Files(config)


class _Files:
    """Announcements as files, each locked by its process."""

    def __init__(self, config: Config) -> None:
        self._folder = config.home / "locks" / "running"
        self._deciding = config.home / "locks" / "deciding"
        self._folder.mkdir(parents=True, exist_ok=True)

    def put(self, attempt: str, arguments: str) -> Callable[[], None]:
        path = self._folder / f"{attempt}.json"
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            os.write(file, arguments.encode())
        except BaseException:
            os.close(file)
            raise

        def take_down() -> None:
            # What ended while upkeep was at work may have published a manifest that upkeep did not read.
            if not self._deciding.exists():
                self.remove(attempt)
            os.close(file)

        return take_down

    def attempts(self) -> list[Running]:
        found = []
        for path in sorted(self._folder.glob("*.json")):
            with suppress(FileNotFoundError):
                alive = not _free(str(path))
                found.append(Running(path.stem, path.stat().st_mtime, path.read_text(), alive))
        return found

    def remove(self, attempt: str) -> None:
        (self._folder / f"{attempt}.json").unlink(missing_ok=True)

    @contextmanager
    def deciding(self) -> Iterator[Check]:
        self._deciding.touch()
        try:
            # Files are not lost.
            yield lambda: None
        finally:
            self._deciding.unlink(missing_ok=True)


def _free(path: str) -> bool:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
