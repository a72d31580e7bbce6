"""A stream whose next item is made in advance."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from airloop.errors import BadInput
from airloop.warehouse.ahead import ahead


def threads() -> set[threading.Thread]:
    """Those that make items; other tests may have left some."""
    return {thread for thread in threading.enumerate() if thread.name == "ahead"}


@pytest.mark.parametrize("count", [0, 1, 100])
def test_items_come_in_their_order(count: int) -> None:
    assert list(ahead(range(count))) == list(range(count))


def test_one_item_is_made_while_the_one_before_is_used() -> None:
    begun = [threading.Event() for _ in range(4)]

    def items() -> Iterator[int]:
        for number in range(3):
            begun[number].set()
            yield number

    stream = ahead(items())
    assert next(stream) == 0
    # The second is made without being asked for, the third is not.
    assert begun[1].wait(60)
    assert not begun[2].wait(0.05)
    assert list(stream) == [1, 2]


def test_an_error_comes_where_the_next_item_would() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise BadInput("row 2 is no number")

    others = threads()
    stream = ahead(items())
    assert next(stream) == 1
    with pytest.raises(BadInput, match="row 2 is no number"):
        next(stream)
    assert threads() <= others


def test_a_stream_that_is_given_up_is_closed() -> None:
    closed = threading.Event()

    def items() -> Iterator[int]:
        try:
            yield from range(100)
        finally:
            closed.set()

    others = threads()
    stream = ahead(items())
    assert next(stream) == 0
    stream.close()  # type: ignore[attr-defined]
    assert closed.is_set()
    assert threads() <= others
