"""Work on threads: results in the order of the items, one thread of linear algebra per worker.

Two workers that each start a product on all cores are slower than one, and how a product is cut among threads changes its
last bits. So whoever works on several blocks at a time takes one core for each, and results do not depend on how many.
"""

from __future__ import annotations

import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

#: Libraries that bring a pool of threads with them when they are first imported.
_BRINGERS = ("numpy", "scipy.linalg", "sklearn", "tensorflow")

_inside = threading.local()
_lock = threading.Lock()
_pool: ThreadPoolExecutor | None = None
_controllers: dict[tuple[bool, ...], Any] = {}
_limited: list[Any] = []


def cores() -> int:
    """Cores this process may use; fewer where OMP_NUM_THREADS says so."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return max(min(usable, int(asked)), 1) if asked.isdigit() and int(asked) else usable


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Linear algebra on one thread per call. The limit is the whole process's; it ends with the last who asked for it."""
    with _lock:
        _limited.append(_controller().limit(limits=1) if not _limited else None)
    try:
        yield
    finally:
        with _lock:
            # The one real limit goes last, whoever of those that overlap ends last.
            if len(_limited) == 1:
                _limited.pop().restore_original_limits()
            else:
                _limited.pop()


def _controller() -> Any:
    """Finding the libraries takes milliseconds, so it is done again only after one was imported."""
    from threadpoolctl import ThreadpoolController

    loaded = tuple(name in sys.modules for name in _BRINGERS)
    if loaded not in _controllers:
        _controllers[loaded] = ThreadpoolController()
    return _controllers[loaded]


def in_order(
    work: Callable[[Item], Result], items: Iterable[Item], workers: int | None = None, ahead: int = 1
) -> Iterator[Result]:
    """``work(item)`` of every item, in their order, on ``workers`` threads (None: as many as cores).

    Items are taken on the caller's thread, at most ``workers + ahead`` of them before the first result is given: that
    bounds the memory. Inside a worker, and with one worker, everything happens on the caller's thread. An error of
    ``work`` is raised where its result would have come; what was begun is waited for.

    >>> list(in_order(lambda n: n * n, range(4), workers=2))
    [0, 1, 4, 9]
    """
    count = cores() if workers is None else workers
    if count < 2 or getattr(_inside, "worker", False):
        with one_blas_thread():
            yield from map(work, items)
        return
    waiting: deque[Future[Result]] = deque()
    limit = threading.Semaphore(count)
    with one_blas_thread():
        try:
            for item in items:
                waiting.append(_executor().submit(_as_worker, work, item, limit))
                if len(waiting) >= count + ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for left in waiting:
                left.cancel()
            for left in waiting:
                if not left.cancelled():
                    left.exception()


def at_once(work: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """``work(item)`` of a few items, each on a core of its own, the first on the caller's thread; in their order.

    For work of a millisecond or two, where a queue would be felt. Inside a worker everything is done one after another.

    >>> at_once(len, ["a", "bc"])
    [1, 2]
    """
    with one_blas_thread():
        if len(items) < 2 or cores() < 2 or getattr(_inside, "worker", False):
            return [work(item) for item in items]
        limit = threading.Semaphore(cores())
        others = [_executor().submit(_as_worker, work, item, limit) for item in items[1:]]
        try:
            own = _as_worker(work, items[0], limit)
        finally:
            failed = [other.exception() for other in others]
        if any(failed):
            raise next(error for error in failed if error)
        return [own, *(other.result() for other in others)]


def _as_worker(work: Callable[[Item], Result], item: Item, limit: threading.Semaphore) -> Result:
    with limit:
        _inside.worker = True
        try:
            return work(item)
        finally:
            _inside.worker = False


def _executor() -> ThreadPoolExecutor:
    """The threads of this process, kept: starting them anew would cost more than a small search."""
    global _pool  # noqa: PLW0603  one pool per process is the point
    with _lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(max(cores(), 2), thread_name_prefix="anomaly")
        return _pool


def _forget() -> None:
    """A forked child has none of its parent's threads."""
    global _pool, _lock
    _pool, _lock = None, threading.Lock()
    _limited.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
