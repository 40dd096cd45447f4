"""What the page asks of the database beside the list: load, rows for figures, past work, logs, messages on their way.

Only reading. Times are int UTC microseconds.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import sqlalchemy as sa

from alerts import grouping, tables
from alerts.alert import Alert, AlertEvent, alert_event, alert_of
from alerts.database import Database
from alerts.listing import Cursor, Filters, PageQueries
from alerts.states import CLOSED, OPEN, STATES
from alerts.web.services import Services

#: Most alerts that a figure is made of, the newest ones; the page says so where this cuts.
MOST_ROWS = 20_000
#: Most lines of the past that are searched for what a shift did.
MOST_EVENTS = 5_000


@dataclass(frozen=True)
class Light:
    """The columns of an alert that figures need; stands in for an ``Alert`` there."""

    id: int
    asset: str
    cause: str
    top_tags: tuple[tuple[str, float], ...]
    start_us: int
    created_at: int
    acknowledged_at: int | None
    state: str
    verdict: str | None
    priority: int
    parent_id: int | None
    kind: str


_LIGHT = tuple(tables.alerts.c[name] for name in Light.__dataclass_fields__)


#: What a line of the list shows of an alert.
LINE = tuple(
    tables.alerts.c[name]
    for name in ("id", "version", "asset", "cause", "top_tags", "start_us", "end_us", "peak_score", "rows", "state", "verdict",
                 "priority", "kind", "reopened", "assignee")
)  # fmt: skip


@dataclass(frozen=True)
class Lines:
    """A page of the list: rows of ``LINE``, and the cursor of the next page (None: no more)."""

    alerts: tuple[sa.Row[Any], ...]
    next: str | None


def lines(database: Database, filters: Filters, after: str | None, size: int) -> Lines:
    """What ``AlertStore.page`` gives, as rows of the few columns that the list shows. Raises UsageError E2001 as it does."""
    wanted = PageQueries(filters, size, Cursor.read(after) if after else None, LINE)
    with database.reading() as connection:
        found, following = ([], None) if connection is None else wanted.read(connection)
    return Lines(tuple(found), following)


def light_alerts(database: Database, since_us: int, until_us: int, asset: str | None = None) -> list[Alert]:
    """Alerts (of one asset, if given) that start in ``[since_us, until_us)``, newest first, at most ``MOST_ROWS``; with the
    columns of ``Light`` alone."""
    own = tables.alerts.c
    query = (
        sa.select(*_LIGHT).where(own.start_us >= since_us, own.start_us < until_us)
        .order_by(own.start_us.desc(), own.id.desc()).limit(MOST_ROWS)
    )  # fmt: skip
    with database.reading() as connection:
        rows = (
            []
            if connection is None
            else connection.execute(query if asset is None else query.where(own.asset == asset)).all()
        )
    found = []
    for row in rows:
        values = dict(row._mapping)
        values["top_tags"] = tuple((str(tag), float(share)) for tag, share in json.loads(values["top_tags"])[:1])
        found.append(Light(**values))
    return cast("list[Alert]", found)


def oldest_open(database: Database, before_us: int, most: int = 50) -> list[Alert]:
    """Open alerts that began before ``before_us``, oldest first."""
    own = tables.alerts.c
    found: list[Light] = []
    with database.reading() as connection:
        if connection is None:
            return []
        for state in OPEN:
            query = (
                sa.select(*_LIGHT).where(own.state == state, own.start_us < before_us).order_by(own.start_us, own.id)
            )
            for row in connection.execute(query.limit(most)):
                values = dict(row._mapping)
                values["top_tags"] = tuple(map(tuple, json.loads(values["top_tags"])))
                found.append(Light(**values))
    return cast("list[Alert]", sorted(found, key=lambda a: (a.start_us, a.id))[:most])


def now_of_data(services: Services) -> int:
    """Now, or the end of the last answered row where that is earlier: an old log is shown as of its own time."""
    last = last_answered(services)
    return min(services.clock(), max(last.values(), default=services.clock()) + 1)


def last_answered(services: Services) -> dict[str, int]:
    """Until when each asset was answered; remembered for ten seconds."""
    return services.remembered("answered", 10.0, services.planning.last_answered)


def similar_past(services: Services, alert: Alert, most: int = 5, least: float = 0.3) -> list[tuple[float, Alert]]:
    """Earlier alerts of the asset whose top tags are alike, the most alike first, with how alike they are (0 to 1).

    Looks at the 200 before it.
    """
    if not alert.top_tags:
        return []
    values = {"asset": alert.asset, "before_us": alert.start_us, "before_id": alert.id, "of_kind": alert.kind}
    with services.database.reading() as connection:
        if connection is None:
            return []
        likeness: dict[str, float] = {}  # many share their tags: each text is read and rated once
        rated = []
        for id, start_us, text in connection.execute(_BEFORE, values):
            if text not in likeness:
                likeness[text] = grouping.alike(alert, cast("Alert", _tagged(text)))
            if likeness[text] >= least:
                rated.append((likeness[text], start_us, id))
        best = sorted(rated, reverse=True)[:most]
        ids = {"ids": [id for *_, id in best]}
        others = {row.id: alert_of(row) for row in connection.execute(_CHOSEN, ids)} if best else {}
    return [(rate, others[id]) for rate, _, id in best]


@dataclass(frozen=True)
class _Tagged:
    """As much of an alert as likeness needs."""

    top_tags: tuple[tuple[str, float], ...]


@lru_cache(maxsize=10_000)
def _tagged(text: str) -> _Tagged:
    return _Tagged(tuple((str(tag), float(share)) for tag, share in json.loads(text)))


def _before() -> sa.Select[Any]:
    own = tables.alerts.c
    end = sa.tuple_(sa.bindparam("before_us", type_=sa.BigInteger), sa.bindparam("before_id", type_=sa.BigInteger))
    query = sa.select(own.id, own.start_us, own.top_tags).where(
        own.asset == sa.bindparam("asset"),
        sa.tuple_(own.start_us, own.id) < end,
        own.kind + "" == sa.bindparam("of_kind"),
    )
    return query.order_by(own.start_us.desc(), own.id.desc()).limit(200)


#: Statements of the page of an alert: made once, since making one costs more than running it.
_BEFORE = _before()
_CHOSEN = sa.select(tables.alerts).where(tables.alerts.c.id.in_(sa.bindparam("ids", expanding=True)))
_EXCERPT = sa.select(tables.alerts.c.excerpt).where(tables.alerts.c.id == sa.bindparam("of"))


def recent_events(database: Database, since_us: int, most: int = 200) -> list[tuple[AlertEvent, str]]:
    """What was done since, newest first, with the asset of each alert ("" where a later log merged it away)."""
    own, alert = tables.alert_events.c, tables.alerts.c
    latest = sa.select(own.id).order_by(own.id.desc()).limit(MOST_EVENTS).subquery()
    query = (
        sa.select(tables.alert_events, alert.asset).join(latest, latest.c.id == own.id)
        .outerjoin(tables.alerts, alert.id == own.alert_id)
        .where(own.at >= since_us).order_by(own.id.desc()).limit(most)
    )  # fmt: skip
    with database.reading() as connection:
        rows = [] if connection is None else connection.execute(query).all()
    return [(_event(row), row.asset or "") for row in rows]


def _event(row: sa.Row[Any]) -> AlertEvent:
    values = {name: value for name, value in row._mapping.items() if name != "asset"}
    return AlertEvent(**values | {"detail": json.loads(values["detail"])})


def excerpt(database: Database, alert: Alert) -> dict[str, Any]:
    """The window behind the peak: ``time`` (s since 1970, UTC) of its points, and of each of ``tags`` its ``tag``, ``actual`` and
    ``expected`` values, ``low`` and ``high``. Both are empty where none was kept."""
    with database.reading() as connection:
        text = None if connection is None else connection.execute(_EXCERPT, {"of": alert.id}).scalar()
    if not text:
        return {"time": [], "tags": []}
    told = json.loads(text)
    return {"time": [alert.peak_us / 1e6 - s for s in told["before"]], "tags": told["tags"]}


def events_after(database: Database, id: int, count: int) -> list[AlertEvent]:
    """The last ``count`` lines of an alert's past, oldest first."""
    own = tables.alert_events.c
    query = sa.select(tables.alert_events).where(own.alert_id == id).order_by(own.id.desc()).limit(max(count, 1))
    with database.reading() as connection:
        rows = [] if connection is None else connection.execute(query).all()
    return [alert_event(row) for row in reversed(rows)]


