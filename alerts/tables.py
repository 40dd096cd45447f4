"""The tables of the alert database. Times are integer UTC microseconds: SQLite would lose the zone of a date type.

A change here needs a migration in ``alerts/migrations/versions``; a test holds the two together.
"""

from __future__ import annotations

import sqlalchemy as sa

#: The newest migration; an older database is brought to it, a newer one refused.
SCHEMA_VERSION = "0004"
#: Versions that are brought to the newest one when they are opened.
OLDER_VERSIONS = ("0001", "0002", "0003")

metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

#: Alembic's own table, apart from ours so that no migration creates it.
version = sa.Table("alembic_version", sa.MetaData(), sa.Column("version_num", sa.String(32), primary_key=True))

#: The ledger: one row per log scored with one model; the same pair is never scored twice.
batches = sa.Table(
    "batches",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("sha256", sa.String(64), nullable=False),
    sa.Column("model", sa.String(128), nullable=False),  # digest of the model bundle
    sa.Column("model_name", sa.Text, nullable=False),
    sa.Column("file_name", sa.Text, nullable=False),
    sa.Column("rows", sa.BigInteger, nullable=False),
    sa.Column("start_us", sa.BigInteger),  # of the covered time of all assets, [start, end)
    sa.Column("end_us", sa.BigInteger),
    sa.Column("normal", sa.BigInteger, nullable=False),
    sa.Column("anomalous", sa.BigInteger, nullable=False),
    sa.Column("unscorable", sa.BigInteger, nullable=False),
    sa.Column("score_path", sa.Text, nullable=False),
    sa.Column("recorded_at", sa.BigInteger, nullable=False),
    sa.UniqueConstraint("sha256", "model"),
)

#: Time already answered, per asset and model: [start, end), disjoint.
coverage = sa.Table(
    "coverage",
    metadata,
    sa.Column("asset", sa.Text, primary_key=True),
    sa.Column("model", sa.String(128), primary_key=True),
    sa.Column("start_us", sa.BigInteger, primary_key=True),
    sa.Column("end_us", sa.BigInteger, nullable=False),
)

#: Episodes as people see them, findings on the data itself, and the parents of floods. Numbers of alerts are kept without a
#: foreign key elsewhere: an alert that a later log merges into another one leaves its past behind.
alerts = sa.Table(
    "alerts",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("asset", sa.Text, nullable=False),
    sa.Column("model", sa.String(128), nullable=False),
    sa.Column("model_name", sa.Text, nullable=False),
    sa.Column("start_us", sa.BigInteger, nullable=False),
    sa.Column("peak_us", sa.BigInteger, nullable=False),
    sa.Column("end_us", sa.BigInteger, nullable=False),
    sa.Column("peak_score", sa.Double, nullable=False),
    sa.Column("threshold", sa.Double, nullable=False),
    sa.Column("rows", sa.BigInteger, nullable=False),
    sa.Column("lead_us", sa.BigInteger),  # the lead the threshold was chosen for, if known
    sa.Column("top_tags", sa.Text, nullable=False),  # JSON: [[tag, share], …]
    sa.Column("state", sa.String(32), nullable=False),
    sa.Column("first_batch", sa.Integer, sa.ForeignKey("batches.id")),  # none: no log raised it
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("reasons", sa.Text, nullable=False, server_default=""),  # JSON of the peak row, or ""
    sa.Column("version", sa.Integer, nullable=False, server_default="1"),  # goes up with each change of the workflow
    sa.Column("priority", sa.Integer, nullable=False, server_default="3"),  # 1 high, 2 medium, 3 low
    sa.Column("kind", sa.String(32), nullable=False, server_default="anomaly"),
    sa.Column("cause", sa.Text, nullable=False, server_default=""),  # the tag or source of a finding on the data
    sa.Column("parent_id", sa.Integer),  # the flood it belongs to
    sa.Column("assignee", sa.Text),
    sa.Column("shelved_until", sa.BigInteger),
    sa.Column("verdict", sa.String(32)),
    sa.Column("reopened", sa.Integer, nullable=False, server_default="0"),
    sa.Column("acknowledged_at", sa.BigInteger),
    sa.Column("closed_at", sa.BigInteger),
    sa.Column("escalated_at", sa.BigInteger),
    sa.Column("search", sa.Text, nullable=False, server_default=""),  # asset, cause and tags, as texts.search_text
    sa.Column(
        "excerpt", sa.Text
    ),  # JSON: the window behind the peak, some tags; last, so that lists need not read past it
    sa.UniqueConstraint("asset", "model", "kind", "cause", "start_us"),
    sa.Index("ix_alerts_time", "start_us", "id", "search"),  # a text is looked for without reading the rows
    sa.Index("ix_alerts_state_time", "state", "start_us", "id"),
    sa.Index("ix_alerts_asset_time", "asset", "start_us", "id"),
    sa.Index("ix_alerts_priority_time", "priority", "start_us", "id"),
    sa.Index("ix_alerts_kind_time", "kind", "start_us", "id"),
    sa.Index("ix_alerts_assignee_time", "assignee", "start_us", "id"),
    sa.Index("ix_alerts_parent", "parent_id"),
    sqlite_autoincrement=True,  # a number is never given twice
)

