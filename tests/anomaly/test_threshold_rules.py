"""Rules for a threshold: a floor of precision or recall, a quantile of normal rows, the fitted tail (METHODS S61, S63)."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import beta, norm
from sklearn.metrics import precision_score, recall_score

from anomaly.config import THRESHOLD_RULES, Settings, ThresholdSettings
from anomaly.errors import UsageError
from anomaly.scores.calibration import TailCalibrator
from anomaly.scores.threshold_rules import at_precision, at_recall, event_interval, normal_quantile, quantile_interval
from anomaly.scores.thresholds import (
    Threshold,
    choose_threshold,
    precision_threshold,
    quantile_threshold,
    recall_threshold,
    tail_threshold,
)

MINUTE = 60_000_000


def plant(n=1200, events=4, seed=0, strength=4.0):
    """Calibrated-looking scores in half decimals, so with ties, and events that stand out somewhat."""
    rng = np.random.default_rng(seed)
    scores, positive = rng.exponential(1 / np.log(10), n), np.zeros(n, dtype=bool)
    for start in np.linspace(100, n - 100, events).astype(int):
        positive[start : start + 6] = True
        scores[start : start + 6] += rng.uniform(0, strength, 6)
    return scores.round(2), positive, np.arange(n) * MINUTE, np.full(n, "plant", dtype=object)


def chosen(rule, *, n=1200, events=4, strength=4.0, **settings):
    scores, positive, time, asset = plant(n, events, strength=strength)
    return choose_threshold(
        ThresholdSettings(rule=rule, **settings),
        scores=scores,
        positive=positive,
        time=time,
        asset=asset,
        period_us=MINUTE,
        merge_gap_us=10 * MINUTE,
    )


@pytest.mark.parametrize("floor", [0.1, 0.25, 0.5, 0.8])
def test_s61_precision_is_the_lowest_threshold_that_keeps_the_floor(floor):
    scores, positive, time, _ = plant()
    by_loop = {t: precision_score(positive, scores >= t) for t in np.unique(scores)}
    expected = min(t for t, precision in by_loop.items() if precision >= floor)
    assert precision_threshold(scores, positive, time=time, floor=floor).value == expected


@pytest.mark.parametrize("floor", [0.1, 0.25, 0.5, 0.75, 1.0])
def test_s61_recall_is_the_highest_threshold_that_keeps_the_floor(floor):
    scores, positive, time, _ = plant()
    by_loop = {t: recall_score(positive, scores >= t) for t in np.unique(scores)}
    expected = max(t for t, recall in by_loop.items() if recall >= floor)
    assert recall_threshold(scores, positive, time=time, floor=floor).value == expected


def test_s61_precision_skips_a_dip_of_the_curve():
    scores, positive = np.array([4.0, 3.0, 2.0, 1.0]), np.array([True, False, False, True])
    threshold = precision_threshold(scores, positive, time=np.arange(4), floor=0.5)
    assert threshold.value == 1.0  # precisions from above: 1, 1/2, 1/3, 1/2
    assert precision_threshold(scores, positive, time=np.arange(4), floor=0.51).value == 4.0


@pytest.mark.parametrize(("rule", "floor"), [("precision", 0.4), ("recall", 0.6)])
def test_s61_the_interval_is_that_of_drawing_whole_events_again(rule, floor):
    scores, positive, *_ = plant()
    starts = np.flatnonzero(positive[1:] & ~positive[:-1]) + 1
    groups = np.split(np.arange(len(scores)), starts[1:])
    rng, drawn = np.random.default_rng(5), []
    for _ in range(200):
        rows = np.concatenate([groups[i] for i in rng.integers(0, 4, 4)])
        x, y = scores[rows], positive[rows]
        good = [
            t
            for t in np.unique(x)
            if (y[x >= t].mean() if rule == "precision" else y[x >= t].sum() / y.sum()) >= floor - 1e-9
        ]
        drawn.append(min(good) if rule == "precision" else max(good))
    pick = at_precision(floor) if rule == "precision" else at_recall(floor)
    low, high = event_interval(scores, positive, pick, seed=5)
    assert (low, high) == pytest.approx((np.quantile(drawn, 0.025), np.quantile(drawn, 0.975)))
    assert low < high


def test_s61_a_precision_that_no_threshold_reaches_falls_back_and_says_how_far_it_got():
    scores, positive = np.array([5.0, 4.0, 3.0, 2.0, 1.0]), np.array([False, True, False, True, False])
    threshold = precision_threshold(scores, positive, time=np.arange(5), floor=0.9)
    assert threshold.rule == "pr_curve"
    assert threshold.fallback == "precision: no threshold has a precision of 0.9 on the validation part"
    assert "reaches is 0.5; only 2 events in the validation part" in threshold.note
    assert threshold.value == 2.0  # F1: 0, 1/2, 2/5, 2/3, 4/7


@pytest.mark.parametrize("rule", ["pr_curve", "precision", "recall"])
def test_s61_without_an_event_the_budget_is_used_and_the_wanted_rule_is_named(rule):
    threshold = chosen(rule, events=0)
    assert (threshold.rule, threshold.fallback) == ("budget", f"{rule}: no event in the validation part")
    assert threshold.events == 0


@pytest.mark.parametrize("rule", ["precision", "recall"])
@pytest.mark.parametrize(("events", "named"), [(1, "1 event"), (2, "2 events")])
def test_s61_with_one_or_two_events_the_note_says_so_and_no_interval_is_made(rule, events, named):
    threshold = chosen(rule, events=events, floor=0.1)
    assert threshold.rule == rule
    assert threshold.events == events
    assert threshold.note == f"only {named} in the validation part: the threshold is uncertain"
    assert threshold.low is None
    assert threshold.high is None


@pytest.mark.parametrize("rule", ["precision", "recall"])
def test_s61_the_floor_of_the_settings_is_used_and_the_past_is_kept(rule):
    scores, positive, time, _ = plant(events=5)
    made = {"precision": precision_threshold, "recall": recall_threshold}[rule]
    threshold = chosen(rule, events=5, floor=0.3)
    assert threshold == made(scores, positive, time=time, floor=0.3)
    assert threshold != chosen(rule, events=5, floor=0.7)
    assert (threshold.rows, threshold.events, threshold.part) == (1200, 5, "validation")
    assert threshold.low <= threshold.value <= threshold.high
    assert Threshold.from_dict(threshold.to_dict()) == threshold


@pytest.mark.parametrize("rule", ["precision", "recall", "quantile", "tail"])
def test_s61_test_rows_never_make_a_threshold(rule):
    scores, positive, time, asset = plant()
    with pytest.raises(UsageError, match="E2001"):
        choose_threshold(
            ThresholdSettings(rule=rule),
            scores=scores, positive=positive, time=time, asset=asset, period_us=MINUTE, merge_gap_us=0, part="test",
        )  # fmt: skip


@pytest.mark.parametrize("rule", ["quantile", "tail"])
def test_s63_rate_rules_look_at_normal_rows_only(rule):
    scores, positive, time, asset = plant()
    wild = scores.copy()
    wild[positive] += 9
    made = [
        choose_threshold(
            ThresholdSettings(rule=rule, rate=0.05),
            scores=s, positive=positive, time=time, asset=asset, period_us=MINUTE, merge_gap_us=0,
        )
        for s in (scores, wild)
    ]  # fmt: skip
    assert made[0] == made[1]
    assert (made[0].rule, made[0].rows) == (rule, int((~positive).sum()))


@pytest.mark.parametrize("rate", [0.3, 0.05, 0.01])
def test_s63_the_quantile_is_the_lowest_score_that_the_allowed_rows_reach(rate):
    scores = plant(events=0)[0]
    by_loop = [t for t in np.unique(scores) if (scores >= t).sum() <= rate * (len(scores) + 1)]
    assert normal_quantile(scores, rate) == min(by_loop)


def test_s63_rows_that_pile_up_are_not_all_flagged():
    scores = np.array([1.0] * 50 + [2.0] * 50)
    assert 2.0 < normal_quantile(scores, 0.1) < 2.001
    assert normal_quantile(scores, 0.6) == 2.0


@pytest.mark.parametrize("rate", [0.05, 0.01, 0.002])
@pytest.mark.parametrize("rule", ["quantile", "tail"])
def test_s63_the_target_rate_is_met_on_fresh_normal_rows(rule, rate):
    """Alerts among fresh rows, over many plants, lie in the interval of a binomial count of uncertain share.

    The k-th largest of n scores is passed by a share of Beta(k, n - k + 1), whatever the distribution: that is the
    spread between plants, and the count of fresh rows comes on top.
    """
    n, fresh, plants = 2000, 2000, 60
    hits = 0
    for seed in range(plants):
        rng = np.random.default_rng(seed)
        held, new = rng.gamma(3.0, size=n), rng.gamma(3.0, size=fresh)
        calibrator = TailCalibrator().fit(held)
        scores, made = calibrator.transform(held), {"quantile": quantile_threshold, "tail": tail_threshold}[rule]
        threshold = made(scores, time=np.arange(n), rate=rate)
        assert (threshold.rule, threshold.fallback) == (rule, "")
        hits += int((calibrator.transform(new) >= threshold.value).sum())
    k = int(rate * (n + 1))
    share = beta(k, n - k + 1)
    sd = np.sqrt((share.var() + rate * (1 - rate) / fresh) / plants)
    tolerance = 2.6 * sd  # 99 %
    # the empirical rule owes the rounding of k; the tail has a bias of its own, allowed a tenth of the rate
    own = abs(share.mean() - rate) if rule == "quantile" else 0.1 * rate
    assert abs(hits / (plants * fresh) - rate) <= tolerance + own


def test_s63_the_tail_meets_a_rate_beyond_the_rows():
    n, wanted, passed = 500, 1 / 2000, []
    for seed in range(60):
        raw = np.random.default_rng(seed).exponential(size=n)
        calibrator = TailCalibrator().fit(raw)
        threshold = tail_threshold(calibrator.transform(raw), time=np.arange(n), rate=wanted)
        grid = np.linspace(0, 60, 60_001)
        passed.append(np.exp(-grid[np.searchsorted(calibrator.transform(grid), threshold.value)]))
    assert threshold.value == pytest.approx(np.log10(2000))
    assert wanted / 3 < np.exp(np.mean(np.log(passed))) < wanted * 3


@pytest.mark.parametrize("rate", [0.1, 0.01])
def test_s63_the_order_statistic_interval_covers_the_true_quantile(rate):
    truth, n, inside = norm.isf(rate), 600, 0
    for seed in range(400):
        low, high = quantile_interval(np.random.default_rng(seed).standard_normal(n), rate)
        inside += low <= truth and (high is None or truth < high)
    assert 0.93 <= inside / 400 <= 0.995


def test_s63_too_few_rows_for_the_rate_follow_the_tail_and_name_the_quantile():
    threshold = chosen("quantile", n=500, events=0, rate=1e-3)
    assert threshold.rule == "tail"
    assert threshold.fallback == "quantile: 500 normal rows cannot show 1 row in 1e+03"
    assert threshold.value == pytest.approx(3.0)
    with pytest.raises(ValueError, match=r"rate: expected at least 1 in 501 for 500 rows, got 0\.001"):
        normal_quantile(np.arange(500.0), 1e-3)


def test_s63_the_tail_is_followed_one_decade_beyond_the_rows_and_no_further():
    scores = np.zeros(999)
    near, far = (tail_threshold(scores, time=np.arange(999), rate=rate) for rate in (1e-4, 1e-6))
    assert near.value == pytest.approx(4.0)
    assert "beyond their reach" not in near.note
    assert "tail followed" in near.note
    assert far.value == pytest.approx(4.0)
    assert "1e-06 would need 6.0, beyond their reach" in far.note
    assert (far.low, far.high) == pytest.approx((3.0, 6.0))


def test_s63_within_reach_of_the_rows_the_tail_is_minus_the_logarithm_of_the_rate():
    threshold = chosen("tail", events=0, n=5000, rate=0.01)
    assert threshold.value == pytest.approx(2.0)
    assert threshold.low < 2.0 < threshold.high
    assert threshold.note == "5000 normal rows carry the tail this far"


@pytest.mark.parametrize("make", [quantile_threshold, tail_threshold])
def test_no_normal_row_is_refused(make):
    with pytest.raises(ValueError, match="scores: expected at least one scored normal row, got none"):
        make(np.empty(0), time=np.empty(0, np.int64), rate=0.1)


@pytest.mark.parametrize("make", [precision_threshold, recall_threshold])
def test_no_positive_row_is_refused(make):
    with pytest.raises(ValueError, match="positive: expected at least one positive row"):
        make(np.ones(3), np.zeros(3, dtype=bool), time=np.arange(3))


@pytest.mark.parametrize(
    ("field", "value"), [("floor", 0.0), ("floor", 1.01), ("rate", 0.0), ("rate", 1.0), ("rule", "median")]
)
def test_settings_out_of_range_are_refused(field, value):
    with pytest.raises(UsageError, match=f"threshold.{field}"):
        Settings().changed(threshold={field: value})


def test_every_rule_of_the_settings_gives_a_threshold():
    for rule in THRESHOLD_RULES:
        assert chosen(rule, value=2.0, floor=0.2, rate=0.05).rule == rule
