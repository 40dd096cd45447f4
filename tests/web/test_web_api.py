"""The JSON API: the same as the page, what its schema promises, conflicts, exports, Prometheus."""

from __future__ import annotations

import csv
import io
from typing import Any

import pytest
from starlette.testclient import TestClient
from web_site import DAY, HOUR, T0, Site, alert_row

from alerts.outbox import DEAD
from alerts.states import ACTIONS
from alerts.store import AlertStore, BatchRecord
from alerts.web.exports import ORDER_COLUMNS


class Machine:
    """A client with a bearer token."""

    def __init__(self, site: Site, role: str) -> None:
        self.head = {"authorization": "Bearer " + site.services.users.add_token(role, role, by="test")}
        self.client: TestClient = site.client()

    def get(self, path: str, **query: Any) -> Any:
        return self.client.get("/api/v1" + path, params=query, headers=self.head)

    def post(self, path: str, **body: Any) -> Any:
        return self.client.post("/api/v1" + path, json=body, headers=self.head)


def test_the_list_pages_by_cursor_and_filters_like_the_page(site: Site) -> None:
    machine = Machine(site, "viewer")
    assert [a["id"] for a in machine.get("/alerts").json()["alerts"]] == [1, 2]
    seen, after = [], ""
    while True:
        page = machine.get("/alerts", state="all", size=1, after=after).json()
        seen += [a["id"] for a in page["alerts"]]
        after = page["next"]
        if after is None:
            break
    assert seen == [1, 2, 3]
    one = machine.get("/alerts", asset="pump").json()["alerts"][0]
    assert (one["start"], one["priority"], one["top_tags"]) == (
        "2023-11-13T22:13:20Z",
        1,
        [{"tag": "Flow", "share": 0.8}],
    )


def test_one_alert_comes_with_its_past_and_similar_ones(site: Site) -> None:
    machine = Machine(site, "operator")
    assert machine.post("/alerts/1/acknowledge", version=1, comment="seen").status_code == 200
    told = machine.get("/alerts/1").json()
    assert told["alert"]["state"] == "acknowledged" and told["events"][0]["actor"] == "token:operator"
    assert [(s["alert"]["id"], s["likeness"]) for s in told["similar"]] == [(3, 1.0)]
    assert machine.get("/alerts/99").status_code == 404


def test_the_second_of_two_machines_gets_the_alert_as_it_is_now(site: Site) -> None:
    machine = Machine(site, "operator")
    assert machine.post("/alerts/1/start", version=1).json()["alert"]["assignee"] == "token:operator"
    late = machine.post("/alerts/1/acknowledge", version=1)
    assert late.status_code == 409
    assert late.json()["detail"]["current"]["state"] == "in_work" and late.json()["detail"]["current"]["version"] == 2


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/alerts/1/shelve", {"hours": 8}, 400), ("/alerts/1/shelve", {"comment": "x"}, 400),
        ("/alerts/1/shelve", {"comment": "x", "hours": 721}, 422), ("/alerts/1/shelve", {"comment": "x", "hours": 1e-9}, 400),
        ("/alerts/1/verdict", {"verdict": "guilty"}, 422), ("/alerts/1/verdict", {}, 400),
        ("/alerts/1/acknowledge", {"versoin": 1}, 422), ("/alerts/1/acknowledge", {"version": 2**40}, 422),
        ("/alerts/1/note", {"comment": "\x00"}, 400), ("/alerts/1/note", {"comment": "\ud800"}, 422),
        ("/alerts/1/unshelve", {}, 400), ("/alerts/99/acknowledge", {}, 404),
        ("/bulk", {"action": "acknowledge", "alerts": {}}, 422), ("/bulk", {"action": "verdict", "alerts": {"1": 1}}, 422),
    ],
)  # fmt: skip
def test_a_wrong_body_has_a_documented_status_and_changes_nothing(
    site: Site, path: str, body: Any, status: int
) -> None:
    machine = Machine(site, "operator")
    before = site.services.store.dump()["alerts"]
    if body.get("comment") == "\ud800":
        head = machine.head | {"content-type": "application/json"}
        answer = machine.client.post("/api/v1" + path, content=b'{"comment": "\\ud800"}', headers=head)
        assert answer.status_code in (400, 422)
    else:
        answer = machine.post(path, **body)
        assert answer.status_code == status, answer.text
    assert "detail" in answer.json()
    assert site.services.store.dump()["alerts"] == before


def test_many_at_once(site: Site) -> None:
    told = Machine(site, "operator").post(
        "/bulk", action="shelve", hours=2, comment="stop", alerts={"1": 1, "2": None, "3": 1}
    )
    assert [a["id"] for a in told.json()["changed"]] == [1, 2] and told.json()["refused"][0]["id"] == 3
    assert site.services.store.alert(1).shelved_until == site.clock.now + 2 * HOUR


