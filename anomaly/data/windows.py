"""Rows become windows: complete ones for learning, one per row for scoring; never across a segment."""

from __future__ import annotations

import math

import numpy as np
from numpy.lib.stride_tricks import as_strided, sliding_window_view
from numpy.typing import NDArray

from anomaly.intervals import Intervals


def window_counts(segment_intervals: Intervals, lookback: int, stride: int) -> NDArray[np.int64]:
    """How many complete windows each segment holds, ``(S,)``.

    >>> window_counts(np.array([[0, 5], [5, 7]]), 3, 2).tolist()
    [2, 0]
    """
    if lookback < 1 or stride < 1:
        raise ValueError(f"lookback, stride: expected at least 1, got {lookback}, {stride}")
    length = segment_intervals[:, 1] - segment_intervals[:, 0]
    return np.maximum((length - lookback) // stride + 1, 0)


def window_starts(
    segment_intervals: Intervals, lookback: int, stride: int, first: int = 0, last: int | None = None
) -> NDArray[np.int64]:
    """First rows of the complete windows inside segments, in row order, ``(B,)``.

    ``first`` and ``last`` pick a stretch of them by number, so that the starts of a long log can be made in blocks.

    >>> window_starts(np.array([[0, 5], [5, 7], [7, 10]]), 3, 2).tolist()
    [0, 2, 7]
    """
    counts = window_counts(segment_intervals, lookback, stride)
    before = np.concatenate(([0], np.cumsum(counts)))
    last = int(before[-1]) if last is None else min(last, int(before[-1]))
    number = np.arange(first, max(last, first), dtype=np.int64)
    at = np.searchsorted(before, number, side="right") - 1
    return segment_intervals[at, 0] + stride * (number - before[at])


def cut_windows(rows: NDArray, starts: NDArray[np.int64], lookback: int) -> NDArray:
    """Windows ``(B, T, C)`` of ``rows (n, C)`` that begin at ``starts (B,)``; a fresh array.

    >>> cut_windows(np.arange(4)[:, None], np.array([0, 2]), 2)[:, :, 0].tolist()
    [[0, 1], [2, 3]]
    """
    if len(starts) and (starts.min() < 0 or starts.max() + lookback > len(rows)):
        raise ValueError(f"starts: expected windows of {lookback} rows inside {len(rows)} rows, got one outside")
    if not len(starts) or not rows.size:
        return np.empty((len(starts), lookback, *rows.shape[1:]), dtype=rows.dtype)
    # The rows of a window lie one after another in memory, so each is one copy; sliding_window_view would lose that.
    rows = np.ascontiguousarray(rows)
    width = math.prod(rows.shape[1:])
    flat = as_strided(
        rows, (len(rows) - lookback + 1, lookback * width), (width * rows.itemsize, rows.itemsize), writeable=False
    )
    return flat[starts].reshape(len(starts), lookback, *rows.shape[1:])


def ending_windows(
    rows: NDArray, since_start: NDArray[np.int64], lookback: int, tail: NDArray | None = None
) -> NDArray:
    """The window that ends at each of ``rows (n, C)``: ``(n, T, C)``, from that row and earlier ones only.

    ``since_start (n,)`` counts rows since the first row of the segment. A window that would begin before its segment
    is filled up in front with the segment's first row. ``tail`` holds the rows before ``rows`` (T-1 of them are
    enough), so that a log scored in chunks gives what it gives in one piece. Where no window needs filling the
    result is a read-only view. Raises ValueError where ``tail`` is too short.

    >>> ending_windows(np.arange(3)[:, None], np.array([0, 1, 0]), 2)[:, :, 0].tolist()
    [[0, 0], [0, 1], [2, 2]]
    """
    n, before = len(rows), 0 if tail is None else len(tail)
    back = np.minimum(since_start, lookback - 1)
    if n and (back - np.arange(n)).max() > before:
        need = int((back - np.arange(n)).max())
        raise ValueError(f"tail: expected at least {need} rows of the segment before these, got {before}")
    joined = rows if tail is None else np.concatenate((tail, rows))
    if not n:
        return np.empty((0, lookback, rows.shape[1]), dtype=rows.dtype)
    if back.min() == lookback - 1:
        return sliding_window_view(joined[before - lookback + 1 :], lookback, axis=0).swapaxes(1, 2)
    end = np.arange(before, before + n)
    index = np.maximum(end[:, None] + np.arange(1 - lookback, 1), (end - back)[:, None])
    return joined[index]
