"""Read the next batches while the model learns from this one."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterator
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


class _Raised:
    """An exception on its way to the reader."""

    def __init__(self, error: BaseException) -> None:
        self.error = error
