"""How far each row is from the mean of the rows just before it: what levels that drift leave alone (DETECTION §2.3)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

#: Prepared values are counted in these steps: whole numbers add up to the same sum wherever a log is cut.
_STEPS = 1 << 20
_FARTHEST = float(1 << 30)
#: Values of a piece that stays in the cache; sums of whole numbers are the same wherever they begin.
_PIECE = 1 << 16


def departures(
    levels: NDArray[np.float32],
    since_start: NDArray[np.int64],
    trail: int,
    before: NDArray[np.float32] | None = None,
    counted: NDArray[np.bool_] | None = None,
) -> NDArray[np.float32]:
    """``levels (n, C)`` less the mean of at most ``trail`` rows before each, in its own segment, ``(n, C)``.

    ``since_start (n,)`` counts rows since the first row of the segment, whose departure is 0. ``before (b, C)`` are the
    rows just before these; with ``trail`` of them a log in chunks gives bit for bit what it gives in one piece, and with
    fewer the mean is of those there are. ``counted (b + n,)``: rows that a mean may take in, all by default; a fit leaves out
    labelled events. Raises ValueError for a trail below 1.

    >>> departures(np.array([[1], [3], [5]], np.float32), np.array([0, 1, 2]), 2)[:, 0].tolist()
    [0.0, 2.0, 3.0]
    """
    if trail < 1:
        raise ValueError(f"trail: expected at least 1 row, got {trail}")
    ahead = 0 if before is None else len(before)
    rows = levels if before is None else np.concatenate((before, levels))
    use = np.ones(len(rows), dtype=bool) if counted is None else counted
    found = np.empty(levels.shape, np.float32)
    piece = max(_PIECE // max(rows.shape[1], 1), trail)
    for low in range(0, len(levels), piece):
        high = min(low + piece, len(levels))
        seen = slice(max(ahead + low - trail, 0), ahead + high)
        found[low:high] = _departures(rows[seen], use[seen], since_start[low:high], trail)
    return found


def _departures(
    rows: NDArray[np.float32], use: NDArray[np.bool_], since_start: NDArray[np.int64], trail: int
) -> NDArray[np.float64]:
    """Those of the last ``len(since_start)`` of ``rows``."""
    n = len(since_start)
    ahead, levels = len(rows) - n, rows[len(rows) - n :]
    whole = np.rint(np.clip(rows, -_FARTHEST, _FARTHEST).astype(np.float64) * _STEPS).astype(np.int64)
    total = np.concatenate((np.zeros((1, rows.shape[1]), np.int64), np.cumsum(whole * use[:, None], axis=0)))
    number = np.concatenate(([0], np.cumsum(use)))
    at = np.arange(ahead, ahead + n)
    first = at - np.minimum(np.minimum(since_start, trail), at)
    count = number[at] - number[first]
    summed = (total[at] - total[first]).astype(np.float64)
    mean = summed / (np.maximum(count, 1)[:, None] * _STEPS)
    return np.where(count[:, None] > 0, levels - mean, 0.0)
