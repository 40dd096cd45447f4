"""How a watch goes on: once over a folder, or until it is told to stop, with a heartbeat and waits that grow in trouble."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from anomaly.errors import AnomalyError, Unavailable
from anomaly.model import AnomalyModel
from pipelines.watch import FILES_A_TURN, Turn, Watch
from pipelines.watch_members import WatchModels

#: Waits in trouble double up to this.
LONGEST_WAIT_S = 300.0
_REFRESH_S, _DRIFT_EVERY_S = 60.0, 60.0

Tell = Callable[[str], None]
Heed = Callable[[], None]


def once(watch: Watch, everything: bool = False, heed: Heed = lambda: None) -> Turn:
    """Take all files that are there, waiting a moment for those that have not settled; then end.

    With ``everything`` no row is left waiting for others to come before it. ``heed`` is called between turns and may raise.
    Raises Unavailable: E5002 for the disk, E5001 for the alert database, after all was scored; the next run records it.
    """
    done, last, unrecorded = Turn(), False, _recorded(watch)
    patience = time.monotonic() + 10 * watch.options.settle_s + 1
    while not last:
        heed()
        files, unsettled = watch.new_files()
        files = {n: s for n, s in files.items() if n not in done.not_ready}
        waits = unsettled > 0 and time.monotonic() < patience
        some = dict(list(files.items())[:FILES_A_TURN])
        if not some and waits:
            time.sleep(max(watch.options.settle_s / 4, 0.05))
            continue
        last = len(some) == len(files) and not waits
        step = watch.turn(some, everything and last)
        step.not_ready = done.not_ready | step.not_ready
        done.add(step)
        unrecorded = _recorded(watch)
    done.notices += watch.drift()
    watch.heartbeat(str(unrecorded or ""))
    if unrecorded is not None:
        raise unrecorded
    return done


def _recorded(watch: Watch) -> Unavailable | None:
    """Why something could not be recorded; None where the ledger has it all."""
    try:
        watch.record()
    except Unavailable as error:
        return error
    return None


@dataclass
class BackOff:
    """When to try again: at once, then after ``first_s``, then twice as long each time, at most five minutes.

    >>> wait = BackOff(5.0)
    >>> [wait.failed() for _ in range(3)]
    [5.0, 10.0, 20.0]
    """

    first_s: float
    failures: int = 0
    until: float = field(default=0.0)

    def failed(self) -> float:
        """Note a failure; gives the wait in seconds."""
        wait = min(self.first_s * 2.0 ** min(self.failures, 30), max(LONGEST_WAIT_S, self.first_s))
        self.failures, self.until = self.failures + 1, time.monotonic() + wait
        return wait

    def worked(self) -> None:
        """Note a success."""
        self.failures, self.until = 0, 0.0

    @property
    def due(self) -> bool:
        """Whether the wait is over."""
        return time.monotonic() >= self.until


class Loop:
    """A watch that goes on until it is told to stop; ``newer`` gives a model to change to, once a minute."""

    def __init__(
        self,
        watch: Watch,
        every_s: float,
        tell: Tell,
        newer: Callable[[], AnomalyModel | WatchModels | None] = lambda: None,
    ) -> None:
        self.watch, self._tell, self._newer, self._every_s = watch, tell, newer, every_s
        self._scoring, self._recording = BackOff(every_s), BackOff(every_s)
        self._arrived = self._refreshed = time.monotonic()
        self._drift_at, self._drift_said = 0.0, tuple[str, ...]()
        self.trouble: dict[str, str] = {}

    def run(self, heed: Heed) -> None:
        """Look, score, record and wait, until ``heed`` raises: it is called where everything is safe on disk."""
        while True:
            heed()
            more = self.step()
            if not more:
                self._pause(heed)

    def step(self) -> bool:
        """One look at the folder; whether there is more to do at once. Trouble is told and tried again later."""
        more = False
        if time.monotonic() - self._refreshed >= _REFRESH_S:
            self._refreshed = time.monotonic()
            self._refresh()
        if self._scoring.due:
            more = self._try("scoring", self._scoring, self._turn) or False
        if self._recording.due:
            self._try("recording", self._recording, lambda: bool(self.watch.record()))
        try:
            self.watch.heartbeat("; ".join(self.trouble.values()))
        except (Unavailable, OSError) as error:
            self._tell(f"no heartbeat: {error}")
        return more

    def _try(self, what: str, wait: BackOff, work: Callable[[], bool]) -> bool | None:
        """What ``work`` gives; None where it failed, which is noted with a wait before the next try."""
        try:
            found = work()
        except (Unavailable, OSError) as error:
            self._tell(f"{what} failed, tried again in {wait.failed():.0f} s: {error}")
            self.trouble[what] = str(error)
            return None
        wait.worked()
        if self.trouble.pop(what, None):
            self._tell(f"{what} works again")
        return found

    def _turn(self) -> bool:
        watch = self.watch
        files, _ = watch.new_files()
        some = dict(list(files.items())[:FILES_A_TURN])
        # Rows that wait are scored once the folder has been quiet for as long as a row may be late.
        quiet = (time.monotonic() - self._arrived) * 1e6 >= watch.options.lateness_us
        self._arrived = time.monotonic() if some else self._arrived
        done = watch.turn(some, everything=not some and quiet)
        for said in lines(done):
            self._tell(said)
        if done.rows and time.monotonic() >= self._drift_at:
            self._drift_at = time.monotonic() + _DRIFT_EVERY_S
            found = watch.drift()
            for notice in found if found != self._drift_said else ():
                self._tell(f"note: {notice}")
            self._drift_said = found
        return len(files) > len(some)

    def _refresh(self) -> None:
        """Change to a newer model where there is one; the one at work stays where it cannot be had."""
        try:
            model = self._newer()
            if model is not None:
                self.watch.use(model)
                self._tell("the model changed; its windows begin anew")
            self.trouble.pop("model", None)
        except (AnomalyError, OSError) as error:
            self.trouble["model"] = str(error)
            self._tell(f"the model at work stays: {error}")

    def _pause(self, heed: Heed) -> None:
        """Wait, heeding a wish to stop within a tenth of a second."""
        end = time.monotonic() + self._every_s
        while (left := end - time.monotonic()) > 0:
            heed()
            time.sleep(min(left, 0.1))


def lines(done: Turn) -> list[str]:
    """What a turn did, for people: one line each."""
    said = []
    if done.files or done.rows or done.repeated:
        repeated = f" ({done.repeated} more had come before)" if done.repeated else ""
        said.append(f"{done.files} files{repeated}, {done.rows} rows scored, {done.episodes} new episodes")
    said += [f"quarantined {name}: {reason}" for name, reason in done.quarantined.items()]
    if done.shadow is not None and (done.shadow.rows or done.shadow.refused):
        said.append(done.shadow.line())
    said += [f"not ready {name}: {reason}" for name, reason in done.not_ready.items()]
    return said + [f"note: {notice}" for notice in done.notices]
