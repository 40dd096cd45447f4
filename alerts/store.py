"""``AlertStore``: the ledger of scored logs and the alerts they gave, written together or not at all.

The same log with the same model is recorded once. Logs that overlap are answered once per asset and model: an episode
that lies wholly in time answered before is dropped; one that overlaps or touches an alert extends it; any other is new.
"""

from __future__ import annotations

import functools
import json
import time
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa

from alerts import tables
from alerts.alert import Alert, AlertEvent, AlertPage, alert_event, alert_of, iso_time
from alerts.changes import enqueue_alert, log_event
from alerts.database import Database
from alerts.episodes import Episode, join
from alerts.grouping import priority
from alerts.listing import Cursor, Filters, PageQueries
from alerts.states import ANOMALY, CLOSED, NEW, RETURNED, SYSTEM
from alerts.texts import search_text
from anomaly.errors import Fault, UsageError
from anomaly.faults import killpoint
from anomaly.intervals import Intervals, as_intervals, merge


@dataclass(frozen=True)
class BatchRecord:
    """One scored log, as the ledger keeps it.

    ``covered``: per asset the answered time ``[start, end)`` in UTC microseconds, one pair or several; rows that
    deserve a better answer from a later log (warm-up) may be left out. ``lead_us``: the lead that the model's threshold
    was chosen for. ``merge_gap_us``: as in the rules that made the episodes.
    """

    sha256: str
    model: str
    model_name: str
    file_name: str
    rows: int
    outcomes: Mapping[str, int]
    covered: Mapping[str, tuple[int, int] | Sequence[tuple[int, int]]]
    score_path: str = ""
    lead_us: int | None = None
    merge_gap_us: int = 0


__all__ = ["Alert", "AlertEvent", "AlertPage", "AlertStore", "BatchRecord", "Filters", "iso_time"]

#: A closed alert whose episode goes on this much later is opened again; before that, the verdict stands.
GOES_ON_US = 3_600_000_000


