"""Lookback and stride turn rows into windows; a window never crosses a gap or an asset."""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from anomaly.intervals import Intervals


def window_starts(segment_rows: Intervals, lookback: int, stride: int) -> NDArray[np.int64]:
    """First rows of all complete windows inside the segments.

    >>> window_starts(np.array([[0, 5], [5, 7], [7, 10]]), 3, 2).tolist()
    [0, 2, 7]
    """
    runs = [np.arange(start, end - lookback + 1, stride) for start, end in segment_rows.tolist()]
    return np.concatenate([np.empty(0, np.int64), *runs]).astype(np.int64)


def cut_windows(rows: NDArray[np.float32], starts: NDArray[np.int64], lookback: int) -> NDArray[np.float32]:
    """Windows ``(B, T, C)`` of ``rows (n, C)`` that begin at ``starts (B,)``."""
    if not len(starts):
        return np.empty((0, lookback, rows.shape[1]), rows.dtype)
    view = sliding_window_view(rows, lookback, axis=0)  # (n - T + 1, C, T)
    return np.ascontiguousarray(view[starts].transpose(0, 2, 1))


def ending_windows(
    rows: NDArray[np.float32],
    since_start: NDArray[np.int64],
    lookback: int,
    tail: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """The window that ends at each of ``rows (n, C)``, as ``(n, T, C)``.

    ``since_start (n,)`` counts rows since the segment's first; where fewer than T − 1 came before, the window is padded in
    front with that first row. ``tail`` holds the rows just before ``rows``, as many as a window may need. No row after a
    window's last has any part in it.
    """
    before = 0 if tail is None else len(tail)
    joined = rows if tail is None else np.concatenate((tail, rows))
    end = np.arange(before, before + len(rows))[:, None]
    back = np.minimum(np.arange(lookback - 1, -1, -1)[None, :], since_start[:, None])
    at = end - back
    if len(rows) and at.min() < 0:
        raise ValueError(f"tail: expected at least {-int(at.min())} more rows of the segment, got {before}")
    return joined[at]
