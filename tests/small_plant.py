"""A small labelled log, its contract, and settings that fit it in seconds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd

from anomaly.config import Settings
from anomaly.data.contract import LogChunk, LogContract

SMALL = Settings().changed(window={"lookback": 6, "lead": "4min"}, training={"epochs": 8, "batch_size": 64})


def small_frame(rows: int = 3000, tags: int = 6, seed: int = 0) -> pd.DataFrame:
    """A plant of a few correlated tags at one minute, events of one row with a precursor of four, two gaps."""
    rng = np.random.default_rng(seed)
    latent = np.zeros((rows, 2))
    for i in range(1, rows):
        latent[i] = 0.95 * latent[i - 1] + rng.normal(size=2)
    values = latent @ rng.normal(size=(2, tags)) + 0.3 * rng.normal(size=(rows, tags))
    label = np.zeros(rows, dtype=np.int64)
    for event in range(150, rows - 20, 140):
        label[event] = 1
        values[event - 4 : event + 1, :2] += 8
    minutes = np.arange(rows) + 90 * (np.arange(rows) > rows // 2) + 30 * (np.arange(rows) > rows * 9 // 10)
    frame = pd.DataFrame(values.astype(np.float32), columns=[f"tag{i}" for i in range(tags)])
    frame.insert(0, "time", pd.Timestamp("2026-01-05", tz="UTC") + pd.to_timedelta(minutes, unit="min"))
    frame["label"] = label
    return frame


def contract_of(frame: pd.DataFrame) -> LogContract:
    """The contract of ``small_frame``."""
    return LogContract(
        "time", tuple(c for c in frame if str(c).startswith("tag")), 60_000_000, label="label", zoned=True
    )


def chunk_of(frame: pd.DataFrame) -> LogChunk:
    """All rows of ``small_frame`` as one chunk, labels included."""
    from anomaly.model import chunk_from_frame

    chunk = chunk_from_frame(frame, contract_of(frame))
    return replace(chunk, label=frame["label"].to_numpy(np.int8))
