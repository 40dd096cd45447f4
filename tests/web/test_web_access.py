"""Who may do what: every route by every role, the token of every form, sessions, sign-in, headers (RELIABILITY I2 to I5, I12)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.routing import APIRoute
from starlette.testclient import TestClient
from web_site import PASSWORD, Clock, Site, token_in

from alerts.users import ROLES, csrf_token
from alerts.web.access import ROLE
from alerts.web.services import WebSettings
from alerts.web.signing import PUBLIC

#: A body that each kind of change takes, for forms and for the API.
FIELDS = {"hours": "8", "comment": "why", "verdict": "unsure", "assignee": "ann", "alert": "1:1"}


def routes(site: Site) -> Iterator[tuple[str, str, str | None]]:
    """Method, path with a real number, and role (None: public) of every route."""
    for route in site.app.routes:
        assert isinstance(route, APIRoute), route
        roles = [getattr(d.call, ROLE) for d in route.dependant.dependencies if hasattr(d.call, ROLE)]
        path = re.sub(r"\{id(:int)?\}", "1", route.path).replace("{suffix}", "csv").replace("{name}", "page.css")
        for method in route.methods or ():
            yield method, path, roles[0] if roles else None


def send(client: TestClient, method: str, path: str, token: str = "") -> Any:
    if method == "GET":
        return client.get(path, params={"name": "press"} if path == "/asset" else None)
    if path.startswith("/api/"):
        body: dict[str, Any] = {"hours": 8, "comment": "why", "verdict": "unsure", "assignee": "ann"}
        if path.endswith("/bulk"):
            body |= {"action": "acknowledge", "alerts": {"1": None}}
        return client.post(path, json=body, headers={"x-csrf-token": token} if token else {})
    return client.post(path, data=FIELDS | ({"csrf": token} if token else {}))


def test_every_route_is_public_by_name_or_says_its_role(site: Site) -> None:
    told = list(routes(site))
    assert len(told) > 40
    assert {path for _, path, role in told if role is None} == {p.replace("{name}", "page.css") for p in PUBLIC}
    assert {role for _, _, role in told if role} == set(ROLES)


def test_nobody_sees_or_changes_anything_without_signing_in(site: Site) -> None:
    before = site.services.store.dump()
    for method, path, role in routes(site):
        answer = send(site.client(), method, path, "made up")
        if role is not None:
            assert answer.status_code in (303, 401, 403), (method, path, answer.status_code)
            assert "press" not in answer.text and "Flow" not in answer.text
    assert site.services.store.dump() == before


@pytest.mark.parametrize("role", ROLES)
def test_each_role_reaches_its_routes_and_no_other(site: Site, role: str) -> None:
    for method, path, needed in routes(site):
        if path == "/sign-out" or needed is None:
            continue
        client = site.client(role)
        token = csrf_token(client.cookies["anomaly_session"])
        status = send(client, method, path, token).status_code
        if ROLES.index(role) >= ROLES.index(needed):
            assert status in (200, 303, 400, 409), (
                method,
                path,
                status,
            )  # 400: not in this state; 409: not this version
        else:
            assert status == 403, (method, path, status)


def test_every_change_without_its_token_is_refused(site: Site) -> None:
    before = site.services.store.dump()["alerts"]
    other = site.client("admin").cookies["anomaly_session"]
    for method, path, needed in routes(site):
        if method == "GET":
            continue
        client = site.client("admin") if needed else site.client()
        for token in ("", "0" * 64, csrf_token(other), "é"):
            if not token.isascii() and path.startswith("/api/"):
                continue  # no client can put it into a header
            assert send(client, method, path, token).status_code == 403, (path, token)
    assert site.services.store.dump()["alerts"] == before


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "http://plant:8001"},
        {"origin": "http://plant:8000.evil"},
        {"origin": "null"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
def test_a_change_from_another_site_is_refused_though_it_has_the_token(site: Site, headers: dict[str, str]) -> None:
    client = site.client("admin")
    form = {"csrf": csrf_token(client.cookies["anomaly_session"])}
    assert client.post("/alerts/1/acknowledge", data=form, headers=headers).status_code == 403
    assert site.services.store.alert(1).state == "new"
    assert client.post("/alerts/1/acknowledge", data=form, headers={"origin": "http://plant:8000"}).status_code == 303
    assert site.services.store.alert(1).state == "acknowledged"


def test_signing_in_and_out_through_the_form(site: Site) -> None:
    client = site.client()
    away = client.get("/alerts/1?x=1")
    assert away.status_code == 303 and away.headers["location"] == "/sign-in?next=/alerts/1%3Fx%3D1"
    form = {"csrf": token_in(client.get("/sign-in?next=/alerts/1").text), "name": "operator", "next": "/alerts/1"}
    wrong, unknown = (
        client.post("/sign-in", data=form | {"name": name, "password": "not this one"})
        for name in ("operator", "nobody")
    )
    assert wrong.status_code == unknown.status_code == 401
    assert wrong.text.replace('value="operator"', "") == unknown.text.replace('value="nobody"', "")
    inside = client.post("/sign-in", data=form | {"password": PASSWORD})
    assert inside.status_code == 303 and inside.headers["location"] == "/alerts/1"
    cookie = next(c for c in inside.headers.get_list("set-cookie") if c.startswith("anomaly_session="))
    assert "HttpOnly" in cookie and "SameSite=lax" in cookie
    page = client.get("/alerts/1")
    assert page.status_code == 200 and "operator, operator" in page.text
    session = client.cookies["anomaly_session"]
    assert client.post("/sign-out", data={"csrf": token_in(page.text)}).status_code == 303
    again = site.client()
    again.cookies.set("anomaly_session", session)
    assert again.get("/alerts/1").status_code == 303


def test_a_session_from_before_signing_in_is_not_kept(site: Site) -> None:
    client = site.client()
    client.cookies.set("anomaly_session", "fixed by somebody else")
    token = token_in(client.get("/sign-in").text)
    client.post("/sign-in", data={"csrf": token, "name": "viewer", "password": PASSWORD})
    assert site.services.users.session("fixed by somebody else") is None


def test_guessing_is_braked_and_says_for_how_long(site: Site) -> None:
    client = site.client()
    form = {"csrf": token_in(client.get("/sign-in").text), "name": "viewer", "password": "wrong"}
    assert [client.post("/sign-in", data=form).status_code for _ in range(5)] == [401] * 5
    stopped = client.post("/sign-in", data=form | {"password": PASSWORD})
    assert stopped.status_code == 429 and int(stopped.headers["retry-after"]) >= 1


def test_a_session_ends_when_idle_and_when_its_user_is_disabled(site: Site) -> None:
    idle, disabled = site.client("viewer"), site.client("operator")
    assert idle.get("/").status_code == disabled.get("/").status_code == 200
    site.services.users.disable("operator", by="test")
    assert disabled.get("/").status_code == 303
    site.clock.now += site.services.users.rules.idle_us + 1
    assert idle.get("/").status_code == 303


@pytest.mark.parametrize(
    "address", ["//evil.example", "https://evil.example", "/\\evil.example", "javascript:alert(1)"]
)
def test_signing_in_leads_nowhere_else(site: Site, address: str) -> None:
    client = site.client()
    token = token_in(client.get("/sign-in", params={"next": address}).text)
    inside = client.post("/sign-in", data={"csrf": token, "name": "viewer", "password": PASSWORD, "next": address})
    assert inside.headers["location"] == "/"


def test_every_answer_carries_the_headers_that_keep_a_browser_safe(site: Site) -> None:
    client = site.client("viewer")
    for path in (
        "/",
        "/alerts/1",
        "/nothing",
        "/api/v1/alerts",
        "/api/v1/alerts/999",
        "/metrics",
        "/sign-in",
        "/static/page.css",
    ):
        answer = client.get(path)
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert ("immutable" if "static" in path else "no-store") in answer.headers["cache-control"]


def test_no_page_has_script_or_style_of_its_own(site: Site) -> None:
    client = site.client("admin")
    views = ("/handover", "/figures", "/assets", "/asset?name=press", "/health", "/planning", "/audit", "/users")
    for path in ("/", "/alerts/1", *views):
        page = client.get(path).text
        assert not re.search(r"<script(?![^>]* src=)|<style|\sstyle=|\son\w+=", page), path


def test_local_mode_needs_no_sign_in_but_its_token_and_its_own_name(tmp_path: Any) -> None:
    local = Site(tmp_path, WebSettings(local=True))
    with TestClient(local.app, base_url="http://127.0.0.1:8000", follow_redirects=False) as client:
        page = client.get("/")
        assert page.status_code == 200 and "Local mode" in page.text
        assert client.post("/bulk/acknowledge", data={"alert": "1:1"}).status_code == 403
        for host in ("plant:8000", "evil.example", "127.0.0.1.evil.example", "localhost.evil"):
            assert client.get("/", headers={"host": host}).status_code == 421
        for host in ("localhost:8000", "127.0.0.1", "[::1]:8000"):
            assert client.get("/", headers={"host": host}).status_code == 200


def test_behind_https_the_cookie_goes_over_https_alone(tmp_path: Any) -> None:
    site = Site(tmp_path, WebSettings(https=True))
    site.add_users()
    client = TestClient(site.app, base_url="https://plant", follow_redirects=False)
    form = {"csrf": token_in(client.get("/sign-in").text), "name": "viewer", "password": PASSWORD}
    assert client.post("/sign-in", data=form, headers={"origin": "http://plant"}).status_code == 403
    cookies = client.post("/sign-in", data=form, headers={"origin": "https://plant"}).headers.get_list("set-cookie")
    assert any(c.startswith("anomaly_session=") and "Secure" in c for c in cookies)


def test_tokens_of_machines_have_their_role_and_end(site: Site) -> None:
    clock: Clock = site.clock
    token = site.services.users.add_token("scada", "viewer", by="test", expires_at=clock.now + 10)
    head = {"authorization": f"Bearer {token}"}
    client = site.client()
    assert client.get("/api/v1/alerts", headers=head).status_code == 200
    assert client.get("/metrics", headers=head).status_code == 200
    assert client.post("/api/v1/alerts/1/acknowledge", json={}, headers=head).status_code == 403
    clock.now += 10
    assert client.get("/api/v1/alerts", headers=head).status_code == 401
    assert client.get("/api/v1/alerts", headers={"authorization": "Bearer x"}).status_code == 401
