"""Local normalisation: closed forms, and that every front can be undone (METHODS S36)."""

from __future__ import annotations

import numpy as np
import pytest

from anomaly.data.local_normalisation import FRONTS, LEAST_SPREAD, SCALES, local_normalisation
from anomaly.errors import UsageError

WINDOWS = np.random.default_rng(0).normal(size=(20, 12, 3)).cumsum(axis=1).astype(np.float32)
RAMP = (np.arange(12, dtype=np.float32)[None, :, None] * np.float32([1, -2, 0]) + 7).astype(np.float32)


def test_s36_a_linear_trend_is_removed_to_rounding():
    np.testing.assert_allclose(FRONTS["detrend"].apply(RAMP), 0, atol=1e-5)
    for b in range(3):
        fitted = np.polyfit(np.arange(12), WINDOWS[b, :, 0], 1)
        expected = WINDOWS[b, :, 0] - np.polyval(fitted, np.arange(12))
        np.testing.assert_allclose(FRONTS["detrend"].apply(WINDOWS)[b, :, 0], expected, atol=1e-5)


def test_s36_a_constant_channel_stays_finite_and_a_quiet_one_is_not_blown_up():
    flat = np.full((2, 12, 3), 5, np.float32)
    for front in FRONTS.values():
        assert np.isfinite(front.apply(flat)).all()
    noise = WINDOWS * 1e-4
    assert np.abs(FRONTS["normalise"].apply(noise)).max() < np.abs(noise).max() / LEAST_SPREAD * 2
    loud = FRONTS["normalise"].apply(WINDOWS * 100)
    np.testing.assert_allclose(loud.std(axis=1), 1, rtol=1e-3)


def test_s36_a_level_shift_is_hidden_by_every_front_but_none():
    shifted = WINDOWS + 50
    for name, front in FRONTS.items():
        same = np.allclose(front.apply(shifted), front.apply(WINDOWS), atol=1e-3)
        assert same == (name != "none")


@pytest.mark.parametrize("name", FRONTS)
def test_what_a_perfect_encoder_expects_is_the_window_itself(name):
    front, before = FRONTS[name], WINDOWS.copy()
    behind = front.apply(WINDOWS)
    assert behind.shape == (20, 12, front.channels(3)) and behind.dtype == np.float32
    np.testing.assert_allclose(front.undo(behind, WINDOWS), WINDOWS, atol=1e-5)
    np.testing.assert_array_equal(WINDOWS, before)
    assert front.apply(WINDOWS[:, :1]).shape == (20, 1, front.channels(3))


def test_trailing_and_differences_look_back_only():
    later = WINDOWS.copy()
    later[:, 6:] += 9
    np.testing.assert_array_equal(FRONTS["trailing"].apply(later)[:, :6], FRONTS["trailing"].apply(WINDOWS)[:, :6])
    changes = FRONTS["differences"].apply(WINDOWS)
    for number, step in enumerate(SCALES, start=1):
        own = changes[..., 3 * number : 3 * number + 3]
        if step < 12:
            np.testing.assert_allclose(own[:, step:], WINDOWS[:, step:] - WINDOWS[:, :-step], atol=1e-6)
    np.testing.assert_allclose(FRONTS["trailing"].apply(RAMP)[0, 4, 0], RAMP[0, 4, 0] - RAMP[0, :4, 0].mean())


def test_an_unknown_front_is_refused_with_the_nearest_name():
    with pytest.raises(UsageError, match=r"encoder.front.*did you mean demean"):
        local_normalisation("demeen")
