"""Episode rules on hand cases, against a row-by-row reference, and cut into any chunks."""

from __future__ import annotations

import time as clock
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alerts.episodes import Episode, EpisodeRules, EpisodeTracker, find_episodes, join

U = float("nan")


def rows(scores, *, warm=(), step=10, start=0):
    """time, score, outcome, reason of rows ``step`` apart; NaN is unscorable; ``warm`` are warm-up positions."""
    s = np.array(scores, np.float32)
    outcome = np.where(np.isnan(s), "unscorable", np.where(s >= 3, "anomalous", "normal")).astype(object)
    reason = np.array(["warm_up" if i in warm else "" for i in range(len(s))], object)
    return start + step * np.arange(len(s)), s, outcome, reason


def spans(found):
    return [(e.start_us, e.peak_us, e.end_us, e.rows) for e in found]


def find(scores, rules=EpisodeRules(), warm=(), **how):  # noqa: B008  frozen
    return find_episodes(*rows(scores, warm=warm), 3.0, rules, **how)


def test_hysteresis_holds_until_off_level():
    # 2.4 = 0.8 × 3 keeps the episode on, 2.3 ends it; 2.5 alone never starts one
    assert spans(find([2.5, 3.0, 2.5, 5.0, 2.4, 2.3, 2.5])) == [(10, 30, 40, 2)]


def test_threshold_itself_is_anomalous_in_float32():
    threshold = 3.3333333333
    score = np.array([threshold], np.float32)
    assert float(score[0]) != threshold
    assert len(find_episodes([0], score, ["anomalous"], [""], threshold, EpisodeRules())) == 1


def test_minimum_length_counts_anomalous_rows_after_merging():
    rules = EpisodeRules(min_rows=2, merge_gap_us=20)
    assert find([3, 0, 0, 0, 3], rules) == []
    assert spans(find([3, 0, 4, 0, 0, 0, 9], rules)) == [(0, 20, 20, 2)]


def test_rows_between_off_level_and_threshold_do_not_count():
    assert find([3, 2.9, 2.9], EpisodeRules(min_rows=2)) == []


def test_episodes_merge_up_to_and_including_the_gap():
    assert spans(find([3, 0, 0, 4], EpisodeRules(merge_gap_us=30))) == [(0, 30, 30, 2)]
    assert spans(find([3, 0, 0, 4], EpisodeRules(merge_gap_us=29))) == [(0, 0, 0, 1), (30, 30, 30, 1)]


def test_merge_reaches_from_the_end_of_hysteresis_not_from_the_peak():
    assert spans(find([9, 2.5, 2.5, 0, 3], EpisodeRules(merge_gap_us=20))) == [(0, 0, 40, 2)]


def test_warm_up_rows_belong_to_no_episode_so_that_no_alert_depends_on_where_a_file_was_cut():
    assert find([9, 9, 0], warm=(0, 1)) == []
    assert spans(find([9, 8, 3, 0], warm=(0, 1))) == [(20, 20, 20, 1)]


def test_unscorable_rows_neither_start_nor_end_and_hold_for_the_merge_gap():
    assert find([U, U, U]) == []
    rules = EpisodeRules(merge_gap_us=20)
    assert spans(find([3, U, 2.5, 0], rules)) == [(0, 0, 20, 1)]  # held: 2.5 still belongs
    assert spans(find([3, U, U, U, 2.5, 0], rules)) == [(0, 0, 0, 1)]  # held out: 2.5 starts nothing
    assert spans(find([3, U, U, U, 3, 0], rules)) == [(0, 0, 0, 1), (40, 40, 40, 1)]
    assert spans(find([0, U, 2.5, 0], rules)) == []


def test_a_nan_score_never_counts_as_normal_whatever_the_outcome_says():
    time, score, _, reason = rows([3, U, 2.5])
    found = find_episodes(time, score, ["anomalous", "normal", "normal"], reason, 3.0, EpisodeRules(merge_gap_us=20))
    assert spans(found) == [(0, 0, 20, 1)]


def test_an_unscorable_outcome_wins_over_a_high_score():
    time, score, _, reason = rows([9, 9])
    assert find_episodes(time, score, [2, 2], reason, 3.0, EpisodeRules()) == []


def test_codes_and_names_of_outcomes_are_the_same():
    time, score, names, reason = rows([3, U, 2.5, 0, 4])
    codes = np.select([names == "normal", names == "anomalous"], [0, 1], 2).astype(np.int8)
    rules = EpisodeRules(merge_gap_us=20)
    by_code = find_episodes(time, score, codes, reason, 3.0, rules)
    assert by_code == find_episodes(time, score, names, reason, 3.0, rules) != []


