"""Alerts for the tests of what people do with them, straight into the table."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from alerts import tables
from alerts.database import Database
from alerts.texts import search_text

HOUR, DAY = 3_600_000_000, 86_400_000_000
T0 = 1_700_000_000_000_000


@dataclass
class Clock:
    """A clock that stands still until a test moves it."""

    now: int = T0

    def __call__(self) -> int:
        return self.now


def row(**changes: Any) -> dict[str, Any]:
    """The columns of one alert."""
    given = {
        "asset": "press", "model": "m1", "model_name": "demo", "start_us": T0, "peak_us": T0, "end_us": T0 + HOUR,
        "peak_score": 5.0, "threshold": 3.0, "rows": 10, "lead_us": None, "top_tags": json.dumps([["Flow", 0.8]]),
        "state": "new", "created_at": T0, "priority": 2,
    }  # fmt: skip
    made = given | changes
    tags = [tag for tag, _ in json.loads(made["top_tags"])]
    return made | {"search": search_text(made["asset"], made.get("cause", ""), tags)}


def put(database: Database, rows: list[Mapping[str, Any]]) -> list[int]:
    """Write alerts; their numbers."""
    with database.writing() as connection:
        connection.execute(sa.insert(tables.alerts), [dict(r) for r in rows])
        return list(connection.execute(sa.select(tables.alerts.c.id).order_by(tables.alerts.c.id)).scalars())


def spaced(n: int, step: int = HOUR, **changes: Any) -> list[dict[str, Any]]:
    """``n`` alerts, one per ``step`` microseconds."""
    return [row(start_us=T0 + k * step, end_us=T0 + k * step + step // 2, **changes) for k in range(n)]


def all_rows(database: Database, table: sa.Table) -> list[dict[str, Any]]:
    """Every row of a table in key order."""
    with database.reading() as connection:
        assert connection is not None
        return [dict(r._mapping) for r in connection.execute(sa.select(table).order_by(*table.primary_key))]
