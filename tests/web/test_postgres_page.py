"""The page on a PostgreSQL server that is busy, gone or back again, and text that it cannot store (RELIABILITY I8 to I11)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from postgres import Server, server_of
from web_site import Site, alert_row, token_in

from alerts.database import Database

pytestmark = pytest.mark.postgres
PATHS = ("/", "/alerts/1", "/health", "/api/v1/alerts", "/readyz", "/metrics")


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Server:
    """The server of this test process."""
    return server_of(request.config)


@pytest.fixture
def pg_site(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """One new alert and a user of each role, in an empty database of the server."""
    import alerts.database

    with server.lent() as name:
        where = alerts.database._url(server.url(name))
        monkeypatch.setattr(alerts.database, "_url", lambda _: where)
        made = Site(tmp_path)
        made.put(alert_row())
        made.add_users()
        yield made


def test_a_locked_database_is_told_as_busy_and_nothing_else(pg_site: Site) -> None:
    client = pg_site.client("operator")
    token = token_in(client.get("/").text)
    with Database(pg_site.database.url.render_as_string(False)).writing():
        answer = client.post("/alerts/1/acknowledge", data={"csrf": token, "version": "1"})
    assert answer.status_code == 503 and "postgres" not in answer.text and answer.headers["retry-after"]
    assert pg_site.services.store.alert(1).version == 1


def test_a_server_that_is_gone_is_told_and_the_page_comes_back_with_it(pg_site: Site, server: Server) -> None:
    client, name = pg_site.client("viewer"), str(pg_site.database.url.database)
    assert client.get("/alerts/1").status_code == 200
    server.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
    server.cut(name)
    pg_site.services.forget()
    for path in PATHS:
        answer = client.get(path)
        assert answer.status_code == 503 and name not in answer.text.split(), path
    assert client.get("/healthz").text == "ok\n"
    server.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
    pg_site.services.forget()
    assert client.get("/alerts/1").status_code == 200


@pytest.mark.parametrize("text", ["a\x00b", "\x00"])
def test_a_zero_byte_in_any_field_is_refused_and_never_our_fault(pg_site: Site, text: str) -> None:
    client = pg_site.client("operator")
    token = token_in(client.get("/").text)
    for action, fields in (
        ("note", {"comment": text}), ("shelve", {"hours": "8", "reason": text}), ("assign", {"assignee": text}),
        ("verdict", {"verdict": text}), ("verdict", {"verdict": "nuisance", "comment": text}),
    ):  # fmt: skip
        answer = client.post(f"/alerts/1/{action}", data={"csrf": token, "version": "1", **fields})
        assert 400 <= answer.status_code < 500, (action, answer.status_code)
    for name in (
        "text",
        "asset",
        "state",
        "priority",
        "kind",
        "assignee",
        "since",
        "until",
        "after",
        "model",
        "parent",
    ):
        for path in ("/", "/api/v1/alerts", "/export/alerts.csv"):
            assert client.get(path, params={name: text}).status_code in (200, 400, 422), (path, name)
    for path in ("/asset", "/assets", "/figures", "/handover"):
        assert client.get(path, params={"name": text, "shift": text, "hours": text, "days": text}).status_code < 500, (
            path
        )
    visitor = pg_site.client()
    form = {"csrf": token_in(visitor.get("/sign-in").text), "name": text, "password": text, "next": text}
    assert visitor.post("/sign-in", data=form).status_code in (400, 401, 429)
    visitor.cookies.set("anomaly_session", "x%00")
    assert visitor.get("/").status_code < 500
    assert visitor.get("/api/v1/alerts", headers={"authorization": "Bearer \x01"}).status_code == 401
    assert pg_site.services.store.alert(1).version == 1
