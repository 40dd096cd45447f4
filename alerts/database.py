"""The alert database: SQLite by default, PostgreSQL by URL; connections, transactions, schema, and what can go wrong.

SQLAlchemy's default transactions on SQLite lose updates silently (RELIABILITY fact 4). Here the driver starts none by itself:
a writer says ``BEGIN IMMEDIATE``, so that what it reads cannot change before it writes. PostgreSQL writers take one lock to the
same end. All SQL that belongs to one kind of database is in this file.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DatabaseError, DBAPIError, DisconnectionError, OperationalError
from sqlalchemy.pool import NullPool, QueuePool

from alerts.tables import OLDER_VERSIONS, SCHEMA_VERSION, version
from anomaly.errors import Fault, Unavailable, UsageError

log = logging.getLogger(__name__)

#: Key of the PostgreSQL advisory lock that all writers of this service share.
_WRITERS = 0x616E6F6D

#: The kind of a write that ``Database.note`` makes.
_NOTE = "note"

#: What PostgreSQL says of text that SQLite would take: a zero byte, more signs than a column or an index entry holds.
_UNSTORABLE = ("cannot contain NUL", "value too long for type", "index row size", "index row requires")

#: What SQLite and PostgreSQL say where nothing can be written: no space, a read-only file or server, a right that is missing.
_UNWRITABLE = (
    "disk is full", "readonly database", "disk I/O error",
    "No space left on device", "read-only transaction", "permission denied for",
)  # fmt: skip


class Database:
    """One alert database. Nothing is opened, and no file is made, before the first transaction that needs it."""

    def __init__(self, url_or_path: str | Path, *, wait_s: float = 30.0) -> None:
        self.url = _url(url_or_path)
        self.path = Path(str(self.url.database)) if self.url.get_backend_name() == "sqlite" else None
        self._wait_s, self._views = wait_s, threading.local()
        self._engine = _sqlite_engine(self.url, wait_s) if self.path else _postgres_engine(self.url, wait_s)

    def keep_connections(self) -> None:
        """For a service that answers many: from now on connections to a SQLite file stay open between transactions (those to
        PostgreSQL always do). A file that was replaced or written over meanwhile is opened anew. Call it before the first use."""
        if self.path:
            self._engine = _sqlite_engine(self.url, self._wait_s, kept=True)
            weakref.finalize(self, self._engine.dispose)  # the last one to close empties the write-ahead log

    @property
    def name(self) -> str:
        """Path or URL, without a password."""
        return str(self.path) if self.path else self.url.render_as_string(hide_password=True)

    def exists(self) -> bool:
        """Whether there is something to read; a server's database is taken to be there."""
        return self.path is None or self.path.exists()

    @contextmanager
    def reading(self) -> Iterator[sa.Connection | None]:
        """One consistent view; None where the database does not exist yet or is empty. Creates nothing.

        Raises Unavailable E5001 (locked, unreachable, damaged) or E5004 (another schema).
        """
        shared = getattr(self._views, "connection", None)
        if shared is not None:
            with self._translated():
                yield shared
            return
        if not self.exists():
            yield None
            return
        with self._translated(), self._engine.connect() as connection, connection.begin():
            held = self._held(connection)
            older = held in OLDER_VERSIONS
            if not older:
                yield connection if held else None
        if older:
            with self.writing():  # brings it to the newest version
                pass
            with self._translated(), self._engine.connect() as connection, connection.begin():
                yield connection

    @contextmanager
    def view(self) -> Iterator[None]:
        """All that this thread reads within it is of one moment and through one connection. What is written within it, by
        this thread too, is not seen before it ends. Raises what ``reading`` does."""
        with self.reading() as connection:
            outer, self._views.connection = getattr(self._views, "connection", None), connection
            try:
                yield
            finally:
                self._views.connection = outer

    @contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """One transaction that no other writer's can overlap; commits at the end. A new database gets its tables in it.

        Raises Unavailable E5001, E5002 (disk full or read-only) or E5004.
        """
        if self.path:
            self._make_file(self.path)
        with self._translated(), self._engine.connect() as plain:
            connection = plain.execution_options(anomaly_writes=True)
            with connection.begin():
                if self._held(connection) != SCHEMA_VERSION:
                    migrate(connection)
                yield connection

    def note(self, statement: sa.Update, values: dict[str, Any]) -> bool:
        """Run one statement that may be lost, such as when somebody was last seen: it waits neither for another writer nor for
        the disk, so that nobody who only reads waits for it. False where it was not done. The database must be there."""
        try:
            with self._engine.connect() as plain:
                connection = plain.execution_options(anomaly_writes=_NOTE)
                try:
                    with connection.begin():
                        connection.execute(statement, values)
                finally:
                    if self.path:
                        _wait_again(connection, self._wait_s)
        except OperationalError as error:
            log.info("not noted: %s", error.orig)
            return False
        return True

    def _held(self, connection: sa.Connection) -> str:
        """The version of our schema, this release's or an earlier one's; "" for an empty database; any other is refused."""
        if self.path and _is_newest(connection):
            return SCHEMA_VERSION
        tables = sa.inspect(connection).get_table_names()
        if not tables:
            return ""
        held = _held_version(connection, tables)
        if held == SCHEMA_VERSION or (held in OLDER_VERSIONS and "alerts" in tables):
            return held
        found = f"version {held}" if held else f"tables {', '.join(sorted(tables)[:5])}"
        hint = "use the release that made it, or name another database with ANOMALY_DB_URL; nothing was changed"
        raise Unavailable(Fault("E5004", f"an alert database, schema {SCHEMA_VERSION}", found, hint, self.name))

    def _make_file(self, path: Path) -> None:
        """The file, readable by its owner alone; SQLite gives its companions the same mode."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(path, os.O_CREAT | os.O_EXCL, 0o600))
        except FileExistsError as error:
            if not path.parent.is_dir() or path.is_dir():
                raise UsageError(
                    Fault("E2003", "a path for the alert database", error.strerror, file=self.name)
                ) from error
        except OSError as error:
            hint = "free space or choose another place with ANOMALY_DB_URL; running again is safe"
            raise Unavailable(Fault("E5002", "a writable disk", error.strerror or error, hint, self.name)) from error

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """What the outside world does to a database, as Unavailable; our own mistakes pass through."""
        try:
            yield
        except DBAPIError as error:
            said = str(error.orig).strip()
            if any(words in said for words in _UNSTORABLE):
                hint = "shorten the text or leave the zero byte out; nothing was changed"
                raise UsageError(Fault("E2001", "text that the alert database can store", said, hint)) from error
            full = any(words in said for words in _UNWRITABLE)
            if type(error) not in (OperationalError, DatabaseError) and not full:
                raise
            hint = "nothing was changed; running again is safe"
            fault = Fault("E5002" if full else "E5001", "the alert database", said, hint, self.name)
            raise Unavailable(fault) from error


def _is_newest(connection: sa.Connection) -> bool:
    """Whether a SQLite file says that it has this release's schema; asked of the driver itself, as it precedes every
    transaction. What else the file may be, or why it cannot be read, the long way finds out."""
    try:
        return _driver(connection).execute("SELECT version_num FROM alembic_version").fetchall() == [(SCHEMA_VERSION,)]
    except sqlite3.Error:
        return False


def _driver(connection: sa.Connection) -> sqlite3.Connection:
    held = connection.connection.dbapi_connection
    assert isinstance(held, sqlite3.Connection)  # noqa: S101 - asked for a SQLite file alone
    return held


def _held_version(connection: sa.Connection, tables: list[str]) -> str:
    """The schema version that a database says it has; "" where it says none."""
    if version.name not in tables:
        return ""
    return ", ".join(connection.execute(sa.select(version.c.version_num)).scalars().all())


def migrate(connection: sa.Connection) -> None:
    """Bring an empty or older database to the newest schema inside the caller's transaction."""
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _url(url_or_path: str | Path) -> URL:
    text = str(url_or_path)
    if "://" not in text:
        return URL.create("sqlite+pysqlite", database=text)
    expected = "a path, sqlite:///PATH or postgresql://USER@HOST/NAME"
    try:
        url = make_url(text)
    except (ArgumentError, ValueError) as error:
        raise UsageError(Fault("E2001", expected, "something that is not a URL")) from error
    backend = url.drivername.partition("+")[0]
    if backend == "sqlite" and url.database and url.database != ":memory:":
        return url.set(drivername="sqlite+pysqlite")
    if backend in ("postgresql", "postgres"):
        return url.set(drivername="postgresql+psycopg")
    raise UsageError(Fault("E2001", expected, url.render_as_string(hide_password=True)))


