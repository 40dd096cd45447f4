"""Level, spread and slope against closed forms (METHODS S46)."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from anomaly.encoders.handmade.frequency_features import frequency_features
from anomaly.encoders.handmade.rate_features import rate_features
from anomaly.encoders.handmade.relation_features import most_correlated, relation_features
from anomaly.encoders.handmade.series import time_first
from anomaly.encoders.handmade.time_features import NAMES, slope, time_features


def of(series: np.ndarray) -> dict[str, float]:
    return dict(zip(NAMES, time_features(series[None, :, None])[0, 0].tolist(), strict=True))


def test_s46_a_sine_has_its_closed_forms():
    amplitude, level, rows = 3.0, 10.0, 64
    found = of(level + amplitude * np.sin(2 * np.pi * 4 * np.arange(rows) / rows))
    assert found["mean"] == pytest.approx(level)
    assert found["deviation"] == pytest.approx(amplitude / np.sqrt(2))
    assert found["peak"] == pytest.approx(amplitude)
    assert found["peak to peak"] == pytest.approx(2 * amplitude)
    assert found["rms"] == pytest.approx(np.sqrt(level**2 + amplitude**2 / 2))


def test_s46_a_ramp_has_its_closed_forms():
    rows, per_row = 33, 0.25
    found = of(2 + per_row * np.arange(rows))
    assert found["slope"] == pytest.approx(per_row)
    assert found["mean"] == pytest.approx(2 + per_row * (rows - 1) / 2)
    assert found["deviation"] == pytest.approx(per_row * np.sqrt((rows**2 - 1) / 12))
    assert found["peak to peak"] == pytest.approx(per_row * (rows - 1)) == pytest.approx(2 * found["peak"])


def test_s46_a_step_has_its_closed_forms():
    rows, height, share = 40, 5.0, 1 / 4
    found = of(np.where(np.arange(rows) < rows * (1 - share), 0.0, height))
    assert found["mean"] == pytest.approx(height * share)
    assert found["deviation"] == pytest.approx(height * np.sqrt(share * (1 - share)))
    assert found["peak"] == pytest.approx(height * (1 - share))
    assert found["rms"] == pytest.approx(height * np.sqrt(share))
    # Σ (t − t̄) x over Σ (t − t̄)²: the last quarter of the rows lies 15 above the middle on average.
    assert found["slope"] == pytest.approx(10 * 15 * height / (rows * (rows**2 - 1) / 12))


def test_s46_the_slope_is_the_one_of_a_least_squares_fit_in_every_window():
    windows = np.random.default_rng(0).normal(size=(5, 12, 2)).cumsum(axis=1)
    fitted = [[np.polyfit(np.arange(12), w[:, c], 1)[0] for c in range(2)] for w in windows]
    np.testing.assert_allclose(time_features(windows)[..., NAMES.index("slope")], fitted, rtol=1e-5)
    np.testing.assert_allclose(slope(np.zeros((1, 3))), 0)


def test_features_keep_their_digits_far_from_zero():
    found = of(1e6 + np.sin(2 * np.pi * np.arange(64) / 8))
    assert found["deviation"] == pytest.approx(np.sqrt(0.5), rel=1e-6)


@given(
    arrays(
        np.float32,
        st.tuples(st.integers(0, 3), st.integers(1, 9), st.integers(1, 3)),
        elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
    )
)
@settings(max_examples=150, deadline=None)
def test_every_group_is_finite_float32_for_any_finite_window_and_leaves_it_alone(windows: np.ndarray):
    before = windows.copy()
    groups = [time_features, frequency_features, rate_features]
    found = [group(windows) for group in groups]
    found.append(relation_features(windows, most_correlated(windows, 8)))
    for values, kinds in zip(found, (6, 3, 3, 3), strict=True):
        assert values.shape[0] == len(windows) and values.shape[2] == kinds
        assert values.dtype == np.float32 and np.isfinite(values).all()
    np.testing.assert_array_equal(windows, before)


@pytest.mark.parametrize("windows", [np.zeros((2, 3)), np.zeros((2, 0, 1))])
def test_what_is_no_block_of_windows_is_refused(windows: np.ndarray):
    with pytest.raises(ValueError, match=r"expected \(B, T, C\) with at least one row"):
        time_first(windows)
