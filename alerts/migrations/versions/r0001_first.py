"""Ledger of batches, covered time, alerts."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """To this version."""
    _create_batches()
    op.create_table(
        "coverage",
        sa.Column("asset", sa.Text, nullable=False),
        sa.Column("model", sa.String(128), nullable=False),
        sa.Column("start_us", sa.BigInteger, nullable=False),
        sa.Column("end_us", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("asset", "model", "start_us", name="pk_coverage"),
    )
    _create_alerts()


def _create_batches() -> None:
    op.create_table(
        "batches",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("model", sa.String(128), nullable=False),
        sa.Column("model_name", sa.Text, nullable=False),
        sa.Column("file_name", sa.Text, nullable=False),
        sa.Column("rows", sa.BigInteger, nullable=False),
        sa.Column("start_us", sa.BigInteger),
        sa.Column("end_us", sa.BigInteger),
        sa.Column("normal", sa.BigInteger, nullable=False),
        sa.Column("anomalous", sa.BigInteger, nullable=False),
        sa.Column("unscorable", sa.BigInteger, nullable=False),
        sa.Column("score_path", sa.Text, nullable=False),
        sa.Column("recorded_at", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_batches"),
        sa.UniqueConstraint("sha256", "model", name="uq_batches_sha256_model"),
    )


def _create_alerts() -> None:
    op.create_table(
        "alerts",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("asset", sa.Text, nullable=False),
        sa.Column("model", sa.String(128), nullable=False),
        sa.Column("model_name", sa.Text, nullable=False),
        sa.Column("start_us", sa.BigInteger, nullable=False),
        sa.Column("peak_us", sa.BigInteger, nullable=False),
        sa.Column("end_us", sa.BigInteger, nullable=False),
        sa.Column("peak_score", sa.Double, nullable=False),
        sa.Column("threshold", sa.Double, nullable=False),
        sa.Column("rows", sa.BigInteger, nullable=False),
        sa.Column("lead_us", sa.BigInteger),
        sa.Column("top_tags", sa.Text, nullable=False),
        sa.Column("state", sa.String(32), nullable=False),
        sa.Column("first_batch", sa.Integer, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_alerts"),
        sa.ForeignKeyConstraint(["first_batch"], ["batches.id"], name="fk_alerts_first_batch"),
        sa.UniqueConstraint("asset", "model", "start_us", name="uq_alerts_asset_model_start_us"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_alerts_start_us", "alerts", ["start_us"])


def downgrade() -> None:
    """Back to an empty database."""
    for table in ("alerts", "coverage", "batches"):
        op.drop_table(table)
