"""Windows inside segments, and the window that ends at each row."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anomaly.data.windows import cut_windows, ending_windows, window_counts, window_starts
from anomaly.intervals import as_intervals

SEGMENTS = st.lists(st.integers(1, 12), min_size=1, max_size=8)


def intervals_of(lengths: list[int]) -> np.ndarray:
    edges = np.concatenate(([0], np.cumsum(lengths)))
    return as_intervals(np.column_stack((edges[:-1], edges[1:])))


def since_starts(lengths: list[int]) -> np.ndarray:
    return np.concatenate([np.arange(length) for length in lengths])


@given(SEGMENTS, st.integers(1, 6), st.integers(1, 4), st.data())
def test_window_starts_equal_a_loop_and_come_in_blocks(
    lengths: list, lookback: int, stride: int, data: st.DataObject
) -> None:
    pieces = intervals_of(lengths)
    expected = [s for a, b in pieces.tolist() for s in range(a, b - lookback + 1, stride)]
    assert window_starts(pieces, lookback, stride).tolist() == expected
    assert window_counts(pieces, lookback, stride).sum() == len(expected)
    first, last = data.draw(st.integers(0, 20)), data.draw(st.integers(0, 20))
    assert window_starts(pieces, lookback, stride, first, last).tolist() == expected[first:last]


def test_cut_windows_equal_slices_and_are_independent() -> None:
    rows = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    starts = np.array([0, 7, 7, 42])
    windows = cut_windows(rows, starts, 8)
    assert windows.shape == (4, 8, 3)
    for window, start in zip(windows, starts, strict=True):
        np.testing.assert_array_equal(window, rows[start : start + 8])
    windows[:] = 0
    assert np.abs(rows).min() > 0
    assert cut_windows(rows, starts[:0], 8).shape == (0, 8, 3)


def test_cut_windows_refuses_windows_outside() -> None:
    with pytest.raises(ValueError, match="inside 10 rows"):
        cut_windows(np.zeros((10, 1)), np.array([5]), 6)
    with pytest.raises(ValueError, match="at least 1"):
        window_counts(intervals_of([3]), 0, 1)


def loop_windows(rows: np.ndarray, since: np.ndarray, lookback: int) -> np.ndarray:
    """Each window by hand: walk back, stop at the segment's first row."""
    out = np.empty((len(rows), lookback, rows.shape[1]), rows.dtype)
    for i in range(len(rows)):
        for j in range(lookback):
            out[i, lookback - 1 - j] = rows[i - min(j, since[i])]
    return out


@given(SEGMENTS, st.integers(1, 6), st.lists(st.integers(1, 7), max_size=12))
def test_ending_windows_equal_a_loop_in_any_chunking(lengths: list, lookback: int, chunks: list) -> None:
    since = since_starts(lengths)
    rows = np.arange(2 * len(since), dtype=np.float32).reshape(-1, 2)
    expected = loop_windows(rows, since, lookback)
    np.testing.assert_array_equal(ending_windows(rows, since, lookback), expected)
    parts, at, tail = [], 0, None
    for size in [*chunks, len(rows)]:
        part = rows[at : at + size]
        parts.append(ending_windows(part, since[at : at + size], lookback, tail))
        joined = part if tail is None else np.concatenate((tail, part))
        tail, at = joined[max(len(joined) - lookback + 1, 0) :], at + len(part)
    np.testing.assert_array_equal(np.concatenate(parts), expected)


@given(st.integers(0, 29))
def test_no_later_row_influences_a_window(row: int) -> None:
    since = since_starts([10, 20])
    rows = np.random.default_rng(1).normal(size=(30, 2)).astype(np.float32)
    changed = rows.copy()
    changed[row + 1 :] = 99
    before, after = ending_windows(rows, since, 5), ending_windows(changed, since, 5)
    np.testing.assert_array_equal(before[: row + 1], after[: row + 1])


def test_ending_windows_refuses_a_short_tail() -> None:
    rows = np.zeros((4, 1), np.float32)
    with pytest.raises(ValueError, match="at least 4 rows"):
        ending_windows(rows, np.arange(9, 13), 5, rows[:3])
    assert ending_windows(rows, np.arange(9, 13), 5, rows).shape == (4, 5, 1)
