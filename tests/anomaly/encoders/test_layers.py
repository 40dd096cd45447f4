"""Layers of the encoders against closed forms and plain loops (METHODS S22, S23, S24, S40)."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))  # benchmarks is no installed package

from anomaly.encoders.layers import (
    ClassToken,
    PoolOverTime,
    SelfAttention,
    SinusoidalPositions,
    full_attention,
    gelu,
    sinusoids,
    sparse_attention,
    sparse_count,
    transformer_block,
)
from benchmarks.attention import attention_cost, growth, largest_intermediate


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def as_numpy(x: object) -> np.ndarray:
    return np.asarray(ops.convert_to_numpy(x))


@pytest.mark.parametrize(("rows", "width"), [(1, 1), (5, 3), (9, 7), (12, 8), (500, 64)])
def test_s22_positions_equal_the_closed_form_also_for_an_odd_width(rows, width):
    expected = np.empty((rows, width))
    for t in range(rows):
        for column in range(width):
            angle = t / 10_000 ** (2 * (column // 2) / width)
            expected[t, column] = math.cos(angle) if column % 2 else math.sin(angle)
    np.testing.assert_allclose(sinusoids(rows, width), expected, atol=1e-6)


def test_s22_the_layer_adds_the_positions():
    x = noise(2, 5, 7)
    np.testing.assert_allclose(as_numpy(SinusoidalPositions()(x)), x + sinusoids(5, 7), atol=1e-6)


def test_s22_the_class_token_comes_first_and_leaves_the_rows_as_they_are():
    x = noise(3, 5, 4)
    layer = ClassToken()
    out = as_numpy(layer(x))
    assert out.shape == (3, 6, 4)
    np.testing.assert_array_equal(out[:, 1:], x)
    np.testing.assert_array_equal(out[:, 0], np.repeat(as_numpy(layer.token)[0], 3, axis=0))
    assert layer.compute_output_shape((None, 5, 4)) == (None, 6, 4)


@pytest.mark.parametrize("kind", ["mean", "max"])
@settings(max_examples=25, deadline=None)
@given(rows=st.integers(1, 9), seed=st.integers(0, 999))
def test_s23_s40_pooling_ignores_masked_steps_exactly(kind, rows, seed):
    rng = np.random.default_rng(seed)
    x, steps = rng.normal(size=(4, rows, 3)).astype(np.float32), rng.integers(0, 2, size=(4, rows))
    x[steps == 0] = np.nan  # whatever stands in a masked step must not come through
    expected = np.zeros((4, 3))
    for b in range(4):
        counted = [x[b, t] for t in range(rows) if steps[b, t]]
        if counted:
            expected[b] = np.mean(counted, axis=0) if kind == "mean" else np.max(counted, axis=0)
    np.testing.assert_allclose(as_numpy(PoolOverTime(kind)(x, steps=steps)), expected, atol=1e-6)


def test_s40_max_over_500_steps_of_32_is_exact():
    x = noise(2, 500, 32) - 9  # all below 0: a mask that multiplies would find a maximum of 0
    pooled = as_numpy(PoolOverTime("max")(x))
    assert pooled.shape == (2, 32)
    np.testing.assert_array_equal(pooled, x.max(axis=1))
    steps = np.arange(500)[None].repeat(2, axis=0) < 300
    np.testing.assert_array_equal(as_numpy(PoolOverTime("max")(x, steps=steps)), x[:, :300].max(axis=1))


def test_a_pooling_or_attention_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="expected mean, max or first, got 'sum'"):
        PoolOverTime("sum")
    with pytest.raises(ValueError, match="expected full or probsparse, got 'linear'"):
        SelfAttention(2, "linear")
    with pytest.raises(ValueError, match="divisor of the width 6, got 4"):
        SelfAttention(4)(noise(1, 3, 6))
    with pytest.raises(ValueError, match="expected pre or post, got 'both'"):
        transformer_block(keras.Input((4, 8)), heads=2, norm="both")


def attention_by_loop(query: np.ndarray, key: np.ndarray, value: np.ndarray) -> np.ndarray:
    out = np.zeros_like(value)
    for b, h, t in np.ndindex(query.shape[:3]):
        weights = np.exp([query[b, h, t] @ k / math.sqrt(query.shape[-1]) for k in key[b, h]])
        out[b, h, t] = weights @ value[b, h] / weights.sum()
    return out


def test_s22_full_attention_equals_a_loop():
    query, key, value = (noise(2, 3, 7, 4, seed=s) for s in range(3))
    np.testing.assert_allclose(
        as_numpy(full_attention(query, key, value)), attention_by_loop(query, key, value), atol=1e-5
    )


@pytest.mark.parametrize("rows", [1, 4, 33])
def test_s24_sparse_attention_equals_full_attention_when_every_query_is_chosen(rows):
    query, key, value = (noise(2, 3, rows, 4, seed=s) for s in range(3))
    full = as_numpy(full_attention(query, key, value))
    everything = np.arange(rows)
    np.testing.assert_allclose(as_numpy(sparse_attention(query, key, value, rows, everything)), full, atol=1e-5)


def sparse_by_loop(query: np.ndarray, key: np.ndarray, value: np.ndarray, count: int, sample: np.ndarray) -> np.ndarray:
    full = attention_by_loop(query, key, value)
    out = np.broadcast_to(value.mean(axis=2, keepdims=True), value.shape).copy()
    for b, h in np.ndindex(query.shape[:2]):
        judged = query[b, h] @ key[b, h, sample].T
        sharpness = judged.max(axis=1) - judged.mean(axis=1)
        for t in np.argsort(-sharpness)[:count]:
            out[b, h, t] = full[b, h, t]
    return out


@pytest.mark.parametrize("count", [1, 5, 12])
def test_s24_the_sharpest_queries_attend_and_the_others_take_the_mean_value(count):
    query, key, value = (noise(2, 3, 13, 4, seed=s) for s in range(3))
    sample = np.array([1, 4, 5, 11])
    found = as_numpy(sparse_attention(query, key, value, count, sample))
    np.testing.assert_allclose(found, sparse_by_loop(query, key, value, count, sample), atol=1e-5)


def test_s24_a_planted_sharp_query_is_the_one_that_attends():
    query, key, value = 0.01 * noise(1, 1, 40, 4), noise(1, 1, 40, 4, seed=1), noise(1, 1, 40, 4, seed=2)
    query[0, 0, 17] = 9 * key[0, 0, 3]
    found = as_numpy(sparse_attention(query, key, value, 1, np.arange(0, 40, 3)))
    differs = np.abs(found - value.mean(axis=2, keepdims=True)).max(axis=-1)[0, 0]
    assert np.flatnonzero(differs > 1e-5).tolist() == [17]


@pytest.mark.parametrize("kind", ["full", "probsparse"])
def test_s23_padded_rows_change_nothing_in_attention(kind):
    """A window of 20 rows, padded to 40, gives its rows what attention over the 20 rows alone would."""
    query, key, value = (noise(1, 2, 40, 4, seed=s) for s in range(3))
    steps = (np.arange(40)[None] < 20).astype(np.float32)
    inside = [x[:, :, :20] for x in (query, key, value)]
    if kind == "full":
        padded, alone = full_attention(query, key, value, steps), attention_by_loop(*inside)
    else:
        sample = np.array([2, 9, 14, 25, 38])
        padded = sparse_attention(query, key, value, 6, sample, steps)
        alone = sparse_by_loop(*inside, 6, sample[:3])
    np.testing.assert_allclose(as_numpy(padded)[:, :, :20], alone, atol=1e-5)


def test_s24_short_windows_get_full_attention_whatever_the_option_says():
    assert [sparse_count(t) == t for t in (1, 4, 10, 15, 16, 32, 64)] == [True, True, True, True, False, False, False]
    x = noise(2, 15, 8)
    sparse, full = SelfAttention(2, "probsparse"), SelfAttention(2, "full")
    sparse(x), full(x)
    full.set_weights(sparse.get_weights())
    np.testing.assert_array_equal(as_numpy(sparse(x)), as_numpy(full(x)))


def test_s24_sparse_attention_gives_the_same_window_the_same_answer():
    x = noise(2, 64, 8)
    layer = SelfAttention(2, "probsparse")
    whole = as_numpy(layer(x))
    np.testing.assert_array_equal(whole, as_numpy(layer(x)))
    np.testing.assert_allclose(as_numpy(layer(x[:1])), whole[:1], atol=1e-6)


def test_s22_heads_attend_apart():
    """With one head's values and keys silenced, the other head's part of the output stays as it was."""
    x = noise(2, 6, 8)
    layer = SelfAttention(2)
    layer(x)
    kernel, bias, _, _ = layer.get_weights()
    out_kernel, out_bias = np.eye(8, dtype=np.float32), np.zeros(8, np.float32)
    layer.set_weights([kernel, bias, out_kernel, out_bias])
    before = as_numpy(layer(x))
    silenced = kernel.copy().reshape(8, 3, 2, 4)
    silenced[:, :, 0] = 0
    layer.set_weights([silenced.reshape(8, 24), bias, out_kernel, out_bias])
    after = as_numpy(layer(x))
    np.testing.assert_allclose(after[..., 4:], before[..., 4:], atol=1e-6)
    np.testing.assert_allclose(after[..., :4], 0, atol=1e-6)


def test_gelu_is_within_a_thousandth_of_the_exact_one():
    x = np.linspace(-6, 6, 241).astype(np.float32)
    exact = [v * 0.5 * (1 + math.erf(v / math.sqrt(2))) for v in x.tolist()]
    np.testing.assert_allclose(as_numpy(gelu(x)), exact, atol=1e-3)


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_s22_the_norm_stands_before_or_after_the_shortcut(norm):
    """After it, every row is standardised; before it, what came in is still part of what goes out."""
    inputs = keras.Input((6, 16))
    model = keras.Model(inputs, transformer_block(inputs, heads=2, norm=norm))
    x = 5 + 3 * noise(4, 6, 16)
    rows = model.predict_on_batch(x)
    if norm == "post":
        np.testing.assert_allclose(rows.mean(axis=-1), 0, atol=1e-4)
        np.testing.assert_allclose(rows.std(axis=-1), 1, atol=1e-2)
    else:
        assert np.corrcoef(rows.ravel(), x.ravel())[0, 1] > 0.9 and abs(rows.mean() - 5) < 1


def test_s24_memory_grows_near_t_log_t():
    """The largest array of the graph: T² floats a head, against T times 5 ln T, rounded up to whole queries."""
    for rows in (64, 256, 512, 1024, 2048):
        assert largest_intermediate("full", rows) == 4 * rows**2
        assert largest_intermediate("probsparse", rows) == 4 * rows * sparse_count(rows)
        assert 5 * math.log(rows) <= sparse_count(rows) < 5 * (math.log(rows) + 1)


@pytest.mark.slow
def test_s24_time_grows_near_t_log_t():
    """Between 256 and 2048 rows full attention's time grows near T², the other's near T; a busy machine slows both."""
    costs = attention_cost((256, 512, 1024, 2048), rounds=6)
    full, sparse = (growth(costs, kind, "seconds") for kind in ("full", "probsparse"))
    assert sparse < full - 0.4 and sparse < 1.6
    assert costs[-1].seconds < 0.5 * costs[-2].seconds
