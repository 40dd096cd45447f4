"""METHODS S57: held values and scaling fitted block by block on normal rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.preprocessing import StandardScaler

from anomaly.data.scaling import LONG_AGO, RowPreparer, compressed, hold_last, usual_silence
from anomaly.errors import InputRefused


def loop_hold(values: np.ndarray, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    held, age = values.copy(), np.zeros(values.shape, np.int64)
    for tag in range(values.shape[1]):
        last, since = np.nan, None
        for i in range(len(values)):
            if starts[i]:
                last, since = np.nan, None
            if not np.isnan(values[i, tag]):
                last, since = values[i, tag], 0
            elif since is not None:
                since += 1
            held[i, tag] = last
            age[i, tag] = LONG_AGO if since is None else min(since, LONG_AGO)
    return held, age


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.floats(0, 1), st.lists(st.integers(1, 9), max_size=8))
def test_hold_last_equals_a_loop_in_any_chunking(seed: int, n: int, missing: float, chunks: list[int]) -> None:
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(n, 3)).astype(np.float32)
    values[rng.random(values.shape) < missing] = np.nan
    starts = rng.random(n) < 0.1
    starts[0] = True
    held, age = loop_hold(values, starts)
    at, state, parts = 0, None, []
    for size in [*chunks, n]:
        *part, state = hold_last(values[at : at + size], starts[at : at + size], state)
        parts.append(part)
        at = min(at + size, n)
    np.testing.assert_array_equal(np.concatenate([p[0] for p in parts]), held)
    np.testing.assert_array_equal(np.concatenate([p[1] for p in parts]), age)
    assert (age == LONG_AGO)[np.isnan(held)].all()


def test_a_long_silence_saturates_and_keeps_its_value() -> None:
    values = np.full((600, 1), np.nan, np.float32)
    values[0] = 5
    starts = np.zeros(600, bool)
    held, age, state = hold_last(values[:300], starts[:300])
    more, older, _ = hold_last(values[300:], starts[300:], state)
    assert (np.concatenate((held, more)) == 5).all()
    assert np.concatenate((age, older))[[0, 254, 255, 256, 599], 0].tolist() == [0, 254, 255, 255, 255]


def fit(values: np.ndarray, use: np.ndarray | None = None, size: int = 10**9, compress: bool = True) -> RowPreparer:
    preparer, state = RowPreparer(compress), None
    use = np.ones(len(values), bool) if use is None else use
    for at in range(0, len(values), size):
        rows = slice(at, at + size)
        starts = np.arange(len(values))[rows] == 0
        held, age, state = hold_last(values[rows], starts, state)
        preparer.partial_fit(held, age, use[rows], "a", at)
    return preparer.finish()


def plant(n: int = 5000) -> np.ndarray:
    rng = np.random.default_rng(3)
    scale, offset = np.array([1, 1e-3, 50, 1, 1, 1]), np.array([0, 3, -7e3, 2e7, 1e-6, 42])
    values = rng.normal(size=(n, 6)) * scale + offset
    values[:, 4] = 1e-6
    values[:, 5] = 42.1
    return values.astype(np.float32)


@pytest.mark.parametrize("size", [1, 7, 1000, 10**9])
def test_s57_statistics_equal_standard_scaler_in_any_chunking(size: int) -> None:
    values = plant(600 if size == 1 else 5000)
    values[::7, 0] = np.nan
    ours, theirs = fit(values, size=size, compress=False), StandardScaler().fit(values.astype(np.float64))
    np.testing.assert_allclose(ours.center_, theirs.mean_, rtol=1e-9)
    np.testing.assert_allclose(ours.scale_, theirs.scale_, rtol=1e-9)
    there = np.isfinite(values)
    expected = theirs.transform(values.astype(np.float64)).astype(np.float32)
    np.testing.assert_allclose(ours.transform(values)[there], expected[there], rtol=1e-6, atol=1e-6)


def test_s57_a_large_offset_keeps_its_digits() -> None:
    rng = np.random.default_rng(0)
    values = np.round(2e7 + 16 * rng.normal(size=(20_000, 1))).astype(np.float32)
    exact = values.astype(np.float64)
    preparer = fit(values, size=333)
    assert preparer.scale_[0] == pytest.approx(exact.std(), rel=1e-9)
    assert np.abs(preparer.transform(values).mean()) < 1e-5


def test_s57_constant_sensors_are_safe() -> None:
    preparer = fit(plant())
    assert preparer.scale_[4:].tolist() == [1.0, 1.0]
    out = preparer.transform(plant(10) + np.float32(1))
    assert np.isfinite(out).all()


def test_s57_later_rows_change_nothing() -> None:
    values = plant()
    use = np.arange(len(values)) < 3000
    changed = values.copy()
    changed[3000:] = 1e6
    one, other = fit(values, use, size=512), fit(changed, use, size=512)
    np.testing.assert_array_equal(one.center_, other.center_)
    np.testing.assert_array_equal(one.scale_, other.scale_)
    center = one.center_.copy()
    one.transform(changed)
    np.testing.assert_array_equal(one.center_, center)


def test_s56_only_used_rows_are_in_the_audit() -> None:
    values = plant(100)
    use = np.arange(100) % 10 != 0
    preparer = fit(values, use, size=9)
    assert preparer.n_rows_ == preparer.audit_.rows == 90
    assert preparer.audit_.overlap("a", [[i, i + 1] for i in range(0, 100, 10)]) == 0


def test_hold_is_the_usual_silence_of_each_tag() -> None:
    """Always there: 0. A laboratory value each 20 rows: 19. Runs of 1 with a rare burst of 60: 1. A dead end: capped."""
    n = 6000
    values = np.ones((n, 4), np.float32) * np.arange(n, dtype=np.float32)[:, None]
    lab = np.arange(n) % 20 != 0
    values[lab, 1] = np.nan
    values[5::50, 2] = np.nan
    values[1000:1060, 2] = np.nan
    values[10:, 3] = np.nan
    for size in (n, 37):
        preparer = fit(values, size=size)
        assert preparer.hold_.tolist() == [0, 19, 1, 254]
    age = np.array([[0, 19, 1, 254], [1, 20, 2, 255]], np.uint8)
    assert preparer.absent(age).tolist() == [[False] * 4, [True] * 4]
    assert preparer.absent(np.stack((age, age))).shape == (2, 2, 4)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=60))
def test_usual_silence_is_the_quantile_of_run_lengths(lengths: list[int]) -> None:
    ages = np.zeros((1, 256), np.int64)
    for length in lengths:
        ages[0, 1 : length + 1] += 1
    expected = next(k for k in range(41) if sum(x > k for x in lengths) <= (1 - 0.95) * len(lengths))
    assert usual_silence(ages).tolist() == [expected]


def test_transform_is_finite_for_anything() -> None:
    preparer = fit(plant())
    wild = np.array([[np.nan, 1e30, -1e30, 0, 1e30, -1e30]], np.float32)
    out = preparer.transform(wild)
    assert out.dtype == np.float32
    assert np.isfinite(out).all()
    assert out[0, 0] == 0
    linear = fit(plant(), compress=False).transform(wild)
    assert np.isfinite(linear).all()


def test_compression_is_monotone_continuous_and_odd() -> None:
    z = np.linspace(-50, 50, 10_001)
    out = compressed(z)
    assert (np.diff(out) > 0).all()
    assert np.abs(np.diff(out)).max() <= 0.0101
    np.testing.assert_allclose(out, -out[::-1])
    np.testing.assert_array_equal(out[np.abs(z) <= 4], z[np.abs(z) <= 4])


def test_state_round_trip() -> None:
    preparer = fit(plant())
    plain, arrays = preparer.to_state()
    again = RowPreparer.from_state(plain, arrays)
    np.testing.assert_array_equal(again.transform(plant(50)), preparer.transform(plant(50)))
    assert (again.n_rows_, again.audit_, again.compress) == (5000, preparer.audit_, True)


def test_misuse_is_named() -> None:
    with pytest.raises(RuntimeError, match="finish"):
        RowPreparer().transform(np.zeros((1, 1), np.float32))
    with pytest.raises(InputRefused, match="E3302"):
        RowPreparer().finish()
    with pytest.raises(ValueError, match="equal rows"):
        RowPreparer().partial_fit(np.zeros((2, 1), np.float32), np.zeros((1, 1), np.uint8), np.ones(2, bool), "a", 0)


def test_input_is_unaltered() -> None:
    values = plant(40)
    values[3:9, 0] = np.nan
    before = values.copy()
    preparer = fit(values)
    preparer.transform(values)
    np.testing.assert_array_equal(values, before)
