"""What only PostgreSQL can show: processes that compete, connections that are cut, servers that refuse, plans of its queries.

The rest of this folder runs on both kinds of database already (see ``conftest.py``).
"""

from __future__ import annotations

import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alert_rows import HOUR, T0, put, row, spaced
from postgres import Server
from test_alert_database import COUNT, CREATE, RECORD, finished, run_python
from test_alert_schema import MIGRATIONS
from test_alert_store import answer

from alerts import tables
from alerts.database import Database
from alerts.episodes import Episode
from alerts.listing import Cursor, Filters, PageQueries
from alerts.outbox import enqueue
from alerts.store import AlertStore, BatchRecord
from alerts.tables import SCHEMA_VERSION, metadata
from alerts.workflow import Conflict, Workflow
from anomaly.errors import Unavailable, UsageError

pytestmark = pytest.mark.postgres

HOSTILE = (
    "'; DROP TABLE alerts; --", "% _ \\ %s :x ?", "\u202egnp.exe", "é", "e\u0301", "漢字", "🙂", "İß", "a\r\nb\t", "$$", "",
    "\U0010ffff\ufffe", "x" * 1000,
)  # fmt: skip


def batch(sha: str = "a", rows: int = 100) -> BatchRecord:
    return BatchRecord(sha, "m1", "demo", "log.csv", rows, {"normal": rows}, {"A": (0, 1000)}, merge_gap_us=30)


def episode(start: int, end: int, asset: str = "A", tag: str = "P") -> Episode:
    return Episode(asset, start, start, end, 5.0, 3.0, 2, ((tag, 0.75),))


def dump(where: str | Path) -> dict[str, list[dict[str, Any]]]:
    """All rows, without what the clock decides."""
    clock = ("created_at", "recorded_at", "payload", "at")
    return {
        table: [{k: v for k, v in held.items() if k not in clock} for held in rows]
        for table, rows in AlertStore(where).dump().items()
    }


# -- processes


@pytest.mark.parametrize(("point", "kept"), [("alerts.before_commit:2", 1), ("alerts.after_commit", 1)])
def test_a_kill_loses_and_doubles_nothing(server: Server, url: str, tmp_path: Path, point: str, kept: int) -> None:
    child = run_python(RECORD, url, "one,two", ANOMALY_KILLPOINT=point)
    child.communicate(timeout=60)
    assert child.returncode == -signal.SIGKILL
    assert len(AlertStore(url).dump()["batches"]) == kept
    finished(run_python(RECORD, url, "one,two"), run_python(RECORD, tmp_path / "calm.db", "one,two"))
    without_numbers = [
        [{k: v for k, v in held.items() if k not in ("id", "first_batch")} for held in dump(where)["alerts"]]
        for where in (url, tmp_path / "calm.db")
    ]
    assert without_numbers[0] == without_numbers[1] and len(without_numbers[0]) == 9


def test_writers_of_several_processes_lose_no_update(url: str) -> None:
    store = AlertStore(url)
    store.record_batch(batch(rows=0), [])
    finished(*(run_python(COUNT, url) for _ in range(2)))
    assert store.dump()["batches"][0]["rows"] == 400


def test_processes_make_the_tables_at_once(url: str) -> None:
    together = time.time() + 2.5
    children = [run_python(CREATE, url, sha, together) for sha in ("one", "two", "three")]
    assert finished(*children) == ["True\n"] * 3
    assert {held["sha256"] for held in AlertStore(url).dump()["batches"]} == {"one", "two", "three"}


SEND = """
import sys, time
from alerts.database import Database
from alerts.outbox import Sender, SenderRules
sender = Sender(Database(sys.argv[1]), "hook", lambda: int(sys.argv[2]), SenderRules(per_asset=10**9, per_sensor=10**9))
time.sleep(max(0, float(sys.argv[3]) - time.time()))
sender.run_once(lambda message: print(message.payload["key"], flush=True), most=999)
"""


def test_senders_of_several_processes_send_each_message_once(url: str) -> None:
    database = Database(url)
    with database.writing() as connection:
        for k in range(80):
            enqueue(connection, "alert.new", {"key": k}, key=str(k), at=T0)
    together = time.time() + 2.5
    said = finished(*(run_python(SEND, url, T0, together) for _ in range(3)))
    assert sorted(int(key) for out in said for key in out.split()) == list(range(80))
    assert sum(bool(out) for out in said) > 1, "one process did it all: nothing was shown"
    assert {(held["state"], held["attempts"]) for held in AlertStore(database).dump()["deliveries"]} == {("sent", 1)}


