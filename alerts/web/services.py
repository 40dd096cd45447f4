"""What every request works with: the database and what stands on it, the settings of the page, and a short memory."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from starlette.requests import HTTPConnection

from alerts.database import Database
from alerts.planning import Planning
from alerts.store import AlertStore
from alerts.users import User, Users
from alerts.workflow import Clock, Workflow, clock_us

HOUR_US, DAY_US = 3_600_000_000, 86_400_000_000

#: What is remembered of the states of alerts, which every change moves.
_OF_STATES = ("counts", "waiting", "by kind", "tick")

T = TypeVar("T")


@dataclass(frozen=True)
class WebSettings:
    """How the page is served.

    ``local``: one person on this machine, no sign-in, only for requests to a loopback name. ``https``: a proxy in front speaks
    HTTPS, so the cookie goes over HTTPS alone. ``expected_us``: how often data of an asset should come, in microseconds.
    ``largest_body``: bytes of a request.
    """

    local: bool = False
    https: bool = False
    expected_us: int = HOUR_US
    largest_body: int = 1 << 20


class Services:
    """The database and what stands on it; ``clock`` gives UTC microseconds."""

    def __init__(
        self,
        database: Database,
        settings: WebSettings | None = None,
        clock: Clock = clock_us,
        users: Users | None = None,
    ) -> None:
        database.keep_connections()
        self.database, self.settings, self.clock = database, settings or WebSettings(), clock
        self.store, self.workflow = AlertStore(database), Workflow(database, clock)
        self.planning, self.users = Planning(database, clock), users or Users(database, clock)
        self.local_user = User(0, "local", "admin", 0)
        self.local_token = secrets.token_urlsafe(32)
        self._kept: dict[object, tuple[float, Any]] = {}
        self._locks: dict[object, threading.Lock] = {}
        self._changes = 0

    def remembered(self, key: object, seconds: float, make: Callable[[], T]) -> T:
        """What ``make`` gave within the last ``seconds``, else what it gives now. For figures that many look at: while one
        request makes it anew, the others get the one before, or wait where there is none."""
        held = self._kept.get(key)
        if held is not None and held[0] > time.monotonic():
            return cast("T", held[1])
        lock = self._locks.setdefault(key, threading.Lock())
        if not lock.acquire(blocking=held is None) and held is not None:
            return cast("T", held[1])
        try:
            again = self._kept.get(key)
            if again is not None and again[0] > time.monotonic():
                return cast("T", again[1])
            changes = self._changes
            value = make()
            if len(self._kept) > 500:
                self._kept.clear()
            if changes == self._changes or key not in _OF_STATES:  # else it may be from before what a person just did
                self._kept[key] = (time.monotonic() + seconds, value)
            return value
        finally:
            lock.release()

    def forget(self) -> None:
        """After a change: nobody is shown counts by state from before it. Loads and figures may be some seconds old."""
        self._changes += 1
        for key in _OF_STATES:
            self._kept.pop(key, None)

    def tick(self) -> None:
        """End shelves whose time is over; at most every ten seconds."""
        self.remembered("tick", 10.0, self.workflow.tick)


def services(request: HTTPConnection) -> Services:
    """The services of the application that answers this request."""
    return cast("Services", request.app.state.services)
