"""Our own methods for the detection benchmark: the commands that a user types, each in a process of its own.

``ours`` is ``anomaly train`` and ``anomaly score`` without a flag beyond the names of the time and the label column;
``encoder:NAME`` adds ``--encoder NAME``. ``ours_centred`` is the mean score of the windows that cover a row: it looks ahead,
stands beside the causal score, and is never what the product answers.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

OURS, CENTRED, ENCODER = "ours", "ours_centred", "encoder:"
ROOT = Path(__file__).resolve().parents[1]
_LONGEST_S = 3600
_MESSAGE = 400

Scores = NDArray[np.float64]


def product_scores(name: str, train: pd.DataFrame, rows: pd.DataFrame) -> tuple[Scores, int]:
    """Scores ``(n,)`` of ``rows``, NaN where the product does not answer, and the rows of its window.

    Raises RuntimeError with the product's own words where it refuses.
    """
    flags = ["--encoder", name.removeprefix(ENCODER)] if name.startswith(ENCODER) else []
    with tempfile.TemporaryDirectory(prefix="detection-") as made:
        folder = Path(made)
        train.to_parquet(folder / "train.parquet", index=False)
        rows.to_parquet(folder / "rows.parquet", index=False)
        _command(folder, "train", "train.parquet", "--time", "time", "--label", "label", "--out", "model", *flags)
        _command(folder, "score", "rows.parquet", "--model", "model", "--out", "scores.parquet", "--no-alerts")
        score = pd.read_parquet(folder / "scores.parquet")["anomaly_score"].to_numpy(np.float64)
        lookback = _lookback(folder / "model" / "manifest.json")
    if len(score) != len(rows):
        raise RuntimeError(f"anomaly score: expected {len(rows)} rows, got {len(score)}")
    return score, lookback


def _command(folder: Path, *words: str) -> None:
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "ANOMALY_HOME": str(folder / "home"), "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-m", "pipelines.cli", *words, "--json"]
    done = subprocess.run(
        command, check=False, cwd=folder, env=environment, capture_output=True, text=True, timeout=_LONGEST_S
    )
    if done.returncode:
        raise RuntimeError(f"anomaly {words[0]}: status {done.returncode}: {done.stderr.strip()[-_MESSAGE:]}")


def _lookback(manifest: Path) -> int:
    return next(found for found in _named(json.loads(manifest.read_text(encoding="utf-8")), "lookback"))


def _named(value: Any, name: str) -> list[int]:
    """Whole numbers under the key ``name`` anywhere in ``value``."""
    if isinstance(value, list):
        return [found for part in value for found in _named(part, name)]
    if not isinstance(value, dict):
        return []
    own = [value[name]] if isinstance(value.get(name), int) else []
    return own + [found for part in value.values() for found in _named(part, name)]


def centred(score: Scores, starts: NDArray[np.bool_], lookback: int) -> Scores:
    """Mean of the scores ``(n,)`` of the windows that cover each row, inside its segment; NaN where none was scored.

    >>> centred(np.array([1.0, 3.0, 5.0]), np.array([True, False, False]), 2).tolist()
    [2.0, 4.0, 5.0]
    """
    n = len(score)
    segment = np.cumsum(starts)
    last = np.searchsorted(segment, segment, side="right")
    stop = np.minimum(np.arange(n) + lookback, last)
    scored = np.isfinite(score)
    total = np.concatenate(([0.0], np.cumsum(np.where(scored, score, 0.0))))
    count = np.concatenate(([0], np.cumsum(scored)))
    own = count[stop] - count[:n]
    return np.where(own > 0, (total[stop] - total[:n]) / np.maximum(own, 1), np.nan)