def _sqlite_engine(url: URL, wait_s: float, *, kept: bool = False) -> sa.Engine:
    # Not kept unless asked for: a command that ends leaves no write-ahead log beside the file, and forks need no care.
    pool: dict[str, Any] = (
        {"poolclass": QueuePool, "pool_size": 8, "max_overflow": -1} if kept else {"poolclass": NullPool}
    )
    engine = sa.create_engine(url, connect_args={"timeout": wait_s, "check_same_thread": False}, **pool)
    if kept:
        _reopen_if_replaced(engine, str(url.database))

    @sa.event.listens_for(engine, "connect")
    def _prepare(connection: Any, _record: object) -> None:
        connection.isolation_level = None  # the driver begins nothing by itself
        for setting in (f"busy_timeout = {round(wait_s * 1000)}", "synchronous = FULL", "foreign_keys = ON"):
            connection.execute(f"PRAGMA {setting}")

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: sa.Connection) -> None:
        writes = connection.get_execution_options().get("anomaly_writes", False)
        if writes == _NOTE:
            for setting in ("busy_timeout = 0", "synchronous = NORMAL"):
                _driver(connection).execute(f"PRAGMA {setting}")
        elif writes and connection.exec_driver_sql("PRAGMA journal_mode").scalar() != "wal":
            connection.exec_driver_sql("PRAGMA journal_mode = WAL")
        if writes:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        else:  # asked of the driver itself: it takes no lock, so nothing can be in its way
            _driver(connection).execute("BEGIN")

    return engine


