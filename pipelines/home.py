"""Where state lives: ``./.anomaly`` or ``$ANOMALY_HOME``, and the alert database beside it or by URL."""

from __future__ import annotations

import os
from pathlib import Path


def home() -> Path:
    """The state folder: MLflow database and artifacts, alert database, reports, model cache, work in progress."""
    return Path(os.environ.get("ANOMALY_HOME") or ".anomaly")


def alert_database() -> str:
    """Path or URL of the alert database: ``$ANOMALY_DB_URL``, else a SQLite file under ``home()``."""
    return os.environ.get("ANOMALY_DB_URL") or str(home() / "alerts.db")


def reports() -> Path:
    """The folder that reports are written to."""
    return home() / "reports"
