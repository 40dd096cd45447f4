"""What people do with alerts: acknowledge, work, shelve, close with a verdict, reopen, assign, note.

Every change is one transaction: the row where its version is still the expected one, a line of its past, a message in the
outbox. The second of two people who change the same version gets ``Conflict`` (RELIABILITY H8). Times are int UTC microseconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from alerts import tables
from alerts.alert import Alert, alert_of
from alerts.changes import log_event
from alerts.database import Database
from alerts.states import (
    ACKNOWLEDGED,
    ANOMALY,
    CLOSED,
    IN_WORK,
    NEW,
    SHELVED,
    SYSTEM,
    checked_verdict,
    next_state,
)
from alerts.store import reopened
from alerts.texts import checked_text
from anomaly.errors import Fault, UsageError

#: Nothing stays shelved longer than this (RELIABILITY H9).
LONGEST_SHELF_US = 30 * 86_400_000_000
LONGEST_COMMENT, LONGEST_NAME, LARGEST_BULK = 4000, 200, 1000

Clock = Callable[[], int]


def clock_us() -> int:
    """Now, in UTC microseconds."""
    return time.time_ns() // 1000


class Conflict(UsageError):
    """Somebody else changed the alert meanwhile: look again, then decide. The page answers 409.

    ``current`` is the alert as it is now.
    """

    def __init__(self, current: Alert, expected: int) -> None:
        self.current = current
        hint = f"it is {current.state} now; look at it again"
        super().__init__(Fault("E2001", f"alert {current.id} at version {expected}", current.version, hint))


@dataclass(frozen=True)
class Outcome:
    """What became of one alert of a bulk change: the changed alert, or why not."""

    id: int
    alert: Alert | None
    error: UsageError | None = None


@dataclass(frozen=True)
class Ticked:
    """What passing time changed: numbers of alerts."""

    unshelved: tuple[int, ...] = ()
    returned: tuple[int, ...] = ()
    escalated: tuple[int, ...] = ()


class Workflow:
    """Changes of alerts by named actors. ``database`` as for ``AlertStore``; ``clock`` gives UTC microseconds.

    ``version``: the version that the actor saw; None takes the one that is there. Every method gives the alert as it then is,
    and raises UsageError E2001 (no such alert, not allowed in its state, a text missing or too long), Conflict, Unavailable.
    """

    def __init__(self, database: Database, clock: Clock = clock_us) -> None:
        self.database, self._clock = database, clock

    def acknowledge(self, id: int, actor: str, *, version: int | None = None, comment: str = "") -> Alert:
        """Somebody has seen it."""
        return self.apply(id, "acknowledge", actor, version=version, comment=comment)

    def start(self, id: int, actor: str, *, version: int | None = None, comment: str = "") -> Alert:
        """Somebody works on it; it is assigned to the actor unless it was to another."""
        return self.apply(id, "start", actor, version=version, comment=comment)

    def shelve(self, id: int, actor: str, until_us: int, reason: str, *, version: int | None = None) -> Alert:
        """Out of sight until ``until_us``, at most 30 days; a reason is required."""
        return self.apply(id, "shelve", actor, version=version, comment=reason, until_us=until_us)

    def unshelve(self, id: int, actor: str, *, version: int | None = None, comment: str = "") -> Alert:
        """Back in sight before its time."""
        return self.apply(id, "unshelve", actor, version=version, comment=comment)

    def returned(self, id: int, actor: str, *, version: int | None = None, comment: str = "") -> Alert:
        """The process has returned to normal."""
        return self.apply(id, "return", actor, version=version, comment=comment)

    def verdict(
        self, id: int, actor: str, verdict: str, *, version: int | None = None, comment: str = ""
    ) -> Alert:  # fmt: skip
        """Close it with a verdict, or correct the verdict of a closed one."""
        return self.apply(id, "verdict", actor, version=version, comment=comment, verdict=verdict)

    def reopen(self, id: int, actor: str, *, version: int | None = None, comment: str = "") -> Alert:
        """It was not over after all; counted."""
        return self.apply(id, "reopen", actor, version=version, comment=comment)

    def assign(
        self, id: int, actor: str, assignee: str | None, *, version: int | None = None, comment: str = ""
    ) -> Alert:  # fmt: skip
        """To somebody, or to nobody (None)."""
        return self.apply(id, "assign", actor, version=version, comment=comment, assignee=assignee)

    def note(self, id: int, actor: str, comment: str, *, version: int | None = None) -> Alert:
        """A line in its past."""
        return self.apply(id, "note", actor, version=version, comment=comment)

    def apply(
        self, id: int, action: str, actor: str, *, version: int | None = None, comment: str = "", **details: Any
    ) -> Alert:  # fmt: skip
        """One change by its name; ``details`` as the method of that name takes them."""
        with self.database.writing() as connection:
            return _apply(
                connection, _found(connection, id), _Wish(action, actor, comment, details), version, self._clock()
            )

    def bulk(
        self, versions: Mapping[int, int | None], action: str, actor: str, *, comment: str = "", **details: Any
    ) -> list[Outcome]:  # fmt: skip
        """The same change of many alerts (``{number: version seen}``), in one transaction; those that cannot be changed say why.

        Raises UsageError E2001 for more than 1,000 alerts.
        """
        if len(versions) > LARGEST_BULK:
            raise UsageError(Fault("E2001", f"at most {LARGEST_BULK} alerts at once", len(versions)))
        wish, done = _Wish(action, actor, comment, details), []
        with self.database.writing() as connection:
            now = self._clock()
            for id, version in versions.items():
                try:
                    done.append(Outcome(id, _apply(connection, _found(connection, id), wish, version, now)))
                except UsageError as error:  # raised before anything of this alert was written
                    done.append(Outcome(id, None, error))
        return done

    def tick(self, *, quiet_us: int | None = None, escalate_after_us: int | None = None) -> Ticked:
        """What passing time does. Cheap where nothing is due; a service calls it every minute and before it lists.

        Shelves end at their time. With ``quiet_us``, acknowledged alerts and those in work return to normal once their asset
        was answered that long past their end. With ``escalate_after_us``, a new alert of high or medium priority that nobody
        took for so long is told of once more, with the action ``escalate``.
        """
        if not self.database.exists():
            return Ticked()
        now, own = self._clock(), tables.alerts.c
        due = {"unshelve": sa.and_(own.state == SHELVED, own.shelved_until <= now)}
        if quiet_us is not None:
            due["return"] = _quiet(quiet_us)
        if escalate_after_us is not None:
            due["escalate"] = sa.and_(
                own.state == NEW,
                own.escalated_at.is_(None),
                own.priority < 3,
                own.created_at <= now - escalate_after_us,
            )
        with self.database.reading() as connection:  # so that nobody waits for a lock where nothing is due
            if connection is None or not any(_any(connection, condition) for condition in due.values()):
                return Ticked()
        with self.database.writing() as connection:
            done = {
                action: tuple(_by_time(connection, alert, action, now) for alert in _select(connection, condition))
                for action, condition in due.items()
            }
        return Ticked(done["unshelve"], done.get("return", ()), done.get("escalate", ()))

    def read(self, id: int) -> Alert:
        """An alert as it is now, its shelf ended if it is time."""
        self.tick()
        return _read(self.database, id)


@dataclass(frozen=True)
class _Wish:
    """What an actor wants changed, checked."""

    action: str
    actor: str
    comment: str
    details: Mapping[str, Any]

    def __post_init__(self) -> None:
        wanted = _DETAILS.get(self.action, frozenset())
        if set(self.details) != wanted:
            raise ValueError(f"details: expected {sorted(wanted)} for {self.action}, got {sorted(self.details)}")
        checked_text("the name of who does it", self.actor, LONGEST_NAME)
        checked_text("a comment", self.comment, LONGEST_COMMENT, required=self.action in ("shelve", "note"))
        if self.action == "verdict":
            checked_verdict(self.details["verdict"])
        if self.action == "assign" and self.details["assignee"] is not None:
            checked_text("a name to assign it to", self.details["assignee"], LONGEST_NAME)


_DETAILS = {
    "shelve": frozenset({"until_us"}),
    "verdict": frozenset({"verdict"}),
    "assign": frozenset({"assignee"}),
}


def _apply(connection: sa.Connection, alert: Alert, wish: _Wish, version: int | None, now: int) -> Alert:
    if version is not None and version != alert.version:
        raise Conflict(alert, version)
    if alert.state == SHELVED and alert.shelved_until is not None and alert.shelved_until <= now:
        alert = _write(connection, alert, _columns(alert, _EXPIRED, now), _EXPIRED, SYSTEM, now)
    return _write(connection, alert, _columns(alert, wish, now), wish, wish.actor, now)


def _write(
    connection: sa.Connection, alert: Alert, changed: dict[str, Any], wish: _Wish, actor: str, now: int
) -> Alert:
    """Row, past and message."""
    own = tables.alerts.c
    changed = changed | {"version": alert.version + 1}
    query = sa.update(tables.alerts).where(own.id == alert.id, own.version == alert.version).values(**changed)
    if connection.execute(query).rowcount != 1:
        raise Conflict(_found(connection, alert.id), alert.version)
    after = Alert(**vars(alert) | changed)
    log_event(connection, alert, after, now, actor, wish.action, wish.comment, **wish.details)
    return after


def _columns(alert: Alert, wish: _Wish, now: int) -> dict[str, Any]:
    """The columns that a wish changes; raises UsageError where the state does not allow it."""
    state = next_state(alert.state, wish.action, acknowledged=alert.acknowledged_at is not None)
    if wish.action == "reopen":
        return reopened(alert.reopened)
    changed: dict[str, Any] = {"state": state}
    if state in (ACKNOWLEDGED, IN_WORK, CLOSED) and alert.acknowledged_at is None:
        changed["acknowledged_at"] = now
    if wish.action == "start" and alert.assignee is None:
        changed["assignee"] = wish.actor
    if wish.action == "assign":
        changed["assignee"] = wish.details["assignee"]
    if wish.action == "shelve":
        changed["shelved_until"] = _until(wish.details["until_us"], now)
    elif alert.state == SHELVED and state != SHELVED:
        changed["shelved_until"] = None
    if wish.action == "verdict":
        changed |= {"verdict": wish.details["verdict"], "closed_at": alert.closed_at or now}
    return changed


def _until(until_us: int, now: int) -> int:
    if not now < until_us <= now + LONGEST_SHELF_US:
        days = (until_us - now) / 86_400_000_000
        raise UsageError(Fault("E2001", "an end of the shelf within the next 30 days", f"{days:.4g} days from now"))
    return until_us


_EXPIRED = _Wish("unshelve", SYSTEM, "its time is over", {})


def _by_time(connection: sa.Connection, alert: Alert, action: str, now: int) -> int:
    """A change that nobody made; an escalation changes no state."""
    if action == "escalate":
        own = tables.alerts.c
        connection.execute(sa.update(tables.alerts).where(own.id == alert.id).values(escalated_at=now))
        log_event(connection, alert, alert, now, SYSTEM, action, "nobody took it")
        return alert.id
    wish = _EXPIRED if action == "unshelve" else _Wish(action, SYSTEM, "no anomaly for a while", {})
    _write(connection, alert, _columns(alert, wish, now), wish, SYSTEM, now)
    return alert.id


def _quiet(quiet_us: int) -> sa.ColumnElement[bool]:
    """Anomalies that somebody took, answered ``quiet_us`` past their end by an interval that holds it."""
    own, answered = tables.alerts.c, tables.coverage.c
    past = sa.exists().where(
        answered.asset == own.asset, answered.model == own.model,
        answered.start_us <= own.end_us, answered.end_us > own.end_us + quiet_us,
    )  # fmt: skip
    return sa.and_(own.state.in_((ACKNOWLEDGED, IN_WORK)), own.kind == ANOMALY, past)


def _any(connection: sa.Connection, condition: sa.ColumnElement[bool]) -> bool:
    return connection.execute(sa.select(tables.alerts.c.id).where(condition).limit(1)).first() is not None


def _select(connection: sa.Connection, condition: sa.ColumnElement[bool]) -> list[Alert]:
    query = sa.select(tables.alerts).where(condition).order_by(tables.alerts.c.id)
    return [alert_of(row) for row in connection.execute(query)]


def _found(connection: sa.Connection, id: int) -> Alert:
    row = connection.execute(sa.select(tables.alerts).where(tables.alerts.c.id == id)).first()
    if row is None:
        raise UsageError(Fault("E2001", "the number of an alert", id, "anomaly alerts list shows them"))
    return alert_of(row)


def _read(database: Database, id: int) -> Alert:
    with database.reading() as connection:
        if connection is None:
            raise UsageError(Fault("E2001", "the number of an alert, but there are none", id))
        return _found(connection, id)
