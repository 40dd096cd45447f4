"""Backbones: shapes of any window, receptive fields, no future, positions, padding (METHODS S21, S22, S23, S39, S40)."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from anomaly.encoders.backbones import BACKBONES, build_embedder, build_tokens, receptive_field
from anomaly.encoders.base import WindowShape

ROWS = 41


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("rows", [1, 4, 7])
def test_s21_s22_any_length_gives_one_vector_per_window(name, rows):
    model = build_embedder(name, WindowShape(rows, 1), embedding=5, width=8, depth=2)
    out = model.predict_on_batch(noise(3, rows, 1))
    assert out.shape == (3, 5) and np.isfinite(out).all()


@pytest.mark.parametrize("name", BACKBONES)
def test_s5_a_category_changes_the_embedding(name):
    model = build_embedder(name, WindowShape(5, 2, (3,)), embedding=5, width=8, depth=1)
    windows = noise(2, 5, 3)
    windows[..., 2] = 1
    other = windows.copy()
    other[..., 2] = 2
    assert np.abs(model.predict_on_batch(windows) - model.predict_on_batch(other)).max() > 1e-4


@pytest.mark.parametrize("name", BACKBONES[1:])
def test_s39_every_row_keeps_a_vector(name):
    assert build_tokens(name, WindowShape(ROWS, 3), width=32, depth=1).output_shape == (None, ROWS, 32)


@pytest.mark.parametrize(
    ("kernel", "depth", "expected"), [(3, 0, 1), (3, 1, 3), (3, 4, 31), (2, 3, 8), (5, 2, 13), (1, 6, 1)]
)
def test_s39_the_receptive_field_in_closed_form(kernel, depth, expected):
    assert receptive_field(kernel, depth) == expected


def reached(model: keras.Model, row: int) -> list[int]:
    """The rows whose vector changes when input row ``row`` does."""
    windows = noise(1, ROWS, 2)
    changed = windows.copy()
    changed[:, row] += 5
    differs = np.abs(model.predict_on_batch(windows) - model.predict_on_batch(changed)).max(axis=(0, 2))
    return np.flatnonzero(differs > 0).tolist()


@pytest.mark.parametrize(("kernel", "depth"), [(3, 3), (5, 2)])
def test_s39_the_receptive_field_is_what_a_changed_row_reaches(kernel, depth):
    model = build_tokens("dilated", WindowShape(ROWS, 2), width=8, depth=depth, kernel=kernel)
    half = receptive_field(kernel, depth) // 2
    assert reached(model, 20) == list(range(20 - half, 20 + half + 1))


def test_s39_no_future_leaks_in_causal_mode():
    model = build_tokens("dilated", WindowShape(ROWS, 2), width=8, depth=3, causal=True)
    assert reached(model, 20) == list(range(20, 20 + receptive_field(3, 3)))
    assert reached(model, ROWS - 1) == [ROWS - 1]


@pytest.mark.parametrize("pooling", ["cls", "mean", "max"])
def test_s22_permuting_time_changes_the_output(pooling):
    model = build_embedder("transformer", WindowShape(9, 2), embedding=4, width=8, depth=1, heads=2, pooling=pooling)
    windows = noise(3, 9, 2)
    order = np.random.default_rng(1).permutation(9)
    assert np.abs(model.predict_on_batch(windows) - model.predict_on_batch(windows[:, order])).max() > 1e-3


def test_s22_with_a_class_token_the_attention_sees_one_row_more():
    shapes = [layer.output.shape for layer in build_embedder("transformer", WindowShape(9, 2), depth=1).layers]
    assert (None, 10, 32) in shapes
    shapes = [
        layer.output.shape for layer in build_embedder("transformer", WindowShape(9, 2), depth=1, pooling="mean").layers
    ]
    assert (None, 10, 32) not in shapes and (None, 9, 32) in shapes


@pytest.mark.parametrize("pooling", ["cls", "mean", "max"])
@pytest.mark.parametrize("attention", ["full", "probsparse"])
def test_s23_padding_is_masked_for_every_pooling(pooling, attention):
    options = {"embedding": 4, "width": 8, "depth": 2, "heads": 2}
    model = build_embedder(
        "transformer", WindowShape(30, 2), pooling=pooling, attention=attention, padded=True, **options
    )
    windows, steps = noise(3, 30, 2), np.ones((3, 30), np.float32)
    steps[:, 21:] = 0
    other = windows.copy()
    other[:, 21:] = 7 * noise(3, 9, 2, seed=1)
    found = model.predict_on_batch([windows, steps])
    np.testing.assert_allclose(model.predict_on_batch([other, steps]), found, atol=1e-6)
    assert np.abs(model.predict_on_batch([other, np.ones_like(steps)]) - found).max() > 1e-3
    if attention == "full":
        short = build_embedder("transformer", WindowShape(21, 2), pooling=pooling, **options)
        short.set_weights(model.get_weights())
        np.testing.assert_allclose(short.predict_on_batch(windows[:, :21]), found, atol=1e-5)


@pytest.mark.parametrize("name", ["cnn", "dilated"])
def test_s40_mean_and_maximum_can_be_chosen(name):
    windows = noise(3, 8, 2)
    tokens = build_tokens(name, WindowShape(8, 2), width=8, depth=1)
    rows = tokens.predict_on_batch(windows)
    pooled = {"mean": rows.mean(axis=1), "max": rows.max(axis=1)}
    for pooling, expected in pooled.items():
        model = build_embedder(name, WindowShape(8, 2), embedding=8, width=8, depth=1, pooling=pooling)
        model.set_weights([*tokens.get_weights(), np.eye(8, dtype=np.float32), np.zeros(8, np.float32)])
        np.testing.assert_allclose(model.predict_on_batch(windows), expected, atol=1e-5)


def test_dropout_works_while_training_and_is_off_afterwards():
    model = build_embedder("transformer", WindowShape(6, 2), depth=1, dropout=0.5)
    windows = noise(2, 6, 2)
    np.testing.assert_array_equal(model.predict_on_batch(windows), model.predict_on_batch(windows))
    trained = [np.asarray(keras.ops.convert_to_numpy(model(windows, training=True))) for _ in range(2)]
    assert np.abs(trained[0] - trained[1]).max() > 1e-3


def test_what_a_backbone_does_not_have_is_refused():
    shape = WindowShape(6, 2)
    with pytest.raises(ValueError, match="expected one of dense, cnn, dilated, transformer, got 'gru'"):
        build_embedder("gru", shape)
    with pytest.raises(ValueError, match="expected one of cnn, dilated, transformer, got 'dense'"):
        build_tokens("dense", shape)
    with pytest.raises(ValueError, match="choose mean or max"):
        build_embedder("cnn", shape, pooling="cls")
    with pytest.raises(ValueError, match="only transformer has"):
        build_embedder("dilated", shape, padded=True)
