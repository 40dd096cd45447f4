"""Contrastive losses against loops and closed forms (METHODS S27, S28, S38)."""

from __future__ import annotations

import math

import keras
import numpy as np
import pytest
from keras import ops

from anomaly.encoders.losses import hierarchical_contrast, info_nce, nt_xent, pair_contrast, scale_count

Z = np.random.default_rng(0).normal(size=(12, 5)).astype(np.float32)


def by_loop(z: np.ndarray, temperature: float) -> float:
    """NT-Xent as it is written: for each view, its partner against all others."""
    z = z.astype(np.float64)
    z = z / np.linalg.norm(z, axis=1, keepdims=True)
    n, total = len(z) // 2, 0.0
    for i in range(2 * n):
        partner = (i + n) % (2 * n)
        others = [math.exp(z[i] @ z[k] / temperature) for k in range(2 * n) if k != i]
        total -= math.log(math.exp(z[i] @ z[partner] / temperature) / sum(others))
    return total / (2 * n)


def value(loss, z) -> float:
    return float(ops.convert_to_numpy(loss(None, ops.convert_to_tensor(z))))


def gradient(loss, z: np.ndarray) -> np.ndarray:
    """The gradient that a training step would take: one plain step of size 1 on the projections themselves."""
    start = keras.Input((1,))
    out = keras.layers.Embedding(len(z), z.shape[1], name="z")(start)
    model = keras.Model(start, keras.layers.Reshape((z.shape[1],))(out))
    model.get_layer("z").set_weights([z])
    model.compile(optimizer=keras.optimizers.SGD(1.0), loss=loss, jit_compile=keras.backend.backend() == "jax")
    model.train_on_batch(np.arange(len(z))[:, None], np.zeros((len(z), 1), np.float32))
    return z - model.get_layer("z").get_weights()[0]


@pytest.mark.parametrize("temperature", [0.024, 0.026, 0.05, 0.07, 0.1, 0.2, 1.0])
def test_s27_equals_the_loop(temperature):
    assert value(nt_xent(temperature), Z) == pytest.approx(by_loop(Z, temperature), rel=1e-5)


@pytest.mark.parametrize("temperature", [0.01, 0.2])
def test_s27_its_own_gradient_is_that_of_the_loop(temperature):
    found = gradient(nt_xent(temperature), Z)
    step = 1e-5
    for row, column in ((0, 0), (5, 2), (11, 4)):
        ahead, back = Z.astype(np.float64), Z.astype(np.float64)
        ahead[row, column] += step
        back[row, column] -= step
        expected = (_stable_loop(ahead, temperature) - _stable_loop(back, temperature)) / (2 * step)
        assert found[row, column] == pytest.approx(expected, rel=2e-3, abs=1e-6)


def _stable_loop(z: np.ndarray, temperature: float) -> float:
    z = z / np.linalg.norm(z, axis=1, keepdims=True)
    n, total = len(z) // 2, 0.0
    for i in range(2 * n):
        logits = np.array([z[i] @ z[k] / temperature for k in range(2 * n) if k != i])
        total += np.log(np.exp(logits - logits.max()).sum()) + logits.max() - z[i] @ z[(i + n) % (2 * n)] / temperature
    return total / (2 * n)


def test_s27_is_symmetric_in_the_two_views():
    swapped = np.concatenate((Z[6:], Z[:6]))
    assert value(nt_xent(0.2), swapped) == pytest.approx(value(nt_xent(0.2), Z), rel=1e-6)


def test_s27_identical_and_orthogonal_views_match_closed_forms():
    """Pairs that agree and are orthogonal to all others: log(1 + (2B − 2) e^(−1/τ)). All alike: log(2B − 1)."""
    pairs = np.concatenate((np.eye(6), np.eye(6))).astype(np.float32)
    expected = math.log(1 + 10 * math.exp(-1 / 0.2))
    assert value(nt_xent(0.2), pairs) == pytest.approx(expected, rel=1e-5)
    assert value(nt_xent(0.2), np.ones((12, 5), np.float32)) == pytest.approx(math.log(11), rel=1e-5)