@dataclass(frozen=True)
class Log:
    """A scored log in the ledger."""

    file_name: str
    model: str
    model_name: str
    rows: int
    anomalous: int
    unscorable: int
    end_us: int | None
    recorded_at: int


_LOG = tuple(tables.batches.c[name] for name in Log.__dataclass_fields__)


def last_logs(database: Database, most: int = 10) -> list[Log]:
    """The logs scored last, newest first."""
    query = sa.select(*_LOG).order_by(tables.batches.c.id.desc()).limit(most)
    with database.reading() as connection:
        return [] if connection is None else [Log(**row._mapping) for row in connection.execute(query)]


def score_files(database: Database, alert: Alert, start_us: int, end_us: int) -> list[str]:
    """Where scores of the alert's model in ``[start_us, end_us]`` were written, the newest log first; recorded paths only."""
    own = tables.batches.c
    query = (
        sa.select(own.score_path)
        .where(own.model == alert.model, own.score_path != "", own.start_us <= end_us, own.end_us >= start_us)
        .order_by(own.id.desc()).limit(20)
    )  # fmt: skip
    with database.reading() as connection:
        return [] if connection is None else list(dict.fromkeys(connection.execute(query).scalars()))


def deliveries(database: Database) -> dict[tuple[str, str], int]:
    """How many messages there are by target and state; new ones that no sender took in yet have the target ""."""
    own, box = tables.deliveries.c, tables.outbox.c
    counted = sa.select(own.target, own.state, sa.func.count()).group_by(own.target, own.state)
    taken = sa.select(sa.func.coalesce(sa.func.max(own.message), 0)).scalar_subquery()
    waiting = sa.select(sa.func.count()).select_from(tables.outbox).where(box.id > taken)
    with database.reading() as connection:
        if connection is None:
            return {}
        found = {(target, state): int(n) for target, state, n in connection.execute(counted)}
        new = int(connection.execute(waiting).scalar_one())
    return found | ({("", "new"): new} if new else {})


