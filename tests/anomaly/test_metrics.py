"""Figures of an evaluation: identities, references worked by hand, and the pitfalls that must stay shut (METHODS S61, S62)."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, poisson
from sklearn.metrics import average_precision_score, roc_auc_score

from anomaly.data.contract import EVENT, LEAD, NORMAL, UNKNOWN
from anomaly.intervals import as_intervals
from anomaly.metrics import (
    Confusion,
    ScoredPart,
    average_precision,
    bootstrap_interval,
    clopper_pearson,
    confusion,
    early_recall,
    evaluate,
    event_outcomes,
    event_recall,
    false_episodes,
    false_episodes_per_day,
    flag_intervals,
    median_lead,
    operating_days,
    poisson_interval,
    pr_curve,
    ranking_problem,
    recall_at_fpr,
    roc_auc,
    roc_curve,
    time_blocks,
    wilson,
)
from anomaly.metrics.rows import ranking_counts, ranking_statistics

MINUTE = 60_000_000


def ranked(n: int = 500, seed: int = 0, shift: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    positive = rng.random(n) < 0.1
    return rng.normal(size=n) + shift * positive, positive


def part(
    n: int = 4000, events: int = 8, lead: int = 0, seed: int = 0, signal: float = 3.0, length: int = 20
) -> ScoredPart:
    """One asset, a row a minute, ``events`` events of ``length`` rows; the score is higher in them and their lead."""
    rng = np.random.default_rng(seed)
    time = np.arange(n, dtype=np.int64) * MINUTE
    kind = np.zeros(n, dtype=np.int8)
    starts = (np.arange(events) + 1) * (n // (events + 1)) if events else np.empty(0, int)
    for start in starts:
        kind[start - lead : start] = LEAD
        kind[start : start + length] = EVENT
    score = rng.exponential(1 / np.log(10), n) + signal * (kind > 0)
    pairs = [(time[s], time[s + length - 1] + 1) for s in starts]
    outcome = np.where(score >= 3, "anomalous", "normal").astype(object)
    asset = np.full(n, "pump", dtype=object)
    found = {"pump": as_intervals(pairs)} if events else {}
    return ScoredPart(asset, time, score, outcome, kind, found, MINUTE, lead * MINUTE, 3 * MINUTE)


# ---- rows


def test_s62_confusion_identities_hold_with_unscorable_rows_apart() -> None:
    score, positive = ranked()
    score[::7] = np.nan
    c = confusion(score, positive, 0.8)
    assert c.tp + c.fn + c.unscorable_positive == positive.sum() == c.positives
    assert c.fp + c.tn + c.unscorable_negative == (~positive).sum() == c.negatives
    assert c.rows == len(score)
    assert c.unscorable_positive + c.unscorable_negative == np.isnan(score).sum()
    assert c.recall == pytest.approx(c.tp / positive.sum()), "the denominator is all positive rows, not the misses"
    assert c.precision == pytest.approx(positive[score >= 0.8].mean())


@given(st.integers(0, 50), st.integers(0, 50), st.integers(0, 50), st.integers(0, 50))
def test_s62_rates_of_any_confusion_lie_between_zero_and_one_or_are_undefined(
    tp: int, fp: int, fn: int, tn: int
) -> None:
    c = Confusion(tp, fp, fn, tn)
    for value, below in ((c.precision, tp + fp), (c.recall, tp + fn), (c.false_positive_rate, fp + tn)):
        assert (0 <= value <= 1) if below else math.isnan(value)


def test_ranking_figures_equal_scikit_learn_on_finite_rows() -> None:
    score, positive = ranked()
    gaps = np.concatenate((score, [np.nan, np.nan])), np.concatenate((positive, [True, False]))
    assert average_precision(*gaps) == pytest.approx(average_precision_score(positive, score))
    assert roc_auc(*gaps) == pytest.approx(roc_auc_score(positive, score))


def test_recall_at_fpr_equals_a_search_over_every_threshold() -> None:
    score, positive = ranked(seed=3)
    reference = max(
        (score[positive] >= t).mean() for t in np.append(score, np.inf) if (score[~positive] >= t).mean() <= 0.063
    )
    assert recall_at_fpr(score, positive) == pytest.approx(reference)


@pytest.mark.parametrize(
    ("score", "positive", "reason"),
    [
        ([1.0, 1.0], [True, False], "same for every row"),
        ([1.0, 2.0], [False, False], "no positive row"),
        ([1.0, 2.0], [True, True], "no normal row"),
        ([np.nan, np.nan], [True, False], "no scored row"),
        ([], [], "no scored row"),
    ],
)
def test_degenerate_parts_give_nan_with_a_reason(score: list[float], positive: list[bool], reason: str) -> None:
    assert reason in ranking_problem(score, positive)
    assert math.isnan(average_precision(score, positive))
    assert math.isnan(roc_auc(score, positive))
    assert math.isnan(recall_at_fpr(score, positive))
    assert not len(pr_curve(score, positive)[0])
    assert not len(roc_curve(score, positive)[0])


def test_arrays_of_different_length_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"score, positive: expected .* equally long"):
        confusion([1.0], [True, False], 0.5)


def test_s61_each_point_of_the_curve_is_the_confusion_at_its_threshold() -> None:
    score, positive = ranked(100)
    for precision, recall, threshold in zip(*pr_curve(score, positive), strict=True):
        c = confusion(score, positive, threshold)
        assert (precision, recall) == pytest.approx((c.precision, c.recall))


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.0]), st.booleans()), min_size=2, max_size=60))
def test_vectorised_ranking_equals_scikit_learn_with_ties(rows: list[tuple[float, bool]]) -> None:
    score, positive = np.array([r[0] for r in rows]), np.array([r[1] for r in rows])
    if ranking_problem(score, positive):
        return
    counts = ranking_counts(score, positive, np.arange(len(rows)) % 3, 3)
    found = ranking_statistics(np.ones((1, 3)) @ counts[0], np.ones((1, 3)) @ counts[1], fpr=0.3)
    assert found["average_precision"][0] == pytest.approx(average_precision_score(positive, score))
    assert found["roc_auc"][0] == pytest.approx(roc_auc_score(positive, score))
    assert found["recall_at_fpr"][0] == pytest.approx(recall_at_fpr(score, positive, 0.3))


def test_vectorised_ranking_of_a_drawn_sample_equals_the_sample_written_out() -> None:
    score, positive = ranked(300)
    group = np.arange(300) // 30
    drawn = np.array([2, 0, 1, 1, 0, 3, 1, 1, 0, 1])
    counts = ranking_counts(score, positive, group, 10)
    found = ranking_statistics(drawn[None] @ counts[0], drawn[None] @ counts[1])
    rows = np.repeat(np.arange(300), drawn[group])
    assert found["average_precision"][0] == pytest.approx(average_precision_score(positive[rows], score[rows]))


def test_many_distinct_scores_are_binned_without_moving_the_figures() -> None:
    score, positive = ranked(30_000, seed=1, shift=2.0)
    counts = ranking_counts(score, positive, np.zeros(len(score), int), 1)
    assert counts[0].shape[1] <= 2048
    assert counts[0].sum() == positive.sum()
    assert counts[0].sum() + counts[1].sum() == len(score)
    found = ranking_statistics(*counts)
    assert found["average_precision"][0] == pytest.approx(average_precision(score, positive), abs=0.003)
    assert found["roc_auc"][0] == pytest.approx(roc_auc(score, positive), abs=0.001)


@given(st.lists(st.booleans(), min_size=1, max_size=120), st.integers(1, 20), st.integers(0, 60))
def test_time_blocks_never_cut_an_event_nor_span_two_assets(whole: list[bool], blocks: int, first: int) -> None:
    flags = np.array(whole)
    asset = (np.arange(len(flags)) >= first).astype(np.int64)
    group = time_blocks(asset, flags, blocks)
    assert group[0] == 0
    assert set(np.diff(group)) <= {0, 1}
    for g in range(group[-1] + 1):
        assert len(set(asset[group == g])) == 1
    same_event = flags[1:] & flags[:-1] & (asset[1:] == asset[:-1])
    assert (np.diff(group)[same_event] == 0).all()


# ---- intervals


def test_bootstrap_of_a_mean_agrees_with_the_normal_interval() -> None:
    values = np.random.default_rng(0).normal(5, 2, 400)
    found = bootstrap_interval(lambda d: d @ values / d.sum(axis=1), len(values), draws=2000)
    half = 1.96 * values.std() / 20
    assert found.low == pytest.approx(values.mean() - half, abs=0.05)
    assert found.high == pytest.approx(values.mean() + half, abs=0.05)
    assert found.groups == 400


def test_bootstrap_over_blocks_is_wider_than_over_rows_that_repeat_each_other() -> None:
    blocks = np.random.default_rng(0).normal(size=20)
    rows = np.repeat(blocks, 50)
    of_blocks = bootstrap_interval(lambda d: d @ blocks / d.sum(axis=1), 20)
    of_rows = bootstrap_interval(lambda d: d @ rows / d.sum(axis=1), 1000)
    assert of_blocks.low is not None and of_blocks.high is not None
    assert of_rows.low is not None and of_rows.high is not None
    assert of_blocks.high - of_blocks.low > 4 * (of_rows.high - of_rows.low)


def test_bootstrap_is_reproducible_by_seed() -> None:
    values = np.random.default_rng(0).normal(size=30)

    def mean(drawn: np.ndarray) -> np.ndarray:
        return drawn @ values / drawn.sum(axis=1)

    assert bootstrap_interval(mean, 30, seed=1) == bootstrap_interval(mean, 30, seed=1)
    assert bootstrap_interval(mean, 30, seed=1) != bootstrap_interval(mean, 30, seed=2)


def test_no_interval_is_claimed_where_resampling_says_nothing() -> None:
    few = bootstrap_interval(lambda d: d.sum(axis=1), 2)
    held = bootstrap_interval(lambda d: d @ np.arange(9.0), 9, holding=1)
    same = bootstrap_interval(lambda d: np.ones(len(d)), 50)
    lost = bootstrap_interval(lambda d: np.full(len(d), np.nan), 50)
    for interval, reason in (
        (few, "2 independent"),
        (held, "1 independent"),
        (same, "same value"),
        (lost, "undefined"),
    ):
        assert interval.low is None and interval.high is None
        assert reason in interval.reason


@pytest.mark.parametrize(("found", "total"), [(0, 4), (1, 4), (4, 4), (7, 20)])
def test_clopper_pearson_bounds_solve_the_binomial_tails(found: int, total: int) -> None:
    interval = clopper_pearson(found, total)
    assert interval.low is not None and interval.high is not None
    if found:
        assert binom.sf(found - 1, total, interval.low) == pytest.approx(0.025)
    if found < total:
        assert binom.cdf(found, total, interval.high) == pytest.approx(0.025)


def test_wilson_bounds_solve_the_score_equation() -> None:
    interval = wilson(7, 20)
    for bound in (interval.low, interval.high):
        assert bound is not None
        assert abs(0.35 - bound) / math.sqrt(bound * (1 - bound) / 20) == pytest.approx(1.96, abs=1e-3)


def test_poisson_bounds_solve_the_poisson_tails() -> None:
    interval = poisson_interval(6, 2.0)
    assert interval.low is not None and interval.high is not None
    assert poisson.sf(5, 2 * interval.low) == pytest.approx(0.025)
    assert poisson.cdf(6, 2 * interval.high) == pytest.approx(0.025)


@pytest.mark.parametrize("bad", [(3, 2), (-1, 2), (0, 0)])
def test_impossible_counts_are_refused(bad: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="found, total"):
        clopper_pearson(*bad)


def test_impossible_exposure_is_refused() -> None:
    with pytest.raises(ValueError, match="exposure > 0"):
        poisson_interval(1, 0.0)


# ---- events


def test_an_alert_counts_from_the_lead_window_to_the_end_of_the_event() -> None:
    events = {"a": as_intervals([[100, 200]])}

    def outcome(start: int, end: int) -> tuple[bool, bool, float | None]:
        one = event_outcomes({"a": as_intervals([[start, end]])}, events, lead_us=50)[0]
        return one.detected, one.early, None if one.lead_s is None else one.lead_s * 1e6

    assert outcome(49, 50) == (False, False, None)
    assert outcome(50, 51) == (True, True, pytest.approx(50))
    assert outcome(10, 80) == (True, True, pytest.approx(50)), "an older alert counts from the opening of the window"
    assert outcome(100, 101) == (True, False, 0)
    assert outcome(199, 300) == (True, False, pytest.approx(-99)), "late is negative"
    assert outcome(200, 300) == (False, False, None)


def test_the_lead_window_never_reaches_into_the_event_before_nor_across_a_gap() -> None:
    events = {"a": as_intervals([[100, 200], [220, 300]])}
    alerts = {"a": as_intervals([[150, 151]])}
    assert [o.detected for o in event_outcomes(alerts, events, lead_us=100)] == [True, False]
    before = {"a": as_intervals([[40, 41]])}
    assert event_outcomes(before, events, lead_us=100)[0].detected
    assert not event_outcomes(before, events, lead_us=100, segment_starts={"a": np.array([0, 60])})[0].detected
    assert len(false_episodes(before, events, 100, segment_starts={"a": np.array([0, 60])})["a"]) == 1


def test_alerts_of_another_asset_find_nothing() -> None:
    assert not event_outcomes({"b": as_intervals([[100, 200]])}, {"a": as_intervals([[100, 200]])}, 0)[0].detected


def test_recall_and_lead_are_of_events_with_counts() -> None:
    events = {"a": as_intervals([[100, 110], [300, 310], [500, 510], [700, 710], [900, 910], [1100, 1110]])}
    alerts = {"a": as_intervals([[90, 91], [305, 306], [480, 481], [695, 699]])}
    outcomes = event_outcomes(alerts, events, lead_us=50)
    recall, early, lead = event_recall(outcomes), early_recall(outcomes), median_lead(outcomes)
    assert (recall.value, recall.count) == (pytest.approx(4 / 6), "4 of 6 events found")
    assert early.value == pytest.approx(3 / 6)
    assert lead.value == pytest.approx(np.median([10, -5, 20, 5]) / 1e6)
    assert recall.method.startswith("Wilson")
    assert lead.low is not None and lead.high is not None and lead.low <= lead.value <= lead.high


def test_few_events_get_the_exact_interval_and_it_is_named() -> None:
    outcomes = event_outcomes({}, {"a": as_intervals([[1, 2], [5, 6]])}, 0)
    figure = event_recall(outcomes)
    assert "exact" in figure.method
    assert figure.value == 0
    assert figure.high == pytest.approx(clopper_pearson(0, 2).high)
    assert math.isnan(median_lead(outcomes).value)


def test_false_episodes_are_those_that_touch_no_event_lead_or_grace() -> None:
    episodes = {
        "a": as_intervals([[0, 10], [60, 70], [150, 160], [205, 215], [400, 410]]),
        "b": as_intervals([[100, 110]]),
    }
    false = false_episodes(episodes, {"a": as_intervals([[100, 200]])}, lead_us=35, grace_us=10)
    assert false["a"].tolist() == [[0, 10], [400, 410]]
    assert false["b"].tolist() == [[100, 110]]


def test_operating_days_leave_gaps_out() -> None:
    hour = 3_600_000_000
    time = np.array([0, 1, 2, 30, 31]) * hour
    assert operating_days(time, hour, 3 * hour) == pytest.approx(5 / 24)
    assert operating_days(time, hour, 40 * hour) == pytest.approx(32 / 24)
    assert operating_days(time[:0], hour, hour) == 0


def test_false_episodes_per_day_say_over_how_long() -> None:
    figure = false_episodes_per_day(0, 2.0)
    assert figure.value == 0
    assert figure.high == pytest.approx(3.689 / 2, abs=1e-3), "none seen in two days is not none ever"
    assert "2 days" in figure.count
    assert math.isnan(false_episodes_per_day(0, 0.0).value)


def test_flagged_rows_become_episodes_per_asset() -> None:
    asset = np.array(["a", "a", "b", "a", "b"], dtype=object)
    found = flag_intervals(asset, np.array([0, 10, 10, 40, 99]), np.array([1, 1, 1, 1, 0], bool), merge_gap_us=9)
    assert {k: v.tolist() for k, v in found.items()} == {"a": [[0, 11], [40, 41]], "b": [[10, 11]]}


# ---- evaluate


def test_s62_every_figure_of_an_evaluation_has_a_count_and_an_interval_or_a_reason() -> None:
    found = evaluate(part(), 3.0, baseline_scores={"energy": part(seed=1).score})
    for name, figures in {"model": found.figures, **found.baselines}.items():
        assert set(figures) == set(found.figures), name
        for figure in figures.values():
            if name not in ("always", "never", "random"):
                assert figure.count
            assert figure.note or (figure.low is not None and figure.high is not None) or figure.method, (name, figure)
    for figure in found.figures.values():
        if figure.low is not None and figure.high is not None:
            assert figure.low <= figure.value <= figure.high


def test_s62_evaluation_counts_agree_with_a_plain_count() -> None:
    rows = part()
    found = evaluate(rows, 3.0)
    flags = rows.score >= 3
    assert found.confusion.tp == int((flags & (rows.kind == EVENT)).sum())
    assert found.confusion.fp == int((flags & (rows.kind == NORMAL)).sum())
    assert (found.rows, found.positives, found.events) == (4000, 160, 8)
    assert found.figures["average_precision"].value == pytest.approx(average_precision(rows.score, rows.kind == EVENT))
    assert found.figures["precision"].value == pytest.approx(found.confusion.precision)
    assert found.days == pytest.approx((4000 - 160) / 1440, rel=0.001)


def test_s58_with_a_lead_the_rows_before_an_event_are_positive_and_its_own_rows_left_out() -> None:
    rows = part(lead=4)
    found = evaluate(rows, 3.0)
    assert found.positives == 8 * 4
    assert found.rows == 4000 - 8 * 20
    assert any("4 min before an event" in note for note in found.notes)


def test_unknown_rows_are_never_counted_and_their_episodes_never_false() -> None:
    rows = part(events=0, signal=0)
    kind, score = rows.kind.copy(), np.zeros(len(rows.score))
    kind[1000:1100], score[1010:1020] = UNKNOWN, 9.0
    found = evaluate(replace(rows, kind=kind, score=score), 3.0, merge_gap_us=MINUTE)
    assert (found.rows, found.unknown) == (3900, 100)
    assert (found.confusion.fp, found.episodes, found.false_episodes) == (0, 1, 0)


def test_unscorable_rows_are_missed_by_recall_ignored_by_precision_and_never_normal() -> None:
    rows = part(signal=9.0)
    blind = np.flatnonzero(rows.kind == EVENT)[:40]
    score, outcome = rows.score.copy(), rows.outcome.copy()
    score[blind], outcome[blind] = np.nan, "unscorable"
    found = evaluate(replace(rows, score=score, outcome=outcome), 3.0)
    assert found.confusion.unscorable_positive == 40
    assert found.figures["recall"].value == pytest.approx(120 / 160)
    assert found.figures["recall"].n == 160
    assert found.confusion.tn == (rows.kind == NORMAL).sum() - found.confusion.fp
    assert any("40 positive, counted as missed" in note for note in found.notes)


def test_a_nan_score_that_claims_to_be_normal_is_refused() -> None:
    rows = part()
    score = rows.score.copy()
    score[5] = np.nan
    with pytest.raises(ValueError, match="score: expected a finite score"):
        replace(rows, score=score)


def test_arrays_of_unequal_length_are_refused() -> None:
    with pytest.raises(ValueError, match="equally long"):
        replace(part(), kind=np.zeros(3, np.int8))


def test_order_of_rows_and_mixed_assets_make_no_difference() -> None:
    one, two = part(seed=0), part(seed=1)
    fields = ("asset", "time", "score", "outcome", "kind")
    joined = {k: np.concatenate((getattr(one, k), getattr(two, k))) for k in fields}
    joined["asset"] = np.array(["a"] * 4000 + ["b"] * 4000, dtype=object)
    whole = replace(one, **joined, events={"a": one.events["pump"], "b": two.events["pump"]})
    shuffle = np.random.default_rng(0).permutation(8000)
    mixed = replace(whole, **{k: joined[k][shuffle] for k in fields})
    other = {"energy": joined["score"] ** 2}
    first = evaluate(whole, 3.0, baseline_scores=other)
    second = evaluate(mixed, 3.0, baseline_scores={"energy": other["energy"][shuffle]})
    assert first.to_dict() == second.to_dict()


def test_the_episodes_given_are_those_judged() -> None:
    rows = part()
    start = int(rows.events["pump"][0, 0])
    given = {"pump": as_intervals([[start, start + 1], [0, 5 * MINUTE]])}
    found = evaluate(rows, 3.0, episodes=given)
    assert found.figures["event_recall"].value == pytest.approx(1 / 8)
    assert (found.episodes, found.false_episodes) == (2, 1)


def test_grace_forgives_an_episode_soon_after_an_event() -> None:
    rows = part()
    end = int(rows.events["pump"][0, 1])
    given = {"pump": as_intervals([[end + MINUTE, end + 2 * MINUTE]])}
    assert evaluate(rows, 3.0, episodes=given).false_episodes == 1
    assert evaluate(rows, 3.0, episodes=given, grace_us=2 * MINUTE).false_episodes == 0


# ---- baselines beside it


def test_constant_and_random_baselines_say_what_no_skill_gives() -> None:
    found = evaluate(part(), 3.0)
    always, never, random = (found.baselines[k] for k in ("always", "never", "random"))
    assert always["recall"].value == 1
    assert always["false_positive_rate"].value == 1
    assert always["precision"].value == pytest.approx(found.prevalence)
    assert always["average_precision"].value == pytest.approx(found.prevalence)
    assert always["event_recall"].value == 1
    assert math.isnan(always["false_episodes_per_day"].value)
    assert never["recall"].value == 0
    assert math.isnan(never["precision"].value)
    assert never["event_recall"].value == 0
    assert random["roc_auc"].value == pytest.approx(0.5, abs=0.05)
    assert random["precision"].value == pytest.approx(found.prevalence, abs=0.02)


def test_random_alarms_at_the_same_rate_catch_long_events_and_it_is_shown() -> None:
    rows = part(events=4, length=400)
    found = evaluate(rows, 3.0)
    assert found.baselines["random"]["event_recall"].value > 0.95
    assert any("positive: an alarm that is always on" in note for note in found.notes)


def test_given_baselines_flag_as_many_rows_as_the_model() -> None:
    rows = part(n=3000, lead=3)
    noise = np.random.default_rng(5).random(3000)
    found = evaluate(rows, 3.0, baseline_scores={"noise": noise, "flat": np.zeros(3000)})
    flags = np.zeros(3000, bool)
    flags[np.argsort(-noise)[: found.flagged]] = True
    caught = flags & (rows.kind == LEAD)
    assert found.baselines["noise"]["recall"].value == pytest.approx(caught.sum() / (rows.kind == LEAD).sum())
    assert found.baselines["flat"]["precision"].n <= found.flagged
    assert "same for every row" in found.baselines["flat"]["average_precision"].note


def test_a_baseline_that_beats_the_model_is_printed_as_it_is() -> None:
    rows = part(signal=0.3)
    found = evaluate(rows, 2.0, baseline_scores={"energy": (rows.kind == EVENT) + 0.01 * rows.score})
    assert any(note.startswith("energy ranks rows better than the model") for note in found.notes)


def test_a_part_without_events_is_judged_on_false_episodes_only() -> None:
    found = evaluate(part(events=0), 3.0)
    assert math.isnan(found.figures["average_precision"].value)
    assert math.isnan(found.figures["event_recall"].value)
    assert "no positive row" in found.figures["average_precision"].note
    assert found.figures["false_episodes_per_day"].value > 0
    assert any("no event in the test part" in note for note in found.notes)
    json.dumps(found.to_dict(), allow_nan=False)


def test_a_part_without_rows_does_not_crash() -> None:
    rows = part(n=20, events=0)
    fields = ("asset", "time", "score", "outcome", "kind")
    found = evaluate(replace(rows, **{k: getattr(rows, k)[:0] for k in fields}), 3.0)
    assert found.rows == 0
    assert math.isnan(found.prevalence)
    json.dumps(found.to_dict(), allow_nan=False)


def test_a_single_event_gives_no_row_interval_and_says_so() -> None:
    found = evaluate(part(events=1), 3.0)
    assert found.figures["average_precision"].low is None
    assert "1 independent groups" in found.figures["average_precision"].note
    assert any("only 1 event" in note for note in found.notes)


def test_a_random_split_is_called_a_random_split() -> None:
    assert evaluate(part(), 3.0, random_split=True).notes[0].startswith("random split")


@settings(max_examples=12, deadline=None)
@given(st.data())
def test_any_mixture_of_kinds_and_outcomes_is_evaluated_to_plain_json(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 40))
    kind = np.array(
        data.draw(st.lists(st.sampled_from([UNKNOWN, NORMAL, EVENT, LEAD]), min_size=n, max_size=n)), np.int8
    )
    outcome = np.array(data.draw(st.lists(st.sampled_from(["normal", "unscorable"]), min_size=n, max_size=n)), object)
    score = np.where(outcome == "unscorable", np.nan, np.arange(n) % 5)
    time = np.cumsum(data.draw(st.lists(st.sampled_from([1, 2, 50]), min_size=n, max_size=n))).astype(np.int64) * MINUTE
    events = {"a": as_intervals([[time[0], time[-1] + 1]])}
    lead = data.draw(st.sampled_from([0, MINUTE]))
    rows = ScoredPart(np.full(n, "a", object), time, score, outcome, kind, events, MINUTE, lead, 3 * MINUTE)
    found = evaluate(rows, 2.0, baseline_scores={"x": np.arange(n, dtype=float)})
    c = found.confusion
    assert c.rows == found.rows == int(np.isin(kind, (NORMAL, LEAD if lead else EVENT)).sum())
    json.dumps(found.to_dict(), allow_nan=False)


@pytest.mark.parametrize(("threshold", "warned"), [(0.5, True), (3.0, False)])
def test_a_threshold_that_most_normal_rows_pass_is_called_out(threshold: float, warned: bool) -> None:
    notes = evaluate(part(), threshold).notes
    assert any("of the normal rows are flagged" in note for note in notes) == warned