def _wait_again(connection: sa.Connection, wait_s: float) -> None:
    """Undo what a note set for its own transaction."""
    for setting in (f"busy_timeout = {round(wait_s * 1000)}", "synchronous = FULL"):
        _driver(connection).execute(f"PRAGMA {setting}")


def _reopen_if_replaced(engine: sa.Engine, path: str) -> None:
    """A connection from before the file was replaced, restored or damaged would answer from what it remembers of the old one.
    Emptying the write-ahead log changes the file as well: then a connection is opened once too often."""

    def look() -> tuple[int, ...] | None:
        try:
            now = Path(path).stat()
        except OSError:
            return None
        return now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns

    @sa.event.listens_for(engine, "connect")
    def _remember(_connection: Any, record: Any) -> None:
        record.info["file"] = look()

    @sa.event.listens_for(engine, "checkout")
    def _compare(_connection: Any, record: Any, _proxy: object) -> None:
        if record.info.get("file") != look():
            raise DisconnectionError("the file of the database is another one")


def _postgres_engine(url: URL, wait_s: float) -> sa.Engine:
    # Connections are kept: a new one costs the server a process, more than the statements of a page. One that died is replaced.
    kept: dict[str, Any] = {"pool_size": 4, "max_overflow": -1, "pool_pre_ping": True}
    try:
        engine = sa.create_engine(url, connect_args={"connect_timeout": 10}, **kept)
    except ModuleNotFoundError as error:
        hint = "install the extra: pip install 'plant-anomaly[postgres]'"
        raise UsageError(Fault("E2001", "the PostgreSQL driver psycopg", f"no module {error.name}", hint)) from error

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: sa.Connection) -> None:
        writes = connection.get_execution_options().get("anomaly_writes", False)
        if writes == _NOTE:
            connection.exec_driver_sql("SET LOCAL lock_timeout = 20")
            connection.exec_driver_sql("SET LOCAL synchronous_commit = off")
        elif writes:
            connection.exec_driver_sql(f"SET LOCAL lock_timeout = {round(wait_s * 1000)}")
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_WRITERS})")
        else:  # by default each statement would see another state
            connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")

    return engine
