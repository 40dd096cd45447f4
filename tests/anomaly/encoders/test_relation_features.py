"""Correlation and lag of pairs of tags (METHODS S49)."""

from __future__ import annotations

import numpy as np
import pytest

from anomaly.encoders.handmade.relation_features import (
    Pairs,
    lagged_correlation,
    most_correlated,
    relation_features,
)
from anomaly.encoders.handmade.series import time_first

ONE = Pairs(np.array([[0, 1]]), np.ones(1))


def followed(lag: int, rows: int = 32, windows: int = 40, sign: float = 1.0) -> np.ndarray:
    """Windows whose second tag is the first, ``lag`` rows later."""
    source = np.random.default_rng(lag + 100).normal(size=(windows, rows + 40)).cumsum(axis=1)
    first, second = source[:, 20 : 20 + rows], source[:, 20 - lag : 20 - lag + rows]
    return np.stack((first, 3 + sign * 2 * second), axis=2)


@pytest.mark.parametrize("lag", [-8, -3, 0, 1, 5, 8])
def test_s49_a_planted_lag_is_recovered_in_every_window(lag: int):
    assert (relation_features(followed(lag), ONE)[:, 0, 1] == lag).all()


def test_s49_a_planted_lag_survives_noise():
    windows = followed(4)
    noisy = windows + 0.3 * np.random.default_rng(0).normal(size=windows.shape)
    assert (np.abs(relation_features(noisy, ONE)[:, 0, 1] - 4) <= 1).mean() > 0.9


def test_s49_of_tags_that_move_opposite_the_lag_is_that_of_the_turned_one():
    windows = followed(3, sign=-1)
    learned = most_correlated(windows, 4)
    assert learned.tags.tolist() == [[0, 1]] and learned.signs.tolist() == [-1]
    found = relation_features(windows, learned)[:, 0]
    assert (found[:, 1] == 3).all() and (found[:, 0] < 0).mean() > 0.5


def test_s49_the_correlation_is_pearsons():
    windows = np.random.default_rng(1).normal(size=(9, 20, 3))
    pairs = Pairs(np.array([[0, 1], [0, 2], [1, 2]]), np.ones(3))
    expected = [[np.corrcoef(w[:, i], w[:, j])[0, 1] for i, j in pairs.tags] for w in windows]
    np.testing.assert_allclose(relation_features(windows, pairs)[..., 0], expected, atol=1e-6)


def test_s49_each_lag_is_judged_on_the_rows_that_overlap():
    windows = np.random.default_rng(2).normal(size=(3, 12, 2)).cumsum(axis=1)
    series = time_first(windows - windows.mean(axis=1, keepdims=True))
    lags = np.array([0, -1, 1, -3, 3])
    found = lagged_correlation(series, ONE, lags)
    for number, lag in enumerate(lags):
        for b, (first, second) in enumerate(windows.transpose(0, 2, 1)):
            early = first[: 12 - lag] if lag >= 0 else first[-lag:]
            late = second[lag:] if lag >= 0 else second[: 12 + lag]
            assert found[number, 0, b] == pytest.approx(np.corrcoef(early, late)[0, 1], abs=1e-9)


def test_s49_a_flat_tag_gives_zero_and_a_flag():
    windows = np.random.default_rng(3).normal(size=(4, 16, 2)).astype(np.float32)
    windows[:2, :, 1] = 0.7
    found = relation_features(windows, ONE)[:, 0]
    assert found[:2].tolist() == [[0, 0, 1], [0, 0, 1]]
    assert (found[2:, 2] == 0).all() and (found[2:, 0] != 0).all()


def test_s49_a_tag_that_moves_in_its_last_row_only_stays_finite():
    windows = np.random.default_rng(4).normal(size=(1, 16, 2))
    windows[0, :, 0] = np.where(np.arange(16) == 15, 1.0, 0.0)
    assert np.isfinite(relation_features(windows, ONE)).all()


def test_s49_of_equally_good_lags_the_shortest_counts():
    wave = np.sin(2 * np.pi * np.arange(64) / 8)
    same = np.repeat(wave[None, :, None], 2, axis=2)
    assert relation_features(same, ONE)[0, 0].tolist() == pytest.approx([1, 0, 0])


@pytest.mark.parametrize("rows", [1, 2, 3, 4])
def test_s49_very_short_windows_have_no_lag(rows: int):
    windows = np.random.default_rng(5).normal(size=(6, rows, 2))
    assert np.isfinite(relation_features(windows, ONE)).all()
    assert rows == 4 or not relation_features(windows, ONE)[..., 1].any()


def test_s49_the_pairs_are_the_steadily_correlated_ones_in_the_order_of_the_tags():
    rng = np.random.default_rng(6)
    windows = rng.normal(size=(200, 24, 5))
    windows[..., 4] = windows[..., 0] + 0.3 * rng.normal(size=(200, 24))
    windows[..., 3] = 0.5 * rng.normal(size=(200, 24)) - windows[..., 1]
    # Fully correlated in each window, but half of them this way and half of them that way.
    windows[..., 2] = windows[..., 0] * np.where(np.arange(200) % 2, 1, -1)[:, None]
    found = most_correlated(windows, 2)
    assert found.tags.tolist() == [[0, 4], [1, 3]] and found.signs.tolist() == [1, -1]
    assert most_correlated(windows, 100).tags.tolist() == np.stack(np.triu_indices(5, 1), axis=1).tolist()


def test_s49_the_pairs_do_not_depend_on_level_and_scale_and_a_single_tag_has_none():
    windows = np.random.default_rng(7).normal(size=(50, 16, 4)).cumsum(axis=1)
    there, moved = most_correlated(windows, 3), most_correlated(windows * [1, 9, 0.1, 4] + 50, 3)
    np.testing.assert_array_equal(there.tags, moved.tags)
    assert len(most_correlated(windows[..., :1], 3)) == 0
    assert relation_features(windows[..., :1], most_correlated(windows[..., :1], 3)).shape == (50, 0, 3)
