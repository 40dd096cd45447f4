"""Labels made early: ``curve_shift`` as the source has it, and the label lead in time, per segment (METHODS S58)."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from anomaly.data.contract import EVENT, LEAD, NORMAL
from anomaly.intervals import Intervals, from_flags


def curve_shift(labels: ArrayLike, shift_by: int) -> tuple[NDArray[np.int8], NDArray[np.int64]]:
    """The source's label shift, by rows: where row n is 1, the ``|shift_by|`` rows before it become 1 and n is dropped.

    Returns the shifted labels of the kept rows and the kept rows' positions. A positive ``shift_by`` marks the rows
    after. For reproduction only: it crosses gaps, which is why real use has ``lead_kinds``. (The docstring in the
    source speaks of rows ``n+shift : n+shift-1``; its text, and its code, mark ``n-k … n-1``.)

    >>> labels, rows = curve_shift([0, 0, 0, 1, 0], -2)
    >>> labels.tolist(), rows.tolist()
    ([0, 1, 1, 0], [0, 1, 2, 4])
    """
    given = np.asarray(labels)
    if not np.isin(given, (0, 1)).all():
        raise ValueError(f"labels: expected 0 or 1, got {given[~np.isin(given, (0, 1))][0]}")
    marked = given.astype(bool)
    for step in range(1, abs(shift_by) + 1):
        moved = np.zeros(len(given), dtype=bool)
        if step < len(given):
            if shift_by < 0:
                moved[:-step] = given[step:] == 1
            else:
                moved[step:] = given[:-step] == 1
        marked |= moved
    kept = np.flatnonzero(given == 0)
    return marked[kept].astype(np.int8), kept


def curve_shift_frame(frame: pd.DataFrame, shift_by: int, label: str = "y") -> pd.DataFrame:
    """``curve_shift`` on a frame: event rows dropped, the label column first, as the source leaves it."""
    shifted, kept = curve_shift(frame[label].to_numpy(), shift_by)
    out = frame.drop(columns=label).iloc[kept]
    out.insert(0, label, shifted)
    return out


def segments(time: NDArray[np.int64], max_gap_us: int, *, previous: int | None = None) -> NDArray[np.bool_]:
    """Which rows ``(n,)`` start a segment: the first ever, and each that comes more than ``max_gap_us`` after the last.

    >>> segments(np.array([0, 1, 9, 10]), 3).tolist()
    [True, False, True, False]
    """
    if not len(time):
        return np.zeros(0, dtype=bool)
    first = True if previous is None else time[0] - previous > max_gap_us
    return np.concatenate(([first], np.diff(time) > max_gap_us))


def segment_intervals(time: NDArray[np.int64], max_gap_us: int) -> Intervals:
    """Row intervals between the gaps of ``time (n,)``."""
    starts = np.flatnonzero(segments(time, max_gap_us))
    return (
        np.stack((starts, np.append(starts[1:], len(time))), axis=1).astype(np.int64) if len(time) else from_flags([])
    )


def event_intervals(time: NDArray[np.int64], label: NDArray[np.int8], segment_rows: Intervals) -> Intervals:
    """Events as time intervals [first event row, last event row + 1 µs), cut at segments."""
    is_event = label == EVENT
    found = [
        (time[start + a], time[start + b - 1] + 1)
        for start, end in segment_rows.tolist()
        for a, b in from_flags(is_event[start:end]).tolist()
    ]
    return np.asarray(found, dtype=np.int64).reshape(-1, 2)


def lead_kinds(
    time: NDArray[np.int64], label: NDArray[np.int8], segment_rows: Intervals, lead_us: int
) -> NDArray[np.int8]:
    """Row kinds of a whole log: label, with normal rows in [event start − lead, event start) turned to LEAD.

    Never crosses a gap; a row of unknown label stays unknown.
    """
    segment = np.repeat(np.arange(len(segment_rows)), segment_rows[:, 1] - segment_rows[:, 0])
    begins = event_intervals(time, label, segment_rows)[:, 0]
    begin_segment = segment[np.searchsorted(time, begins)]
    return lead_kinds_in(time, label, segment, begins, begin_segment, lead_us)


def lead_kinds_in(
    time: NDArray[np.int64],
    label: NDArray[np.int8],
    segment: NDArray[np.int64],
    begins: NDArray[np.int64],
    begin_segment: NDArray[np.int64],
    lead_us: int,
) -> NDArray[np.int8]:
    """``lead_kinds`` of one block, told the segment number of each row and of each event's first row ``begins``."""
    kind = label.copy()
    if not lead_us or not len(begins):
        return kind
    following = np.searchsorted(begins, time, side="right")
    at = np.minimum(following, len(begins) - 1)
    wait = begins[at] - time
    ahead = (following < len(begins)) & (wait <= lead_us) & (begin_segment[at] == segment)
    kind[ahead & (label == NORMAL)] = LEAD
    return kind
