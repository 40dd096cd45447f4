"""The tables of the alert database. Times are integer UTC microseconds: SQLite would lose the zone of a date type.

A change here needs a migration in ``alerts/migrations/versions``; a test holds the two together.
"""

from __future__ import annotations

import sqlalchemy as sa

#: The newest migration; an older database is brought to it, a newer one refused.
SCHEMA_VERSION = "0002"
#: Versions that are brought to the newest one when they are opened.
OLDER_VERSIONS = ("0001",)

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

#: Episodes as people see them.
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
    sa.Column("first_batch", sa.Integer, sa.ForeignKey("batches.id"), nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("reasons", sa.Text, nullable=False, server_default=""),  # JSON of the peak row, or ""
    sa.UniqueConstraint("asset", "model", "start_us"),
    sa.Index(None, "start_us"),
    sqlite_autoincrement=True,  # a number is never given twice
)
