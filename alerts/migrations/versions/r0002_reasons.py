"""Why an alert: what its sensors did at the peak, and which past events it looks like."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """To this version; alerts from before know no reasons."""
    op.add_column("alerts", sa.Column("reasons", sa.Text, nullable=False, server_default=""))


def downgrade() -> None:
    """Back to alerts without reasons."""
    op.drop_column("alerts", "reasons")
