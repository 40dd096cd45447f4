"""The command line of the workflow and of users, in this process on a database of its own."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from alert_rows import HOUR, Clock, put, row, spaced

from alerts.store import AlertStore
from alerts.users import Users
from alerts.workflow import Workflow
from pipelines.cli import main

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AlertStore:
    monkeypatch.setenv("ANOMALY_DB_URL", str(tmp_path / "alerts.db"))
    return AlertStore(tmp_path / "alerts.db")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    def call(*args: object, stdin: str = "") -> tuple[int, str, str]:
        out, err, status = io.StringIO(), io.StringIO(), 0
        monkeypatch.setattr(sys, "argv", ["anomaly", *map(str, args)])
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        with redirect_stdout(out), redirect_stderr(err):
            try:
                main()
            except SystemExit as stop:
                status = int(stop.code or 0)
        return status, out.getvalue(), err.getvalue()

    return call


def made_something(store: AlertStore) -> bool:
    """Whether there is a file; of a server's database, whether it holds anything."""
    return store.database.exists() if store.database.path else any(store.dump().values())


def said(answer: tuple[int, str, str]) -> Any:
    assert answer[0] == 0, answer[2]
    return json.loads(answer[1])


def test_a_morning_on_the_command_line(store: AlertStore, run: Run) -> None:
    put(store.database, spaced(3))
    assert run("alerts", "ack", 1, 2, "--by", "ann")[:2] == (0, "alert 1 is acknowledged\nalert 2 is acknowledged\n")
    assert said(run("alerts", "start", 1, "--by", "bob", "--json"))["alerts"][0]["assignee"] == "bob"
    assert said(run("alerts", "assign", 1, "--to", "cem", "--json"))["alerts"][0]["assignee"] == "cem"
    assert said(run("alerts", "assign", 1, "--json"))["alerts"][0]["assignee"] is None
    assert run("alerts", "note", 1, "felt\nworn", "--by", "cem")[0] == 0
    assert run("alerts", "shelve", 2, "--for", "8h", "--reason", "parts")[1] == "alert 2 is shelved\n"
    assert [a["id"] for a in said(run("alerts", "list", "--state", "shelved", "--json"))["alerts"]] == [2]
    assert run("alerts", "unshelve", 2)[1] == "alert 2 is acknowledged\n"
    assert run("alerts", "verdict", 1, "true fault", "--comment", "changed")[1] == "alert 1 is closed: true_fault\n"
    shown = run("alerts", "show", 1)[1]
    assert "cem  note → in_work: felt\\nworn" in shown
    assert [e["action"] for e in said(run("alerts", "show", 1, "--json"))["events"]][-1] == "verdict"
    assert "press,2023-11-14T22:13:20Z" in run("alerts", "labels")[1]
    assert run("alerts", "reopen", 1)[1] == "alert 1 is new\n"


def test_what_cannot_be_changed_is_said_and_the_rest_is_done(store: AlertStore, run: Run) -> None:
    put(store.database, spaced(2))
    run("alerts", "ack", 1)
    status, out, err = run("alerts", "ack", 1, 2, 9)
    assert (status, out) == (2, "alert 2 is acknowledged\n")
    assert err.count("E2001") == 2


@pytest.mark.parametrize(
    "line",
    ["ack 1", "verdict 1 boring", "shelve 1 --for 8parsec --reason x", "shelve 1 --for 31d --reason x", "shelve 1 --for 8h",
     "shelve 1 --for 8h --reason=", "list --state gone", "note 1", "ack"],
)  # fmt: skip
def test_wrong_lines_end_with_2(store: AlertStore, run: Run, line: str) -> None:
    if line != "ack 1":
        put(store.database, [row()])
    status, _, err = run("alerts", *line.split())
    assert status == 2
    assert "E2001" in err
    assert line != "ack 1" or not made_something(store), "a change of nothing makes no database"


def test_the_list_shows_a_shelf_as_ended_when_it_is(store: AlertStore, run: Run) -> None:
    put(store.database, [row()])
    Workflow(store.database, Clock()).shelve(1, "ann", Clock().now + HOUR, "parts")
    assert [a["state"] for a in said(run("alerts", "list", "--json"))["alerts"]] == ["new"]


def test_users_on_the_command_line(store: AlertStore, run: Run) -> None:
    assert run("users", "list")[1].startswith("nobody yet")
    assert not made_something(store)
    added = run("users", "add", "ann", "--role", "operator", "--password-stdin", stdin="seven felt rolls\n")
    assert added[:2] == (0, "added ann, operator\n")
    assert Users(store.database).sign_in("ann", "seven felt rolls")[1].role == "operator"
    assert run("users", "add", "bob", "--password-stdin", stdin="short\n")[0] == 2
    assert run("users", "add", "bob")[0] == 2, "nobody can be asked"
    assert run("users", "disable", "ann")[:2] == (0, "disabled ann\n")
    assert run("users", "list")[1] == "ann  operator  disabled\n"
    assert "password" not in said(run("users", "list", "--json"))["users"][0]
    assert run("users", "disable", "nobody")[0] == 2
