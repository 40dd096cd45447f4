"""The rules on many alerts, against closed forms, brute force and by hand."""

from __future__ import annotations

import math

import pytest
from alert_rows import DAY, HOUR, T0
from hypothesis import given, settings
from hypothesis import strategies as st

from alerts.alert import Alert
from alerts.figures import (
    acknowledge_times,
    bad_actors,
    load,
    precision,
    silent,
    stale,
    wilson,
)
from alerts.grouping import (
    CUTS,
    GUIDE,
    FloodRules,
    Planned,
    alike,
    chatter,
    cuts,
    floods,
    group_alike,
    planned_work,
    priority,
    spread,
    worth,
)

MINUTE = 60_000_000


def alert(id: int, start: int = T0, lasted: int = MINUTE, asset: str = "press", tags=(("Flow", 1.0),), **more) -> Alert:
    values = {"state": "new", "created_at": start, "first_batch": 1} | more
    return Alert(id, asset, "m", "demo", start, start, start + lasted, 5.0, 3.0, 1, None, tags, **values)


# -- priority


def test_worth_is_severity_times_lead_left_times_weight() -> None:
    assert worth(6.0, 3.0, 0, HOUR) == 2.0
    assert worth(6.0, 3.0, HOUR // 2, HOUR) == pytest.approx(2.0 * 0.625)
    assert worth(6.0, 3.0, 9 * HOUR, HOUR, 3.0) == pytest.approx(2.0 * 0.25 * 3)
    assert worth(math.inf, 3.0, 0, None) == worth(99.0, 3.0, 0, None) == 4.0
    assert (
        worth(2.0, 3.0, 0, None)
        == worth(5.0, 0.0, 0, None)
        == worth(5.0, -1.0, 0, 0)
        == worth(math.nan, 3.0, 0, None)
        == 1.0
    )
    for weight in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="weight: expected"):
            worth(5.0, 3.0, 0, None, weight)


@given(st.floats(0, 50), st.integers(0, 10 * HOUR), st.floats(0.1, 10))
def test_more_severe_earlier_or_heavier_is_never_less_urgent(peak: float, lasted: int, weight: float) -> None:
    own = priority(peak, 3.0, lasted, HOUR, weight)
    assert priority(peak + 1, 3.0, lasted, HOUR, weight) <= own
    assert priority(peak, 3.0, lasted + HOUR, HOUR, weight) >= own
    assert priority(peak, 3.0, lasted, HOUR, weight * 2) <= own


def test_proposed_cuts_spread_as_the_guide_says() -> None:
    peaks = [3.0 + k / 100 for k in range(400)]
    own = cuts([worth(p, 3.0, 0, None) for p in peaks])
    for entry in spread(priority(p, 3.0, 0, None, cuts=own) for p in peaks):
        assert entry.share == pytest.approx(GUIDE[entry.priority], abs=0.01)
    assert cuts([1.0] * 19) == CUTS


def test_the_spread_of_no_alerts_is_nothing() -> None:
    assert [(s.count, s.share) for s in spread([])] == [(0, 0.0)] * 3
    assert [(s.count, s.share) for s in spread([3, 3, 1, 3])] == [(1, 0.25), (0, 0.0), (3, 0.75)]


# -- floods


def by_the_clock(times: list[int], rules: FloodRules) -> list[list[int]]:
    """Brute force: step through time one unit at a time, count what lies in the window."""
    found: list[list[int]] = []
    on, taken = False, 0
    for now in range(max(times, default=-1) + 1):
        before = [k for k, t in enumerate(times) if now - rules.window_us < t < now]
        if on and len(before) < rules.leave:
            on, taken = False, sum(t < now for t in times)
        inside = [k for k, t in enumerate(times) if now - rules.window_us < t <= now and k >= taken]
        if not on and len(inside) > rules.enter:
            on = True
            found.append(inside)
        elif on:
            found[-1] = sorted({*found[-1], *(k for k, t in enumerate(times) if t == now)})
    return found


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(0, 60), max_size=40, unique=True), st.integers(2, 6), st.integers(1, 3), st.integers(3, 15))
def test_floods_are_those_of_the_clock(times: list[int], enter: int, leave: int, window: int) -> None:
    rules = FloodRules(enter, min(leave, enter), window)
    ordered = sorted(times)
    assert [list(range(f.first, f.last + 1)) for f in floods(ordered, rules)] == by_the_clock(ordered, rules)


