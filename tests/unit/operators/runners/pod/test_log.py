"""A log that is followed: each line once, whatever becomes of the stream."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airloop_operators.runners.pod.log import UNREAD, LogFollower

NOW_S = int(datetime.now(UTC).timestamp())


class Cut(OSError):
    """The stream ends in the middle."""


class Log:
    """A container's log whose streams are cut after some lines each."""

    def __init__(self, lines: list[bytes], *cuts: int | None) -> None:
        self.lines = lines
        self.cuts = list(cuts)
        self.asked: list[tuple[bool, int | None]] = []
        self.forget = 0
        """Lines at the beginning that a request for the last seconds does not get."""
        self.ended = threading.Event()

    def open(self, *, follow: bool, since_s: int | None) -> Iterator[bytes]:
        self.asked.append((follow, since_s))
        cut = self.cuts.pop(0) if self.cuts else None
        begin = 0 if since_s is None else self.forget
        for number, line in enumerate(self.lines[begin:]):
            if number == cut:
                raise Cut
            yield line
        if follow:
            self.ended.set()


def at(ns: int, text: str, zone: str = "Z") -> bytes:
    whole = datetime.fromtimestamp(NOW_S + ns // 1_000_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{whole}.{ns % 1_000_000_000:09d}{zone} {text}".encode()


def followed(log: Log) -> tuple[list[str], bool]:
    found: list[bytes] = []
    follower = LogFollower(log.open, found.append, (OSError,), pause_s=0.01)
    follower.start()
    log.ended.wait(60)
    done = follower.finish(60)
    return b"".join(found).decode().split("\n")[:-1], done


TEXTS = [f"line {n}" for n in range(6)]
LINES = [at(n, text) for n, text in enumerate(TEXTS)]
SAME_TIME = [at(n // 4, text) for n, text in enumerate(TEXTS)]
SECOND = 1_000_000_000
BACKWARDS = [at(ns, text) for ns, text in zip((5, 3, 4, 3, 6, 3), TEXTS, strict=True)]
FAR_BACKWARDS = [at(s * SECOND, text) for s, text in zip((50, 0, 49, 0, 50, 1), TEXTS, strict=True)]
ORDERS = {
    "each its time": LINES,
    "several at one time": SAME_TIME,
    "a little backwards": BACKWARDS,
    "far backwards": FAR_BACKWARDS,
}


@pytest.mark.parametrize("lines", ORDERS.values(), ids=ORDERS)
@pytest.mark.parametrize("cuts", [(), (0,), (3,), (1, 2, 3, 4), (5, 0, 5), (3, 3, 3)])
def test_each_line_comes_once_however_often_the_stream_is_cut(lines: list[bytes], cuts: tuple[int, ...]) -> None:
    assert followed(Log(lines, *cuts)) == (TEXTS, True)


def test_only_the_end_is_read_again_but_all_of_it_at_last() -> None:
    log = Log(LINES, 3)
    followed(log)
    (_, first), (_, second), *_ = log.asked
    assert first is None
    assert second is not None
    assert second >= 60
    assert log.asked[-1] == (False, None)


def test_what_does_not_reach_back_is_read_from_the_beginning() -> None:
    log = Log(LINES, 2)
    log.forget = 4
    assert followed(log) == (TEXTS, True)
    assert (True, None) in log.asked[1:] or (False, None) in log.asked[1:]


@pytest.mark.parametrize("later", [0, 61 * SECOND], ids=["soon", "much later"])
def test_of_a_log_that_has_lost_its_beginning_all_is_new(later: int) -> None:
    """A node keeps the last of a long one; what was read last is not there any more."""
    found: list[bytes] = []
    first = LogFollower(Log(LINES[:3]).open, found.append, (OSError,))
    first.catch_up()
    kept = [at(later + n, text) for n, text in enumerate(TEXTS) if n >= 4]
    then = LogFollower(Log(kept).open, found.append, (OSError,), pause_s=0.01, read=first.mark)
    then.start()
    assert then.finish(60)
    assert b"".join(found).decode().split() == " ".join(TEXTS[:2] + TEXTS[4:]).split()


def test_what_goes_backwards_further_than_is_read_again_is_read_in_the_order_of_the_log() -> None:
    """A node's clock that was set."""
    found: list[bytes] = []
    lines = [at(n * -100 * SECOND, text) for n, text in enumerate(TEXTS)]
    assert followed(Log(lines)) == (TEXTS, True)
    follower = LogFollower(Log(lines, 3).open, found.append, (OSError,), pause_s=0.01)
    follower.start()
    time.sleep(0.2)
    assert follower.finish(60)
    assert b"".join(found).decode().split("\n")[:-1] == TEXTS


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(-55, 55), max_size=30), st.lists(st.integers(0, 30), max_size=6))
def test_whatever_the_times_and_the_cuts(seconds: list[int], cuts: list[int]) -> None:
    texts = [f"line {n}" for n in range(len(seconds))]
    lines = [at(s // 2 * SECOND, text) for s, text in zip(seconds, texts, strict=True)]
    assert followed(Log(lines, *cuts)) == (texts, True)


def test_times_are_compared_as_times() -> None:
    lines = [b"2013-01-01T00:00:00.4Z a", b"2013-01-01T00:00:00.45Z b", b"2013-01-01T08:00:00.451+08:00 c"]
    assert followed(Log(lines, 1, 2)) == (["a", "b", "c"], True)


def test_lines_without_a_time_are_the_nodes_and_logged_once() -> None:
    assert followed(Log([at(0, "a"), b"failed to watch file", at(2, "b")], 2))[0].count("failed to watch file") == 1


def test_lines_without_a_time_change_nothing_of_what_was_taken() -> None:
    found: list[bytes] = []
    lines = [at(0, "a"), at(1, "b"), b"failed to watch file", at(2, "c"), at(3, "d")]
    looked = LogFollower(Log(lines[:4]).open, found.append, (OSError,))
    looked.catch_up()
    again = LogFollower(Log(lines).open, found.append, (OSError,), read=looked.mark)
    again.catch_up()
    assert b"".join(found) == b"a\nb\nfailed to watch file\nc\n"


def test_an_empty_line_is_a_line() -> None:
    assert followed(Log([at(0, ""), at(1, "a")])) == (["", "a"], True)


def test_a_log_that_went_with_its_pod_is_given_up_at_once() -> None:
    class NotFound(OSError):
        status = 404

    def gone(**_: Any) -> Iterator[bytes]:
        raise NotFound

    follower = LogFollower(gone, lambda line: None, (OSError,), pause_s=0.01)
    follower.start()
    assert follower.finish(60) is False


def test_a_log_that_cannot_be_read_holds_nothing_up() -> None:
    def broken(**_: Any) -> Iterator[bytes]:
        raise Cut

    follower = LogFollower(broken, lambda line: None, (OSError,), pause_s=0.01)
    follower.start()
    assert follower.finish(0.1) is False


@pytest.mark.parametrize("lines", ORDERS.values(), ids=ORDERS)
@pytest.mark.parametrize("looks", [(1,), (2, 4), (3, 3, 6), (6,)])
def test_a_log_that_is_looked_at_now_and_then_is_read_once(lines: list[bytes], looks: tuple[int, ...]) -> None:
    found: list[bytes] = []
    mark = UNREAD
    for count in looks:
        follower = LogFollower(Log(lines[:count]).open, found.append, (OSError,), read=mark)
        follower.catch_up()
        mark = follower.mark
        assert len(found) == count - 1, "the last line may not be complete"
    follower = LogFollower(Log(lines).open, found.append, (OSError,), pause_s=0.01, read=mark)
    follower.start()
    assert follower.finish(60)
    assert b"".join(found).decode().split("\n")[:-1] == TEXTS


def test_what_cannot_be_looked_at_now_is_read_later() -> None:
    found: list[bytes] = []
    follower = LogFollower(Log(LINES, 2).open, found.append, (OSError,))
    follower.catch_up()
    again = LogFollower(Log(LINES).open, found.append, (OSError,), read=follower.mark)
    again.catch_up()
    assert b"".join(found).decode().split("\n")[:-1] == TEXTS[:-1]
