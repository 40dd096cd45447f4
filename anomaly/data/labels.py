"""Labels in time: events, the lead before them, segments between gaps, and the label shift of seed 004 (METHODS S58)."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from anomaly.data.contract import EVENT, LEAD, NORMAL
from anomaly.intervals import Intervals, as_intervals, contains, from_flags


def curve_shift(labels: ArrayLike, shift_by: int) -> tuple[NDArray[np.int8], NDArray[np.int64]]:
    """Shift 0/1 ``labels (n,)`` by rows, as the text of seed 004 does: the event row goes, its neighbours are marked.

    With ``shift_by = -k`` the rows n-k … n-1 before a positive row n become 1 and row n is dropped; with ``+k`` the
    rows n+1 … n+k after it. Returns the labels of the kept rows and their positions in the input.

    The seed's own docstring promises the rows ``(n+shift_by):(n+shift_by-1)``, which is another (empty or inverted)
    range; its text and its code agree with each other and are followed here. This is for reproduction, by rows and
    blind to gaps: ``lead_kinds`` is the form for real use. Raises ValueError for labels other than 0 and 1.

    >>> labels, kept = curve_shift([0, 0, 0, 1, 0], -2)
    >>> labels.tolist(), kept.tolist()
    ([0, 1, 1, 0], [0, 1, 2, 4])
    """
    y = np.asarray(labels)
    if not np.isin(y, (0, 1)).all():
        raise ValueError("labels: expected only 0 and 1, got other values; unknown labels have no row shift")
    positive, n, k = y == 1, len(y), abs(int(shift_by))
    seen = np.concatenate(([0], np.cumsum(positive)))
    rows = np.arange(n)
    low, high = (rows, np.minimum(rows + k + 1, n)) if shift_by < 0 else (np.maximum(rows - k, 0), rows + 1)
    marked = seen[high] > seen[low]
    kept = np.flatnonzero(~positive)
    return marked[kept].astype(np.int8), kept


def curve_shift_frame(frame: pd.DataFrame, shift_by: int, label: str = "y") -> pd.DataFrame:
    """``curve_shift`` on a frame: the label column first, positive rows gone, the index kept; the input unaltered.

    Equals the function printed in seed 004 on every frame of 0/1 labels, in values, order and index.
    """
    shifted, kept = curve_shift(frame[label].to_numpy(), shift_by)
    rest = frame.drop(columns=label).iloc[kept].copy()
    # The seed adds shifted columns, which pandas turns into floats, unless there is no shift at all.
    rest.insert(0, label, shifted.astype(np.float64) if shift_by else shifted.astype(frame[label].to_numpy().dtype))
    return rest


def segments(time: NDArray[np.int64], max_gap_us: int, *, previous: int | None = None) -> NDArray[np.bool_]:
    """Which rows of one asset start a segment, ``(n,)``: the first one, and each that follows a step > ``max_gap_us``.

    ``previous`` is the time of the row before the first, when the rows go on from an earlier chunk.

    >>> segments(np.array([0, 1, 9, 10]), 3).tolist()
    [True, False, True, False]
    >>> segments(np.array([1, 9]), 3, previous=0).tolist()
    [False, True]
    """
    time = np.asarray(time, dtype=np.int64)
    starts = np.ones(len(time), dtype=bool)
    starts[1:] = np.diff(time) > max_gap_us
    if len(time) and previous is not None:
        starts[0] = time[0] - previous > max_gap_us
    return starts


def segment_intervals(time: NDArray[np.int64], max_gap_us: int) -> Intervals:
    """The segments of one asset as row intervals ``(S, 2)``.

    >>> segment_intervals(np.array([0, 1, 9, 10]), 3).tolist()
    [[0, 2], [2, 4]]
    """
    first = np.flatnonzero(segments(time, max_gap_us))
    return as_intervals(np.column_stack((first, np.append(first[1:], len(time))))) if len(first) else as_intervals([])


def event_rows(label: NDArray[np.int8], starts: NDArray[np.bool_]) -> Intervals:
    """Events as row intervals ``(E, 2)``: runs of EVENT that a segment start cuts in two.

    >>> event_rows(np.array([0, 1, 1, 1]), np.array([True, False, False, True])).tolist()
    [[1, 3], [3, 4]]
    """
    return cut_runs(from_flags(np.asarray(label) == EVENT), np.flatnonzero(starts))


def cut_runs(runs: Intervals, cuts: NDArray[np.int64]) -> Intervals:
    """Ascending row runs divided at ``cuts``.

    >>> cut_runs(as_intervals([[0, 4], [6, 8]]), np.array([2, 5, 6])).tolist()
    [[0, 2], [2, 4], [6, 8]]
    """
    if not len(runs):
        return runs
    at = np.searchsorted(runs[:, 0], cuts, side="right") - 1
    inside = cuts[(at >= 0) & (cuts > runs[at, 0]) & (cuts < runs[at, 1])]
    both = [np.sort(np.append(edges, inside)) for edges in (runs[:, 0], runs[:, 1])]
    return as_intervals(np.column_stack(both))


def event_intervals(time: NDArray[np.int64], label: NDArray[np.int8], segment_intervals: Intervals) -> Intervals:
    """Events of one asset as time intervals [first event row, last event row + 1 µs), none across a segment."""
    rows = event_rows(label, _start_flags(segment_intervals, len(time)))
    return as_intervals(np.column_stack((time[rows[:, 0]], time[rows[:, 1] - 1] + 1)))


def lead_intervals(event_start: NDArray[np.int64], segment_start: NDArray[np.int64], lead_us: int) -> Intervals:
    """The lead before each event as time intervals ``(E, 2)``, cut at the start of the event's own segment.

    Both arguments are times in µs, ``(E,)``: of the event's first row and of the first row of its segment.
    """
    return as_intervals(np.column_stack((np.maximum(event_start - lead_us, segment_start), event_start)))


def mark_leads(time: NDArray[np.int64], label: NDArray[np.int8], leads: Intervals) -> NDArray[np.int8]:
    """Row kinds ``(n,)``: NORMAL rows inside ``leads`` become LEAD; UNKNOWN rows stay what they are."""
    kind = np.array(label, dtype=np.int8)
    kind[(kind == NORMAL) & contains(leads, time)] = LEAD
    return kind


def lead_kinds(
    time: NDArray[np.int64], label: NDArray[np.int8], segment_intervals: Intervals, lead_us: int
) -> NDArray[np.int8]:
    """Row kinds of one asset, ``(n,)`` int8: rows at most ``lead_us`` before an event, in its own segment, become LEAD.

    METHODS S58 in time units: a lead never crosses a gap or the edge of a log. Rows of unknown label stay UNKNOWN.

    >>> lead_kinds(np.arange(5), np.array([0, 0, -1, 0, 1], np.int8), as_intervals([[0, 5]]), 3).tolist()
    [0, 2, -1, 2, 1]
    """
    events = event_rows(label, _start_flags(segment_intervals, len(time)))
    at = np.searchsorted(segment_intervals[:, 0], events[:, 0], side="right") - 1
    leads = lead_intervals(time[events[:, 0]], time[segment_intervals[at, 0]], lead_us)
    return mark_leads(time, label, leads)


def _start_flags(segment_intervals: Intervals, n: int) -> NDArray[np.bool_]:
    starts = np.zeros(n, dtype=bool)
    starts[segment_intervals[:, 0]] = True
    return starts