def state_kind_counts(database: Database) -> dict[tuple[str, str], int]:
    """How many alerts there are by state and kind."""
    own = tables.alerts.c
    query = sa.select(own.state, own.kind, sa.func.count()).group_by(own.state, own.kind)
    with database.reading() as connection:
        rows: Sequence[Any] = [] if connection is None else connection.execute(query).all()
    return {(state, kind): int(n) for state, kind, n in rows}


def listed_counts(database: Database) -> dict[str, int]:
    """How many alerts of the list there are by state, without the members of floods.

    Closed ones, nearly all of a grown table, are those that are neither open nor members: only the number of all rows is asked
    for, which a database gives without reading them.
    """
    own = tables.alerts.c
    others = [state for state in STATES if state != CLOSED]
    total = sa.select(own.state, sa.func.count()).where(own.state.in_(others)).group_by(own.state)
    text = own.state + ""  # an expression, so that the index of parents is walked and not that of states
    members = sa.select(text, sa.func.count()).where(own.parent_id > 0).group_by(text)
    with database.reading() as connection:
        if connection is None:
            return {}
        found = {state: int(n) for state, n in connection.execute(total)}
        every = int(connection.execute(sa.select(sa.func.count()).select_from(tables.alerts)).scalar_one())
        found[CLOSED] = every - sum(found.values())
        for state, n in connection.execute(members):
            found[state] = found.get(state, 0) - int(n)
    return {state: n for state, n in found.items() if n}


