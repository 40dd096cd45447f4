"""A PostgreSQL server of the tests' own: started once per test process on a socket in a folder of its own, stopped at the end.

The server sorts by the rules of English, not by bytes, as a plant's own may: an order that hangs on the collation shows. It does
not wait for the disk, since nothing of it is to be kept.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from alerts.tables import SCHEMA_VERSION, metadata, version

if TYPE_CHECKING:
    import psycopg

_USER = "anomaly"
_PORT = 5432  # part of the socket's name; nothing listens on the network
_SETTINGS = {
    "listen_addresses": "",
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "autovacuum": "off",
    "shared_buffers": "32MB",
    "max_connections": "60",
}
_INITDB = ("--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8", "--locale-provider=icu", "--icu-locale=en-US")

#: The tables of a database and what its version table says; compared with those of a new alert database.
_TABLES = """
DO $$ BEGIN CREATE TEMP TABLE found (name text, version text);
  INSERT INTO found SELECT tablename, '' FROM pg_tables WHERE schemaname = 'public';
  IF to_regclass('public.alembic_version') IS NOT NULL THEN
    INSERT INTO found SELECT '', version_num FROM public.alembic_version;
  END IF;
END $$;
SELECT * FROM found ORDER BY name COLLATE "C"
"""
_NEWEST = sorted([("", SCHEMA_VERSION), (version.name, ""), *((table, "") for table in metadata.tables)])

#: Takes all rows and starts the numbers anew, faster than the migrations would make the tables again.
_EMPTY = """
SET session_replication_role = replica;
DO $$ DECLARE it text; held boolean; BEGIN
  FOR it IN SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename <> 'alembic_version' LOOP
    EXECUTE format('SELECT EXISTS (SELECT FROM public.%I)', it) INTO held;
    IF held THEN EXECUTE format('TRUNCATE public.%I CASCADE', it); END IF;
  END LOOP;
  FOR it IN SELECT sequencename FROM pg_sequences WHERE schemaname = 'public' LOOP
    PERFORM setval(format('public.%I', it)::regclass, 1, false);
  END LOOP;
END $$
"""


def binaries() -> Path | None:
    """The folder of ``initdb`` and ``postgres``: of the path, else the newest that Debian's package has; None without."""
    found = shutil.which("initdb")
    versions = [p for p in Path("/usr/lib/postgresql").glob("*/bin") if (p / "initdb").exists()]
    newest = max(versions, key=lambda p: float(p.parent.name), default=None)
    return Path(found).resolve().parent if found else newest


def _owner() -> str | None:
    """Whom the server runs as: it refuses to run as root. None: whoever runs the tests."""
    return "postgres" if os.geteuid() == 0 else None


