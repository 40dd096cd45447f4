"""METHODS S59: chronological parts, purge gap, whole events; and the audit of rows seen (S56)."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anomaly.config import SplitSettings
from anomaly.data.audit import RowAudit
from anomaly.data.splits import PARTS, SplitPlan, plan_split, random_split
from anomaly.intervals import as_intervals, contains, from_flags, merge


def normal_of(n: int, events: np.ndarray) -> np.ndarray:
    return from_flags(~contains(events, np.arange(n)) if len(events) else np.ones(n, bool))


def split(n: int, events: list, purge: int = 16, lookback: int = 16, shares: SplitSettings | None = None) -> dict:
    whole = as_intervals(events)
    return plan_split(
        np.arange(n) * 60,
        shares=shares or SplitSettings(),
        purge_us=purge * 60,
        events=whole,
        normal=normal_of(n, whole),
        lookback=lookback,
    )


@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=300),
    st.lists(st.tuples(st.integers(0, 300), st.integers(1, 40)), max_size=12),
    st.integers(0, 60),
    st.integers(1, 20),
    st.sampled_from([(0.6, 0.2, 0.2), (0.8, 0.2, 0.0), (0.34, 0.33, 0.33), (0.05, 0.9, 0.05)]),
)
def test_s59_parts_are_ordered_purged_and_keep_events_whole(
    steps: list, drawn: list, purge: int, lookback: int, shares: tuple
) -> None:
    time = np.cumsum(steps)
    n = len(time)
    events = merge([(min(a, n), min(a + length, n)) for a, length in drawn])
    events = events[events[:, 1] > events[:, 0]]
    parts = plan_split(
        time,
        shares=SplitSettings(*shares),
        purge_us=purge,
        events=events,
        normal=normal_of(n, events),
        lookback=lookback,
    )
    assert list(parts) == list(PARTS)
    edges = [edge for part in PARTS for edge in parts[part]]
    assert edges == sorted(edges)
    assert edges[0] == 0
    assert edges[-1] == n
    filled = [part for part in PARTS if parts[part][1] > parts[part][0]]
    for earlier, later in pairwise(filled):
        assert time[parts[later][0]] - time[parts[earlier][1] - 1] >= purge
    for a, b in events.tolist():
        touched = [part for part in PARTS if min(b, parts[part][1]) > max(a, parts[part][0])]
        assert len(touched) <= 1
        for part in touched:
            assert parts[part][0] <= a
            assert b <= parts[part][1]


def test_s59_without_events_the_cuts_are_where_they_were_asked() -> None:
    assert split(1000, []) == {"train": (0, 600), "validation": (615, 800), "test": (815, 1000)}


def test_s59_a_cut_inside_an_event_moves_to_its_nearer_side() -> None:
    later = [[700, 705], [900, 905]]
    assert split(1000, [[590, 610], *later])["train"] == (0, 610)
    early = split(1000, [[598, 640], *later])
    assert early["train"][1] + 15 <= early["validation"][0] <= 598


def test_s59_the_purge_is_time_not_rows() -> None:
    time = np.concatenate((np.arange(600), 1200 + np.arange(400)))
    parts = plan_split(
        time, shares=SplitSettings(), purge_us=50, events=as_intervals([]), normal=as_intervals([[0, 600], [600, 1000]])
    )
    assert parts["validation"][0] == 600  # the gap in time purges by itself
    assert time[parts["test"][0]] - time[parts["validation"][1] - 1] >= 50


def test_s59_validation_keeps_normal_windows_when_an_event_fills_its_place() -> None:
    parts = split(1000, [[600, 900]])
    first, stop = parts["validation"]
    normal = [r for r in range(first, stop) if not 600 <= r < 900]
    assert len(normal) >= 60
    assert parts["train"][1] - parts["train"][0] >= 300


def test_s59_validation_and_test_get_an_event_where_one_is_near() -> None:
    """Events at 58 %, 83 % and 95 %: cuts at 60 % and 80 % would leave validation with none."""
    parts = split(1000, [[580, 585], [830, 835], [950, 955]])
    assert parts["validation"][0] <= 580 or parts["validation"][1] >= 835
    assert parts["test"][0] <= 950
    far = split(1000, [[100, 105]])
    assert far == split(1000, [])


def test_s59_a_short_log_still_gets_train_and_validation() -> None:
    parts = split(60, [])
    assert parts["train"][1] - parts["train"][0] >= 16
    assert parts["validation"][1] - parts["validation"][0] >= 16
    assert split(1, [])["train"] == (0, 1)
    assert split(0, []) == dict.fromkeys(PARTS, (0, 0))


def test_s59_no_test_part_when_its_share_is_zero() -> None:
    parts = split(1000, [], shares=SplitSettings(0.8, 0.2, 0.0))
    assert parts["test"] == (1000, 1000)
    assert parts["validation"][1] == 1000


def test_split_plan_round_trip_and_purged_rows() -> None:
    plan = SplitPlan({"a": split(1000, [])}, {"a": 1000}, 960, (0.6, 0.2, 0.2))
    assert SplitPlan.from_dict(plan.to_dict()) == plan
    assert plan.purged("a").tolist() == [[600, 615], [800, 815]]
    assert plan.part_rows("a", "test") == (815, 1000)
    with pytest.raises(ValueError, match="one of train, validation, test"):
        plan.part_rows("a", "holdout")


def test_s35_a_share_of_the_training_rows_is_the_newest_one_and_moves_nothing_else() -> None:
    plan = SplitPlan(
        {"a": {"train": (10, 110), "validation": (120, 150), "test": (160, 200)}}, {"a": 200}, 5, (0.6, 0.2, 0.2)
    )
    less = plan.with_training_share(0.25)
    assert less.part_rows("a", "train") == (85, 110)
    assert [less.part_rows("a", p) for p in ("validation", "test")] == [(120, 150), (160, 200)]
    assert plan.part_rows("a", "train") == (10, 110)
    for share in (0, 1.5, -0.1):
        with pytest.raises(ValueError, match="share: expected more than 0 and at most 1"):
            plan.with_training_share(share)


def test_s59_random_split_repeats_the_seed_draw() -> None:
    from sklearn.model_selection import train_test_split

    rest, test = train_test_split(np.arange(500), test_size=0.2, random_state=123)
    train, validation = train_test_split(rest, test_size=0.2, random_state=123)
    parts = random_split(500)
    for name, expected in (("train", train), ("validation", validation), ("test", test)):
        assert parts[name].tolist() == expected.tolist()


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 50), st.integers(0, 9)), max_size=30))
def test_s56_the_audit_counts_each_row_once(added: list[tuple[str, int, int]]) -> None:
    audit, other, seen = RowAudit(), RowAudit(), set()
    for i, (asset, start, count) in enumerate(added):
        mask = np.arange(count) % 3 != 1
        (audit if i % 2 else other).add(asset, start, mask if i % 3 else int(count))
        seen |= {(asset, start + k) for k in range(count) if not i % 3 or mask[k]}
    joined = audit.merge(other)
    assert joined.rows == len(seen)
    assert joined.overlap("a", [[5, 20], [10, 30]]) == len([1 for asset, r in seen if asset == "a" and 5 <= r < 30])
    assert RowAudit.from_dict(joined.to_dict()) == joined
    assert set(joined.assets) == {asset for asset, _ in seen}
    assert joined.overlap("c", [[0, 9]]) == 0


def test_the_audit_stays_small() -> None:
    audit = RowAudit()
    for start in range(0, 100_000, 100):
        audit.add("a", start, np.ones(100, bool))
    assert audit.to_dict() == {"a": [[0, 100_000]]}
    assert audit != RowAudit()
