"""Nothing meant well: strings in every field, bodies, paths, a database that is gone or locked (RELIABILITY I1, I7 to I11)."""

from __future__ import annotations

import asyncio
import csv
import html
import io
import json
import sqlite3
from typing import Any
from urllib.parse import quote

import pytest
from starlette.testclient import TestClient
from web_site import DAY, T0, Site, alert_row, token_in

from alerts.web import pages, queries

HOSTILE = [
    "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "\"><svg onload=alert(1)>", "'><b>x</b>", "</title><script>",
    "<!--", "-->", "]]>", "{{ 7*7 }}", "{% raw %}", "${7*7}", "#{7*7}", "<%= 7*7 %>", "javascript:alert(1)",
    "data:text/html,<script>alert(1)</script>", "\" onmouseover=\"alert(1)", "' autofocus onfocus='alert(1)", "`${alert(1)}`",
    "=1+1", "+1+1", "-1+1", "@SUM(A1)", "\t=1+1", "\r=1+1", "=HYPERLINK(\"http://x\",\"y\")", "=cmd|' /C calc'!A0", " =1+1",
    "'; DROP TABLE alerts; --", "' OR '1'='1", "1; SELECT 1", "%", "_", "\\", "%00", "%0d%0aSet-Cookie: a=b", "a\r\nb", "a\nb",
    "../../etc/passwd", "..\\..\\x", "/etc/passwd", "C:\\x", "\u202egnp.exe", "\u200b", "\u2028", "\ufeff", "é", "e\u0301",
    "漢字", "🙂", "\U0001f468\u200d\U0001f469", "İ", "ß", "a" * 190, "&lt;b&gt;", "&amp;", "&#60;", "<a href='//x'>x</a>",
    "<style>*{}</style>", "<iframe src=//x>", "<base href=//x>", "<meta http-equiv=refresh content=0>",
]  # fmt: skip


@pytest.fixture
def full(site: Site) -> Site:
    """An alert with each string as asset, tag and cause."""

    def reasons(text: str) -> str:
        tag = {"tag": text, "share": 1.0, "value": 1.0, "low": 0.0, "high": 2.0, "direction": "high"}
        return json.dumps({"tags": [tag], "alike": [{"asset": text, "time_us": T0, "event": False, "distance": 1.0}]})

    site.put(*(
        alert_row(asset=text, top_tags=json.dumps([[text, 0.9]]), model=f"h{k}", model_name=text, reasons=reasons(text),
                  start_us=T0 + k, kind="anomaly" if k % 2 else "flat_line", cause="" if k % 2 else text)
        for k, text in enumerate(HOSTILE)
    ))  # fmt: skip
    return site


def literal(text: str) -> str:
    """How a page must write it; the client's parser reads a lone CR as it is."""
    return str(html.escape(text, quote=True)).replace("&#x27;", "&#39;").replace("&quot;", "&#34;")


def unsafe(page: str) -> list[str]:
    """Strings that stand in a page as markup."""
    return [t for t in HOSTILE if any(c in t for c in "<>\"'") and len(t) > 4 and t in page]


def test_there_are_sixty_of_them() -> None:
    assert len(set(HOSTILE)) >= 60


def test_hostile_strings_are_shown_literally_on_every_page(full: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "PAGE", 200)
    full.clock.now = T0 + DAY
    client = full.client("operator")
    page = client.get("/?state=all").text
    for text in HOSTILE:
        assert literal(text) in page, repr(text)
    for path in ("/?state=all", "/handover", "/figures", "/assets", "/health"):
        assert unsafe(client.get(path).text) == [], path
    for id, text in enumerate(HOSTILE, 4):
        one = client.get(f"/alerts/{id}").text
        assert literal(text) in one and unsafe(one) == [], repr(text)
        asset = client.get("/asset", params={"name": text})
        assert asset.status_code == 200 and literal(text) in asset.text and unsafe(asset.text) == []


