"""A served database for the tests of the page: three alerts, one user of each role, clients that are signed in."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from fastapi import FastAPI
from starlette.testclient import TestClient

from alerts import tables
from alerts.database import Database
from alerts.passwords import Cost
from alerts.texts import search_text
from alerts.users import ROLES, Users
from alerts.web.app import create_app
from alerts.web.services import Services, WebSettings

HOUR, DAY = 3_600_000_000, 86_400_000_000
T0 = 1_700_000_000_000_000
ADDRESS = "http://plant:8000"
PASSWORD = "seven wet felts"  # noqa: S105 - a test's own


def alert_row(**changes: Any) -> dict[str, Any]:
    """The columns of one alert."""
    made: dict[str, Any] = {
        "asset": "press", "model": "m1", "model_name": "demo", "start_us": T0, "peak_us": T0, "end_us": T0 + HOUR,
        "peak_score": 5.0, "threshold": 3.0, "rows": 10, "lead_us": 4 * HOUR, "top_tags": json.dumps([["Flow", 0.8]]),
        "state": "new", "created_at": T0, "priority": 2, "kind": "anomaly", "cause": "", "reasons": "",
    } | changes  # fmt: skip
    tags = [tag for tag, _ in json.loads(made["top_tags"])]
    return made | {"search": search_text(made["asset"], made["cause"], tags)}


@dataclass
class Clock:
    """A clock that stands still until a test moves it."""

    now: int = T0 + 2 * HOUR

    def __call__(self) -> int:
        return self.now


@dataclass
class Site:
    """The application over a database of its own; ``clock`` is shared by all its parts."""

    folder: Path
    settings: WebSettings = field(default_factory=WebSettings)
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        self.database = Database(self.folder / "alerts.db", wait_s=1.0)
        users = Users(self.database, self.clock, cost=Cost(16, 1, 1))
        self.services = Services(self.database, self.settings, self.clock, users)
        self.app: FastAPI = create_app(self.services)

    def put(self, *rows: dict[str, Any]) -> list[int]:
        """Write alerts; the numbers of all there are."""
        with self.database.writing() as connection:
            for given in rows:  # apart: they need not name the same columns
                connection.execute(sa.insert(tables.alerts).values(**given))
            return list(connection.execute(sa.select(tables.alerts.c.id).order_by(tables.alerts.c.id)).scalars())

    def add_users(self) -> None:
        """One user of each role, named as it."""
        for role in ROLES:
            self.services.users.add(role, role, PASSWORD, by="test")

    def client(self, role: str | None = None) -> TestClient:
        """A browser that follows no redirect, signed in as the user of ``role`` by a session made directly."""
        made = TestClient(self.app, base_url=ADDRESS, follow_redirects=False)
        if role is not None:
            token, _ = self.services.users.sign_in(role, PASSWORD)
            made.cookies.set("anomaly_session", token)
        return made


def token_in(page: str) -> str:
    """The token that the forms of a page carry."""
    match = re.search(r'name="csrf" value="([0-9a-f]+)"', page)
    assert match is not None, page[:2000]
    return match[1]