def test_a_long_step_ends_the_episode_where_max_gap_is_given():
    time, score, outcome, reason = np.array([0, 10, 500, 510]), np.full(4, 3.0), [1] * 4, [""] * 4
    rules = EpisodeRules(merge_gap_us=40, max_gap_us=35)
    assert spans(find_episodes(time, score, outcome, reason, 3.0, rules)) == [(0, 0, 10, 2), (500, 500, 510, 2)]
    near = np.array([0, 10, 50, 60])
    assert spans(find_episodes(near, score, outcome, reason, 3.0, rules)) == [(0, 0, 60, 4)]


def test_open_only_while_on_at_the_end():
    assert [e.open for e in find([3, 0, 0, 3, 2.5])] == [False, True]
    assert [e.open for e in find([3, 0])] == [False]


def test_peak_is_the_first_highest_row():
    (found,) = find([3, 7, 7, 4])
    assert (found.peak_us, found.peak_score, found.threshold) == (10, 7.0, 3.0)


def test_top_tags_are_the_shares_of_the_peak_row_and_negative_ones_count_as_none():
    shares = np.array([[0, 9], [1, 3], [5, -2]], np.float32)
    (found,) = find([2.5, 6, 3], shares=shares, tags=("P", "Q"))
    assert dict(found.top_tags) == pytest.approx({"P": 0.25, "Q": 0.75})
    (found,) = find([2.5, 3, 6], shares=shares, tags=("P", "Q"))
    assert dict(found.top_tags) == {"P": 1.0}


def test_top_tags_largest_first_at_most_three_no_zero_share():
    (found,) = find([6], shares=[[1, 5, 0, 2, 2]], tags=("A", "B", "C", "D", "E"))
    assert [t for t, _ in found.top_tags] == ["B", "D", "E"]
    (found,) = find([6], shares=[[0, 5]], tags=("A", "B"))
    assert found.top_tags == (("B", 1.0),)


def test_an_infinite_score_gives_a_peak_and_finite_shares():
    (found,) = find([np.inf, 3], shares=[[1, 1], [1, 0]], tags=("A", "B"))
    assert found.peak_score == np.inf
    assert all(0 < share < 1 for _, share in found.top_tags)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"time": [10, 0]}, "time order"),
        ({"score": [1.0]}, "score: expected shape"),
        ({"outcome": [0]}, "outcome: expected shape"),
        ({"reason": [""]}, "reason: expected shape"),
        ({"shares": np.zeros((2, 3))}, "shares: expected shape"),
    ],
)
def test_misuse_is_named(change, words):
    given_rows = {
        "time": [0, 10],
        "score": [1.0, 2.0],
        "outcome": [0, 0],
        "reason": ["", ""],
        "shares": np.zeros((2, 1)),
    }
    with pytest.raises(ValueError, match=words):
        EpisodeTracker("A", 3.0, EpisodeRules(), ("P",)).update(**given_rows | change)


def test_rows_before_the_last_chunk_are_refused():
    tracker = EpisodeTracker("A", 3.0, EpisodeRules())
    tracker.update([10], [1.0], [0], [""])
    with pytest.raises(ValueError, match="time order"):
        tracker.update([9], [1.0], [0], [""])


@pytest.mark.parametrize("wrong", [{"off": 0}, {"off": 1.1}, {"min_rows": 0}, {"merge_gap_us": -1}, {"max_gap_us": -1}])
def test_rules_refuse_impossible_values(wrong):
    with pytest.raises(ValueError, match="expected"):
        EpisodeRules(**wrong)


def test_nan_threshold_is_refused():
    with pytest.raises(ValueError, match="threshold"):
        EpisodeTracker("A", U, EpisodeRules())


def by_hand(time, score, reason, threshold, rules):
    """The rules of the module's docstring, one row after another."""
    found, now, on, previous = [], None, False, None
    answered = np.where(reason == "warm_up", np.nan, score)
    for t, s in zip(time.tolist(), answered.tolist(), strict=True):
        anomalous = s >= threshold
        jumped = rules.max_gap_us is not None and previous is not None and t - previous > rules.max_gap_us
        if jumped or (np.isnan(s) and now is not None and t - now["end"] > rules.merge_gap_us):
            on = False
        if anomalous:
            if not on and (now is None or t - now["end"] > rules.merge_gap_us):
                found.append(now := {"start": t, "peak": (-np.inf, 0), "rows": 0})
            on = True
            now["rows"] += 1
            now["peak"] = max(now["peak"], (s, -t))
            now["end"] = t
        elif s >= rules.off * threshold and on:
            now["end"] = t
        elif not np.isnan(s):
            on = False
        previous = t
    kept = [f for f in found if f["rows"] >= rules.min_rows]
    return [(f["start"], -f["peak"][1], f["end"], f["rows"]) for f in kept]


level = st.sampled_from([0.0, 1.0, 2.5, 2.75, 3.0, 4.0, 9.0, U])
logs = st.lists(st.tuples(st.integers(1, 40), level, st.booleans(), st.integers(0, 9)), min_size=1, max_size=60)
any_rules = st.builds(
    EpisodeRules,
    off=st.sampled_from([0.5, 0.8, 1.0]),
    min_rows=st.integers(1, 3),
    merge_gap_us=st.integers(0, 60),
    max_gap_us=st.sampled_from([None, 5, 30]),
)