def test_of_several_people_at_once_one_changes_an_alert(url: str) -> None:
    put(Database(url), spaced(10))
    together = Barrier(4)

    def work(person: int) -> list[int]:
        flow, won = Workflow(Database(url), lambda: T0), []
        for number in range(1, 11):
            together.wait(30)
            try:
                flow.note(number, f"person {person}", "mine", version=1)
                won.append(number)
            except Conflict:
                pass
        return won

    with ThreadPoolExecutor(4) as pool:
        assert sorted(number for won in pool.map(work, range(4)) for number in won) == list(range(1, 11))
    assert len(AlertStore(url).dump()["alert_events"]) == 10


# -- migrations


@pytest.mark.parametrize("before", ["", "0001", "0002"])
def test_an_empty_database_and_one_of_an_earlier_release_are_brought_up_to_date(
    url: str, server: Server, name: str, before: str
) -> None:
    database, config = Database(url), Config()
    assert AlertStore(url).alerts() == [] and server.execute(
        "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'", name
    ) == [(0,)]
    config.set_main_option("script_location", str(MIGRATIONS))
    if before:
        with sa.create_engine(database.url).begin() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, before)
        values = "'A', 'm', 'n', 5, 6, 7, 4.0, 3.0, 5, NULL, '[]', 'new', 1, 0" + ", '{}'" * (before == "0002")
        server.execute("INSERT INTO batches VALUES (1, 'a', 'm', 'n', 'f', 9, 0, 9, 9, 0, 0, '', 0)", name)
        server.execute(f"INSERT INTO alerts VALUES (nextval('alerts_id_seq'), {values})", name)  # noqa: S608
        assert [(a.id, a.asset, a.version) for a in AlertStore(url).alerts()] == [(1, "A", 1)]
    assert put(database, [row()]) == [1, 2][: 1 + bool(before)]
    with database.writing() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "target_metadata": metadata})
        assert compare_metadata(context, metadata) == []
    assert server.execute("SELECT version_num FROM alembic_version", name) == [(SCHEMA_VERSION,)]


@pytest.mark.parametrize("table", ["alert_events", "user_events"])
@pytest.mark.parametrize("change", ["UPDATE {} SET comment = ''", "DELETE FROM {}", "TRUNCATE {}"])
def test_the_audit_cannot_be_changed_by_whoever_reaches_the_server(
    url: str, server: Server, name: str, table: str, change: str
) -> None:
    put(Database(url), [row()])
    Workflow(Database(url), lambda: T0).note(1, "ann", "kept")
    with pytest.raises(Exception, match=f"{table} is never changed"):
        server.execute(change.format(table), name)
    assert [e.comment for e in AlertStore(url).events(1)] == ["kept"]


# -- connections and servers