def test_a_flood_starts_above_ten_and_ends_below_five_in_ten_minutes() -> None:
    assert floods([T0 + k for k in range(10)]) == []
    (flood,) = floods([T0 + k for k in range(11)])
    assert (flood.first, flood.last, flood.count, flood.over_us) == (0, 10, 11, T0 + 6 + 10 * MINUTE)
    eleven = [T0 + k * MINUTE for k in range(11)]
    assert floods(eleven) == [], "the first has left the window when the eleventh comes"
    steady = [T0 + k for k in range(11)] + [T0 + 11 + k * 2 * MINUTE for k in range(1, 50)]
    assert [f.count for f in floods(steady)] == [15], "at one per two minutes just before each only four are left"
    kept = [T0 + k for k in range(11)] + [T0 + 11 + k * 119_000_000 for k in range(1, 50)]
    assert [f.count for f in floods(kept)] == [60]


def test_floods_of_all_times_at_once_and_wrong_input() -> None:
    assert [f.count for f in floods([T0] * 30)] == [30]
    assert floods([]) == []
    with pytest.raises(ValueError, match="times: expected times in order"):
        floods([2, 1])
    with pytest.raises(ValueError, match="leave <= enter"):
        FloodRules(enter=3, leave=4)


# -- chatter and groups


def test_chatter_is_counted_per_asset() -> None:
    fast = [alert(k, T0 + k * 90_000_000) for k in range(5)]
    slow = [alert(10 + k, T0 + k * HOUR, asset="pump") for k in range(5)]
    pair = [alert(20 + k, T0 + k * 90_000_000, asset="fan") for k in range(2)]
    (run,) = chatter([*slow, *reversed(fast), *pair])
    assert (run.asset, run.count, run.ids) == ("press", 5, (0, 1, 2, 3, 4))
    assert (run.start_us, run.end_us) == (T0, T0 + 4 * 90_000_000 + MINUTE)
    assert chatter(fast, within_us=29_999_999) == []
    assert len(chatter(fast, within_us=30_000_000)) == 1


def test_alike_is_the_shared_part_of_the_tags() -> None:
    a = alert(1, tags=(("Flow", 0.6), ("Temp", 0.4)))
    assert alike(a, a) == pytest.approx(1)
    assert alike(a, alert(2, tags=(("Flow", 0.2), ("P", 0.8)))) == pytest.approx(0.2)
    assert alike(a, alert(3, tags=(("Temp", 0.2), ("Flow", 0.3)))) == pytest.approx(1), "cut lists count as a whole"
    assert alike(a, alert(4, tags=(("P", 1.0),))) == alike(a, alert(5, tags=())) == 0


def test_groups_share_asset_cause_and_time() -> None:
    flow, heat = (("Flow", 0.9), ("P", 0.1)), (("Heat", 1.0),)
    rows = [alert(1, T0, tags=flow), alert(2, T0 + 5 * MINUTE, tags=flow), alert(3, T0 + 9 * MINUTE, tags=heat),
            alert(4, T0 + 9 * HOUR, tags=heat), alert(5, T0 + MINUTE, asset="pump", tags=flow)]  # fmt: skip
    groups = group_alike(rows, 30 * MINUTE)
    assert [g.ids for g in groups] == [(1, 2), (5,), (3,), (4,)]
    assert sorted(k for g in groups for k in g.ids) == [1, 2, 3, 4, 5]


# -- planned work