def test_the_schema_names_every_path_and_every_status(site: Site) -> None:
    schema = Machine(site, "viewer").get("/openapi.json").json()
    paths = schema["paths"]
    assert set(paths) >= {"/api/v1/alerts", "/api/v1/alerts/{id}", "/api/v1/bulk", "/api/v1/health", "/api/v1/figures"}
    assert {f"/api/v1/alerts/{{id}}/{name}" for name in ACTIONS} <= set(paths)
    assert all(p.startswith("/api/v1/") for p in paths)
    for path, methods in paths.items():
        for method in methods.values():
            assert set(method["responses"]) >= {"200", "400", "401", "403", "404", "422", "503"}, path
    assert site.client().get("/api/v1/openapi.json").status_code == 401


def test_counts_figures_assets_and_health_agree_with_the_database(site: Site) -> None:
    covered = {"press": (T0 - DAY, T0 + 2 * HOUR)}
    AlertStore(site.database).record_batch(BatchRecord("s", "m1", "demo", "day.csv", 9, {"normal": 9}, covered), [])
    machine = Machine(site, "viewer")
    assert machine.get("/counts").json() == {"acknowledged": 1, "closed": 1, "new": 1}
    assert machine.get("/counts", by="asset").json() == {"press": 2, "pump": 1}
    figures = machine.get("/figures").json()
    assert figures["per_day"] == 3 / 7 and figures["precision"]["counts"]["nuisance"] == 1
    assert figures["bad_actors"][0] == {"asset": "press", "tag": "Flow", "count": 2, "share": 2 / 3}
    assert {a["asset"]: a["open"] for a in machine.get("/assets").json()["assets"]} == {"press": 1, "pump": 1}
    assert machine.get("/health").json()["logs"][0]["file_name"] == "day.csv"


def test_exports_hold_the_filtered_alerts_and_say_when_cut(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    client = site.client("viewer")
    rows = list(csv.DictReader(io.StringIO(client.get("/export/alerts.csv?state=all&asset=press").text)))
    assert [r["id"] for r in rows] == ["1", "3"]
    assert [a["id"] for a in client.get("/export/alerts.json").json()] == [1, 2]
    orders = list(csv.DictReader(io.StringIO(client.get("/export/work-orders.csv").text)))
    assert tuple(orders[0]) == ORDER_COLUMNS
    assert orders[0]["WONUM"] == "PA-1" and orders[0]["ASSETNUM"] == "press" and orders[0]["PRIORITY"] == "2"
    assert orders[0]["DESCRIPTION"] == "anomaly: Flow" and orders[0]["REPORTDATE"] == "2023-11-14T22:13:20Z"
    assert client.get("/export/alerts.exe").status_code == 404
    monkeypatch.setattr("alerts.web.exports.wanted.__defaults__", (2,))
    cut = client.get("/export/alerts.csv?state=all")
    assert cut.headers["x-truncated"] == "true" and len(cut.text.splitlines()) == 3


def test_metrics_are_what_the_tables_hold(site: Site) -> None:
    covered = {"press": (T0 - DAY, T0 + HOUR)}
    AlertStore(site.database).record_batch(BatchRecord("s", "m1", "demo", "f", 9, {"normal": 9}, covered), [])
    flow = site.services.workflow
    flow.acknowledge(1, "ann")
    flow.note(1, "ann", "x")
    import sqlalchemy as sa

    from alerts import tables

    with site.database.writing() as connection:
        row = {"target": "hook", "message": 1, "state": DEAD, "attempts": 9, "next_at": 0, "claim": "", "error": ""}
        connection.execute(sa.insert(tables.deliveries).values(**row))
    lines = site.client("viewer").get("/metrics").text.splitlines()
    for line in ('anomaly_alerts{state="acknowledged",kind="anomaly"} 2', 'anomaly_outbox_messages{state="pending"} 1',
                 'anomaly_outbox_messages{state="dead"} 1', 'anomaly_last_data_age_seconds{asset="press"} 3600'):  # fmt: skip
        assert line in lines, line
    assert sum(line.startswith("anomaly_scorer_age_seconds ") for line in lines) == 1


def test_deep_paging_costs_the_same_and_never_fails(site: Site) -> None:
    machine = Machine(site, "viewer")
    for after in ("0.1", "-1.1", f"{10**18 - 1}.{10**10 - 1}"):
        assert machine.get("/alerts", after=after).status_code == 200
    for after in ("x", "1", "1.1.1", f"{10**19}.1", "1e3.1", "١.١"):
        assert machine.get("/alerts", after=after).status_code == 400, after
    assert machine.get("/alerts", size=501).status_code == 422
    assert alert_row()["state"] == "new"
