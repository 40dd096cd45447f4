"""Turns of pages, and what the page remembers of counts."""

from __future__ import annotations

import asyncio
import threading

import pytest
import sqlalchemy as sa
from web_site import Site, alert_row

from alerts import tables
from alerts.web.turns import Turns

MINUTE = 60_000_000


def test_they_come_in_order_and_no_more_at_once_than_allowed() -> None:
    order: list[int] = []
    at_once = [0, 0]

    async def one(turns: Turns, number: int) -> None:
        end = await turns.take()
        at_once[0] += 1
        at_once[1] = max(at_once)
        order.append(number)
        await asyncio.sleep(0.001)
        at_once[0] -= 1
        end()
        end()  # a second time gives nobody another turn

    async def all_of_them() -> None:
        turns = Turns(2, 60.0)
        await asyncio.gather(*(one(turns, k) for k in range(20)))

    asyncio.run(all_of_them())
    assert order == list(range(20)) and at_once == [0, 2]


def test_nobody_waits_longer_than_the_patience_for_one_that_hangs() -> None:
    async def both() -> None:
        turns = Turns(1, 0.05)
        end = await turns.take()
        early = await asyncio.wait_for(turns.take(), 10)
        early()
        assert turns._free[asyncio.get_running_loop()].locked(), "the turn of the first is still its own"
        end()
        assert not turns._free[asyncio.get_running_loop()].locked()

    asyncio.run(both())


def test_who_only_looks_does_not_wait_for_a_writer(site: Site) -> None:
    """That somebody was here is noted once a minute; while a scorer writes it is left for the next click."""
    client = site.client("viewer")
    site.clock.now += 2 * MINUTE

    def seen() -> int:
        with site.database.reading() as connection:
            assert connection is not None
            return int(connection.execute(sa.select(tables.sessions.c.seen_at)).scalar_one())

    if site.database.path:  # PostgreSQL writes such a note beside other writers
        before = seen()
        with site.database.writing():
            assert client.get("/").status_code == 200
        assert seen() == before
    assert client.get("/").status_code == 200
    assert seen() == site.clock.now


@pytest.mark.parametrize("fails", [False, True])
def test_a_page_gives_its_turn_back_however_it_ends(site: Site, monkeypatch: pytest.MonkeyPatch, fails: bool) -> None:
    ends: list[int] = []

    async def take(_: Turns) -> object:
        return lambda: ends.append(1)

    monkeypatch.setattr(Turns, "take", take)
    client = site.client("viewer")
    if fails:
        monkeypatch.setattr("alerts.web.queries.lines", lambda *_: 1 / 0)
    assert client.get("/").status_code == (500 if fails else 200)
    assert ends
    ends.clear()
    assert client.get("/healthz").status_code == 200
    assert not ends, "only pages take turns"


def test_counts_from_before_a_change_are_not_remembered_after_it(site: Site) -> None:
    """One person looks while another changes: whoever looks next is shown the change, though the first one's count ends later."""
    own, counting, changed = site.services, threading.Event(), threading.Event()

    def slow() -> int:
        counting.set()
        assert changed.wait(10)
        return 1

    first = threading.Thread(target=lambda: own.remembered("counts", 60.0, slow))
    first.start()
    assert counting.wait(10)
    own.forget()
    changed.set()
    first.join()
    assert own.remembered("counts", 60.0, lambda: 2) == 2
    assert own.remembered("counts", 60.0, lambda: 3) == 2


def test_a_line_shows_what_changed_at_once(site: Site) -> None:
    client = site.client("operator")
    assert 'value="1:1"' in client.get("/").text
    with site.database.writing() as connection:
        connection.exec_driver_sql("UPDATE alerts SET version = 2, assignee = '<b>ann</b>' WHERE id = 1")
    page = client.get("/").text
    assert 'value="1:2"' in page and "&lt;b&gt;ann&lt;/b&gt;" in page and "<b>ann" not in page
    assert 'type="checkbox"' not in site.client("viewer").get("/").text, "the lines of one role are not another's"


def test_lines_with_the_same_values_of_different_alerts_are_their_own(site: Site) -> None:
    one, other = site.put(alert_row(model="m2"), alert_row(model="m3"))[-2:]
    page = site.client("viewer").get("/").text
    assert f'href="/alerts/{one}"' in page and f'href="/alerts/{other}"' in page
