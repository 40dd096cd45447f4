"""What is told to the outside: what sensor rules found becomes alerts, floods get a parent, and a sender brings messages out.

``after_record`` is what a scoring run calls once its alerts are recorded; calling it again changes nothing, so that a run that
died in between is finished by running it again. ``Notifier`` is the sender: it may be killed at any time.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from alerts.alert import Alert, iso_time
from alerts.database import Database
from alerts.episodes import Episode
from alerts.figures import silent
from alerts.findings import Finding, adopt, group_floods, record_findings
from alerts.listing import Filters
from alerts.notification_settings import NotifySettings, transport
from alerts.outbox import Message, Sender, SendFailed, Sent, Transport, dead_letters, standings
from alerts.planning import Planning
from alerts.store import AlertStore
from alerts.transports import enqueue_digest
from alerts.workflow import Clock, Ticked, Workflow, clock_us
from anomaly.errors import Fault, Unavailable, UsageError

if TYPE_CHECKING:
    from anomaly.data.quality import Finding as SensorFinding

_HOUR, _DAY = 3_600_000_000, 86_400_000_000
#: What sensor rules call it, and what the alert is called. Values out of range are what scores are for.
_KIND_OF = {"flat_line": "flat_line", "missing": "no_data", "gap": "gap", "unit_jump": "unit", "swapped_pair": "swap"}
#: A shorter gap in a log is over when the log is read, and nothing to look at.
LEAST_GAP_US = _DAY
#: How a swap seen by levels is told. One seen by correlation alone is a hint for the report, too weak to call somebody.
_LEVELS = "hold each other's levels"
#: Alerts of a day that its digest counts.
_MOST_OF_A_DAY = 10_000

Tell = Callable[[str], None]


# -- after a scoring run -------------------------------------------------------------------------------------------------


def alert_findings(found: Iterable[SensorFinding]) -> list[Finding]:
    """What sensor rules found, as alerts want it: one per asset, kind and sensor, from the first row to the last."""
    joined: dict[tuple[str, str, str], Finding] = {}
    for one in sorted(found, key=lambda f: (f.start_us, f.end_us)):
        kind = _KIND_OF.get(one.kind)
        if kind is None or (kind == "gap" and one.end_us - one.start_us < LEAST_GAP_US):
            continue
        if kind == "swap" and not one.detail.endswith(_LEVELS):
            continue
        key = (kind, one.asset, one.tag)
        before = joined.get(key)
        told = json.dumps({"rule": one.kind, "detail": one.detail, "other": one.other})
        joined[key] = Finding(
            kind,
            one.asset,
            one.tag,
            before.start_us if before else one.start_us,
            max(before.end_us, one.end_us) if before else one.end_us,
            priority=3 if kind == "gap" else 2,
            reasons=before.reasons if before else told,
        )
    return list(joined.values())


def after_record(
    database: Database | str, found: Iterable[SensorFinding], episodes: Iterable[Episode], slack_us: int = 0,
    clock: Clock = clock_us,
) -> list[int]:  # fmt: skip
    """Alerts on sensors, one per cause, what they explain under them, and floods under one parent; numbers of the former.

    ``slack_us``: how long around a finding an anomaly may begin and still be its doing. Raises Unavailable.
    """
    own = database if isinstance(database, Database) else Database(database)
    findings, starts = alert_findings(found), [e.start_us for e in episodes]
    numbers = record_findings(own, findings, clock) if findings else []
    adopt(own, findings, numbers, slack_us)
    if starts:
        group_floods(own, min(starts), clock=clock)
    return numbers


# -- the sender ----------------------------------------------------------------------------------------------------------


@dataclass
class Round:
    """What one round did: messages by target, and what passing time changed."""

    sent: dict[str, Sent] = field(default_factory=dict)
    ticked: Ticked = field(default_factory=Ticked)
    silent: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain, JSON-ready values."""
        return {"sent": {name: asdict(own) for name, own in self.sent.items()}, "silent": self.silent,
                **{name: list(own) for name, own in asdict(self.ticked).items()}}  # fmt: skip

    @property
    def busy(self) -> bool:
        """Whether a message was sent or failed, so that more may wait."""
        return any(own.sent or own.failed or own.dead for own in self.sent.values())


