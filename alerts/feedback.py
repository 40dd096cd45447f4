"""Verdicts become labels: intervals for training, for the threshold, for the next samples to look at.

A true fault is an event; a nuisance or known work was normal operation; a sensor fault or an unsure verdict says nothing of the
process and is left out. Times are int UTC microseconds.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import dataclass

import sqlalchemy as sa

from alerts import tables
from alerts.alert import Alert, iso_time
from alerts.database import Database
from alerts.export import safe_cell
from alerts.listing import Filters
from alerts.states import ANOMALY, CLOSED, KNOWN_WORK, NUISANCE, TRUE_FAULT, VERDICTS
from alerts.store import AlertStore

EVENT, NORMAL = 1, 0
#: What a verdict says of the process; the others say nothing.
LABEL_OF = {TRUE_FAULT: EVENT, NUISANCE: NORMAL, KNOWN_WORK: NORMAL}
COLUMNS = ("asset", "start", "end", "verdict", "label", "who", "alert")


@dataclass(frozen=True)
class LabelledInterval:
    """What a person said of ``[start_us, end_us)`` of an asset: ``label`` 1 for an event, 0 for normal operation."""

    asset: str
    start_us: int
    end_us: int
    label: int
    verdict: str
    who: str
    alert: int


def labelled(alerts: Iterable[Alert], who: dict[int, str] | None = None) -> list[LabelledInterval]:
    """The intervals that the verdicts of closed anomalies label, by asset and start.

    ``who``: who gave the verdict, by alert number. The last row of an alert belongs to it, so an interval ends one microsecond
    after. Where an event and normal operation overlap, both are given: which of them counts is for the reader to decide, and
    ``contradictions`` names them.
    """
    found = [
        LabelledInterval(
            a.asset, a.start_us, a.end_us + 1, LABEL_OF[a.verdict], a.verdict, (who or {}).get(a.id, ""), a.id
        )
        for a in alerts
        if a.state == CLOSED and a.kind == ANOMALY and a.verdict in LABEL_OF
    ]
    return sorted(found, key=lambda i: (i.asset, i.start_us, i.alert))


def contradictions(intervals: Iterable[LabelledInterval]) -> list[tuple[int, int]]:
    """Pairs of alert numbers (event, normal) whose intervals overlap on one asset."""
    own = list(intervals)
    return [
        (a.alert, b.alert)
        for a in own
        if a.label == EVENT
        for b in own
        if b.label == NORMAL and a.asset == b.asset and a.start_us < b.end_us and b.start_us < a.end_us
    ]


def read_labels(database: Database, filters: Filters | None = None) -> list[LabelledInterval]:
    """The labelled intervals of a database; ``who`` is the last to give each verdict. Empty where there is no database."""
    wanted, store = filters or Filters(), AlertStore(database)
    closed = Filters(**vars(wanted) | {"states": (CLOSED,), "kinds": (ANOMALY,)})
    alerts: list[Alert] = []
    after: str | None = None
    while True:
        page = store.page(closed, after, 500)
        alerts += page.alerts
        after = page.next
        if after is None:
            return labelled(alerts, judges(database))


def judges(database: Database) -> dict[int, str]:
    """Who gave the verdict of each alert last, by alert number."""
    own = tables.alert_events.c
    query = sa.select(own.alert_id, own.actor).where(own.action == "verdict").order_by(own.id)
    with database.reading() as connection:
        return {} if connection is None else {int(id): str(actor) for id, actor in connection.execute(query)}


def as_csv(intervals: Iterable[LabelledInterval]) -> str:
    """The intervals as CSV that ``anomaly train --verdicts`` reads, with the columns ``COLUMNS``; times in ISO 8601.

    Text that a spreadsheet would run starts with an apostrophe, as in ``alerts.export``.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for i in intervals:
        cells = (i.asset, iso_time(i.start_us), iso_time(i.end_us), VERDICTS[i.verdict], i.label, i.who, i.alert)
        writer.writerow([safe_cell(cell) for cell in cells])
    return text.getvalue()


def score_files(database: Database, model: str) -> list[str]:
    """Where the scores of ``model`` (digest) were written, by name; some may be gone."""
    own = tables.batches.c
    query = (
        sa.select(own.score_path).where(own.model == model, own.score_path != "").distinct().order_by(own.score_path)
    )
    with database.reading() as connection:
        return [] if connection is None else [str(path) for path in connection.execute(query).scalars()]
