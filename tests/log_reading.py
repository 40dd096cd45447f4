"""What the tests of the readers share: times as numbers, a file to write, a log as one chunk."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from anomaly.data.contract import LogChunk
from anomaly.data.readers import PlantLog


def us(text: str) -> int:
    """An ISO time, UTC where it has no zone, as microseconds."""
    moment = datetime.fromisoformat(text)
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return round(moment.timestamp() * 10**6)


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8", newline="")
    return path


def joined(log: PlantLog, rows: int = 65536) -> LogChunk:
    """The whole log as one chunk, read ``rows`` at a time."""
    return LogChunk.join(list(log.chunks(rows)))