class Server:
    """A running server; ``stop`` ends it and deletes its folder. ``lent`` databases are empty and taken back after a test."""

    def __init__(self, programs: Path) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="anomaly-pg-", dir="/tmp"))  # a socket's path must be short
        self._programs, self._count, self._free, self._migrated = programs, 0, list[str](), list[str]()
        if owner := _owner():
            shutil.chown(self.folder, owner, owner)
        data = str(self.folder / "data")
        self._run("initdb", "-D", data, "-U", _USER, "--no-sync", *_INITDB).communicate()
        options = [f"-c{name}={value}" for name, value in _SETTINGS.items()]
        self._process = self._run("postgres", "-D", data, "-k", str(self.folder), *options)
        self._await()

    def _run(self, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        """A program of PostgreSQL's, which ends when the tests are killed; its output goes to a file."""
        ends_with_us = ["setpriv", "--pdeathsig", "INT"] if shutil.which("setpriv") else []
        who: dict[str, Any] = {"user": _owner(), "group": _owner(), "extra_groups": []} if _owner() else {}
        with (self.folder / f"{program}.log").open("wb") as log:
            command = [*ends_with_us, str(self._programs / program), *arguments]
            return subprocess.Popen(command, stdout=log, stderr=log, cwd=self.folder, **who)

    def _await(self) -> None:
        import psycopg

        for _ in range(600):
            try:
                psycopg.connect(self.conninfo("postgres")).close()
                return
            except psycopg.OperationalError:
                if self._process.poll() is not None:
                    break
                time.sleep(0.05)
        logs = "\n".join(p.read_text(errors="replace")[-2000:] for p in sorted(self.folder.glob("*.log")))
        self.stop()
        pytest.fail(f"PostgreSQL did not start:\n{logs}")

    def conninfo(self, name: str) -> str:
        """How libpq finds a database."""
        return f"host={self.folder} port={_PORT} user={_USER} dbname={name}"

    def url(self, name: str, driver: str = "postgresql") -> str:
        """The URL of a database, as a user gives it."""
        return f"{driver}://{_USER}@/{name}?host={self.folder}&port={_PORT}"

    def execute(self, sql: str, name: str = "postgres") -> list[tuple[Any, ...]]:
        """Run statements apart from any code of ours; the rows of the last one."""
        import psycopg

        with psycopg.connect(self.conninfo(name), autocommit=True) as connection:
            cursor = connection.execute(sql)
            while cursor.nextset():
                pass
            return list(cursor.fetchall()) if cursor.description else []

    @cached_property
    def _keeper(self) -> psycopg.Connection[Any]:
        import psycopg

        return psycopg.connect(self.conninfo("postgres"), autocommit=True)

    def take(self, *, with_tables: bool = False) -> str:
        """The name of an empty database; ``with_tables``: the tables of the alert database may be there, with no row."""
        if with_tables and self._migrated:
            return self._migrated.pop()
        if self._free:
            return self._free.pop()
        self._count += 1
        self._keeper.execute(f"CREATE DATABASE t{self._count}")
        return f"t{self._count}"

    def cut(self, name: str) -> int:
        """End all connections to a database; how many there were."""
        query = "SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity WHERE datname = %s"
        return int(self._keeper.execute(query, (name,)).fetchall()[0][0])

    def give_back(self, name: str) -> None:
        """Empty a database for the next test; whoever is still connected is cut off."""
        self.cut(name)
        if self.execute(_TABLES, name) == _NEWEST:
            self.execute(_EMPTY, name)
            self._migrated.append(name)
        else:
            self.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public", name)
            self._free.append(name)

    @contextmanager
    def lent(self) -> Iterator[str]:
        """The name of an empty database for the time of the block."""
        name = self.take()
        try:
            yield name
        finally:
            self.give_back(name)

    def stop(self) -> None:
        """End the server at once and delete what it wrote."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


_KEY = pytest.StashKey[Server]()


def server_of(config: pytest.Config) -> Server:
    """The server of this test process, started at the first call; without the programs: skips, or fails where CI is set."""
    if _KEY not in config.stash:
        programs = binaries()
        if programs is None and os.environ.get("CI"):
            pytest.fail("PostgreSQL's initdb must be installed when CI is set")
        if programs is None:
            pytest.skip("PostgreSQL is not installed: its tests are left out (Debian: apt-get install postgresql)")
        config.stash[_KEY] = server = Server(programs)
        config.add_cleanup(server.stop)
    return config.stash[_KEY]


class PathsAsDatabases:
    """Gives each path that a test names as its alert database an empty PostgreSQL database instead.

    So that one suite, which says ``Database(tmp_path / "alerts.db")``, runs on both kinds.
    """

    def __init__(self, server: Server) -> None:
        self.server, self._names, self._in_folders = server, dict[str, str](), set[str]()

    def url(self, given: str) -> str:
        """The PostgreSQL URL that stands for a path or a SQLite URL; any other as it is."""
        path = given.removeprefix("sqlite:///")
        if "://" in path:
            return given
        if path not in self._names:
            self._give_back(
                {p for p in self._in_folders if not Path(p).parent.exists()}
            )  # of Hypothesis's last example
            self._names[path] = self.server.take(with_tables=True)
            if Path(path).parent.exists():
                self._in_folders.add(path)
        return self.server.url(self._names[path])

    @contextmanager
    def until_here(self) -> Iterator[None]:
        """Give back the databases that were named first within the block."""
        before = set(self._names)
        try:
            yield
        finally:
            self._give_back(set(self._names) - before)

    def _give_back(self, paths: set[str]) -> None:
        for path in paths:
            self.server.give_back(self._names.pop(path))
            self._in_folders.discard(path)


KINDS = ("sqlite", pytest.param("postgres", marks=pytest.mark.postgres))


def on_both(metafunc: pytest.Metafunc, without: Mapping[str, str], sqlite_only: Mapping[str, str]) -> None:
    """Run a test once for each kind of database.

    ``without``: modules that use no database, run once. ``sqlite_only``: names of tests that are about SQLite, with the reason.
    """
    if metafunc.module.__name__ not in without and metafunc.function.__name__ not in sqlite_only:
        metafunc.parametrize("database_kind", KINDS, indirect=True, scope="module")


@contextmanager
def database_of_kind(request: pytest.FixtureRequest) -> Iterator[PathsAsDatabases | None]:
    """For the PostgreSQL half of a module, paths are databases of the server; None for the other half."""
    import alerts.database

    if getattr(request, "param", "sqlite") == "sqlite":
        yield None
        return
    paths, original = PathsAsDatabases(server_of(request.config)), alerts.database._url
    with pytest.MonkeyPatch.context() as patch, paths.until_here():
        patch.setattr(alerts.database, "_url", lambda given: original(paths.url(str(given))))
        yield paths
