"""Connections that a service keeps, views of one moment, and notes that wait for nobody."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa
from alert_rows import put, row, spaced

from alerts import tables
from alerts.database import Database
from alerts.store import AlertStore
from anomaly.errors import Unavailable


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[AlertStore]:
    """A store over a database that keeps its connections, with three alerts."""
    store = AlertStore(Database(tmp_path / "alerts.db", wait_s=1.0))
    store.database.keep_connections()
    put(store.database, spaced(3))
    yield store
    store.database._engine.dispose()


def ids(store: AlertStore) -> list[int]:
    return sorted(a.id for a in store.alerts())


def opened(database: Database) -> list[int]:
    """A list that holds one entry for each connection opened from now on."""
    found: list[int] = []
    sa.event.listen(database._engine, "connect", lambda *_: found.append(1))
    return found


def test_a_connection_serves_many_transactions_and_sees_what_others_write(kept: AlertStore, tmp_path: Path) -> None:
    assert ids(kept) == [1, 2, 3]
    count = opened(kept.database)
    put(Database(tmp_path / "alerts.db"), [row(model="other")])
    for _ in range(20):
        assert ids(kept) == [1, 2, 3, 4]
    assert len(count) <= 1, "one at most: the other writer may have emptied its log into the file"


def test_a_file_that_was_replaced_is_read_anew(kept: AlertStore, tmp_path: Path) -> None:
    assert ids(kept) == [1, 2, 3]
    other = AlertStore(tmp_path / "restored.db")
    put(other.database, spaced(2))
    (tmp_path / "restored.db").replace(tmp_path / "alerts.db")
    assert ids(kept) == [1, 2]
    (tmp_path / "alerts.db").unlink()
    assert kept.alerts() == []
    assert not (tmp_path / "alerts.db").exists(), "reading makes no file"


def test_a_file_that_was_written_over_is_told(kept: AlertStore, tmp_path: Path) -> None:
    assert ids(kept) == [1, 2, 3]
    (tmp_path / "alerts.db").write_bytes(b"this is no database" * 1000)
    with pytest.raises(Unavailable, match="E5001"):
        kept.alerts()


def test_another_schema_is_refused_though_the_connection_is_kept(kept: AlertStore, tmp_path: Path) -> None:
    assert ids(kept) == [1, 2, 3]
    with closing(sqlite3.connect(tmp_path / "alerts.db")) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(Unavailable, match="E5004"):
        kept.alerts()


def test_what_is_left_behind_when_a_service_ends_is_the_file_alone(tmp_path: Path) -> None:
    database = Database(tmp_path / "alerts.db")
    database.keep_connections()
    put(database, spaced(1))
    assert {p.name for p in tmp_path.iterdir()} > {"alerts.db"}, "the log of a kept connection"
    del database
    assert [p.name for p in tmp_path.iterdir()] == ["alerts.db"]


def test_a_view_is_of_one_moment_whatever_is_written_meanwhile(kept: AlertStore) -> None:
    count = opened(kept.database)
    seen = []
    with kept.database.view():
        seen.append(ids(kept))
        put(kept.database, [row(model="meanwhile")])
        seen.append(ids(kept))
        thread = threading.Thread(target=lambda: seen.append(ids(kept)))
        thread.start()
        thread.join()
        with kept.database.view():
            seen.append(ids(kept))
        seen.append(ids(kept))
    assert seen == [[1, 2, 3], [1, 2, 3], [1, 2, 3, 4], [1, 2, 3], [1, 2, 3]]
    assert ids(kept) == [1, 2, 3, 4]
    assert len(count) <= 2


def test_a_view_that_fails_ends(kept: AlertStore) -> None:
    with pytest.raises(ZeroDivisionError), kept.database.view():
        ids(kept)
        raise ZeroDivisionError
    put(kept.database, [row(model="later")])
    assert ids(kept) == [1, 2, 3, 4]


def test_a_view_of_no_database_reads_nothing(tmp_path: Path) -> None:
    store = AlertStore(tmp_path / "none.db")
    with store.database.view():
        assert store.alerts() == []
    assert not (tmp_path / "none.db").exists()


NOTE = sa.update(tables.alerts).where(tables.alerts.c.id == sa.bindparam("one")).values(model_name="noted")


def test_a_note_is_written(kept: AlertStore) -> None:
    assert kept.database.note(NOTE, {"one": 1})
    assert [kept.alert(id).model_name == "noted" for id in (1, 2)] == [True, False]


def test_a_note_waits_for_no_other_writer(kept: AlertStore, tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "alerts.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        begun = time.monotonic()
        assert not kept.database.note(NOTE, {"one": 2})
        assert time.monotonic() - begun < 0.5, "a writer would have waited for a second"
    assert kept.alert(2).model_name != "noted"


def test_after_a_note_the_connection_is_durable_again(kept: AlertStore) -> None:
    assert kept.database.note(NOTE, {"one": 1})
    with kept.database.writing() as connection:
        held = [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in ("synchronous", "busy_timeout")]
    assert held == [2, 1000]
