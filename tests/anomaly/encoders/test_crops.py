"""Crops of a window: overlap and alignment, held by windows whose values are their own row numbers (METHODS S37)."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anomaly.encoders.crops import CropSizes, crop_pairs, take_crops

SIZES = CropSizes.of(64, crop=0.6, overlap=0.5)


def row_numbers(windows: int, rows: int) -> np.ndarray:
    """Windows (B, T, 1) which hold the number of window and row: 1000 · window + row."""
    return (1000 * np.arange(windows)[:, None, None] + np.arange(rows)[None, :, None]).astype(np.float32)


@given(
    rows=st.integers(2, 90),
    crop=st.floats(0.05, 1.0),
    overlap=st.floats(0.05, 1.0),
    seed=st.integers(0, 2**16),
)
def test_s37_the_compared_rows_are_the_same_rows_of_both_crops(rows, crop, overlap, seed):
    sizes = CropSizes.of(rows, crop, overlap)
    pairs = crop_pairs(np.random.default_rng(seed), 32, sizes)
    crops = take_crops(row_numbers(32, rows), pairs.starts, sizes.crop)
    assert crops.shape == (32, 2, sizes.crop, 1)
    compared = np.take_along_axis(crops[..., 0], pairs.places, axis=2)
    np.testing.assert_array_equal(compared[:, 0], compared[:, 1])
    np.testing.assert_array_equal(np.diff(compared, axis=2), 1)
    np.testing.assert_array_equal(crops[..., 0] // 1000, np.arange(32)[:, None, None] * np.ones((1, 2, sizes.crop)))


@given(rows=st.integers(2, 90), crop=st.floats(0.05, 1.0), overlap=st.floats(0.05, 1.0))
def test_s37_the_overlap_is_at_least_the_minimum(rows, crop, overlap):
    sizes = CropSizes.of(rows, crop, overlap)
    starts = crop_pairs(np.random.default_rng(1), 64, sizes).starts
    assert starts.min() >= 0 and starts.max() + sizes.crop <= rows
    common = sizes.crop - np.abs(starts[:, 0] - starts[:, 1])
    assert common.min() >= sizes.overlap >= 2


def test_s37_crops_are_drawn_per_window_and_reach_every_row_in_either_order():
    starts = crop_pairs(np.random.default_rng(0), 4000, SIZES).starts
    assert set(np.unique(starts)) == set(range(SIZES.rows - SIZES.crop + 1))
    first_earlier, second_earlier = (np.mean(starts[:, a] < starts[:, b]) for a, b in ((0, 1), (1, 0)))
    assert first_earlier == pytest.approx(second_earlier, abs=0.05) and first_earlier > 0.4


def test_the_same_seed_draws_the_same_crops_and_another_does_not():
    one, again, other = (crop_pairs(np.random.default_rng(seed), 8, SIZES) for seed in (3, 3, 4))
    np.testing.assert_array_equal(one.starts, again.starts)
    np.testing.assert_array_equal(one.places, again.places)
    assert (one.starts != other.starts).any()


def test_a_crop_of_the_whole_window_is_the_window():
    windows = np.random.default_rng(0).normal(size=(5, 7, 3)).astype(np.float32)
    pairs = crop_pairs(np.random.default_rng(0), 5, CropSizes.of(7, crop=1.0, overlap=1.0))
    crops = take_crops(windows, pairs.starts, 7)
    np.testing.assert_array_equal(crops[:, 0], windows)
    np.testing.assert_array_equal(crops[:, 1], windows)
    np.testing.assert_array_equal(pairs.places, np.broadcast_to(np.arange(7), (5, 2, 7)))
