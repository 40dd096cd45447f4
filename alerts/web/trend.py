"""The score around an alert, from the score file of its log. Only paths that the database recorded are ever opened."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from alerts.alert import Alert
from alerts.database import Database
from alerts.web.queries import score_files
from alerts.web.services import HOUR_US

#: Points of the curve: of more rows, the highest of each stretch is kept.
MOST_POINTS = 1500
#: Rows read for one curve.
MOST_ROWS = 500_000


def trend(database: Database, alert: Alert) -> dict[str, Any]:
    """``time`` (s since 1970, UTC), ``score`` (None where a row has none), ``threshold``, ``start`` and ``end`` of the alert (s).

    Shows three times what the alert lasted before and once after, an hour at least. ``time`` is empty where no score file is
    there or none can be read.
    """
    lasted = alert.end_us - alert.start_us
    start, end = alert.start_us - max(3 * lasted, HOUR_US), alert.end_us + max(lasted, HOUR_US)
    told: dict[str, Any] = {
        "time": [], "score": [], "threshold": alert.threshold if math.isfinite(alert.threshold) else None,
        "start": alert.start_us / 1e6, "end": alert.end_us / 1e6,
    }  # fmt: skip
    for path in score_files(database, alert, start, end):
        found = read_scores(Path(path), alert.asset, start, end)
        if found is not None and len(found[0]):
            time, score = thinned(*found)
            told["time"] = (time / 1e6).tolist()
            told["score"] = [value if math.isfinite(value) else None for value in score.tolist()]
            break
    return told


def read_scores(path: Path, asset: str, start_us: int, end_us: int) -> tuple[Any, Any] | None:
    """``time (n,)`` in UTC microseconds and ``score (n,)`` of an asset within ``[start_us, end_us]``, in time order; None where
    the file is not there or not a score file."""
    if path.suffix != ".parquet" or not path.is_file():
        return None
    import pyarrow as pa
    import pyarrow.parquet as pq

    kind = pa.timestamp("us", tz="UTC")
    limits = [
        ("asset", "==", asset),
        ("time", ">=", pa.scalar(start_us, kind)),
        ("time", "<=", pa.scalar(end_us, kind)),
    ]
    try:
        table = pq.read_table(path, columns=["time", "anomaly_score"], filters=limits, use_threads=False)
        time = table["time"].cast(pa.int64()).to_numpy()[:MOST_ROWS]
        score = table["anomaly_score"].cast(pa.float64()).to_numpy()[:MOST_ROWS]
    except (OSError, KeyError, ValueError, TypeError, pa.ArrowException):
        return None
    order = np.argsort(time, kind="stable")
    return time[order], np.asarray(score, dtype=np.float64)[order]


def thinned(time: Any, score: Any, most: int = MOST_POINTS) -> tuple[Any, Any]:
    """At most ``most`` of the rows ``(n,)``: of each stretch the one with the highest score, so that no peak is lost.

    >>> thinned(np.arange(6), np.array([0.0, 9.0, 1.0, np.nan, 2.0, 3.0]), 3)[0].tolist()
    [1, 2, 5]
    """
    if len(time) <= most:
        return time, score
    comparable = np.where(np.isfinite(score), score, -np.inf)
    edges = np.linspace(0, len(time), most + 1).astype(int)
    keep = [a + int(np.argmax(comparable[a:b])) for a, b in pairwise(edges)]
    return time[keep], score[keep]
