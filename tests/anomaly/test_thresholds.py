"""Thresholds: where they come from is part of them (METHODS S61, S63)."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import fbeta_score, precision_recall_curve

from anomaly.config import ThresholdSettings
from anomaly.errors import UsageError
from anomaly.scores.explain import top_shares
from anomaly.scores.thresholds import (
    Threshold,
    best_f_beta,
    budget_threshold,
    choose_threshold,
    episodes_at,
    fixed_threshold,
    lowest_within,
    pr_curve_threshold,
)

MINUTE = 60_000_000
DAY = 1440 * MINUTE


def plant(n=20_000, events=12, seed=0):
    """Calibrated-looking scores: exponential in decades, with events that stand out somewhat."""
    rng = np.random.default_rng(seed)
    scores, positive = rng.exponential(1 / np.log(10), n), np.zeros(n, dtype=bool)
    for start in np.linspace(500, n - 500, events).astype(int):
        positive[start : start + 5] = True
        scores[start : start + 5] += rng.uniform(1, 4)
    return scores, positive, np.arange(n) * MINUTE, np.full(n, "plant", dtype=object)


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])
def test_s61_the_point_is_the_best_of_the_whole_curve(beta):
    scores, positive, *_ = plant(n=1200, events=3)
    scores = scores.round(2)  # ties
    best = best_f_beta(scores, positive, beta)
    by_loop = {t: fbeta_score(positive, scores >= t, beta=beta) for t in np.unique(scores)}
    assert best == max(t for t, f in by_loop.items() if f >= max(by_loop.values()) - 1e-12)


def test_s61_of_equal_points_the_higher_threshold_is_taken():
    assert best_f_beta(np.array([1.0, 2.0, 3.0, 4.0]), np.array([True, False, False, True])) == 4.0


def test_s61_the_interval_is_that_of_drawing_whole_events_again():
    scores, positive, time, _ = plant(n=1200, events=4)
    starts = np.flatnonzero(positive[1:] & ~positive[:-1]) + 1
    groups = np.split(np.arange(len(scores)), starts[1:])
    rng, drawn = np.random.default_rng(5), []
    for _ in range(200):
        rows = np.concatenate([groups[i] for i in rng.integers(0, 4, 4)])
        precision, recall, values = precision_recall_curve(positive[rows], scores[rows])
        f = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
        drawn.append(values[np.flatnonzero(f[:-1] >= f.max() - 1e-12)[-1]])
    threshold = pr_curve_threshold(scores, positive, time=time, seed=5)
    assert (threshold.low, threshold.high) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])))


def test_s61_the_threshold_is_reproducible_and_carries_rows_events_and_interval():
    scores, positive, time, _ = plant()
    one, two = (pr_curve_threshold(scores, positive, time=time, seed=1) for _ in range(2))
    assert one == two and one.rows == len(scores) and one.events == 12 and one.part == "validation"
    assert one.low <= one.value <= one.high and one.source
    assert Threshold.from_dict(one.to_dict()) == one
    assert pr_curve_threshold(scores + 1e-9, positive, time=time).source != one.source


def test_s61_few_events_are_said_to_be_few():
    scores, positive, time, _ = plant(events=2)
    threshold = pr_curve_threshold(scores, positive, time=time)
    assert "only 2 events" in threshold.note and threshold.low is None


def test_s61_test_rows_never_make_a_threshold():
    scores, positive, time, _ = plant()
    with pytest.raises(UsageError, match="validation"):
        pr_curve_threshold(scores, positive, time=time, part="test")


def test_s63_a_budget_is_met_on_fresh_normal_rows():
    scores, _, time, asset = plant(n=40_000, events=0)
    threshold = budget_threshold(
        scores, time=time, asset=asset, period_us=MINUTE, budget=2, merge_gap_us=10 * MINUTE
    )  # fmt: skip
    fresh, _, time, _ = plant(n=400_000, events=0, seed=9)
    per_day = episodes_at(fresh, time, threshold.value, 10 * MINUTE) / (400_000 / 1440)
    assert per_day == pytest.approx(2, rel=0.35)
    assert threshold.low <= threshold.value <= threshold.high


@pytest.mark.parametrize("seed", range(6))
def test_s63_no_higher_threshold_breaks_the_budget(seed):
    rng = np.random.default_rng(seed)
    n, gap = 1500, 7 * MINUTE
    scores = rng.exponential(1, n).round(1)
    asset = np.repeat(np.array(["A", "B"], dtype=object), [600, 900])
    time = np.concatenate((np.arange(600), np.arange(900))) * MINUTE

    def episodes(t):
        return sum(episodes_at(scores[asset == a], time[asset == a], t, gap) for a in "AB")

    def brute(allowed):
        keeps = [t for t in np.unique(scores) if (scores >= t).mean() <= 0.05
                 and all(episodes(u) <= allowed for u in np.unique(scores[scores >= t]))]  # fmt: skip
        return min(keeps, default=scores.max() + 1e-6)

    allowed = (20, 3, 0)
    assert lowest_within(scores, time, asset, gap, allowed) == pytest.approx([brute(a) for a in allowed], abs=1e-5)
    assert episodes(lowest_within(scores, time, asset, gap, [0])[0]) == 0


def test_s63_rows_without_a_score_take_no_part():
    scores, positive, time, asset = plant(events=0)
    holes = np.concatenate((scores, [np.nan, np.nan]))
    given = {"period_us": MINUTE, "merge_gap_us": 0}
    with_holes = choose_threshold(
        ThresholdSettings(), scores=holes, positive=np.append(positive, [True, False]),
        time=np.append(time, [1, 2]), asset=np.append(asset, ["plant", "plant"]), **given,
    )  # fmt: skip
    without = choose_threshold(
        ThresholdSettings(), scores=scores, positive=positive, time=time, asset=asset, **given
    )  # fmt: skip
    assert with_holes == without and without.fallback


def test_s63_a_short_part_follows_the_tail_one_decade_and_says_so():
    scores, _, time, asset = plant(n=100, events=0)
    threshold = budget_threshold(
        scores, time=time, asset=asset, period_us=1_000_000, budget=1, merge_gap_us=0
    )  # fmt: skip
    assert threshold.value == pytest.approx(np.log10(101) + 1)
    assert threshold.high == pytest.approx(np.log10(86_400)) and "expect more false episodes" in threshold.note


@pytest.mark.parametrize("events", [0, 1, 2])
def test_s61_no_event_in_validation_falls_back_to_the_budget_by_name(events):
    scores, positive, time, asset = plant(events=events)
    threshold = choose_threshold(
        ThresholdSettings(), scores=scores, positive=positive, time=time, asset=asset,
        period_us=MINUTE, merge_gap_us=10 * MINUTE,
    )  # fmt: skip
    assert (threshold.rule, bool(threshold.fallback)) == (("pr_curve", False) if events else ("budget", True))
    assert events == 0 or f"only {events} event" in threshold.note


def test_a_fixed_threshold_and_a_threshold_that_is_no_number():
    settings = ThresholdSettings(rule="fixed", value=2.5)
    scores, positive, time, asset = plant()
    chosen = choose_threshold(
        settings, scores=scores, positive=positive, time=time, asset=asset, period_us=MINUTE, merge_gap_us=0
    )  # fmt: skip
    assert chosen == fixed_threshold(2.5)
    with pytest.raises(ValueError, match="finite"):
        fixed_threshold(float("nan"))


def test_episodes_by_hand():
    time = np.array([0, 1, 2, 10, 11, 30]) * MINUTE
    scores = np.array([5.0, 1, 5, 5, 1, 5])
    assert episodes_at(scores, time, 3, 0) == 4
    assert episodes_at(scores, time, 3, 2 * MINUTE) == 3
    assert episodes_at(scores, time, 3, 60 * MINUTE) == 1
    assert episodes_at(scores, time, 9, 0) == 0


def test_top_shares_equal_a_sort_and_a_row_of_zeros_gives_zeros():
    shares = np.random.default_rng(0).random((50, 7)).astype(np.float32)
    columns, fractions = top_shares(shares, 3)
    np.testing.assert_array_equal(columns, np.argsort(-shares, axis=1)[:, :3])
    np.testing.assert_allclose(
        fractions, -np.sort(-shares, axis=1)[:, :3] / shares.sum(axis=1, keepdims=True), rtol=1e-6
    )
    assert top_shares(np.zeros((1, 2), np.float32), 3)[1].tolist() == [[0.0, 0.0]]
