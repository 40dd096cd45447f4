"""The migrations give the schema that ``alerts.tables`` describes, on both kinds of database."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.script import ScriptDirectory
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateTable

import alerts
from alerts.database import Database
from alerts.episodes import Episode
from alerts.findings import Finding, record_findings
from alerts.store import AlertStore, BatchRecord
from alerts.tables import SCHEMA_VERSION, metadata

MIGRATIONS = Path(alerts.__file__).parent / "migrations"


def test_the_schema_version_is_the_newest_migration():
    assert ScriptDirectory(str(MIGRATIONS)).get_heads() == [SCHEMA_VERSION]


def test_migrations_give_the_described_tables(tmp_path):
    with Database(tmp_path / "alerts.db").writing() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "target_metadata": metadata})
        assert compare_metadata(context, metadata) == []
        uniques = sa.inspect(connection).get_unique_constraints("alerts")
        keys = sa.inspect(connection).get_foreign_keys("alerts")
    assert [u["column_names"] for u in uniques] == [["asset", "model", "kind", "cause", "start_us"]]
    assert [k["referred_table"] for k in keys] == ["batches"]


def test_migrations_go_back_to_an_empty_database(tmp_path):
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with Database(tmp_path / "alerts.db").writing() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "base")
        assert sa.inspect(connection).get_table_names() == ["alembic_version"]


def test_a_database_of_an_earlier_release_is_brought_up_to_date_with_its_alerts(tmp_path):
    path, config = tmp_path / "alerts.db", Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with Database(path).writing() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "0001")
        connection.execute(sa.text("INSERT INTO batches VALUES (1, 'a', 'm', 'n', 'f', 9, 0, 9, 9, 0, 0, '', 0)"))
        row = {"asset": "A", "model": "m", "model_name": "n", "start_us": 1, "peak_us": 2, "end_us": 3, "rows": 5}
        row |= {"peak_score": 4.0, "threshold": 3.0, "top_tags": '[["P", 1.0]]', "state": "new", "first_batch": 1}
        old = sa.table("alerts", *(sa.column(name) for name in (*row, "created_at")))
        connection.execute(sa.insert(old).values(**row, created_at=0))
    (alert,) = AlertStore(path).alerts()
    assert (alert.asset, alert.top_tags, alert.told()) == ("A", (("P", 1.0),), {"tags": [], "alike": []})
    with Database(path).reading() as connection:
        assert connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar() == SCHEMA_VERSION


def test_a_path_with_percent_and_spaces_is_migrated(tmp_path):
    with Database(tmp_path / "100 % é" / "alerts.db").writing() as connection:
        assert "alerts" in sa.inspect(connection).get_table_names()


@pytest.mark.parametrize("table", metadata.sorted_tables, ids=lambda t: t.name)
def test_tables_are_valid_for_postgresql(table):
    ddl = str(CreateTable(table).compile(dialect=postgresql.dialect()))
    assert "AUTOINCREMENT" not in ddl
    assert ("SERIAL" in ddl) == ("id" in table.c)
    for column in table.c:
        if column.name.endswith("_us") or column.name.endswith("_at"):
            assert isinstance(column.type, sa.BigInteger)  # microseconds do not fit 32 bits


def test_alerts_of_the_release_before_keep_number_and_state(tmp_path):
    path, config = tmp_path / "alerts.db", Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with Database(path).writing() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "0002")
        connection.execute(sa.text("INSERT INTO batches VALUES (1, 'a', 'm', 'n', 'f', 9, 0, 9, 9, 0, 0, '', 0)"))
        row = "'A', 'm', 'n', {0}, 2, 3, 4.0, 3.0, 5, NULL, '[]', 'new', 1, 0, '{{}}'"
        for number in (3, 7, 9):
            connection.execute(sa.text(f"INSERT INTO alerts VALUES ({number}, {row.format(number)})"))  # noqa: S608
        connection.execute(sa.text("DELETE FROM alerts WHERE id = 9"))
        if connection.dialect.name == "postgresql":  # whose sequence does not look at numbers that are given
            connection.execute(sa.text("SELECT setval('alerts_id_seq', 9)"))
    first, second = AlertStore(path).alerts()
    assert [(a.id, a.start_us, a.state, a.version, a.kind, a.priority) for a in (second, first)] == [
        (3, 3, "new", 1, "anomaly", 3), (7, 7, "new", 1, "anomaly", 3),
    ]  # fmt: skip
    with Database(path).writing() as connection:
        connection.execute(sa.text(
            "INSERT INTO alerts (asset, model, model_name, start_us, peak_us, end_us, peak_score, threshold, rows, top_tags, "
            "state, created_at) VALUES ('B', 'm', 'n', 1, 2, 3, 4.0, 3.0, 5, '[]', 'new', 0)"
        ))  # fmt: skip
    assert [a.id for a in AlertStore(path).alerts(asset="B")] == [10], "9 was given before"


def test_going_back_keeps_anomalies_and_drops_what_the_older_release_does_not_know(tmp_path):
    path, config = tmp_path / "alerts.db", Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    record = BatchRecord("a", "m", "n", "f", 1, {}, {"A": (0, 100)})
    AlertStore(path).record_batch(record, [Episode("A", 1, 1, 2, 5.0, 3.0, 1)])
    record_findings(Database(path), [Finding("gap", "A", "T", 1, 2)])
    with Database(path).writing() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "0002")
        assert connection.execute(sa.text("SELECT id, asset, state FROM alerts")).all() == [(1, "A", "new")]
    assert [a.kind for a in AlertStore(path).alerts()] == ["anomaly"]


def test_the_migrations_can_be_written_for_postgresql():
    script = io.StringIO()
    context = MigrationContext.configure(dialect_name="postgresql", opts={"as_sql": True, "output_buffer": script})
    with Operations.context(context):
        for revision in reversed(list(ScriptDirectory(str(MIGRATIONS)).walk_revisions())):
            revision.module.upgrade()
    sql = script.getvalue()
    assert sql.count("CREATE TABLE") == len(metadata.tables)
    assert sql.count("CREATE TRIGGER") == 2
    assert "AUTOINCREMENT" not in sql


def test_the_indexes_are_those_described(tmp_path):
    """``compare_metadata`` does not see the order of an index's columns."""
    with Database(tmp_path / "alerts.db").writing() as connection:
        for table in metadata.sorted_tables:
            indexes = sa.inspect(connection).get_indexes(table.name)
            held = {i["name"]: i["column_names"] for i in indexes if not i.get("duplicates_constraint")}
            assert held == {i.name: [c.name for c in i.columns] for i in table.indexes}
