"""METHODS S58: the label shift of seed 004 by rows, and the lead in time units, per segment."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anomaly.data.contract import EVENT, LEAD, NORMAL, UNKNOWN
from anomaly.data.labels import (
    curve_shift,
    curve_shift_frame,
    event_intervals,
    event_rows,
    lead_kinds,
    segment_intervals,
    segments,
)

MINUTE = 60_000_000


def printed_curve_shift(df: pd.DataFrame, shift_by: int) -> pd.DataFrame:
    """The function as seed 004 prints it, line by line: the oracle."""
    vector = df["y"].copy()
    for _ in range(abs(shift_by)):
        tmp = vector.shift(-1 if shift_by < 0 else 1)
        tmp = tmp.fillna(0)
        vector += tmp
    labelcol = "y"
    df.insert(loc=0, column=labelcol + "tmp", value=vector)
    df = df.drop(df[df[labelcol] == 1].index)
    df = df.drop(labelcol, axis=1)
    df = df.rename(columns={labelcol + "tmp": labelcol})
    df.loc[df[labelcol] > 0, labelcol] = 1
    return df


@given(st.lists(st.integers(0, 1), max_size=40), st.integers(-5, 5))
def test_s58_curve_shift_equals_the_printed_function(labels: list[int], shift_by: int) -> None:
    index = pd.Index(np.arange(len(labels)) * 3 + 7)
    frame = pd.DataFrame({"a": np.arange(len(labels)) * 0.5, "y": np.array(labels, int), "b": 1}, index=index)
    before = frame.copy()
    ours = curve_shift_frame(frame, shift_by)
    theirs = printed_curve_shift(frame.copy(), shift_by)
    pd.testing.assert_frame_equal(ours, theirs)
    pd.testing.assert_frame_equal(frame, before)


@pytest.mark.parametrize(
    ("labels", "shift_by", "expected", "kept"),
    [
        ([0, 0, 0, 1, 0], -2, [0, 1, 1, 0], [0, 1, 2, 4]),
        ([1, 0, 0], -2, [0, 0], [1, 2]),
        ([0, 0, 0, 1, 1, 0], -2, [0, 1, 1, 0], [0, 1, 2, 5]),
        ([0, 1, 0, 1, 0], -2, [1, 1, 0], [0, 2, 4]),
        ([0, 1, 0, 0], 2, [0, 1, 1], [0, 2, 3]),
        ([], -2, [], []),
    ],
)
def test_s58_curve_shift_on_hand_cases(labels: list, shift_by: int, expected: list, kept: list) -> None:
    shifted, rows = curve_shift(labels, shift_by)
    assert shifted.tolist() == expected
    assert rows.tolist() == kept


def test_curve_shift_refuses_unknown_labels() -> None:
    with pytest.raises(ValueError, match="only 0 and 1"):
        curve_shift([0, -1, 1], -2)


def test_segments_carry_over_chunks() -> None:
    time = np.array([0, 1, 2, 9, 10, 20, 21]) * MINUTE
    whole = segments(time, 3 * MINUTE)
    for cut in range(1, len(time)):
        head, tail = segments(time[:cut], 3 * MINUTE), segments(time[cut:], 3 * MINUTE, previous=int(time[cut - 1]))
        assert np.concatenate((head, tail)).tolist() == whole.tolist()
    assert segments(time[:0], 1).tolist() == []
    assert segment_intervals(time, 3 * MINUTE).tolist() == [[0, 3], [3, 5], [5, 7]]
    assert segment_intervals(time[:0], 1).shape == (0, 2)


def test_s58_lead_never_crosses_a_gap() -> None:
    """The event opens a segment: the rows before the gap stay normal."""
    time = np.array([0, 1, 2, 60, 61]) * MINUTE
    label = np.array([0, 0, 0, 1, 0], np.int8)
    rows = segment_intervals(time, 4 * MINUTE)
    assert lead_kinds(time, label, rows, 120 * MINUTE).tolist() == [0, 0, 0, EVENT, 0]


def test_s58_lead_is_time_not_rows() -> None:
    """Six minutes of lead reach over unequal steps; the edge row at exactly the lead belongs to it."""
    time = np.array([0, 2, 5, 6, 8, 9]) * MINUTE
    label = np.array([0, 0, 0, 0, 1, 0], np.int8)
    one = segment_intervals(time, 10 * MINUTE)
    assert lead_kinds(time, label, one, 6 * MINUTE).tolist() == [0, LEAD, LEAD, LEAD, EVENT, 0]
    assert lead_kinds(time, label, one, 5 * MINUTE).tolist() == [0, 0, LEAD, LEAD, EVENT, 0]
    assert lead_kinds(time, label, one, 0).tolist() == label.tolist()


def test_s58_consecutive_events_and_unknown_rows() -> None:
    time = np.arange(8) * MINUTE
    label = np.array([0, UNKNOWN, 0, 1, 1, 0, 1, 0], np.int8)
    kind = lead_kinds(time, label, segment_intervals(time, 4 * MINUTE), 2 * MINUTE)
    assert kind.tolist() == [0, UNKNOWN, LEAD, 1, 1, LEAD, 1, 0]


def test_events_are_cut_at_gaps() -> None:
    time = np.array([0, 1, 2, 60, 61]) * MINUTE
    label = np.array([0, 1, 1, 1, 0], np.int8)
    rows = segment_intervals(time, 4 * MINUTE)
    assert event_rows(label, segments(time, 4 * MINUTE)).tolist() == [[1, 3], [3, 4]]
    expected = [[MINUTE, 2 * MINUTE + 1], [60 * MINUTE, 60 * MINUTE + 1]]
    assert event_intervals(time, label, rows).tolist() == expected
    assert event_intervals(time, np.zeros(5, np.int8), rows).shape == (0, 2)


@given(st.lists(st.tuples(st.integers(1, 9), st.sampled_from([-1, 0, 1])), min_size=1, max_size=40), st.integers(0, 20))
def test_s58_leads_equal_a_loop(rows: list[tuple[int, int]], lead: int) -> None:
    time, label = np.cumsum([step for step, _ in rows]), np.array([y for _, y in rows], np.int8)
    pieces = segment_intervals(time, 5)
    expected = label.copy()
    for start, stop in pieces.tolist():
        for i in range(start, stop):
            follows = any(label[j] == EVENT and 0 < time[j] - time[i] <= lead for j in range(i, stop))
            if label[i] == NORMAL and follows:
                expected[i] = LEAD
    assert lead_kinds(time, label, pieces, lead).tolist() == expected.tolist()
