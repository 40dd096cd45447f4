"""An engineer's morning in a real browser: filters, keys, bulk, verdict, phone width, no script, hostile strings.

Needs Playwright and a Chromium on the path; left out where they are not, required where CI is set.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from test_web_hostile import HOSTILE
from web_site import DAY, HOUR, PASSWORD, T0, Site, alert_row

pytestmark = pytest.mark.slow
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture
def browser() -> Iterator[Any]:
    """A headless Chromium."""
    if not os.environ.get("CI") and CHROMIUM is None:
        pytest.skip("no Chromium here: the tests in a browser are left out")
    api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: tests in a browser left out")
    with api.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def address(site: Site) -> Iterator[str]:
    """The site, served on this machine."""
    server = uvicorn.Server(uvicorn.Config(site.app, port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(10)


def opened(browser: Any, **settings: Any) -> tuple[Any, list[str]]:
    """A page, and what its console and its requests complain of."""
    page, said = browser.new_context(**settings).new_page(), list[str]()
    page.on("console", lambda m: said.append(m.text))
    page.on("pageerror", lambda e: said.append(str(e)))
    page.on("dialog", lambda d: said.append(f"dialog {d.message}"))
    return page, said


def sign_in(page: Any, address: str, role: str) -> None:
    page.goto(address + "/")
    page.fill("input[name=name]", role)
    page.fill("input[name=password]", PASSWORD)
    page.keyboard.press("Enter")
    page.wait_for_selector("h1:text('Alerts')")


def wait_for_rows(page: Any, count: int) -> None:
    """Until the list has ``count`` rows; the page's policy lets no condition be evaluated in it."""
    until = time.monotonic() + 10
    while page.locator("tr.row").count() != count:
        assert time.monotonic() < until, page.locator("tr.row").count()
        page.wait_for_timeout(30)


EXCERPT = {"before": [60.0 * k for k in range(30, -1, -1)], "tags": [
    {"tag": "Flow", "actual": [float(k) for k in range(31)], "expected": [15.0] * 31, "low": 5.0, "high": 20.0},
    {"tag": "Level", "actual": [1.0] * 31, "expected": None, "low": None, "high": None}]}  # fmt: skip


