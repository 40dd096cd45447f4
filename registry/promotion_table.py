"""Which version of each name is champion: a table of ours, and the authority over it.

Two tables: ``champions`` holds one row per name (champion, previous, digest of the champion, a revision that only grows),
``promotions`` the audit, which is only added to. A promotion is one transaction that changes the row only if it still is what
the promotion was decided against (compare and set), so of two at once exactly one wins. MLflow's aliases mirror the row;
``mirror`` repairs them, and every read of ours does so (RELIABILITY §5 F9, F10).

It is a SQLite file beside MLflow's, or lies in MLflow's own PostgreSQL. Nothing is made before the first write.
"""

from __future__ import annotations

import getpass
import json
import logging
import os
import re
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anomaly.errors import Fault, ModelRefused, Unavailable, UsageError
from anomaly.faults import killpoint
from registry.state import State, locked, private_folder

if TYPE_CHECKING:
    from mlflow import MlflowClient

_log = logging.getLogger(__name__)

CHAMPION, PREVIOUS = "champion", "previous"

#: What an audit row may say was done.
ACTIONS = ("registered", "promoted", "rolled back", "refused")

_WAIT_S = 30.0
_MOST_MIRRORS = 5
_CREDENTIALS = re.compile(r"://[^/\s]*@")
_COLUMNS = "at, who, action, name, from_version, to_version, why, digest, evidence"

_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS champions (name TEXT PRIMARY KEY, champion INTEGER NOT NULL, previous INTEGER,"
    " digest TEXT NOT NULL, previous_digest TEXT, revision INTEGER NOT NULL)",
    "CREATE TABLE IF NOT EXISTS promotions (id {serial}, at TEXT NOT NULL, who TEXT NOT NULL, action TEXT NOT NULL,"
    " name TEXT NOT NULL, from_version INTEGER, to_version INTEGER NOT NULL, why TEXT NOT NULL, digest TEXT NOT NULL,"
    " evidence TEXT NOT NULL)",
)


@dataclass(frozen=True)
class Champion:
    """The row of one name: which version is champion, which one was before, and how often that changed."""

    name: str
    version: int
    digest: str
    previous: int | None = None
    previous_digest: str | None = None
    revision: int = 1


@dataclass(frozen=True)
class Entry:
    """One line of the audit: who did what, when (UTC), why, and on what evidence."""

    at: str
    who: str
    action: str
    name: str
    from_version: int | None
    to_version: int
    why: str
    digest: str
    evidence: dict[str, Any] = field(default_factory=dict)

    def line(self) -> str:
        """The entry in words.

        >>> Entry("2026-01-05T10:00:00+00:00", "ann", "promoted", "press", 1, 2, "better", "ab").line()
        '2026-01-05T10:00:00+00:00 ann promoted press version 2 (before: version 1): better'
        """
        before = f" (before: version {self.from_version})" if self.from_version else ""
        done = f"{self.action} {self.name} version {self.to_version}{before}"
        return f"{self.at} {self.who} {done}: {self.why or 'no reason given'}"


