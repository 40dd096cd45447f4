"""Pages of the alert list: every alert once, whatever the filters and the size; each page walks an index."""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from alert_rows import DAY, HOUR, T0, put, row, spaced
from sqlalchemy.dialects import postgresql

from alerts.episodes import Episode
from alerts.findings import Finding, record_findings
from alerts.listing import Cursor, Filters, PageQueries
from alerts.states import KINDS, STATES
from alerts.store import AlertStore, BatchRecord
from anomaly.errors import UsageError

ROWS = 20_000


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> AlertStore:
    """Alerts of 50 assets; several share their start."""
    rng = np.random.default_rng(7)
    store = AlertStore(tmp_path_factory.mktemp("full") / "alerts.db")
    states = rng.choice(list(STATES), ROWS, p=[0.02, 0.02, 0.01, 0.01, 0.04, 0.9])
    put(store.database, [
        row(
            asset=f"asset {k % 50}", start_us=T0 + int(rng.integers(ROWS // 2)) * HOUR, model=f"m{k}", state=str(states[k]),
            priority=int(rng.integers(1, 4)), kind=str(rng.choice(KINDS)),
            top_tags=json.dumps([[f"Tag {k % 97}", 0.5]]), parent_id=1 if k % 10 == 0 else None,
        )
        for k in range(ROWS)
    ])  # fmt: skip
    return store


def walk(store: AlertStore, filters: Filters, size: int) -> list[tuple[int, int]]:
    found, after = [], None
    while True:
        page = store.page(filters, after, size)
        found += [(a.start_us, a.id) for a in page.alerts]
        assert len(page.alerts) <= size
        if page.next is None:
            return found
        assert len(page.alerts) == size
        after = page.next


FILTERS = [
    (Filters(), lambda a: True),
    (Filters(states=("new", "acknowledged")), lambda a: a.state in ("new", "acknowledged")),
    (Filters(asset="asset 7", states=("closed",)), lambda a: a.asset == "asset 7" and a.state == "closed"),
    (Filters(priorities=(1, 2), kinds=("anomaly", "gap")), lambda a: a.priority < 3 and a.kind in ("anomaly", "gap")),
    (Filters(since_us=T0 + DAY, until_us=T0 + 9 * DAY), lambda a: T0 + DAY <= a.start_us < T0 + 9 * DAY),
    (Filters(text="TAG 9", top=True), lambda a: a.top_tags[0][0].startswith("Tag 9") and a.parent_id is None),
    (Filters(parent=1, top=True), lambda a: a.parent_id == 1),
    (Filters(text="no such tag"), lambda a: False),
]


@pytest.mark.parametrize(("filters", "keep"), FILTERS, ids=range(len(FILTERS)))
def test_walking_the_pages_gives_every_alert_once(full: AlertStore, filters: Filters, keep: object) -> None:
    wanted = [(a.start_us, a.id) for a in full.alerts(limit=None) if keep(a)]  # type: ignore[operator]
    assert walk(full, filters, 500) == wanted
    first = full.page(filters, size=7)
    assert [(a.start_us, a.id) for a in first.alerts] == wanted[:7]


@pytest.mark.parametrize(("filters", "keep"), FILTERS, ids=range(len(FILTERS)))
def test_the_one_statement_of_a_page_gives_the_same_pages(full: AlertStore, filters: Filters, keep: object) -> None:
    after: str | None = None
    for _ in range(3):  # the second page and the third are asked for with the statement kept from the one before
        page = full.page(filters, after, 60)
        wanted = PageQueries(filters, 60, Cursor.read(after) if after else None)
        with full.database.reading() as connection:
            assert connection is not None
            rows, following = wanted.read(connection)
        assert ([row.id for row in rows], following) == ([a.id for a in page.alerts], page.next)
        after = following
        if after is None:
            break


def test_a_search_that_rests_carries_on_from_where_it_was(full: AlertStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alerts.listing.MOST_SEARCHED", 6000)
    found: list[int] = []
    after, pages = None, 0
    while pages == 0 or after is not None:
        wanted = PageQueries(Filters(text="tag 96"), 500, Cursor.read(after) if after else None)
        with full.database.reading() as connection:
            assert connection is not None
            rows, after = wanted.read(connection)
        found += [row.id for row in rows]
        pages += 1
    assert pages == 4
    assert found == [a.id for a in full.alerts(limit=None) if a.top_tags[0][0] == "Tag 96"]


def test_alerts_that_come_while_somebody_reads_shift_nothing(tmp_path: Path) -> None:
    store = AlertStore(tmp_path / "a.db")
    put(store.database, spaced(10))
    first = store.page(size=4)
    put(store.database, [row(start_us=T0 + 99 * HOUR)])
    second = store.page(after=first.next, size=4)
    assert [a.id for a in (*first.alerts, *second.alerts)] == [10, 9, 8, 7, 6, 5, 4, 3]
    assert store.page(after=store.page(after=second.next, size=1).next, size=1).next is None


@pytest.mark.parametrize("text", ["%", "_", "\\", "50 %", "'", '"'])
def test_signs_of_a_pattern_are_looked_for_as_they_are(tmp_path: Path, text: str) -> None:
    store = AlertStore(tmp_path / "a.db")
    put(store.database, [row(asset="plain"), row(asset=f"a {text} b", model="m2")])
    assert [a.asset for a in store.page(Filters(text=text)).alerts] == [f"a {text} b"]


@pytest.mark.parametrize("cursor", ["x", "1", "1.2.3", "1.-2", "1' OR 1=1 --.2", "9" * 30 + ".1", "1.2\n", "٣.٤"])
def test_a_bad_cursor_is_refused(full: AlertStore, cursor: str) -> None:
    with pytest.raises(UsageError, match="cursor"):
        full.page(after=cursor)


def test_bad_filters_and_sizes_are_refused(full: AlertStore) -> None:
    for size in (0, -1, 501):
        with pytest.raises(UsageError, match="1 to 500"):
            full.page(size=size)
    for wrong in ({"states": ("gone",)}, {"kinds": ("x",)}, {"priorities": (4,)}, {"text": "x" * 201}):
        with pytest.raises(UsageError, match="E2001"):
            Filters(**wrong)


def test_no_database_gives_an_empty_page_and_no_file(tmp_path: Path) -> None:
    store = AlertStore(tmp_path / "a.db")
    assert (store.page().alerts, store.page().next, store.counts(), store.events(1)) == ((), None, {}, [])
    assert not (tmp_path / "a.db").exists()


def test_counts_are_those_of_the_rows(full: AlertStore) -> None:
    rows = full.alerts(limit=None)
    for by in ("state", "priority", "kind", "asset"):
        values, numbers = np.unique([getattr(a, by) for a in rows], return_counts=True)
        assert full.counts(by) == dict(zip(values.tolist(), numbers.tolist(), strict=True))
    filters = Filters(asset="asset 3", states=("new", "closed"))
    assert full.counts(filters=filters) == {
        s: sum(a.asset == "asset 3" and a.state == s for a in rows) for s in ("closed", "new")
    }


@pytest.mark.parametrize(
    "filters",
    [Filters(), Filters(states=("new", "in_work")), Filters(asset="asset 7"), Filters(priorities=(1,)),
     Filters(asset="asset 7", states=("new",)), Filters(text="Tag 9"), Filters(parent=1)],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("after", [None, Cursor(T0 + 9000 * HOUR, 12_000)], ids=["first", "deep"])
def test_every_page_walks_an_index(full: AlertStore, filters: Filters, after: Cursor | None) -> None:
    for statement in PageQueries(filters, 50, after).statements():
        with full.database.reading() as connection:
            assert connection is not None
            sql = str(statement.compile(connection.engine, compile_kwargs={"literal_binds": True}))
            plan = [r[3] for r in connection.exec_driver_sql("EXPLAIN QUERY PLAN " + sql.replace("%", "%%"))]
        assert any("USING INDEX ix_alerts_" in line or "USING COVERING INDEX" in line for line in plan), plan
        sorts = any("TEMP B-TREE" in line for line in plan)
        assert not sorts or filters.parent is not None, plan


def test_a_deep_page_costs_what_the_first_does(full: AlertStore) -> None:
    def cost(after: str | None) -> float:
        spent = []
        for _ in range(15):
            begun = time.process_time()
            full.page(Filters(), after, 50)
            spent.append(time.process_time() - begun)
        return statistics.median(spent)

    deep = Cursor(T0 + 10 * HOUR, 1).text()
    assert cost(deep) < 5 * cost(None) + 0.01
    assert cost(None) < 0.1


def test_the_query_of_a_page_is_valid_for_postgresql() -> None:
    filters = Filters(("new",), "a", (1,), ("gap",), "ann", 1, 2, "text", None, True)
    (statement,) = PageQueries(filters, 50, Cursor(1, 2)).statements()
    sql = str(statement.compile(dialect=postgresql.dialect()))
    assert "LIKE" in sql
    assert "(alerts.start_us, alerts.id) <" in sql


def test_the_row_comparison_of_the_cursor_is_not_bound_as_text(full: AlertStore) -> None:
    with full.database.reading() as connection:
        assert connection is not None
        (statement,) = PageQueries(Filters(), 5, Cursor(T0 + HOUR, 5)).statements()
        rows = connection.execute(statement).all()
    assert all((r.start_us, r.id) < (T0 + HOUR, 5) for r in rows)
    assert isinstance(sa.tuple_(1, 2), sa.ColumnElement)


def test_a_text_is_found_in_what_the_scorer_wrote_whatever_its_case(tmp_path: Path) -> None:
    store = AlertStore(tmp_path / "a.db")
    episodes = [
        Episode("Straße 3", T0, T0, T0 + 1, 5.0, 3.0, 2, (("Übertemperatur", 1.0),)),
        Episode("B", T0, T0, T0 + 1, 5.0, 3.0, 2),
    ]
    store.record_batch(BatchRecord("a", "m", "demo", "f", 1, {}, {"B": (T0, T0 + DAY)}), episodes)
    record_findings(store.database, [Finding("gap", "C", "Ölstand", T0, T0)])
    for text in ("STRASSE", "straße", "ÜBERTEMP", "übertemp"):
        assert [a.asset for a in store.page(Filters(text=text)).alerts] == ["Straße 3"]
    assert [a.asset for a in store.page(Filters(text="ÖL")).alerts] == ["C"]
    later = Episode("Straße 3", T0, T0, T0 + 9, 9.0, 3.0, 2, (("Druck", 1.0),))
    store.record_batch(BatchRecord("b", "m", "demo", "f", 1, {}, {"B": (T0, T0 + DAY)}), [later])
    assert [a.top_tags for a in store.page(Filters(text="druck")).alerts] == [(("Druck", 1.0),)]
    assert store.page(Filters(text="übertemp")).alerts == (), "the tags of the higher peak are those shown"
