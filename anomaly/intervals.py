"""Half-open intervals ``[start, end)`` as ``(n, 2)`` int64 arrays: of rows, or of UTC microseconds."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Intervals = NDArray[np.int64]


def as_intervals(pairs: ArrayLike) -> Intervals:
    """``pairs`` as ``(n, 2)`` int64; raises ValueError where an end lies before its start."""
    array = np.asarray(pairs, dtype=np.int64).reshape(-1, 2)
    if (array[:, 1] < array[:, 0]).any():
        bad = array[array[:, 1] < array[:, 0]][0].tolist()
        raise ValueError(f"pairs: expected start <= end, got {bad}")
    return array


def from_flags(flags: ArrayLike) -> Intervals:
    """Runs of true values in ``flags`` ``(n,)``, as row intervals.

    >>> from_flags([0, 1, 1, 0, 1]).tolist()
    [[1, 3], [4, 5]]
    """
    padded = np.concatenate(([False], np.asarray(flags, dtype=bool), [False]))
    edges = np.flatnonzero(padded[1:] != padded[:-1])
    return edges.reshape(-1, 2).astype(np.int64)


def merge(intervals: ArrayLike, gap: int = 0) -> Intervals:
    """Sort and join intervals that overlap or lie at most ``gap`` apart.

    >>> merge([[5, 7], [0, 2], [2, 3]]).tolist()
    [[0, 3], [5, 7]]
    """
    ordered = as_intervals(intervals)
    ordered = ordered[np.argsort(ordered[:, 0], kind="stable")]
    joined: list[list[int]] = []
    for start, end in ordered.tolist():
        if joined and start <= joined[-1][1] + gap:
            joined[-1][1] = max(joined[-1][1], end)
        else:
            joined.append([start, end])
    return as_intervals(joined)


def duration(intervals: ArrayLike) -> int:
    """Total length of the union of ``intervals``.

    >>> duration([[0, 3], [2, 5]])
    5
    """
    joined = merge(intervals)
    return int((joined[:, 1] - joined[:, 0]).sum())


def contains(intervals: ArrayLike, points: ArrayLike) -> NDArray[np.bool_]:
    """Which of ``points`` ``(n,)`` lie inside the union of ``intervals``.

    >>> contains([[0, 3], [5, 6]], [2, 3, 5]).tolist()
    [True, False, True]
    """
    joined, x = merge(intervals), np.asarray(points, dtype=np.int64)
    if not len(joined):
        return np.zeros(x.shape, dtype=bool)
    at = np.searchsorted(joined[:, 0], x, side="right") - 1
    return (at >= 0) & (x < joined[np.maximum(at, 0), 1])


def overlaps(intervals: ArrayLike, others: ArrayLike) -> NDArray[np.bool_]:
    """Which of ``intervals`` share at least one point with the union of ``others``.

    >>> overlaps([[0, 2], [2, 4]], [[1, 2]]).tolist()
    [True, False]
    """
    mine, theirs = as_intervals(intervals), merge(others)
    if not len(theirs):
        return np.zeros(len(mine), dtype=bool)
    at = np.searchsorted(theirs[:, 1], mine[:, 0], side="right")
    found = at < len(theirs)
    return found & (theirs[np.minimum(at, len(theirs) - 1), 0] < mine[:, 1]) & (mine[:, 1] > mine[:, 0])
