"""Somebody who looks again and again at what others change."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def all_the_while(look: Callable[[], None], *, every_s: float) -> Iterator[None]:
    """Look in a thread of its own: before the block, again and again while it runs, and once when it has ended."""
    errors: list[Exception] = []
    ready, over = threading.Event(), threading.Event()

    def again_and_again() -> None:
        try:
            while not over.is_set():
                look()
                ready.set()
                over.wait(every_s)
            look()
        except Exception as error:
            errors.append(error)
        finally:
            ready.set()

    thread = threading.Thread(target=again_and_again)
    thread.start()
    ready.wait()
    try:
        yield
    finally:
        over.set()
        thread.join()
    if errors:
        raise errors[0]
