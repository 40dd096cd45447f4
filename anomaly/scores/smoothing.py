"""Scores smoothed over time, looking back only: persistence counts, and no row knows what comes after it."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter


class CausalSmoother:
    """An exponentially weighted mean of one asset's scores: a score counts half as much ``half_life`` rows later.

    Starts anew at the first row of each segment. The recursion is the same however the rows are cut into chunks, to the
    last bit.

    >>> smoother = CausalSmoother(half_life=1)
    >>> smoother.update(np.array([4.0, 0.0]), np.array([True, False])).tolist()
    [4.0, 2.0]
    >>> smoother.update(np.array([0.0, 6.0]), np.array([False, True])).tolist()
    [1.0, 6.0]
    """

    def __init__(self, half_life: float) -> None:
        if not half_life > 0:
            raise ValueError(f"half_life: expected rows above 0, got {half_life}")
        self._keep = 0.5 ** (1 / half_life)
        self.last: float | None = None  # the smoothed score of the row before

    def update(self, scores: NDArray[np.float64], starts: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Smoothed scores ``(n,)`` of the next rows; ``starts (n,)`` are first rows of segments."""
        out = np.empty(len(scores))
        edges = np.concatenate(([0], np.flatnonzero(starts), [len(scores)]))
        for low, high in pairwise(edges.tolist()):
            if low == high:
                continue
            before = scores[low] if starts[low] or self.last is None else self.last
            out[low:high], _ = lfilter([1 - self._keep], [1, -self._keep], scores[low:high], zi=[self._keep * before])
            self.last = float(out[high - 1])
        return out
