"""Planned work, users, tokens and the audit on the page; the window behind a peak, drift, and a search that rests."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from starlette.testclient import TestClient
from web_site import DAY, HOUR, PASSWORD, T0, Site, alert_row, token_in

from alerts import listing, tables
from alerts.episodes import Episode
from alerts.listing import Filters
from alerts.store import AlertStore, BatchRecord
from alerts.web import queries

OTHER = "nine dry wires"


def post(client: TestClient, path: str, **fields: str) -> Any:
    return client.post(path, data={"csrf": token_in(client.get("/").text)} | fields)


def test_work_is_planned_marked_ended_and_audited(site: Site) -> None:
    client = site.client("operator")
    now = site.clock.now  # 2023-11-15 00:13
    fields = {"asset": "press", "start": "2023-11-14T22:00", "end": "2023-11-15T08:00", "reason": "felt <b>change</b>"}
    assert post(client, "/planning/add", **fields).headers["location"] == "/planning"
    page = client.get("/planning").text
    assert "felt &lt;b&gt;change" in page and "End now" in page and "2023-11-15 08:00" in page
    assert "felt &lt;b&gt;change" in client.get("/alerts/1").text, "the alert in this time is marked"
    assert post(client, "/planning/1/end").status_code == 303
    (kept,) = site.services.planning.calendar(T0 - DAY, T0 + DAY)
    assert kept.end_us == now, "what was stays, so that the alerts of that time stay marked"
    assert "End now" not in client.get("/planning").text and "felt &lt;b&gt;" in client.get("/planning").text
    assert post(client, "/planning/1/end").status_code == 400
    ahead = {"asset": "", "start": "2023-11-20T06:00", "end": "2023-11-21T06:00", "reason": "stop"}
    post(client, "/planning/add", **ahead)
    assert "Take back" in client.get("/planning").text and post(client, "/planning/2/end").status_code == 303
    assert [p.id for p in site.services.planning.calendar(T0 - DAY, T0 + 30 * DAY)] == [1]
    told = [(e.action, e.actor, e.name) for e in queries.user_events(site.database) if e.action.endswith("plan")]
    assert told == [("cancel_plan", "operator", "planned work 2"), ("plan", "operator", "planned work 2"),
                    ("end_plan", "operator", "planned work 1"), ("plan", "operator", "planned work 1")]  # fmt: skip


@pytest.mark.parametrize(
    "wrong",
    [{"start": ""}, {"end": "soon"}, {"end": "2023-11-14T00:00"}, {"end": "2030-01-01T00:00"}, {"reason": " "},
     {"reason": "x" * 4001}, {"asset": "a" * 1001}],
)  # fmt: skip
def test_a_wrong_plan_is_refused_with_words_and_what_was_typed_stays(site: Site, wrong: dict[str, str]) -> None:
    fields = {"asset": "press", "start": "2023-11-14T22:00", "end": "2023-11-15T08:00", "reason": "felts"} | wrong
    answer = post(site.client("operator"), "/planning/add", **fields)
    assert answer.status_code == 400 and "Expected:" in answer.text
    assert 'value="press"' in answer.text or "asset" in wrong
    assert site.services.planning.calendar(0, T0 + 9000 * DAY) == []


def test_an_admin_adds_changes_and_disables_users(site: Site) -> None:
    admin = site.client("admin")
    assert post(admin, "/users/add", name="ann", role="viewer", password=PASSWORD).status_code == 303
    ann, _ = site.services.users.sign_in("ann", PASSWORD)
    assert post(admin, "/users/role", name="ann", role="operator").status_code == 303
    assert site.services.users.session(ann) is None, "a change of role ends every session"
    assert site.services.users.sign_in("ann", PASSWORD)[1].role == "operator"
    assert post(admin, "/users/password", name="ann", password=OTHER).status_code == 303
    assert post(admin, "/users/disable", name="ann").status_code == 303
    page = admin.get("/users").text
    assert "disabled" in page and "Enable</button>" in page
    assert post(admin, "/users/enable", name="ann").status_code == 303
    assert site.services.users.sign_in("ann", OTHER)[1].name == "ann"
    assert OTHER not in page and "scrypt" not in page
    audit = admin.get("/audit").text
    assert "disable" in audit and "ann" in audit
    assert "Sign-ins" not in site.client("operator").get("/audit").text


@pytest.mark.parametrize(
    ("path", "fields"),
    [("/users/add", {"name": "", "role": "viewer", "password": PASSWORD}), ("/users/add", {"name": "ann", "role": "boss"}),
     ("/users/add", {"name": "ann", "role": "viewer", "password": "password1"}), ("/users/role", {"name": "nobody"}),
     ("/users/add", {"name": "viewer", "role": "viewer", "password": PASSWORD}), ("/users/disable", {"name": "admin"}),
     ("/users/role", {"name": "admin", "role": "viewer"}), ("/tokens/add", {"name": "a", "role": "admin"}),
     ("/tokens/add", {"name": "a", "role": "viewer", "days": "0"}), ("/tokens/revoke", {"name": "a"}),
     ("/tokens/add", {"name": "a", "role": "viewer", "days": "-1"})],
)  # fmt: skip
def test_a_wrong_change_of_users_changes_nothing(site: Site, path: str, fields: dict[str, str]) -> None:
    admin = site.client("admin")
    before = {name: site.services.store.dump()[name] for name in ("users", "tokens")}
    answer = post(admin, path, **fields)
    assert answer.status_code == 400 and "Expected:" in answer.text and PASSWORD not in answer.text
    assert {name: site.services.store.dump()[name] for name in ("users", "tokens")} == before


def test_a_token_is_shown_once_works_and_is_revoked(site: Site) -> None:
    admin = site.client("admin")
    page = post(admin, "/tokens/add", name="scada", role="viewer", days="30")
    match = re.search(r"<code>(pa_[\w-]+)</code>", page.text)
    assert page.status_code == 200 and match and page.headers["cache-control"] == "no-store"
    head = {"authorization": f"Bearer {match[1]}"}
    assert site.client().get("/api/v1/alerts", headers=head).status_code == 200
    again = admin.get("/users").text
    assert "scada" in again and match[1] not in again
    assert queries.machine_tokens(site.database)[0].expires_at == site.clock.now + 30 * DAY
    assert post(admin, "/tokens/revoke", name="scada").status_code == 303
    assert site.client().get("/api/v1/alerts", headers=head).status_code == 401
    assert "Revoke</button>" not in admin.get("/users").text


def told(tag: str, peak: float) -> str:
    curve = {"tag": tag, "actual": [1.0, None, peak], "expected": [1.0, 1.5, 2.0], "low": 0.0, "high": 3.0}
    return json.dumps({"tags": [], "alike": [], "excerpt": {"before": [120.0, 60.0, 0.0], "tags": [curve]}})


def episode(start: int, end: int, peak: float, tag: str) -> Episode:
    return Episode("mill", start, start, end, peak, 3.0, 5, ((tag, 1.0),), reasons=told(tag, peak))


def record(site: Site, number: int, *episodes: Episode) -> None:
    covered = {"mill": [(e.start_us, e.end_us + 1) for e in episodes]}
    AlertStore(site.database).record_batch(BatchRecord(str(number), "m9", "demo", "f", 9, {}, covered), episodes)


def test_the_window_behind_the_peak_is_kept_with_the_alert_and_shown(site: Site) -> None:
    record(site, 1, episode(T0, T0 + HOUR, 4.0, "Flow<1>"))
    (alert,) = AlertStore(site.database).alerts(asset="mill")
    assert "excerpt" not in alert.reasons and "excerpt" not in alert.to_dict()
    client = site.client("viewer")
    curves = client.get(f"/alerts/{alert.id}/curves.json").json()
    assert curves["time"] == [T0 / 1e6 - 120, T0 / 1e6 - 60, T0 / 1e6] and curves["tags"][0]["actual"] == [
        1.0,
        None,
        4.0,
    ]
    assert client.get(f"/api/v1/alerts/{alert.id}/curves").json() == curves
    page = client.get(f"/alerts/{alert.id}").text
    assert "Flow&lt;1&gt;" in page and "As a table" in page and "22:13:20" in page and "curves.js" in page
    assert client.get("/alerts/1/curves.json").json() == {"time": [], "tags": []}
    assert "curves.js" not in client.get("/alerts/1").text
    assert client.get("/alerts/99/curves.json").status_code == 404


def test_a_longer_log_keeps_the_window_of_the_higher_peak(site: Site) -> None:
    kept = lambda: queries.excerpt(site.database, AlertStore(site.database).alerts(asset="mill")[-1])["tags"][0]["tag"]  # noqa: E731
    record(site, 1, episode(T0, T0 + HOUR, 4.0, "first"))
    record(site, 2, episode(T0 + HOUR, T0 + 2 * HOUR, 3.5, "lower"))
    assert kept() == "first"
    record(site, 3, episode(T0 + 2 * HOUR, T0 + 3 * HOUR, 9.0, "higher"))
    assert kept() == "higher"
    record(site, 4, episode(T0 + 5 * HOUR, T0 + 6 * HOUR, 20.0, "highest"))
    assert len(AlertStore(site.database).alerts(asset="mill")) == 2
    record(site, 5, episode(T0 + 3 * HOUR, T0 + 5 * HOUR, 5.0, "bridge"))
    assert len(AlertStore(site.database).alerts(asset="mill")) == 1 and kept() == "highest", (
        "taken over from a merged alert"
    )


def test_health_shows_the_drift_beside_the_last_scores_of_each_model(site: Site, tmp_path: Path) -> None:
    drift = (
        {"kind": "input", "verdict": "drift", "words": "Flow <low>"},
        {"kind": "score", "verdict": "no drift", "words": "calm"},
    )
    content = {"model": "m1", "first_us": T0, "last_us": T0 + DAY, "rows_compared": 77, "drifts": drift}
    path = tmp_path / "scores.parquet"
    path.with_suffix(".drift.json").write_text(json.dumps(content), encoding="utf-8")
    store = AlertStore(site.database)
    store.record_batch(BatchRecord("a", "m1", "demo", "day.csv", 9, {}, {}, str(path)), [])
    store.record_batch(BatchRecord("b", "m2", "other", "day.csv", 9, {}, {}, str(tmp_path / "gone.parquet")), [])
    (report,) = queries.drift_reports(site.database)
    assert (report.model_name, report.rows, report.found) == ("demo", 77, (("input", "drift", "Flow <low>"),))
    page = site.client("viewer").get("/health").text
    assert "Flow &lt;low&gt;" in page and "77 rows" in page and "calm" not in page
    path.with_suffix(".drift.json").write_text("[", encoding="utf-8")
    assert queries.drift_reports(site.database) == []
    watched = tmp_path / "scores-w.drift.json"
    watched.write_text(json.dumps(content | {"model": "m2"}), encoding="utf-8")
    assert [r.model for r in queries.drift_reports(site.database)] == ["m2"], (
        "a watch keeps one for all its score files"
    )


def test_a_search_rests_and_goes_on_where_it_rested(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.put(
        *(
            alert_row(start_us=T0 + k * HOUR, model=f"s{k}", asset="needle" if k % 10 == 0 else "hay")
            for k in range(1, 61)
        )
    )
    monkeypatch.setattr(listing, "MOST_SEARCHED", 7)
    found, after, pages = list[int](), None, 0
    while pages == 0 or after is not None:
        page = site.services.store.page(Filters(text="needle"), after, 50)
        found, after, pages = found + [a.start_us for a in page.alerts], page.next, pages + 1
    assert found == [T0 + k * HOUR for k in range(60, 0, -10)] and pages > 6
    assert len(site.services.store.page(Filters(text="needle", states=("new",)), None, 50).alerts) == 6, (
        "open ones at once"
    )
    answer = site.client("viewer").get("/?state=all&text=nowhere")
    assert "Nothing in the newest" in answer.text and "after=" in answer.text


def test_counts_of_the_list_and_assets_are_those_of_the_table(site: Site) -> None:
    (*_, flood) = site.put(alert_row(kind="flood", model="f", start_us=T0 + HOUR))
    site.put(
        *(alert_row(parent_id=flood, model=f"p{k}", state="closed" if k else "new", asset=f"x{k}") for k in range(3))
    )
    assert queries.listed_counts(site.database) == {"new": 2, "acknowledged": 1, "closed": 1}
    assert queries.alarmed_assets(site.database) == ["press", "pump", "x0", "x1", "x2"]
    with site.database.reading() as connection:
        assert connection is not None
        query = sa.select(sa.func.count()).select_from(tables.alerts)
        assert connection.execute(query).scalar() == 7