class Notifier:
    """Brings what waits in the outbox to the targets of the settings, and does what passing time asks for.

    ``transports``: ways to the targets by name, made from the settings if not given. ``clock`` gives UTC microseconds. Raises
    UsageError where a target cannot be used as it is set.
    """

    def __init__(
        self, database: Database, settings: NotifySettings, clock: Clock = clock_us,
        transports: Mapping[str, Transport] | None = None,
    ) -> None:  # fmt: skip
        self.database, self.settings, self._clock = database, settings, clock
        self._transports = transports or {name: transport(name, own, clock) for name, own in settings.targets.items()}
        self._digested = -1
        self._known_silent: set[str] = set()

    def run_once(self, most: int = 50) -> Round:
        """Shelves that end, escalations, silent assets, floods, the digest; then ``most`` messages to each target.

        Raises Unavailable where the database is; never what a target did.
        """
        done = Round()
        if not self.database.exists():
            return done
        own, now = self.settings, self._clock()
        flow = Workflow(self.database, self._clock)
        done.ticked = flow.tick(quiet_us=own.return_us, escalate_after_us=own.escalate_us)
        done.silent = self._silent(now)
        self._digest(now)
        for name, way in self._transports.items():
            done.sent[name] = Sender(self.database, name, self._clock, own.rules(name)).run_once(way, most)
        return done

    def follow(self, every_s: float, heed: Callable[[], None], tell: Tell) -> None:
        """Rounds until ``heed`` raises. A database that does not answer is told of and tried again."""
        trouble = ""
        while True:
            heed()
            busy = False
            try:
                done = self.run_once()
                busy, trouble = done.busy and any(o.sent for o in done.sent.values()), ""
                for line in lines(done):
                    tell(line)
            except Unavailable as error:
                if str(error) != trouble:
                    tell(f"tried again in {every_s:g} s: {error}")
                trouble = str(error)
            end = time.monotonic() + (0.0 if busy else every_s)
            while (left := end - time.monotonic()) > 0:
                heed()
                time.sleep(min(left, 0.1))

    def _silent(self, now: int) -> list[str]:
        """Assets without data for twice as long as expected, each an alert of its own until data comes (RELIABILITY H3)."""
        expected = round(self.settings.silent_minutes * 60_000_000)
        if not expected:
            return []
        last = Planning(self.database).last_answered()
        assets = silent(last, now, expected)
        fresh = [a for a in assets if a not in self._known_silent]
        found = [Finding("no_data", a, "", last[a], now, 1, json.dumps({"rule": "silent"})) for a in fresh]
        if found:
            record_findings(self.database, found, self._clock)
        self._known_silent = set(assets)
        return assets

    def _digest(self, now: int) -> None:
        """The digest of yesterday, once its hour has come."""
        day, hour = now // _DAY, now % _DAY // _HOUR
        if self.settings.digest_hour < 0 or hour < self.settings.digest_hour or day == self._digested:
            return
        start = (day - 1) * _DAY
        wanted, store, after = Filters(since_us=start, until_us=start + _DAY), AlertStore(self.database), None
        found: list[Alert] = []
        while len(found) < _MOST_OF_A_DAY:
            page = store.page(wanted, after, 500)
            found += page.alerts
            after = page.next
            if after is None:
                break
        if found:
            enqueue_digest(self.database, found, now)
        self._digested = day


def sample_message(now: int) -> Message:
    """A message of no alert, to see whether a target takes one."""
    asked = {"id": 0, "asset": "test", "kind": "anomaly", "cause": "", "state": "new", "priority": 3, "start": iso_time(now),
             "end": iso_time(now), "model_name": "test", "top_tags": [], "lead_us": None}  # fmt: skip
    return Message(f"test-{now}", "test", "test", "", 3, {"alert": asked, "action": "test"}, now, 1)


def try_target(settings: NotifySettings, name: str, clock: Clock = clock_us) -> None:
    """Send a test message to one target, past the outbox. Raises UsageError for one that is not there or not allowed,
    Unavailable E5005 where it does not take the message."""
    way = transport(name, settings.target(name), clock)
    try:
        way(sample_message(clock()))
    except SendFailed as error:
        raise Unavailable(Fault("E5005", f"the target {name} to take a test message", error)) from error


def status(database: Database, settings: NotifySettings) -> dict[str, Any]:
    """How far each target is and what it never took, as plain values; targets that were never sent to count as zero."""
    known = {s.target: s for s in standings(database)}
    targets = {
        name: {**(known[name].counts if name in known else {}),
               "waiting_since": known[name].waiting_since if name in known else None,
               "configured": name in settings.targets}
        for name in sorted({*known, *settings.targets})
    }  # fmt: skip
    return {"targets": targets, "dead": [asdict(letter) for letter in dead_letters(database)]}


def retry(database: Database, settings: NotifySettings, name: str | None = None, clock: Clock = clock_us) -> int:
    """Try what targets never took once more from the start, of one target or of all; how many messages that are."""
    names = list(settings.targets) if name is None else [name]
    if name is not None and name not in {s.target for s in standings(database)}:
        settings.target(name)
    if not names:
        raise UsageError(Fault("E2001", "a target in the settings", "none", "docs/notifications.md shows one"))
    return sum(Sender(database, own, clock).revive() for own in names) if database.exists() else 0


def lines(done: Round) -> list[str]:
    """What a round did, for people: one line per target that was busy, and one per change."""
    said = [
        f"{name}: {own.sent} sent, {own.failed} failed, {own.dead} given up"
        for name, own in done.sent.items()
        if own.sent or own.failed or own.dead
    ]
    for name, ids in asdict(done.ticked).items():
        said += [f"{name}: alerts {', '.join(map(str, ids))}"] if ids else []
    return said