def explained(**changes: Any) -> dict[str, Any]:
    """An alert with reasons and the window behind its peak."""
    tags = [{"tag": "Flow", "share": 0.8, "value": 30.0, "low": 5.0, "high": 20.0, "direction": "high"}]
    reasons = json.dumps({"tags": tags, "alike": []})
    return alert_row(reasons=reasons, excerpt=json.dumps(EXCERPT), asset="mill", start_us=T0 + HOUR // 2, **changes)


def saved(page: Any, link: str) -> str:
    """The name of the file behind an export link, which must hold something."""
    with page.expect_download() as loading:
        page.click(f".exports a:text-is('{link}')")
    assert Path(loading.value.path()).stat().st_size > 100
    return str(loading.value.suggested_filename)


def test_a_morning(site: Site, browser: Any, address: str) -> None:
    """Sign in, filter, open, read why, acknowledge, shelve, give a verdict, export, see it in the audit."""
    (*_, id) = site.put(explained())
    page, said = opened(browser, viewport={"width": 1280, "height": 900})
    sign_in(page, address, "operator")
    assert page.locator("tr.row").count() == 3
    page.select_option("select[name=state]", "all")
    wait_for_rows(page, 4)
    page.fill("input[name=text]", "mill")
    page.keyboard.press("Enter")
    wait_for_rows(page, 1)
    assert "text=mill" in page.url
    page.click("a.open")
    page.wait_for_selector(f"h1:text('Alert {id}')")
    assert page.locator(".reasons >> text=above its normal range").count() == 1
    page.wait_for_selector(".curve canvas")
    assert page.locator(".curve canvas").count() == 2, "a curve of each tag"
    page.click("details:has(table) summary")
    assert page.locator("details table tbody tr").count() == 16 and page.locator("details >> text=(15)").count() == 16
    page.click("button:text-is('Acknowledge')")
    page.wait_for_selector(".history >> text=acknowledge → acknowledged")
    page.fill("form[action$='/shelve'] input[name=comment]", "waiting for parts")
    page.click("button:text-is('Shelve')")
    page.wait_for_selector(".history >> text=waiting for parts")
    assert site.services.store.alert(id).state == "shelved"
    page.select_option("select[name=verdict]", "true_fault")
    page.click("button:text('Close with verdict')")
    page.wait_for_selector(".history >> text=verdict → closed: true fault")
    assert site.services.store.alert(id).verdict == "true_fault"
    page.goto(address + "/?state=all")
    assert saved(page, "CSV") == "alerts.csv" and saved(page, "Excel") == "alerts.xlsx"
    page.click("nav a:text-is('Audit')")
    for told in ("acknowledge → acknowledged", "waiting for parts", "verdict → closed: true fault"):
        assert page.locator(f".history li:has-text('{told}'):has-text('operator')").count() == 1, told
    page.click("button:text('Sign out')")
    page.wait_for_selector("h1:text('Sign in')")
    assert said == []


def test_the_morning_by_keys_alone(site: Site, browser: Any, address: str) -> None:
    page, said = opened(browser)
    page.goto(address + "/")
    page.wait_for_selector("input[name=name]:focus")  # given by the page itself, at its first drawing
    page.keyboard.type("operator")
    page.keyboard.press("Tab")
    page.keyboard.type(PASSWORD)
    page.keyboard.press("Enter")
    page.wait_for_selector("h1:text('Alerts')")
    page.wait_for_load_state()  # a key pressed before the script is there is lost
    page.keyboard.press("j")
    page.keyboard.press("j")
    page.keyboard.press("k")
    page.keyboard.press("x")
    tab_to(page, "Acknowledge")
    with page.expect_navigation():
        page.keyboard.press("Enter")
    assert site.services.store.alert(1).state == "acknowledged"
    page.goto(address + "/")
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    page.wait_for_selector("h1:text('Alert 1')")
    page.wait_for_load_state()
    tab_to(page, "Close with verdict")
    page.keyboard.press("Enter")
    page.wait_for_selector(".history >> text=verdict → closed")
    assert site.services.store.alert(1).verdict == "true_fault" and said == []


def tab_to(page: Any, words: str) -> None:
    """Go on with the Tab key until the button with these words has the focus, which can be seen."""
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.textContent.trim()") == words:
            assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
            return
    raise AssertionError(f"{words}: not reached in 60 steps")


def test_the_first_view_needs_no_script_and_a_phone_need_not_scroll_sideways(
    site: Site, browser: Any, address: str
) -> None:
    site.put(alert_row(asset="a-very-long-name-of-an-asset-" * 4, start_us=T0 + HOUR))
    page, said = opened(browser, java_script_enabled=False)
    sign_in(page, address, "operator")
    assert page.locator("tr.row").count() == 3
    page.select_option("select[name=state]", "closed")
    page.click("button:text('Show')")
    assert page.locator("tr.row").count() == 1
    site.services.planning.plan("a-very-long-name-of-an-asset-" * 4, T0, T0 + DAY, "a long reason " * 20, "ann")
    (*_, id) = site.put(explained())
    page, said = opened(browser, viewport={"width": 360, "height": 740})
    sign_in(page, address, "admin")
    paths = ("/", f"/alerts/{id}", "/handover", "/figures", "/health", "/assets", "/planning", "/audit", "/users")
    for path in paths:
        page.goto(address + path)
        assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 1, path
    assert [s for s in said if "404" not in s] == []


def test_nothing_hostile_runs(site: Site, browser: Any, address: str) -> None:
    reasons = [
        json.dumps({"tags": [{"tag": t, "share": 1, "value": 1, "low": 0, "high": 2, "direction": t}]}) for t in HOSTILE
    ]
    curve = {"actual": [1.0, 2.0], "expected": [1.0, 1.0], "low": 0.0, "high": 3.0}
    site.put(*(
        alert_row(asset=t, cause=t, excerpt=json.dumps({"before": [1.0, 0.0], "tags": [curve | {"tag": t}]}),
                  top_tags=json.dumps([[t, 1.0]]), model_name=t, model=f"h{k}", reasons=reasons[k], assignee=t,
                  start_us=T0 - k)
        for k, t in enumerate(HOSTILE)
    ))  # fmt: skip
    site.clock.now = T0 + DAY
    for text in HOSTILE:
        if text.strip():
            site.services.planning.plan(text, T0, T0 + 2 * DAY, text, "ann")
    page, said = opened(browser)
    sign_in(page, address, "operator")
    for path in (
        "/?state=all",
        "/handover",
        "/figures",
        "/assets",
        "/audit",
        "/planning",
        *(f"/alerts/{id}" for id in range(4, 4 + len(HOSTILE))),
    ):
        page.goto(address + path)
        assert page.locator("script:not([src])").count() == 0
    assert said == []


def test_every_control_has_a_name_and_can_be_reached_by_keys(
    site: Site, browser: Any, address: str, tmp_path: Path
) -> None:
    page, _ = opened(browser)
    sign_in(page, address, "admin")
    for path in ("/", "/alerts/1", "/planning", "/users"):
        page.goto(address + path)
        unnamed = page.evaluate("""[...document.querySelectorAll("input, select, textarea, button, a")]
            .filter((n) => n.type !== "hidden" && !n.hidden)
            .filter((n) => !(n.labels && n.labels.length) && !n.getAttribute("aria-label") && !n.textContent.trim())
            .map((n) => n.outerHTML)""")
        assert unnamed == []
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