def test_hostile_strings_as_notes_filters_names_and_addresses(full: Site) -> None:
    client = full.client("operator")
    token = token_in(client.get("/").text)
    for text in HOSTILE:
        if text.strip():
            answer = client.post("/alerts/1/note", data={"csrf": token, "comment": text})
            assert answer.status_code == 303, repr(text)
        found = client.get("/", params={"text": text, "asset": text, "state": "all"})
        assert found.status_code in (200, 400) and unsafe(found.text) == []
        assert client.get("/", params={"state": text}).status_code == (400 if text.strip() else 200)
        assert client.get("/x" + quote(text, safe="/.\\")).status_code == 404
        visitor = full.client()
        form = {"csrf": token_in(visitor.get("/sign-in").text), "name": text[:64], "password": text, "next": text}
        refused = visitor.post("/sign-in", data=form)
        assert refused.status_code in (401, 429) and unsafe(refused.text) == []
    page = client.get("/alerts/1").text
    assert unsafe(page) == [] and literal(HOSTILE[0]) in page
    # a form's line ends are CR LF; everything else is kept as it was typed
    kept = [e.comment for e in full.services.store.events(1)]
    assert [k.replace("\r\n", "\n") for k in kept] == [t.replace("\r\n", "\n") for t in HOSTILE if t.strip()]


@pytest.mark.parametrize("path", ["/export/alerts.csv", "/export/work-orders.csv", "/api/v1/work-orders.csv"])
def test_no_cell_of_an_export_can_run(full: Site, path: str) -> None:
    answer = full.client("viewer").get(path, params={"state": "all"})
    assert (
        answer.headers["content-type"].startswith("text/csv") and "attachment" in answer.headers["content-disposition"]
    )
    rows = list(csv.reader(io.StringIO(answer.text, newline="")))
    assert len(rows) == len(HOSTILE) + 4 and {len(r) for r in rows} == {len(rows[0])}
    for cell in (c for r in rows[1:] for c in r):
        assert not cell.lstrip(" ").startswith(("=", "+", "@", "\t", "\r")), cell
        assert not cell.startswith("-") or cell.lstrip("-").replace(".", "").isdigit()


def test_the_excel_file_holds_text_and_no_formula(full: Site) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    answer = full.client("viewer").get("/export/alerts.xlsx", params={"state": "all"})
    sheet = openpyxl.load_workbook(io.BytesIO(answer.content)).active
    cells = [cell for row in sheet.iter_rows() for cell in row]
    assert sheet.max_row == len(HOSTILE) + 4
    assert {c.data_type for c in cells} <= {"s", "n", "inlineStr"} and any(c.value == "'=1+1" for c in cells)


def test_metrics_keep_their_lines_whatever_an_asset_is_called(full: Site) -> None:
    from alerts.store import AlertStore, BatchRecord

    covered = dict.fromkeys(HOSTILE, (T0, T0 + 1))
    AlertStore(full.database).record_batch(BatchRecord("s", "m", "m", "f", 1, {}, covered), [])
    text = full.client("viewer").get("/metrics").text
    for line in text.split("\n")[:-1]:
        assert line.startswith(("#", "anomaly_")), line
    assert text.count("anomaly_last_data_age_seconds{") == len(set(HOSTILE))


def test_a_huge_body_is_refused_told_or_not(site: Site) -> None:
    client = site.client("operator")
    token = token_in(client.get("/").text)
    body = f"csrf={token}&comment=" + "a" * (1 << 20)
    kind = {"content-type": "application/x-www-form-urlencoded"}
    assert client.post("/alerts/1/note", content=body, headers=kind).status_code == 413

    def pieces() -> Any:
        for k in range(0, len(body), 1 << 16):
            yield body[k : k + (1 << 16)].encode()

    assert client.post("/alerts/1/note", content=pieces(), headers=kind).status_code == 413
    machine = {"content-type": "application/json", "x-csrf-token": token}
    assert client.post("/api/v1/alerts/1/note", content=pieces(), headers=machine).status_code == 413
    assert client.post("/alerts/1/note", content=b"x", headers=kind | {"content-length": "9" * 30}).status_code == 413
    assert site.services.store.alert(1).version == 1


