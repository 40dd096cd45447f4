"""The window behind the peak of an alert, to draw it; indexes for the filters by kind and by who it is assigned to."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_INDEXES = {
    "ix_alerts_kind_time": ["kind", "start_us", "id"],
    "ix_alerts_assignee_time": ["assignee", "start_us", "id"],
}


def upgrade() -> None:
    """To this version; alerts from before have no excerpt."""
    op.add_column("alerts", sa.Column("excerpt", sa.Text))
    for name, columns in _INDEXES.items():
        op.create_index(name, "alerts", columns)


def downgrade() -> None:
    """Back to alerts without an excerpt."""
    for name in _INDEXES:
        op.drop_index(name, "alerts")
    op.drop_column("alerts", "excerpt")
