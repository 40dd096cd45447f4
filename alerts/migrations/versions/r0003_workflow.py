"""The workflow on alerts: states with a past, users, planned work, messages to the outside."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_KEPT = ("alert_events", "user_events")
_NEW_TABLES = (
    "deliveries",
    "outbox",
    "assets",
    "calendar",
    "user_events",
    "tokens",
    "sessions",
    "users",
    "alert_events",
)
_NEW_COLUMNS = ("version", "priority", "kind", "cause", "parent_id", "assignee", "shelved_until", "verdict", "reopened",
                "acknowledged_at", "closed_at", "escalated_at", "search")  # fmt: skip
_INDEXES = {
    "ix_alerts_time": ["start_us", "id", "search"],
    "ix_alerts_state_time": ["state", "start_us", "id"],
    "ix_alerts_asset_time": ["asset", "start_us", "id"],
    "ix_alerts_priority_time": ["priority", "start_us", "id"],
    "ix_alerts_parent": ["parent_id"],
}


def upgrade() -> None:
    """To this version; alerts from before keep their number and state."""
    _widen_alerts()
    _create_people()
    _create_messages()
    for table in _KEPT:
        _refuse_changes(table)


def _widen_alerts() -> None:
    last = _last_number()
    op.drop_index("ix_alerts_start_us", "alerts")
    with op.batch_alter_table("alerts", table_kwargs={"sqlite_autoincrement": True}) as alerts:
        for column in (
            sa.Column("version", sa.Integer, nullable=False, server_default="1"),
            sa.Column("priority", sa.Integer, nullable=False, server_default="3"),
            sa.Column("kind", sa.String(32), nullable=False, server_default="anomaly"),
            sa.Column("cause", sa.Text, nullable=False, server_default=""),
            sa.Column("parent_id", sa.Integer),
            sa.Column("assignee", sa.Text),
            sa.Column("shelved_until", sa.BigInteger),
            sa.Column("verdict", sa.String(32)),
            sa.Column("reopened", sa.Integer, nullable=False, server_default="0"),
            sa.Column("acknowledged_at", sa.BigInteger),
            sa.Column("closed_at", sa.BigInteger),
            sa.Column("escalated_at", sa.BigInteger),
            sa.Column("search", sa.Text, nullable=False, server_default=""),
        ):
            alerts.add_column(column)
        alerts.alter_column("first_batch", existing_type=sa.Integer, nullable=True)
        alerts.drop_constraint("uq_alerts_asset_model_start_us", type_="unique")
        alerts.create_unique_constraint(
            "uq_alerts_asset_model_kind_cause_start_us", ["asset", "model", "kind", "cause", "start_us"]
        )
    op.execute("UPDATE alerts SET search = substr(lower(asset || ' ' || top_tags), 1, 500)")
    for name, columns in _INDEXES.items():
        op.create_index(name, "alerts", columns)
    _keep_last_number(last)


def _last_number() -> int | None:
    """The highest alert number ever given, which a copied table forgets; None where the server keeps it."""
    if op.get_context().dialect.name != "sqlite":
        return None
    held = op.get_bind().exec_driver_sql("SELECT seq FROM sqlite_sequence WHERE name = 'alerts'").scalar()
    return int(held) if held is not None else None


def _keep_last_number(last: int | None) -> None:
    if last is not None:
        bind = op.get_bind()
        bind.exec_driver_sql("DELETE FROM sqlite_sequence WHERE name = 'alerts'")
        bind.exec_driver_sql("INSERT INTO sqlite_sequence (name, seq) VALUES ('alerts', ?)", (last,))


def _create_people() -> None:
    op.create_table(
        "alert_events",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("alert_id", sa.Integer, nullable=False),
        sa.Column("at", sa.BigInteger, nullable=False),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("action", sa.String(32), nullable=False),
        sa.Column("from_state", sa.String(32), nullable=False),
        sa.Column("to_state", sa.String(32), nullable=False),
        sa.Column("comment", sa.Text, nullable=False),
        sa.Column("detail", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_alert_events"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_alert_events_alert", "alert_events", ["alert_id", "id"])
    op.create_table(
        "users",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("password", sa.Text, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("disabled_at", sa.BigInteger),
        sa.PrimaryKeyConstraint("id", name="pk_users"),
        sa.UniqueConstraint("name", name="uq_users_name"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "sessions",
        sa.Column("token_hash", sa.String(64), nullable=False),
        sa.Column("user_id", sa.Integer, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("seen_at", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("token_hash", name="pk_sessions"),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name="fk_sessions_user_id"),
    )
    op.create_index("ix_sessions_user", "sessions", ["user_id"])
    _create_tokens()


def _create_tokens() -> None:
    op.create_table(
        "tokens",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("token_hash", sa.String(64), nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger),
        sa.Column("disabled_at", sa.BigInteger),
        sa.PrimaryKeyConstraint("id", name="pk_tokens"),
        sa.UniqueConstraint("token_hash", name="uq_tokens_token_hash"),
        sa.UniqueConstraint("name", name="uq_tokens_name"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "user_events",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("at", sa.BigInteger, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("address", sa.Text, nullable=False),
        sa.Column("action", sa.String(32), nullable=False),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("comment", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_user_events"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_user_events_name", "user_events", ["name", "at"])
    op.create_index("ix_user_events_address", "user_events", ["address", "at"])


def _create_messages() -> None:
    op.create_table(
        "calendar",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("asset", sa.Text, nullable=False),
        sa.Column("start_us", sa.BigInteger, nullable=False),
        sa.Column("end_us", sa.BigInteger, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("who", sa.Text, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("cancelled_at", sa.BigInteger),
        sa.PrimaryKeyConstraint("id", name="pk_calendar"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_calendar_asset", "calendar", ["asset", "start_us"])
    op.create_table(
        "assets",
        sa.Column("asset", sa.Text, nullable=False),
        sa.Column("weight", sa.Double, nullable=False),
        sa.Column("budget", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("asset", name="pk_assets"),
    )
    op.create_table(
        "outbox",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("message_id", sa.String(36), nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("asset", sa.Text, nullable=False),
        sa.Column("sensor", sa.Text, nullable=False),
        sa.Column("priority", sa.Integer, nullable=False),
        sa.Column("payload", sa.Text, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_outbox"),
        sa.UniqueConstraint("message_id", name="uq_outbox_message_id"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "deliveries",
        sa.Column("target", sa.String(64), nullable=False),
        sa.Column("message", sa.Integer, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("next_at", sa.BigInteger, nullable=False),
        sa.Column("claim", sa.String(32), nullable=False),
        sa.Column("sent_at", sa.BigInteger),
        sa.Column("error", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("target", "message", name="pk_deliveries"),
        sa.ForeignKeyConstraint(["message"], ["outbox.id"], name="fk_deliveries_message"),
    )
    op.create_index("ix_deliveries_due", "deliveries", ["target", "state", "next_at"])


def _refuse_changes(table: str) -> None:
    """Triggers that keep what happened: the database itself refuses UPDATE and DELETE."""
    if op.get_context().dialect.name == "sqlite":
        for what in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER {table}_no_{what.lower()} BEFORE {what} ON {table} "
                f"BEGIN SELECT RAISE(ABORT, '{table} is never changed'); END"
            )
        return
    op.execute(
        f"CREATE FUNCTION {table}_is_kept() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN RAISE EXCEPTION '{table} is never changed' USING ERRCODE = 'integrity_constraint_violation'; END $$"
    )
    op.execute(
        f"CREATE TRIGGER {table}_kept BEFORE UPDATE OR DELETE OR TRUNCATE ON {table} "
        f"FOR EACH STATEMENT EXECUTE FUNCTION {table}_is_kept()"
    )


def downgrade() -> None:
    """Back to alerts without a workflow; findings on the data and floods are lost."""
    for table in _NEW_TABLES:
        op.drop_table(table)
    if op.get_context().dialect.name != "sqlite":
        for table in _KEPT:
            op.execute(f"DROP FUNCTION {table}_is_kept()")
    op.execute("DELETE FROM alerts WHERE kind <> 'anomaly' OR first_batch IS NULL")
    last = _last_number()
    for name in _INDEXES:
        op.drop_index(name, "alerts")
    with op.batch_alter_table("alerts", table_kwargs={"sqlite_autoincrement": True}) as alerts:
        alerts.drop_constraint("uq_alerts_asset_model_kind_cause_start_us", type_="unique")
        alerts.create_unique_constraint("uq_alerts_asset_model_start_us", ["asset", "model", "start_us"])
        alerts.alter_column("first_batch", existing_type=sa.Integer, nullable=False)
        for name in _NEW_COLUMNS:
            alerts.drop_column(name)
    op.create_index("ix_alerts_start_us", "alerts", ["start_us"])
    _keep_last_number(last)