def arrays(log):
    step, score, warm, weight = zip(*log, strict=True)
    score = np.array(score)
    reason = np.where(warm, "warm_up", "").astype(object)
    shares = np.array([[w / 7, 0.1, 1 / (1 + w)] for w in weight])
    return np.cumsum(step), score, np.where(np.isnan(score), 2, 0), reason, shares


@settings(max_examples=300, deadline=None)
@given(logs, any_rules)
def test_equals_the_row_by_row_reference(log, rules):
    time, score, outcome, reason, _ = arrays(log)
    found = find_episodes(time, score, outcome, reason, 3.0, rules)
    assert spans(found) == by_hand(time, score, reason, 3.0, rules)


@settings(max_examples=300, deadline=None)
@given(logs, any_rules, st.lists(st.integers(0, 60), max_size=8))
def test_any_chunking_gives_the_same_episodes_to_the_last_bit(log, rules, cuts):
    columns = arrays(log)
    whole = EpisodeTracker("A", 3.0, rules, ("P", "Q", "R"))
    whole.update(*columns)
    parts = EpisodeTracker("A", 3.0, rules, ("P", "Q", "R"))
    for piece in zip(*(np.split(c, sorted(min(k, len(log)) for k in cuts)) for c in columns), strict=True):
        parts.update(*piece)
        parts.finish()
    assert parts.finish() == whole.finish()


def test_long_logs_are_followed_in_blocks_with_the_same_result(monkeypatch):
    rng = np.random.default_rng(0)
    score = rng.exponential(1.2, 5000)
    columns = (np.arange(5000), score, np.zeros(5000, np.int8), np.full(5000, "", object), rng.random((5000, 4)))
    found = []
    for block in (1 << 16, 37):
        monkeypatch.setattr("alerts.episodes._BLOCK", block)
        tracker = EpisodeTracker("A", 3.0, EpisodeRules(merge_gap_us=3), tuple("PQRS"))
        tracker.update(*columns)
        found.append(tracker.finish())
    assert found[0] == found[1]
    assert len(found[0]) > 50


def test_a_million_rows_in_two_seconds():
    rng = np.random.default_rng(1)
    n = 1_000_000
    score, shares = rng.exponential(0.5, n).astype(np.float32), rng.random((n, 8), dtype=np.float32)
    columns = (np.arange(n), score, np.zeros(n, np.int8), np.full(n, "", object), shares)
    best = np.inf
    for _ in range(3):
        tracker = EpisodeTracker("A", 3.0, EpisodeRules(merge_gap_us=10), tuple("ABCDEFGH"))
        begun = clock.process_time()
        tracker.update(*columns)
        found = tracker.finish()
        best = min(best, clock.process_time() - begun)
    assert len(found) > 1000
    assert best < 2


# joining two views of one episode

A = Episode("A", 10, 12, 20, 5.0, 3.0, 11, (("P", 1.0),))


def test_the_wider_view_brings_its_rows_and_the_higher_peak_its_tags():
    wide = replace(A, start_us=5, end_us=25, rows=21, peak_score=6.0, peak_us=7, top_tags=(("Q", 1.0),))
    assert join(A, wide) == join(wide, A) == wide
    low = replace(wide, peak_score=4.0)
    assert join(A, low) == replace(wide, peak_score=5.0, peak_us=12, top_tags=(("P", 1.0),))


def test_partly_shared_rows_count_once():
    later = replace(A, start_us=18, end_us=30, peak_us=22, rows=13)
    joined = join(A, later)
    assert (joined.start_us, joined.end_us, joined.rows) == (10, 30, 21)
    apart = replace(A, start_us=22, end_us=30, peak_us=22, rows=9)
    assert join(A, apart).rows == 20


def test_the_later_end_says_whether_the_episode_is_open():
    cut = replace(A, open=True)
    assert not join(cut, replace(A, start_us=15, end_us=30)).open
    assert not join(cut, A).open


spans_of_an_episode = st.tuples(st.integers(0, 20), st.integers(0, 20)).map(sorted)


@given(spans_of_an_episode, spans_of_an_episode, st.integers(1, 9), st.integers(1, 9), st.sampled_from([4.0, 5.0]))
def test_join_does_not_depend_on_the_order(one, other, rows_one, rows_other, peak):
    a = Episode("A", one[0], one[0], one[1], 4.0, 3.0, rows_one, (("P", 1.0),))
    b = Episode("A", other[0], other[1], other[1], peak, 3.0, rows_other, (("Q", 1.0),), open=True)
    joined = join(a, b)
    assert joined == join(b, a)
    assert max(rows_one, rows_other) <= joined.rows <= rows_one + rows_other
