"""Masks over rows, fills, and a loss on hidden rows alone (METHODS S25)."""

from __future__ import annotations

import numpy as np
import pytest
from keras import ops

from anomaly.encoders.masking import TokenFill, filled, masked_count, masked_mse, masked_target, row_mask

RNG = np.random.default_rng(0)
WINDOWS = RNG.normal(size=(30, 8, 3)).astype(np.float32)


def test_s25_the_share_is_kept_and_every_window_has_a_mask_of_its_own():
    mask = row_mask(np.random.default_rng(1), 500, 16, 0.75)
    assert (mask.sum(axis=1) == 12).all()
    assert len(np.unique(mask, axis=0)) > 300
    np.testing.assert_allclose(mask.mean(axis=0), 0.75, atol=0.08)
    np.testing.assert_array_equal(mask, row_mask(np.random.default_rng(1), 500, 16, 0.75))


@pytest.mark.parametrize("share", [0.05, 0.5, 0.95])
@pytest.mark.parametrize("rows", [2, 3, 16])
def test_s25_one_row_at_least_is_hidden_and_one_shown(rows, share):
    assert 1 <= masked_count(rows, share) <= rows - 1
    assert abs(masked_count(rows, share) - share * rows) <= 1


def test_s25_fills():
    mask = row_mask(np.random.default_rng(2), 30, 8, 0.5)
    zero, mean = (filled(WINDOWS, mask, 3, fill) for fill in ("zero", "mean"))
    np.testing.assert_array_equal(zero[~mask], WINDOWS[~mask])
    np.testing.assert_array_equal(mean[~mask], WINDOWS[~mask])
    assert not zero[mask].any()
    for b in range(30):
        np.testing.assert_allclose(mean[b, mask[b]], np.tile(WINDOWS[b, ~mask[b]].mean(axis=0), (4, 1)), atol=1e-6)
    codes = np.concatenate((WINDOWS, np.full((30, 8, 1), 5, np.float32)), axis=2)
    assert (filled(codes, mask, 3, "zero")[..., 3] == 5).all(), "what grade it is stays known"
    with pytest.raises(ValueError, match="token, mean, zero"):
        filled(WINDOWS, mask, 3, "nought")


def test_s25_the_token_stands_at_hidden_rows_only():
    mask = row_mask(np.random.default_rng(2), 30, 8, 0.5)
    layer = TokenFill()
    out = ops.convert_to_numpy(layer(WINDOWS, mask.astype(np.float32)))
    np.testing.assert_array_equal(out[~mask], WINDOWS[~mask])
    np.testing.assert_allclose(out[mask], np.tile(ops.convert_to_numpy(layer.token), (mask.sum(), 1)), atol=1e-7)


def test_s25_only_masked_positions_count():
    mask = row_mask(np.random.default_rng(3), 30, 8, 0.75)
    drawn = RNG.normal(size=WINDOWS.shape).astype(np.float32)

    def loss(windows: np.ndarray) -> float:
        return float(ops.convert_to_numpy(masked_mse(ops.convert_to_tensor(masked_target(windows, mask, 3)), drawn)))

    assert loss(WINDOWS) == pytest.approx(((WINDOWS - drawn)[mask] ** 2).mean(), rel=1e-5)
    elsewhere = WINDOWS.copy()
    elsewhere[~mask] += 100
    assert loss(elsewhere) == loss(WINDOWS), "an unmasked target changes nothing"
    there = WINDOWS.copy()
    there[mask] += 1
    assert loss(there) != loss(WINDOWS)
