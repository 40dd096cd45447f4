"""Fresh normal rows pass a score as rarely as it says, and where they do not the check says on which side (METHODS S63)."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest, norm

from anomaly.scores.calibration import TailCalibrator
from anomaly.scores.calibration_check import check_calibration, clustering, row_blocks, share_interval

LOOKBACK = 16


def independent(n, seed):
    return np.random.default_rng(seed).standard_normal(n)


def neighbours(n, seed):
    """Standard normal rows that share all but one of ``LOOKBACK`` draws with the next, as windows do."""
    draws = np.random.default_rng(seed).standard_normal(n + LOOKBACK - 1)
    return np.convolve(draws, np.ones(LOOKBACK) / np.sqrt(LOOKBACK), "valid")


def exact(z):
    """The true score of a standard normal row."""
    return -norm.logsf(z) / np.log(10)


def blocks(n, lookback=LOOKBACK):
    return row_blocks(np.full(n, "plant", dtype=object), lookback)


def verdicts(scores, **more):
    return [row.verdict for row in check_calibration(scores, blocks(len(scores)), **more)]


def test_s63_rates_are_counted_while_a_row_is_expected():
    scores = exact(independent(2000, 0))
    rows = check_calibration(scores, blocks(2000))
    assert [row.nominal for row in rows] == pytest.approx(10.0 ** -np.arange(0.5, 3.5, 0.5))
    for row in rows:
        assert row.counted == (scores >= -np.log10(row.nominal) - 1e-12).sum()
        assert row.observed == row.counted / 2000
        assert row.expected == pytest.approx(2000 * row.nominal)
        assert row.low <= row.observed <= row.high


@pytest.mark.parametrize("draw", [independent, neighbours])
def test_s63_an_exact_calibration_is_called_so(draw):
    """19 of 20 rates, of independent rows and of rows that share their window."""
    made = [v for seed in range(60) for v in verdicts(exact(draw(4000, seed)))]
    assert made.count("too many") + made.count("too few") <= 0.07 * len(made)


def test_s63_neighbouring_rows_taken_for_independent_would_be_called_wrong():
    """The blocks are what makes the difference: with one row each, correlated rows are called wrong far too often."""
    made = []
    for seed in range(40):
        scores = exact(neighbours(4000, seed))
        made += [row.verdict for row in check_calibration(scores, np.arange(4000))][:3]
    assert made.count("too many") + made.count("too few") > 0.2 * len(made)


@pytest.mark.parametrize("draw", [independent, neighbours])
def test_s63_a_fitted_calibration_holds_on_fresh_rows(draw):
    made = []
    for seed in range(40):
        calibrator = TailCalibrator().fit(draw(3000, seed))
        made += verdicts(calibrator.transform(draw(4000, 1000 + seed)), calibrated_on=3000)
    assert made.count("too many") + made.count("too few") <= 0.07 * len(made)


@pytest.mark.parametrize("draw", [independent, neighbours])
@pytest.mark.parametrize(("shift", "said"), [(1.0, "too many"), (-1.0, "too few")])
def test_s63_a_shift_is_seen(draw, shift, said):
    rows = check_calibration(exact(draw(8000, 1) + shift), blocks(8000))
    assert [row.verdict for row in rows[:3]] == [said] * 3
    assert {row.verdict for row in rows} <= {said, "as calibrated", "too little to tell"}


def test_s63_what_made_the_calibration_widens_the_interval():
    scores = exact(independent(1000, 2))
    narrow, wide = (check_calibration(scores, blocks(1000), calibrated_on=m)[1] for m in (None, 1000))
    assert wide.high - wide.low == pytest.approx((narrow.high - narrow.low) * np.sqrt(2), rel=0.05)
    assert wide.observed == narrow.observed


def test_the_interval_of_whole_counts_is_that_of_clopper_and_pearson():
    for hits, n in ((0, 7), (3, 20), (20, 20)):
        expected = binomtest(hits, n).proportion_ci(0.95, method="exact")
        assert share_interval(hits, n) == pytest.approx((expected.low, expected.high))


def test_clustering_is_one_of_independent_rows_and_the_block_of_rows_that_pass_together():
    passed = np.random.default_rng(0).random(30_000) < 0.2
    ids = np.arange(30_000) // 10
    assert clustering(passed, ids) == pytest.approx(1.0, abs=0.1)
    together = np.repeat(np.random.default_rng(1).random(3000) < 0.2, 10)
    assert clustering(together, ids) == pytest.approx(10.0, rel=0.01)
    assert clustering(np.zeros(10, dtype=bool), np.arange(10)) == 1.0


def test_blocks_hold_three_lookbacks_of_one_asset():
    asset = np.array(["b", "a"] * 10, dtype=object)
    ids = row_blocks(asset, 2)
    for name in ("a", "b"):
        assert np.bincount(np.unique(ids[asset == name], return_inverse=True)[1]).tolist() == [6, 4]
    assert not set(ids[asset == "a"]) & set(ids[asset == "b"])


def test_rows_without_a_score_take_no_part():
    scores = exact(independent(500, 3))
    with_holes = np.insert(scores, [10, 200], np.nan)
    ids = np.insert(blocks(500), [10, 200], 0)
    assert check_calibration(with_holes, ids) == check_calibration(scores, blocks(500))


def test_wrong_input_is_refused():
    with pytest.raises(ValueError, match="blocks: expected one id per score, got 2 for 3"):
        check_calibration(np.ones(3), np.zeros(2, np.int64))
    with pytest.raises(ValueError, match="scores: expected at least one finite score"):
        check_calibration(np.full(3, np.nan), np.zeros(3, np.int64))
    with pytest.raises(ValueError, match="lookback: expected at least 1 row, got 0"):
        row_blocks(np.array(["a"], dtype=object), 0)


def test_an_interval_that_reaches_to_ten_times_the_rate_tells_nothing() -> None:
    """One long excursion in a short part: half of the rows passed, and yet nothing can be said."""
    scores = np.where(np.arange(96) < 48, 3.0, 0.2)
    rows = check_calibration(scores, np.arange(96) // 48)
    assert {row.verdict for row in rows if row.nominal < 0.05} == {"too little to tell"}
