"""The alert database under kill -9, races and refusals; what the file is like; how fast a list starts."""

from __future__ import annotations

import errno
import os
import signal
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa

from alerts import tables
from alerts.episodes import Episode
from alerts.store import AlertStore, BatchRecord
from anomaly.errors import Unavailable, UsageError

PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture
def store(tmp_path: Path) -> AlertStore:
    return AlertStore(tmp_path / "alerts.db")


def episode(start, end, asset="A"):
    return Episode(asset, start, start, end, 5.0, 3.0, 2, (("P", 0.75), ("Q", 0.25)))


def batch(sha="a" * 64, covered=None, rows=100):
    times = {"A": (0, 1000)} if covered is None else covered
    return BatchRecord(sha, "m1", "demo", "log.csv", rows, {"normal": rows}, times, merge_gap_us=30)


# kill -9, races, creation by two at once


def run_python(script: str, *arguments: object, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        cwd=PROJECT,
        env=os.environ | {"PYTHONPATH": str(PROJECT)} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(*children: subprocess.Popen[str]) -> list[str]:
    said = [child.communicate(timeout=120) for child in children]
    assert [(c.returncode, err) for c, (_, err) in zip(children, said, strict=True)] == [(0, "")] * len(children)
    return [out for out, _ in said]


RECORD = """
import sys
from alerts.store import AlertStore, BatchRecord
from alerts.episodes import Episode
found = [Episode("A", t, t + 5, t + 10, 4.0, 3.0, 2, (("P", 1.0),)) for t in range(100, 1000, 100)]
for name in sys.argv[2].split(","):
    record = BatchRecord(name, "m", "demo", name, 100, {"normal": 100}, {"A": (0, 2000)}, merge_gap_us=5)
    AlertStore(sys.argv[1]).record_batch(record, found)
"""


@pytest.mark.parametrize(
    ("point", "kept"), [("alerts.before_commit", 0), ("alerts.after_commit", 1), ("alerts.before_commit:2", 1)]
)
def test_a_kill_loses_and_doubles_nothing(tmp_path, point, kept):
    calm, killed = tmp_path / "calm.db", tmp_path / "killed.db"
    finished(run_python(RECORD, calm, "one,two"))
    child = run_python(RECORD, killed, "one,two", ANOMALY_KILLPOINT=point)
    child.communicate(timeout=60)
    assert child.returncode == -signal.SIGKILL
    assert len(AlertStore(killed).dump().get("batches", [])) == kept
    finished(run_python(RECORD, killed, "one,two"))

    def without_clock(path):
        clock = ("created_at", "recorded_at")
        return {
            t: [{k: v for k, v in r.items() if k not in clock} for r in rows]
            for t, rows in AlertStore(path).dump().items()
        }

    assert without_clock(killed) == without_clock(calm)
    assert len(without_clock(calm)["alerts"]) == 9
    with closing(sqlite3.connect(killed)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


COUNT = """
import sys
import sqlalchemy as sa
from alerts.store import AlertStore
from alerts.tables import batches
database = AlertStore(sys.argv[1]).database
for _ in range(200):
    with database.writing() as connection:
        held = connection.execute(sa.select(batches.c.rows)).scalar_one()
        connection.execute(sa.update(batches).values(rows=held + 1))
"""


def test_two_writers_lose_no_update(tmp_path):
    """RELIABILITY fact 4: with SQLAlchemy's default transactions half of these updates vanish without an error."""
    store = AlertStore(tmp_path / "alerts.db")
    store.record_batch(batch(rows=0), [])
    finished(*(run_python(COUNT, tmp_path / "alerts.db") for _ in range(2)))
    assert store.dump()["batches"][0]["rows"] == 400


CREATE = """
import sys, time
from alerts.store import AlertStore, BatchRecord
import alembic.command, alembic.config
time.sleep(max(0, float(sys.argv[3]) - time.time()))
record = BatchRecord(sys.argv[2], "m", "demo", "f", 1, {}, {"A": (0, 1)})
print(AlertStore(sys.argv[1]).record_batch(record, []))
"""


def test_two_processes_create_the_database_at_once(tmp_path):
    together = time.time() + 1.5
    children = [run_python(CREATE, tmp_path / f"{k}.db", name, together) for k in range(2) for name in ("one", "two")]
    assert finished(*children) == ["True\n"] * 4
    for k in range(2):
        assert {row["sha256"] for row in AlertStore(tmp_path / f"{k}.db").dump()["batches"]} == {"one", "two"}


def test_creating_at_once_from_many_threads(tmp_path):
    for k in range(5):
        path = tmp_path / f"{k}.db"
        with ThreadPoolExecutor(4) as pool:
            jobs = [pool.submit(AlertStore(path).record_batch, batch(str(n), {}), []) for n in range(4)]
            assert [job.result() for job in jobs] == [True] * 4
        assert len(AlertStore(path).dump()["batches"]) == 4


# refusals and the file itself


def test_a_locked_database_is_unavailable_and_still_readable(tmp_path):
    path = tmp_path / "alerts.db"
    AlertStore(path).record_batch(batch(), [episode(100, 190)])
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        hasty = AlertStore(path, wait_s=0.05)
        with pytest.raises(Unavailable, match=r"E5001.*locked") as refused:
            hasty.record_batch(batch("b" * 64), [])
        assert refused.value.exit_code == 5
        assert len(hasty.alerts()) == 1
    assert hasty.record_batch(batch("b" * 64), [])


@pytest.mark.parametrize("change", ["UPDATE alembic_version SET version_num = '9999'", "DELETE FROM alembic_version"])
def test_another_schema_version_is_refused_and_left_alone(tmp_path, change):
    path = tmp_path / "alerts.db"
    AlertStore(path).record_batch(batch(), [])
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(change)
        connection.commit()
    for action in (AlertStore(path).alerts, lambda: AlertStore(path).record_batch(batch("b" * 64), [])):
        with pytest.raises(Unavailable, match=r"E5004.*schema 0004"):
            action()


def test_a_database_of_another_program_is_refused(tmp_path):
    path = tmp_path / "other.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE experiments (id INTEGER)")
    before = path.read_bytes()
    with pytest.raises(Unavailable, match=r"E5004.*experiments"):
        AlertStore(path).record_batch(batch(), [])
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("experiments",)]
    assert len(path.read_bytes()) == len(before)