def cut_at(database: Database, server: Server, words: str) -> None:
    """The connection is cut right before the first statement that begins with ``words``."""
    done: list[bool] = []

    @sa.event.listens_for(database._engine, "before_cursor_execute")
    def _cut(connection: sa.Connection, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith(words) and not done:
            done.append(True)
            process = connection.connection.dbapi_connection.info.backend_pid  # type: ignore[union-attr]
            server.execute(f"SELECT pg_terminate_backend({process}, 5000)")


@pytest.mark.parametrize("words", ["INSERT INTO batches", "INSERT INTO alerts", "INSERT INTO coverage"])
def test_a_connection_cut_in_a_transaction_leaves_nothing_half_written(url: str, server: Server, words: str) -> None:
    store = AlertStore(url)
    store.record_batch(batch(), [episode(100, 190)])
    before = store.dump()
    cut_at(store.database, server, words)
    later = BatchRecord("b", "m1", "demo", "f", 1, {}, {"A": (2000, 3000)})
    with pytest.raises(Unavailable, match="E5001") as refused:
        store.record_batch(later, [episode(2100, 2200), episode(2500, 2600, "B")])
    assert refused.value.exit_code == 5 and AlertStore(url).dump() == before
    assert store.record_batch(later, [episode(2100, 2200)]), "the same store goes on with a new connection"
    assert len(store.alerts()) == 2


def test_a_connection_cut_while_nobody_used_it_is_replaced(url: str, server: Server, name: str) -> None:
    store = AlertStore(url)
    store.record_batch(batch(), [episode(100, 190)])
    assert server.cut(name) >= 1
    assert len(store.alerts()) == 1


def test_a_writer_that_takes_too_long_is_told_and_does_not_stop_readers(url: str) -> None:
    store = AlertStore(url)
    store.record_batch(batch(), [episode(100, 190)])
    hasty = AlertStore(url, wait_s=0.2)
    with store.database.writing():
        with pytest.raises(Unavailable, match=r"E5001.*lock timeout"):
            hasty.record_batch(batch("b"), [])
        assert len(hasty.alerts()) == 1
    assert hasty.record_batch(batch("b"), [])


def test_a_reader_sees_one_state_and_cannot_write(url: str) -> None:
    database = Database(url)
    put(database, [row()])
    count = sa.select(sa.func.count()).select_from(tables.alerts)
    with database.reading() as connection:
        assert connection is not None
        assert connection.execute(count).scalar() == 1
        put(Database(url), [row(start_us=T0 + HOUR)])
        assert connection.execute(count).scalar() == 1
    with pytest.raises(Unavailable, match="E5002"), database.reading() as connection:
        assert connection is not None
        connection.execute(sa.delete(tables.alerts))
    assert len(AlertStore(url).alerts()) == 2


def test_servers_and_databases_that_refuse_are_told_without_the_password(server: Server, url: str, name: str) -> None:
    AlertStore(url).record_batch(batch(), [])
    server.execute(
        f"DROP ROLE IF EXISTS guest; CREATE ROLE guest LOGIN; ALTER DATABASE {name} SET timezone = 'Asia/Tokyo'"
    )
    secret, host = "canary-7", f"?host={server.folder}&port=5432"
    cases = {
        f"postgresql://anomaly:{secret}@/gone{host}": r"E5001.*\"gone\" does not exist",
        f"postgresql://nobody:{secret}@/{name}{host}": r"E5001.*\"nobody\" does not exist",
        f"postgresql://anomaly:{secret}@/{name}?host={server.folder}/none": "E5001.*No such file",
        f"postgresql://guest:{secret}@/{name}{host}": "E5002.*permission denied",
    }
    for where, words in cases.items():
        with pytest.raises(Unavailable, match=words) as refused:
            AlertStore(where).record_batch(batch("b"), [])
        assert secret not in str(refused.value), where
    with server.lent() as new, pytest.raises(Unavailable, match=r"E5002.*permission denied for schema public"):
        server.execute("REVOKE CREATE ON SCHEMA public FROM public", new)
        AlertStore(f"postgresql://guest@/{new}{host}").record_batch(batch(), [])
    server.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    with pytest.raises(Unavailable, match=r"E5002.*read-only"):
        AlertStore(url).record_batch(batch("b"), [])
    server.execute(f"ALTER DATABASE {name} RESET ALL")
    assert AlertStore(url).record_batch(batch("b"), [])


def test_another_schema_and_another_program_s_database_are_refused(server: Server, url: str, name: str) -> None:
    server.execute("CREATE TABLE experiments (id integer)", name)
    with pytest.raises(Unavailable, match=r"E5004.*experiments"):
        AlertStore(url).record_batch(batch(), [])
    server.execute("DROP TABLE experiments", name)
    AlertStore(url).record_batch(batch(), [])
    server.execute("UPDATE alembic_version SET version_num = '9999'", name)
    for action in (AlertStore(url).alerts, lambda: AlertStore(url).record_batch(batch("b"), [])):
        with pytest.raises(Unavailable, match=r"E5004.*9999"):
            action()


# -- text and order


@pytest.mark.parametrize("seed", range(4))
def test_what_is_written_is_equal_on_both(url: str, tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    score = rng.choice([0.0, 0.0, 1.0, 4.0, 9.0, np.nan], 60)
    middle = int(rng.integers(10, 40))
    pieces = [answer(score, 0, middle + 10), answer(score, middle, 60), answer(score, 5, 30)]
    for where in (url, tmp_path / "alerts.db"):
        for piece in pieces:
            AlertStore(where).record_batch(*piece)
        assert not AlertStore(where).record_batch(*pieces[0])
    assert dump(url) == dump(tmp_path / "alerts.db")
    assert dump(url)["batches"]


def test_hostile_text_comes_back_as_it_was_and_sorts_as_on_sqlite(url: str, tmp_path: Path) -> None:
    answers = []
    for where in (url, tmp_path / "alerts.db"):
        store = AlertStore(where)
        store.record_batch(batch(), [episode(100 * k, 100 * k + 9, text, text) for k, text in enumerate(HOSTILE)])
        store.record_batch(batch("b"), [episode(5, 6, asset) for asset in ("a", "B", "b", "Z", "é", "_", "10", "9")])
        found = [[a.id for a in store.page(Filters(text=text)).alerts] for text in HOSTILE[:8]]
        answers.append((dump(where), store.counts("asset"), list(store.counts("asset")), found))
    assert answers[0] == answers[1]
    assert {a.asset for a in AlertStore(url).alerts(limit=None)} >= set(HOSTILE)


LONG = "".join(chr(0x4E00 + int(k)) for k in np.random.default_rng(1).integers(0, 9000, 4000))


@pytest.mark.parametrize("asset", ["a\x00b", "\x00", LONG[:1000], LONG], ids=["a zero byte", "zero", "long", "longer"])
def test_text_that_cannot_be_stored_is_refused_with_words(url: str, asset: str) -> None:
    with pytest.raises(UsageError, match=r"E2001.*can store") as refused:
        AlertStore(url).record_batch(batch(), [episode(100, 190, asset)])
    assert refused.value.exit_code == 2
    assert AlertStore(url).alerts() == [] and not AlertStore(url).dump().get("batches")
    assert AlertStore(url).alerts(asset="x") == []


# -- pages


@pytest.fixture(scope="module")
def full(request: pytest.FixtureRequest) -> Any:
    """20 000 alerts of 50 assets, of which most are closed."""
    from postgres import server_of

    server = server_of(request.config)
    with server.lent() as name:
        store = AlertStore(server.url(name))
        with store.database.writing() as connection:
            connection.execute(sa.insert(tables.alerts).values(**row()))
        columns = [
            c.name for c in tables.alerts.c if c.name not in ("id", "start_us", "asset", "state", "priority", "model")
        ]
        names = ", ".join(columns)
        server.execute(
            f"INSERT INTO alerts (start_us, asset, state, priority, model, {names}) "  # noqa: S608
            f"SELECT {T0} + (k / 2) * {HOUR}::bigint, 'asset ' || k % 50, CASE WHEN k % 12 = 0 THEN 'new' ELSE 'closed' END, "
            f"1 + k % 3, 'm' || k, {names} FROM alerts, generate_series(1, 20000) k; ANALYZE alerts",
            name,
        )
        yield store


@pytest.mark.parametrize(
    "filters",
    [Filters(), Filters(states=("new", "in_work")), Filters(asset="asset 7"), Filters(priorities=(1,)),
     Filters(asset="asset 7", states=("closed",))],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("after", [None, Cursor(T0 + 5000 * HOUR, 12_000)], ids=["first", "deep"])
def test_every_page_walks_an_index(full: AlertStore, filters: Filters, after: Cursor | None) -> None:
    for statement in PageQueries(filters, 50, after).statements():
        with full.database.reading() as connection:
            assert connection is not None
            sql = str(statement.compile(connection.engine, compile_kwargs={"literal_binds": True}))
            plan = "\n".join(r[0] for r in connection.exec_driver_sql("EXPLAIN ANALYZE " + sql.replace("%", "%%")))
        assert "ix_alerts_" in plan and "Seq Scan" not in plan, plan


def test_the_pages_give_every_alert_once_in_order(full: AlertStore) -> None:
    found: list[tuple[int, int]] = []
    after = None
    while True:
        page = full.page(Filters(states=("new",)), after, 500)
        found += [(a.start_us, a.id) for a in page.alerts]
        if (after := page.next) is None:
            break
    assert found == sorted(set(found), reverse=True)
    assert len(found) == full.counts()["new"]
