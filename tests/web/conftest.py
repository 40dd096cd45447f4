"""A site with three alerts and a user of each role."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
from postgres import PathsAsDatabases, database_of_kind, on_both

warnings.filterwarnings("ignore", message="Using `httpx` with `starlette.testclient`")

from web_site import DAY, HOUR, T0, Site, alert_row  # noqa: E402

#: Modules that use no database of the tests' own.
WITHOUT = {
    "test_serve": "starts the service as a process, on the path of its home",
    "test_postgres_page": "stops the server or holds its lock itself",
}

#: Tests that are about SQLite's file; test_postgres_page.py says the same of PostgreSQL.
SQLITE_ONLY = dict.fromkeys(
    (
        "test_a_locked_database_is_told_as_busy_and_nothing_else",
        "test_a_damaged_database_is_told_and_the_process_still_answers",
    ),
    "locks or overwrites the file",
) | dict.fromkeys(
    (
        "test_nothing_hostile_runs",
        "test_every_control_has_a_name_and_can_be_reached_by_keys",
        "test_the_first_view_needs_no_script_and_a_phone_need_not_scroll_sideways",
        "test_the_morning_by_keys_alone",
    ),
    "layout and scripts in a browser; test_a_morning has the database's part",
)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every test of a database once for each kind."""
    on_both(metafunc, WITHOUT, SQLITE_ONLY)


@pytest.fixture(scope="module", autouse=True)
def database_kind(request: pytest.FixtureRequest) -> Iterator[PathsAsDatabases | None]:
    """What a path that a test gives as its alert database stands for; None: a SQLite file."""
    with database_of_kind(request) as paths:
        yield paths


@pytest.fixture(autouse=True)
def fresh_databases(database_kind: PathsAsDatabases | None) -> Iterator[None]:
    """No test finds what another left behind."""
    with database_kind.until_here() if database_kind else nullcontext():
        yield


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """Alerts 1 to 3 (new, acknowledged, closed) of two assets."""
    made = Site(tmp_path)
    made.put(
        alert_row(),
        alert_row(asset="pump", start_us=T0 - DAY, end_us=T0 - DAY + HOUR, state="acknowledged", priority=1),
        alert_row(start_us=T0 - 2 * DAY, end_us=T0 - 2 * DAY + HOUR, state="closed", verdict="nuisance"),
    )
    made.add_users()
    return made