def alarmed_assets(database: Database) -> list[str]:
    """Assets that alarmed, by name: each is found by one step through the index, however many alerts it has."""
    own = tables.alerts.c.asset
    walk = sa.select(sa.func.min(own).label("asset")).cte("walk", recursive=True)
    following = sa.select(sa.func.min(own)).where(own > walk.c.asset).scalar_subquery()
    walk = walk.union_all(sa.select(following).where(walk.c.asset.is_not(None)))
    with database.reading() as connection:
        if connection is None:
            return []
        return list(connection.execute(sa.select(walk.c.asset).where(walk.c.asset.is_not(None))).scalars())


@dataclass(frozen=True)
class UserEvent:
    """A sign-in, or a change of a user, a token or planned work."""

    at: int
    name: str
    address: str
    action: str
    actor: str
    comment: str


def user_events(database: Database, most: int = 200) -> list[UserEvent]:
    """Sign-ins and changes of users, tokens and planned work, newest first."""
    own = tables.user_events.c
    columns = [own[name] for name in UserEvent.__dataclass_fields__]
    query = sa.select(*columns).where(own.action != "try").order_by(own.id.desc()).limit(most)
    with database.reading() as connection:
        return [] if connection is None else [UserEvent(**row._mapping) for row in connection.execute(query)]


@dataclass(frozen=True)
class Token:
    """What is known of a machine's token; the token itself is nowhere."""

    name: str
    role: str
    created_at: int
    expires_at: int | None
    disabled_at: int | None


def machine_tokens(database: Database) -> list[Token]:
    """All tokens by name."""
    own = tables.tokens.c
    query = sa.select(*(own[name] for name in Token.__dataclass_fields__)).order_by(own.name)
    with database.reading() as connection:
        return [] if connection is None else [Token(**row._mapping) for row in connection.execute(query)]


@dataclass(frozen=True)
class DriftReport:
    """What the last scoring of a model found of drift: when its rows were, how many, and what was said."""

    model_name: str
    model: str
    first_us: int | None
    last_us: int | None
    rows: int
    found: tuple[tuple[str, str, str], ...]  # kind, verdict, words: those that are not stable


def drift_reports(database: Database, most: int = 5) -> list[DriftReport]:
    """The last drift report of each of the models used last, from beside the score files that the database recorded."""
    own = tables.batches.c
    newest = sa.select(sa.func.max(own.id).label("id")).where(own.score_path != "").group_by(own.model).subquery()
    query = sa.select(own.model, own.model_name, own.score_path).join(newest, newest.c.id == own.id)
    with database.reading() as connection:
        rows = [] if connection is None else connection.execute(query.order_by(own.id.desc()).limit(most)).all()
    found = (_drift_report(row.model, row.model_name, Path(row.score_path)) for row in rows)
    return [report for report in found if report is not None]


def _drift_report(model: str, model_name: str, scores: Path) -> DriftReport | None:
    """Beside the score file, or that of a watch, which keeps one for all its score files."""
    candidates = [scores.with_suffix(".drift.json"), *sorted(scores.parent.glob("scores-*.drift.json"))[:50]]
    for path in candidates:
        try:
            if path.stat().st_size > 4 << 20:
                continue
            told = json.loads(path.read_text(encoding="utf-8"))
            if path != candidates[0] and told["model"] != model:
                continue
            told_of = tuple((str(d["kind"]), str(d["verdict"]), str(d["words"])) for d in told["drifts"])
            sure = tuple(d for d in told_of if d[1] == "drift")
            return DriftReport(
                model_name, model, told["first_us"], told["last_us"], int(told["rows_compared"]), sure[:20]
            )
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None


def known_assets(services: Services) -> list[str]:
    """Assets that alarmed, were answered, or that the plant said something of."""

    def read() -> list[str]:
        return sorted({*alarmed_assets(services.database), *last_answered(services), *services.planning.assets()})

    return services.remembered("assets", 30.0, read)