class AlertStore:
    """Alerts and the ledger in SQLite (a path, or ``sqlite:///PATH``) or PostgreSQL (``postgresql://…``).

    Opening does nothing; reading a database that does not exist gives no alerts and makes no file. Every method may raise
    Unavailable: E5001 locked for ``wait_s`` or unreachable, E5002 disk full, E5004 another schema.
    """

    def __init__(self, url_or_path: str | Path | Database, *, wait_s: float = 30.0) -> None:
        given = url_or_path
        self.database: Database = given if isinstance(given, Database) else Database(given, wait_s=wait_s)

    def record_batch(self, batch: BatchRecord, episodes: Iterable[Episode]) -> bool:
        """Write the ledger entry, the covered time and the alerts of a scored log in one transaction.

        False, and nothing changes, if the same log was recorded with the same model before.
        """
        with self.database.writing() as connection:
            if _is_recorded(connection, batch):
                return False
            recorder = _Recorder(connection, batch)
            by_asset: defaultdict[str, list[Episode]] = defaultdict(list)
            for episode in episodes:
                by_asset[episode.asset].append(episode)
            for asset, own in by_asset.items():
                recorder.add_episodes(asset, own)
            for asset, intervals in batch.covered.items():
                recorder.cover(asset, as_intervals(np.array(intervals, dtype=np.int64)))
            killpoint("alerts.before_commit")
        killpoint("alerts.after_commit")
        return True

    def alerts(
        self,
        asset: str | None = None,
        since_us: int | None = None,
        model: str | None = None,
        state: str | None = None,
        limit: int | None = 50,
    ) -> list[Alert]:
        """Alerts, newest first by start; ``since_us`` keeps those that had not ended before it; ``limit=None`` gives all."""
        if limit is not None and limit < 1:
            raise UsageError(Fault("E2001", "a limit of at least 1", limit))
        table = tables.alerts.c
        query = sa.select(tables.alerts).order_by(table.start_us.desc(), table.id.desc()).limit(limit)
        for column, wanted in ((table.asset, asset), (table.model, model), (table.state, state)):
            query = query if wanted is None else query.where(column == wanted)
        if since_us is not None:
            query = query.where(table.end_us >= since_us)
        with self.database.reading() as connection:
            return [] if connection is None else [alert_of(row) for row in connection.execute(query)]

    def alert(self, id: int) -> Alert:
        """One alert; raises UsageError E2001, with the numbers there are, where it is not."""
        ids = tables.alerts.c.id
        with self.database.reading() as connection:
            row = first = last = None
            if connection is not None:
                row = connection.execute(sa.select(tables.alerts).where(ids == id)).first()
                if row is None:  # apart, so that each walks the key instead of the table
                    first, last = (connection.execute(sa.select(of(ids))).scalar() for of in (sa.func.min, sa.func.max))
        if row is None:
            expected = (
                "an alert number, but there are no alerts" if first is None else f"an alert number, {first} to {last}"
            )
            hint = "anomaly alerts list shows them"
            raise UsageError(Fault("E2001", expected, id, hint, self.database.name))
        return alert_of(row)

    def page(self, filters: Filters | None = None, after: str | None = None, size: int = 50) -> AlertPage:
        """A page of the list, newest first by start, and the cursor of the next one.

        ``after``: the ``next`` of the page before. The alerts come without ``reasons``. A search for a text through very many
        alerts rests after ``listing.MOST_SEARCHED`` of them: a page may then hold fewer alerts than ``size``, even none, and
        still have a ``next``. Raises UsageError E2001 for a size outside 1 to 500 or a cursor that is not ours.
        """
        queries = PageQueries(filters or Filters(), size, Cursor.read(after) if after else None)
        with self.database.reading() as connection:
            if connection is None:
                return AlertPage((), None)
            floor = queries.rests(connection)
            statements = queries.statements() if floor is None else queries.down_to(floor)
            found = [row for query in statements for row in connection.execute(query)]
        found.sort(key=lambda row: (row.start_us, row.id), reverse=True)
        last = Cursor(found[size - 1].start_us, found[size - 1].id) if len(found) > size else floor
        return AlertPage(tuple(map(alert_of, found[:size])), last.text() if last else None)

    def counts(self, by: str = "state", filters: Filters | None = None) -> dict[Any, int]:
        """How many alerts there are of each ``state``, ``priority``, ``kind`` or ``asset``, in the order of the keys."""
        if by not in ("state", "priority", "kind", "asset"):
            raise ValueError(f"by: expected state, priority, kind or asset, got {by!r}")
        column, wanted = tables.alerts.c[by], filters or Filters()
        query = sa.select(column, sa.func.count()).where(*wanted.conditions()).group_by(column)
        if wanted.states:
            query = query.where(tables.alerts.c.state.in_(wanted.states))
        with self.database.reading() as connection:
            found = [] if connection is None else connection.execute(query).all()
        return {
            key: int(n) for key, n in sorted(found, key=lambda held: held[0])
        }  # a server may sort by a language's rules

    def events(self, id: int) -> list[AlertEvent]:
        """What was done to an alert, oldest first; also of one that a later log merged into another."""
        own = tables.alert_events.c
        query = sa.select(tables.alert_events).where(own.alert_id == id).order_by(own.id)
        with self.database.reading() as connection:
            return [] if connection is None else [alert_event(row) for row in connection.execute(query)]

    def dump(self) -> dict[str, list[dict[str, Any]]]:
        """Every row of every table, in key order: to compare two databases."""
        with self.database.reading() as connection:
            if connection is None:
                return {}
            return {
                table.name: [
                    dict(row._mapping) for row in connection.execute(sa.select(table).order_by(*table.primary_key))
                ]
                for table in tables.metadata.sorted_tables
            }


def _is_recorded(connection: sa.Connection, batch: BatchRecord) -> bool:
    own = tables.batches.c
    query = sa.select(own.id).where(own.sha256 == batch.sha256, own.model == batch.model)
    return connection.execute(query).first() is not None