@pytest.mark.parametrize("sizes", [1.0, 1e4])
def test_s27_is_stable_at_a_hundredth_in_half_precision(sizes):
    half = (Z * sizes).astype(np.float16)
    found = value(nt_xent(0.01), half)
    assert np.isfinite(found)
    assert found == pytest.approx(_stable_loop(half.astype(np.float64), 0.01), rel=1e-2)
    assert np.isfinite(gradient(nt_xent(0.01), (Z * sizes).astype(np.float32))).all()


def test_s27_opposite_views_stay_exact_where_every_exponential_is_small():
    """Pairs that point away from each other: the loss is 2/τ and more, at the edge of what the fast form serves."""
    z = np.concatenate((Z[:6], -Z[:6]))
    for temperature in (0.026, 0.024):
        expected = _stable_loop(z.astype(np.float64), temperature)
        assert value(nt_xent(temperature), z) == pytest.approx(expected, rel=1e-5)
        assert np.isfinite(gradient(nt_xent(temperature), z)).all()


def test_s27_a_pair_alone_and_a_temperature_of_zero_are_refused():
    with pytest.raises(ValueError, match="at least 2 windows"):
        value(nt_xent(0.2), Z[:2])
    with pytest.raises(ValueError, match="temperature"):
        nt_xent(0.0)


def test_s28_info_nce_is_the_cross_entropy_of_the_first():
    logits = np.random.default_rng(1).normal(size=(4, 9)).astype(np.float32) * 50
    exact = logits.astype(np.float64)
    largest = exact.max(axis=1, keepdims=True)
    expected = (np.log(np.exp(exact - largest).sum(axis=1)) + largest[:, 0] - exact[:, 0]).mean()
    assert value(info_nce, logits) == pytest.approx(expected, rel=1e-5)


# The hierarchical contrast --------------------------------------------------------------------------------------------


def group_loop(z: np.ndarray) -> float:
    """Partner against the others of one group ``(2n, d)`` by dot product."""
    n, total = len(z) // 2, 0.0
    for i in range(2 * n):
        logits = [z[i] @ z[k] for k in range(2 * n) if k != i]
        total += np.log(np.exp(logits).sum()) - z[i] @ z[(i + n) % (2 * n)]
    return total / (2 * n)


def hierarchy_loop(first: np.ndarray, second: np.ndarray, temporal: float) -> float:
    total, scales = 0.0, 0
    while True:
        rows = first.shape[1]
        instance = np.mean([group_loop(np.concatenate((first[:, t], second[:, t]))) for t in range(rows)])
        within = np.mean([group_loop(np.concatenate((a, b))) for a, b in zip(first, second, strict=True)])
        total += (1 - temporal) * instance + (temporal * within if rows > 1 else 0)
        scales += 1
        if rows == 1:
            return total / scales
        half = rows // 2
        first, second = (z[:, : 2 * half].reshape(len(z), half, 2, -1).max(axis=2) for z in (first, second))


@pytest.mark.parametrize("rows", [1, 4, 7])
@pytest.mark.parametrize("windows", [1, 3])
def test_s38_equals_the_loop(rows, windows):
    rng = np.random.default_rng(rows)
    first, second = (rng.normal(size=(windows, rows, 4)).astype(np.float32) for _ in range(2))
    found = float(ops.convert_to_numpy(hierarchical_contrast(first, second, temporal=0.3)))
    expected = hierarchy_loop(first.astype(np.float64), second.astype(np.float64), 0.3)
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-7)


def test_s38_scales_and_what_a_batch_of_one_leaves_out():
    assert [scale_count(t) for t in (1, 2, 3, 8, 500)] == [1, 2, 2, 4, 9]
    one = np.random.default_rng(0).normal(size=(1, 2, 3)).astype(np.float32)
    assert float(ops.convert_to_numpy(pair_contrast(one))) == pytest.approx(0, abs=1e-6)
    crops = np.random.default_rng(1).normal(size=(2, 1, 8, 3)).astype(np.float32)
    only_instance = float(ops.convert_to_numpy(hierarchical_contrast(crops[0], crops[1], temporal=0.0)))
    assert only_instance == pytest.approx(0, abs=1e-6)
