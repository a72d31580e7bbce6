"""A container's log, followed: each line once, however often the stream is cut."""

from __future__ import annotations

import logging
import math
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import NamedTuple, Protocol, TypeVar

T = TypeVar("T")

log = logging.getLogger("airloop.runner")

PAUSE_S = 1.0
"""Seconds before a stream that was cut is asked for again."""
OVERLAP_S = 60
"""
Seconds that are read again after a cut: clocks of nodes and workers differ. By as much may the times of lines that
follow each other go backwards, as those of standard output and standard error do.
"""
TIMES = 10_000
"""Different times of lines that are remembered, to count lines of one time."""
_OVERLAP_NS = OVERLAP_S * 1_000_000_000
_STAMP = re.compile(rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d) ?")


class OpenLog(Protocol):
    """:meth:`.cluster.Cluster.log` of one container."""

    def __call__(self, *, follow: bool, since_s: int | None) -> Iterator[bytes]: ...


class Mark(NamedTuple):
    """How far a log has been read."""

    at_ns: int = 0
    """Time of the last line that was taken, by the node's clock; 0: none was."""
    lines: int = 0
    """Its number among the lines of that time, from 1; 0: none was."""


UNREAD = Mark()


class _Gap(Exception):
    """What was read again does not reach back to what was read last."""


class LogFollower:
    """
    Follows a log in a thread of its own; what becomes of the pod does not depend on it.

    Every line begins with its time, and lines keep their order. After a cut some of the log is read again: what comes
    after the last line that was taken is new, whatever its time. That line is known by its time, and by its number
    where several have one time.

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
        self._mark = read
        self._whole = False
        """All of it has to be read next time."""
        self._ended = threading.Event()
        self._abandoned = False
        self._thread = threading.Thread(target=self._follow, name="airloop-pod-log", daemon=True)

    @property
    def mark(self) -> Mark:
        """How far it has been read."""
        return self._mark

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
            # What is left after the end may reach back further than clocks say.
            whole, self._whole = ended or self._whole, False
            try:
                since_s = None if whole else self._since_s()
                self._read(follow=not whole, since_s=since_s, hold=whole and not ended)
                if ended:
                    return
            except _Gap:
                log.debug("reading the whole log again")
                self._whole = True
            except self._trouble as cut:
                if ended and getattr(cut, "status", 0) in (400, 404):
                    self._abandoned = True  # the log went with its pod
                    return
                log.debug("the log's stream was cut: %s", cut)
            self._ended.wait(self._pause_s)
            if ended:
                time.sleep(self._pause_s)

    def _read(self, *, follow: bool, since_s: int | None, hold: bool = False) -> None:
        new = self._new(self._open(follow=follow, since_s=since_s), whole=since_s is None)
        for mark, text in _but_the_last(new) if hold else new:
            if self._abandoned:
                return
            self._mark = mark
            self._feed(text + b"\n")

    def _new(self, lines: Iterator[bytes], *, whole: bool) -> Iterator[tuple[Mark, bytes]]:
        """
        What comes after the last line that was taken: each line, and the mark to it.

        :param lines: of a log.
        :param whole: it is all that is kept of the log, so if that line is not there, everything is new.
        :raises _Gap: it should have come by now, and there may be more than these lines.
        """
        last = at = self._mark
        times = _Times()
        known = again = last != UNREAD
        held: list[tuple[Mark, bytes]] = []
        for line in lines:
            if self._abandoned:
                return
            stamp = _STAMP.match(line)
            if stamp is None:
                # Of the node, about the log: it is not kept, and comes only once.
                if not again:
                    yield at, line
                continue
            at = times.mark(_nanoseconds(stamp))
            told = at, line[stamp.end() :]
            if not known:
                again = False
                yield told
            elif at == last:
                known, held = False, []
            elif at.at_ns >= last.at_ns - _OVERLAP_NS:
                if not whole and at.at_ns > last.at_ns + _OVERLAP_NS:
                    raise _Gap
                held.append(told)
        if known and not whole:
            raise _Gap
        if known:
            yield from held

    def _since_s(self) -> int | None:
        if self._mark == UNREAD:
            return None
        return max(0, math.ceil(time.time() - self._mark.at_ns / 1e9)) + OVERLAP_S


class _Times:
    """Counts lines of one time."""

    def __init__(self) -> None:
        self._counts: OrderedDict[int, int] = OrderedDict()

    def mark(self, at_ns: int) -> Mark:
        """The mark to the next line."""
        count = self._counts.pop(at_ns, 0) + 1
        self._counts[at_ns] = count
        if len(self._counts) > TIMES:
            self._counts.popitem(last=False)
        return Mark(at_ns, count)


def _but_the_last(items: Iterator[T]) -> Iterator[T]:
    held: list[T] = []
    for item in items:
        yield from held
        held = [item]


def _nanoseconds(stamp: re.Match[bytes]) -> int:
    whole, fraction, zone = stamp.groups()
    seconds = datetime.fromisoformat((whole + zone).decode()).timestamp()
    return int(seconds) * 1_000_000_000 + int((fraction or b"0").ljust(9, b"0"))
