"""Alerts that no episode of scores makes: findings on the data or the service, one per cause, and the parents of floods."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from alerts import tables
from alerts.alert import Alert, alert_of
from alerts.changes import enqueue_alert, log_event
from alerts.database import Database
from alerts.grouping import Flood, FloodRules, floods
from alerts.states import ACKNOWLEDGED, ANOMALY, FLOOD, IN_WORK, NEW, OPEN, QUALITY_KINDS, RETURNED, SYSTEM
from alerts.store import reopened
from alerts.texts import checked_text, search_text
from alerts.workflow import Clock, Workflow, clock_us
from anomaly.errors import Fault, UsageError


@dataclass(frozen=True)
class Finding:
    """Something wrong with the data or the service, apart from anomalies of the process.

    ``kind``: flat_line, gap, unit, swap, no_data, stale_scorer or unscorable. ``cause``: the tag or source, "" for the whole
    asset. ``[start_us, end_us]`` in UTC microseconds. ``reasons``: what else is known, as JSON text.
    """

    kind: str
    asset: str
    cause: str
    start_us: int
    end_us: int
    priority: int = 2
    reasons: str = ""

    def __post_init__(self) -> None:
        if self.kind not in QUALITY_KINDS:
            raise UsageError(Fault("E2001", f"a kind of finding: {', '.join(QUALITY_KINDS)}", self.kind))
        if self.end_us < self.start_us or self.priority not in (1, 2, 3):
            raise ValueError(f"finding: expected start <= end and a priority of 1 to 3, got {self}")
        for name, text in (("an asset", self.asset), ("a cause", self.cause)):
            checked_text(name, text, 1000, required=False)


def record_findings(database: Database, findings: Iterable[Finding], clock: Clock = clock_us) -> list[int]:
    """Write findings as alerts, one per cause: a finding on a cause that has an open alert extends it, any other is new.

    One that a closed alert holds from start to end was told before, and changes nothing. Gives the number of each one's alert.
    An extension tells nobody; a new alert writes its message in the same transaction. What the service ended by itself
    (``return_findings``) is open again where it comes back within a day, and a new alert after that.
    """
    with database.writing() as connection:
        now = clock()
        return [_record(connection, finding, now) for finding in findings]


def _record(connection: sa.Connection, finding: Finding, now: int) -> int:
    own = tables.alerts.c
    same = (own.kind == finding.kind, own.asset == finding.asset, own.cause == finding.cause)
    query = sa.select(tables.alerts).where(*same)
    told = sa.and_(own.start_us <= finding.start_us, own.end_us >= finding.end_us)
    same_start = own.start_us == finding.start_us
    order = query.where(sa.or_(own.state.in_(OPEN), same_start, told)).order_by(own.id.desc()).limit(1)
    held = connection.execute(order).first()
    back = held is not None and _is_back(held, finding)
    if held is not None and not (back and finding.start_us > held.end_us + _AGAIN_US):
        changed = {"end_us": max(held.end_us, finding.end_us)}
        changed |= reopened(held.reopened) | {"version": held.version + 1} if back else {}
        connection.execute(sa.update(tables.alerts).where(own.id == held.id).values(**changed))
        if back:
            before = alert_of(held)
            log_event(connection, before, Alert(**vars(before) | changed), now, SYSTEM, "reopen", "it is back")
        return int(held.id)
    tags = [[finding.cause, 1.0]] if finding.cause else []
    return _insert(connection, finding.kind, finding.asset, finding.cause, finding.start_us, finding.end_us,
                   finding.priority, now, tags=tags, reasons=finding.reasons, action=NEW).id  # fmt: skip


def _is_back(held: Any, finding: Finding) -> bool:
    """Whether a finding that the service ended by itself is there once more, later than it was."""
    return finding.kind in _ENDED_BY_ITSELF and held.state == RETURNED and finding.start_us > held.end_us


#: Findings that the service sees the end of; the others are ended by people.
_ENDED_BY_ITSELF = ("stale_scorer", "unscorable")
_AGAIN_US = 86_400_000_000


def return_findings(
    database: Database, numbers: Iterable[int], end_us: int, comment: str, clock: Clock = clock_us
) -> list[int]:  # fmt: skip
    """What the alerts ``numbers`` are about was over at ``end_us``: they return to normal, and wait for somebody to close them.

    Gives the numbers of those that changed; one that is returned, shelved or closed stays as it is, and so does one that went
    on after that time.
    """
    own = tables.alerts.c
    query = sa.select(own.id).where(
        own.id.in_(list(numbers)), own.state.in_((NEW, ACKNOWLEDGED, IN_WORK)), own.end_us <= end_us
    )  # fmt: skip
    with database.reading() as connection:
        wanted = [] if connection is None else [int(row.id) for row in connection.execute(query)]
    if not wanted:
        return []
    done = Workflow(database, clock).bulk(dict.fromkeys(wanted), "return", SYSTEM, comment=comment)
    return [outcome.id for outcome in done if outcome.alert is not None]


def open_findings(database: Database, kind: str, cause: str) -> list[int]:
    """The numbers of alerts of a kind and cause that nobody ended yet, on whatever asset."""
    own = tables.alerts.c
    query = sa.select(own.id).where(
        own.kind == kind, own.cause == cause, own.state.in_((NEW, ACKNOWLEDGED, IN_WORK))
    )  # fmt: skip
    with database.reading() as connection:
        return [] if connection is None else [int(row.id) for row in connection.execute(query)]


def adopt(database: Database, findings: Iterable[Finding], numbers: Iterable[int], slack_us: int) -> list[int]:
    """Put new anomalies that a broken sensor explains under the alert on that sensor; the numbers of the anomalies.

    ``numbers``: of the alerts of ``findings``, as ``record_findings`` gave them. An anomaly belongs to a finding with a cause
    where that tag has the largest share in it, and it began during the finding or at most ``slack_us`` around it. One that
    somebody took stays by itself, and so does one that began before. Members stay in the tables. An asset that cannot be
    scored takes the alert on the missing sensor under it in the same way, whenever that began.
    """
    own, adopted = tables.alerts.c, list[int]()
    free = (own.state == NEW, own.version == 1, own.parent_id.is_(None))
    wanted = list[tuple[int, str, sa.ColumnElement[bool]]]()
    for finding, parent in zip(findings, numbers, strict=True):
        mine = (own.asset == finding.asset, own.start_us <= finding.end_us + slack_us, *free)
        if finding.cause and finding.kind in _EXPLAINS:
            began = own.start_us >= finding.start_us - slack_us
            wanted.append((parent, finding.cause, sa.and_(own.kind == ANOMALY, began, *mine)))
        if finding.cause and finding.kind == "unscorable":
            same = own.cause == finding.cause
            wanted.append((parent, finding.cause, sa.and_(own.kind == "no_data", same, *mine)))
    if not wanted:
        return adopted
    with database.writing() as connection:
        for parent, cause, condition in wanted:
            for row in connection.execute(sa.select(own.id, own.top_tags).where(condition)).all():
                tags = json.loads(row.top_tags)
                if tags and tags[0][0] == cause:
                    connection.execute(sa.update(tables.alerts).where(own.id == row.id).values(parent_id=parent))
                    adopted.append(int(row.id))
    return adopted


#: Findings on one sensor that make its values, and so the scores, meaningless.
_EXPLAINS = ("unit", "swap", "flat_line")


def group_floods(
    database: Database, since_us: int, rules: FloodRules | None = None, clock: Clock = clock_us
) -> list[int]:  # fmt: skip
    """Put the anomalies of a flood under one parent alert per asset and flood; the numbers of parents that changed.

    Looks at anomalies that start at or after ``since_us``; a flood that an earlier call found is carried on, its parent's rows
    being the count of its members. Calling it again changes nothing. Members keep their state and stay in the tables.
    """
    rules, own = rules or FloodRules(), tables.alerts.c
    condition = sa.and_(own.kind == ANOMALY, own.start_us >= since_us - rules.window_us)
    query = sa.select(tables.alerts).where(condition).order_by(own.asset, own.start_us, own.id)
    with database.reading() as connection:
        if connection is None or not _floods_by_asset(connection, query, rules, fresh=True):
            return []
    with database.writing() as connection:
        found = _floods_by_asset(connection, query, rules, fresh=True)
        return [_parent(connection, members, flood, clock()) for members, flood in found]


def _floods_by_asset(
    connection: sa.Connection, query: sa.Select[Any], rules: FloodRules, *, fresh: bool
) -> list[tuple[list[Alert], Flood]]:
    """Floods, with their members; with ``fresh`` only those with a member that has no parent yet."""
    by_asset: dict[str, list[Alert]] = {}
    for row in connection.execute(query):
        by_asset.setdefault(row.asset, []).append(alert_of(row))
    found = []
    for own in by_asset.values():
        for flood in floods([a.start_us for a in own], rules):
            members = own[flood.first : flood.last + 1]
            if not fresh or any(a.parent_id is None for a in members):
                found.append((members, flood))
    return found


def _parent(connection: sa.Connection, members: Sequence[Alert], flood: Flood, now: int) -> int:
    own = tables.alerts.c
    known = next((a.parent_id for a in members if a.parent_id is not None), None)
    end = max(a.end_us for a in members)
    urgent = min(a.priority for a in members)
    if known is None:
        first = members[0]
        known = _insert(connection, FLOOD, first.asset, "", first.start_us, end, urgent, now, tags=_tags(members),
                        rows=flood.count, peak=max(a.peak_score for a in members), threshold=first.threshold,
                        model=first.model, model_name=first.model_name, action=FLOOD).id  # fmt: skip
    else:
        tags = _tags(members)
        search = search_text(members[0].asset, "", (str(tag) for tag, _ in tags))
        changed = {"end_us": end, "priority": urgent, "top_tags": json.dumps(tags), "search": search}
        connection.execute(sa.update(tables.alerts).where(own.id == known).values(**changed))
    ids = [a.id for a in members if a.parent_id is None]
    for k in range(0, len(ids), 500):
        connection.execute(sa.update(tables.alerts).where(own.id.in_(ids[k : k + 500])).values(parent_id=known))
    count = sa.select(sa.func.count()).where(own.parent_id == known)
    connection.execute(
        sa.update(tables.alerts).where(own.id == known).values(rows=connection.execute(count).scalar_one())
    )
    return int(known)


def _tags(members: Sequence[Alert], most: int = 3) -> list[list[Any]]:
    """The tags that the members share most, as parts of the whole."""
    sums: dict[str, float] = {}
    for alert in members:
        for tag, share in alert.top_tags:
            sums[tag] = sums.get(tag, 0.0) + share
    total = sum(sums.values())
    ordered = sorted(sums.items(), key=lambda item: (-item[1], item[0]))[:most]
    return [[tag, value / total] for tag, value in ordered if total > 0]


def _insert(
    connection: sa.Connection, kind: str, asset: str, cause: str, start: int, end: int, urgent: int, now: int, *,
    tags: list[list[Any]], action: str, rows: int = 1, peak: float = 0.0, threshold: float = 0.0, reasons: str = "",
    model: str = "", model_name: str = "",
) -> Alert:  # fmt: skip
    entry = {
        "asset": asset, "model": model, "model_name": model_name, "start_us": start, "peak_us": start, "end_us": end,
        "peak_score": peak, "threshold": threshold, "rows": rows, "top_tags": json.dumps(tags), "state": NEW,
        "created_at": now, "reasons": reasons, "priority": urgent, "kind": kind, "cause": cause,
        "search": search_text(asset, cause, (str(tag) for tag, _ in tags)),
    }  # fmt: skip
    id = connection.execute(sa.insert(tables.alerts).values(**entry).returning(tables.alerts.c.id)).scalar_one()
    alert = alert_of(connection.execute(sa.select(tables.alerts).where(tables.alerts.c.id == id)).one())
    enqueue_alert(connection, alert, action, now)
    return alert
