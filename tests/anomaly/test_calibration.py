"""A calibrated score means the same for every model: -log10 of the tail probability under normal operation."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import genpareto

from anomaly.scores.calibration import CAP, TailCalibrator, pareto_tail

DRAWS = {
    "normal": lambda rng, n: rng.normal(size=n),
    "exponential": lambda rng, n: rng.exponential(size=n),
    "lognormal": lambda rng, n: rng.lognormal(size=n),
}


def median_rate(draw, n: int, nominal: float) -> float:
    """Observed over nominal rate on fresh rows, the middle one of nine plants."""
    rates = []
    for seed in range(9):
        rng = np.random.default_rng(seed)
        calibrator = TailCalibrator().fit(draw(rng, n))
        rates.append((calibrator.transform(draw(rng, 100_000)) >= nominal).mean() * 10**nominal)
    return float(np.median(rates))


@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize("nominal", [2.0, 3.0])
def test_the_nominal_rate_is_seen_on_fresh_normal_rows(name, nominal):
    assert 0.5 < median_rate(DRAWS[name], 5000, nominal) < 2


@pytest.mark.parametrize("name", DRAWS)
def test_with_many_rows_the_rate_is_nearly_exact_whatever_the_tail(name):
    assert 0.8 < median_rate(DRAWS[name], 50_000, 3.0) < 1.25


@pytest.mark.parametrize("nominal", [2.0, 3.0])
def test_rows_piled_up_on_one_value_do_not_dilute_the_tail_above_them(nominal):
    def pegged(rng, n):
        return np.where(rng.random(n) < 0.97, 0.0, rng.exponential(size=n))

    assert 0.5 < median_rate(pegged, 5000, nominal) < 2


def test_a_handful_of_rows_gives_small_scores_just_beyond_them():
    scores = np.random.default_rng(0).exponential(size=10)
    beyond = TailCalibrator().fit(scores).transform(scores.max() * np.array([1.0, 1.1, 2.0]))
    assert beyond[0] <= np.log10(11) and beyond[1] - beyond[0] < 0.5 and 1 < beyond[2] < 3


def test_inside_the_data_it_is_the_empirical_tail():
    scores = np.arange(1, 1001.0)
    got = TailCalibrator().fit(scores).transform(np.array([500.0]))[0]
    assert got == pytest.approx(-np.log10(502 / 1001), abs=1e-9)


def test_beyond_the_data_it_follows_the_generalised_pareto_tail():
    rng = np.random.default_rng(0)
    excess = genpareto.rvs(0.2, scale=2.0, size=200_000, random_state=rng)
    shape, scale = pareto_tail(excess)
    assert shape == pytest.approx(0.2, abs=0.02) and scale == pytest.approx(2.0, rel=0.03)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=60), st.lists(st.floats(-1e9, 1e9), min_size=2, max_size=20))
def test_it_never_falls_and_stays_finite(scores, asked):
    calibrated = TailCalibrator().fit(np.array(scores)).transform(np.sort(asked))
    assert np.isfinite(calibrated).all() and (np.diff(calibrated) >= -1e-12).all()
    assert calibrated.min() >= 0 and calibrated.max() <= CAP


def test_nan_stays_nan_and_a_state_round_trips():
    calibrator = TailCalibrator().fit(np.random.default_rng(0).normal(size=5000))
    settings, arrays = calibrator.to_state()
    again = TailCalibrator.from_state(json.loads(json.dumps(settings)), arrays)
    asked = np.array([np.nan, -5, 0, 3, 50, np.inf])
    np.testing.assert_array_equal(again.transform(asked), calibrator.transform(asked))
    assert np.isnan(calibrator.transform(asked)[0]) and len(arrays["scores"]) <= 2000


def test_constant_scores_and_no_scores():
    constant = TailCalibrator().fit(np.full(50, 2.0))
    low, high = constant.transform(np.array([2.0, 4.0]))
    assert low < 0.1 and high > 3
    with pytest.raises(ValueError, match="at least one finite score"):
        TailCalibrator().fit(np.array([np.nan]))
    with pytest.raises(ValueError, match="call fit first"):
        TailCalibrator().transform(np.zeros(1))


def test_scores_far_beyond_every_row_keep_their_order_below_the_cap():
    normal = np.random.default_rng(1).normal(size=2000)
    calibrator = TailCalibrator().fit(normal)
    far = np.geomspace(5, 1e6, 400)
    score = calibrator.transform(far).astype(np.float32)
    assert (np.diff(score) > 0).all() and score[-1] < CAP
    assert calibrator.transform(np.array([1e300, np.inf])).max() == CAP
    step = np.diff(calibrator.transform(np.linspace(5, 60, 20_000)))
    assert step.max() < 1.01 * step[0], "no jump where the slope begins to fall"
