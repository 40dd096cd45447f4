"""The alert database: SQLite by default, PostgreSQL by URL; connections, transactions, schema, and what can go wrong.

SQLAlchemy's default transactions on SQLite lose updates silently (RELIABILITY fact 4). Here the driver starts none by itself:
a writer says ``BEGIN IMMEDIATE``, so that what it reads cannot change before it writes. PostgreSQL writers take one lock to the
same end. All SQL that belongs to one kind of database is in this file.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DatabaseError, DBAPIError, OperationalError
from sqlalchemy.pool import NullPool

from alerts.tables import OLDER_VERSIONS, SCHEMA_VERSION, version
from anomaly.errors import Fault, Unavailable, UsageError

#: Key of the PostgreSQL advisory lock that all writers of this service share.
_WRITERS = 0x616E6F6D

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
        self._engine = _sqlite_engine(self.url, wait_s) if self.path else _postgres_engine(self.url, wait_s)

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

    def _held(self, connection: sa.Connection) -> str:
        """The version of our schema, this release's or an earlier one's; "" for an empty database; any other is refused."""
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


def _sqlite_engine(url: URL, wait_s: float) -> sa.Engine:
    engine = sa.create_engine(url, poolclass=NullPool, connect_args={"timeout": wait_s})

    @sa.event.listens_for(engine, "connect")
    def _prepare(connection: Any, _record: object) -> None:
        connection.isolation_level = None  # the driver begins nothing by itself
        for setting in (f"busy_timeout = {round(wait_s * 1000)}", "synchronous = FULL", "foreign_keys = ON"):
            connection.execute(f"PRAGMA {setting}")

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: sa.Connection) -> None:
        writes = connection.get_execution_options().get("anomaly_writes", False)
        if writes and connection.exec_driver_sql("PRAGMA journal_mode").scalar() != "wal":
            connection.exec_driver_sql("PRAGMA journal_mode = WAL")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


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
        if connection.get_execution_options().get("anomaly_writes", False):
            connection.exec_driver_sql(f"SET LOCAL lock_timeout = {round(wait_s * 1000)}")
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_WRITERS})")
        else:  # by default each statement would see another state
            connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")

    return engine
