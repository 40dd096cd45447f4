"""The champion changes by evidence, in one step, with a way back; MLflow's aliases follow our table."""

from __future__ import annotations

import getpass
import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from anomaly.errors import ModelRefused, Unavailable
from registry.catalogue import list_models, resolve_model, show_model
from registry.comparison import Gate
from registry.promotion import candidate, history, promote, rollback
from registry.promotion_table import Champion, Entry, PromotionTable
from registry.state import State, connection
from registry.tracking import RegisteredModel

Register = Callable[..., RegisteredModel]

GOOD = [
    Gate("events", True, "12 events", 12.0, limit=5.0),
    Gate("average_precision", True, "0.1 higher", 0.1, 0.02, 0.2),
]
BAD = [GOOD[0], Gate("average_precision", False, "worse than the champion: 0.300 lower", -0.3, -0.4, -0.1, 0.0)]


@pytest.fixture
def three(register: Register, model: Any) -> list[RegisteredModel]:
    """Version 1, the champion, version 2, and version 3, the challenger."""
    return [register(replace(model, threshold=replace(model.threshold, value=v))) for v in (1.5, 2.0, 2.5)]


def aliases(state: State, name: str = "press") -> dict[str, int]:
    """What MLflow itself says."""
    with connection(state) as client:
        return {k: int(v) for k, v in client.get_registered_model(name).aliases.items()}


def point(state: State, alias: str, version: int | None) -> None:
    """Change an alias behind our back."""
    with connection(state) as client:
        if version is None:
            client.delete_registered_model_alias("press", alias)
        else:
            client.set_registered_model_alias("press", alias, str(version))


def refused_with(code: str, call: Callable[[], Any]) -> ModelRefused:
    with pytest.raises(ModelRefused) as caught:
        call()
    assert caught.value.faults[0].code == code and caught.value.exit_code == 4
    return caught.value


# Promote ------------------------------------------------------------------------------------------------------------


def test_the_challenger_becomes_champion_and_the_champion_previous(three: Any, state: State) -> None:
    done = promote(candidate("press"), GOOD, who="ann", why="finds more")
    assert (done.version, done.before, done.who) == (3, 1, "ann")
    assert aliases(state) == {"champion": 3, "previous": 1, "challenger": 3}
    assert resolve_model("press").version == 3 and resolve_model("press@previous").version == 1
    assert [r.aliases for r in list_models()] == [("challenger", "champion"), (), ("previous",)]


@pytest.mark.parametrize(
    ("reference", "version"), [("press/2", 2), ("models:/press/2", 2), ("press@challenger", 3), ("models:/press", 3)]
)
def test_every_form_of_reference_names_a_candidate(three: Any, reference: str, version: int) -> None:
    found = candidate(reference)
    assert found.version == version and found.champion is not None and found.champion.version == 1


def test_the_evidence_is_kept_as_tags_and_in_the_audit(three: Any, state: State) -> None:
    promote(candidate("press/2"), GOOD, why="finds more", evidence={"rows": 1000})
    tags = show_model("models:/press/2").tags
    assert tags["promotion.average_precision"] == "passed: 0.1 higher"
    assert json.loads(tags["promotion"])["verdict"] == "promoted"
    last = show_model("press").history[-1]
    assert (last.action, last.from_version, last.to_version, last.who) == ("promoted", 1, 2, getpass.getuser())
    assert last.evidence["rows"] == 1000 and last.evidence["gates"][1]["low"] == 0.02
    assert last.digest == show_model("models:/press/2").digest and last.why == "finds more"


def test_a_failed_gate_refuses_with_its_words_and_changes_nothing(three: Any, state: State) -> None:
    before = aliases(state)
    error = refused_with("E4101", lambda: promote(candidate("press"), BAD, who="ann"))
    assert "0.300 lower" in str(error) and "average_precision" in str(error) and len(error.faults) == 1
    assert aliases(state) == before and resolve_model("press").version == 1
    assert [e.action for e in history("press")] == ["registered", "refused"]
    assert show_model("models:/press/3").tags["promotion.average_precision"].startswith("FAILED")
    promote(candidate("press"), GOOD)
    assert resolve_model("press").version == 3


def test_what_cannot_be_promoted_is_refused(three: Any, register: Register, model: Any) -> None:
    refused_with("E4101", lambda: candidate("press@champion"))
    refused_with("E4001", lambda: candidate("boiler"))
    refused_with("E4001", lambda: candidate("press/9"))
    with pytest.raises(ValueError, match="gates: expected at least one"):
        promote(candidate("press"), [])


def test_a_name_without_champion_may_be_promoted_on_its_own_gates(three: Any, state: State) -> None:
    point(state, "champion", None)
    found = candidate("press")
    assert found.champion is None
    done = promote(found, GOOD)
    assert done.before is None and aliases(state) == {"champion": 3, "challenger": 3}


