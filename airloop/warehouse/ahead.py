"""Make the next item of a stream while the one before it is used: reading in one thread, writing in another."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from queue import SimpleQueue
from typing import TypeVar

Item = TypeVar("Item")
_END = object()


def ahead(items: Iterable[Item]) -> Iterator[Item]:
    """
    The same items in their order, one of them made in advance.

    The iterable is used by another thread alone, and by none any more once this iterator has ended or was closed. Its
    error comes where its next item would.
    """
    room = threading.Semaphore(1)
    made: SimpleQueue[tuple[object, BaseException | None]] = SimpleQueue()
    stopped = threading.Event()

    def make() -> None:
        source = iter(items)
        try:
            while True:
                room.acquire()
                if stopped.is_set():
                    break
                item = next(source, _END)
                made.put((item, None))
                if item is _END:
                    break
        except BaseException as error:  # noqa: BLE001  it is raised where the items are used
            made.put((_END, error))
        finally:
            close = getattr(source, "close", None)
            if close is not None:
                close()

    thread = threading.Thread(target=make, name="ahead", daemon=True)
    thread.start()
    try:
        while True:
            item, error = made.get()
            if error is not None:
                raise error
            if item is _END:
                return
            room.release()
            yield item  # type: ignore[misc]
    finally:
        stopped.set()
        room.release()
        thread.join()
