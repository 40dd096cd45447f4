"""Largest change, rise time and overshoot of step responses (METHODS S48)."""

from __future__ import annotations

import numpy as np
import pytest

from anomaly.encoders.handmade.rate_features import NAMES, rate_features

ROWS, AT = 256, 40


def second_order(t: np.ndarray, damping: float, speed: float) -> np.ndarray:
    """Unit step response at times ``t`` of a second-order system with ``speed`` in radians per row, 0 before t = 0."""
    root = np.sqrt(1 - damping**2)
    ringing = np.cos(speed * root * t) + damping / root * np.sin(speed * root * t)
    return np.where(t < 0, 0.0, 1 - np.exp(-damping * speed * np.maximum(t, 0)) * ringing)


def of(series: np.ndarray) -> dict[str, float]:
    return dict(zip(NAMES, rate_features(series[None, :, None])[0, 0].tolist(), strict=True))


@pytest.mark.parametrize("height", [1.0, -40.0])
@pytest.mark.parametrize("damping", [0.3, 0.5, 0.7])
def test_s48_a_second_order_step_response_has_its_rise_time_and_overshoot(damping: float, height: float):
    speed = 0.15
    found = of(7 + height * second_order(np.arange(ROWS) - AT, damping, speed))
    fine = np.linspace(0, 50, 500_001)
    exact = second_order(fine, damping, speed)
    rise = fine[np.argmax(exact >= 0.9)] - fine[np.argmax(exact >= 0.1)]
    assert found["rise time"] == pytest.approx(rise, abs=0.15)
    assert found["overshoot"] == pytest.approx(np.exp(-np.pi * damping / np.sqrt(1 - damping**2)), abs=0.01)
    assert found["max difference"] == pytest.approx(abs(height) * np.diff(exact).max() * 10_000, rel=0.02)


def test_s48_a_first_order_response_rises_in_time_constants_and_never_shoots_over():
    time_constant = 12.0
    t = np.arange(ROWS) - AT
    found = of(np.where(t < 0, 0.0, 1 - np.exp(-t / time_constant)))
    assert found["rise time"] == pytest.approx(time_constant * np.log(9), abs=0.1)
    assert found["overshoot"] == pytest.approx(0, abs=1e-4)


def test_s48_a_jump_rises_between_two_rows_and_a_ramp_over_most_of_the_window():
    jump = of(np.where(np.arange(32) < 16, 0.0, 2.0))
    assert jump["rise time"] == pytest.approx(0.8) and jump["max difference"] == 2 and jump["overshoot"] == 0
    # Levels are means of 4 of 32 rows: the ramp goes from 1.5 to 29.5, of which it takes 28 · 0.8 rows to do 80 %.
    assert of(np.arange(32.0))["rise time"] == pytest.approx(28 * 0.8)


def test_s48_where_there_is_no_step_the_rise_is_zero_and_the_overshoot_bounded():
    rng = np.random.default_rng(0)
    wave = np.sin(2 * np.pi * np.arange(64) / 8) + 1e-4 * rng.normal(size=(50, 64))
    found = rate_features(wave[..., None])[:, 0]
    assert (found[:, 1] == 0).all() and (found[:, 2] <= 10).all() and (found[:, 2] > 0).all()


def test_s48_scale_and_level_change_only_the_difference():
    windows = np.random.default_rng(1).normal(size=(20, 32, 2)).cumsum(axis=1)
    there = rate_features(windows)
    moved = rate_features(100 - 4 * windows)
    np.testing.assert_allclose(moved[..., 1:], there[..., 1:], atol=1e-4)
    np.testing.assert_allclose(moved[..., 0], 4 * there[..., 0], rtol=1e-5)


@pytest.mark.parametrize("rows", [1, 2, 8])
def test_s48_a_flat_tag_gives_zeros(rows: int):
    windows = np.full((1, rows, 1), np.float32(0.1)) * np.float32([1, 1e6])
    assert not rate_features(windows).any()
