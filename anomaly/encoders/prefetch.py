"""Read the next batches while the model learns from this one."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import closing
from typing import Any, TypeVar

Item = TypeVar("Item")
_END = object()


def prefetched(items: Iterator[Item], ahead: int = 4) -> Generator[Item, None, None]:
    """The same items in the same order, up to ``ahead`` of them made early on a thread of their own.

    An exception in ``items`` comes out where its item would have; closing the iterator stops the thread before it
    returns, so that nothing reads the store any more.

    >>> list(prefetched(iter([1, 2, 3])))
    [1, 2, 3]
    """
    slots: queue.Queue[Any] = queue.Queue(maxsize=ahead)
    stopped = threading.Event()

    def offer(item: object) -> bool:
        while not stopped.is_set():
            try:
                slots.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for item in items:
                if not offer(item):
                    return
            offer(_END)
        except BaseException as error:  # noqa: BLE001  handed to the thread that asked, which raises it
            offer(_Raised(error))

    thread = threading.Thread(target=work, name="prefetch", daemon=True)
    thread.start()
    try:
        while (item := slots.get()) is not _END:
            if isinstance(item, _Raised):
                raise item.error
            yield item
    finally:
        stopped.set()
        thread.join()


class ReadingAhead:
    """Passes over batches that are made on a thread of their own where that pays.

    A thread costs about 0.2 ms a batch in waiting for the interpreter, more than cutting a batch from a pool takes; it pays
    where batches are augmented, or come from a slow disk. The first pass is made in place and timed.
    """

    #: Share of a pass that making its batches must take for a thread to pay.
    least_share = 0.15

    def __init__(self, allowed: bool = True) -> None:
        self._allowed, self._share = allowed, 0.0

    def batches(self, items: Generator[Item, None, None]) -> Generator[Item, None, None]:
        """The same items in the same order, made ahead or not; once it is closed no more are made."""
        if self._allowed and self._share > self.least_share:
            return prefetched(items)
        return self._timed(items)

    def _timed(self, items: Generator[Item, None, None]) -> Generator[Item, None, None]:
        started, making = time.perf_counter(), 0.0
        with closing(items):
            while True:
                asked = time.perf_counter()
                item = next(items, _END)
                making += time.perf_counter() - asked
                if item is _END:
                    break
                yield item  # type: ignore[misc]
        self._share = making / max(time.perf_counter() - started, 1e-9)


class _Raised:
    """An exception on its way to the reader."""

    def __init__(self, error: BaseException) -> None:
        self.error = error
