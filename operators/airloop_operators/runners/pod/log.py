"""A container's log, followed: each line once, however often the stream is cut."""

from __future__ import annotations

import logging
import math
import re
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import NamedTuple, Protocol

log = logging.getLogger("airloop.runner")

PAUSE_S = 1.0
"""Seconds before a stream that was cut is asked for again."""
OVERLAP_S = 60
"""Seconds that are read again after a cut: clocks of nodes and workers differ."""
_STAMP = re.compile(rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d) ?")


class OpenLog(Protocol):
    """:meth:`.cluster.Cluster.log` of one container."""

    def __call__(self, *, follow: bool, since_s: int | None) -> Iterator[bytes]: ...


class Mark(NamedTuple):
    """How far a log has been read."""

    at_ns: int = 0
    """Time of the last line that was taken, by the node's clock; 0: none was."""
    lines: int = 0
    """How many lines of that time were taken."""


UNREAD = Mark()


class _Gap(Exception):
    """What was read again does not reach back to what was read last."""


class LogFollower:
    """
    Follows a log in a thread of its own; what becomes of the pod does not depend on it.

    Every line begins with its time. After a cut some of the log is read again: lines up to the last one that was taken
    are known by their times, and by their number where several have one time.

    :param feed: takes each line once, with its end.
    :param trouble: errors of a stream that is cut or refused.
    :param read: how far it has been read before; those lines are not taken again.
    """

    def __init__(
        self,
        open_log: OpenLog,
        feed: Callable[[bytes], None],
        trouble: tuple[type[BaseException], ...],
        *,
        pause_s: float = PAUSE_S,
        read: Mark = UNREAD,
    ) -> None:
        self._open = open_log
        self._feed = feed
        self._trouble = trouble
        self._pause_s = pause_s
        self._last_ns, self._at_last = read
        """Lines that were taken with the last time."""
        self._ended = threading.Event()
        self._abandoned = False
        self._thread = threading.Thread(target=self._follow, name="airloop-pod-log", daemon=True)

    @property
    def mark(self) -> Mark:
        """How far it has been read."""
        return Mark(self._last_ns, self._at_last)

    def catch_up(self) -> None:
        """
        Take what there is by now, in the caller's thread, instead of following.

        The very last line stays for the next time, for it may not be complete yet.
        """
        try:
            try:
                self._read(follow=False, since_s=self._since_s(), hold=True)
            except _Gap:
                self._read(follow=False, since_s=None, hold=True)
        except self._trouble as cut:
            log.debug("the log's stream was cut: %s", cut)

    def start(self) -> None:
        """Begin to follow."""
        self._thread.start()

    def finish(self, within_s: float) -> bool:
        """
        The container has ended: read what is left.

        :returns: False if that could not be done in time.
        """
        self._ended.set()
        self._thread.join(within_s)
        done = not self._thread.is_alive() and not self._abandoned
        self._abandoned = True
        return done

    def _follow(self) -> None:
        try:
            self._run()
        except Exception:
            # The step does not depend on it; that its end is missing is said.
            self._abandoned = True
            log.exception("the log cannot be read any further")

    def _run(self) -> None:
        while not self._abandoned:
            # Looked at first: what is read after the end is all there is.
            ended = self._ended.is_set()
            try:
                # What is left after the end may reach back further than clocks say.
                self._read(follow=not ended, since_s=None if ended else self._since_s())
                if ended:
                    return
            except _Gap:
                log.debug("reading the whole log again")
            except self._trouble as cut:
                if ended and getattr(cut, "status", 0) in (400, 404):
                    self._abandoned = True  # the log went with its pod
                    return
                log.debug("the log's stream was cut: %s", cut)
            self._ended.wait(self._pause_s)
            if ended:
                time.sleep(self._pause_s)

    def _read(self, *, follow: bool, since_s: int | None, hold: bool = False) -> None:
        known = self._last_ns > 0
        left = self._at_last
        stream = self._open(follow=follow, since_s=since_s)
        for line in _but_the_last(stream) if hold else stream:
            if self._abandoned:
                return
            stamp = _STAMP.match(line)
            if stamp is None:
                # Of the node, about the log: it is not kept, and comes only once.
                if not known:
                    self._feed(line + b"\n")
                continue
            at_ns = _nanoseconds(stamp)
            if known:
                if at_ns < self._last_ns:
                    since_s = None
                    continue
                if at_ns == self._last_ns and left:
                    left -= 1
                    since_s = None
                    continue
                if since_s is not None:
                    self._whole = True
                    raise _Gap
                known = False
            self._at_last = self._at_last + 1 if at_ns == self._last_ns else 1
            self._last_ns = at_ns
            self._feed(line[stamp.end() :] + b"\n")

    _whole = False
    """Read everything again next time."""

    def _since_s(self) -> int | None:
        if not self._last_ns or self._whole:
            self._whole = False
            return None
        return max(0, math.ceil(time.time() - self._last_ns / 1e9)) + OVERLAP_S


def _but_the_last(lines: Iterator[bytes]) -> Iterator[bytes]:
    held: bytes | None = None
    for line in lines:
        if held is not None:
            yield held
        held = line


def _nanoseconds(stamp: re.Match[bytes]) -> int:
    whole, fraction, zone = stamp.groups()
    seconds = datetime.fromisoformat((whole + zone).decode()).timestamp()
    return int(seconds) * 1_000_000_000 + int((fraction or b"0").ljust(9, b"0"))
