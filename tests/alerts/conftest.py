"""Every test of the alert database runs on SQLite and on PostgreSQL; ``pytest -m postgres`` runs the second half alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

import pytest
from postgres import PathsAsDatabases, Server, database_of_kind, on_both, server_of

#: Modules that touch no database.
WITHOUT = {
    "test_apprise_targets": "sends to servers of its own",
    "test_episodes": "rules on scores",
    "test_postgres_alerts": "takes its databases from the server itself",
}

#: Tests that are about SQLite, its files or its planner; test_postgres_alerts.py says the same of PostgreSQL where there is
#: something to say.
SQLITE_ONLY = (
    dict.fromkeys(
        (
            "test_a_kill_loses_and_doubles_nothing",
            "test_two_writers_lose_no_update",
            "test_two_processes_create_the_database_at_once",
            "test_listing_starts_fast_and_light",
        ),
        "processes of their own, which are given a path",
    )
    | dict.fromkeys(
        (
            "test_a_locked_database_is_unavailable_and_still_readable",
            "test_another_schema_version_is_refused_and_left_alone",
            "test_a_database_of_another_program_is_refused",
            "test_a_file_that_is_no_database_is_refused_and_left_alone",
            "test_a_folder_or_a_file_in_the_way_is_refused",
            "test_a_full_disk_leaves_everything_as_it_was",
            "test_only_the_owner_may_read_the_file",
            "test_sqlite_runs_with_full_durability",
            "test_no_room_for_the_file_is_unavailable",
            "test_reading_a_database_that_is_not_there_makes_no_file",
            "test_other_urls_are_refused",
            "test_a_connection_serves_many_transactions_and_sees_what_others_write",
            "test_a_file_that_was_replaced_is_read_anew",
            "test_a_file_that_was_written_over_is_told",
            "test_another_schema_is_refused_though_the_connection_is_kept",
            "test_what_is_left_behind_when_a_service_ends_is_the_file_alone",
            "test_a_view_of_no_database_reads_nothing",
            "test_a_note_waits_for_no_other_writer",
            "test_after_a_note_the_connection_is_durable_again",
        ),
        "opens, fills or looks at the file",
    )
    | dict.fromkeys(
        (
            "test_overlapping_logs_give_the_same_alerts_in_any_order",
            "test_overlapping_logs_give_the_alerts_of_the_whole_log",
            "test_a_part_of_an_answered_log_changes_nothing",
        ),
        "a database for each of many examples; test_what_is_written_is_equal_on_both has some of them",
    )
    | {"test_every_page_walks_an_index": "asks SQLite's planner"}
)

#: Parameters of slow tests that PostgreSQL is spared: the first of each is enough.
SPARED = {"test_a_sender_killed_sixty_times_loses_and_invents_nothing": ("seed", (2, 3))}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every test of a database once for each kind."""
    on_both(metafunc, WITHOUT, SQLITE_ONLY)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out what ``SPARED`` names."""
    items[:] = [item for item in items if not _is_spared(item)]


def _is_spared(item: pytest.Item) -> bool:
    name, values = SPARED.get(getattr(item, "originalname", ""), ("", ()))
    given = item.callspec.params if hasattr(item, "callspec") else {}
    return given.get("database_kind") == "postgres" and given.get(name) in values


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Server:
    """The server of this test process."""
    return server_of(request.config)


@pytest.fixture
def name(server: Server) -> Iterator[str]:
    """An empty database of it, with no table yet."""
    with server.lent() as lent:
        yield lent


@pytest.fixture
def url(server: Server, name: str) -> str:
    """The URL of that database."""
    return server.url(name)


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
