"""Volume under the precision-recall surface (Paparrizos et al., VLDB 2022): a PR area that forgives a little in time.

For every tolerance from 0 to ``window`` rows the labels are softened around each event, rows flagged there count in part,
and recall is multiplied by the share of events that were met at all; the mean area over the tolerances is the volume.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anomaly.intervals import Intervals, from_flags

_THRESHOLDS = 250


def soft_labels(events: Intervals, n: int, tolerance: int) -> NDArray[np.float64]:
    """Labels ``(n,)`` of row intervals ``events``: 1 inside, falling as √(1 - distance / tolerance) to half of it outside.

    >>> soft_labels(np.array([[3, 4]]), 6, 4).round(3).tolist()
    [0.0, 0.707, 0.866, 1.0, 0.866, 0.707]
    """
    label = np.zeros(n)
    for start, stop in events.tolist():
        label[start:stop] = 1
    for distance in range(1, tolerance // 2 + 1):
        height = math.sqrt(1 - distance / tolerance)
        for rows in (events[:, 0] - distance, events[:, 1] - 1 + distance):
            np.add.at(label, rows[(rows >= 0) & (rows < n)], height)
    return np.minimum(label, 1)


def vus_pr(score: ArrayLike, positive: ArrayLike, window: int) -> float:
    """Volume under the PR surface of ``score (n,)``, higher is more anomalous, for tolerances 0 … ``window`` rows.

    As published, 250 thresholds are taken at evenly spaced ranks. NaN where no row, or every row, is positive. Raises
    ValueError where a score is not finite.
    """
    s, p = np.asarray(score, dtype=np.float64), np.asarray(positive, dtype=bool)
    if s.ndim != 1 or s.shape != p.shape:
        raise ValueError(f"score, positive: expected one-dimensional and equally long, got {s.shape} and {p.shape}")
    if not np.isfinite(s).all():
        raise ValueError("score: expected finite numbers, got NaN or infinity; rank unscorable rows first")
    if window < 0:
        raise ValueError(f"window: expected 0 rows or more, got {window}")
    if p.all() or not p.any():
        return math.nan
    order = np.argsort(-s, kind="stable")
    falling = s[order]
    thresholds = falling[np.linspace(0, len(s) - 1, _THRESHOLDS).astype(int)]
    flagged = np.searchsorted(-falling, -thresholds, side="right")
    events = from_flags(p)
    areas = [_area(soft_labels(events, len(s), w), s, p, order, thresholds, flagged) for w in range(window + 1)]
    return float(np.mean(areas))


def _area(
    soft: NDArray[np.float64],
    score: NDArray[np.float64],
    positive: NDArray[np.bool_],
    order: NDArray[np.int64],
    thresholds: NDArray[np.float64],
    flagged: NDArray[np.int64],
) -> float:
    """PR area of one tolerance; ``flagged`` rows lie at or above each threshold, highest first."""
    own = soft[order]
    hits = np.cumsum(own)[flagged - 1]
    around = np.cumsum(np.where(positive[order], 0, own))[flagged - 1]
    total = positive.sum() + around / 2
    tops = np.array([score[start:stop].max() for start, stop in from_flags(soft > 0)])
    met = (tops[:, None] >= thresholds).mean(axis=0)
    recall = np.minimum(hits / total, 1) * met
    return float((np.diff(recall, prepend=0) * hits / flagged).sum())