def test_planned_work_is_marked_by_asset_and_time() -> None:
    calendar = [
        Planned(1, "press", T0, T0 + HOUR, "felt", "ann"),
        Planned(2, "", T0 + 5 * HOUR, T0 + 6 * HOUR, "stop", "ann"),
    ]
    cases = {
        1: alert(1, T0 - HOUR, HOUR - 1), 2: alert(2, T0 - HOUR, HOUR), 3: alert(3, T0 + HOUR - 1), 4: alert(4, T0 + HOUR),
        5: alert(5, T0, asset="pump"), 6: alert(6, T0 + 5 * HOUR, asset="pump"), 7: alert(7, T0 - HOUR, 9 * HOUR),
    }  # fmt: skip
    assert {k: e.id for k, e in planned_work(cases.values(), calendar).items()} == {2: 1, 3: 1, 6: 2, 7: 1}
    assert planned_work(cases.values(), []) == {}


# -- figures


def test_load_against_the_budget() -> None:
    rows = [alert(k, T0 + k * DAY // 4) for k in range(8)] + [alert(9, T0 + DAY, asset="pump"), alert(10, T0 + 2 * DAY)]
    rows += [alert(11, T0, asset="press", parent_id=9)]
    press, pump = load(rows, T0, T0 + 2 * DAY, {"press": 2.0})
    assert (press.asset, press.count, press.per_day, press.worst_day, press.budget, press.over) == (
        "press",
        8,
        4.0,
        4,
        2.0,
        True,
    )
    assert (pump.asset, pump.per_day, pump.over) == ("pump", 0.5, False)
    with pytest.raises(ValueError, match="end_us: expected"):
        load([], T0, T0)


def test_bad_actors_are_the_ten_behind_most_alerts() -> None:
    rows = [alert(k, asset=f"a{k % 12:02d}") for k in range(30)] + [alert(99, asset="a03", cause="T7")]
    actors = bad_actors(rows)
    assert [a.asset for a in actors] == ["a00", "a01", "a02", "a03", "a04", "a05", "a06", "a07", "a08", "a09"]
    assert [a.count for a in actors] == [3] * 6 + [2] * 4
    assert actors[0].share == pytest.approx(3 / 31)
    assert bad_actors([]) == []


def test_time_to_acknowledge() -> None:
    rows = [alert(k, acknowledged_at=T0 + (k + 1) * MINUTE) for k in range(10)] + [alert(11)]
    assert acknowledge_times(rows) == [5 * MINUTE, 9 * MINUTE]
    assert acknowledge_times([alert(1)]) is None


def test_precision_counts_only_verdicts_that_tell() -> None:
    verdicts = ["true_fault"] * 3 + ["nuisance"] * 2 + ["known_work"] + ["unsure"] * 5 + ["sensor_fault"] * 4
    rows = [alert(k, state="closed", verdict=v) for k, v in enumerate(verdicts)] + [alert(99)]
    rows += [alert(100, state="closed", verdict="nuisance", parent_id=1)]
    own = precision(rows)
    assert (own.value, own.judged, own.counts["unsure"]) == (0.5, 6, 5)
    assert (own.low, own.high) == wilson(3, 6)
    assert precision([]).value is None


@pytest.mark.parametrize(("hits", "n"), [(0, 5), (3, 7), (5, 5), (40, 100)])
def test_the_wilson_interval_solves_its_equation(hits: int, n: int) -> None:
    """Its ends are where the normal test of a share just passes."""
    for end in wilson(hits, n):
        if 0 < end < 1:
            assert abs(hits / n - end) / math.sqrt(end * (1 - end) / n) == pytest.approx(1.959964, rel=1e-9)


def test_stale_and_silent() -> None:
    rows = [alert(1, T0 - DAY - 1), alert(2, T0 - DAY), alert(3, T0 - 9 * DAY, state="closed"), alert(4, T0 - 5 * DAY)]
    assert [a.id for a in stale(rows, T0)] == [4, 1]
    assert silent({"a": T0 - 2 * HOUR, "b": T0 - 2 * HOUR + 1}, T0, HOUR) == ["a"]
