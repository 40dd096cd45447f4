"""What an alert is, and a line of its past."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa

from alerts.episodes import Episode, TopTags
from alerts.grouping import LOWEST
from alerts.states import ANOMALY

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def iso_time(us: int) -> str:
    """UTC microseconds as ISO 8601.

    >>> iso_time(1_000_001)
    '1970-01-01T00:00:01.000001Z'
    """
    return (_EPOCH + timedelta(microseconds=us)).isoformat().replace("+00:00", "Z")


@dataclass(frozen=True)
class Alert:
    """An episode as people see it, or a finding on the data (``kind``, ``cause``); times in UTC microseconds.

    ``version`` goes up with each change of the workflow, not when a later log extends the episode. ``priority`` is 1 (high)
    to 3 (low). ``parent_id`` is the flood that it belongs to. An alert of ``AlertStore.page`` has no ``reasons``.
    """

    id: int
    asset: str
    model: str
    model_name: str
    start_us: int
    peak_us: int
    end_us: int
    peak_score: float
    threshold: float
    rows: int
    lead_us: int | None
    top_tags: TopTags
    state: str
    first_batch: int | None
    created_at: int
    reasons: str = ""
    version: int = 1
    priority: int = LOWEST
    kind: str = ANOMALY
    cause: str = ""
    parent_id: int | None = None
    assignee: str | None = None
    shelved_until: int | None = None
    verdict: str | None = None
    reopened: int = 0
    acknowledged_at: int | None = None
    closed_at: int | None = None
    escalated_at: int | None = None

    def episode(self) -> Episode:
        """The episode that the alert shows."""
        return Episode(
            self.asset,
            self.start_us,
            self.peak_us,
            self.end_us,
            self.peak_score,
            self.threshold,
            self.rows,
            self.top_tags,
            reasons=self.reasons,
        )

    def told(self) -> dict[str, Any]:
        """What is known of its peak: ``tags`` (tag, share, value, low, high, direction) and ``alike`` (asset, time_us,
        event, distance); empty lists for an alert from before reasons were kept."""
        return {"tags": [], "alike": []} | (json.loads(self.reasons) if self.reasons else {})

    def to_dict(self) -> dict[str, Any]:
        """Plain, JSON-ready values, with ``start``, ``peak``, ``end`` in ISO 8601; an infinite score is None."""
        own = asdict(self) | {name: iso_time(getattr(self, f"{name}_us")) for name in ("start", "peak", "end")}
        own["reasons"] = self.told()
        for alike in own["reasons"]["alike"]:
            alike["time"] = iso_time(alike["time_us"])
        own["top_tags"] = [{"tag": tag, "share": share} for tag, share in self.top_tags]
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in own.items()}


@dataclass(frozen=True)
class AlertPage:
    """Some alerts, and the cursor of those that follow (None: no more)."""

    alerts: tuple[Alert, ...]
    next: str | None


@dataclass(frozen=True)
class AlertEvent:
    """One line of an alert's past: who did what when (UTC microseconds), and what changed besides the state."""

    id: int
    alert_id: int
    at: int
    actor: str
    action: str
    from_state: str
    to_state: str
    comment: str
    detail: Mapping[str, Any]


def alert_of(row: sa.Row[Any]) -> Alert:
    """The alert that a row of the table holds."""
    values = dict(zip(row._fields, row, strict=True))
    for name in ("search", "excerpt"):
        values.pop(name, None)
    values["top_tags"] = tuple((str(tag), float(share)) for tag, share in json.loads(values["top_tags"]))
    return Alert(**values)


def alert_event(row: sa.Row[Any]) -> AlertEvent:
    """The event that a row of the table holds."""
    return AlertEvent(**dict(row._mapping) | {"detail": json.loads(row.detail)})
