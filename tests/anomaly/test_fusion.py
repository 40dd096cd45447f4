"""Calibrated scores fused and smoothed: closed forms, exact sums, and a rate that holds on fresh normal data."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import combine_pvalues

from anomaly.scores.calibration import TailCalibrator
from anomaly.scores.fusion import RULES, contributions, fuse
from anomaly.scores.smoothing import CausalSmoother

TAILS = np.random.default_rng(0).exponential(1 / np.log(10), size=(500, 3))


def test_rules_are_what_they_say():
    np.testing.assert_allclose(fuse(TAILS, "mean"), TAILS.mean(axis=1))
    np.testing.assert_array_equal(fuse(TAILS, "max"), TAILS.max(axis=1))
    np.testing.assert_allclose(fuse(TAILS, "weighted", (2, 1, 0)), (2 * TAILS[:, 0] + TAILS[:, 1]) / 3)


def test_fisher_is_that_of_scipy_and_does_not_end_where_probabilities_do():
    wanted = [-np.log10(combine_pvalues(10**-row, "fisher").pvalue) for row in TAILS[:50]]
    np.testing.assert_allclose(fuse(TAILS[:50], "fisher"), wanted, rtol=1e-9)
    far = fuse(np.array([[400.0, 400.0]]), "fisher")
    assert np.isfinite(far).all()
    assert far[0] > 700


@pytest.mark.parametrize("rule", RULES)
def test_contributions_add_up_and_what_is_missing_stays_missing(rule):
    weights = (1.0, 2.0, 3.0)
    np.testing.assert_allclose(contributions(TAILS, rule, weights).sum(axis=1), fuse(TAILS, rule, weights))
    holed = TAILS[:4].copy()
    holed[1, 2] = np.nan
    assert np.isnan(fuse(holed, rule, weights)).tolist() == [False, True, False, False]
    assert fuse(np.zeros((2, 3)), rule, weights).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ((1, 2), "one for each of 3"),
        ((0, 0, 0), "not all 0"),
        ((1, -1, 1), "at least 0"),
        ((np.nan, 1, 1), "not all 0"),
    ],
)
def test_unusable_weights_are_refused(weights, said):
    with pytest.raises(ValueError, match=f"weights: .*{said}"):
        fuse(TAILS, "weighted", weights)


def test_an_unknown_rule_is_refused():
    with pytest.raises(ValueError, match="rule: expected one of mean"):
        fuse(TAILS, "median")


@pytest.mark.parametrize("rule", ["mean", "max", "fisher"])
def test_s63_a_fused_score_calibrated_again_means_what_it_says_though_detectors_agree(rule):
    """Detectors see the same windows, so they are not independent: the second calibration is what makes 2.0 one in 100."""
    rng = np.random.default_rng(1)
    common = rng.normal(size=(40_000, 1))
    raw = common + rng.normal(size=(40_000, 3))
    held, fresh = raw[:20_000], raw[20_000:]
    each = [TailCalibrator().fit(column) for column in held.T]

    def fused(rows: np.ndarray) -> np.ndarray:
        return fuse(np.column_stack([c.transform(x) for c, x in zip(each, rows.T, strict=True)]), rule)

    final = TailCalibrator().fit(fused(held))
    assert (final.transform(fused(fresh)) >= 2).mean() == pytest.approx(0.01, rel=0.25)


def test_smoothing_is_the_recursion_and_starts_anew_in_each_segment():
    rng = np.random.default_rng(2)
    scores, starts = rng.exponential(size=300), rng.random(300) < 0.05
    starts[0] = True
    keep, wanted, last = 0.5 ** (1 / 4), [], 0.0
    for score, start in zip(scores, starts, strict=True):
        last = score if start else keep * last + (1 - keep) * score
        wanted.append(last)
    np.testing.assert_allclose(CausalSmoother(4).update(scores, starts), wanted, rtol=1e-12)


@pytest.mark.parametrize("cut", [1, 7, 150, 299])
def test_smoothing_never_looks_ahead_and_chunks_change_no_bit(cut):
    rng = np.random.default_rng(3)
    scores, starts = rng.exponential(size=300), rng.random(300) < 0.02
    whole = CausalSmoother(3).update(scores, starts)
    pieces = CausalSmoother(3)
    first = pieces.update(scores[:cut], starts[:cut])
    np.testing.assert_array_equal(np.concatenate((first, pieces.update(scores[cut:], starts[cut:]))), whole)
    changed = scores.copy()
    changed[cut:] = 99
    np.testing.assert_array_equal(CausalSmoother(3).update(changed, starts)[:cut], whole[:cut])


def test_a_half_life_of_nothing_is_refused():
    with pytest.raises(ValueError, match="half_life: expected rows above 0, got 0"):
        CausalSmoother(0)