def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("not a database " * 100)
    for action in (AlertStore(path).alerts, lambda: AlertStore(path).record_batch(batch(), [])):
        with pytest.raises(Unavailable, match=r"E5001.*not a database"):
            action()
    assert path.read_text() == "not a database " * 100


def test_a_folder_or_a_file_in_the_way_is_refused(tmp_path):
    with pytest.raises(UsageError, match="E2003"):
        AlertStore(tmp_path).record_batch(batch(), [])
    (tmp_path / "file").write_text("")
    with pytest.raises((UsageError, Unavailable), match=r"E2003|E5002"):
        AlertStore(tmp_path / "file" / "alerts.db").record_batch(batch(), [])


def test_a_full_disk_leaves_everything_as_it_was(tmp_path):
    path = tmp_path / "alerts.db"
    store = AlertStore(path)
    store.record_batch(batch(), [episode(100, 190)])
    before = store.dump()
    with closing(sqlite3.connect(path)) as connection:
        pages = connection.execute("PRAGMA page_count").fetchone()[0]

    @sa.event.listens_for(store.database._engine, "connect")
    def _small(connection, _record):
        connection.execute(f"PRAGMA max_page_count = {pages}")

    many = [episode(k, k, asset=f"{k:0200d}") for k in range(2000)]
    with pytest.raises(Unavailable, match="E5002") as refused:
        store.record_batch(batch("b" * 64), many)
    assert refused.value.exit_code == 5
    assert AlertStore(path).dump() == before


def test_only_the_owner_may_read_the_file(tmp_path):
    path = tmp_path / "home" / "alerts.db"
    store = AlertStore(path)
    store.record_batch(batch(), [])
    with store.database.writing():
        modes = {p.name: p.stat().st_mode & 0o777 for p in path.parent.iterdir()}
    assert modes["alerts.db"] == 0o600
    assert set(modes.values()) == {0o600}
    assert len(modes) > 1  # the write-ahead log beside it


def test_sqlite_runs_with_full_durability(store):
    store.record_batch(batch(), [])
    with store.database.writing() as connection:
        held = {
            k: connection.exec_driver_sql(f"PRAGMA {k}").scalar()
            for k in ("journal_mode", "synchronous", "foreign_keys")
        }
        waits = connection.exec_driver_sql("PRAGMA busy_timeout").scalar()
    assert held == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}
    assert waits == 30_000


def test_a_failed_transaction_leaves_nothing(store):
    store.record_batch(batch(), [])
    before = store.dump()
    with pytest.raises(ValueError, match="start <= end"):
        store.record_batch(batch("b" * 64, {"A": (1000, 0)}), [episode(2000, 2100)])
    assert store.dump() == before


def test_no_room_for_the_file_is_unavailable(tmp_path, monkeypatch):
    def full(*_arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("alerts.database.os.open", full)
    with pytest.raises(Unavailable, match=r"E5002.*No space left"):
        AlertStore(tmp_path / "alerts.db").record_batch(batch(), [])


def test_our_own_mistakes_are_not_called_unavailable(store):
    store.record_batch(batch(), [])
    with pytest.raises(sa.exc.IntegrityError), store.database.writing() as connection:
        connection.execute(sa.insert(tables.coverage).values(asset="A", model="m1", start_us=0, end_us=9))


@pytest.mark.parametrize(
    "url", ["mysql://host/name", "sqlite://", "sqlite:///:memory:", "://", "postgresql+nothing://host:port/x"]
)
def test_other_urls_are_refused(url):
    with pytest.raises(UsageError, match="E2001"):
        AlertStore(url)


def test_a_sqlite_url_is_a_path(tmp_path):
    AlertStore(f"sqlite:///{tmp_path / 'by url.db'}").record_batch(batch(), [episode(100, 190)])
    assert len(AlertStore(tmp_path / "by url.db").alerts()) == 1


def test_postgres_without_its_driver_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(UsageError, match="postgres") as refused:
        AlertStore("postgresql://user:secret@host/alerts")
    assert "secret" not in str(refused.value)


LIST = """
import sys, time
begun = time.process_time()
from alerts.store import AlertStore
rows = AlertStore(sys.argv[1]).alerts()
print(len(rows), time.process_time() - begun)
heavy = {"alembic", "tensorflow", "keras", "mlflow", "pandas", "pyarrow", "sklearn"} & set(sys.modules)
assert not heavy, heavy
"""


def test_listing_starts_fast_and_light(store, tmp_path):
    store.record_batch(batch(), [episode(100, 190)])
    answers = [finished(run_python(LIST, tmp_path / "alerts.db"))[0].split() for _ in range(2)]
    assert {count for count, _ in answers} == {"1"}
    assert min(float(seconds) for _, seconds in answers) < 0.8
