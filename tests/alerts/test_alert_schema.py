"""The migrations give the schema that ``alerts.tables`` describes, on both kinds of database."""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateTable

import alerts
from alerts.database import Database
from alerts.store import AlertStore
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
    assert [u["column_names"] for u in uniques] == [["asset", "model", "start_us"]]
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