class PromotionTable:
    """The table of the MLflow that ``state`` names. Raises Unavailable E5003 where its database does not answer."""

    def __init__(self, state: State) -> None:
        self._postgres = state.tracking_uri if state.tracking_uri.startswith("postgres") else None
        own = state.home / "promotions.db"
        if state.database is not None and state.database.name != "mlflow.db":
            own = state.database.with_name(f"{state.database.stem}-promotions.db")
        elif state.database is not None:
            own = state.database.with_name("promotions.db")
        self.path = own

    @property
    def where(self) -> str:
        """Path or URL, without a password."""
        return _CREDENTIALS.sub("://", self._postgres) if self._postgres else str(self.path)

    def champion(self, name: str) -> Champion | None:
        """The row of ``name``, None where nothing was promoted yet."""
        rows = self._read(
            "SELECT name, champion, digest, previous, previous_digest, revision FROM champions WHERE name = ?", (name,)
        )
        return Champion(*rows[0]) if rows else None

    def history(self, name: str) -> tuple[Entry, ...]:
        """The audit of ``name``, oldest first."""
        rows = self._read(f"SELECT {_COLUMNS} FROM promotions WHERE name = ? ORDER BY id", (name,))  # noqa: S608
        return tuple(replace(Entry(*row[:8]), evidence=json.loads(row[8])) for row in rows)

    def note(self, entry: Entry) -> None:
        """Add to the audit without changing a champion: a refusal, a first registration."""
        with self._writing() as database:
            database.run(*_insertion(entry))

    def change(self, expected: Champion | None, new: Champion, entry: Entry) -> Champion:
        """Make ``new`` the row of its name if the row still is ``expected`` (None: there is none), with its audit line.

        One transaction: both are there, or neither. Gives the row as it is now, its revision one higher. Raises
        ModelRefused E4102 when somebody else changed the champion meanwhile: nothing is changed then.
        """
        revision = 1 if expected is None else expected.revision + 1
        row = (new.version, new.previous, new.digest, new.previous_digest, revision, new.name)
        with self._writing() as database:
            killpoint("promotion.in_transaction")
            if expected is None:
                sql = (
                    "INSERT INTO champions (champion, previous, digest, previous_digest, revision, name)"
                    " VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (name) DO NOTHING"
                )
                changed = database.run(sql, row)
            else:
                sql = (
                    "UPDATE champions SET champion = ?, previous = ?, digest = ?, previous_digest = ?, revision = ?"
                    " WHERE name = ? AND champion = ? AND revision = ?"
                )
                changed = database.run(sql, (*row, expected.version, expected.revision))
            if changed != 1:
                raise self._too_late(database, expected, new)
            database.run(*_insertion(entry))
        return Champion(new.name, new.version, new.digest, new.previous, new.previous_digest, revision)

    def _too_late(self, database: _Database, expected: Champion | None, new: Champion) -> ModelRefused:
        rows = database.rows("SELECT champion FROM champions WHERE name = ?", (new.name,))
        now = f"version {rows[0][0]}" if rows else "none"
        was = f"{new.name} champion still version {expected.version}" if expected else f"{new.name} without a champion"
        hint = "somebody else changed the champion meanwhile: look at `anomaly models show`, then judge again"
        return ModelRefused(Fault("E4102", was, f"champion now {now}", hint, self.where))

    def _read(self, sql: str, values: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        if self._postgres is None and not self.path.exists():
            return []
        with self._open() as database:
            if self._postgres is None:
                known = database.rows("SELECT count(*) FROM sqlite_master WHERE name = ?", ("promotions",))
            else:
                known = database.rows("SELECT count(*) FROM pg_tables WHERE tablename = ?", ("promotions",))
            return database.rows(sql, values) if known[0][0] else []

    @contextmanager
    def _writing(self) -> Iterator[_Database]:
        """One transaction, its tables made if need be; commits at the end, undoes everything on an exception."""
        if self._postgres is None:
            self._make_file()
        with self._open() as database:
            database.begin()
            try:
                for statement in _SCHEMA:
                    database.run(statement.format(serial=database.serial), ())
                yield database
                killpoint("promotion.before_commit")
                database.commit()
            except BaseException:
                database.undo()
                raise

    def _make_file(self) -> None:
        """The file, readable by its owner alone; SQLite gives its companions the same mode."""
        if self.path.exists() and self.path.stat().st_size:
            return
        private_folder(self.path.parent)
        try:
            with locked(self.path.parent):  # switching to WAL does not wait for another process that does the same
                os.close(os.open(self.path, os.O_CREAT, 0o600))
                with self._open() as database:
                    database.rows("PRAGMA journal_mode = WAL", ())
        except OSError as error:
            fault = Fault("E5002", "a file we can write", error.strerror or error, "choose another home", self.where)
            raise Unavailable(fault) from error

    @contextmanager
    def _open(self) -> Iterator[_Database]:
        try:
            with closing(_postgres(self._postgres) if self._postgres else _sqlite(self.path)) as connection:
                yield _Database(connection, self._postgres is not None)
        except Exception as error:
            if type(error).__module__.partition(".")[0] not in ("sqlite3", "sqlalchemy", "psycopg2", "psycopg"):
                raise
            first_line = next(iter(str(error).splitlines()), type(error).__name__)
            if "cannot contain NUL" in first_line:
                hint = "leave the zero byte out; nothing was changed"
                raise UsageError(Fault("E2001", "text that the promotion table can store", first_line, hint)) from error
            hint = "nothing was changed; running again is safe"
            fault = Fault(
                "E5003", "an answer from the promotion table", _CREDENTIALS.sub("://", first_line), hint, self.where
            )
            raise Unavailable(fault) from error


class _Database:
    """The few calls that are needed, the same for both kinds of database."""

    def __init__(self, connection: Any, postgres: bool) -> None:
        self._connection, self._postgres = connection, postgres
        self.serial = "SERIAL PRIMARY KEY" if postgres else "INTEGER PRIMARY KEY AUTOINCREMENT"

    def begin(self) -> None:
        """One writer at a time, so that making the tables and reading before writing cannot interleave."""
        if self._postgres:
            self.run("SELECT pg_advisory_xact_lock(?)", (0x70726F6D,))
        else:
            self.run("BEGIN IMMEDIATE", ())

    def run(self, sql: str, values: tuple[Any, ...]) -> int:
        """Rows that a statement changed."""
        with closing(self._connection.cursor()) as cursor:
            cursor.execute(self._form(sql), values)
            return int(cursor.rowcount)

    def rows(self, sql: str, values: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        """Rows that a query finds."""
        with closing(self._connection.cursor()) as cursor:
            cursor.execute(self._form(sql), values)
            return [tuple(row) for row in cursor.fetchall()]

    def commit(self) -> None:
        self._connection.commit()

    def undo(self) -> None:
        self._connection.rollback()

    def _form(self, sql: str) -> str:
        return sql.replace("?", "%s") if self._postgres else sql


def _sqlite(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=_WAIT_S, isolation_level=None)  # we say where transactions begin
    connection.execute("PRAGMA synchronous = FULL")  # a promotion that was reported outlives a power cut
    return connection


def _postgres(uri: str) -> Any:
    """A plain connection to the address, which libpq reads as SQLAlchemy does once the driver's name is out of it."""
    try:
        import psycopg
    except ModuleNotFoundError:  # another driver: a connection of the engine that MLflow would use
        from mlflow.store.db.utils import create_sqlalchemy_engine

        return create_sqlalchemy_engine(uri).raw_connection()
    _, _, rest = uri.partition("://")
    waits: dict[str, Any] = {} if "connect_timeout" in rest else {"connect_timeout": 10}
    return psycopg.connect(f"postgresql://{rest}", **waits)


def _insertion(entry: Entry) -> tuple[str, tuple[Any, ...]]:
    if entry.action not in ACTIONS:
        raise ValueError(f"action: expected one of {ACTIONS}, got {entry.action!r}")
    evidence = json.dumps(entry.evidence, allow_nan=False, sort_keys=True)
    values = (
        entry.at,
        entry.who,
        entry.action,
        entry.name,
        entry.from_version,
        entry.to_version,
        entry.why,
        entry.digest,
    )
    return f"INSERT INTO promotions ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", (*values, evidence)  # noqa: S608


def user() -> str:
    """The operating system's name for whoever runs this; "unknown" where it has none."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a number without a name, as in a container
        return "unknown"


def now() -> str:
    """The present in UTC, to the second, as the audit writes it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def mirror(client: MlflowClient, table: PromotionTable, name: str, aliases: Mapping[str, str]) -> dict[str, str]:
    """``aliases`` of ``name`` as our table says they are; where MLflow's differ they are set right there too.

    A name that was never promoted keeps MLflow's aliases. A version that MLflow no longer has cannot be pointed to: its
    alias is left out, with a warning. Only ``champion`` and ``previous`` are ours; all others pass through.
    """
    found = dict(aliases)
    for _ in range(_MOST_MIRRORS):
        row = table.champion(name)
        if row is None:
            return found
        for alias, version in ((CHAMPION, row.version), (PREVIOUS, row.previous)):
            _point(client, name, alias, version, found)
        if table.champion(name) == row:  # else somebody promoted meanwhile, and our aliases may have come last
            return found
    return found


def _point(client: MlflowClient, name: str, alias: str, version: int | None, found: dict[str, str]) -> None:
    """Make one alias point to ``version`` in MLflow and in ``found``; None takes it away."""
    from mlflow.exceptions import MlflowException

    if version is None:
        if found.pop(alias, None) is not None:
            client.delete_registered_model_alias(name, alias)
        return
    if found.get(alias) == str(version):
        return
    try:
        client.set_registered_model_alias(name, alias, str(version))
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        _log.warning("%s version %d is the %s, but MLflow no longer has it", name, version, alias)
        if found.pop(alias, None) is not None:
            client.delete_registered_model_alias(name, alias)
        return
    _log.info("%s: alias %s set to version %d, as the promotion table says", name, alias, version)
    found[alias] = str(version)
