"""Whether scoring goes on: the heartbeats of all watches are looked at; one that stands still becomes an alert (RELIABILITY H3).

Whoever looks raises it: `anomaly serve` once a minute, another watch, or the watch itself when it is started again. The alert
returns to normal once the heartbeat is fresh. One that was taken out of service is looked at no more when its folder under the
state folder (``work/watch-…``) is removed.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alerts.database import Database
from alerts.findings import Finding, open_findings, record_findings, return_findings
from alerts.workflow import Clock, clock_us
from anomaly.errors import AnomalyError

_log = logging.getLogger(__name__)

HEARTBEAT = "heartbeat.json"
#: A heartbeat may be twice as old as the time between two of them, and so old at least: one large file takes a while.
LEAST_S = 300.0
_LOOK_EVERY_S = 60.0


@dataclass(frozen=True)
class Beat:
    """The last heartbeat of a watch: when, of which folder, and after how long it counts as stale (None: never)."""

    at_us: int
    folder: str
    stale_after_us: int | None
    trouble: str = ""

    @property
    def cause(self) -> str:
        """What the alert is about."""
        return f"watch of {self.folder}"[:1000]

    def stale(self, now_us: int) -> bool:
        """Whether it is too old at ``now_us``; a clock that was put back makes nothing old.

        >>> [Beat(0, "in", 100).stale(now) for now in (100, 101, -5)], Beat(0, "in", None).stale(10**18)
        ([False, True, False], False)
        """
        return self.stale_after_us is not None and now_us - self.at_us > self.stale_after_us


def stale_after_s(every_s: float) -> float:
    """How old a heartbeat may be where the folder is looked at every ``every_s`` seconds.

    >>> stale_after_s(5.0), stale_after_s(3600.0)
    (300.0, 7200.0)
    """
    return max(2 * every_s, LEAST_S)


def last_beat(place: Path) -> Beat | None:
    """The last heartbeat of the watch with the state folder ``place``; None where there is none that can be read."""
    try:
        held = json.loads((place / HEARTBEAT).read_text(encoding="utf-8"))
        after = held["stale_after_s"]
        return Beat(round(held["time"] * 1e6), str(held["folder"]), None if after is None else round(after * 1e6),
                    str(held["trouble"]))  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError):
        return None


def tell_stale(database: Database, beat: Beat, now_us: int, clock: Clock = clock_us) -> list[int]:
    """The alert on a scorer that stands still, from its last heartbeat to now: the same one for as long as it lasts.

    Raises Unavailable.
    """
    told: dict[str, Any] = {"rule": "heartbeat", "detail": f"no heartbeat of the {beat.cause}"}
    if beat.trouble:
        told["trouble"] = beat.trouble[:1000]
    finding = Finding("stale_scorer", "", beat.cause, beat.at_us, max(now_us, beat.at_us), 1, json.dumps(told))
    return record_findings(database, [finding], clock)


def tell_alive(database: Database, cause: str, clock: Clock = clock_us) -> list[int]:
    """The scorer works again: its alert, if there is one, returns to normal. Raises Unavailable."""
    if not database.exists():
        return []
    numbers = open_findings(database, "stale_scorer", cause)
    return return_findings(database, numbers, clock(), "it works again", clock) if numbers else []


@dataclass
class Looks:
    """Looks at the heartbeats of all watches of a state folder, time and again.

    A scorer counts as standing still at the second look that finds the same old heartbeat, so that a clock that jumps raises
    nothing; ``times`` 1 takes the first look's word.
    """

    database: Database
    home: Path
    clock: Clock = clock_us
    times: int = 2
    _seen: dict[Path, tuple[int, int]] = field(default_factory=dict)

    def look(self, own: Path | None = None) -> list[str]:
        """The folders whose watches stand still, each with its alert; ``own`` is not looked at. Raises Unavailable."""
        now, stale = self.clock(), list[str]()
        for place in sorted((self.home / "work").glob("watch-*")):
            beat = last_beat(place)
            if beat is None or beat.stale_after_us is None or place == own:
                continue
            if not beat.stale(now):
                self._seen.pop(place, None)
                tell_alive(self.database, beat.cause, self.clock)
                continue
            at, count = self._seen.get(place, (beat.at_us, 0))
            count = count + 1 if at == beat.at_us else 1
            self._seen[place] = (beat.at_us, count)
            if count >= self.times:
                tell_stale(self.database, beat, now, self.clock)
                stale.append(beat.folder)
        return stale


@contextmanager
def looking(database: Database, home: Path, every_s: float = _LOOK_EVERY_S) -> Iterator[None]:
    """A thread looks while this lasts; a database that does not answer is asked again at the next look."""
    looks, stop = Looks(database, home), threading.Event()

    def run() -> None:
        while not stop.wait(every_s):
            try:
                looks.look()
            except (AnomalyError, OSError) as error:
                _log.warning("the heartbeats of scorers cannot be judged: %s", error)

    thread = threading.Thread(target=run, name="scorers", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=1.0)


class Return:
    """A watch that was started again: what its standing still was, told once the database answers."""

    def __init__(self, place: Path, folder: Path, now_us: int | None = None) -> None:
        self._beat, self._now_us = last_beat(place), now_us or time.time_ns() // 1000
        self._cause = Beat(0, str(folder.resolve()), None).cause
        self._told = False

    def tell(self, database: Database, clock: Clock = clock_us) -> None:
        """Raise the alert where nobody had looked, and return it: the watch runs. Raises Unavailable; then call it again."""
        if self._told:
            return
        if self._beat is not None and self._beat.stale(self._now_us):
            tell_stale(database, self._beat, self._now_us, clock)
        tell_alive(database, self._cause, clock)
        self._told = True
