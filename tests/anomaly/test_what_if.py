"""What another threshold would have given: counted by hand on a short log (METHODS S61)."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import poisson

from anomaly.metrics.events import event_outcomes, event_recall, flag_intervals, median_lead
from anomaly.scores.what_if import grid_around, poisson_range, what_if

MINUTE = 60_000_000
WEEK = 7 * 1440 * MINUTE
#: Two assets of 12 rows a minute apart; "a" has an event in rows 6 and 7, "b" none.
SCORES = np.array([0, 2, 0, 0, 0, 3, 1, 4, 0, 0, 0, 2, 0, 0, 3, 0, 3, 0, 0, 0, 0, 0, 0, 0], dtype=float)
TIME = np.tile(np.arange(12) * MINUTE, 2)
ASSET = np.repeat(np.array(["a", "b"], dtype=object), 12)
EVENTS = {"a": np.array([[6 * MINUTE, 8 * MINUTE]])}


def table(scores=SCORES, **changes):
    given = {
        "time": TIME, "asset": ASSET, "events": EVENTS, "chosen": 2.0, "period_us": MINUTE, "merge_gap_us": MINUTE,
        "thresholds": (1.0, 3.0, 4.0, 5.0),
    }  # fmt: skip
    return what_if(scores, **{**given, **changes})


def test_s61_rows_are_what_a_hand_counts():
    rows = table(lead_us=2 * MINUTE)
    assert [r.threshold for r in rows] == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert [r.chosen for r in rows] == [False, True, False, False, False]
    # normal: 24 rows without the event's two and the two before it
    assert all(r.weeks == pytest.approx(20 * MINUTE / WEEK) for r in rows)
    # a: rows 1 and 11; b: rows 14 and 16, two minutes apart, so two
    assert [r.false_episodes for r in rows] == [4, 4, 2, 0, 0]
    assert [r.flagged for r in rows] == [4 / 20, 4 / 20, 2 / 20, 0, 0]
    assert [(r.found, r.events) for r in rows] == [(1, 1), (1, 1), (1, 1), (1, 1), (0, 1)]
    assert [r.median_lead_s for r in rows] == [60.0, 60.0, 60.0, -60.0, None]
    assert rows[0].per_week == pytest.approx(4 / rows[0].weeks)
    assert (rows[0].low, rows[0].high) == pytest.approx([end / rows[0].weeks for end in poisson_range(4)])


def test_s61_runs_within_the_merge_gap_are_one_episode_and_assets_are_apart():
    assert [r.false_episodes for r in table(merge_gap_us=2 * MINUTE, thresholds=(3.0,))] == [4, 2]
    alone = table(merge_gap_us=100 * MINUTE, thresholds=(3.0,))
    assert [r.false_episodes for r in alone] == [2, 2]  # row 5 of "a" is before its event, here a normal row


def test_s61_unscored_rows_are_no_normal_operation():
    holes = SCORES.copy()
    holes[[2, 3, 14]] = np.nan
    before, after = table(thresholds=()), table(holes, thresholds=())
    assert after[0].weeks == pytest.approx(before[0].weeks * 19 / 22)
    assert after[0].false_episodes == before[0].false_episodes - 1


def test_s61_rows_of_unknown_label_count_neither_way():
    normal = np.zeros(24, dtype=bool)
    normal[12:18] = True
    row = table(normal=normal, thresholds=())[0]
    assert (row.false_episodes, row.flagged, row.found) == (2, 2 / 6, 1)
    assert row.weeks == pytest.approx(6 * MINUTE / WEEK)


def test_s61_events_are_found_as_the_figures_of_the_report_find_them():
    rng = np.random.default_rng(3)
    scores = rng.exponential(0.6, 4000)
    time, asset = np.tile(np.arange(2000) * MINUTE, 2), np.repeat(np.array(["a", "b"], dtype=object), 2000)
    events = {
        name: np.array([[s * MINUTE, (s + 12) * MINUTE] for s in range(first, 1990, 90)])
        for name, first in (("a", 3), ("b", 40))
    }
    rows = what_if(scores, time=time, asset=asset, events=events, chosen=2.0, period_us=MINUTE, merge_gap_us=0,
                   lead_us=20 * MINUTE)  # fmt: skip
    for row in rows:
        alerts = flag_intervals(asset, time, scores >= row.threshold)
        outcomes = event_outcomes(alerts, events, 20 * MINUTE)
        assert row.found / row.events == event_recall(outcomes).value
        assert row.median_lead_s == median_lead(outcomes).value
    assert 0 < rows[-1].found < rows[0].found


def test_s61_a_lead_ends_where_the_event_before_it_ends():
    scores = np.array([0.0, 5.0, 0.0, 0.0, 0.0])
    events = {"a": np.array([[0, 2], [3, 4]]) * MINUTE}
    row = what_if(scores, time=np.arange(5) * MINUTE, asset=np.full(5, "a", object), events=events, chosen=2.0,
                  period_us=MINUTE, merge_gap_us=0, lead_us=3 * MINUTE, thresholds=())[0]  # fmt: skip
    assert (row.found, row.median_lead_s) == (1, -60.0)


@pytest.mark.parametrize("chosen", [0.0, 0.4, 2.0, 6.5])
def test_the_grid_has_the_chosen_threshold_and_never_flags_all(chosen):
    grid = grid_around(chosen)
    assert grid == sorted(grid)
    assert chosen in grid
    assert len(grid) == (9 if chosen else 5)
    assert min(grid) > 0 or not chosen


@pytest.mark.parametrize("count", [0, 1, 7])
def test_the_poisson_interval_is_exact(count):
    low, high = poisson_range(count)
    assert poisson.cdf(count, high) == pytest.approx(0.025)
    assert low == 0 if count == 0 else poisson.sf(count - 1, low) == pytest.approx(0.025)


def test_wrong_input_is_refused():
    with pytest.raises(ValueError, match="scores: expected one per time and asset, got 3, 24 and 24"):
        table(SCORES[:3])
    with pytest.raises(ValueError, match="normal: expected at least one scored normal row"):
        table(np.full(24, np.nan))