def test_f9_a_decision_against_another_champion_is_refused(three: Any, state: State) -> None:
    late = candidate("press/3")
    promote(candidate("press/2"), GOOD)
    error = refused_with("E4102", lambda: promote(late, GOOD))
    assert "champion now version 2" in str(error) and aliases(state)["champion"] == 2
    also_late = candidate("press/3")
    promote(candidate("press/1"), GOOD)
    rollback("press")
    refused_with("E4102", lambda: promote(also_late, GOOD))  # version 2 again, but it was not all the time
    assert "promotion" not in show_model("models:/press/3").tags


def test_training_another_version_leaves_the_champion_alone(three: Any, register: Register, model: Any) -> None:
    promote(candidate("press/2"), GOOD)
    assert register(model).aliases == ("challenger",)
    assert resolve_model("press").version == 2 and resolve_model("press@challenger").version == 4


def test_a_version_that_was_changed_after_its_promotion_is_not_used(three: Any, state: State) -> None:
    promote(candidate("press/2"), GOOD)
    with connection(state) as client:
        other = client.get_model_version("press", "3").tags["bundle_digest"]
        client.set_model_version_tag("press", "2", "bundle_digest", other)
    refused_with("E4002", lambda: resolve_model("press"))


# Rollback -----------------------------------------------------------------------------------------------------------


def test_f11_one_command_goes_back_and_a_second_one_forth(three: Any, state: State) -> None:
    promote(candidate("press/2"), GOOD)
    promote(candidate("press/3"), GOOD)
    done = rollback("press", why="too many alerts")
    assert (done.version, done.before) == (2, 3)
    assert aliases(state)["champion"] == 2 and aliases(state)["previous"] == 3
    assert rollback("models:/press").version == 3 and resolve_model("press").version == 3
    said = [e.line() for e in history("press")]
    assert said[0].endswith("registered press version 1: first version of this name")
    assert "rolled back press version 2 (before: version 3): too many alerts" in said[3]
    assert len(said) == 5


def test_without_an_earlier_champion_there_is_no_way_back(three: Any) -> None:
    refused_with("E4103", lambda: rollback("press"))
    refused_with("E4103", lambda: rollback("boiler"))


def test_a_rollback_to_a_version_that_is_gone_is_refused_and_changes_nothing(three: Any, state: State) -> None:
    promote(candidate("press/2"), GOOD)
    with connection(state) as client:
        client.delete_model_version("press", "1")
    refused_with("E4001", lambda: rollback("press"))
    assert resolve_model("press").version == 2 and aliases(state) == {"champion": 2, "challenger": 3}


# The aliases follow -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("read", [lambda: resolve_model("press"), list_models, lambda: show_model("press")])
@pytest.mark.parametrize("version", [1, 3, None])
def test_f10_an_alias_that_went_astray_is_repaired_by_the_next_read(
    three: Any, state: State, read: Callable[[], Any], version: int | None
) -> None:
    promote(candidate("press/2"), GOOD)
    point(state, "champion", version)
    point(state, "previous", version)
    read()
    assert aliases(state) == {"champion": 2, "previous": 1, "challenger": 3}


def test_a_champion_deleted_in_mlflow_is_replaced_by_the_next_version(
    three: Any, register: Register, model: Any, state: State, caplog: Any
) -> None:
    promote(candidate("press/2"), GOOD)
    with connection(state) as client:
        client.delete_model_version("press", "2")
    assert resolve_model("press").version == 3 and "no longer has it" in caplog.text
    assert register(model).aliases == ("challenger", "champion")
    assert resolve_model("press").version == 4 and "version 2 is gone" in history("press")[-1].why


def test_the_promoted_champion_serves_from_the_cache_while_mlflow_is_down(
    three: Any, state: State, monkeypatch: Any
) -> None:
    resolve_model("press")
    promote(candidate("press/2"), GOOD)  # nobody read the name since
    (state.home / "mlflow.db").write_bytes(b"gone" * 1000)
    assert resolve_model("press").version == 2


