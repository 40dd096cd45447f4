"""Run the migrations on the connection, and inside the transaction, that ``alerts.database`` hands over."""

from alembic import context

from alerts.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