@dataclass
class _Recorder:
    """Writes one batch inside the caller's transaction."""

    connection: sa.Connection
    batch: BatchRecord
    now_us: int = field(default_factory=lambda: time.time_ns() // 1000)
    batch_id: int = field(init=False)
    _weights: dict[str, float] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        batch = self.batch
        times = np.concatenate([np.empty(0, np.int64), *(np.ravel(pairs) for pairs in batch.covered.values())])
        entry = {
            "sha256": batch.sha256,
            "model": batch.model,
            "model_name": batch.model_name,
            "file_name": batch.file_name,
            "rows": batch.rows,
            "start_us": int(times.min()) if len(times) else None,
            "end_us": int(times.max()) if len(times) else None,
            "score_path": batch.score_path,
            "recorded_at": self.now_us,
        } | {name: int(batch.outcomes.get(name, 0)) for name in ("normal", "anomalous", "unscorable")}
        (self.batch_id,) = self._insert(tables.batches, entry)

    def add_episodes(self, asset: str, episodes: list[Episode]) -> None:
        """Drop what was answered, extend what is there, insert the rest."""
        answered = self._coverage(asset)
        fresh = sorted((e for e in episodes if not _inside(answered, e)), key=lambda e: e.start_us)
        if not fresh:
            return
        gap = self.batch.merge_gap_us
        known = deque(self._alerts(asset, fresh[0].start_us - gap, max(e.end_us for e in fresh) + gap))
        for episode in fresh:
            while known and known[0].end_us < episode.start_us - gap:
                known.popleft()
            touching = []
            while known and known[0].start_us <= episode.end_us + gap:
                touching.append(known.popleft())
            known.appendleft(self._extend(touching, episode) if touching else self._new(episode))

    def cover(self, asset: str, intervals: Intervals) -> None:
        """Add answered time; only rows that change are written."""
        held = self._coverage(asset)
        joined = merge(np.concatenate((held, intervals)))
        before, after = {tuple(p) for p in held.tolist()}, {tuple(p) for p in joined.tolist() if p[0] < p[1]}
        own, key = tables.coverage.c, {"asset": asset, "model": self.batch.model}
        for start, _ in before - after:
            chosen = (own.asset == asset, own.model == self.batch.model, own.start_us == start)
            self.connection.execute(sa.delete(tables.coverage).where(*chosen))
        rows = [key | {"start_us": start, "end_us": end} for start, end in sorted(after - before)]
        if rows:
            self.connection.execute(sa.insert(tables.coverage), rows)

    def _coverage(self, asset: str) -> Intervals:
        own = tables.coverage.c
        query = sa.select(own.start_us, own.end_us).where(own.asset == asset, own.model == self.batch.model)
        return as_intervals([tuple(row) for row in self.connection.execute(query.order_by(own.start_us))])

    def _alerts(self, asset: str, start_us: int, end_us: int) -> list[Alert]:
        own = tables.alerts.c
        query = sa.select(tables.alerts).where(
            own.asset == asset, own.model == self.batch.model, own.kind == ANOMALY,
            own.start_us <= end_us, own.end_us >= start_us,
        )  # fmt: skip
        return [alert_of(row) for row in self.connection.execute(query.order_by(own.start_us))]

    def _new(self, episode: Episode) -> Alert:
        entry = _columns(episode) | {
            "asset": episode.asset,
            "model": self.batch.model,
            "model_name": self.batch.model_name,
            "lead_us": self.batch.lead_us,
            "state": NEW,
            "first_batch": self.batch_id,
            "created_at": self.now_us,
            "priority": self._priority(episode, self.batch.lead_us),
        }
        reasons, excerpt = split_excerpt(episode.reasons)
        entry["reasons"] = reasons
        (id,) = self._insert(tables.alerts, entry | {"search": _search(episode), "excerpt": excerpt})
        alert = Alert(id=id, **entry | {"top_tags": episode.top_tags})
        enqueue_alert(self.connection, alert, NEW, self.now_us)
        return alert

    def _extend(self, touching: list[Alert], episode: Episode) -> Alert:
        """The oldest of the alerts takes in the others and the episode; its number stays."""
        views = sorted([episode, *(a.episode() for a in touching)], key=lambda e: (e.start_us, e.end_us))
        joined = functools.reduce(join, views)
        oldest, *others = sorted(touching, key=lambda a: a.id)
        own = tables.alerts.c.id
        excerpt = self._excerpt(touching, oldest, joined)
        for other in others:
            self.connection.execute(sa.delete(tables.alerts).where(own == other.id))
        joined = replace(joined, reasons=split_excerpt(joined.reasons)[0])
        changed = _columns(joined) | {"priority": self._priority(joined, oldest.lead_us)}
        worked = _worked_on(oldest, others) | self._opened_again(oldest, joined)
        if worked:
            worked["version"] = oldest.version + 1
        self.connection.execute(
            sa.update(tables.alerts)
            .where(own == oldest.id)
            .values(**changed | worked | excerpt, search=_search(joined))
        )
        grown = Alert(**vars(oldest) | changed | worked | {"top_tags": joined.top_tags})
        if worked:
            action = "reopen" if grown.reopened > oldest.reopened else "merge"
            log_event(self.connection, oldest, grown, self.now_us, SYSTEM, action, merged=[a.id for a in others])
        return grown

    def _excerpt(self, touching: list[Alert], oldest: Alert, joined: Episode) -> dict[str, Any]:
        """The excerpt goes with the reasons: nothing where the oldest keeps its own, that of the view with the higher peak
        otherwise."""
        fresh = split_excerpt(joined.reasons)[1]
        if fresh is not None:
            return {"excerpt": fresh}
        winner = next((a for a in touching if a.reasons == joined.reasons and a.peak_us == joined.peak_us), None)
        if winner is None:
            return {"excerpt": None}
        own = tables.alerts.c
        query = sa.select(own.excerpt).where(own.id == winner.id)
        return {} if winner is oldest else {"excerpt": self.connection.execute(query).scalar()}

    def _opened_again(self, alert: Alert, joined: Episode) -> dict[str, Any]:
        """What changes where an alert that was over goes on: a count that people see, not a second alert."""
        goes_on = joined.end_us > alert.end_us and (
            alert.state == RETURNED or (alert.closed_at is not None and joined.end_us > alert.closed_at + GOES_ON_US)
        )
        return reopened(alert.reopened) if goes_on and alert.state in (RETURNED, CLOSED) else {}

    def _priority(self, episode: Episode, lead_us: int | None) -> int:
        if episode.asset not in self._weights:
            query = sa.select(tables.assets.c.weight).where(tables.assets.c.asset == episode.asset)
            self._weights[episode.asset] = float(self.connection.execute(query).scalar() or 1.0)
        lasted = episode.end_us - episode.start_us
        return priority(episode.peak_score, episode.threshold, lasted, lead_us, self._weights[episode.asset])

    def _insert(self, table: sa.Table, entry: dict[str, Any]) -> tuple[Any, ...]:
        key = self.connection.execute(sa.insert(table).values(**entry)).inserted_primary_key
        return tuple(key or ())


def _inside(answered: Intervals, episode: Episode) -> bool:
    """Whether one answered interval holds the whole episode, its last row included."""
    at = int(np.searchsorted(answered[:, 0], episode.start_us, side="right")) - 1
    return at >= 0 and episode.end_us < answered[at, 1]


def _columns(episode: Episode) -> dict[str, Any]:
    """The columns of an alert that its episode decides."""
    return {
        "start_us": episode.start_us,
        "peak_us": episode.peak_us,
        "end_us": episode.end_us,
        "peak_score": episode.peak_score,
        "threshold": episode.threshold,
        "rows": episode.rows,
        "top_tags": json.dumps(episode.top_tags),
        "reasons": episode.reasons,
    }


def split_excerpt(reasons: str) -> tuple[str, str | None]:
    """The reasons of an episode without the window behind its peak, and that window, both JSON text: lists and histories need
    the one, only the page of an alert the other.

    >>> split_excerpt('{"tags": [], "excerpt": {"before": [0]}}')
    ('{"tags": []}', '{"before": [0]}')
    """
    if '"excerpt"' not in reasons:
        return reasons, None
    told = json.loads(reasons)
    window = told.pop("excerpt", None)
    return json.dumps(told), None if window is None else json.dumps(window)


def _search(episode: Episode) -> str:
    return search_text(episode.asset, "", (tag for tag, _ in episode.top_tags))


def _worked_on(oldest: Alert, others: list[Alert]) -> dict[str, Any]:
    """What the oldest takes over from alerts merged into it: people's work on them must not be lost with their rows."""
    best = max((a for a in others if a.version > 1), key=lambda a: (a.version, -a.id), default=None)
    if best is None or oldest.version > 1:
        return {}
    return {name: getattr(best, name) for name in _WORK}


def reopened(count: int) -> dict[str, Any]:
    """The columns of an alert that is new again, after ``count`` times before; it stays with whom it was assigned to."""
    ended = dict.fromkeys(("shelved_until", "verdict", "acknowledged_at", "closed_at", "escalated_at"))
    return ended | {"state": NEW, "reopened": count + 1}


_WORK = ("state", "assignee", "shelved_until", "verdict", "reopened", "acknowledged_at", "closed_at")