_KILLED = """
import sys; sys.path.insert(0, {tests!r})
from test_promotion import GOOD
from registry.promotion import candidate, promote
promote(candidate("press/2"), GOOD, who="ann")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "version"),
    [
        ("promotion.before_table", 1),
        ("promotion.in_transaction", 1),
        ("promotion.before_commit", 1),
        ("promotion.before_alias", 2),
        ("promotion.after_alias", 2),
    ],
)
def test_f10_a_promotion_killed_half_way_is_either_old_or_new(
    three: Any, state: State, where: str, version: int
) -> None:
    code = _KILLED.format(tests=str(Path(__file__).parent))
    environment = {**os.environ, "ANOMALY_KILLPOINT": where}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == -9
    assert aliases(state)["champion"] == (2 if where == "promotion.after_alias" else 1)
    assert resolve_model("press").version == version and aliases(state)["champion"] == version
    assert [e.action for e in history("press")] == ["registered", "promoted"][:version]
    if version == 1:
        promote(candidate("press/2"), GOOD)  # running it again finishes the job
    assert resolve_model("press").version == 2


# The table ----------------------------------------------------------------------------------------------------------


def entry(version: int, **changes: Any) -> Entry:
    return replace(Entry("2026-01-01T00:00:00+00:00", "ann", "promoted", "press", None, version, "", "d"), **changes)


def table(folder: Path) -> PromotionTable:
    return PromotionTable(State(folder, f"sqlite:///{folder / 'mlflow.db'}"))


def test_reading_makes_no_file_and_writing_makes_a_private_one(tmp_path: Path) -> None:
    made = table(tmp_path)
    assert made.champion("press") is None and made.history("press") == () and not made.path.exists()
    made.change(None, Champion("press", 1, "d"), entry(1))
    assert made.path == tmp_path / "promotions.db" and made.path.stat().st_mode & 0o777 == 0o600
    with sqlite3.connect(made.path) as plain:
        assert plain.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_every_change_raises_the_revision_and_old_rows_no_longer_count(tmp_path: Path) -> None:
    made = table(tmp_path)
    first = made.change(None, Champion("press", 1, "d"), entry(1))
    second = made.change(first, Champion("press", 2, "e", 1, "d"), entry(2))
    assert made.champion("press") == second and second.revision == 2
    for stale in (None, first, replace(second, revision=3), replace(second, version=9)):
        refused_with("E4102", lambda stale=stale: made.change(stale, Champion("press", 5, "f"), entry(5)))  # type: ignore[misc]
    assert made.champion("press") == second and len(made.history("press")) == 2
    assert made.change(None, Champion("boiler", 1, "d"), entry(1, name="boiler")).revision == 1


def test_a_line_of_the_audit_that_cannot_be_written_undoes_the_change(tmp_path: Path) -> None:
    made = table(tmp_path)
    with pytest.raises(ValueError, match="action: expected one of"):
        made.change(None, Champion("press", 1, "d"), entry(1, action="stolen"))
    assert made.champion("press") is None and made.history("press") == ()


def test_hostile_text_is_data(tmp_path: Path) -> None:
    made, text = table(tmp_path), "'; DROP TABLE champions; -- % %s ?"
    made.change(None, Champion(text, 1, "d"), entry(1, name=text, why=text, who=text))
    assert made.history(text)[0].why == text and made.champion(text) is not None


def test_a_damaged_table_is_unavailable_and_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "promotions.db").write_bytes(b"not a database" * 100)
    for call in (lambda: table(tmp_path).champion("press"), lambda: table(tmp_path).note(entry(1))):
        with pytest.raises(Unavailable) as caught:
            call()
        assert caught.value.faults[0].code == "E5003" and "promotions.db" in str(caught.value)
    assert (tmp_path / "promotions.db").read_bytes().startswith(b"not a database")


def test_the_table_lies_beside_the_database_that_mlflow_uses(tmp_path: Path) -> None:
    home = tmp_path / "home"
    assert PromotionTable(State(home, f"sqlite:///{tmp_path}/x/mlflow.db")).path == tmp_path / "x/promotions.db"
    assert PromotionTable(State(home, f"sqlite:///{tmp_path}/a.db")).path == tmp_path / "a-promotions.db"
    assert PromotionTable(State(home, "http://127.0.0.1:9")).path == home / "promotions.db"
    assert "secret" not in PromotionTable(State(home, "postgresql://u:secret@h/db")).where


def test_a_table_in_mlflow_s_server_speaks_its_driver_s_sql(tmp_path: Path, monkeypatch: Any) -> None:
    """No PostgreSQL here: its statements, translated back, run on SQLite, so that none holds a stray sign."""
    from registry import promotion_table

    said: list[str] = []

    class Cursor:
        def __init__(self, own: sqlite3.Cursor) -> None:
            self.own, self.close, self.fetchall = own, own.close, own.fetchall

        @property
        def rowcount(self) -> int:
            return self.own.rowcount

        def execute(self, sql: str, values: tuple[Any, ...]) -> None:
            said.append(sql)
            assert sql.count("%s") == len(values) and "?" not in sql
            plain = sql.replace("%s", "?").replace("SERIAL PRIMARY KEY", "INTEGER PRIMARY KEY")
            plain = plain.replace("pg_tables WHERE tablename", "sqlite_master WHERE name")
            self.own.execute("SELECT 1" if "pg_advisory" in plain else plain, () if "pg_advisory" in plain else values)

    class Connection:
        def __init__(self, _: str) -> None:
            self.own = sqlite3.connect(tmp_path / "server.db")
            self.commit, self.rollback, self.close = self.own.commit, self.own.rollback, self.own.close

        def cursor(self) -> Cursor:
            return Cursor(self.own.cursor())

    monkeypatch.setattr(promotion_table, "_postgres", Connection)
    made = PromotionTable(State(tmp_path, "postgresql://u:secret@h/db"))
    first = made.change(None, Champion("press", 1, "d"), entry(1))
    refused_with("E4102", lambda: made.change(None, Champion("press", 2, "d"), entry(2)))
    assert made.champion("press") == first and len(made.history("press")) == 1
    assert any("pg_advisory_xact_lock" in s for s in said) and any("SERIAL" in s for s in said)
