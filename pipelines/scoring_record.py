"""What a scoring request's rows mean beside their scores: findings on sensors, and alerts where the service records them."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from alerts.database import Database
from alerts.store import AlertStore
from anomaly.data.contract import LogChunk
from anomaly.data.quality import Finding
from anomaly.model import OUTCOMES, AnomalyModel, ScoredRows
from pipelines.notify import after_record
from pipelines.outages import Outages, record_outages
from pipelines.score import Coverage, Scored, Trackers, batch_record, slack_us
from pipelines.watch_sensors import sensor_watch


class Seen:
    """Follows the rows of one request; ``findings`` are what the sensor rules say of them, as ``anomaly score`` has it."""

    def __init__(self, model: AnomalyModel) -> None:
        self._model, self._run = model, Scored(Path())
        self._watch, self._trackers, self._covered = sensor_watch(model), Trackers(model), Coverage(model.max_gap_us)
        self._outages = Outages()

    def add(self, chunk: LogChunk, rows: ScoredRows) -> None:
        """Look at the next rows ``(n,)`` of the log beside their scores."""
        self._watch.update(chunk)
        self._trackers.update(rows)
        self._covered.add(rows)
        self._outages.update(rows)
        self._run.rows += len(rows.time)
        self._run.outcomes.update(OUTCOMES[rows.outcome].tolist())

    def findings(self) -> list[Finding]:
        """What the sensor rules found in all rows."""
        return self._watch.findings()

    def record(self, database: str, model_name: str, sha256: str, file_name: str) -> bool:
        """Enter the request, its alerts and the alerts on sensors into ``database``; again changes nothing.

        ``sha256`` is the digest of the body, by which a log that was scored before is known, by file or by request. Gives
        whether it was new. Raises Unavailable where the database is.
        """
        run = self._run
        run.episodes = self._trackers.finish()
        batch = batch_record(self._model, model_name, run, self._covered, sha256=sha256, file_name=file_name)
        recorded = AlertStore(database).record_batch(replace(batch, score_path=""), run.episodes)
        after_record(database, self.findings(), run.episodes, slack_us(self._model))
        record_outages(Database(database), self._outages.fresh)
        return recorded


def plain_findings(findings: list[Finding]) -> list[dict[str, Any]]:
    """Findings as JSON-ready tables: kind, asset, tag, start_us, end_us, detail, other."""
    return [asdict(f) for f in findings]
