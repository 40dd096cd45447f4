"""Messages to the outside: written in the transaction of what they tell, sent later by a ``Sender`` that may die at any time.

Each message has an id that never changes. What is promised is at least once: a sender that dies between sending and writing
that down leads to a second delivery with the same id, which a receiver drops (RELIABILITY §2.10, H4, H5). One row per message
and target says how far it is: pending, sending (until its lease ends), sent, limited, skipped or dead.
Times are int UTC microseconds.
"""

from __future__ import annotations

import json
import random
import secrets
import uuid
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import sqlalchemy as sa

from alerts import tables
from alerts.database import Database
from anomaly.errors import shown

PENDING, SENDING, SENT = "pending", "sending", "sent"
LIMITED, SKIPPED, DEAD = "limited", "skipped", "dead"

_SECOND, _HOUR, _DAY = 1_000_000, 3_600_000_000, 86_400_000_000

#: Names our messages among all uuids.
_NAMESPACE = uuid.UUID("6f5c3a52-3d0e-5c1c-9d77-0a2b8f0f6e11")


def enqueue(
    connection: sa.Connection, kind: str, payload: Mapping[str, Any], *, key: str, at: int,
    asset: str = "", sensor: str = "", priority: int = 3,
) -> str:  # fmt: skip
    """Write a message in the caller's transaction; gives its id, which follows from ``kind`` and ``key`` alone.

    ``at``: UTC microseconds. The same message is written once.
    """
    message = str(uuid.uuid5(_NAMESPACE, f"{kind}|{key}"))
    own = tables.outbox.c.message_id
    if connection.execute(sa.select(own).where(own == message)).first() is None:
        text = json.dumps(payload, ensure_ascii=False, allow_nan=False)
        entry = {"message_id": message, "kind": kind, "asset": asset, "sensor": sensor, "priority": priority,
                 "payload": text, "created_at": at}  # fmt: skip
        connection.execute(sa.insert(tables.outbox).values(**entry))
    return message


class SendFailed(Exception):
    """A delivery that did not work; ``final``: trying again cannot help. Its words are kept, so they hold no secret."""

    def __init__(self, words: str, *, final: bool = False) -> None:
        super().__init__(words)
        self.final = final


@dataclass(frozen=True)
class Message:
    """A message on its way; ``id`` is the same at every attempt. ``attempt`` counts from 1."""

    id: str
    kind: str
    asset: str
    sensor: str
    priority: int
    payload: Mapping[str, Any]
    created_at: int
    attempt: int


#: Delivers a message or raises; must give up well before the lease ends.
Transport = Callable[[Message], None]


