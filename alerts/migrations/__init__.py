"""Alembic's history of the alert database; ``alerts.database`` runs it inside its own transaction."""
