"""The pages: list, one alert, what people do there, the views; each checked against what the database holds."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from starlette.testclient import TestClient
from web_site import DAY, HOUR, T0, Site, alert_row, token_in

from alerts.findings import Finding, record_findings
from alerts.listing import Cursor
from alerts.store import AlertStore, BatchRecord
from alerts.web import messages, rendering
from alerts.web.rendering import environment, static_files


def act(client: TestClient, id: int, action: str, version: int | None = 1, **fields: str) -> Any:
    token = token_in(client.get("/").text)
    form = {"csrf": token} | ({} if version is None else {"version": str(version)}) | fields
    return client.post(f"/alerts/{id}/{action}", data=form)


def listed(page: str) -> list[int]:
    return [int(n) for n in re.findall(r'<a class="open" href="/alerts/(\d+)"', page)]


def test_the_list_shows_what_wants_something_and_filters_change_that(site: Site) -> None:
    client = site.client("operator")
    cases = {"": [1, 2], "state=all": [1, 2, 3], "state=closed": [3], "priority=1": [2], "asset=press&state=all": [1, 3],
             "text=PUM": [2], "text=flow&state=new": [1], "since=2023-11-14T00:00": [1], "until=2023-11-14T00:00": [2],
             "kind=flood": [], "assignee=bob": []}  # fmt: skip
    for query, wanted in cases.items():
        assert listed(client.get("/?" + query).text) == wanted, query
    assert "1</b> acknowledged" in client.get("/").text


@pytest.mark.parametrize(
    "query", ["state=nope", "priority=4", "priority=x", "kind=x", "since=yesterday", "parent=-1", "text=" + "a" * 201,
              "after=1", "after=1.2.3", "after=' or 1=1", "asset=%00", "since=99999-01-01"]
)  # fmt: skip
def test_a_bad_filter_or_cursor_is_refused_with_words(site: Site, query: str) -> None:
    answer = site.client("viewer").get("/?" + query)
    assert answer.status_code == 400 and "Expected:" in answer.text


def test_paging_gives_every_alert_once_and_parts_for_the_script(site: Site) -> None:
    site.put(*(alert_row(start_us=T0 + k * HOUR, end_us=T0 + k * HOUR + 1) for k in range(1, 121)))
    client, seen, address = site.client("operator"), list[int](), "/?state=all"
    while address:
        page = client.get(address).text
        seen += listed(page)
        more = re.search(r'class="more"><td[^>]*><a href="([^"]+)"', page)
        address = more[1].replace("&amp;", "&") if more else ""
    assert len(seen) == len(set(seen)) == 123
    part = client.get("/?state=all", headers={"hx-request": "true"}).text
    assert "<html" not in part and listed(part) == seen[:50]
    far = Cursor(T0 - 100 * DAY, 1).text()
    assert "No alert fits" in client.get("/", params={"after": far}).text


def test_empty_pages_say_what_to_do(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.add_users()
    client = site.client("viewer")
    assert "anomaly score LOG" in client.get("/").text
    for path in ("/handover", "/figures", "/assets", "/health"):
        assert client.get(path).status_code == 200 and 'class="empty' in client.get(path).text


def test_one_alert_says_why_what_was_similar_and_what_was_done(site: Site) -> None:
    tags = [{"tag": "Flow", "share": 0.8, "value": 9.5, "low": 1.0, "high": 6.25, "direction": "high"}]
    reasons = json.dumps({"tags": tags, "alike": [{"asset": "press", "time_us": T0, "event": True, "distance": 1.5}]})
    (*_, id) = site.put(alert_row(start_us=T0 + HOUR, end_us=T0 + 2 * HOUR, reasons=reasons))
    client = site.client("reviewer")
    assert act(client, id, "note", comment="felt looks worn").status_code == 303
    page = client.get(f"/alerts/{id}").text
    for told in ("80 %", "9.5", "1 to 6.25", "above its normal range", "past event of 2023-11-14 22:13", "demo",
                 "felt looks worn", "3 h of 4 h left", "nuisance"):  # fmt: skip
        assert told in page, told
    assert "Acknowledge</button>" not in page and "Close with verdict" in page
    assert "Your role may look" in site.client("viewer").get(f"/alerts/{id}").text


def test_every_action_from_the_page(site: Site) -> None:
    client = site.client("operator")
    steps = [("acknowledge", {}, "acknowledged"), ("start", {}, "in_work"), ("assign", {"assignee": "ann"}, "in_work"),
             ("note", {"comment": "x"}, "in_work"), ("shelve", {"hours": "8", "comment": "parts"}, "shelved"),
             ("unshelve", {}, "acknowledged"), ("return", {}, "returned"), ("reopen", {}, "new"),
             ("verdict", {"verdict": "true_fault", "comment": "felt"}, "closed"), ("reopen", {}, "new")]  # fmt: skip
    for version, (action, fields, state) in enumerate(steps, 1):
        assert act(client, 1, action, version, **fields).status_code == 303, action
        assert site.services.store.alert(1).state == state
    assert [e.actor for e in site.services.store.events(1)] == ["operator"] * len(steps)
    assert site.services.store.alert(1).reopened == 2


@pytest.mark.parametrize(
    ("action", "fields"),
    [("shelve", {"hours": "8"}), ("shelve", {"hours": "721", "comment": "x"}), ("shelve", {"hours": "nan", "comment": "x"}),
     ("shelve", {"hours": "0", "comment": "x"}), ("verdict", {"verdict": "guilty"}), ("note", {"comment": " "}),
     ("note", {"comment": "x" * 4001}), ("unshelve", {}), ("acknowledge", {"version": "x"})],
)  # fmt: skip
def test_a_wrong_form_changes_nothing_and_says_why(site: Site, action: str, fields: dict[str, str]) -> None:
    before = site.services.store.dump()["alerts"]
    client = site.client("operator")
    form = {"csrf": token_in(client.get("/").text), "version": "1"} | fields
    answer = client.post(f"/alerts/1/{action}", data=form)
    assert answer.status_code == 400 and "Expected:" in answer.text
    assert site.services.store.dump()["alerts"] == before


def test_two_people_on_one_alert_the_second_sees_who_changed_what(site: Site) -> None:
    first, second = site.client("operator"), site.client("admin")
    assert act(first, 1, "acknowledge", comment="mine").status_code == 303
    late = act(second, 1, "verdict", 1, verdict="nuisance", comment="I think it is nothing")
    assert late.status_code == 409
    banner = re.search(r'<div class="warning".*?</div>', late.text, re.S)
    assert banner and all(x in banner[0] for x in ("operator", "acknowledge", "mine", "I think it is nothing"))
    assert site.services.store.alert(1).state == "acknowledged"
    assert 'name="version" value="2"' in late.text


def test_many_at_once_and_those_that_cannot_be_changed_say_why(site: Site) -> None:
    client = site.client("operator")
    form = {"csrf": token_in(client.get("/").text), "comment": "", "hours": "8"}
    assert client.post("/bulk/acknowledge", data=form).status_code == 400
    mixed = client.post("/bulk/acknowledge", data=form | {"alert": ["1:1", "2:1", "3:7", "99:1"]})
    assert mixed.status_code == 409 and "1 changed." in mixed.text and "3 not changed" in mixed.text
    assert site.services.store.alert(1).state == "acknowledged"
    shelf = client.post("/bulk/shelve", data=form | {"alert": ["1:2", "2:1"], "comment": "stop", "back_asset": "press"})
    assert shelf.status_code == 303 and shelf.headers["location"] == "/?asset=press"
    assert site.services.store.counts()["shelved"] == 2
    assert client.post("/bulk/shelve", data=form | {"alert": "1:x"}).status_code == 400


def test_views_show_the_shift_the_figures_the_assets_and_health(site: Site) -> None:
    batch = BatchRecord("s", "m1", "demo", "day.csv", 100, {"normal": 90, "anomalous": 8, "unscorable": 2},
                        {"press": (T0 - DAY, T0 + 2 * HOUR), "pump": (T0 - DAY, T0 - HOUR)})  # fmt: skip
    AlertStore(site.database).record_batch(batch, [])
    record_findings(site.database, [Finding("flat_line", "pump", "Level", T0, T0 + HOUR)], site.clock)
    client = site.client("operator")
    act(client, 1, "acknowledge", comment="seen at six")
    shift = client.get("/handover?hours=8").text
    assert "seen at six" in shift and "Level" in shift
    figures = client.get("/figures").text
    assert "0 % of 1 judged" in figures and "Half within 2 h" in figures
    assert client.get("/handover?hours=9").status_code == 400
    assets = client.get("/assets").text
    assert "press" in assets and "pump" in assets
    asset = client.get("/asset?name=pump").text
    assert "flat line" in asset and client.get("/asset?name=nope").status_code == 404
    health = client.get("/health").text
    assert (
        "silent" in health and "as expected" in health and "day.csv" in health and "not taken by any sender" in health
    )


def test_a_flood_shows_its_members_and_they_stay_out_of_the_list(site: Site) -> None:
    (*_, flood) = site.put(alert_row(kind="flood", model="f", start_us=T0 + HOUR, rows=2))
    site.put(
        alert_row(parent_id=flood, model="f2", asset="member-a"),
        alert_row(parent_id=flood, model="f3", asset="member-b"),
    )
    client = site.client("viewer")
    page = client.get("/").text
    assert listed(page) == [flood, 1, 2] and "2</b> new" in page
    page = client.get(f"/alerts/{flood}").text
    assert "member-a" in page and "member-b" in page


def _scores(path: Path, n: int = 200) -> None:
    times = [T0 - HOUR + k * 60_000_000 for k in range(n)]
    table = pa.table({"time": pa.array(times * 2, pa.timestamp("us", tz="UTC")), "asset": ["press"] * n + ["pump"] * n,
                      "anomaly_score": pa.array([float(k) for k in range(n)] + [-1.0] * n, pa.float32())})  # fmt: skip
    pq.write_table(table, path)


def test_the_curve_comes_from_the_recorded_score_file_alone(site: Site, tmp_path: Path) -> None:
    path = tmp_path / "scores.parquet"
    _scores(path)
    batch = BatchRecord("s", "m1", "demo", "day.csv", 100, {}, {"press": (T0 - DAY, T0 + DAY)}, str(path))
    AlertStore(site.database).record_batch(batch, [])
    client = site.client("viewer")
    told = client.get("/alerts/1/trend.json").json()
    assert told["score"] == [float(k) for k in range(181)] and told["threshold"] == 3.0
    assert (told["time"][0], told["time"][-1]) == (T0 / 1e6 - 3600, T0 / 1e6 + 2 * 3600)
    path.write_bytes(b"not a score file")
    assert client.get("/alerts/1/trend.json").json()["time"] == []
    path.unlink()
    assert client.get("/alerts/1/trend.json").json()["time"] == []
    assert client.get("/alerts/99/trend.json").status_code == 404


@pytest.mark.parametrize(
    "name", ["..%2f..%2fapp.py", "../app.py", "%2e%2e/app.py", "/etc/passwd", "page.css%00", "VENDORED.md", ""]
)
def test_static_addresses_lead_to_static_files_alone(site: Site, name: str) -> None:
    assert site.client().get("/static/" + name).status_code == 404


def test_a_page_weighs_less_than_a_quarter_of_a_megabyte(site: Site) -> None:
    site.put(*(alert_row(start_us=T0 + k * HOUR, end_us=T0 + k * HOUR + 1) for k in range(1, 121)))
    client = site.client("operator")
    for path in ("/", "/alerts/1", "/handover"):
        page = client.get(path)
        parts = {
            p.partition("?")[0].rpartition("/")[2] for p in re.findall(r'(?:src|href)="(/static/[^"]+)"', page.text)
        }
        assert len(parts) >= 2
        assert len(page.content) + sum(len(static_files()[p][0]) for p in parts) < 250_000, path


def test_every_text_of_the_templates_is_in_the_catalogue_and_used() -> None:
    folder = rendering.FOLDER
    source = "\n".join(p.read_text("utf-8") for p in [*(folder / "templates").rglob("*.html"), *folder.glob("*.py")]
                       if p.name != "messages.py")  # fmt: skip
    used = set(re.findall(r'\b(?:t|text)\(["\'](\w+)["\']\s*[,)]', source)) | set(
        re.findall(r'"(menu_\w+|export_\w+)"', source)
    )
    built = ("priority_", "hours_", "action_", "direction_", "error_", "export_")
    assert used <= set(messages.ENGLISH), used - set(messages.ENGLISH)
    assert {k for k in messages.ENGLISH if not k.startswith(built)} - used == set()


def test_every_template_compiles() -> None:
    names = environment().list_templates()
    assert len(names) >= 12
    for name in names:
        environment().get_template(name)


def test_every_pair_of_colours_for_text_has_enough_contrast() -> None:
    css = (rendering.FOLDER / "static" / "page.css").read_text("utf-8")
    pairs = [("text", "back"), ("text", "card"), ("dim", "back"), ("dim", "card"), ("link", "card"), ("link", "back"),
             ("bad", "bad-back"), ("warn", "warn-back"), ("calm", "calm-back"), ("text", "grey-back"), ("dim", "grey-back"),
             ("link", "grey-back"), ("on-accent", "accent"), ("bad", "card")]  # fmt: skip
    for block in re.findall(r":root \{(.*?)\}", css, re.S):
        colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{3,6});", block))
        for front, back in pairs:
            assert contrast(colours[front], colours[back]) >= 4.5, (front, back)
        lines = (
            ("accent", "card"),
            ("bad", "card"),
            ("warn", "card"),
            ("accent", "bad-back"),
            ("accent", "calm-back"),
            ("warn", "calm-back"),
        )
        for front, back in lines:  # of curves: no text, 3 is enough
            assert contrast(colours[front], colours[back]) >= 3, (front, back)


def contrast(one: str, other: str) -> float:
    """WCAG 2.2: the ratio of two relative luminances."""
    high, low = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def _luminance(colour: str) -> float:
    digits = colour[1:] if len(colour) == 7 else "".join(2 * c for c in colour[1:])
    parts = [int(digits[k : k + 2], 16) / 255 for k in (0, 2, 4)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_contrast_is_the_known_ratio() -> None:
    assert contrast("#000", "#fff") == pytest.approx(21.0)
    assert contrast("#767676", "#ffffff") == pytest.approx(4.54, abs=0.01)