@dataclass(frozen=True)
class QuietHours:
    """From ``start`` to ``end`` (minutes of the day in ``zone``) messages of a priority below ``passes`` wait.

    >>> hours = QuietHours(22 * 60, 6 * 60)
    >>> hours.until(23 * 3_600_000_000) == 30 * 3_600_000_000, hours.until(12 * 3_600_000_000)
    (True, None)
    """

    start: int
    end: int
    zone: str = "UTC"
    passes: int = 1

    def __post_init__(self) -> None:
        if not (0 <= self.start < 1440 and 0 <= self.end < 1440):
            raise ValueError(f"start, end: expected minutes of a day, 0 to 1439, got {self.start}, {self.end}")

    def until(self, now_us: int) -> int | None:
        """When the quiet hours that hold now end, UTC microseconds; None outside them."""
        local = datetime.fromtimestamp(now_us // _SECOND, UTC).astimezone(ZoneInfo(self.zone))
        minute = local.hour * 60 + local.minute
        if (minute - self.start) % 1440 >= (self.end - self.start) % 1440:
            return None
        day = local + timedelta(days=1 if minute >= self.end else 0)
        ends = day.replace(hour=self.end // 60, minute=self.end % 60, second=0, microsecond=0)
        return int(ends.timestamp()) * _SECOND


@dataclass(frozen=True)
class SenderRules:
    """What a target is sent, how often, and how hard it is tried; spans in microseconds.

    ``kinds``: what is sent at all. ``per_asset`` and ``per_sensor`` messages at most within ``limit_window_us``; those above stay
    in the table as limited. The wait after the k-th failure is ``base_us * 2**(k - 1)``, ``longest_us`` at most, times a random
    share of a half to one. After ``attempts`` the message is dead. One older than ``oldest_us`` when first seen is skipped:
    a target that is set up today is not sent last year. So is one about an alert of a lower priority than ``least_priority``.
    """

    kinds: frozenset[str] = frozenset(
        {"alert.new", "alert.reopen", "alert.escalate", "alert.flood", "alert.verdict", "digest"}
    )
    per_asset: int = 12
    per_sensor: int = 6
    limit_window_us: int = _DAY
    attempts: int = 10
    base_us: int = 10 * _SECOND
    longest_us: int = _HOUR
    lease_us: int = 120 * _SECOND
    oldest_us: int = 3 * _DAY
    quiet: QuietHours | None = None
    least_priority: int = 3


@dataclass
class Sent:
    """What one round did, in messages."""

    sent: int = 0
    failed: int = 0
    dead: int = 0
    limited: int = 0
    skipped: int = 0


@dataclass
class Sender:
    """Brings messages to one target. Any number of senders of the same target may run: each claims what it sends.

    ``clock`` gives UTC microseconds, ``chance`` the share of the wait in [0, 1).
    """

    database: Database
    target: str
    clock: Callable[[], int]
    rules: SenderRules = field(default_factory=SenderRules)
    chance: Callable[[], float] = field(default_factory=lambda: random.SystemRandom().random)

    def run_once(self, transport: Transport, most: int = 50) -> Sent:
        """Take in new messages, then send up to ``most`` that are due, oldest first; what fails is due again later.

        Nothing is locked while ``transport`` runs. Raises Unavailable where the database is; never what the transport raised.
        """
        done = Sent()
        if not self.database.exists():
            return done
        self._admit(done)
        for _ in range(most):
            claimed = self._claim(done)
            if claimed is None:
                break
            number, claim, message = claimed
            try:
                transport(message)
            except Exception as error:  # noqa: BLE001 - whatever a target does must not stop the others
                self._failed(number, claim, message, error, done)
            else:
                self._finish(number, claim, state=SENT, sent_at=self.clock())
                done.sent += 1
        return done

    def revive(self) -> int:
        """Try dead messages once more from the start; how many there were."""
        own = tables.deliveries.c
        query = sa.update(tables.deliveries).where(own.target == self.target, own.state == DEAD)
        with self.database.writing() as connection:
            changed = connection.execute(query.values(state=PENDING, attempts=0, next_at=self.clock()))
            return int(changed.rowcount)

    def _admit(self, done: Sent) -> None:
        """A row for each new message. Numbers of messages are given in the order of commits (writers take turns), so that all
        above the last one seen are new."""
        own, box = tables.deliveries.c, tables.outbox.c
        last = sa.select(sa.func.coalesce(sa.func.max(own.message), 0)).where(own.target == self.target)
        query = sa.select(tables.outbox).where(box.id > last.scalar_subquery()).order_by(box.id).limit(1000)
        while True:
            with self.database.reading() as connection:
                if connection is None or connection.execute(query.limit(1)).first() is None:
                    return
            with self.database.writing() as connection:
                fresh = connection.execute(query).all()
                if fresh:
                    states = self._states(connection, fresh)
                    rows = [
                        {"target": self.target, "message": m.id, "state": s, "attempts": 0, "next_at": m.created_at,
                         "claim": "", "error": ""}
                        for m, s in zip(fresh, states, strict=True)
                    ]  # fmt: skip
                    connection.execute(sa.insert(tables.deliveries), rows)
                    done.limited += states.count(LIMITED)
                    done.skipped += states.count(SKIPPED)

    def _states(self, connection: sa.Connection, fresh: Any) -> list[str]:
        own, box, rules, now = tables.deliveries.c, tables.outbox.c, self.rules, self.clock()
        since = fresh[0].created_at - rules.limit_window_us
        query = (
            sa.select(box.asset, box.sensor, box.created_at)
            .join(tables.deliveries, own.message == box.id)
            .where(own.target == self.target, own.state.in_((PENDING, SENDING, SENT, DEAD)), box.created_at > since)
        )
        sent: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)  # when, of each asset and of each sensor
        for asset, sensor, at in connection.execute(query):
            sent[(asset,)].append(at)
            sent[(asset, sensor)].append(at)
        states = []
        for m in fresh:
            own_keys = ((m.asset,), rules.per_asset), ((m.asset, m.sensor), rules.per_sensor)
            minor = m.asset and m.priority > rules.least_priority
            if m.kind not in rules.kinds or minor or m.created_at < now - rules.oldest_us:
                states.append(SKIPPED)
            elif m.asset and any(_within(sent[key], m.created_at, rules) >= most for key, most in own_keys):
                states.append(LIMITED)
            else:
                states.append(PENDING)
                for key, _ in own_keys:
                    sent[key].append(m.created_at)
        return states

    def _claim(self, done: Sent) -> tuple[int, str, Message] | None:
        """The oldest message that is due, ours until the lease ends; None where there is none."""
        own, box = tables.deliveries.c, tables.outbox.c
        now = self.clock()
        quiet = self.rules.quiet.until(now) if self.rules.quiet else None
        due = sa.and_(own.target == self.target, own.state.in_((PENDING, SENDING)), own.next_at <= now)
        if self.rules.quiet and quiet is not None:
            due = sa.and_(due, box.priority <= self.rules.quiet.passes)
        query = (
            sa.select(tables.outbox, own.attempts).join(tables.deliveries, own.message == box.id)
            .where(due).order_by(own.next_at, box.id).limit(1)
        )  # fmt: skip
        with self.database.reading() as connection:
            if connection is None or connection.execute(query).first() is None:
                return None
        with self.database.writing() as connection:
            row = connection.execute(query).first()
            if row is None:
                return None
            claim = secrets.token_hex(16)
            changed = {
                "state": SENDING,
                "claim": claim,
                "attempts": row.attempts + 1,
                "next_at": now + self.rules.lease_us,
            }
            self._update(connection, row.id, **changed)
        message = Message(row.message_id, row.kind, row.asset, row.sensor, row.priority, json.loads(row.payload),
                          row.created_at, row.attempts + 1)  # fmt: skip
        return row.id, claim, message

    def _failed(self, number: int, claim: str, message: Message, error: Exception, done: Sent) -> None:
        ours = isinstance(error, SendFailed)
        words = shown(error) if ours else type(error).__name__  # a library's words may quote an address with a password
        if message.attempt >= self.rules.attempts or (isinstance(error, SendFailed) and error.final):
            done.dead += 1
            self._finish(number, claim, state=DEAD, error=words)
            return
        done.failed += 1
        wait = min(self.rules.base_us << min(message.attempt - 1, 40), self.rules.longest_us)
        after = round(wait * (0.5 + 0.5 * self.chance()))
        self._finish(number, claim, state=PENDING, error=words, next_at=self.clock() + after)

    def _finish(self, number: int, claim: str, **changed: Any) -> None:
        """Write what became of a claimed message, unless its lease ended and another sender has it."""
        with self.database.writing() as connection:
            self._update(connection, number, claim, **changed)

    def _update(self, connection: sa.Connection, number: int, held: str | None = None, **changed: Any) -> None:
        own = tables.deliveries.c
        query = sa.update(tables.deliveries).where(own.target == self.target, own.message == number)
        if held is not None:
            query = query.where(own.claim == held, own.state == SENDING)
        connection.execute(query.values(**changed))


def _within(times: list[int], now: int, rules: SenderRules) -> int:
    return sum(now - rules.limit_window_us < at for at in times)


def prune(database: Database, before_us: int) -> int:
    """Forget messages from before ``before_us`` that no target still wants; how many. The newest message always stays: it
    marks how far each target has come."""
    own, box = tables.deliveries.c, tables.outbox.c
    with database.writing() as connection:
        wanted = sa.exists().where(own.message == box.id, own.state.in_((PENDING, SENDING)))
        newest = sa.select(sa.func.max(own.message)).group_by(own.target)
        old = sa.select(box.id).where(box.created_at < before_us, ~wanted, box.id.not_in(newest))
        ids = list(connection.execute(old).scalars())
        for k in range(0, len(ids), 500):
            some = ids[k : k + 500]
            connection.execute(sa.delete(tables.deliveries).where(own.message.in_(some)))
            connection.execute(sa.delete(tables.outbox).where(box.id.in_(some)))
    return len(ids)


@dataclass(frozen=True)
class Standing:
    """How far the messages to one target are: how many are in each state, and since when the oldest of them waits."""

    target: str
    counts: Mapping[str, int]
    waiting_since: int | None


@dataclass(frozen=True)
class DeadLetter:
    """A message that a target never took, and why."""

    target: str
    message_id: str
    kind: str
    asset: str
    attempts: int
    created_at: int
    error: str


def standings(database: Database) -> list[Standing]:
    """How far each target is, by name; targets that were never sent to are not there. Raises Unavailable."""
    own, box = tables.deliveries.c, tables.outbox.c
    counted = sa.select(own.target, own.state, sa.func.count()).group_by(own.target, own.state)
    oldest = (
        sa.select(own.target, sa.func.min(box.created_at))
        .join(tables.outbox, own.message == box.id).where(own.state.in_((PENDING, SENDING))).group_by(own.target)
    )  # fmt: skip
    with database.reading() as connection:
        if connection is None:
            return []
        found: defaultdict[str, dict[str, int]] = defaultdict(dict)
        for target, state, n in connection.execute(counted):
            found[target][state] = int(n)
        since = {target: int(at) for target, at in connection.execute(oldest)}
    return [Standing(target, found[target], since.get(target)) for target in sorted(found)]


def dead_letters(database: Database, target: str | None = None, most: int = 100) -> list[DeadLetter]:
    """Messages that a target never took, the newest first. Raises Unavailable."""
    own, box = tables.deliveries.c, tables.outbox.c
    query = (
        sa.select(own.target, box.message_id, box.kind, box.asset, own.attempts, box.created_at, own.error)
        .join(tables.outbox, own.message == box.id).where(own.state == DEAD).order_by(box.id.desc()).limit(most)
    )  # fmt: skip
    if target is not None:
        query = query.where(own.target == target)
    with database.reading() as connection:
        return [] if connection is None else [DeadLetter(*row) for row in connection.execute(query)]
