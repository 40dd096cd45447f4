"""Thresholds that people set in place of a model's own: a record that only grows, beside everything else that was done.

A change is a line of ``alert_events`` of no alert (number 0): the database refuses to change or delete it. What holds now follows
from the lines: a change is put on top, an undo takes the top one off. Stored scores and alerts stay as they are.
Times are int UTC microseconds.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from alerts import tables
from alerts.database import Database
from alerts.states import SYSTEM
from alerts.texts import checked_text
from alerts.workflow import LONGEST_COMMENT, LONGEST_NAME, Clock, clock_us
from anomaly.errors import Fault, UsageError

#: The number of no alert, under which changes of thresholds are kept.
NO_ALERT = 0
APPLY, UNDO = "threshold", "threshold_undo"
#: What can change the evidence for a threshold.
_EVIDENCE = ("verdict", "reopen", "merge", APPLY, UNDO)


@dataclass(frozen=True)
class ThresholdChange:
    """One change of a model's threshold from ``before`` to ``value``; None stands for the model's own.

    ``model`` is the digest; ``second`` who agreed, "" where nobody had to; ``undoes`` the number of the change taken back;
    ``evidence`` the what-if that it was decided on.
    """

    id: int
    at: int
    actor: str
    why: str
    model: str
    model_name: str
    before: float | None
    value: float | None
    second: str = ""
    undoes: int | None = None
    evidence: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Wanted:
    """A change that somebody wants: as ``ThresholdChange``, not yet written."""

    model: str
    model_name: str
    value: float | None
    actor: str
    why: str
    second: str = ""
    evidence: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.value is not None and not math.isfinite(self.value):
            raise UsageError(Fault("E2001", "a finite threshold", self.value))
        checked_text("the name of who does it", self.actor, LONGEST_NAME)
        checked_text("a reason", self.why, LONGEST_COMMENT)
        if self.actor == SYSTEM or self.actor.startswith("token:"):
            raise UsageError(Fault("E2001", "a person who changes a threshold", self.actor))


def threshold_changes(database: Database, model: str | None = None) -> list[ThresholdChange]:
    """Every change of a threshold, oldest first; of one ``model`` (digest) where it is given. Raises Unavailable."""
    with database.reading() as connection:
        found = [] if connection is None else _changes(connection)
    return [c for c in found if model in (None, c.model)]


def standing(changes: list[ThresholdChange]) -> list[ThresholdChange]:
    """The changes of one model that hold: those on top of each other that nobody took back, oldest first."""
    held: list[ThresholdChange] = []
    for change in changes:
        if change.undoes is None:
            held.append(change)
        elif held and held[-1].id == change.undoes:
            held.pop()
    return held


def active_threshold(database: Database, model: str) -> ThresholdChange | None:
    """The change that decides the threshold of ``model`` (digest) now; None where its own holds. Raises Unavailable."""
    held = standing(threshold_changes(database, model))
    return held[-1] if held else None


def evidence_mark(database: Database) -> int:
    """Where the record stands: another mark later means that a verdict or a threshold was changed meanwhile."""
    with database.reading() as connection:
        return 0 if connection is None else _mark(connection)


def write_change(database: Database, wanted: Wanted, mark: int, clock: Clock = clock_us) -> ThresholdChange:
    """Put a change on top of those that hold.

    ``mark``: what ``evidence_mark`` gave before the evidence was read. Raises UsageError E2001 where somebody gave a verdict
    or changed a threshold since then.
    """
    return _write(database, wanted, mark, clock, undo=False)


def write_undo(database: Database, wanted: Wanted, mark: int, clock: Clock = clock_us) -> ThresholdChange:
    """Take the topmost change back; ``wanted.value`` is what held before it. Raises UsageError E2001 as ``write_change``, and
    where there is nothing to take back."""
    return _write(database, wanted, mark, clock, undo=True)


def _write(database: Database, wanted: Wanted, mark: int, clock: Clock, *, undo: bool) -> ThresholdChange:
    with database.writing() as connection:
        now = _mark(connection)
        if now != mark:
            hint = "look at the proposal again"
            raise UsageError(Fault("E2001", f"the record as it was read, at {mark}", now, hint))
        held = standing([c for c in _changes(connection) if c.model == wanted.model])
        if undo and (not held or held[-1].before != wanted.value):
            raise UsageError(Fault("E2001", "a threshold that can be taken back", "none was set"))
        before = held[-1].value if held else None
        detail = {"model": wanted.model, "model_name": wanted.model_name, "before": before, "value": wanted.value,
                  "second": wanted.second, "undoes": held[-1].id if undo else None,
                  "evidence": dict(wanted.evidence)}  # fmt: skip
        entry = {"alert_id": NO_ALERT, "at": clock(), "actor": wanted.actor, "action": UNDO if undo else APPLY,
                 "from_state": "", "to_state": "", "comment": wanted.why,
                 "detail": json.dumps(detail, allow_nan=False)}  # fmt: skip
        connection.execute(sa.insert(tables.alert_events).values(**entry))
        return _changes(connection)[-1]


def _changes(connection: sa.Connection) -> list[ThresholdChange]:
    own = tables.alert_events.c
    query = sa.select(tables.alert_events).where(own.alert_id == NO_ALERT, own.action.in_((APPLY, UNDO)))
    return [
        ThresholdChange(id=row.id, at=row.at, actor=row.actor, why=row.comment, **json.loads(row.detail))
        for row in connection.execute(query.order_by(own.id))
    ]


def _mark(connection: sa.Connection) -> int:
    own = tables.alert_events.c
    query = sa.select(sa.func.coalesce(sa.func.max(own.id), 0)).where(own.action.in_(_EVIDENCE))
    return int(connection.execute(query).scalar_one())
