"""Turns: how many pages are worked on at once.

Python works on one at a time, and the driver of SQLite hands the interpreter over at every row it reads. Twenty pages begun at
once are therefore all ready late, and those that read most rows last. In turns they are ready one after the other, and the same
work keeps nobody waiting much longer than the rest.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from weakref import WeakKeyDictionary

#: Pages worked on at once: more than one, since one may wait for the disk or for PostgreSQL.
AT_ONCE = 4
#: Seconds after which a page is begun whoever is before it: a slow one, or a database that hangs, must not stop the others.
PATIENCE_S = 1.0


class Turns:
    """At most ``at_once`` holders at a time, in the order in which they came; nobody waits longer than ``patience_s``."""

    def __init__(self, at_once: int = AT_ONCE, patience_s: float = PATIENCE_S) -> None:
        self._at_once, self._patience_s = at_once, patience_s
        # One for each event loop, since a lock belongs to one; a service has a single loop, tests have many.
        self._free: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = WeakKeyDictionary()

    async def take(self) -> Callable[[], None]:
        """Wait for a turn; what comes back ends it, and may be called more than once."""
        free = self._free.setdefault(asyncio.get_running_loop(), asyncio.Semaphore(self._at_once))
        try:
            await (asyncio.wait_for(free.acquire(), self._patience_s) if free.locked() else free.acquire())
        except TimeoutError:
            return lambda: None
        held = [free]

        def end() -> None:
            if held:
                held.pop().release()

        return end