#: What was done to each alert, by whom, when; triggers refuse every change and deletion.
alert_events = sa.Table(
    "alert_events",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("alert_id", sa.Integer, nullable=False),
    sa.Column("at", sa.BigInteger, nullable=False),
    sa.Column("actor", sa.Text, nullable=False),
    sa.Column("action", sa.String(32), nullable=False),
    sa.Column("from_state", sa.String(32), nullable=False),
    sa.Column("to_state", sa.String(32), nullable=False),
    sa.Column("comment", sa.Text, nullable=False),
    sa.Column("detail", sa.Text, nullable=False),  # JSON: what else was changed
    sa.Index("ix_alert_events_alert", "alert_id", "id"),
    sqlite_autoincrement=True,
)

#: People who may sign in.
users = sa.Table(
    "users",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("role", sa.String(16), nullable=False),
    sa.Column("password", sa.Text, nullable=False),  # scrypt$n$r$p$salt$hash
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("disabled_at", sa.BigInteger),
    sa.UniqueConstraint("name"),
    sqlite_autoincrement=True,
)

#: Who is signed in; the token itself is only in the browser.
sessions = sa.Table(
    "sessions",
    metadata,
    sa.Column("token_hash", sa.String(64), primary_key=True),
    sa.Column("user_id", sa.Integer, sa.ForeignKey("users.id"), nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("seen_at", sa.BigInteger, nullable=False),
    sa.Column("expires_at", sa.BigInteger, nullable=False),
    sa.Index("ix_sessions_user", "user_id"),
)

#: Tokens for machines.
tokens = sa.Table(
    "tokens",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("token_hash", sa.String(64), nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("role", sa.String(16), nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("expires_at", sa.BigInteger),
    sa.Column("disabled_at", sa.BigInteger),
    sa.UniqueConstraint("token_hash"),
    sa.UniqueConstraint("name"),
    sqlite_autoincrement=True,
)

#: Sign-ins and changes of users and tokens; kept like ``alert_events``.
user_events = sa.Table(
    "user_events",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("at", sa.BigInteger, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("address", sa.Text, nullable=False),
    sa.Column("action", sa.String(32), nullable=False),
    sa.Column("actor", sa.Text, nullable=False),
    sa.Column("comment", sa.Text, nullable=False),
    sa.Index("ix_user_events_name", "name", "at"),
    sa.Index("ix_user_events_address", "address", "at"),
    sqlite_autoincrement=True,
)

#: Planned maintenance: [start, end) per asset; the empty asset stands for all.
calendar = sa.Table(
    "calendar",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("asset", sa.Text, nullable=False),
    sa.Column("start_us", sa.BigInteger, nullable=False),
    sa.Column("end_us", sa.BigInteger, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("who", sa.Text, nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("cancelled_at", sa.BigInteger),
    sa.Index("ix_calendar_asset", "asset", "start_us"),
    sqlite_autoincrement=True,
)

#: What a plant says of its assets; an asset that is not here has weight 1 and the default budget.
assets = sa.Table(
    "assets",
    metadata,
    sa.Column("asset", sa.Text, primary_key=True),
    sa.Column("weight", sa.Double, nullable=False),
    sa.Column("budget", sa.Double, nullable=False),  # alerts per day
)

#: Messages, written in the transaction of what they tell; a row never changes.
outbox = sa.Table(
    "outbox",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("message_id", sa.String(36), nullable=False),  # a uuid: the same at every delivery
    sa.Column("kind", sa.String(32), nullable=False),
    sa.Column("asset", sa.Text, nullable=False),
    sa.Column("sensor", sa.Text, nullable=False),
    sa.Column("priority", sa.Integer, nullable=False),
    sa.Column("payload", sa.Text, nullable=False),  # JSON
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.UniqueConstraint("message_id"),
    sqlite_autoincrement=True,
)

#: How far each message has come on its way to one target.
deliveries = sa.Table(
    "deliveries",
    metadata,
    sa.Column("target", sa.String(64), primary_key=True),
    sa.Column("message", sa.Integer, sa.ForeignKey("outbox.id"), primary_key=True, autoincrement=False),
    sa.Column("state", sa.String(16), nullable=False),  # pending, sending, sent, limited, skipped, dead
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("next_at", sa.BigInteger, nullable=False),  # when it is due; while sending, when the lease ends
    sa.Column("claim", sa.String(32), nullable=False),
    sa.Column("sent_at", sa.BigInteger),
    sa.Column("error", sa.Text, nullable=False),
    sa.Index("ix_deliveries_due", "target", "state", "next_at"),
)