def test_a_body_that_never_ends_is_given_up(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alerts.web.shell.SLOWEST_S", 0.05)
    sent: list[Any] = []

    async def receive() -> Any:
        if not asked_once:
            asked_once.append(True)
            return {"type": "http.request", "body": b"name=a", "more_body": True}
        await asyncio.sleep(30)
        return None

    async def send(message: Any) -> None:
        sent.append(message)

    asked_once: list[bool] = []
    headers = [(b"host", b"plant:8000"), (b"content-type", b"application/x-www-form-urlencoded")]
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/sign-in",
        "raw_path": b"/sign-in",
        "query_string": b"",
        "headers": headers,
        "scheme": "http",
        "server": ("plant", 8000),
        "client": ("10.0.0.9", 1),
        "http_version": "1.1",
        "root_path": "",
    }
    asyncio.run(asyncio.wait_for(site.app(scope, receive, send), 10))
    assert sent[0]["status"] == 408


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("multipart/form-data", b"no boundary"), ("multipart/form-data; boundary=x", b"--x\r\nbroken"),
        ("multipart/form-data; boundary=x",
         b'--x\r\nContent-Disposition: form-data; name="f"; filename="a"\r\n\r\nx\r\n--x--\r\n'),
        ("application/x-www-form-urlencoded", b"&".join(b"a%d=1" % k for k in range(5000))),
        ("application/x-www-form-urlencoded", b"\xff\xfe=\x80"), ("application/json", b"{"), ("text/plain", b"csrf=1"),
    ],
)  # fmt: skip
def test_a_broken_form_is_refused_without_an_error_of_ours(site: Site, kind: str, body: bytes) -> None:
    answer = site.client("operator").post("/alerts/1/note", content=body, headers={"content-type": kind})
    assert answer.status_code in (400, 403)
    assert site.services.store.alert(1).version == 1


@pytest.mark.parametrize("id", ["0", "-1", "99", "2147483648", "9" * 40, "1e3", "1%00", "abc", "%2e%2e"])
def test_numbers_that_no_alert_has(site: Site, id: str) -> None:
    client = site.client("viewer")
    assert client.get(f"/alerts/{id}").status_code == 404
    assert client.get(f"/api/v1/alerts/{id}").status_code in (404, 422)


def test_a_locked_database_is_told_as_busy_and_nothing_else(site: Site) -> None:
    client = site.client("operator")
    token = token_in(client.get("/").text)
    with sqlite3.connect(str(site.database.path), isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        answer = client.post("/alerts/1/acknowledge", data={"csrf": token, "version": "1"})
        other.execute("ROLLBACK")
    assert answer.status_code == 503 and "alerts.db" not in answer.text and answer.headers["retry-after"]


def test_a_damaged_database_is_told_and_the_process_still_answers(site: Site) -> None:
    client = site.client("viewer")
    assert site.database.path is not None
    for held in site.database.path.parent.glob("alerts.db*"):
        held.write_bytes(b"this is no database" * 1000)
    site.services.forget()
    for path in ("/", "/alerts/1", "/health", "/api/v1/alerts", "/readyz", "/metrics"):
        answer = client.get(path)
        assert answer.status_code == 503 and "alerts.db" not in answer.text, path
    assert client.get("/healthz").text == "ok\n"


def test_a_mistake_of_ours_shows_a_number_and_no_detail(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    client: TestClient = site.client("viewer")

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(site.services.store, "page", broken)
    monkeypatch.setattr(queries, "lines", broken)
    for path in ("/", "/api/v1/alerts"):
        answer = client.get(path)
        assert answer.status_code == 500 and "secret" not in answer.text and "default-src" in str(answer.headers)
        number = answer.text.rpartition("id ")[2][:8]
        assert number in caplog.text and "secret detail" in caplog.text
