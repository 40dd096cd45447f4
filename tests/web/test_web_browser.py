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


def test_a_morning(site: Site, browser: Any, address: str) -> None:
    page, said = opened(browser)
    sign_in(page, address, "operator")
    assert page.locator("tr.row").count() == 2
    page.select_option("select[name=state]", "all")
    wait_for_rows(page, 3)
    page.fill("input[name=text]", "pump")
    page.keyboard.press("Enter")
    wait_for_rows(page, 1)
    assert "text=pump" in page.url
    page.goto(address + "/")
    page.keyboard.press("j")
    page.keyboard.press("x")
    page.click("button[formaction='/bulk/acknowledge']")
    page.wait_for_load_state()
    assert site.services.store.alert(1).state == "acknowledged"
    page.goto(address + "/")
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    page.wait_for_selector("h1:text('Alert 1')")
    page.select_option("select[name=verdict]", "true_fault")
    page.click("button:text('Close with verdict')")
    page.wait_for_selector(".history >> text=verdict → closed: true fault")
    assert site.services.store.alert(1).verdict == "true_fault"
    with page.expect_download() as loading:
        page.goto(address + "/")
        page.click("a:text('CSV')")
    assert loading.value.suggested_filename == "alerts.csv"
    page.click("button:text('Sign out')")
    page.wait_for_selector("h1:text('Sign in')")
    assert said == []


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
    page, said = opened(browser, viewport={"width": 390, "height": 800})
    sign_in(page, address, "operator")
    for path in ("/", "/alerts/1", "/handover", "/figures", "/health"):
        page.goto(address + path)
        assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 1, path
    assert [s for s in said if "404" not in s] == []


def test_nothing_hostile_runs(site: Site, browser: Any, address: str) -> None:
    reasons = [
        json.dumps({"tags": [{"tag": t, "share": 1, "value": 1, "low": 0, "high": 2, "direction": t}]}) for t in HOSTILE
    ]
    site.put(*(
        alert_row(asset=t, cause=t, top_tags=json.dumps([[t, 1.0]]), model_name=t, model=f"h{k}", reasons=reasons[k], assignee=t,
                  start_us=T0 - k)
        for k, t in enumerate(HOSTILE)
    ))  # fmt: skip
    site.clock.now = T0 + DAY
    page, said = opened(browser)
    sign_in(page, address, "operator")
    for path in ("/?state=all", "/handover", "/figures", "/assets", *(f"/alerts/{id}" for id in range(4, 34))):
        page.goto(address + path)
        assert page.locator("script:not([src])").count() == 0
    assert said == []


def test_every_control_has_a_name_and_can_be_reached_by_keys(
    site: Site, browser: Any, address: str, tmp_path: Path
) -> None:
    page, _ = opened(browser)
    sign_in(page, address, "operator")
    for path in ("/", "/alerts/1"):
        page.goto(address + path)
        unnamed = page.evaluate("""[...document.querySelectorAll("input:not([type=hidden]), select, textarea, button, a")]
            .filter((n) => !(n.labels && n.labels.length) && !n.getAttribute("aria-label") && !n.textContent.trim())
            .map((n) => n.outerHTML)""")
        assert unnamed == []
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
